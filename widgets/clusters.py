"""The cluster view: which groups of users two queries make, and who went where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from traitlets import Bytes, Dict

from qanchor.widgets.base import Selection, View, count_noun, read_static, unit_words
from qanchor.widgets.packing import float_bytes, int_bytes, json_rows, pack_users, text_list
from qanchor.widgets.static_html import map_image, static_page

TITLE = "Clusters before and after"
MAX_COLORED = 8  # clusters that get a color and a shape; more cannot be told apart
MIN_STABILITY = 0.6  # below, a cluster is called unstable
SUCCESSOR_KINDS = ("stays", "split", "merge")
SIDES = ("before", "after")
NEEDED_NAMES = ("points", "before", "after", "transitions")
OPTIONAL = {  # what a comparison may lack
    "names": pd.DataFrame(columns=["side", "cluster"]),
    "scores": (),
    "sentence": "",
    "summaries": {},
    "caption": "",
}


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
        comparison = OPTIONAL | as_dict(comparison)
        ids = checked_ids(comparison)
        picture = pack_comparison(comparison, ids, self._frame)
        if ids != self._ids:
            self._ids = ids
            words = {"unit": picture["unit"], "units": picture["units"]}
            self.selection = Selection(ids, self._on_select, **words)
            self.selection.clear()
        self._transitions = comparison["transitions"]
        self._picture = {**picture, "turn": self._picture.get("turn", 0) + 1}

    @property
    def table(self) -> pd.DataFrame:
        """Who went where: `from_cluster, to_cluster, users, kind ...`."""
        return self._transitions.copy()

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
        lines = [picture["sentence"], *picture["summaries"].values()]
        lines += map(score_words, picture["scores"])
        lines.append(picture["caption"])
        lines.append(f"Diamonds: {picture['units']} that did not stay in their cluster.")
        lines += map(stability_words, clusters)
        left = {node["cluster"]: node["name"] for node in picture["left"]}
        right = {node["cluster"]: node["name"] for node in picture["right"]}
        rows = [["from", "to", "users", "kind"]]
        for band in picture["bands"]:
            names = [left[band["from"]], right[band["to"]]]
            rows.append([*names, band["users"], band["kind"]])
        return static_page(TITLE, lines, self._map_image(), rows)

    def _map_image(self) -> str:
        """Draw the map of after; users who did not stay are marked."""
        picture = self._picture
        bands = picture["bands"]
        stays = {(band["from"], band["to"]) for band in bands if band["kind"] == "stays"}
        before = np.frombuffer(picture["from"], np.int32).tolist()
        after = np.frombuffer(picture["to"], np.int32).tolist()
        moved = [pair not in stays for pair in zip(before, after, strict=True)]
        places = np.frombuffer(picture["after"], np.float32).reshape(-1, 2)
        return map_image(places, np.array(moved))

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        if message.get("type") == "select":
            self.selection.follow(message, buffers)

    def _on_select(self, rows: np.ndarray) -> None:
        self._selected = int_bytes(rows)


def as_dict(comparison: Any) -> dict:
    """Return a comparison as one dict; an update of a back end brings its words beside its data."""
    if isinstance(comparison, Mapping):
        return dict(comparison)
    words = {"sentence": comparison.message, "caption": comparison.caption}
    return {**comparison.data, **words}


def checked_ids(comparison: dict) -> tuple[str, ...]:
    """Return the users of a comparison, and refuse one that is not whole."""
    for name in NEEDED_NAMES:
        if name not in comparison:
            there = ", ".join(comparison)
            hint = "pass what compare_clusters returned, whole"
            raise ValueError(f"no {name!r} (there is {there}): {hint}")
    before = Counter(comparison["before"]["user"].astype(str))
    after = Counter(comparison["after"]["user"].astype(str))
    odd = [user for user in before | after if before[user] != 1 or after[user] != 1]
    if odd:
        raise ValueError(f"{min(odd)} stands not once on both sides: cluster the same users twice")
    return tuple(before)


def pack_comparison(comparison: dict, ids: tuple[str, ...], frame: pd.DataFrame | None) -> dict:
    """Pack a comparison for the browser.

    Args:
        comparison: As for `ClusterView`, with all that is optional.
        ids: The users; all that is packed has their order.
        frame: Who the users are, or None.

    Returns:
        What the browser draws.
    """
    before = users_of_side(comparison, "before", ids)
    after = users_of_side(comparison, "after", ids)
    transitions = comparison["transitions"]
    slots_before, slots_after = color_slots(before["cluster"], after["cluster"], transitions)
    points = comparison["points"]
    marks = points[~points["query"].isin(SIDES)]
    bands = transitions[["from_cluster", "to_cluster", "users", "kind"]]
    bands = bands.rename(columns={"from_cluster": "from", "to_cluster": "to"})
    names = comparison["names"]
    unit, units = unit_words(comparison)
    return {
        "ids": list(ids),
        "unit": unit,
        "units": units,
        "recent": recent_events(frame, ids),
        "before": float_bytes(before[["x", "y"]]),
        "after": float_bytes(after[["x", "y"]]),
        "trust": float_bytes(after["trust"].fillna(1)),
        "from": int_bytes(before["cluster"]),
        "to": int_bytes(after["cluster"]),
        "marks": marks[["x", "y", "user"]].to_numpy(object).tolist(),
        "left": pack_clusters(before["cluster"], names[names["side"] == "before"], slots_before),
        "right": pack_clusters(after["cluster"], names[names["side"] == "after"], slots_after),
        "bands": json_rows(bands),
        "scores": json_rows(pd.DataFrame(comparison["scores"])),
        "summaries": comparison["summaries"],
        "sentence": comparison["sentence"],
        "caption": comparison["caption"],
    }


def users_of_side(comparison: dict, side: str, ids: tuple[str, ...]) -> pd.DataFrame:
    """Return `x, y, trust, cluster` of each user on one side, in the order of the users."""
    points = comparison["points"]
    places = points[points["query"] == side].set_index("user")
    places = places.reindex(index=list(ids), columns=["x", "y", "trust"])
    return places.assign(cluster=comparison[side].set_index("user")["cluster"])


def recent_events(frame: pd.DataFrame | None, ids: tuple[str, ...]) -> list[list[str]]:
    """Return the recent events of each user, none for users who are not in the frame."""
    if frame is None:
        return [[] for _ in ids]
    _, known_ids, texts = pack_users(frame)
    recent = {user: events for user, (_, _, events) in zip(known_ids, texts, strict=True)}
    return [recent.get(user, []) for user in ids]


def color_slots(
    clusters_before: pd.Series, clusters_after: pd.Series, transitions: pd.DataFrame
) -> tuple[dict[int, int], dict[int, int]]:
    """Give the largest clusters colors; a successor has that of the cluster most users come from.

    Args:
        clusters_before: The cluster of each user before.
        clusters_after: The cluster of each user after.
        transitions: Who went where.

    Returns:
        The number of the color by cluster, before and after.
    """
    largest = clusters_by_size(clusters_before)[:MAX_COLORED]
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
    new = [cluster for cluster in clusters_by_size(clusters_after) if cluster not in after]
    after.update(zip(new, free, strict=False))
    return before, after


def clusters_by_size(labels: pd.Series) -> list[int]:
    """Return the clusters by falling size, ties by number."""
    sizes = labels[labels >= 0].value_counts().sort_index()
    return sizes.sort_values(ascending=False, kind="stable").index.tolist()


def pack_clusters(labels: pd.Series, names: pd.DataFrame, slots: dict[int, int]) -> list[dict]:
    """List one side's clusters by number, those in none last."""
    about = names.set_index("cluster").to_dict("index")
    sizes = Counter(labels.tolist())
    packed = []
    for number in sorted(sizes, key=lambda number: (number < 0, number)):
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
                "users": sizes[number],
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
