"""The rules for events, facts and labels, what was found wrong, and the report of a reading."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from qanchor.errors import DataError
from qanchor.utils.io import replace_surrogates
from qanchor.utils.text import count

COLUMN_MEANINGS = {  # the columns of events, and what each says
    "user": "the id of who did it, or of whom a row is about",
    "time": "when it happened",
    "modality": "the kind of source a row comes from, such as payment, search or visit",
    "text": "what happened, in words, such as 'yoga class'",
}
REQUIRED = tuple(COLUMN_MEANINGS)
TEXT_COLUMNS = ("user", "modality", "text")  # read as text from any file: 007 stays 007
MAX_TEXT = 2_000  # characters; the text encoder reads only about 256 tokens
MIN_TIME = pd.Timestamp("1900-01-01")
MAX_TIME = pd.Timestamp("2200-01-01")  # exclusive
MAX_NUMBER = 1e15  # beyond it, sums of float64 amounts lose their cents
MAX_SHOWN = 80  # characters of a value in a finding
MAX_NAMES = 100  # of columns in a finding
KINDS = ("error", "dropped", "changed", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a table: where, what, and what to do or what was done.

    Args:
        file: Name of the file or table.
        row: First row, counted from 0 without the header; None for the table as a whole.
        rows: Number of rows; 0 for the table as a whole.
        column: Name of the column; None for the table as a whole.
        value: The value in the first row.
        message: What is wrong and what to do, or what was done.
        kind: "error" (cannot be used), "dropped" (rows left out), "changed" (values written
            otherwise) or "note" (good to know).

    Example:
        >>> print(Finding("events.csv", 3, 2, "time", "soon", "not a time", "error"))
        events.csv, row 3, column 'time': 'soon': not a time (2 rows)
    """

    file: str
    row: int | None
    rows: int
    column: str | None
    value: object
    message: str
    kind: str = "error"

    def error(self) -> DataError:
        """Return the finding as an exception."""
        return DataError(self.file, self.row, self.column, self.value, self.message)

    def __str__(self) -> str:
        rows = f" ({count(self.rows, 'row')})" if self.rows > 1 else ""
        return f"{self.error()}{rows}"


class Findings(list):
    """Collect findings.

    Args:
        strict: Raise the first finding that is an error or leaves out rows (default False).
    """

    def __init__(self, strict: bool = False):
        super().__init__()
        self.strict = strict

    def add(self, file, column, value, message, kind="error", row=None, rows=0) -> None:
        """Add a finding; the arguments are those of `Finding`.

        Raises:
            DataError: The findings are strict, and this is an error or leaves out rows.
        """
        column = None if column is None else str(column)
        finding = Finding(file, row, rows, column, shown(value), message, kind)
        if self.strict and kind in ("error", "dropped"):
            raise DataError(file, row, column, value, message)
        self.append(finding)

    def rows(self, file: str, cells: pd.Series, bad, message: str, kind: str = "error") -> None:
        """Add a finding about the rows where `bad` is true, if there are any.

        Args:
            file: Name of the table.
            cells: The column; its index holds the numbers of the rows in the file.
            bad: One truth for each cell.
            message: What is wrong and what to do.
            kind: Kind of the finding.
        """
        at = np.flatnonzero(np.asarray(bad, bool))
        if len(at):
            first = int(cells.index[at[0]])
            self.add(file, cells.name, cells.iloc[at[0]], message, kind, first, len(at))

    def of(self, *kinds: str) -> list[Finding]:
        """Return the findings of some kinds, in order.

        Args:
            *kinds: Kinds to return.
        """
        return [finding for finding in self if finding.kind in kinds]

    def raise_errors(self) -> None:
        """Raise the first error and say how many more there are.

        Raises:
            DataError: There is an error.
        """
        errors = self.of("error")
        if not errors:
            return
        first = errors[0]
        message = first.message
        if len(errors) > 1:
            message += f" ({count(len(errors) - 1, 'more error')}: `qanchor check` lists all)"
        raise DataError(first.file, first.row, first.column, first.value, message)


