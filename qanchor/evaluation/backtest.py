"""How often a verdict would have been right: asked as of an earlier day, judged by what the users' own events say since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.users import Users
from qanchor.inference.ranking import KINDS, iter_warm_up, label_free_scores, query_horizon
from qanchor.useru.behavior import EventArrays, find_spend_sources
from qanchor.useru.pairs import measure_users
from qanchor.useru.schedule import QueryWindow
from qanchor.useru.topics import by_name

MAX_USERS_READ = 400  # users who are read anew
MIN_KNOWN_USERS = 20  # users of whom the truth is known; fewer say nothing


@dataclass(frozen=True)
class BacktestResult:
    """Say in what share of the pairs of users that differ a verdict put the right one first (a tie counts half; .5 is luck).

    low and high are the 95 % interval of `right`; n the users whose truth is known; None where they are too few. `before` is
    the share that a simple count would have had right: the same measured of the time before that day, with no model at all.

    Example:
        >>> print(str(BacktestResult(0.71, 0.66, 0.76, 400, "lapse", 30, "2025-05-02", "member")).replace(", by", ",\\nby"))
        in hindsight, as of 2025-05-02, right in 71 of 100 pairs (95 %: 66 to 76; luck: 50) of 400 members,
        by who did stop shopping here in the 30 days after
    """

    right: float | None
    low: float | None
    high: float | None
    n: int
    topic: str  # by which the truth is measured, "not ..." where its no is meant; empty for the question about everything
    days: int  # looked ahead; 0: the question is about the past
    cutoff: str
    unit: str
    before: float | None = None

    def __str__(self) -> str:
        if self.right is None:
            few = f"the truth of {self.n} {self.unit}s tells too little"
            why = few if self.topic else "it is a question of no one topic"
            return f"in hindsight nothing can be said: {why}"
        low, right, high = (f"{100 * share:.0f}" for share in (self.low, self.right, self.high))
        luck = ": worse than luck" if self.high < 0.5 else ": no better than luck" if self.low <= 0.5 else ""
        when = f"in the {self.days} days after" if self.days else "until then"
        denied, name = self.topic.startswith("not "), self.topic.removeprefix("not ")
        measured = f"by who did {'not ' * denied}{by_name(name).does} {when}"
        count = "" if self.before is None else f"; the same counted before that day: {100 * self.before:.0f}"
        pairs = f"right in {right} of 100 pairs (95 %: {low} to {high}; luck: 50{count}){luck}"
        return f"in hindsight, as of {self.cutoff}, {pairs} of {self.n:,} {self.unit}s, {measured}"


def backtest(engine, users: Users, query: str, most: int = MAX_USERS_READ, progress=None) -> BacktestResult:
    """Ask the query as of so long before the cut-off as it looks ahead, and see what the users have done since.

    What is measured is the topic that bears most of the verdict, as UserU measures it (its value, not its grades); a question
    about the past is measured by the past of that day. At most `most` users are read. A run that was trained on these users has
    seen these days too, so its share is rather too good; a share near .5 is bad news in any case.
    progress   called with (stage, done, total).

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> backtest(engine, users, "Will this user churn?").topic
        'lapse'
    """
    for step in iter_backtest(engine, users, query, most):
        if isinstance(step, BacktestResult):
            return step
        if progress:
            progress(*step)


def iter_backtest(
    engine, users: Users, query: str, most: int = MAX_USERS_READ
) -> Iterator[tuple[str, int, int] | BacktestResult]:
    """Do what `backtest` does step by step: yields (stage, done, total), and last what was found. Close it to stop."""
    some = users.sample(min(most, len(users)))
    days = query_horizon(query, users.horizon_days)
    earlier = replace(some, cutoff=users.cutoff - pd.Timedelta(days=days))
    for done, total in iter_warm_up(engine.model, query, users.unit, users.horizon_days):
        yield "reading graded answers", done, total
    anchors, done = np.zeros((len(some), engine.model.config.embedding_dim), np.float32), 0
    for rows, z in engine.iter_embed_uncached(earlier, [query]):
        anchors[rows], done = z[:, 0], done + len(rows)
        yield "reading the past", done, len(some)
    found = label_free_scores(engine.model, some.ids, query, anchors, users.unit, users.horizon_days)
    name, kind, sign = found.attrs["measured"]
    told = {
        "topic": f"{'not ' * (sign < 0)}{name}",
        "days": days if kind == "future" else 0,
        "cutoff": f"{earlier.cutoff:%Y-%m-%d}",
        "unit": users.unit,
    }
    if not name:
        yield BacktestResult(None, None, None, 0, **told)
        return
    records, sources = EventArrays(some, (by_name(name),)), find_spend_sources(earlier.history())
    truth = _measure_topic(records, QueryWindow(earlier.cutoff, kind, days, 1), sources, sign).dropna()
    if kind == "future":
        before = _measure_topic(records, QueryWindow(earlier.cutoff, KINDS[0], days, 1), sources, sign)[truth.index]
        told["before"] = concordance(before.fillna(before.median()).fillna(0).to_numpy(), truth.to_numpy())[0]
    score = found.set_index("user")["score"].loc[truth.index].to_numpy()
    yield BacktestResult(*concordance(score, truth.to_numpy()), len(truth), **told)


def _measure_topic(records: EventArrays, moment: QueryWindow, sources, sign: int) -> pd.Series:
    """Measure one topic of each user, the higher the nearer to what is asked."""
    values = measure_users(records, moment, sources)
    return pd.Series(values.value[:, 0] * sign * (-1 if records.topics[0].name.endswith("_down") else 1), values.ids)


def concordance(
    score: Float[np.ndarray, " user"], truth: Float[np.ndarray, " user"]
) -> tuple[float | None, float | None, float | None]:
    """Give the share of the pairs that differ in truth which the score orders alike (Harrell's C), and its 95 % interval.

    The interval is a jackknife's over users; None for fewer than 20 of them, or where all are alike.

    Example:
        >>> concordance(np.arange(20.0), np.arange(20.0))
        (1.0, 1.0, 1.0)
    """
    above, better = (np.sign(values[:, None] - values) for values in (truth, score))
    pairs, right = np.abs(above), (above * better + np.abs(above)) / 2
    if len(truth) < MIN_KNOWN_USERS or not pairs.any():
        return None, None, None
    share, n = right.sum() / pairs.sum(), len(truth)
    left = (right.sum() - 2 * right.sum(1)) / np.maximum(pairs.sum() - 2 * pairs.sum(1), 1)  # without each user in turn
    wide = 1.96 * np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum())
    return float(share), float(max(share - wide, 0)), float(min(share + wide, 1))
