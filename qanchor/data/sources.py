"""Open any table: frames, csv of any dialect, parquet, JSON lines, Excel workbooks, folders."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from qanchor.data.validation import REQUIRED, UNREADABLE, Findings
from qanchor.errors import DataError
from qanchor.utils.text import count

FORMATS = ("parquet", "csv", "tsv", "txt", "jsonl", "ndjson", "json", "xlsx")
DELIMITERS = ",;\t|"
MAX_LINE = 64_000_000  # bytes
HEAD = 1 << 20  # characters of a text file that are read to detect its structure
SAVE_AS_UTF8 = "Save it as UTF-8 (in a spreadsheet: CSV UTF-8)."
WORKBOOK = b"PK\x03\x04"
OLD_WORKBOOK = b"\xd0\xcf\x11\xe0"
GZIP = b"\x1f\x8b"
# a date at the start of a cell, which no column name has
LIKE_A_DATE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")


@dataclass
class Table:
    """A table before parsing: cells of a text file are text, typed cells keep their type.

    Args:
        findings: Collects what is found in the table; holds its name.
        frame: The cells; column names are str, rows are numbered from 0.
        semicolons: Whether columns are separated by semicolons (default False). This is common
            where commas are decimal marks.
    """

    findings: Findings
    frame: pd.DataFrame
    semicolons: bool = False

    @property
    def name(self) -> str:
        """Name of the file, for messages."""
        return self.findings.file


def open_table(source: object, findings: Findings) -> Table:
    """Open a table.

    Args:
        source: pandas or polars frame, pyarrow table, or path of a file or of a folder of parquet
            parts.
        findings: Collects what had to be assumed.

    Returns:
        The table.

    Raises:
        DataError: The file cannot be read. The message says what to do.
        FileNotFoundError: There is no such file.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        table = _open_path(path, findings.of_table(path.name))
    else:
        table = Table(findings.of_table("events"), _to_pandas(source))
    _name_columns(table)
    _decode_bytes(table)
    return table


