"""An events table of any size, split by user on disk: DuckDB reads it in a stream and writes one folder a shard."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from .about import checked_about
from .journey import arrow_table
from .measures import OFFERS, Sources, sources_of
from .moments import Wish, moments, spread_cutoffs
from .schema import FIRST, LAST, REQUIRED, DataError, Users

NUMBERS = ("amount", "discount", "private")  # the number columns that a measure looks at
HASH = """('0x' || substr(md5("user"), 1, 15))::bigint"""  # in SQL what `user_hash` is in Python
ISO = r"\s*\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?\s?(Z|[+-]\d\d(:?\d\d)?)?)?\s*"  # DuckDB reads more: `epoch`
PLACE = ("_file", "_row")  # where an event stood: events alike in all else keep their order, and errors can name it


@dataclass(frozen=True)
class Table:
    """Hold where the events are (files, or a frame), what is told about them, and a key of their content."""

    files: tuple[Path, ...]
    frame: pd.DataFrame | None
    about: dict
    rows: int
    key: str

    def name_of(self, file: int) -> str:
        """Name a file by its number, from 1 on."""
        return self.files[file - 1].name if self.files else "events"


def open_table(source: Users | Path | str) -> Table:
    """Find the events of users, of a parquet file, or of a folder: where they are, and what is told about them."""
    if isinstance(source, Users):
        columns = [*REQUIRED, *(name for name in NUMBERS if name in source.events)]
        about = {"name": source.name, "unit": source.unit, "cutoff": str(source.cutoff), "modalities": list(source.modalities)}
        hashes = pd.util.hash_pandas_object(source.events[columns], index=False).to_numpy()
        frame = source.events[columns].assign(file_row_number=np.arange(len(source.events)))
        key = hashlib.sha256(hashes.tobytes()).hexdigest()
        return Table((), frame, about | {"horizon_days": source.horizon_days}, len(frame), key)
    path = Path(source)
    events = path / "events.parquet" if (path / "events.parquet").exists() else path
    files = tuple(sorted(events.glob("*.parquet")) if events.is_dir() else [events])
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path} has no events.parquet: write one row an event with {', '.join(REQUIRED)}")
    about = {"name": path.stem, "unit": "user", "cutoff": None, "modalities": [], "horizon_days": 30}
    about |= checked_about((path if path.is_dir() else path.parent) / "about.json")
    try:
        rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    except (OSError, ValueError) as error:
        raise DataError(events.name, None, "events", str(error), "cannot be read: write it again as parquet") from error
    content = hashlib.sha256()
    for file in files:
        with file.open("rb") as open_file:
            content.update(hashlib.file_digest(open_file, "sha256").digest())
    return Table(files, None, about, rows, content.hexdigest())


def partition(table: Table, work: Path, shards: int, cutoffs: Iterable | None, wish: Wish, **config) -> None:
    """Write each user's history into the shard of its hash, and what all shards must know; the folder whole, or not at all.

    wish  kept for the shards;  config  of the data base: `memory_limit`, `threads`.
    """
    import duckdb

    aside = work.with_name(f"{work.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config |= {"temp_directory": str(aside / "spill"), "preserve_insertion_order": False}
    with duckdb.connect(config=config) as base:
        columns = _view(base, table)
        scan = _scan(base, table, columns, cutoffs, wish)
        past = f"from events where time < timestamp '{scan['cutoff']}'"
        names = ", ".join(f'"{name}"' for name in (*columns, *PLACE))
        base.execute(
            f"copy (select {names}, coalesce({HASH} % {shards}, 0) as _shard {past}) "
            f"to '{_quoted(aside / 'events')}' (format parquet, partition_by (_shard))"
        )
    shutil.rmtree(aside / "spill", ignore_errors=True)
    scan["shards"] = sorted(int(path.name.removeprefix("_shard=")) for path in (aside / "events").glob("_shard=*"))
    scan |= {"files": [file.name for file in table.files] or ["events"]}
    scan["wish"] = {name: value for name, value in vars(wish).items() if name != "topics"}
    (aside / "scan.json").write_text(json.dumps(scan))
    aside.rename(work)


def _view(base, table: Table) -> list[str]:
    """Show the data base the events as `events`, with clean types and their place; give the columns' names."""
    if table.frame is not None:
        base.register("frame", arrow_table(table.frame))
        base.execute("create view given as select *, 1 as _file from frame")
    else:
        files = ", ".join(f"'{_quoted(file)}'" for file in table.files)
        given = f"read_parquet([{files}], file_row_number=true, filename=true, hive_partitioning=false)"
        base.execute(f"create view given as select *, list_position([{files}], filename) as _file from {given}")
    base.execute("set TimeZone = 'UTC'")
    types = {name: kind for name, kind, *_ in base.sql("describe given").fetchall()}
    name = table.name_of(1)
    for column in REQUIRED:
        if column not in types:
            raise DataError(name, None, column, list(types), f"missing: needed are {', '.join(REQUIRED)}")
    time = "try_cast(try_cast(time as timestamptz) as timestamp)"  # by way of a zone: else an offset in a text is passed over
    if types["time"].startswith(("VARCHAR", "ENUM")):
        time = f"case when regexp_full_match(time::varchar, '{ISO}') then {time} end"
    if types["time"] == "TIMESTAMP_NS":
        time = "make_timestamp(epoch_ns(time) // 1000)"  # as pandas does; a cast would round
    if not types["time"].startswith(("TIMESTAMP", "DATE", "VARCHAR", "ENUM")):
        raise DataError(name, None, "time", types["time"], "not a time: write it as 2025-01-31 18:00:00")
    _only_numbers(base, table, types)
    columns = [column for column in (*REQUIRED, *NUMBERS) if column in types]
    same = [f'"{column}"' for column in NUMBERS if column in types]
    said = {"BOOLEAN": "case {0} when true then 'True' when false then 'False' end as {0}"}  # as Python writes them
    words = [said.get(types[c], "{0}::varchar as {0}").format(f'"{c}"') for c in ("user", "modality", "text")]
    chosen = ", ".join([*words, f"{time} as time", *same, "_file", "file_row_number as _row", "time as given_time"])
    base.execute(f"create view events as select {chosen} from given")
    return columns


