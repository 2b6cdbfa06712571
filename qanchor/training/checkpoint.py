"""Checkpoints that survive a kill at any moment: written aside, hashed, the one before kept, and bound to what was trained."""

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
    """What a checkpoint holds: every tensor of the state, the step it was taken at, the steps planned, the history so far."""

    state: dict[str, Tensor]
    step: int
    total: int
    rows: list[dict]


def fingerprint(config: dict, seed: int, pairs: pd.DataFrame, numbers: np.ndarray) -> str:
    """Tell one training from another: its configuration (but for the number of steps), seed, pairs, and the numbers read."""
    content = hashlib.sha256(json.dumps({k: v for k, v in config.items() if k != "steps"} | {"seed": seed}).encode())
    content.update(pd.util.hash_pandas_object(pairs, index=False).to_numpy().tobytes())
    content.update(np.ascontiguousarray(numbers).tobytes())
    return content.hexdigest()[:16]


class Checkpoint:
    """Keep the newest state in `path` and the one before it beside it, both for one training (`key`).

    Example:
        >>> import tempfile, torch
        >>> kept = Checkpoint(Path(tempfile.mkdtemp()) / "state", "key")
        >>> kept.write({"weight": torch.ones(2)}, 10, 60, [])
        >>> kept.read().step
        10
    """

    def __init__(self, path: Path, key: str):
        self.path, self.before, self.key = path, path.with_name(f"{path.name}.before"), key
        self.torn = False  # a torn newest one must not take the place of the one before it

    def write(self, state: dict[str, Tensor], step: int, total: int, rows: list[dict]) -> None:
        """Write the state aside, keep the one before it, put the new one in place: a kill at any moment leaves one whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        told = {"key": self.key, "step": str(step), "total": str(total), "rows": json.dumps(rows)}
        told["sha256"] = _hash(state, told)

        def fill(aside: Path) -> None:
            with disk_errors(self.path):
                save_file(state, aside, metadata=told)
            if self.path.exists() and not self.torn:
                self.path.replace(self.before)

        atomic_write(self.path, fill)
        self.torn = False

    def read(self) -> CheckpointState | None:
        """Give the newest whole state; None when there is none at all.

        Raises CheckpointError when what is there is torn, or belongs to another training.
        """
        there = [path for path in (self.path, self.before) if path.exists()]
        faults = []
        for path in there:
            try:
                found = self._open(path)
            except CheckpointError:
                raise
            except (SafetensorError, ValueError, KeyError, OSError) as error:
                faults.append(f"{path}: torn ({error})")
                continue
            if faults:
                self.torn = True
                warnings.warn(f"{faults[0]}; going on from the one before it, step {found.step}", stacklevel=2)
            return found
        if faults:
            raise CheckpointError(f"{'; '.join(faults)}: remove {' and '.join(map(str, there))} and train from the start")
        return None

    def remove(self) -> None:
        """Remove both, when the run is kept."""
        for path in (self.path, self.before):
            path.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed process was writing."""
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink(missing_ok=True)

    def _open(self, path: Path) -> CheckpointState:
        with safe_open(path, "pt") as file:
            told = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if told.pop("sha256") != _hash(state, told):
            raise ValueError("its hash is not the one it was written with")
        if told["key"] != self.key:
            cure = f"remove {self.path} and {self.before}, or train as before"
            raise CheckpointError(f"{path} is of another training ({told['key']}; now {self.key}): {cure}")
        return CheckpointState(state, int(told["step"]), int(told["total"]), json.loads(told["rows"]))


def _hash(state: dict[str, Tensor], told: dict[str, str]) -> str:
    content = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(state):
        content.update(f"{name} {state[name].dtype} {tuple(state[name].shape)} ".encode())
        content.update(state[name].detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    return content.hexdigest()
