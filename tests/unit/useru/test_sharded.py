"""UserU out of core: the same rows as in memory, whoever makes a shard, and nothing lost but the
shard at work when killed.
"""

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qanchor import cli
from qanchor.data.complete_journey import load_complete_journey
from qanchor.data.partition import HASH, open_table
from qanchor.data.reading import load_users
from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.useru.behavior import OFFERS, find_spend_sources
from qanchor.useru.pairs import make_pairs, user_hash
from qanchor.useru.schedule import PairConfig, default_cutoffs
from qanchor.useru.sharded import make_shard, partition, plan, write_pairs
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.useru import useru, write_copies

ORDER = ["cutoff", "user", "kind", "topic"]
CUTOFF = pd.Timestamp("2025-05-15")  # within the history; one cut-off asks in the fewest windows


@pytest.fixture(scope="module")
def world() -> Users:
    return make_sample_users(60, seed=1)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    return world.save(tmp_path_factory.mktemp("shards") / "users")


def read(out: Path) -> pd.DataFrame:
    tables = [pd.read_parquet(file) for file in sorted(out.glob("pairs-*.parquet"))]
    return pd.concat(tables).sort_values(ORDER, ignore_index=True)


def same(out: Path, users: Users, **wishes) -> None:
    pd.testing.assert_frame_equal(read(out), make_pairs(users, **wishes))


def bytes_of(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.glob("pairs-*.parquet"))}


def test_the_shards_hold_what_memory_gives(world, folder, tmp_path):
    told = write_pairs(folder, tmp_path / "file", shards=4)
    assert (
        told["shards"] == [0, 1, 2, 3] and told["events"] == len(world.events) and told["made"] == 4
    )
    same(tmp_path / "file", world)
    assert told["pairs"] == len(read(tmp_path / "file"))
    homes = [set(pd.read_parquet(file)["user"]) for file in (tmp_path / "file").glob("pairs-*")]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 60  # nobody is torn
    late = [world.cutoff - pd.Timedelta(days=40), world.cutoff]
    wishes = {"cutoffs": late, "seed": 3, "per_sample": 5, "future_share": 0.2}
    write_pairs(world, tmp_path / "users", shards=2, **wishes)
    same(tmp_path / "users", world, **wishes)


@pytest.mark.slow
def test_the_shards_of_the_journey_hold_what_memory_gives(tmp_path):
    some = load_complete_journey().sample(150)
    write_pairs(some, tmp_path / "out", shards=3)
    same(tmp_path / "out", some)


def test_a_table_without_order_or_story(world, tmp_path):
    """Rows in any order over several files, no about.json, and a column that no measure looks at."""
    events = world.events.astype({"user": str, "modality": str, "text": str}).sample(
        frac=1, random_state=0
    )
    (tmp_path / "many").mkdir()
    for part in range(3):
        events.iloc[part::3].assign(odd=0.5).to_parquet(tmp_path / f"many/{part}.parquet")
    write_pairs(tmp_path / "many", tmp_path / "out", shards=2)
    same(
        tmp_path / "out", Users.from_events(pd.concat([events.iloc[part::3] for part in range(3)]))
    )


