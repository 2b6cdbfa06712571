"""The cluster ledger: which groups of users a question makes, before and after, and who went where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from traitlets import Bytes, Dict

from widgets.base import Selection, View, script, still_map, still_page
from widgets.packing import described

SIDES = ("before", "after")
SHOWN = 8  # clusters that get a colour and a shape; more cannot be told apart
STABLE = 0.6  # below it a cluster is called unstable
HEIRS = ("stays", "split", "merge")
NEEDED = ("points", "before", "after", "ledger")


class ClusterLedger(View):
    """Look at clusters of users before and after: one map, who went where, what names each cluster, and what it is worth.

    compared  frames by name, as `qanchor.compare.compare` gives them or as they were saved: `points` (user, query, x, y, trust;
              the queries are before, after and, for stars, mark), `before` and `after` (user, cluster; -1 is none), `ledger`
              (from_cluster, to_cluster, users, kind); and if there are any, `names` (side, cluster, name, stability, modality,
              texts), `scores` (side, auc, ks, silhouette ...), `sentence`, `said` (by side), `caption`, `unit`.
    frame     who the users are, as `users.frame()` gives it: shown beside a point (default: their ids alone).

    A click on a cluster, a band or a kind of band chooses its users; `selection.ids` reads and sets them.

    Example:
        >>> sides = {side: pd.DataFrame({"user": ["a", "b"], "cluster": [0, 0]}) for side in ("before", "after")}
        >>> points = pd.DataFrame({"user": ["a", "b"] * 2, "query": ["before"] * 2 + ["after"] * 2, "x": 0.0, "y": 1.0})
        >>> ledger = pd.DataFrame({"from_cluster": [0], "to_cluster": [0], "users": [2], "kind": ["stays"]})
        >>> ClusterLedger({"points": points, **sides, "ledger": ledger})
        ClusterLedger(2 users, 1 cluster before, 1 after)
    """

    _esm = script("geometry.mjs", "dom.mjs", "kernel.mjs", "dots.mjs", "gestures.mjs", "map.mjs", "flow.mjs", "clusters.mjs")
    _css = script("lens.css", "clusters.css")
    _about = Dict().tag(sync=True)  # title: never changes
    _picture = Dict().tag(sync=True)  # all that is drawn
    _selected = Bytes().tag(sync=True)  # row numbers, int32

    def __init__(self, compared: Mapping, frame: pd.DataFrame | None = None, title: str = "Cluster ledger"):
        super().__init__(_about={"title": title})
        self._frame, self._ids = frame, ()
        self.show(compared)
        self.on_msg(self._heard)

    def show(self, compared: Mapping) -> None:
        """Draw another comparison in the same view; the choice of users is kept when they are the same."""
        missing = [name for name in NEEDED if name not in compared]
        if missing:
            raise ValueError(f"no {missing[0]!r} (there is {', '.join(compared)}): pass what compare returned, whole")
        ids = tuple(compared["before"]["user"].astype(str))
        odd = set(ids) ^ set(compared["after"]["user"].astype(str))
        if odd or len(set(ids)) != len(ids):
            raise ValueError(f"{min(odd) if odd else 'a user'} stands not once on both sides: cluster the same users twice")
        picture = packed(compared, ids, self._frame)
        if ids != self._ids:
            self._ids, self.selection = ids, Selection(ids, self._select)
            self.selection.clear()
        self._compared = dict(compared)
        self._picture = {**picture, "turn": self._picture.get("turn", 0) + 1}

    @property
    def ledger(self) -> pd.DataFrame:
        """Give who went where: `from_cluster, to_cluster, users, kind ...`."""
        return self._compared["ledger"].copy()

    @property
    def names(self) -> pd.DataFrame:
        """Give what names the clusters of both sides: `side, cluster, name, users, stability ...`."""
        return pd.DataFrame(self._compared.get("names", ())).copy()

    @property
    def sentence(self) -> str:
        """Say in words what became of the clusters."""
        return self._picture["sentence"]

    def _words(self) -> str:
        left, right = (sum(node["cluster"] >= 0 for node in self._picture[side]) for side in ("left", "right"))
        return f"ClusterLedger({_many(len(self._ids), 'user')}, {_many(left, 'cluster')} before, {right} after)"

    def _still(self) -> str:
        p = self._picture
        after = np.frombuffer(p["after"], dtype=np.float32).reshape(-1, 2)
        kind = {(band["from"], band["to"]): band["kind"] for band in p["bands"]}
        sides = zip(np.frombuffer(p["from"], np.int32).tolist(), np.frombuffer(p["to"], np.int32).tolist(), strict=True)
        drawn = still_map(after, np.array([kind[pair] != "stays" for pair in sides]))
        names = {(side, node["cluster"]): node["name"] for side in ("left", "right") for node in p[side]}
        bands = [[names["left", b["from"]], names["right", b["to"]], b["users"], b["kind"]] for b in p["bands"]]
        scores = [
            f"{s['side']}: AUC {s['auc']:.3f}, KS {s['ks']:.2f}, n={s['n']:,}." for s in p["scores"] if s["auc"] is not None
        ]
        told = [p["sentence"], *p["said"].values(), *scores, p["caption"], "Diamonds: users of whom something became."]
        nodes = [node for side in ("left", "right") for node in p[side] if node["cluster"] >= 0]
        told += [f"{n['name']}: {n['users']:,}, stability {n['stability']:.2f}." for n in nodes if n["stability"] is not None]
        return still_page(self._about["title"], told, drawn, [["from", "to", "users", "kind"], *bands])

    def _heard(self, _widget, message: dict, buffers: list) -> None:
        if message.get("type") == "select":
            self.selection.take(np.frombuffer(buffers[0], dtype=np.int32) if buffers else [], message.get("mode", "replace"))

    def _select(self, rows: np.ndarray) -> None:
        self._selected = np.asarray(rows, dtype=np.int32).tobytes()


def packed(compared: Mapping, ids: tuple[str, ...], frame: pd.DataFrame | None) -> dict:
    """Pack the frames for the browser, all in the order of `ids`."""
    points, ledger, unit = compared["points"], compared["ledger"], str(compared.get("unit", "user"))
    places = {side: points[points["query"] == side].set_index("user").reindex(list(ids)) for side in SIDES}
    trust = places["after"]["trust"].fillna(1.0) if "trust" in points else pd.Series(1.0, index=list(ids))
    marks = points[~points["query"].isin(SIDES)]
    own = {side: compared[side].set_index("user")["cluster"].loc[list(ids)].to_numpy(np.int32) for side in SIDES}
    names = compared.get("names")
    slots = coloured(own, ledger)
    left, right = (_nodes(side, own[side], names, slots[side]) for side in SIDES)
    told = {str(user): row for row, user in enumerate(frame["user"])} if frame is not None else {}
    recent = [text for _, _, text in described(frame)[2]] if frame is not None else []
    scores = compared.get("scores")
    return {
        "ids": list(ids),
        "unit": unit,
        "recent": [recent[told[user]] if user in told else "" for user in ids],
        "before": _floats(places["before"][["x", "y"]]),
        "after": _floats(places["after"][["x", "y"]]),
        "trust": _floats(trust),
        "from": own["before"].tobytes(),
        "to": own["after"].tobytes(),
        "marks": [[float(x), float(y), str(name)] for x, y, name in zip(marks["x"], marks["y"], marks["user"], strict=True)],
        "left": left,
        "right": right,
        "bands": [_band(row) for row in ledger.to_dict("records")],
        "scores": [{k: _plain(v) for k, v in row.items()} for row in scores.to_dict("records")] if scores is not None else [],
        "said": {str(side): str(text) for side, text in dict(compared.get("said") or {}).items()},
        "sentence": str(compared.get("sentence") or ""),
        "caption": str(compared.get("caption") or ""),
    }


def coloured(own: dict[str, np.ndarray], ledger: pd.DataFrame) -> dict[str, dict[int, int]]:
    """Give the largest clusters colours: an heir has that of the cluster that most of its users come from."""
    sizes = {side: pd.Series(labels[labels >= 0]).value_counts().sort_index() for side, labels in own.items()}
    order = {side: size.sort_values(ascending=False, kind="stable").index.tolist() for side, size in sizes.items()}
    before = {cluster: slot for slot, cluster in enumerate(order["before"][:SHOWN])}
    after: dict[int, int] = {}
    for band in ledger[ledger["kind"].isin(HEIRS)].sort_values("users", ascending=False, kind="stable").itertuples():
        slot = before.get(band.from_cluster)
        if band.to_cluster >= 0 and slot is not None and band.to_cluster not in after and slot not in after.values():
            after[band.to_cluster] = slot
    free = [slot for slot in range(SHOWN) if slot not in before.values()]
    free += [slot for slot in range(SHOWN) if slot not in after.values() and slot not in free]
    for cluster in order["after"]:
        if cluster not in after and free:
            after[cluster] = free.pop(0)
    return {"before": before, "after": after}


def _nodes(side: str, own: np.ndarray, names: pd.DataFrame | None, slots: dict[int, int]) -> list[dict]:
    """List one side's clusters by number, those in none last."""
    told = {}
    if names is not None and len(names):
        told = {int(row["cluster"]): row for row in names[names["side"] == side].to_dict("records")}
    found = []
    for cluster in sorted(set(own.tolist()), key=lambda number: (number < 0, number)):
        row = told.get(cluster, {})
        stability = _plain(row.get("stability"))
        node = {
            "cluster": cluster,
            "users": int((own == cluster).sum()),
            "slot": slots.get(cluster, -1),
            "stability": stability,
        }
        name = str(row.get("name") or f"cluster {cluster}") if cluster >= 0 else "in no cluster"
        texts = row.get("texts")
        texts = [str(text) for text in texts] if isinstance(texts, list | tuple | np.ndarray) else [str(texts)] if texts else []
        node |= {
            "named": bool(row),
            "name": name,
            "stability": stability,
            "modality": str(row.get("modality") or ""),
            "texts": texts,
        }
        found.append(node | {"unstable": stability is not None and stability < STABLE})
    return found


def _band(row: dict) -> dict:
    band = {
        "from": int(row["from_cluster"]),
        "to": int(row["to_cluster"]),
        "users": int(row["users"]),
        "kind": str(row["kind"]),
    }
    return band | {"beyond": _plain(row.get("beyond_noise"))}


def _plain(value):
    """Turn a number of numpy into one of Python, and what is none into None."""
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _floats(values) -> bytes:
    return np.ascontiguousarray(values.to_numpy(dtype=np.float32)).tobytes()


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
