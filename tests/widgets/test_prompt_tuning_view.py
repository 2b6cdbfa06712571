"""The prompt tuning view in Python: what it starts, stops, cancels, keeps and saves, and its
errors.
"""

import json
import time

import pytest
from fake import HOSTILE
from fake_tuning import FakeTuning

from qanchor.widgets import PromptTuningView
from qanchor.widgets.prompt_tuning import result_rows, slug
from tests.waiting import until

VAGUE = "Is this user interesting for us?"


def make_view(seconds=0.05, **rest):
    backend = FakeTuning(seconds)
    return PromptTuningView(backend, **rest), backend


def press(view, kind, **rest):
    view._on_message(view, {"type": kind, **rest}, [])


def ended(view):
    until(lambda: not view._status.get("busy"))


def test_tuning_fills_the_frames_the_curve_and_the_table():
    view, backend = make_view()
    sentence = view.tune("Takeout", f" {VAGUE} ", steps=40, seed=2)
    assert sentence == view.sentence
    assert "a gain of .057, beyond chance" in sentence
    assert backend.calls == [(VAGUE, "Takeout", 6, 40, 2)]
    assert backend.closed == 1
    assert view.history.step.tolist() == [0, 10, 20, 30, 40] == view._curve["step"]
    best = int(view.history.step[view.history.valid.idxmin()])
    assert view.prompt == f"prompt of step {best}"
    assert view._curve["best"] == best
    assert view._curve["loss"][0] is None
    assert list(view.result) == ["measure", "before", "after", "gain", "low", "high"]
    assert [row["name"] for row in view._result["rows"]] == ["AUC", "KS", "silhouette"]
    assert view._result["caption"].startswith("6 vectors, 40 steps, ")
    assert "Judged on 300 held-out users (108" in view._result["caption"]
    for trait in (view._curve, view._result, view._status, view._form):
        json.dumps(trait, allow_nan=False)  # a browser reads no NaN
    assert not view._status.get("busy")
    assert view._status["seconds_per_step"] > 0


def test_the_form_opens_with_the_backends_defaults():
    view, backend = make_view(query=VAGUE)
    assert view._form == {"label": "Takeout", "query": VAGUE, "vectors": 6, "steps": 60, "seed": 0}
    assert view._about["paper"] == {"vectors": 6, "steps": 500}
    assert view._about["labels"] == list(backend.labels)
    assert PromptTuningView(backend, label="Luck", steps=9)._form["steps"] == 9
    with pytest.raises(ValueError, match="no label 'Nope': there are Takeout"):
        PromptTuningView(backend, label="Nope")
    backend.labels = ()
    with pytest.raises(ValueError, match="0 labels to choose from"):
        PromptTuningView(backend)


@pytest.mark.parametrize(
    ("label", "side", "verdict"),
    [("Takeout", 1, "beyond"), ("Luck", 0, "within chance"), ("Concert", -1, "a loss")],
)
def test_a_gain_whose_interval_holds_zero_is_called_none(label, side, verdict):
    row = result_rows(FakeTuning.result(label))[0]
    assert row["side"] == side
    assert verdict in row["verdict"]
    assert row["ends"] == sorted(row["ends"])
    assert row["gain"][0] in "+−"
    assert " to " in row["interval"]


def test_the_repr_says_the_content_and_the_still_needs_no_script():
    view, _ = make_view()
    assert repr(view) == "PromptTuningView(6 labels)"
    first = view._repr_mimebundle_()[0]
    second = make_view()[0]._repr_mimebundle_()[0]
    assert first["text/html"] == second["text/html"]
    assert "run the cell" in first["text/html"]
    view.tune(HOSTILE, f"Is {HOSTILE} real?")
    page = view._repr_mimebundle_()[0]["text/html"]
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "within chance" not in page
    assert view.sentence in page
    assert "+.057" in page
    assert repr(view).startswith("PromptTuningView(6 labels, tuned on '<img")
    assert view.to_html().data == page


