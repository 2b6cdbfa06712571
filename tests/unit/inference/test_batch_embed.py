"""Past one machine: every back end writes the same bytes, and no kill, full disk or change loses,
doubles or mixes anybody.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import qanchor as qa
from qanchor.errors import DataError
from qanchor.inference import batch_embed
from qanchor.utils import hashing
from tests.benchmarks.scale import scale as bench_scale
from tests.tiny import make_model, make_users

QUERIES = ["Will this user travel soon?", "", "Is this user price-conscious?"]
ENV = os.environ | {
    "PYTHONPATH": f"{Path(__file__).parents[3]}:{os.environ.get('PYTHONPATH', '')}",
    "OMP_NUM_THREADS": "1",
}
SHARDS = 6
N_USERS = len(make_users())


def _hash(user: str) -> int:
    return int(hashlib.md5(user.encode()).hexdigest()[:15], 16)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Users as a folder, a run, and what one worker in one go makes of them."""
    home = tmp_path_factory.mktemp("scale")
    make_users().save(home / "users")
    make_model().save_pretrained(home / "run")
    result = embed(home, home / "whole")
    assert result["users"] == N_USERS and result["made"] == SHARDS
    return home


def embed(
    home: Path,
    out: Path,
    users=None,
    run: str = "run",
    queries=QUERIES,
    shards: int | None = SHARDS,
    **how,
) -> dict:
    return qa.embed_dataset(users or home / "users", home / run, queries, out, shards=shards, **how)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def same(home: Path, out: Path) -> None:
    """All is there as if nothing had happened, and nothing else."""
    assert bytes_of(out) == bytes_of(home / "whole")
    assert {path.name for path in out.iterdir()} == {"_manifest.json", *bytes_of(out)}


def read(out: Path) -> pd.DataFrame:
    frame = pd.read_parquet(out).astype({"query": str})
    assert not frame.duplicated(["user", "query"]).any()
    return frame.set_index(["query", "user"]).sort_index()


def test_the_parts_hold_what_the_engine_gives(home):
    users, frame = make_users(), read(home / "whole")
    assert len(frame) == N_USERS * len(QUERIES)
    engine = qa.Engine(make_model())
    expected = engine.embed(engine.prefill(users), QUERIES)
    for place, query in enumerate(QUERIES):
        found = np.stack(frame.loc[query].loc[list(users.ids)]["embedding"])
        assert found.dtype == np.float16 and found.shape == (N_USERS, 128)
        np.testing.assert_allclose(found, expected[:, place], atol=1e-3)


def test_a_part_says_what_it_is(home):
    manifest = json.loads((home / "whole" / "_manifest.json").read_text())
    assert (
        manifest["queries"] == QUERIES
        and manifest["users"] == N_USERS
        and len(manifest["parts"]) == SHARDS
    )
    assert manifest["run_sha256"] == hashing.sha256_file(home / "run" / "config.json")
    for part in manifest["parts"]:
        file = pq.ParquetFile(home / "whole" / part["file"])
        assert hashing.sha256_file(home / "whole" / part["file"]) == part["sha256"]
        told = json.loads(file.schema_arrow.metadata[b"qanchor"])
        assert (
            told["shard"] == part["shard"]
            and told["queries"] == QUERIES
            and told["run_sha256"] == manifest["run_sha256"]
        )
        assert [str(field.type) for field in file.schema_arrow] == [
            "string",
            "dictionary<values=string, indices=int32, ordered=0>",
            "fixed_size_list<element: halffloat>[128]",
        ]
        assert file.num_row_groups == 3 and file.metadata.row_group(1).num_rows == part["users"]
        ids = file.read_row_group(2).column("user").to_pylist()
        assert ids == sorted(ids) and {_hash(user) % SHARDS for user in ids} == {part["shard"]}


