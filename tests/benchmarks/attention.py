"""Bench `modality_attention`: the sample world knows which modalities carry a task; do attention,
deletion, gradient name them?
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from qanchor.analysis.attention import TABULAR, modality_importance, rank_agreement
from qanchor.analysis.attention import modality_attention as look
from qanchor.data.sample import CARRIERS, QUERIES
from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.heads import QueryLike, query_text
from qanchor.models.model import QAnchor
from qanchor.prompt_tuning.tuning import tune_prompt
from tests.benchmarks.gradients import add_gradients

MEASURES = ("weight", "per_token", "deletion_effect", "gradient")


def attention(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    most: int = 100,
    tuned_on: int = 300,
    steps: int = 100,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Ask each task's question of the sample world's users, see which modalities three measures
    name, then tune and look again.

    A measure is averaged over users (attention: over layers and heads, too); as_it_is: of
    modalities with events. against: the same minus the modality's mean over all tasks, since one
    modality may take most of the attention
    whatever is asked. auc: how often a carrier (CARRIERS, two of five a task) stands above another
    modality; first: the share of tasks whose first is one.
    carriers: the part of the measure that falls to the carriers, mean over tasks. agreement: rank
    correlation of attention and deletion over a user's modalities, mean over users and tasks.

    tuned: the same under a soft prompt for each task, begun at the task's question and learned for
    at most `steps` steps from the labels of `tuned_on` other users. So is tried what the paper
    shows of one user: that tuning leads attention to the scenario's modality.
    """
    every = users()
    if every.name != "world" or not run:
        raise ValueError(
            f"bench attention: data {every.name!r}, run {run}: the truth is known of --data "
            "world alone, give --run"
        )
    people, engine = every.sample(most), Engine(QAnchor.from_pretrained(run))
    others = every.select(sorted(set(every.ids) - set(people.ids))).sample(tuned_on)
    asked: dict[str, QueryLike] = {
        task: QUERIES[task].format(user=people.unit) for task in CARRIERS
    }
    cache, read, prompts = engine.prefill(people), engine.prefill(others), {}
    told = _told(engine, cache, people, asked, lambda *n: progress("deleting", *n))
    for done, task in enumerate(CARRIERS, 1):
        prompts[task], _ = tune_prompt(engine, read, asked[task], others.label(task), steps=steps)
        progress("tuning", done, len(CARRIERS))
    tuned = _told(engine, cache, people, prompts, lambda *n: progress("deleting again", *n))
    return {
        "users": len(people),
        "chance": 0.4,
        **told,
        "tuned": {"users": len(others), "steps": steps, **tuned},
    }


def _told(
    engine: Engine,
    cache: PrefixCache,
    people: Users,
    asked: dict[str, QueryLike],
    progress: Callable[[int, int], None],
) -> dict:
    """Hold the three measures under these questions, or prompts, against the carriers."""
    tasks = {query_text(one): task for task, one in asked.items()}
    looks = pd.concat([look(engine, cache, one) for one in asked.values()])
    found = modality_importance(engine, people, list(asked.values()), progress=progress)
    found = add_gradients(engine, people, list(asked.values()), found)
    mean = looks.groupby(["query", "modality"])[["weight", "per_token"]].mean()
    table = mean.join(
        found.groupby(["query", "modality"])[["deletion_effect", "gradient"]].mean(), how="inner"
    ).reset_index()
    table["task"] = table["query"].map(tasks)
    events = table[table["modality"] != TABULAR].reset_index(drop=True)
    carries = [row.modality in CARRIERS[row.task] for row in events.itertuples()]
    told = {}
    for name in MEASURES:
        against = events[name] - events.groupby("modality")[name].transform("mean")
        part = (events[name] * carries).groupby(events["task"]).sum() / events.groupby("task")[
            name
        ].sum()
        told[name] = {
            "as_it_is": _named(events, events[name], carries),
            "against": _named(events, against, carries),
        }
        told[name]["carriers"] = float(part.mean())
    pairs = [(looks[looks["query"] == words], found[found["query"] == words]) for words in tasks]
    rank = {
        name: float(
            pd.concat([rank_agreement(*pair, name) for pair in pairs])["correlation"].mean()
        )
        for name in MEASURES[:2]
    }
    return {"named": told, "agreement": rank, "rows": table.to_dict("records")}


def _named(events: pd.DataFrame, values: pd.Series, carries: list[bool]) -> dict[str, float]:
    rank = values.groupby(events["task"]).rank()  # within a task, so that tasks are compared alike
    first = rank.groupby(events["task"]).idxmax()
    return {
        "auc": roc_auc(rank.to_numpy(), pd.Series(carries).to_numpy(float)),
        "first": float(pd.Series(carries)[first].mean()),
    }
