"""A stand-in for `compare`: planted clusters that split, merge, are born and lose users; no model
is needed.
"""

import numpy as np
import pandas as pd
from fake import HOSTILE

NAMES = {
    "before": ["takeout, burger", "flights, hotel, many events", "nappies, pram", "band, vinyl"],
    "after": ["hotel, flights", "takeout, sushi", "family", HOSTILE, "night food"],
}
TEXTS = [
    "ordered a noodle bowl via Sushi Rider",
    "long session in Quick Food Delivery app",
    "searched for a beach resort",
]
STABILITY = {"before": [0.93, 0.81, 0.74, 0.55], "after": [0.9, 0.86, 0.71, 0.52, 0.66]}
MOVES = [  # from, to, users, kind
    (0, 1, 95, "split"),
    (0, 4, 48, "split"),
    (0, -1, 22, "leaver"),
    (1, 0, 110, "stays"),
    (1, -1, 14, "leaver"),
    (2, 2, 60, "merge"),
    (2, 0, 4, "leaver"),
    (3, 2, 38, "merge"),
    (-1, 3, 41, "birth"),
    (-1, 1, 18, "joiner"),
    (-1, -1, 150, "stays"),
]


def fake_compare(scores: bool = True, many: int = 1) -> dict:
    """Give all frames that the view draws: 600 users, or as many times more."""
    random = np.random.default_rng(0)
    rows = [(old, new, kind) for old, new, users, kind in MOVES for _ in range(users * many)]
    random.shuffle(rows)
    old, new = (np.array([int(row[side]) for row in rows]) for side in (0, 1))
    ids = [f"u{i:04}" for i in range(len(rows))]
    middles = {
        "before": [(-5, 2), (4, 3), (1, -5), (6, -3)],
        "after": [(4, 3.4), (-6, 1), (3, -4), (-1, 6), (-4, 4)],
    }
    parts = []
    for side, label in (("before", old), ("after", new)):
        middle = np.array([*middles[side], (0, 0)], float)[label]
        spread = np.where(label < 0, 3.2, 0.8)[:, None]
        xy = middle + spread * random.normal(size=(len(ids), 2))
        trust = np.clip(1 - random.beta(1.2, 9, len(ids)), 0, 1)
        parts.append(
            pd.DataFrame({"user": ids, "query": side, "x": xy[:, 0], "y": xy[:, 1], "trust": trust})
        )
    stars = pd.DataFrame(
        {
            "user": ["yes", "no <b>"],
            "query": "mark",
            "x": [-5.4, 4.4],
            "y": [1.6, 2.2],
            "trust": 1.0,
        }
    )
    names = [
        {
            "side": side,
            "cluster": k,
            "name": name,
            "stability": STABILITY[side][k],
            "modality": "bill" if k == 0 else "",
        }
        for side in NAMES
        for k, name in enumerate(NAMES[side])
    ]
    names = pd.DataFrame(names).assign(
        texts=[TEXTS[: k % 4] if k != 7 else [f"bought {HOSTILE}"] for k in range(len(names))]
    )
    transitions = pd.DataFrame(MOVES, columns=["from_cluster", "to_cluster", "users", "kind"])
    transitions["users"] *= many
    frame = pd.DataFrame(
        {
            "side": ["before", "after"],
            "auc": [0.712, 0.781],
            "auc_low": [0.66, 0.735],
            "auc_high": [0.764, 0.827],
        }
    ).assign(ks=[0.35, 0.461], silhouette=[0.021, 0.312], n=300, positives=84)
    return {
        "points": pd.concat([*parts, stars], ignore_index=True),
        "before": pd.DataFrame({"user": ids, "cluster": old}),
        "after": pd.DataFrame({"user": ids, "cluster": new}),
        "names": names,
        "transitions": transitions,
        "scores": frame if scores else frame[:0],
        "sentence": "4 clusters became 5: 1 stayed, 1 split, 1 merged, 1 born. 40 of 600 users "
        "left a cluster that lived on, "
        "18 joined one.",
        "caption": "One joint UMAP map of 600 users under both queries. Trustworthiness 0.93; a "
        "common rotation and offset of "
        "0.61 was removed. 41% of the 15 nearest neighbours were kept. Clusters: HDBSCAN, at "
        "least 12 users.",
        "summaries": {
            "before": "4 clusters hold 391 of 600 users, the others are in none; 1 of them "
            "cannot be believed "
            "(stability below 0.6).",
            "after": "5 clusters hold 414 of 600 users, the others are in none; 1 of them cannot "
            "be believed "
            "(stability below 0.6).",
        },
        "unit": "user",
        "units": "users",
    }
