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

from qanchor.config import Config
from qanchor.errors import RunError, WeightsError
from qanchor.models.model import QAnchor
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.utils.device import best_device, compute_dtype
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_directory, disk_errors

FORMAT = 3
LEGACY_CONFIG = {  # names of format 2
    "lr": "lora_learning_rate",
    "head_lr": "head_learning_rate",
    "warmup": "warmup_ratio",
    "clip": "max_grad_norm",
    "checkpointing": "gradient_checkpointing",
    "users_at_once": "mini_batch_size",
    "tokens_at_once": "mini_batch_num_tokens",
    "users_per_step": "train_batch_size",
    "warm_steps": "head_warmup_steps",
    "final_steps": "head_refit_steps",
    "warm_texts": "head_max_answers",
    "warm_rows": "head_batch_size",
    "warm_queries": "head_queries_per_user",
    "margin": "false_negative_margin",
    "mask_after": "false_negative_start",
    "habits": "max_frequent_events",
    "recent": "max_recent_events",
    "components": "svd_components",
    "adapter": "adapter_dim",
    "hidden": "projection_dim",
    "dim": "embedding_dim",
    "skip": "gated_skip",
    "skip_hidden": "gated_skip_dim",
    "skip_dropout": "gated_skip_dropout",
    "portrait": "profile_dim",
    "taught": "query_memory_size",
    "jitter": "anchor_noise",
    "layout": "token_order",
    "summaries": "use_summary_tokens",
    "lora_layers": "lora_num_layers",
    "cutoffs": "num_cutoffs",
    "variant": "contrastive_variant",
    "max_answer": "max_answer_tokens",
    "max_query": "max_query_tokens",
    "max_query_asked": "max_query_tokens_inference",
}
LEGACY_TENSORS = {"skip.taught": "skip.query_memory", "portrait": "profile", "reader.portrait": "preprocessor.profile"}
LEGACY_VALUES = {"coarse_first": "coarse_to_fine", "appendable": "append_only"}


def trained_state(model: QAnchor) -> dict[str, torch.Tensor]:
    """Name every tensor that a run must keep: all but the own weights of the backbone and of the text encoder."""
    state = model.state_dict().items()
    return {name: t for name, t in state if "lora_" in name or not name.startswith(("backbone.", "event_texts."))}


