"""What can be wrong with a column of words, times or numbers: each fault noted with its place, and
mended where safe.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from qanchor.data.validation import MAX_NUMBER, MAX_TEXT, MIN_TIME
from qanchor.errors import DataError

# U+FFFF is no character: the null bytes of a csv file are read as it
NULLS = re.compile("[\x00\uffff]")
# controls, soft hyphens, zero widths, turns of direction, tags; joiners only where no script needs
# them
HIDDEN = re.compile(
    "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    "\U000e0000-\U000e007f]|(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])"
)
FAULTS = (  # of one cell of words: how it is seen, the hint, what is done, whether it is severe
    (NULLS.search, "a null byte: remove it", "removed", True),
    (HIDDEN.search, "invisible characters: remove them", "removed", False),
    (
        lambda text: not unicodedata.is_normalized("NFC", text),
        "letters in pieces: write them whole (NFC)",
        "normalised",
        False,
    ),
    (lambda text: text != text.strip(), "spaces around it: trim it", "trimmed", False),
)
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NOT_WORDS = (bytes, list, tuple, dict, set, np.ndarray)
EMPTY = "empty (a csv file's NA, null and None count as empty): fill it or drop the row"
TRUTHS = {"yes": 1.0, "true": 1.0, "y": 1.0, "no": 0.0, "false": 0.0, "n": 0.0}
# one start alone: a cell of a million T's must not take hours
OFFSET = r"^[^T ]*[T ].*(Z|[+-]\d\d(?::?\d\d)?)$"
# or the month
DAY_FIRST = r"^\s*(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4})(?:,?\s+(\d{1,2}:\d\d(?::\d\d)?))?\s*$"
SECOND = (("seconds", 1), ("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))
NAMES = 100  # of columns, shown at most
COMMA = r"-?\d+,(?:\d{1,2}|\d{4,})"  # three digits could be thousands


@dataclass(frozen=True)
class Problem:
    """Say one thing that is wrong with a folder: where it stands first, in how many rows, the value
    there, the hint.

    row     of the file, counted from 0; None (and rows 0) when the file as a whole is meant.
    action  what `clean_table` does about it; "" when only you can.
    blocking  `load_users` refuses it, or would read something else than was meant; otherwise it is
              only good to know.

    Example:
        >>> print(Problem("events.csv", 3, 2, "amount", "inf", "not finite: leave the cell empty", "emptied"))
        events.csv, row 3, column 'amount': 'inf': not finite: leave the cell empty (2 rows)
    """

    file: str
    row: int | None
    rows: int
    column: str
    value: object
    hint: str
    action: str = ""
    blocking: bool = True

    @property
    def fixable(self) -> bool:
        """Whether `clean_table` can fix it."""
        return bool(self.action)

    def __str__(self) -> str:
        more = f" ({self.rows:,} rows)" if self.rows > 1 else ""
        return str(DataError(self.file, self.row, self.column, self.value, self.hint)) + more

    def plain(self) -> dict:
        """Give it as plain data, for JSON or a table."""
        return asdict(self) | {"fixable": self.fixable}


class Notes(list):
    """Collect problems: of some rows of a column, or of a file as a whole."""

    def rows(
        self, file: str, given: pd.Series, bad, hint: str, action: str = "", blocking: bool = True
    ) -> None:
        """Note the rows where `bad` is true; `given` holds the column, its index the rows of the
        file.
        """
        at = np.flatnonzero(np.asarray(bad, bool))
        if len(at):
            first = shown(given.iloc[at[0]])
            self.append(
                Problem(
                    file,
                    int(given.index[at[0]]),
                    len(at),
                    str(given.name),
                    first,
                    hint,
                    action,
                    blocking,
                )
            )

    def whole(
        self, file: str, column: str, value, hint: str, action: str = "", blocking: bool = True
    ) -> None:
        """Note a problem of the whole file."""
        self.append(Problem(file, None, 0, column, shown(value), hint, action, blocking))


def shown(value) -> object:
    """Cut a value down to what can be shown, and to what JSON can hold."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NaT or value is pd.NA or value != value:
        return None
    if isinstance(value, bool | int) or (isinstance(value, float) and abs(value) < np.inf):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [shown(name) for name in value[:NAMES]] + ["..."] * (len(value) > NAMES)
    # a year past 9999 has no other form
    text = str(value.asm8) if isinstance(value, pd.Timestamp) else str(value)
    text = text.replace("\uffff", "\x00")
    return text if len(text) < 80 else f"{text[:77]}..."


