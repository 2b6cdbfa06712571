"""Checkpoints that survive a kill at any time and cannot be resumed by another training run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from qanchor.errors import CheckpointError
from qanchor.utils.io import atomic_write

DIGEST_BYTES = 32  # of sha256


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

    The file holds the sha256 of its content, then the key and the state, written by `torch.save`.

    Args:
        path: The file.
        key: Fingerprint of the training run.

    Example:
        >>> import tempfile
        >>> checkpoint = Checkpoint(Path(tempfile.mkdtemp()) / "state", "key")
        >>> checkpoint.write({"weight": torch.ones(2), "step": 10})
        >>> checkpoint.read()["step"]
        10
    """

    path: Path
    key: str

    def write(self, state: dict) -> None:
        """Write a state and replace the previous one.

        Args:
            state: Tensors, numbers and strings, in dicts and lists.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_partial_files()
        buffer = BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).digest()
        atomic_write(self.path, lambda aside: aside.write_bytes(digest + content))

    def read(self) -> dict | None:
        """Read the state.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            CheckpointError: If it is damaged, or belongs to another training run.
        """
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        digest = content[:DIGEST_BYTES]
        content = content[DIGEST_BYTES:]
        if digest != hashlib.sha256(content).digest():
            raise CheckpointError(
                f"{self.path} is damaged: its content does not match its checksum. Remove it and"
                " train from the start."
            )
        saved = torch.load(BytesIO(content), "cpu", weights_only=True)
        if saved["key"] != self.key:
            raise CheckpointError(
                f"{self.path} belongs to another training run. Remove it, or use the same data and"
                " settings."
            )
        return saved["state"]

    def remove(self) -> None:
        """Remove the checkpoint, once the run is saved."""
        self.path.unlink(missing_ok=True)
        self._remove_partial_files()

    def _remove_partial_files(self) -> None:
        """Remove files left by a killed process."""
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink(missing_ok=True)