def save_model(model: QAnchor, folder, history: pd.DataFrame | None = None, metrics: dict | None = None) -> Path:
    """Keep a model as a folder: config.json, adapter.safetensors, and history.json, metrics.json when given.

    Tensors are kept in half precision (bfloat16 where the backbone is), so a loaded run differs from the model in memory
    by rounding; measure on the loaded one. An existing run is replaced only once the new one is whole.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> import tempfile
        >>> save_model(model, tempfile.mkdtemp() + "/run").name
        'run'
    """
    folder = Path(folder)
    if model.config.lora_num_layers and not any("lora_" in name for name in model.backbone.state_dict()):
        raise ValueError(f"{folder}: this model's LoRA was folded into its weights by Engine: save it before you serve it")
    half = torch.float16 if model.config.backbone != "tiny" else torch.float32
    tensors = {}
    for name, tensor in trained_state(model).items():
        kept = tensor.detach().cpu().contiguous()
        # safetensors' numpy side has no bfloat16: its bits travel as int16
        tensors[name] = kept.view(torch.int16).numpy() if kept.dtype == torch.bfloat16 else kept.to(half).numpy()
    preprocessor = model.preprocessor
    kind = np.float16 if half == torch.float16 else np.float32
    tensors |= {
        f"preprocessor.{k}": np.ascontiguousarray(getattr(preprocessor, k), kind) for k in ("idf", "counts", "words", "profile")
    }
    tensors |= {f"preprocessor.mean.{k}": np.asarray(v, np.float32) for k, v in preprocessor.mean.items()}
    tensors |= {f"preprocessor.std.{k}": np.asarray(v, np.float32) for k, v in preprocessor.std.items()}
    with atomic_replace(folder) as aside:
        with disk_errors(folder):
            save_arrays(tensors, aside / "adapter.safetensors")
        about = {
            "format": FORMAT,
            "config": model.config.to_dict(),
            "preprocessor": {
                "modalities": preprocessor.modalities,
                "numbers": preprocessor.numbers,
                "facts": preprocessor.facts,
                "vocabulary": list(preprocessor.vocabulary),
                "parts": list(preprocessor.mean),  # their order is the order of the coarse numbers
            },
            "sha256": {"adapter.safetensors": sha256_file(aside / "adapter.safetensors")},
        }
        (aside / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        if history is not None:
            history.round(5).to_json(aside / "history.json", orient="records", indent=1)
        if metrics is not None:
            (aside / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return folder


@contextmanager
def atomic_replace(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `folder` once it is whole; until then the old one stands."""
    old, new = _old(folder), folder.with_name(f".{folder.name}.new")
    restore_interrupted(folder)
    shutil.rmtree(new, ignore_errors=True)  # what a killed save left behind
    with atomic_directory(new) as aside:
        yield aside
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder, device: str | None = None, dtype: str | None = None, attention: str | None = None) -> QAnchor:
    """Load a run: the backbone from its own place, everything learned from the folder, its hash checked.

    dtype, attention   override the run's (tests use float32 and eager). Without a dtype the backbone reckons in the run's,
                       but in float32 on a processor whose products in bfloat16 crawl.
    Raises RunError when a file is missing, torn, or of another make.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> import tempfile
        >>> load_model(save_model(model, tempfile.mkdtemp() + "/run")).config == qa.TINY
        True
    """
    folder, device = Path(folder), device or best_device()
    restore_interrupted(folder)
    about = read_run_config(folder)
    path = folder / "adapter.safetensors"
    if not path.exists():
        raise RunError(f"{path} is missing: copy the run again, or train it with `python -m qanchor train`")
    told = about.get("sha256")
    found, expected = sha256_file(path), str(told.get("adapter.safetensors") if isinstance(told, dict) else told)
    if found != expected:
        raise RunError(
            f"{path} has sha256 {found[:16]}..., config.json says {expected[:16]}...: torn or swapped, copy the run again"
        )
    try:
        arrays = {_current_name(name): array for name, array in load_arrays(path).items()}
        config = Config(**about["config"])
        config = config.replace(dtype=dtype or config.dtype, attention=attention or config.attention)
        dtype = dtype or compute_dtype(config.dtype, device)
        preprocessor = _load_preprocessor(about, config, arrays)
        model = QAnchor(config, preprocessor, device="cpu", dtype=dtype)
    except (WeightsError, OSError):  # the backbone's own
        raise
    except (SafetensorError, TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RuntimeError) as error:
        told = f"{path if isinstance(error, SafetensorError) else folder / 'config.json'}: {type(error).__name__}: {error}"
        raise RunError(f"{told}: torn, or saved by another version: copy the run again, or train it again") from error
    state = model.state_dict()
    with torch.no_grad():
        for name in trained_state(model):
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


def restore_interrupted(folder: Path) -> None:
    """Put back the old run that a kill between two renames left aside."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)


def load_history(folder) -> pd.DataFrame:
    """Give a run's history frame: step, loss, contrastive, autoregressive, pairs_per_s.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "history.json").write_text('[{"step": 1, "loss": 4.2}]')
        >>> qa.load_history(folder).loss.tolist()
        [4.2]
    """
    return pd.read_json(Path(folder) / "history.json", orient="records")


def read_run_config(folder: Path) -> dict:
    """Read a run's config.json: its config, what its preprocessor knows, and the hash of what it learned."""
    path = folder / "config.json"
    if not path.exists():
        raise RunError(f"{folder} is no run (no config.json): train one with `python -m qanchor train --out {folder}`")
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: {error}: the file is torn, copy the run again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found == 2:
        return _upgrade(about)
    if found != FORMAT:
        raise RunError(f"{path}: format {found}, this version reads {FORMAT}: train the run again")
    return about


def _current_name(tensor: str) -> str:
    """Return today's name of a tensor that may be of format 2."""
    if tensor in LEGACY_TENSORS:
        return LEGACY_TENSORS[tensor]
    return tensor.replace("reader.", "preprocessor.", 1) if tensor.startswith("reader.") else tensor


def _upgrade(about: dict) -> dict:
    """Return the config.json of format 2 under today's names."""
    config = {LEGACY_CONFIG.get(name, name): LEGACY_VALUES.get(value, value) for name, value in about["config"].items()}
    return {**about, "format": FORMAT, "config": config, "preprocessor": about["reader"]}


def _load_preprocessor(about: dict, config: Config, arrays: dict[str, np.ndarray]) -> UserPreprocessor:
    told = about["preprocessor"]
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}  # noqa: E731
    mean, std = part("preprocessor.mean."), part("preprocessor.std.")
    return UserPreprocessor(
        modalities=tuple(told["modalities"]),
        numbers=tuple(told["numbers"]),
        facts=tuple(told["facts"]),
        max_frequent_events=config.max_frequent_events,
        max_recent_events=config.max_recent_events,
        encoder=config.text_encoder,
        token_order=config.token_order,
        vocabulary={name: i for i, name in enumerate(told["vocabulary"])},
        idf=arrays["preprocessor.idf"].astype(np.float32),
        counts=arrays["preprocessor.counts"].astype(np.float32),
        words=arrays["preprocessor.words"].astype(np.float32),
        profile=arrays["preprocessor.profile"].astype(np.float32),
        mean={k: mean[k] for k in told["parts"]},
        std={k: std[k] for k in told["parts"]},
    )
