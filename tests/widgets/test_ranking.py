"""Who is nearest to a yes, how often such an order was right before, and what a claim card makes of both."""

import numpy as np
import pytest
from test_query_lens import TRAVEL, FakeAsker, make_frame, make_lens, until

from widgets import QueryLens


def ranked(query=TRAVEL, **rest):
    lens, asker = make_lens(**rest)
    lens.ask(query)
    lens._heard(lens, {"type": "lean"}, [])
    until(lambda: lens._past.get("query") == query)
    return lens, asker


def look_back(lens):
    lens._heard(lens, {"type": "look back"}, [])
    until(lambda: lens._past.get("words") and not lens._past.get("busy"))


def test_the_lens_looks_back_when_asked_and_says_how_far_it_is():
    lens, _ = ranked()
    assert lens._about["looks_back"] and lens._past == {"query": TRAVEL, "words": ""}
    seen = []
    lens.observe(lambda change: seen.append(change["new"]), "_past")
    look_back(lens)
    assert [told["words"] for told in seen] == [
        "Reading the past: 30 of 60 ...",
        "Reading the past: 60 of 60 ...",
        "In hindsight, as of 2025-05-02, right in 72 of 100 pairs.",
    ]
    assert [told.get("busy", False) for told in seen] == [True, True, False]
    lens.ask("Is this user price-conscious?")
    lens._heard(lens, {"type": "go", "at": 0}, [])
    lens._heard(lens, {"type": "lean"}, [])
    until(lambda: lens._past.get("query") == TRAVEL)
    assert lens._past["words"] == seen[-1]["words"]  # kept by query


def test_the_order_is_given_as_a_frame_once_it_was_found():
    lens, _ = make_lens()
    assert lens.order.empty and list(lens.order) == ["user", "score"]
    lens, asker = ranked()
    assert list(lens.order.user) == list(asker.ids[::-1]) and lens.order.score.is_monotonic_decreasing
    lens.ask("Is this user price-conscious?")
    assert lens.order.empty, "it is of the query that is shown"


def test_a_new_question_stops_it_and_a_failure_is_told():
    lens, _ = ranked(seconds=0.4)
    lens._heard(lens, {"type": "look back"}, [])
    until(lambda: lens._past.get("busy"))
    lens._heard(lens, {"type": "ask", "query": "fails later"}, [])
    until(lambda: not lens._past.get("busy"))
    assert lens._past == {"query": TRAVEL, "words": ""}
    until(lambda: lens.queries_asked[-1] == "fails later")
    lens._heard(lens, {"type": "lean"}, [])
    until(lambda: lens._past["query"] == "fails later")
    look_back(lens)
    assert lens._past["words"] == "No hindsight: the past could not be read"


def test_without_a_past_nothing_is_offered():
    asker = FakeAsker(60, seconds=0.02)
    asker.look_back = None
    lens = QueryLens(make_frame(60), asker)
    assert not lens._about["looks_back"]
    lens.ask(TRAVEL)
    lens._heard(lens, {"type": "look back"}, [])  # what a browser should not send
    assert lens._past == {}


@pytest.mark.parametrize("looked", [False, True])
def test_a_claim_of_which_nearly_all_moved_begins_with_the_order(looked):
    lens, asker = ranked()
    shown = lens._shown
    some, most = lens.claim(), shown.shift.assign(beyond_noise=True)
    assert some.sentence == shown.sentence and some.metric == "" and some.more["in hindsight"] == "not looked at"
    object.__setattr__(shown, "shift", most)
    if looked:
        look_back(lens)
    card = lens.claim("mine")
    assert card.sentence == "Nearest to yes: u0059, u0058, u0057." and card.more["who moved"] == shown.sentence
    assert card.more["order"] == f"Read as a question of travel, not commute. {card.sentence}"
    assert card.more["map"].endswith("Diamonds are the tenth nearest to yes.") and card.picture != some.picture
    assert lens._order.marks(TRAVEL, 0.9, lens.selection.rows)[0].nonzero()[0].tolist() == list(range(54, 60))
    lens.selection.ids = [asker.ids[3]]
    assert lens.claim().more["map"].endswith("Diamonds are the chosen.")
    assert lens._order.marks(TRAVEL, 0.9, lens.selection.rows)[0].nonzero()[0].tolist() == [3]
    if looked:
        assert (card.metric, card.n) == ("pairs of users in the right order, asked as of 2025-05-02 (luck: 0.5)", 60)
        assert (card.value, card.low, card.high) == (0.72, 0.68, 0.76)
        assert card.more["in hindsight"] == "as of 2025-05-02, right in 72 of 100 pairs"
    else:
        assert card.value is None


def test_a_claim_tells_of_the_chosen():
    lens, asker = ranked()
    assert "chosen" not in lens.claim().more
    score = np.linspace(-0.2, 0.6, 60)
    lens.selection.ids = [asker.ids[row] for row in (3, 40, 59)]
    beaten = np.mean([(score < score[row]).sum() / 59 for row in (3, 40, 59)])
    assert lens.claim().more["chosen"] == f"3 users, on average nearer to yes than {beaten:.0%} of all"
    fresh, _ = make_lens()
    fresh.ask(TRAVEL)
    fresh.selection.ids = ["u0001"]
    assert fresh.claim().more["chosen"] == "1 user"