def test_starting_from_the_browser_leaves_the_message_loop_free():
    view, backend = make_view(seconds=0.5)
    began = time.monotonic()
    press(view, "tune", label="Concert", query="", vectors="4", steps="20", seed="7")
    assert time.monotonic() - began < 0.1
    until(lambda: view._status.get("done", 0) > 5)
    assert view._status["busy"]
    assert view._status["seconds_left"] > 0
    press(view, "tune", label="Luck")  # one at a time: this one is not begun
    ended(view)
    assert backend.calls == [("", "Concert", 4, 20, 7)]
    assert view._form["steps"] == 20
    assert "worse" in view.sentence


def test_stop_and_keep_judges_and_keeps_the_best_so_far():
    view, _ = make_view()
    press(view, "tune", label="slow", steps=60)
    until(lambda: view._status.get("done", 0) >= 12)
    press(view, "stop")
    assert view._status["stopping"]
    ended(view)
    reached = view._last_run.update.done
    assert 12 <= reached < 60
    assert f"ended after step {reached} of 60" in view._result["caption"]
    assert view.prompt
    assert view.history.step.max() <= reached
    assert not view._status.get("stopping")
    view.tune("Luck", steps=30)  # the next one is not stopped by it
    assert view._last_run.update.done == 30


def test_cancel_keeps_nothing_and_brings_the_last_result_back():
    view, backend = make_view()
    view.tune("Takeout")
    before = (view._curve, view._result, view.prompt)
    press(view, "tune", label="slow")
    until(lambda: view._status.get("done", 0) >= 2)
    assert view._curve["step"] == [0]
    press(view, "cancel")
    ended(view)
    assert (view._curve, view._result, view.prompt) == before
    assert backend.closed == 2
    assert view._status["note"] == "Cancelled, nothing was kept. What was there before is back."


def test_an_error_is_said_in_the_view_and_in_the_log(caplog):
    view, _ = make_view()
    view.tune("Takeout")
    kept = view._result
    press(view, "tune", label="fail")
    until(lambda: view._status.get("error"))
    memory = "out of memory: 300 users need 2.1 GB, 1.9 are free"
    assert view._status["error"] == f"Tuning on “fail” failed: {memory}"
    assert "Traceback" in caplog.text
    assert view._result == kept
    assert view._curve["steps"] == 60
    with pytest.raises(RuntimeError, match="out of memory"):
        view.tune("fail")
    for form, words in (
        ({"steps": ""}, "steps is empty"),
        ({"vectors": "99"}, "vectors is 99"),
        ({"label": "x"}, "no label 'x'"),
    ):
        press(view, "tune", **form)
        assert words in view._status["error"]
        assert not view._status.get("busy")
    with pytest.raises(ValueError, match="steps is 0: give a whole number from 1 to 5,000"):
        view.tune("Takeout", steps=0)
    assert view.tune("Luck")
    assert not view._status.get("error")
    view._backend = lambda *a, **k: iter([])
    with pytest.raises(ValueError, match="ended without a result"):
        view.tune("Luck")


def test_a_prompt_is_saved_once_and_faults_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view, _ = make_view()
    press(view, "save", folder="a")
    assert view._saved["error"] == "Not saved: no prompt to save yet: tune one"
    view.tune(HOSTILE)
    assert view._result["folder"] == f"out/prompt-{slug(HOSTILE)}"
    assert slug(HOSTILE).replace("-", "").isalnum()
    assert slug("北") == "label"
    press(view, "save", folder=" out/soft ")
    assert view._saved["note"] == "Saved in out/soft"
    assert (tmp_path / "out/soft/prompt.json").read_text() == view.prompt
    press(view, "save", folder="out/soft")
    assert "holds a soft prompt already" in view._saved["error"]
    press(view, "save", folder="")
    assert view._saved["error"] == "Not saved: name a folder for it"
    view.tune("Luck")
    assert view._saved == {}  # the note was of another prompt


def test_the_scripts_are_small():
    view, _ = make_view()
    assert len(view._esm.encode()) < 50_000
    assert len(view._css.encode()) < 30_000
