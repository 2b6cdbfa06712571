"""Who makes shards: this process, several of them, those that torchrun started, or a Ray cluster; all call one function."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from itertools import islice
from pathlib import Path

LONG = timedelta(days=30)  # one rank waits for another
GO_ON = "what is done stays: start it again to go on"
SERVE = "import sys; from {0} import {1}; from qanchor.workers import serve; serve({1}, sys.argv[1:])"


def here(make: Callable[..., dict], given: tuple[str, ...], numbers: list[int], workers: int, threads: int) -> Iterator[dict]:
    """Make each shard in this process: yields what `make(*given, number)` gives."""
    return (make(*given, number) for number in numbers)


def processes(
    make: Callable[..., dict], given: tuple[str, ...], numbers: list[int], workers: int, threads: int
) -> Iterator[dict]:
    """Hand the shards to processes of `threads` threads, whoever is free; one whose driver is gone ends with its shard.

    make  stands in a module, by its name. Raises ChildProcessError when a worker is killed, ValueError when one fails.
    """
    workers = min(workers, len(numbers))
    if workers <= 1:
        return (yield from here(make, given, numbers, workers, threads))
    command = [sys.executable, "-c", SERVE.format(make.__module__, make.__name__), *given]
    pipes, idle, every = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, queue.SimpleQueue(), []
    for rank in range(workers):
        every.append(subprocess.Popen(command, env=surroundings(threads) | {"LOCAL_RANK": str(rank)}, **pipes))
        idle.put(every[-1])

    def hand(number: int) -> dict:
        process = idle.get()
        try:
            print(number, file=process.stdin, flush=True)
            record = json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError):
            told = f"its worker ended with code {process.wait()} (-9: killed, perhaps for want of memory)"
            raise ChildProcessError(f"shard {number}: {told}: {GO_ON}") from None
        finally:
            idle.put(process)  # a dead one too: who waits for it must hear of it
        if "error" in record:
            raise ValueError(f"shard {number}: {record['error']}: {GO_ON}")
        return record

    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(hand, number) for number in numbers]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # what is begun is ended
        for process in every:
            process.communicate()


def surroundings(threads: int) -> dict[str, str]:
    """Give the environment of a process that finds this library and takes so many threads."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def serve(make: Callable[..., dict], given: list[str]) -> None:
    """Be a worker process: shard numbers come in, one a line, and records go out."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no record
    for line in sys.stdin:
        try:
            record = make(*given, int(line))
        except Exception as error:
            record = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(record), file=told, flush=True)


def ranks() -> tuple:
    """Join the processes that torchrun started: a store that all see, the number of this one, and how many there are."""
    from torch.distributed import rendezvous

    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise ValueError("backend 'torchrun' without RANK: start it as torchrun --nproc-per-node 2 -m -- qanchor embed ...")
    return next(rendezvous("env://", timeout=LONG))


def tasks(make: Callable[..., dict], given: tuple[str, ...], numbers: list[int], workers: int, threads: int) -> Iterator[dict]:
    """Make the shards as Ray tasks, `workers` at a time, on the cluster of RAY_ADDRESS or one started here."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("backend 'ray' needs Ray: pip install 'qanchor[scale]'") from error
    if started := not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    # a task whose worker is killed is tried again; by default a worker with a GPU would end, model and all, after each shard
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=3, max_calls=0)(make)
    waiting = (task.remote(*given, number) for number in numbers)
    try:
        running = list(islice(waiting, workers))
        while running:
            [done], running = ray.wait(running)
            yield ray.get(done)
            running += islice(waiting, 1)
    except ray.exceptions.RayTaskError as error:
        raise ValueError(f"{error.cause}: {GO_ON}") from error
    finally:
        if started:
            ray.shutdown()


BACKENDS = {"local": processes, "torchrun": here, "ray": tasks}
