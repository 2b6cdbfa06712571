"""Who moved when the question changed: alignment, residuals, a noise floor, and one joint map to look at.

A shift is measured in the original space and only drawn on the map. Two maps fitted apart make still users seem to move;
one joint fit of both queries' rows does not, so a joint fit is the only one offered.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.neighbors import NearestNeighbors

Rows = Float[np.ndarray, "user dim"]
NEIGHBOURS = 15
MARK = "mark"  # the query of rows that are no users
SHOWN = 5  # gained and lost neighbours named in the shift frame
MANY = 20_000  # users beyond whom neighbours are found by an index, trust is estimated, and the map is a PCA unless one says so
BLOCK = 2_000  # rows among which trust is then judged
CHUNK = 1_000  # rows of a distance table held at once: 20,000 points need 160 MB, not 3 GB


def unit(rows: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row dim"]:
    """Give every row length 1 (a row of zeros stays as it is)."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def align(before: Rows, after: Rows) -> tuple[Rows, float]:
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
    aligned = _laid_over(before, after, after)
    return aligned, float(np.sqrt(((aligned - after) ** 2).sum(axis=1).mean()))


def residuals(before: Rows, after: Rows) -> Float[np.ndarray, " user"]:
    """Measure how far each user moved, the common rotation and offset taken out.

    Example:
        >>> bool(residuals(np.eye(3), np.eye(3)[:, ::-1]).max() < 1e-9)  # a rotation is not a shift
        True
    """
    return np.linalg.norm(align(before, after)[0] - before, axis=1)


def noise_floor(base: Rows, paraphrases: list[Rows], share: float = 0.95) -> float:
    """Give the residual that rewording alone stays under: for `share` of users, in every one of the paraphrases.

    The largest residual over the paraphrases is taken per user, then the quantile over users: with five of them a
    sixth rewording lifts about 1 user in 100 beyond the floor.
    """
    if not len(paraphrases):
        raise ValueError("a noise floor needs at least 1 paraphrase, got 0: embed the same query in other words")
    worst = np.max([residuals(base, rows) for rows in paraphrases], axis=0)
    return float(np.quantile(worst, share))


def nearest(rows: Rows, k: int = NEIGHBOURS) -> Int[np.ndarray, "user k"]:
    """Name each user's `k` nearest others by row number, nearest first; of more than `MANY`, nearly so (pynndescent)."""
    k = min(k, len(rows) - 1)
    if len(rows) > MANY:
        from pynndescent import NNDescent  # compiles, as umap does

        found = NNDescent(np.asarray(rows, np.float32), n_neighbors=k + 1, random_state=0).neighbor_graph[0]
        own = found == np.arange(len(rows))[:, None]
        own[~own.any(axis=1), -1] = True  # among twins a row may miss itself: then the farthest goes
        return found[~own].reshape(len(rows), k)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(rows).kneighbors(return_distance=False)


def neighbours_kept(before: Rows, after: Rows, k: int = NEIGHBOURS) -> Float[np.ndarray, " user"]:
    """Tell what share of its `k` nearest neighbours each user kept (1: all, 0: none)."""
    _same_users(before, after)
    return _both(nearest(before, k), nearest(after, k)).mean(axis=1)


def neighbours_changed(before: Rows, after: Rows, ids, k: int = NEIGHBOURS) -> pd.DataFrame:
    """Name the neighbours each user gained and lost, nearest first: columns `user, neighbours_kept, gained, lost`."""
    _same_users(before, after)
    ids = np.asarray(ids, dtype=object)
    old, new = nearest(before, k), nearest(after, k)
    kept, stayed = _both(old, new), _both(new, old)
    return pd.DataFrame(
        {
            "user": ids,
            "neighbours_kept": kept.mean(axis=1),
            "gained": [", ".join(ids[row[~same]][:SHOWN]) for row, same in zip(new, stayed, strict=True)],
            "lost": [", ".join(ids[row[~same]][:SHOWN]) for row, same in zip(old, kept, strict=True)],
        }
    )


