"""Embed data sets of any size, shard by shard, with processes, torchrun or Ray."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits

from qanchor.data.metadata import read_manifest
from qanchor.data.partition import load_shard, open_facts, open_table, partition_users
from qanchor.data.users import Users
from qanchor.errors import RunError
from qanchor.inference.engine import Engine
from qanchor.models.model import QAnchor
from qanchor.models.serialization import number_columns, read_run_config
from qanchor.models.text_encoder import text_vectors
from qanchor.useru.sharded import EVENTS_PER_SHARD
from qanchor.utils.device import best_device, compute_dtype, current_commit
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_write, read_json, write_json
from qanchor.utils.types import Progress

RANK_TIMEOUT = timedelta(days=30)  # how long one rank waits for another
RESUME_HINT = "Finished shards are kept; run it again to resume."
WORKER_CODE = (
    "import sys; from {0} import {1}; from qanchor.inference.batch_embed import serve; "
    "serve({1}, sys.argv[1:])"
)


class ShardJobs(NamedTuple):
    """Describe what a back end runs: `make(*arguments, number)` for each number of a shard.

    Args:
        make: Module-level function that processes one shard and returns its record.
        arguments: Arguments of `make` before the number.
        numbers: Numbers of the shards.
        workers: Processes or tasks.
        threads: CPU threads of each of them.
    """

    make: Callable[..., dict]
    arguments: tuple[str, ...]
    numbers: list[int]
    workers: int
    threads: int


def in_process(jobs: ShardJobs) -> Iterator[dict]:
    """Process each shard in this process and yield its record."""
    return (jobs.make(*jobs.arguments, number) for number in jobs.numbers)


def local_processes(jobs: ShardJobs) -> Iterator[dict]:
    """Distribute the shards to worker processes and yield their records as they finish.

    With one worker, shards run in this process. A worker whose driver is killed stops after its
    shard; those of `concurrent.futures` would wait forever.

    Raises:
        ChildProcessError: If a worker is killed.
        ValueError: If a shard fails.
    """
    workers = min(jobs.workers, len(jobs.numbers))
    if workers <= 1:
        return (yield from in_process(jobs))
    code = WORKER_CODE.format(jobs.make.__module__, jobs.make.__name__)
    command = [sys.executable, "-c", code, *jobs.arguments]
    idle = queue.SimpleQueue()
    processes = []
    for rank in range(workers):
        environment = worker_environment(jobs.threads) | {"LOCAL_RANK": str(rank)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        idle.put(processes[-1])

    def run_shard(number: int) -> dict:
        process = idle.get()
        try:
            print(number, file=process.stdin, flush=True)
            record = json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError):
            code = process.wait()
            raise ChildProcessError(
                f"Shard {number}: its worker ended with code {code} (-9: killed, perhaps out of "
                f"memory). {RESUME_HINT}"
            ) from None
        finally:
            idle.put(process)  # a dead one too, so that whoever gets it next reports the error
        if "error" in record:
            raise ValueError(f"Shard {number}: {record['error']}. {RESUME_HINT}")
        return record

    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(run_shard, number) for number in jobs.numbers]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # running shards are finished
        for process in processes:
            process.communicate()


def worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker process that can import this library.

    Args:
        threads: CPU threads of the process.
    """
    path = os.pathsep.join(
        filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
    )
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def serve(make: Callable[..., dict], arguments: list[str]) -> None:
    """Run a worker process: read shard numbers from stdin and write records to stdout, as lines.

    Args:
        make: Maps (*arguments, shard number) to a record.
        arguments: Arguments of `make` before the number.
    """
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr, not among the records
    for line in sys.stdin:
        try:
            record = make(*arguments, int(line))
        except Exception as error:
            record = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(record), file=records, flush=True)


def torchrun_ranks() -> tuple:
    """Join the processes that torchrun started.

    Returns:
        The shared store, the rank of this process, and the number of processes.

    Raises:
        ValueError: If torchrun did not start this process.
    """
    from torch.distributed import rendezvous

    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise ValueError(
            "backend 'torchrun' without RANK: "
            "start it as torchrun --nproc-per-node 2 -m -- qanchor embed ..."
        )
    return next(rendezvous("env://", timeout=RANK_TIMEOUT))