def test_a_user_draws_alike_in_any_company(world):
    told = make_pairs(world)
    some = make_pairs(world.sample(50), cutoffs=default_cutoffs(world))
    key = ["user", "cutoff", "kind", "horizon_days", "topic"]
    both = some.merge(told, on=key, suffixes=("", "_whole"))
    assert len(both) > 0.6 * len(
        some
    )  # grades compare with others, so some topics differ; the draws do not
    alike = both[both["grade"] == both["grade_whole"]]
    assert len(alike) > 0.5 * len(both) and (alike["query"] == alike["query_whole"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["order", "processes"])
def test_the_bytes_do_not_depend_on_who_makes_them(folder, tmp_path, kind):
    write_pairs(folder, tmp_path / "one", shards=3)
    if kind == "order":
        numbers = plan(folder, tmp_path / "two", shards=3)
        assert [make_shard(tmp_path / "two", number).name for number in reversed(numbers)][
            -1
        ] == "pairs-0000.parquet"
    else:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            numbers = plan(folder, tmp_path / "two", shards=3, each=pool.map, threads=1)
            list(pool.map(partial(make_shard, tmp_path / "two"), numbers))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") and len(numbers) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from qanchor.useru.sharded import write_pairs
users, out, at = sys.argv[1:]
for name in ("replace", "rename"):
    real = getattr(Path, name)
    def torn(self, target, real=real):
        if Path(target).name.startswith(at):
            if self.is_file(): os.truncate(self, self.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)
    setattr(Path, name, torn)
write_pairs(users, out, shards=3)
"""


@pytest.mark.slow
def test_a_kill_loses_only_the_shard_at_work(world, folder, tmp_path):
    """A real process is killed with half a file written: in the split, in a shard's values, in a
    shard's pairs.
    """
    out, kept = tmp_path / "out", {}
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    for at in (".work-", "values-0001.npz", "manifest.json", "pairs-0002.parquet"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, folder, out, at], env=env, capture_output=True, text=True
        )
        assert done.returncode == -9, done.stderr
        now = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        done_before = {path: time for path, time in kept.items() if not path.name.startswith(".")}
        assert done_before.items() <= now.items(), at  # what was done stays, untouched
        kept = {
            path: time for path, time in now.items() if path.name[:4] in ("pair", "valu", "scan")
        }
        names = [path.name for path in kept if ".part" not in str(path)]
        wanted = {".work-": 0, "values-0001.npz": 2, "manifest.json": 4, "pairs-0002.parquet": 6}[
            at
        ]
        assert len(names) == wanted, (at, names)
        kept = {path: time for path, time in kept.items() if ".part" not in str(path)}
    told = write_pairs(folder, out, shards=3)
    assert told["made"] == 1 and write_pairs(folder, out, shards=3)["made"] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        *(f"pairs-000{i}.parquet" for i in range(3)),
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path.parent == out)
    same(out, world)


def test_a_change_makes_all_anew_and_a_loss_is_made_up(world, tmp_path):
    users = world.save(tmp_path / "users")
    wishes = {"cutoffs": [world.cutoff]}
    first = write_pairs(users, tmp_path / "out", shards=2, **wishes)
    (tmp_path / "out" / "pairs-0001.parquet").unlink()
    assert write_pairs(users, tmp_path / "out", shards=2, **wishes) == first | {"made": 1}
    wishes["seed"] = 1
    assert write_pairs(users, tmp_path / "out", shards=2, **wishes)["made"] == 2
    same(tmp_path / "out", world, **wishes)
    fewer = world.select(world.ids[:40])
    fewer.save(users)
    assert write_pairs(users, tmp_path / "out", shards=2, **wishes)["key"] != first["key"]
    same(tmp_path / "out", fewer, **wishes)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match=r"pairs-0000.parquet but no manifest"):
        write_pairs(users, tmp_path / "out")


FAULTS = {
    "time": ("soon", "'soon': not a time"),
    "time, as a data base reads it": ("epoch", "'epoch': not a time"),
    "time without end": ("infinity", "'infinity': not a time"),
    "time of a place": ("2025-01-04 10:00:00 Europe/Berlin", "not a time"),
    "time of long ago": ("0001-01-01 10:00:00", "Check the year"),
    "text": (" ", r"empty\. Fill it"),
    "user": (None, "a user needs an id"),
    "modality": (None, r"empty\. Fill it"),
    "amount": ("much", "not a number"),
    "note": ("a further column", "not a number"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_by_its_row_in_the_file(world, tmp_path, case):
    (value, cure), column = FAULTS[case], case.split()[0].strip(",")
    events = world.events.astype(
        {"user": str, "modality": str, "text": str, "time": str, "amount": object}
    )
    events = events.assign(note=None)
    events.loc[777, column] = value
    for name in ("amount", "note"):
        events[name] = events[name].map(lambda value: None if pd.isna(value) else str(value))
    events.to_parquet(tmp_path / "events.parquet", index=False)
    place = f"events.parquet, row 777, column '{column}'"
    with pytest.raises(DataError, match=f"{place}: .*({cure})"):
        write_pairs(tmp_path, tmp_path / "out", shards=3)
    if column in ("time", "amount"):
        with pytest.raises(DataError, match=f"{place}: .*({cure})"):
            load_users(tmp_path)
    elif column != "note":  # a further column of words joins the text
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = load_users(tmp_path).report.findings
        assert [(f.row, f.rows) for f in found if f.kind != "note"] == [(777, 1)]
    assert not list((tmp_path / "out").glob("pairs-*"))


def test_other_faults_of_a_source(world, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no events.parquet"):
        write_pairs(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "events.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"events.parquet.*cannot be read"):
        write_pairs(tmp_path, tmp_path / "out")
    world.events.drop(columns="text").to_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"column 'text'.*missing"):
        write_pairs(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="0 shards: give at least 1"):
        write_pairs(folder, tmp_path / "out", shards=0)
    with pytest.raises(ValueError, match="after the users' own"):
        write_pairs(folder, tmp_path / "out", cutoffs=["2030-01-01"])


def test_further_columns_are_numbers_or_refused(world, tmp_path):
    events = world.events.astype({"user": str, "modality": str, "text": str})
    for number, kind in enumerate(("int8", "uint64", "float32", "bool")):
        events.assign(more=np.ones(len(events), kind)).to_parquet(
            tmp_path / "events.parquet", index=False
        )
        out = tmp_path / f"out-{number}"
        assert write_pairs(tmp_path, out, shards=1, cutoffs=[CUTOFF])["pairs"]
    for told in (events["time"], [["a list"]] * len(events)):
        events.assign(more=told).to_parquet(tmp_path / "events.parquet", index=False)
        with pytest.raises(DataError, match=r"column 'more': .*not a number"):
            write_pairs(tmp_path, tmp_path / "out")
        assert "more" in str(load_users(tmp_path).report.columns["left out"])


def test_ids_of_truths_are_written_as_in_memory(world, tmp_path):
    events = world.events.astype({"user": str, "modality": str, "text": str})
    events = events.assign(user=events["user"].isin(list(world.ids)[:20]))
    events.to_parquet(tmp_path / "events.parquet", index=False)
    write_pairs(tmp_path, tmp_path / "out", shards=2, cutoffs=[CUTOFF])
    same(tmp_path / "out", load_users(tmp_path), cutoffs=[CUTOFF])


def test_times_with_a_zone_mean_one_moment(world, tmp_path):
    events = world.events.astype({"user": str, "modality": str, "text": str})
    zoned = events.assign(time=events["time"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    for name, time in {
        "zone": zoned["time"],
        "text": zoned["time"].map(lambda moment: moment.isoformat()),
    }.items():
        (tmp_path / name).mkdir()
        events.assign(time=time).to_parquet(tmp_path / name / "events.parquet", index=False)
        write_pairs(tmp_path / name, tmp_path / f"{name}-out", shards=2, cutoffs=[CUTOFF])
        same(tmp_path / f"{name}-out", load_users(tmp_path / name), cutoffs=[CUTOFF])


def test_the_hash_is_one_in_sql_and_in_python_and_does_not_move(world):
    duckdb = pytest.importorskip("duckdb")
    ids = ["a", "u00042", "Zoë", "用户 7", "x" * 300, "o'neil"]
    told = duckdb.execute(f'select {HASH} as hash from (select unnest(?) as "user")', [ids]).df()[
        "hash"
    ]
    assert told.tolist() == user_hash(ids).tolist()
    assert user_hash(["a"]).tolist() == [0x0CC175B9C0F1B6A]  # md5("a") begins so, on any machine


def test_the_plan_sees_all_users_as_memory_does(world, folder, tmp_path):
    partition(
        open_table(folder),
        tmp_path / "work",
        3,
        None,
        PairConfig("user", 30),
        threads=2,
        memory_limit="500MB",
    )
    scan = json.loads((tmp_path / "work" / "scan.json").read_text())
    past = world.history()
    assert scan["cutoffs"] == [str(cutoff) for cutoff in default_cutoffs(world)]
    told = [
        (whole, single, tuple(seen))
        for whole, single, seen in (m["sources"] for m in scan["moments"])
    ]
    assert told == [find_spend_sources(past[past["time"] < m["cutoff"]]) for m in scan["moments"]]
    assert scan["start"] == past.loc[~past["modality"].isin(OFFERS), "time"].min().value // 1000
    files = list((tmp_path / "work" / "events").rglob("*.parquet"))
    assert sum(len(pd.read_parquet(file)) for file in files) == len(
        past
    )  # nothing at or after the cut-off is there


def test_command_line(folder, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["qanchor", *map(str, words)])
        assert cli.main() == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    words = (
        "make-pairs",
        "--users",
        folder,
        "--out",
        tmp_path / "out",
        "--per-sample",
        4,
        "--shards",
        2,
        "--json",
    )
    told = run(*words)
    assert told["made"] == 2 and told["shards"] == [0, 1] and run(*words)["made"] == 0
    same(tmp_path / "out", load_users(folder), per_sample=4)


@pytest.mark.slow
def test_the_benchmark_measures_each_scale(monkeypatch):
    monkeypatch.setitem(
        benchmarks.BENCHMARKS,
        "useru",
        lambda: useru(scales=(1, 2), source=partial(make_sample_users, 20)),
    )
    told = benchmarks.run_benchmark("useru")
    names = ["scale", "events", "pairs", "seconds", "events_per_s", "peak_gb"]
    assert [list(row) for row in told["rows"]] == [names, names] and np.isfinite(
        told["growth_exponent"]
    )
    one, two = told["rows"]
    assert (
        two["events"] == 2 * one["events"]
        and two["pairs"] > 1.5 * one["pairs"]
        and 0.05 < one["peak_gb"] < 2
    )


def test_copies_are_new_users_with_moved_times_and_amounts(tmp_path):
    people = make_sample_users(20)
    write_copies(partial(make_sample_users, 20), tmp_path, 3, seed=0)
    copies = load_users(tmp_path)
    assert (
        len(copies) == 60
        and len(copies.events) == 3 * len(people.events)
        and copies.cutoff == people.cutoff
    )
    first, moved = (copies.events[copies.events["user"] == f"{people.ids[0]}-{k}"] for k in (0, 2))
    own = people.events[people.events["user"] == people.ids[0]]
    assert (first["time"].to_numpy() == own["time"].to_numpy()).all()
    hours = np.unique(moved["time"].sort_values().to_numpy() - own["time"].to_numpy())
    assert len(hours) == 1 and abs(hours[0]) <= np.timedelta64(72, "h")
    factor = moved["amount"].sum() / own["amount"].sum()
    assert 0.79 < factor < 1.26 and factor != 1
