"""Packing: what the browser gets of users, neighbors and rankings is what the frames say, whatever
the ids and texts hold.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake import FakeLens, make_frame
from fake_clusters import fake_compare
from hypothesis import given
from hypothesis import strategies as st
from updates import Update

from qanchor.widgets import (
    ClusterView,
    QueryLens,
    QueryMatrixView,
    ResultCard,
    SelectionPanel,
    packing,
)
from qanchor.widgets.base import Selection
from qanchor.widgets.packing import (
    MAX_EVENT_LENGTH,
    MAX_RECENT_LENGTH,
    limit_length,
    pack_shift,
    pack_timeline,
    pack_users,
)

TRAVEL = "Will this user travel soon?"


def make_shift(ids, gained, lost):
    frame = pd.DataFrame(
        {"user": ids, "from_query": "", "to_query": TRAVEL, "residual": 0.5, "toward_yes": 0.5}
    )
    frame = frame.assign(elsewhere=0.1, stands_out=True)
    return frame.assign(neighbours_kept=0.5, gained=gained, lost=lost)


def neighbors(packed, name):
    rows = np.frombuffer(packed[name], np.int32).reshape(-1, 5)
    return [[row for row in line if row >= 0] for line in rows.tolist()]


def test_ids_that_hold_a_comma_keep_their_neighbors():
    ids = ("Smith, Jane", "Smith", "Jane", "a, b, c")
    gained = [(1, 3), (0, 2), (), (0, 1, 2)]
    lost = [(2,), (), (3,), ()]
    shift = make_shift(ids, gained, lost)
    assert not pack_shift(ids, shift.assign(toward_yes=np.nan), np.arange(4))["compared"]
    packed = pack_shift(ids, shift, np.arange(4))
    assert packed["compared"] and neighbors(packed, "gained") == [list(rows) for rows in gained]
    assert neighbors(packed, "lost") == [list(rows) for rows in lost]


def test_neighbors_are_those_of_the_back_end_in_whatever_order_the_view_has_its_users():
    ids = [f"u{i}" for i in range(6)]
    gained = [((i + 1) % 6, (i + 2) % 6) for i in range(6)]  # into the back end's users

    class Backend:
        def __call__(self, query, previous):
            places = pd.DataFrame(
                {
                    "user": ids * 2,
                    "query": np.repeat(["", query], 6),
                    "x": 0.0,
                    "y": np.arange(12.0),
                }
            )
            yield Update(
                1, 1, "Moved.", data={"points": places, "shift": make_shift(ids, gained, gained)}
            )

    backend = Backend()
    backend.ids = tuple(ids)
    order = [4, 0, 5, 2, 1]  # another order, and one user is missing
    lens = QueryLens(pd.DataFrame({"user": [ids[row] for row in order]}), backend)
    lens.ask(TRAVEL)
    shown = [[lens._ids[row] for row in line] for line in neighbors(lens._picture, "gained")]
    wanted = [[ids[row] for row in gained[place] if row in order] for place in order]
    assert shown == wanted


def test_neighbors_the_view_has_not_and_missing_ones_are_left_out():
    ids = ("a", "b", "c")
    packed = pack_shift(
        ids,
        make_shift(ids, [(0, 2), None, (1, 2, 0, 1, 2, 0)], [(1, 3), (), np.nan]),
        np.array([0, 1, 2, -1]),
    )
    assert neighbors(packed, "gained") == [[0, 2], [], [1, 2, 0, 1, 2]]
    assert neighbors(packed, "lost") == [[1], [], []]
    assert neighbors(pack_shift(ids, None, np.arange(3)), "gained") == [[], [], []]


def test_a_text_that_holds_a_dot_stays_one_event():
    texts = ("paid 3.10 · tea", "a, b", " · ")
    frame = pd.DataFrame({"user": ["a", "b", "c"], "recent": [texts, (), None]})
    packed, _, _ = pack_users(frame)
    assert [recent for _, _, recent in packed["texts"]] == [list(texts), [], []]
    comparison = fake_compare()
    users = comparison["before"]["user"]
    view = ClusterView(comparison, pd.DataFrame({"user": users[:2], "recent": [texts, ("x",)]}))
    assert view._picture["recent"][:3] == [list(texts), ["x"], []]


def test_recent_events_come_back_from_parquet(tmp_path):
    frame = make_frame(20)
    frame.to_parquet(tmp_path / "users.parquet")
    assert pack_users(pd.read_parquet(tmp_path / "users.parquet"))[0] == pack_users(frame)[0]


@given(st.lists(st.text()), st.integers(0, 50))
def test_texts_are_cut_only_where_the_room_ends(texts, room):
    limited = limit_length(texts, room)
    joined = "".join(texts)[:room]
    assert "".join(limited) == joined
    assert all(long.startswith(short) for long, short in zip(texts, limited, strict=False))
    assert all(long == short for long, short in zip(texts, limited[:-1], strict=False))


def test_long_events_are_cut_for_each_user():
    frame = pd.DataFrame({"user": ["a", "b"], "recent": [("x" * 500, "y" * 500), ("z" * 2_000,)]})
    texts = [recent for _, _, recent in pack_users(frame)[0]["texts"]]
    assert [sum(map(len, recent)) for recent in texts] == [
        MAX_RECENT_LENGTH,
        MAX_RECENT_LENGTH,
    ] and len(texts[0]) == 2


def test_a_timeline_comes_back_from_its_bytes():
    days = ["2025-01-01 00:00:59", "2025-01-01 08:30", "2025-03-02"]
    frame = pd.DataFrame({"time": pd.to_datetime(days, format="ISO8601")})
    frame = frame.assign(modality=["b", "a", "b"], text=["tea", "x" * 999, "tea"])
    packed = pack_timeline(frame.assign(evidence=[True, False, True]))
    minutes = np.frombuffer(packed["time"], np.int32)
    assert pd.to_datetime(minutes, unit="m").astype(str).str[:16].tolist() == [
        "2025-01-01 00:00",
        "2025-01-01 08:30",
        "2025-03-02 00:00",
    ]
    names = [packed["modalities"][place] for place in np.frombuffer(packed["modality"], np.int32)]
    assert names == ["b", "a", "b"]
    texts = [packed["texts"][place] for place in np.frombuffer(packed["text"], np.int32)]
    assert texts == ["tea", "x" * MAX_EVENT_LENGTH, "tea"] and len(packed["texts"]) == 2
    assert list(packed["evidence"]) == [1, 0, 1] and packed["total"] == [3, 2]
    assert np.frombuffer(packed["weight"], np.float32).tolist() == [0, 0, 0]
    weighed = pack_timeline(frame.assign(evidence=[True, False, True], weight=[0.5, None, -2]))
    assert np.frombuffer(weighed["weight"], np.float32).tolist() == [0.5, 0, -2]
    nothing = pack_timeline(frame.assign(evidence=False)[:0])
    assert nothing["total"] == [0, 0] and nothing["time"] == b""


def test_of_a_long_log_the_newest_events_are_sent_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(packing, "MAX_TIMELINE_EVENTS", 2)
    times = pd.date_range("2025-01-01", periods=5)
    frame = pd.DataFrame({"time": times, "modality": "a", "text": list("abcde")})
    packed = pack_timeline(frame.assign(evidence=[True, True, False, False, True]))
    assert packed["texts"] == ["d", "e"] and list(packed["evidence"]) == [0, 1]
    assert packed["total"] == [5, 3]


def test_all_timelines_span_the_days_of_all_users():
    frame = pd.DataFrame({"user": ["a", "b", "c"], "first": ["2025-01-05", "2025-01-02", None]})
    frame = frame.assign(last=["2025-02-01", "2025-02-03", None])
    assert pack_users(frame)[0]["span"] == ["2025-01-02", "2025-02-03"]
    assert pack_users(frame[["user"]])[0]["span"] == ["", ""]


@pytest.mark.parametrize(("units", "word"), [(None, "users"), ("households", "households")])
def test_views_call_users_as_the_back_end_does(units, word):
    backend = FakeLens(60, seconds=0)
    backend.unit, backend.units = "household", units
    lens = QueryLens(make_frame(60), backend)
    assert repr(lens) == f"QueryLens(60 {word}, query='')" and lens._about["units"] == word
    lens.ask(TRAVEL)
    lens.selection.ids = ["u0001", "u0002"]
    assert repr(lens.selection) == f"Selection(2 of 60 {word})"
    card = lens.result_card()
    assert card.units == word and card.more["selected"].startswith(f"2 {word}, on average")
    assert f"60 {word}" in replace(card, value=0.5)._repr_mimebundle_()["text/html"]
    comparison = {**fake_compare(), "unit": "household", "units": units}
    view = ClusterView(comparison)
    assert repr(view) == f"ClusterView(600 {word}, 4 clusters before, 5 after)"
    assert repr(view.selection) == f"Selection(0 of 600 {word})"


def test_the_panel_calls_users_as_the_selection_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = tuple("abc")
    selection = Selection(ids, lambda rows: None, unit="family", units="families")
    panel = SelectionPanel(selection, export=lambda ids, path, least, salt: path)
    selection.ids = "a"
    panel.save("one")
    assert repr(panel) == "SelectionPanel(1 of 3 families selected, 1 named)"
    assert panel.sentence == "1 of 3 families selected."
    assert "one: 1 family<" in panel.to_html().data
    panel._on_message(panel, {"type": "export", "ending": "csv"}, [])
    assert panel._status["note"] == "Written: one.csv, 1 family, beside this notebook."
    panel._on_message(
        panel, {"type": "combine", "first": "one", "how": "unite", "second": "one"}, []
    )
    assert panel._status["note"] == "one | one: 1 family."
    assert (panel._about["unit"], panel._about["units"]) == ("family", "families")
    with pytest.raises(ValueError, match=r"^1 of 3 families selected, at least 10 are needed"):
        panel.result_card()


def test_an_old_card_without_a_plural_still_opens(tmp_path):
    card = ResultCard("Half of them.", metric="share", value=0.5, n=2_000, unit="family")
    assert "2,000 users" in card._repr_mimebundle_()["text/html"]
    assert "1 family<" in replace(card, n=1)._repr_mimebundle_()["text/html"]
    page = (
        card._page()
        .replace('"format": 3', '"format": 2')
        .replace(', "units": "users"', "")
        .replace('id="result-card"', 'id="claim"')
    )
    from qanchor.widgets.result_card import sha256

    path = tmp_path / "old.html"
    path.write_text(page.replace("0" * 64, sha256(page)))
    assert ResultCard.load(path) == card


def test_the_matrix_says_the_plural():
    class Backend:
        ids, queries, groups = ("a", "b", "c"), ("Why?",), {"some": ("a",)}
        unit, units = "family", "families"

    assert QueryMatrixView(Backend())._about["units"] == "families"