def test_users_in_memory_and_as_csv_are_embedded_alike(home, tmp_path):
    """Users with attributes, without events, and with a future alone."""
    users = make_users()
    users.save(tmp_path / "users")
    pd.read_parquet(tmp_path / "users" / "users.parquet").to_csv(
        tmp_path / "users" / "users.csv", index=False
    )
    (tmp_path / "users" / "users.parquet").unlink()
    (tmp_path / "users" / "labels.parquet").unlink()
    expected = read(home / "whole")
    for name, source in {"memory": users, "csv": tmp_path / "users"}.items():
        # other shards are other batches, so the last bit of a half may differ
        qa.embed_dataset(source, home / "run", QUERIES, tmp_path / name, shards=1)
        found = read(tmp_path / name)
        assert found.index.equals(expected.index)
        np.testing.assert_allclose(
            np.stack(found["embedding"]), np.stack(expected["embedding"]), atol=1e-3
        )


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(home, tmp_path):
    assert embed(home, tmp_path / "out", workers=2)["made"] == SHARDS
    same(home, tmp_path / "out")


MANY = 24  # shards: one worker alone must not have made them all before it can be killed
DRIVER = (
    "import json, sys; import qanchor as qa; qa.embed_dataset(*json.loads(sys.argv[1]), "
    f"shards={MANY}, workers=2)"
)


