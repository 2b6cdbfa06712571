"""Associations: heads that loops would apply, fitted without the user that is read."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.data.things import ThingEvents
from qanchor.data.users import Users
from qanchor.models.associations import Associations, association_features, score_associations
from qanchor.models.pointing import ASSOCIATED
from qanchor.models.user_tokens import TokenReader
from qanchor.training.associations import FOLDS, RIDGE, AssociationFit
from qanchor.useru.concepts import MEASURES, Outcomes
from tests.benchmarks.concepts import without_heads
from tests.tiny import CUTOFF, habits

DAYS = 30


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(habits(), CUTOFF)


def fit(users: Users) -> tuple[Associations, TokenReader]:
    cutoffs = [users.cutoff - pd.Timedelta(days=days) for days in (DAYS, 2 * DAYS)]
    reader = TokenReader(users, "hash", until=max(cutoffs))
    position = {user: row for row, user in enumerate(users.ids)}
    fitted = None
    for cutoff in cutoffs:
        tokens = reader.read(cutoff)
        fold = np.array([int(user[1:]) % FOLDS for user in tokens.ids])
        tokens = replace(tokens, fold=fold)
        fitted = fitted or AssociationFit(tokens)
        rows = np.array([position[user] for user in tokens.ids])
        outcomes = Outcomes.of(reader.events, rows, cutoff, DAYS)
        fitted.add(tokens, reader.events, outcomes)
    return fitted.solve(), reader


@pytest.fixture(scope="module")
def fitted(users):
    return fit(users)


def test_scores_are_what_loops_find(fitted):
    associations, reader = fitted
    tokens = reader.read().select(range(5))
    given = associations.tensors()
    numbers = torch.from_numpy(tokens.numbers[..., ASSOCIATED])
    which = torch.from_numpy(tokens.which)
    level = torch.from_numpy(tokens.level)
    features = association_features(which, numbers, level, given.factors)
    rng = np.random.default_rng(0)
    meant = torch.from_numpy(rng.dirichlet(np.ones(len(tokens.things) + 1), 3)).float()
    measure = torch.from_numpy(rng.dirichlet(np.ones(len(MEASURES)), 3)).float()
    fold = torch.tensor([0, 3, -1, 1, -1])
    scores = score_associations(features, given, meant, measure, fold)
    for user in range(5):
        feature = np.zeros(given.factors.shape[2])
        for token in range(which.shape[1]):
            if which[user, token] >= 0:
                for column in range(len(ASSOCIATED)):
                    factor = associations.factors[which[user, token], column].astype(float)
                    feature += float(numbers[user, token, column]) * factor
        feature = np.concatenate([feature, tokens.level[user]])
        standard = (feature - associations.mean) / associations.spread
        for query in range(3):
            head = np.zeros(len(feature))
            known = 0.0
            for m in range(len(MEASURES)):
                for thing in range(meant.shape[1]):
                    weight = float(measure[query, m] * meant[query, thing])
                    head += weight * associations.heads[fold[user], m, thing].astype(float)
                    known += weight * associations.heads[-1, m, thing].any()
            scale = known / np.sqrt(head @ associations.covariance @ head)
            expected = scale * (standard @ head)
            assert float(scores[user, query]) == pytest.approx(expected, abs=1e-4)


def test_a_head_of_all_users_is_a_ridge_regression(users, fitted):
    """Against scikit-learn's, on features and outcomes that are centred within each cut-off."""
    from sklearn.linear_model import Ridge

    associations, reader = fitted
    position = {user: row for row, user in enumerate(users.ids)}
    features, targets = [], []
    for days in (DAYS, 2 * DAYS):
        cutoff = users.cutoff - pd.Timedelta(days=days)
        tokens = reader.read(cutoff)
        rows = np.array([position[user] for user in tokens.ids])
        found = association_features(
            torch.from_numpy(tokens.which),
            torch.from_numpy(tokens.numbers[..., ASSOCIATED]),
            torch.from_numpy(tokens.level),
            associations.tensors().factors,
        ).numpy()
        target = Outcomes.of(reader.events, rows, cutoff, DAYS).targets(reader.events, "high")
        features.append((found - found.mean(0)) / associations.spread)
        targets.append(target - target.mean(0))
    ridge = Ridge(alpha=RIDGE, fit_intercept=False)
    ridge.fit(np.concatenate(features), np.concatenate(targets))
    heads = associations.heads[-1, MEASURES.index("high")]
    taught = heads.any(1)
    assert taught.sum() >= 4
    np.testing.assert_allclose(heads[taught], ridge.coef_[taught], atol=1e-3)


