"""Device selection, machine description."""

from __future__ import annotations

import os
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


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch in one thread inside the block.

    Many small products gain nothing from more threads, and lose a factor of twenty when another
    program is busy.
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


def busy_reason() -> str | None:
    """Return why torch will be slow on this machine, or None.

    The threads of one product wait for each other, so two programs with one thread a core take far
    more than twice as long.
    """
    available = _available_processors()
    threads = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > available:
        limit = max(int(available), 1)
        return (
            f"torch uses {threads} threads, but {available:.3g} processors are available: "
            f"set OMP_NUM_THREADS={limit}"
        )
    # the load of the last minute may be our own: check that something else runs now
    if load > 0.5 * available + 0.5 and _others_running():
        return (
            f"{load:.1f} programs ran on {available:.3g} processors in the last minute: "
            "stop the others, or give each OMP_NUM_THREADS=1"
        )
    return None


def _others_running() -> bool:
    """Return whether another program runs right now; True where the system cannot say."""
    load_file = Path("/proc/loadavg")
    if not load_file.exists():
        return True
    running = load_file.read_text().split()[3].split("/")[0]
    return int(running) != 1


def _available_processors() -> float:
    """Return the number of processors this process may use: its affinity or container quota."""
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    else:
        bound = os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    if not quota_file.exists():
        return bound
    quota, period = quota_file.read_text().split()
    return bound if quota == "max" else min(bound, int(quota) / int(period))


def _processor_name() -> str:
    info_file = Path("/proc/cpuinfo")  # on other systems than Linux `platform` knows
    names = re.findall(r"model name\s*: (.*)", info_file.read_text()) if info_file.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
