"""Open a table from anywhere: frames, csv of any dialect, parquet, JSON lines, workbooks, folders."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qanchor.data.validation import REQUIRED, Findings
from qanchor.errors import DataError
from qanchor.utils.text import count

FORMATS = ("parquet", "csv", "tsv", "txt", "jsonl", "ndjson", "json", "xlsx")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
DELIMITERS = ",;\t|"
MAX_LINE = 64_000_000  # bytes
CHUNK = 1 << 24  # bytes
HEAD = 1 << 20  # characters of a text file that are looked at for its structure
UNREADABLE = "cannot be read: write it again as parquet or csv"
SAVE_AS_UTF8 = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
WORKBOOK = b"PK\x03\x04"
OLD_WORKBOOK = b"\xd0\xcf\x11\xe0"
GZIP = b"\x1f\x8b"


@dataclass
class Table:
    """A table as it was handed over: cells of a text file are text, typed cells keep their type.

    Args:
        name: Name of the file, for messages.
        frame: The cells; column names are str, rows are numbered from 0.
        semicolons: Whether semicolons part the columns, as where commas are decimal marks.
    """

    name: str
    frame: pd.DataFrame
    semicolons: bool = False


def open_table(source, findings: Findings, name: str = "events") -> Table:
    """Open a table.

    Args:
        source: pandas or polars frame, pyarrow table, or path of a file or of a folder of parquet
            parts.
        findings: Collects what had to be assumed.
        name: Name of a table that is no file (default "events").

    Returns:
        The table.

    Raises:
        DataError: It cannot be read; says what to do.
        FileNotFoundError: There is no such file.
    """
    if isinstance(source, str | Path):
        table = _open_path(Path(source), findings)
    else:
        table = Table(name, _to_pandas(source))
    table.frame = _plain_columns(table, findings)
    return table


def find_tables(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that hold events, users and labels.

    Args:
        folder: The folder. Events may be in the only table of any name.

    Returns:
        Paths by "events", "users" and "labels"; of two formats the first of parquet, csv ...

    Raises:
        FileNotFoundError: There is no table of events.
    """
    found = {}
    tables = [path for path in sorted(folder.iterdir()) if _format(path) in FORMATS]
    for stem in ("events", "users", "labels"):
        named = [path for path in tables if path.name.partition(".")[0].lower() == stem]
        if named:
            found[stem] = min(named, key=lambda path: FORMATS.index(_format(path)))
    others = [path for path in tables if path not in found.values() and path.name != "about.json"]
    if "events" not in found and len(others) == 1:
        found["events"] = others[0]
    if "events" not in found:
        names = ", ".join(path.name for path in others) or "none"
        raise FileNotFoundError(
            f"{folder} has no events.parquet or events.csv (tables: {names})."
            f" Write one row per event with the columns {', '.join(REQUIRED)}."
        )
    return found


