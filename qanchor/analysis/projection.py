"""One joint two-dimensional map of the same users under two queries.

Two maps that are fitted separately make users seem to move that do not; one joint fit does not, so
it is the only one offered.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.analysis.shift import (
    MAX_EXACT_USERS,
    N_NEIGHBORS,
    EmbeddingRows,
    _align_rows,
    align,
    knn_indices,
)
from qanchor.utils.arrays import l2_normalize

MARK = "mark"  # the query of rows that are no users
BLOCK = 2_000  # rows of a block within which trust is estimated
CHUNK = 1_000  # rows of a distance table held at once: 20,000 points need 160 MB, not 3 GB


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
    """Project the same users under two queries to one map, fitted once on both.

    Args:
        before: Embeddings under the first query.
        after: Embeddings of the same users under the second.
        ids: The users, in the order of the rows.
        queries: Names of the two queries; default "before" and "after".
        seed: Seed of UMAP; default 0.
        method: "umap" (default; about a second for 2 x 600 rows, after ten seconds of compiling at
        the first call) or "pca"
            (instant, and the same on every machine).
        last: The map shown so far; default: none. Users start from their places on it, so the map
        does not flip.
        marks: Other rows of the second query's space by name, such as prototypes; default: none.
        They take part in the fit and
            are the last rows of the frame, with the name as user and `MARK` as query.

    Returns:
        `user, query, x, y, trust`, first the rows of the first query. trust is 1 if the neighbours
        of a point on the map are its neighbours in the original space. `attrs` holds
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
    added = after[:0]
    if marks:
        mark_rows = l2_normalize(np.array(list(marks.values()), dtype=float))
        added = _align_rows(before, after, mark_rows)
    rows = np.vstack([before, aligned, added])
    start = _last_places(last, ids)
    if start is not None:  # a mark starts where the user that is nearest to it was
        nearness = added @ aligned.T - (aligned**2).sum(axis=1) / 2
        start = np.vstack([start, start[nearness.argmax(axis=1)]])
    places = _pca(rows)
    if method == "umap":
        places = _umap(rows, places if start is None else start, seed)
    trust = pointwise_trustworthiness(rows, places)
    if start is None:
        places = _pca(places)  # widest from left to right
    else:
        places = _align_to_last(places, start)
    sizes = [len(before), len(before), len(added)]
    frame = pd.DataFrame({"user": [*ids, *ids, *marks], "x": places[:, 0], "y": places[:, 1]})
    frame.insert(1, "query", np.repeat([*queries, MARK], sizes))
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
    """Return how far the neighbours of each point on the map can be trusted, 0 to 1; the mean is
    the usual trustworthiness.

    Args:
        rows: The points in the original space.
        places: The points on the map.
        k: Number of nearest neighbours; default 15.

    Returns:
        One number per point. Beyond `MAX_EXACT_USERS` rows it is an estimate within random blocks
        of about `BLOCK` rows.
    """
    count = len(rows)
    if count > MAX_EXACT_USERS:
        trust = np.empty(count)
        order = np.random.default_rng(0).permutation(count)
        for block in np.array_split(order, count // BLOCK):
            trust[block] = pointwise_trustworthiness(rows[block], places[block], k)
        return trust
    k = min(k, (count - 1) // 2)
    near = knn_indices(places, k)
    squares = (rows**2).sum(axis=1)
    excess = np.zeros(count)
    for start in range(0, count, CHUNK):
        part = np.arange(start, min(start + CHUNK, count))
        # without the row's own square, which does not change the ranks within a row
        distance = squares - 2 * rows[part] @ rows.T
        distance[np.arange(len(part)), part] = -np.inf
        for neighbor in near[part].T:
            to_neighbor = distance[np.arange(len(part)), neighbor]
            rank = (distance < to_neighbor[:, None]).sum(axis=1)
            excess[part] += np.maximum(rank - k, 0)
    return np.clip(1 - excess * 2 / (k * (2 * count - 3 * k - 1)), 0, 1)


def _pca(rows) -> Places:
    centred = rows - rows.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, np.argsort(values)[::-1][:2]]
    largest = axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])]
    return centred @ (axes * np.sign(largest))  # the sign of an axis is arbitrary: fix it


def _umap(rows, start, seed: int) -> Places:
    import umap  # compiles for some ten seconds at its first fit

    # without noise, users with equal embeddings could not separate
    noise = np.random.default_rng(seed).normal(scale=1e-3 * start.std(), size=start.shape)
    fit = umap.UMAP(
        n_neighbors=min(N_NEIGHBORS, len(rows) - 1),
        n_epochs=200,
        init=start + noise,
        random_state=seed,
        n_jobs=1,
    )
    return fit.fit_transform(rows).astype(float)


def _last_places(last: pd.DataFrame | None, ids) -> Places | None:
    """Return the place of each user on the last map, once for each query; None if a user was not on
    it.
    """
    if last is None or not len(last):
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
