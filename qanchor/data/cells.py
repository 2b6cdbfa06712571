"""Parse the cells of a column as words, ids, numbers or labels, and report every change."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

from qanchor.data.validation import (
    HALF_CHARACTER,
    TOO_LONG,
    Findings,
    check_numbers,
    cut_texts,
    has_surrogate,
    plain_numbers,
)
from qanchor.utils.text import count

# Control characters, soft hyphens, zero-width characters, bidirectional controls and tags.
# Zero-width joiners are removed only next to ASCII, where no script needs them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])"
)
MISSING = ("", "null", "NULL", "nan", "NaN", "None", "<NA>", "\\N", "#N/A")
MISSING_NUMBERS = (*MISSING, "NA", "N/A", "n/a", "-", "--")
SCIENTIFIC = r"\d(?:[.,]\d+)?[eE]\+\d+"
YES_NO = {"yes": 1.0, "true": 1.0, "y": 1.0, "no": 0.0, "false": 0.0, "n": 0.0}
MONEY = r"[\s\u00a0\u202f$€£¥%']+|(?<=\d)(?:EUR|USD|GBP)$|^(?:EUR|USD|GBP)(?=[\s\d-])"
NUMBER_FORMS = {
    "decimal points": r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:inf(?:inity)?)",
    "decimal commas": r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d+)?",
    "thousands commas": r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?",
}
DECIMAL_COMMAS = str.maketrans(",", ".", ".")  # commas become points, points are removed
THOUSANDS_DOT = r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+"
MAX_KINDS = 20  # distinct words of a column that become attributes


def tidy(text: str) -> str:
    """Normalize a text to NFC and remove control and invisible characters.

    The function is idempotent.

    Args:
        text: Any text.

    Example:
        >>> tidy("cafe\\u0301\\u200b")
        'café'
    """
    if text.isascii() and text.isprintable():
        return text
    before = None
    while text != before:  # removing a character can let its neighbors compose
        before = text
        text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    return text


class UniqueCells:
    """Hold the unique cells of a column, so that each of them is parsed only once.

    Args:
        findings: Collects what is found.
        cells: The column.

    Attributes: `texts`, the unique cells as text, and `codes`, the unique cell of each row.
    """

    def __init__(self, findings: Findings, cells: pd.Series):
        self.findings = findings
        self.cells = cells
        self.codes, unique = pd.factorize(cells)  # -1: empty
        self.texts = pd.Series([_as_text(value) for value in unique], dtype=object)

    def report(self, bad: pd.Series, message: str, kind: str = "changed") -> None:
        """Report the rows whose unique cell is marked in `bad`.

        Args:
            bad: Boolean mask of the unique cells.
            message: What is wrong, and what to do or what was done.
            kind: Kind of the finding (default "changed").
        """
        bad = np.append(bad, False)
        self.findings.rows(self.cells, bad[self.codes], message, kind)

    def spread(self, values: pd.Series) -> pd.Series:
        """Return a column from one value per unique cell.

        Args:
            values: The values, in the order of `texts`.
        """
        column = values.reindex(self.codes).set_axis(self.cells.index)
        return column.rename(self.cells.name)


def _as_text(value) -> str:
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)


def read_words(findings: Findings, cells: pd.Series, role: str = "text") -> pd.Series:
    """Parse a column of words: clean each with `tidy`, and treat blank cells as missing.

    Args:
        findings: Collects what was changed.
        cells: The column.
        role: "user", "modality" or "text" (default). Only "text" keeps whitespace at both ends.

    Returns:
        A categorical column of str.
    """
    unique = UniqueCells(findings, cells)
    raw = unique.texts
    words = raw.map(tidy)
    stripped = words.str.strip()
    if role != "text":
        words = stripped
    missing = words.isin(MISSING) | (stripped == "")
    message = (
        "invisible characters, letters in pieces or spaces around it. They are removed or joined."
    )
    unique.report((words != raw) & ~missing, message)
    words = words.mask(missing)
    unique.report(has_surrogate(words), HALF_CHARACTER, "error")
    if role == "text":
        words, too_long = cut_texts(words)
        unique.report(too_long, TOO_LONG)
    kinds = pd.Index(words.dropna().unique(), dtype=str)
    return unique.spread(words.astype(pd.CategoricalDtype(kinds)))


def read_ids(findings: Findings, cells: pd.Series) -> pd.Series:
    """Parse a column of user ids. Ids are text: 007 and 7 are two users.

    Args:
        findings: Collects what was changed.
        cells: The column.

    Returns:
        A categorical column of str.
    """
    if is_float_dtype(cells):
        whole = cells % 1 == 0
        findings.rows(cells, cells.notna() & ~whole, "an id with decimals. Write ids as text.")
        message = "ids stored as decimal numbers. They are read as whole numbers."
        findings.rows(cells, whole, message, "changed")
    ids = read_words(findings, cells, "user")
    kinds = ids.cat.categories
    rounded = kinds[kinds.str.fullmatch(SCIENTIFIC)]
    message = "an id that a spreadsheet rounded, so several users may share it. Export ids as text."
    findings.rows(cells, ids.isin(rounded), message)
    if len(kinds) and kinds.str.fullmatch(r"\d+\.0+").all():
        message = "ids that end in a decimal part of zero. The decimal part is removed."
        findings.rows(cells, ids.notna(), message, "changed")
        ids = ids.str.partition(".")[0].astype("category").rename(cells.name)
        kinds = ids.cat.categories
    form = kinds.str.normalize("NFKC").str.casefold()
    alike = form.duplicated()
    if alike.any():
        first = kinds[form.get_loc(form[alike][0])][0]
        message = (
            f"differs from {first!r} only in case or Unicode form. They are read as two users."
        )
        findings.rows(cells, ids.isin(kinds[alike]), message, "note")
    return ids


def check_known_ids(
    findings: Findings, frame: pd.DataFrame, known: Iterable[str], needed: bool = False
) -> None:
    """Report ids of facts or labels that have no events, and suggest the id that is meant.

    Args:
        findings: Collects these ids.
        frame: Facts or labels, index `user`; `frame.attrs["source"]` names the file.
        known: Ids of the events table.
        needed: Whether it is an error if none of the ids is known (default False).
    """
    findings = findings.of_table(frame.attrs["source"])
    ids = pd.Series(frame.index, name="user")
    alone = ~ids.isin(known)
    plain = {user.lstrip("0"): user for user in known}
    near = ids.str.lstrip("0").map(plain).where(alone)
    alike = "Write the ids the same way in both tables."
    if near.notna().any():
        unknown = f"{alone.sum():,} of {len(ids):,} ids have no event"
        message = f"{unknown} (is it {near.dropna().iloc[0]!r}?). {alike}"
        findings.rows(ids, near.notna(), message)
    elif alone.all() and needed:
        findings.rows(ids, alone, f"none of these users has an event. {alike}")
    else:
        message = "this user has no events. Check that the id is the same in the events table."
        findings.rows(ids, alone, message, "note")


def _fits(texts: pd.Series) -> pd.DataFrame:
    """Return a mask (text, notation): whether a text is a number in a notation."""
    plain = _without_money(texts).str
    fits = {name: plain.fullmatch(form).astype(bool) for name, form in NUMBER_FORMS.items()}
    return pd.DataFrame(fits)


def number_share(texts: pd.Series) -> float:
    """Return the share of texts that are numbers in some notation.

    Args:
        texts: Non-empty cells of a column.
    """
    missing = texts.str.strip().isin(MISSING_NUMBERS).mean()
    return _fits(texts).mean().max() + missing


def has_decimal_comma(cells: pd.Series) -> bool:
    """Return whether the cells are numbers and some of them require a decimal comma.

    Args:
        cells: A column of texts. Its first 2,000 cells are checked; 90 % must be numbers.
    """
    fits = _fits(cells.dropna().iloc[:2000].astype(str).str.strip())
    comma = fits.pop("decimal commas")
    needs_comma = comma & ~fits.any(axis=1)
    return bool(needs_comma.any() and comma.mean() > 0.9)


def _without_money(texts: pd.Series) -> pd.Series:
    plain = texts.str.replace(MONEY, "", regex=True)
    return plain.str.replace(r"^\((.*)\)$", r"-\1", regex=True)


def read_numbers(
    findings: Findings, cells: pd.Series, role: str = "number", comma: bool = False
) -> pd.Series:
    """Parse a column of numbers that all use the same notation.

    Args:
        findings: Collects what was changed.
        cells: The column.
        role: "number" (default), "fact" or "label"; the rules are those of `check_numbers`.
        comma: Whether the table uses decimal commas, for ambiguous numbers (default False).

    Returns:
        Floats, NaN where a cell is empty.
    """
    if is_numeric_dtype(cells) or cells.dtype.kind in "mM":
        return plain_numbers(findings, cells, role)
    unique = UniqueCells(findings, cells)
    texts = unique.texts.str.strip()
    known = texts[~texts.isin(MISSING_NUMBERS)]
    words = known.str.lower()
    is_word = words.isin(YES_NO)
    plain = pd.to_numeric(texts, errors="coerce").astype(float)
    if is_word.all() or (role == "label" and is_word.any()):
        values = words.map(YES_NO).fillna(plain)
        form = ""
    else:
        values, form = _parse_numbers(known, comma)
    values = values.astype(float).reindex(texts.index)
    invalid = values.isna() & texts.index.isin(known.index)
    unique.report(invalid, "not a number. Write one, or leave the cell empty.", "error")
    changed = values.notna() & (values != plain)
    how = "yes is 1 and no is 0"
    if form and changed.any():
        example = texts[changed].str.count("[.,]").idxmax()
        how = f"numbers with {form}. {texts[example]} is read as {values[example]:.12g}."
    unique.report(changed, how)
    return check_numbers(findings, unique.spread(values), role, cells)


def _parse_numbers(texts: pd.Series, comma: bool) -> tuple[pd.Series, str]:
    """Parse unique texts; return the numbers and the notation."""
    plain = _without_money(texts)
    fits = _fits(texts)
    points, commas, thousands = fits.mean()
    form = fits.mean().idxmax()  # the first in a tie
    dotted = plain[plain.str.contains(".", regex=False)]
    if comma and len(dotted) and dotted.str.fullmatch(THOUSANDS_DOT).all():
        form = "decimal commas"
    elif commas == thousands > points and not comma:
        form = "thousands commas"
    read = plain.where(fits[form])
    if form == "decimal commas":
        read = read.str.translate(DECIMAL_COMMAS)
    if form == "thousands commas":
        read = read.str.replace(",", "", regex=False)
    return pd.to_numeric(read, errors="coerce"), form


def read_label(findings: Findings, cells: pd.Series, positive: str | None) -> pd.Series:
    """Parse a column of labels: 0 and 1, yes and no, or words of which `positive` means 1.

    Args:
        findings: Collects what was changed.
        cells: The column.
        positive: The word that means 1; None if there is none.

    Returns:
        0., 1. or NaN.
    """
    if is_numeric_dtype(cells):
        return read_numbers(findings, cells, "label")
    words = read_words(Findings(), cells, "modality")
    known = words.notna()
    kinds = words.cat.categories
    if positive in kinds:
        findings.rows(cells, known, f"{positive!r} is read as 1, all else as 0", "changed")
        return (words == positive).astype(float).where(known)
    is_label = kinds.str.lower().isin(YES_NO) | pd.to_numeric(kinds, errors="coerce").notna()
    if len(kinds) == 2 and not is_label.any():
        first, second = kinds
        message = (
            f"two words, and it is not clear whether {first!r} or {second!r} means 1."
            f' Write 0 and 1, write {{"positive": "{first}"}} into about.json, or pass'
            f' positive="{first}" to read_events.'
        )
        findings.rows(cells, known, message)
        return pd.Series(np.nan, cells.index)
    return read_numbers(findings, cells, "label")


def attribute_columns(findings: Findings, values: pd.Series, taken: pd.Index) -> pd.DataFrame:
    """Return an attribute as number columns; words are one-hot encoded.

    Args:
        findings: Collects what was left out.
        values: Numbers, or a categorical column of words; missing if unknown.
        taken: Names of columns that exist already.

    Returns:
        The numbers, or one column `name.word` of 0 and 1 for each of the (at most 20) most frequent
        words; NaN where the value is missing.
    """
    if is_numeric_dtype(values):
        columns = values.to_frame()
    else:
        words = values.astype(object)
        kinds = words.value_counts().index
        rare = words.isin(kinds[MAX_KINDS:])
        found = count(len(kinds), "distinct word")
        message = f"{found}. The {MAX_KINDS} most frequent become attributes."
        findings.rows(words, rare, message, "note")
        columns = pd.get_dummies(words.mask(rare), prefix=words.name, prefix_sep=".", dtype=float)
        columns[words.isna()] = np.nan
    twice = columns.columns.intersection(taken)
    for name in twice:
        message = f"the attribute {name!r} exists already. Rename one of the two columns."
        findings.add(values.name, name, message)
    return columns.drop(columns=twice)
