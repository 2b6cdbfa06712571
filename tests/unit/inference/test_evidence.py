"""Ranking by pointing: what a question is read as, what carries its answer, what it cannot say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qanchor.data.users import Users
from qanchor.evaluation.backtest import BacktestResult, backtest
from qanchor.inference.engine import Engine
from qanchor.inference.evidence import (
    interpret,
    rank_by_pointing,
    score_weights,
)
from qanchor.models.model import QAnchor
from qanchor.training.fit import fit
from qanchor.useru.horizons import query_horizon
from qanchor.workbench.lens import LensBackend
from qanchor.workbench.messages import backtest_summary, unanswerable_note
from tests.tiny import CUTOFF, brief_fits, habits

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(habits(), CUTOFF, unit="member")


@pytest.fixture(scope="module")
def model(users) -> QAnchor:
    return fit(users, 0.2, progress=False)


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    return Engine(model)


@pytest.fixture(scope="module")
def cache(engine, users):
    return engine.prefill(users)


@pytest.fixture(scope="module")
def tokens(cache):
    return cache.tokens


def test_what_is_meant_does_not_depend_on_the_users_that_are_read():
    """A text and a modality have one name; some users have more of one, all of the other."""
    rng = np.random.default_rng(0)
    rows = [(f"u{user}", "refund", "refund") for user in range(30) for _ in range(2)]
    rows += [(f"u{user}", "refund", "tea") for user in range(30)]
    rows += [("u0", "shop", "refund")] * 9
    table = pd.DataFrame(rows, columns=["user", "modality", "text"])
    times = CUTOFF - pd.to_timedelta(rng.integers(1, 90 * 24, len(table)), "h")
    users = Users.from_events(table.assign(time=times), CUTOFF)
    with brief_fits():
        engine = Engine(fit(users, steps=2, progress=False))
    cache = engine.prefill(users)
    query = "Will there be a refund?"
    ranking = engine.rank(cache, query).set_index("user")
    for user in ("u0", "u1"):
        assert engine.generate(cache, user, query) == ranking.loc[user, "answer"]


def test_a_question_is_read_as_events_of_the_table(model, tokens):
    meaning, _ = interpret(model, tokens, "Will this member buy bread next month?")
    assert meaning.answerable and meaning.read_as[0] == "buy bread"


def test_coming_back_is_about_any_event(model, tokens):
    meaning, _ = interpret(model, tokens, "Will this member come back?")
    assert meaning.answerable and meaning.read_as == ("any event",) and meaning.sign == 1
    denied, _ = interpret(model, tokens, "Will this member churn?")
    assert denied.answerable and denied.sign == -1


@pytest.fixture(scope="module")
def shop() -> tuple[Users, Engine]:
    """Users of a shop, of whom some purchase, with what a purchase costs."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(60):
        for day in rng.integers(1, 100, 12):
            cost = float(rng.integers(5, 150)) if user % 2 and day % 3 == 0 else 0.0
            rows.append((f"u{user}", CUTOFF - pd.Timedelta(days=int(day)), cost))
    table = pd.DataFrame(rows, columns=["user", "time", "dollars"]).assign(modality="event")
    table["text"] = np.where(table["dollars"] > 0, "purchase", "page view")
    users = Users.from_events(table, CUTOFF)
    with brief_fits():
        return users, Engine(fit(users, steps=2, progress=False))


@pytest.mark.parametrize("query", ["Will this user buy something?", "Will this user stop buying?"])
def test_buying_is_a_purchase_where_there_are_purchases(shop, query):
    users, engine = shop
    meaning, _ = interpret(engine.model, engine.prefill(users).tokens, query)
    assert meaning.read_as[0] == "purchase"
    texts = users.events["text"].astype(str).replace("purchase", "video")
    videos = users.events.assign(text=texts)
    elsewhere = Users.from_events(videos.drop(columns="dollars"), CUTOFF)
    meaning, _ = interpret(engine.model, engine.prefill(elsewhere).tokens, query)
    assert meaning.read_as == ("any event",)


