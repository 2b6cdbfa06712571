"""The ledger of attention: what was found of single users becomes one tidy frame, one number, and a sentence in plain words."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

APART = 2  # places by which a modality's two ranks must differ to be marked
ALL = -1  # as a layer or head group: the mean of all
FEWEST = 3  # modalities that can be ranked
MEASURES = ("weight", "per_token")
COLUMNS = ["query", "layer", "head_group", "modality", "kind", "slots", "weight", "per_token", "deletion_effect", "gradient"]
COLUMNS += ["disagrees", "disagrees_per_token", "agreement", "agreement_per_token"]
VERDICTS = ((0.8, "they tell the same"), (0.5, "they partly agree"), (0.2, "poor"), (-0.2, "they do not agree"))


@dataclass(frozen=True)
class Look:
    """Hold what was found of one user and query; place 0 of layers and head groups is the mean of all."""

    weight: Float[np.ndarray, "layer head_group row"]
    slots: Float[np.ndarray, " row"]
    anchor: Float[np.ndarray, " dim"]
    effect: Float[np.ndarray, " row"]  # NaN: not deleted, or nothing there to delete
    gradient: Float[np.ndarray, " row"]

    def by(self, measure: str) -> Float[np.ndarray, "layer head_group row"]:
        """Give the weight of each row, or of one of its slots."""
        return self.weight if measure == "weight" else self.weight / np.maximum(self.slots, 1)


def ledger_frame(query: str, looks: Sequence[Look], names: Sequence[str], modalities: Collection[str]) -> pd.DataFrame:
    """Average what was found of users under one query into the ledger: one row a layer, head_group and row of attention.

    names   of the rows; modalities: those that can be deleted. The columns are told by `Looker`.

    Example:
        >>> one = Look(np.full((1, 1, 2), 0.5), np.array([1.0, 5]), np.ones(1), np.array([0.2, np.nan]), np.full(2, np.nan))
        >>> ledger_frame("Why?", [one], ["bill", "sink"], ["bill"])[["modality", "weight", "per_token", "deletion_effect"]]
          modality  weight  per_token  deletion_effect
        0     bill     0.5        0.5              0.2
        1     sink     0.5        0.1              NaN
    """
    weight, slots = np.mean([look.weight for look in looks], axis=0), np.mean([look.slots for look in looks], axis=0)
    effects = np.array([look.effect for look in looks])
    effect, gradient = _mean_of_known(effects), _mean_of_known(np.array([look.gradient for look in looks]))
    layers, groups, rows = weight.shape
    index = [range(ALL, layers - 1), range(ALL, groups - 1), names]
    frame = pd.DataFrame(index=pd.MultiIndex.from_product(index, names=["layer", "head_group", "modality"])).reset_index()
    each = {"slots": slots, "deletion_effect": effect, "gradient": gradient}
    frame = frame.assign(query=query, **{name: np.tile(values, layers * groups) for name, values in each.items()})
    frame["kind"] = np.where(frame["modality"].isin(list(modalities)), "modality", "other")
    for measure, after in zip(MEASURES, ("", "_per_token"), strict=True):
        values = weight if measure == "weight" else weight / np.maximum(slots, 1e-9)
        frame[measure] = values.ravel()
        frame[f"disagrees{after}"] = disagrees(values, effect).ravel()
        cubes = np.array([look.by(measure) for look in looks]).reshape(len(looks), -1, rows)
        frame[f"agreement{after}"] = np.repeat(rank_agreement(cubes, effects), rows)
    return frame[frame["slots"] > 0][COLUMNS].reset_index(drop=True)


def disagrees(values: Float[np.ndarray, "... row"], effect: Float[np.ndarray, " row"]) -> np.ndarray:
    """Mark the rows whose place by value and whose place by deletion effect are two or more apart.

    Places are counted among the rows with an effect; fewer than three have no places.

    Example:
        >>> disagrees(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.9]))
        array([ True, False,  True])
    """
    known = np.isfinite(effect)
    if known.sum() < FEWEST:
        return np.zeros(values.shape, bool)
    by_value, by_effect = (_ranks(np.where(known, v, np.nan)) for v in (values, effect))
    return np.abs(by_value - by_effect) >= APART  # NaN is not


def rank_agreement(
    values: Float[np.ndarray, "user cell row"], effects: Float[np.ndarray, "user row"]
) -> Float[np.ndarray, " cell"]:
    """Correlate the ranks of values and effects over each user's rows with an effect, and average over users.

    Users with fewer than three such rows, or with all alike, are left out; NaN where nobody is left.

    Example:
        >>> rank_agreement(np.array([[[0.5, 0.3, 0.2]], [[0.5, 0.3, 0.2]]]), np.array([[3.0, 2, 1], [1, 2, 3]]))
        array([0.])
    """
    effects = np.where((np.isfinite(effects).sum(1) >= FEWEST)[:, None], effects, np.nan)[:, None]
    ranks = [_ranks(np.where(np.isfinite(effects), v, np.nan)) for v in (values, np.broadcast_to(effects, values.shape))]
    a, b = (r - _mean_of_known(r, -1, keepdims=True) for r in ranks)
    size = np.sqrt(np.nansum(a**2, -1) * np.nansum(b**2, -1))
    return _mean_of_known(np.where(size > 0, np.nansum(a * b, -1) / np.where(size > 0, size, 1), np.nan))


def sentence(frame: pd.DataFrame, whom: str = "users") -> str:
    """Say what a ledger shows: where most attention goes, which deletion moves users most, and whether the two agree."""
    whole = frame[(frame["layer"] == ALL) & (frame["head_group"] == ALL)]
    first, *second = (whole[whole["query"] == query].set_index("modality") for query in dict.fromkeys(whole["query"]))
    looked = first[first["kind"] == "modality"]
    if looked.empty:
        return "There is no modality to look at."
    most = looked["weight"].idxmax()
    told = f"Of all modalities, {most} gets most attention ({_percent(looked['weight'][most])})"
    if looked["deletion_effect"].notna().any():
        moves = looked["deletion_effect"].idxmax()
        told += f"; deleting {moves} moves {whom} farthest ({looked['deletion_effect'][moves]:.2g}). "
        told += _agreement(first["agreement"].iloc[0])
    else:
        told += "."
    return told + (_against(first, second[0]) if second else "")


def _agreement(rank: float) -> str:
    if np.isnan(rank):
        return "Too few modalities to say whether attention tells what deletion shows."
    verdict = next((words for least, words in VERDICTS if rank >= least), "they contradict each other")
    told = f"Rank agreement of attention and deletion: {rank:.2f} (1 is the same order, 0 none): {verdict}"
    told = told.replace(": -", ": −")
    return told + ("." if rank >= VERDICTS[0][0] else "; do not read attention as importance.")


def _against(first: pd.DataFrame, second: pd.DataFrame) -> str:
    apart = (first["weight"] - second["weight"]).dropna()[lambda d: d.index.isin(first.index[first["kind"] == "modality"])]
    up, down = apart.idxmax(), apart.idxmin()
    return f" Against the other query, {up} gains most ({_points(apart[up])}) and {down} loses most ({_points(apart[down])})."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points".replace("-", "−")


def _ranks(values: np.ndarray) -> np.ndarray:
    flat = pd.DataFrame(values.reshape(-1, values.shape[-1])).rank(axis=1)
    return flat.to_numpy().reshape(values.shape)


def _mean_of_known(values: np.ndarray, axis: int = 0, keepdims: bool = False) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing, the mean is NaN
        return np.nanmean(values, axis=axis, keepdims=keepdims)
