"""Clusters of users under a question, and what becomes of them under another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qanchor.analysis.groups import describe_clusters
from qanchor.analysis.projection import joint_projection
from qanchor.analysis.shift import neighbors_kept, noise_floor, residual_shift
from qanchor.data.users import Users
from qanchor.evaluation.probe import cross_val_scores, summarize_cv
from qanchor.utils.arrays import l2_normalize
from qanchor.workbench.messages import clusters_summary, projection_caption, transitions_summary

MAX_AXES = 16  # in 128 dimensions all distances are alike and density says little: the axes along which users differ most stay
SUBSAMPLES = 20
SUBSAMPLE_SHARE = (
    0.5  # of the users are in each subsample; in larger ones the chance clumps of one sample come back and look stable
)
DISSOLVED = 0.5  # below it, subsamples lose a cluster more often than they find it: it is given up (Hennig 2007)
STABLE = 0.6  # below it, a cluster is one of the sample and hardly one of the users (Hennig 2007)
NEAR = 60
LINE = 0.8  # of the differences along one axis: what is found there are stretches of a line rather than islands
ISLANDS = 0.9  # of the users are in clusters where these are islands
SUCCESSOR_SHARE = 0.5  # the share of its users that makes one cluster the heir of another
NONE = -1  # the cluster of those who are in none
Flat = Float[np.ndarray, "user axis"]


def find_clusters(
    embeddings: Float[np.ndarray, "user dim"], ids, *, least: int | None = None, seed: int = 0, draws: int = SUBSAMPLES
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
    flat = _flat(l2_normalize(rows))
    label, strength = _dense(flat, least)
    stability = _stability(flat, label, least, seed, draws)
    kept = ~(stability < DISSOLVED)
    label, stability = np.append(np.where(kept, kept.cumsum() - 1, NONE), NONE)[label], stability[kept]
    strength = np.where(label == NONE, 0.0, strength)
    frame = pd.DataFrame({"user": ids, "cluster": label, "strength": strength})
    method = f"HDBSCAN, at least {least} users, {flat.shape[1]} principal axes, {draws} subsamples of {SUBSAMPLE_SHARE:.0%}"
    frame.attrs = {"method": method, "least": least, "silhouette": silhouette(flat, label, seed)}
    spread = flat.var(axis=0)
    frame.attrs["first_axis"] = float(spread[0] / (spread.sum() or 1))
    frame.attrs |= {"stability": dict(enumerate(stability.tolist())), "dissolved": int((~kept).sum())}
    return frame


def stable_clusters(clusters: pd.DataFrame) -> list[int]:
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


def cluster_transitions(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
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
        >>> ledger = cluster_transitions(before, before.assign(cluster=[0, 0, 1, 1]))
        >>> list(zip(ledger["to_cluster"], ledger["users"], ledger["kind"], strict=True))
        [(0, 2, 'split'), (1, 2, 'split')]
    """
    both = _joined(before, after)
    table = both.value_counts().rename("users").reset_index()
    for side, share in (("from_cluster", "share_from"), ("to_cluster", "share_to")):
        table[share] = table["users"] / table.groupby(side)["users"].transform("sum")
    link = (table[["share_from", "share_to"]].max(axis=1) >= SUCCESSOR_SHARE) & (
        table[["from_cluster", "to_cluster"]] >= 0
    ).all(axis=1)
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
        return "merge" if shared and (share >= SUCCESSOR_SHARE or not divided) else "split" if divided else "stays"
    if new != NONE and new not in parents:
        return "birth"
    if old == NONE:
        return "stays" if new == NONE else "joiner"
    return "leaver" if old in heirs else "death"


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

    return PCA(min(MAX_AXES, *rows.shape), svd_solver="full").fit_transform(rows)


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
        rows = np.sort(random.choice(len(flat), round(SUBSAMPLE_SHARE * len(flat)), replace=False))
        again, _ = _dense(flat[rows], max(2, round(SUBSAMPLE_SHARE * least)))
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


EmbeddingRows = Float[np.ndarray, "user dim"]
SIDES = ("before", "after")
SCORES = ["side", "auc", "auc_low", "auc_high", "ks", "silhouette", "n", "positives"]


