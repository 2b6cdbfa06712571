"""An events table of any size, split by user on disk: DuckDB reads it in a stream and writes one
folder a shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from qanchor.data.metadata import read_manifest
from qanchor.data.partition import (
    EventSource,
    _aside,
    _days,
    _past,
    _view,
    _write_shards,
    load_shard,
    open_table,
)
from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.useru.behavior import OFFERS, EventArrays, SpendSources, spend_sources_from_table
from qanchor.useru.pairs import (
    PopulationStats,
    UserMeasurements,
    build_pairs,
    measure_users,
    pair_frame,
    user_hash,
)
from qanchor.useru.schedule import (
    PairConfig,
    QueryWindow,
    default_horizons,
    query_windows,
    spread_cutoffs,
)
from qanchor.utils.io import atomic_write


def partition(
    table: EventSource,
    work: Path,
    shards: int,
    cutoffs: Iterable | None,
    wish: PairConfig,
    **config,
) -> None:
    """Write each user's history into the shard of its hash, and what all shards must know; the
    folder whole, or not at all.

    wish  kept for the shards;  config  of the data base: `memory_limit`, `threads`.
    """
    with _aside(work, config) as (base, aside):
        columns = _view(base, table)
        scan = _scan(base, table, columns, cutoffs, wish)
        scan["shards"] = _write_shards(
            base, _past(columns, scan["cutoff"]), shards, aside / "events"
        )
        scan |= {"files": [file.name for file in table.files] or ["events"]}
        scan["wish"] = {name: value for name, value in vars(wish).items() if name != "topics"}
        (aside / "scan.json").write_text(json.dumps(scan))


def _scan(
    base, table: EventSource, columns: list[str], cutoffs: Iterable | None, wish: PairConfig
) -> dict:
    """Find what no shard alone can know: cut-off, modalities, the first visit, the moments and what
    was known before each.
    """
    days, cutoff, history, order = _days(base, table)
    first = history.loc[~history["modality"].isin(OFFERS), "first"].min()
    if cutoffs is None:
        cutoffs = spread_cutoffs(
            history.groupby("day")["events"].sum(), cutoff, table.about["horizon_days"]
        )
    stops = query_windows(cutoffs, cutoff, wish)
    seen = history.groupby("modality")["first"].min()
    sources = _sources(base, [stop.cutoff for stop in stops], order, seen, "amount" in columns)
    return {
        "cutoff": str(cutoff),
        "modalities": order,
        "start": (cutoff if pd.isna(first) else first).value // 1000,
        "events": int(days["events"].sum()),
        "cutoffs": sorted({str(stop.cutoff) for stop in stops}),
        "moments": [
            stop._asdict() | {"cutoff": str(stop.cutoff), "sources": sources[stop.cutoff]}
            for stop in stops
        ],
        "about": table.about,
    }


def _sources(
    base, cutoffs: list[pd.Timestamp], order: list[str], first: pd.Series, paid: bool
) -> dict[pd.Timestamp, SpendSources]:
    """Say what `find_spend_sources` says of all events before each cut-off; first: when each
    modality was seen first.
    """
    cutoffs = sorted(set(cutoffs))
    before = [f"filter (where time < timestamp '{cutoff}')" for cutoff in cutoffs]
    told = ", ".join(
        f"sum(paid) {part} as s{i}, count(*) {part} as n{i}" for i, part in enumerate(before)
    )
    rows = (
        f"select modality, time, {'try_cast(amount as double)' if paid else 'null::double'} "
        "as paid from events"
    )
    table = base.sql(
        f"select modality, {told} from ({rows}) where paid > 0 and isfinite(paid) group by modality"
    ).df()
    table = table.set_index("modality").reindex(order)
    kept = {
        cutoff: table[[f"s{i}", f"n{i}"]].set_axis(["sum", "size"], axis=1)
        for i, cutoff in enumerate(cutoffs)
    }
    return {
        c: spend_sources_from_table(part[part["size"] > 0], first[first < c].index)
        for c, part in kept.items()
    }


EVENTS_PER_SHARD = 500_000  # some 300 MB while a shard is measured
PAIRS_VERSION = 1  # increase it when a change to the code changes pairs


def split(users: Users, share: float = 0.2, salt: str = "test") -> tuple[Users, Users]:
    """Part users in two by the hash of their ids: the second part is about `share` of them.

    A user falls on the same side in every data set, order and version; another `salt` gives another
    division.
    Raises ValueError for a share outside 0 to 1.

    Example:
        >>> from qanchor.world import make_sample_users
        >>> train, test = split(make_world(50))
        >>> len(train) + len(test), len(set(train.ids) & set(test.ids))
        (50, 0)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is not between 0 and 1")
    second = user_hash(users.ids, salt) / 2**60 < share
    return users.select(np.array(users.ids)[~second]), users.select(np.array(users.ids)[second])