def test_the_number_of_times_that_a_question_names_is_what_the_backtest_measures(shop):
    users, engine = shop
    query = "Will this user make a purchase at least 2 times?"
    result = backtest(engine, users, query)
    assert (result.topic, result.measure, result.threshold) == ("purchase", "high", 2)
    assert "by the 30 days after: purchase (at least 2 times)." in backtest_summary(result)
    days = backtest(engine, users, "Will this user come back more than twice?")
    assert "any event (on at least 3 days)." in backtest_summary(days)
    counted = backtest(engine, users, "Will this user make at least 2 purchases?")
    assert counted.right == pytest.approx(result.right, abs=0.1) and counted.threshold == 2
    weekly = backtest(engine, users, "Will this user make a purchase twice a week?")
    assert (weekly.days, weekly.threshold) == (30, 9), "2 * 30 / 7, in the default horizon"


@pytest.mark.parametrize(
    "limit", ["at most once", "fewer than 2 times", "no more than once", "once or less"]
)
def test_a_largest_number_of_times_denies_that_there_are_more(shop, limit):
    users, engine = shop
    result = backtest(engine, users, f"Will this user make a purchase {limit}?")
    assert (result.topic, result.threshold) == ("not purchase", 2)
    assert "purchase (fewer than 2 times)." in backtest_summary(result)
    more = backtest(engine, users, "Will this user make a purchase at least twice?")
    assert result.before == pytest.approx(more.before), "both are turned round"


def test_coming_back_to_the_shop_is_coming_back(model, tokens):
    meaning, _ = interpret(model, tokens, "Will this member come back to the shop?")
    assert meaning.read_as == ("any event",)


def test_a_question_that_asks_two_things_is_declined(engine, cache):
    assert not engine.rank(cache, "Who buys bread without buying milk?").attrs["answerable"]
    query = "Who will buy bread but not milk?"
    ranking = engine.rank(cache, query)
    assert not ranking.attrs["answerable"] and ranking["score"].isna().all()
    assert "two things" in unanswerable_note(query, ranking.attrs["nearest"])


def test_the_amount_that_a_question_names_is_what_the_backtest_measures(shop):
    users, engine = shop
    query = "Will this user spend more than 100 dollars at once?"
    result = backtest(engine, users, query)
    assert (result.topic, result.measure) == ("dollars", "exceeds")
    assert "dollars (at least 100)." in backtest_summary(result)
    after = users.events[users.events["time"].between(result.cutoff, CUTOFF)]
    large = after.groupby("user", observed=False)["dollars"].max().ge(100)
    for limit in ("spend less than 100 dollars at once", "make a purchase in under 24 hours"):
        denied = backtest(engine, users, f"Will this user {limit}?")
        assert not denied.topic or denied.topic == "not dollars", "denied, or not answered"
    below = backtest(engine, users, "Will this user spend more than 1 dollar at once?")
    assert 0 < large.sum() < (after.groupby("user", observed=False)["dollars"].max() >= 1).sum()
    assert result.right != below.right


@pytest.mark.parametrize(
    "query",
    [
        "Does this member suffer from diabetes?",
        "Will this member adopt a puppy?",
        "Is this member a vegetarian?",
        "Will this member get married?",
        "Will this member need surgery?",
    ],
)
def test_what_the_data_do_not_say_is_not_answered(engine, cache, query):
    ranking = engine.rank(cache, query)
    assert not ranking.attrs["answerable"] and ranking["score"].isna().all()
    assert set(ranking["answer"]) == {""} and ranking.attrs["nearest"]


def test_horizons_in_words_are_obeyed(model, tokens):
    query = "Will this member play chess within 7 days?"
    _, question = interpret(model, tokens, query)
    assert query_horizon(query, tokens.horizon_days) == 7 and question.horizon[0] < 0
    for when, days in (("1 week", 7), ("12 weeks", 90), ("a 3-month window", 90), ("90 days", 90)):
        assert query_horizon(f"Will this member play chess in {when}?", 30) == days


