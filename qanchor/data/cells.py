"""Read the cells of one column: words, ids, numbers, labels; each change is reported."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pandas as pd

from qanchor.data.validation import Findings, apply_rules
from qanchor.utils.text import count

NULL_CHARACTER = "\x00"
# Controls, soft hyphens, zero widths, turns of direction, tags; joiners only where no script needs
# them.
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
THOUSANDS_DOT = r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+"
MAX_KINDS = 20  # kinds of a word that become attributes


def tidy(text: str, trim: bool = False) -> str:
    """Write a text in NFC, without null bytes and invisible characters.

    Doing so twice changes nothing more.

    Args:
        text: Any text.
        trim: Remove spaces around it (default False).

    Example:
        >>> tidy("cafe\\u0301\\u200b ", trim=True)
        'café'
    """
    if not (text.isascii() and text.isprintable()):
        before = None
        while text != before:  # what is taken out may bring together what composes
            before = text
            text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    return text.strip() if trim else text


def read_words(findings: Findings, file: str, cells: pd.Series, role: str = "text") -> pd.Series:
    """Read a column of words, tidied; a cell without any is missing.

    Args:
        findings: Collects what was changed.
        file: Name of the table.
        cells: The column.
        role: "user", "modality" or "text" (default): only text keeps spaces around it.

    Returns:
        Categories of str.
    """
    codes, raw = _unique_words(cells)
    clean = [tidy(text, trim=role != "text") for text in raw]
    missing = [not text.strip() or text in MISSING for text in clean]
    changed = [old != new and not gone for old, new, gone in zip(raw, clean, missing, strict=True)]
    message = "invisible characters, letters in pieces or spaces around it: written plainly"
    _report(findings, file, cells, codes, changed, message)
    unique = pd.Series(clean, dtype=object, name=cells.name).mask(pd.Series(missing, dtype=bool))
    known = unique.dropna()
    quiet = Findings()
    checked = apply_rules(quiet, file, known, role)
    for finding in quiet:
        bad = (known != checked) if finding.kind != "error" else known.index == finding.row
        marks = pd.Series(bad, index=known.index).reindex(unique.index, fill_value=False)
        _report(findings, file, cells, codes, marks, finding.message, finding.kind)
    return _spread(checked.reindex(unique.index), codes, cells)


def _unique_words(cells: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return the codes of the cells (-1 for none) and the unique cells as text."""
    if isinstance(cells.dtype, pd.CategoricalDtype):
        codes = cells.cat.codes.to_numpy()
        unique = cells.cat.categories
    else:
        codes, unique = pd.factorize(cells)
    return codes, [_as_text(value) for value in unique]


def _as_text(value) -> str:
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return str(value)


def _report(findings, file, cells, codes, unique_is_bad, message, kind="changed") -> None:
    bad = np.append(np.asarray(unique_is_bad, bool), False)
    findings.rows(file, cells, bad[codes], message, kind)


def _spread(unique: pd.Series, codes: np.ndarray, cells: pd.Series) -> pd.Series:
    """Return the cells as categories, from the clean form of each unique one."""
    places, kinds = pd.factorize(unique)
    values = pd.Categorical.from_codes(np.append(places, -1)[codes], pd.Index(kinds, dtype=str))
    return pd.Series(values, index=cells.index, name=cells.name)


def read_ids(
    findings: Findings, file: str, cells: pd.Series, seen: dict[str, dict[str, str]]
) -> pd.Series:
    """Read a column of user ids, which are words: 007 and 7 are two users.

    Args:
        findings: Collects what was changed.
        file: Name of the table.
        cells: The column.
        seen: For each id, how it was written before it was tidied, and in which file; extended.

    Returns:
        Categories of str.
    """
    if pd.api.types.is_float_dtype(cells):
        broken = cells % 1 != 0
        findings.rows(file, cells, broken & cells.notna(), "an id with decimals: write words")
        message = "numbers with decimals: read as whole numbers"
        findings.rows(file, cells, ~broken, message, "changed")
    ids = read_words(findings, file, cells, "user")
    kinds = pd.Series(ids.cat.categories, dtype=str)
    scientific = kinds.str.fullmatch(SCIENTIFIC)
    if scientific.any():
        message = "a spreadsheet cut this id, so several users look like one: export ids as text"
        findings.rows(file, cells, ids.isin(kinds[scientific]), message)
    if len(kinds) and kinds.str.fullmatch(r"\d+\.0+").all():
        message = "ids written as numbers with decimals: read without them"
        findings.rows(file, cells, ids.notna(), message, "changed")
        whole = dict(zip(kinds, kinds.str.partition(".")[0], strict=True))
        ids = ids.astype(object).map(whole).astype("category")
        ids.name = cells.name
    _note_likeness(findings, file, cells, ids)
    for raw in pd.unique(cells.dropna()):
        text = _as_text(raw)
        seen.setdefault(tidy(text, trim=True), {}).setdefault(text, file)
    return ids


