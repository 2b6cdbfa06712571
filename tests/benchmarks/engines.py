"""The model that a benchmark judges: of a run, or fitted to the users at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import qanchor as qa
from qanchor.data.complete_journey import LABEL_DAYS
from qanchor.utils.types import StageProgress


def open_engine(
    run: Path | None, users: qa.Users, progress: StageProgress | None = None
) -> qa.Engine:
    """Return an engine of a run; without one, of a model fitted to these users.

    Args:
        run: Folder of the run.
        users: The users, for the model that is fitted.
        progress: Called with (stage, done, total) while it is fitted.
    """
    return qa.Engine(
        qa.QAnchor.from_pretrained(run) if run else qa.fit(users, progress=progress or False)
    )


def with_label_horizon(users: qa.Users) -> qa.Users:
    """Return users whose questions look as many days ahead as their labels do."""
    return replace(users, horizon_days=LABEL_DAYS) if users.name == "journey" else users


def rank_scores(engine: qa.Engine, cache: qa.PrefixCache, query: str) -> np.ndarray | None:
    """Return a score for each user, in the order of `cache.ids`, without labels.

    Args:
        engine: Serves the model.
        cache: From its `prefill`.
        query: The question.

    Returns:
        Scores; None if nothing in the data speaks of the question.
    """
    ranking = engine.rank(cache, query)
    if not ranking.attrs["answerable"]:
        return None
    return ranking.set_index("user")["score"].loc[list(cache.ids)].to_numpy(float)


def shuffled_rows(users: int, seed: int = 0) -> np.ndarray:
    """Return the row of another user for every user, each row once.

    Args:
        users: Number of users.
        seed: Seed of the permutation. Default: 0.
    """
    order = np.random.default_rng(seed).permutation(users)
    rows = np.empty(users, int)
    rows[order] = np.roll(order, 1)  # one cycle: nobody keeps the own row
    return rows
