"""The lens in Python: what it sends, keeps, cancels, and says when something goes wrong."""

import ast
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import traitlets
from fake import HOSTILE, FakeLens, make_frame
from updates import Update

from qanchor import widgets
from qanchor.widgets import QueryLens, base
from qanchor.widgets.base import Selection, View, Worker
from qanchor.widgets.static_html import static_page
from qanchor.widgets.tour import Tour
from tests.waiting import until

ROOT = Path(__file__).parents[2]
TRAVEL = "Will this user travel soon?"


def make_lens(users=60, seconds=0.02, **rest):
    backend = FakeLens(users, seconds=seconds)
    return QueryLens(make_frame(users), backend, **rest), backend


def rows(data, kind=np.float32, width=1):
    out = np.frombuffer(data, dtype=kind)
    return out.reshape(-1, width) if width > 1 else out


def test_asking_fills_the_frames_and_the_picture():
    lens, backend = make_lens()
    sentence = lens.ask(f"  {TRAVEL} ")
    assert "of 60 users stand out" in sentence and sentence == lens.sentence
    assert lens.queries_asked == (TRAVEL,)
    assert list(lens.points) == ["user", "query", "x", "y", "trust"] and len(lens.points) == 120
    assert lens.shift.toward_yes.is_monotonic_decreasing and set(lens.shift.to_query) == {TRAVEL}
    shift = lens._entry.shift
    with pytest.MonkeyPatch.context() as patch:  # as if there were no other questions
        patch.setitem(vars(lens._entry), "shift", shift.assign(toward_yes=np.nan))
        assert lens.shift.residual.is_monotonic_decreasing
    picture, points = lens._picture, lens.points.set_index(["query", "user"])
    assert (picture["from"], picture["to"]) == ("", TRAVEL)
    after = points.loc[TRAVEL].loc[list(backend.ids), ["x", "y"]].to_numpy(dtype=np.float32)
    np.testing.assert_array_equal(rows(picture["after"], width=2), after)
    assert rows(picture["beyond"], np.uint8).sum() == lens.shift.stands_out.sum()
    gained = rows(picture["gained"], np.int32, 5)[0]
    assert (
        tuple(i for i in gained if i >= 0)
        == lens.shift.set_index("user").gained["u0000"]
        == (1, 2, 3)
    )