def write_pairs(
    source: Users | Path | str, out: Path | str, *, each: Callable = map, **wishes
) -> dict:
    """Turn an events table of any size into files of questions with graded answers, as `make_pairs`
    does in memory.

    source  users, a parquet file of events, a folder with `events.parquet` (and `about.json`), or a
            folder of parquet files.
    out     folder for `pairs-0000.parquet` and so on; together they hold the rows of `make_pairs`,
            each user in one of them.
    each    called as `map` is, for each stage: give a pool's `map` to work in parallel.
    wishes  `per_sample, future_share, seed, held_out, cutoffs, horizons` as in `make_pairs`; others
            as in `plan`.
    Killed and started again it goes on with the first shard that is not done; a changed source or
    wish makes all anew.
    Gives what the manifest says, with `pairs` (rows) and `made` (shards made now).
    Raises DataError naming file, row, column, value and cure; FileExistsError when `out` holds
    pairs of unknown origin.

    Example:
        >>> import tempfile
        >>> from qanchor.world import make_sample_users
        >>> write_pairs(make_world(40), tempfile.mkdtemp(), shards=2)["shards"]
        [0, 1]
    """
    out = Path(out)
    numbers = plan(source, out, each=each, **wishes)
    missing = [number for number in numbers if not _pairs_file(out, number).exists()]
    list(each(partial(make_shard, out), missing))
    return finish(out) | {"made": len(missing)}


