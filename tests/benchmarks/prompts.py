"""Bench `prompts`: what a soft prompt learned from half of the labelled users adds to a probe on
the other half, by task.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.evaluation.prompt_evaluation import compare_prompt, split_labels
from qanchor.prompt_tuning.tuning import tune_prompt
from tests.benchmarks.engines import open_engine
from tests.benchmarks.task_scores import QUERIES, average_auc
from tests.benchmarks.tasks import askable

VAGUE = "Is this {user} interesting for us?"
SIDES, MEASURES = ("before", "after"), ("auc", "ks", "silhouette")


def prompts(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 1,
    *,
    most: int = 400,
    steps: int = 30,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Tune a soft prompt for each label, on half of at most `most` users, and judge it on the
    others, who were never seen. Without a run, a model is fitted to all users.

    Ways: `right`, the task's own question is typed; `vague`, one that says nothing of it;
    `vague_seek`, the same with `seek`, so that the tuning may begin at a taught question. before is
    a supervised head, the linear probe on the same labels under the typed question; after the same
    probe on the tuned anchors. rows: a task and way each, gain with its 95 % interval.
    average: over the tasks, the gain paired, the same users drawn for all tasks. seeds is not
    looked at.
    """
    everybody = users()
    engine = open_engine(run, everybody, progress)
    people = everybody.sample(most)
    cache, names = engine.prefill(people), askable(people)
    ways = {"right": False, "vague": False, "vague_seek": True}
    held, rows, unit = {}, [], people.unit
    for name in names:
        learn, others = split_labels(cache, people.label(name), 0.5, 0)
        for way, seek in ways.items():
            query = (QUERIES.get(name, f"{name}?") if way == "right" else VAGUE).replace(
                "{user}", unit
            )
            prompt, history = tune_prompt(engine, cache, query, learn, steps=steps, seek=seek)
            found = compare_prompt(engine, cache, prompt, learn, others)
            table = found.set_index("measure")
            row = {
                "task": name,
                "way": way,
                "n": len(others),
                "best_step": int(history["step"][history["valid"].idxmin()]),
            }
            row |= {side: table[side].to_dict() for side in SIDES}
            rows.append(row | {"gain": table.loc["auc", ["gain", "low", "high"]].to_dict()})
            held |= {
                (name, f"{way} {side}"): scores
                for side, scores in held_scores(people, found).items()
            }
            progress("tuning", len(rows), len(names) * len(ways))
    told = {"data": people.name, "users": len(people), "steps": steps, "rows": rows}
    return told | {"average": {way: _average(people, held, way, rows) for way in ways}}


def held_scores(people: Users, found: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give both sides of what `compare_prompt` found as `average_auc` takes scores: (seed, user),
    NaN for those who were tuned on.
    """
    told = {}
    for side, scores in found.attrs["scores"].items():
        values = np.full((1, len(people)), np.nan)
        values[0, pd.Index(people.ids).get_indexer(found.attrs["users"])] = scores
        told[side] = values, np.where(np.isnan(values), -1, 0)
    return told


def mean_gain(people: Users, held: dict, way: str) -> dict[str, float]:
    """Give the gain of a way over all its tasks, paired, with its 95 % interval: auc, low, high."""
    gain = average_auc(people, held, f"{way} after", minus=f"{way} before")
    return dict(zip(("auc", "low", "high"), gain, strict=True))


def _average(people: Users, held: dict, way: str, rows: list[dict]) -> dict:
    mine = [row for row in rows if row["way"] == way]
    told = {
        side: {m: float(np.mean([row[side][m] for row in mine])) for m in MEASURES}
        for side in SIDES
    }
    return told | {"gain": mean_gain(people, held, way)}
