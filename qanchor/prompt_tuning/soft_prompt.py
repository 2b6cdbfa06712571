"""`SoftPrompt`: a question tuned on labelled users, with one prototype per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qanchor.errors import RunError
from qanchor.inference.engine import Engine
from qanchor.models.serialization import atomic_replace, restore_interrupted
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import disk_errors, read_json, write_json
from qanchor.utils.types import EmbeddingRows

FORMAT = 3
TENSORS = ("vectors", "offset", "prototypes")


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Hold a question, the vectors learned for it, and one prototype per class.

    `tune_prompt` returns one. Use it like a question, alone or in a list: `engine.embed(cache,
    prompt)`. The users are not read again.

    Source: paper, equation 7. There, the vectors are input tokens of the language model.

    Example:
        >>> vectors, offset, prototypes = torch.zeros(6, 384), torch.zeros(384), torch.eye(2, 128)
        >>> SoftPrompt("Why?", (0, 1), vectors, offset, prototypes, 0.07)
        SoftPrompt('Why?', 6 vectors, 2 classes)
    """

    query: str
    classes: tuple  # labels, in the order of the prototypes
    vectors: Float[Tensor, "vector text"]  # their sum is added to the text vector of the question
    offset: Float[Tensor, " text"]  # added to the content vector: what the question points at
    prototypes: Float[Tensor, "label dim"]
    temperature: float
    run: str = ""  # sha256 of the run that it was tuned on; other runs reject it

    def __repr__(self) -> str:
        sizes = f"{len(self.vectors)} vectors, {len(self.classes)} classes"
        return f"SoftPrompt({self.query!r}, {sizes})"

    def predict_proba(self, anchors: EmbeddingRows) -> Float[np.ndarray, "user label"]:
        """Compute class probabilities: softmax of anchor @ prototype / temperature.

        Args:
            anchors: Embeddings of users for this prompt.

        Returns:
            Probabilities in the order of `classes`. They are not calibrated: tuning gives all
            classes equal weight.
        """
        prototypes = F.normalize(self.prototypes, dim=-1)
        logits = torch.from_numpy(anchors).float() @ prototypes.T / self.temperature
        return logits.softmax(-1).numpy()

    def save(self, folder: str | Path) -> Path:
        """Save the prompt as a folder of a few kB: prompt.json and prompt.safetensors.

        Args:
            folder: Folder to write; an existing prompt is replaced.

        Returns:
            The folder.

        Raises:
            ValueError: If the model was not loaded from a run, or the folder holds other files.
        """
        folder = require_vacant(Path(folder))
        if not self.run:
            raise ValueError(
                f"{folder}: the prompt was tuned on a model that was not loaded from a run. "
                "Save the model, load the run, and tune again."
            )
        with atomic_replace(folder) as aside:
            path = aside / "prompt.safetensors"
            with disk_errors(folder):
                save_file({name: getattr(self, name).contiguous() for name in TENSORS}, path)
            about = {
                "format": FORMAT,
                "query": self.query,
                "classes": self.classes,
                "temperature": self.temperature,
                "run": self.run,
                "sha256": sha256_file(path),
            }
            write_json(aside / "prompt.json", about)
        return folder

    @staticmethod
    def load(folder: str | Path, engine: Engine) -> SoftPrompt:
        """Load a saved prompt.

        Args:
            folder: Folder written by `save`.
            engine: Engine that serves the run that the prompt was tuned on.

        Returns:
            The prompt.

        Raises:
            RunError: If a file is missing or damaged, or the prompt belongs to another run.
        """
        folder = Path(folder)
        restore_interrupted(folder)
        path = folder / "prompt.json"
        if not path.exists():
            raise RunError(
                f"{folder} is not a soft prompt (no prompt.json). "
                f"Tune one with `qanchor tune-prompt --out {folder}`."
            )
        try:
            prompt = _read_prompt(folder)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise RunError(
                f"{folder} is damaged or was saved by another version: {error}. "
                "Copy it again, or tune it again."
            ) from error
        if prompt.run != engine.model.run:
            served = engine.model.run[:16] or "none"
            raise RunError(
                f"{folder} was tuned on run {prompt.run[:16]}, but this engine serves run {served}."
                " Load that run, or tune again."
            )
        return prompt


def _read_prompt(folder: Path) -> SoftPrompt:
    about = read_json(folder / "prompt.json")
    path = folder / "prompt.safetensors"
    digest = sha256_file(path)
    expected = about["sha256"]
    if digest != expected or about["format"] != FORMAT:
        raise ValueError(
            f"{path.name} has sha256 {digest[:16]} (prompt.json says {expected[:16]}), "
            f"format {about['format']} (this version reads {FORMAT})"
        )
    if not isinstance(about["query"], str) or not isinstance(about["run"], str):
        raise ValueError(f"query {about['query']!r} or run {about['run']!r} is not a string")
    tensors = load_file(path)
    return SoftPrompt(
        query=about["query"],
        classes=tuple(about["classes"]),
        temperature=about["temperature"],
        run=about["run"],
        **{name: tensors[name] for name in TENSORS},
    )


def require_vacant(folder: Path) -> Path:
    """Check that saving a prompt overwrites nothing: the folder is new, empty or a soft prompt.

    Args:
        folder: Folder to write.

    Returns:
        The folder.

    Raises:
        ValueError: If it holds anything else.
    """
    if folder.exists() and not (folder / "prompt.json").exists():
        names = sorted(path.name for path in folder.iterdir())
        if names:
            raise ValueError(
                f"{folder} holds {names[0]!r} but no prompt.json. "
                "Choose a new folder, or the folder of a soft prompt."
            )
    return folder
