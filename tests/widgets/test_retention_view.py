"""The retention view: it follows the selection, and says what it cannot count."""

from types import SimpleNamespace

import pandas as pd
import pytest

from qanchor.widgets import RetentionView
from qanchor.widgets.base import Selection
from tests.waiting import until


def update(ids, label: str) -> SimpleNamespace:
    """Make an update of the selected users beside the rest, or of all."""
    sides = ["all"] if ids is None else ["group", "rest"]
    rows = [
        {
            "side": side,
            label: place,
            "users": 10,
            "active": 5,
            "share": 0.5,
            "low": 0.3,
            "high": 0.7,
        }
        for side in sides
        for place in range(2)
    ]
    frame = pd.DataFrame(rows)
    frame.attrs["period_days"] = 7
    return SimpleNamespace(message=f"{label}: {ids}", data={"frame": frame})


def funnel(ids, steps) -> SimpleNamespace:
    if len(steps) < 2:
        raise ValueError("There are 1 steps.")
    return update(ids, "step")


@pytest.fixture
def selection() -> Selection:
    return Selection(("a", "b", "c"), lambda rows: None)


@pytest.fixture
def view(selection) -> RetentionView:
    return RetentionView(selection, lambda ids: update(ids, "period"), funnel, ["view", "pay"])


def test_it_follows_the_selection(view, selection):
    until(lambda: view._curve.get("sentence") == "period: None")
    assert view._curve["days"] == 7 and {row["side"] for row in view._curve["rows"]} == {"all"}
    selection.ids = ["a", "c"]
    until(lambda: view._curve["sentence"] == "period: ('a', 'c')")
    assert {row["side"] for row in view._curve["rows"]} == {"group", "rest"}
    selection.ids = ["a", "b", "c"]  # everybody has no rest
    until(lambda: view._curve["sentence"] == "period: None")


def test_a_funnel_that_was_typed_follows_the_selection(view, selection):
    view._on_message(view, {"type": "funnel", "text": " view , pay "}, [])
    until(lambda: view._steps.get("text") == "view -> pay")
    selection.ids = ["b"]
    until(lambda: view._steps["sentence"] == "step: ('b',)")
    assert len(view._steps["rows"]) == 4


def test_what_is_no_funnel_is_told_and_the_text_stays(view):
    view._on_message(view, {"type": "funnel", "text": "view"}, [])
    until(lambda: "error" in view._steps)
    assert view._steps == {"error": "No funnel: There are 1 steps.", "text": "view"}
    with pytest.raises(ValueError, match="There are 1 steps"):
        view.show_funnel(["view"])


def test_without_a_script_it_is_a_table(view):
    view.show_retention()
    page = view._html()
    assert "period: None" in page and "50%" in page
    assert repr(view) == "RetentionView(0 of 3 users selected)"


def test_a_funnel_follows_the_selection_even_if_nothing_can_be_counted_over_time(selection):
    def too_short(ids):
        raise ValueError("too short a history")

    view = RetentionView(selection, too_short, funnel)
    assert "It could not be counted: too short a history" in view._html()
    view.show_funnel(["a, b", "c"])
    assert view._steps["text"] == "a, b -> c"
    selection.ids = ["b"]
    until(lambda: view._steps.get("sentence") == "step: ('b',)")
