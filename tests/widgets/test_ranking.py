"""Who is nearest to a yes, how often such a ranking was right before, and what a result card makes
of both.
"""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from updates import Update

from qanchor.widgets import QueryLens
from tests.widgets.test_query_lens import TRAVEL, FakeLens, make_frame, make_lens, until

MEANING = "Interpreted as a question about travel, not commute."
ORDER = "u0059, u0058 and u0057 rank first of 60 users."


def asked(query=TRAVEL, **rest):
    lens, backend = make_lens(**rest)
    lens.ask(query)
    return lens, backend


def backtest(lens):
    lens._on_message(lens, {"type": "backtest"}, [])
    until(lambda: lens._backtest.get("words") and not lens._backtest.get("busy"))


def test_the_ranking_comes_with_the_same_run_unasked():
    lens, backend = make_lens()
    seen = []
    lens.observe(
        lambda change: seen.append((change["new"]["query"], change["new"].get("order"))),
        "_ranking",
    )
    lens._on_message(lens, {"type": "ask", "query": TRAVEL}, [])  # all that the browser sends
    until(lambda: "score" in lens._ranking)
    assert seen[1:] == [(TRAVEL, ORDER)] and backend.closed == 1
    assert seen[0] == (TRAVEL, "Ranking all users ...")
    assert (lens._ranking["interpretation"], lens._ranking["order"]) == (MEANING, ORDER)
    score = np.frombuffer(lens._ranking["score"], np.float32)
    np.testing.assert_allclose(score, np.linspace(-0.2, 0.6, 60), rtol=1e-5)
    assert lens._backtest == {"query": TRAVEL, "words": ""}, "the backtest is made on request only"
    assert "score_before" not in lens._ranking
    lens.ask("Is this user price-conscious?")
    before = np.frombuffer(lens._ranking["score_before"], np.float32)
    np.testing.assert_array_equal(before, score, "it tells who changed sides")
    lens._on_message(lens, {"type": "go", "at": 0}, [])
    assert lens._ranking["query"] == TRAVEL and "score" in lens._ranking, (
        "walking back brings it along"
    )


def test_a_cancelled_ranking_leaves_the_map_and_can_be_asked_for_again():
    lens, backend = make_lens(seconds=1.2)
    lens._on_message(lens, {"type": "ask", "query": TRAVEL}, [])
    until(lambda: lens._ranking.get("busy"))
    assert not lens._status.get("busy") and lens.queries_asked == (TRAVEL,), (
        "the map is there already"
    )
    lens._on_message(lens, {"type": "cancel"}, [])
    until(lambda: not lens._ranking.get("busy"))
    assert (
        lens._ranking == {"query": TRAVEL} and lens.ranking.empty and not lens._status.get("note")
    )
    assert (
        lens.sentence.endswith("stand out most.")
        and lens._picture["to"] == TRAVEL
        and backend.closed == 1
    )
    backend.seconds = 0.02
    lens.ask(TRAVEL)
    assert (
        lens.ranking.user[0] == "u0059"
        and lens.queries_asked == (TRAVEL,)
        and set(lens.shift.from_query) == {""}
    )
    lens.ask(TRAVEL)
    assert backend.closed == 2, "what is known is not asked again"


def test_asking_from_a_cell_does_not_wait_for_a_ranking():
    fake = FakeLens(60, seconds=0)

    def backend(query, previous):
        yield fake.result(query, previous or "")
        for _ in range(100 if query == TRAVEL else 0):
            yield Update(0, 1, data={"ranking": None})
            time.sleep(0.1)

    lens = QueryLens(make_frame(60), backend)
    lens.start(TRAVEL)
    until(lambda: lens._ranking.get("busy"))
    began = time.monotonic()
    assert "stand out" in lens.ask("Is this user price-conscious?")
    assert time.monotonic() - began < 5 and lens.queries_asked == (
        TRAVEL,
        "Is this user price-conscious?",
    )


def test_a_better_map_that_comes_after_the_ranking_takes_the_place_of_the_first():
    fake = FakeLens(20, seconds=0)

    def backend(query, previous):
        first, better = (fake.result(query, "") for _ in range(2))
        frame = pd.DataFrame({"user": make_frame(20).user, "score": np.arange(20.0), "answer": ""})
        said = {"interpretation": MEANING, "order": ORDER, "meant": []}
        ranked = first.data | {"ranking": frame} | said
        yield first
        yield Update(0, 1, data=first.data | {"ranking": None})
        yield replace(first, message=ORDER, data=ranked)
        yield Update(1, 1, "Compiling ...")
        better.data["points"]["x"] += 1
        points = {"points": better.data["points"]}
        yield replace(first, message=ORDER, caption="better", data=ranked | points)

    lens = QueryLens(make_frame(20), backend)
    lens.ask(TRAVEL)
    first = fake.result(TRAVEL, "")
    assert lens._picture["refines"] and lens._picture["caption"] == "better"
    assert lens._picture["sentence"] == first.message, "who stands out, not who ranks first"
    np.testing.assert_allclose(
        np.frombuffer(lens._picture["after"], np.float32)[::2],
        first.data["points"]["x"].to_numpy()[-20:] + 1,
        rtol=1e-5,
    )
    assert len(lens.ranking) == 20 and lens.queries_asked == (TRAVEL,)


