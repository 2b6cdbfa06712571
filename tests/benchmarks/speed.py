"""Benches of speed: `open`, from a table to the first answer, and `cache` and `ask`, of questions
to users that were read before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import qanchor as qa
from tests.benchmarks.engines import open_engine
from tests.benchmarks.machine import timed
from tests.benchmarks.useru import alone

MANY = (1, 4, 10, 32)  # queries
FIRST = 200  # users that a view shows first
TABLES = ((1_000, 30_000), (5_000, 100_000))  # users and events
QUESTION = "Will this user travel soon?"


def cache(
    users: Callable[[], qa.Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    queries: Sequence[int] = MANY,
    most: int = 200,
    rounds: int = 3,
) -> dict:
    """Compare K questions to users read once, the reading included, with reading the users for
    each question; the embeddings must agree.

    `bound` is what the time of one reading and of one question allow, so `of_bound` is below 1 if
    many questions together cost more than each alone, and above 1 if less.

    Args:
        users: Returns the users.
        run: Folder of a run. Default: fit a model.
        seeds: Not used.
        queries: Numbers of questions.
        most: Users that are read, at most.
        rounds: Every part is timed so often, in turn, and the median counts.
    """
    everybody = users()
    engine = open_engine(run, everybody)
    people = everybody.sample(most)
    device = engine.model.device
    held = engine.prefill(people)
    rows = []
    for many in queries:
        asked = [f"Will this {people.unit} buy kind {number} next month?" for number in range(many)]
        steps = [
            lambda: engine.prefill(people),
            lambda asked=asked: engine.embed(held, asked[:1]),
            lambda asked=asked: engine.embed(held, asked),
        ]
        # in turn, so that what else the machine does falls on all alike; the first only warms up
        times = np.array([[timed(step, device) for step in steps] for _ in range(rounds + 1)])[1:]
        read, one, together = np.median(times, 0)
        speedup = float(many * (read + one) / (read + together))
        bound = float(many * (read + one) / (read + many * one))
        anew = [engine.embed(engine.prefill(people), query) for query in (asked[0], asked[-1])]
        gap = np.abs(engine.embed(held, asked)[:, [0, -1]] - np.stack(anew, axis=1)).max()
        row = {"queries": many, "users": len(people), "speedup": speedup, "bound": bound}
        rows.append(row | {"of_bound": speedup / bound, "max_abs_diff": float(gap)})
    return {"data": everybody.name, "rows": rows}


def ask(
    users: Callable[[], qa.Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    most: int = 2000,
) -> dict:
    """Time one typed question to users that were read before: until the first 200 are embedded,
    until all are, and until all are ranked. Of three questions, each new, the fastest counts.

    Args:
        users: Returns the users.
        run: Folder of a run. Default: fit a model.
        seeds: Not used.
        most: Users, at most.
    """
    everybody = users()
    engine = open_engine(run, everybody)
    people = everybody.sample(most)
    held = engine.prefill(people)
    curves = []
    ranked = []
    for does in ("be very active", "come more often", "stop coming"):  # asked of any data
        began = time.perf_counter()
        curve = [(0, 0.0)]
        for rows, _ in engine.iter_embed(held, [f"Will this {people.unit} {does} soon?"]):
            curve.append((curve[-1][0] + len(rows), time.perf_counter() - began))
        curves.append(curve)
        query = f"Will this {people.unit} {does} next month?"
        ranked.append(timed(lambda query=query: engine.rank(held, query), engine.model.device))
    curve = min(curves, key=lambda curve: curve[-1][1])
    return {
        "data": everybody.name,
        "users": len(held),
        "first_200_s": next(at for done, at in curve if done >= min(FIRST, len(held))),
        "all_s": curve[-1][1],
        "rank_s": min(ranked),
        "curve": curve,
    }


def first_answer(
    users=None, run=None, seeds: int = 0, *, sizes: Sequence[tuple[int, int]] = TABLES
) -> dict:
    """Time the way from a CSV file of events to the first typed answer: reading, `fit`, and the
    ranking of all users. users, run and seeds are not looked at.

    Args:
        sizes: Users and events of each table; events are drawn from those of sample users.

    Returns:
        `rows`, one per table: `read_s`, `fit_s`, `answer_s` (`prefill` and `rank`), and `cold_s`,
        all of it in a process of its own, with starting Python and importing.
    """
    rows = []
    for n_users, n_events in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "export.csv"
            people = qa.make_sample_users(n_users)
            events = people.history()
            events = events.sample(min(n_events, len(events)), random_state=0).sort_index()
            columns = ["user", "time", "modality", "text", "amount"]
            events[columns].to_csv(path, index=False)
            start = time.perf_counter()
            parts = alone(_time_to_answer, path)
            rows.append(parts | {"cold_s": time.perf_counter() - start})
    return {"rows": rows}


def _time_to_answer(path: Path) -> dict:
    """Read a table, fit a model to it and rank its users for one question."""
    times = [time.perf_counter()]
    users = qa.read_events(path)
    times.append(time.perf_counter())
    engine = qa.Engine(qa.fit(users, progress=False))
    times.append(time.perf_counter())
    ranking = engine.rank(engine.prefill(users), QUESTION)
    times.append(time.perf_counter())
    if not ranking.attrs["answerable"]:
        raise RuntimeError(f"{QUESTION!r} was refused: there is no first answer to time")
    read, fit, answer = np.diff(times).tolist()
    counts = {"users": len(users), "events": len(users.events)}
    return counts | {"read_s": read, "fit_s": fit, "answer_s": answer}