def test_the_repr_says_the_content_and_is_the_same_each_time():
    lens, _ = make_lens(query="travel")
    assert repr(lens) == "QueryLens(60 users, query='travel')"
    first, second = make_lens()[0]._repr_mimebundle_()[0], make_lens()[0]._repr_mimebundle_()[0]
    assert first["text/plain"] == second["text/plain"] == "QueryLens(60 users, query='')"
    assert first["text/html"] == second["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in first


def test_showing_opens_the_map_once():
    lens, backend = make_lens()
    lens._repr_mimebundle_()
    lens._on_message(lens, {"type": "open"}, [])
    until(lambda: lens._picture)
    assert (
        lens.queries_asked == ()
        and not lens._picture["shifted"]
        and "60 users before any question" in lens.sentence
    )
    assert backend.closed == 1
    lens.ask(TRAVEL)
    assert lens._history == {"queries": ["", TRAVEL], "at": 1}


def test_a_still_picture_needs_no_script_and_escapes_text():
    lens, _ = make_lens()
    lens.ask(f"Is {HOSTILE} real?")
    page = lens._repr_mimebundle_()[0]["text/html"]
    assert (
        "<script" not in page and "&lt;script&gt;" in page and "data:image/svg+xml;base64," in page
    )
    assert "users stand out" in page and len(page) < 60_000
    assert lens.to_html().data == page
    assert "&lt;b&gt;" in static_page("<b>", ["x"], table=[["<i>"], ["<u>"]])


def test_a_picture_that_cannot_be_drawn_does_not_stop_the_notebook(monkeypatch):
    lens, _ = make_lens()
    monkeypatch.setattr(QueryLens, "_html", lambda self: 1 / 0)
    assert "text/plain" in lens._repr_mimebundle_()[0]


def test_asking_from_the_browser_leaves_the_message_loop_free():
    lens, _ = make_lens(seconds=0.3)
    began = time.monotonic()
    lens._on_message(lens, {"type": "ask", "query": TRAVEL}, [])
    assert time.monotonic() - began < 0.1
    until(lambda: lens._status.get("done", 0) > 0)
    assert lens._status["busy"] and lens._status["total"] == 60
    until(lambda: lens.queries_asked == (TRAVEL,))


def test_cancel_closes_the_work_and_keeps_the_last_good_picture():
    lens, backend = make_lens()
    lens.ask(TRAVEL)
    before, closed = lens._picture["after"], backend.closed
    lens._on_message(lens, {"type": "ask", "query": "slow"}, [])
    until(lambda: lens._status.get("done", 0) > 0)
    lens._on_message(lens, {"type": "cancel"}, [])
    until(lambda: not lens._status.get("busy"))
    assert "Cancelled" in lens._status["note"] and backend.closed == closed + 1
    assert lens.queries_asked == (TRAVEL,) and lens._picture["after"] == before
    lens.ask("Does this user follow live music?")  # and it goes on working


def test_a_newer_query_takes_the_place_of_the_running_one():
    lens, _ = make_lens(seconds=0.2)
    for query in ("slow", "Is this user price-conscious?", TRAVEL):
        lens._on_message(lens, {"type": "ask", "query": query}, [])
    until(lambda: lens.queries_asked)
    until(lambda: not lens._status.get("busy"))
    assert lens.queries_asked == (TRAVEL,)


def test_an_error_is_said_in_the_view_and_in_the_log(caplog):
    lens, _ = make_lens()
    lens.ask(TRAVEL)
    before = lens._picture["after"]
    lens._on_message(lens, {"type": "ask", "query": "fail"}, [])
    until(lambda: lens._status.get("error"))
    assert lens._status["error"] == "“fail” could not be asked: the checkpoint has no such layer"
    assert "Traceback" in caplog.text and lens._picture["after"] == before
    with pytest.raises(ValueError, match="no such layer"):
        lens.ask("fail")
    with pytest.raises(ValueError, match="query is empty"):
        lens.ask("  ")
    assert lens.ask("Is this user price-conscious?") and not lens._status.get("error")


def test_back_and_forward_walk_through_the_queries():
    lens, _ = make_lens()
    for query in (TRAVEL, "Is this user price-conscious?"):
        lens.ask(query)
    lens._on_message(lens, {"type": "go", "at": 0}, [])
    assert (
        lens._picture["to"] == TRAVEL
        and set(lens.shift.to_query) == {TRAVEL}
        and lens._history["at"] == 0
    )
    lens._on_message(lens, {"type": "go", "at": 99}, [])
    assert repr(lens) == "QueryLens(60 users, query='Is this user price-conscious?')"
    assert set(lens.shift.from_query) == {TRAVEL}


def test_the_selection_is_read_and_set_on_both_sides():
    lens, _ = make_lens()
    lens._on_message(
        lens, {"type": "select"}, [np.array([5, 2, 5, 999, -1], dtype=np.int32).tobytes()]
    )
    assert lens.selection.ids == ("u0002", "u0005") and len(lens.selection) == 2
    for mode, row in (
        ("add", 9),
        ("add", 7),
        ("add", -4),
        ("subtract", 2),
        ("subtract", 30),
    ):  # as fast as keys come
        lens._on_message(
            lens, {"type": "select", "mode": mode}, [np.array([row], dtype=np.int32).tobytes()]
        )
    assert lens.selection.ids == ("u0005", "u0007", "u0009")
    lens.selection.ids = ["u0007"]
    assert rows(lens._selected, np.int32).tolist() == [7]
    with pytest.raises(KeyError, match="u9"):
        lens.selection.ids = ["u9"]
    lens.selection.clear()
    assert lens.selection.ids == () and repr(lens.selection) == "Selection(0 of 60 users)"
    assert Selection(("a",), lambda rows: None).ids == ()


def test_changes_of_the_selection_are_taken_back_and_made_again():
    seen = []
    selection = Selection(tuple("abcd"), lambda rows: seen.append(rows.tolist()))
    selection.undo()  # nothing was changed yet
    selection.ids = ["a", "b"]
    selection.select_rows([3], "add")
    selection.select_rows([3], "add")  # no change
    selection.undo()
    assert selection.ids == ("a", "b")
    selection.redo()
    assert selection.ids == ("a", "b", "d")
    selection.undo()
    selection.undo()
    assert selection.ids == () and seen[-3:] == [[0, 1, 3], [0, 1], []]
    selection.ids = ["c"]
    selection.redo()  # a new change leaves nothing to make again
    assert selection.ids == ("c",)
    selection.forget_changes()
    selection.undo()
    assert selection.ids == ("c",)


def open_user(lens, row: int) -> None:
    lens._on_message(lens, {"type": "user", "user": row}, [])


def test_a_user_who_is_opened_is_sent_with_dated_events_and_the_answer():
    lens, backend = make_lens()
    open_user(lens, 3)
    until(lambda: lens._timeline)
    assert (lens._timeline["user"], lens._timeline["query"]) == (3, "") and not lens._answer
    lens.ask(TRAVEL)
    open_user(lens, 3)
    until(lambda: "text" in lens._answer)
    assert lens._answer["user"] == 3 and lens._answer["text"].startswith("u0003 likely will")
    frame = backend.timeline("u0003", TRAVEL)
    assert lens._timeline["query"] == TRAVEL
    assert lens._timeline["total"] == [len(frame), frame["evidence"].sum()]
    open_user(lens, 60)  # nobody
    open_user(lens, 1)
    until(lambda: "error" in lens._answer)
    assert lens._answer["error"] == "No answer: the text could not be generated"
    lens._timeline_of = lambda user, query: 1 / 0
    open_user(lens, 2)
    until(lambda: "error" in lens._timeline)
    assert lens._timeline["error"] == "No timeline: division by zero"
    assert lens._timeline["user"] == 2


def test_without_a_timeline_a_user_has_recent_events_only():
    backend = FakeLens(60, seconds=0)
    backend.timeline = None
    lens = QueryLens(make_frame(60), backend)
    lens.ask(TRAVEL)
    open_user(lens, 3)
    until(lambda: "text" in lens._answer)
    assert not lens._timeline


def test_of_a_large_set_events_are_sent_when_asked_for():
    users = 10_001
    lens = QueryLens(make_frame(users), FakeLens(users, seconds=0))
    assert lens._users["texts"] == [] and len(str(lens._users["ids"])) < 12 * users
    lens._on_message(lens, {"type": "events", "rows": [1, 0, 99_999, -1]}, [])
    assert lens._recent["rows"] == [1, 0] and HOSTILE in lens._recent["texts"][1][2]
    lens.ask(TRAVEL)
    assert (
        len(lens.to_html().data) < 150_000
    )  # of 100,000 no more: dots that would lie on each other are drawn once
    assert lens._history_size == 99


def test_payloads_are_small():
    lens, _ = make_lens(users=2_000)
    lens.ask(TRAVEL)
    buffers = sum(len(part) for part in lens._picture.values() if isinstance(part, bytes))
    assert buffers == 2_000 * (
        4 * 2 * 2 + 5 * 4 + 1 + 2 * 5 * 4
    )  # two places, five numbers, a flag, ten neighbours
    words = sum(len(str(part)) for part in lens._picture.values() if not isinstance(part, bytes))
    assert words < 1_000


def test_scripts_and_styles_are_small():
    views = [View for View in vars(widgets).values() if hasattr(View, "_esm")]
    assert len(views) >= 6
    for view in [*views, Tour]:
        assert len(str(view._esm).encode()) < 80_000 and len(str(view._css).encode()) < 24_000, (
            view.__name__
        )


def test_frames_that_do_not_fit_are_refused_and_gaps_are_borne():
    with pytest.raises(ValueError, match="no column 'user'"):
        QueryLens(pd.DataFrame({"id": ["a"]}), backend=None)
    with pytest.raises(ValueError, match="one row a user"):
        QueryLens(pd.DataFrame({"user": ["a", "a"]}), backend=None)
    points = pd.DataFrame({"user": ["b"], "query": ["q"], "x": [1.0], "y": [2.0], "trust": [0.5]})
    update = Update(1, 1, "s", data={"points": points, "shift": None})
    lens = QueryLens(
        pd.DataFrame({"user": ["a", "b"]}), backend=lambda query, previous: iter([update])
    )
    lens.ask("q")
    assert np.isnan(rows(lens._picture["after"], width=2)[0]).all() and rows(
        lens._picture["after"], width=2
    )[1].tolist() == [
        1,
        2,
    ]
    empty = QueryLens(pd.DataFrame({"user": ["a"]}), backend=lambda query, previous: iter([]))
    with pytest.raises(ValueError, match="no map"):
        empty.ask("q")


def test_a_first_quick_map_is_shown_and_then_refined():
    fake, seen = FakeLens(20, seconds=0), []

    def backend(query, previous):
        yield replace(fake.result(query, ""), message="quick")
        yield replace(fake.result(query, ""), message="fine")

    lens = QueryLens(make_frame(20), backend)
    lens.observe(
        lambda change: seen.append((change["new"]["sentence"], change["new"]["refines"])),
        "_picture",
    )
    lens.ask(TRAVEL)
    assert (
        seen == [("quick", False), ("fine", True)]
        and lens.sentence == "fine"
        and len(lens.queries_asked) == 1
    )


def test_a_map_of_one_query_against_itself_shows_no_shift():
    result = FakeLens(20, seconds=0).result(TRAVEL, "")
    both = result.data["points"].assign(query="")
    update = replace(result, data=result.data | {"points": both})
    lens = QueryLens(make_frame(20), lambda query, previous: iter([update]))
    lens._repr_mimebundle_()
    until(lambda: lens._picture)
    assert not lens._picture["shifted"] and lens.shift.empty
    assert lens.sentence == update.message


def test_workers_that_share_a_turn_never_run_together():
    turn, running, most = threading.RLock(), [], []

    def job(stop):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    threads = [worker.start(job) for worker in (Worker(turn), Worker(turn), Worker(turn))]
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_job_that_waits_for_its_turn_says_so_and_can_be_cancelled():
    turn, heard = threading.RLock(), []
    worker = Worker(turn)
    with turn:
        thread = worker.start(
            lambda stop: heard.append("ran"),
            lambda: heard.append("waits"),
            lambda: heard.append("cancelled"),
        )
        while not heard:
            time.sleep(0.01)
        worker.cancel()
    thread.join()
    assert heard == ["waits", "cancelled"]
    worker.start(lambda stop: heard.append("ran"), lambda: heard.append("waits")).join()
    assert heard[2:] == ["ran"]


def test_the_front_end_knows_neither_the_library_nor_torch():
    for path in (ROOT / "widgets").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("torch", "transformers"), path.name
                assert name.startswith("qanchor.widgets") or not name.startswith("qanchor")
    code = (
        "import sys, qanchor.widgets\n"
        "ours = [name for name in sys.modules if name.startswith('qanchor.')]\n"
        "assert not [name for name in ours if not name.startswith('qanchor.widgets')], ours\n"
        "assert not {'torch', 'umap', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_the_packages_of_jupyter_the_error_says_what_to_install():
    code = "import sys; sys.modules['anywidget'] = None; import qanchor.widgets"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.endswith("not installed. Run pip install 'qanchor[lab]'.\n"), done.stderr


def test_the_script_of_each_view_has_no_name_twice(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to read the scripts")
    for view in [view for view in vars(widgets).values() if hasattr(view, "_esm")]:
        script = tmp_path / f"{view.__name__}.mjs"
        script.write_text(str(view._esm))
        done = subprocess.run([node, "--check", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_progress_that_comes_too_soon_is_left_out_but_not_what_must_be_said(monkeypatch):
    class Some(View):
        _esm, _status, _guard = "export default {}", traitlets.Dict(), threading.RLock()

    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: 7.0))
    view, step = Some(), {"busy": True, "total": 9}
    view._set_status(**step, done=1)
    view._set_status(**step, done=2)
    assert view._status == {**step, "done": 1}
    view._set_status(at_once=True, **view._status | {"note": "Cancelling"})
    assert view._status["note"] == "Cancelling"
    view._set_status(note="Cancelled.")
    assert view._status == {"note": "Cancelled."}
