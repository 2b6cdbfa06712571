"""Bench `scale`: the same users through every back end, bytes compared; what a second worker adds; and a kill in the middle."""

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

from .nearest import read_part
from .scale import embed_folder
from .schema import Users
from .world import make_world

RUN = Path(__file__).parents[1] / "data" / "runs" / "world"
QUERIES = ("Will this user travel soon?", "Is this user price-conscious?", "Will this user stop coming?")


def scale(
    users: Callable[[], Users] | None = None,
    run: Path | None = None,
    seeds: int = 0,
    *,
    most: int = 240,
    shards: int = 8,
    rounds: int = 2,
) -> dict:
    """Measure users a second of one worker of one thread, alone and beside another, and what a killed job loses.

    users, run  at most `most` users and the run that reads them; without a run, those of the sample world and its run.
    Rows: seconds of the whole call, users_per_s of all workers while they work (without starting Python, loading the model and
    splitting the users), linear (against as many times one worker), and whether every byte is that of one worker.
    Of `rounds`, in turn, the fastest counts: what else the machine does can only take time. seeds is not looked at.
    """
    people = (users() if run else make_world(most)).sample(most)
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        people.save(home / "users")
        (home / "queries.txt").write_text("\n".join(QUERIES))
        given, wanted = (home / "users", Path(run or RUN).absolute(), QUERIES), None
        best: dict[tuple[str, int], dict] = {}
        for turn in range(rounds):
            for backend, workers in _variants():
                out = home / f"{backend}-{workers}-{turn}"
                began = time.perf_counter()
                if backend == "torchrun":
                    subprocess.run(
                        _command(*given[:2], home, out, shards, workers), env=_env(), check=True, capture_output=True
                    )
                else:
                    embed_folder(*given, out, backend=backend, workers=workers, shards=shards)
                row = {"backend": backend, "workers": workers, "seconds": time.perf_counter() - began} | _speed(out, workers)
                wanted = wanted or _bytes(out)
                before = best.get((backend, workers))
                row["identical"] = _bytes(out) == wanted and (before is None or before["identical"])
                if before is None or row["users_per_s"] > before["users_per_s"]:
                    best[backend, workers] = row
                else:
                    before["identical"] = row["identical"]
        one = best["local", 1]["users_per_s"]
        rows = [row | {"linear": row["users_per_s"] / row["workers"] / one} for row in best.values()]
        told = {"users": len(people), "queries": len(QUERIES), "shards": shards, "threads": 1, "rows": rows}
        return told | {"restart": _killed(given, set(people.ids), home, shards, wanted)}


def _variants() -> Iterator[tuple[str, int]]:
    return ((name, n) for name in ("local", "torchrun", "ray") for n in (1, 2) if name != "ray" or find_spec("ray"))


def _speed(out: Path, workers: int) -> dict:
    parts = json.loads((out / "_manifest.json").read_text())["parts"]
    return {"users_per_s": workers * sum(part["users"] for part in parts) / sum(part["seconds"] for part in parts)}


def _bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def _env() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _command(users: Path, run: Path, home: Path, out: Path, shards: int, ranks: int = 0) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    words = {"users": users, "run": run, "queries": home / "queries.txt", "out": out, "shards": shards, "workers": 2}
    words["backend"] = "torchrun" if ranks else "local"
    said = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return [sys.executable, *start, "-m", "qanchor", "embed", *said]


def _killed(given: tuple, known: set[str], home: Path, shards: int, wanted: dict[str, bytes]) -> dict:
    """Kill a job of two workers once its first shard is done, start it again, and count."""
    out = home / "killed"
    job = subprocess.Popen(
        _command(*given[:2], home, out, shards), env=_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not any(out.glob(".work/done-*.json")) and job.poll() is None:
        time.sleep(0.05)
    job.kill()
    job.wait()
    made = embed_folder(*given, out, shards=shards)["made"]
    parts = json.loads((out / "_manifest.json").read_text())["parts"]
    ids = [user for part in parts for user in read_part(out, part, 0)[0]]
    told = {"kept": len(parts) - made, "lost": len(known - set(ids)), "doubled": len(ids) - len(set(ids))}
    return told | {"identical": _bytes(out) == wanted}
