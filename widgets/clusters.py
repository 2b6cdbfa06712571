"""The cluster view: which groups of users two queries make, and who went where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Bytes, Dict

from qanchor.widgets.base import Selection, View, count_noun, read_static, unit_words
from qanchor.widgets.packing import float_bytes, json_rows, pack_users, text_list
from qanchor.widgets.static_html import map_image, static_page

TITLE = "Clusters before and after"
SIDES = ("before", "after")
MAX_COLORED = 8  # clusters that get a color and a shape; more cannot be told apart
MIN_STABILITY = 0.6  # below, a cluster is called unstable
SUCCESSOR_KINDS = ("stays", "split", "merge")
BAND_NAMES = {"from_cluster": "from", "to_cluster": "to", "users": "users", "kind": "kind"}
NEEDED_NAMES = ("points", "before", "after", "transitions")


class ClusterView(View):
    """Look at clusters of users before and after: one map, who went where, names and scores.

    A click on a cluster, a band or a kind of band selects its users.

    Args:
        comparison: Frames by name, or an update that has them in `data`, as
            `session.compare(before, after)` returns it: `points` (user, query, x, y, trust; the
            queries are before, after and, for stars, mark), `before` and `after` (user, cluster; -1
            is none), `transitions` (from_cluster, to_cluster, users, kind); and if there are any,
            `names` (side, cluster, name, stability, modality, texts), `scores` (side, auc, ks,
            silhouette ...), `sentence`, `summaries` (by side), `caption`, `unit`, `units`.
        frame: Who the users are, as `users.frame()` returns it, shown beside a point (default: the
            ids alone).

    Example:
        >>> clusters = pd.DataFrame({"user": ["a", "b"], "cluster": [0, 0]})
        >>> points = pd.DataFrame({"user": ["a", "b"] * 2, "x": 0.0, "y": 1.0})
        >>> points["query"] = ["before"] * 2 + ["after"] * 2
        >>> transitions = pd.DataFrame({"from_cluster": [0], "to_cluster": [0], "users": [2]})
        >>> transitions["kind"] = "stays"
        >>> comparison = {"points": points, "before": clusters, "after": clusters}
        >>> ClusterView(comparison | {"transitions": transitions})
        ClusterView(2 users, 1 cluster before, 1 after)
    """

    _esm = read_static(
        "geometry.mjs",
        "dom.mjs",
        "kernel.mjs",
        "dots.mjs",
        "gestures.mjs",
        "map.mjs",
        "flow.mjs",
        "clusters.mjs",
    )
    _css = read_static("lens.css", "clusters.css")
    _about = Dict().tag(sync=True)  # title: never changes
    _picture = Dict().tag(sync=True)  # all that is drawn
    _selected = Bytes().tag(sync=True)  # row numbers, int32

    def __init__(self, comparison: Mapping, frame: pd.DataFrame | None = None):
        super().__init__(_about={"title": TITLE})
        self._frame = frame
        self._ids = ()
        self.show(comparison)

    def show(self, comparison: Mapping) -> None:
        """Draw another comparison; the selection stays if the users are the same.

        Args:
            comparison: As for the class.

        Raises:
            ValueError: If a frame is missing, or the two sides have different users.
        """
        comparison = as_mapping(comparison)
        ids = checked_ids(comparison)
        picture = pack_comparison(comparison, ids, self._frame)
        if ids != self._ids:
            self._ids = ids
            words = picture["unit"], picture["units"]
            self.selection = Selection(ids, self._on_select, None, *words)
            self.selection.clear()
        self._comparison = dict(comparison)
        self._picture = {**picture, "turn": self._picture.get("turn", 0) + 1}

    @property
    def table(self) -> pd.DataFrame:
        """Who went where: `from_cluster, to_cluster, users, kind ...`."""
        return self._comparison["transitions"].copy()

    @property
    def names(self) -> pd.DataFrame:
        """What names the clusters of both sides: `side, cluster, name, users, stability ...`."""
        return pd.DataFrame(self._comparison.get("names", ())).copy()

    @property
    def sentence(self) -> str:
        """What became of the clusters, in words."""
        return self._picture["sentence"]

    def _summary(self) -> str:
        picture = self._picture
        users = count_noun(len(self._ids), picture["unit"], picture["units"])
        before = count_noun(len(named_clusters(picture["left"])), "cluster", "clusters")
        after = len(named_clusters(picture["right"]))
        return f"ClusterView({users}, {before} before, {after} after)"

    def _html(self) -> str:
        picture = self._picture
        clusters = [*named_clusters(picture["left"]), *named_clusters(picture["right"])]
        lines = [
            picture["sentence"],
            *picture["summaries"].values(),
            *(score_words(score) for score in picture["scores"]),
            picture["caption"],
            f"Diamonds: {picture['units']} that did not stay in their cluster.",
            *(stability_words(cluster) for cluster in clusters),
        ]
        names = {}
        for side in ("left", "right"):
            for node in picture[side]:
                names[side, node["cluster"]] = node["name"]
        rows = [["from", "to", "users", "kind"]]
        for band in picture["bands"]:
            before = names["left", band["from"]]
            after = names["right", band["to"]]
            rows.append([before, after, band["users"], band["kind"]])
        return static_page(TITLE, lines, self._map_image(), rows)

    def _map_image(self) -> str:
        """Draw the map of after; users who did not stay are marked."""
        picture = self._picture
        kind_of = {}
        for band in picture["bands"]:
            kind_of[band["from"], band["to"]] = band["kind"]
        before = np.frombuffer(picture["from"], np.int32).tolist()
        after = np.frombuffer(picture["to"], np.int32).tolist()
        moved = [kind_of[pair] != "stays" for pair in zip(before, after, strict=True)]
        places = np.frombuffer(picture["after"], dtype=np.float32).reshape(-1, 2)
        return map_image(places, np.array(moved))

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        if message.get("type") == "select":
            self.selection.follow(message, buffers)

    def _on_select(self, rows: np.ndarray) -> None:
        self._selected = np.asarray(rows, dtype=np.int32).tobytes()


def as_mapping(comparison: Any) -> Mapping:
    """Return a comparison as one mapping; an update of a back end brings its words beside its
    data.
    """
    if isinstance(comparison, Mapping):
        return comparison
    words = {"sentence": comparison.message, "caption": comparison.caption}
    return {**comparison.data, **words}


def checked_ids(comparison: Mapping) -> tuple[str, ...]:
    """Return the users of a comparison, and refuse one that is not whole."""
    missing = [name for name in NEEDED_NAMES if name not in comparison]
    if missing:
        there = ", ".join(comparison)
        hint = "pass what compare_clusters returned, whole"
        raise ValueError(f"no {missing[0]!r} (there is {there}): {hint}")
    ids = tuple(comparison["before"]["user"].astype(str))
    odd = set(ids) ^ set(comparison["after"]["user"].astype(str))
    if odd or len(set(ids)) != len(ids):
        user = min(odd) if odd else "a user"
        raise ValueError(f"{user} stands not once on both sides: cluster the same users twice")
    return ids


def pack_comparison(comparison: Mapping, ids: tuple[str, ...], frame: pd.DataFrame | None) -> dict:
    """Pack a comparison for the browser.

    Args:
        comparison: As for `ClusterView`.
        ids: The users; all that is packed has their order.
        frame: Who the users are, or None.

    Returns:
        What the browser draws.
    """
    points = comparison["points"]
    transitions = comparison["transitions"]
    names = comparison.get("names")
    unit, units = unit_words(comparison)
    places = {}
    clusters = {}
    for side in SIDES:
        part = points[points["query"] == side].set_index("user")
        places[side] = part.reindex(index=list(ids), columns=["x", "y", "trust"])
        labels = comparison[side].set_index("user")["cluster"]
        labels = labels.loc[list(ids)]
        clusters[side] = labels.to_numpy(np.int32)
    colors = color_slots(clusters, transitions)
    marks = points[~points["query"].isin(SIDES)]
    bands = transitions[list(BAND_NAMES)].rename(columns=BAND_NAMES)
    return {
        "ids": list(ids),
        "unit": unit,
        "units": units,
        "recent": recent_events(frame, ids),
        "before": float_bytes(places["before"][["x", "y"]]),
        "after": float_bytes(places["after"][["x", "y"]]),
        "trust": float_bytes(places["after"]["trust"].fillna(1)),
        "from": clusters["before"].tobytes(),
        "to": clusters["after"].tobytes(),
        "marks": marks[["x", "y", "user"]].to_numpy(object).tolist(),
        "left": pack_clusters("before", clusters["before"], names, colors["before"]),
        "right": pack_clusters("after", clusters["after"], names, colors["after"]),
        "bands": json_rows(bands),
        "scores": json_rows(pd.DataFrame(comparison.get("scores", ()))),
        "summaries": comparison.get("summaries", {}),
        "sentence": comparison.get("sentence", ""),
        "caption": comparison.get("caption", ""),
    }


def recent_events(frame: pd.DataFrame | None, ids: tuple[str, ...]) -> list[list[str]]:
    """Return the recent events of each user, none for users who are not in the frame."""
    if frame is None:
        return [[] for _ in ids]
    _, known_ids, texts = pack_users(frame)
    recent = {}
    for user, (_, _, events) in zip(known_ids, texts, strict=True):
        recent[user] = events
    return [recent.get(user, []) for user in ids]


def color_slots(
    clusters: dict[str, np.ndarray], transitions: pd.DataFrame
) -> dict[str, dict[int, int]]:
    """Give the largest clusters colors; a successor has that of the cluster most users come from.

    Args:
        clusters: The cluster of each user, by side.
        transitions: Who went where.

    Returns:
        The number of the color by cluster, by side.
    """
    largest = clusters_by_size(clusters["before"])[:MAX_COLORED]
    before = {cluster: slot for slot, cluster in enumerate(largest)}
    after: dict[int, int] = {}
    links = transitions[transitions["kind"].isin(SUCCESSOR_KINDS)]
    for band in links.sort_values("users", ascending=False, kind="stable").itertuples():
        slot = before.get(band.from_cluster)
        taken = slot in after.values() or band.to_cluster in after
        if slot is not None and not taken:
            after[band.to_cluster] = slot
    # colors that no cluster had before go first
    slots = [*range(len(before), MAX_COLORED), *range(len(before))]
    free = [slot for slot in slots if slot not in after.values()]
    new = [cluster for cluster in clusters_by_size(clusters["after"]) if cluster not in after]
    after.update(zip(new, free, strict=False))
    return {"before": before, "after": after}


def clusters_by_size(labels: np.ndarray) -> list[int]:
    """Return the clusters by falling size, ties by number."""
    numbers, sizes = np.unique(labels[labels >= 0], return_counts=True)
    return numbers[np.argsort(-sizes, kind="stable")].tolist()


def pack_clusters(
    side: str, labels: np.ndarray, names: pd.DataFrame | None, slots: dict[int, int]
) -> list[dict]:
    """List one side's clusters by number, those in none last."""
    about = {}
    if names is not None:
        part = names[names["side"] == side]
        about = part.set_index("cluster").to_dict("index")
    packed = []
    for number in sorted(set(labels.tolist()), key=lambda number: (number < 0, number)):
        row = about.get(number, {})
        stability = row.get("stability")
        if pd.isna(stability):
            stability = None
        name = "in no cluster"
        if number >= 0:
            name = row.get("name") or f"cluster {number}"
        packed.append(
            {
                "cluster": number,
                "users": int((labels == number).sum()),
                "slot": slots.get(number, -1),
                "named": bool(row),
                "name": name,
                "stability": stability,
                "unstable": stability is not None and stability < MIN_STABILITY,
                "modality": row.get("modality", ""),
                "texts": text_list(row.get("texts")),
            }
        )
    return packed


def named_clusters(nodes: list[dict]) -> list[dict]:
    """Return the clusters without the users that are in none."""
    return [node for node in nodes if node["cluster"] >= 0]


def score_words(score: dict) -> str:
    """Write one side's scores in words; empty if there are none."""
    if score["auc"] is None:
        return ""
    return f"{score['side']}: AUC {score['auc']:.3f}, KS {score['ks']:.2f}, n={score['n']:,}."


def stability_words(cluster: dict) -> str:
    """Write the stability of a cluster in words; empty if it is unknown."""
    if cluster["stability"] is None:
        return ""
    return f"{cluster['name']}: {cluster['users']:,}, stability {cluster['stability']:.2f}."
