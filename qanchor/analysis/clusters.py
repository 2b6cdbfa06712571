"""Find clusters of users under a question, and compare them with those under another question."""

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

# principal axes that are kept: in 128 dimensions all distances are similar, so density says little
MAX_AXES = 16
MIN_USERS = 15  # fewest users that can be clustered, and smallest default size of a cluster
SUBSAMPLES = 20
SEED = 0  # of the subsamples
# share of the users in each subsample; in larger subsamples, random clumps recur and look stable
SUBSAMPLE_SHARE = 0.5
# a cluster with a lower mean overlap with its matches in subsamples is dropped (Hennig 2007)
DISSOLVED = 0.5
STABLE = 0.6  # a cluster with a lower mean overlap is kept, but not reliable (Hennig 2007)
NEAR = 60  # largest min_samples of HDBSCAN, to limit memory
# share of the variance along one axis above which clusters are stretches of a line, not islands
LINE = 0.8
ISLANDS = 0.9  # unless this share of the users is in clusters: then they are islands
MAX_SILHOUETTE_USERS = 5_000  # with more users, the silhouette is computed on a sample
SUCCESSOR_SHARE = 0.5  # share of users that makes one cluster the successor of another
NONE = -1  # cluster number of users that are in no cluster
AxisRows = Float[np.ndarray, "user axis"]


def find_clusters(embeddings: EmbeddingRows, ids, *, least: int | None = None) -> pd.DataFrame:
    """Find clusters of users and estimate how stable each is.

    Args:
        embeddings: Embeddings under one query, in the order of `ids`. Rows are scaled to unit
            length, so that distance follows the cosine.
        ids: Ids of the users.
        least: Smallest size of a cluster (default: 3 % of the users, at least 15).

    Returns:
        `user, cluster`: clusters are numbered from 0, the largest first; -1 is none. If all users
        are in none, they form one continuum. `attrs` holds `least`, `axes`, `stability` (for each
        cluster, the mean Jaccard overlap with its best match in each subsample; clusters below 0.5
        are dropped, and below 0.6 they are not reliable) and `first_axis` (share of the variance
        along one line; if it is near 1, clusters are dense stretches of that line).

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
            "Pass more."
        )
    if least is None:
        least = max(MIN_USERS, round(0.03 * n_users))
    if not 2 <= least <= n_users:
        raise ValueError(
            f"least is {least} for {n_users:,} users. Pass a number from 2 to the number of users."
        )
    axes = _principal_axes(l2_normalize(np.asarray(embeddings, float)))
    candidate = _dense_clusters(axes, least)
    stability = _stability(axes, candidate, least)
    stays = stability >= DISSOLVED
    number = np.where(stays, stays.cumsum() - 1, NONE)
    number = np.append(number, NONE)  # the last, at -1: users in no candidate
    users = [str(user) for user in ids]
    frame = pd.DataFrame({"user": users, "cluster": number[candidate]})
    variance = axes.var(axis=0)
    frame.attrs = {
        "least": least,
        "axes": axes.shape[1],
        "first_axis": float(variance[0] / (variance.sum() or 1)),
        "stability": dict(enumerate(stability[stays].tolist())),
    }
    return frame


def cluster_transitions(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Count the users that go from each cluster to each other one, and classify the transitions.

    A cluster is the successor of an earlier one if it receives at least half of that cluster's
    users, or if at least half of its own users come from there.

    Args:
        before: Clusters from `find_clusters`.
        after: Clusters from `find_clusters`, of the same users in any order.

    Returns:
        `from_cluster, to_cluster, users, share_from, share_to, kind`, one row for each pair of
        clusters that has users (-1: none). Every user is counted once. `kind` is

            stays    from a cluster to its only successor, which succeeds no other cluster; or in
                     none before and after
            split    from a cluster to one of its several successors
            merge    from one of several clusters that share a successor to that successor
            birth    into a cluster that is not a successor
            death    out of a cluster without a successor, to none or to the successor of another
            leaver   out of a cluster with a successor, to none or to the successor of another
            joiner   from none to a successor

        `attrs` lists the clusters concerned: for `split` and `death` those before, for `merge` and
        `birth` those after.

    Raises:
        ValueError: If the users are not the same.

    Example:
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> transitions = cluster_transitions(before, before.assign(cluster=[0, 0, 1, 1]))
        >>> transitions[["to_cluster", "users", "kind"]].to_numpy().tolist()
        [[0, 2, 'split'], [1, 2, 'split']]
    """
    one_sided = sorted(set(before["user"]) ^ set(after["user"]))
    if one_sided:
        sizes = f"{len(before):,} users before, {len(after):,} after"
        raise ValueError(
            f"User {one_sided[0]!r} is on one side only ({sizes}). Pass clusters of the same users."
        )
    both = before.merge(after, on="user", suffixes=("_before", "_after"))
    counts = both.groupby(["cluster_before", "cluster_after"]).size().rename("users")
    table = counts.rename_axis(["from_cluster", "to_cluster"]).reset_index()
    old = table["from_cluster"]
    new = table["to_cluster"]
    users = table["users"]
    share_from = users / users.groupby(old).transform("sum")
    share_to = users / users.groupby(new).transform("sum")
    largest_share = np.maximum(share_from, share_to)
    is_link = (largest_share >= SUCCESSOR_SHARE) & (old != NONE) & (new != NONE)
    n_successors = is_link.groupby(old).transform("sum")
    n_parents = is_link.groupby(new).transform("sum")
    is_split = n_successors > 1
    is_merge = n_parents > 1
    is_birth = (new != NONE) & (n_parents == 0)
    is_death = (old != NONE) & (n_successors == 0)
    # a link that is part of both a split and a merge is a merge if most of the old cluster takes it
    merges = is_link & is_merge & (~is_split | (share_from >= SUCCESSOR_SHARE))
    stays = is_link | ((old == NONE) & (new == NONE))
    table["share_from"] = share_from
    table["share_to"] = share_to
    table["kind"] = np.select(  # the first that holds
        [merges, is_link & is_split, stays, is_birth, old == NONE, ~is_death],
        ["merge", "split", "stays", "birth", "joiner", "leaver"],
        "death",
    )
    table.attrs = {
        "split": np.unique(old[is_split]).tolist(),
        "merge": np.unique(new[is_merge]).tolist(),
        "birth": np.unique(new[is_birth]).tolist(),
        "death": np.unique(old[is_death]).tolist(),
    }
    return table


