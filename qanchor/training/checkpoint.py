"""Checkpoints that survive a kill at any time and cannot be resumed by another training run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from qanchor.errors import CheckpointError
from qanchor.utils.io import atomic_write

DIGEST_BYTES = 32  # of sha256
LENGTH_BYTES = 8


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

    The file holds the sha256 of the rest, the length of a JSON object, the object (the key and the
    state, with names in place of tensors), and the tensors as safetensors. Nothing is pickled.

    Args:
        path: The file.
        key: Fingerprint of the training run.

    Example:
        >>> import tempfile, torch
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
        tensors: dict[str, Tensor] = {}
        about = {"key": self.key, "state": _without_tensors(state, tensors)}
        head = json.dumps(about).encode()
        length = len(head).to_bytes(LENGTH_BYTES, "little")
        content = length + head + safetensors.torch.save(tensors)
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
        end = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
        about = json.loads(content[LENGTH_BYTES:end])
        if about["key"] != self.key:
            raise CheckpointError(
                f"{self.path} belongs to another training run. Remove it, or use the same data and"
                " settings."
            )
        return _with_tensors(about["state"], safetensors.torch.load(content[end:]))

    def remove(self) -> None:
        """Remove the checkpoint, once the run is saved."""
        self.path.unlink(missing_ok=True)
        self._remove_partial_files()

    def _remove_partial_files(self) -> None:
        """Remove files left by a killed process."""
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink(missing_ok=True)


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested dicts and lists as JSON can hold them, and move their tensors to `tensors`.

    A dict becomes pairs, because its keys may be numbers.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _without_tensors(part, tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(part, tensors) for part in value]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what `_without_tensors` was given."""
    if isinstance(value, list):
        return [_with_tensors(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _with_tensors(part, tensors) for key, part in value["dict"]}
