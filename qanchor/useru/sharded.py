"""User-understanding pairs of an events table of any size, one file per shard."""

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
    count_days,
    create_events_view,
    database_folder,
    history_sql,
    load_shard,
    open_table,
    write_shards,
)
from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.useru.behavior import (
    OFFERS,
    EventArrays,
    SpendSources,
    spend_sources_from_table,
)
from qanchor.useru.pairs import (
    PopulationStats,
    UserMeasurements,
    build_pairs,
    measure_users,
    pair_frame,
)
from qanchor.useru.schedule import (
    PairConfig,
    QueryWindow,
    default_horizons,
    query_windows,
    spread_cutoffs,
)
from qanchor.utils.io import atomic_write, read_json, write_json

EVENTS_PER_SHARD = 500_000  # about 300 MB of memory while a shard is measured
PAIRS_VERSION = 1  # increase it when a change to the code changes pairs


def partition(
    table: EventSource,
    work: Path,
    shards: int,
    cutoffs: Iterable | None,
    config: PairConfig,
    **database,
) -> None:
    """Write each user's history into a shard, and what every shard must know into `scan.json`.

    The folder `work` is written atomically.

    Args:
        table: The events, as `open_table` returns them.
        work: Folder to create.
        shards: Number of shards.
        cutoffs: Cut-offs to ask at (None: `spread_cutoffs` of the history).
        config: What is asked; stored for the shards. **database: DuckDB settings such as
        `memory_limit` and `threads`.

    Raises:
        DataError: The events hold a value that cannot be used.
        ValueError: A cut-off is after the users' own, or none fits into the history.
    """
    with database_folder(work, database) as (base, folder):
        columns = create_events_view(base, table, folder)
        scan = _scan(base, table, columns, cutoffs, config)
        history = history_sql(columns, scan["cutoff"])
        scan["shards"] = write_shards(base, history, shards, folder / "events")
        scan["wish"] = _config_fields(config)
        (folder / "scan.json").write_text(json.dumps(scan))


def _config_fields(config: PairConfig) -> dict:
    """Return the fields of a config that JSON can hold: all but the topics."""
    return {name: value for name, value in vars(config).items() if name != "topics"}


def _scan(
    base, table: EventSource, columns: list[str], cutoffs: Iterable | None, config: PairConfig
) -> dict:
    """Find what no shard alone can know: cut-off, modalities, first visit, query windows."""
    days, cutoff, history, modalities = count_days(base, table)
    first_visit = history.loc[~history["modality"].isin(OFFERS), "first"].min()
    if cutoffs is None:
        events_per_day = history.groupby("day")["events"].sum()
        cutoffs = spread_cutoffs(events_per_day, cutoff, table.about["horizon_days"])
    windows = query_windows(cutoffs, cutoff, config)
    first_seen = history.groupby("modality")["first"].min()
    window_cutoffs = [window.cutoff for window in windows]
    sources = _spend_sources(base, window_cutoffs, modalities, first_seen, "amount" in columns)
    moments = []
    for window in windows:
        fields = window._asdict()
        fields |= {"cutoff": str(window.cutoff), "sources": sources[window.cutoff]}
        moments.append(fields)
    return {
        "cutoff": str(cutoff),
        "modalities": modalities,
        "start": (cutoff if pd.isna(first_visit) else first_visit).value // 1000,
        "events": int(days["events"].sum()),
        "cutoffs": sorted({str(cutoff) for cutoff in window_cutoffs}),
        "moments": moments,
        "about": table.about,
    }


def _spend_sources(
    base,
    cutoffs: list[pd.Timestamp],
    modalities: list[str],
    first_seen: pd.Series,
    has_amount: bool,
) -> dict[pd.Timestamp, SpendSources]:
    """Return, for each cut-off, what `find_spend_sources` returns for all events before it.

    Args:
        base: DuckDB connection with the view `events`.
        cutoffs: The cut-offs.
        modalities: Modalities in order.
        first_seen: Time of the first event of each modality.
        has_amount: Whether the events have a column `amount`.
    """
    cutoffs = sorted(set(cutoffs))
    aggregates = []
    for number, cutoff in enumerate(cutoffs):
        before = f"filter (where time < timestamp '{cutoff}')"
        aggregates.append(f"sum(paid) {before} as s{number}, count(*) {before} as n{number}")
    paid = "amount" if has_amount else "null::double"
    rows = f"select modality, time, {paid} as paid from events"
    table = base.sql(
        f"select modality, {', '.join(aggregates)} from ({rows}) where paid > 0 group by modality"
    ).df()
    table = table.set_index("modality").reindex(modalities)
    result = {}
    for number, cutoff in enumerate(cutoffs):
        spend = table[[f"s{number}", f"n{number}"]].set_axis(["sum", "size"], axis=1)
        spend = spend[spend["size"] > 0]
        seen = first_seen[first_seen < cutoff].index
        result[cutoff] = spend_sources_from_table(spend, seen)
    return result


