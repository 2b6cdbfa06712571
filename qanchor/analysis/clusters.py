"""Clusters of users under a question, and what becomes of them under another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.analysis.groups import describe_clusters
from qanchor.analysis.projection import joint_projection
from qanchor.analysis.shift import neighbors_changed
from qanchor.data.users import Users
from qanchor.evaluation.probe import linear_probe
from qanchor.utils.arrays import l2_normalize
from qanchor.utils.types import EmbeddingRows, UserInts

# in 128 dimensions all distances are alike and density says little: the axes along which users
# differ most stay
MAX_AXES = 16
MIN_USERS = 15  # users to cluster at least, and users in the smallest cluster
SUBSAMPLES = 20
# of the users are in each subsample; in larger ones the chance clumps of one sample come back and
# look stable
SUBSAMPLE_SHARE = 0.5
# below it, subsamples lose a cluster more often than they find it: it is given up (Hennig 2007)
DISSOLVED = 0.5
STABLE = 0.6  # below it, a cluster is one of the sample and hardly one of the users (Hennig 2007)
NEAR = 60
# of the differences along one axis: what is found there are stretches of a line rather than islands
LINE = 0.8
ISLANDS = 0.9  # of the users are in clusters where these are islands
MAX_SILHOUETTE_USERS = 5_000  # a silhouette is the mean over a sample of more users
SUCCESSOR_SHARE = 0.5  # share of its users that makes one cluster the successor of another
NONE = -1  # the cluster of those who are in none
Flat = Float[np.ndarray, "user axis"]


def find_clusters(
    embeddings: EmbeddingRows,
    ids,
    *,
    least: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Find clusters of users and estimate how stable each is.

    Args:
        embeddings: Of one query, in the order of `ids`; rows are scaled to unit length, so distance
        follows the cosine.
        ids: The users.
        least: Users that a cluster must have; default 3 % of them, at least 15.
        seed: Seed of the subsamples; default 0.

    Returns:
        `user, cluster`: clusters are numbered by size from 0, -1 is none. If nobody is in a
        cluster, the users are one continuum. `attrs` holds `least`, `axes`, `stability` (by
        cluster, the mean Jaccard overlap with its best match among the clusters of each subsample;
        candidates below 0.5 are given up, a cluster below 0.6 is not reliable either) and
        `first_axis` (share of the variance along one line; near 1, clusters are dense stretches of
        it).

    Raises:
        ValueError: If there are too few users, or `least` is out of range.

    Source: HDBSCAN (Campello et al. 2013) on the first 16 principal axes; stability as in Hennig
    (2007).

    Example:
        >>> random, place = np.random.default_rng(0), np.repeat(np.eye(3, 8), 40, axis=0)
        >>> rows = place + random.normal(scale=0.1, size=place.shape)
        >>> clusters = find_clusters(rows, [f"u{i}" for i in range(120)])
        >>> clusters["cluster"].value_counts().tolist()
        [40, 40, 40]
        >>> [round(float(stability), 1) for stability in clusters.attrs["stability"].values()]
        [1.0, 1.0, 1.0]
    """
    n_users = len(embeddings)
    if n_users < MIN_USERS:
        raise ValueError(
            f"Found {n_users} users; at least {MIN_USERS} are required to look for clusters. "
            "Give more."
        )
    least = max(MIN_USERS, round(0.03 * n_users)) if least is None else least
    if not 2 <= least <= n_users:
        raise ValueError(
            f"least is {least} for {n_users:,} users. Give a number from 2 to the number of users."
        )
    flat = _flat(l2_normalize(np.asarray(embeddings, float)))
    candidate = _dense(flat, least)
    stability = _stability(flat, candidate, least, seed)
    stays = stability >= DISSOLVED
    number = np.append(np.where(stays, stays.cumsum() - 1, NONE), NONE)  # the last is that of none
    users = [str(user) for user in ids]
    frame = pd.DataFrame({"user": users, "cluster": number[candidate]})
    spread = flat.var(axis=0)
    frame.attrs = {
        "least": least,
        "axes": flat.shape[1],
        "first_axis": float(spread[0] / (spread.sum() or 1)),
        "stability": dict(enumerate(stability[stays].tolist())),
    }
    return frame


