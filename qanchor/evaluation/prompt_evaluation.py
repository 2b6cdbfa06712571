"""Evaluate a soft prompt on users it was not tuned on, against a probe on the same labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from qanchor.evaluation.intervals import bootstrap_interval
from qanchor.evaluation.metrics import ks_statistic, roc_auc
from qanchor.evaluation.probe import fit_linear_probe
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.prompt_tuning.labels import known_labels
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import tune_prompt
from qanchor.utils.types import EmbeddingRows, UserFloats, UserInts

TUNING_SHARE = 0.5  # share of the labelled users that a prompt is tuned on
BOOTSTRAP_DRAWS = 1000  # resamples of the test users for an interval


def evaluate_prompt(
    engine: Engine,
    cache: PrefixCache,
    query: str,
    labels: pd.Series,
    *,
    seed: int = 0,
    **how: Any,
) -> tuple[SoftPrompt, pd.DataFrame, dict]:
    """Tune a soft prompt on half of the labelled users and evaluate it on the others.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        query: The question that the labels answer.
        labels: Index user; 0, 1 or NaN (left out).
        seed: Seed of the split, the tuning and the evaluation (default 0). The split does not
            depend on the values of the labels.
        **how: Options of `tune_prompt`, which takes its validation users from the tuning half.

    Returns:
        The prompt; the history of the tuning; and a dict: `before` and `after` (AUC, KS and
        silhouette, see `compare_prompt`), `gain` and `gain_ks` with 95 % intervals, `intervals` of
        the AUC before and after, `prototype` (AUC and KS of the prompt's own prototypes),
        `comparison` (the frame of `compare_prompt`), `n_tuning`, `n_test`, `positives`, `seconds`
        and `best_step`.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> cache = engine.prefill(users)
        >>> active = users.label("Active")
        >>> prompt, history, result = evaluate_prompt(engine, cache, "Why?", active, steps=10)
        >>> result["n_tuning"], result["n_test"], sorted(result["after"])
        (30, 30, ['auc', 'ks', 'silhouette'])
    """
    learn, others = split_labels(cache, labels, TUNING_SHARE, seed)
    began = time.perf_counter()
    prompt, history = tune_prompt(engine, cache, query, learn, seed=seed, **how)
    seconds = time.perf_counter() - began
    comparison = compare_prompt(engine, cache, prompt, learn, others, seed)
    table = comparison.set_index("measure")
    gains = table[["gain", "low", "high"]]
    result = {
        "before": table["before"].to_dict(),
        "after": table["after"].to_dict(),
        "prototype": comparison.attrs["prototype"],
        "gain": gains.loc["auc"].rename({"gain": "auc"}).to_dict(),
        "gain_ks": gains.loc["ks"].rename({"gain": "ks"}).to_dict(),
        "n_tuning": len(learn),
        "n_test": len(others),
        "positives": int(others.sum()),
        "seconds": seconds,
        "intervals": comparison.attrs["intervals"],
        "comparison": comparison,
        "best_step": int(history["step"][history["valid"].idxmin()]),
    }
    return prompt, history, result


def split_labels(
    cache: PrefixCache, labels: pd.Series, share: float, seed: int
) -> tuple[pd.Series, pd.Series]:
    """Split the known labels by user, into those to tune on and those to test on.

    Args:
        cache: The users.
        labels: Index user; 0, 1 or NaN (left out).
        share: Share of the labelled users to tune on.
        seed: Seed of the split.

    Returns:
        Labels to tune on and labels to test on; no user is in both.

    Raises:
        ValueError: If the test users are all of one class.
    """
    known = known_labels(cache, labels)
    order = np.random.default_rng(seed).permutation(len(known))
    cut = int(share * len(known))
    learn = known.iloc[order[:cut]]
    others = known.iloc[order[cut:]]
    if others.nunique() < 2:
        raise ValueError(
            f"Found 1 class in the {len(others):,} test labels; 2 are required. Label more users."
        )
    return learn, others


def compare_prompt(
    engine: Engine,
    cache: PrefixCache,
    prompt: SoftPrompt,
    learn: pd.Series,
    others: pd.Series,
    seed: int = 0,
) -> pd.DataFrame:
    """Evaluate a prompt on users it was not tuned on, by AUC, KS and silhouette.

    A linear probe is fitted on `learn`, once under the typed query (before) and once under the
    prompt (after), and scores the others. So `before` is a supervised baseline on the same labels,
    and the gain is what the prompt adds to it. The prompt was tuned on labels that the second probe
    is fitted on. This inflates the fit, but not the scores of the others, which the prompt never
    saw. The silhouette measures without a probe how well the two classes of the others are
    separated.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        prompt: The soft prompt.
        learn: Labels (0 or 1) by user that the prompt may have been tuned on.
        others: Labels (0 or 1) by user that the prompt is evaluated on.
        seed: Seed of the probes and of the bootstrap (default 0).

    Returns:
        A frame `measure, before, after, gain, low, high`. The 95 % interval of the gain is a
        bootstrap interval over the others, resampled within each class. Its `attrs`: `n`,
        `positives`, `users` and `scores` (the test users and their score on each side), `intervals`
        (95 % intervals of the AUC of each side), `prototype` (AUC and KS of the prompt's own
        prototypes).
    """
    z = engine.embed(cache, [prompt.query, prompt]).astype(float)
    comparison = compare_embeddings(z[:, 0], z[:, 1], cache.ids, learn, others, seed)
    rows = pd.Index(cache.ids).get_indexer(others.index)
    probability = prompt.predict_proba(z[rows, 1])[:, 1]
    y = others.to_numpy(int)
    comparison.attrs["prototype"] = {
        "auc": roc_auc(probability, y),
        "ks": ks_statistic(probability, y),
    }
    return comparison


def compare_embeddings(
    before: EmbeddingRows,
    after: EmbeddingRows,
    ids: Sequence[str],
    learn: pd.Series,
    others: pd.Series,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare two embeddings of the same users with a probe on the same labels.

    Args:
        before: The first embedding of each user.
        after: The second embedding of each user.
        ids: Ids of the users, in the order of the rows.
        learn: Labels (0 or 1) by user that the probes are fitted on.
        others: Labels (0 or 1) by user that the embeddings are evaluated on.
        seed: Seed of the probes and of the bootstrap (default 0).

    Returns:
        The frame of `compare_prompt`, without `attrs["prototype"]`.
    """
    from sklearn.metrics import silhouette_samples

    index = pd.Index(ids)
    fit = index.get_indexer(learn.index)
    new = index.get_indexer(others.index)
    y = others.to_numpy(int)
    embeddings = {"before": before, "after": after}
    scores = {}
    silhouettes = {}
    intervals = {}
    for side, z in embeddings.items():
        scores[side] = fit_linear_probe(z[fit], learn.to_numpy(int), z[new], seed)
        silhouettes[side] = silhouette_samples(z[new], y)
        auc = partial(_auc, scores[side], y)
        intervals[side] = bootstrap_interval(auc, y, BOOTSTRAP_DRAWS, seed)
    rows = [
        {"measure": "auc"} | _gain(roc_auc, scores, y, seed),
        {"measure": "ks"} | _gain(ks_statistic, scores, y, seed),
        {"measure": "silhouette"} | _gain(_mean, silhouettes, y, seed),
    ]
    frame = pd.DataFrame(rows)
    frame.attrs = {
        "n": len(y),
        "positives": int(y.sum()),
        "users": list(others.index),
        "scores": {side: score.tolist() for side, score in scores.items()},
        "intervals": intervals,
    }
    return frame


def _auc(scores: UserFloats, y: UserInts, rows: UserInts) -> float:
    return roc_auc(scores[rows], y[rows])


def _mean(values: UserFloats, y: UserInts) -> float:
    return float(values.mean())


def _gain(measure: Callable, values: dict[str, UserFloats], y: UserInts, seed: int) -> dict:
    """Measure both sides and their difference, with a paired bootstrap interval."""
    before = values["before"]
    after = values["after"]

    def gain(rows: UserInts) -> float:
        return measure(after[rows], y[rows]) - measure(before[rows], y[rows])

    low, high = bootstrap_interval(gain, y, BOOTSTRAP_DRAWS, seed)
    row = {"before": measure(before, y), "after": measure(after, y)}
    return row | {"gain": row["after"] - row["before"], "low": low, "high": high}
