"""A stand-in for the back end of the lens: groups of users that move by plain rules, with delays;
no model is needed.
"""

import time
import zlib

import numpy as np
import pandas as pd
from updates import Update

HOSTILE = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
QUERIES = (
    "Will this user travel soon?",
    "Is this user price-conscious?",
    "Does this user follow live music?",
    "Is this user about to change phone?",
    "How often does this user eat out?",
    "What will this user do next month?",
)
TEXTS = {
    "bill": (
        "paid 18.40 for a taxi",
        "paid 6.20 for noodles",
        "paid 212.00 to an airline",
        "paid 9.90 for a phone plan",
    ),
    "mini": (
        "opened the train tickets mini-program",
        "watered the forest",
        "opened the coupon centre",
    ),
    "search": (
        "searched for weekend flights",
        "searched for concert tickets",
        "searched for cheap rice cooker",
    ),
    "app": ("installed a fitness app", "removed a game", "installed a map of Kyoto"),
}


def make_frame(users: int = 600, seed: int = 0) -> pd.DataFrame:
    """One row a user, as `Users.frame()` gives; the first user's events are hostile text."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"user": [f"u{i:04}" for i in range(users)]})
    counts = {
        name: random.poisson(rate, users) for name, rate in zip(TEXTS, (24, 11, 8, 3), strict=True)
    }
    frame["events"] = np.sum(list(counts.values()), axis=0)
    frame["first"] = pd.Timestamp("2025-01-01 09:00") + pd.to_timedelta(
        random.integers(0, 20, users), unit="D"
    )
    frame["last"] = pd.Timestamp("2025-03-20 18:00") + pd.to_timedelta(
        random.integers(0, 11, users), unit="D"
    )
    frame = frame.assign(**counts)
    texts = [text for group in TEXTS.values() for text in group]
    recent = [tuple(random.choice(texts, 5, replace=False).tolist()) for _ in range(users)]
    recent[0] = (HOSTILE, "paid 6.20 for <b>noodles</b>", "paid 3.10 · tea and cake")
    return frame.assign(recent=recent)


class FakeBacktest:
    """What a backtest found."""

    right, low, high, n, cutoff = 0.72, 0.68, 0.76, 60, "2025-05-02"


class FakeLens:
    """Ask six groups of users by a rule: each query makes some groups travel. "fail" raises, "slow"
    takes its time.
    """

    def __init__(
        self,
        users: int = 600,
        steps: int = 6,
        seconds: float = 0.6,
        seed: int = 0,
        events: int = 0,  # of each user; 0 for some
    ):
        random = np.random.default_rng(seed)
        self.ids = tuple(f"u{i:04}" for i in range(users))
        self.queries, self.unit, self.units = QUERIES, "user", "users"
        self.steps, self.seconds, self.closed, self.events = steps, seconds, 0, events
        self.group = random.integers(0, 6, users)
        angle = np.arange(6) * 2.4
        self.centres = np.stack([3.1 * np.cos(angle) * 1.5, 3.1 * np.sin(angle)], axis=1)
        self.places = self.centres[self.group] + random.normal(scale=0.62, size=(users, 2))

    def under(self, query: str) -> tuple[np.ndarray, np.ndarray]:
        """Where everybody stands under `query`, and how far they really moved."""
        random = np.random.default_rng(zlib.crc32(query.encode()))
        moved = np.isin(self.group, random.choice(6, 2, replace=False)) & (
            random.random(len(self.ids)) < 0.55
        )
        moved |= random.random(len(self.ids)) < 0.04
        if not query:
            moved[:] = False
        goal = self.centres[random.integers(0, 6)] * 0.15 + random.normal(
            scale=0.55, size=self.places.shape
        )
        places = np.where(
            moved[:, None],
            0.25 * self.places + goal,
            self.places + random.normal(scale=0.03, size=goal.shape),
        )
        residual = np.where(
            moved, 0.42 + 0.5 * random.beta(2, 4, len(moved)), 0.2 * random.beta(3, 4, len(moved))
        )
        residual[0] = 0.97 if query else 0  # the hostile one leads every list
        return places, residual

    def __call__(self, query: str, previous: str | None = None):
        if query == "fail":
            raise ValueError("the checkpoint has no such layer")
        try:
            total, steps = len(self.ids), self.steps * (20 if query == "slow" else 1)
            for step in range(1, steps):
                time.sleep(self.seconds / self.steps)
                yield Update(total * step // steps, total)
            yield self.result(query, previous or "")
            if query:
                yield from self.rank(query)
        finally:
            self.closed += 1

    def result(self, query: str, previous: str) -> Update:
        """Make the update that has the map."""
        total = len(self.ids)
        random = np.random.default_rng(1)
        (old, _), (new, residual) = self.under(previous), self.under(query)
        trust = np.clip(1 - random.beta(1.2, 9, 2 * len(self.ids)), 0, 1)
        points = pd.DataFrame(
            {"user": self.ids * 2, "query": np.repeat([previous, query], len(self.ids))}
        )
        points = points.assign(
            x=np.r_[old[:, 0], new[:, 0]], y=np.r_[old[:, 1], new[:, 1]], trust=trust
        )
        caption = (
            f"One joint UMAP map of {len(self.ids):,} users under both queries. "
            "Trustworthiness 0.91; "
        )
        caption += "a common rotation and offset of 0.38 was removed."
        if not query:
            points = points[len(self.ids) :]
            words = f"{total:,} users before any question. Ask something to see who moves."
            return Update(total, total, words, caption, data={"points": points})
        alone = "alone" in query  # there is no other question to compare with
        beyond = (residual > 0.3) & (not alone)
        shift = pd.DataFrame(
            {"user": self.ids, "from_query": previous, "to_query": query, "residual": residual}
        )
        shift = shift.assign(toward_yes=residual, elsewhere=0.3, stands_out=beyond)
        shift = shift.assign(neighbours_kept=np.where(beyond, 0.2, 0.93))
        shift.attrs["others"] = 0 if alone else 19
        near = [tuple((i * 7 + k) % total for k in range(1, 4)) for i in range(total)]
        first = shift.sort_values("residual", ascending=False)["user"].head(3)
        words = (
            f"{beyond.sum():,} of {len(self.ids):,} users stand out: this question moves them "
            f"further toward yes than any of 19 other questions (by chance: {total / 20:.0f})."
        )
        words += f" {first.iloc[0]}, {first.iloc[1]} and {first.iloc[2]} stand out most."
        if alone:
            words = ""
        data = {"points": points, "shift": shift.assign(gained=near, lost=near[::-1])}
        return Update(total, total, words, caption, data=data)

    def rank(self, query: str):
        """Rank those first whose number is highest."""
        total = len(self.ids)
        yield Update(0, total, "Ranking all users ...", data={"ranking": None})
        time.sleep(self.seconds / 4)
        if "unranked" in query:
            raise ValueError("the answers could not be read")
        order = self.ids[::-1] if "turns" in query else self.ids
        ranking = pd.DataFrame({"user": order, "score": np.linspace(-0.2, 0.6, total)})
        ranking["answer"] = np.where(ranking["score"] > 0, "likely", "unlikely")
        first = ", ".join(order[:-3:-1]) + f" and {order[-3]}"
        data = {
            "ranking": ranking,
            "interpretation": "Interpreted as a question about travel, not commute.",
            "order": f"{first} rank first of {total:,} users.",
        }
        yield Update(total, total, data=data)

    def backtest(self, query: str):
        """Say how often such a ranking was right, after two steps."""
        for done in (30, 60):
            yield Update(done, 60, f"Read the past of {done} of 60 users ...")
            time.sleep(self.seconds / 2)
        if "fail" in query:
            raise ValueError("the past could not be read")
        yield Update(
            60,
            60,
            "Backtest as of 2025-05-02: 72 of 100 pairs are in the right order.",
            data={"backtest": FakeBacktest()},
        )

    def timeline(self, user: str, query: str) -> pd.DataFrame:
        """Date some events; a query about travel means flights and trains."""
        row = self.ids.index(user)
        random = np.random.default_rng(row)
        n = int(self.events or random.integers(30, 120))
        kinds = [(kind, text) for kind, texts in TEXTS.items() for text in texts]
        frame = pd.DataFrame(random.choice(kinds, n), columns=["modality", "text"])
        if row == 0:  # hostile, as its recent events are
            frame.loc[n - 1, "text"] = HOSTILE
        minutes = np.sort(random.integers(0, 90 * 24 * 60, n))
        frame.insert(0, "time", pd.Timestamp("2025-01-01") + pd.to_timedelta(minutes, unit="min"))
        words = "flight|airline|train" if "travel" in query else query or "$^"
        means = frame["text"].str.contains(words, regex=True)
        weight = frame["text"].str.len() / 50 - 0.3
        return frame.assign(evidence=means, weight=weight.where(means))

    def answer(self, user: str, query: str) -> str:
        """Write something hostile, as a careless model might."""
        time.sleep(self.seconds / 2)
        if user == self.ids[1]:
            raise RuntimeError("the text could not be generated")
        return f"{user} likely will, judging by two flights searched <i>this</i> week."


TELLING = (
    ("label", "Concert", 0.83, 0.14),
    ("text", "looked up jazz concert dates online", 0.46, 0.08),
    ("text", f"bought a gig ticket {HOSTILE}", 0.31, 0.05),
    ("number", "events of bill", 36.0, 24.0),
    ("text", "ordered a pizza delivery, Quick Food Delivery receipt", 0.28, 0.09),
    ("modality", "search", 0.97, 0.78),
    ("number", "amount", 1_412.0, 1_180.0),
    ("modality", "app", 0.88, 0.92),
    ("label", "Fraud", 0.12, 0.06),
    ("text", "offers > Special Offers > cashback on lunch", 0.2, 0.14),
)


def fake_describe(ids) -> Update:
    """Describe any group of 600 users in the same words."""
    words = "What sets them apart most: “Concert” 83 % against 14 %."
    message = f"{len(ids)} of 600 users selected. {words}"
    return Update(1, 1, message, data={"frame": fake_description(ids)})


def fake_description(ids) -> pd.DataFrame:
    """Say the same of every group, with wider intervals for smaller ones; the last four are within
    chance.
    """
    rows = []
    for place, (kind, name, group, rest) in enumerate(TELLING):
        size = 1.0 if kind != "number" else group
        wide, narrow = 0.9 * size / np.sqrt(len(ids)), 0.03 * size
        top = size if kind != "number" else np.inf
        row = {
            "kind": kind,
            "name": name,
            "group": group,
            "group_low": max(group - wide, 0),
            "group_high": min(group + wide, top),
        }
        row |= {
            "rest": rest,
            "rest_low": max(rest - narrow, 0),
            "rest_high": min(rest + narrow, top),
            "difference": group - rest,
        }
        row |= {
            "low": group - rest - wide - narrow,
            "high": group - rest + wide + narrow,
            "beyond_chance": place < 6,
        }
        rows.append({**row, "n_group": len(ids), "n_rest": 600 - len(ids)})
    return pd.DataFrame(rows)


class FakeExplain:
    """Rank the fake questions and more for any group; 13 users take their time, 17 raise."""

    def __init__(self, seconds: float = 0.4):
        self.seconds, self.closed, self.called = seconds, 0, 0

    def __call__(self, ids):
        self.called += 1
        if len(ids) == 17:
            raise ValueError("the checkpoint has no such layer")
        try:
            steps = 400 if len(ids) == 13 else 8
            for step in range(steps):
                time.sleep(self.seconds / 8)
                yield Update(step, steps, f"Asked {75 * step} of 600 users 72 questions ...")
            queries = [
                *QUERIES,
                f"Is this user {HOSTILE}?",
                *(f"Does this user like hobby number {k}?" for k in range(1, 18)),
            ]
            frame = pd.DataFrame(
                {
                    "query": queries,
                    "auc": 0.86 - 0.018 * np.arange(len(queries)) ** 0.95,
                }
            )
            frame = frame.assign(
                auc_low=frame.auc - 0.06, auc_high=frame.auc + 0.06, chance=0.64, n_group=len(ids)
            )
            frame = frame.assign(
                beyond_chance=frame.auc > 0.64, behind=frame.auc < 0.83, n_rest=600 - len(ids)
            )
            words = (
                f"“{QUERIES[0]}” tells these {len(ids)} users best from the other "
                f"{600 - len(ids)}: AUC 0.86 (0.80 to 0.92). "
            )
            words += (
                "1 other is not clearly behind. By chance, the best of 24 questions reaches "
                "0.64 in 1 of 20 random groups."
            )
            caption = (
                "AUC out of fold (3 x 5 folds), nearest mean; chance line by 200 random "
                "groups of that size."
            )
            yield Update(steps, steps, words, caption, data={"frame": frame})
        finally:
            self.closed += 1


def fake_provenance(shift=None) -> dict:
    """Give what a result card says of a result, as the library does."""
    facts = {"run": "3f2a" * 16, "seed": 0, "version": "qanchor 0.1.0"}
    if shift is not None:
        moved, n = int(shift["stands_out"].sum()), len(shift)
        facts |= {
            "metric": "share of users that stand out (by chance: 1 in 20)",
            "value": moved / n,
            "low": moved / n - 0.04,
        }
        facts |= {"high": moved / n + 0.04, "n": n}
    return facts
