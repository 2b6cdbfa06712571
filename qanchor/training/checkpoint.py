"""Checkpoints that survive a kill at any time, and refuse to continue another training."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qanchor.errors import CheckpointError
from qanchor.utils.io import atomic_write, disk_errors


class CheckpointState(NamedTuple):
    """Hold what a checkpoint stores."""

    state: dict[str, Tensor]  # weights and optimizer state
    step: int  # joint steps done
    total: int  # joint steps planned
    rows: list[dict]  # history so far


def fingerprint(config: dict, seed: int, pairs: pd.DataFrame, numbers: np.ndarray) -> str:
    """Compute a hash that tells one training from another.

    Args:
        config: Configuration; the number of steps is left out, so that a training can be extended.
        seed: Seed.
        pairs: Training pairs.
        numbers: Coarse numbers of the samples.

    Returns:
        16 hexadecimal digits.
    """
    settings = {name: value for name, value in config.items() if name != "steps"} | {"seed": seed}
    content = hashlib.sha256(json.dumps(settings).encode())
    content.update(pd.util.hash_pandas_object(pairs, index=False).to_numpy().tobytes())
    content.update(np.ascontiguousarray(numbers).tobytes())
    return content.hexdigest()[:16]


class Checkpoint:
    """Store the newest state of a training in a file, and the one before it beside that file.

    Args:
        path: File of the newest state.
        key: Fingerprint of the training.

    Example:
        >>> import tempfile, torch
        >>> checkpoint = Checkpoint(Path(tempfile.mkdtemp()) / "state", "key")
        >>> checkpoint.write({"weight": torch.ones(2)}, 10, 60, [])
        >>> checkpoint.read().step
        10
    """

    def __init__(self, path: Path, key: str):
        self.path = path
        self.before = path.with_name(f"{path.name}.before")
        self.key = key
        self.is_damaged = False  # a damaged newest state must not replace the one before it

    def write(self, state: dict[str, Tensor], step: int, total: int, rows: list[dict]) -> None:
        """Write a state; at least one complete state exists at any time.

        Args:
            state: Weights and optimizer state.
            step: Joint steps done.
            total: Joint steps planned.
            rows: History so far.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_partial_files()
        metadata = {
            "key": self.key,
            "step": str(step),
            "total": str(total),
            "rows": json.dumps(rows),
        }
        metadata["sha256"] = _digest(state, metadata)

        def write_file(aside: Path) -> None:
            with disk_errors(self.path):
                save_file(state, aside, metadata=metadata)
            if self.path.exists() and not self.is_damaged:
                self.path.replace(self.before)

        atomic_write(self.path, write_file)
        self.is_damaged = False

    def read(self) -> CheckpointState | None:
        """Read the newest complete state.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            CheckpointError: If all states are damaged, or of another training.
        """
        existing = [path for path in (self.path, self.before) if path.exists()]
        problems = []
        for path in existing:
            try:
                found = self._read_file(path)
            except CheckpointError:
                raise
            except (SafetensorError, ValueError, KeyError, OSError) as error:
                problems.append(f"{path}: torn ({error})")
                continue
            if problems:
                self.is_damaged = True
                warnings.warn(
                    f"{problems[0]}; going on from the one before it, step {found.step}",
                    stacklevel=2,
                )
            return found
        if problems:
            files = " and ".join(str(path) for path in existing)
            raise CheckpointError(f"{'; '.join(problems)}: remove {files} and train from the start")
        return None

    def remove(self) -> None:
        """Remove the checkpoint, once the run is saved."""
        for path in (self.path, self.before):
            path.unlink(missing_ok=True)
        self._remove_partial_files()

    def _remove_partial_files(self) -> None:
        """Remove what a killed process was writing."""
        for partial in self.path.parent.glob(f".{self.path.name}.*.part"):
            partial.unlink(missing_ok=True)

    def _read_file(self, path: Path) -> CheckpointState:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
        if metadata.pop("sha256") != _digest(state, metadata):
            raise ValueError("its hash is not the one it was written with")
        if metadata["key"] != self.key:
            raise CheckpointError(
                f"{path} is of another training ({metadata['key']}; now {self.key}): "
                f"remove {self.path} and {self.before}, or train as before"
            )
        step = int(metadata["step"])
        total = int(metadata["total"])
        return CheckpointState(state, step, total, json.loads(metadata["rows"]))


def _digest(state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Return the sha256 of metadata, and of names, dtypes, shapes and bytes of all tensors."""
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        content.update(tensor.flatten().view(-1).numpy().tobytes())
    return content.hexdigest()
