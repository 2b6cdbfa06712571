"""Save and load runs: safetensors and JSON, written atomically and checked by hash, no pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from qanchor.config import Config
from qanchor.errors import RunError, WeightsError
from qanchor.models.associations import Associations
from qanchor.models.crossing import LateCrossing
from qanchor.models.model import QAnchor
from qanchor.models.pointing import PointingReader, is_pretrained
from qanchor.models.pointing_model import NO_BACKBONE, PointingModel
from qanchor.models.population import Population
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.useru.concepts import Concept
from qanchor.utils.device import best_device, compute_dtype
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_directory, disk_errors, read_resource_rows

FORMAT = 3
LEGACY_FORMAT = 2  # `legacy_names.csv` maps its names to those of today; "" drops a field
READER_FILE = "reader.safetensors"
CONCEPTS_FILE = "concepts.json"
POINTING = "pointing"  # kind of a run from `fit`
POPULATION_ARRAYS = ("rarity", "values", "levels", "share_base")
ASSOCIATION_ARRAYS = ("factors", "mean", "spread", "heads", "covariance")
BROKEN_RUN_ERRORS = (
    SafetensorError,
    TypeError,
    AttributeError,
    LookupError,
    ValueError,
    ArithmeticError,
    RuntimeError,
)
PREPROCESSOR_ARRAYS = ("idf", "counts", "words", "profile")


def trained_state(model: QAnchor) -> dict[str, torch.Tensor]:
    """Return the tensors that a run stores: all but the pretrained weights.

    Args:
        model: Model with LoRA not merged.

    Returns:
        Tensors by name.
    """
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "lora_" in name or not name.startswith(("backbone.", "pointing."))
    }


def save_model(
    model: QAnchor,
    folder: str | Path,
    history: pd.DataFrame | None = None,
    metrics: dict | None = None,
) -> Path:
    """Save a model as a run. See `QAnchor.save_pretrained`.

    Args:
        model: Model with LoRA not merged.
        folder: Folder to write.
        history: Training history. Default: none.
        metrics: Anything JSON can hold. Default: none.

    Returns:
        The folder.

    Raises:
        ValueError: If LoRA was merged into the weights.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder)
    has_lora = any("lora_" in name for name in model.backbone.state_dict())
    if model.config.lora_num_layers and not has_lora:
        raise ValueError(
            f"{folder}: this model's LoRA was folded into its weights by Engine: "
            "save it before you serve it"
        )
    tensors = _model_arrays(model) | _preprocessor_arrays(model)
    with _new_run(folder, history, metrics) as (aside, about):
        save_arrays(tensors, aside / "adapter.safetensors")
        if model.pointing is not None:
            _save_reader(model.pointing, aside)
        preprocessor = model.preprocessor
        about["config"] = model.config.to_dict()
        about["preprocessor"] = {
            "modalities": preprocessor.modalities,
            "numbers": preprocessor.numbers,
            "facts": preprocessor.facts,
            "vocabulary": list(preprocessor.vocabulary),
            "parts": list(preprocessor.mean),  # in the order of the coarse numbers
        }
    return folder


