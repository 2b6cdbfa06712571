"""Time a step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def timed(step: Callable, device) -> float:
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else (lambda: None)
    began = wait() or time.perf_counter()
    step()
    return wait() or time.perf_counter() - began  # waiting gives nothing back


def best_time(step: Callable, device, limit: float) -> float:
    """Give the shortest time of a step repeated for `limit` seconds: what else runs here can only add to it."""
    step()
    times = [timed(step, device)]
    while sum(times) < limit:
        times.append(timed(step, device))
    return min(times)
