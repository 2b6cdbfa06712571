"""How users gather under a question: clusters by density, how far to trust them, and who went where."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .maps import unit

AXES = 16  # in 128 dimensions all distances are alike and density says little: the axes along which users differ most stay
DRAWS = 20
KEPT = 0.5  # of the users are in each subsample; in larger ones the chance clumps of one sample come back and look stable
DISSOLVED = 0.5  # below it, subsamples lose a cluster more often than they find it: it is given up (Hennig 2007)
STABLE = 0.6  # below it, a cluster is one of the sample and hardly one of the users (Hennig 2007)
NEAR = 60
LINE = 0.8  # of the differences along one axis: what is found there are stretches of a line rather than islands
ISLANDS = 0.9  # of the users are in clusters where these are islands
HEIR = 0.5  # the share of its users that makes one cluster the heir of another
NONE = -1  # the cluster of those who are in none
Flat = Float[np.ndarray, "user axis"]


def find_clusters(
    embeddings: Float[np.ndarray, "user dim"], ids, *, least: int | None = None, seed: int = 0, draws: int = DRAWS
) -> pd.DataFrame:
    """Find groups of users that stand closer together than to the others, and say how far each can be trusted.

    embeddings   of one query, in the order of `ids`; rows are brought to unit length, so nearness is the cosine.
    least        users that a group must have (default: 3 % of them, at least 15).
    seed, draws  how often half of the users are clustered anew (drawn without putting back: a user drawn twice looks dense).
    Returns `user, cluster, strength`: clusters are numbered by size from 0, -1 is none; strength (0 to 1) is how deep in its
    cluster a user stands. `attrs` holds `method`, `least`, `silhouette` (of the users in clusters; NaN with fewer than two),
    `stability`, one number a cluster: the mean Jaccard overlap with its best match among the clusters of each subsample, and
    `dissolved`, how many candidates came to less than .5 and were given up (a cluster below .6 should not be believed either);
    `first_axis` is the share of the users' differences that lie along one line: near 1, clusters are dense stretches of it.
    Nobody in a cluster means: one continuum, no clusters.

    HDBSCAN (Campello et al. 2013) on the first 16 principal axes; stability as Hennig (2007).

    Example:
        >>> random, place = np.random.default_rng(0), np.repeat(np.eye(3, 8), 40, axis=0)
        >>> found = find_clusters(place + random.normal(scale=0.1, size=place.shape), [f"u{i}" for i in range(120)])
        >>> found["cluster"].value_counts().tolist(), [round(float(s), 1) for s in found.attrs["stability"].values()]
        ([40, 40, 40], [1.0, 1.0, 1.0])
    """
    rows, ids = _checked(embeddings, ids)
    least = max(15, round(0.03 * len(rows))) if least is None else least
    if not 2 <= least <= len(rows):
        raise ValueError(f"least is {least}, there are {len(rows):,} users: give a number of users from 2 to that")
    flat = _flat(unit(rows))
    label, strength = _dense(flat, least)
    stability = _stability(flat, label, least, seed, draws)
    kept = ~(stability < DISSOLVED)
    label, stability = np.append(np.where(kept, kept.cumsum() - 1, NONE), NONE)[label], stability[kept]
    strength = np.where(label == NONE, 0.0, strength)
    frame = pd.DataFrame({"user": ids, "cluster": label, "strength": strength})
    method = f"HDBSCAN, at least {least} users, {flat.shape[1]} principal axes, {draws} subsamples of {KEPT:.0%}"
    frame.attrs = {"method": method, "least": least, "silhouette": silhouette(flat, label, seed)}
    spread = flat.var(axis=0)
    frame.attrs["first_axis"] = float(spread[0] / (spread.sum() or 1))
    frame.attrs |= {"stability": dict(enumerate(stability.tolist())), "dissolved": int((~kept).sum())}
    return frame


def stable(clusters: pd.DataFrame) -> list[int]:
    """Number the clusters that can be believed: stability of .6 or more."""
    return [number for number, share in clusters.attrs["stability"].items() if share >= STABLE]


def silhouette(rows: Float[np.ndarray, "user dim"], label, seed: int = 0) -> float:
    """Say how much nearer users stand to their own class than to the next, -1 to 1; -1 and NaN in `label` are in none.

    NaN with fewer than two classes. Of more than 5,000 users as many are drawn.
    """
    from sklearn.metrics import silhouette_score

    label = pd.to_numeric(pd.Series(np.asarray(label)), errors="raise").fillna(NONE).to_numpy()
    known = np.flatnonzero(label != NONE)
    if len(known) > 5_000:
        known = np.sort(np.random.default_rng(seed).choice(known, 5_000, replace=False))
    _, sizes = np.unique(label[known], return_counts=True)
    return float(silhouette_score(rows[known], label[known])) if 1 < len(sizes) < len(known) else float("nan")


def cluster_ledger(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Keep the books of two clusterings of the same users: who stayed together, and what was born, split, merged or dissolved.

    before, after   from `find_clusters`, of the same users in any order.
    Returns `from_cluster, to_cluster, users, share_from, share_to, kind`, one row for each pair that has users (-1: none); the
    users add up to all of them. An after-cluster is the heir of a before-cluster when it takes at least half of its users, or
    is made of them by at least half. kind is

        stays    from a cluster to its only heir, which is heir of no other; or in none before and after
        split    from a cluster to one of its several heirs
        merge    from one of several clusters that share an heir to that heir
        birth    into a cluster that is no heir
        death    out of a cluster without an heir, to none or to another's heir
        leaver   out of a cluster with an heir, to none or to another's heir
        joiner   from none to an heir

    `attrs` names the clusters: `split` and `death` those before, `merge` and `birth` those after.

    Example:
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> ledger = cluster_ledger(before, before.assign(cluster=[0, 0, 1, 1]))
        >>> list(zip(ledger["to_cluster"], ledger["users"], ledger["kind"], strict=True))
        [(0, 2, 'split'), (1, 2, 'split')]
    """
    both = _joined(before, after)
    table = both.value_counts().rename("users").reset_index()
    for side, share in (("from_cluster", "share_from"), ("to_cluster", "share_to")):
        table[share] = table["users"] / table.groupby(side)["users"].transform("sum")
    link = (table[["share_from", "share_to"]].max(axis=1) >= HEIR) & (table[["from_cluster", "to_cluster"]] >= 0).all(axis=1)
    heirs, parents = table[link]["from_cluster"].value_counts(), table[link]["to_cluster"].value_counts()
    bands = zip(table["from_cluster"], table["to_cluster"], table["share_from"], link, strict=True)
    table["kind"] = [_kind(*band, heirs, parents) for band in bands]
    table = table.sort_values(["from_cluster", "to_cluster"], ignore_index=True)
    left, right = (set(both[side]) - {NONE} for side in ("from_cluster", "to_cluster"))
    table.attrs = {"split": sorted(heirs.index[heirs > 1].tolist()), "merge": sorted(parents.index[parents > 1].tolist())}
    table.attrs |= {"birth": sorted(right - set(parents.index)), "death": sorted(left - set(heirs.index))}
    return table