def test_going_back_to_a_question_that_was_overtaken_finishes_it():
    fake = FakeLens(20, seconds=0)
    frame = pd.DataFrame({"user": make_frame(20).user, "score": np.arange(20.0), "answer": ""})
    asked = []

    def backend(query, previous):
        asked.append(query)
        yield fake.result(query, previous or "")
        yield Update(0, 1, data={"ranking": None})
        while asked == [TRAVEL]:  # the first is overtaken before it is ranked
            time.sleep(0.01)
            yield Update(0, 1, data={"ranking": None})
        yield Update(1, 1, data={"ranking": frame, "order": ORDER})

    backend.rank = backend  # it ranks
    lens = QueryLens(make_frame(20), backend)
    lens.start(TRAVEL)
    until(lambda: lens._ranking.get("busy"))
    lens.start("Is this user price-conscious?")
    until(lambda: "score" in lens._ranking and not lens._status.get("busy"))
    lens._on_message(lens, {"type": "go", "at": 0}, [])
    until(lambda: lens._ranking.get("query") == TRAVEL and "score" in lens._ranking)
    assert len(asked) == 3 and lens.queries_asked[0] == TRAVEL


def test_a_ranking_that_fails_is_said_and_leaves_the_map(caplog):
    lens, _ = asked("is this unranked?")
    assert lens._ranking["order"] == "No ranking: the answers could not be read"
    assert "Traceback" in caplog.text and lens.ranking.empty
    assert (
        "stand out" in lens.sentence
        and not lens._status.get("error")
        and not lens._status.get("busy")
    )
    points = FakeLens(20, seconds=0).result(TRAVEL, "")
    none = [points, Update(0, 1, data={"ranking": None})]
    lens = QueryLens(make_frame(20), lambda query, previous: iter(none))
    lens.ask(TRAVEL)
    assert lens._ranking["order"] == "No ranking: the model gave no ranking"


def test_a_question_without_a_yes_ranks_nobody():
    for scores in (np.full(20, np.nan), np.full(20, 0.5)):
        frame = pd.DataFrame({"user": make_frame(20).user, "score": scores})
        updates = [
            FakeLens(20, seconds=0).result(TRAVEL, ""),
            Update(1, 1, data={"ranking": frame, "order": "They cannot be ranked."}),
        ]
        lens = QueryLens(make_frame(20), lambda query, previous, updates=updates: iter(updates))
        lens.ask(TRAVEL)
        order = {
            "interpretation": "",
            "order": "They cannot be ranked.",
            "meant": [],
            "without": [],
        }
        assert lens._ranking == {"query": TRAVEL, **order}
        assert lens.ranking.empty and "order" not in lens.result_card().more


def test_the_lens_backtests_on_request_and_says_how_far_it_is():
    lens, _ = asked()
    assert lens._about["backtests"] and lens._backtest == {"query": TRAVEL, "words": ""}
    seen = []
    lens.observe(lambda change: seen.append(change["new"]), "_backtest")
    backtest(lens)
    assert [state["words"] for state in seen] == [
        "Read the past of 30 of 60 users ...",
        "Read the past of 60 of 60 users ...",
        "Backtest as of 2025-05-02: 72 of 100 pairs are in the right order.",
    ]
    assert [state.get("busy", False) for state in seen] == [True, True, False]
    lens.ask("Is this user price-conscious?")
    lens._on_message(lens, {"type": "go", "at": 0}, [])
    assert lens._backtest["query"] == TRAVEL
    assert lens._backtest["words"] == seen[2]["words"]  # kept by query


def test_a_cheap_backtest_follows_a_question_from_the_browser_unasked():
    backend = FakeLens(60, seconds=0.02)
    backend.backtests_unasked = True
    lens = QueryLens(make_frame(60), backend)
    lens.ask(TRAVEL)
    assert lens._backtest == {"query": TRAVEL, "words": ""}, "a cell does not wait for it"
    other = "Is this user price-conscious?"
    lens._on_message(lens, {"type": "ask", "query": other}, [])
    until(lambda: lens._backtest.get("query") == other and lens._backtest.get("words"))
    until(lambda: not lens._backtest.get("busy"))
    assert "72 of 100 pairs" in lens._backtest["words"]


