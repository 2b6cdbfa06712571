"""Device selection and a description of the machine."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits


def best_device() -> str:
    """Return "cuda" if a GPU is available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices natively; a CPU needs AVX-512 or ARM.

    Args:
        device: Torch device.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch with one thread inside the block.

    Many small matrix products gain nothing from more threads, and become about 20 times slower
    when another program keeps the CPU busy.
    """
    with threadpool_limits(1):
        yield


def machine_info() -> dict:
    """Return the processor, the number of threads, and the GPU (or None) of this machine.

    Example:
        >>> sorted(machine_info())
        ['gpu', 'processor', 'threads']
    """
    return {
        "processor": _processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor_name() -> str:
    info_file = Path("/proc/cpuinfo")  # Linux only; elsewhere `platform` knows the name
    names = re.findall(r"model name\s*: (.*)", info_file.read_text()) if info_file.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
