"""Bench `attention`: the sample world knows which modalities carry a task; who names them, attention, deletion or gradient?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from .attention import TABULAR, agreement, effects
from .attention import attention as look
from .engine import Engine
from .probe import auc
from .runs import load
from .schema import Users
from .tasks import QUERIES
from .world import CARRIERS

MEASURES = ("weight", "per_token", "deletion_effect", "gradient")


def attention(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    most: int = 100,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Ask each task's question of the sample world's users, and see which modalities three measures name.

    A measure is averaged over users (attention: over layers and heads, too); as_it_is: of modalities with events. against: the
    same minus the modality's mean over all tasks, since one modality may take most of the attention whatever is asked. auc: how
    often a carrier (CARRIERS, two of five a task) stands above another modality; first: the share of tasks whose first is one.
    agreement: rank correlation of attention and deletion over a user's modalities, mean over users and tasks.
    """
    people = users()
    if people.name != "world" or not run:
        raise ValueError(
            f"bench attention: data {people.name!r}, run {run}: the truth is known of --data world alone, give --run"
        )
    people, engine = people.sample(most), Engine(load(run))
    asked = {task: QUERIES[task].format(user=people.unit) for task in CARRIERS}
    cache = engine.prefill(people)
    looks = pd.concat([look(engine, cache, query) for query in asked.values()])
    found = effects(engine, people, list(asked.values()), progress=lambda *n: progress("deleting", *n))
    mean = looks.groupby(["query", "modality"])[["weight", "per_token"]].mean()
    table = mean.join(found.groupby(["query", "modality"])[["deletion_effect", "gradient"]].mean(), how="inner").reset_index()
    table["task"] = table["query"].map({query: task for task, query in asked.items()})
    events = table[(table["modality"] != TABULAR)].reset_index(drop=True)
    carries = [row.modality in CARRIERS[row.task] for row in events.itertuples()]
    told = {}
    for name in MEASURES:
        against = events[name] - events.groupby("modality")[name].transform("mean")
        told[name] = {"as_it_is": _named(events, events[name], carries), "against": _named(events, against, carries)}
    alike = [
        agreement(looks[looks["query"] == q], found[found["query"] == q], column).assign(column=column)
        for q in asked.values()
        for column in MEASURES[:2]
    ]
    rank = pd.concat(alike).groupby("column")["correlation"].mean().to_dict()
    return {"users": len(people), "chance": 0.4, "named": told, "agreement": rank, "rows": table.to_dict("records")}


def _named(events: pd.DataFrame, values: pd.Series, carries: list[bool]) -> dict[str, float]:
    rank = values.groupby(events["task"]).rank()  # within a task, so that tasks are compared alike
    first = rank.groupby(events["task"]).idxmax()
    return {"auc": auc(rank.to_numpy(), pd.Series(carries).to_numpy(float)), "first": float(pd.Series(carries)[first].mean())}