def plan(
    source: Users | Path | str,
    out: Path | str,
    *,
    cutoffs: Iterable | None = None,
    shards: int | None = None,
    memory: str = "800MB",
    threads: int = 2,
    each: Callable = map,
    **wishes,
) -> list[int]:
    """Split a table by user, compare all users, and give the numbers of the shards that
    `make_shard` can then make.

    What is done is kept: the split as a whole, then shard by shard. One plan at a time in a folder;
    `finish` ends it.
    shards   how many (default: one for each 500,000 events); the pairs do not depend on it.
    memory, threads   what the data base may use; beyond it, it writes to disk beside the output.

    Example:
        >>> import tempfile
        >>> from qanchor.world import make_sample_users
        >>> out = tempfile.mkdtemp()
        >>> [make_shard(out, number).name for number in plan(make_world(40), out)]
        ['pairs-0000.parquet']
    """
    out, table = Path(out), open_table(source)
    if shards is not None and shards < 1:
        raise ValueError(f"{shards} shards: give at least 1")
    shards = shards or max(1, -(-table.rows // EVENTS_PER_SHARD))
    cutoffs = None if cutoffs is None else [str(pd.Timestamp(cutoff)) for cutoff in cutoffs]
    horizon = table.about["horizon_days"]
    wishes["horizons"] = tuple(
        default_horizons(horizon) if wishes.get("horizons") is None else wishes["horizons"]
    )
    wish = PairConfig(table.about["unit"], horizon, **wishes)
    wished = {name: value for name, value in vars(wish).items() if name != "topics"}
    told = {
        "wish": wished,
        "shards": shards,
        "cutoffs": cutoffs,
        "about": table.about,
        "source": table.key,
    }
    key = hashlib.sha256(
        json.dumps(told | {"version": PAIRS_VERSION}, sort_keys=True).encode()
    ).hexdigest()[:16]
    if _prepare(out, key):
        return _manifest(out)["shards"]
    work = out / f".work-{key}"
    if not work.exists():
        partition(table, work, shards, cutoffs, wish, threads=threads, memory_limit=memory)
    scan = _read_json(work / "scan.json")
    list(each(partial(measure_shard, work), scan["shards"]))
    atomic_write(
        work / "crowds.json", lambda aside: aside.write_text(json.dumps(_crowds(work, scan, wish)))
    )
    said = {"key": key, "source": table.about["name"]} | {
        name: scan[name] for name in ("events", "shards", "cutoffs", "wish")
    }
    atomic_write(
        out / "manifest.json", lambda aside: aside.write_text(json.dumps(said, indent=1) + "\n")
    )
    return scan["shards"]


def make_shard(out: Path | str, number: int) -> Path:
    """Make the pairs of one planned shard, unless they are there; whoever makes it, its bytes are
    the same.
    """
    out = Path(out)
    path, work = _pairs_file(out, number), _work(out)
    if path.exists():
        return path
    scan, crowds = _read_json(work / "scan.json"), _read_json(work / "crowds.json")
    wish, rows = _wish(scan), []
    with np.load(_values_file(work, number)) as kept:
        for place, (moment, crowd) in enumerate(zip(scan["moments"], crowds, strict=True)):
            ids = np.array(json.loads(kept[f"{place}.ids"].tobytes()), dtype=object)
            values = UserMeasurements(
                ids, *(kept[f"{place}.{name}"] for name in ("value", "spent", "ago", "active"))
            )
            rows += build_pairs(values, PopulationStats(**crowd), _moment(moment), wish)
    return atomic_write(
        path, lambda aside: pair_frame(rows).to_parquet(aside, index=False, compression="zstd")
    )


def finish(out: Path | str) -> dict:
    """Say what the shards hold in all (the manifest, and `pairs`), and remove what is needed only
    to make them.

    Raises FileNotFoundError when one of them is not made yet.
    """
    out = Path(out)
    manifest = _manifest(out)
    if not manifest:
        raise FileNotFoundError(f"{out} has no manifest.json: plan it, or write the pairs")
    rows = sum(_rows(_pairs_file(out, number)) for number in manifest["shards"])
    shutil.rmtree(_work(out), ignore_errors=True)
    return manifest | {"pairs": rows}


def _rows(path: Path) -> int:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: start again, and it is made")
    try:
        return pq.ParquetFile(path).metadata.num_rows
    except (ValueError, OSError) as error:
        raise DataError(
            path.name, None, "pairs", str(error), "torn: remove this file and start again"
        ) from error


def measure_shard(work: Path, number: int) -> Path:
    """Measure what each user of one shard did, at every moment, unless that is done; the events are
    not needed after it.
    """
    path = _values_file(work, number)
    if path.exists():
        return path
    scan = _read_json(work / "scan.json")
    wish = _wish(scan)
    records = EventArrays(load_shard(work, number, scan), wish.topics, scan["start"])
    kept = {}
    for place, moment in enumerate(scan["moments"]):
        values = vars(measure_users(records, _moment(moment), SpendSources(*moment["sources"])))
        values["ids"] = np.frombuffer(
            json.dumps(values["ids"].tolist()).encode(), np.uint8
        )  # of any length and letters
        kept |= {f"{place}.{name}": array for name, array in values.items()}

    def write(aside: Path) -> None:
        with aside.open("wb") as file:
            np.savez(file, **kept)

    return atomic_write(path, write)


def _crowds(work: Path, scan: dict, wish: PairConfig) -> list[dict]:
    """Compare the users of all shards, one moment at a time."""
    found = []
    for place, moment in enumerate(scan["moments"]):
        value, active = [], []
        for number in scan["shards"]:
            with np.load(_values_file(work, number)) as kept:
                value.append(kept[f"{place}.value"])
                active.append(kept[f"{place}.active"])
        found.append(
            asdict(
                PopulationStats.of(
                    np.concatenate(value), np.concatenate(active), _moment(moment), wish
                )
            )
            if value
            else {}
        )
    return found


def _wish(scan: dict) -> PairConfig:
    return PairConfig(**scan["wish"] | {"horizons": tuple(scan["wish"]["horizons"])})


def _moment(told: dict) -> QueryWindow:
    return QueryWindow(pd.Timestamp(told["cutoff"]), told["kind"], told["days"], told["pairs"])


def _prepare(out: Path, key: str) -> bool:
    """Clear what belongs to another key or to a killed process; say whether all is planned already."""
    manifest = _manifest(out)
    made = list(out.glob("pairs-*.parquet"))
    if made and not manifest:
        raise FileExistsError(
            f"{out} holds {made[0].name} but no manifest.json: choose another folder, or remove "
            "the pairs"
        )
    work = out / f".work-{key}"
    for old in out.glob(".work-*"):
        if old != work:
            shutil.rmtree(old)
    same = manifest.get("key") == key
    for stale in [
        *out.glob(".*.parquet.*"),
        *out.glob(".manifest.json.*"),
        *([] if same else [*made, out / "manifest.json"]),
    ]:
        stale.unlink(
            missing_ok=True
        )  # the manifest last: without it the pairs would be of unknown origin
    return same and (
        (work / "crowds.json").exists()
        or all(_pairs_file(out, n).exists() for n in manifest["shards"])
    )


def _read_json(path: Path) -> dict | list:
    return json.loads(path.read_text())


def _manifest(out: Path) -> dict:
    told = read_manifest(out / "manifest.json", key=str, shards=list)
    if bad := [number for number in told.get("shards", []) if type(number) is not int]:
        raise DataError(
            "manifest.json",
            None,
            "shards",
            bad[0],
            "no number of a shard: remove the folder and make it anew",
        )
    return told


def _work(out: Path) -> Path:
    return out / f".work-{_manifest(out)['key']}"


def _pairs_file(out: Path, number: int) -> Path:
    return out / f"pairs-{number:04d}.parquet"


def _values_file(work: Path, number: int) -> Path:
    return work / f"values-{number:04d}.npz"
