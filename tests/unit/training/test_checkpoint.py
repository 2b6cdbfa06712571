"""A training that is really killed goes on as if nothing had happened; a torn checkpoint is
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
from safetensors.torch import load_file

from qanchor.errors import CheckpointError
from qanchor.training.checkpoint import Checkpoint, fingerprint

RUN = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import qanchor as qa
torch.set_num_threads(1)
out, kill = Path(sys.argv[1]), sys.argv[2]
users = qa.make_sample_users(25)
pairs = qa.make_pairs(users, per_sample=6)
config = qa.TINY.replace(queries_per_user=2, train_batch_size=4, max_answer_tokens=8, head_warmup_steps=60, head_refit_steps=60, gated_skip_dropout=0.2,
                     lora_dropout=0.1)
model = qa.QAnchor(config, qa.UserPreprocessor.fit(users, pairs[["user", "cutoff"]].drop_duplicates(), config), device="cpu")
def told(stage, done, total, loss):
    if f"{stage} {done}" == kill:
        os.kill(os.getpid(), signal.SIGKILL)
real = Path.replace
def torn(self, target):
    if kill == "replace" and Path(target).name == "state" and (out / "state.before").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = torn
rows = qa.train(model, users, pairs, steps=24, checkpoint=out / "state", resume=True, progress=told)
rows.drop(columns="pairs_per_s").to_json(out / "history.json", double_precision=15)
save_file({n: t.clone().contiguous() for n, t in model.state_dict().items()}, out / "weights")
"""
TWO = """
import sys
from pathlib import Path
import torch
import qanchor as qa
torch.set_num_threads(1)
out = Path(sys.argv[1])
users = qa.make_sample_users(25)
pairs = qa.make_pairs(users, per_sample=6)
sizes = {"queries_per_user": 3, "train_batch_size": 8, "max_answer_tokens": 8, "head_warmup_steps": 5, "head_refit_steps": 5}
config = qa.TINY.replace(**sizes, mini_batch_num_tokens=int(sys.argv[3]))
model = qa.QAnchor(config, qa.UserPreprocessor.fit(users, pairs[["user", "cutoff"]].drop_duplicates(), config), device="cpu")
rows = qa.train(model, users, pairs, steps=int(sys.argv[2]), checkpoint=out / "state")
if int(__import__("os").environ.get("RANK", 0)) == 0:
    rows.drop(columns="pairs_per_s").to_json(out / "history.json", double_precision=15)
"""


def python(*words, code: int = 0) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr[-3000:]


def made(folder: Path, *kills: str) -> tuple[pd.DataFrame, dict]:
    """Train in a process of its own; it is killed at each of `kills`, and started again."""
    folder.mkdir()
    for kill in kills:
        python("-c", RUN, folder, kill, code=-9)
    python("-c", RUN, folder, "never")
    return pd.read_json(folder / "history.json"), load_file(folder / "weights")


@pytest.mark.slow
def test_a_process_killed_anywhere_ends_with_the_same_bits(tmp_path):
    """Killed in the warm start, between two checkpoints, while a checkpoint is put in its place,
    and in the last fit.
    """
    history, weights = made(tmp_path / "whole")
    again, other = made(
        tmp_path / "killed", "warm start 50", "training 13", "replace", "training 22", "last fit 50"
    )
    pd.testing.assert_frame_equal(again, history, check_exact=True)
    assert len(history) == 24 and weights.keys() == other.keys()
    assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "tokens"), [(1, 0), (4, 150)])
def test_two_processes_learn_what_one_does(tmp_path, steps, tokens):
    """The same batch shared by two gloo processes (in parts of so many tokens): the same losses and
    first gradient.
    """
    script = tmp_path / "script.py"
    script.write_text(TWO)
    for name, launch in {
        "one": (),
        "two": ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
    }.items():
        (tmp_path / name).mkdir()
        port = ("--main_process_port", "0") if launch else ()
        python(*launch, *port, script, tmp_path / name, steps, tokens if launch else 0)
    one, two = (pd.read_json(tmp_path / name / "history.json") for name in ("one", "two"))
    assert len(one) == steps
    pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=1e-5)
    if steps == 1:
        one, two = (load_file(tmp_path / name / "state") for name in ("one", "two"))
        moments = [name for name in one if name.endswith("exp_avg")]  # a tenth of the gradient
        assert len(moments) > 20 and max(one[name].abs().max() for name in moments) > 1e-4
        for name in moments:
            torch.testing.assert_close(10 * two[name], 10 * one[name], rtol=0, atol=1e-5)


def state(step: int) -> dict:
    return {"weight": torch.full((300,), float(step)), "moment": torch.arange(300.0)}


@pytest.fixture
def kept(tmp_path) -> Checkpoint:
    kept = Checkpoint(tmp_path / "state", "key")
    kept.write(state(10), 10, 60, [{"step": 10}])
    kept.write(state(20), 20, 60, [{"step": 10}, {"step": 20}])
    return kept


def test_the_newest_is_read(kept):
    found = kept.read()
    assert (found.step, found.total, len(found.rows)) == (20, 60, 2) and torch.equal(
        found.state["weight"], state(20)["weight"]
    )


@pytest.mark.parametrize("how", ["cut", "empty", "bit", "gone"])
def test_a_torn_one_is_recognised_and_the_one_before_it_used(kept, how):
    whole = kept.path.read_bytes()
    if how == "gone":  # killed between two renames
        kept.path.unlink()
        assert kept.read().step == 10
        return
    flipped = whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
    kept.path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "bit": flipped}[how])
    with pytest.warns(UserWarning, match=r"torn.*going on from the one before it, step 10"):
        assert kept.read().step == 10
    if how == "cut":  # the torn one never takes the place of the one before it
        kept.write(state(30), 30, 60, [])
        assert kept.read().step == 30 and Checkpoint(kept.before, "key").read().step == 10
        return
    kept.before.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"remove .* and train from the start"):
        kept.read()


def test_another_training_is_refused(kept):
    with pytest.raises(CheckpointError, match="is of another training"):
        Checkpoint(kept.path, "other").read()
    kept.remove()
    assert kept.read() is None and not list(kept.path.parent.iterdir())


def test_the_fingerprint_sees_what_matters():
    pairs = pd.DataFrame({"user": ["a"], "query": ["q"], "answer": ["yes"]})
    config, numbers = {"lr": 1, "steps": 5}, np.zeros((1, 3))
    first = fingerprint(config, 0, pairs, numbers)
    assert first == fingerprint(
        config | {"steps": 9}, 0, pairs.copy(), numbers
    )  # more steps: the same training, longer
    others = (
        fingerprint(config | {"lr": 2}, 0, pairs, numbers),
        fingerprint(config, 1, pairs, numbers),
    )
    others += (
        fingerprint(config, 0, pairs.assign(answer="no"), numbers),
        fingerprint(config, 0, pairs, numbers + 1),
    )
    assert len({first, *others}) == 5
