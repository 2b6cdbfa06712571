"""Device and dtype selection, machine description, timing."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch


def best_device() -> str:
    """Return "cuda" if a GPU is available, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(requested: str, device: str | torch.device) -> str:
    """Return the dtype a model computes in on a device.

    This is the requested dtype, except that bfloat16 becomes float32 on CPUs without fast bfloat16
    products. There torch falls back to a plain loop, many times slower than float32.

    Args:
        requested: "bfloat16" or "float32".
        device: Torch device.

    Returns:
        "bfloat16" or "float32".

    Example:
        >>> compute_dtype("bfloat16", "cuda"), compute_dtype("float32", "cpu")
        ('bfloat16', 'float32')
    """
    on_cpu = torch.device(device).type == "cpu"
    if requested == "bfloat16" and on_cpu and not has_fast_bf16():
        return "float32"
    return requested


def has_fast_bf16() -> bool:
    """Return whether oneDNN multiplies bfloat16 matrices natively on this CPU (AVX-512 or ARM)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def timed(step: Callable[[], object], device: str | torch.device) -> float:
    """Return how long one call takes, in seconds.

    Args:
        step: Function without arguments.
        device: Device it works on; on a GPU, pending work is waited for before and after.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_time(step: Callable[[], object], device: str | torch.device, limit: float) -> float:
    """Return the shortest time of repeated calls, in seconds. Other programs can only add to it.

    Args:
        step: Function without arguments; one call before the timing warms it up.
        device: Device it works on.
        limit: Stop after this many seconds.
    """
    step()
    times = [timed(step, device)]
    while sum(times) < limit:
        times.append(timed(step, device))
    return min(times)


@functools.cache
def machine_info() -> dict:
    """Return a description of this machine. It takes about one second to measure.

    Returns:
        `processor`, `threads`, `gpu` (name or None), `products` (the dtype measured),
        `matmul_tflops` (TFLOP/s of a matrix product) and `gb_per_s` (memory read and written).

    Example:
        >>> sorted(machine_info())
        ['gb_per_s', 'gpu', 'matmul_tflops', 'processor', 'products', 'threads']
    """
    device = best_device()
    has_gpu = device == "cuda"
    size = 8192 if has_gpu else 1024
    dtype = compute_dtype("bfloat16", device)
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    matmul_seconds = best_time(lambda: matrix @ matrix, device, 0.5)
    block = torch.zeros(2**29 if has_gpu else 2**24, device=device)
    copy_seconds = best_time(lambda: block.mul_(1.0), device, 0.4)
    return {
        "processor": _processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "products": dtype,
        "matmul_tflops": round(2 * size**3 / matmul_seconds / 1e12, 3),
        "gb_per_s": round(2 * block.nbytes / copy_seconds / 1e9, 2),  # read and written
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


@functools.cache
def current_commit() -> str:
    """Return the short hash of the commit this code is from, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"
    return done.stdout.strip()
