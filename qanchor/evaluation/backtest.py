"""Backtest a label-free ranking: rank users as of an earlier day and compare with later events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from qanchor.data.things import Thing
from qanchor.data.users import Users
from qanchor.evaluation.intervals import Z
from qanchor.inference.engine import Engine
from qanchor.inference.evidence import rank_by_pointing
from qanchor.models.user_tokens import TokenReader
from qanchor.training.concept_task import is_held_out
from qanchor.useru.concepts import Concept, Outcomes
from qanchor.useru.horizons import query_horizon
from qanchor.utils.types import UserFloats

MIN_HELD_OUT_USERS = 100  # with fewer, users that the model was trained on are included
MIN_OTHER_OUTCOMES = 3  # users whose outcome is not the most frequent one
MIN_KNOWN_USERS = 20  # users with a known outcome that a result needs
FIFTHS = 5


@dataclass(frozen=True)
class BacktestResult:
    """Hold the share of pairs of users that a ranking ordered correctly.

    Args:
        right: Share of the pairs with different outcomes that were ordered correctly (a tie counts
            half; chance is 0.5). None if too few outcomes are known.
        low: Lower end of the 95 % interval of `right`, or None.
        high: Upper end of it, or None.
        n: Number of users with a known outcome.
        topic: What the query points at in the users' events, with "not" if it asks whether this
            does not happen; empty if the data has nothing about it.
        days: Number of days that the query looks ahead.
        cutoff: Day as of which the users were ranked.
        unit: Word for one user.
        before: The same share if users are ranked by a plain count of their events before that day,
            a baseline without a model (default: None, unknown).
        measure: What is measured of the topic, one of `qanchor.useru.concepts.MEASURES` (default
            "occurs").
        sign: -1 if yes means that the topic does not happen (default 1).
        threshold: The smallest amount or number of times that counts (default 0: none is asked).
        shares: Share of users with a positive outcome in each fifth of that day's ranking, highest
            fifth first (default: empty, too few outcomes are known).
        optimistic: Whether the result includes users that the model was trained on, because too few
            were held out (default False).

    Example:
        >>> BacktestResult(0.71, 0.66, 0.76, 400, "lapse", 30, "2025-05-02", "member").right
        0.71
    """

    right: float | None
    low: float | None
    high: float | None
    n: int
    topic: str
    days: int
    cutoff: str
    unit: str
    before: float | None = None
    measure: str = "occurs"
    sign: int = 1
    threshold: float = 0.0
    shares: tuple[float, ...] = ()
    optimistic: bool = False

    def chances(self, score: UserFloats) -> UserFloats:
        """Return how often users ranked in the same fifth had a positive outcome in the backtest.

        Args:
            score: Current score of each user.

        Returns:
            The share of the fifth that each user is in; NaN without a score or without shares.

        Example:
            >>> result = BacktestResult(0.9, 0.8, 1.0, 100, "tea", 30, "2025-05-02", "user",
            ...                         shares=(0.8, 0.5, 0.4, 0.2, 0.1))
            >>> result.chances(np.array([9.0, 2, 3, 5, 4, np.nan])).tolist()
            [0.8, 0.1, 0.2, 0.5, 0.4, nan]
        """
        chances = np.full(len(score), np.nan)
        known = ~np.isnan(score)
        if self.shares:
            chances[known] = np.array(self.shares)[_fifths(score[known])]
        return chances


def _fifths(score: UserFloats) -> np.ndarray:
    """Return the fifth of the ranking that each user is in, 0 for the highest; ties share one."""
    rank = pd.Series(score).rank().to_numpy()
    share_above = 1 - (rank - 0.5) / len(score)
    return np.minimum((share_above * FIFTHS).astype(int), FIFTHS - 1)


def _shares(score: UserFloats, is_yes: np.ndarray) -> tuple[float, ...]:
    """Return the share of yes in each fifth of a ranking, highest fifth first, never increasing.

    A fifth with a higher share than the one above is pooled with it (isotonic regression).
    """
    from sklearn.isotonic import isotonic_regression

    fifths = _fifths(score)
    users = np.bincount(fifths, minlength=FIFTHS)
    if len(score) < FIFTHS * MIN_KNOWN_USERS or not users.all():
        return ()
    shares = np.bincount(fifths, is_yes, FIFTHS) / users
    falling = isotonic_regression(shares, sample_weight=users, increasing=False)
    return tuple(falling.round(4).tolist())


def backtest(
    engine: Engine, users: Users, query: str, without: Collection[str] = ()
) -> BacktestResult:
    """Rank the users as of an earlier day and compare the ranking with what they have done since.

    The earlier day is as many days before the cut-off as the query looks ahead. The outcome is
    computed from the events since then: it is what the query asks of the things that it points at.
    Only users held out of training are evaluated, if there are at least 100 of them.

    Args:
        engine: The model.
        users: The users.
        query: The query.
        without: Labels of things that the query does not mean, see `Engine.rank` (default: none).

    Returns:
        The result.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> result = backtest(engine, users, "Will this user be active?")
        >>> result.n, result.days, result.cutoff
        (60, 30, '2025-05-02')
    """
    model = engine.model
    days = query_horizon(query, users.horizon_days)
    cutoff = users.cutoff - pd.Timedelta(days=days)
    unknown = BacktestResult(None, None, None, 0, "", days, f"{cutoff:%Y-%m-%d}", users.unit)
    if users.events["time"].min() >= cutoff:  # no user has a history on that day
        return unknown
    reader = TokenReader(users, model.config.text_encoder, until=cutoff)
    # use percentiles as of that day, because histories grow
    tokens = reader.read(cutoff).with_associations(model.population.associations)
    tokens = replace(tokens, not_meant=tuple(without))
    ranking = rank_by_pointing(model, tokens, query)
    if not ranking.attrs["answerable"]:
        return unknown
    judged = np.array([is_held_out(user) for user in tokens.ids])
    optimistic = bool(judged.sum() < MIN_HELD_OUT_USERS)
    if optimistic:
        judged[:] = True
    concept = _asked_concept(ranking.attrs, reader.things)
    rows = pd.Index(users.ids).get_indexer(tokens.ids)[judged]
    outcomes = Outcomes.of(reader.events, rows, cutoff, days)
    truth = outcomes.truth(reader.events, (concept,))[:, 0].astype(float)
    _, past = outcomes.amounts(reader.events, concept)
    sign = ranking.attrs["sign"]
    known = ~np.isnan(truth)
    outcome = sign * truth[known]
    score = ranking["score"].to_numpy(float)[judged][known]
    right, low, high = concordance(score, outcome)
    before, _, _ = concordance(sign * past[known].astype(float), outcome)
    shares = ()
    if right is not None:
        shares = _shares(score, truth[known] == (sign > 0))
    return replace(
        unknown,
        right=right,
        low=low,
        high=high,
        n=len(score),
        topic=", ".join(ranking.attrs["topics"]),
        before=before,
        measure=concept.measure,
        sign=sign,
        threshold=concept.threshold,
        shares=shares,
        optimistic=optimistic,
    )


def _asked_concept(attrs: dict, things: Sequence[Thing]) -> Concept:
    """Return the concept that a query asks about, from `attrs` of its ranking."""
    measure = attrs["measure"]
    threshold = attrs["threshold"]
    meant = [things[row] for row in attrs["things"]]
    if measure == "exceeds" and not threshold:  # the query names no amount: any amount counts
        measure = "occurs"
    family = "text"
    counts_times = measure == "high" and threshold
    if meant and meant[0].kind == "number" and not counts_times:
        family = "number"
    names = tuple(thing.name for thing in meant)
    return Concept("asked", family, "", names, measure, threshold)


def concordance(score: UserFloats, truth: UserFloats) -> tuple[float | None, ...]:
    """Compute the share of pairs with different outcomes that a score orders correctly.

    This is Harrell's C; a tie counts half.

    Args:
        score: The score of each user.
        truth: The outcome of each user.

    Returns:
        (share, low, high), with the 95 % jackknife interval over users. All are None for fewer than
        20 users, or if all outcomes but fewer than 3 are equal.

    Example:
        >>> concordance(np.arange(20.0), np.arange(20.0))
        (1.0, 1.0, 1.0)
    """
    n = len(truth)
    _, users = np.unique(truth, return_counts=True)
    if n < MIN_KNOWN_USERS or n - users.max() < MIN_OTHER_OUTCOMES:
        return None, None, None
    truth_order = np.sign(truth[:, None] - truth)
    score_order = np.sign(score[:, None] - score)
    differs = np.abs(truth_order)
    right = (truth_order * score_order + differs) / 2
    # each pair is counted twice
    pairs = differs.sum()
    pairs_of_user = 2 * differs.sum(1)
    right_of_user = 2 * right.sum(1)
    share = right.sum() / pairs
    without_user = (right.sum() - right_of_user) / np.maximum(pairs - pairs_of_user, 1)
    variance = (n - 1) / n * ((without_user - without_user.mean()) ** 2).sum()
    half_width = Z * np.sqrt(variance)
    low = max(share - half_width, 0)
    high = min(share + half_width, 1)
    return float(share), float(low), float(high)
