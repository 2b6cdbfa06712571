"""What is printed on stderr: which stage of how many, and messages."""

from qanchor.cli import interrupted_message, print_below_bars
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


def test_who_goes_on_after_a_stop():
    assert {interrupted_message(c) for c in ("fit", "train", "embed", "generate-pairs")} == {
        "Interrupted. Run the same command to resume."
    }
    assert {interrupted_message(c) for c in ("tune-prompt", "make-pairs", "ask", "probe", "")} == {
        "Interrupted. Run the command again to start over."
    }
