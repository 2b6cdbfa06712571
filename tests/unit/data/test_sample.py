"""The sample world: the same by seed, labels with known odds, traits in several modalities, nothing
planted is visible.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qanchor.data.reading import load_users
from qanchor.data.sample import (
    CARRIERS,
    MODALITIES,
    TASKS,
    TRAITS,
    make_sample_users,
    sample_ground_truth,
    themes,
)
from tests.benchmarks.datasets import write_sample_data

SAMPLE = Path(__file__).parents[3] / "data" / "sample"
SOURCES = MODALITIES[:-1]
# of the shipped events, as `digest` counts them
DIGEST = "1da9bb6542e3b5dd5d643fde13316521b523a03453d0c424fc9ec8dfacdd0fc2"


@cache
def world():
    return make_sample_users(2000, seed=0), sample_ground_truth(2000, seed=0)


@cache
def theme_counts() -> pd.DataFrame:
    """Count each user's past events by (modality, theme): index user, columns a pair."""
    past = world()[0].history()
    named = {
        text: theme.name for theme in themes() for texts in theme.texts.values() for text in texts
    }
    theme = past["text"].cat.rename_categories(str).astype(str).map(named)
    keys = [past["user"].astype(str), past["modality"].astype(str), theme]
    return (
        past.groupby(keys)
        .size()
        .unstack([1, 2], fill_value=0)
        .reindex(list(world()[0].ids), fill_value=0)
    )


def digest(events: pd.DataFrame) -> str:
    """Hash what the events say, whatever the library's column types."""
    whole = hashlib.sha256()
    for column in ("user", "modality", "text"):
        whole.update("\n".join(events[column].astype(str)).encode())
    whole.update(
        events["time"].astype("datetime64[s]").astype("int64").to_numpy().astype("<i8").tobytes()
    )
    for column in ("amount", "discount", "minutes"):
        whole.update((events[column].fillna(-1) * 100).round().to_numpy().astype("<i8").tobytes())
    return whole.hexdigest()


