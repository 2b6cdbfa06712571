"""Bring your own data: find all that is wrong with a folder of users, and write a mended one beside it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pandas as pd

from .faults import Problem
from .folder import Folder
from .schema import Users, load_users


class MendError(ValueError):
    """Say all that keeps a folder from being mended; `problems` holds it."""

    def __init__(self, folder, problems: list[Problem]):
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{folder}: {len(problems)} problem(s) that only you can mend; nothing was written\n{lines}")


def inspect(folder, today=None) -> list[Problem]:
    """Find all that is wrong with a folder of your own users, not only the first of it; an empty list is a folder in order.

    today   times beyond it are refused (default: now). Empty numbers are no problem: they say that there is none.
    Raises FileNotFoundError when there is no events file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = ["user,time,modality,text", "a,soon,bill,tea", "a,2025-01-31,bill,", "a,2025-01-31,bill,rice"]
        >>> _ = (folder / "events.csv").write_text("\\n".join(rows))
        >>> [(problem.row, problem.column, problem.recoverable) for problem in inspect(folder)]
        [(0, 'time', False), (1, 'text', True)]
    """
    return list(Folder(folder, today).notes)


def mend(folder, out, today=None) -> pd.DataFrame:
    """Write a mended copy of a folder to `out` and say what was done: columns `file, column, row, rows, done`.

    The copy is parquet, loads, and holds no problem that could be mended. The folder itself is never touched.
    Raises MendError, naming all of it and writing nothing, when something only you can mend; ValueError when `out` is the
    folder or lies in it; FileExistsError when `out` holds something.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "events.csv").write_text("user,time,modality,text\\na,2025-01-31,bill,tea\\na,2025-01-31,bill,\\n")
        >>> mend(folder, folder.with_name(f"{folder.name}-mended"))[["row", "rows", "done"]].values.tolist()
        [[1, 1, 'row dropped']]
    """
    return _write(Folder(folder, today), _free(Path(folder), Path(out)))


def _free(folder: Path, out: Path) -> Path:
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} is {folder} or lies in it: a folder is never mended in place, choose another")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something already: choose a folder that is new or empty")
    return out


def _write(found: Folder, out: Path) -> pd.DataFrame:
    if lost := [problem for problem in found.notes if problem.severe and not problem.recoverable]:
        raise MendError(found.folder, lost)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        found.write(aside)
        load_users(aside)
        if out.exists():
            out.rmdir()
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    rows = [problem.plain() for problem in found.notes if problem.recoverable]
    return pd.DataFrame(rows, columns=["file", "column", "row", "rows", "done"]).astype({"row": "Int64"})


def table(problems: list[Problem]) -> str:
    """Show problems in aligned columns, the severe ones first; the last says what `--fix` does, "-" for nothing."""
    rows = [("", "file", "row", "rows", "column", "value", "cure", "--fix")]
    for p in sorted(problems, key=lambda problem: not problem.severe):
        value = repr(p.value) if len(repr(p.value)) <= 30 else f"{repr(p.value)[:27]}..."
        place = ("" if p.row is None else str(p.row), f"{p.rows:,}" if p.rows else "")
        rows.append(("error" if p.severe else "note", p.file, *place, p.column, value, p.cure, p.done or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check(path, out=None) -> tuple[dict, str]:
    """Tell what is in a folder and what is wrong with it, as plain data and in words; with `out`, mend it first.

    The data always holds `in_order` and `problems`; the rest (users, events, modalities ...) only of what loads.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "events.csv").write_text("user,time,modality,text\\na,soon,bill,tea\\n")
        >>> check(folder)[0]["in_order"]
        False
    """
    found = Folder(path, None)
    problems, said = list(found.notes), []
    stuck = [problem for problem in problems if problem.severe and not problem.recoverable]
    told = {"in_order": not any(problem.severe for problem in problems), "problems": [p.plain() for p in problems]}
    if problems:
        said = [table(problems), "Rows are counted from 0, without the header: row 0 is line 2 of a csv file.", ""]
    if out is not None and not stuck:
        done = _write(found, _free(Path(path), Path(out)))
        told |= {"in_order": True, "mended": str(out), "done": json.loads(done.to_json(orient="records"))}
        said += [f"{path} is mended in {out}."]
        path = out
    if not told["in_order"]:
        mendable = sum(problem.recoverable for problem in problems)
        said += [f"{path} is not in order: {len(problems)} problem(s), {mendable} of them can be mended with --fix OUT."]
        said += [f"{len(stuck)} only you can mend; until then --fix writes nothing."] * bool(stuck)
        return told, "\n".join(said)
    inside = _contents(load_users(path))
    lines = [f"{k}: {', '.join(f'{a} {b:,}' for a, b in v.items()) if isinstance(v, dict) else v}" for k, v in inside.items()]
    lines += [f"next: python -m qanchor train --preset small --users {shlex.quote(str(path))} --out RUN"]
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
        "labels": {name: int(known) for name, known in users.labels.notna().sum().items()},
        "texts": int(users.events["text"].nunique()),
    }
