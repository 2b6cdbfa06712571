"""Bench `frozen`: the configuration that was chosen on one cut-off of the Complete Journey, judged
at another one, with several training seeds, and on households that training has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

import qanchor as qa
from qanchor.data.complete_journey import load_complete_journey
from qanchor.training.concept_task import is_held_out
from qanchor.utils.types import StageProgress
from tests.benchmarks.earlier import earlier_labels, earlier_scores
from tests.benchmarks.engines import with_label_horizon
from tests.benchmarks.task_scores import HeldOutScores, average_auc
from tests.benchmarks.tasks import askable, label_free_scores

CUTOFFS = ("2017-10-01", "2017-08-01")  # the first is that of all other records
METHODS = ("anchor", "prior", "persistence", "earlier_logistic", "earlier_lightgbm")


def frozen(
    users=None,
    run=None,
    seeds: int = 3,
    *,
    cutoffs: Sequence[str] = CUTOFFS,
    progress: StageProgress | None = None,
) -> dict:
    """Fit a model at each cut-off with each training seed, and rank households without labels.

    users and run are not looked at.

    Args:
        seeds: Training seeds at each cut-off.
        cutoffs: Cut-offs; the labels cover the 92 days that follow.
        progress: Called with (stage, done, total).

    Returns:
        `rows`, one per cut-off and group of households ("all", or "unseen": in no training step):
        the number of households and tasks, the average AUC over the tasks of the ranking (`anchor`,
        with `low` and `high` over households, and `lowest` and `highest` seed), of its prior alone,
        of persistence, and of models fitted on the labels of earlier dates, see `earlier_scores`.
    """
    rows = []
    for cutoff in cutoffs:
        people = with_label_horizon(load_complete_journey(cutoff))
        names = askable(people)
        labels = earlier_labels(people)
        fixed = earlier_scores("minilm", people, labels, names)
        of_seeds = []
        for seed in range(seeds):
            engine = qa.Engine(qa.fit(people, seed=seed, progress=progress or False))
            cache = engine.prefill(people)
            of_seeds.append(label_free_scores(engine, cache, people, names) | fixed)
        unseen = np.array([is_held_out(user) for user in people.ids])
        for group, chosen in (("all", np.ones(len(people), bool)), ("unseen", unseen)):
            some, scores = _restricted(people, of_seeds, chosen)
            rows.append({"cutoff": cutoff, "group": group} | _judged(some, scores))
    return {"seeds": seeds, "rows": rows}


def _restricted(
    people: qa.Users, of_seeds: Sequence[HeldOutScores], chosen: np.ndarray
) -> tuple[qa.Users, list[HeldOutScores]]:
    """Return some users, and their scores for the tasks of which they have both answers."""
    some = people.select([user for user, keep in zip(people.ids, chosen, strict=True) if keep])
    names = askable(some)
    scores = [
        {
            (task, method): (score[:, chosen], folds[:, chosen])
            for (task, method), (score, folds) in of_seed.items()
            if task in names and method in METHODS
        }
        for of_seed in of_seeds
    ]
    return some, scores


def _judged(people: qa.Users, of_seeds: Sequence[HeldOutScores]) -> dict:
    """Return average AUCs: means over training seeds, and the spread of the ranking's."""
    tasks = {task for task, _ in of_seeds[0]}
    methods = {method for _, method in of_seeds[0]}
    found = pd.DataFrame(
        [
            {method: average_auc(people, scores, method)[0] for method in methods}
            for scores in of_seeds
        ]
    )
    _, low, high = average_auc(people, of_seeds[0], "anchor")
    return {
        "users": len(people),
        "tasks": len(tasks),
        **found.mean().to_dict(),
        "low": low,
        "high": high,
        "lowest": found["anchor"].min(),
        "highest": found["anchor"].max(),
    }