def check_equal_ids(findings: Findings, seen: dict[str, dict[str, str]]) -> None:
    """Report ids that became equal by tidying.

    Args:
        findings: Collects them.
        seen: As `read_ids` fills it.
    """
    for clean, forms in seen.items():
        if not clean or len(forms) == 1:
            continue
        file = list(forms.values())[-1]
        if len({form.strip() for form in forms}) == 1:
            message = "ids that are equal but for spaces around them: read as one user"
            findings.add(file, "user", list(forms), message, "changed")
        else:
            message = "ids that are equal but for invisible characters: say which user each is"
            findings.add(file, "user", list(forms), message)


def check_known_ids(
    findings: Findings, file: str, ids: pd.Series, known: set[str], needed: bool
) -> None:
    """Report ids of facts or labels that have no event, and whom they may mean.

    Args:
        findings: Collects them.
        file: Name of the table of facts or labels.
        ids: Its ids.
        known: Ids of the events.
        needed: Whether it is an error that no id at all is known.
    """
    alone = ~ids.isin(known)
    if not alone.any():
        return
    plain = {user.lstrip("0") or "0": user for user in known}
    near = ids[alone].map(lambda user: plain.get(user.lstrip("0") or "0")).dropna()
    alike = "write the ids alike in both tables"
    if len(near):
        unknown = f"{alone.sum():,} of {len(ids):,} ids have no event"
        message = f"{unknown} (is it {near.iloc[0]!r}?): {alike}"
        findings.rows(file, ids, ids.index.isin(near.index), message)
    elif alone.all() and needed:
        findings.rows(file, ids, alone, f"none of these users has an event: {alike}")
    else:
        message = "no event of this user: is the id the same in events?"
        findings.rows(file, ids, alone, message, "note")


def _note_likeness(findings: Findings, file: str, cells: pd.Series, words: pd.Series) -> None:
    """Note ids or names that look like another, such as Bill and bill."""
    first: dict[str, str] = {}
    alike = {}
    for text in words.cat.categories:
        form = unicodedata.normalize("NFKC", text).casefold()
        if first.setdefault(form, text) != text:
            alike[text] = first[form]
    if alike:
        [like, *_] = alike.values()
        message = f"like {like!r} but for case or form: read as another one"
        findings.rows(file, cells, words.isin(list(alike)), message, "note")
    mixed = [text for text in words.cat.categories if len(_alphabets(text)) > 1]
    message = "letters of two alphabets in one word, which may look like another one"
    findings.rows(file, cells, words.isin(mixed), message, "note")


def _alphabets(text: str) -> set[str]:
    """Return the alphabets that a word mixes, of those whose letters look alike."""
    if text.isascii():
        return set()
    found: set[str] = set()
    for word in re.findall(r"\w+", text):
        names = {unicodedata.name(letter, "?").split()[0] for letter in word if letter.isalpha()}
        found = max(found, names & {"LATIN", "CYRILLIC", "GREEK"}, key=len)
    return found


def number_share(texts: pd.Series) -> float:
    """Return the share of texts that are numbers in some notation.

    Args:
        texts: Some cells of a column, none empty.
    """
    plain = _without_money(texts)
    shares = [plain.str.fullmatch(form).mean() for form in NUMBER_FORMS.values()]
    missing = texts.str.strip().isin(MISSING_NUMBERS).mean()
    return max(shares) + missing


def has_decimal_comma(texts: pd.Series) -> bool:
    """Return whether all texts are numbers, and some can only be read with a decimal comma.

    Args:
        texts: Some cells of a column, none empty.
    """
    plain = _without_money(texts)
    fits = {name: plain.str.fullmatch(form) for name, form in NUMBER_FORMS.items()}
    only = fits["decimal commas"] & ~fits["decimal points"] & ~fits["thousands commas"]
    return bool(only.any() and fits["decimal commas"].mean() > 0.9)


def _without_money(texts: pd.Series) -> pd.Series:
    plain = texts.str.replace(MONEY, "", regex=True)
    return plain.str.replace(r"^\((.*)\)$", r"-\1", regex=True)