def test_answers_are_counted_in_the_table(engine, cache, users):
    ranking = engine.rank(cache, "Will this member play chess?").set_index("user")
    past = users.history()
    chess = past[past["text"] == "play_chess"].groupby("user", observed=False).size()
    never = chess.index[chess == 0].astype(str)
    assert (ranking.loc[never, "answer"] == "play chess: never so far").all()
    user = str(chess.idxmax())
    assert f"play chess: {chess.max()} times" in ranking.loc[user, "answer"]


def test_evidence_is_what_changes_the_scores(engine, cache, tokens):
    evidence = engine.rank(cache, "Will this member play chess?").attrs["evidence"]
    assert evidence[0]["text"] == "play chess"
    assert sum(row["weight"] for row in evidence) <= 1.001
    holders = (tokens.which == [t.label for t in tokens.things].index("play chess")).any(1)
    assert evidence[0]["users"] == holders.sum()


def test_weights_of_one_user_are_what_hiding_a_thing_from_all_changes(model, tokens):
    query = "Will this member buy coffee?"
    meaning, question = interpret(model, tokens, query)
    absent = int(np.flatnonzero(~np.isin(np.arange(len(tokens.things)), tokens.which[3]))[0])
    things = [*meaning.things, int(tokens.which[3, 0]), absent]
    score = rank_by_pointing(model, tokens, query)["score"]
    expected = []
    for thing in things:
        without = tokens.without(np.arange(len(tokens.things)) == thing)
        expected.append(score[3] - rank_by_pointing(model, without, query)["score"][3])
    weights = score_weights(model, tokens, tokens.ids[3], things, question)
    np.testing.assert_allclose(weights, expected, atol=1e-4)
    assert weights[-1] == pytest.approx(0, abs=1e-4) and np.abs(weights).max() > 0.01


def test_the_backtest_judges_what_was_pointed_at(engine, users):
    result = backtest(engine, users, "Will this member play chess?")
    assert result.topic.startswith("play chess")
    assert "by the 30 days after: play chess" in backtest_summary(result)
    unknown = backtest(engine, users, "Will this member adopt a puppy?")
    assert unknown.right is None and "nothing in these events" in backtest_summary(unknown)


def test_chances_are_the_shares_of_those_ranked_alike(engine, users):
    result = backtest(engine, users, "Will this member play chess?")
    assert len(result.shares) == 5 and list(result.shares) == sorted(result.shares, reverse=True)
    score = np.arange(50.0)
    chances = result.chances(score)
    assert set(chances) == set(result.shares)
    assert chances[-1] == result.shares[0] and chances[0] == result.shares[-1]
    assert (np.diff(chances) >= 0).all()
    # of users at an earlier day, the chances add up to those that did so
    earlier = replace(users, cutoff=users.cutoff - pd.Timedelta(days=users.horizon_days))
    ahead = users.events[users.events["time"].between(earlier.cutoff, users.cutoff, "left")]
    did = ahead[ahead["text"] == "play_chess"]["user"].nunique()
    assert np.mean(result.shares) * result.n == pytest.approx(did, rel=0.25)
    summary = backtest_summary(result)
    first, last = (round(100 * share) for share in (result.shares[0], result.shares[-1]))
    assert f"Of the fifth ranked highest {first} of 100, of the lowest {last}." in summary
    denied = backtest(engine, users, "Will this member not play chess?")
    assert np.mean(denied.shares) == pytest.approx(1 - np.mean(result.shares), abs=0.02)


def test_the_backtest_reads_users_with_associations(engine, users, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "qanchor.evaluation.backtest.rank_by_pointing",
        lambda model, tokens, query: seen.append(tokens) or rank_by_pointing(model, tokens, query),
    )
    backtest(engine, users, "Will this member play chess?")
    associations = seen[0].population.associations
    assert associations.heads.any() and associations.heads.shape[0] == 1
    assert associations.things == tuple(thing.name for thing in seen[0].things)


