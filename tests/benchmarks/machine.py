"""How fast this machine is: timing, and a description with measured rates."""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from qanchor.utils.device import best_device, has_fast_bf16, machine_info


def compute_dtype(requested: str, device: str | torch.device) -> str:
    """Return the dtype a model computes in on a device.

    This is the requested dtype, except that bfloat16 becomes float32 on devices without fast
    bfloat16 products. On such a CPU torch falls back to a plain loop, many times slower than
    float32.

    Args:
        requested: "bfloat16" or "float32".
        device: Torch device.

    Returns:
        "bfloat16" or "float32".

    Example:
        >>> compute_dtype("bfloat16", "cuda"), compute_dtype("float32", "cpu")
        ('bfloat16', 'float32')
    """
    if requested == "bfloat16" and not has_fast_bf16(torch.device(device)):
        return "float32"
    return requested


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
def measured_machine() -> dict:
    """Return a description of this machine. It takes about one second to measure.

    Returns:
        `processor`, `threads`, `gpu` (name or None), `products` (the dtype measured),
        `matmul_tflops` (TFLOP/s of a matrix product) and `gb_per_s` (memory read and written).

    Example:
        >>> sorted(measured_machine())
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
    return machine_info() | {
        "products": dtype,
        "matmul_tflops": round(2 * size**3 / matmul_seconds / 1e12, 3),
        "gb_per_s": round(2 * block.nbytes / copy_seconds / 1e9, 2),  # read and written
    }


@functools.cache
def current_commit() -> str:
    """Return the short hash of the commit this code is from, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"
    return done.stdout.strip()
