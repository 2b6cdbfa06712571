"""The query matrix in Python: what it sends, chooses, keeps, refuses, and says without a kernel;
and its script.
"""

import numpy as np
import pandas as pd
import pytest
from fake import HOSTILE, QUERIES
from fake_matrix import GROUPS, FakeMatrix

from qanchor.widgets import QueryMatrixView
from qanchor.widgets.base import Group, Selection
from qanchor.widgets.query_matrix import pack_matrix, similarity_order

FIRST = QUERIES[0]


def asked(**how):
    view = QueryMatrixView(FakeMatrix(seconds=0), **how)
    view.ask()
    return view


def send(view, **message):
    """Send what the browser sends, and wait for what it starts."""
    started = []
    start = view._worker.start
    view._worker.start = lambda job: started.append(start(job))
    view._on_message(view, message, [])
    view._worker.start = start
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()


def test_what_is_drawn_is_the_result():
    view = QueryMatrixView(FakeMatrix(seconds=0))
    assert (
        repr(view) == "QueryMatrixView(6 questions x 7 groups, not asked yet)"
        and view.table.empty
        and not view.sentence
    )
    assert view.ask() == "8 of 42 cells are told beyond chance."
    assert repr(view) == "QueryMatrixView(6 questions x 7 groups, 8 of 42 cells beyond chance)"
    p = view._picture
    assert p["queries"] == list(QUERIES) and [group["n"] for group in p["groups"]] == list(
        GROUPS.values()
    )
    assert p["cells"][0][6]["auc"] == 0.86 and p["cells"][5][0]["yes_score"] is None and p["whole"]
    assert (
        len(view.table) == 42
        and set(p["reads"]) == {"auc", "yes_score"}
        and p["measures"] == ["auc", "yes_score", "ratio"]
    )
    for order in p["orders"].values():
        assert sorted(order["rows"]) == list(range(6)) and sorted(order["columns"]) == list(
            range(7)
        )


def test_neighbours_are_alike_and_holes_leave_all_as_it_was():
    values = [
        [0.9, 0.5, 0.9, 0.5],
        [0.5, 0.8, 0.5, 0.8],
        [0.9, 0.5, 0.88, 0.5],
        [0.5, 0.8, 0.52, 0.8],
    ]
    order = similarity_order(np.array(values))
    assert {frozenset(order["rows"][:2]), frozenset(order["rows"][2:])} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    assert {frozenset(order["columns"][:2]), frozenset(order["columns"][2:])} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    table = asked().table
    groups = {name: Group(name, ()) for name in GROUPS}
    assert set(pack_matrix(table, QUERIES, groups)["orders"]) == {"auc", "yes_score", "ratio"}
    assert pack_matrix(table[1:], QUERIES, groups)["orders"] == {}
    assert pack_matrix(table[:0], ["q"], {})["cells"] == [[]]


def test_a_cell_chooses_and_picks():
    picked, chosen = [], Selection(FakeMatrix().ids, lambda rows: None)
    view = asked(selection=chosen, on_pick=picked.append)
    send(view, type="cell", query=FIRST, name="Fraud")
    assert len(chosen) == 41 and picked == [FIRST] and view._selected == {"n": 41, "group": "Fraud"}
    send(view, type="cell", query=QUERIES[1], name="")
    assert len(chosen) == 41 and picked[-1] == QUERIES[1]
    chosen.ids = view.selection.all_ids[:5]
    assert view._selected == {"n": 5, "group": ""}


def test_questions_and_groups_come_and_go():
    view = asked()
    backend, view.selection.ids = view._backend, view.selection.all_ids[:30]
    backend.calls.clear()
    send(view, type="add_query", query="  Is it new?  ")
    assert (
        view.queries[-1] == "Is it new?"
        and backend.calls == ["Is it new?"]
        and len(view.table) == 49
    )
    send(view, type="add_group", name="thirty")
    assert (
        view.groups["thirty"].ids == view.selection.ids
        and len(view.table) == 56
        and view._selected["group"] == "thirty"
    )
    send(view, type="remove_query", query=FIRST)
    send(view, type="remove_group", name="Concert")
    assert (
        len(view.table) == 42
        and FIRST not in set(view.table["query"])
        and "of 42 cells" in view.sentence
    )
    send(view, type="add_query", query=view.queries[0])  # there already
    assert len(view.queries) == 6
    view.add_group("thirty", view.selection.all_ids[:40])
    assert "thirty" not in set(view.table["group"])  # what was known is of others
    view.ask()
    assert view.table.set_index("group").loc["thirty", "n"].eq(40).all()


