"""The workbench in Python: one selection for all views, clusters on request, a session that is kept and refused."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from fake import HOSTILE, QUERIES
from fake_desk import FakeDesk

import qanchor as qa
from widgets import Workbench

FIRST, SECOND = QUERIES[:2]


def test_the_pages_and_their_words():
    bench = Workbench(FakeDesk())
    assert bench.titles == ("Ask", "Group", "Deck", "Attention", "Clusters", "Tune")
    assert repr(bench) == "Workbench(600 users: Ask, Group, Deck, Attention, Clusters, Tune)"
    data = bench._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert data["text/plain"] == repr(bench) and "<script" not in data["text/html"] and "Query lens" in data["text/html"]
    bare = FakeDesk()
    bare.tune = bare.deck = None
    assert Workbench(bare).lab is Workbench(bare).deck is None and Workbench(bare).titles[-1] == "Clusters"


def test_all_views_follow_one_selection():
    bench = Workbench(FakeDesk())
    bench.compare()
    bench.selection.ids = ["u0003", "u0007"]
    workers = (bench.lens, bench.attention, bench.lab, bench.deck, bench)
    assert {id(view._worker.turn) for view in workers} == {id(bench.selection.turn)}  # one at a time: they share a model
    assert bench.lens.selection.ids == bench.panel.selection.ids == ("u0003", "u0007")
    assert "2" in bench.panel.sentence
    bench.lens.ask(FIRST)
    bench.compare().selection.ids = ["u0001"]
    assert bench.selection.ids == ("u0001",)


def test_a_cell_of_the_deck_chooses_its_group_and_asks_the_lens():
    bench = Workbench(FakeDesk(0))
    bench.deck.ask()
    bench.deck._heard(bench.deck, {"type": "cell", "query": FIRST, "name": "Fraud"}, [])
    assert bench.selection.ids == bench.deck.groups["Fraud"].ids and len(bench.selection) == 41
    for _ in range(500):
        if bench.lens.queries_asked:
            break
        time.sleep(0.01)
    assert bench.lens.queries_asked == (FIRST,)


def test_a_session_keeps_the_deck(tmp_path):
    path = tmp_path / "deck.json"
    bench = Workbench(FakeDesk(0), session=path)
    bench.deck.add("Does this user sing?")
    bench.deck.drop(FIRST)
    bench.deck.name("some", bench.selection.everyone[:20])
    bench.deck.forget("Concert")
    told = json.loads(path.read_text())["deck"]
    assert told["groups"]["Fraud"] is None and len(told["groups"]["some"]) == 20 and "Concert" not in told["groups"]
    again = Workbench(FakeDesk(0), session=path).deck
    assert again.queries == bench.deck.queries and again.groups == bench.deck.groups
    bare = FakeDesk(0)
    bare.deck = None
    without = Workbench(bare, session=path)
    without.save()
    assert without.deck is None and json.loads(path.read_text())["deck"] == told  # left as it was
    path.write_text(path.read_text().replace('"u0000"', '"zoe"', 1))
    with pytest.raises(ValueError, match="'zoe' is not among these 600"):
        Workbench(FakeDesk(0), session=path)


def test_clusters_are_of_the_last_two_queries():
    desk = FakeDesk()
    bench = Workbench(desk)
    bench.compare()  # nothing was asked yet
    assert bench.clusters is None and desk.asked == [] and "Ask something" in bench._said.value
    bench.lens.ask(FIRST)
    first = bench.compare()
    bench.lens.ask(SECOND)
    assert bench.compare() is first and desk.asked == [("", FIRST), (FIRST, SECOND)]  # the same view, drawn anew
    assert bench._said.value == f"{FIRST} → {SECOND}" and not bench._button.disabled
    bench.lens.ask(QUERIES[3])
    with pytest.raises(ValueError, match="no such layer"):
        bench.compare()
    assert "no such layer" in bench._said.value and bench.clusters is first and not bench._button.disabled


def test_a_session_is_kept_and_opens_as_it_was_left(tmp_path):
    path = tmp_path / "a session with ünicode.json"
    bench = Workbench(FakeDesk(), session=path)
    bench.lens.ask(FIRST)
    bench.lens.ask(f"Is {HOSTILE} real?")
    bench.selection.ids = ["u0002", "u0004", "u0006"]
    bench.panel.save("even")
    bench.selection.ids = ["u0005"]
    told = json.loads(path.read_text())
    assert told["queries"] == [FIRST, f"Is {HOSTILE} real?"] and told["chosen"] == ["u0005"]
    again = Workbench(FakeDesk(), session=path)
    assert again.selection.ids == ("u0005",) and again.panel.named["even"].ids == ("u0002", "u0004", "u0006")
    assert again.lens._query == f"Is {HOSTILE} real?" and again.lens._about["queries"][:2] == [f"Is {HOSTILE} real?", FIRST]
    again.lens.ask(SECOND)
    assert json.loads(path.read_text())["queries"] == [FIRST, f"Is {HOSTILE} real?", SECOND]
    assert not list(tmp_path.glob(".*"))


def test_a_session_of_others_or_a_torn_one_is_refused_and_stays(tmp_path):
    path = tmp_path / "mine.json"
    good = {"format": 1, "queries": [], "chosen": ["zoe"], "named": {}}
    for text, told in (
        (json.dumps(good), "is of other users \\('zoe' is not among these 600\\)"),
        (json.dumps(good | {"format": 9}), "format 9, this is 1"),
        ('{"format": 1', "is no session"),
        ("[]", "is no session"),
        (json.dumps(good | {"chosen": [], "deck": {"queries": []}}), "is no session"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            Workbench(FakeDesk(), session=path)
        assert path.read_text() == text
    with pytest.raises(ValueError, match="no file to keep the session in"):
        Workbench(FakeDesk()).save()


def test_a_desk_gives_what_the_views_ask():
    users = qa.make_world(40)
    desk = qa.Desk(qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY), device="cpu")), users, method="pca")
    bench = Workbench(desk)
    assert "of 40 users moved" in bench.lens.ask("Will this user travel soon?")
    bench.selection.ids = users.ids[:12]
    assert "12" in bench.panel.sentence
    assert bench.compare().ledger["users"].sum() == 40
    *_, last = desk.explain(users.ids[:12])
    assert len(last["frame"]) > 50 and len(desk.ask.kept) > 50  # one store for all views
    *_, last = desk.look("Will this user travel soon?", None, users.ids[:3])
    assert last["ledger"]["weight"].notna().all()
    *_, last = desk.deck(desk.deck.queries[:2], {"some": users.ids[:12]})
    assert len(last["frame"]) == 2 and bench.deck.queries == tuple(desk.deck.queries)
    *_, last = desk.tune("Why?", "Active", vectors=2, steps=5, seed=0)
    assert last["result"]["measure"].tolist() == ["auc", "ks", "silhouette"]
