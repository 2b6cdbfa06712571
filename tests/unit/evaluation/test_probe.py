"""AUC, KS and the linear probe against loops anyone can check."""

import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanchor.evaluation.intervals import bootstrap_interval
from qanchor.evaluation.metrics import ks_statistic, roc_auc
from qanchor.evaluation.probe import ProbeResult, cross_val_scores, linear_probe, summarize_cv


def auc_by_loops(scores, labels):
    wins = [
        (p > n) + 0.5 * (p == n)
        for p, y in zip(scores, labels, strict=True)
        if y
        for n in negatives(scores, labels)
    ]
    return sum(wins) / len(wins)


def negatives(scores, labels):
    return [s for s, y in zip(scores, labels, strict=True) if not y]


def ks_by_loops(scores, labels):
    gaps = []
    for cut in scores:  # the share of each class at or below every score
        share = {
            c: np.mean([s <= cut for s, y in zip(scores, labels, strict=True) if y == c])
            for c in (0, 1)
        }
        gaps.append(abs(share[0] - share[1]))
    return max(gaps)


rows = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(rows.filter(lambda r: len({y for _, y in r}) == 2))
def test_auc_and_ks_equal_the_loops_with_ties(pairs):
    scores, labels = [float(s) for s, _ in pairs], [y for _, y in pairs]
    assert roc_auc(scores, labels) == pytest.approx(auc_by_loops(scores, labels), abs=1e-12)
    assert ks_statistic(scores, labels) == pytest.approx(ks_by_loops(scores, labels), abs=1e-12)


def planted(users=600, dim=16, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(users, dim))
    return x, (x[:, 0] + x[:, 1] + noise * rng.normal(size=users) > 0.5).astype(float)


def test_probe_finds_what_was_planted_and_nothing_where_nothing_is():
    x, y = planted()
    found = linear_probe(x, y, seeds=2)
    assert found.auc > 0.88 and found.ks > 0.55 and found.auc_low < found.auc < found.auc_high
    assert found.n == 600 and found.positives == int(y.sum())
    nothing = linear_probe(np.random.default_rng(1).normal(size=x.shape), y, seeds=2)
    assert nothing.auc_low < 0.5 < nothing.auc_high and nothing.ks < 0.15


