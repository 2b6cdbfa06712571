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

import numpy as np
import torch

from qanchor.data.metadata import read_manifest
from qanchor.data.partition import load_shard, open_facts, open_table, partition_users
from qanchor.data.users import Users
from qanchor.errors import RunError
from qanchor.inference.engine import Engine
from qanchor.models.model import QAnchor
from qanchor.models.serialization import read_run_config
from qanchor.models.text_encoder import text_vectors
from qanchor.useru.sharded import EVENTS_PER_SHARD
from qanchor.utils.device import best_device, compute_dtype, current_commit
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_write

RANK_TIMEOUT = timedelta(days=30)  # one rank waits for another
RESUME_HINT = "what is done stays: start it again to go on"
SERVE = "import sys; from {0} import {1}; from qanchor.inference.batch_embed import serve; serve({1}, sys.argv[1:])"


def in_process(
    make: Callable[..., dict], given: tuple[str, ...], numbers: list[int], workers: int, threads: int
) -> Iterator[dict]:
    """Make each shard in this process: yields what `make(*given, number)` gives."""
    return (make(*given, number) for number in numbers)


def local_processes(
    make: Callable[..., dict], given: tuple[str, ...], numbers: list[int], workers: int, threads: int
) -> Iterator[dict]:
    """Hand the shards to processes of `threads` threads, whoever is free; one whose driver is gone ends with its shard.

    make  stands in a module, by its name. Raises ChildProcessError when a worker is killed, ValueError when one fails.
    """
    workers = min(workers, len(numbers))
    if workers <= 1:
        return (yield from in_process(make, given, numbers, workers, threads))
    command = [sys.executable, "-c", SERVE.format(make.__module__, make.__name__), *given]
    pipes, idle, every = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, queue.SimpleQueue(), []
    for rank in range(workers):
        every.append(subprocess.Popen(command, env=worker_environment(threads) | {"LOCAL_RANK": str(rank)}, **pipes))
        idle.put(every[-1])

    def hand(number: int) -> dict:
        process = idle.get()
        try:
            print(number, file=process.stdin, flush=True)
            record = json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError):
            told = f"its worker ended with code {process.wait()} (-9: killed, perhaps for want of memory)"
            raise ChildProcessError(f"shard {number}: {told}: {RESUME_HINT}") from None
        finally:
            idle.put(process)  # a dead one too: who waits for it must hear of it
        if "error" in record:
            raise ValueError(f"shard {number}: {record['error']}: {RESUME_HINT}")
        return record

    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(hand, number) for number in numbers]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # what is begun is ended
        for process in every:
            process.communicate()


