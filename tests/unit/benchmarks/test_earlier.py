"""Models fitted at earlier cut-offs read no label and no event of the judged window."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qanchor.data.complete_journey import LABEL_DAYS
from qanchor.data.sample import make_sample_users
from qanchor.evaluation.metrics import roc_auc
from tests.benchmarks import earlier

METHODS = ("earlier_logistic", "earlier_lightgbm")


@pytest.fixture(scope="module")
def users():
    return make_sample_users(200)


def active(users, cutoff) -> pd.DataFrame:
    """Label the users with more than the median of events in the 30 days from a cut-off on."""
    end = cutoff + pd.Timedelta(days=30)
    events = users.events[(users.events["time"] >= cutoff) & (users.events["time"] < end)]
    counts = events["user"].value_counts().reindex(list(users.ids))
    label = (counts > counts.median()).astype(float)
    return pd.DataFrame({"Active": label, "female": label, "own": label})


@pytest.fixture(scope="module")
def labels(users):
    cutoffs = [users.cutoff - pd.Timedelta(days=days) for days in (30, 45)]
    return {cutoff: active(users, cutoff) for cutoff in cutoffs}


def test_what_was_learned_at_earlier_cutoffs_ranks_at_the_judged_one(users, labels):
    scores = earlier.earlier_scores("hash", users, labels, ["Active", "female", "own"])
    assert set(scores) == {("Active", method) for method in METHODS}, "no profile, nothing unknown"
    truth = active(users, users.cutoff)["Active"]
    for score, fold in scores.values():
        assert score.shape == fold.shape == (1, len(users)) and not fold.any()
        assert roc_auc(score[0], truth) > 0.7


def test_nothing_of_the_judged_window_is_read(users, labels):
    wanted = earlier.earlier_scores("hash", users, labels, ["Active"])
    events = users.events[users.events["time"] < users.cutoff].reset_index(drop=True)
    blind = replace(users, events=events, labels=users.labels * np.nan)
    found = earlier.earlier_scores("hash", blind, labels, ["Active"])
    for name, (score, _) in wanted.items():
        np.testing.assert_array_equal(found[name][0], score)


def test_users_without_a_label_there_are_left_out(users, labels):
    few = {cutoff: table.copy() for cutoff, table in labels.items()}
    for table in few.values():
        table.iloc[:80] = np.nan
    scores = earlier.earlier_scores("hash", users, few, ["Active"])
    assert all(np.isfinite(score).all() for score, _ in scores.values())


def test_the_sample_world_has_no_earlier_labels(users):
    assert earlier.earlier_labels(users) == {}
    assert earlier.earlier_scores("hash", users, {}, ["Active"]) == {}


def test_earlier_windows_end_before_the_judged_one(users, monkeypatch):
    asked = []

    def load(cutoff):
        asked.append(cutoff)
        return replace(users, labels=users.labels.iloc[::-1].iloc[:50])

    monkeypatch.setattr(earlier, "load_complete_journey", load)
    people = replace(users, name="journey", cutoff=pd.Timestamp("2017-10-01"))
    labels = earlier.earlier_labels(people)
    assert list(labels) == asked and len(asked) == len(earlier.HORIZONS_BEFORE)
    assert max(asked) + pd.Timedelta(days=LABEL_DAYS) <= people.cutoff
    for table in labels.values():
        assert tuple(table.index) == people.ids and table["Active"].notna().sum() == 50
    asked.clear()
    assert len(earlier.earlier_labels(replace(people, cutoff=pd.Timestamp("2017-06-01")))) == 1
    assert asked == [pd.Timestamp("2017-03-01")]
