"""Read the metadata of a folder: the manifest of results, or about.json of users."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from qanchor.errors import DataError

COLUMN_ROLES = ("user", "time", "text", "modality", "numbers", "attributes")
MAX_HORIZON = 3660  # days


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_list_of_texts(value) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


WORD = [(_is_text, 'not a word in quotes. Write one, such as "household".')]
ABOUT_FIELDS = {  # fields of about.json, each with its checks and the message if one fails
    "name": WORD,
    "unit": WORD,
    "cutoff": [],
    "horizon_days": [
        (
            lambda days: type(days) is int and days >= 1,
            "not a whole number of days. Write one, such as 30.",
        ),
        (lambda days: days <= MAX_HORIZON, f"over {MAX_HORIZON:,} days. Write a smaller number."),
    ],
    "modalities": [
        (_is_list_of_texts, 'not a list of names. Write ["bill", "search"].'),
        (
            lambda names: len({name.strip() for name in names}) == len(names),
            "a name is listed twice. List each name once.",
        ),
    ],
    "columns": [
        (
            lambda columns: isinstance(columns, dict),
            'not an object. Write {"user": "customer_id"}.',
        )
    ],
    "words": [
        (
            lambda words: isinstance(words, dict) and all(map(_is_text, words.values())),
            'not an object of words. Write {"priv": "private label brand"}.',
        )
    ],
    "positive": WORD,
    "timezone": WORD,
    "duplicates": WORD,
}
TORN = "damaged or edited. Copy the folder again, or remove it and build it again."


def read_manifest(path: Path, **kinds: type) -> dict:
    """Read the manifest of a folder of results and check its fields.

    Args:
        path: The file; it may be missing.
        **kinds: Type of each required field, by its name.

    Returns:
        The manifest; {} if there is no file.

    Raises:
        DataError: The file is not JSON, or a field is missing or of another type.
    """
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path.name, None, "manifest", str(error), TORN) from error
    for name, kind in kinds.items():
        value = manifest.get(name) if isinstance(manifest, dict) else manifest
        if not isinstance(value, kind):
            raise DataError(path.name, None, name, value, TORN)
    return manifest


def read_about(path: Path) -> dict:
    """Read about.json and check its fields.

    Args:
        path: The file; it may be missing.

    Returns:
        The fields; {} if there is no file. The cut-off is a str, in UTC.

    Raises:
        DataError: The file or a field is invalid. The message says what to write.
    """
    if not path.exists():
        return {}

    def refuse(column: str, value, message: str):
        raise DataError(path.name, None, column, value, message)

    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        refuse("about", str(error), "not JSON. Correct it or remove the file.")
    if not isinstance(about, dict):
        refuse("about", about, 'not an object. Write {"cutoff": "2025-01-31"}.')
    for field, rules in ABOUT_FIELDS.items():
        for is_valid, message in rules:
            if field in about and not is_valid(about[field]):
                refuse(field, about[field], message)
    for role, columns in about.get("columns", {}).items():
        if role not in COLUMN_ROLES:
            refuse("columns", role, f"not a role. The roles are {', '.join(COLUMN_ROLES)}.")
        if not _is_text(columns) and not _is_list_of_texts(columns):
            refuse(
                "columns", columns, "not the name of a column. Write a name, or a list of names."
            )
    cutoff = about.get("cutoff")
    if cutoff is not None:
        # A bare number would be read as nanoseconds.
        is_day = _is_text(cutoff) and cutoff.strip()[:4].isdigit()
        day = cutoff if is_day else None
        time = pd.to_datetime(day, errors="coerce", format="ISO8601", utc=True)
        if pd.isna(time):
            refuse("cutoff", cutoff, 'not a day in quotes. Write it as "2025-01-31".')
        about["cutoff"] = str(time.tz_localize(None))
    return about
