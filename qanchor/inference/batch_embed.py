"""Embed data sets of any size, shard by shard, with local processes or Ray."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from qanchor.data.metadata import read_manifest
from qanchor.data.partition import (
    EVENTS_PER_SHARD,
    load_shard,
    open_events,
    open_facts,
    partition_users,
)
from qanchor.data.users import Users
from qanchor.errors import RunError
from qanchor.inference.engine import Engine
from qanchor.models.model import QAnchor
from qanchor.models.serialization import read_run_config
from qanchor.models.text_encoder import text_vectors
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_write, read_json, write_json
from qanchor.utils.types import Progress

THREADS = 1  # CPU threads per worker; the same number makes all backends write the same bytes
RESUME_HINT = "Finished shards are kept; run it again to resume."


def local_processes(
    make: Callable[..., dict], arguments: tuple, numbers: list[int], workers: int
) -> Iterator[dict]:
    """Distribute the shards to worker processes and yield their records as they finish.

    With one worker, shards run in this process. Workers end when this process is killed.

    Args:
        make: Module-level function that processes one shard, `make(*arguments, number)`, and
            returns its record.
        arguments: Arguments of `make` before the shard number.
        numbers: Numbers of the shards.
        workers: Number of processes.

    Raises:
        ChildProcessError: If a worker is killed.
    """
    workers = min(workers, len(numbers))
    if workers <= 1:
        yield from (make(*arguments, number) for number in numbers)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        futures = [pool.submit(make, *arguments, number) for number in numbers]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "A worker ended early: it ran out of memory, or the script calls this outside of"
            f' `if __name__ == "__main__":`. {RESUME_HINT}'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # running shards still finish


def _start_worker() -> None:
    """Make a worker process end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def ray_tasks(
    make: Callable[..., dict], arguments: tuple, numbers: list[int], workers: int
) -> Iterator[dict]:
    """Process the shards as Ray tasks and yield their records as they finish.

    They run on the cluster at RAY_ADDRESS, or on a local one that is started here.

    Args:
        make: As for `local_processes`.
        arguments: As for `local_processes`.
        numbers: Numbers of the shards.
        workers: Maximum number of concurrent tasks.

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
    # if a worker is killed, its task is retried
    task = ray.remote(num_cpus=THREADS, max_retries=3)(make)
    waiting = (task.remote(*arguments, number) for number in numbers)
    try:
        running = list(islice(waiting, workers))
        while running:
            [done], running = ray.wait(running)
            yield ray.get(done)
            running += islice(waiting, 1)
    except ray.exceptions.RayTaskError as error:
        raise ValueError(f"{error.cause}. {RESUME_HINT}") from error
    finally:
        if is_started_here:
            ray.shutdown()


BACKENDS = {"local": local_processes, "ray": ray_tasks}
EMBEDDINGS_VERSION = 2  # increase it when a change to the code changes embeddings
# fields that must be the same for all parts in a folder
FIXED_FIELDS = ("run_sha256", "queries", "input_sha256", "shards", "version")
MAX_SHARED_TEXTS = 200_000  # texts encoded in advance, so that workers need not


def embed_dataset(
    users: Users | Path | str,
    run: Path | str,
    queries: Sequence[str],
    out: Path | str,
    *,
    backend: str = "local",
    workers: int = 1,
    shards: int | None = None,
    progress: Progress | None = None,
) -> dict:
    """Embed any number of users for every query, shard by shard; rerun it to resume.

    Finished shards are kept if their sha256 matches its record. A folder never mixes inputs: if the
    users, queries, number of shards, run or version differ, an error is raised.

    Args:
        users: Users, a parquet file of events, or a folder as `load_users` reads it. Tables larger
            than memory must be parquet.
        run: Folder of a trained model.
        queries: Distinct texts.
        out: Folder for `part-00000.parquet` and so on, with columns user, query and embedding
            (float16): one row group per query, users sorted by id. When all parts are complete,
            `_manifest.json` records their inputs and sha256.
        backend: "local" (default): `workers` processes. "ray": up to `workers` tasks at a time on
            the cluster at RAY_ADDRESS, or on a local one.
        workers: Number of processes or tasks; 1 (default) with "local" uses this process. A script
            that asks for more must call this below `if __name__ == "__main__":`.
        shards: Number of parts. Default: one per 500,000 events. A worker holds one at a time.
        progress: Called with (done, total) of the missing shards. Default: none.

    Returns:
        The manifest without its parts, plus `made`: the number of shards embedded by this call.

    Raises:
        ValueError: If an option is out of range or a query is repeated.
        FileExistsError: If the folder holds embeddings of other inputs.
        DataError: If the users cannot be read.
        RunError: If the run cannot be read.
        ChildProcessError: If a worker is killed.

    Example:
        >>> import tempfile
        >>> users, folder = qa.make_sample_users(60), Path(tempfile.mkdtemp())
        >>> model = qa.fit(users, text_encoder="hash", steps=10, progress=False)
        >>> run = model.save_pretrained(folder / "run")
        >>> queries = ["Will this user travel soon?"]
        >>> manifest = qa.embed_dataset(users, run, queries, folder / "out", shards=2)
        >>> manifest["users"], manifest["made"]
        (60, 2)
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}. Pass one of {', '.join(BACKENDS)}.")
    for name, number in {"workers": workers, "shards": shards}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}. Pass 1 or more.")
    out = Path(out).absolute()
    run = Path(run).absolute()
    queries = list(queries)
    if not queries or len(set(queries)) < len(queries):
        raise ValueError(
            f"There are {len(queries)} queries, {len(set(queries))} of them distinct."
            " Pass at least 1, each only once."
        )
    with TemporaryDirectory() as folder:
        path = users.save(folder) if isinstance(users, Users) else Path(users)
        missing = _begin(path, run, queries, out, shards)
    records = BACKENDS[backend](embed_shard, (out, run), missing, workers)
    try:
        for done, _ in enumerate(records, 1):
            if progress:
                progress(done, len(missing))
    finally:
        _engine.cache_clear()
    return _finish(out) | {"made": len(missing)}


