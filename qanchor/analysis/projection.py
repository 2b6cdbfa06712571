"""Project users under two queries onto one joint two-dimensional map.

On maps that are fitted separately, users seem to move that do not, so there is only a joint fit.
"""

from __future__ import annotations

import functools
import threading
import warnings

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.analysis.shift import (
    N_NEIGHBORS,
    EmbeddingRows,
    align,
    align_rows,
    nearest_neighbors,
)
from qanchor.utils.arrays import l2_normalize

MARK = "mark"  # value of `query` for rows that are not users
BLOCK = 2_500  # rows per block when trust is estimated: the distances of a block take 50 MB


Places = Float[np.ndarray, "row 2"]


def joint_projection(
    before: EmbeddingRows,
    after: EmbeddingRows,
    ids,
    queries: tuple[str, str] = ("before", "after"),
    seed: int = 0,
    method: str = "umap",
    last: pd.DataFrame | None = None,
    marks: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Project the same users under two queries onto one map that is fitted on both.

    Args:
        before: Embeddings under the first query.
        after: Embeddings of the same users under the second.
        ids: Ids of the users, in the order of the rows.
        queries: Names of the two queries (default "before" and "after").
        seed: Seed of UMAP (default 0).
        method: "umap" (default; about a second for 2 x 600 rows, after some seconds of compiling at
            the first call, see `compile_umap`) or "pca" (instant, and the same on every machine).
        last: The previous map (default: none). Users start from their places on it, so that the map
            does not flip.
        marks: Vectors (dim,) in the space of the second query by name, such as prototypes (default:
            none). They take part in the fit and are the last rows of the frame, with the name as
            user and `MARK` as query.

    Returns:
        `user, query, x, y, trust`, the rows of the first query first. `trust` is 1 if the
        neighbours of a point on the map are its neighbours in the original space. `attrs` holds
        `trustworthiness` (the mean), `removed` (size of the common rotation and offset that were
        removed, see `align`), `method` and `users`.

    Raises:
        ValueError: If there is no such method.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(40, 8))
        >>> joint_projection(rows, rows, [f"u{i}" for i in range(40)], method="pca").shape
        (80, 5)
    """
    if method not in ("umap", "pca"):
        raise ValueError(f"There is no map method {method!r}. Use 'umap' or 'pca'.")
    before = l2_normalize(before)
    after = l2_normalize(after)
    aligned, removed = align(before, after)
    marks = marks or {}
    mark_rows = np.reshape(list(marks.values()), (-1, after.shape[1])).astype(float)
    added = align_rows(before, after, l2_normalize(mark_rows))
    rows = np.vstack([before, aligned, added])
    start = _last_places(last, ids)
    if start is not None:  # a mark starts at the previous place of its nearest user
        nearness = added @ aligned.T - (aligned**2).sum(axis=1) / 2
        start = np.vstack([start, start[nearness.argmax(axis=1)]])
    places = _pca(rows)
    if method == "umap" and len(before) > 1:
        places = _umap(rows, places if start is None else start, seed)
    trust = pointwise_trustworthiness(rows, places)
    if start is None:
        places = _pca(places)  # widest from left to right
    else:
        places = _align_to_last(places, start)
    sizes = [len(before), len(before), len(added)]
    frame = pd.DataFrame({"user": [*ids, *ids, *marks]})
    frame["query"] = np.repeat([*queries, MARK], sizes)
    frame[["x", "y"]] = places
    frame["trust"] = trust
    frame.attrs = {
        "trustworthiness": float(trust.mean()),
        "removed": removed,
        "method": method,
        "users": len(before),
    }
    return frame


def pointwise_trustworthiness(
    rows: Float[np.ndarray, "row dim"], places: Places, k: int = N_NEIGHBORS
) -> Float[np.ndarray, " row"]:
    """Return the trustworthiness of the neighbourhood of each point on the map, 0 to 1.

    The mean over the points is the usual trustworthiness.

    Args:
        rows: The points in the original space.
        places: The points on the map.
        k: Number of nearest neighbours (default 15).

    Returns:
        One number per point. With at least twice `BLOCK` rows, it is estimated in random blocks.
    """
    n_blocks = max(1, len(rows) // BLOCK)
    order = np.random.default_rng(0).permutation(len(rows))
    trust = np.empty(len(rows))
    for block in np.array_split(order, n_blocks):
        trust[block] = _trust_in_block(rows[block], places[block], k)
    return trust


def _trust_in_block(rows, places: Places, k: int) -> Float[np.ndarray, " row"]:
    n_rows = len(rows)
    k = min(k, (n_rows - 1) // 2)
    if not k:  # two points are each other's neighbour on every map
        return np.ones(n_rows)
    # without the row's own square, which does not change the ranks within a row
    distance = (rows**2).sum(axis=1) - 2 * rows @ rows.T
    np.fill_diagonal(distance, -np.inf)
    near, _ = nearest_neighbors(places, k)
    excess = np.zeros(n_rows)
    for to_neighbor in np.take_along_axis(distance, near, axis=1).T:
        rank = (distance < to_neighbor[:, None]).sum(axis=1)
        excess += np.maximum(rank - k, 0)
    largest_excess = k * (2 * n_rows - 3 * k - 1)
    return np.clip(1 - excess * 2 / largest_excess, 0, 1)


def _pca(rows) -> Places:
    """Return the first two principal components.

    scikit-learn's `PCA` returns the same, but the first map would wait until it is imported.
    """
    centered = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:2]
    largest = np.abs(axes).argmax(axis=1)
    signs = np.sign(axes[[0, 1], largest])  # the sign of an axis is arbitrary
    return centered @ (signs[:, None] * axes).T


@functools.cache
def compile_umap() -> threading.Thread:
    """Compile what UMAP runs, which takes some seconds, in the background and once in a process.

    Returns:
        The thread that does it; while it is alive, `joint_projection` by UMAP takes as long.
    """
    rows = np.random.default_rng(0).normal(size=(2 * N_NEIGHBORS, 4))
    thread = threading.Thread(target=_umap, args=(rows, rows[:, :2], 0), daemon=True)
    thread.start()
    return thread


def _umap(rows, start, seed: int) -> Places:
    import umap  # compiles for some seconds at its first fit

    # Found here, since umap compares few rows by a Python call for each pair, and compiles an index
    # for many.
    neighbors, distances = nearest_neighbors(rows, min(N_NEIGHBORS, len(rows) - 1) - 1)
    own = np.arange(len(rows))[:, None]  # umap counts a row as its own first neighbour
    neighbors = np.hstack([own, neighbors])
    distances = np.hstack([np.zeros(own.shape), distances]).astype(np.float32)
    # without noise, users with equal embeddings could not separate
    noise = np.random.default_rng(seed).normal(scale=1e-3 * start.std(), size=start.shape)
    fit = umap.UMAP(
        n_neighbors=neighbors.shape[1],
        n_epochs=200,
        init=start + noise,
        random_state=seed,
        n_jobs=1,
        precomputed_knn=(neighbors, distances),
    )
    # that it could place no further rows
    warnings.filterwarnings("ignore", r"precomputed_knn\[2\]", UserWarning)
    return fit.fit_transform(rows).astype(float)


def _last_places(last: pd.DataFrame | None, ids) -> Places | None:
    """Return the place of each user on the last map, once for each query; None if a user was not on
    it.
    """
    if last is None:
        return None
    places = last.drop_duplicates("user", keep="last").set_index("user")[["x", "y"]]
    places = places.reindex(list(ids))
    if places.isna().any(axis=None):
        return None
    return np.vstack([places, places]).astype(float)


def _align_to_last(places, target) -> Places:
    """Rotate, move and scale a map onto the last places of its users."""
    middle = target.mean(axis=0)
    aligned = align(target, places)[0] - middle
    scale = (target - middle).std() / (aligned.std() or 1)
    return aligned * scale + middle