def shown(value) -> object:
    """Return a value that fits into one line and into JSON.

    Args:
        value: Any cell, or a list of names.

    Example:
        >>> shown(np.float64("nan")), shown(["a"] * 3), len(shown("x" * 500))
        (None, ['a', 'a', 'a'], 80)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        names = [shown(name) for name in value[:MAX_NAMES]]
        return names + ["..."] * (len(value) > MAX_NAMES)
    if value is None or (np.ndim(value) == 0 and pd.isna(value)):
        return None
    if isinstance(value, bool | int) or (isinstance(value, float) and np.isfinite(value)):
        return value
    text = replace_surrogates(str(value))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


@dataclass
class Report:
    """What `read_events` took for what, what it changed and left out, and why.

    Args:
        source: Name of the table of events.
        columns: For each role (user, time, text, modality, numbers, attributes, left out) its
            columns.
        rows: Rows of the events table.
        kept: Rows that became events.
        sums: Index number column; `source`, `kept` and `dropped`, which add up.
        findings: All that was found.

    Example:
        >>> print(Report("events.csv", {"user": ["id"]}, rows=3, kept=3))
        events.csv: 3 of 3 rows are events.
          user: id
    """

    source: str
    columns: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0
    kept: int = 0
    sums: pd.DataFrame = field(default_factory=pd.DataFrame)
    findings: list[Finding] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        """Number of rows that are no events; the findings of the kind "dropped" say why."""
        return self.rows - self.kept

    def to_dict(self) -> dict:
        """Return the report as plain data, for JSON."""
        sums = {name: row.to_dict() for name, row in self.sums.iterrows()}
        findings = [asdict(finding) for finding in self.findings]
        sizes = {"rows": self.rows, "kept": self.kept, "dropped": self.dropped}
        return {
            "source": self.source,
            "columns": self.columns,
            **sizes,
            "sums": sums,
            "findings": findings,
        }

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.kept:,} of {count(self.rows, 'row')} are events."]
        lines += [f"  {role}: {', '.join(names)}" for role, names in self.columns.items() if names]
        lines += [f"  {finding.kind}: {finding}" for finding in self.findings]
        for name, sums in self.sums[
            self.sums.get("dropped", pd.Series(dtype=float)) != 0
        ].iterrows():
            lines.append(f"  sum of {name}: {sums['kept']:,.2f} of {sums['source']:,.2f} is kept")
        return "\n".join(lines)


@dataclass(frozen=True)
class Rule:
    """A rule that the cells of a column must satisfy, or how a cell that does not is changed.

    Args:
        is_bad: Returns one truth for each cell.
        message: What is wrong and what to do.
        fix: Returns what the bad cells become when a table is read; None if that is an error.
        kind: Kind of the finding when a table is read (default "changed").
    """

    is_bad: Callable[[pd.Series], pd.Series]
    message: str
    fix: Callable[[pd.Series], object] | None = None
    kind: str = "changed"


def _is_blank(cells: pd.Series) -> pd.Series:
    return cells.isna() | (cells.astype(str).str.strip() == "")


def _has_surrogate(cells: pd.Series) -> pd.Series:
    """Find texts with a lone surrogate, which no file can hold; only object columns can."""
    if cells.dtype != object:
        return pd.Series(False, index=cells.index)
    return cells.map(
        lambda text: (
            isinstance(text, str) and not text.isascii() and replace_surrogates(text) != text
        )
    )


def _cut(cells: pd.Series) -> pd.Series:
    return cells.str.slice(stop=MAX_TEXT - 1) + "…"


LIKE_A_LABEL = "named like a label, which must never be an input: drop the column, or rename one"
EMPTY = "empty: fill it or drop the row"
WORD_RULES = (Rule(_has_surrogate, "half a character (a lone surrogate): remove it"),)
RULES = {
    "user": (*WORD_RULES, Rule(_is_blank, "a user needs an id: fill it or drop the row")),
    "modality": (*WORD_RULES, Rule(_is_blank, EMPTY)),
    "text": (
        *WORD_RULES,
        Rule(_is_blank, EMPTY),
        Rule(
            lambda cells: cells.str.len() > MAX_TEXT,
            f"over {MAX_TEXT:,} characters: shorten it",
            _cut,
        ),
        Rule(lambda cells: cells.str.contains("\x00", regex=False), "a null byte: remove it"),
    ),
    "time": (
        Rule(
            lambda time: (time < MIN_TIME) | (time >= MAX_TIME),
            f"not from {MIN_TIME.year} to {MAX_TIME.year - 1}: is the year right?",
        ),
    ),
    "number": (
        Rule(np.isinf, "not finite: leave the cell empty", lambda cells: np.nan),
        Rule(lambda cells: cells.abs() > MAX_NUMBER, f"beyond {MAX_NUMBER:.0e}: is that meant?"),
    ),
    "fact": (Rule(np.isinf, "not finite: leave the cell empty", lambda cells: np.nan),),
    "label": (
        Rule(np.isinf, "not finite: leave the cell empty", lambda cells: np.nan),
        Rule(
            lambda cells: cells.notna() & ~cells.isin([0, 1]),
            "a label is 0, 1 or empty: write one of them",
        ),
    ),
}


def apply_rules(
    findings: Findings, file: str, cells: pd.Series, role: str, given: pd.Series | None = None
) -> pd.Series:
    """Check a column by the rules of its role and fix what can be fixed.

    Args:
        findings: Collects what is found; if it is strict, nothing is fixed and the first is raised.
        file: Name of the table.
        cells: The column.
        role: Key of `RULES`.
        given: The column as it was in the table, for messages (default: `cells`).

    Returns:
        The column.

    Raises:
        DataError: The findings are strict, and a cell breaks a rule.
    """
    given = cells if given is None else given
    for rule in RULES[role]:
        bad = rule.is_bad(cells)
        if not bad.any():
            continue
        fixes = rule.fix is not None and not findings.strict
        findings.rows(file, given, bad, rule.message, rule.kind if fixes else "error")
        if fixes:
            cells = cells.mask(bad, rule.fix(cells))
    return cells


def validated_events(events: pd.DataFrame, source: str = "events") -> pd.DataFrame:
    """Return an events table with clean types, or raise.

    Args:
        events: Columns `user, time, modality, text` and any number columns.
        source: Name of the table in errors (default "events").

    Returns:
        `user` (str), `time` (datetime64[us], UTC without a zone), `modality` and `text` (str), then
        the number columns (float), in the order of the rows.

    Raises:
        DataError: A column is missing or a value cannot be used; names row, value and hint.

    Example:
        >>> events = pd.DataFrame([[7, "2025-01-01", "bill", "tea"]], columns=REQUIRED)
        >>> validated_events(events)["user"].tolist()
        ['7']
    """
    findings = Findings(strict=True)
    for column in REQUIRED:
        if column not in events:
            message = f"missing: needed are {', '.join(REQUIRED)}"
            findings.add(source, column, list(events.columns), message)
    if not len(events):
        findings.add(source, "user", "no rows", "the table is empty: give at least one event")
    events = events.reset_index(drop=True)
    result = pd.DataFrame(index=events.index)
    for column in TEXT_COLUMNS:
        cells = events[column]
        findings.rows(source, cells, cells.isna(), EMPTY)
        findings.rows(source, cells, _has_surrogate(cells), WORD_RULES[0].message)
        result[column] = apply_rules(findings, source, cells.astype(str), column)
    result.insert(1, "time", _iso_times(findings, source, events["time"]))
    for column in events.columns.difference(REQUIRED, sort=False):
        result[column] = plain_numbers(findings, source, events[column], "number")
    return result


def validated_facts(frame: pd.DataFrame | None, source: str, binary: bool = False) -> pd.DataFrame:
    """Return a facts or labels table with text ids and float columns, or raise.

    Args:
        frame: Index `user`, number columns; None for an empty table. `frame.attrs["source"]` is the
            name of the file it was read from.
        source: Name of the table in errors, if it was not read from a file.
        binary: Allow only 0, 1 and NaN (default False).

    Returns:
        The table: index `user` of str, unique; float columns, NaN for unknown.

    Raises:
        DataError: An id is missing or repeated, or a value is not a finite number.

    Example:
        >>> validated_facts(pd.DataFrame({"rooms": [3]}, index=[7]), "users").index.tolist()
        ['7']
    """
    if frame is None:
        return pd.DataFrame(index=pd.Index([], dtype=str, name="user"))
    source = frame.attrs.get("source", source)
    findings = Findings(strict=True)
    ids = pd.Series(frame.index, name="user")
    findings.rows(source, ids, ids.isna(), "a user needs an id: fill it or drop the row")
    findings.rows(source, ids, _has_surrogate(ids), WORD_RULES[0].message)
    ids = ids.astype(str)
    findings.rows(source, ids, ids.duplicated(), "twice: one row a user")
    result = pd.DataFrame(index=pd.Index(ids, name="user"))
    role = "label" if binary else "fact"
    for column in frame.columns:
        cells = frame[column].reset_index(drop=True)
        result[column] = plain_numbers(findings, source, cells, role).to_numpy()
    return result


def _iso_times(findings: Findings, source: str, cells: pd.Series) -> pd.Series:
    """Read ISO 8601 only: 03/04/2025 is March or April, and a bare number has no unit."""
    texts = cells.astype(str) if pd.api.types.is_numeric_dtype(cells) else cells
    time = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601").dt.tz_localize(None)
    relative = False
    if texts.dtype in (object, "str"):
        relative = texts.isin(("now", "today"))  # pandas would replace them by the current time
    wrong = time.isna() | relative
    findings.rows(source, cells, wrong, "not a time: write it as 2025-01-31 18:00:00")
    return apply_rules(findings, source, time, "time", cells).astype("datetime64[us]")


def plain_numbers(findings: Findings, source: str, cells: pd.Series, role: str) -> pd.Series:
    """Read a column of plain numbers and check it.

    Args:
        findings: Collects what is found.
        source: Name of the table.
        cells: The column.
        role: "number", "fact" or "label".

    Returns:
        Floats, NaN where a cell is empty.
    """
    if cells.dtype.kind in "mM":
        message = "a time, not a number: write one, or drop it"
        findings.add(source, cells.name, str(cells.dtype), message)
    values = pd.to_numeric(cells, errors="coerce").astype(float)
    wrong = values.isna() & cells.notna()
    message = "not a number: encode it as numbers, or drop the column"
    findings.rows(source, cells, wrong, message)
    return apply_rules(findings, source, values, role, cells)


def check_modalities(
    findings: Findings, source: str, modality: pd.Series, known: tuple[str, ...]
) -> None:
    """Report modalities that are not among those that are known.

    Args:
        findings: Collects them.
        source: Name of the events table.
        modality: The modality of each event.
        known: Modalities that are allowed.
    """
    for name in sorted(set(modality.dropna()) - set(known)):
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (is it {near[0]!r}?)" if near else ""
        message = f"not one of {', '.join(known)}{hint}: add it to about.json's modalities"
        findings.rows(source, modality, modality == name, message)


def parse_cutoff(cutoff, source: str) -> pd.Timestamp:
    """Return a cut-off as a time without a zone.

    Args:
        cutoff: Anything that `pd.Timestamp` reads.
        source: Name of the table in errors.

    Returns:
        The time.

    Raises:
        DataError: It is no time, or has a time zone.

    Example:
        >>> parse_cutoff("2025-01-31", "events")
        Timestamp('2025-01-31 00:00:00')
    """
    try:
        time = pd.Timestamp(cutoff)
    except (ValueError, TypeError) as error:
        hint = "not a time: write it as 2025-01-31"
        raise DataError(source, None, "cutoff", cutoff, hint) from error
    if pd.isna(time) or time.tzinfo:
        hint = "not a plain time without an offset: write it as 2025-01-31"
        raise DataError(source, None, "cutoff", cutoff, hint)
    return time
