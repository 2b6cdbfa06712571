"""A backtest reads nothing after its day, measures what came, and says what is chance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qanchor.evaluation import backtest as module
from qanchor.evaluation.backtest import BacktestResult, backtest, concordance
from qanchor.inference.engine import Engine
from qanchor.workbench.messages import backtest_summary
from tests.tiny import QUERIES, make_model, make_users


def test_concordance_counts_pairs():
    rng = np.random.default_rng(0)
    score, truth = rng.normal(size=60).round(1), rng.integers(0, 4, 60).astype(float)
    pairs = [(i, j) for i in range(60) for j in range(60) if truth[i] > truth[j]]
    plain = np.mean([(score[i] > score[j]) + (score[i] == score[j]) / 2 for i, j in pairs])
    share, low, high = concordance(score, truth)
    assert share == pytest.approx(plain) and low < share < high
    assert concordance(score, np.ones(60)) == (None, None, None)
    assert concordance(score[:19], truth[:19]) == (None, None, None)


def test_the_interval_of_concordance_covers_chance():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        _, low, high = concordance(rng.normal(size=80), rng.integers(0, 3, 80).astype(float))
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_a_backtest_reads_nothing_after_that_day_and_measures_what_came(monkeypatch):
    """Deleting what came after changes the truth, never the scores."""
    users = make_users()
    engine = Engine(make_model())
    seen = []

    def watched(score, truth):
        seen.append((score, truth))
        return 0.5, 0.4, 0.6

    monkeypatch.setattr(module, "concordance", watched)
    result = backtest(engine, users, QUERIES[0])
    day = users.cutoff - pd.Timedelta(days=30)
    assert (result.topic, result.days, result.cutoff) == ("buy tea", 30, f"{day:%Y-%m-%d}")
    gone = replace(users, events=users.events[users.events["time"] < day])
    backtest(engine, gone, QUERIES[0])
    (score, truth), (count, _), (again, silent), (count_again, _) = seen
    np.testing.assert_allclose(score, again, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(count, count_again)
    past = users.history()
    until = past[past["time"] < day]
    known = [user for user in users.ids if user in set(until["user"])]
    bought = past[(past["text"] == "buy_tea") & (past["time"] >= day)]["user"]
    np.testing.assert_array_equal(truth, np.isin(known, bought))
    assert truth.any() and not silent.any()


def test_a_backtest_of_too_short_a_past_says_so():
    users = make_users()
    start = users.cutoff - pd.Timedelta(days=20)
    young = replace(users, events=users.events[users.events["time"] >= start])
    result = backtest(Engine(make_model()), young, QUERIES[0])
    assert result.right is None and result.n == 0
    assert backtest_summary(result).startswith("No backtest: ")


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((0.6, 0.7), ""),
        ((0.4, 0.6), ": no better than chance"),
        ((0.3, 0.4), ": worse than chance"),
    ],
)
def test_a_backtest_says_what_is_chance(span, words):
    result = BacktestResult(0.5, *span, 400, "not tea", 30, "2025-05-02", "family", 0.701, sign=-1)
    summary = backtest_summary(result)
    assert summary.startswith("Backtest as of 2025-05-02: 50 of 100 pairs are in the right order (")
    baseline = "chance: 50; a plain count of the days before: 70)"
    order, outcome = summary.split(" Measured on ")
    assert order.endswith(f"to {100 * span[1]:.0f}; {baseline}{words}.")
    assert outcome == "400 families by the 30 days after: tea (none)."
