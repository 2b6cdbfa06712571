"""Bench `replay`: whom each way of scoring would have chosen at the cut-off, what they did; and
what a campaign changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from tests.benchmarks.baselines import baseline_features
from tests.benchmarks.engines import open_engine, rank_scores, with_label_horizon
from tests.benchmarks.replay_math import replay as replayed
from tests.benchmarks.replay_math import sample_size, weighted_effect
from tests.benchmarks.task_scores import cross_validate_tasks, task_query

DAYS = 92  # after the cut-off, and as many before it for the placebo
TOP = 0.1


def replay(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 2,
    *,
    task: str = "redeem",
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Choose users at the cut-off by several scores, each made without their own labels, and see
    what the chosen did.

    arms     rfm (the first: the others are compared with it), lightgbm, anchor (a linear probe
             under the task's own question) and zero_shot (the question alone: no label was ever
             looked at). Without a run, the model is fitted to the users.
    Rows as `replay_math.replay` gives them; live: users in each arm of a live test that could
    tell the best tenths of
    anchor and rfm apart. campaign (data with such a modality): what receiving one in the 92 days
    after the cut-off changed in spending, dollars a household, with the placebo of the 92 days
    before beside it (`weighted_effect`).
    """
    people = with_label_horizon(users())
    if task not in people.labels:
        raise ValueError(
            f"{people.name} has no label {task!r} (it has {', '.join(people.labels)}): give "
            "--data journey"
        )
    features = {
        name: x for name, x in baseline_features(people).items() if name in ("rfm", "lightgbm")
    }
    label = people.label(task)
    engine = open_engine(run, people, progress)
    cache = engine.prefill(people)
    query = task_query(task, people.unit)
    features["anchor"] = engine.embed(cache, query)
    ranking = rank_scores(engine, cache, query)
    held = cross_validate_tasks(
        people, features, [task], seeds=seeds, progress=partial(progress, "probes")
    )
    scores = {name: held[task, name][0].mean(0) for name in features}
    scores |= {} if ranking is None else {"zero_shot": ranking}
    frame = replayed(pd.DataFrame(scores, index=list(people.ids)), label)
    told = {"data": people.name, "users": len(people), "task": task, "rate": float(label.mean())}
    told["rows"] = frame.to_dict("records")
    best = frame[frame["top"] == TOP].set_index("arm")["rate"]
    if "anchor" in best and 0 < best["rfm"] != best["anchor"] < 1:
        told["live"] = sample_size(best["rfm"], best["anchor"])
    return told | ({"campaign": _campaign(people)} if "campaign" in people.modalities else {})


def _campaign(people: Users) -> dict:
    """Compare those who received a campaign with others like them: after it, and before it, when
    nothing can have changed.
    """
    start, days = people.cutoff, pd.Timedelta(days=DAYS)
    sent = np.isin(list(people.ids), _between(people, start, start + days, "campaign")["user"])
    then = Users.from_events(
        people.events, start - days, modalities=people.modalities, unit=people.unit
    )
    rows = {"effect": (people, start), "placebo": (then, start - days)}
    told: dict = {"received": int(sent.sum()), "others": int((~sent).sum())}
    for name, (seen, since) in rows.items():
        ids = pd.Index(people.ids)
        spent = (
            _between(people, since, since + days, "basket")
            .groupby("user", observed=False)["amount"]
            .sum()
            .reindex(ids)
        )
        facts = (
            pd.DataFrame(baseline_features(seen)["rfm_svd"], list(seen.ids))
            .reindex(ids)
            .fillna(0.0)
        )
        told[name] = weighted_effect(spent.fillna(0.0), sent, facts)
    return told


def _between(people: Users, start: pd.Timestamp, end: pd.Timestamp, modality: str) -> pd.DataFrame:
    events = people.events
    return events[
        (events["modality"] == modality) & (events["time"] >= start) & (events["time"] < end)
    ]
