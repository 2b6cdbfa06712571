"""A run comes back as it was saved; torn, swapped, missing or foreign files are refused in clear
words.
"""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor import QAnchor
from qanchor.errors import RunError, WeightsError
from qanchor.inference.evidence import interpret
from qanchor.models import serialization
from qanchor.models.pointing import is_pretrained
from tests.tiny import FORMS, QUERIES, make_model, make_users

SAMPLE_RUN = Path(__file__).parents[3] / "data" / "runs" / "sample"
FILES = ["concepts.json", "config.json", "history.json", "reader.safetensors"]


@pytest.fixture(scope="module")
def model() -> QAnchor:
    return make_model()


@pytest.fixture(scope="module")
def other() -> QAnchor:
    return make_model(seed=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    return model.save_pretrained(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_a_run_comes_back_as_it_was(form, tmp_path):
    model = make_model(form)
    folder = model.save_pretrained(tmp_path / "run", {"seed": 0})
    assert names(folder) == sorted([*FILES, "metrics.json"])
    loaded = QAnchor.from_pretrained(folder)
    assert loaded.config == model.config and loaded.concepts == model.concepts
    assert not loaded.training and len(loaded.run) == 64
    ours, theirs = model.reader.state_dict(), loaded.reader.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pd.testing.assert_frame_equal(
        loaded.history, model.history, check_dtype=False, atol=1e-5, rtol=0
    )
    users = make_users()
    first, second = qa.Engine(model), qa.Engine(loaded)
    cache, again = first.prefill(users), second.prefill(users)
    np.testing.assert_array_equal(first.embed(cache, QUERIES), second.embed(again, QUERIES))
    ranking = first.rank(cache, QUERIES[0])
    pd.testing.assert_frame_equal(ranking, second.rank(again, QUERIES[0]))
    assert ranking.attrs == second.rank(again, QUERIES[0]).attrs


@pytest.mark.parametrize("form", ["crossing", "prefix"])
def test_the_backbone_is_not_kept(form, tmp_path):
    from safetensors import safe_open

    model = make_model(form)
    folder = model.save_pretrained(tmp_path / "run")
    with safe_open(folder / "reader.safetensors", "np") as file:
        kept = set(file.keys())
    state = model.reader.state_dict()
    assert [name for name in state if is_pretrained(name)]
    assert not [name for name in kept if is_pretrained(name)]
    lora = {name for name in state if "lora_" in name}
    assert lora and lora <= kept


def test_a_run_is_replaced_only_by_a_whole_one(other, folder, monkeypatch):
    before = (folder / "reader.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for target in ("save_arrays", "sha256_file"):
        with monkeypatch.context() as patch:
            patch.setattr(serialization, target, full)
            with pytest.raises(OSError, match="No space left"):
                other.save_pretrained(folder)
        assert (folder / "reader.safetensors").read_bytes() == before
        assert names(folder.parent) == ["run"]  # and nothing half-written stays
    other.save_pretrained(folder)
    assert (folder / "reader.safetensors").read_bytes() != before
    QAnchor.from_pretrained(folder)
    assert names(folder.parent) == ["run"]


def test_what_else_lies_beside_a_run_is_kept(other, folder):
    (folder / "tasks.json").write_text("{}")
    (folder / "notes").mkdir()
    (folder / "notes" / "today.txt").write_text("nothing is lost")
    (folder / "metrics.json").write_text("{}")  # of the old run: gone with it
    other.save_pretrained(folder)
    assert (folder / "notes" / "today.txt").read_text() == "nothing is lost"
    assert (folder / "tasks.json").exists() and not (folder / "metrics.json").exists()
    QAnchor.from_pretrained(folder)


def test_a_kill_at_any_rename_leaves_a_run_that_loads(other, folder, monkeypatch):
    """The old run, or the new one; after the next save everything is in order again."""
    rename = Path.rename
    for stop in (1, 2, 3):
        count = 0

        def killed(self, target, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                other.save_pretrained(folder)
        assert QAnchor.from_pretrained(folder).concepts
    other.save_pretrained(folder)
    assert names(folder.parent) == ["run"]


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(RunError, match=r"nowhere is not a run \(no config.json\). Train one with"):
        QAnchor.from_pretrained(tmp_path / "nowhere")
    for name in ("reader.safetensors", "concepts.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(RunError, match=rf"{name} is missing. Copy the run again"):
            QAnchor.from_pretrained(folder)
        (folder / name).write_bytes(kept)
    (folder / "history.json").unlink()
    assert QAnchor.from_pretrained(folder).history is None


@pytest.mark.parametrize("name", ["reader.safetensors", "concepts.json"])
def test_a_torn_or_swapped_file_is_refused(folder, other, tmp_path, name):
    path = folder / name
    whole = path.read_bytes()
    foreign = other.save_pretrained(tmp_path / "other") / "reader.safetensors"
    for content in (whole[:-100], foreign.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"{name} has sha256 .*config.json says .* damaged"):
            QAnchor.from_pretrained(folder)


def test_a_torn_config_is_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(RunError, match=r"config.json is damaged \(.*\). Copy the run again"):
        QAnchor.from_pretrained(folder)
    path.write_text("[1, 2]")
    with pytest.raises(RunError, match=r"config.json has format None"):
        QAnchor.from_pretrained(folder)


def edit(folder: Path, change) -> None:
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize("old", [3, 4])
def test_another_format_is_refused(folder, old):
    edit(folder, lambda about: about.update(format=old))
    with pytest.raises(
        RunError, match=f"has format {old}, but this version reads {serialization.FORMAT}"
    ):
        QAnchor.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["config"].update(wings=2),
        lambda about: about["config"].update(backbone="tiny", crossing_layers=1),
        lambda about: about.pop("config"),
        lambda about: about.pop("sha256"),
        lambda about: about["sha256"].pop("concepts.json"),
    ],
    ids=["a field more", "another body", "no config", "no hashes", "a hash less"],
)
def test_a_config_of_another_make_is_refused(folder, change):
    edit(folder, change)
    with pytest.raises(RunError, match=r"(config.json|concepts.json|reader.safetensors).*again"):
        QAnchor.from_pretrained(folder)


def test_a_run_whose_language_model_is_not_here_says_so(folder):
    edit(folder, lambda about: about["config"].update(backbone="nobody/has-this-model"))
    with pytest.raises(WeightsError, match="nobody/has-this-model"):
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


@pytest.mark.weights
def test_the_committed_run_ranks_sample_users():
    users = qa.make_sample_users(40)
    engine = qa.Engine(SAMPLE_RUN)
    cache = engine.prefill(users)
    ranking = engine.rank(cache, "Will this user travel soon?")
    assert ranking.attrs["answerable"] and ranking["score"].notna().all()
    assert sorted(ranking["user"]) == sorted(users.ids)
    for query in engine.suggest_queries(users, 40):
        assert interpret(engine.model, cache.tokens, query)[0].answerable, query