def _format(path: Path) -> str:
    suffixes = [suffix[1:].lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def _to_pandas(source) -> pd.DataFrame:
    if isinstance(source, pd.DataFrame):
        return source
    if hasattr(source, "to_pandas"):  # polars and pyarrow
        return source.to_pandas()
    raise TypeError(
        f"{type(source).__name__} is not a table."
        " Pass a pandas or polars frame, a pyarrow table, or the path of a file or folder."
    )


def _plain_columns(table: Table, findings: Findings) -> pd.DataFrame:
    """Number the rows and name the columns by str; what stands in the index becomes a column."""
    frame = table.frame
    hidden = [name for name in frame.index.names if name is not None and name not in frame]
    for name in hidden:
        findings.add(table.name, name, "index", "stands in the index: read as a column", "changed")
    frame = frame.reset_index(drop=not hidden)
    frame.columns = [str(name).strip("\ufeff ") for name in frame.columns]
    for name in frame.columns[frame.columns.duplicated()].unique():
        message = "two columns of one name: rename one"
        findings.add(table.name, name, list(frame.columns), message)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    decoded = {
        name: _decode_bytes(table.name, frame[name], findings)
        for name in frame
        if frame[name].dtype == object
    }
    return frame.assign(**decoded)


def _decode_bytes(file: str, cells: pd.Series, findings: Findings) -> pd.Series:
    is_bytes = cells.map(lambda value: isinstance(value, bytes))
    if not is_bytes.any():
        return cells
    texts = cells[is_bytes].map(lambda value: value.decode("utf-8", "replace"))
    broken = texts.str.contains("\ufffd", regex=False).reindex(cells.index, fill_value=False)
    findings.rows(file, cells, is_bytes & ~broken, "bytes, not words: read as UTF-8", "changed")
    findings.rows(file, cells, broken, "bytes that are not UTF-8: write words")
    return cells.mask(is_bytes, texts.reindex(cells.index))


def _open_path(path: Path, findings: Findings) -> Table:
    if path.is_dir():
        return Table(path.name, _read_parquet(path))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give the path of a file or a folder.")
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PAR1") or _format(path) == "parquet":
        return Table(path.name, _read_parquet(path))
    if start.startswith(OLD_WORKBOOK) or _format(path) == "xls":
        message = "an old workbook (.xls): save it as CSV UTF-8"
        raise DataError(path.name, None, None, None, message)
    if start.startswith(WORKBOOK) or _format(path) == "xlsx":
        return Table(path.name, _read_workbook(path, findings))
    if _format(path) in ("jsonl", "ndjson", "json"):
        return Table(path.name, _read_json(path))
    with tempfile.TemporaryDirectory() as folder:
        text = _Text(path.name, _as_utf8(path, findings, Path(folder)), findings)
        return Table(path.name, text.read(), text.delimiter == ";")


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:
        raise DataError(path.name, None, path.stem, str(error), UNREADABLE) from error


def _read_json(path: Path) -> pd.DataFrame:
    lines = _format(path) != "json"
    try:
        return pd.read_json(path, lines=lines, dtype=False)
    except (ValueError, AttributeError) as error:
        message = "cannot be read: write one JSON object per line"
        raise DataError(path.name, None, path.stem, str(error), message) from error


def _read_workbook(path: Path, findings: Findings) -> pd.DataFrame:
    advice = "Save the sheet as CSV UTF-8."
    try:
        import openpyxl  # noqa: F401
    except ImportError as error:
        message = f"a workbook, for which openpyxl is needed: pip install openpyxl. {advice}"
        raise DataError(path.name, None, None, None, message) from error
    try:
        sheets = pd.read_excel(path, sheet_name=None, dtype=object, engine="openpyxl")
    except Exception as error:
        message = f"a workbook that cannot be read. {advice}"
        raise DataError(path.name, None, None, str(error), message) from error
    filled = {name: sheet for name, sheet in sheets.items() if len(sheet)}
    if len(filled) != 1:
        message = (
            f"a workbook with {count(len(filled), 'sheet')} of rows, where one is needed. {advice}"
        )
        raise DataError(path.name, None, None, list(filled), message)
    [(name, frame)] = filled.items()
    findings.add(path.name, None, name, "the sheet of a workbook was read", "note")
    frame.columns = ["" if str(c).startswith("Unnamed: ") else c for c in frame.columns]
    return frame


def _as_utf8(path: Path, findings: Findings, folder: Path) -> Path:
    """Return a file that holds the text in UTF-8: the file itself, or a copy in `folder`."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(GZIP):
        unpacked = folder / path.stem
        try:
            with gzip.open(path) as packed, unpacked.open("wb") as file:
                while part := packed.read(CHUNK):
                    file.write(part)
        except (OSError, EOFError) as error:
            message = "a damaged gzip file: write it again"
            raise DataError(path.name, None, None, str(error), message) from error
        return _as_utf8(unpacked, findings, folder)
    for mark, encoding in MARKS.items():
        if start.startswith(mark) and encoding != "utf-8-sig":
            findings.add(path.name, None, encoding, "read in this encoding", "changed")
            return _rewrite(path, encoding, folder)
    if _is_utf8(path):
        return path
    encoding = _guess_encoding(path, findings)
    return _rewrite(path, encoding, folder)


def _rewrite(path: Path, encoding: str, folder: Path) -> Path:
    copy = folder / f"{path.name}.utf8"
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        message = f"a damaged text in {encoding}: {SAVE_AS_UTF8}"
        raise DataError(path.name, None, None, str(error), message) from error
    copy.write_bytes(text.encode("utf-8", "replace"))
    return copy


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _guess_encoding(path: Path, findings: Findings) -> str:
    """Guess the encoding of a text that is not UTF-8, and show one word as it was read."""
    from charset_normalizer import from_bytes

    raw = path.read_bytes()
    partly = raw.decode("utf-8", "replace")
    if any(not letter.isascii() and letter != "\ufffd" for letter in partly):
        line = partly[: partly.index("\ufffd")].count("\n") + 1
        at = _first_bad_byte(raw)
        message = f"line {line} holds the byte 0x{raw[at]:02x}, which is not UTF-8: {SAVE_AS_UTF8}"
        raise DataError(path.name, None, None, None, message)
    western = raw.decode("cp1252", "replace")
    if "\ufffd" in western or re.search("[^\x00-\x7f]{4}", western):
        best = from_bytes(raw[:HEAD]).best()
        looks = f" (it looks like {best.encoding})" if best else ""
        message = f"neither UTF-8 nor a Western encoding{looks}: {SAVE_AS_UTF8}"
        raise DataError(path.name, None, None, None, message)
    word = re.search(r"\w*[^\x00-\x7f]\w*", western).group()
    message = f"not UTF-8. It is read as cp1252, which is a guess: if this is wrong, {SAVE_AS_UTF8}"
    findings.add(path.name, None, word, message, "changed")
    return "cp1252"


def _first_bad_byte(raw: bytes) -> int:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


class _Text:
    """A text file of columns: its structure, and its rows as DuckDB reads them."""

    def __init__(self, name: str, path: Path, findings: Findings):
        self.name = name
        self.path = path
        self.findings = findings
        with path.open(encoding="utf-8-sig", newline="") as file:
            self.head = file.read(HEAD)
        lines = re.split(r"\r\n|\n|\r", self.head)
        first = next((line for line in lines if line.strip()), "")
        self.skip = lines.index(first) if first else 0
        told = re.fullmatch(r"sep=(.)", first.strip(" "))
        sniffed, skipped, has_header = self._sniff()
        if told:
            self.skip += 1
            sniffed = told[1]
        elif self._is_preamble(lines, sniffed, skipped):
            self.skip = skipped
            message = f"{count(skipped, 'line')} above the header: left out"
            findings.add(name, None, first, message, "note")
        header = lines[self.skip] if self.skip < len(lines) else ""
        self.delimiter = sniffed if sniffed and sniffed in header else _delimiter(header)
        self.columns = next(csv.reader([header], delimiter=self.delimiter), [])
        if not any(self.columns):
            message = "No columns to parse from file: write one row per event"
            raise DataError(name, None, None, None, message)
        if not has_header and not told and _looks_like_event(self.columns):
            message = (
                "the first line looks like an event, not like names of columns."
                f" Add a first line such as {self.delimiter.join(REQUIRED)}"
            )
            raise DataError(name, None, None, header, message)

    def _sniff(self) -> tuple[str, int, bool]:
        import duckdb

        query = (
            "select Delimiter, SkipRows, HasHeader"
            f" from sniff_csv({_quoted(self.path)}, all_varchar=true, comment='')"
        )
        try:
            with duckdb.connect() as base:
                [(delimiter, skip, has_header)] = base.execute(query).fetchall()
        except duckdb.Error:
            return "", 0, True
        return delimiter if len(delimiter) == 1 else "", skip, has_header

    def _is_preamble(self, lines: list[str], delimiter: str, skipped: int) -> bool:
        """Tell whether the lines that the sniffer skips are no rows: they have fewer columns."""
        if not delimiter or not 0 < skipped < len(lines):
            return False
        width = lines[skipped].count(delimiter)
        return all(2 * line.count(delimiter) < width for line in lines[:skipped])

    def read(self) -> pd.DataFrame:
        """Return the rows, each cell as text."""
        import duckdb

        try:
            frame = self._query('"')
            stray = self._stray_line(frame)
            problem = f"line {stray}: a quote opens there and closes in another row"
        except duckdb.Error as error:
            stray, problem = self._explain(error)
        if stray is None:
            return frame
        try:
            frame = self._query("")
        except duckdb.Error:
            message = f"{problem}. Remove the quote, or put the whole text into quotes"
            raise DataError(self.name, None, None, None, message) from None
        message = f"{problem}: quotes are read as plain characters"
        self.findings.add(self.name, None, None, message, "changed")
        return frame

    def _query(self, quote: str) -> pd.DataFrame:
        import duckdb

        names = [f"c{i}" for i in range(len(self.columns))]
        columns = "{" + ", ".join(f"'{name}': 'VARCHAR'" for name in names) + "}"
        delimiter = self.delimiter.replace("'", "''")
        size = min(MAX_LINE, max(2_097_152, self.path.stat().st_size))
        query = (
            f"select * from read_csv({_quoted(self.path)}, columns={columns}, auto_detect=false,"
            f" header=true, skip={self.skip}, delim='{delimiter}', quote='{quote}',"
            f" escape='{quote}', comment='', max_line_size={size})"
        )
        with duckdb.connect() as base:
            frame = base.sql(query).to_arrow_table().to_pandas()
        frame.columns = self._unique_names()
        return frame

    def _unique_names(self) -> list[str]:
        """Return the names of the columns, those without a name numbered apart."""
        return [
            name.strip() or (f"column {i + 1}" if i else "") for i, name in enumerate(self.columns)
        ]

    def _stray_line(self, frame: pd.DataFrame) -> int | None:
        """Return the line of a stray quote: a cell that holds whole rows of the table."""
        if not len(frame):
            return None
        first = frame.iloc[0].fillna("").astype(str)
        masks = {i: re.sub(r"\d", "9", cell) for i, cell in enumerate(first)}
        masks = {i: mask for i, mask in masks.items() if mask.count("9") >= 4}
        for position in range(frame.shape[1]):
            cells = frame.iloc[:, position]
            for cell in cells[cells.str.contains("\n", regex=False).fillna(False).astype(bool)]:
                if any(self._is_row(line, masks) for line in cell.split("\n")[1:]):
                    return self._first_odd_line()
        return None

    def _is_row(self, line: str, masks: dict[int, str]) -> bool:
        fields = line.rstrip("\r").split(self.delimiter)
        if not masks:
            return len(fields) == len(self.columns) > 1
        return any(
            i < len(fields) and re.sub(r"\d", "9", fields[i]) == mask for i, mask in masks.items()
        )

    def _first_odd_line(self) -> int:
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.count('"') % 2:
                    return number
        return 1

    def _explain(self, error: Exception) -> tuple[int, str]:
        """Return the line at fault and what is wrong there, or raise if it is no matter of quotes.

        Raises:
            DataError: A row has too many or too few fields, or the file cannot be read.
        """
        text = str(error)
        at = re.search(r"CSV Error on Line: (\d+)", text)
        line = int(at[1]) if at else 1
        if "unterminated quote" in text:
            odd = self._first_odd_line()
            return odd, f"line {odd}: a quote opens there and never closes"
        fields = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text)
        if fields:
            hint = "put a text that holds the delimiter into quotes"
            if int(fields[2]) < int(fields[1]):
                hint = "fill up the row"
            message = (
                f"line {line} has {fields[2]} fields under a header of {fields[1]}"
                f" (parted by {self.delimiter!r}): {hint}"
            )
            raise DataError(self.name, None, None, None, message) from error
        raise DataError(self.name, None, None, text.partition("\n")[0], UNREADABLE) from error


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _looks_like_event(cells: list[str]) -> bool:
    """Return whether a line holds a date or a number, as names of columns do not."""
    return any(re.match(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", cell) for cell in cells)
