"""Two questions side by side, as before and after tuning: one map, both clusterings with names, the ledger, and the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from . import maps
from .clusters import cluster_ledger, clusters_sentence, find_clusters, ledger_sentence, silhouette
from .probe import held_out_scores, summary
from .schema import Users
from .telling import name_clusters

Rows = Float[np.ndarray, "user dim"]
SIDES = ("before", "after")
SCORES = ["side", "auc", "auc_low", "auc_high", "ks", "silhouette", "n", "positives"]


def compare(
    before: Rows,
    after: Rows,
    users: Users,
    *,
    labels: pd.Series | None = None,
    prototypes: dict[str, np.ndarray] | None = None,
    paraphrases: Sequence[Rows] = (),
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
    floor           the noise floor of the shift, if it is known (`maps.noise_floor`): the ledger then says what share of a
                    band's users moved beyond it (`beyond_noise`), the others having changed cluster with hardly a step.
    Returns frames: `points` (user, query, x, y, trust; the queries are before, after and mark), `before` and `after` (user,
    cluster, strength), `names` (side and what `name_clusters` gives), `ledger`, `scores` (side, auc, auc_low, auc_high, ks,
    silhouette, n, positives; of the labels, by the linear probe across folds; empty without labels); and words: `sentence` of
    the ledger, `said` of each side's clusters, `caption`.

    Example:
        >>> users, random = qa.make_world(60), np.random.default_rng(0)
        >>> rows = np.repeat(np.eye(2, 8), 30, axis=0) + random.normal(scale=0.05, size=(60, 8))
        >>> told = compare(rows, rows, users, labels=users.label("Active"), method="pca")
        >>> told["sentence"]
        '2 clusters became 2: 2 stayed.'
    """
    if not len(before) == len(after) == len(users):
        sizes = f"{len(before):,} rows before, {len(after):,} after, {len(users):,} users"
        raise ValueError(f"{sizes}: embed the same users twice, in the order of users.ids")
    sides = dict(zip(SIDES, (before, after), strict=True))
    found = {side: find_clusters(rows, users.ids, least=least, seed=seed) for side, rows in sides.items()}
    names = pd.concat([name_clusters(clusters, users).assign(side=side) for side, clusters in found.items()], ignore_index=True)
    ledger = cluster_ledger(found["before"], found["after"])
    sentence = ledger_sentence(ledger, users.unit)
    if len(paraphrases):
        floor = maps.noise_floor(maps.unit(before), [maps.unit(rows) for rows in paraphrases]) if floor is None else floor
        again = [cluster_ledger(found["before"], find_clusters(z, users.ids, least=least, seed=seed)) for z in paraphrases]
        sentence += f" {_noise(ledger, again, users.unit)}"
    if floor is not None:
        ledger = ledger.assign(beyond_noise=_beyond(found, ledger, maps.residuals(maps.unit(before), maps.unit(after)) > floor))
    points = maps.joint_map(before, after, users.ids, SIDES, seed, method, marks=prototypes)
    kept = maps.neighbours_kept(maps.unit(before), maps.unit(after)).mean()
    said = {side: clusters_sentence(found[side], users.unit) for side in SIDES}
    kind = found["after"].attrs["method"]
    caption = f"{maps.caption(points, users.unit)} {kept:.0%} of the 15 nearest neighbours were kept. Clusters: {kind}."
    judged = [] if labels is None else [_scores(side, rows, users, labels, seed) for side, rows in sides.items()]
    scores = pd.DataFrame(judged, columns=SCORES)
    words = {"sentence": sentence, "said": said, "caption": caption, "unit": users.unit}
    return {"points": points, **found, "names": names, "ledger": ledger, "scores": scores, **words}


def _scores(side: str, rows: Rows, users: Users, labels: pd.Series, seed: int) -> dict:
    """Say how well the labels of the users who have one are told, and how far their classes stand apart."""
    known = labels.set_axis(labels.index.astype(str)).reindex(list(users.ids)).to_numpy(dtype=float)
    told = summary(*held_out_scores(rows, known, seed), known)
    counts = {"n": told.n, "positives": told.positives}
    apart = silhouette(maps.unit(np.asarray(rows, dtype=float)), known)
    figures = {"auc": told.auc, "auc_low": told.auc_low, "auc_high": told.auc_high, "ks": told.ks, "silhouette": apart}
    return {"side": side, **figures, **counts}


def _noise(ledger: pd.DataFrame, again: list[pd.DataFrame], unit: str) -> str:
    """Say how many changed cluster, and how many do when the question is only put in other words."""
    changed, *reworded = (int(table.loc[table["kind"] != "stays", "users"].sum()) for table in (ledger, *again))
    low, high = min(reworded), max(reworded)
    words = f"{len(reworded)} paraphrase{'s' * (len(reworded) != 1)}"
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{changed:,} {unit}s changed cluster; rewording the first question alone changes {span} ({words})."


def _beyond(found: dict[str, pd.DataFrame], ledger: pd.DataFrame, moved: np.ndarray) -> np.ndarray:
    """Say what share of each band's users moved beyond the noise floor."""
    bands = pd.DataFrame({"from_cluster": found["before"]["cluster"], "to_cluster": found["after"]["cluster"], "moved": moved})
    share = bands.groupby(["from_cluster", "to_cluster"])["moved"].mean()
    return share.loc[list(zip(ledger["from_cluster"], ledger["to_cluster"], strict=True))].to_numpy()