def test_probe_equals_its_plain_twin():
    """Folds and mean written out: the same AUC."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    x, y = planted(200)
    scores, fold = cross_val_scores(x, y, seed=3, folds=4, seeds=2)
    by_hand = []
    for row, seed in enumerate((3, 4)):
        for number, (_, test) in enumerate(
            StratifiedKFold(4, shuffle=True, random_state=seed).split(x, y)
        ):
            assert (fold[row, test] == number).all()
            by_hand.append(roc_auc_score(y[test], scores[row, test]))
    assert linear_probe(x, y, seed=3, folds=4, seeds=2).auc == pytest.approx(
        np.mean(by_hand), abs=1e-12
    )


def test_held_out_users_are_not_seen():
    """With pure noise and more columns than users a probe that had seen its test users would score
    1.
    """
    rng = np.random.default_rng(0)
    assert linear_probe(rng.normal(size=(120, 300)), np.arange(120) % 2, seeds=3).auc < 0.65


def test_unknown_labels_are_left_out():
    x, y = planted(300)
    y[::3] = np.nan
    known = ~np.isnan(y)
    got, twin = linear_probe(x, y, seeds=2), linear_probe(x[known], y[known], seeds=2)
    assert got.n == 200 and got == twin
    scores, fold = cross_val_scores(x, pd.Series(y), seeds=1)
    assert (
        np.isnan(scores[0, ~known]).all()
        and (fold[0, ~known] == -1).all()
        and not np.isnan(scores[0, known]).any()
    )


@pytest.mark.parametrize("kind", ["bool", "Int64", "object", "float32"])
def test_labels_of_any_sensible_type_are_read(kind):
    x, y = planted(100)
    labels = pd.Series(y.astype(bool) if kind == "bool" else y).astype(kind)
    assert linear_probe(x, labels, seeds=1) == linear_probe(x, y, seeds=1)


def test_scale_and_seed_do_what_they_say():
    x, y = planted(200)
    assert linear_probe(x, y, seed=1, seeds=1) == linear_probe(x, y, seed=1, seeds=1)
    assert linear_probe(x, y, seed=1, seeds=1) != linear_probe(x, y, seed=2, seeds=1)
    assert linear_probe(x * 1000 + 5, y, seeds=1).auc == pytest.approx(
        linear_probe(x, y, seeds=1).auc, abs=1e-3
    )


def test_constant_columns_and_one_column_do_no_harm():
    x, y = planted(200)
    assert linear_probe(np.ones((200, 3)), y, seeds=1).auc == 0.5
    assert linear_probe(np.hstack([x, np.ones((200, 2))]), y, seeds=1).auc == pytest.approx(
        linear_probe(x, y, seeds=1).auc, abs=1e-3
    )
    assert linear_probe(x[:, :1], y, seeds=1).auc > 0.65


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """40 samples of users from one population: the AUC on a great many users lies inside at least
    85 % of the time.
    """
    big_x, big_y = planted(20_000, dim=3, seed=99, noise=2.0)
    truth = roc_auc(big_x[:, 0] + big_x[:, 1], big_y)
    inside = 0
    for seed in range(40):
        found = linear_probe(*planted(300, dim=3, seed=seed, noise=2.0), seeds=1)
        inside += found.auc_low <= truth <= found.auc_high
    assert inside >= 34


def test_bootstrap_interval_narrows_with_users():
    widths = []
    for users in (200, 2000):
        x, y = planted(users)
        low, high = bootstrap_interval(
            lambda rows, s=x[:, 0], y=y: roc_auc(s[rows], y[rows]), y.astype(int), draws=200
        )
        assert low < roc_auc(x[:, 0], y) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_another_model_can_be_held_out_the_same_way():
    x, y = planted(150)
    scores, fold = cross_val_scores(x, y, seeds=1, fit=lambda x, y, new, seed: new[:, 0])
    assert (scores[0] == x[:, 0]).all()
    assert summarize_cv(scores, fold, y).n == 150


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x, y[:-1]), r"\(100, 4\), labels \(99,\).*of the same users"),
        (lambda x, y: (x[:, 0], y), r"embeddings \(100,\)"),
        (lambda x, y: (x, y * 0), "0 positives and 100 negatives.*Choose another label"),
        (
            lambda x, y: (x, np.arange(100) < 3),
            "3 positives and 97 negatives; 5 of each.*folds=3",
        ),
        (lambda x, y: (x, y + 1), "label 2.0 is neither 0 nor 1"),
        (lambda x, y: (x, y * np.nan), "0 positives and 0 negatives"),
        (
            lambda x, y: (np.where(np.arange(100)[:, None] == 7, np.inf, x), y),
            r"embeddings\[7, 0\] is inf.*Fill it",
        ),
    ],
)
def test_errors_name_the_place_the_values_and_the_cure(change, message):
    x, y = planted(100, dim=4)
    with pytest.raises(ValueError, match=message):
        linear_probe(*change(x, y))


def test_scores_are_checked_too():
    with pytest.raises(ValueError, match=r"3 scores \(1 NaN\), 2 labels"):
        roc_auc([0.1, 0.2, np.nan], [0, 1])


def test_a_probe_prints_and_becomes_json():
    shown = ProbeResult(auc=0.8123, auc_low=0.79, auc_high=0.83, ks=0.471, n=800, positives=210)
    assert repr(shown) == "Probe(auc=.812, ks=.47, n=800)"
    assert list(dataclasses.asdict(shown)) == ["auc", "auc_low", "auc_high", "ks", "n", "positives"]
    assert repr(ProbeResult(1.0, 1.0, 1.0, 1.0, 4, 2)) == "Probe(auc=1.000, ks=1.00, n=4)"


def test_it_is_quick():
    x, y = planted(2000, dim=128)
    start = time.perf_counter()
    linear_probe(x, y, seeds=1)
    assert time.perf_counter() - start < 10  # 0.2 s alone on one core