def test_a_user_has_no_part_in_the_heads_that_read_it_in_training(users, fitted):
    """Give one user other outcomes: the heads of its own fold stay, those of all users change."""
    one = users.ids[3]
    events = habits()
    after = events["time"] >= CUTOFF - pd.Timedelta(days=DAYS)
    events.loc[(events["user"] == one) & after, "text"] = "play_chess"
    changed = fit(Users.from_events(events, CUTOFF))[0]
    fold = int(one[1:]) % FOLDS
    distance = np.abs(changed.heads.astype(float) - fitted[0].heads.astype(float)).mean((1, 2, 3))
    # the mean outcome, which is of all users, moves a little
    assert distance[-1] > 2 * distance[fold]


def test_what_lies_after_the_cutoff_is_not_read(users, fitted):
    """Heads are fitted at cut-offs whose windows end at the users' own."""
    events = habits()
    future = events["time"] >= CUTOFF
    events.loc[future, "text"] = "play_chess"
    changed = fit(Users.from_events(events, CUTOFF))[0]
    for name in ("factors", "mean", "spread", "heads", "covariance"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(fitted[0], name))


def test_things_are_found_by_name_and_unknown_ones_have_no_head(fitted):
    associations = fitted[0]
    names = ("text:never seen", *reversed(associations.things))
    aligned = associations.align(names)
    assert not aligned.factors[0].any() and not aligned.heads[:, :, 0].any()
    for row, name in enumerate(names[1:], 1):
        at = associations.things.index(name)
        np.testing.assert_array_equal(aligned.factors[row], associations.factors[at])
        np.testing.assert_array_equal(aligned.heads[:, :, row], associations.heads[:, :, at])
    np.testing.assert_array_equal(aligned.heads[:, :, -1], associations.heads[:, :, -1])


def test_heads_that_were_left_out_count_for_nothing(fitted):
    associations = fitted[0]
    thing = "text:buy_tea"
    measure = MEASURES.index("occurs")
    left = without_heads(associations, [("occurs", thing)])
    meant = torch.zeros(1, len(associations.things) + 1)
    meant[0, associations.things.index(thing)] = 1
    asked = torch.eye(len(MEASURES))[[measure]]
    features = torch.randn(4, len(associations.mean))
    assert (score_associations(features, left.tensors(), meant, asked) == 0).all()
    assert score_associations(features, associations.tensors(), meant, asked).abs().min() > 0


def test_shares_are_of_events_of_occasions_or_of_the_amount():
    rows = [
        ["a", "2025-01-01", "shop", "tea", 10.0, 4.0, 0.5, 3.0],
        ["a", "2025-01-02", "shop", "tea", 30.0, 2.0, 0.0, 60.0],
        ["a", "2025-01-03", "shop", "bread", 10.0, 1.0, 1.0, 20.0],
        ["b", "2025-01-03", "shop", "bread", 20.0, 2.0, 0.2, 90.0],
    ]
    columns = ["user", "time", "modality", "text", "amount", "discount", "private", "minutes"]
    users = Users.from_events(pd.DataFrame(rows, columns=columns))
    events = ThingEvents(users)
    count, total, _ = events.counts("2025-01-01", "2025-02-01")
    shares = events.shares(count, total)[0]
    expected = {
        "text:tea": 2 / 3,
        "modality:shop": 1,
        "number:discount": 7 / 50,
        "number:private": 1.5 / 3,
        "number:minutes": 1,  # is no part of the amount: all events have some
    }
    for name, share in expected.items():
        assert shares[events.index[name]] == pytest.approx(share), name
    tokens = TokenReader(users, "hash").read()
    at = list(tokens.which[0]).index(events.index["number:discount"])
    assert tokens.numbers[0, at, 8] == pytest.approx(7 / 50)