def ray_tasks(jobs: ShardJobs) -> Iterator[dict]:
    """Process the shards as Ray tasks and yield their records as they finish.

    They run on the cluster of RAY_ADDRESS, or on one that is started here.

    Raises:
        ValueError: If Ray is not installed, or a shard fails.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "The package ray is not installed. Run pip install 'qanchor[scale]'."
        ) from error
    is_started_here = not ray.is_initialized()
    if is_started_here:
        ray.init(log_to_driver=False)
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    # max_retries: the task of a killed worker runs again. max_calls=0: by default a worker with a
    # GPU ends after each shard, and the next one loads the model again
    options = {"num_cpus": jobs.threads, "num_gpus": gpus, "max_retries": 3, "max_calls": 0}
    task = ray.remote(**options)(jobs.make)
    waiting = (task.remote(*jobs.arguments, number) for number in jobs.numbers)
    try:
        running = list(islice(waiting, jobs.workers))
        while running:
            [done], running = ray.wait(running)
            yield ray.get(done)
            running += islice(waiting, 1)
    except ray.exceptions.RayTaskError as error:
        raise ValueError(f"{error.cause}. {RESUME_HINT}") from error
    finally:
        if is_started_here:
            ray.shutdown()


BACKENDS = {"local": local_processes, "torchrun": in_process, "ray": ray_tasks}
EMBEDDINGS_VERSION = 1  # increase it when a change to the code changes embeddings
# what all parts of a folder have in common
FIXED_FIELDS = ("run_sha256", "queries", "input_sha256", "shards", "threads", "version", "dtype")
MAX_SHARED_TEXTS = 200_000  # texts encoded before the shards, so that workers need not each do it


def embed_dataset(
    users: Users | Path | str,
    run: Path | str,
    queries: Sequence[str],
    out: Path | str,
    *,
    backend: str = "local",
    workers: int = 1,
    shards: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict:
    """Embed any number of users for every query, shard by shard. A rerun resumes after a kill.

    Finished shards stay if their sha256 is still the recorded one. A folder never mixes two inputs:
    other users, queries, shards, threads, another run or version are refused.

    Args:
        users: Users, a parquet file of events, or a folder as `load_users` reads it. Tables larger
            than memory must be parquet.
        run: Folder of a trained model.
        queries: Distinct texts.
        out: Folder for `part-00000.parquet` and so on, with columns user, query and embedding
            (float16): one row group a query, users in the order of their ids. When all parts are
            complete, `_manifest.json` describes what they are made of, with their sha256.
        backend: "local" (default): `workers` processes. "torchrun": the processes it started; every
            rank calls this, and all but the first get {}. "ray": `workers` tasks at a time on the
            cluster of RAY_ADDRESS, or one started here.
        workers: Processes or tasks; 1 (default) uses this process.
        shards: Number of parts. Default: one for each 500,000 events. A worker holds one at a time.
        threads: CPU threads of a worker. With equal threads every backend writes the same bytes.
            Default: 1.
        progress: Called with (done, total) of the missing shards (of this rank). Default: none.

    Returns:
        The manifest without its parts, and `made`: the number of shards embedded now.

    Raises:
        ValueError: If an option is out of range or a query is repeated.
        FileExistsError: If the folder holds embeddings of something else.
        DataError: If the users cannot be read.
        RunError: If the run cannot be read.
        ChildProcessError: If a worker is killed.

    Example:
        >>> import tempfile
        >>> users, folder = qa.make_sample_users(40), Path(tempfile.mkdtemp())
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> run = model.save_pretrained(folder / "run")
        >>> queries = ["Will this user travel soon?"]
        >>> manifest = qa.embed_dataset(users, run, queries, folder / "out", shards=2)
        >>> manifest["users"], manifest["made"]
        (40, 2)
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: there are {', '.join(BACKENDS)}")
    for name, number in {"workers": workers, "shards": shards, "threads": threads}.items():
        if number is not None and number < 1:
            raise ValueError(f"{number} {name}: give at least 1")
    out = Path(out).absolute()
    run = Path(run).absolute()
    queries = list(queries)
    if not queries or len(set(queries)) < len(queries):
        raise ValueError(
            f"{len(queries)} queries, {len(set(queries))} of them different: "
            "give at least 1, and each once"
        )
    store, rank, world = torchrun_ranks() if backend == "torchrun" else (None, 0, 1)
    if rank:
        missing = json.loads(store.get("missing"))
    else:
        missing = _begin(users, run, queries, out, shards, threads)
        if store:
            store.set("missing", json.dumps(missing))
    mine = missing[rank::world]
    jobs = ShardJobs(embed_shard, (str(out), str(run)), mine, workers, threads)
    try:
        for done, _ in enumerate(BACKENDS[backend](jobs), 1):
            if progress:
                progress(done, len(mine))
    finally:
        _engine.cache_clear()
    if store:
        store.set(f"done {rank}", "")
        if rank:
            return {}
        store.wait([f"done {other}" for other in range(world)], RANK_TIMEOUT)
    return _finish(out) | {"made": len(missing)}