def _kind(old: int, new: int, share: float, link: bool, heirs: pd.Series, parents: pd.Series) -> str:
    """Say what one band of users is; a link that belongs to a split and a merge goes where most of its old cluster goes."""
    if link:
        shared, divided = parents[new] > 1, heirs[old] > 1
        return "merge" if shared and (share >= HEIR or not divided) else "split" if divided else "stays"
    if new != NONE and new not in parents:
        return "birth"
    if old == NONE:
        return "stays" if new == NONE else "joiner"
    return "leaver" if old in heirs else "death"


def ledger_sentence(ledger: pd.DataFrame, unit: str = "user") -> str:
    """Say in words what became of the clusters.

    Example:
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> ledger_sentence(cluster_ledger(before, before.assign(cluster=[0, 0, 1, 1])))
        '1 cluster became 2: 1 split.'
    """
    old, new = (ledger.loc[ledger[side] >= 0, side].nunique() for side in ("from_cluster", "to_cluster"))
    stayed = int(((ledger["kind"] == "stays") & (ledger["from_cluster"] >= 0)).sum())
    words = {"split": "split", "merge": "merged", "birth": "born", "death": "dissolved"}
    counts = {"stayed": stayed} | {word: len(ledger.attrs[kind]) for kind, word in words.items()}
    told = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "none on either side"
    left, joined = (int(ledger.loc[ledger["kind"] == kind, "users"].sum()) for kind in ("leaver", "joiner"))
    went = f" {left:,} of {int(ledger['users'].sum()):,} {unit}s left a cluster that lived on, {joined:,} joined one."
    return f"{old} cluster{'s' * (old != 1)} became {new}: {told}.{went if left or joined else ''}"


