"""The workbench in Python: one selection for all views, clusters on request, a session that is kept
and refused.
"""

import json

import pytest
from fake import HOSTILE, QUERIES
from fake_session import FakeSession

from qanchor.widgets import Workbench
from tests.waiting import until

FIRST, SECOND = QUERIES[:2]


def test_the_pages_and_their_words():
    bench = Workbench(FakeSession())
    assert bench.titles == ("Users", "Group", "Attention", "Matrix", "Clusters", "Tune")
    assert repr(bench) == "Workbench(600 users: Users, Group, Attention, Matrix, Clusters, Tune)"
    data = bench._repr_mimebundle_()
    assert (
        data["text/plain"] == repr(bench)
        and "<script" not in data["text/html"]
        and "Query lens" in data["text/html"]
    )
    bare = FakeSession()
    bare.tuning = None
    assert Workbench(bare).tuning is None and Workbench(bare).titles[-1] == "Clusters"


def test_all_views_follow_one_selection():
    bench = Workbench(FakeSession())
    bench.compare()
    bench.selection.ids = ["u0003", "u0007"]
    workers = (bench.lens, bench.attention, bench.tuning, bench.matrix, bench)
    assert {id(view._worker.turn) for view in workers} == {
        id(bench.selection.turn)
    }  # one at a time: they share a model
    assert bench.lens.selection.ids == bench.panel.selection.ids == ("u0003", "u0007")
    assert "2" in bench.panel.sentence
    bench.lens.ask(FIRST)
    bench.compare().selection.ids = ["u0001"]
    assert bench.selection.ids == ("u0001",)


def test_a_cell_of_the_matrix_selects_its_group_and_asks_the_lens():
    bench = Workbench(FakeSession(0))
    bench.matrix.ask()
    bench.matrix._on_message(bench.matrix, {"type": "cell", "query": FIRST, "name": "Fraud"}, [])
    assert bench.selection.ids == bench.matrix.groups["Fraud"].ids and len(bench.selection) == 41
    until(lambda: bench.lens.queries_asked)
    assert bench.lens.queries_asked == (FIRST,)


def test_a_session_keeps_the_matrix(tmp_path):
    path = tmp_path / "matrix.json"
    bench = Workbench(FakeSession(0), session=path)
    bench.matrix.add_query("Does this user sing?")
    bench.matrix.remove_query(FIRST)
    bench.matrix.add_group("some", bench.selection.all_ids[:20])
    bench.matrix.remove_group("Concert")
    stored = json.loads(path.read_text())["deck"]
    assert (
        stored["groups"]["Fraud"] is None
        and len(stored["groups"]["some"]) == 20
        and "Concert" not in stored["groups"]
    )
    again = Workbench(FakeSession(0), session=path).matrix
    assert again.queries == bench.matrix.queries and again.groups == bench.matrix.groups
    path.write_text(path.read_text().replace('"u0000"', '"zoe"', 1))
    with pytest.raises(ValueError, match="'zoe' is not among these 600"):
        Workbench(FakeSession(0), session=path)


def test_clusters_are_of_the_last_two_queries():
    backend = FakeSession()
    bench = Workbench(backend)
    bench.compare()  # nothing was asked yet
    assert (
        bench.clusters is None
        and backend.compared == []
        and "Ask something" in bench._compare_note.value
    )
    bench.lens.ask(FIRST)
    first = bench.compare()
    bench.lens.ask(SECOND)
    assert bench.compare() is first and backend.compared == [
        ("", FIRST),
        (FIRST, SECOND),
    ]  # the same view, drawn anew
    assert bench._compare_note.value == f"{FIRST} → {SECOND}" and not bench._compare_button.disabled
    bench.lens.ask(QUERIES[3])
    with pytest.raises(ValueError, match="no such layer"):
        bench.compare()
    assert (
        "no such layer" in bench._compare_note.value
        and bench.clusters is first
        and not bench._compare_button.disabled
    )


def test_a_session_is_kept_and_opens_as_it_was_left(tmp_path):
    path = tmp_path / "a session with ünicode.json"
    bench = Workbench(FakeSession(), session=path)
    bench.lens.ask(FIRST)
    bench.lens.ask(f"Is {HOSTILE} real?")
    bench.selection.ids = ["u0002", "u0004", "u0006"]
    bench.panel.save("even")
    bench.selection.ids = ["u0005"]
    told = json.loads(path.read_text())
    assert told["queries"] == [FIRST, f"Is {HOSTILE} real?"] and told["chosen"] == ["u0005"]
    again = Workbench(FakeSession(), session=path)
    assert again.selection.ids == ("u0005",) and again.panel.named["even"].ids == (
        "u0002",
        "u0004",
        "u0006",
    )
    assert again.lens._query == f"Is {HOSTILE} real?" and again.lens._about["queries"][:2] == [
        f"Is {HOSTILE} real?",
        FIRST,
    ]
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
            Workbench(FakeSession(), session=path)
        assert path.read_text() == text
    with pytest.raises(ValueError, match="no file to keep the session in"):
        Workbench(FakeSession()).save()
