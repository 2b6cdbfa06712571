"""Save and load a run: safetensors and JSON, written aside and renamed, hashed, nothing pickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from .backbone import WeightsError
from .config import Config
from .files import disk_faults, sha256, written_aside
from .machine import best_device, working_dtype
from .model import QAnchor, build
from .reader import Reader

FORMAT = 2


class RunError(RuntimeError):
    """A run folder is missing a file, torn, or of another make: which file, what was found, and the cure."""


def learned(model: QAnchor) -> dict[str, torch.Tensor]:
    """Name every tensor that a run must keep: all but the own weights of the backbone and of the text encoder."""
    state = model.state_dict().items()
    return {name: t for name, t in state if "lora_" in name or not name.startswith(("backbone.", "event_texts."))}


def save(model: QAnchor, folder, history: pd.DataFrame | None = None, metrics: dict | None = None) -> Path:
    """Keep a model as a folder: config.json, adapter.safetensors, and history.json, metrics.json when given.

    Tensors are kept in half precision (bfloat16 where the backbone is), so a loaded run differs from the model in memory
    by rounding; measure on the loaded one. An existing run is replaced only once the new one is whole.

    Example:
        >>> users = qa.make_world(40)
        >>> model = qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))
        >>> import tempfile
        >>> qa.save(model, tempfile.mkdtemp() + "/run").name
        'run'
    """
    folder = Path(folder)
    if model.config.lora_layers and not any("lora_" in name for name in model.backbone.state_dict()):
        raise ValueError(f"{folder}: this model's LoRA was folded into its weights by Engine: save it before you serve it")
    half = torch.float16 if model.config.backbone != "tiny" else torch.float32
    tensors = {}
    for name, tensor in learned(model).items():
        kept = tensor.detach().cpu().contiguous()
        # safetensors' numpy side has no bfloat16: its bits travel as int16
        tensors[name] = kept.view(torch.int16).numpy() if kept.dtype == torch.bfloat16 else kept.to(half).numpy()
    reader = model.reader
    kind = np.float16 if half == torch.float16 else np.float32
    tensors |= {f"reader.{k}": np.ascontiguousarray(getattr(reader, k), kind) for k in ("idf", "counts", "words", "portrait")}
    tensors |= {f"reader.mean.{k}": np.asarray(v, np.float32) for k, v in reader.mean.items()}
    tensors |= {f"reader.std.{k}": np.asarray(v, np.float32) for k, v in reader.std.items()}
    with replaced(folder) as aside:
        with disk_faults(folder):
            save_arrays(tensors, aside / "adapter.safetensors")
        about = {
            "format": FORMAT,
            "config": model.config.to_dict(),
            "reader": {
                "modalities": reader.modalities,
                "numbers": reader.numbers,
                "facts": reader.facts,
                "vocabulary": list(reader.vocabulary),
                "parts": list(reader.mean),  # their order is the order of the coarse numbers
            },
            "sha256": {"adapter.safetensors": sha256(aside / "adapter.safetensors")},
        }
        (aside / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        if history is not None:
            history.round(5).to_json(aside / "history.json", orient="records", indent=1)
        if metrics is not None:
            (aside / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return folder


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `folder` once it is whole; until then the old one stands."""
    old, new = _old(folder), folder.with_name(f".{folder.name}.new")
    mend(folder)
    shutil.rmtree(new, ignore_errors=True)  # what a killed save left behind
    with written_aside(new) as aside:
        yield aside
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder, device: str | None = None, dtype: str | None = None, attention: str | None = None) -> QAnchor:
    """Load a run: the backbone from its own place, everything learned from the folder, its hash checked.

    dtype, attention   override the run's (tests use float32 and eager). Without a dtype the backbone reckons in the run's,
                       but in float32 on a processor whose products in bfloat16 crawl.
    Raises RunError when a file is missing, torn, or of another make.

    Example:
        >>> users = qa.make_world(40)
        >>> model = qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))
        >>> import tempfile
        >>> qa.load(qa.save(model, tempfile.mkdtemp() + "/run")).config == qa.TINY
        True
    """
    folder, device = Path(folder), device or best_device()
    mend(folder)
    about = about_run(folder)
    path = folder / "adapter.safetensors"
    if not path.exists():
        raise RunError(f"{path} is missing: copy the run again, or train it with `python -m qanchor train`")
    told = about.get("sha256")
    found, expected = sha256(path), str(told.get("adapter.safetensors") if isinstance(told, dict) else told)
    if found != expected:
        raise RunError(
            f"{path} has sha256 {found[:16]}..., config.json says {expected[:16]}...: torn or swapped, copy the run again"
        )
    try:
        arrays = load_arrays(path)
        config = Config(**about["config"])
        config = config.but(dtype=dtype or config.dtype, attention=attention or config.attention)
        model = build(config, _reader(about, config, arrays), device="cpu", dtype=dtype or working_dtype(config.dtype, device))
    except (WeightsError, OSError):  # the backbone's own
        raise
    except (SafetensorError, TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RuntimeError) as error:
        told = f"{path if isinstance(error, SafetensorError) else folder / 'config.json'}: {type(error).__name__}: {error}"
        raise RunError(f"{told}: torn, or saved by another version: copy the run again, or train it again") from error
    state = model.state_dict()
    with torch.no_grad():
        for name in learned(model):
            if name not in arrays:
                raise RunError(f"{path} lacks {name}: it was saved by another version, train it again")
            value = torch.from_numpy(arrays[name])
            value = value.view(torch.bfloat16) if value.dtype == torch.int16 else value
            if value.shape != state[name].shape:  # copying would spread a smaller one in silence
                found, expected = tuple(value.shape), tuple(state[name].shape)
                raise RunError(f"{path}: {name} is {found}, config.json asks for {expected}: train the run again")
            state[name].copy_(value)
    model.run = found
    return model.to(device).eval()


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def mend(folder: Path) -> None:
    """Put back the old run that a kill between two renames left aside."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)


def history(folder) -> pd.DataFrame:
    """Give a run's history frame: step, loss, contrastive, autoregressive, pairs_per_s.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "history.json").write_text('[{"step": 1, "loss": 4.2}]')
        >>> qa.history(folder).loss.tolist()
        [4.2]
    """
    return pd.read_json(Path(folder) / "history.json", orient="records")


def about_run(folder: Path) -> dict:
    """Read a run's config.json: its config, what its reader knows, and the hash of what it learned."""
    path = folder / "config.json"
    if not path.exists():
        raise RunError(f"{folder} is no run (no config.json): train one with `python -m qanchor train --out {folder}`")
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: {error}: the file is torn, copy the run again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise RunError(f"{path}: format {found}, this version reads {FORMAT}: train the run again")
    return about


def _reader(about: dict, config: Config, arrays: dict[str, np.ndarray]) -> Reader:
    told = about["reader"]
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}  # noqa: E731
    mean, std = part("reader.mean."), part("reader.std.")
    return Reader(
        modalities=tuple(told["modalities"]),
        numbers=tuple(told["numbers"]),
        facts=tuple(told["facts"]),
        habits=config.habits,
        recent=config.recent,
        encoder=config.text_encoder,
        layout=config.layout,
        vocabulary={name: i for i, name in enumerate(told["vocabulary"])},
        idf=arrays["reader.idf"].astype(np.float32),
        counts=arrays["reader.counts"].astype(np.float32),
        words=arrays["reader.words"].astype(np.float32),
        portrait=arrays["reader.portrait"].astype(np.float32),
        mean={k: mean[k] for k in told["parts"]},
        std={k: std[k] for k in told["parts"]},
    )
