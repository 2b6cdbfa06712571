"""A training that was interrupted goes on as if nothing had happened; a torn checkpoint is
recognised, a wrong one refused.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.errors import CheckpointError
from qanchor.models.serialization import load_model
from qanchor.training.checkpoint import Checkpoint, fingerprint
from tests.tiny import FORMS, fit_quickly

STEPS = 24
# Sums in another order changed a loss by 1.2e-4 within 24 steps. What else a resumed training could
# lose changes more: see `test_a_resumed_training_without_a_part_of_its_state_is_told`.
ROUNDING = 2e-3
TRAINING = "training the reader"


class Interrupted(Exception):
    """Stand for Ctrl-C or a machine that goes away."""


def interrupt_at(step: int):
    """Return a progress function that interrupts the training after a step."""

    def report(stage, done, total):
        if stage == TRAINING and done == step:
            raise Interrupted

    return report


def assert_equal(found, expected, rounding: float = 0.0) -> None:
    """Assert that two models have the same history and weights, to the last bit or up to rounding:
    the kernels of a language model do not always add up in the same order.
    """
    pd.testing.assert_frame_equal(found.history, expected.history, rtol=rounding, atol=0)
    ours, theirs = found.reader.state_dict(), expected.reader.state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5 * rounding)


@pytest.mark.slow
def test_an_interrupted_training_ends_the_same(tmp_path):
    """Interrupted before weights are averaged."""
    # of this seed no pair is so near the margin of false negatives that rounding decides
    options = {"steps": STEPS, "seed": 46, **FORMS["crossing"]}
    file = tmp_path / "state"
    whole = fit_quickly(**options)
    assert len(whole.history) == STEPS and whole.history["contrastive"].notna().any()
    with pytest.raises(Interrupted):
        fit_quickly(**options, checkpoint=file, progress=interrupt_at(12))
    torch.rand(3)  # what others draw does not matter
    done = []

    def watch(stage, step, total):
        if stage == TRAINING:
            done.append(step)

    resumed = fit_quickly(**options, checkpoint=file, progress=watch)
    assert done == list(range(11, STEPS + 1))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert_equal(resumed, whole, rounding=ROUNDING)
    for change in ({"seed": 1}, {"crossing_layers": 1}):
        with pytest.raises(CheckpointError, match="belongs to another training run"):
            fit_quickly(**options | change, checkpoint=file)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["exp_avg", "exp_avg_sq", "torch_random"])
def test_a_resumed_training_without_a_part_of_its_state_is_told(tmp_path, monkeypatch, lost):
    """The control of the rounding that is allowed."""
    options = {"steps": STEPS, **FORMS["crossing"]}
    file = tmp_path / "state"
    with pytest.raises(Interrupted):
        fit_quickly(**options, checkpoint=file, progress=interrupt_at(12))
    read = Checkpoint.read

    def read_less(checkpoint):
        saved = read(checkpoint)
        if lost == "torch_random":
            return saved | {lost: torch.get_rng_state()}
        for moments in saved["optimizer"]["state"].values():
            moments[lost].zero_()
        return saved

    monkeypatch.setattr(Checkpoint, "read", read_less)
    resumed = fit_quickly(**options, checkpoint=file)
    with pytest.raises(AssertionError, match="are different"):
        assert_equal(resumed, fit_quickly(**options), rounding=ROUNDING)


def test_a_training_without_a_language_model_is_resumed_as_well(tmp_path):
    file = tmp_path / "state"
    with pytest.raises(Interrupted):
        fit_quickly(steps=12, checkpoint=file, progress=interrupt_at(11))
    assert_equal(fit_quickly(steps=12, checkpoint=file), fit_quickly(steps=12))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.tiny import FORMS, fit_quickly
out, kill = Path(sys.argv[1]), sys.argv[2]
replace = Path.replace
def torn(self, target):
    if kill == "replace" and Path(target).name == "state" and (out / "state").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = torn
def report(stage, done, total):
    if f"{stage} {done}" == kill:
        os.kill(os.getpid(), signal.SIGKILL)
model = fit_quickly(24, **FORMS["crossing"], checkpoint=out / "state", progress=report)
model.save_pretrained(out / "run")
"""


def train(folder: Path, *kills: str):
    """Train in a process of its own that is killed at each of `kills`, and started again."""
    folder.mkdir()
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    for kill in (*kills, "never"):
        command = [sys.executable, "-c", KILLED, folder, kill]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == (0 if kill == "never" else -9), done.stderr[-3000:]
    return load_model(folder / "run")


@pytest.mark.slow
def test_a_process_killed_anywhere_ends_the_same(tmp_path):
    """Killed between two checkpoints, and while a checkpoint is put in its place."""
    expected = train(tmp_path / "whole")
    found = train(tmp_path / "killed", f"{TRAINING} 13", "replace")
    assert_equal(found, expected, rounding=ROUNDING)


def state(step: int) -> dict:
    weight = torch.full((300,), float(step))
    return {"weight": weight, "moment": torch.arange(300.0), "history": [step]}


@pytest.fixture
def kept(tmp_path) -> Checkpoint:
    kept = Checkpoint(tmp_path / "state", "key")
    kept.write(state(10))
    kept.write(state(20))
    return kept


def test_the_newest_is_read(kept):
    found = kept.read()
    assert found["history"] == [20]
    assert torch.equal(found["weight"], state(20)["weight"])


@pytest.mark.parametrize("how", ["cut", "empty", "words"])
def test_a_torn_one_is_told(kept, how):
    whole = kept.path.read_bytes()
    kept.path.write_bytes({"cut": whole[:-40], "empty": b"", "words": b"no tensors " * 9}[how])
    with pytest.raises(CheckpointError, match=r"damaged: .*Remove it and train from the start"):
        kept.read()
    kept.write(state(30))
    assert kept.read()["history"] == [30]


def test_a_flipped_bit_anywhere_is_told(kept):
    whole = kept.path.read_bytes()
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        kept.path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            kept.read()


def test_another_training_is_refused(kept):
    with pytest.raises(CheckpointError, match="belongs to another training run"):
        Checkpoint(kept.path, "other").read()
    kept.remove()
    assert kept.read() is None and not list(kept.path.parent.iterdir())


def test_the_fingerprint_sees_what_matters():
    first = fingerprint({"steps": 5}, [np.zeros((1, 3))])
    assert first == fingerprint({"steps": 5}, [np.zeros((1, 3))])
    others = [
        fingerprint({"steps": 6}, [np.zeros((1, 3))]),
        fingerprint({"steps": 5}, [np.ones((1, 3))]),
        fingerprint({"steps": 5}, []),
    ]
    assert len({first, *others}) == 4
