"""Embed users past one machine: split by user into shards, each made whole by whoever is free; nobody is lost or doubled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from .about import read_manifest
from .engine import Engine
from .files import sha256, write_whole
from .machine import best_device, commit, working_dtype
from .partition import load_shard, open_facts, open_table, partition_users
from .runs import RunError, about_run, load
from .schema import Users
from .shards import EVENTS_PER_SHARD
from .texts import text_vectors
from .workers import BACKENDS, LONG, ranks

CODE = ["about", "schema", "partition", "backbone", "texts", "habits", "reader", "batch", "encoder", "heads", "model"]
CODE += ["kernels", "runs", "cache", "engine", "machine", "scale"]  # a change in one of these may change the embeddings
SAME = ("run_sha256", "queries", "input_sha256", "shards", "threads", "code_sha256", "dtype")  # in all parts of a folder
TEXTS = 200_000  # of the distinct texts, encoded before the shards: else each worker encodes them again


def embed_folder(
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
        >>> users, folder = qa.make_world(40), Path(tempfile.mkdtemp())
        >>> run = qa.save(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)), folder / "run")
        >>> told = qa.embed_folder(users, run, ["Will this user travel soon?"], folder / "out", shards=2)
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
    store, rank, world = ranks() if backend == "torchrun" else (None, 0, 1)
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
        store.wait([f"done {other}" for other in range(world)], LONG)
    return _finish(out) | {"made": len(missing)}


def embed_shard(out: Path | str, run: Path | str, number: int) -> dict:
    """Embed the users of one shard and write them whole; all back ends call this, and whoever does, the bytes are the same."""
    from threadpoolctl import threadpool_limits

    out, work = Path(out), Path(out) / ".work"
    plan, scan = _read(work / "plan.json"), _read(work / "users" / "scan.json")
    with threadpool_limits(plan["threads"]):
        engine = _engine(Path(run), plan["run_sha256"], plan["dtype"])
        began = time.perf_counter(), time.process_time()
        users = load_shard(work / "users", number, scan)
        vectors = np.empty((len(users), len(plan["queries"]), engine.model.config.dim), np.float16)
        for rows, z in engine.sweep(users, plan["queries"]):
            vectors[rows] = z
        path = write_whole(_part(out, number), partial(_write, users.ids, vectors, plan | {"shard": number}))
    record = {"shard": number, "file": path.name, "users": len(users), "bytes": path.stat().st_size, "sha256": sha256(path)}
    took = time.perf_counter() - began[0], time.process_time() - began[1]  # reading to writing; the model was there already
    return _say(work / f"done-{number:05d}.json", record | {"seconds": took[0], "cpu_seconds": took[1]})


@lru_cache(maxsize=1)
def _engine(run: Path, expected: str, dtype: str) -> Engine:
    if (found := sha256(run / "config.json")) != expected:
        raise RunError(f"{run / 'config.json'} has sha256 {found[:16]}..., planned was {expected[:16]}...: copy the run here")
    gpu = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
    return Engine(load(run, f"cuda:{gpu}" if torch.cuda.is_available() else None, dtype))


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
    about = about_run(run)
    table, (facts, key) = open_table(users, about["reader"]["numbers"]), open_facts(users)
    manifest, work = _manifest(out), out / ".work"
    old = manifest or (_read(work / "plan.json") if (work / "plan.json").exists() else {})
    code = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in CODE)
    told = json.dumps([table.about, table.key, key], sort_keys=True).encode()
    plan = {"run": run.name, "run_sha256": sha256(run / "config.json"), "queries": queries, "source": table.about["name"]}
    plan |= {"unit": table.about["unit"], "input_sha256": hashlib.sha256(told).hexdigest()}
    plan |= {"shards": shards or old.get("shards") or max(1, -(-table.rows // EVENTS_PER_SHARD)), "threads": threads}
    plan |= {"code_sha256": hashlib.sha256(code).hexdigest(), "commit": commit()}
    plan |= {"dtype": working_dtype(about["config"]["dtype"], best_device())}  # of whoever begins: all others reckon alike
    if not old and any(out.glob("part-*.parquet")):
        raise FileExistsError(f"{out} holds parts of unknown origin (no _manifest.json): name another folder, or remove them")
    for name in SAME if old else ():
        if old[name] != plan[name]:
            raise FileExistsError(
                f"{out} holds embeddings of {name} {_short(old[name])}, wanted is {_short(plan[name])}: "
                "name another folder, or remove this one"
            )
    shutil.rmtree(out / ".gone", ignore_errors=True)
    for stale in out.glob(".part-*.part"):  # half-written by a killed process
        stale.unlink(missing_ok=True)
    if manifest and not (missing := _broken(out, [part["shard"] for part in manifest["parts"]])):
        return missing
    work.mkdir(parents=True, exist_ok=True)
    _say(work / "plan.json", {name: old.get(name, value) for name, value in plan.items()})
    if not (work / "users").exists():
        config = {"threads": 2, "memory_limit": "800MB"}
        partition_users(table, facts, work / "users", plan["shards"], about["reader"]["numbers"], TEXTS, **config)
    if missing := _broken(out, _read(work / "users" / "scan.json")["shards"]):
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
        path, record = _part(out, number), records.get(number)
        return bool(record) and path.exists() and path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]

    with ThreadPoolExecutor(4) as pool:
        return [number for number, fine in zip(numbers, pool.map(whole, numbers), strict=True) if not fine]


def _finish(out: Path) -> dict:
    """Say in _manifest.json of what all parts are made, count everybody, and remove what was needed only to make them."""
    work = out / ".work"
    if (work / "users").exists():
        scan, records = _read(work / "users" / "scan.json"), _records(out)
        plan = _read(work / "plan.json") | {"users": scan["users"], "parts": [records[number] for number in scan["shards"]]}
        if (found := sum(part["users"] for part in plan["parts"])) != scan["users"]:
            raise RuntimeError(f"{out}: {found:,} users in the parts, {scan['users']:,} in the input: report this")
        _say(out / "_manifest.json", plan)
        shutil.rmtree(work.rename(out / ".gone"), ignore_errors=True)  # killed here, no half of it passes for a whole one
    return {name: value for name, value in _manifest(out).items() if name != "parts"}


def _records(out: Path) -> dict[int, dict]:
    found = [*_manifest(out).get("parts", []), *map(_read, sorted((out / ".work").glob("done-*.json")))]
    return {record["shard"]: record for record in found}


def _manifest(out: Path) -> dict:
    return read_manifest(out / "_manifest.json", parts=list, **dict.fromkeys(SAME, object))


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


def _say(path: Path, told: dict) -> dict:
    write_whole(path, lambda aside: aside.write_text(json.dumps(told, indent=1) + "\n"))
    return told


def _short(value) -> str:
    return repr(value) if len(repr(value)) < 100 else repr(value)[:97] + "..."