def test_an_error_or_a_cancel_leaves_the_last_matrix():
    view = asked()
    before = view.table
    send(view, type="add_query", query="fail")
    assert "no such layer" in view._status["error"] and view.sentence.startswith("8 of 42")
    pd.testing.assert_frame_equal(view.table, before)
    send(view, type="remove_query", query="fail")
    assert "error" not in view._status
    with pytest.raises(ValueError, match="no such layer"):
        broken = QueryMatrixView(FakeMatrix(seconds=0))
        broken.set_matrix(queries=[FIRST, "fail"])
        broken.ask()
    assert (
        len(broken.table) == 7 and not broken._picture["whole"] and not broken.sentence
    )  # what came before it stays

    closed = view._backend.closed
    view._backend.seconds = 0.4
    view.add_query("slow")
    thread = view._worker.start(view._run)
    while not view._status.get("busy") or not view._status["done"]:
        thread.join(0.01)
    view._on_message(view, {"type": "cancel"}, [])
    thread.join(20)
    assert (
        view._backend.closed == closed + 1
        and view._status["note"] == "Cancelled. The matrix is as it was."
    )
    pd.testing.assert_frame_equal(view.table, before)


def test_a_fault_is_said_while_a_matrix_is_asked():
    view = asked()
    view._set_status(at_once=True, busy=True, done=1, total=9, note="Asking")
    view._on_message(
        view, {"type": "remove_group", "name": "nobody"}, []
    )  # sooner than the next progress would be shown
    assert "no group is named" in view._status["error"] and view._status["busy"]


def test_what_cannot_be_is_refused_in_words():
    view = asked()
    for message, words in (
        (
            {"type": "add_group", "name": "few"},
            "group 'few': 0 users in it, 600 outside, at least 10 of each are needed",
        ),
        ({"type": "add_query", "query": " "}, "one of the questions is empty"),
        ({"type": "remove_query", "query": "no"}, "no question “no” in the matrix"),
        ({"type": "remove_group", "name": "no"}, "no group is named “no”"),
        ({"type": "cell", "name": "no"}, "no"),
    ):
        send(view, **message)
        assert words in view._status["error"], message
    with pytest.raises(KeyError, match="user 'zoe' is not among the 600"):
        view.add_group("odd", ["zoe"])
    with pytest.raises(ValueError, match="at least 10 of each are needed: select fewer"):
        view.add_group("nearly all", view.selection.all_ids[5:])
    with pytest.raises(ValueError, match="13 questions, the matrix holds 12"):
        view.set_matrix(queries=[f"q{k}" for k in range(13)])
    assert len(view.queries) == 6 and len(view.groups) == 7
    empty = QueryMatrixView(FakeMatrix(seconds=0))
    empty.set_matrix(queries=[], groups={})
    with pytest.raises(ValueError, match="0 questions, 0 groups"):
        empty.ask()
    assert empty.to_html().data and empty._picture["cells"] == []


def test_a_still_picture_needs_no_script_and_escapes_text():
    view = asked()
    data = view._repr_mimebundle_()[0]
    page = data["text/html"]
    assert (
        data["text/plain"] == repr(view)
        and "<script" not in page
        and "<img src=x" not in page
        and "<b>not" not in page
    )
    assert HOSTILE.split()[0].replace("<", "&lt;") in page and len(page) < 40_000
    assert "0.86 ↑" in page and "0.68 ↓" in page and "(0." in page and "8 of 42 cells" in page
    assert "not asked yet" in QueryMatrixView(FakeMatrix()).to_html().data


def test_payloads_are_small():
    view = asked()
    assert len(view._esm.encode()) < 50_000 and len(view._css.encode()) < 25_000
    many = FakeMatrix(20_000, seconds=0)
    big = QueryMatrixView(many)
    big.set_matrix(groups={f"g{k}": many.ids[k : k + 5_000] for k in range(12)})
    assert len(str(big._picture)) < 2_000  # ids stay in the kernel
    assert np.isfinite([cell["auc"] for row in view._picture["cells"] for cell in row]).all()