def embed_shard(out: Path | str, run: Path | str, number: int) -> dict:
    """Embed the users of one shard and write its part atomically; every backend calls this.

    Args:
        out: Folder of the embeddings, with the plan and the users of the shards in `.work`.
        run: Folder of the trained model.
        number: Number of the shard.

    Returns:
        Record of the part: file, users, bytes, sha256, seconds and CPU seconds.
    """
    out = Path(out)
    work = out / ".work"
    plan = read_json(work / "plan.json")
    scan = read_json(work / "users" / "scan.json")
    with threadpool_limits(plan["threads"]):
        engine = _engine(Path(run), plan["run_sha256"], plan["dtype"])
        start = time.perf_counter()  # the time of reading to writing, without loading the model
        cpu_start = time.process_time()
        users = load_shard(work / "users", number, scan)
        shape = (len(users), len(plan["queries"]), engine.model.config.embedding_dim)
        vectors = np.empty(shape, np.float16)
        for rows, z in engine.iter_embed_uncached(users, plan["queries"]):
            vectors[rows] = z
        write = partial(_write, users.ids, vectors, plan | {"shard": number})
        path = atomic_write(_part_path(out, number), write)
    record = {
        "shard": number,
        "file": path.name,
        "users": len(users),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
    }
    write_json(work / f"done-{number:05d}.json", record)
    return record


@lru_cache(maxsize=1)
def _engine(run: Path, expected: str, dtype: str) -> Engine:
    path = run / "config.json"
    digest = sha256_file(path)
    if digest != expected:
        raise RunError(
            f"{path} has sha256 {digest[:16]}..., {expected[:16]}... was planned. Copy the run here."
        )
    gpu = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
    return Engine(
        QAnchor.from_pretrained(run, f"cuda:{gpu}" if torch.cuda.is_available() else None, dtype)
    )


def _write(ids: Sequence[str], vectors: np.ndarray, about: dict, path: Path) -> None:
    kinds = {"user": pa.string(), "query": pa.dictionary(pa.int32(), pa.string())}
    kinds["embedding"] = pa.list_(pa.float16(), vectors.shape[2])
    schema = pa.schema(kinds, {"qanchor": json.dumps(about)})
    named = ["user", "query"]
    # one row group a query, so that a reader loads only that one; a dictionary does not compress
    # embeddings
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=["query"], write_statistics=named
    ) as file:
        for k, query in enumerate(about["queries"]):
            asked = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int32), [query])
            numbers = pa.array(np.ascontiguousarray(vectors[:, k]).ravel())
            columns = [
                pa.array(ids, pa.string()),
                asked,
                pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[2]),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(ids))


# -- plan and progress on disk --


