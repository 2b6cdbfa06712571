"""Bench `useru`: events tables of one, two and four times the Complete Journey to pairs, each in a
process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

import qanchor as qa
from qanchor.data.complete_journey import load_complete_journey
from qanchor.data.reading import load_users
from qanchor.data.users import Users
from qanchor.utils.arrays import arrow_table

SCALES = (1, 2, 4)
MOVED_HOURS, MORE_OR_LESS = (
    72,
    (0.8, 1.25),
)  # by how much a copy differs: all its times, all its amounts


def useru(
    users=None,
    run=None,
    seeds=0,
    *,
    scales: Sequence[int] = SCALES,
    source: Callable[[], Users] = load_complete_journey,
    seed: int = 0,
) -> dict:
    """Measure how fast and in how little memory events become pairs, and how the time grows with
    the number of events.

    Each scale is that many copies of each user of `source`, under new ids, with times and amounts
    moved (by `seed`) in all but
    the first. seconds: from the file of events to the pairs, without writing the copies or
    starting Python.
    peak_gb: the most memory of that process. users, run and seeds are not looked at.
    """
    rows = []
    for scale in scales:
        with tempfile.TemporaryDirectory() as folder:
            # a process counts its parent's peak as its own: so another one writes the copies
            alone(write_copies, source, Path(folder), scale, seed)
            rows.append({"scale": scale} | alone(_measured, Path(folder)))
    events, seconds = (np.log([row[name] for row in rows]) for name in ("events", "seconds"))
    return {
        "rows": rows,
        "growth_exponent": float(np.polyfit(events, seconds, 1)[0]) if len(rows) > 1 else None,
    }


def alone(step: Callable, *given):
    """Do one step in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step, *given).result()


def _measured(folder: Path) -> dict:
    began = time.perf_counter()
    users = load_users(folder)
    pairs = qa.make_pairs(users)
    seconds = time.perf_counter() - began
    counts = {
        "events": len(users.events),
        "pairs": len(pairs),
        "seconds": seconds,
        "events_per_s": len(users.events) / seconds,
    }
    return counts | {"peak_gb": peak_gb()}


def peak_gb() -> float:
    """Say how much memory this process, or one that it started, has held at most."""
    import resource  # only where there is Unix

    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    if (
        told := Path("/proc/self/status")
    ).exists():  # the first of these begins at what the process that started us held
        peaks[0] = int(told.read_text().split("VmHWM:")[1].split()[0])
    return max(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e9


def write_copies(source: Callable[[], Users], folder: Path, scale: int, seed: int) -> None:
    """Write `scale` copies of all users as a folder that `load_users` reads."""
    import duckdb

    people, rng = source(), np.random.default_rng(seed)
    every = len(people) * scale
    copies = pd.DataFrame(
        {"id": np.tile(people.ids, scale), "copy": np.repeat(np.arange(scale), len(people))}
    )
    copies["hours"] = rng.integers(-MOVED_HOURS, MOVED_HOURS + 1, every)
    copies["factor"] = rng.uniform(*MORE_OR_LESS, every).round(3)
    copies.loc[copies["copy"] == 0, ["hours", "factor"]] = (0, 1.0)
    money = ", ".join(
        f"round({name} * factor, 2) as {name}"
        for name in ("amount", "discount")
        if name in people.numbers
    )
    with duckdb.connect(
        config={"threads": 2, "memory_limit": "2GB", "preserve_insertion_order": False}
    ) as base:
        base.register("events", arrow_table(people.events))
        base.register("copies", arrow_table(copies))
        chosen = f"""events.* exclude ("user", time) {f"replace ({money})" if money else ""}"""
        base.execute(
            f"""copy (
                select id || '-' || copy as "user", time + to_hours(hours::bigint) as time, {chosen}
                from events join copies on events."user"::varchar = copies.id
            ) to '{folder / "events.parquet"}' (format parquet)"""
        )
    about = {
        "name": people.name,
        "unit": people.unit,
        "cutoff": str(people.cutoff),
        "modalities": list(people.modalities),
    }
    (folder / "about.json").write_text(json.dumps(about | {"horizon_days": people.horizon_days}))
