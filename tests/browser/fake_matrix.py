"""A stand-in for the back end of the query matrix: planted cells, row by row, with delays; no model
is needed.
"""

import time
import zlib

import numpy as np
import pandas as pd
from fake import HOSTILE, QUERIES
from updates import Update

GROUPS = {
    "Concert": 120,
    "Takeout": 212,
    "Fraud": 41,
    "Forest": 164,
    f"buys {HOSTILE}": 90,
    "New phone": 75,
    "Traveller": 133,
}
AUCS = {
    (0, 6): 0.86,
    (1, 1): 0.71,
    (2, 0): 0.82,
    (3, 5): 0.77,
    (4, 1): 0.83,
    (4, 2): 0.69,
    (0, 3): 0.66,
    (1, 3): 0.68,
}
LESS = ((4, 2), (1, 3))  # these lean to no


class FakeMatrix:
    """Ask made-up users. "fail" raises, "slow" takes its time; `calls` keeps what was asked
    anew.
    """

    def __init__(self, users: int = 600, seconds: float = 0.4):
        self.ids, self.queries = tuple(f"u{i:04}" for i in range(users)), QUERIES
        self.least, self.unit, self.units = 10, "user", "users"
        random = np.random.default_rng(3)
        self.groups = {
            name: tuple(sorted(random.choice(self.ids, n, replace=False)))
            for name, n in GROUPS.items()
        }
        self.seconds, self.closed, self.calls, self._seen = seconds, 0, [], set()

    def __call__(self, queries, groups):
        return self._updates(list(queries), dict(groups))

    def _updates(self, queries, groups):
        total, frame = len(self.ids) * len(queries), None
        reads = {"auc": "AUC.", "yes_score": "Lean."}

        def update(done, words):
            return Update(
                done,
                total,
                words,
                "Colour: beyond chance. <b>not bold</b>",
                data={"frame": frame, "reads": reads},
            )

        try:
            for place, query in enumerate(queries):
                new = [name for name in groups if (query, name) not in self._seen]
                if new:
                    self.calls.append(query)
                    if query == "fail":
                        raise ValueError("the checkpoint has no such layer")
                    for _ in range(100 if query == "slow" else 4):
                        time.sleep(self.seconds / 4)
                        words = f"Asked 300 of 600 users, question {place + 1} ..."
                        yield update(total * place // len(queries) + 300, words)
                    self._seen |= {(query, name) for name in groups}
                frame = pd.DataFrame(
                    [
                        self.cell(q, name, ids)
                        for q in queries[: place + 1]
                        for name, ids in groups.items()
                    ]
                )
                yield update(total * (place + 1) // len(queries), "Asked ...")
            words = (
                f"{int(frame['beyond_chance'].sum())} of {len(frame)} cells are told beyond chance."
            )
            yield update(total, words)
        finally:
            self.closed += 1

    def cell(self, query, name, ids) -> dict:
        """Make one cell by rule; what was not planted is within chance, and a question of no topic
        has no yes score.
        """
        random = np.random.default_rng(zlib.crc32(f"{query} {name}".encode()))
        place = (
            (QUERIES.index(query), list(GROUPS).index(name))
            if query in QUERIES and name in GROUPS
            else None
        )
        auc, beyond = AUCS.get(place, 0.5 + 0.06 * random.uniform(-1, 1)), place in AUCS
        yes_score = np.nan if query == QUERIES[5] else 1 - auc if place in LESS else auc
        row = {
            "query": query,
            "group": name,
            "n": len(ids),
            "n_rest": len(self.ids) - len(ids),
            "auc": auc,
        }
        row |= {
            "auc_low": auc - 0.05,
            "auc_high": auc + 0.05,
            "chance": 0.6,
            "beyond_chance": beyond,
        }
        row |= {"yes_score": yes_score}
        row |= {
            "yes_score_chance": 0.09,
            "yes_score_beyond": beyond,
            "shift": 0.52,
            "shift_rest": 0.5,
        }
        return row | {
            "ratio": 1.3 if place == (0, 6) else 1.02,
            "ratio_chance": 1.08,
            "ratio_beyond": place == (0, 6),
        }