def embed_shard(out: Path, run: Path, number: int) -> dict:
    """Embed the users of one shard and write its part atomically; every backend calls this.

    Args:
        out: Folder of the embeddings; `.work` in it holds the plan and the users of each shard.
        run: Folder of the trained model.
        number: Number of the shard.

    Returns:
        Record of the part: shard, file, users, bytes, sha256, seconds and cpu_seconds.
    """
    work = out / ".work"
    plan = read_json(work / "plan.json")
    scan = read_json(work / "users" / "scan.json")
    with threadpool_limits(THREADS):
        engine = _engine(run, plan["run_sha256"])
        start = time.perf_counter()  # time from reading to writing, without loading the model
        cpu_start = time.process_time()
        users = load_shard(work / "users", number, scan)
        shape = (len(users), len(plan["queries"]), engine.model.config.embedding_dim)
        vectors = np.empty(shape, np.float16)
        for rows, z in engine.iter_embed(engine.prefill(users), plan["queries"]):
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
def _engine(run: Path, expected: str) -> Engine:
    path = run / "config.json"
    digest = sha256_file(path)
    if digest != expected:
        raise RunError(
            f"{path} has sha256 {digest[:16]}..., but the plan says {expected[:16]}..."
            " Copy the planned run to this folder."
        )
    return Engine(QAnchor.from_pretrained(run))


def _write(ids: Sequence[str], vectors: np.ndarray, about: dict, path: Path) -> None:
    kinds = {
        "user": pa.string(),
        "query": pa.dictionary(pa.int32(), pa.string()),
        "embedding": pa.list_(pa.float16(), vectors.shape[2]),
    }
    schema = pa.schema(kinds, {"qanchor": json.dumps(about)})
    # one row group per query, so that readers can load a single query; dictionary encoding does not
    # compress embeddings
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["query"],
        write_statistics=["user", "query"],
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


