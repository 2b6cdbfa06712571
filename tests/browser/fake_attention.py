"""A stand-in for the back end of the attention view: made-up attention and effects, with delays; no
model is needed.
"""

import time
import zlib

import numpy as np
import pandas as pd
from fake import HOSTILE, QUERIES
from updates import Update

MODALITIES = ("bill", "mini", "spm", "app", "search", "tabular")
OTHERS = ("number columns", "time of day")
TOKENS = {"bill": 61, "mini": 32, "spm": 22, "app": 12, "search": 17, "tabular": 3}


def make_table(query: str, modalities=MODALITIES, deleted: bool = True) -> pd.DataFrame:
    """Make a whole table of one query by rules: attention falls and effects rise in the order of
    the modalities.
    """
    random = np.random.default_rng(zlib.crc32(query.encode()))
    names = [*modalities, *OTHERS]
    weight = random.uniform(0.9, 1.1, len(names)) * np.linspace(1.6, 0.5, len(names))
    frame = pd.DataFrame({"query": query, "modality": names, "weight": weight / weight.sum()})
    effects = np.linspace(0.002, 0.061, len(modalities)) * random.uniform(0.7, 1.3)
    effect = dict(zip(modalities, effects, strict=True))
    frame["tokens"] = frame["modality"].map(TOKENS).fillna(6.0)
    frame["per_token"] = frame["weight"] / frame["tokens"]
    frame["kind"] = np.where(frame["modality"].isin(modalities), "modality", "other")
    frame["deletion_effect"] = frame["modality"].map(effect) if deleted else np.nan
    ranked = frame[frame["kind"] == "modality"]
    for measure, after in (("weight", ""), ("per_token", "_per_token")):
        apart = ranked[measure].rank() - ranked["deletion_effect"].rank()
        frame[f"disagrees{after}"] = (apart.abs() >= 2).reindex(frame.index, fill_value=False)
        frame[f"agreement{after}"] = -0.37 if deleted else np.nan
    return frame


class FakeAttention:
    """Look at made-up users. "fail" raises, "slow" takes its time."""

    def __init__(self, users: int = 60, seconds: float = 0.5):
        self.ids = tuple(f"u{i:04}" for i in range(users))
        self.queries = QUERIES
        self.unit = "user"
        self.units = "users"
        self.seconds = seconds
        self.closed = 0
        self.calls = []

    def _frames(self, queries, deleted=True):
        return pd.concat(
            [make_table(q, deleted=deleted) for q in queries if q],
            ignore_index=True,
        )

    def __call__(self, query, versus=None, users=None):
        self.calls.append((query, versus, users))
        if not query:
            raise ValueError("the query is empty: write a question")
        if query == "fail":
            raise ValueError("the checkpoint has no such layer")
        if users and (unknown := [u for u in users if u not in self.ids]):
            raise KeyError(
                f"user {unknown[0]!r} is not among the {len(self.ids)} that can be looked at: "
                "check the id"
            )
        return self._updates((query, versus), users)

    def _updates(self, queries, users):
        try:
            many = len(users or self.ids)
            steps = 6 * (20 if queries[0] == "slow" else 1)
            for step in range(1, steps):
                time.sleep(self.seconds / 6)
                part = self._frames(queries, deleted=False) if step == 2 else None
                words = f"Looked at {many * step // steps} of {many} users ..."
                yield Update(step, steps, words, data={"table": part})
            summary = (
                "Of all modalities, bill gets most attention (6.4 %); deleting tabular "
                "moves users farthest (0.061). "
            )
            summary += (
                "Rank agreement of attention and deletion: -0.37 (1 is the same order, 0 "
                "none): they contradict each other; "
            )
            summary += "do not read attention as importance."
            caption = (
                f"Mean over {many} users. Deletion effect: 1 - cosine "
                "after reading anew without it."
            )
            yield Update(steps, steps, summary, caption, data={"table": self._frames(queries)})
        finally:
            self.closed += 1

    def events(self, user):
        texts = [
            HOSTILE,
            "paid 18.40 for a taxi",
            "searched for weekend flights",
            "opened the train tickets mini-program",
        ]
        texts += [f"paid {9 + k}.90 for noodles at the corner shop" for k in range(8)]
        times = pd.Timestamp("2025-05-30 18:20") - pd.to_timedelta(
            np.arange(len(texts)) * 1.7, unit="D"
        )
        return pd.DataFrame(
            {
                "event": np.arange(900, 900 - len(texts), -1),
                "time": times,
                "modality": "bill",
                "text": texts,
            }
        )

    def rerun(self, query, user, drop=(), reword=None):
        self.calls.append((query, user, tuple(drop), dict(reword or {})))
        time.sleep(self.seconds / 3)
        data = {"table": self._frames((f"{query} (edited)", query)), "moved": 0.0134}
        data |= {"before": "Likely to travel.", "after": "Unlikely <b>to travel</b>."}
        yield Update(
            1,
            1,
            f"Without {len(drop)} events, {user} moves by 0.0134 (1 - cosine).",
            "One user.",
            data=data,
        )
