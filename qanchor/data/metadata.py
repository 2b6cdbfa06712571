"""Read what a folder says of itself: manifests of results, and about.json of users."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from qanchor.errors import DataError

ABOUT_FIELDS = (
    "name",
    "unit",
    "cutoff",
    "horizon_days",
    "modalities",
    "columns",
    "words",
    "positive",
    "timezone",
    "duplicates",
)
COLUMN_ROLES = ("user", "time", "text", "modality", "numbers", "attributes")
MAX_HORIZON = 3660  # days
TORN = "damaged or edited. Copy the folder again, or remove it and build it again."


def read_manifest(path: Path, **kinds: type) -> dict:
    """Read what a folder of results says of itself ({} if there is none), fields of these kinds in
    it.
    """
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path.name, None, "manifest", str(error), TORN) from error
    for name, kind in kinds.items():
        found = told.get(name) if isinstance(told, dict) else told
        if not isinstance(found, kind):
            raise DataError(path.name, None, name, found, TORN)
    return told


def read_about(path: Path) -> dict:
    """Read about.json and check its fields.

    Args:
        path: The file; it may be missing.

    Returns:
        The fields, {} without a file. The cut-off is text, in UTC.

    Raises:
        DataError: The file or a field cannot be used; says what to write.
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
    for field in ("name", "unit", "positive", "timezone", "duplicates"):
        if not isinstance(about.get(field, ""), str):
            refuse(field, about[field], 'not a word in quotes. Write one, such as "household".')
    days = about.get("horizon_days", 30)
    if type(days) is not int or days < 1:
        refuse("horizon_days", days, "not a whole number of days. Write one, such as 30.")
    if days > MAX_HORIZON:
        refuse("horizon_days", days, f"over {MAX_HORIZON:,} days. Write a smaller number.")
    names = about.get("modalities", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        refuse("modalities", names, 'not a list of names. Write ["bill", "search"].')
    if len({name.strip() for name in names}) < len(names):
        refuse("modalities", names, "a name is given twice. Write each once.")
    columns = about.get("columns", {})
    if not isinstance(columns, dict):
        refuse("columns", columns, 'not an object. Write {"user": "customer_id"}.')
    for role, told in columns.items():
        if role not in COLUMN_ROLES:
            refuse("columns", role, f"not a role. The roles are {', '.join(COLUMN_ROLES)}.")
        listed = isinstance(told, list) and all(isinstance(name, str) for name in told)
        if not isinstance(told, str) and not listed:
            refuse("columns", told, "not the name of a column. Write a name, or a list of names.")
    words = about.get("words", {})
    if not isinstance(words, dict) or not all(isinstance(name, str) for name in words.values()):
        refuse("words", words, 'not an object of words. Write {"priv": "private label brand"}.')
    cutoff = about.get("cutoff")
    if cutoff is not None:
        # A bare number would be read as nanoseconds.
        is_day = isinstance(cutoff, str) and cutoff.strip()[:4].isdigit()
        day = cutoff if is_day else None
        time = pd.to_datetime(day, errors="coerce", format="ISO8601", utc=True)
        if pd.isna(time):
            refuse("cutoff", cutoff, 'not a day in quotes. Write it as "2025-01-31".')
        about["cutoff"] = str(time.tz_localize(None))
    return about
