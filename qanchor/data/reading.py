"""Check a folder of your own users, and write a cleaned copy."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pandas as pd

from qanchor.data.faults import Notes, Problem, tidy
from qanchor.data.folder import MORE, Folder
from qanchor.data.metadata import read_metadata
from qanchor.data.users import Users, load_users
from qanchor.errors import CleaningError

ABOUT = ("name", "unit", "cutoff", "horizon_days", "modalities")
YEAR, LONGEST = pd.Timedelta(days=366), 3660  # days of a horizon


def validate_table(folder, today=None) -> list[Problem]:
    """Find all that is wrong with a folder of your own users, not only the first of it; an empty
    list is a folder in order.

    today   times beyond it are refused (default: now). Empty numbers are no problem: they say that
            there is none.
    Raises FileNotFoundError when there is no events file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = ["user,time,modality,text", "a,soon,bill,tea", "a,2025-01-31,bill,", "a,2025-01-31,bill,rice"]
        >>> _ = (folder / "events.csv").write_text("\\n".join(rows))
        >>> [(problem.row, problem.column, problem.fixable) for problem in validate_table(folder)]
        [(0, 'time', False), (1, 'text', True)]
    """
    return list(_found(folder, today).notes)


def clean_table(folder, out, today=None) -> pd.DataFrame:
    """Write a mended copy of a folder to `out` and say what was done: columns `file, column, row,
    rows, done`.

    The copy is parquet, loads, and holds no problem that could be mended. The folder itself is
    never touched. A column is taken for a missing one where its name and cells leave no doubt
    ("renamed"); `validate_table` tells which. Raises CleaningError, naming all of it and writing
    nothing, when something only you can mend; ValueError when `out` is the folder or lies in it;
    FileExistsError when `out` holds something.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "events.csv").write_text("user,time,modality,text\\na,2025-01-31,bill,tea\\na,2025-01-31,bill,\\n")
        >>> clean_table(folder, folder.with_name(f"{folder.name}-mended"))[["row", "rows", "action"]].values.tolist()
        [[1, 1, 'row dropped']]
    """
    return _write(_found(folder, today), _free(Path(folder), Path(out)))


def _found(folder, today) -> Folder:
    """Read a folder and look across its tables: ids that become equal, users without events or
    history, labels as inputs.
    """
    notes, folder = Notes(), Path(folder)
    today = pd.Timestamp.now("UTC").tz_localize(None) if today is None else pd.Timestamp(today)
    about = _about(notes, folder)
    cutoff = _cutoff(notes, about, today)
    found = Folder(folder, today, notes, about, cutoff)
    names, tables, raw = found.names, found.tables, {}
    for stem, ids in found.ids.items():
        for before, after in ids.items():
            raw.setdefault(after, {}).setdefault(before, stem)
    met = [forms for after, forms in raw.items() if after and len(forms) > 1]
    spaced = [forms for forms in met if len({before.strip() for before in forms}) == 1]
    for forms in met:
        if forms not in spaced:
            cure = "ids that become equal when invisible characters go: say which user each is"
            notes.whole(names[list(forms.values())[-1]], "user", list(forms), cure)
    if spaced:
        cure = f"ids that are equal but for spaces around them, {len(spaced):,} such: trim them"
        notes.whole(
            names[list(spaced[0].values())[-1]], "user", list(spaced[0]), cure, "taken for one user"
        )
    events = tables.get("events", pd.DataFrame())
    for stem in ("users", "labels"):
        if "user" in events and "user" in tables.get(stem, ()):
            user = tables[stem]["user"]
            alone = ~user.isin(set(events["user"].astype(str)))
            notes.rows(
                names[stem],
                user,
                alone,
                "no event of this user: is the id the same in events?",
                blocking=False,
            )
    if cutoff is not None and len(events) and {"user", "time"} <= set(events):
        first = events.groupby("user", observed=True)["time"].min()
        new = events["user"].isin(first.index[first >= cutoff]) & ~events["user"].duplicated()
        cure = f"no event before the cut-off ({cutoff}): nothing of this user can be read"
        notes.rows(names["events"], events["user"], new, cure, blocking=False)
    labels = tables.get("labels", pd.DataFrame())
    for stem in ("events", "users"):
        for name in sorted(
            set(labels) & set(tables.get(stem, ())) - {"user"} if "user" in labels else ()
        ):
            cure = (
                "named like a label: a label must never be an input, drop the column or rename one"
            )
            notes.whole(names[stem], name, name, cure)
    return found


def _about(notes: Notes, folder: Path) -> dict:
    file = "about.json"
    try:
        about = read_metadata(folder / file)
    except (ValueError, OSError, RecursionError) as error:
        place = getattr(error, "column", "about"), getattr(error, "value", str(error))
        notes.whole(
            file,
            *place,
            getattr(error, "hint", "cannot be read: mend it or remove the file") + MORE,
        )
        return {}
    for key in sorted(set(about) - set(ABOUT)):
        notes.whole(file, key, about[key], f"not read: only {', '.join(ABOUT)} are", blocking=False)
    names = about.get("modalities", [])
    clean = list(dict.fromkeys(filter(None, (tidy(name, True) for name in names))))
    if clean != names:
        about["modalities"] = clean
        notes.whole(
            file,
            "modalities",
            names,
            "a name twice, empty or not plain",
            "each written once, plainly",
        )
    if about.get("horizon_days", 30) > LONGEST:
        notes.whole(
            file,
            "horizon_days",
            about.pop("horizon_days"),
            f"over {LONGEST:,} days: is that meant?",
        )
    return about


def _cutoff(notes: Notes, about: dict, today: pd.Timestamp) -> pd.Timestamp | None:
    file, given = "about.json", about.get("cutoff")
    if given is None:
        return None
    if not isinstance(given, str) or not re.match(r"\s*\d{4}", given):
        notes.whole(file, "cutoff", given, 'not a day in quotes: write "2025-01-31"' + MORE)
        return None
    cutoff = pd.Timestamp(given)
    if cutoff.tz is not None:
        cutoff = cutoff.tz_convert("UTC").tz_localize(None)
        about["cutoff"] = str(cutoff)
        notes.whole(
            file, "cutoff", given, "has a time zone: write it in UTC, without one", "written in UTC"
        )
    if cutoff > today + YEAR:
        notes.whole(file, "cutoff", given, "over a year ahead: is the year right?" + MORE)
        return None
    return cutoff


def _free(folder: Path, out: Path) -> Path:
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"{out} is {folder} or lies in it: a folder is never mended in place, choose another"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} holds something already: choose a folder that is new or empty"
        )
    return out


def _write(found: Folder, out: Path) -> pd.DataFrame:
    if lost := [problem for problem in found.notes if problem.blocking and not problem.fixable]:
        raise CleaningError(found.folder, lost)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _save(found, aside)
        load_users(aside)
        if out.exists():
            out.rmdir()
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    rows = [problem.plain() for problem in found.notes if problem.fixable]
    return pd.DataFrame(rows, columns=["file", "column", "row", "rows", "action"]).astype(
        {"row": "Int64"}
    )


def _save(found: Folder, folder: Path) -> None:
    """Write the mended tables, events sorted by user and time."""
    folder.mkdir(parents=True)
    for stem, frame in found.tables.items():
        if stem == "events":
            frame = frame.sort_values(["user", "time"], kind="stable").astype(
                dict.fromkeys(("modality", "text"), str)
            )
        frame.astype({"user": str}).to_parquet(folder / f"{stem}.parquet", index=False)
    if found.about:
        (folder / "about.json").write_text(json.dumps(found.about, indent=2) + "\n")


def table(problems: list[Problem]) -> str:
    """Show problems in aligned columns, those first that only you can mend; `--fix` says what it
    does, "-" for nothing.

    Below each stands what is wrong with it and how to mend it by hand. What is too long for its
    place is cut; lists of names stand at the end, whole.
    """
    rows, cures, below = [("", "file", "row", "rows", "column", "value", "--fix")], [""], {}
    for p in sorted(problems, key=lambda p: (bool(p.action), not p.blocking)):
        value = repr(p.value)
        if len(value) > 30 and isinstance(p.value, list):
            below[f"{p.file} has {', '.join(map(repr, p.value))}"] = None
            value = f"{len(p.value)} names: see below"
        value = value if len(value) <= 30 else f"{value[:27]}..."
        place = ("" if p.row is None else str(p.row), f"{p.rows:,}" if p.rows else "")
        kind = "note" if not p.blocking else "mends" if p.action else "error"
        rows.append((kind, p.file, *place, p.column, value, p.action or "-"))
        cures.append(f"\n       {p.hint}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(map(str.ljust, row, widths)).rstrip() + cure
        for row, cure in zip(rows, cures, strict=True)
    ]
    return "\n".join(
        [
            *lines,
            *(
                wrapped
                for line in below
                for wrapped in textwrap.wrap(line, 120, subsequent_indent="    ")
            ),
        ]
    )


def check_folder(path, out=None) -> tuple[dict, str]:
    """Tell what is in a folder and what is wrong with it, as plain data and in words; with `out`,
    mend it first.

    The data always holds `in_order` and `problems`; the rest (users, events, modalities ...) only
    of what loads.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "events.csv").write_text("user,time,modality,text\\na,soon,bill,tea\\n")
        >>> check_folder(folder)[0]["in_order"]
        False
    """
    found = _found(path, None)
    problems, said = list(found.notes), []
    stuck = [problem for problem in problems if problem.blocking and not problem.fixable]
    told = {
        "in_order": not any(problem.blocking for problem in problems),
        "problems": [p.plain() for p in problems],
    }
    if problems:
        said = [
            table(problems),
            "Rows are counted from 0, without the header: row 0 is line 2 of a csv file.",
            "",
        ]
    if out is not None and not stuck:
        done = _write(found, _free(Path(path), Path(out)))
        told |= {
            "in_order": True,
            "mended": str(out),
            "action": json.loads(done.to_json(orient="records")),
        }
        said += [f"{path} is mended in {out}."]
        if lost := sum(
            p.rows for p in problems if p.action == "row dropped" and p.file.startswith("events")
        ):
            said += [f"{lost:,} rows of the events were dropped on the way; above it says why."]
        path = out
    if not told["in_order"]:
        mendable = sum(problem.fixable for problem in problems)
        said += [
            f"{path} is not in order: {len(problems)} problem(s), {mendable} of them can be "
            "mended with --fix OUT."
        ]
        said += [f"{len(stuck)} only you can mend; until then --fix writes nothing."] * bool(stuck)
        return told, "\n".join(said)
    inside = _contents(load_users(path))
    last = " (after the last event: about.json names none)" * (
        read_metadata(Path(path) / "about.json").get("cutoff") is None
    )
    lines = [
        f"{name}: {_listed(found)}{last * (name == 'cutoff')}"
        for name, found in inside.items()
        if found
    ]
    lines += [
        f"next: python -m qanchor train --preset small --users {shlex.quote(str(path))} --out RUN"
    ]
    return told | inside, "\n".join([*said, f"{path} is in order.", *lines])


def _contents(users: Users) -> dict:
    past = users.history()
    return {
        "users": len(users),
        "events": len(users.events),
        "history": len(past),
        "cutoff": str(users.cutoff),
        "modalities": past.groupby("modality", observed=False).size().to_dict(),
        "numbers": list(users.numbers),
        "unknown": _unknown(users.tabular),
        "labels": {name: int(known) for name, known in users.labels.notna().sum().items()},
        "texts": int(users.events["text"].nunique()),
    }


def _listed(found) -> str:
    counted = [f"{name} {n:,}" for name, n in found.items()] if isinstance(found, dict) else found
    return ", ".join(counted) if isinstance(counted, list) else str(counted)


def _unknown(facts: pd.DataFrame) -> dict[str, int]:
    """Count the users of whom a fact is not known, words of one kind (`plan.basic`, `plan.gold`)
    under their one name.
    """
    empty: dict[str, dict[str, int]] = {}
    for name, n in facts.isna().sum().items():
        empty.setdefault(str(name).partition(".")[0], {})[str(name)] = int(n)
    alike = {kind: len(some) > 1 and len(set(some.values())) == 1 for kind, some in empty.items()}
    return {
        kind if alike[kind] else name: n
        for kind, some in empty.items()
        for name, n in some.items()
        if n
    }
