"""What a folder says of its users in about.json, and `DataError`, which says what is wrong with any
input.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from qanchor.errors import DataError


def read_manifest(path: Path, **kinds: type) -> dict:
    """Read what a folder of results says of itself ({} if there is none), fields of these kinds in
    it.
    """
    if not path.exists():
        return {}
    cure = "torn or edited: copy the folder again, or remove it and make it anew"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path.name, None, "manifest", str(error), cure) from error
    for name, kind in kinds.items():
        found = told.get(name) if isinstance(told, dict) else told
        if not isinstance(found, kind):
            raise DataError(path.name, None, name, found, cure)
    return told


def read_metadata(path: Path) -> dict:
    """Read about.json ({} if there is none), its fields of the right kind."""
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(
            path.name, None, "about", str(error), "not JSON: mend it or remove the file"
        ) from error
    if not isinstance(about, dict):
        raise DataError(
            path.name, None, "about", about, 'not an object: write {"cutoff": "2025-01-31"}'
        )
    cutoff, days, names = (
        about.get("cutoff"),
        about.get("horizon_days", 30),
        about.get("modalities", []),
    )
    if cutoff is not None and pd.isna(
        pd.to_datetime(str(cutoff), errors="coerce", format="ISO8601", utc=True)
    ):
        raise DataError(path.name, None, "cutoff", cutoff, "not a time: write it as 2025-01-31")
    for name in ("name", "unit"):
        if not isinstance(about.get(name, ""), str):
            raise DataError(
                path.name, None, name, about[name], 'not a word in quotes: write "household"'
            )
    if type(days) is not int or days < 1:
        raise DataError(path.name, None, "horizon_days", days, "not a whole number of days")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            path.name, None, "modalities", names, 'not a list of names: write ["bill", "search"]'
        )
    return about


def validated_metadata(path: Path) -> dict:
    """Read about.json for use: besides, its cut-off stands there as text (an offset is turned into
    UTC), each modality once.
    """
    about = read_metadata(path)
    cutoff, names = about.get("cutoff"), about.get("modalities", [])
    if cutoff is not None:
        # a bare number would be read as nanoseconds
        if not isinstance(cutoff, str) or not cutoff.strip()[:4].isdigit():
            raise DataError(
                path.name, None, "cutoff", cutoff, 'not a day in quotes: write it as "2025-01-31"'
            )
        about["cutoff"] = str(pd.to_datetime(cutoff, format="ISO8601", utc=True).tz_localize(None))
    if len(set(names)) < len(names):
        raise DataError(
            path.name, None, "modalities", names, "one stands there twice: write each once"
        )
    return about
