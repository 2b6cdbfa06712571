"""What is told on stderr: which phase of how many, how long all that is left takes as soon as that
is known, and warnings.
"""

import re
from types import SimpleNamespace

import pytest

from qanchor.cli import interrupted_message, print_below_bars, warn_if_busy
from qanchor.config import MEDIUM, SMALL, TINY
from qanchor.training.trainer import training_stages
from qanchor.utils import device, progress
from qanchor.utils.progress import ProgressBars, StageEta

READER = {"fitting the preprocessor": ("fitting the preprocessor", "", 0)}


@pytest.fixture
def wait(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def goes(
    course: StageEta,
    wait,
    stage: str,
    each: float,
    total: int,
    until: int | None = None,
    start: int = 0,
) -> list[str]:
    """Let a stage report every step, which takes so many seconds; gives what was told."""
    told = []
    for done in range(start + 1, (until or total) + 1):
        wait(each)
        told.append(course(stage, done, total))
    return told


def before_the_joint_steps(course: StageEta, wait) -> list[str]:
    """Ten users a second, ten texts a second, and a tenth of a second a step of the warm start."""
    told = goes(course, wait, "fitting the preprocessor", 0.1, 20) + goes(
        course, wait, "reading", 0.1, 20
    )
    return (
        told
        + goes(course, wait, "warm start, reading", 0.1, 300)
        + goes(course, wait, "warm start", 0.1, 400)
    )


def test_each_phase_has_its_number():
    assert (
        len(READER | training_stages(TINY)) == 3
        and len(READER | training_stages(SMALL)) == len(READER | training_stages(MEDIUM)) == 7
    )
    course = StageEta(READER | training_stages(SMALL))
    titles = [course.title(stage) for stage in course.stages]
    assert titles[2] == "3 of 7: reading queries and answers" and titles[4] == "5 of 7: joint steps"
    assert (
        course.opening()
        == "7 phases; how long all takes can be told from phase 5 on, the joint steps"
    )
    assert (
        course.title("something else") == "something else" and course("something else", 1, 2) == ""
    )
    resumed = StageEta(READER | training_stages(SMALL, resumed=True))
    assert (
        resumed.opening()
        == "5 phases; how long all takes can be told from phase 5 on, the last fit"
    )


def test_what_is_left_is_told_from_the_fifth_joint_step_on(wait):
    """27 joint steps of 10 s each, the 300 texts again in 30 s, and 1,600 steps of the last fit in
    160 s: 460 s.
    """
    course = StageEta(READER | training_stages(SMALL))
    assert set(before_the_joint_steps(course, wait)) == {""}
    told = goes(course, wait, "training", 10, 32)
    assert (
        told[:5] == ["", "", "", "", "about 8 min in all left"]
        and told[-1] == "about 3 min in all left"
    )
    assert goes(course, wait, "last fit, reading", 0.1, 300)[-1] == "about 3 min in all left"
    last = goes(course, wait, "last fit", 0.1, 1600)
    assert last[700] == "about 90 s in all left" and last[-2:] == ["about 10 s in all left", ""]


def test_a_slower_machine_is_told_of(wait):
    course = StageEta(READER | training_stages(SMALL))
    before_the_joint_steps(course, wait)
    goes(course, wait, "training", 10, 32)
    goes(course, wait, "last fit, reading", 0.1, 300)
    assert (
        goes(course, wait, "last fit", 1, 1600, 100)[-1] == "about 25 min in all left"
    )  # not the warm start's speed


def test_a_resumed_training_waits_for_its_last_fit(wait):
    """It has no warm start, which alone could tell what a step of the last fit takes; minutes do
    not hold it either.
    """
    for minutes in (None, 1):
        course = StageEta(READER | training_stages(SMALL, resumed=True), minutes)
        goes(course, wait, "fitting the preprocessor", 0.1, 20)
        assert set(goes(course, wait, "training", 10, 32, start=20)) == {""}
        assert set(goes(course, wait, "last fit, reading", 0.1, 300)) == {""}
        assert goes(course, wait, "last fit", 1, 1600, 700)[-1] == "about 15 min in all left"
    tiny = StageEta(READER | training_stages(TINY, resumed=True), 1)
    assert goes(tiny, wait, "training", 1, 60, start=20)[0] == "about 60 s in all left", (
        "without fits minutes hold"
    )


def test_minutes_are_told_from_the_start(wait):
    """The preprocessor comes before them; from the joint steps on less is told where less is left
    to do.
    """
    course = StageEta(READER | training_stages(SMALL), minutes=10)
    assert course.opening() == "7 phases; about 10 min after the first"
    told = before_the_joint_steps(course, wait)
    assert (
        told[0] == told[20] == "about 10 min in all left" and told[-1] == "about 9 min in all left"
    )
    told = goes(course, wait, "training", 10, 32)
    assert told[3] == "about 8 min in all left" and told[-1] == "about 3 min in all left"


def test_minutes_that_are_too_few_are_told(wait):
    """Beyond them a tenth of the last fit is left, 160 steps."""
    course = StageEta(READER | training_stages(SMALL), minutes=1)
    told = before_the_joint_steps(course, wait)
    assert (
        told[400] == "about 20 s in all left" and told[-1] == "beyond the 1 min, as short as can be"
    )
    told = goes(course, wait, "training", 10, 6)
    assert (
        told[3] == "beyond the 1 min, as short as can be" and told[-1] == "about 50 s in all left"
    )
    assert goes(course, wait, "last fit, reading", 0.1, 300)[-1] == "about 20 s in all left"
    assert goes(course, wait, "last fit", 0.1, 160, 10)[-1] == "about 20 s in all left"


def test_texts_read_in_one_go_tell_enough(wait):
    course = StageEta(READER | training_stages(SMALL))
    wait(7)
    course("warm start, reading", 8, 8)
    goes(course, wait, "warm start", 0.1, 400)
    assert goes(course, wait, "training", 1, 32)[-1] == "about 3 min in all left"  # 7 + 160 s


def test_bars_say_phase_time_and_loss(wait, capsys):
    show = ProgressBars(StageEta(READER | training_stages(TINY)))
    show("fitting the preprocessor", 25, 25)
    for done in range(1, 6):
        wait(10)
        show("training", done, 60, 1.5)
    show.close()
    told = capsys.readouterr()
    lines = re.split(r"[\r\n]+", told.err)
    assert (
        told.out == ""
        and lines[0] == "3 phases; how long all takes can be told from phase 3 on, the joint steps"
    )
    assert any(line.startswith("1 of 3: fitting the preprocessor 25/25 ") for line in lines)
    assert any(line.startswith("3 of 3: joint steps 1/60 ") for line in lines), (
        "the first step is shown at once"
    )
    assert re.search(
        r"3 of 3: joint steps 5/60 \[\d\d:\d\d, about 9 min in all left, loss 1.50\]", lines[-2]
    )


def test_bars_without_a_course_say_the_stage(capsys):
    show = ProgressBars()
    show("tuning", 3, 9)
    show.close()
    told = capsys.readouterr().err
    assert "tuning: 3/9 " in told and "it/s" not in told, (
        "a rate of the first report would be absurd"
    )


def test_print_below_bars_have_a_line_of_their_own(capsys):
    show = ProgressBars()
    show("asking users", 3, 9)
    print_below_bars("error: no more")
    told = capsys.readouterr()
    assert told.err.endswith("\nerror: no more\n") and told.out == ""


def test_a_busy_machine_is_warned_of_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(device, "_available_processors", lambda: 2)
    monkeypatch.setattr(device, "_others_running", lambda: True)
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: 2)
    for load, lines in ((0.2, 0), (3.1, 1)):
        monkeypatch.setattr(device.os, "getloadavg", lambda load=load: (load, 0, 0))
        warn_if_busy()
        told = capsys.readouterr()
        assert (
            told.out == ""
            and told.err.count("\n") == told.err.count("warning: 3.1 programs ran on 2") == lines
        )


def test_who_goes_on_after_a_stop():
    assert (
        interrupted_message("train")
        == "Interrupted. Add --resume to continue from the last checkpoint."
    )
    assert {interrupted_message(c) for c in ("embed", "make-pairs", "generate-pairs")} == {
        "Interrupted. Run the same command to resume."
    }
    assert {interrupted_message(c) for c in ("tune-prompt", "ask", "probe", "")} == {
        "Interrupted. Run the command again to start over."
    }
