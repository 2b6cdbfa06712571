"""The attention view in Python: what it sends, keeps, cancels, refuses, and says where no script
may run.
"""

import time
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from fake import HOSTILE
from fake_attention import MODALITIES, FakeAttention, make_table
from updates import Update

from qanchor.widgets import AttentionView
from qanchor.widgets.base import Selection
from tests.waiting import until

TRAVEL = "Will this user travel soon?"
PRICE = "Is this user price-conscious?"


def make_view(**rest):
    backend = FakeAttention(users=20, seconds=0.02)
    return AttentionView(backend, **rest), backend


def shown(*tables, caption=""):
    """A view that shows these tables."""
    view, backend = make_view()
    update = Update(1, 1, "Said.", caption, data={"table": pd.concat(tables)})
    backend._updates = lambda queries, users: iter([update])
    view.look("any")
    return view


def press(view, kind, **rest):
    view._on_message(view, {"type": kind, **rest}, [])


def ended(view):
    until(lambda: not view._status.get("busy"))


def column(picture, side, name):
    return np.frombuffer(picture["sides"][side][name], dtype=np.float32)


def test_looking_fills_the_frame_and_the_picture():
    view, backend = make_view()
    sentence = view.look(f" {TRAVEL} ")
    assert sentence == view.sentence
    assert backend.calls == [(TRAVEL, None, None)]
    pd.testing.assert_frame_equal(view.table, make_table(TRAVEL))
    picture = view._picture
    assert picture["names"][:2] == ["bill", "mini"]
    row = view.table.query("modality == 'app'").iloc[0]
    at = picture["names"].index("app")
    for name in ("weight", "per_token", "tokens", "disagrees", "deletion_effect"):
        assert column(picture, 0, name)[at] == pytest.approx(float(row[name]))
    assert column(picture, 0, "agreement").tolist() == pytest.approx([row["agreement"]])
    assert np.isnan(column(picture, 0, "deletion_effect")[-1])


def test_two_queries_one_of_which_has_a_row_of_its_own():
    view = shown(make_table(TRAVEL), make_table(PRICE, modalities=MODALITIES[1:]))
    assert [side["query"] for side in view._picture["sides"]] == [TRAVEL, PRICE]
    at = view._picture["names"].index("bill")
    assert column(view._picture, 0, "weight")[at] > 0
    assert np.isnan(column(view._picture, 1, "weight")[at])
    assert repr(view) == f"AttentionView(query='{TRAVEL}', versus='{PRICE}', 8 rows)"


def test_the_repr_says_the_content_and_is_the_same_each_time():
    first = make_view()[0]._repr_mimebundle_()[0]
    second = make_view()[0]._repr_mimebundle_()[0]
    assert first["text/plain"] == second["text/plain"] == "AttentionView(20 users, not asked yet)"
    assert first["text/html"] == second["text/html"]
    view, _ = make_view()
    view.look(TRAVEL)
    assert repr(view) == f"AttentionView(query='{TRAVEL}', 8 rows)"


def test_a_static_page_needs_no_script_and_escapes_text():
    modalities = (HOSTILE, "app", "search")
    frame = make_table(HOSTILE, modalities=modalities)
    view = shown(frame, caption="<i>of</i> 9 users")
    page = view._repr_mimebundle_()[0]["text/html"]
    assert view.to_html().data == page
    assert "<script" not in page
    assert page.count("<img") == 1
    assert "data:image/svg+xml;base64," in page
    assert len(page) < 20_000
    row = frame.query("modality == 'app'").iloc[0]
    share = f"{100 * row['weight']:.1f} %"
    effect = f"{row['deletion_effect']:.3f}"
    for words in ("&lt;script&gt;", "&lt;i&gt;of", "Said.", share, effect):
        assert words in page
    unknown = shown(frame.assign(deletion_effect=np.nan)).to_html().data
    before, rest = unknown.split("base64,")
    picture, after = rest.split('"', 1)
    for part in (before, b64decode(picture).decode(), after):
        assert "nan" not in part
    both = shown(frame, make_table("b", modalities=modalities)).to_html().data
    assert "A minus B" in both
    assert "A: &lt;img" in both


def test_attention_is_there_before_deletion_is():
    view, _ = make_view()
    seen = []
    view.observe(
        lambda change: seen.append(column(change["new"], 0, "deletion_effect")), "_picture"
    )
    view.look(TRAVEL)
    assert np.isnan(seen[0]).all()
    assert np.isfinite(seen[-1]).sum() == len(MODALITIES)


