"""Partition an events table of any size by user, one folder per shard, with DuckDB."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from qanchor.data.metadata import read_about
from qanchor.data.users import Users
from qanchor.data.validation import NO_EVENTS, REQUIRED, UNREADABLE, validated_events
from qanchor.errors import DataError
from qanchor.utils.arrays import arrow_table

NUMBERS = ("amount", "discount", "private")  # the number columns that behavior measures use
HASH = """('0x' || substr(md5("user"), 1, 15))::bigint"""  # the SQL form of `useru.pairs.user_hash`
POSITION = "_row"  # number of an event in the source: keeps equal events in order
EVENTS_PER_BATCH = 200_000  # events that are validated at once


@dataclass(frozen=True)
class EventSource:
    """Where the events of a data set are, what is known about them, and a hash of their content.

    Args:
        files: Parquet files of the events; empty if they are in memory.
        frame: The events, if they are in memory.
        about: Fields of about.json, with defaults.
        rows: Number of events.
        key: SHA-256 of the content.
    """

    files: tuple[Path, ...]
    frame: pd.DataFrame | None
    about: dict
    rows: int
    key: str

    def batches(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield the name of the file and some events at a time; their index is the row in it."""
        if self.frame is not None:
            yield "events", self.frame
        for file in self.files:
            start = 0
            for batch in pq.ParquetFile(file).iter_batches(EVENTS_PER_BATCH):
                frame = batch.to_pandas()
                frame.index = pd.RangeIndex(start, start + len(frame))
                start += len(frame)
                yield file.name, frame


class EventDays(NamedTuple):
    """Daily event counts of a source, with its cut-off.

    Args:
        days: One row per day, modality and side of the cut-off: `day, modality, past, events,
            first, last`.
        cutoff: The cut-off (of about.json, or just after the last event).
        history: The rows of `days` before the cut-off.
        modalities: Modalities in order.
    """

    days: pd.DataFrame
    cutoff: pd.Timestamp
    history: pd.DataFrame
    modalities: list[str]


def open_table(source: Users | Path | str, numbers: Sequence[str] = NUMBERS) -> EventSource:
    """Find the events of a data set.

    Args:
        source: Users, a parquet file, or a folder with `events.parquet` (a file or a folder of
            parquet files).
        numbers: Number columns to keep of users in memory (default `NUMBERS`).

    Returns:
        The source, not yet validated.

    Raises:
        FileNotFoundError: There is no events file.
        DataError: A file is not parquet, or about.json is invalid.

    Example:
        >>> open_table(qa.make_sample_users(2)).about["name"]
        'world'
    """
    if isinstance(source, Users):
        return _users_source(source, numbers)
    path = Path(source)
    events = path / "events.parquet" if (path / "events.parquet").exists() else path
    files = tuple(sorted(events.glob("*.parquet")) if events.is_dir() else [events])
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"{path} has no events.parquet."
            f" Write one row per event with the columns {', '.join(REQUIRED)}."
        )
    about = {"name": path.stem, "unit": "user", "cutoff": None}
    about |= {"modalities": [], "horizon_days": 30}
    folder = path if path.is_dir() else path.parent
    about |= read_about(folder / "about.json")
    try:
        rows = sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, ValueError) as error:
        raise DataError(events.name, None, "events", str(error), UNREADABLE) from error
    content = hashlib.sha256(b"".join(map(_file_digest, files)))
    return EventSource(files, None, about, rows, content.hexdigest())


def _users_source(users: Users, numbers: Sequence[str]) -> EventSource:
    columns = [*REQUIRED, *(name for name in numbers if name in users.events)]
    about = {
        "name": users.name,
        "unit": users.unit,
        "cutoff": str(users.cutoff),
        "modalities": list(users.modalities),
        "horizon_days": users.horizon_days,
    }
    events = users.events[columns]
    hashes = pd.util.hash_pandas_object(events, index=False).to_numpy()
    return EventSource((), events, about, len(events), hashlib.sha256(hashes.tobytes()).hexdigest())


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def open_facts(source: Users | Path | str) -> tuple[dict[str, Path | pd.DataFrame], str]:
    """Find the facts and the labels of a data set; of labels, only the ids are used.

    Args:
        source: Users, a parquet file, or a folder with `users` and `labels` (parquet or csv).

    Returns:
        The tables by name (`users`, `labels`), each a parquet file or a frame, and a SHA-256 of
        their content.

    Raises:
        DataError: A table has no column `user`.

    Example:
        >>> list(open_facts(qa.make_sample_users(2))[0])
        ['users']
    """
    if isinstance(source, Users):
        facts = source.tabular.reset_index()
        hashes = pd.util.hash_pandas_object(facts).to_numpy()
        return {"users": facts}, hashlib.sha256(hashes.tobytes()).hexdigest()
    tables = {}
    content = hashlib.sha256()
    for stem in ("users", "labels"):
        named = [Path(source) / f"{stem}.{ending}" for ending in ("parquet", "csv")]
        paths = [path for path in named if path.is_file()]
        if not paths:
            continue
        path = paths[0]
        if path.suffix == ".parquet":
            tables[stem] = path
            columns = pq.read_schema(path).names
        else:
            tables[stem] = pd.read_csv(path, dtype={"user": str})
            columns = list(tables[stem])
        if "user" not in columns:
            raise DataError(path.name, None, "user", columns, "missing. Write one row per user.")
        content.update(_file_digest(path))
    return tables, content.hexdigest()


