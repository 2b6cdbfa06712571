"""An events table of any size, split by user on disk: DuckDB reads it in a stream and writes one folder a shard."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import hashlib
import json
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import re
import shutil

from qanchor.data.metadata import validated_metadata
from qanchor.data.users import Users
from qanchor.data.validation import MAX_TIME, MIN_TIME, REQUIRED
from qanchor.errors import DataError
from qanchor.utils.arrays import arrow_table


NUMBERS = ("amount", "discount", "private")  # the number columns that a measure looks at
HASH = """('0x' || substr(md5("user"), 1, 15))::bigint"""  # in SQL what `user_hash` is in Python
ISO = r"\s*\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?\s?(Z|[+-]\d\d(:?\d\d)?)?)?\s*"  # DuckDB reads more: `epoch`
PLACE = ("_file", "_row")  # where an event stood: events alike in all else keep their order, and errors can name it


@dataclass(frozen=True)
class EventSource:
    """Hold where the events are (files, or a frame), what is told about them, and a key of their content."""

    files: tuple[Path, ...]
    frame: pd.DataFrame | None
    about: dict
    rows: int
    key: str

    def name_of(self, file: int) -> str:
        """Name a file by its number, from 1 on."""
        return self.files[file - 1].name if self.files else "events"


def open_table(source: Users | Path | str, numbers: Sequence[str] = NUMBERS) -> EventSource:
    """Find the events of users, of a parquet file, or of a folder: where they are, and what is told about them."""
    if isinstance(source, Users):
        columns = [*REQUIRED, *(name for name in numbers if name in source.events)]
        about = {"name": source.name, "unit": source.unit, "cutoff": str(source.cutoff), "modalities": list(source.modalities)}
        hashes = pd.util.hash_pandas_object(source.events[columns], index=False).to_numpy()
        frame = source.events[columns].assign(file_row_number=np.arange(len(source.events)))
        key = hashlib.sha256(hashes.tobytes()).hexdigest()
        return EventSource((), frame, about | {"horizon_days": source.horizon_days}, len(frame), key)
    path = Path(source)
    events = path / "events.parquet" if (path / "events.parquet").exists() else path
    files = tuple(sorted(events.glob("*.parquet")) if events.is_dir() else [events])
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path} has no events.parquet: write one row an event with {', '.join(REQUIRED)}")
    about = {"name": path.stem, "unit": "user", "cutoff": None, "modalities": [], "horizon_days": 30}
    about |= validated_metadata((path if path.is_dir() else path.parent) / "about.json")
    try:
        rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    except (OSError, ValueError) as error:
        raise DataError(events.name, None, "events", str(error), "cannot be read: write it again as parquet") from error
    content = hashlib.sha256()
    for file in files:
        with file.open("rb") as open_file:
            content.update(hashlib.file_digest(open_file, "sha256").digest())
    return EventSource(files, None, about, rows, content.hexdigest())


def open_facts(source: Users | Path | str) -> tuple[dict[str, Path | pd.DataFrame], str]:
    """Find who else is known beside the events, and what of them (`users`, and of `labels` the ids), and a key of it."""
    if isinstance(source, Users):
        found = {"users": source.tabular.reset_index()}
        return found, hashlib.sha256(pd.util.hash_pandas_object(found["users"]).to_numpy().tobytes()).hexdigest()
    folder, found, content = Path(source), {}, hashlib.sha256()
    for stem in ("users", "labels"):
        for path in [path for kind in ("parquet", "csv") if (path := folder / f"{stem}.{kind}").is_file()][:1]:
            found[stem] = path if path.suffix == ".parquet" else pd.read_csv(path, dtype={"user": str})
            columns = pq.read_schema(path).names if path.suffix == ".parquet" else list(found[stem])
            if "user" not in columns:
                raise DataError(path.name, None, "user", columns, "missing: one row a user")
            with path.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    return found, content.hexdigest()


def partition_users(
    table: EventSource, facts: dict[str, Path | pd.DataFrame], work: Path, shards: int, numbers: Sequence[str], texts: int, **config
) -> None:
    """Write each user's history and facts into the shard of its hash, users without either too; the folder whole, or not.

    facts  as `open_facts` gives them;  numbers  columns of the events to keep;  texts  so many distinct ones are listed.
    """
    with _aside(work, config) as (base, aside):
        columns = _view(base, table, numbers)
        _, cutoff, _, order = _days(base, table)
        past, ids = _past(columns, cutoff), ['select "user" from events where "user" is not null']
        for name, given in facts.items():
            rows = f"read_parquet('{_quoted(given)}')" if isinstance(given, Path) else f"given_{name}"
            if not isinstance(given, Path):
                base.register(rows, arrow_table(given))
            base.execute(f'create view {name} as select * replace ("user"::varchar as "user") from {rows}')
            ids.append(f'select "user" from {name}')
        every = f'select distinct "user" from ({" union all ".join(ids)})'
        whole = f'select * from ({every}) left join users using ("user")' if "users" in facts else every
        scan = {"cutoff": str(cutoff), "modalities": order, "about": table.about}
        scan |= {"files": [file.name for file in table.files] or ["events"]}
        _write_shards(base, past, shards, aside / "events")
        scan["shards"] = _write_shards(base, whole, shards, aside / "users")
        [(scan["users"],)] = base.sql(f"select count(*) from ({every})").fetchall()
        listed = f"select distinct text from ({past}) where text is not null order by text limit {texts}"
        base.execute(f"copy ({listed}) to '{_quoted(aside / 'texts.parquet')}' (format parquet)")
        (aside / "scan.json").write_text(json.dumps(scan))


@contextmanager
def _aside(work: Path, config: dict) -> Iterator[tuple]:
    """Give a data base and a folder to write into; it becomes `work` only when everything went well."""
    import duckdb

    aside = work.with_name(f"{work.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config = config | {"temp_directory": str(aside / "spill"), "preserve_insertion_order": False}
    try:
        with duckdb.connect(config=config) as base:
            yield base, aside
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, duckdb.IOException):
            raise OSError(f"{work.parent}: {error}: free some disk, or name another folder") from error
        raise
    shutil.rmtree(aside / "spill", ignore_errors=True)
    aside.rename(work)


def _past(columns: Iterable[str], cutoff) -> str:
    names = ", ".join(f'"{name}"' for name in (*columns, *PLACE))
    return f"select {names} from events where time < timestamp '{cutoff}'"


def _write_shards(base, rows: str, shards: int, folder: Path) -> list[int]:
    """Write rows that name a user into the folder of the shard of its hash; give the numbers of the shards that got some."""
    chosen = f"select *, coalesce({HASH} % {shards}, 0) as _shard from ({rows})"
    base.execute(f"copy ({chosen}) to '{_quoted(folder)}' (format parquet, partition_by (_shard))")
    return sorted(int(path.name.removeprefix("_shard=")) for path in folder.glob("_shard=*"))


def _view(base, table: EventSource, numbers: Sequence[str] = NUMBERS) -> list[str]:
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
    _only_numbers(base, table, types, numbers)
    columns = [column for column in (*REQUIRED, *numbers) if column in types]
    same = [f'"{column}"' for column in numbers if column in types]
    said = {"BOOLEAN": "case {0} when true then 'True' when false then 'False' end as {0}"}  # as Python writes them
    words = [said.get(types[c], "{0}::varchar as {0}").format(f'"{c}"') for c in ("user", "modality", "text")]
    chosen = ", ".join([*words, f"{time} as time", *same, "_file", "file_row_number as _row", "time as given_time"])
    base.execute(f"create view events as select {chosen} from given")
    return columns


def _only_numbers(base, table: EventSource, types: dict[str, str], numbers: Sequence[str]) -> None:
    """Refuse a further column that holds words, as memory does, though no measure looks at it."""
    cure = "not a number: encode it, or drop the column"
    for column in sorted(types.keys() - {*REQUIRED, *numbers, "_file", "file_row_number", "filename"}):
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


def _days(base, table: EventSource) -> tuple[pd.DataFrame, pd.Timestamp, pd.DataFrame, list[str]]:
    """Count the events of each day and modality, their times checked; the cut-off; those before it; and their modalities."""
    end = table.about["cutoff"]
    past = "true" if end is None else f"coalesce(time < timestamp '{pd.Timestamp(end)}', true)"
    days = base.sql(
        f"select date_trunc('day', time)::timestamp as day, modality, {past} as past, count(*) as events, min(time) as first, "
        "max(time) as last from events group by all"
    ).df()
    if not len(days):
        raise DataError("events", None, "user", "no rows", "the table is empty: give at least one event")
    if not ((days["first"] >= MIN_TIME) & (days["last"] < MAX_TIME)).all():  # or there is none
        wrong = f"time is null or time < '{MIN_TIME}' or time >= '{MAX_TIME}'"
        row = f"select given_time::varchar, _file, _row, time from events where {wrong} order by _file, _row limit 1"
        [(value, file, place, time)] = base.sql(row).fetchall()
        cures = "not a time: write it as 2025-01-31 18:00:00", f"not from {MIN_TIME.year} to {MAX_TIME.year - 1}: is the year right?"
        raise DataError(table.name_of(file), place, "time", value, cures[time is not None])
    cutoff = days["last"].max() + pd.Timedelta(1, "us") if end is None else pd.Timestamp(end)
    history = days[days["past"]]
    order = list(table.about["modalities"]) or sorted(history["modality"].dropna().unique())
    return days, cutoff, history, order


def load_shard(work: Path, number: int, scan: dict) -> Users:
    """Load one shard; what is wrong in it is told by the place where it stood in the source."""
    about, facts = scan["about"], _parts(work / "users", number)
    told = {"modalities": tuple(scan["modalities"]), "horizon_days": about["horizon_days"], "unit": about["unit"]}
    if facts is not None:
        told["tabular"] = facts.set_index("user")
        told["tabular"].attrs["source"] = f"users, shard {number}"
    events = _parts(work / "events", number)
    if events is None:  # users of whom only facts are known: read beside an event that is nobody's
        nobody = pd.DataFrame([["\uffff", scan["cutoff"], *scan["modalities"][:1], "nothing"]], columns=list(REQUIRED))
        return Users.from_events(nobody, scan["cutoff"], **told).select(facts["user"])
    events = events.sort_values(list(PLACE), ignore_index=True)
    try:
        return Users.from_events(events.drop(columns=list(PLACE)), scan["cutoff"], **told)
    except DataError as error:
        if error.row is None or error.file != "events":
            raise
        file, row = events.loc[error.row, list(PLACE)].tolist()
        raise DataError(scan["files"][file - 1], row, error.column, error.value, error.hint) from error


def _parts(folder: Path, number: int) -> pd.DataFrame | None:
    files = sorted((folder / f"_shard={number}").glob("*.parquet"))
    return pd.concat([pd.read_parquet(file, partitioning=None) for file in files]) if files else None


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