def clusters_sentence(clusters: pd.DataFrame, unit: str = "user") -> str:
    """Say in words how many groups there are and how far to believe them.

    Example:
        >>> clusters_sentence(find_clusters(np.random.default_rng(0).normal(size=(200, 16)), range(200)))
        'No clusters beyond one continuum of 200 users.'
    """
    found, total, inside = len(clusters.attrs["stability"]), len(clusters), int((clusters["cluster"] >= 0).sum())
    if not found:
        return f"No clusters beyond one continuum of {total:,} {unit}s."
    sure = len(stable(clusters))
    who = "it" if found == 1 else f"{found - sure} of them"
    believed = "" if sure == found else f"; {who} cannot be believed (stability below {STABLE:g})"
    many = f"{found} cluster{'s' * (found != 1)} hold{'s' * (found == 1)}"
    line, others = clusters.attrs["first_axis"], "" if inside == total else ", the others are in none"
    # two islands far apart lie along one line, too, but hold nearly everybody
    stretches = line > LINE and inside < ISLANDS * total
    they = "It is a dense stretch" if found == 1 else "They are dense stretches"
    where = f" {they} of one line, which holds {line:.0%} of all differences." if stretches else ""
    return f"{many} {inside:,} of {total:,} {unit}s{others}{believed}.{where}"


def _checked(embeddings, ids) -> tuple[np.ndarray, list[str]]:
    rows, ids = np.asarray(embeddings, dtype=float), [str(user) for user in ids]
    if rows.ndim != 2 or len(rows) != len(ids):
        raise ValueError(f"embeddings are {rows.shape}, ids are {len(ids):,}: give one row a user, of one query")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{len(ids):,} ids, {len(set(ids)):,} different ones: give each user once")
    if not np.isfinite(rows).all():
        raise ValueError(f"the embedding of user {ids[np.argwhere(~np.isfinite(rows))[0][0]]!r} is not finite: leave it out")
    if len(ids) < 15:
        raise ValueError(f"{len(ids)} users, at least 15 are needed to look for groups: take more")
    return rows, ids


def _flat(rows: Float[np.ndarray, "user dim"]) -> Flat:
    from sklearn.decomposition import PCA

    return PCA(min(AXES, *rows.shape), svd_solver="full").fit_transform(rows)


def _dense(flat: Flat, least: int) -> tuple[Int[np.ndarray, " user"], Float[np.ndarray, " user"]]:
    """Cluster by density; clusters are numbered by falling size, ties as they were found."""
    from sklearn.cluster import HDBSCAN

    # A single cluster is never asked for: sklearn's choice then is a dozen users in the middle of a blob
    # as many neighbours make a place dense as make a cluster (if not too many to hold): with few, a blob falls into clumps
    fit = HDBSCAN(min_cluster_size=least, min_samples=min(least, NEAR), copy=True).fit(flat)
    sizes = np.bincount(fit.labels_[fit.labels_ >= 0], minlength=0)
    place = np.append(np.argsort(np.argsort(-sizes, kind="stable"), kind="stable"), NONE)
    return place[fit.labels_], fit.probabilities_


def _stability(flat: Flat, label: Int[np.ndarray, " user"], least: int, seed: int, draws: int) -> Float[np.ndarray, " cluster"]:
    """Cluster subsamples anew and give each cluster's mean Jaccard overlap with its best match there."""
    random, found = np.random.default_rng(seed), int(label.max()) + 1
    overlap = np.full((draws, found), np.nan)
    for draw in range(draws if found else 0):
        rows = np.sort(random.choice(len(flat), round(KEPT * len(flat)), replace=False))
        again, _ = _dense(flat[rows], max(2, round(KEPT * least)))
        table = np.zeros((found + 1, again.max() + 2))  # the last row and column are those of none
        np.add.at(table, (label[rows], again), 1)
        either = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
        overlap[draw] = (table / np.maximum(either, 1))[:found, :-1].max(axis=1, initial=0)
    return overlap.mean(axis=0) if draws else np.full(found, np.nan)


def _joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    if odd := sorted(set(before["user"]) ^ set(after["user"])):
        sizes = f"{len(before):,} users before, {len(after):,} after"
        raise ValueError(f"{sizes}: {odd[0]!r} is on one side only; cluster the same users twice")
    sides = {"from_cluster": before, "to_cluster": after}
    return pd.concat([frame.set_index("user")["cluster"].rename(side) for side, frame in sides.items()], axis=1)
