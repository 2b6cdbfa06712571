"""What this machine is and can: processor, measured ceilings, the commit that runs, and how a step is timed."""

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
    """Give the device that a model goes to unless told otherwise: the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(wished: str, device) -> str:
    """Give the dtype that a model reckons in on a device: the wished one, but float32 where products in bfloat16 crawl.

    On a CPU torch takes products in bfloat16 from oneDNN, which makes them with AVX-512 or better (on ARM with its bf16
    instructions). Any other processor, many laptops among them, falls back to a plain loop, many times slower than its
    products in float32.

    Example:
        >>> compute_dtype("bfloat16", "cuda"), compute_dtype("float32", "cpu")
        ('bfloat16', 'float32')
    """
    crawls = wished == "bfloat16" and torch.device(device).type == "cpu" and not has_fast_bf16()
    return "float32" if crawls else wished


def has_fast_bf16() -> bool:
    """Say whether torch has a kernel for products in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def machine_info() -> dict:
    """Say what this machine is and can: processor, threads, gpu, measured matmul TFLOP/s, measured GB/s (about a second).

    The products are made in the dtype that models reckon in here (`products`).

    Example:
        >>> sorted(machine_info())
        ['gb_per_s', 'gpu', 'matmul_tflops', 'processor', 'products', 'threads']
    """
    device = best_device()
    gpu, n = (torch.cuda.get_device_name(), 8192) if device == "cuda" else (None, 1024)
    dtype = compute_dtype("bfloat16", device)
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    matmul = best_time(lambda: a @ a, device, 0.5)
    block = torch.zeros(2**29 if gpu else 2**24, device=device)
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "products": dtype,
        "matmul_tflops": round(2 * n**3 / matmul / 1e12, 3),
        "gb_per_s": round(2 * block.nbytes / best_time(lambda: block.mul_(1.0), device, 0.4) / 1e9, 2),  # read and written
    }


def busy_reason() -> str | None:
    """Say what will slow torch here, or nothing: more threads than processors are ours, or others are at work on them.

    Threads of one product wait for each other: two programs with a thread a core take far more than twice as long.
    """
    ours, threads, load = _processors(), torch.get_num_threads(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > ours:
        return f"torch has {threads} threads, {ours:.3g} processors are ours: set OMP_NUM_THREADS={max(int(ours), 1)}"
    if load > 0.5 * ours + 0.5 and _others():  # the minute may have been ours
        cure = "stop the others, or give each OMP_NUM_THREADS=1"
        return f"{load:.1f} programs were at work on {ours:.3g} processors in the last minute: {cure}"
    return None


def _others() -> bool:
    """Say whether another program runs at this very moment; yes where the system does not tell."""
    told = Path("/proc/loadavg")
    return not told.exists() or int(told.read_text().split()[3].split("/")[0]) != 1


def _processors() -> float:
    """Count the processors that this process may use: those it is bound to, or its container's share."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = Path("/sys/fs/cgroup/cpu.max")
    quota, period = told.read_text().split() if told.exists() else ("max", "1")
    return bound if quota == "max" else min(bound, int(quota) / int(period))


def _processor() -> str:
    told = Path("/proc/cpuinfo")  # elsewhere than on Linux `platform` knows
    names = re.findall(r"model name\s*: (.*)", told.read_text()) if told.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def current_commit() -> str:
    """Give the short hash of the commit that runs, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no repository
        return "unknown"


def timed(step: Callable[[], object], device) -> float:
    """Return the seconds that `step` takes, waiting for the GPU before and after."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best_time(step: Callable[[], object], device, limit: float) -> float:
    """Return the shortest time of `step` repeated for `limit` seconds: other programs can only slow it down."""
    step()
    times = [timed(step, device)]
    while sum(times) < limit:
        times.append(timed(step, device))
    return min(times)
