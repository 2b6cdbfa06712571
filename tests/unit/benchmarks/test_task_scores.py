"""The baselines read history alone, and the table of methods says what separate probes say."""

import numpy as np
import pandas as pd
import pytest

from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.evaluation.probe import linear_probe
from tests.benchmarks.baselines import baseline_features
from tests.benchmarks.task_scores import (
    TASK_COLUMNS,
    _weighted_aucs,
    average_auc,
    cross_validate_tasks,
    score_tasks,
    task_frame,
)

DAY = pd.Timedelta(days=1)
CUTOFF = pd.Timestamp("2025-04-01")


def small_users(n=120, seed=0) -> Users:
    """Half of the users buy often, a third like tea; `pet` follows the first, `own` the second."""
    rng = np.random.default_rng(seed)
    busy, tea = rng.random(n) < 0.5, rng.random(n) < 0.35
    rows = []
    for i in range(n):
        for _ in range(rng.poisson(12 if busy[i] else 4) + 1):
            text = rng.choice(
                ["green tea", "black tea"]
                if tea[i] and rng.random() < 0.6
                else ["rice", "beans", "soap", "pens"]
            )
            age = rng.integers(-20, 90)
            rows.append(
                (
                    f"u{i:03}",
                    CUTOFF - age * DAY,
                    rng.choice(["bill", "search"]),
                    text,
                    rng.gamma(2.0, 5.0),
                )
            )
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text", "amount"])
    labels = pd.DataFrame(
        {"pet": busy, "own": tea, "rare": np.arange(n) < 3}, [f"u{i:03}" for i in range(n)]
    ).astype(float)
    labels.loc["u000":"u009", "own"] = np.nan
    facts = pd.DataFrame(
        {
            "age.years": rng.normal(40, 9, n),
            "age.known": np.where(rng.random(n) < 0.2, np.nan, 1.0),
        },
        labels.index,
    )
    return Users.from_events(events, CUTOFF, labels=labels, tabular=facts)


@pytest.fixture(scope="module")
def users() -> Users:
    return small_users()


@pytest.fixture(scope="module")
def features(users):
    vectors = {t: np.eye(6)[i] for i, t in enumerate(users.events["text"].cat.categories)}
    return baseline_features(users, vectors)


def test_every_baseline_is_there_whole_and_finite(users, features):
    names = {"rfm", "counts", "rfm_svd", "lightgbm", "minilm", "minilm_rfm", "rfm_svd_minilm"}
    assert set(features) == names and set(baseline_features(users)) == {
        n for n in names if "minilm" not in n
    }
    for name, table in features.items():
        assert table.shape[0] == len(users) and np.isfinite(table).all(), name


def test_the_future_is_not_read(users, features):
    past = Users.from_events(users.history(), CUTOFF, labels=users.labels, tabular=users.tabular)
    for name, table in baseline_features(past).items():
        assert np.array_equal(table, features[name]), name


def test_counts_equal_the_loops(users, features):
    past = users.history()
    kinds = sorted({(m, t) for m, t in zip(past["modality"], past["text"], strict=True)})
    by_hand = np.zeros((len(users), len(kinds)))
    for user, modality, text in past[["user", "modality", "text"]].itertuples(index=False):
        by_hand[users.ids.index(user), kinds.index((modality, text))] += 1
    assert np.allclose(features["counts"], np.log1p(by_hand))


def test_mean_vectors_equal_the_loops(users, features):
    past, texts = users.history(), list(users.events["text"].cat.categories)
    for row, user in enumerate(users.ids[:10]):
        own = past.loc[past["user"] == user, "text"]
        found = features["minilm"][row]
        shares = [np.mean(own == t) if len(own) else found[i] for i, t in enumerate(texts)]
        assert np.allclose(found, shares)
    aligned = baseline_features(users, np.eye(6))["minilm"]
    assert np.array_equal(aligned, features["minilm"])
    with pytest.raises(ValueError, match="5 vectors for 6 texts"):
        baseline_features(users, np.eye(6)[:5])


def test_a_user_without_history_has_finite_numbers():
    events = pd.DataFrame(
        {
            "user": list("aabc"),
            "time": CUTOFF + np.array([-9, -3, -5, 4]) * DAY,
            "modality": "m",
            "text": "t",
        }
    )
    for name, table in baseline_features(
        Users.from_events(events, CUTOFF), np.ones((1, 4))
    ).items():
        assert np.isfinite(table).all() and len(table) == 3, name


