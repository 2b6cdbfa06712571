"""The tour of the workbench: what it tells, that it is seen once, and that the session alone
remembers it.
"""

import json
import re

import pytest
from fake_session import FakeSession

from qanchor.widgets import Workbench
from qanchor.widgets.tour import Tour, tour_steps


def test_it_tells_of_the_pages_that_are_there_in_half_a_minute():
    steps = tour_steps(Workbench(FakeSession()).titles)
    words = " ".join(f"{step.title} {step.words}" for step in steps).split()
    assert 4 <= len(steps) <= 6 and len(words) <= 30 / 60 * 250  # read at 250 words a minute
    assert re.findall(r"^(\w+):", steps[-2].words, re.M) == [
        "Attention",
        "Matrix",
        "Clusters",
        "Tune",
    ]
    bare = FakeSession()
    bare.tuning = None
    assert re.findall(r"^(\w+):", tour_steps(Workbench(bare).titles)[-2].words, re.M) == [
        "Attention",
        "Matrix",
        "Clusters",
    ]
    assert [step.title for step in tour_steps(("Users", "Group"))] == [
        "Ask",
        "See who moves",
        "Select",
        "Users and groups",
        "Keep it",
    ]


def test_it_says_itself_without_a_script():
    tour = Tour(("Users", "Group", "Tune"))
    assert repr(tour) == "Tour(6 steps)" and "<script" not in tour.to_html().data
    assert all(title in tour.to_html().data for title in ("Ask.", "Keep it.", "Tune:"))


def test_only_a_new_session_begins_with_it_and_remembers_it(tmp_path):
    path = tmp_path / "mine.json"
    assert Workbench(
        FakeSession()
    )._tour.seen  # where nothing can be remembered it waits for its button
    bench = Workbench(FakeSession(), session=path)
    assert not bench._tour.seen and not path.exists()
    bench.save()
    assert json.loads(path.read_text())["toured"] is False
    assert not Workbench(FakeSession(), session=path)._tour.seen
    bench._tour.seen = True  # as the browser says
    assert json.loads(path.read_text())["toured"] is True
    assert Workbench(FakeSession(), session=path)._tour.seen


@pytest.mark.parametrize("toured", [1, "yes", None])
def test_a_strange_mark_is_no_reason_to_fail(tmp_path, toured):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"format": 1, "queries": [], "chosen": [], "named": {}, "toured": toured})
    )
    assert Workbench(FakeSession(), session=path)._tour.seen is bool(toured)


def test_a_session_from_before_there_were_tours_is_nobodys_first_use(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"format": 1, "queries": [], "chosen": ["u0001"], "named": {}}))
    assert Workbench(FakeSession(), session=path)._tour.seen