def find_tables(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that hold events, users and labels.

    Args:
        folder: The folder. If no table is named events, the only other table holds the events.

    Returns:
        Paths by "events", "users" and "labels". If a table exists in several formats, the first in
        the order of `FORMATS`.

    Raises:
        FileNotFoundError: There is no table of events.
    """
    tables = [path for path in sorted(folder.iterdir()) if _format(path) in FORMATS]
    tables.sort(key=lambda path: FORMATS.index(_format(path)))
    paths = {}
    others = []
    for path in tables:
        stem = path.name.partition(".")[0].lower()
        if stem in ("events", "users", "labels"):
            paths.setdefault(stem, path)
        elif path.name != "about.json":
            others.append(path)
    if "events" in paths:
        return paths
    if len(others) == 1:
        return paths | {"events": others[0]}
    names = ", ".join(sorted(path.name for path in others)) or "none"
    raise FileNotFoundError(
        f"{folder} has no events.parquet or events.csv (tables: {names})."
        f" Write one row per event with the columns {', '.join(REQUIRED)}."
    )


def _format(path: Path) -> str:
    """Return the suffix of a file name in lower case, without the dot and without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix[1:]


def _to_pandas(source: object) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        return source
    if hasattr(source, "to_pandas"):  # polars and pyarrow
        return source.to_pandas()
    raise TypeError(
        f"{type(source).__name__} is not a table."
        " Pass a pandas or polars frame, a pyarrow table, or the path of a file or folder."
    )


def _name_columns(table: Table) -> None:
    """Number the rows, convert column names to str, and turn named index levels into columns."""
    frame = table.frame
    hidden = [name for name in frame.index.names if name is not None and name not in frame]
    for name in hidden:
        table.findings.add(name, "index", "in the index. It is read as a column.", "changed")
    frame = frame.reset_index(drop=not hidden)
    frame.columns = [str(name).strip("\ufeff ") for name in frame.columns]
    twice = frame.columns.duplicated()
    for name in frame.columns[twice].unique():
        table.findings.add(name, list(frame.columns), "two columns of one name. Rename one.")
    table.frame = frame.loc[:, ~twice]


def _decode_bytes(table: Table) -> None:
    """Decode cells of bytes as UTF-8."""
    findings = table.findings
    for name, cells in table.frame.items():
        if cells.dtype != object:
            continue
        is_bytes = cells.map(lambda cell: isinstance(cell, bytes))  # other cells may be text
        coded = cells[is_bytes]
        if coded.empty:
            continue
        texts = coded.str.decode("utf-8", "replace")
        broken = texts.str.contains("\ufffd", regex=False)
        message = "bytes, not words. They are read as UTF-8."
        findings.rows(coded, ~broken, message, "changed")
        findings.rows(coded, broken, "bytes that are not UTF-8. Write text.")
        table.frame = table.frame.assign(**{name: cells.mask(is_bytes, texts)})


def _open_path(path: Path, findings: Findings) -> Table:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give the path of a file or a folder.")
    kind = _format(path)
    start = b""
    if path.is_dir():
        kind = "parquet"
    else:
        with path.open("rb") as file:
            start = file.read(8)
    if start.startswith(OLD_WORKBOOK) or kind == "xls":
        raise _unreadable(path.name, "an old workbook (.xls). Save it as CSV UTF-8.")
    if start.startswith(b"PAR1") or kind == "parquet":
        with _refused(path.name, UNREADABLE):
            return Table(findings, pd.read_parquet(path))
    if start.startswith(WORKBOOK) or kind == "xlsx":
        return Table(findings, _read_workbook(path, findings))
    if kind in ("jsonl", "ndjson", "json"):
        with _refused(path.name, "cannot be read. Write one JSON object per line."):
            return Table(findings, pd.read_json(path, lines=kind != "json", dtype=False))
    with tempfile.TemporaryDirectory() as folder:
        text = _Text(_as_utf8(path, findings, Path(folder)), findings)
        return Table(findings, text.read(), text.delimiter == ";")


def _unreadable(file: str, message: str, value=None) -> DataError:
    """Return the error for a file that cannot be read."""
    return DataError(file, None, None, value and str(value), message)


@contextmanager
def _refused(file: str, message: str) -> Iterator[None]:
    """Turn any error in the block into the error for a file that cannot be read."""
    try:
        yield
    except Exception as error:
        raise _unreadable(file, message, error) from error


def _read_workbook(path: Path, findings: Findings) -> pd.DataFrame:
    advice = "Save the sheet as CSV UTF-8."
    if find_spec("openpyxl") is None:
        message = f"a workbook, which openpyxl reads. Run pip install openpyxl. {advice}"
        raise _unreadable(path.name, message)
    with _refused(path.name, f"a workbook that cannot be read. {advice}"):
        sheets = pd.read_excel(path, sheet_name=None, dtype=object, engine="openpyxl")
    filled = {name: sheet for name, sheet in sheets.items() if len(sheet)}
    if len(filled) != 1:
        sizes = f"a workbook with {count(len(filled), 'sheet')} that have rows; 1 is required"
        raise _unreadable(path.name, f"{sizes}. {advice}", list(filled))
    [(name, frame)] = filled.items()
    findings.add(None, name, "this sheet of the workbook was read", "note")
    return frame.rename(columns=lambda column: re.sub("^Unnamed: .*", "", str(column)))


def _as_utf8(path: Path, findings: Findings, folder: Path) -> Path:
    """Return a file that holds the text in UTF-8: the file itself, or a copy in `folder`."""
    raw = path.read_bytes()
    if raw.startswith(GZIP):
        with _refused(path.name, "a damaged gzip file. Write it again."):
            raw = gzip.decompress(raw)
        path = folder / "unzipped"
        path.write_bytes(raw)
    text = _decode(raw, findings)
    if text is not None:
        path = folder / "utf8"
        path.write_bytes(text.encode("utf-8", "replace"))
    return path


def _decode(raw: bytes, findings: Findings) -> str | None:
    """Decode a text of any encoding; return None if it is UTF-8 already."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        findings.add(None, "utf-16", "read in this encoding", "changed")
        with _refused(findings.file, f"a damaged text in utf-16. {SAVE_AS_UTF8}"):
            return raw.decode("utf-16")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return _decode_western(raw, error.start, findings)
    return None


def _decode_western(raw: bytes, start: int, findings: Findings) -> str:
    """Decode a text as cp1252, and report one decoded word as an example.

    Args:
        raw: The text.
        start: Position of the first byte that is not UTF-8.
        findings: Collects what was changed.
    """
    from charset_normalizer import from_bytes

    partly = raw.decode("utf-8", "ignore")
    if not partly.isascii():
        line = raw[:start].count(b"\n") + 1
        message = f"line {line} holds the byte 0x{raw[start]:02x}, which is not UTF-8"
        raise _unreadable(findings.file, f"{message}. {SAVE_AS_UTF8}")
    western = raw.decode("cp1252", "replace")
    if "\ufffd" in western or re.search("[^\x00-\x7f]{4}", western):
        best = from_bytes(raw[:HEAD]).best()
        looks = f" (it looks like {best.encoding})" if best else ""
        message = f"neither UTF-8 nor a Western encoding{looks}. {SAVE_AS_UTF8}"
        raise _unreadable(findings.file, message)
    word = re.search(r"\w*[^\x00-\x7f]\w*", western).group()
    message = f"not UTF-8. It is read as cp1252, which is a guess. {SAVE_AS_UTF8}"
    findings.add(None, word, message, "changed")
    return western


class _Text:
    """Detect the structure of a delimited text file, and read its rows with DuckDB."""

    def __init__(self, path: Path, findings: Findings):
        self.path = path
        self.findings = findings
        with path.open(encoding="utf-8-sig") as file:
            lines = [*file.read(HEAD).split("\n"), ""]
        sniffed, self.skip, has_header = self._find_header(lines)
        header = lines[self.skip]
        self.delimiter = sniffed if sniffed and sniffed in header else _delimiter(header)
        self.columns = _split(header, self.delimiter)
        if not any(self.columns):
            message = "No columns to parse from file. Write one row per event."
            raise _unreadable(findings.file, message)
        first_row = _split(lines[self.skip + 1], self.delimiter)
        if first_row[len(self.columns) :] == [""]:
            message = "rows end with a delimiter. The empty column after it is left out."
            findings.add(None, self.delimiter, message, "note")
        if not has_header and any(map(LIKE_A_DATE.match, self.columns)):
            message = (
                "the first line looks like an event, not like column names."
                f" Add a header such as {self.delimiter.join(REQUIRED)}."
            )
            raise _unreadable(findings.file, message, header)

    def _find_header(self, lines: list[str]) -> tuple[str, int, bool]:
        """Return the delimiter ("" if unknown), the lines above the header, and if there is one."""
        blank = next((i for i, line in enumerate(lines) if line.strip()), 0)
        first = lines[blank]
        declared = re.fullmatch(r"sep=(.)", first.strip(" "))
        if declared:
            return declared[1], blank + 1, True
        delimiter, skipped, has_header = self._sniff()
        if not _is_preamble(lines, delimiter, skipped):
            return delimiter, blank, has_header
        message = f"{count(skipped, 'line')} above the header. They are left out."
        self.findings.add(None, first, message, "note")
        return delimiter, skipped, has_header

    def _sniff(self) -> tuple[str, int, bool]:
        import duckdb

        query = (
            "select Delimiter, SkipRows, HasHeader"
            " from sniff_csv($path, all_varchar=true, comment='')"
        )
        try:
            with duckdb.connect() as base:
                result = base.execute(query, {"path": str(self.path)})
                delimiter, skip, has_header = result.fetchone()
        except duckdb.Error:
            return "", 0, True
        return delimiter if len(delimiter) == 1 else "", skip, has_header

    def read(self) -> pd.DataFrame:
        """Return the rows, each cell as text."""
        import duckdb

        try:
            frame = self._query('"')
            if not self._has_stray_quote(frame):
                return frame
            problem = (
                f"line {self._first_odd_line()}: a quote opens there and closes in another row"
            )
        except duckdb.Error as error:
            problem = self._explain(error)
        try:
            frame = self._query("")
        except duckdb.Error:
            message = f"{problem}. Remove the quote, or put the whole text into quotes."
            raise _unreadable(self.findings.file, message) from None
        message = f"{problem}. Quotes are read as plain characters."
        self.findings.add(None, None, message, "changed")
        return frame

    def _query(self, quote: str) -> pd.DataFrame:
        import duckdb

        query = (
            "select * from read_csv($path, columns=$columns, auto_detect=false, header=true,"
            " skip=$skip, delim=$delimiter, quote=$quote, escape=$quote, comment='',"
            " max_line_size=$size)"
        )
        values = {
            "path": str(self.path),
            "columns": {f"c{i}": "VARCHAR" for i in range(len(self.columns))},
            "skip": self.skip,
            "delimiter": self.delimiter,
            "quote": quote,
            "size": min(MAX_LINE, max(2_097_152, self.path.stat().st_size)),
        }
        with duckdb.connect() as base:
            frame = base.sql(query, params=values).to_arrow_table().to_pandas()
        names = [name.strip() for name in self.columns]
        unnamed = [name or f"column {number}" for number, name in enumerate(names, 1)]
        frame.columns = names[:1] + unnamed[1:]  # a column of row numbers may have no name
        return frame

    def _has_stray_quote(self, frame: pd.DataFrame) -> bool:
        """Return whether a cell contains whole rows, which a stray quote has swallowed."""
        shapes = {}
        for place, cell in enumerate(frame.head(1).fillna("").to_numpy().ravel()):
            shape = _shape(cell)
            if shape.count("9") >= 4:
                shapes[place] = shape
        for _, cells in frame.items():
            for cell in cells[cells.str.contains("\n", regex=False, na=False)]:
                if any(self._is_row(line, shapes) for line in cell.split("\n")[1:]):
                    return True
        return False

    def _is_row(self, line: str, shapes: dict[int, str]) -> bool:
        fields = line.rstrip("\r").split(self.delimiter)
        if not shapes:
            return len(fields) == len(self.columns) > 1
        return any(_shape(field) == shapes.get(place) for place, field in enumerate(fields))

    def _first_odd_line(self) -> int:
        with self.path.open(encoding="utf-8") as file:
            odd = (number for number, line in enumerate(file, 1) if line.count('"') % 2)
            return next(odd, 1)

    def _explain(self, error: Exception) -> str:
        """Return what is wrong with the quotes; raise if quotes are not the problem.

        Raises:
            DataError: A row has too many or too few fields, or the file cannot be read.
        """
        text = str(error)
        if "unterminated quote" in text:
            return f"line {self._first_odd_line()}: a quote opens there and never closes"
        widths = r"(?s)Line: (\d+).*Expected Number of Columns: (\d+) Found: (\d+)"
        fields = re.search(widths, text)
        if not fields:
            first_line = text.partition("\n")[0]
            raise _unreadable(self.findings.file, UNREADABLE, first_line) from error
        line, expected, n_fields = fields.groups()
        hint = "Put a text that holds the delimiter into quotes."
        if int(n_fields) < int(expected):
            hint = "Complete the row."
        message = (
            f"line {line} has {n_fields} fields under a header of {expected}"
            f" (separated by {self.delimiter!r}). {hint}"
        )
        raise _unreadable(self.findings.file, message) from error


def _is_preamble(lines: list[str], delimiter: str, skipped: int) -> bool:
    """Return whether the lines that the sniffer skipped are not rows: they have fewer columns."""
    if not delimiter or not 0 < skipped < len(lines):
        return False
    width = lines[skipped].count(delimiter)
    return all(2 * line.count(delimiter) < width for line in lines[:skipped])


def _shape(cell: str) -> str:
    """Return a cell with each digit replaced by 9, such as 9999-99-99 for any date."""
    return re.sub(r"\d", "9", cell)


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=lambda mark: len(_split(header, mark)))


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])
