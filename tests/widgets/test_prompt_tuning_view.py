"""The prompt lab in Python: what it starts, stops, cancels, keeps and saves, and what it says when something goes wrong."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from fake import HOSTILE
from fake_tuner import FakeTuner

from widgets import PromptLab
from widgets._tuned import slug, table

ROOT = Path(__file__).parents[2]
VAGUE = "Is this user interesting for us?"


def make_lab(seconds=0.05, **rest):
    tuner = FakeTuner(seconds)
    return PromptLab(ask=tuner, **rest), tuner


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def press(lab, kind, **rest):
    lab._heard(lab, {"type": kind, **rest}, [])


def test_tuning_fills_the_frames_the_curve_and_the_table():
    lab, tuner = make_lab()
    sentence = lab.tune("Takeout", f" {VAGUE} ", steps=40, seed=2)
    assert sentence == lab.sentence and "a gain of .057, beyond chance" in sentence
    assert tuner.calls == [(VAGUE, "Takeout", 6, 40, 2)] and tuner.closed == 1
    assert lab.history.step.tolist() == [0, 10, 20, 30, 40] == lab._curve["step"]
    best = int(lab.history.step[lab.history.valid.idxmin()])
    assert lab.prompt == f"prompt of step {best}" and lab._curve["best"] == best and lab._curve["loss"][0] is None
    assert list(lab.result) == ["measure", "before", "after", "gain", "low", "high"]
    assert [row["name"] for row in lab._result["rows"]] == ["AUC", "KS", "silhouette"]
    assert (
        lab._result["caption"].startswith("6 vectors, 40 steps, ")
        and "Judged on 300 held-out users (108" in lab._result["caption"]
    )
    json.dumps([lab._curve, lab._result, lab._status, lab._form], allow_nan=False)  # a browser reads no NaN
    assert not lab._status.get("busy") and lab._status["each"] > 0


def test_the_form_opens_with_the_tuners_defaults():
    lab, tuner = make_lab(query=VAGUE)
    assert lab._form == {"label": "Takeout", "query": VAGUE, "vectors": 6, "steps": 60, "seed": 0}
    assert lab._about["paper"] == {"vectors": 6, "steps": 500} and lab._about["labels"] == list(tuner.labels)
    bare = PromptLab(lambda *a, **k: iter([]), labels=["a"])
    assert (bare._form["vectors"], bare._form["steps"], bare._about["saves"]) == (6, 500, False)
    assert PromptLab(tuner, label="Luck", steps=9)._form["steps"] == 9
    with pytest.raises(ValueError, match="0 labels to choose from"):
        PromptLab(lambda *a, **k: iter([]))
    with pytest.raises(ValueError, match="no label 'Nope': there are Takeout"):
        PromptLab(tuner, label="Nope")


@pytest.mark.parametrize(
    ("label", "side", "verdict"),
    [("Takeout", 1, "beyond"), ("Luck", 0, "within chance"), ("Concert", -1, "a loss")],
)
def test_a_gain_whose_interval_holds_zero_is_called_none(label, side, verdict):
    row = table(FakeTuner.result(label))[0]
    assert row["side"] == side and verdict in row["verdict"] and row["at"][0] <= row["at"][1] <= row["at"][2]
    assert row["gain"][0] in "+−" and " to " in row["interval"]


def test_the_repr_says_the_content_and_the_still_needs_no_script():
    lab, _ = make_lab()
    assert repr(lab) == "PromptLab(6 labels)"
    first, second = lab._repr_mimebundle_()[0], make_lab()[0]._repr_mimebundle_()[0]
    assert first["text/html"] == second["text/html"] and "run the cell" in first["text/html"]
    lab.tune(HOSTILE, f"Is {HOSTILE} real?")
    page = lab._repr_mimebundle_()[0]["text/html"]
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "data:image/svg+xml;base64," in page and "within chance" not in page and lab.sentence in page and "+.057" in page
    assert repr(lab).startswith("PromptLab(6 labels, tuned on '<img") and lab.still().data == page


def test_starting_from_the_browser_leaves_the_message_loop_free():
    lab, tuner = make_lab(seconds=0.5)
    began = time.monotonic()
    press(lab, "tune", label="Concert", query="", vectors="4", steps="20", seed="7")
    assert time.monotonic() - began < 0.1
    until(lambda: lab._status.get("done", 0) > 5)
    assert lab._status["busy"] and lab._status["left"] > 0
    press(lab, "tune", label="Luck")  # one at a time: this one is not begun
    until(lambda: not lab._status.get("busy"))
    assert tuner.calls == [("", "Concert", 4, 20, 7)] and lab._form["steps"] == 20 and "worse" in lab.sentence


def test_stop_and_keep_judges_and_keeps_the_best_so_far():
    lab, _ = make_lab()
    press(lab, "tune", label="slow", steps=60)
    until(lambda: lab._status.get("done", 0) >= 12)
    press(lab, "stop")
    assert lab._status["stopping"]
    until(lambda: not lab._status.get("busy"))
    reached = lab._runs[-1].step
    assert 12 <= reached < 60 and f"ended after step {reached} of 60" in lab._result["caption"]
    assert lab.prompt and lab.history.step.max() <= reached and not lab._status.get("stopping")
    lab.tune("Luck", steps=30)  # the next one is not stopped by it
    assert lab._runs[-1].step == 30


def test_cancel_keeps_nothing_and_brings_the_last_result_back():
    lab, tuner = make_lab()
    lab.tune("Takeout")
    before = (lab._curve, lab._result, lab.prompt)
    press(lab, "tune", label="slow")
    until(lambda: lab._status.get("done", 0) >= 2)
    assert lab._curve["step"] == [0]
    press(lab, "cancel")
    until(lambda: not lab._status.get("busy"))
    assert (lab._curve, lab._result, lab.prompt) == before and tuner.closed == 2
    assert lab._status["note"] == "Cancelled, nothing was kept. What was there before is back."


def test_an_error_is_said_in_the_view_and_in_the_log(caplog):
    lab, _ = make_lab()
    lab.tune("Takeout")
    kept = lab._result
    press(lab, "tune", label="fail")
    until(lambda: lab._status.get("error"))
    assert lab._status["error"] == "Tuning on “fail” failed: out of memory: 300 users need 2.1 GB, 1.9 are free"
    assert "Traceback" in caplog.text and lab._result == kept and lab._curve["steps"] == 60
    with pytest.raises(RuntimeError, match="out of memory"):
        lab.tune("fail")
    for form, words in (
        ({"steps": ""}, "steps is empty"),
        ({"vectors": "99"}, "vectors is 99"),
        ({"label": "x"}, "no label 'x'"),
    ):
        press(lab, "tune", **form)
        assert words in lab._status["error"] and not lab._status.get("busy")
    with pytest.raises(ValueError, match="steps is 0: give a whole number from 1 to 5,000"):
        lab.tune("Takeout", steps=0)
    assert lab.tune("Luck") and not lab._status.get("error")
    ends = PromptLab(lambda *a, **k: iter([]), labels=["a"])
    with pytest.raises(ValueError, match="ended without a result"):
        ends.tune("a")


def test_a_prompt_is_saved_once_and_faults_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab, _ = make_lab()
    press(lab, "save", folder="a")
    assert lab._saved["error"] == "Not saved: no prompt to save yet: tune one"
    lab.tune(HOSTILE)
    assert (
        lab._result["folder"] == f"out/prompt-{slug(HOSTILE)}"
        and slug(HOSTILE).replace("-", "").isalnum()
        and slug("北") == "label"
    )
    press(lab, "save", folder=" out/soft ")
    assert lab._saved["note"] == "Saved in out/soft" and (tmp_path / "out/soft/prompt.json").read_text() == lab.prompt
    press(lab, "save", folder="out/soft")
    assert "holds a soft prompt already" in lab._saved["error"]
    press(lab, "save", folder="")
    assert lab._saved["error"] == "Not saved: name a folder for it"
    lab.tune("Luck")
    assert lab._saved == {}  # the note was of another prompt
    kept = []
    other = PromptLab(FakeTuner(0.01), save=lambda prompt, folder: kept.append(folder) or folder)
    other.tune("Luck")
    assert other.save("b") == "b" and kept == ["b"]


def test_scripts_are_small_and_their_functions_right():
    lab, _ = make_lab()
    assert len(lab._esm.encode()) < 50_000 and len(lab._css.encode()) < 30_000
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to run the views' own tests")
    done = subprocess.run([node, "--test", str(ROOT / "tests" / "js" / "prompt_tuning.test.mjs")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