def shift_frame(
    before: Rows, after: Rows, ids, from_query: str, to_query: str, floor: float, k: int = NEIGHBOURS
) -> pd.DataFrame:
    """Say of each user how far it moved between two queries, and whether that is more than rewording does.

    before, after   embeddings of the same users, in the order of `ids`; rows are brought to unit length.
    floor           the noise floor, from `noise_floor`.
    Returns `user, from_query, to_query, residual, noise_floor, beyond_noise, neighbours_kept, gained, lost`.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(40, 4))
        >>> shift_frame(rows, rows, [f"u{i}" for i in range(40)], "a", "b", floor=0.1).beyond_noise.sum()
        np.int64(0)
    """
    before, after = unit(before), unit(after)
    moved = residuals(before, after)
    changed = neighbours_changed(before, after, ids, k)
    frame = pd.DataFrame({"user": changed["user"], "from_query": from_query, "to_query": to_query, "residual": moved})
    return frame.assign(
        noise_floor=floor,
        beyond_noise=moved > floor,
        neighbours_kept=changed["neighbours_kept"],
        gained=changed["gained"],
        lost=changed["lost"],
    )


def joint_map(
    before: Rows,
    after: Rows,
    ids,
    queries: tuple[str, str] = ("before", "after"),
    seed: int = 0,
    method: str = "umap",
    last: pd.DataFrame | None = None,
    marks: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Draw the same users under two queries on one map, fitted once on both.

    method   "umap" (about a second for 2 x 600 rows, after some ten seconds of compiling at the first call) or "pca"
             (instant, the same everywhere).
    last     the points shown until now: users start from where they stood, so the picture does not turn over.
    marks    other rows of the second query's space by name, as prototypes: they take part in the fit and stand last in the
             frame, the name as user and `MARK` as query.
    Returns `user, query, x, y, trust`, first the rows of the first query; trust is 1 where a point's neighbours on the
    map are its neighbours in the original space. `attrs` holds `trustworthiness` (the mean), `removed` (the common
    rotation and offset taken out, see `align`), `method` and `users`.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(40, 8))
        >>> joint_map(rows, rows, [f"u{i}" for i in range(40)], method="pca").shape
        (80, 5)
    """
    if method not in ("umap", "pca"):
        raise ValueError(f"no map method {method!r}: there are 'umap' and 'pca'")
    before, after = unit(before), unit(after)
    aligned, removed = align(before, after)
    added = _laid_over(before, after, unit(np.array(list(marks.values()), dtype=float))) if marks else after[:0]
    rows = np.vstack([before, aligned, added])
    flat, start = _pca(rows), _last_places(last, ids)
    if start is not None and marks:  # a mark starts where the user stood who is nearest to it
        start = np.vstack([start, start[(added @ aligned.T - (aligned**2).sum(axis=1) / 2).argmax(axis=1)]])
    places = flat if method == "pca" else _umap(rows, flat if start is None else start, seed)
    trust = point_trust(rows, places)
    places = _pca(places) if start is None else _over(places, start)  # widest from left to right, or as it lay before
    names, stand = [*ids, *ids, *(marks or ())], [len(before), len(before), len(added)]
    frame = pd.DataFrame({"user": names, "query": np.repeat([*queries, MARK], stand)})
    frame = frame.assign(x=places[:, 0], y=places[:, 1], trust=trust)
    frame.attrs = {"trustworthiness": float(trust.mean()), "removed": removed, "method": method, "users": len(before)}
    return frame


def point_trust(
    rows: Float[np.ndarray, "row dim"], places: Float[np.ndarray, "row 2"], k: int = NEIGHBOURS
) -> Float[np.ndarray, " row"]:
    """Say how far each point's neighbours on the map can be believed, 0 to 1 (the mean is the usual trustworthiness).

    Of more than `MANY` rows it is an estimate: each is judged among `BLOCK` or so that are drawn with it by a fixed seed.
    """
    count = len(rows)
    if count > MANY:
        trust, order = np.empty(count), np.random.default_rng(0).permutation(count)
        for some in np.array_split(order, count // BLOCK):
            trust[some] = point_trust(rows[some], places[some], k)
        return trust
    k = min(k, (count - 1) // 2)
    near = nearest(places, k)
    squares, excess = (rows**2).sum(axis=1), np.empty(count)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        distance = squares - 2 * rows[part] @ rows.T  # + the own square, the same all along a row: ranks need it not
        distance[np.arange(len(distance)), np.arange(part.start, part.stop)] = -np.inf
        ranks = np.stack([(distance < distance[np.arange(len(distance)), j][:, None]).sum(axis=1) for j in near[part].T])
        excess[part] = np.maximum(ranks - k, 0).sum(axis=0)
    return np.clip(1 - excess * 2 / (k * (2 * count - 3 * k - 1)), 0, 1)


def sentence(shift: pd.DataFrame, unit: str = "user", paraphrases: int = 5) -> str:
    """Say in words how many moved and who moved most.

    Example:
        >>> sentence(pd.DataFrame({"user": ["a", "b"], "residual": [0.9, 0.1], "beyond_noise": [True, False]}))
        '1 of 2 users moved beyond the noise floor (5 paraphrases). a moved most.'
    """
    moved = shift[shift["beyond_noise"]].sort_values(["residual", "user"], ascending=[False, True], kind="stable")
    words = f"{paraphrases} paraphrase" + "s" * (paraphrases != 1)
    text = f"{len(moved):,} of {len(shift):,} {unit}s moved beyond the noise floor ({words})."
    first = [str(user) for user in moved["user"][:3]]
    return text + (f" {' and '.join([', '.join(first[:-1]), first[-1]] if first[1:] else first)} moved most." if first else "")


def caption(points: pd.DataFrame, unit: str = "user") -> str:
    """Say how the map was made and how far to believe it; `points` as `joint_map` returned them."""
    about, both = points.attrs, points["query"].nunique() > 1
    kind = f"{'joint ' * both}{about['method'].upper()} map of {about['users']:,} {unit}s{' under both queries' * both}"
    moved = f"; a common rotation and offset of {about['removed']:.2f} was removed" if both else ""
    return f"One {kind}. Trustworthiness {about['trustworthiness']:.2f}{moved}."


def facts(run: str, seed: int = 0, shift: pd.DataFrame | None = None, unit: str = "user") -> dict:
    """Say what a result hangs on, for a claim card: run, seed, version, unit; and of a shift, the share moved, its interval.

    Example:
        >>> moved = pd.DataFrame({"user": ["a", "b"], "beyond_noise": [True, False], "noise_floor": 0.3})
        >>> {name: value for name, value in facts("", 0, moved).items() if name in ("value", "n")}
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


