"""Bench `fairness`: what a probe reads of who people are, by question, though it was never told;
and whom scores favour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.export import MIN_GROUP_SIZE
from qanchor.data.sample import sample_ground_truth
from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.models.text_encoder import text_vectors
from tests.benchmarks.baselines import baseline_features
from tests.benchmarks.datasets import load_demographics
from tests.benchmarks.engines import open_engine, rank_scores, with_label_horizon
from tests.benchmarks.task_scores import QUERIES, average_auc, cross_validate_tasks, task_frame
from tests.benchmarks.tasks import GENERIC

BEST = 0.2  # the share of users that a score chooses
DRAWS = 500
MEASURES = ("selected", "found", "auc", "excess")
PLAIN = ("rfm", "rfm_svd", "minilm", "rfm_svd_minilm")
# what was never an input, and the question about it
ASKED = {
    "journey": {name: QUERIES[name] for name in ("age55", "high_income")}
    | {
        "married": "Is this {user} a married couple?",
        "children": "Are there children in this {user}?",
    },
    "world": {"wealth": "Is this {user} wealthy?", "family": "Does this {user} have a family?"}
    | {"health": "Does this {user} care for their health?"},
    "movielens": {name: QUERIES[name] for name in ("female", "age35")},
}
SCORED = {"journey": ("redeem", "spend_drop"), "world": ("Money", "Promo"), "movielens": ()}


def fairness(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 5,
    *,
    most: int = 800,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Probe embeddings for who people are, which was never an input; and compare what a task's
    scores do to both groups.

    Without a run, a model is fitted. At most `most` of the users of whom anything is known. rows:
    AUC of each attribute from the embeddings under each question (itself: the one about the
    attribute; nothing; generic; a task's) and, by the same probe, from plain baselines; "average"
    is over the attributes. minus: the average above that of `rfm_svd_minilm`, paired. groups: by
    task, arm (anchor and rfm: probes; zero_shot: no label) and attribute, for [without, with] it:
    n, rate, and of the best
    fifth: selected (share of the group that is chosen) and found (share of its positives); auc
    within the group; excess (mean probability minus rate). gap: with minus without, [value, low,
    high], 95 %. None: fewer than LEAST users would tell it.
    """
    people = with_label_horizon(users())
    if people.name not in ASKED:
        raise ValueError(f"bench fairness: data {people.name!r}: give --data {', '.join(ASKED)}")
    engine = open_engine(run, people, progress)
    hidden = attributes(people)
    people = people.select(hidden.dropna(how="all").index).sample(most)
    hidden = hidden.loc[list(people.ids)]
    tasks = [task for task in SCORED[people.name] if task in people.labels]
    asked = (
        {"nothing": "", "generic": GENERIC}
        | ASKED[people.name]
        | {task: QUERIES[task] for task in tasks}
    )
    asked = {name: query.replace("{user}", people.unit) for name, query in asked.items()}
    cache = engine.prefill(people)
    anchors = engine.embed(cache, list(asked.values()), partial(progress, f"asking {len(asked)}"))
    under = {name: anchors[:, place] for place, name in enumerate(asked)}
    vectors = text_vectors(
        list(people.events["text"].cat.categories), engine.model.config.text_encoder
    )
    plain = {name: x for name, x in baseline_features(people, vectors).items() if name in PLAIN}
    sources = (
        {"itself": under.get}
        | {name: under[name] for name in ("nothing", "generic", *tasks)}
        | plain
    )
    labelled = replace(people, labels=hidden)
    held = cross_validate_tasks(
        labelled, sources, seeds=seeds, progress=partial(progress, "probes")
    )
    rows = (
        task_frame(labelled, held)
        .drop(columns="domain")
        .rename(columns={"task": "attribute", "method": "source"})
    )
    minus = {
        name: average_auc(labelled, held, name, minus="rfm_svd_minilm")
        for name in sources
        if name not in plain
    }
    groups = []
    for task in tasks:
        scores, label = (
            cross_validate_tasks(
                people, {"anchor": under[task], "rfm": plain["rfm"]}, [task], seeds=seeds
            ),
            people.label(task),
        )
        arms = {arm: score.mean(0) for (_, arm), (score, _) in scores.items()}
        ranking = rank_scores(engine, cache, asked[task])
        arms |= {} if ranking is None else {"zero_shot": ranking}
        for arm, score in arms.items():
            told = [compare(score, label, hidden[name], arm != "zero_shot") for name in hidden]
            groups += [
                {"task": task, "arm": arm, "attribute": n, **t}
                for n, t in zip(hidden, told, strict=True)
            ]
    told = {
        "data": people.name,
        "users": len(people),
        "asked": asked,
        "rows": rows.to_dict("records"),
    }
    spans = {
        name: dict(zip(("auc", "low", "high"), span, strict=True)) for name, span in minus.items()
    }
    return _rounded(told | {"minus": spans, "groups": groups})


