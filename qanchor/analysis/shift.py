"""Who moved when the question changed: alignment, residuals, a noise floor, and one joint map to look at.

A shift is measured in the original space and only drawn on the map. Two maps fitted apart make still users seem to move;
one joint fit of both queries' rows does not, so a joint fit is the only one offered.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.neighbors import NearestNeighbors

from qanchor.utils.arrays import l2_normalize

EmbeddingRows = Float[np.ndarray, "user dim"]
N_NEIGHBORS = 15
MAX_LISTED_NEIGHBORS = 5  # gained and lost neighbours named in the shift frame
MAX_EXACT_USERS = (
    20_000  # users beyond whom neighbours are found by an index, trust is estimated, and the map is a PCA unless one says so
)


def align(before: EmbeddingRows, after: EmbeddingRows) -> tuple[EmbeddingRows, float]:
    """Lay `after` over `before` by the one rotation and offset that all users share.

    Orthogonal Procrustes in the original space. Returns the aligned rows and how far the common motion had carried
    the users (root mean square, in the rows' own units: 0 is nothing, unit rows give at most 2).
    With fewer users than dimensions the rotation can explain anything: ask of several users a dimension.

    Example:
        >>> before = np.eye(3)
        >>> aligned, removed = align(before, before[:, ::-1])  # axes swapped: a rotation
        >>> bool(np.allclose(aligned, before)), removed > 0.5
        (True, True)
    """
    aligned = _align_rows(before, after, after)
    return aligned, float(np.sqrt(((aligned - after) ** 2).sum(axis=1).mean()))


def residual_shift(before: EmbeddingRows, after: EmbeddingRows) -> Float[np.ndarray, " user"]:
    """Measure how far each user moved, the common rotation and offset taken out.

    Example:
        >>> bool(residual_shift(np.eye(3), np.eye(3)[:, ::-1]).max() < 1e-9)  # a rotation is not a shift
        True
    """
    return np.linalg.norm(align(before, after)[0] - before, axis=1)


def noise_floor(base: EmbeddingRows, paraphrases: list[EmbeddingRows], share: float = 0.95) -> float:
    """Give the residual that rewording alone stays under: for `share` of users, in every one of the paraphrases.

    The largest residual over the paraphrases is taken per user, then the quantile over users: with five of them a
    sixth rewording lifts about 1 user in 100 beyond the floor.
    """
    if not len(paraphrases):
        raise ValueError("a noise floor needs at least 1 paraphrase, got 0: embed the same query in other words")
    worst = np.max([residual_shift(base, rows) for rows in paraphrases], axis=0)
    return float(np.quantile(worst, share))


def knn_indices(rows: EmbeddingRows, k: int = N_NEIGHBORS) -> Int[np.ndarray, "user k"]:
    """Name each user's `k` nearest others by row number, nearest first; of more than `MAX_EXACT_USERS`, nearly so (pynndescent)."""
    k = min(k, len(rows) - 1)
    if len(rows) > MAX_EXACT_USERS:
        from pynndescent import NNDescent  # compiles, as umap does

        found = NNDescent(np.asarray(rows, np.float32), n_neighbors=k + 1, random_state=0).neighbor_graph[0]
        own = found == np.arange(len(rows))[:, None]
        own[~own.any(axis=1), -1] = True  # among twins a row may miss itself: then the farthest goes
        return found[~own].reshape(len(rows), k)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(return_distance=False)


def neighbors_kept(before: EmbeddingRows, after: EmbeddingRows, k: int = N_NEIGHBORS) -> Float[np.ndarray, " user"]:
    """Tell what share of its `k` nearest neighbours each user kept (1: all, 0: none)."""
    _same_users(before, after)
    return _in_both(knn_indices(before, k), knn_indices(after, k)).mean(axis=1)


def neighbors_changed(before: EmbeddingRows, after: EmbeddingRows, ids, k: int = N_NEIGHBORS) -> pd.DataFrame:
    """Name the neighbours each user gained and lost, nearest first: columns `user, neighbours_kept, gained, lost`."""
    _same_users(before, after)
    ids = np.asarray(ids, dtype=object)
    old, new = knn_indices(before, k), knn_indices(after, k)
    kept, stayed = _in_both(old, new), _in_both(new, old)
    return pd.DataFrame(
        {
            "user": ids,
            "neighbours_kept": kept.mean(axis=1),
            "gained": [", ".join(ids[row[~same]][:MAX_LISTED_NEIGHBORS]) for row, same in zip(new, stayed, strict=True)],
            "lost": [", ".join(ids[row[~same]][:MAX_LISTED_NEIGHBORS]) for row, same in zip(old, kept, strict=True)],
        }
    )


def embedding_shift(
    before: EmbeddingRows, after: EmbeddingRows, ids, from_query: str, to_query: str, floor: float, k: int = N_NEIGHBORS
) -> pd.DataFrame:
    """Say of each user how far it moved between two queries, and whether that is more than rewording does.

    before, after   embeddings of the same users, in the order of `ids`; rows are brought to unit length.
    floor           the noise floor, from `noise_floor`.
    Returns `user, from_query, to_query, residual, noise_floor, beyond_noise, neighbours_kept, gained, lost`.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(40, 4))
        >>> embedding_shift(rows, rows, [f"u{i}" for i in range(40)], "a", "b", floor=0.1).beyond_noise.sum()
        np.int64(0)
    """
    before, after = l2_normalize(before), l2_normalize(after)
    moved = residual_shift(before, after)
    changed = neighbors_changed(before, after, ids, k)
    frame = pd.DataFrame({"user": changed["user"], "from_query": from_query, "to_query": to_query, "residual": moved})
    return frame.assign(
        noise_floor=floor,
        beyond_noise=moved > floor,
        neighbours_kept=changed["neighbours_kept"],
        gained=changed["gained"],
        lost=changed["lost"],
    )


def provenance(run: str, seed: int = 0, shift: pd.DataFrame | None = None, unit: str = "user") -> dict:
    """Say what a result hangs on, for a claim card: run, seed, version, unit; and of a shift, the share moved, its interval.

    Example:
        >>> moved = pd.DataFrame({"user": ["a", "b"], "beyond_noise": [True, False], "noise_floor": 0.3})
        >>> {name: value for name, value in provenance("", 0, moved).items() if name in ("value", "n")}
        {'value': 0.5, 'n': 2}
    """
    from importlib.metadata import PackageNotFoundError, version

    from scipy.stats import binomtest

    told: dict = {"run": run, "seed": seed, "unit": unit}
    try:
        told["version"] = f"qanchor {version('qanchor')}"
    except PackageNotFoundError:  # a checkout that nobody installed
        told["version"] = "qanchor, not installed"
    if shift is not None:
        moved, n = int(shift["beyond_noise"].sum()), len(shift)
        low, high = binomtest(moved, n).proportion_ci(method="wilson")
        told |= {"metric": f"share of {unit}s beyond the noise floor of {shift['noise_floor'].max():.2f}"}
        told |= {"value": moved / n, "low": float(low), "high": float(high), "n": n}
    return told


def _same_users(before, after) -> None:
    if before.shape != after.shape:
        raise ValueError(f"before is {before.shape}, after is {after.shape}: give the same users in the same order")


def _align_rows(
    before: EmbeddingRows, after: EmbeddingRows, rows: Float[np.ndarray, "row dim"]
) -> Float[np.ndarray, "row dim"]:
    """Move any rows of the after space by the rotation and offset that lay `after` over `before`."""
    _same_users(before, after)
    middle_before, middle_after = before.mean(axis=0), after.mean(axis=0)
    left, _, right = np.linalg.svd((after - middle_after).T @ (before - middle_before))
    return (rows - middle_after) @ (left @ right) + middle_before


def _in_both(first: Int[np.ndarray, "user k"], second: Int[np.ndarray, "user k"]) -> np.ndarray:
    """Mark which neighbours of `first` stand in `second` too."""
    return (first[:, :, None] == second[:, None, :]).any(axis=2)
