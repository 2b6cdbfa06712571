"""Concepts: what loops find true, induced from the past alone, in wordings that can be denied."""

import numpy as np
import pandas as pd
import pytest

from qanchor.data.users import Users
from qanchor.models.user_tokens import TokenReader
from qanchor.useru.concepts import Concept, Outcomes, induce_concepts, wordings
from tests.unit.models.test_user_tokens import CUTOFF, events

DAYS = 15


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(events(), CUTOFF)


@pytest.fixture(scope="module")
def induced(users):
    cutoff = CUTOFF - pd.Timedelta(days=DAYS)
    reader = TokenReader(users, "hash", until=cutoff)
    concepts = induce_concepts(reader.events, reader.vectors, cutoff, {})
    rows = np.arange(len(users))
    outcomes = Outcomes.of(reader.events, rows, cutoff, DAYS)
    return cutoff, concepts, outcomes.truth(reader.events, concepts)


def test_families_come_from_the_table(induced):
    names = {concept.name for concept in induced[1]}
    assert {"text:cart", "modality:web", "number:amount:high", "behavior:any"} <= names
    assert any(name.startswith("number:amount>=") for name in names)


def test_truth_is_what_a_loop_finds(users, induced):
    cutoff, concepts, truth = induced
    ahead = users.events[
        (users.events["time"] >= cutoff) & (users.events["time"] < cutoff + pd.Timedelta(days=DAYS))
    ]
    for column, concept in enumerate(concepts):
        for row, user in enumerate(users.ids):
            mine = ahead[ahead["user"] == user]
            if concept.name == "behavior:any":
                assert truth[row, column] == (len(mine) > 0)
            elif concept.family == "text" and concept.measure == "occurs":
                text = concept.things[0].removeprefix("text:")
                assert truth[row, column] == (mine["text"] == text).any()
            elif concept.measure == "share" and concept.family == "text" and len(mine):
                text = concept.things[0].removeprefix("text:")
                part = (mine["text"] == text).mean()
                shares = ahead.groupby("user", observed=True)["text"].agg(
                    lambda texts, text=text: (texts == text).mean()
                )
                limit = shares[shares > 0].quantile(0.75)
                assert truth[row, column] == (part >= limit - 1e-9)
            elif concept.measure == "exceeds":
                assert truth[row, column] == (mine["amount"] >= concept.threshold).any()


def test_a_number_of_times_is_counted_in_events_and_for_any_event_in_days():
    days = [1, 1, 2, 5, 9]
    rows = [("a", day, "tea") for day in days] + [("b", 3, "tea"), ("b", 4, "bread")]
    table = pd.DataFrame(rows, columns=["user", "day", "text"]).assign(modality="shop")
    table["time"] = CUTOFF - pd.to_timedelta(table["day"], "D")
    events = TokenReader(Users.from_events(table, CUTOFF), "hash").events
    cutoff = CUTOFF - pd.Timedelta(days=10)
    outcomes = Outcomes.of(events, np.arange(2), cutoff, 10)
    for things, enough in ((("text:tea",), 5), ((), 4)):
        concepts = [
            Concept("", "text", "", things, "high", times) for times in (enough, enough + 1)
        ]
        assert outcomes.truth(events, concepts).tolist() == [[1, 0], [0, 0]]


def test_who_comes_every_day_does_not_come_more_often_whatever_the_hour_of_the_cutoff():
    times = CUTOFF - pd.to_timedelta(np.arange(1, 60 * 24, 24), "h")
    users = Users.from_events(
        pd.DataFrame({"user": "a", "time": times, "modality": "shop", "text": "tea"}), CUTOFF
    )
    events = TokenReader(users, "hash").events
    concept = Concept("behavior:more", "behavior", "any event", (), "more")
    for hours in range(0, 24, 5):
        cutoff = CUTOFF - pd.Timedelta(days=14, hours=hours)
        assert events.days(cutoff, cutoff + pd.Timedelta(days=7)).tolist() == [7]
        outcomes = Outcomes.of(events, np.arange(1), cutoff, 7)
        assert outcomes.truth(events, (concept,))[0, 0] == 0


def test_days_before_1970_belong_to_their_user():
    table = pd.DataFrame(
        {"user": ["a", "b", "b"], "time": ["1969-12-30", "1969-12-30", "1970-02-01"]}
    )
    users = Users.from_events(table.assign(modality="shop", text="tea"), "1970-03-01")
    assert TokenReader(users, "hash").events.days("1960-01-01", "1970-03-01").tolist() == [1, 2]


def test_more_of_any_event_is_more_days_not_more_events_of_a_day():
    start = CUTOFF - pd.Timedelta(days=4 * DAYS)
    visits = [start + pd.Timedelta(days=day) for day in range(1, 3 * DAYS, DAYS // 3)]
    basket = [CUTOFF - pd.Timedelta(days=DAYS) + pd.Timedelta(hours=hour) for hour in range(9)]
    table = pd.DataFrame({"user": "a", "time": [start, *visits, *basket]})
    table = table.assign(modality="shop", text="tea")
    users = Users.from_events(table, CUTOFF)
    cutoff = CUTOFF - pd.Timedelta(days=DAYS)
    concept = Concept("behavior:more", "behavior", "any event", (), "more")
    events = TokenReader(users, "hash").events
    assert events.days(cutoff, CUTOFF).tolist() == [1]
    assert events.counts(cutoff, CUTOFF)[0].max() == len(basket)
    outcomes = Outcomes.of(events, np.arange(1), cutoff, DAYS)
    assert outcomes.truth(events, (concept,))[0, 0] == 0


def test_events_after_the_first_cutoff_change_no_concept(users, induced):
    cutoff, concepts, _ = induced
    table = events()
    table.loc[table["time"] >= cutoff, ["text", "amount"]] = ["surprise", 1e6]
    changed = Users.from_events(table, CUTOFF)
    reader = TokenReader(changed, "hash", until=cutoff)
    assert induce_concepts(reader.events, reader.vectors, cutoff, {}) == concepts


def test_denied_wordings_flip_the_sign(induced):
    concept = next(concept for concept in induced[1] if concept.name == "behavior:any")
    found = wordings(concept, np.random.default_rng(0))
    assert {wording.sign for wording in found} == {1, -1}
    senses = {wording.query: wording.sign for wording in found}
    assert senses["Will this user churn?"] == -1
    assert senses["Will this user come back?"] == 1
    unlikely = [s for q, s in senses.items() if "unlikely to leave us" in q]
    assert all(sense == 1 for sense in unlikely)
    assert sum(wording.held_out for wording in found) >= 1
    assert not any("{" in wording.query for wording in found)