def save_pointing_model(
    model: PointingModel,
    folder: str | Path,
    history: pd.DataFrame | None = None,
    metrics: dict | None = None,
) -> Path:
    """Save a pointing model as a run. See `PointingModel.save_pretrained`.

    Args:
        model: Trained model.
        folder: Folder to write.
        history: Training history (default: none).
        metrics: Anything JSON can hold (default: none).

    Returns:
        The folder.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    with _new_run(folder, history, metrics) as (aside, about):
        _save_reader(model, aside)
        about["kind"] = POINTING
        about["config"] = model.config.to_dict()
        about["numbers"] = model.population.named("number")
    return folder


@contextmanager
def _new_run(
    folder: Path, history: pd.DataFrame | None, metrics: dict | None
) -> Iterator[tuple[Path, dict]]:
    """Yield a folder for the files of a run, and a dict that becomes its config.json."""
    with atomic_replace(folder) as aside:
        about = {"format": FORMAT}
        with disk_errors(folder):
            yield aside, about
        about["sha256"] = {path.name: sha256_file(path) for path in sorted(aside.iterdir())}
        (aside / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        if history is not None:
            history.round(5).to_json(aside / "history.json", orient="records", indent=1)
        if metrics is not None:
            (aside / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


def _save_reader(model: PointingModel, folder: Path) -> None:
    """Write the pointing reader, its concepts and its population."""
    arrays = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in model.reader.state_dict().items()
        if not is_pretrained(name)
    }
    population = model.population
    arrays |= {f"population.{name}": getattr(population, name) for name in POPULATION_ARRAYS}
    associations = population.associations
    arrays |= {f"associations.{name}": getattr(associations, name) for name in ASSOCIATION_ARRAYS}
    # safetensors writes the memory of an array, whatever its strides
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_arrays(arrays, folder / READER_FILE)
    about = {
        "concepts": [concept.to_dict() for concept in model.concepts],
        "things": population.things,
        "users": population.n_users,
        "main_number": population.main_number,
    }
    (folder / CONCEPTS_FILE).write_text(json.dumps(about, indent=1) + "\n")


def _load_pointing_model(folder: Path, about: dict) -> PointingModel | None:
    """Load the pointing model of a run, if the run has one."""
    digests = about.get("sha256")
    if not isinstance(digests, dict) or READER_FILE not in digests:
        return None
    for name in (READER_FILE, CONCEPTS_FILE):
        _check_digest(folder / name, about)
    try:
        config = Config(**about["config"])
        arrays = load_arrays(folder / READER_FILE)
        told = json.loads((folder / CONCEPTS_FILE).read_text())
        concepts = tuple(
            Concept(**(concept | {"things": tuple(concept["things"])}))
            for concept in told["concepts"]
        )
        associations = Associations(
            things=tuple(told["things"]),
            **{name: arrays.pop(f"associations.{name}") for name in ASSOCIATION_ARRAYS},
        )
        population = Population(
            associations=associations,
            things=tuple(told["things"]),
            n_users=told["users"],
            main_number=told["main_number"],
            **{name: arrays.pop(f"population.{name}") for name in POPULATION_ARRAYS},
        )
        text = arrays["directions"].shape[0]
        body = None
        if config.backbone != NO_BACKBONE and about.get("kind") == POINTING:
            body = LateCrossing(config.backbone, text, config.lora_num_layers)
        reader = PointingReader(text, body)
        tensors = {name: torch.from_numpy(part) for name, part in arrays.items()}
        own = {name for name in reader.state_dict() if not is_pretrained(name)}
        if own != set(tensors):
            raise ValueError(f"it lacks or adds {', '.join(sorted(own ^ set(tensors))[:3])}")
        reader.load_state_dict(tensors, strict=False)
    except WeightsError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError, LookupError) as error:
        raise RunError(
            f"{folder / READER_FILE}: {error}. It was saved by another version: train the run again."
        ) from error
    model = PointingModel(config, reader, concepts, population)
    model.run = digests[READER_FILE]
    return model.eval().requires_grad_(False)


def _is_tiny(model: QAnchor) -> bool:
    return model.config.backbone == "tiny"  # its runs stay in float32, for exact tests


def _model_arrays(model: QAnchor) -> dict[str, np.ndarray]:
    """Return the trained tensors in half precision."""
    dtype = torch.float32 if _is_tiny(model) else torch.float16
    arrays = {}
    for name, tensor in trained_state(model).items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16: store its bits as int16
            arrays[name] = tensor.view(torch.int16).numpy()
        else:
            arrays[name] = tensor.to(dtype).numpy()
    return arrays


def _preprocessor_arrays(model: QAnchor) -> dict[str, np.ndarray]:
    """Return the arrays of the preprocessor; means and standard deviations in full precision."""
    preprocessor = model.preprocessor
    dtype = np.float32 if _is_tiny(model) else np.float16
    arrays = {}
    for name in PREPROCESSOR_ARRAYS:
        array = getattr(preprocessor, name)
        arrays[f"preprocessor.{name}"] = np.ascontiguousarray(array, dtype)
    for name in preprocessor.mean:
        arrays[f"preprocessor.mean.{name}"] = np.asarray(preprocessor.mean[name], np.float32)
        arrays[f"preprocessor.std.{name}"] = np.asarray(preprocessor.std[name], np.float32)
    return arrays


@contextmanager
def atomic_replace(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into; it replaces `folder` only when the block succeeds.

    Args:
        folder: Folder to create or replace.
    """
    old = _old_folder(folder)
    new = folder.with_name(f".{folder.name}.new")
    restore_interrupted(folder)
    shutil.rmtree(new, ignore_errors=True)  # left by a save that was killed
    with atomic_directory(new) as aside:
        yield aside
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(
    folder: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
) -> QAnchor | PointingModel:
    """Load a run. See `QAnchor.from_pretrained`.

    Args:
        folder: Folder of the run.
        device: Torch device; default: the GPU if there is one, else the CPU.
        dtype: Dtype of the backbone; default: the run's own, or float32 on CPUs without fast
            bfloat16 products.
        attention: "sdpa" or "eager"; default: the run's own.

    Returns:
        The model, in evaluation mode.

    Raises:
        RunError: If a file is missing, damaged, or of another format.
    """
    folder = Path(folder)
    device = device or best_device()
    restore_interrupted(folder)
    about = read_run_config(folder)
    if about.get("kind") == POINTING:
        pointing = _load_pointing_model(folder, about)
        if pointing is None:
            raise RunError(f"{folder / 'config.json'} names no {READER_FILE}. Train the run again.")
        return pointing
    path = folder / "adapter.safetensors"
    digest = _check_digest(path, about)
    try:
        arrays = {_current_tensor_name(name): array for name, array in load_arrays(path).items()}
        config = Config(**about["config"])
        config = config.replace(
            dtype=dtype or config.dtype, attention=attention or config.attention
        )
        preprocessor = _load_preprocessor(about, config, arrays)
        dtype = dtype or compute_dtype(config.dtype, device)
        model = QAnchor(config, preprocessor, device="cpu", dtype=dtype)
    except (WeightsError, OSError):  # of the backbone
        raise
    except BROKEN_RUN_ERRORS as error:
        file = path if isinstance(error, SafetensorError) else folder / "config.json"
        raise RunError(
            f"{file}: {type(error).__name__}: {error}: torn, or saved by another version: "
            "copy the run again, or train it again"
        ) from error
    _copy_weights(model, arrays, path)
    model.pointing = _load_pointing_model(folder, about)
    model.run = digest
    return model.to(device).eval()