def _laid_over(before: Rows, after: Rows, rows: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row dim"]:
    """Move any rows of the after space by the rotation and offset that lay `after` over `before`."""
    _same_users(before, after)
    middle_before, middle_after = before.mean(axis=0), after.mean(axis=0)
    left, _, right = np.linalg.svd((after - middle_after).T @ (before - middle_before))
    return (rows - middle_after) @ (left @ right) + middle_before


def _both(first: Int[np.ndarray, "user k"], second: Int[np.ndarray, "user k"]) -> np.ndarray:
    """Mark which neighbours of `first` stand in `second` too."""
    return (first[:, :, None] == second[:, None, :]).any(axis=2)


def _pca(rows) -> Float[np.ndarray, "row 2"]:
    centred = rows - rows.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, np.argsort(values)[::-1][:2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # a sign is free: fix it
    return centred @ axes


def _umap(rows, start, seed: int) -> Float[np.ndarray, "row 2"]:
    import umap  # compiles for some ten seconds at its first fit

    noise = np.random.default_rng(seed).normal(scale=1e-3 * start.std(), size=start.shape)  # twins must be able to part
    fit = umap.UMAP(n_neighbors=min(NEIGHBOURS, len(rows) - 1), n_epochs=200, init=start + noise, random_state=seed, n_jobs=1)
    return fit.fit_transform(rows).astype(float)


def _last_places(last: pd.DataFrame | None, ids) -> Float[np.ndarray, "row 2"] | None:
    """Find where each user stood on the last map, once for each query; None when somebody was not there."""
    if last is None or not len(last):
        return None
    places = last.drop_duplicates("user", keep="last").set_index("user")[["x", "y"]].reindex(list(ids))
    return None if places.isna().any(axis=None) else np.vstack([places, places]).astype(float)


def _over(places, target) -> Float[np.ndarray, "row 2"]:
    """Turn, move and scale a map onto where its users stood."""
    aligned, _ = align(target, places)
    aligned, wanted = aligned - target.mean(axis=0), target - target.mean(axis=0)
    return aligned * (wanted.std() / (aligned.std() or 1)) + target.mean(axis=0)
