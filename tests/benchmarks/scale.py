"""Bench `scale`: the same users through every back end, bytes compared; what a second worker adds;
and a kill in the middle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.inference.batch_embed import embed_dataset, local_processes
from tests.benchmarks.machine import compute_dtype

HOME = Path(__file__).parents[2]
RUN = HOME / "data" / "runs" / "sample"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
QUERIES = (
    "Will this user travel soon?",
    "Is this user price-conscious?",
    "Will this user stop coming?",
)


def scale(
    users: Callable[[], Users] | None = None,
    run: Path | None = None,
    seeds: int = 0,
    *,
    most: int = 400,
    shards: int = 8,
    rounds: int = 2,
) -> dict:
    """Measure users a second of one worker of one thread, alone and beside another, and what a
    killed job loses.

    users, run  at most `most` users and the run that reads them; without a run, those of the sample
                world and its run.
    Rows: seconds of the whole call; users_per_s of all workers while they work (without starting
    Python, loading the model and splitting the users), and users_per_cpu_s, which what else the
    machine does hardly changes; linear (against as many times one worker of that back end), by the
    clock and by the processor; and whether every byte is that of one local worker.
    ceiling: what two processes of bf16 products alone, or of moving memory alone, keep of their
    speed beside each other.
    Of `rounds`, in turn, the fastest counts: what else the machine does can only take time. seeds
    is not looked at.
    """
    people = (users() if run else make_sample_users(most)).sample(most)
    with tempfile.TemporaryDirectory() as folder:
        home, best, wanted = Path(folder), {}, None
        people.save(home / "users")
        (home / "queries.txt").write_text("\n".join(QUERIES))
        job = {
            "users": home / "users",
            "run": Path(run or RUN).absolute(),
            "queries": home / "queries.txt",
            "shards": shards,
        }
        for turn in range(rounds):
            for who in _variants():
                out = home / f"{'-'.join(map(str, who))}-{turn}"
                row = _timed(job | {"out": out}, *who)
                wanted = wanted or _bytes(out)
                faster = max(best.get(who, row), row, key=lambda row: row["users_per_s"])
                best[who] = faster | {
                    "identical": _bytes(out) == wanted and best.get(who, {}).get("identical", True)
                }
        rows = [row | _linear(row, best[row["backend"], 1]) for row in best.values()]
        most = max(workers for _, workers in best)
        told = {
            "users": len(people),
            "queries": len(QUERIES),
            "shards": shards,
            "threads": 1,
            "rows": rows,
        }
        told["ceiling"] = {kind: _rate(kind, 2) / _rate(kind, 1) for kind in ("products", "memory")}
        return told | {
            "restart": _killed(job | {"out": home / "killed"}, most, set(people.ids), wanted)
        }


def work(kind: str, number: int) -> dict:
    """Do one plain thing for a second, with one thread: products of matrices, or moving memory; say
    how often it was done.
    """
    import torch
    from threadpoolctl import threadpool_limits

    dtype = getattr(torch, compute_dtype("bfloat16", "cpu"))
    a, block = torch.ones(512, 576, dtype=dtype), torch.zeros(2**24)
    step = (lambda: a @ a.T) if kind == "products" else (lambda: block.mul_(1.0))
    with threadpool_limits(1):
        step()
        began, done = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < 1:
            step()
            done += 1
    return {"rate": done / took}


def _rate(kind: str, workers: int, rounds: int = 4) -> float:
    """Give what each of some processes does in a second while the others do the same."""
    records = local_processes(work, (kind,), list(range(rounds * workers)), workers)
    return float(np.median([record["rate"] for record in records]))


def _variants() -> Iterator[tuple[str, int]]:
    return (
        (name, n) for name in ("local", "ray") for n in (1, 2) if name != "ray" or find_spec("ray")
    )


def _timed(job: dict, backend: str, workers: int) -> dict:
    began = time.perf_counter()
    _embed(job, backend, workers)
    row = {"backend": backend, "workers": workers, "seconds": time.perf_counter() - began}
    parts = json.loads((job["out"] / "_manifest.json").read_text())["parts"]
    users, busy, worked = (
        sum(part[name] for part in parts) for name in ("users", "seconds", "cpu_seconds")
    )
    return row | {"users_per_s": workers * users / busy, "users_per_cpu_s": users / worked}


def _linear(row: dict, one: dict) -> dict:
    share = row["users_per_s"] / row["workers"] / one["users_per_s"]
    return {"linear": share, "linear_cpu": row["users_per_cpu_s"] / one["users_per_cpu_s"]}


def _embed(job: dict, backend: str, workers: int) -> dict:
    how = {"backend": backend, "workers": workers, "shards": job["shards"]}
    return embed_dataset(job["users"], job["run"], QUERIES, job["out"], **how)


def _bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def _command(job: dict, backend: str, workers: int) -> list[str]:
    words = [
        str(w)
        for name, value in (job | {"backend": backend, "workers": workers}).items()
        for w in (f"--{name}", value)
    ]
    return [sys.executable, "-m", "qanchor", "embed", *words]


def _killed(job: dict, workers: int, known: set[str], wanted: dict[str, bytes]) -> dict:
    """Kill a job once its first shard is done, start it again, and count."""
    out, silent = job["out"], dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    driver = subprocess.Popen(_command(job, "local", workers), env=ENVIRONMENT, **silent)
    while not any(out.glob(".work/done-*.json")) and driver.poll() is None:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    made, parts = (
        _embed(job, "local", workers)["made"],
        json.loads((out / "_manifest.json").read_text())["parts"],
    )
    ids = [user for part in parts for user in _ids_of_first_query(out / part["file"])]
    told = {
        "kept": len(parts) - made,
        "lost": len(known - set(ids)),
        "doubled": len(ids) - len(set(ids)),
    }
    return told | {"identical": _bytes(out) == wanted}


def _ids_of_first_query(path: Path) -> list[str]:
    return pq.ParquetFile(path).read_row_group(0, ["user"])["user"].to_pylist()