def _principal_axes(rows: EmbeddingRows) -> AxisRows:
    """Project embeddings onto their first principal axes."""
    from sklearn.decomposition import PCA

    return PCA(min(MAX_AXES, *rows.shape), svd_solver="full").fit_transform(rows)


def _dense_clusters(axes: AxisRows, least: int) -> UserInts:
    """Cluster with HDBSCAN and number the clusters by decreasing size."""
    from sklearn.cluster import HDBSCAN

    # allow_single_cluster stays off: it would return a dozen users in the middle of a blob
    # min_samples equals the smallest cluster size, up to NEAR: with a small one, a blob falls apart
    # into clumps
    fit = HDBSCAN(min_cluster_size=least, min_samples=min(least, NEAR), copy=True).fit(axes)
    sizes = np.bincount(fit.labels_[fit.labels_ >= 0])
    largest_first = np.argsort(-sizes, kind="stable")
    number = np.full(len(sizes) + 1, NONE)  # the last, at -1, stays NONE
    number[largest_first] = np.arange(len(sizes))
    return number[fit.labels_]


def _stability(axes: AxisRows, cluster: UserInts, least: int) -> Float[np.ndarray, " cluster"]:
    """Cluster subsamples and return each cluster's mean Jaccard overlap with its best match there.

    Subsamples are drawn without replacement, because a user drawn twice would look like a dense
    region.
    """
    n_clusters = int(cluster.max()) + 1
    if not n_clusters:
        return np.zeros(0)
    random = np.random.default_rng(SEED)
    n_sampled = round(SUBSAMPLE_SHARE * len(axes))
    least = max(2, round(SUBSAMPLE_SHARE * least))
    overlaps = []
    for _ in range(SUBSAMPLES):
        rows = np.sort(random.choice(len(axes), n_sampled, replace=False))
        again = _dense_clusters(axes[rows], least)
        both = np.zeros((n_clusters + 1, again.max() + 2))  # last row and column: none
        np.add.at(both, (cluster[rows], again), 1)
        either = both.sum(axis=1, keepdims=True) + both.sum(axis=0) - both
        jaccard = both / np.maximum(either, 1)
        overlaps.append(jaccard[:-1, :-1].max(axis=1, initial=0))
    return np.mean(overlaps, axis=0)


SIDES = ("before", "after")
SCORES = ["side", "auc", "auc_low", "auc_high", "ks", "silhouette", "n", "positives"]


@dataclass(frozen=True)
class ClusterComparison:
    """Hold the clusters of the same users under two queries, and how they relate.

    Args:
        points: `user, query, x, y, trust`, one joint map. The queries are "before", "after" and,
            for prototypes, "mark".
        before: `user, cluster` under the first query, from `find_clusters`.
        after: The same under the second query.
        names: `side` and the columns of `describe_clusters`.
        transitions: Transitions from `cluster_transitions`.
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
        labels: Index user; 0, 1 or NaN (default: none). Pass those of held-out users only, since
            labels that a prompt was tuned on inflate the scores of `after`.
        prototypes: Vectors (dim,) by name, as a soft prompt learns them (default: none). They are
            placed on the map among the users of `after`.
        least: Smallest size of a cluster (default: see `find_clusters`).
        method: Method of the map, "umap" (default) or "pca".

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
    for side, rows in (("before", before), ("after", after)):
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
    """Return the scores of a linear probe on one side, and the silhouette of the labels."""
    from sklearn.metrics import silhouette_score

    labels = labels.set_axis(labels.index.astype(str)).reindex(list(users.ids))
    probe = linear_probe(rows, labels)
    known = labels.notna().to_numpy()
    unit_rows = l2_normalize(rows[known].astype(float))
    sample_size = MAX_SILHOUETTE_USERS if probe.n > MAX_SILHOUETTE_USERS else None
    silhouette = silhouette_score(unit_rows, labels[known], sample_size=sample_size, random_state=0)
    return {"side": side, "silhouette": float(silhouette), **vars(probe)}
