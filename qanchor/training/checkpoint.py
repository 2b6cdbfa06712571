"""Checkpoints that survive a kill at any time and cannot be resumed by another training run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from qanchor.errors import CheckpointError
from qanchor.utils.io import atomic_write, disk_errors


class CheckpointState(NamedTuple):
    """Hold what a checkpoint stores."""

    state: dict[str, Tensor]  # weights and optimizer state
    step: int  # steps done
    about: dict  # anything JSON can hold, such as the history so far


def fingerprint(settings: dict, arrays: Iterable[np.ndarray]) -> str:
    """Compute a hash that identifies a training run.

    Args:
        settings: Anything JSON can hold.
        arrays: Training data.

    Returns:
        16 hexadecimal digits.
    """
    content = hashlib.sha256(json.dumps(settings).encode())
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoint:
    """Store the latest state of a training run in a file, which is never left half-written.

    Args:
        path: The file.
        key: Fingerprint of the training run.

    Example:
        >>> import tempfile, torch
        >>> checkpoint = Checkpoint(Path(tempfile.mkdtemp()) / "state", "key")
        >>> checkpoint.write({"weight": torch.ones(2)}, 10, {})
        >>> checkpoint.read().step
        10
    """

    path: Path
    key: str

    def write(self, state: dict[str, Tensor], step: int, about: dict) -> None:
        """Write a state and replace the previous one.

        Args:
            state: Weights and optimizer state.
            step: Steps done.
            about: Anything JSON can hold.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_partial_files()
        metadata = {"key": self.key, "step": str(step), "about": json.dumps(about)}
        metadata["sha256"] = _digest(state, metadata)
        with disk_errors(self.path):
            atomic_write(self.path, partial(save_file, state, metadata=metadata))

    def read(self) -> CheckpointState | None:
        """Read the state.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            CheckpointError: If it is damaged, or belongs to another training run.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata()
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _digest(state, metadata) != metadata["sha256"]:
                raise ValueError("its content does not match its checksum")
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged: {error}. Remove it and train from the start."
            ) from error
        if metadata["key"] != self.key:
            raise CheckpointError(
                f"{self.path} belongs to another training run. Remove it, or use the same data and"
                " settings."
            )
        return CheckpointState(state, int(metadata["step"]), json.loads(metadata["about"]))

    def remove(self) -> None:
        """Remove the checkpoint, once the run is saved."""
        self.path.unlink(missing_ok=True)
        self._remove_partial_files()

    def _remove_partial_files(self) -> None:
        """Remove files left by a killed process."""
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink(missing_ok=True)


def _digest(state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Return a hash of everything that a checkpoint stores."""
    values = json.dumps([metadata[name] for name in ("key", "step", "about")])
    return hashlib.sha256(save(state) + values.encode()).hexdigest()