def test_the_table_says_what_the_probes_say(users, features):
    frame = score_tasks(users, {"rfm": features["rfm"], "counts": features["counts"]}, seeds=2)
    assert list(frame.columns) == TASK_COLUMNS
    assert list(frame["task"].unique()) == [
        "average",
        "pet",
        "own",
    ]  # `rare` has fewer positives than folds
    assert dict(zip(frame["task"], frame["domain"], strict=True)) == {
        "average": "all",
        "pet": "interest",
        "own": "own",
    }
    row = frame[(frame["task"] == "own") & (frame["method"] == "counts")].iloc[0]
    twin = linear_probe(features["counts"], users.label("own"), seeds=2)
    assert row[["auc", "auc_low", "auc_high", "ks", "n", "positives"]].tolist() == pytest.approx(
        list(vars(twin).values())
    )
    assert row["n"] == 110
    alone = frame[(frame["method"] == "rfm") & (frame["task"] != "average")]
    whole = frame[(frame["method"] == "rfm") & (frame["task"] == "average")].iloc[0]
    assert whole["auc"] == pytest.approx(alone["auc"].mean()) and whole["ks"] == pytest.approx(
        alone["ks"].mean()
    )
    assert whole["auc_low"] < whole["auc"] < whole["auc_high"]


def test_each_baseline_finds_what_was_planted(users, features):
    frame = score_tasks(users, features, seeds=1).set_index(["method", "task"])["auc"]
    assert (
        frame["rfm", "pet"] > 0.85
        and frame["counts", "own"] > 0.85
        and frame["lightgbm", "pet"] > 0.8
    )
    assert frame["minilm", "own"] > 0.85 and frame["rfm_svd", "own"] > 0.75


def test_a_method_may_answer_each_task_with_its_own_embedding(users):
    asked = []

    def anchor(task):
        asked.append(task)
        return (
            users.label(task).fillna(0).to_numpy()[:, None]
            + np.random.default_rng(0).normal(size=(len(users), 1)) * 0.3
        )

    seen = []
    frame = score_tasks(
        users,
        {"anchor": anchor},
        ["own", "pet"],
        seeds=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert asked == ["own", "pet"] and seen == [(1, 2), (2, 2)] and frame["auc"].min() > 0.95


def test_weighted_auc_equals_drawing_the_users():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 8, 60).astype(float), (rng.random(60) < 0.4).astype(float)
    weights = rng.multinomial(60, np.full(60, 1 / 60), 20).astype(float)
    by_hand = [
        roc_auc(np.repeat(scores, w.astype(int)), np.repeat(labels, w.astype(int))) for w in weights
    ]
    assert np.allclose(_weighted_aucs(scores, labels, weights), by_hand)
    scores[:5], labels[5:10] = np.nan, np.nan
    assert _weighted_aucs(scores, labels, np.ones((1, 60)))[0] == pytest.approx(
        roc_auc(scores[10:], labels[10:])
    )


def test_average_auc_compares_on_the_same_users(users, features):
    held = cross_validate_tasks(
        users,
        {"rfm": features["rfm"], "counts": features["counts"], "same": features["rfm"]},
        seeds=2,
    )
    value, low, high = average_auc(users, held, "rfm", minus="counts", draws=200)
    each = {}
    for m in ("rfm", "counts"):
        aucs = [roc_auc(s, users.label("pet")) for s in held["pet", m][0]]
        aucs += [roc_auc(s[10:], users.label("own")[10:]) for s in held["own", m][0]]
        each[m] = np.mean(aucs)
    assert value == pytest.approx(each["rfm"] - each["counts"]) and low < value < high
    assert average_auc(users, held, "rfm", minus="same", draws=50) == (0.0, 0.0, 0.0)
    assert average_auc(users, held, "rfm", draws=50, seed=1) == average_auc(
        users, held, "rfm", draws=50, seed=1
    )
    with pytest.raises(KeyError, match="no task scored by 'gone'"):
        average_auc(users, held, "gone")
    assert len(task_frame(users, held)) == 9
