"""User tokens: numbers that loops would count, read through names, and nothing of the future."""

import numpy as np
import pandas as pd
import pytest

from qanchor.data.things import ThingEvents, plain_label
from qanchor.data.users import Users
from qanchor.models.user_tokens import (
    N_LEVEL_NUMBERS,
    N_TOKEN_NUMBERS,
    TOKEN_NUMBERS,
    TokenReader,
)
from qanchor.models.words import content_words, spelling_vectors

CUTOFF = pd.Timestamp("2025-03-01")


def events(n_users: int = 12, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = 40 * n_users
    return pd.DataFrame(
        {
            "user": [f"u{i:02}" for i in rng.integers(n_users, size=n)],
            "time": CUTOFF - pd.to_timedelta(rng.integers(-20 * 24, 90 * 24, size=n), "h"),
            "modality": rng.choice(["web", "shop"], n),
            "text": rng.choice(["view_item", "payDone", "cart"], n),
            "amount": rng.choice([np.nan, 5.0, 20.0], n),
        }
    )


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(events(), CUTOFF)


def token(tokens, user: str, name: str) -> dict:
    """Return the numbers of one token by name; an empty dict if the user does not have it."""
    row = tokens.ids.index(user)
    thing = [thing.name for thing in tokens.things].index(name)
    places = np.flatnonzero(tokens.which[row] == thing)
    if not len(places):
        return {}
    return dict(zip(TOKEN_NUMBERS, tokens.numbers[row, places[0]], strict=False))


def test_attributes_of_users_without_past_events_are_in_nobodys_row():
    cutoff = CUTOFF - pd.Timedelta(days=30)
    known = events()
    late = known.head(3).assign(user="a_late_user", time=CUTOFF - pd.Timedelta(days=2))
    facts = pd.DataFrame({"age": np.arange(20.0, 32)}, index=sorted(known["user"].unique()))
    facts.loc["a_late_user"] = 99.0
    few = Users.from_events(known, CUTOFF, tabular=facts.drop("a_late_user"))
    all_users = Users.from_events(pd.concat([late, known]), CUTOFF, tabular=facts)
    expected = TokenReader(few, "hash").read(cutoff)
    found = TokenReader(all_users, "hash").read(cutoff)
    assert found.ids == expected.ids and "a_late_user" not in found.ids
    np.testing.assert_array_equal(found.which, expected.which)
    np.testing.assert_allclose(found.numbers, expected.numbers, atol=1e-6)
    np.testing.assert_allclose(found.population.rarity, expected.population.rarity)


def test_numbers_are_what_a_loop_counts(users):
    tokens = TokenReader(users, "hash").read()
    past = users.history()
    for user in users.ids[:5]:
        mine = past[(past["user"] == user) & (past["text"] == "cart")]
        age = (CUTOFF - mine["time"]) / pd.Timedelta(days=1)
        found = token(tokens, user, "text:cart")
        assert np.expm1(found["count"]) == pytest.approx(len(mine), abs=1e-3)
        recent = np.expm1(found["count in the last horizon"])
        assert recent == pytest.approx((age <= 30).sum(), abs=1e-3)
        assert np.expm1(found["days since the last"]) == pytest.approx(age.min(), rel=1e-4)
        assert np.expm1(found["days since the first"]) == pytest.approx(age.max(), rel=1e-4)
        assert np.expm1(found["amount"]) == pytest.approx(mine["amount"].sum(), rel=1e-4)
        share = len(mine) / (past["user"] == user).sum()
        assert found["share of all that the user did"] == pytest.approx(share, rel=1e-4)


def test_shapes(users):
    tokens = TokenReader(users, "hash").read()
    assert tokens.numbers.shape[2] == N_TOKEN_NUMBERS
    assert tokens.level.shape == (len(users), N_LEVEL_NUMBERS)
    assert tokens.which.shape == tokens.numbers.shape[:2]


def test_later_events_have_no_influence(users):
    cutoff = CUTOFF - pd.Timedelta(days=30)
    table = events()
    early = table[table["time"] < cutoff]
    late = table[table["time"] >= cutoff].assign(text="surprise", amount=1e6)
    changed = Users.from_events(pd.concat([early, late]), CUTOFF)
    ids = list(users.ids)
    known = Users.from_events(table, CUTOFF).select(ids)
    first = TokenReader(known, "hash", until=cutoff).read(cutoff)
    second = TokenReader(changed, "hash", until=cutoff).read(cutoff)
    assert [thing.name for thing in first.things] == [thing.name for thing in second.things]
    np.testing.assert_array_equal(first.which, second.which)
    numbers = [TOKEN_NUMBERS.index(name) for name in TOKEN_NUMBERS]
    np.testing.assert_allclose(first.numbers[..., numbers], second.numbers[..., numbers])
    np.testing.assert_allclose(first.level, second.level)


def test_hidden_things_leave_every_user(users):
    tokens = TokenReader(users, "hash").read()
    hidden = np.array([thing.name == "text:cart" for thing in tokens.things])
    assert (tokens.which == np.flatnonzero(hidden)[0]).any()
    assert not (tokens.without(hidden).which == np.flatnonzero(hidden)[0]).any()


def test_counts_of_a_window_are_what_a_loop_counts(users):
    reader = ThingEvents(users)
    start = CUTOFF - pd.Timedelta(days=40)
    count, total, largest = reader.counts(start, CUTOFF)
    inside = users.events[(users.events["time"] >= start) & (users.events["time"] < CUTOFF)]
    column = reader.index["number:amount"]
    for row, user in enumerate(users.ids):
        mine = inside[inside["user"] == user]
        assert count[row, reader.index["text:cart"]] == (mine["text"] == "cart").sum()
        assert total[row, column] == pytest.approx(mine["amount"].sum())
        assert largest[row, column] == pytest.approx(mine["amount"].fillna(0).max())


@pytest.mark.parametrize(
    "text, label",
    [
        ("payment_done", "payment done"),
        ("viewProduct2", "view product 2"),
        ("/shop/cart", "shop cart"),
        ("order 4f9a1be2c3d4", "order <n>"),
        ("Überweisung", "überweisung"),
        ("", ""),
    ],
)
def test_labels_are_plain_words(text, label):
    assert plain_label(text) == label


def test_content_words_leave_out_how_it_is_asked():
    assert content_words("Will this user put it into the cart?") == "put cart"
    for when in ("within 30 days", "in the next 2 weeks", "in a 90-day window", "at least 3 times"):
        assert content_words(f"Will this user travel {when}?").split()[0] == "travel"
        assert not any(map(str.isdigit, content_words(f"Will this user travel {when}?")))
    assert content_words("Will this user watch 24 hours of 1984?") == "watch 24 hours 1984"
    for asked in ("stop", "continue", "quit", "be fond of", "be interested in", "enjoy"):
        assert content_words(f"Will this user {asked} gaming?") == "gaming"
    assert content_words("Will they?") == "Will they?"  # nothing else to go by


def test_spelling_finds_codes():
    codes, question = spelling_vectors(["prd 77", "prd 12"]), spelling_vectors(["prd 77"])[0]
    assert codes[0] @ question > codes[1] @ question
