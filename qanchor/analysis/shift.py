"""Who moved when the query changed, and who stands out against other queries, in the original
space.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qanchor.utils.arrays import l2_normalize
from qanchor.utils.types import EmbeddingRows, UserFloats

N_NEIGHBORS = 15
MIN_MOVE = 1.0  # standard deviations of the users' moves, from which on a user stands out
SCORE = 0  # place of the score in an embedding, see `PointingReader.embed`
MAX_LISTED_NEIGHBORS = 5  # gained and lost neighbours listed in the shift frame
# With more users neighbours are found by an index, trust is estimated, and the map is a PCA by
# default.
MAX_EXACT_USERS = 20_000
SHIFT_COLUMNS = [
    "user",
    "from_query",
    "to_query",
    "residual",
    "toward_yes",
    "elsewhere",
    "stands_out",
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


def toward_yes(before: EmbeddingRows, after: EmbeddingRows) -> UserFloats:
    """Return how far each user moved in the direction in which the scores of `after` grow.

    What all users have in common is removed: their mean move. There is no rotation, because one
    that fits two queries also turns this direction.

    Args:
        before: Embeddings of the users.
        after: Embeddings of the same users in the same order; the first number is the score.

    Returns:
        One signed length per user; their mean is 0.

    Example:
        >>> before = np.zeros((4, 2))
        >>> after = np.array([[0.0, 5.0], [0.0, 5.0], [0.0, 5.0], [4.0, 5.0]])
        >>> toward_yes(before, after)  # the second number grew for all
        array([-1., -1., -1.,  3.])
    """
    moved = (after - after.mean(axis=0)) - (before - before.mean(axis=0))
    score = after[:, SCORE] - after[:, SCORE].mean()
    direction = moved.T @ score
    length = np.linalg.norm(direction)
    return moved @ direction / length if length else np.zeros(len(moved))


def compare_with_others(
    before: EmbeddingRows, after: EmbeddingRows, others: list[EmbeddingRows]
) -> tuple[UserFloats, UserFloats]:
    """Compare how far a query moves each user toward yes with what other queries do to this user.

    Each query has its own unit, the standard deviation over users, so that one that spreads users
    widely has no advantage. A query that spreads them less than the others usually do, such as a
    paraphrase of the query before, is measured in the usual unit.

    Args:
        before: Embeddings under the query before.
        after: Embeddings under the query.
        others: Embeddings under each of the other queries.

    Returns:
        The move toward yes under the query, and the largest one under the others, but at least
        `MIN_MOVE`, of each user. If the query is like the others, the first is larger for at most 1
        user in `len(others) + 1`.

    Raises:
        ValueError: If there is no other query.
    """
    if not others:
        raise ValueError("Found 0 other queries; at least 1 is required to compare with.")
    moves = np.stack([toward_yes(before, rows) for rows in [after, *others]])
    spread = moves.std(axis=1)
    usual = max(float(np.median(spread[1:])), 1e-9)
    moves = moves / np.maximum(spread, usual)[:, None]
    return moves[0], np.maximum(moves[1:].max(axis=0), MIN_MOVE)


def nearest_neighbors(
    rows: EmbeddingRows, k: int = N_NEIGHBORS
) -> tuple[Neighbors, Float[np.ndarray, "user k"]]:
    """Return the row numbers of each user's `k` nearest others, and how far they are; approximate
    (pynndescent) beyond `MAX_EXACT_USERS` users.
    """
    n_users = len(rows)
    k = min(k, n_users - 1)
    if not k:
        return np.zeros((n_users, 0), int), np.zeros((n_users, 0))
    if n_users > MAX_EXACT_USERS:
        from pynndescent import NNDescent  # compiles, as umap does

        search = NNDescent(np.asarray(rows, np.float32), n_neighbors=k + 1, random_state=0)
        neighbors, distances = search.neighbor_graph
        is_self = neighbors == np.arange(n_users)[:, None]
        # among twins a row may miss itself: then the farthest goes
        is_self[~is_self.any(axis=1), -1] = True
        neighbors = neighbors[~is_self].reshape(n_users, k)
        distances = distances[~is_self].reshape(n_users, k)
        return neighbors, distances.astype(float)
    from sklearn.neighbors import NearestNeighbors  # takes two seconds to import

    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows)
    distances, neighbors = search.kneighbors()
    return neighbors, distances.astype(float)


def neighbors_changed(before: EmbeddingRows, after: EmbeddingRows, ids) -> pd.DataFrame:
    """List the nearest neighbours, of 15, that each user gained and lost.

    Args:
        before: Embeddings of the users.
        after: Embeddings of the same users in the same order.
        ids: The users.

    Returns:
        `user, neighbours_kept, gained, lost`. gained and lost are tuples of row numbers (positions
        in `ids`), nearest first, at most 5. They are no ids, because an id may contain any
        character.

    Example:
        >>> before = np.arange(17.0)[:, None]
        >>> after = np.array([*range(16), -1.0])[:, None]  # the last user becomes the first
        >>> frame = neighbors_changed(before, after, [f"u{i}" for i in range(17)])
        >>> frame["gained"][0], frame["lost"][0]
        ((16,), (15,))
    """
    old, _ = nearest_neighbors(before)
    new, _ = nearest_neighbors(after)
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
    others: list[EmbeddingRows],
) -> pd.DataFrame:
    """Measure how far each user moved between two queries, and who stands out.

    Args:
        before: Embeddings under the first query; rows are scaled to unit length.
        after: Embeddings of the same users under the second.
        ids: The users, in the order of the rows.
        from_query: The first query.
        to_query: The second query.
        others: Embeddings under other queries; without any, nobody stands out.

    Returns:
        `user, from_query, to_query, residual, toward_yes, elsewhere, stands_out, neighbours_kept,
        gained, lost`. A user stands out whose move toward yes is larger than `elsewhere`, the
        largest under the other queries, see `compare_with_others`; gained and lost are tuples of
        row numbers, see `neighbors_changed`. `attrs["others"]` is the number of other queries.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(4, 40, 4))
        >>> ids = [f"u{i}" for i in range(40)]
        >>> embedding_shift(rows[0], rows[0], ids, "a", "b", list(rows[1:])).stands_out.sum() < 4
        np.True_
    """
    before = l2_normalize(before)
    after = l2_normalize(after)
    frame = neighbors_changed(before, after, ids)
    frame["from_query"] = from_query
    frame["to_query"] = to_query
    frame["residual"] = residual_shift(before, after)
    frame["toward_yes"] = np.nan
    frame["elsewhere"] = np.nan
    if others:
        others = [l2_normalize(rows) for rows in others]
        frame["toward_yes"], frame["elsewhere"] = compare_with_others(before, after, others)
    frame["stands_out"] = frame["toward_yes"] > frame["elsewhere"]
    frame = frame[SHIFT_COLUMNS]
    frame.attrs["others"] = len(others)
    return frame


def share_standing_out(shift: pd.DataFrame) -> tuple[float, float, float]:
    """Return the share of users that stand out, with its 95 % interval (Wilson).

    Args:
        shift: From `embedding_shift`.

    Returns:
        (share, low, high).

    Example:
        >>> share_standing_out(pd.DataFrame({"stands_out": [True, False]}))[0]
        0.5
    """
    from scipy.stats import binomtest

    result = binomtest(int(shift["stands_out"].sum()), len(shift))
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