def write_pairs(
    source: Users | Path | str, out: Path | str, *, each: Callable = map, **options
) -> dict:
    """Write the pairs of an events table of any size to parquet files, one per shard.

    Together the files hold the rows of `make_pairs`; a user is in one file only. Rerun the same
    command to resume after an interruption. A changed source or option makes all files again.

    Args:
        source: Users, a parquet file of events, a folder with `events.parquet` (and `about.json`),
            or a folder of parquet files.
        out: Folder for `pairs-0000.parquet` and so on, and `manifest.json`.
        each: Called like `map` in each stage (default `map`); a pool's `map` runs in parallel.
        **options: `per_sample, future_share, seed, cutoffs, horizons` as in `make_pairs`;
            `shards, memory, threads` as in `plan`.

    Returns:
        The content of `manifest.json`, with `pairs` (rows) and `made` (shards written now).

    Raises:
        DataError: A value cannot be used; names file, row, column, value and what to do.
        FileExistsError: `out` holds pairs of unknown origin.

    Example:
        >>> import tempfile
        >>> write_pairs(qa.make_sample_users(40), tempfile.mkdtemp(), shards=2)["shards"]
        [0, 1]
    """
    out = Path(out)
    numbers = plan(source, out, each=each, **options)
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
    **options,
) -> list[int]:
    """Partition a table by user, compare all users, and return the shards for `make_shard`.

    Finished work is kept: the partition as a whole, then shard by shard. Run one plan at a time in
    a folder; `finish` ends it.

    Args:
        source: The events, as in `write_pairs`.
        out: Folder of the pairs.
        cutoffs: Cut-offs to ask at (default: spread over the history).
        shards: Number of shards (default: one per 500,000 events); the pairs do not depend on it.
        memory: Memory limit of DuckDB (default "800MB"); beyond it, it spills to disk beside `out`.
        threads: Threads of DuckDB (default 2).
        each: Called like `map` (default `map`). **options: `per_sample, future_share, seed,
        horizons` as in `make_pairs`.

    Returns:
        Numbers of the shards.

    Raises:
        DataError: A value of the source cannot be used.
        FileExistsError: `out` holds pairs of unknown origin.
        ValueError: `shards` is below 1, or an option is invalid.

    Example:
        >>> import tempfile
        >>> out = tempfile.mkdtemp()
        >>> [make_shard(out, number).name for number in plan(qa.make_sample_users(40), out)]
        ['pairs-0000.parquet']
    """
    out = Path(out)
    table = open_table(source)
    if shards is not None and shards < 1:
        raise ValueError(f"{shards} shards: give at least 1")
    shards = shards or max(1, -(-table.rows // EVENTS_PER_SHARD))
    if cutoffs is not None:
        cutoffs = [str(pd.Timestamp(cutoff)) for cutoff in cutoffs]
    horizon = table.about["horizon_days"]
    horizons = options.pop("horizons", None)
    horizons = tuple(default_horizons(horizon) if horizons is None else horizons)
    config = PairConfig(table.about["unit"], horizon, horizons=horizons, **options)
    identity = {
        "wish": _config_fields(config),
        "shards": shards,
        "cutoffs": cutoffs,
        "about": table.about,
        "source": table.key,
        "version": PAIRS_VERSION,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if _prepare(out, key):
        return _manifest(out)["shards"]
    work = out / f".work-{key}"
    if not work.exists():
        partition(table, work, shards, cutoffs, config, threads=threads, memory_limit=memory)
    scan = read_json(work / "scan.json")
    list(each(partial(measure_shard, work), scan["shards"]))
    write_json(work / "crowds.json", _population_stats(work, scan, config))
    manifest = {"key": key, "source": table.about["name"]}
    manifest |= {name: scan[name] for name in ("events", "shards", "cutoffs", "wish")}
    write_json(out / "manifest.json", manifest)
    return scan["shards"]


def make_shard(out: Path | str, number: int) -> Path:
    """Write the pairs of one planned shard, unless its file exists.

    Args:
        out: Folder of the pairs.
        number: Number of the shard.

    Returns:
        The file; its bytes do not depend on who writes it.
    """
    out = Path(out)
    path = _pairs_file(out, number)
    if path.exists():
        return path
    work = _work(out)
    scan = read_json(work / "scan.json")
    crowds = read_json(work / "crowds.json")
    config = _read_config(scan)
    rows = []
    with np.load(_values_file(work, number)) as arrays:
        for place, (moment, crowd) in enumerate(zip(scan["moments"], crowds, strict=True)):
            ids = np.array(json.loads(arrays[f"{place}.ids"].tobytes()), dtype=object)
            names = ("value", "spent", "ago", "active")
            values = UserMeasurements(ids, *(arrays[f"{place}.{name}"] for name in names))
            rows += build_pairs(values, PopulationStats(**crowd), _read_window(moment), config)
    options = {"index": False, "compression": "zstd"}
    return atomic_write(path, lambda part: pair_frame(rows).to_parquet(part, **options))


def finish(out: Path | str) -> dict:
    """Count the pairs of all shards and remove the intermediate files.

    Args:
        out: Folder of the pairs.

    Returns:
        The content of `manifest.json`, with `pairs` (rows).

    Raises:
        FileNotFoundError: There is no manifest, or a shard is not written yet.
        DataError: A file of pairs is damaged.
    """
    out = Path(out)
    manifest = _manifest(out)
    if not manifest:
        raise FileNotFoundError(f"{out} has no manifest.json. Run `write_pairs` or `plan` first.")
    rows = sum(_count_rows(_pairs_file(out, number)) for number in manifest["shards"])
    shutil.rmtree(_work(out), ignore_errors=True)
    return manifest | {"pairs": rows}


def _count_rows(path: Path) -> int:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Run `write_pairs` again to write it.")
    try:
        return pq.ParquetFile(path).metadata.num_rows
    except (ValueError, OSError) as error:
        hint = "torn: remove this file and start again"
        raise DataError(path.name, None, "pairs", str(error), hint) from error


def measure_shard(work: Path, number: int) -> Path:
    """Measure the users of one shard in every query window, unless its file exists.

    Args:
        work: Folder of the partition.
        number: Number of the shard.

    Returns:
        The file of measurements; the events are not needed after it.
    """
    path = _values_file(work, number)
    if path.exists():
        return path
    scan = read_json(work / "scan.json")
    config = _read_config(scan)
    events = EventArrays(load_shard(work, number, scan), config.topics, scan["start"])
    arrays = {}
    for place, moment in enumerate(scan["moments"]):
        sources = SpendSources(*moment["sources"])
        values = vars(measure_users(events, _read_window(moment), sources))
        # as JSON: ids of any length and alphabet
        ids = json.dumps(values["ids"].tolist()).encode()
        values["ids"] = np.frombuffer(ids, np.uint8)
        arrays |= {f"{place}.{name}": array for name, array in values.items()}

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    return atomic_write(path, write)


def _population_stats(work: Path, scan: dict, config: PairConfig) -> list[dict]:
    """Compare the users of all shards, one query window at a time."""
    result = []
    for place, moment in enumerate(scan["moments"]):
        value = []
        active = []
        for number in scan["shards"]:
            with np.load(_values_file(work, number)) as arrays:
                value.append(arrays[f"{place}.value"])
                active.append(arrays[f"{place}.active"])
        stats = {}
        if value:
            window = _read_window(moment)
            values = np.concatenate(value)
            visits = np.concatenate(active)
            stats = asdict(PopulationStats.of(values, visits, window, config))
        result.append(stats)
    return result


def _read_config(scan: dict) -> PairConfig:
    fields = scan["wish"]
    return PairConfig(**fields | {"horizons": tuple(fields["horizons"])})


def _read_window(fields: dict) -> QueryWindow:
    cutoff = pd.Timestamp(fields["cutoff"])
    return QueryWindow(cutoff, fields["kind"], fields["days"], fields["pairs"])


def _prepare(out: Path, key: str) -> bool:
    """Remove files of another key or of a killed process; return whether the plan is complete."""
    manifest = _manifest(out)
    pairs_files = list(out.glob("pairs-*.parquet"))
    if pairs_files and not manifest:
        raise FileExistsError(
            f"{out} holds {pairs_files[0].name} but no manifest.json."
            " Choose another folder or remove the pairs."
        )
    work = out / f".work-{key}"
    for old in out.glob(".work-*"):
        if old != work:
            shutil.rmtree(old)
    same = manifest.get("key") == key
    stale = [*out.glob(".*.parquet.*"), *out.glob(".manifest.json.*")]
    if not same:
        # the manifest last: without it the pairs would be of unknown origin
        stale += [*pairs_files, out / "manifest.json"]
    for path in stale:
        path.unlink(missing_ok=True)
    if not same:
        return False
    finished = all(_pairs_file(out, number).exists() for number in manifest["shards"])
    return finished or (work / "crowds.json").exists()


def _manifest(out: Path) -> dict:
    manifest = read_manifest(out / "manifest.json", key=str, shards=list)
    for number in manifest.get("shards", []):
        if type(number) is not int:
            hint = "no number of a shard: remove the folder and start again"
            raise DataError("manifest.json", None, "shards", number, hint)
    return manifest


def _work(out: Path) -> Path:
    return out / f".work-{_manifest(out)['key']}"


def _pairs_file(out: Path, number: int) -> Path:
    return out / f"pairs-{number:04d}.parquet"


def _values_file(work: Path, number: int) -> Path:
    return work / f"values-{number:04d}.npz"