def cluster_transitions(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Count who went from which cluster to which, and classify each transition.

    A cluster is the successor of an earlier one if it takes at least half of its users, or consists
    of them by at least half.

    Args:
        before: From `find_clusters`.
        after: From `find_clusters`, of the same users in any order.

    Returns:
        `from_cluster, to_cluster, users, share_from, share_to, kind`, one row for each pair that
        has users (-1: none); the users add up to all of them. kind is

            stays    from a cluster to its only successor, which succeeds no other; or in none
                     before and after
            split    from a cluster to one of its several successors
            merge    from one of several clusters that share a successor to that successor
            birth    into a cluster that is no successor
            death    out of a cluster without a successor, to none or to the successor of another
            leaver   out of a cluster with a successor, to none or to the successor of another
            joiner   from none to a successor

        `attrs` lists the clusters: `split` and `death` those before, `merge` and `birth` those
        after.

    Raises:
        ValueError: If the users are not the same.

    Example:
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> transitions = cluster_transitions(before, before.assign(cluster=[0, 0, 1, 1]))
        >>> transitions[["to_cluster", "users", "kind"]].to_numpy().tolist()
        [[0, 2, 'split'], [1, 2, 'split']]
    """
    both = _joined(before, after)
    table = both.value_counts().rename("users").reset_index()
    for side, share in (("from_cluster", "share_from"), ("to_cluster", "share_to")):
        table[share] = table["users"] / table.groupby(side)["users"].transform("sum")
    from_none = table["from_cluster"] == NONE
    to_none = table["to_cluster"] == NONE
    is_large = table[["share_from", "share_to"]].max(axis=1) >= SUCCESSOR_SHARE
    link = is_large & ~from_none & ~to_none
    n_successors = link.groupby(table["from_cluster"]).transform("sum")
    n_parents = link.groupby(table["to_cluster"]).transform("sum")
    is_birth = ~to_none & (n_parents == 0)
    is_death = ~from_none & (n_successors == 0)
    # a link that is part of a split and a merge counts where most of its old cluster goes
    mostly = (table["share_from"] >= SUCCESSOR_SHARE) | (n_successors < 2)
    kinds = {  # the first that holds
        "merge": link & (n_parents > 1) & mostly,
        "split": link & (n_successors > 1),
        "stays": link | (from_none & to_none),
        "birth": is_birth,
        "joiner": from_none,
        "leaver": ~is_death,
    }
    table["kind"] = np.select(list(kinds.values()), list(kinds), "death")
    clusters = {
        "split": table["from_cluster"][n_successors > 1],
        "merge": table["to_cluster"][n_parents > 1],
        "birth": table["to_cluster"][is_birth],
        "death": table["from_cluster"][is_death],
    }
    table = table.sort_values(["from_cluster", "to_cluster"], ignore_index=True)
    table.attrs = {kind: sorted(set(numbers.tolist())) for kind, numbers in clusters.items()}
    return table


def _flat(rows: EmbeddingRows) -> Flat:
    from sklearn.decomposition import PCA

    return PCA(min(MAX_AXES, *rows.shape), svd_solver="full").fit_transform(rows)


def _dense(flat: Flat, least: int) -> UserInts:
    """Cluster by density; clusters are numbered by falling size, ties as they were found."""
    from sklearn.cluster import HDBSCAN

    # A single cluster is never asked for: sklearn's choice then is a dozen users in the middle of a
    # blob
    # as many neighbours make a place dense as make a cluster (if not too many to hold): with few, a
    # blob falls into clumps
    fit = HDBSCAN(min_cluster_size=least, min_samples=min(least, NEAR), copy=True).fit(flat)
    sizes = np.bincount(fit.labels_[fit.labels_ >= 0], minlength=0)
    place = np.append(np.argsort(np.argsort(-sizes, kind="stable"), kind="stable"), NONE)
    return place[fit.labels_]


def _stability(flat: Flat, label: UserInts, least: int, seed: int) -> Float[np.ndarray, " cluster"]:
    """Cluster subsamples and return each cluster's mean Jaccard overlap with its best match there.

    Subsamples are drawn without replacement, because a user that is drawn twice looks dense.
    """
    random = np.random.default_rng(seed)
    n_clusters = int(label.max()) + 1
    overlap = np.full((SUBSAMPLES, n_clusters), np.nan)
    size = round(SUBSAMPLE_SHARE * len(flat))
    for draw in range(SUBSAMPLES if n_clusters else 0):
        rows = np.sort(random.choice(len(flat), size, replace=False))
        again = _dense(flat[rows], max(2, round(SUBSAMPLE_SHARE * least)))
        both = np.zeros((n_clusters + 1, again.max() + 2))  # last row and column: none
        np.add.at(both, (label[rows], again), 1)
        either = both.sum(axis=1, keepdims=True) + both.sum(axis=0) - both
        jaccard = both / np.maximum(either, 1)
        overlap[draw] = jaccard[:n_clusters, :-1].max(axis=1, initial=0)
    return overlap.mean(axis=0)


def _joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    one_sided = sorted(set(before["user"]) ^ set(after["user"]))
    if one_sided:
        sizes = f"{len(before):,} users before, {len(after):,} after"
        raise ValueError(
            f"User {one_sided[0]!r} is on one side only ({sizes}). Cluster the same users twice."
        )
    old = before.set_index("user")["cluster"].rename("from_cluster")
    new = after.set_index("user")["cluster"].rename("to_cluster")
    return pd.concat([old, new], axis=1)


SIDES = ("before", "after")
SCORES = ["side", "auc", "auc_low", "auc_high", "ks", "silhouette", "n", "positives"]


@dataclass(frozen=True)
class ClusterComparison:
    """Hold the clusters of the same users under two queries, and how they relate.

    Args:
        points: `user, query, x, y, trust`, one joint map; the queries are "before", "after" and,
        for prototypes, "mark".
        before: `user, cluster`, from `find_clusters`.
        after: The same for the second query.
        names: `side` and the columns of `describe_clusters`.
        transitions: From `cluster_transitions`.
        scores: One row per side: `side, auc, auc_low, auc_high, ks, silhouette, n, positives`;
        empty without labels.
        neighbors_kept: Mean share of the 15 nearest neighbours that a user keeps.
    """

    points: pd.DataFrame
    before: pd.DataFrame
    after: pd.DataFrame
    names: pd.DataFrame
    transitions: pd.DataFrame
    scores: pd.DataFrame
    neighbors_kept: float


def compare_clusters(
    before: EmbeddingRows,
    after: EmbeddingRows,
    users: Users,
    *,
    labels: pd.Series | None = None,
    prototypes: dict[str, np.ndarray] | None = None,
    least: int | None = None,
    method: str = "umap",
) -> ClusterComparison:
    """Compare the clusters of users under two queries, or without and with a soft prompt.

    Args:
        before: Embeddings under the first query, in the order of `users.ids`.
        after: Embeddings of the same users under the second.
        users: The users.
        labels: Index user; 0, 1 or NaN. Give those of held-out users only: labels that a prompt was
        tuned on flatter `after`.
        prototypes: Vectors (dim,) by name, as a soft prompt learned them; they are drawn among the
        users of `after`.
        least: Users that a cluster must have; default: see `find_clusters`.
        method: Of the map, "umap" or "pca"; default "umap".

    Returns:
        The comparison.

    Raises:
        ValueError: If the embeddings are not of these users.

    Example:
        >>> users, random = qa.make_sample_users(60), np.random.default_rng(0)
        >>> rows = np.repeat(np.eye(2, 8), 30, axis=0) + random.normal(scale=0.05, size=(60, 8))
        >>> labels = users.label("Active")
        >>> comparison = compare_clusters(rows, rows, users, labels=labels, method="pca")
        >>> comparison.transitions["kind"].tolist()
        ['stays', 'stays']
    """
    if not len(before) == len(after) == len(users):
        sizes = f"Found {len(before):,} rows before, {len(after):,} after, and {len(users):,} users"
        raise ValueError(f"{sizes}. Embed the same users twice, in the order of users.ids.")
    clusters = {}
    names = []
    scores = []
    for side, rows in zip(SIDES, (before, after), strict=True):
        clusters[side] = find_clusters(rows, users.ids, least=least)
        names.append(describe_clusters(clusters[side], users).assign(side=side))
        if labels is not None:
            scores.append(_scores(side, rows, users, labels))
    changes = neighbors_changed(l2_normalize(before), l2_normalize(after), users.ids)
    return ClusterComparison(
        points=joint_projection(before, after, users.ids, SIDES, method=method, marks=prototypes),
        before=clusters["before"],
        after=clusters["after"],
        names=pd.concat(names, ignore_index=True),
        transitions=cluster_transitions(clusters["before"], clusters["after"]),
        scores=pd.DataFrame(scores, columns=SCORES),
        neighbors_kept=float(changes["neighbours_kept"].mean()),
    )


def _scores(side: str, rows: EmbeddingRows, users: Users, labels: pd.Series) -> dict:
    """Return how well a linear probe reads the labels from one side, and how far their classes are
    apart.
    """
    from sklearn.metrics import silhouette_score

    labels = labels.set_axis(labels.index.astype(str)).reindex(list(users.ids))
    probe = linear_probe(rows, labels)
    known = labels.notna().to_numpy()
    size = MAX_SILHOUETTE_USERS if probe.n > MAX_SILHOUETTE_USERS else None
    apart = silhouette_score(
        l2_normalize(rows[known].astype(float)), labels[known], sample_size=size, random_state=0
    )
    return {"side": side, "silhouette": float(apart), **vars(probe)}