def _begin(users: Path, run: Path, queries: list[str], out: Path, shards: int | None) -> list[int]:
    """Partition the users, unless already done, and return the numbers of the missing shards."""
    about = read_run_config(run)
    table = open_events(users)
    facts, facts_key = open_facts(users)
    work = out / ".work"
    manifest = _read_manifest_or_empty(out)
    old = manifest
    if not manifest and (work / "plan.json").exists():
        old = read_json(work / "plan.json")
    source = json.dumps([table.about, table.key, facts_key], sort_keys=True).encode()
    default_shards = max(1, math.ceil(table.rows / EVENTS_PER_SHARD))
    plan = {
        "run": run.name,
        "run_sha256": sha256_file(run / "config.json"),
        "queries": queries,
        "source": table.about["name"],
        "unit": table.about["unit"],
        "input_sha256": hashlib.sha256(source).hexdigest(),
        "shards": shards or old.get("shards") or default_shards,
        "version": EMBEDDINGS_VERSION,
    }
    _refuse_other_inputs(out, old, plan)
    shutil.rmtree(out / ".gone", ignore_errors=True)
    for stale in out.glob(".part-*.part"):  # left by a killed process
        stale.unlink(missing_ok=True)
    if manifest and not _missing_shards(out, [part["shard"] for part in manifest["parts"]]):
        return []
    work.mkdir(parents=True, exist_ok=True)
    # new parts get the same metadata as existing ones
    kept = {name: old.get(name, value) for name, value in plan.items()}
    write_json(work / "plan.json", kept)
    if not (work / "users").exists():
        partition_users(
            table,
            facts,
            work / "users",
            plan["shards"],
            about["numbers"],
            MAX_SHARED_TEXTS,
        )
    missing = _missing_shards(out, read_json(work / "users" / "scan.json")["shards"])
    if missing:
        # encoded once here: in the workers' different batches, vectors differ in the last bit
        texts = pd.read_parquet(work / "users" / "texts.parquet")["text"]
        with threadpool_limits(THREADS):
            text_vectors([*texts, *queries], about["config"]["text_encoder"])
    return missing


def _refuse_other_inputs(out: Path, old: dict, plan: dict) -> None:
    """Raise FileExistsError if the folder holds embeddings of other inputs."""
    if not old and any(out.glob("part-*.parquet")):
        raise FileExistsError(
            f"{out} holds parts of unknown origin (no _manifest.json). "
            "Choose another folder, or remove them."
        )
    for name in FIXED_FIELDS:
        if old and old[name] != plan[name]:
            raise FileExistsError(
                f"{out} holds embeddings with {name} {old[name]!r:.100}, not {plan[name]!r:.100}. "
                "Choose another folder, or remove this one."
            )


def _missing_shards(out: Path, numbers: list[int]) -> list[int]:
    """Return the shards whose part is missing or differs from its record."""
    records = _records(out)
    missing = []
    for number in numbers:
        path = _part_path(out, number)
        expected = records.get(number, {}).get("sha256")
        if not path.exists() or sha256_file(path) != expected:
            missing.append(number)
    return missing


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
                f"{out}: the parts have {n_users:,} users, but the input has {scan['users']:,}. "
                "Please report this bug."
            )
        manifest = read_json(work / "plan.json") | {"users": n_users, "parts": parts}
        write_json(out / "_manifest.json", manifest)
        # renamed first, so that a killed process never leaves a partial `.work`
        shutil.rmtree(work.rename(out / ".gone"), ignore_errors=True)
    manifest = _read_manifest_or_empty(out)
    del manifest["parts"]
    return manifest


def _records(out: Path) -> dict[int, dict]:
    records = _read_manifest_or_empty(out).get("parts", [])
    records += map(read_json, sorted((out / ".work").glob("done-*.json")))
    return {record["shard"]: record for record in records}


def _read_manifest_or_empty(out: Path) -> dict:
    return read_manifest(out / "_manifest.json", parts=list, **dict.fromkeys(FIXED_FIELDS, object))


def _part_path(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"