def compare_clusters(
    before: EmbeddingRows,
    after: EmbeddingRows,
    users: Users,
    *,
    labels: pd.Series | None = None,
    prototypes: dict[str, np.ndarray] | None = None,
    paraphrases: Sequence[EmbeddingRows] = (),
    floor: float | None = None,
    least: int | None = None,
    method: str = "umap",
    seed: int = 0,
) -> dict:
    """Show what a soft prompt, or another question, did to the groups of users: all that a `ClusterLedger` draws.

    before, after   embeddings of the same users, in the order of `users.ids`.
    labels          index user; 0, 1 or NaN. Give those of held-out users alone: whoever was tuned on flatters `after`.
    prototypes      name -> (dim,), as a soft prompt learned them; they are drawn among the users of `after`.
    paraphrases     embeddings of the first question in other words: `sentence` then says how many users change cluster by
                    rewording alone, and the noise floor comes from them.
    floor           the noise floor of the shift, if it is known (`noise_floor`): the ledger then says what share of a
                    band's users moved beyond it (`beyond_noise`), the others having changed cluster with hardly a step.
    Returns frames: `points` (user, query, x, y, trust; the queries are before, after and mark), `before` and `after` (user,
    cluster, strength), `names` (side and what `describe_clusters` gives), `ledger`, `scores` (side, auc, auc_low, auc_high, ks,
    silhouette, n, positives; of the labels, by the linear probe across folds; empty without labels); and words: `sentence` of
    the ledger, `said` of each side's clusters, `projection_caption`.

    Example:
        >>> users, random = qa.make_sample_users(60), np.random.default_rng(0)
        >>> rows = np.repeat(np.eye(2, 8), 30, axis=0) + random.normal(scale=0.05, size=(60, 8))
        >>> told = compare_clusters(rows, rows, users, labels=users.label("Active"), method="pca")
        >>> told["sentence"]
        '2 clusters became 2: 2 stayed.'
    """
    if not len(before) == len(after) == len(users):
        sizes = f"{len(before):,} rows before, {len(after):,} after, {len(users):,} users"
        raise ValueError(f"{sizes}: embed the same users twice, in the order of users.ids")
    sides = dict(zip(SIDES, (before, after), strict=True))
    found = {side: find_clusters(rows, users.ids, least=least, seed=seed) for side, rows in sides.items()}
    names = pd.concat(
        [describe_clusters(clusters, users).assign(side=side) for side, clusters in found.items()], ignore_index=True
    )
    ledger = cluster_transitions(found["before"], found["after"])
    sentence = transitions_summary(ledger, users.unit)
    if len(paraphrases):
        floor = noise_floor(l2_normalize(before), [l2_normalize(rows) for rows in paraphrases]) if floor is None else floor
        again = [cluster_transitions(found["before"], find_clusters(z, users.ids, least=least, seed=seed)) for z in paraphrases]
        sentence += f" {_paraphrase_noise(ledger, again, users.unit)}"
    if floor is not None:
        ledger = ledger.assign(
            beyond_noise=_share_beyond_noise(found, ledger, residual_shift(l2_normalize(before), l2_normalize(after)) > floor)
        )
    points = joint_projection(before, after, users.ids, SIDES, seed, method, marks=prototypes)
    kept = neighbors_kept(l2_normalize(before), l2_normalize(after)).mean()
    said = {side: clusters_summary(found[side], users.unit) for side in SIDES}
    kind = found["after"].attrs["method"]
    caption = f"{projection_caption(points, users.unit)} {kept:.0%} of the 15 nearest neighbours were kept. Clusters: {kind}."
    judged = [] if labels is None else [_scores(side, rows, users, labels, seed) for side, rows in sides.items()]
    scores = pd.DataFrame(judged, columns=SCORES)
    words = {"sentence": sentence, "said": said, "caption": caption, "unit": users.unit}
    return {"points": points, **found, "names": names, "ledger": ledger, "scores": scores, **words}


def _scores(side: str, rows: EmbeddingRows, users: Users, labels: pd.Series, seed: int) -> dict:
    """Say how well the labels of the users who have one are told, and how far their classes stand apart."""
    known = labels.set_axis(labels.index.astype(str)).reindex(list(users.ids)).to_numpy(dtype=float)
    told = summarize_cv(*cross_val_scores(rows, known, seed), known)
    counts = {"n": told.n, "positives": told.positives}
    apart = silhouette(l2_normalize(np.asarray(rows, dtype=float)), known)
    figures = {"auc": told.auc, "auc_low": told.auc_low, "auc_high": told.auc_high, "ks": told.ks, "silhouette": apart}
    return {"side": side, **figures, **counts}


def _paraphrase_noise(ledger: pd.DataFrame, again: list[pd.DataFrame], unit: str) -> str:
    """Say how many changed cluster, and how many do when the question is only put in other words."""
    changed, *reworded = (int(table.loc[table["kind"] != "stays", "users"].sum()) for table in (ledger, *again))
    low, high = min(reworded), max(reworded)
    words = f"{len(reworded)} paraphrase{'s' * (len(reworded) != 1)}"
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{changed:,} {unit}s changed cluster; rewording the first question alone changes {span} ({words})."


def _share_beyond_noise(found: dict[str, pd.DataFrame], ledger: pd.DataFrame, moved: np.ndarray) -> np.ndarray:
    """Say what share of each band's users moved beyond the noise floor."""
    bands = pd.DataFrame({"from_cluster": found["before"]["cluster"], "to_cluster": found["after"]["cluster"], "moved": moved})
    share = bands.groupby(["from_cluster", "to_cluster"])["moved"].mean()
    return share.loc[list(zip(ledger["from_cluster"], ledger["to_cluster"], strict=True))].to_numpy()
