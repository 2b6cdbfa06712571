"""Bench `soak`: the workbench is used at random for minutes on end; does its memory stay where it
is?
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qanchor.data.sample import QUERIES
from qanchor.data.users import Users
from qanchor.workbench.session import WorkbenchSession
from tests.benchmarks.engines import open_engine

FLAT = 0.05  # of the memory after the warm-up
WARM = 1 / 3  # of the time: models are opened, stores fill up to their bounds
TENTH = 20  # times at which a tenth of the time is looked at
POINTS = 60  # of the curve that is told


class Hand:
    """Use a workbench as an impatient person does: each action draws its own words and users."""

    def __init__(self, desk: WorkbenchSession, users: Users, folder: Path, seed: int):
        from qanchor.widgets import Workbench  # late: the library itself draws nothing

        self.draw, self.desk, self.users, self.folder = (
            np.random.default_rng(seed),
            desk,
            users,
            folder,
        )
        self.bench = Workbench(desk, session=folder / "session.json")
        self.bench.lens.ask(self.query())
        self.actions = [
            *["ask"] * 3,
            "cancel",
            "select",
            "name",
            "explain",
            "look",
            "edit",
            "answer",
            "compare",
            "claim",
        ]
        self.actions += ["tune"] * (desk.tuning is not None)

    def act(self) -> str:
        """Do one thing, and give its name."""
        name = str(self.draw.choice(self.actions))
        getattr(self, name)()
        return name

    def query(self) -> str:
        """Give a question that was hardly asked before."""
        query = self.draw.choice(list(QUERIES.values())).replace("{user}", self.users.unit)
        return f"{query} ({self.draw.integers(10**6)})"

    def some(self, many: int) -> list[str]:
        """Draw users."""
        return self.draw.choice(
            np.array(self.users.ids), min(many, len(self.users)), replace=False
        ).tolist()

    def ask(self) -> None:
        self.bench.lens.ask(self.query())

    def cancel(self) -> None:
        updates = self.desk.lens(self.query())
        next(updates)
        updates.close()

    def select(self) -> None:
        self.bench.selection.ids = self.some(int(self.draw.integers(1, 30)))
        self.desk.describe(self.some(12))

    def name(self) -> None:
        self.bench.selection.ids = self.some(12)
        self.bench.panel.save(f"group {self.draw.integers(5)}")
        self.desk.export(self.some(12), self.folder / "some.csv")

    def explain(self) -> None:
        self.bench.selection.ids = self.some(len(self.users) // 3)
        self.bench.panel.explain()

    def look(self) -> None:
        self.bench.attention.look(self.query(), users=self.some(4))

    def edit(self) -> None:
        user = self.some(1)[0]
        events = self.desk.attention.events(user)
        if len(events) > 1:
            self.bench.attention.rerun(self.query(), user, drop=[int(events["event"].iloc[0])])

    def answer(self) -> None:
        self.desk.lens.answer(self.some(1)[0], self.query())

    def compare(self) -> None:
        self.bench.compare()

    def claim(self) -> None:
        self.bench.lens.result_card("kept").save(self.folder / "claim.html")

    def tune(self) -> None:
        for _ in self.desk.tuning("Why?", str(self.draw.choice(self.desk.tuning.labels)), steps=3):
            pass


def soak(
    users: Callable[[], Users],
    run=None,
    seeds: int = 0,
    *,
    minutes: float = 15.0,
    most: int = 200,
    seed: int = 0,
) -> dict:
    """Use the workbench at random for `minutes` and watch the memory of the process (RSS, MB).

    run       folder of a run; without one, a model is fitted. most: users, drawn of all.
    actions   how often each was done: questions hardly ever asked before, some cancelled,
              selections, groups that are named, explained and exported, attention, edited users,
              answers, clusters, claim cards, short tunings.
    growth    median of the last tenth of the time over that of the first tenth after the warm-up (a
              third), minus 1.
    flat      the growth is at most 5 %. seeds is not looked at.
    """
    import psutil

    everybody = users()
    engine = open_engine(run, everybody)
    people = everybody.sample(most, seed)
    memory, curve, done = psutil.Process(), [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        hand, began = (
            Hand(WorkbenchSession(engine, people), people, Path(folder), seed),
            time.monotonic(),
        )
        while (now := (time.monotonic() - began) / 60) < minutes:
            done[hand.act()] += 1
            curve.append((now, memory.memory_info().rss / 1e6))
    at, rss = np.array(curve).T
    grid = np.linspace(
        WARM * minutes, minutes, 10 * TENTH
    )  # an action may take a minute: the memory stays as it was last seen
    held = rss[np.maximum(np.searchsorted(at, grid, "right") - 1, 0)]
    first, last = np.median(held[:TENTH]), np.median(held[-TENTH:])
    told = {
        "run": Path(run).name if run else "fitted",
        "users": len(people),
        "minutes": minutes,
        "actions": dict(done),
    }
    shown = np.unique(np.linspace(0, len(curve) - 1, POINTS).astype(int))
    told["rss_mb"] = [[round(float(at[i]), 2), round(float(rss[i]), 1)] for i in shown]
    growth = float(last / first - 1)
    return told | {
        "first_mb": float(first),
        "last_mb": float(last),
        "growth": growth,
        "flat": growth <= FLAT,
    }