def _only_numbers(base, table: Table, types: dict[str, str]) -> None:
    """Refuse a further column that holds words, as memory does, though no measure looks at it."""
    cure = "not a number: encode it, or drop the column"
    for column in sorted(types.keys() - {*REQUIRED, *NUMBERS, "_file", "file_row_number", "filename"}):
        if not types[column].startswith(("VARCHAR", "ENUM")):
            if not re.match('U?(HUGE|BIG|SMALL|TINY)?INT|DOUBLE|FLOAT|DECIMAL|BOOLEAN|"NULL"', types[column]):
                raise DataError(table.name_of(1), None, column, types[column], cure)
            continue
        name = '"' + column.replace('"', '""') + '"'
        words = f"{name} is not null and try_cast({name} as double) is null"
        place = "_file, file_row_number"
        if found := base.sql(f"select {name}, {place} from given where {words} order by {place} limit 1").fetchall():
            [(value, file, place)] = found
            raise DataError(table.name_of(file), place, column, value, cure)


def _scan(base, table: Table, columns: list[str], cutoffs: Iterable | None, wish: Wish) -> dict:
    """Find what no shard alone can know: cut-off, modalities, the first visit, the moments and what was known before each."""
    end = table.about["cutoff"]
    past = "true" if end is None else f"coalesce(time < timestamp '{pd.Timestamp(end)}', true)"
    days = base.sql(
        f"select date_trunc('day', time)::timestamp as day, modality, {past} as past, count(*) as events, min(time) as first, "
        "max(time) as last from events group by all"
    ).df()
    if not len(days):
        raise DataError("events", None, "user", "no rows", "the table is empty: give at least one event")
    if not ((days["first"] >= FIRST) & (days["last"] < LAST)).all():  # or there is none
        wrong = f"time is null or time < '{FIRST}' or time >= '{LAST}'"
        row = f"select given_time::varchar, _file, _row, time from events where {wrong} order by _file, _row limit 1"
        [(value, file, place, time)] = base.sql(row).fetchall()
        cures = "not a time: write it as 2025-01-31 18:00:00", f"not from {FIRST.year} to {LAST.year - 1}: is the year right?"
        raise DataError(table.name_of(file), place, "time", value, cures[time is not None])
    cutoff = days["last"].max() + pd.Timedelta(1, "us") if end is None else pd.Timestamp(end)
    history = days[days["past"]]
    order = list(table.about["modalities"]) or sorted(history["modality"].dropna().unique())
    first = history.loc[~history["modality"].isin(OFFERS), "first"].min()
    if cutoffs is None:
        cutoffs = spread_cutoffs(history.groupby("day")["events"].sum(), cutoff, table.about["horizon_days"])
    stops = moments(cutoffs, cutoff, wish)
    seen = history.groupby("modality")["first"].min()
    sources = _sources(base, [stop.cutoff for stop in stops], order, seen, "amount" in columns)
    return {
        "cutoff": str(cutoff),
        "modalities": order,
        "start": (cutoff if pd.isna(first) else first).value // 1000,
        "events": int(days["events"].sum()),
        "cutoffs": sorted({str(stop.cutoff) for stop in stops}),
        "moments": [stop._asdict() | {"cutoff": str(stop.cutoff), "sources": sources[stop.cutoff]} for stop in stops],
        "about": table.about,
    }


def _sources(base, cutoffs: list[pd.Timestamp], order: list[str], first: pd.Series, paid: bool) -> dict[pd.Timestamp, Sources]:
    """Say what `find_sources` says of all events before each cut-off; first: when each modality was seen first."""
    cutoffs = sorted(set(cutoffs))
    before = [f"filter (where time < timestamp '{cutoff}')" for cutoff in cutoffs]
    told = ", ".join(f"sum(paid) {part} as s{i}, count(*) {part} as n{i}" for i, part in enumerate(before))
    rows = f"select modality, time, {'try_cast(amount as double)' if paid else 'null::double'} as paid from events"
    table = base.sql(f"select modality, {told} from ({rows}) where paid > 0 and isfinite(paid) group by modality").df()
    table = table.set_index("modality").reindex(order)
    kept = {cutoff: table[[f"s{i}", f"n{i}"]].set_axis(["sum", "size"], axis=1) for i, cutoff in enumerate(cutoffs)}
    return {c: sources_of(part[part["size"] > 0], first[first < c].index) for c, part in kept.items()}


def load_shard(work: Path, number: int, scan: dict) -> Users:
    """Load one shard; what is wrong in it is told by the place where it stood in the source."""
    files = sorted((work / "events" / f"_shard={number}").glob("*.parquet"))
    events = pd.concat([pd.read_parquet(file, partitioning=None) for file in files])
    events = events.sort_values(list(PLACE), ignore_index=True)
    place, about = events[list(PLACE)], scan["about"]
    told = {"modalities": tuple(scan["modalities"]), "horizon_days": about["horizon_days"], "unit": about["unit"]}
    try:
        return Users.from_events(events.drop(columns=list(PLACE)), scan["cutoff"], **told)
    except DataError as error:
        file, row = place.iloc[error.row].tolist()
        raise DataError(scan["files"][file - 1], row, error.column, error.value, error.cure) from error


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
