"""The cluster view in Python: what it sends, chooses, refuses, and says without a kernel."""

import numpy as np
import pandas as pd
import pytest
from fake import HOSTILE, make_frame
from fake_clusters import MOVES, fake_compare

from qanchor.widgets import ClusterView
from qanchor.widgets.clusters import MAX_COLORED, color_slots


def ints(data):
    return np.frombuffer(data, dtype=np.int32)


def test_what_is_drawn_is_what_was_given():
    comparison = fake_compare()
    view = ClusterView(comparison, make_frame())
    p = view._picture
    assert repr(view) == "ClusterView(600 users, 4 clusters before, 5 after)"
    np.testing.assert_array_equal(ints(p["from"]), comparison["before"]["cluster"])
    np.testing.assert_array_equal(ints(p["to"]), comparison["after"]["cluster"])
    after = comparison["points"].query("query == 'after'")[["x", "y"]].to_numpy(np.float32)
    np.testing.assert_array_equal(np.frombuffer(p["after"], np.float32).reshape(-1, 2), after)
    assert [node["users"] for node in p["left"]] == [165, 124, 64, 38, 209]
    assert [node["unstable"] for node in p["right"]] == [False, False, False, True, False, False]
    assert [(b["from"], b["to"], b["users"], b["kind"]) for b in p["bands"]] == MOVES
    assert [mark[2] for mark in p["marks"]] == ["yes", "no <b>"]
    assert p["scores"][1]["auc"] == 0.781
    assert len(p["recent"]) == 600
    assert HOSTILE in p["recent"][0]
    assert len(view.table) == len(MOVES)
    assert view.sentence.startswith("4 clusters became 5")


def test_users_may_stand_in_any_order_in_every_frame():
    comparison = fake_compare()
    mixed = dict(comparison)
    for name in ("points", "after", "transitions", "names"):
        mixed[name] = comparison[name].sample(frac=1, random_state=1)
    picture = ClusterView(comparison)._picture
    other = ClusterView(mixed)._picture
    for part in ("from", "to", "before", "after", "trust", "left", "right"):
        assert picture[part] == other[part], part


def test_heirs_keep_the_colour_and_no_colour_stands_twice():
    comparison = fake_compare()
    clusters = [comparison[side]["cluster"] for side in ("before", "after")]
    before, after = color_slots(*clusters, comparison["transitions"])
    assert before == {0: 0, 1: 1, 2: 2, 3: 3}
    # the larger heir of a split, and the larger parent of a merge
    assert after == {0: 1, 1: 0, 2: 2, 4: 4, 3: 5}
    many = pd.Series(np.repeat(np.arange(12), np.arange(12, 0, -1)))
    numbers = range(12)
    transitions = pd.DataFrame({"from_cluster": numbers, "to_cluster": numbers, "kind": "stays"})
    transitions["users"] = range(12, 0, -1)
    before, after = color_slots(many, many, transitions)
    assert list(after) == list(range(MAX_COLORED))
    assert before == after


def test_the_selection_is_read_and_set_on_both_sides():
    view = ClusterView(fake_compare())
    view._on_message(view, {"type": "select"}, [np.array([5, 2, 999], dtype=np.int32).tobytes()])
    assert view.selection.ids == ("u0002", "u0005")
    view.selection.ids = ["u0007"]
    assert ints(view._selected).tolist() == [7]
    chosen = view.selection
    view.show(fake_compare(scores=False))
    assert view.selection is chosen
    assert view.selection.ids == ("u0007",)
    assert view._picture["turn"] == 2
    view.show(fake_compare(many=2))
    assert len(view._ids) == 1200
    assert view.selection.ids == ()
    assert ints(view._selected).size == 0


def test_plain_frames_are_enough():
    whole = fake_compare()
    comparison = {name: whole[name] for name in ("points", "before", "after", "transitions")}
    comparison["points"] = comparison["points"].query("query != 'mark'").drop(columns="trust")
    view = ClusterView(comparison)
    assert view._picture["left"][0]["name"] == "cluster 0"
    assert view._picture["left"][0]["stability"] is None
    assert view._picture["scores"] == view._picture["marks"] == []
    assert "cluster 0" in view.to_html().data


def test_frames_saved_and_read_again_draw_the_same(tmp_path):
    comparison = fake_compare()
    again = dict(comparison)
    path = tmp_path / "frame.parquet"
    for name, value in comparison.items():
        if isinstance(value, pd.DataFrame):
            value.to_parquet(path)
            again[name] = pd.read_parquet(path)
    assert ClusterView(comparison)._picture == ClusterView(again)._picture


def test_a_still_picture_needs_no_script_and_escapes_text():
    view = ClusterView(fake_compare())
    page = view._repr_mimebundle_()[0]["text/html"]
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "data:image/svg+xml;base64," in page
    assert "split" in page
    assert "AUC 0.781" in page
    assert len(page) < 60_000
    assert view._repr_mimebundle_()[0]["text/plain"] == repr(view)


def test_payloads_are_small():
    view = ClusterView(fake_compare(many=4))
    numbers = [part for part in view._picture.values() if isinstance(part, bytes)]
    assert sum(map(len, numbers)) == 2400 * (4 * 2 * 2 + 4 + 2 * 4)
    assert len(view._esm.encode()) < 50_000
    assert len(view._css.encode()) < 20_000


def test_what_does_not_fit_is_refused():
    comparison = fake_compare()
    with pytest.raises(ValueError, match="u0000 stands not once"):
        ClusterView(comparison | {"after": comparison["after"][1:]})
    del comparison["transitions"]
    with pytest.raises(ValueError, match="no 'transitions'"):
        ClusterView(comparison)


def test_there_may_be_no_clusters():
    comparison = fake_compare()
    for side in ("before", "after"):
        comparison[side]["cluster"] = -1
    band = {"from_cluster": -1, "to_cluster": -1, "users": 600, "kind": "stays"}
    comparison["transitions"] = pd.DataFrame([band])
    comparison["names"] = comparison["names"][:0]
    view = ClusterView(comparison)
    assert repr(view) == "ClusterView(600 users, 0 clusters before, 0 after)"
    assert view.to_html().data
