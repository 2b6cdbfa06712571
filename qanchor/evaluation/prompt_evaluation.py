"""A fair trial of tuning: a soft prompt learned from some users is judged on others, beside a probe on the same labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qanchor.evaluation.intervals import bootstrap_interval
from qanchor.evaluation.metrics import ks_statistic, roc_auc
from qanchor.evaluation.probe import fit_linear_probe
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.prompt_tuning.labels import known_labels
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import tune_prompt
from qanchor.workbench.messages import prompt_summary

BOOTSTRAP_DRAWS = 1000  # of the judged users, for an interval


def evaluate_prompt(
    engine: Engine, cache: PrefixCache, query: str, labels: pd.Series, *, share: float = 0.5, seed: int = 0, **how: Any
) -> tuple[SoftPrompt, pd.DataFrame, dict]:
    """Tune a soft prompt on a share of the labelled users and judge it on all others: (prompt, history, what was found).

    labels  index user, 0, 1 or NaN (left out). The seed alone says who is tuned on, so no label of a judged user plays a part.
    how     options of `tune_prompt`, which holds its validation users out of the share.

    before and after: AUC, KS and silhouette as `compare_prompt` finds them, gain and gain_ks how much more, with 95 % intervals.
    intervals: those of the AUC before and after. prototype: the judged users' score by the prompt's own prototypes.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> prompt, history, told = evaluate_prompt(engine, engine.prefill(users), "Why?", users.label("Active"), steps=10)
        >>> told["n_tuning"], told["n_test"], sorted(told["after"])
        (30, 30, ['auc', 'ks', 'silhouette'])
    """
    learn, others = split_labels(cache, labels, share, seed)
    began = time.perf_counter()
    prompt, history = tune_prompt(engine, cache, query, learn, seed=seed, **how)
    taken = time.perf_counter() - began
    found = compare_prompt(engine, cache, prompt, learn, others, seed)
    table = found.set_index("measure")
    told: dict = {side: table[side].to_dict() for side in ("before", "after")} | {"prototype": found.attrs["prototype"]}
    for name, measure in (("gain", "auc"), ("gain_ks", "ks")):
        told[name] = dict(zip((measure, "low", "high"), table.loc[measure, ["gain", "low", "high"]].tolist(), strict=True))
    told |= {"n_tuning": len(learn), "n_test": len(others), "positives": int(others.sum()), "seconds": taken}
    told |= {"intervals": found.attrs["intervals"], "sentence": prompt_summary(found, cache.unit)}
    return prompt, history, told | {"best_step": int(history["step"][history["valid"].idxmin()])}


def split_labels(cache: PrefixCache, labels: pd.Series, share: float, seed: int) -> tuple[pd.Series, pd.Series]:
    """Part the known labels by user: those to learn from and those to judge by, no user in both."""
    known = known_labels(cache, labels)
    learn, others = np.split(np.random.default_rng(seed).permutation(len(known)), [int(share * len(known))])
    if known.iloc[others].nunique() < 2:
        raise ValueError(f"the {len(others):,} users held out are of 1 class, 2 are needed to judge: label more users")
    return known.iloc[learn], known.iloc[others]


def compare_prompt(
    engine: Engine, cache: PrefixCache, prompt: SoftPrompt, learn: pd.Series, others: pd.Series, seed: int = 0
) -> pd.DataFrame:
    """Judge a prompt on users it never saw: `measure, before, after, gain, low, high` for auc, ks and silhouette.

    learn, others   labels by user (0 or 1): those that the prompt may have been tuned on, and those it is judged by.

    before and after have one judge: the linear probe, fitted on `learn` under the typed query and under the prompt, scores the
    others. So before is a supervised head on the same labels, and the gain what the prompt adds to it. That the prompt has
    seen the labels which the second probe is fitted on flatters that fit, not the score of users it never saw. silhouette: how
    much nearer the others stand to their own class, without any probe. low, high: 95 % of the gain, the others drawn anew
    within each class (the silhouette of each as it is among all). attrs: `prototype`, scores by the prompt's own prototypes;
    `users` and `scores`, who was judged and how highly on each side; `intervals`, 95 % of the AUC of each side.
    """
    z = engine.embed(cache, [prompt.query, prompt]).astype(float)
    found = compare_embeddings(z[:, 0], z[:, 1], cache.ids, learn, others, seed)
    own, y = prompt.predict_proba(z[pd.Index(cache.ids).get_indexer(others.index), 1])[:, 1], others.to_numpy(int)
    found.attrs["prototype"] = {"auc": roc_auc(own, y), "ks": ks_statistic(own, y)}
    return found


def compare_embeddings(
    before: Float[np.ndarray, "user dim"],
    after: Float[np.ndarray, "user dim"],
    ids: Sequence[str],
    learn: pd.Series,
    others: pd.Series,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge two embeddings of the users `ids` by one probe, as `compare_prompt` does: whatever made them, both know the same labels."""
    from sklearn.metrics import silhouette_samples

    rows, y = pd.Index(ids), others.to_numpy(int)
    fit, new = rows.get_indexer(learn.index), rows.get_indexer(others.index)
    scores = [fit_linear_probe(z[fit], learn.to_numpy(int), z[new], seed) for z in (before, after)]
    near = [silhouette_samples(z[new], y) for z in (before, after)]
    found = [
        _paired_gain("auc", lambda s, some: roc_auc(s[some], y[some]), *scores, y, seed),
        _paired_gain("ks", lambda s, some: ks_statistic(s[some], y[some]), *scores, y, seed),
        _paired_gain("silhouette", lambda s, some: float(s[some].mean()), *near, y, seed),
    ]
    frame = pd.DataFrame(found, columns=["measure", "before", "after", "gain", "low", "high"])
    frame.attrs = {"n": len(y), "positives": int(y.sum()), "users": list(others.index)}
    sides = dict(zip(("before", "after"), scores, strict=True))
    frame.attrs["scores"] = {side: given.tolist() for side, given in sides.items()}
    aucs = {side: (lambda some, given=given: roc_auc(given[some], y[some])) for side, given in sides.items()}
    frame.attrs["intervals"] = {side: bootstrap_interval(of, y, BOOTSTRAP_DRAWS, seed) for side, of in aucs.items()}
    return frame


def _paired_gain(
    measure: str, of: Callable, before: np.ndarray, after: np.ndarray, y: Int[np.ndarray, " user"], seed: int
) -> tuple:
    """Measure both sides, their difference, and its interval, each draw taking the same users for both."""
    sides = [of(side, slice(None)) for side in (before, after)]
    gap = bootstrap_interval(lambda some: of(after, some) - of(before, some), y, BOOTSTRAP_DRAWS, seed)
    return measure, *sides, sides[1] - sides[0], *gap
