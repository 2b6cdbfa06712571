"""A ranking scores users by their similarity to yes and no, and gives the graded answer that is
nearest.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.errors import TableError
from qanchor.evaluation.backtest import BacktestResult, concordance
from qanchor.inference import ranking
from qanchor.useru.answers import answers
from qanchor.useru.pairs import SUMMARY_QUERY
from qanchor.useru.topics import TOPICS, by_name
from qanchor.workbench.messages import backtest_summary, identical_answers_note, novelty_warning
from tests.tiny import make_engine, make_model, make_users


@pytest.fixture(scope="module")
def asked():
    engine = make_engine(make_model())
    return engine, engine.prefill(make_users())


def graded(model, name: str, kind: str) -> tuple[list[str], np.ndarray]:
    """Embed two wordings of each grade, one by one."""
    said = [
        answers(by_name(name), g, kind, none=name == "takeout" and g == 0)[:2] for g in range(5)
    ]
    return [pair[0] for pair in said], np.stack(
        [model.embed_answer(pair).detach().numpy().mean(0) for pair in said]
    )


@pytest.mark.parametrize(
    "name, kind", [("takeout", "future"), ("night", "profile"), ("spend_down", "future")]
)
def test_the_answer_is_the_one_nearest_to_the_embedding(asked, name, kind):
    engine, cache = asked
    query = getattr(by_name(name), kind)[-1].format(user="user")  # a wording kept for tests
    found, anchors = engine.rank(cache, query), engine.embed(cache, query)
    texts, vectors = graded(engine.model, name, kind)
    nearest = {
        user: texts[int(np.argmax([row @ v for v in vectors]))]
        for user, row in zip(cache.ids, anchors, strict=True)
    }
    assert (
        found.attrs["topics"][0] == name
        and dict(zip(found["user"], found["answer"], strict=True)) == nearest
    )
    assert found["score"].is_monotonic_decreasing and set(found["user"]) == set(cache.ids)


def test_no_sentence_denies_twice(asked):
    sticks = ranking.answer_bank(asked[0].model, "user", 30)
    said = [text for texts in sticks.texts for text in texts]
    assert not any(text.startswith("Not ") and "former rate" in text for text in said)
    assert {
        "Activity at under half the former rate.",
        "Activity well below the former rate.",
    } <= set(said)
    assert {
        "Spending at over one and a half times the former rate.",
        "Spending at under half the former rate.",
    } <= set(said)
    assert sum(text.startswith("Not ") for text in said) > 50  # of all else the opening stays


def test_identical_answers_are_counted(asked):
    engine, cache = asked
    found = pd.DataFrame(
        {"score": np.arange(100.0), "answer": ["Yes."] * 89 + ["No."] * 5 + ["So."] * 6}
    )
    for part in (found, found[:0], found[:1], found.assign(answer="")):
        assert ranking.count_identical_answers(part) is None
    assert ranking.count_identical_answers(found[1:90]) == (88, 89)
    assert identical_answers_note((88, 89), 89, "member").startswith(
        "88 of 89 members have the same answer. Use the order"
    )
    halves = found.assign(answer=["Yes."] * 50 + ["No."] * 50)
    assert ranking.count_identical_answers(halves) == (10, 10)
    assert identical_answers_note((10, 10), 100).startswith(
        "10 of the 10 users nearest to yes have the same answer"
    )
    assert identical_answers_note(None, 100) == ""
    told = engine.rank(cache, "Will this user travel soon?")
    assert told.attrs["identical"] == ranking.count_identical_answers(told)


def test_of_falling_spending_the_lowest_grade_means_yes(asked, monkeypatch):
    engine, cache = asked
    monkeypatch.setattr(ranking, "N_WORDINGS", 1)
    for name, sign in (("spend_down", -1), ("spend_up", 1)):
        query = by_name(name).future[-1].format(user="user")
        vectors = graded(engine.model, name, "future")[1]
        plain = engine.embed(cache, query) @ (vectors[4] - vectors[0]) * sign
        found = engine.rank(cache, query).set_index("user")["score"][list(cache.ids)]
        np.testing.assert_allclose(found, plain, atol=1e-4, rtol=0)


def test_every_trained_wording_finds_its_own_topic(asked):
    engine, cache = asked
    for topic in TOPICS[::9]:
        assert (
            engine.rank(cache, topic.future[0].format(user="user")).attrs["topics"][0] == topic.name
        )


def test_the_question_about_everything_is_answered_freely(asked):
    engine, cache = asked
    found = engine.rank(cache, SUMMARY_QUERY)
    assert (
        found.attrs["topics"][0] == "summary"
        and set(found["answer"]) == {""}
        and np.isfinite(found["score"]).all()
    )
    asker = qa.LensBackend(engine, cache, make_users(), method="pca")
    assert asker.answer("a", SUMMARY_QUERY) == engine.generate(cache, "a", SUMMARY_QUERY)
    query = by_name("takeout").future[0].format(user="user")
    says = engine.rank(cache, query).set_index("user")["answer"]
    assert [asker.answer(user, query) for user in cache.ids] == [says[user] for user in cache.ids]


def test_a_question_about_the_next_week_is_answered_about_the_next_week(asked, monkeypatch):
    engine, cache = asked
    seen = []
    monkeypatch.setattr(
        ranking,
        "answer_bank",
        lambda *given, made=ranking.answer_bank: seen.append(given[2]) or made(*given),
    )
    for query in (
        "Will this user travel?",
        "Will this user travel in the next week?",
        "Travel within 100 days?",
    ):
        says = engine.rank(cache, query)["answer"]
        assert not (says.str.contains("30 days") & (seen[-1] != 30)).any()
    assert seen == [30, 7, 90]
    said = [
        text for graded in ranking.answer_bank(engine.model, "user", 7).texts for text in graded
    ]
    assert sum("7 days" in text for text in said) == len(said) / 2 and not any(
        "30 days" in text for text in said
    )


def test_a_question_unlike_all_of_the_training_is_said_to_be_so():
    engine = make_engine(make_model())
    model = engine.model
    model.skip.query_memory.zero_()
    cache, known = (
        engine.prefill(make_users()),
        ["Will this user travel soon?", "Does this user buy tea?"],
    )
    assert engine.rank(cache, "zqx!").attrs["novel"] is False  # an untrained model cannot tell
    model.skip.remember(model.encode_queries(known).text_embedding)
    warning = (
        "Training contained no similar question, so the result mostly shows the general "
        "profile of each user."
    )
    assert novelty_warning(True) == warning and novelty_warning(False) == ""
    for query, novel in ((known[0], False), ("zqx!", True)):
        assert ranking.is_novel(model, query) is engine.rank(cache, query).attrs["novel"] is novel
        *_, last = qa.LensBackend(engine, cache, make_users(), method="pca")(query)
        assert last.warning == novelty_warning(novel) and warning not in last.message
    *_, last = qa.LensBackend(engine, cache, make_users(), method="pca")("", known[0])
    assert last.warning == ""  # nothing is asked: nothing is unlike it
    model.skip = None
    assert ranking.is_novel(model, "zqx!") is False


IDS = [str(user) for user in range(400)]
DENIED = {
    "Will this user come more often?": (
        "Will this user stop coming?",
        "Will visits of this user fall?",
    ),
    "Will this user travel soon?": (
        "Will this user stop travelling?",
        "Won't this user travel any more?",
    ),
    "Does this user drink alcohol?": (
        "Does this user avoid alcohol?",
        "Does this user never drink alcohol?",
    ),
    "Will this user use coupons?": (
        "Will this user use fewer coupons?",
        "Is this user unlikely to use a coupon?",
    ),
    "Will this user keep shopping here?": ("Is this user about to churn?", "Will this user leave?"),
    "Will this user spend more?": (
        "Will this user spend less?",
        "Will the spending of this user decline?",
    ),
}


@pytest.fixture(scope="module")
def taught():
    """The run of the sample world, and anchors of nobody in particular: which way they lean is all
    that counts here.
    """
    model = qa.Engine(
        qa.QAnchor.from_pretrained(Path(__file__).parents[3] / "data" / "runs" / "world")
    ).model
    answers = ranking.answer_bank(model, "user", 30).graded.reshape(-1, model.config.embedding_dim)
    draw = np.random.default_rng(0)
    return model, (
        answers[draw.integers(0, len(answers), 400)] + answers[draw.integers(0, len(answers), 400)]
    ) / 2


def test_answers_of_a_run_are_read_once_ever(taught, tmp_path, monkeypatch):
    model, texts, seen = (
        taught[0],
        ("Very likely to travel.", "Not at all.", "Very likely to travel."),
        [],
    )
    monkeypatch.setenv("QANCHOR_CACHE", str(tmp_path))
    read = type(model).embed_answer
    monkeypatch.setattr(
        type(model), "embed_answer", lambda self, some: seen.append(some) or read(self, some)
    )

    def anew(run):  # as another process would
        monkeypatch.setattr(model, "run", run)
        ranking._embed_answers.cache_clear()
        return ranking._embed_answers(model, texts)

    run = model.run
    first, again = anew(run), anew(run)
    assert len(seen) == 1 and sorted(seen[0]) == sorted(set(texts)) and np.array_equal(first, again)
    assert np.array_equal(first[0], first[2]) and not np.array_equal(first[0], first[1])
    plain = anew("")  # of no run: nothing is kept
    assert len(seen) == 2 and len(list((tmp_path / "answers").iterdir())) == 1
    np.testing.assert_allclose(first, plain, atol=5e-4)  # half precision
    anew("another run")
    assert len(seen) == 3 and len(list((tmp_path / "answers").iterdir())) == 2
    kept = next((tmp_path / "answers").iterdir()) / "vectors-128"
    kept.write_bytes(bytes([kept.read_bytes()[0] ^ 1]) + kept.read_bytes()[1:])
    with pytest.raises(TableError, match=f"remove {kept.parent}"):
        anew(run), anew("another run")


@pytest.mark.parametrize("yes, no", [(yes, no) for yes, noes in DENIED.items() for no in noes])
def test_a_question_that_denies_turns_the_order_round(taught, yes, no):
    """A sentence vector hardly knows "stop" from "start": what denies is counted. The same anchors,
    asked both ways.
    """
    model, anchors = taught
    first, second = (
        ranking.label_free_scores(model, IDS, query, anchors)["score"] for query in (yes, no)
    )
    assert np.corrcoef(first, second)[0, 1] < -0.3


@pytest.mark.parametrize(
    "query",
    ["Will this user stop coming?", "Will this user come less often?", "Will this user leave?"],
)
def test_no_sentence_speaks_against_the_order(taught, query):
    model, anchors = taught
    found, sticks = (
        ranking.label_free_scores(model, IDS, query, anchors),
        ranking.answer_bank(model, "user", 30),
    )
    said = next(texts for texts in sticks.texts if found["answer"][0] in texts)
    grade = found["answer"].map(said.index)
    silence = any(
        word in said[4] for word in ("silent", "quiet")
    )  # its highest grade is gone, that of all others is here
    assert np.corrcoef(grade, found["score"])[0, 1] * (1 if silence else -1) > 0.3


def test_concordance_counts_pairs():
    rng = np.random.default_rng(0)
    score, truth = rng.normal(size=60).round(1), rng.integers(0, 4, 60).astype(float)
    pairs = [(i, j) for i in range(60) for j in range(60) if truth[i] > truth[j]]
    plain = np.mean([(score[i] > score[j]) + (score[i] == score[j]) / 2 for i, j in pairs])
    share, low, high = concordance(score, truth)
    np.testing.assert_allclose(share, plain)
    assert (
        low < share < high
        and concordance(score, np.ones(60)) == concordance(score[:19], truth[:19]) == (None,) * 3
    )


def test_the_interval_of_concordance_covers_chance():
    rng, sure = np.random.default_rng(1), 0
    for _ in range(200):
        _, low, high = concordance(rng.normal(size=80), rng.integers(0, 3, 80).astype(float))
        sure += low <= 0.5 <= high
    assert 0.9 <= sure / 200 <= 0.99


def test_a_backtest_reads_nothing_after_that_day_and_measures_what_came(monkeypatch):
    """Deleting what came after changes the truth, never the scores."""
    users, seen = qa.make_sample_users(80, seed=3), []
    engine = make_engine(make_model(users))
    monkeypatch.setattr(
        sys.modules[BacktestResult.__module__],
        "concordance",
        lambda *told: (seen.append(told), (0.5, 0.4, 0.6))[1],
    )
    told = qa.backtest(engine, users, "Will this user churn?")
    day = users.cutoff - pd.Timedelta(days=30)
    assert (told.topic, told.days, told.cutoff, told.right) == ("lapse", 30, f"{day:%Y-%m-%d}", 0.5)
    gone = replace(users, events=users.events[users.events["time"] < day])
    qa.backtest(engine, gone, "Will this user churn?")
    (simple, _), (score, truth), (later, _), (again, silent) = seen
    np.testing.assert_allclose(score, again, atol=1e-5, rtol=0)
    came = users.history()[lambda e: e["time"] >= day].groupby("user", observed=False)["time"].max()
    assert (silent == 30).all() and truth.min() < 30
    until = users.history()[lambda e: e["time"] < day].groupby("user", observed=False)["time"].max()
    np.testing.assert_allclose(
        simple, (day - until.loc[list(users.ids)]) / pd.Timedelta(days=1), atol=1e-4
    )
    np.testing.assert_array_equal(
        simple, later
    )  # a count of the days before knows nothing of those after, either
    last = ((users.cutoff - came) / pd.Timedelta(days=1)).fillna(30.0)
    np.testing.assert_allclose(truth, last.loc[list(users.ids)], atol=1e-4)
    nothing = qa.backtest(engine, users, SUMMARY_QUERY)
    assert (
        nothing.right is None
        and backtest_summary(nothing) == "No backtest: the question is not about a single topic."
    )


def test_a_backtest_of_too_short_a_past_says_so():
    users = qa.make_sample_users(30, seed=3)
    engine = make_engine(make_model(users))
    young = replace(
        users, events=users.events[users.events["time"] >= users.cutoff - pd.Timedelta(days=20)]
    )
    result = qa.backtest(engine, young, "Will this user churn?")
    assert result.right is None and result.n == 0
    assert (
        backtest_summary(result) == "No backtest: the outcomes of 0 users are too few or all equal."
    )


@pytest.mark.parametrize(
    "span, words",
    [
        ((0.6, 0.7), ""),
        ((0.4, 0.6), ": no better than chance"),
        ((0.3, 0.4), ": worse than chance"),
    ],
)
def test_a_backtest_says_what_is_chance(span, words):
    summary = backtest_summary(
        BacktestResult(0.5, *span, 400, "not visits_up", 0, "2025-05-02", "user")
    )
    assert summary.startswith(
        "Backtest as of 2025-05-02: 50 of 100 pairs are in the right order (95 %: "
    )
    outcome = "Measured on 400 users: did they not come more often until then?"
    assert summary.endswith(f"to {100 * span[1]:.0f}; chance: 50){words}. {outcome}")


def test_a_backtest_tells_what_a_plain_count_had_right():
    result = BacktestResult(0.68, 0.64, 0.71, 395, "lapse", 30, "2026-05-30", "member", 0.701)
    summary = backtest_summary(result)
    assert (
        "(95 %: 64 to 71; chance: 50; a plain count of the days before: 70). Measured on 395 "
        "members" in summary
    )
    assert summary.endswith("did they stop shopping here in the 30 days after?")
    assert "Measured on 395 families" in backtest_summary(result, "family")


def test_stop_coming_is_read_as_going_away_and_keep_coming_as_its_contrary(asked):
    engine, cache = asked
    for query, sign in (("Will this user stop coming?", 1), ("Will this user keep coming?", -1)):
        name, kind, means = engine.rank(cache, query).attrs["measured"]
        assert (name, kind, means) == ("lapse", "future", sign)