def read_numbers(
    findings: Findings, file: str, cells: pd.Series, role: str = "number", comma: bool = False
) -> pd.Series:
    """Read a column of numbers, all in one notation.

    Args:
        findings: Collects what was changed.
        file: Name of the table.
        cells: The column.
        role: "number" (default), "fact" or "label".
        comma: Whether the table writes decimal commas (default False).

    Returns:
        Floats, NaN where a cell is empty.
    """
    if pd.api.types.is_numeric_dtype(cells):
        values = pd.to_numeric(cells).astype(float)
        return apply_rules(findings, file, values, role, cells)
    if cells.dtype.kind in "mM":
        message = "a time, not a number: write a number, or leave the column out"
        findings.add(file, cells.name, str(cells.dtype), message)
        return pd.Series(np.nan, cells.index)
    codes, unique = pd.factorize(cells)
    texts = pd.Series(unique, dtype=object, name=cells.name).astype(str).str.strip()
    known = texts[~texts.isin(MISSING_NUMBERS)]
    yes_no = known.str.lower().isin(YES_NO)
    if len(known) and (yes_no.all() or (role == "label" and yes_no.any())):
        values = known.str.lower().map(YES_NO)
        values = values.fillna(pd.to_numeric(known, errors="coerce"))
        how = "yes is 1 and no is 0"
    else:
        values, how = _parse_numbers(known, comma)
    marks = texts.index.isin(values.index[values.isna()])
    message = "not a number: write one, or leave the cell empty"
    _report(findings, file, cells, codes, marks, message, "error")
    if how:
        _report(findings, file, cells, codes, texts.index.isin(known.index), how, "changed")
    spread = np.append(values.reindex(texts.index).to_numpy(float), np.nan)[codes]
    return apply_rules(findings, file, pd.Series(spread, cells.index), role, cells)


def _parse_numbers(texts: pd.Series, comma: bool) -> tuple[pd.Series, str]:
    """Return the numbers of unique texts and, if they are not plain, how they were read."""
    plain = _without_money(texts)
    fits = {name: plain.str.fullmatch(form) for name, form in NUMBER_FORMS.items()}
    share = {name: fit.mean() for name, fit in fits.items()}
    dotted = plain.str.contains(".", regex=False)
    thousands = comma and dotted.any() and plain[dotted].str.fullmatch(THOUSANDS_DOT).all()
    form = max(share, key=share.get)  # of equal ones the first
    if thousands or share["decimal commas"] == share["thousands commas"] > share["decimal points"]:
        form = "decimal commas" if comma else "thousands commas"
        if comma and share["decimal points"] == 1 and not thousands:
            form = "decimal points"
    read = plain.where(fits[form])
    if form == "decimal commas":
        read = read.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    if form == "thousands commas":
        read = read.str.replace(",", "", regex=False)
    values = pd.to_numeric(read, errors="coerce")
    changed = texts[(texts != read) & values.notna()]
    if changed.empty:
        return values, ""
    example = values[changed.index[0]]
    return values, f"numbers with {form}: {changed.iloc[0]} is read as {example:g}"


def read_label(findings: Findings, file: str, cells: pd.Series, positive: str | None) -> pd.Series:
    """Read a column of labels: 0, 1, yes, no, or two words of which one is 1.

    Args:
        findings: Collects what was changed.
        file: Name of the table.
        cells: The column.
        positive: The word that is 1 (default: none is).

    Returns:
        0., 1. or NaN.
    """
    if not pd.api.types.is_numeric_dtype(cells):
        words = read_words(Findings(), file, cells, "modality")
        kinds = list(words.cat.categories)
        if positive in kinds:
            findings.rows(
                file, cells, words.notna(), f"{positive!r} is 1, other words 0", "changed"
            )
            return (words == positive).astype(float).where(words.notna())
        if len(kinds) == 2 and not _known_labels(kinds):
            message = (
                f"two words: is {kinds[0]!r} or {kinds[1]!r} the 1? Write 0 and 1, or say"
                f' "positive": "{kinds[0]}" in about.json (positive="{kinds[0]}" in Python)'
            )
            findings.rows(file, cells, words.notna(), message)
            return pd.Series(np.nan, cells.index)
    return read_numbers(findings, file, cells, "label")


def _known_labels(kinds: list[str]) -> bool:
    """Return whether one of the words is a number, or yes or no."""
    words = pd.Series(kinds)
    is_number = pd.to_numeric(words, errors="coerce").notna()
    return bool((is_number | words.str.lower().isin(YES_NO)).any())


def one_column_per_kind(
    findings: Findings, file: str, words: pd.Series, taken: set[str]
) -> pd.DataFrame:
    """Return words as one column of 0 and 1 for each kind, named `column.kind`.

    Args:
        findings: Collects what was left out.
        file: Name of the table.
        words: Categories; missing where nothing is known.
        taken: Names of columns that exist.

    Returns:
        The most frequent kinds, at most 20; NaN where the word is missing.
    """
    kinds = words.value_counts()
    kinds = kinds[kinds > 0]
    rare = list(kinds.index[MAX_KINDS:])
    if rare:
        message = f"{count(len(kinds), 'kind')}: the {MAX_KINDS} most frequent become attributes"
        findings.rows(file, words, words.isin(rare), message, "note")
    columns = {}
    for kind in sorted(kinds.index[:MAX_KINDS]):
        name = f"{words.name}.{kind}"
        if name in taken:
            message = f"the attribute {name!r} exists already: rename one of the two columns"
            findings.add(file, words.name, name, message)
            continue
        columns[name] = (words == kind).astype(float).where(words.notna())
    return pd.DataFrame(columns, index=words.index)
