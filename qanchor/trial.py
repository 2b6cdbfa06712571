"""A fair trial of tuning: a soft prompt learned from some users is judged on others, beside a probe on the same labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .cache import Cache
from .engine import Engine
from .labels import known_labels
from .probe import auc, bootstrap_interval, ks, linear
from .prompt import SoftPrompt
from .tuning import tune_prompt

DRAWS = 1000  # of the judged users, for an interval


def trial(
    engine: Engine, cache: Cache, query: str, labels: pd.Series, *, share: float = 0.5, seed: int = 0, **how: Any
) -> tuple[SoftPrompt, pd.DataFrame, dict]:
    """Tune a soft prompt on a share of the labelled users and judge it on all others: (prompt, history, what was found).

    labels  index user, 0, 1 or NaN (left out). The seed alone says who is tuned on, so no label of a judged user plays a part.
    how     options of `tune_prompt`, which holds its validation users out of the share.

    before and after: AUC, KS and silhouette as `judged` finds them, gain and gain_ks how much more, with 95 % intervals.
    intervals: those of the AUC before and after. prototype: the judged users' score by the prompt's own prototypes.

    Example:
        >>> users = qa.make_world(60)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> prompt, history, told = trial(engine, engine.prefill(users), "Why?", users.label("Active"), steps=10)
        >>> told["n_tuning"], told["n_test"], sorted(told["after"])
        (30, 30, ['auc', 'ks', 'silhouette'])
    """
    learn, others = parted(cache, labels, share, seed)
    began = time.perf_counter()
    prompt, history = tune_prompt(engine, cache, query, learn, seed=seed, **how)
    taken = time.perf_counter() - began
    found = judged(engine, cache, prompt, learn, others, seed)
    table = found.set_index("measure")
    told: dict = {side: table[side].to_dict() for side in ("before", "after")} | {"prototype": found.attrs["prototype"]}
    for name, measure in (("gain", "auc"), ("gain_ks", "ks")):
        told[name] = dict(zip((measure, "low", "high"), table.loc[measure, ["gain", "low", "high"]].tolist(), strict=True))
    told |= {"n_tuning": len(learn), "n_test": len(others), "positives": int(others.sum()), "seconds": taken}
    told |= {"intervals": found.attrs["intervals"], "sentence": sentence(found, cache.unit)}
    return prompt, history, told | {"best_step": int(history["step"][history["valid"].idxmin()])}


def parted(cache: Cache, labels: pd.Series, share: float, seed: int) -> tuple[pd.Series, pd.Series]:
    """Part the known labels by user: those to learn from and those to judge by, no user in both."""
    known = known_labels(cache, labels)
    learn, others = np.split(np.random.default_rng(seed).permutation(len(known)), [int(share * len(known))])
    if known.iloc[others].nunique() < 2:
        raise ValueError(f"the {len(others):,} users held out are of 1 class, 2 are needed to judge: label more users")
    return known.iloc[learn], known.iloc[others]


def judged(
    engine: Engine, cache: Cache, prompt: SoftPrompt, learn: pd.Series, others: pd.Series, seed: int = 0
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
    found = compared(z[:, 0], z[:, 1], cache.ids, learn, others, seed)
    own, y = prompt.chances(z[pd.Index(cache.ids).get_indexer(others.index), 1])[:, 1], others.to_numpy(int)
    found.attrs["prototype"] = {"auc": auc(own, y), "ks": ks(own, y)}
    return found


def compared(
    before: Float[np.ndarray, "user dim"],
    after: Float[np.ndarray, "user dim"],
    ids: Sequence[str],
    learn: pd.Series,
    others: pd.Series,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge two embeddings of the users `ids` by one probe, as `judged` does: whatever made them, both know the same labels."""
    from sklearn.metrics import silhouette_samples

    rows, y = pd.Index(ids), others.to_numpy(int)
    fit, new = rows.get_indexer(learn.index), rows.get_indexer(others.index)
    scores = [linear(z[fit], learn.to_numpy(int), z[new], seed) for z in (before, after)]
    near = [silhouette_samples(z[new], y) for z in (before, after)]
    found = [
        _paired("auc", lambda s, some: auc(s[some], y[some]), *scores, y, seed),
        _paired("ks", lambda s, some: ks(s[some], y[some]), *scores, y, seed),
        _paired("silhouette", lambda s, some: float(s[some].mean()), *near, y, seed),
    ]
    frame = pd.DataFrame(found, columns=["measure", "before", "after", "gain", "low", "high"])
    frame.attrs = {"n": len(y), "positives": int(y.sum()), "users": list(others.index)}
    sides = dict(zip(("before", "after"), scores, strict=True))
    frame.attrs["scores"] = {side: given.tolist() for side, given in sides.items()}
    aucs = {side: (lambda some, given=given: auc(given[some], y[some])) for side, given in sides.items()}
    frame.attrs["intervals"] = {side: bootstrap_interval(of, y, DRAWS, seed) for side, of in aucs.items()}
    return frame


def sentence(found: pd.DataFrame, unit: str = "user") -> str:
    """Say whether tuning gained anything beyond chance, and which AUC is no better than luck, by the frame of `judged`.

    Example:
        >>> rows = [("auc", 0.7, 0.71, 0.01, -0.02, 0.04), ("ks", 0.3, 0.4, 0.1, 0.02, 0.2)]
        >>> found = pd.DataFrame(rows, columns=["measure", "before", "after", "gain", "low", "high"])
        >>> found.attrs["n"] = 300
        >>> sentence(found)
        'On 300 users never tuned on, AUC is .700 before and .710 after: no gain beyond chance (95 %: -.020 to +.040).'
    """
    row = found.set_index("measure").loc["auc"]
    gain, low, high = (f"{row[k]:+.3f}".replace("0.", ".") for k in ("gain", "low", "high"))
    sides = [f"{row[side]:.3f} {side}".replace("0.", ".") for side in ("before", "after")]
    lucky = [low <= 0.5 for low, _ in found.attrs.get("intervals", {}).values()]
    if any(lucky) and not all(lucky):
        sides = [f"{side} (no better than luck)" if luck else side for side, luck in zip(sides, lucky, strict=True)]
    what = f"a gain of {gain[1:]}, beyond" if row["low"] > 0 else "worse, beyond" if row["high"] < 0 else "no gain beyond"
    begin = f"On {found.attrs['n']:,} {unit}s never tuned on, AUC is {' and '.join(sides)}"
    begin += ", neither better than luck" if lucky and all(lucky) else ""
    return f"{begin}: {what} chance (95 %: {low} to {high})."


def _paired(measure: str, of: Callable, before: np.ndarray, after: np.ndarray, y: Int[np.ndarray, " user"], seed: int) -> tuple:
    """Measure both sides, their difference, and its interval, each draw taking the same users for both."""
    sides = [of(side, slice(None)) for side in (before, after)]
    gap = bootstrap_interval(lambda some: of(after, some) - of(before, some), y, DRAWS, seed)
    return measure, *sides, sides[1] - sides[0], *gap
