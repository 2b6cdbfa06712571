"""Save and load runs: safetensors and JSON, written atomically, verified by hash, no pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

from qanchor.errors import RunError, WeightsError
from qanchor.models.associations import Associations
from qanchor.models.model import Config, QAnchor, make_body
from qanchor.models.pointing import PointingReader, is_pretrained
from qanchor.models.population import Population
from qanchor.useru.concepts import Concept
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_directory, disk_errors, write_json

FORMAT = 7
WEIGHTS_FILE = "reader.safetensors"
CONCEPTS_FILE = "concepts.json"
OPTIONAL_FILES = ("history.json", "metrics.json")
POPULATION_ARRAYS = ("rarity", "values", "levels", "share_base")
ASSOCIATION_ARRAYS = ("factors", "mean", "spread", "heads", "covariance")


def save_model(model: QAnchor, folder: str | Path, metrics: dict | None = None) -> Path:
    """Save a model as a run. See `QAnchor.save_pretrained`.

    Args:
        model: Trained model.
        folder: Folder to write.
        metrics: Anything JSON can hold (default: none).
    """
    folder = Path(folder)
    with atomic_replace(folder, OPTIONAL_FILES) as aside, disk_errors(folder):
        _save_weights(model, aside / WEIGHTS_FILE)
        content = {
            "concepts": [concept.to_dict() for concept in model.concepts],
            "things": model.population.things,
            "users": model.population.n_users,
            "main_number": model.population.main_number,
        }
        write_json(aside / CONCEPTS_FILE, content)
        about = {
            "format": FORMAT,
            "config": asdict(model.config),
            "numbers": model.population.named("number"),
            "sha256": {path.name: sha256_file(path) for path in sorted(aside.iterdir())},
        }
        write_json(aside / "config.json", about)
        if model.history is not None:
            model.history.round(5).to_json(aside / "history.json", orient="records", indent=1)
        if metrics is not None:
            write_json(aside / "metrics.json", metrics)
    return folder


def _save_weights(model: QAnchor, path: Path) -> None:
    """Write the weights of the reader and the arrays of its population."""
    arrays = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in model.reader.state_dict().items()
        if not is_pretrained(name)
    }
    population = model.population
    arrays |= {f"population.{name}": getattr(population, name) for name in POPULATION_ARRAYS}
    associations = population.associations
    arrays |= {f"associations.{name}": getattr(associations, name) for name in ASSOCIATION_ARRAYS}
    # safetensors ignores strides, so arrays must be contiguous
    save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


@contextmanager
def atomic_replace(folder: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` only when the block succeeds.

    Other files in `folder` are kept.

    Args:
        folder: Folder to create or replace.
        stale: Names of files to remove even if they are not rewritten (default: none).
    """
    old = _old_folder(folder)
    new = folder.with_name(f".{folder.name}.new")
    restore_interrupted(folder)
    shutil.rmtree(new, ignore_errors=True)  # left by a killed save
    with atomic_directory(new) as aside:
        yield aside
        _copy_others(folder, aside, stale)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _copy_others(folder: Path, aside: Path, stale: Sequence[str]) -> None:
    """Copy what is in a folder and was not rewritten."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        target = aside / path.name
        if path.name in stale or target.exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target, follow_symlinks=False)


def restore_interrupted(folder: Path) -> None:
    """Restore the old run if a save was killed between its two renames.

    Args:
        folder: Folder of the run.
    """
    if not folder.exists() and _old_folder(folder).exists():
        _old_folder(folder).rename(folder)


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def load_model(folder: str | Path) -> QAnchor:
    """Load a run. See `QAnchor.from_pretrained`.

    Args:
        folder: Folder of the run.
    """
    folder = Path(folder)
    restore_interrupted(folder)
    about = read_run_config(folder)
    for name in (WEIGHTS_FILE, CONCEPTS_FILE):
        _check_digest(folder / name, about)
    try:
        config = Config(**about["config"])
        arrays = load_arrays(folder / WEIGHTS_FILE)
        content = json.loads((folder / CONCEPTS_FILE).read_text())
        concepts = tuple(
            Concept(**(concept | {"things": tuple(concept["things"])}))
            for concept in content["concepts"]
        )
        population = _population(content, arrays)
        reader = _reader(config, arrays)
    except WeightsError:
        raise
    except (SafetensorError, RuntimeError, TypeError, ValueError, LookupError) as error:
        raise RunError(
            f"{folder / WEIGHTS_FILE}: {error}. It was saved by another version; train the run"
            " again."
        ) from error
    path = folder / "history.json"
    history = pd.read_json(path, orient="records") if path.exists() else None
    model = QAnchor(config, reader, concepts, population, history)
    model.run = about["sha256"][WEIGHTS_FILE]
    return model.eval().requires_grad_(False)


def _population(content: dict, arrays: dict[str, np.ndarray]) -> Population:
    """Return the population of a run; its arrays are taken out of `arrays`."""
    things = tuple(content["things"])
    associations = {name: arrays.pop(f"associations.{name}") for name in ASSOCIATION_ARRAYS}
    return Population(
        associations=Associations(things=things, **associations),
        things=things,
        n_users=content["users"],
        main_number=content["main_number"],
        **{name: arrays.pop(f"population.{name}") for name in POPULATION_ARRAYS},
    )


def _reader(config: Config, arrays: dict[str, np.ndarray]) -> PointingReader:
    """Return the reader of a run."""
    text = arrays["directions"].shape[0]
    reader = PointingReader(text, make_body(config, text))
    own = {name for name in reader.state_dict() if not is_pretrained(name)}
    if own != set(arrays):
        raise ValueError(f"missing or unexpected: {', '.join(sorted(own ^ set(arrays))[:3])}")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    reader.load_state_dict(tensors, strict=False)
    return reader


def _check_digest(path: Path, about: dict) -> None:
    """Raise RunError unless the hash of a file is the one in config.json."""
    if not path.exists():
        raise RunError(f"{path} is missing. Copy the run again, or train it with `qanchor fit`.")
    expected = about["sha256"].get(path.name)
    digest = sha256_file(path)
    if digest != expected:
        raise RunError(
            f"{path} has sha256 {digest[:16]}..., but config.json says {str(expected)[:16]}..."
            " The file is damaged or belongs to another run; copy the run again."
        )


def read_run_config(folder: Path) -> dict:
    """Read the config.json of a run.

    Args:
        folder: Folder of the run.

    Returns:
        `config`, `numbers` (the number columns that it reads) and `sha256` of its files.

    Raises:
        RunError: The file is missing, damaged, or has another format.
    """
    path = folder / "config.json"
    if not path.exists():
        raise RunError(
            f"{folder} is not a run (no config.json). Train one with `qanchor fit --out {folder}`."
        )
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}). Copy the run again.") from error
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        raise RunError(
            f"{path} has format {version}, but this version reads {FORMAT}. Train the run again"
            " with `qanchor fit`."
        )
    if not isinstance(about.get("sha256"), dict):
        raise RunError(f"{path} lists no files with their sha256. Copy the run again.")
    return about