def tidy(text: str, trim: bool = False) -> str:
    """Write a text in NFC, without null bytes and invisible characters; doing so twice changes
    nothing more.

    Example:
        >>> tidy("cafe\\u0301\\u200b ", trim=True)
        'café'
    """
    if not (text.isascii() and text.isprintable()):
        before = None
        while text != before:  # what is taken out may bring together what composes
            before, text = text, unicodedata.normalize("NFC", HIDDEN.sub("", NULLS.sub("", text)))
    return text.strip() if trim else text


def decode(raw: bytes) -> tuple[str, str]:
    """Give the words of a csv file and, unless it is plain UTF-8, the encoding they stand in."""
    for mark, name in MARKS:
        if raw.startswith(mark):
            return raw.decode(name), name
    try:
        return raw.decode(), ""
    except UnicodeDecodeError:
        text, part = raw.decode("cp1252", "replace"), raw.decode("utf-8", "replace")
        # some of it is UTF-8: the rest is broken
        known = any(not c.isascii() and c != "\ufffd" for c in part)
        if known or "\ufffd" in text or re.search("[^\x00-\x7f]{4}", text):
            raise ValueError("neither UTF-8 nor a Western encoding: save it as UTF-8") from None
        return text, "cp1252"


def words(notes: Notes, file: str, given: pd.Series) -> tuple[pd.Series, dict[str, str]]:
    """Mend a column of user ids, modalities or texts: categories (missing where empty), and how
    each was written before.
    """
    texts, trim = given.name == "text", given.name != "text"
    given = _words_only(notes, file, given)
    codes, found = pd.factorize(given)
    raw = [
        f"{v:.0f}" if isinstance(v, float) and v.is_integer() else str(v)
        for v in np.asarray(found, object)
    ]
    if pd.api.types.is_float_dtype(given) and trim:
        hint = "a number with decimals as an id: write whole numbers or words"
        notes.rows(file, given, given.notna(), hint, "written as whole numbers", False)
    clean = [tidy(text, trim) for text in raw]
    empty = np.array([not text.strip() for text in clean] + [True])
    changed = [i for i, text in enumerate(raw) if text != clean[i] and not empty[i]]
    for seen, hint, done, severe in FAULTS:
        notes.rows(
            file,
            given,
            _marked(len(raw), (i for i in changed if seen(raw[i])))[codes],
            hint,
            done,
            severe,
        )
    notes.rows(file, given, empty[codes], EMPTY, "row dropped")
    if texts:
        long = [i for i, text in enumerate(raw) if len(text) > MAX_TEXT]
        hint = f"over {MAX_TEXT:,} characters: shorten it"
        notes.rows(
            file, given, _marked(len(raw), long)[codes], hint, f"cut to {MAX_TEXT:,} characters"
        )
        clean = [text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…" for text in clean]
    if trim:
        mixed = _marked(len(raw), (i for i, text in enumerate(clean) if len(_alphabets(text)) > 1))
        hint = "letters of two alphabets in one word, which may look like another: write it in one"
        notes.rows(file, given, mixed[codes], hint, blocking=False)
        _note_alike(notes, file, given, codes, clean)
    places, kinds = pd.factorize(np.array(clean, object))
    places[empty[:-1]] = -1
    column = pd.Categorical.from_codes(np.append(places, -1)[codes], kinds)
    return pd.Series(column, given.index, name=given.name).cat.remove_unused_categories(), dict(
        zip(raw, clean, strict=True)
    )


def _alphabets(text: str) -> set[str]:
    """Name the alphabets that a word mixes, of those whose letters look alike."""
    if text.isascii():
        return set()
    found = [
        {unicodedata.name(c, "?").split()[0] for c in word if c.isalpha()}
        for word in re.findall(r"\w+", text)
    ]
    return max((names & {"LATIN", "CYRILLIC", "GREEK"} for names in found), key=len, default=set())


def _note_alike(
    notes: Notes, file: str, given: pd.Series, codes: np.ndarray, clean: list[str]
) -> None:
    """Note names that differ in case or form alone, such as Bill and bill."""
    folded: dict[str, str] = {}
    first = [
        folded.setdefault(unicodedata.normalize("NFKC", text).casefold(), text) for text in clean
    ]
    alike = [i for i, text in enumerate(clean) if text and text != first[i]]
    if alike:
        hint = f"like {first[alike[0]]!r} but for case or form: one and the same?"
        notes.rows(file, given, _marked(len(clean), alike)[codes], hint, blocking=False)


def _marked(n: int, at) -> np.ndarray:
    """Give n truths, and one more (for what is missing) that is false."""
    out = np.zeros(n + 1, bool)
    out[list(at)] = True
    return out


def _words_only(notes: Notes, file: str, given: pd.Series) -> pd.Series:
    """Turn bytes into words; a list, or bytes that are none, are noted and shown as they are."""
    if given.dtype != object or pd.api.types.infer_dtype(given, skipna=True) == "string":
        return given
    odd = given.map(lambda value: isinstance(value, NOT_WORDS))
    read = given[odd].map(_decoded).reindex(given.index)
    notes.rows(file, given, odd & read.notna(), "bytes, not words: decode them", "read as UTF-8")
    notes.rows(file, given, odd & read.isna(), "a list or unreadable bytes: write plain words")
    return given.mask(odd, read.fillna("?"))


def _decoded(value) -> str | None:
    try:
        return value.decode() if isinstance(value, bytes) else None
    except UnicodeDecodeError:
        return None


def _text(given: pd.Series) -> pd.Series:
    """Give cells as text; pandas alone stops at bytes that are none."""
    return given.map(
        lambda value: value.decode(errors="replace") if isinstance(value, bytes) else value
    ).astype(str)


def times(notes: Notes, file: str, given: pd.Series) -> pd.Series:
    """Mend a column of times: datetime64[us] in UTC without a zone, missing where there is no time
    to read.
    """
    time = _read_times(notes, file, given)
    notes.rows(file, given, time < MIN_TIME, f"before {MIN_TIME.year}: is the year right?")
    return time.mask(time < MIN_TIME)


def _read_times(notes: Notes, file: str, given: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(given):
        zone = getattr(given.dtype, "tz", None)
        if zone is not None and str(zone) != "UTC":
            notes.rows(
                file, given, given.notna(), f"times of {zone}: write UTC", "written in UTC", False
            )
        notes.rows(file, given, given.isna(), EMPTY, "row dropped")
        return pd.to_datetime(given, utc=True).dt.tz_localize(None).astype("datetime64[us]")
    plain = _text(given).where(given.notna(), "").astype(object)
    zones = plain.str.extract(OFFSET, expand=False).replace(
        {"Z": "+00:00", "+00": "+00:00", "+0000": "+00:00"}
    )
    if elsewhere := set(zones.dropna().unique()) - {"+00:00"}:
        hint = (
            f"time zones {', '.join(sorted(elsewhere))}: write all in UTC (no zone counts as UTC)"
        )
        notes.rows(file, given, zones.isin(elsewhere), hint, "written in UTC", False)
    time = (
        pd.to_datetime(plain, errors="coerce", utc=True, format="ISO8601")
        .dt.tz_localize(None)
        .astype("datetime64[us]")
    )
    time = time.mask(plain.isin(["now", "today"]))  # pandas would take the hour of reading
    time = time.fillna(_day_first(notes, file, given, plain))
    blank = plain.str.strip() == ""
    notes.rows(file, given, blank, EMPTY, "row dropped")
    wrong = time.isna() & ~blank
    since = pd.to_numeric(plain[wrong], errors="coerce")
    units = [name for name, parts in SECOND if (since / parts).between(1e8, 4e9).any()]
    hint = f" (these numbers look like {units[0]} since 1970)" if units else ""
    if not hint and plain[wrong].str.match(r"\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{4}").any():
        hint = " (no such day, or not clear which is the month)"
    notes.rows(file, given, wrong, f"not a time: write it as 2025-01-31 18:00:00{hint}")
    return time


def _day_first(notes: Notes, file: str, given: pd.Series, plain: pd.Series) -> pd.Series:
    """Read 31/01/2025 18:00 or 01/31/2025, when the whole column leaves no doubt where the day
    stands.
    """
    parts = plain.str.extract(DAY_FIRST)
    there, one, two = parts[0].notna(), parts[0].astype(float), parts[2].astype(float)
    first, second = (one > 12).any() or parts[1].eq(".").any(), (two > 12).any()
    if first == second or not there.any():
        return pd.Series(pd.NaT, given.index, dtype="datetime64[us]")
    day, month = (parts[0], parts[2]) if first else (parts[2], parts[0])
    said = (
        parts[3]
        + "-"
        + month.str.zfill(2)
        + "-"
        + day.str.zfill(2)
        + " "
        + parts[4].fillna("00:00").str.zfill(5)
    )
    time = pd.to_datetime(said, errors="coerce", format="ISO8601").astype("datetime64[us]")
    order = "day" if first else "month"
    notes.rows(
        file,
        given,
        time.notna(),
        f"the {order} first: write it as 2025-01-31 18:00:00",
        f"read with the {order} first",
    )
    return time


def numbers(
    notes: Notes, file: str, given: pd.Series, label: bool = False, comma: bool = False
) -> pd.Series:
    """Mend a column of numbers: floats, all finite or missing; `label` allows 0 and 1 only, `comma`
    reads 3,5 as 3.5.
    """
    none = pd.Series(np.nan, given.index)
    if getattr(given.dtype, "kind", "") in "mM":
        notes.rows(
            file,
            given,
            given.notna(),
            "a time, not a number: write it as a number, of days perhaps",
        )
        return none
    try:
        values = pd.to_numeric(given, errors="coerce").astype(float)
    except (TypeError, ValueError, OverflowError):
        values = none
    wrong = values.isna() & given.notna()
    if wrong.any():
        text = _text(given[wrong]).str.strip().str.lower()
        read = (
            text.map(TRUTHS)
            if label
            else pd.to_numeric(text.str.replace(",", ".").where(text.str.fullmatch(COMMA) & comma))
        )
        how = "a word, not 0 or 1" if label else "a decimal comma"
        notes.rows(
            file,
            given,
            read.reindex(given.index).notna(),
            f"{how}: write it as a number",
            "read as a number",
        )
        values = values.fillna(read)
        hint = "not a number: encode it as numbers, or drop the column"
        notes.rows(file, given, values.isna() & given.notna(), hint)
    notes.rows(file, given, np.isinf(values), "not finite: leave the cell empty", "emptied")
    values = values.mask(np.isinf(values))
    notes.rows(file, given, values.abs() > MAX_NUMBER, f"beyond {MAX_NUMBER:.0e}: is that meant?")
    if label:
        notes.rows(file, given, values.notna() & ~values.isin([0, 1]), "a label is 0, 1 or empty")
    return values