def _begin(
    users, run: Path, queries: list[str], out: Path, shards: int | None, threads: int
) -> list[int]:
    """Partition the users unless that is done, and return the numbers of the missing shards."""
    about = read_run_config(run)
    numbers = number_columns(about)
    table = open_table(users, numbers)
    facts, facts_key = open_facts(users)
    manifest = _read_manifest_or_empty(out)
    work = out / ".work"
    old = manifest
    if not manifest and (work / "plan.json").exists():
        old = read_json(work / "plan.json")
    source = json.dumps([table.about, table.key, facts_key], sort_keys=True).encode()
    default_shards = max(1, -(-table.rows // EVENTS_PER_SHARD))
    plan = {
        "run": run.name,
        "run_sha256": sha256_file(run / "config.json"),
        "queries": queries,
        "source": table.about["name"],
        "unit": table.about["unit"],
        "input_sha256": hashlib.sha256(source).hexdigest(),
        "shards": shards or old.get("shards") or default_shards,
        "threads": threads,
        "version": EMBEDDINGS_VERSION,
        "commit": current_commit(),
        # every worker computes in the dtype of the machine that starts
        "dtype": compute_dtype(about["config"]["dtype"], best_device()),
    }
    if not old and any(out.glob("part-*.parquet")):
        raise FileExistsError(
            f"{out} holds parts of unknown origin (no _manifest.json): "
            "name another folder, or remove them"
        )
    for name in FIXED_FIELDS if old else ():
        if old[name] != plan[name]:
            raise FileExistsError(
                f"{out} holds embeddings of {name} {_shorten(old[name])}, wanted is "
                f"{_shorten(plan[name])}: name another folder, or remove this one"
            )
    shutil.rmtree(out / ".gone", ignore_errors=True)
    for stale in out.glob(".part-*.part"):  # half-written by a killed process
        stale.unlink(missing_ok=True)
    if manifest:
        missing = _missing_shards(out, [part["shard"] for part in manifest["parts"]])
        if not missing:
            return []
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "plan.json", {name: old.get(name, value) for name, value in plan.items()})
    if not (work / "users").exists():
        config = {"threads": 2, "memory_limit": "800MB"}
        partition_users(
            table,
            facts,
            work / "users",
            plan["shards"],
            numbers,
            MAX_SHARED_TEXTS,
            **config,
        )
    missing = _missing_shards(out, read_json(work / "users" / "scan.json")["shards"])
    if missing:
        _encode_shared_texts(work, queries, about["config"]["text_encoder"], threads)
    return missing


def _encode_shared_texts(work: Path, queries: list[str], encoder: str, threads: int) -> None:
    """Encode the texts once, before the shards.

    Otherwise each worker would encode them, in batches whose results differ in the last bit.
    """
    with threadpool_limits(threads):
        text_vectors(
            [*pd.read_parquet(work / "users" / "texts.parquet")["text"], *queries], encoder
        )


def _missing_shards(out: Path, numbers: list[int]) -> list[int]:
    """Return the shards whose part is missing or differs from its record."""
    records = _records(out)

    def whole(number: int) -> bool:
        path = _part_path(out, number)
        if number not in records or not path.exists():
            return False
        return sha256_file(path) == records[number]["sha256"]

    with ThreadPoolExecutor(4) as pool:
        is_whole = list(pool.map(whole, numbers))
    return [number for number, fine in zip(numbers, is_whole, strict=True) if not fine]


def _finish(out: Path) -> dict:
    """Write _manifest.json, check the number of users, and remove the working files."""
    work = out / ".work"
    if (work / "users").exists():
        scan = read_json(work / "users" / "scan.json")
        records = _records(out)
        parts = [records[number] for number in scan["shards"]]
        n_users = sum(part["users"] for part in parts)
        if n_users != scan["users"]:
            raise RuntimeError(
                f"{out}: the parts have {n_users:,} users, the input {scan['users']:,}. "
                "Please report this."
            )
        manifest = read_json(work / "plan.json") | {"users": n_users, "parts": parts}
        write_json(out / "_manifest.json", manifest)
        # renamed first, so that a kill leaves no half of it that passes for a whole one
        shutil.rmtree(work.rename(out / ".gone"), ignore_errors=True)
    return {name: value for name, value in _read_manifest_or_empty(out).items() if name != "parts"}


def _records(out: Path) -> dict[int, dict]:
    found = [
        *_read_manifest_or_empty(out).get("parts", []),
        *map(read_json, sorted((out / ".work").glob("done-*.json"))),
    ]
    return {record["shard"]: record for record in found}


def _read_manifest_or_empty(out: Path) -> dict:
    return read_manifest(out / "_manifest.json", parts=list, **dict.fromkeys(FIXED_FIELDS, object))


def _part_path(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _shorten(value) -> str:
    return repr(value) if len(repr(value)) < 100 else repr(value)[:97] + "..."
