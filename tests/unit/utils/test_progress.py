"""What is printed on stderr: which stage of how many, and warnings."""

from qanchor.cli import interrupted_message, print_below_bars, warn_if_busy
from qanchor.utils import device
from qanchor.utils.progress import ProgressBars


def test_bars_say_the_stage(capsys):
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
    assert {interrupted_message(c) for c in ("fit", "train", "embed", "generate-pairs")} == {
        "Interrupted. Run the same command to resume."
    }
    assert {interrupted_message(c) for c in ("tune-prompt", "make-pairs", "ask", "probe", "")} == {
        "Interrupted. Run the command again to start over."
    }