def partition_users(
    table: EventSource,
    facts: dict[str, Path | pd.DataFrame],
    work: Path,
    shards: int,
    numbers: Sequence[str],
    texts: int,
    **config,
) -> None:
    """Write the history and the facts of each user into the shard of the user's hash.

    The folder `work` is written atomically. Users without events or without facts are included.

    Args:
        table: The events, as `open_table` returns them.
        facts: The facts and labels, as `open_facts` returns them.
        work: Folder to create.
        shards: Number of shards.
        numbers: Number columns of the events to keep.
        texts: Number of distinct texts to list in `texts.parquet`, in alphabetical order. **config:
        DuckDB settings such as `threads` and `memory_limit`.

    Raises:
        DataError: The events hold a value that cannot be used.
        OSError: The disk is full or not writable.
    """
    with database_folder(work, config) as (base, folder):
        columns = create_events_view(base, table, folder, numbers)
        days = count_days(base, table)
        history = history_sql(columns, days.cutoff)
        id_queries = ['select "user" from events where "user" is not null']
        for name, facts_table in facts.items():
            if isinstance(facts_table, Path):
                rows = f"read_parquet('{quote_path(facts_table)}')"
            else:
                rows = f"frame_{name}"
                base.register(rows, arrow_table(facts_table))
            as_text = 'replace ("user"::varchar as "user")'
            base.execute(f"create view {name} as select * {as_text} from {rows}")
            id_queries.append(f'select "user" from {name}')
        all_ids = f'select distinct "user" from ({" union all ".join(id_queries)})'
        users = all_ids
        if "users" in facts:
            users = f'select * from ({all_ids}) left join users using ("user")'
        scan = {
            "cutoff": str(days.cutoff),
            "modalities": days.modalities,
            "about": table.about,
        }
        write_shards(base, history, shards, folder / "events")
        scan["shards"] = write_shards(base, users, shards, folder / "users")
        [(scan["users"],)] = base.sql(f"select count(*) from ({all_ids})").fetchall()
        distinct_texts = (
            f"select distinct text from ({history}) where text is not null"
            f" order by text limit {texts}"
        )
        path = quote_path(folder / "texts.parquet")
        base.execute(f"copy ({distinct_texts}) to '{path}' (format parquet)")
        (folder / "scan.json").write_text(json.dumps(scan))


@contextmanager
def database_folder(work: Path, config: dict) -> Iterator[tuple]:
    """Yield a DuckDB connection and a folder that becomes `work` if the block ends without error.

    Args:
        work: Folder to create.
        config: DuckDB settings.

    Raises:
        OSError: The disk is full or not writable.
    """
    import duckdb

    part = work.with_name(f"{work.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    spill = part / "spill"
    config = config | {"temp_directory": str(spill), "preserve_insertion_order": False}
    try:
        with duckdb.connect(config=config) as base:
            yield base, part
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, duckdb.IOException):
            hint = "Free disk space or choose another folder."
            raise OSError(f"{work.parent}: {error}. {hint}") from error
        raise
    for temporary in (spill, part / "clean"):
        shutil.rmtree(temporary, ignore_errors=True)
    part.rename(work)


def history_sql(columns: Iterable[str], cutoff) -> str:
    """Return a query of the events before a cut-off, with their position in the source.

    Args:
        columns: Columns of the view `events`.
        cutoff: The cut-off.
    """
    names = ", ".join(f'"{name}"' for name in (*columns, POSITION))
    return f"select {names} from events where time < timestamp '{cutoff}'"


