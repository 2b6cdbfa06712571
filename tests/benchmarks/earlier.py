"""Baselines that are fitted at earlier cut-offs, as the shipped models are: no label of the judged
window is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec

import numpy as np
import pandas as pd

from qanchor.data.complete_journey import LABEL_DAYS, load_complete_journey
from qanchor.data.users import Users
from qanchor.evaluation.probe import fit_linear_probe
from qanchor.models.user_tokens import TokenReader
from tests.benchmarks.baselines import fit_boosted_trees, token_features
from tests.benchmarks.task_scores import DOMAINS, HeldOutScores

# Days that labels look ahead, times so many: the last window ends where the judged one begins.
HORIZONS_BEFORE = (1, 4 / 3, 5 / 3, 2)
FIRST_CUTOFF = pd.Timestamp("2017-02-01")  # earlier ones have hardly any history


def earlier_labels(users: Users) -> dict[pd.Timestamp, pd.DataFrame]:
    """Compute the users' labels at earlier cut-offs.

    Only the Complete Journey has them. Labels of the sample world are drawn for its own cut-off,
    and its events show the draws of other months only in part, under names that the generator
    knows and the users' tables do not.

    Args:
        users: Users.

    Returns:
        Labels by cut-off, in the order of `users.ids`; NaN for users without a label there. Empty
        if the data set has none.
    """
    labels: dict[pd.Timestamp, pd.DataFrame] = {}
    if users.name != "journey":
        return labels
    for horizons in HORIZONS_BEFORE:
        cutoff = (users.cutoff - pd.Timedelta(days=horizons * LABEL_DAYS)).floor("D")
        if cutoff >= FIRST_CUTOFF:
            labels[cutoff] = load_complete_journey(cutoff).labels.reindex(list(users.ids))
    return labels


def earlier_scores(
    encoder: str,
    users: Users,
    labels: Mapping[pd.Timestamp, pd.DataFrame],
    tasks: Iterable[str],
) -> HeldOutScores:
    """Score the users at their cut-off by models that were fitted at earlier ones.

    Args:
        encoder: Text encoder of the tokens whose numbers are the features, see `token_features`.
            They are standardized within each cut-off, since histories grow.
        users: Users to score.
        labels: From `earlier_labels`.
        tasks: Labels. Those about the profile are left out: they are the same at every cut-off.

    Returns:
        Scores and fold numbers, both (1, user), by (task, method); the methods are
        earlier_logistic and, if installed, earlier_lightgbm.
    """
    if not labels:
        return {}
    reader = TokenReader(users, encoder)
    before = [reader.read(cutoff) for cutoff in labels]
    features = token_features(*before, reader.read())
    known = [
        table.loc[list(tokens.ids)] for table, tokens in zip(labels.values(), before, strict=True)
    ]
    fits: dict[str, Callable] = {"logistic": fit_linear_probe}
    if find_spec("lightgbm"):
        fits["lightgbm"] = fit_boosted_trees
    scores = {}
    for task in tasks:
        if DOMAINS.get(task, "profile") == "profile":
            continue
        for method, fit in fits.items():
            *past, now = (_standardized(table) for table in features[method])
            y = np.concatenate([table[task].to_numpy() for table in known])
            is_known = ~np.isnan(y)
            x = np.concatenate(past)[is_known]
            score = fit(x, y[is_known].astype(int), now, 0)
            scores[task, f"earlier_{method}"] = score[None], np.zeros((1, len(users)), int)
    return scores


def _standardized(x: np.ndarray) -> np.ndarray:
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
