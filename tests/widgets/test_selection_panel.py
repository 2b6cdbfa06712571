"""The selection panel in Python: it follows and sets the selection, describes, explains, names,
writes, and errs in words.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake import (
    HOSTILE,
    FakeExplain,
    FakeLens,
    fake_describe,
    fake_description,
    fake_provenance,
    make_frame,
)
from updates import Update

from qanchor.widgets import QueryLens, ResultCard, SelectionPanel
from qanchor.widgets.base import Group, Selection
from qanchor.widgets.packing import json_rows
from qanchor.widgets.selection import bar_chart, format_value
from tests.waiting import until

IDS = tuple(f"u{i:04}" for i in range(600))


def make_panel(**more):
    selection = Selection(IDS, lambda rows: None)
    more = {
        "describe": fake_describe,
        "explain": FakeExplain(0.08),
        "provenance": fake_provenance,
        **more,
    }
    return SelectionPanel(selection, **more), selection


def test_several_views_hear_of_a_choice_and_one_that_fails_stops_nobody(caplog):
    heard = []
    chosen = Selection(IDS, lambda rows: heard.append(("lens", len(rows))))

    def second(rows):
        heard.append(("panel", len(rows)))

    chosen.observe(lambda rows: 1 / 0)
    chosen.observe(second)
    chosen.observe(second)
    chosen.ids = IDS[:3]
    assert heard == [("lens", 3), ("panel", 3)] and "ZeroDivisionError" in caplog.text


def test_the_panel_and_the_lens_share_one_selection():
    lens = QueryLens(make_frame(60), FakeLens(60, seconds=0.02))
    panel = SelectionPanel(lens.selection, describe=fake_describe)
    lens._on_message(lens, {"type": "select"}, [np.arange(12, dtype=np.int32).tobytes()])
    until(lambda: panel._shown.get("n") == 12 and not panel._shown["waiting"])
    assert panel._shown["sentence"].startswith(
        "12 of 600 users selected. What sets them apart most: “Concert” 83 % against 14 %"
    )
    panel.save("dozen")
    lens.selection.clear()
    panel.recall("dozen")
    assert np.frombuffer(lens._selected, np.int32).tolist() == list(range(12))
    assert panel._worker.turn is lens._worker.turn, "the model serves one of them at a time"


def test_description_and_repr_say_what_is_shown_now():
    panel, selection = make_panel()
    assert (
        repr(panel) == "SelectionPanel(0 of 600 users selected, 0 named)"
        and panel.description.empty
    )
    selection.ids = IDS[:40]
    assert panel.description["n_group"][0] == 40 and panel.description["name"][0] == "Concert"
    until(lambda: not panel._shown["waiting"])
    assert len(panel._shown["rows"]) == 10 and panel._shown["of"] == 10
    selection.ids = IDS
    until(lambda: not panel._shown["waiting"])
    assert panel.sentence == "600 of 600 users selected." and panel.description.empty
    selection.clear()
    until(lambda: not panel._shown["waiting"])
    assert panel.sentence == "0 of 600 users selected." and panel._shown["rows"] == []


def test_a_newer_choice_takes_the_place_of_one_that_is_still_compared():
    def slow(ids):
        time.sleep(0.05)
        return fake_describe(ids)

    panel, selection = make_panel(describe=slow)
    for n in (5, 6, 7):
        began = time.monotonic()
        selection.ids = IDS[:n]
        assert time.monotonic() - began < 0.04, "choosing does not wait for the comparison"
    until(lambda: not panel._shown["waiting"])
    time.sleep(0.1)
    assert panel._shown["n"] == 7 and panel._shown["sentence"].startswith("7 of 600")


def test_explaining_ranks_and_remembers_each_group():
    panel, selection = make_panel()
    selection.ids = IDS[:40]
    assert panel.explain().startswith("“Will this user travel soon?” tells these 40 users best")
    assert (
        len(panel.ranking) == 24
        and panel._ranked["current"]
        and panel._ranked["rows"][0]["auc"] == 0.86
    )
    selection.ids = IDS[:20]
    assert panel.ranking.empty and not panel._ranked["current"] and panel._ranked["n"] == 40
    selection.ids = IDS[:40]
    panel.explain()
    assert panel._explain.called == 1 and panel._ranked["current"]


def test_explaining_is_cancelled_and_its_errors_are_said(caplog):
    panel, selection = make_panel()
    selection.ids = IDS[:13]
    panel._on_message(panel, {"type": "explain"}, [])
    until(lambda: panel._status.get("busy") and panel._status["done"])
    panel._on_message(panel, {"type": "cancel"}, [])
    until(lambda: not panel._status.get("busy"))
    panel._on_message(panel, {"type": "cancel"}, [])  # pressed once more, when nothing runs
    assert (
        panel._status["note"] == "Cancelled." and panel._explain.closed == 1 and panel.ranking.empty
    )
    selection.ids = IDS[:17]
    with pytest.raises(ValueError, match="no such layer"):
        panel.explain()
    assert (
        panel._status["error"] == "No question could be found: the checkpoint has no such layer"
        and "Traceback" in caplog.text
    )
    selection.ids = IDS[:40]
    assert panel.explain() and not panel._status.get("error")


def test_an_error_of_describing_is_said_and_the_panel_works_on():
    def describe(ids):
        if len(ids) == 3:
            raise ValueError("no column 'text'")
        return fake_describe(ids)

    panel, selection = make_panel(describe=describe)
    selection.ids = IDS[:3]
    until(lambda: panel._status.get("error"))
    assert panel._status["error"] == "They could not be compared: no column 'text'"
    selection.ids = IDS[:4]
    until(lambda: panel._shown["n"] == 4 and not panel._shown["waiting"])


def test_named_groups_are_kept_and_combined():
    panel, selection = make_panel()
    selection.ids = IDS[:10]
    panel.save(" early ")
    selection.ids = IDS[5:20]
    panel.save("late")
    wanted = {"intersect": IDS[5:10], "unite": IDS[:20], "subtract": IDS[:5]}
    for how, ids in wanted.items():
        panel._on_message(
            panel, {"type": "combine", "first": "early", "how": how, "second": "late"}, []
        )
        assert selection.ids == ids
    assert panel.combine("late", "subtract", "early").name == "late - early"
    panel._on_message(
        panel, {"type": "combine", "first": "early", "how": "subtract", "second": "early"}, []
    )
    assert panel._status["note"] == "early - early: 0 users." and len(selection) == 0
    panel._on_message(panel, {"type": "recall", "name": "late"}, [])
    assert selection.ids == IDS[5:20] and panel._names == [
        {"name": "early", "n": 10},
        {"name": "late", "n": 15},
    ]
    panel.forget("early")
    with pytest.raises(KeyError, match="no group is named 'early': there are late"):
        panel.recall("early")
    with pytest.raises(ValueError, match="how is 'xor': say intersect, unite, subtract"):
        panel.combine("late", "xor", "late")
    with pytest.raises(ValueError, match="name is empty"):
        panel.save("  ")
    assert isinstance(panel.named["late"], Group)


def test_files_are_written_by_the_callable_never_over_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []

    def export(ids, path, least, salt):
        if len(ids) < least:
            raise ValueError("9 users, at least 10 are needed")
        calls.append((len(ids), path.name, least, salt))
        path.write_text("x")
        return path

    panel, selection = make_panel(export=export)
    selection.ids = IDS[:40]
    panel.save("../odd name/=1")
    for salt in ("", "pepper"):
        panel._on_message(panel, {"type": "export", "ending": "csv", "salt": salt}, [])
    assert calls == [(40, "odd-name-1.csv", 10, None), (40, "odd-name-1-2.csv", 10, "pepper")]
    assert panel._status["note"] == "Written: odd-name-1-2.csv, 40 users, beside this notebook."
    assert "pepper" not in str(panel.get_state()), "a salt stays out of the notebook"
    selection.ids = IDS[:9]
    panel._on_message(panel, {"type": "export", "ending": "csv"}, [])
    assert panel._status["error"] == "9 users, at least 10 are needed" and len(calls) == 2
    with pytest.raises(ValueError, match="cannot write files"):
        make_panel()[0].export("some.csv")


def test_cards_hold_what_is_shown_and_small_groups_make_none():
    panel, selection = make_panel()
    selection.ids = IDS[:40]
    first = panel.result_card("look again")
    assert (
        isinstance(first, ResultCard)
        and first.metric.endswith("label Concert")
        and round(first.value, 2) == 0.69
    )
    assert (
        first.picture.startswith("data:image/svg+xml;base64,")
        and first.run == "3f2a" * 16
        and first.n == 600
    )
    panel.explain()
    second = panel.result_card()
    assert (second.query, second.value, second.more["chance line"]) == (
        "Will this user travel soon?",
        0.86,
        "0.64",
    )
    selection.ids = IDS[:9]
    with pytest.raises(ValueError, match=r"9 of 600 users.*at least 10 are needed for a result"):
        panel.result_card()


def test_the_browser_keeps_cards_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = FakeLens(60, seconds=0.02)
    backend.provenance = fake_provenance
    lens = QueryLens(make_frame(60), backend)
    lens._on_message(lens, {"type": "save_card"}, [])
    assert not list(tmp_path.iterdir()), "there is nothing to keep yet"
    lens.ask("Will this user travel soon?")
    for name in ("result.html", "result-2.html"):
        lens._on_message(lens, {"type": "save_card"}, [])
        assert lens._status[
            "saved"
        ] == f"Kept: {name}, beside this notebook." and not lens._status.get("note"), "said once"
    assert ResultCard.load("result-2.html").sentence == lens.sentence
    panel, selection = make_panel()
    selection.ids = IDS[:40]
    panel.save("early")
    panel._on_message(panel, {"type": "save_card"}, [])
    assert ResultCard.load("result-early.html").metric.endswith("label Concert")
    selection.ids = IDS[:9]
    panel._on_message(panel, {"type": "save_card"}, [])
    assert panel._status["error"].startswith(
        "9 of 600 users selected, at least 10 are needed for a result"
    )
    monkeypatch.setattr(Path, "replace", lambda *paths: 1 / 0)
    lens._on_message(lens, {"type": "save_card"}, [])
    assert (
        lens._status["error"] == "No result card: division by zero"
        and len(list(tmp_path.glob("result*.html"))) == 3
    )


def test_a_still_picture_needs_no_script_and_escapes_text():
    panel, selection = make_panel()
    selection.ids = IDS[:40]
    panel.explain()
    panel.save("<script>alert(1)</script>")
    page = panel._repr_mimebundle_()[0]["text/html"]
    assert (
        "<script" not in page and "&lt;script&gt;" in page and "data:image/svg+xml;base64," in page
    )
    assert "tells these 40 users best" in page and page.count("<img") == 2 and len(page) < 60_000
    assert panel._repr_mimebundle_()[0]["text/html"] == page


def test_figures_are_plain_and_written_with_their_unit():
    row = {"kind": "text", "name": HOSTILE, "group": 0.254, "n": 3, "beyond_chance": True}
    frame = pd.DataFrame([row | {"p": np.nan, "ratio": np.inf}])
    assert json_rows(frame) == [row | {"p": None, "ratio": None}]
    json.dumps(json_rows(frame), allow_nan=False)
    assert (
        format_value({"kind": "number", "group": 2.345}, "group") == "2.35"
        and format_value({"kind": "number", "group": 1412.0}, "group") == "1,412"
    )
    assert format_value({"kind": "question", "auc": 0.8642}, "auc") == "0.86"
    assert bar_chart([]) == ""


def test_payloads_are_small():
    panel, selection = make_panel(
        describe=lambda ids: Update(
            1, 1, data={"frame": pd.concat([fake_description(ids)] * 200, ignore_index=True)}
        )
    )
    selection.ids = IDS[:40]
    until(lambda: not panel._shown["waiting"])
    assert len(panel._shown["rows"]) == 4 * 14 and len(str(panel._shown)) < 30_000
    assert len(panel._esm.encode()) < 50_000 and len(panel._css.encode()) < 25_000


def test_choosing_from_two_threads_ends_with_one_truth():
    panel, selection = make_panel()
    threads = [
        threading.Thread(target=setattr, args=(selection, "ids", IDS[:n])) for n in range(20, 40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: panel._shown["n"] == len(selection) and not panel._shown["waiting"])
    assert panel.sentence.startswith(f"{len(selection)} of 600")