def _check_digest(path: Path, about: dict) -> str:
    """Return the sha256 of the weights file, or raise if it is not the one in config.json."""
    if not path.exists():
        raise RunError(
            f"{path} is missing: copy the run again, or train it with `python -m qanchor train`"
        )
    recorded = about.get("sha256")
    if isinstance(recorded, dict):
        recorded = recorded.get(path.name)
    found = sha256_file(path)
    expected = str(recorded)
    if found != expected:
        raise RunError(
            f"{path} has sha256 {found[:16]}..., config.json says {expected[:16]}...: "
            "torn or swapped, copy the run again"
        )
    return found


@torch.no_grad()
def _copy_weights(model: QAnchor, arrays: dict[str, np.ndarray], path: Path) -> None:
    state = model.state_dict()
    for name in trained_state(model):
        if name not in arrays:
            raise RunError(f"{path} lacks {name}: it was saved by another version, train it again")
        value = torch.from_numpy(arrays[name])
        if value.dtype == torch.int16:  # the bits of bfloat16
            value = value.view(torch.bfloat16)
        if value.shape != state[name].shape:  # copy_ would broadcast a smaller one
            raise RunError(
                f"{path}: {name} is {tuple(value.shape)}, config.json asks for "
                f"{tuple(state[name].shape)}: train the run again"
            )
        state[name].copy_(value)


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def restore_interrupted(folder: Path) -> None:
    """Restore the old run if a save was killed between its two renames.

    Args:
        folder: Folder of the run.
    """
    if not folder.exists() and _old_folder(folder).exists():
        _old_folder(folder).rename(folder)


