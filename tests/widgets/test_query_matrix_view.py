"""The shift matrix in Python: what it sends, chooses, keeps, refuses, and says without a kernel; and its script."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from fake import HOSTILE, QUERIES
from fake_deck import GROUPS, FakeDeck

from widgets import ShiftMatrix
from widgets.base import Selection
from widgets._grid import alike, checked_matrix, packed

FIRST = QUERIES[0]


def asked(**how):
    view = ShiftMatrix(FakeDeck(seconds=0), **how)
    view.ask()
    return view


def heard(view, **message):
    """Send what the browser sends, and wait for what it starts."""
    started = []
    start = view._worker.start
    view._worker.start = lambda job: started.append(start(job))
    view._heard(view, message, [])
    view._worker.start = start
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()


def test_what_is_drawn_is_what_was_told():
    view = ShiftMatrix(FakeDeck(seconds=0))
    assert repr(view) == "ShiftMatrix(6 questions x 7 groups, not asked yet)" and view.frame.empty and not view.sentence
    assert view.ask() == "8 of 42 cells are told beyond luck."
    assert repr(view) == "ShiftMatrix(6 questions x 7 groups, 8 of 42 cells beyond luck)"
    p = view._picture
    assert p["queries"] == list(QUERIES) and [group["n"] for group in p["groups"]] == list(GROUPS.values())
    assert p["cells"][0][6]["auc"] == 0.86 and p["cells"][5][0]["lean"] is None and p["whole"]
    assert len(view.frame) == 42 and set(p["reads"]) == {"auc", "lean"} and p["measures"] == ["auc", "lean", "ratio"]
    for order in p["alike"].values():
        assert sorted(order["rows"]) == list(range(6)) and sorted(order["columns"]) == list(range(7))


def test_neighbours_are_alike_and_holes_leave_all_as_it_was():
    values = [[0.9, 0.5, 0.9, 0.5], [0.5, 0.8, 0.5, 0.8], [0.9, 0.5, 0.88, 0.5], [0.5, 0.8, 0.52, 0.8]]
    cells = [[{"auc": value} for value in row] for row in values]
    order = alike(cells, "auc")
    assert {frozenset(order["rows"][:2]), frozenset(order["rows"][2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert {frozenset(order["columns"][:2]), frozenset(order["columns"][2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert alike([[None, *row[1:]] for row in cells], "auc")["rows"] == [0, 1, 2, 3]
    assert alike([], "auc") == {"rows": [], "columns": []}
    assert packed(None, ["q"], {})["cells"] == [[]]


def test_a_cell_chooses_and_picks():
    picked, chosen = [], Selection(FakeDeck().ids, lambda rows: None)
    view = asked(selection=chosen, pick=picked.append)
    heard(view, type="cell", query=FIRST, name="Fraud")
    assert len(chosen) == 41 and picked == [FIRST] and view._chosen == {"n": 41, "group": "Fraud"}
    heard(view, type="cell", query=QUERIES[1], name="")
    assert len(chosen) == 41 and picked[-1] == QUERIES[1]
    chosen.ids = view.selection.everyone[:5]
    assert view._chosen == {"n": 5, "group": ""}


def test_questions_and_groups_come_and_go():
    view = asked()
    asker, view.selection.ids = view._asker, view.selection.everyone[:30]
    asker.calls.clear()
    heard(view, type="add", query="  Is it new?  ")
    assert view.queries[-1] == "Is it new?" and asker.calls == ["Is it new?"] and len(view.frame) == 49
    heard(view, type="name", name="thirty")
    assert view.groups["thirty"].ids == view.selection.ids and len(view.frame) == 56 and view._chosen["group"] == "thirty"
    heard(view, type="drop", query=FIRST)
    heard(view, type="forget", name="Concert")
    assert len(view.frame) == 42 and FIRST not in set(view.frame["query"]) and "of 42 cells" in view.sentence
    heard(view, type="add", query=view.queries[0])  # there already
    assert len(view.queries) == 6
    view.name("thirty", view.selection.everyone[:40])
    assert "thirty" not in set(view.frame["group"])  # what was known is of others
    view.ask()
    assert view.frame.set_index("group").loc["thirty", "n"].eq(40).all()


def test_an_error_or_a_cancel_leaves_the_last_matrix():
    view = asked()
    before = view.frame
    heard(view, type="add", query="fail")
    assert "no such layer" in view._status["error"] and view.sentence.startswith("8 of 42")
    pd.testing.assert_frame_equal(view.frame, before)
    heard(view, type="drop", query="fail")
    assert "error" not in view._status
    with pytest.raises(ValueError, match="no such layer"):
        broken = ShiftMatrix(FakeDeck(seconds=0), queries=[FIRST, "fail"])
        broken.ask()
    assert len(broken.frame) == 7 and not broken._picture["whole"] and not broken.sentence  # what came before it stays

    closed = view._asker.closed
    view._asker.seconds = 0.4
    view.add("slow")
    thread = view._worker.start(view._work)
    while not view._status.get("busy") or not view._status["done"]:
        thread.join(0.01)
    view._heard(view, {"type": "cancel"}, [])
    thread.join(20)
    assert view._asker.closed == closed + 1 and view._status["note"] == "Cancelled. The matrix is as it was."
    pd.testing.assert_frame_equal(view.frame, before)


def test_a_fault_is_said_while_a_deck_is_asked():
    view = asked()
    view._tell(at_once=True, busy=True, done=1, total=9, note="Asking")
    view._heard(view, {"type": "forget", "name": "nobody"}, [])  # sooner than the next progress would be shown
    assert "no group is named" in view._status["error"] and view._status["busy"]


def test_what_cannot_be_is_refused_in_words():
    view = asked()
    for message, words in (
        ({"type": "name", "name": "few"}, "group 'few': 0 users in it, 600 outside, at least 10 of each are needed"),
        ({"type": "add", "query": " "}, "one of the questions is empty"),
        ({"type": "drop", "query": "no"}, "no question “no” in the deck"),
        ({"type": "forget", "name": "no"}, "no group is named “no”"),
        ({"type": "cell", "name": "no"}, "no"),
    ):
        heard(view, **message)
        assert words in view._status["error"], message
    with pytest.raises(KeyError, match="user 'zoe' is not among the 600"):
        view.name("odd", ["zoe"])
    with pytest.raises(ValueError, match="at least 10 of each are needed: choose fewer"):
        view.name("nearly all", view.selection.everyone[5:])
    with pytest.raises(ValueError, match="13 questions, the deck holds 12"):
        view.deal(queries=[f"q{k}" for k in range(13)])
    assert len(view.queries) == 6 and len(view.groups) == 7
    empty = ShiftMatrix(FakeDeck(seconds=0), queries=[], groups={})
    with pytest.raises(ValueError, match="0 questions, 0 groups"):
        empty.ask()
    assert empty.still().data and empty._picture["cells"] == []
    with pytest.raises(ValueError, match="the matrix has no column 'auc'"):
        checked_matrix(pd.DataFrame({"query": ["q"], "group": "g", "n": 1}))
    with pytest.raises(ValueError, match="stand twice"):
        checked_matrix(pd.concat([view.frame] * 2))


def test_a_still_picture_needs_no_script_and_escapes_text():
    view = asked()
    data = view._repr_mimebundle_()[0]
    page = data["text/html"]
    assert data["text/plain"] == repr(view) and "<script" not in page and "<img src=x" not in page and "<b>not" not in page
    assert HOSTILE.split()[0].replace("<", "&lt;") in page and "data:image/svg+xml;base64," in page and len(page) < 40_000
    assert "0.86 ↑" in page and "0.68 ↓" in page and "(0." in page and "8 of 42 cells" in page
    assert "not asked yet" in ShiftMatrix(FakeDeck()).still().data


def test_payloads_are_small():
    view = asked()
    assert len(view._esm.encode()) < 50_000 and len(view._css.encode()) < 25_000
    many = FakeDeck(20_000, seconds=0)
    big = ShiftMatrix(many, groups={f"g{k}": many.ids[k : k + 5_000] for k in range(12)})
    assert len(str(big._picture)) < 2_000  # ids stay in the kernel
    assert np.isfinite([cell["auc"] for row in view._picture["cells"] for cell in row]).all()


def test_scripts():
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to run the views' own tests")
    script = Path(__file__).parents[1] / "js" / "query_matrix.test.mjs"
    done = subprocess.run([node, "--test", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