def fitted(features: pd.DataFrame, label: np.ndarray) -> float:
    """Give the cross-validated AUC of a logistic regression."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=300))
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return roc_auc_score(
        label, cross_val_predict(model, features, label, cv=folds, method="predict_proba")[:, 1]
    )


def equal(left: pd.DataFrame, right: pd.DataFrame) -> None:
    words = {"user": str, "modality": str, "text": str}
    pd.testing.assert_frame_equal(left.astype(words), right.astype(words))


def test_the_same_seed_gives_the_same_users_and_another_gives_others():
    equal(make_sample_users(50, seed=7).events, make_sample_users(50, seed=7).events)
    assert make_sample_users(50, seed=7).labels.equals(make_sample_users(50, seed=7).labels)
    assert len(make_sample_users(50, seed=8).events) != len(make_sample_users(50, seed=7).events)
    pd.testing.assert_frame_equal(sample_ground_truth(50, seed=7), sample_ground_truth(50, seed=7))


@pytest.mark.slow
def test_the_shipped_sample_is_what_the_code_makes():
    shipped = load_users(SAMPLE)
    assert digest(shipped.events) == DIGEST, (
        "data/sample changed: write_sample('data/sample'), and put the new digest here"
    )
    made, truth = world()
    equal(shipped.events, made.events)
    pd.testing.assert_frame_equal(shipped.labels, made.labels)
    pd.testing.assert_frame_equal(shipped.tabular, made.tabular)
    pd.testing.assert_frame_equal(
        pd.read_parquet(SAMPLE / "truth.parquet").set_index("user"), truth, check_dtype=False
    )


def test_write_sample_writes_what_loads(tmp_path):
    equal(
        load_users(write_sample_data(tmp_path, n=30, seed=5)).events,
        make_sample_users(30, seed=5).events,
    )
    assert len(pd.read_parquet(tmp_path / "truth.parquet")) == 30


def test_the_sample_is_small_enough():
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 3_000_000


def test_events_are_many_short_and_of_few_texts():
    users, _ = world()
    count = users.events.groupby("user", observed=False).size()
    assert count.quantile(0.05) >= 60 and count.quantile(0.95) <= 260 and count.min() > 0
    texts = users.events["text"].cat.categories
    words = texts.str.split().str.len()
    assert 1500 <= len(texts) <= 4000 and words.min() >= 2 and words.max() <= 12
    assert not texts.str.contains(r"[{}|]|  ", regex=True).any()


def test_numbers_stand_where_they_belong():
    events = world()[0].events
    bill = events["modality"] == "bill"
    assert (events.loc[bill, "amount"] > 0).all() and events.loc[~bill, "amount"].isna().all()
    assert (events.loc[bill, "discount"] < events.loc[bill, "amount"]).all()
    assert (events["minutes"].notna() == events["modality"].isin(["mini", "app"])).all()


def test_times_lie_in_the_window_and_cover_it():
    users, _ = world()
    assert users.cutoff == pd.Timestamp("2025-06-01")
    days = (users.events["time"] - pd.Timestamp("2025-03-03")).dt.days
    assert days.min() == 0 and days.max() == 119
    share = len(users.future()) / len(users.events)
    assert 0.2 < share < 0.32, "about a quarter of the events is future"


def test_nothing_planted_is_visible():
    users, _ = world()
    seen = {*users.events.columns, *users.tabular.columns, *users.frame().columns}
    assert not any(
        name.startswith(("trait", "p.")) or name in {"lies", "missing", "theme"} for name in seen
    )
    assert not set(users.tabular) & set(TASKS) and list(users.labels) == list(TASKS)


def test_facts_come_in_groups_and_are_empty_for_some():
    users, truth = world()
    assert {name.split(".")[0] for name in users.tabular} == {"account", "device", "home"}
    empty = users.tabular.isna()
    assert (empty.all(axis=1) == empty.any(axis=1)).all()
    assert (empty.all(axis=1) == truth["missing"].str.contains("tabular")).all()


@pytest.mark.parametrize("task", TASKS)
def test_base_rate_and_oracle_are_in_range(task):
    users, truth = world()
    many = sample_ground_truth(50_000, seed=1)[f"p.{task}"]
    assert 0.05 <= users.label(task).mean() <= 0.45 and 0.05 <= many.mean() <= 0.45
    assert 0.78 <= roc_auc_score(users.label(task), truth[f"p.{task}"]) <= 0.92
    assert 0.78 <= roc_auc_score(np.random.default_rng(0).random(len(many)) < many, many) <= 0.92


def test_labels_come_true_as_often_as_their_odds():
    users, truth = world()
    for task in TASKS:
        odds = truth[f"p.{task}"]
        for part in np.array_split(np.argsort(odds.to_numpy()), 5):
            expected, spread = (
                odds.iloc[part].mean(),
                np.sqrt((odds * (1 - odds)).iloc[part].sum()) / len(part),
            )
            assert abs(users.label(task).iloc[part].mean() - expected) < 4 * spread + 1e-9, task


def test_traits_are_standard_and_moderately_correlated():
    traits = sample_ground_truth(20_000, seed=2).filter(like="trait.")
    assert len(TRAITS) == traits.shape[1] == 16
    assert traits.mean().abs().max() < 0.05 and (traits.std() - 1).abs().max() < 0.05
    off = traits.corr().abs().to_numpy()[np.triu_indices(16, 1)]
    assert 0.2 < off.max() < 0.5


def test_the_stated_share_of_modalities_is_missing_and_lies():
    users, truth = world()
    counts = users.events.groupby(["user", "modality"], observed=False).size().unstack()
    for modality in SOURCES:
        gone = truth["missing"].str.split(";").map(lambda names, m=modality: m in names)
        assert (counts.loc[gone.to_numpy(), modality] == 0).all()
        assert 0.06 < gone.mean() < 0.10
    assert 0.09 < (truth["lies"] != "").mean() < 0.14
    assert not any(
        lie and lie in missing for lie, missing in zip(truth["lies"], truth["missing"], strict=True)
    )


def test_the_future_shows_what_the_label_says():
    """For an honest and present modality the label's own theme stands in the month after the
    cut-off
    , else it does not.
    """
    users, truth = world()
    ahead = users.future()
    for theme in (theme for theme in themes() if theme.name in TASKS):
        for modality in theme.texts:
            shown = ahead[
                (ahead["modality"] == modality) & ahead["text"].isin(theme.texts[modality])
            ]
            honest = (truth["lies"] != modality) & ~truth["missing"].str.contains(modality)
            found = pd.Series(users.ids).isin(shown["user"].astype(str)).to_numpy()
            assert (found == users.label(theme.name).to_numpy(bool))[honest].all(), (
                theme.name,
                modality,
            )
            assert (found != users.label(theme.name).to_numpy(bool))[
                truth["lies"] == modality
            ].any(), "liars show others"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_shows_in_two_modalities_at_least(task):
    users, _ = world()
    assert len(CARRIERS[task]) >= 2 and set(CARRIERS[task]) <= set(SOURCES)
    label = users.label(task).to_numpy()
    auc = {modality: fitted(np.log1p(theme_counts()[modality]), label) for modality in SOURCES}
    others = [auc[modality] for modality in SOURCES if modality not in CARRIERS[task]]
    assert min(auc[modality] for modality in CARRIERS[task]) > max(0.7, *others), auc


@pytest.mark.parametrize("task", TASKS)
def test_no_task_is_solved_by_counting_a_modality(task):
    users, truth = world()
    label = users.label(task).to_numpy()
    ceiling = roc_auc_score(label, truth[f"p.{task}"]) - 0.5
    counts = np.log1p(users.frame().set_index("user")[list(SOURCES)].astype(float))
    assert all((fitted(counts[[modality]], label) - 0.5) / ceiling < 0.6 for modality in SOURCES)
    assert (fitted(counts, label) - 0.5) / ceiling < 0.6


def test_reading_every_modality_recovers_most_of_the_oracle():
    users, truth = world()
    features = np.log1p(theme_counts())
    features.columns = ["/".join(pair) for pair in features.columns]
    features = features.join(users.tabular.fillna(users.tabular.mean()))
    share = []
    for task in TASKS:
        label = users.label(task).to_numpy()
        share.append(
            (fitted(features, label) - 0.5) / (roc_auc_score(label, truth[f"p.{task}"]) - 0.5)
        )
    assert 0.75 < np.mean(share) < 0.95, share


def test_one_user_and_none():
    assert len(make_sample_users(1)) == 1
    with pytest.raises(ValueError, match="n is 0"):
        make_sample_users(0)