def test_equal_scores_have_equal_chances():
    shares = (0.9, 0.7, 0.5, 0.3, 0.1)
    result = BacktestResult(0.7, 0.6, 0.8, 100, "tea", 30, "2025-05-02", "user", shares=shares)
    chances = result.chances(np.array([1.0, 1, 1, 1, 0, np.nan]))
    assert len(set(chances[:4])) == 1 and chances[4] == 0.1 and np.isnan(chances[5])
    without = replace(result, shares=())
    assert np.isnan(without.chances(np.arange(3.0))).all()


def test_the_backtest_judges_what_the_question_measures(engine, users):
    tokens = engine.prefill(users).tokens
    for query, measure in (
        ("Will this member buy bread next month?", "occurs"),
        ("Will this member buy bread more often than before?", "more"),
        ("Does this member mostly buy bread?", "share"),
    ):
        assert interpret(engine.model, tokens, query)[0].measure == measure
        result = backtest(engine, users, query)
        days = pd.Timedelta(days=users.horizon_days)
        past = users.events[users.events["time"] < users.cutoff]
        ahead = past[past["time"] >= users.cutoff - days]
        before = past[past["time"] < users.cutoff - days]
        known = before["user"].drop_duplicates()
        if measure == "share":  # of users without an event it cannot be said
            known = known[known.isin(ahead["user"])]
        assert result.n == len(known) and 0 <= result.right <= 1
        assert "buy bread" in backtest_summary(result) and result.measure == measure


def test_the_lens_ranks_by_pointing_and_says_what_it_cannot_answer(engine, users):
    lens = LensBackend(engine, engine.prefill(users), users, method="pca")
    *_, last = lens("Will this member play chess?")
    assert list(last.data["ranking"]["user"]) == list(users.ids)
    assert "play chess" in lens.answer(users.ids[0], "Will this member play chess?")
    *_, last = lens("Will this member adopt a puppy?")
    assert "Nothing in these events speaks of" in last.warning
    assert "Nothing in these events" in lens.answer(users.ids[0], "Will this member adopt a puppy?")


def test_what_is_left_out_is_counted_and_never_called_never(engine, users, monkeypatch):
    monkeypatch.setattr("qanchor.models.user_tokens.MAX_TOKENS", 8)
    with pytest.warns(UserWarning, match=r"[\d,]+ tokens of [\d,]+ members are left out"):
        cache = engine.prefill(users)
    assert cache.tokens.n_left_out.any()
    ranking = engine.rank(cache, "Will this member play chess?").set_index("user")
    past = users.history()
    did = past.loc[past["text"] == "play_chess", "user"].astype(str).unique()
    assert not ranking.loc[did, "answer"].str.contains("never").any()


def test_rare_texts_beyond_the_limit_are_counted(engine, users, monkeypatch):
    monkeypatch.setattr("qanchor.data.things.MAX_TEXTS", 4)
    with pytest.warns(UserWarning, match="2 rare texts of users are left out"):
        engine.prefill(users)


def test_what_is_left_out_is_neither_ranked_nor_backtested(engine, cache, users):
    lens = LensBackend(engine, cache, users, method="pca")
    query = "Will this member play chess?"
    *_, first = lens.rank(query)
    left_out = [thing["text"] for thing in first.data["meant"]]
    assert left_out and all(thing["users"] > 0 for thing in first.data["meant"])
    *_, second = lens.rank(query, left_out)
    assert not {thing["text"] for thing in second.data["meant"]} & set(left_out)
    changed = first.data["ranking"]["score"] - second.data["ranking"]["score"]
    assert (changed.abs() > 1e-3).any() or second.data["ranking"]["score"].isna().all()
    *_, again = lens.rank(query, ["no such thing"])
    pd.testing.assert_frame_equal(again.data["ranking"], first.data["ranking"])
    *_, one = lens.backtest(query)
    *_, other = lens.backtest(query, left_out)
    assert one.data["backtest"].topic != other.data["backtest"].topic
