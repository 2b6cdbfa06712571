"""Who moved when the query changed: Procrustes alignment, residual shift and a noise floor, in the
original space.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qanchor.utils.arrays import l2_normalize
from qanchor.utils.types import EmbeddingRows, UserFloats

N_NEIGHBORS = 15
NOISE_QUANTILE = 0.95  # of the users move less than the noise floor when a query is reworded
MAX_LISTED_NEIGHBORS = 5  # gained and lost neighbours listed in the shift frame
# With more users neighbours are found by an index, trust is estimated, and the map is a PCA by
# default.
MAX_EXACT_USERS = 20_000
SHIFT_COLUMNS = [
    "user",
    "from_query",
    "to_query",
    "residual",
    "noise_floor",
    "beyond_noise",
    "neighbours_kept",
    "gained",
    "lost",
]
Neighbors = Int[np.ndarray, "user k"]


def align(before: EmbeddingRows, after: EmbeddingRows) -> tuple[EmbeddingRows, float]:
    """Align `after` to `before` with orthogonal Procrustes: one rotation and offset for all users.

    With fewer users than dimensions a rotation can explain any movement. Use several users per
    dimension.

    Args:
        before: Embeddings of the users.
        after: Embeddings of the same users in the same order.

    Returns:
        The aligned rows, and how far the common rotation and offset had moved the users (root mean
        square; unit rows give at most 2).

    Example:
        >>> before = np.eye(3)
        >>> aligned, removed = align(before, before[:, ::-1])  # axes swapped: a rotation
        >>> bool(np.allclose(aligned, before)), removed > 0.5
        (True, True)
    """
    aligned = align_rows(before, after, after)
    return aligned, float(np.sqrt(((aligned - after) ** 2).sum(axis=1).mean()))


def residual_shift(before: EmbeddingRows, after: EmbeddingRows) -> UserFloats:
    """Return how far each user moved after the common rotation and offset are removed.

    Args:
        before: Embeddings of the users.
        after: Embeddings of the same users in the same order.

    Returns:
        One distance per user.

    Example:
        >>> rotated = np.eye(3)[:, ::-1]  # a rotation is not a shift
        >>> bool(residual_shift(np.eye(3), rotated).max() < 1e-9)
        True
    """
    return np.linalg.norm(align(before, after)[0] - before, axis=1)


def noise_floor(base: EmbeddingRows, paraphrases: list[EmbeddingRows]) -> float:
    """Return the shift that rewording alone stays under, for 95 % of the users.

    The largest shift over the paraphrases is taken per user, then the quantile over users. With
    five paraphrases a sixth moves about 1 user in 100 beyond the floor.

    Args:
        base: Embeddings under the query.
        paraphrases: Embeddings of the same users under each paraphrase.

    Returns:
        The noise floor.

    Raises:
        ValueError: If there is no paraphrase.
    """
    if not len(paraphrases):
        raise ValueError(
            "A noise floor needs at least 1 paraphrase; found 0. Embed the same query in other "
            "words."
        )
    worst = np.max([residual_shift(base, rows) for rows in paraphrases], axis=0)
    return float(np.quantile(worst, NOISE_QUANTILE))


def knn_indices(rows: EmbeddingRows, k: int = N_NEIGHBORS) -> Neighbors:
    """Return the row numbers of each user's `k` nearest others; approximate (pynndescent) beyond
    `MAX_EXACT_USERS` users.
    """
    k = min(k, len(rows) - 1)
    if not k:
        return np.zeros((len(rows), 0), int)
    if len(rows) > MAX_EXACT_USERS:
        from pynndescent import NNDescent  # compiles, as umap does

        neighbors = NNDescent(
            np.asarray(rows, np.float32), n_neighbors=k + 1, random_state=0
        ).neighbor_graph[0]
        own = neighbors == np.arange(len(rows))[:, None]
        own[~own.any(axis=1), -1] = (
            True  # among twins a row may miss itself: then the farthest goes
        )
        return neighbors[~own].reshape(len(rows), k)
    from sklearn.neighbors import NearestNeighbors  # takes two seconds to import

    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows)
    return search.kneighbors(return_distance=False)


def neighbors_changed(
    before: EmbeddingRows, after: EmbeddingRows, ids, k: int = N_NEIGHBORS
) -> pd.DataFrame:
    """List the neighbours that each user gained and lost.

    Args:
        before: Embeddings of the users.
        after: Embeddings of the same users in the same order.
        ids: The users.
        k: Number of nearest neighbours; default 15.

    Returns:
        `user, neighbours_kept, gained, lost`. gained and lost are tuples of row numbers (positions
        in `ids`), nearest first, at most 5. They are no ids, because an id may contain any
        character.

    Example:
        >>> before = np.array([[0.0], [0.1], [5.0], [5.1]])
        >>> after = np.array([[0.0], [5.0], [0.1], [5.1]])
        >>> frame = neighbors_changed(before, after, ["a", "b, c", "d", "e"], k=1)
        >>> frame["gained"].tolist(), frame["lost"].tolist()
        ([(2,), (3,), (0,), (1,)], [(1,), (0,), (3,), (2,)])
    """
    old = knn_indices(before, k)
    new = knn_indices(after, k)
    rows = []
    for was, now in zip(old.tolist(), new.tolist(), strict=True):
        gained = tuple(row for row in now if row not in was)
        lost = tuple(row for row in was if row not in now)
        kept = (len(was) - len(lost)) / len(was) if was else 1.0
        rows.append((kept, gained[:MAX_LISTED_NEIGHBORS], lost[:MAX_LISTED_NEIGHBORS]))
    frame = pd.DataFrame(rows, columns=["neighbours_kept", "gained", "lost"])
    frame.insert(0, "user", np.asarray(ids, dtype=object))
    return frame


def embedding_shift(
    before: EmbeddingRows,
    after: EmbeddingRows,
    ids,
    from_query: str,
    to_query: str,
    floor: float,
) -> pd.DataFrame:
    """Measure how far each user moved between two queries, and whether that is more than rewording
    does.

    Args:
        before: Embeddings under the first query; rows are scaled to unit length.
        after: Embeddings of the same users under the second.
        ids: The users, in the order of the rows.
        from_query: The first query.
        to_query: The second query.
        floor: The noise floor, from `noise_floor`.

    Returns:
        `user, from_query, to_query, residual, noise_floor, beyond_noise, neighbours_kept, gained,
        lost`; gained and lost are tuples of row numbers, see `neighbors_changed`.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(40, 4))
        >>> ids = [f"u{i}" for i in range(40)]
        >>> embedding_shift(rows, rows, ids, "a", "b", floor=0.1).beyond_noise.sum()
        np.int64(0)
    """
    before = l2_normalize(before)
    after = l2_normalize(after)
    moved = residual_shift(before, after)
    frame = neighbors_changed(before, after, ids).assign(
        from_query=from_query,
        to_query=to_query,
        residual=moved,
        noise_floor=floor,
        beyond_noise=moved > floor,
    )
    return frame[SHIFT_COLUMNS]


def share_beyond_noise(shift: pd.DataFrame) -> tuple[float, float, float]:
    """Return the share of users that moved beyond the noise floor, with its 95 % interval (Wilson).

    Args:
        shift: From `embedding_shift`.

    Returns:
        (share, low, high).

    Example:
        >>> share_beyond_noise(pd.DataFrame({"beyond_noise": [True, False]}))[0]
        0.5
    """
    from scipy.stats import binomtest

    result = binomtest(int(shift["beyond_noise"].sum()), len(shift))
    interval = result.proportion_ci(method="wilson")
    return result.statistic, float(interval.low), float(interval.high)


def align_rows(
    before: EmbeddingRows, after: EmbeddingRows, rows: Float[np.ndarray, "row dim"]
) -> Float[np.ndarray, "row dim"]:
    """Move any rows of the after space by the rotation and offset that align `after` to
    `before`.
    """
    from scipy.linalg import orthogonal_procrustes

    if before.shape != after.shape:
        raise ValueError(
            f"before is {before.shape}, after is {after.shape}. Give the same users in the same "
            "order."
        )
    middle_before = before.mean(axis=0)
    middle_after = after.mean(axis=0)
    rotation, _ = orthogonal_procrustes(after - middle_after, before - middle_before)
    return (rows - middle_after) @ rotation + middle_before