def write_shards(base, rows: str, shards: int, folder: Path) -> list[int]:
    """Write rows into one parquet folder per shard, by the hash of their user.

    Args:
        base: DuckDB connection.
        rows: Query with a column `user`.
        shards: Number of shards.
        folder: Folder to write.

    Returns:
        The shards that have rows, sorted.
    """
    with_shard = f"select *, coalesce({HASH} % {shards}, 0) as _shard from ({rows})"
    options = "format parquet, partition_by (_shard)"
    base.execute(f"copy ({with_shard}) to '{quote_path(folder)}' ({options})")
    return sorted(int(path.name.removeprefix("_shard=")) for path in folder.glob("_shard=*"))


def create_events_view(
    base, table: EventSource, folder: Path, numbers: Sequence[str] = NUMBERS
) -> list[str]:
    """Validate the events batch by batch and create the view `events` of what is clean.

    Args:
        base: DuckDB connection.
        table: The events, as `open_table` returns them.
        folder: Where the clean events are written, into `clean`.
        numbers: Number columns to keep (default `NUMBERS`).

    Returns:
        Names of the columns, without the position.

    Raises:
        DataError: The table is empty, or holds a value that cannot be used; names file and row.
    """
    clean = folder / "clean"
    clean.mkdir()
    columns = list(REQUIRED)
    n_rows = 0
    files = []
    for number, (name, frame) in enumerate(table.batches()):
        events = validated_events(frame, name)
        columns = [column for column in (*REQUIRED, *numbers) if column in events]
        position = np.arange(n_rows, n_rows + len(events))
        n_rows += len(events)
        events = events[columns].assign(**{POSITION: position})
        path = clean / f"{number:06d}.parquet"
        events.to_parquet(path, index=False)
        files.append(f"'{quote_path(path)}'")
    if not n_rows:
        raise DataError("events", None, "user", "no rows", NO_EVENTS)
    rows = f"read_parquet([{', '.join(files)}], hive_partitioning=false)"
    base.execute(f"create view events as select * from {rows}")
    return columns


def count_days(base, table: EventSource) -> EventDays:
    """Count the events of each day and modality.

    Args:
        base: DuckDB connection with the view `events`.
        table: The events, as `open_table` returns them.

    Returns:
        The daily counts, the cut-off, the counts before it, and the modalities.
    """
    end = table.about["cutoff"]
    past = "true" if end is None else f"time < timestamp '{pd.Timestamp(end)}'"
    days = base.sql(
        f"select date_trunc('day', time)::timestamp as day, modality, {past} as past,"
        " count(*) as events, min(time) as first, max(time) as last from events group by all"
    ).df()
    cutoff = days["last"].max() + pd.Timedelta(1, "us") if end is None else pd.Timestamp(end)
    history = days[days["past"]]
    modalities = list(table.about["modalities"]) or sorted(history["modality"].unique())
    return EventDays(days, cutoff, history, modalities)


def load_shard(work: Path, number: int, scan: dict) -> Users:
    """Load the users of one shard.

    Args:
        work: Folder of the partition.
        number: Number of the shard.
        scan: Content of its `scan.json`.

    Returns:
        The users; all their events are history.

    Raises:
        DataError: A fact cannot be used.
    """
    options = {name: scan["about"][name] for name in ("horizon_days", "unit")}
    options["modalities"] = tuple(scan["modalities"])
    facts = _read_parts(work / "users", number)
    if facts is not None:
        options["tabular"] = facts.set_index("user")
        options["tabular"].attrs["source"] = f"users, shard {number}"
    events = _read_parts(work / "events", number)
    if events is None:  # only facts are known: `Users` needs an event, so add one and remove it
        row = ["\uffff", scan["cutoff"], *scan["modalities"][:1], "nothing"]
        placeholder = pd.DataFrame([row], columns=list(REQUIRED))
        return Users.from_events(placeholder, scan["cutoff"], **options).select(facts["user"])
    events = events.sort_values(POSITION, ignore_index=True).drop(columns=POSITION)
    return Users.from_events(events, scan["cutoff"], **options)


def _read_parts(folder: Path, number: int) -> pd.DataFrame | None:
    files = sorted((folder / f"_shard={number}").glob("*.parquet"))
    if not files:
        return None
    return pd.concat([pd.read_parquet(file, partitioning=None) for file in files])


def quote_path(path: Path) -> str:
    """Escape a path for a string literal in SQL."""
    return str(path).replace("'", "''")