def test_the_browser_asks_and_the_message_loop_stays_free():
    view, backend = make_view()
    backend.seconds = 0.3
    began = time.monotonic()
    press(view, "look", query=TRAVEL, versus=PRICE, scope="all")
    assert time.monotonic() - began < 0.1
    until(lambda: view._status.get("done", 0) > 0)
    assert view._status["busy"]
    assert view._status["message"].startswith("Looked at")
    ended(view)
    assert backend.calls == [(TRAVEL, PRICE, None)]
    assert len(view._picture["sides"]) == 2


def test_cancel_closes_the_work_and_keeps_the_last_table():
    view, backend = make_view()
    press(view, "look", query="slow")
    until(lambda: view._picture.get("sides"))
    press(view, "cancel")
    ended(view)
    assert backend.closed == 1
    assert "names" not in view._picture
    assert view._status["note"] == "Cancelled."
    view.look(TRAVEL)
    kept = view._picture["sides"]
    press(view, "look", query="slow")
    until(lambda: view._picture["sides"][0]["query"] == "slow")
    press(view, "cancel")
    ended(view)
    assert view._picture["sides"] == kept
    assert "The table is as it was" in view._status["note"]
    assert backend.closed == 3


def test_an_error_is_said_in_the_view_and_in_the_log(caplog):
    view, backend = make_view(selection=Selection((), lambda rows: None))
    view.look(TRAVEL)
    kept = view._picture["sides"]
    for message, words in (
        ({"query": "fail"}, "the checkpoint has no such layer"),
        ({"query": " "}, "the query is empty"),
        ({"query": TRAVEL, "scope": "one", "user": "zoe"}, "user 'zoe' is not among the 20"),
        ({"query": TRAVEL, "scope": "one", "user": " "}, "no user is named"),
        ({"query": TRAVEL, "scope": "selection"}, "no users selected"),
    ):
        press(view, "look", **message)
        until(lambda words=words: words in view._status.get("error", ""))
        assert "Traceback" in caplog.text
        assert view._picture["sides"] == kept
        caplog.clear()
    with pytest.raises(ValueError, match="no such layer"):
        view.look("fail")
    assert view.look(PRICE)
    assert not view._status.get("error")
    with pytest.raises(ValueError, match="gave no table"):
        backend._updates = lambda queries, users: iter([])
        view.look("q")


def test_the_chosen_of_another_view_are_looked_at_when_asked():
    chosen = Selection(tuple(f"u{i:04}" for i in range(20)), lambda rows: None)
    view, backend = make_view(selection=chosen)
    chosen.ids = ["u0004", "u0002"]
    press(view, "look", query=TRAVEL, scope="selection")
    until(lambda: view.sentence)
    assert backend.calls == [(TRAVEL, None, ["u0002", "u0004"])]
    assert view._events == {}


def test_views_of_one_model_take_turns():
    chosen = Selection((), lambda rows: None)
    view, _ = make_view(selection=chosen)
    assert view._worker.turn is chosen.turn


def test_one_user_is_described_and_edited():
    view, backend = make_view()
    press(view, "look", query=TRAVEL, scope="one", user="u0003")
    until(lambda: view.sentence)
    assert view._events["user"] == "u0003"
    assert view._events["total"] == 12
    assert view._events["rows"][0] == [900, "2025-05-30 18:20", "bill", HOSTILE]
    reword = {"899": "paid less"}
    press(view, "rerun", query=TRAVEL, user="u0003", drop=[900], reword=reword)
    until(lambda: view.edited)
    assert backend.calls[-1] == (TRAVEL, "u0003", (900,), {899: "paid less"})
    answers = {"before": "Likely to travel.", "after": "Unlikely <b>to travel</b>."}
    assert view.edited == view._picture["edited"] == {"moved": 0.0134, **answers}
    assert view._picture["user"] == "u0003"
    assert view._picture["sides"][0]["query"] == f"{TRAVEL} (edited)"
    assert view.rerun(TRAVEL, "u0003", drop=[898]).startswith("Without 1 events")


def test_payloads_are_small():
    view, backend = make_view()
    view.look(TRAVEL, PRICE)
    for side in view._picture["sides"]:
        numbers = [value for value in side.values() if isinstance(value, bytes)]
        assert sum(map(len, numbers)) == 4 * (8 * 6 + 2)
    assert len(view._esm.encode()) < 50_000
    assert len(view._css.encode()) < 25_000
    many = AttentionView(backend, users=pd.DataFrame({"user": range(6_000)}))
    assert many._about["users"] == 6_000
    assert many._about["ids"] == []