@pytest.mark.slow
def test_kills_lose_and_double_nobody(home, tmp_path):
    """First the driver of two workers is killed, then one of two workers, each after a shard; what
    was done stays.
    """
    out, whole = (
        tmp_path / "out",
        embed(home, tmp_path / "whole", shards=MANY)["made"],
    )  # a shard may have no users
    given = json.dumps([str(home / "users"), str(home / "run"), QUERIES, str(out)])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, given], env=ENV)
    wait(lambda: any(out.glob(".work/done-*.json")) or driver.poll() is not None)
    workers = children(driver.pid)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL and len(workers) == 2
    wait(lambda: not any(map(alive, workers)))  # they end by themselves
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 1 <= len(kept) < whole and not (out / "_manifest.json").exists()
    killed = []

    def kill(done: int, total: int) -> None:
        if not killed:
            killed.append(children(os.getpid())[0])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"A worker ended early: .*run it again to resume"):
        embed(home, out, shards=MANY, workers=2, progress=kill)
    assert not (out / "_manifest.json").exists()
    kept |= {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert embed(home, out, shards=MANY)["made"] == whole - len(kept)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    same(tmp_path, out)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
            found += (
                [int(stat.parent.name)]
                if int(words[1]) == pid and "spawn_main" in (stat.parent / "cmdline").read_text()
                else []
            )
        except OSError:  # it ended meanwhile
            continue
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(ready, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.fixture(params=["small disk", "told so"])
def full_disk(request, tmp_path, monkeypatch):
    """A folder on a disk that fills up, and how to make room: a real one if we may mount it, else a
    writer that says so.
    """
    out = tmp_path / "disk"
    out.mkdir()
    if request.param == "small disk":
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", out],
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            pytest.skip(f"no right to mount a small disk: {mounted.stderr.strip()}")
        yield (
            out / "out",
            lambda: subprocess.run(["mount", "-o", "remount,size=20m", out], check=True),
        )
        subprocess.run(["umount", out], check=True)
        return
    write = batch_embed._write

    def full(ids, vectors, told, path):
        write(ids, vectors, told, path)
        if told["shard"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(batch_embed, "_write", full)
    yield out / "out", lambda: monkeypatch.setattr(batch_embed, "_write", write)


@pytest.mark.slow
def test_a_full_disk_loses_nobody(home, full_disk):
    out, make_room = full_disk
    with pytest.raises(OSError, match="No space left on device"):
        embed(home, out)
    assert not (out / "_manifest.json").exists() and not list(out.glob(".part-*"))
    make_room()
    assert embed(home, out)["made"] > 0
    same(home, out)


@pytest.mark.slow
def test_what_is_torn_or_lost_is_made_again(home, tmp_path):
    shutil.copytree(home / "whole", tmp_path / "out")
    torn = tmp_path / "out" / "part-00002.parquet"
    before = torn.read_bytes()
    torn.write_bytes(before[: len(before) // 2])
    (tmp_path / "out" / "part-00004.parquet").unlink()
    (tmp_path / "out" / "part-00001.parquet").write_bytes(
        (home / "whole" / "part-00001.parquet").read_bytes()[:-1] + b"?"
    )
    (tmp_path / "out" / ".part-00005.parquet.1.part").write_bytes(b"half")
    assert embed(home, tmp_path / "out")["made"] == 3
    same(home, tmp_path / "out")
    (tmp_path / "out" / ".gone" / "users").mkdir(parents=True)  # killed while it tidied up
    assert embed(home, tmp_path / "out", shards=None)["made"] == 0
    same(home, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["whole", "begun"])
def test_a_folder_never_mixes_two(home, tmp_path, half):
    out, users = tmp_path / "out", make_users()
    if half:

        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embed(home, out, progress=stop)
    else:
        shutil.copytree(home / "whole", out)
    before = bytes_of(out)
    if not (home / "other").exists():
        make_model(seed=1).save_pretrained(home / "other")
        users.select(users.ids[1:]).save(home / "fewer")
    for change, name in (
        ({"run": "other"}, "run_sha256"),
        ({"queries": QUERIES[:2]}, "queries"),
        ({"users": home / "fewer"}, "input_sha256"),
        ({"shards": 5}, "shards"),
    ):
        with pytest.raises(
            FileExistsError,
            match=rf"holds embeddings with {name} .*, not .*\. Choose another folder",
        ):
            embed(home, out, **change)
    assert bytes_of(out) == before
    assert embed(home, out)["made"] == SHARDS - len(before)
    same(home, out)


@pytest.mark.slow
def test_what_is_wrong_is_told(home, tmp_path):
    for how, told in (
        ({"backend": "mail"}, "backend is 'mail'. Pass one of local, ray"),
        ({"workers": 0}, "workers is 0. Pass 1 or more"),
        ({"queries": []}, "0 queries"),
        ({"queries": ["a", "a"]}, "2 queries, 1 of them distinct"),
    ):
        with pytest.raises(ValueError, match=told):
            embed(home, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"whose?")
    with pytest.raises(FileExistsError, match="parts of unknown origin"):
        embed(home, tmp_path / "out")
    events = pd.read_parquet(home / "users" / "events.parquet").astype({"text": object})
    events.loc[7, "text"] = " "
    (tmp_path / "bad").mkdir()
    events.to_parquet(tmp_path / "bad" / "events.parquet", index=False)
    with pytest.raises(DataError, match=r"events.parquet, row 7, column 'text': ' ': empty"):
        embed(home, tmp_path / "worse", tmp_path / "bad")
    pd.DataFrame({"user": ["a", "a"], "age.years": [1.0, 2.0]}).to_parquet(
        tmp_path / "bad" / "users.parquet"
    )
    events.drop(index=7).to_parquet(tmp_path / "bad" / "events.parquet", index=False)
    with pytest.raises(
        DataError, match=r"users, shard 0, row \d+, column 'user': 'a': given twice"
    ):
        embed(home, tmp_path / "twice", tmp_path / "bad", shards=1)


@pytest.mark.slow
def test_ray_writes_the_same_bytes(home, tmp_path):
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(
            ValueError, match=r"ray is not installed. Run pip install 'qanchor\[scale\]'"
        ):
            embed(home, tmp_path / "out", backend="ray")
        pytest.skip("ray not installed: pip install 'qanchor[scale]'")
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": ENV["PYTHONPATH"]}},
    )
    try:
        assert embed(home, tmp_path / "out", backend="ray", workers=2)["made"] == SHARDS
    finally:
        ray.shutdown()
    same(home, tmp_path / "out")


@pytest.mark.slow
def test_the_bench_says_what_it_promises(home, monkeypatch):
    from tests.benchmarks import scale

    monkeypatch.setattr(scale, "_variants", lambda: [("local", 1)])
    found = bench_scale(
        lambda: qa.load_users(home / "users"), home / "run", most=40, shards=4, rounds=1
    )
    assert json.loads(json.dumps(found)) and found["users"] == 40 and found["shards"] == 4
    (row,) = found["rows"]
    names = [
        "backend",
        "workers",
        "seconds",
        "users_per_s",
        "users_per_cpu_s",
        "identical",
        "linear",
        "linear_cpu",
    ]
    assert list(row) == names and row["linear"] == row["linear_cpu"] == 1.0
    assert row["identical"] and row["users_per_s"] > 0
    assert (
        found["restart"]["lost"] == found["restart"]["doubled"] == 0
        and found["restart"]["identical"]
    )
