"""A run comes back as it was saved; torn, swapped, missing or foreign files are refused in clear
words.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor import TINY, QAnchor, UserPreprocessor
from qanchor.config import Config
from qanchor.errors import RunError
from qanchor.models import serialization
from qanchor.models.collate import collate_users
from qanchor.models.serialization import trained_state
from qanchor.utils import device
from tests.tiny import QUERIES, make_engine, make_model, make_users

HISTORY = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.5], "contrastive": [1.0, 0.5]})


@pytest.fixture(scope="module")
def model():
    return make_model(
        awake=False
    )  # the backbone's own weights are not kept: they must be as they always are


@pytest.fixture
def folder(model, tmp_path):
    return model.save_pretrained(tmp_path / "run", HISTORY, {"seed": 0})


def test_a_run_comes_back_as_it_was(model, folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter.safetensors",
        "config.json",
        "history.json",
        "metrics.json",
    ]
    again = QAnchor.from_pretrained(folder, device="cpu")
    assert again.config == model.config and not again.training
    ours, theirs = trained_state(model), trained_state(again)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    users = make_users()
    readings, other = model.preprocessor.transform(users), again.preprocessor.transform(users)
    assert np.array_equal(readings.coarse, other.coarse)
    for query in QUERIES:
        first, second = (
            m.embed(collate_users(r, range(9)), query)
            for m, r in ((model, readings), (again, other))
        )
        assert torch.equal(first, second)
    pd.testing.assert_frame_equal(serialization.load_history(folder), HISTORY, check_dtype=False)


def test_asking_a_loaded_run_gives_the_same(model, folder):
    users = make_users()
    z = [
        e.embed(e.prefill(users), QUERIES)
        for e in (make_engine(model), make_engine(QAnchor.from_pretrained(folder)))
    ]
    assert np.array_equal(*z)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_half_precision_changes_little(tmp_path, monkeypatch, dtype):
    """Real backbones keep their runs in half precision; here the tiny one is made to pass for a
    real one.
    """
    from qanchor.models import backbone
    from qanchor.models import model as model_module

    model, tiny = make_model(awake=False, dtype=dtype), backbone.load_backbone
    monkeypatch.setattr(model_module, "load_backbone", lambda name, *rest: tiny("tiny", *rest))
    model.config = model.config.replace(backbone="real")
    folder = model.save_pretrained(tmp_path / "run")
    again = QAnchor.from_pretrained(folder, device="cpu", dtype=dtype)
    for name, tensor in trained_state(model).items():
        kept = trained_state(again)[name]
        assert kept.dtype == tensor.dtype
        torch.testing.assert_close(kept, tensor, atol=2e-3, rtol=1e-3)
    users = make_users()
    z = [
        m.embed(collate_users(m.preprocessor.transform(users), range(9)), QUERIES[0])
        for m in (model, again)
    ]
    torch.testing.assert_close(z[0], z[1], atol=0.02 if dtype == "float32" else 0.05, rtol=0)
    full = (
        sum(t.numel() * 4 for t in trained_state(model).values())
        + 4 * model.preprocessor.words.size
    )
    assert (folder / "adapter.safetensors").stat().st_size < 0.6 * full + 20_000


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_reckons_in_what_its_processor_is_fast_at(tmp_path, monkeypatch, fast):
    """Many processors have no fast products in bfloat16; a run made on either goes to the other,
    and says the same there.
    """
    monkeypatch.setattr(device, "has_fast_bf16", lambda: fast)
    users = make_users()
    config = TINY.replace(dtype="bfloat16")
    here = QAnchor(config, UserPreprocessor.fit(users, None, config), device="cpu")
    assert here.backbone.dtype == (torch.bfloat16 if fast else torch.float32)
    folder = here.save_pretrained(tmp_path / "run")
    monkeypatch.setattr(device, "has_fast_bf16", lambda: not fast)
    there = QAnchor.from_pretrained(folder, device="cpu")
    assert there.backbone.dtype == (torch.float32 if fast else torch.bfloat16)
    assert there.config == here.config == config, "where it was made does not bind where it is used"
    assert (
        QAnchor.from_pretrained(folder, device="cpu", dtype="bfloat16").backbone.dtype
        == torch.bfloat16
    ), "what is asked for is done"
    z = [
        m.embed(collate_users(m.preprocessor.transform(users), range(9)), QUERIES[0])
        for m in (here.eval(), there)
    ]
    torch.testing.assert_close(z[0], z[1], atol=0.05, rtol=0)
    cached = [
        e.embed(e.prefill(users), QUERIES[0]) for e in (make_engine(here), make_engine(there))
    ]
    np.testing.assert_allclose(*cached, atol=0.05, rtol=0)


def test_a_run_is_replaced_only_by_a_whole_one(model, folder, monkeypatch):
    before = (folder / "adapter.safetensors").read_bytes()
    other = make_model(awake=False, seed=5)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for target in ("save_arrays", "sha256_file"):
        with monkeypatch.context() as patch:
            patch.setattr(serialization, target, full)
            with pytest.raises(OSError, match="No space left"):
                other.save_pretrained(folder)
        assert (folder / "adapter.safetensors").read_bytes() == before
        assert [p.name for p in folder.parent.iterdir()] == [
            "run"
        ]  # and nothing half-written stays
    other.save_pretrained(folder)
    assert (folder / "adapter.safetensors").read_bytes() != before and QAnchor.from_pretrained(
        folder
    ).config == other.config
    assert [p.name for p in folder.parent.iterdir()] == ["run"]


def test_a_kill_at_any_rename_leaves_a_run_that_loads(model, folder, monkeypatch):
    """The old run, or the new one, and after the next save everything is in order again."""
    from pathlib import Path

    rename, count = Path.rename, [0]
    for stop in (1, 2, 3):
        count[0] = 0

        def killed(self, target, stop=stop):
            count[0] += 1
            if count[0] == stop:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                make_model(awake=False, seed=stop).save_pretrained(folder)
        QAnchor.from_pretrained(folder)
    model.save_pretrained(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["run"]


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(
        RunError,
        match=r"nowhere is no run \(no config.json\): train one with `python -m qanchor train",
    ):
        QAnchor.from_pretrained(tmp_path / "nowhere")
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(RunError, match=r"adapter.safetensors is missing: copy the run again"):
        QAnchor.from_pretrained(folder)


def test_a_torn_file_is_refused(folder):
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        RunError, match=r"has sha256 .*, config.json says .*: torn or swapped, copy the run again"
    ):
        QAnchor.from_pretrained(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text()[:200])
    with pytest.raises(RunError, match=r"config.json: .*: the file is torn, copy the run again"):
        QAnchor.from_pretrained(folder)


def test_a_swapped_file_is_refused(folder, tmp_path):
    other = make_model(awake=False, seed=9).save_pretrained(tmp_path / "other")
    (folder / "adapter.safetensors").write_bytes((other / "adapter.safetensors").read_bytes())
    with pytest.raises(RunError, match="torn or swapped"):
        QAnchor.from_pretrained(folder)


def edited(folder, change) -> None:
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))


def test_another_format_is_refused(folder):
    edited(folder, lambda about: about.update(format=99))
    with pytest.raises(RunError, match="format 99, this version reads 3: train the run again"):
        QAnchor.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["config"].update(wings=2),
        lambda about: about["config"].update(embedding_dim=16),
        lambda about: about.pop("config"),
        lambda about: about.pop("sha256"),
        lambda about: about["preprocessor"].pop("vocabulary"),
        lambda about: about["preprocessor"].update(modalities=["bill"]),
    ],
    ids=[
        "a field more",
        "another width",
        "no config",
        "no hash",
        "no vocabulary",
        "fewer modalities",
    ],
)
def test_a_config_of_another_make_is_refused(folder, change):
    edited(folder, change)
    with pytest.raises(RunError, match=r"config.json|adapter.safetensors"):
        QAnchor.from_pretrained(folder)


def test_a_list_is_no_config(folder):
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(RunError, match=r"config.json: format None"):
        QAnchor.from_pretrained(folder)


def test_nothing_is_pickled(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a run must not be unpickled: it could run anything")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    QAnchor.from_pretrained(folder)
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_the_backbone_is_not_kept_twice(model, folder):
    kept = trained_state(model)
    assert {n for n in kept if n.startswith("backbone.")} == {n for n in kept if "lora" in n}
    assert {"projection.centre", "projection.spread", "user_emb"} <= set(kept)


RUNS = Path(__file__).parents[3] / "data" / "runs"


@pytest.mark.parametrize("run", ["world", "journey"])
def test_committed_runs_of_format_2_have_todays_names(run):
    """The config makes a Config, and the tensors have the names and shapes that a model of it
    loads.
    """
    from safetensors import safe_open

    written = json.loads((RUNS / run / "config.json").read_text())
    about = serialization.read_run_config(RUNS / run)
    config = Config(**about["config"])
    assert written["format"] == 2 and config.embedding_dim == written["config"]["dim"]
    assert (
        config.token_order == "coarse_to_fine"
        and config.lora_learning_rate == written["config"]["lr"]
    )
    with safe_open(RUNS / run / "adapter.safetensors", "np") as file:
        arrays = {
            serialization._current_tensor_name(name): file.get_tensor(name)
            for name in list(file.keys())
        }
    preprocessor = serialization._load_preprocessor(about, config, arrays)
    tiny = config.replace(backbone="tiny", dtype="float32", lora_num_layers=0)
    expected = serialization.trained_state(QAnchor(tiny, preprocessor, device="cpu"))
    missing = set(expected) - set(arrays)
    assert not missing, sorted(missing)
    same_width = ("skip.", "profile")  # of all other tensors one side is as wide as the backbone
    for name, tensor in expected.items():
        assert not name.startswith(same_width) or tuple(tensor.shape) == arrays[name].shape, name
    names = {name for name in arrays if not name.startswith(("backbone.", "preprocessor."))}
    assert names == set(expected)