def test_the_ranking_is_a_frame_of_the_query_that_is_shown():
    lens, _ = make_lens()
    assert lens.ranking.empty and list(lens.ranking) == ["user", "score", "answer"]
    lens, backend = asked()
    assert (
        list(lens.ranking.user) == list(backend.ids[::-1])
        and lens.ranking.score.is_monotonic_decreasing
    )
    assert list(lens.ranking) == ["user", "score", "answer"] and lens.ranking.answer[0] == "likely"
    lens._repr_mimebundle_()
    start = QueryLens(make_frame(60), backend)
    start._repr_mimebundle_()
    until(lambda: start._picture)
    assert start.ranking.empty, "before any query there is none"


def test_a_new_question_or_cancel_stops_a_backtest_and_a_failure_is_said():
    lens, _ = asked(seconds=0.4)
    lens._on_message(lens, {"type": "backtest"}, [])
    until(lambda: lens._backtest.get("busy"))
    lens._on_message(lens, {"type": "cancel"}, [])
    until(lambda: not lens._backtest.get("busy"))
    assert lens._backtest == {"query": TRAVEL, "words": ""}
    lens._on_message(lens, {"type": "backtest"}, [])
    until(lambda: lens._backtest.get("busy"))
    lens._on_message(lens, {"type": "ask", "query": "fails later"}, [])
    until(lambda: not lens._backtest.get("busy"))
    assert lens._backtest == {"query": TRAVEL, "words": ""}
    until(lambda: lens.queries_asked[-1] == "fails later")
    until(lambda: "score" in lens._ranking)
    assert lens._backtest["query"] == "fails later"
    backtest(lens)
    assert lens._backtest["words"] == "No backtest: the past could not be read"


def test_without_a_past_nothing_is_offered():
    backend = FakeLens(60, seconds=0.02)
    backend.backtest = None
    lens = QueryLens(make_frame(60), backend)
    assert not lens._about["backtests"]
    lens.ask(TRAVEL)
    lens._on_message(lens, {"type": "backtest"}, [])  # what a browser should not send
    assert lens._backtest == {"query": TRAVEL, "words": ""}


def test_without_other_questions_the_ranking_is_the_headline():
    fake = FakeLens(60, seconds=0)

    def backend(query, previous):
        for update in fake(query, previous):
            yield update if previous else replace(update, message="")

    lens = QueryLens(make_frame(60), backend)
    words = f"{MEANING} {ORDER}"
    assert lens.ask(TRAVEL) == lens.sentence == words
    page = lens._repr_mimebundle_()[0]["text/html"]
    assert words in page and "stand out" not in page
    card = lens.result_card()
    assert card.sentence == ORDER
    assert "stand out" in lens.ask("Is this user price-conscious?")


@pytest.mark.parametrize("looked", [False, True])
def test_a_card_without_other_questions_begins_with_the_ranking(looked):
    lens, backend = asked()
    entry = lens._entry
    first = lens.result_card()
    assert (
        first.sentence == entry.sentence
        and first.metric == ""
        and first.more["backtest"] == "not run"
    )
    entry.picture["sentence"] = ""
    if looked:
        backtest(lens)
    card = lens.result_card("mine")
    assert card.sentence == ORDER
    assert card.more["order"] == f"{MEANING} {ORDER}"
    assert (
        card.more["map"].endswith("Diamonds are the tenth that ranks first.")
        and card.picture != first.picture
    )
    assert lens._marked_users(entry)[0].nonzero()[0].tolist() == list(range(54, 60))
    lens.selection.ids = [backend.ids[3]]
    assert lens.result_card().more["map"].endswith("Diamonds are the selected users.")
    assert lens._marked_users(entry)[0].nonzero()[0].tolist() == [3]
    if looked:
        assert (card.metric, card.n) == (
            "pairs of users in the right order, asked as of 2025-05-02 (chance: 0.5)",
            60,
        )
        assert (card.value, card.low, card.high) == (0.72, 0.68, 0.76)
        assert (
            card.more["backtest"]
            == "Backtest as of 2025-05-02: 72 of 100 pairs are in the right order."
        )
    else:
        assert card.value is None


def test_a_card_says_who_is_selected():
    lens, backend = asked()
    assert "selected" not in lens.result_card().more
    score = np.linspace(-0.2, 0.6, 60)
    lens.selection.ids = [backend.ids[row] for row in (3, 40, 59)]
    beaten = np.mean([(score < score[row]).sum() / 59 for row in (3, 40, 59)])
    assert (
        lens.result_card().more["selected"]
        == f"3 users, on average ranked above {beaten:.0%} of all"
    )
    unranked = QueryLens(make_frame(60), lambda query, previous: iter([backend.result(query, "")]))
    unranked.ask(TRAVEL)
    unranked.selection.ids = ["u0001"]
    assert unranked.result_card().more["selected"] == "1 user"