def worker_environment(threads: int) -> dict[str, str]:
    """Give the environment of a process that finds this library and takes so many threads."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
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


def torchrun_ranks() -> tuple:
    """Join the processes that torchrun started: a store that all see, the number of this one, and how many there are."""
    from torch.distributed import rendezvous

    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise ValueError("backend 'torchrun' without RANK: start it as torchrun --nproc-per-node 2 -m -- qanchor embed ...")
    return next(rendezvous("env://", timeout=RANK_TIMEOUT))


def ray_tasks(
    make: Callable[..., dict], given: tuple[str, ...], numbers: list[int], workers: int, threads: int
) -> Iterator[dict]:
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
        raise ValueError(f"{error.cause}: {RESUME_HINT}") from error
    finally:
        if started:
            ray.shutdown()


BACKENDS = {"local": local_processes, "torchrun": in_process, "ray": ray_tasks}
EMBEDDINGS_VERSION = 1  # increase it when a change to the code changes embeddings
SAME = ("run_sha256", "queries", "input_sha256", "shards", "threads", "version", "dtype")  # in all parts of a folder
TEXTS = 200_000  # of the distinct texts, encoded before the shards: else each worker encodes them again


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
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Embed any number of users for every query, shard by shard; killed at any moment and started again, it goes on.

    users    users, a parquet file of events, or a folder as `load_users` reads (tables too large for memory as parquet).
    run      folder of a trained model.
    out      folder for `part-00000.parquet` and so on: columns user, query, embedding (float16), one row group a query, users
             in the order of their ids. Once all are there, `_manifest.json` says of what they are made, with their sha256.
    backend  "local": `workers` processes (1: this one). "torchrun": whoever it starts; every rank calls this, and all but
             the first get {}. "ray": `workers` tasks at a time on the cluster of RAY_ADDRESS, or one started here.
    shards   how many (default: one for each 500,000 events). A worker holds one shard at a time.
    threads  of one worker on a CPU. With equal threads every back end writes the same bytes.
    progress called with (done, total) of the shards that were missing (of this rank).
    What is done is kept if its sha256 is still that of its record. Other users, queries, shards, threads, another run or other
    code are refused: a folder never mixes two, and never throws away what took days.
    Raises FileExistsError then; DataError and RunError as their readers do; ChildProcessError when a worker is killed.

    Example:
        >>> import tempfile
        >>> users, folder = qa.make_sample_users(40), Path(tempfile.mkdtemp())
        >>> run = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)).save_pretrained(folder / "run")
        >>> told = qa.embed_dataset(users, run, ["Will this user travel soon?"], folder / "out", shards=2)
        >>> told["users"], told["made"]
        (40, 2)
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: there are {', '.join(BACKENDS)}")
    for name, number in {"workers": workers, "shards": shards, "threads": threads}.items():
        if number is not None and number < 1:
            raise ValueError(f"{number} {name}: give at least 1")
    out, run, queries = Path(out).absolute(), Path(run).absolute(), list(queries)
    if not queries or len(set(queries)) < len(queries):
        raise ValueError(f"{len(queries)} queries, {len(set(queries))} of them different: give at least 1, and each once")
    store, rank, world = torchrun_ranks() if backend == "torchrun" else (None, 0, 1)
    missing = json.loads(store.get("missing")) if rank else _begin(users, run, queries, out, shards, threads)
    if store and not rank:
        store.set("missing", json.dumps(missing))
    mine = missing[rank::world]
    try:
        for done, _ in enumerate(BACKENDS[backend](embed_shard, (str(out), str(run)), mine, workers, threads), 1):
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
    """Embed the users of one shard and write them whole; all back ends call this, and whoever does, the bytes are the same."""
    from threadpoolctl import threadpool_limits

    out, work = Path(out), Path(out) / ".work"
    plan, scan = _read_json(work / "plan.json"), _read_json(work / "users" / "scan.json")
    with threadpool_limits(plan["threads"]):
        engine = _engine(Path(run), plan["run_sha256"], plan["dtype"])
        began = time.perf_counter(), time.process_time()
        users = load_shard(work / "users", number, scan)
        vectors = np.empty((len(users), len(plan["queries"]), engine.model.config.embedding_dim), np.float16)
        for rows, z in engine.iter_embed_uncached(users, plan["queries"]):
            vectors[rows] = z
        path = atomic_write(_part_path(out, number), partial(_write, users.ids, vectors, plan | {"shard": number}))
    record = {
        "shard": number,
        "file": path.name,
        "users": len(users),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }
    took = time.perf_counter() - began[0], time.process_time() - began[1]  # reading to writing; the model was there already
    return _write_json(work / f"done-{number:05d}.json", record | {"seconds": took[0], "cpu_seconds": took[1]})


@lru_cache(maxsize=1)
def _engine(run: Path, expected: str, dtype: str) -> Engine:
    if (found := sha256_file(run / "config.json")) != expected:
        raise RunError(f"{run / 'config.json'} has sha256 {found[:16]}..., planned was {expected[:16]}...: copy the run here")
    gpu = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
    return Engine(QAnchor.from_pretrained(run, f"cuda:{gpu}" if torch.cuda.is_available() else None, dtype))


def _write(ids: Sequence[str], vectors: np.ndarray, told: dict, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"user": pa.string(), "query": pa.dictionary(pa.int32(), pa.string())}
    kinds["embedding"] = pa.list_(pa.float16(), vectors.shape[2])
    schema, named = pa.schema(kinds, {"qanchor": json.dumps(told)}), ["user", "query"]
    # a query is a row group: whoever asks for one reads no other; numbers so varied gain nothing by a dictionary
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["query"], write_statistics=named) as file:
        for k, query in enumerate(told["queries"]):
            asked = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int32), [query])
            numbers = pa.array(np.ascontiguousarray(vectors[:, k]).ravel())
            columns = [pa.array(ids, pa.string()), asked, pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[2])]
            file.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(ids))


# -- from here on: what is done and what is to be done --


def _begin(users, run: Path, queries: list[str], out: Path, shards: int | None, threads: int) -> list[int]:
    """Split the users unless that is done, and give the shards that are missing."""
    about = read_run_config(run)
    table, (facts, key) = open_table(users, about["preprocessor"]["numbers"]), open_facts(users)
    manifest, work = _read_manifest_or_empty(out), out / ".work"
    old = manifest or (_read_json(work / "plan.json") if (work / "plan.json").exists() else {})
    told = json.dumps([table.about, table.key, key], sort_keys=True).encode()
    plan = {"run": run.name, "run_sha256": sha256_file(run / "config.json"), "queries": queries, "source": table.about["name"]}
    plan |= {"unit": table.about["unit"], "input_sha256": hashlib.sha256(told).hexdigest()}
    plan |= {"shards": shards or old.get("shards") or max(1, -(-table.rows // EVENTS_PER_SHARD)), "threads": threads}
    plan |= {"version": EMBEDDINGS_VERSION, "commit": current_commit()}
    plan |= {"dtype": compute_dtype(about["config"]["dtype"], best_device())}  # of whoever begins: all others reckon alike
    if not old and any(out.glob("part-*.parquet")):
        raise FileExistsError(f"{out} holds parts of unknown origin (no _manifest.json): name another folder, or remove them")
    for name in SAME if old else ():
        if old[name] != plan[name]:
            raise FileExistsError(
                f"{out} holds embeddings of {name} {_shorten(old[name])}, wanted is {_shorten(plan[name])}: "
                "name another folder, or remove this one"
            )
    shutil.rmtree(out / ".gone", ignore_errors=True)
    for stale in out.glob(".part-*.part"):  # half-written by a killed process
        stale.unlink(missing_ok=True)
    if manifest and not (missing := _broken(out, [part["shard"] for part in manifest["parts"]])):
        return missing
    work.mkdir(parents=True, exist_ok=True)
    _write_json(work / "plan.json", {name: old.get(name, value) for name, value in plan.items()})
    if not (work / "users").exists():
        config = {"threads": 2, "memory_limit": "800MB"}
        partition_users(table, facts, work / "users", plan["shards"], about["preprocessor"]["numbers"], TEXTS, **config)
    if missing := _broken(out, _read_json(work / "users" / "scan.json")["shards"]):
        _know_texts(work, queries, about["config"]["text_encoder"], threads)
    return missing


def _know_texts(work: Path, queries: list[str], encoder: str, threads: int) -> None:
    """Encode the texts once: workers that did would each do it again, and differ in the last bit by what they batched."""
    import pandas as pd
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        text_vectors([*pd.read_parquet(work / "users" / "texts.parquet")["text"], *queries], encoder)


def _broken(out: Path, numbers: list[int]) -> list[int]:
    """Give the shards whose part is not there or not as its record says."""
    records = _records(out)

    def whole(number: int) -> bool:
        path, record = _part_path(out, number), records.get(number)
        return (
            bool(record) and path.exists() and path.stat().st_size == record["bytes"] and sha256_file(path) == record["sha256"]
        )

    with ThreadPoolExecutor(4) as pool:
        return [number for number, fine in zip(numbers, pool.map(whole, numbers), strict=True) if not fine]


def _finish(out: Path) -> dict:
    """Say in _manifest.json of what all parts are made, count everybody, and remove what was needed only to make them."""
    work = out / ".work"
    if (work / "users").exists():
        scan, records = _read_json(work / "users" / "scan.json"), _records(out)
        plan = _read_json(work / "plan.json") | {
            "users": scan["users"],
            "parts": [records[number] for number in scan["shards"]],
        }
        if (found := sum(part["users"] for part in plan["parts"])) != scan["users"]:
            raise RuntimeError(f"{out}: {found:,} users in the parts, {scan['users']:,} in the input: report this")
        _write_json(out / "_manifest.json", plan)
        shutil.rmtree(work.rename(out / ".gone"), ignore_errors=True)  # killed here, no half of it passes for a whole one
    return {name: value for name, value in _read_manifest_or_empty(out).items() if name != "parts"}


def _records(out: Path) -> dict[int, dict]:
    found = [*_read_manifest_or_empty(out).get("parts", []), *map(_read_json, sorted((out / ".work").glob("done-*.json")))]
    return {record["shard"]: record for record in found}


def _read_manifest_or_empty(out: Path) -> dict:
    return read_manifest(out / "_manifest.json", parts=list, **dict.fromkeys(SAME, object))


def _part_path(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def _write_json(path: Path, told: dict) -> dict:
    atomic_write(path, lambda aside: aside.write_text(json.dumps(told, indent=1) + "\n"))
    return told


def _shorten(value) -> str:
    return repr(value) if len(repr(value)) < 100 else repr(value)[:97] + "..."