def load_history(folder: str | Path) -> pd.DataFrame:
    """Load the training history of a run.

    Args:
        folder: Folder of the run.

    Returns:
        One row a joint step: step, loss, contrastive, autoregressive, pairs_per_s.

    Raises:
        FileNotFoundError: If the run was saved without a history.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "history.json").write_text('[{"step": 1, "loss": 4.2}]')
        >>> qa.load_history(folder).loss.tolist()
        [4.2]
    """
    return pd.read_json(Path(folder) / "history.json", orient="records")


def read_run_config(folder: Path) -> dict:
    """Read the config.json of a run, under the names of today.

    Args:
        folder: Folder of the run.

    Returns:
        `config`, `preprocessor` and `sha256`.

    Raises:
        RunError: If the file is missing, damaged, or of another format.
    """
    path = folder / "config.json"
    if not path.exists():
        raise RunError(
            f"{folder} is no run (no config.json): "
            f"train one with `python -m qanchor train --out {folder}`"
        )
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: {error}: the file is torn, copy the run again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found == LEGACY_FORMAT:
        return _upgrade(about)
    if found != FORMAT:
        raise RunError(f"{path}: format {found}, this version reads {FORMAT}: train the run again")
    return about


def number_columns(about: dict) -> list[str]:
    """Return the number columns that a run reads.

    Args:
        about: From `read_run_config`.
    """
    if about.get("kind") == POINTING:
        return about["numbers"]
    return about["preprocessor"]["numbers"]


@cache
def _legacy_names(kind: str) -> dict[str, str]:
    rows = read_resource_rows("qanchor.models", "legacy_names.csv")
    return {row["old"]: row["new"] for row in rows if row["kind"] == kind}


def _current_tensor_name(name: str) -> str:
    """Return the name of today of a tensor that may be of format 2."""
    for old, new in _legacy_names("tensor").items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return name.replace(old, new, 1)
    return name


def _upgrade(about: dict) -> dict:
    """Return a config.json of format 2 under the names of today."""
    fields = _legacy_names("config")
    values = _legacy_names("value")
    config = {
        fields.get(name, name): values.get(value, value) for name, value in about["config"].items()
    }
    config.pop("", None)
    return about | {"format": FORMAT, "config": config, "preprocessor": about["reader"]}


def _load_preprocessor(
    about: dict, config: Config, arrays: dict[str, np.ndarray]
) -> UserPreprocessor:
    columns = about["preprocessor"]
    learned = {
        name: arrays[f"preprocessor.{name}"].astype(np.float32) for name in PREPROCESSOR_ARRAYS
    }
    return UserPreprocessor(
        modalities=tuple(columns["modalities"]),
        numbers=tuple(columns["numbers"]),
        facts=tuple(columns["facts"]),
        max_frequent_events=config.max_frequent_events,
        max_recent_events=config.max_recent_events,
        encoder=config.text_encoder,
        token_order=config.token_order,
        vocabulary={name: i for i, name in enumerate(columns["vocabulary"])},
        mean={part: arrays[f"preprocessor.mean.{part}"] for part in columns["parts"]},
        std={part: arrays[f"preprocessor.std.{part}"] for part in columns["parts"]},
        **learned,
    )