def attributes(people: Users) -> pd.DataFrame:
    """Give who each user is, 0 or 1 (NaN: unknown), which no model was told; of the sample world,
    traits above the median.
    """
    names = list(ASKED[people.name])
    if people.name == "journey":
        return people.labels.join(load_demographics())[names]
    if people.name == "world":
        truth = sample_ground_truth(max(int(i.removeprefix("u")) for i in people.ids) + 1).loc[
            list(people.ids)
        ]
        traits = truth[[f"trait.{name}" for name in names]].set_axis(names, axis=1)
        return (traits > traits.median()).astype(float)
    return people.labels[names]


def compare(
    score: np.ndarray, label: pd.Series, group: pd.Series, probability: bool = True, seed: int = 0
) -> dict:
    """Compare what one score does in a group and outside it: lists [outside, inside], and `gap`
    with its interval.

    score (user,), log-odds if `probability`; label and group 0, 1 or NaN (left out).
    """
    known = ~np.isnan(score) & label.notna().to_numpy() & group.notna().to_numpy()
    score, y, inside = score[known], label.to_numpy()[known], group.to_numpy()[known]
    chosen = np.zeros(len(y))
    chosen[np.argsort(-score, kind="stable")[: round(BEST * len(y))]] = 1
    chance = 1 / (1 + np.exp(-score)) if probability else np.full(len(y), np.nan)
    rng, sides = np.random.default_rng(seed), [np.flatnonzero(inside == side) for side in (0, 1)]

    def measured(rows: np.ndarray) -> list[float]:
        positive = y[rows].sum()
        both = 0 < positive < len(rows)
        found = chosen[rows] @ y[rows] / positive if positive else np.nan
        ranked = roc_auc(score[rows], y[rows]) if both else np.nan
        return [chosen[rows].mean(), found, ranked, (chance[rows] - y[rows]).mean()]

    values, draws = np.full((2, 4), np.nan), np.full((2, DRAWS, 4), np.nan)
    for side, rows in enumerate(sides):
        if len(rows) >= MIN_GROUP_SIZE:
            values[side] = measured(rows)
            draws[side] = [measured(rng.choice(rows, len(rows))) for _ in range(DRAWS)]
            if min(y[rows].sum(), (1 - y[rows]).sum()) < MIN_GROUP_SIZE:
                values[side, 1:3] = np.nan
    told = {
        "n": [len(rows) for rows in sides],
        "rate": [y[rows].mean() if len(rows) >= MIN_GROUP_SIZE else np.nan for rows in sides],
    }
    told |= {name: values[:, place].tolist() for place, name in enumerate(MEASURES)}
    gap = {}
    for place, name in enumerate(MEASURES):
        value = values[1, place] - values[0, place]
        spread = draws[1, :, place] - draws[0, :, place]
        gap[name] = [value, *np.nanquantile(spread, (0.025, 0.975))] if np.isfinite(value) else None
    return told | {"gap": gap}


def _rounded(told):
    """Keep four places; what is not known is null in JSON."""
    if isinstance(told, dict):
        return {name: _rounded(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_rounded(value) for value in told]
    return (
        (round(float(told), 4) if np.isfinite(told) else None) if isinstance(told, float) else told
    )
