"""Partition an events table of any size by user, one folder per shard, with DuckDB."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pyarrow import dataset

from qanchor.data.metadata import read_about
from qanchor.data.users import Users
from qanchor.data.validation import NO_EVENTS, REQUIRED, UNREADABLE, validated_events
from qanchor.errors import DataError
from qanchor.utils.arrays import arrow_table
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import atomic_directory, write_json

HASH = """('0x' || substr(md5("user"), 1, 15))::bigint"""  # of a user's id, the same on any machine
POSITION = "_row"  # row of an event in the source, to restore the order of equal events
EVENTS_PER_BATCH = 200_000  # events that are validated at a time
EVENTS_PER_SHARD = 500_000  # by default
RESOURCES = {"threads": 2, "memory_limit": "800MB"}  # of DuckDB


@dataclass(frozen=True)
class EventSource:
    """Where the events of a data set are, what is known about them, and a hash of their content.

    Args:
        files: Parquet files of the events.
        about: Fields of about.json, with defaults.
        rows: Number of events.
        key: SHA-256 of the content.
    """

    files: tuple[Path, ...]
    about: dict
    rows: int
    key: str

    def batches(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield (file name, batch of events); the index of a batch is the row in the file."""
        for file in self.files:
            n_rows = 0
            for batch in pq.ParquetFile(file).iter_batches(EVENTS_PER_BATCH):
                frame = batch.to_pandas()
                frame.index = pd.RangeIndex(n_rows, n_rows + len(frame))
                n_rows += len(frame)
                yield file.name, frame


def open_events(path: Path) -> EventSource:
    """Find the events of a data set.

    Args:
        path: A parquet file, or a folder with `events.parquet` (a file or a folder of parquet
            files).

    Returns:
        The source, not yet validated.

    Raises:
        FileNotFoundError: There is no events file.
        DataError: A file is not parquet, or about.json is invalid.
    """
    events = path / "events.parquet"
    if not events.exists():
        events = path
    files = sorted(events.glob("*.parquet")) if events.is_dir() else [events]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"{path} has no events.parquet."
            f" Write one row per event with the columns {', '.join(REQUIRED)}."
        )
    folder = path if path.is_dir() else path.parent
    about = {
        "name": path.stem,
        "unit": "user",
        "cutoff": None,
        "modalities": [],
        "horizon_days": 30,
    }
    about |= read_about(folder / "about.json")
    try:
        rows = sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, ValueError) as error:
        raise DataError(events.name, None, "events", str(error), UNREADABLE) from error
    return EventSource(tuple(files), about, rows, _hash_of(map(sha256_file, files)))


def _hash_of(hashes: Iterable[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def open_facts(folder: Path) -> tuple[dict, str]:
    """Find the facts and the labels of a data set; only the ids of the labels are used.

    Args:
        folder: The folder, which may hold `users` and `labels` (parquet or csv).

    Returns:
        The arrow tables or datasets by name (`users`, `labels`), and a SHA-256 of their content.

    Raises:
        DataError: A table has no column `user`.
    """
    tables = {}
    hashes = []
    for stem in ("users", "labels"):
        path = folder / f"{stem}.parquet"
        if path.is_file():
            tables[stem] = dataset.dataset(path)
        else:
            path = path.with_suffix(".csv")
            if not path.is_file():
                continue
            tables[stem] = arrow_table(pd.read_csv(path, dtype={"user": str}))
        columns = tables[stem].schema.names
        if "user" not in columns:
            raise DataError(path.name, None, "user", columns, "missing. Write one row per user.")
        hashes.append(sha256_file(path))
    return tables, _hash_of(hashes)


def partition_users(
    table: EventSource,
    facts: dict,
    work: Path,
    shards: int,
    numbers: Sequence[str],
    texts: int,
) -> None:
    """Write the history and the facts of each user to a shard, chosen by the hash of the id.

    The folder `work` is written atomically. Users without events or without facts are included.

    Args:
        table: The events, as `open_events` returns them.
        facts: The facts and labels, as `open_facts` returns them.
        work: Folder to create.
        shards: Number of shards.
        numbers: Number columns of the events to keep.
        texts: Number of distinct texts to list in `texts.parquet`, in alphabetical order.

    Raises:
        DataError: The events have an invalid value.
        OSError: The disk is full or not writable.
    """
    with _database_folder(work) as (base, folder):
        _create_events_view(base, table, folder, numbers)
        cutoff = table.about["cutoff"]
        if cutoff is None:
            [(last,)] = base.sql("select max(time) from events").fetchall()
            cutoff = pd.Timestamp(last) + pd.Timedelta(1, "us")
        base.execute(
            f"create view history as select * from events where time < timestamp '{cutoff}'"
        )
        ids = 'select "user" from events'
        for name, rows in facts.items():
            base.register(f"given_{name}", rows)
            as_text = 'replace ("user"::varchar as "user")'
            base.execute(f"create view {name} as select * {as_text} from given_{name}")
            ids += f' union select "user" from {name}'
        base.execute(f"create view ids as select distinct * from ({ids})")
        users = "ids"
        if "users" in facts:
            users = 'ids left join users using ("user")'
        modalities = table.about["modalities"]
        if not modalities:
            names = base.sql("select distinct modality from history order by 1").fetchall()
            modalities = [name for (name,) in names]
        _write_shards(base, "history", shards, folder / "events")
        scan = {
            "cutoff": str(cutoff),
            "modalities": modalities,
            "about": table.about,
            "shards": _write_shards(base, users, shards, folder / "users"),
            "users": base.sql("select count(*) from ids").fetchall()[0][0],
        }
        path = _quote(folder / "texts.parquet")
        base.execute(
            f"copy (select distinct text from history order by text limit {texts})"
            f" to '{path}' (format parquet)"
        )
        write_json(folder / "scan.json", scan)


@contextmanager
def _database_folder(work: Path) -> Iterator[tuple]:
    """Yield a DuckDB connection and a folder that becomes `work` if the block ends without error.

    Raises:
        OSError: The disk is full or not writable.
    """
    import duckdb

    for stale in work.parent.glob(f".{work.name}.*"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    with atomic_directory(work) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        spill = str(scratch / "spill")
        config = RESOURCES | {"temp_directory": spill, "preserve_insertion_order": False}
        try:
            with duckdb.connect(config=config) as base:
                yield base, folder
        except duckdb.IOException as error:
            hint = "Free disk space or choose another folder."
            raise OSError(f"{work.parent}: {error}. {hint}") from error
        shutil.rmtree(scratch)


def _write_shards(base, rows: str, shards: int, folder: Path) -> list[int]:
    """Write rows to one parquet folder per shard, and return the numbers of non-empty shards."""
    with_shard = f"select *, coalesce({HASH} % {shards}, 0) as _shard from {rows}"
    options = "format parquet, partition_by (_shard)"
    base.execute(f"copy ({with_shard}) to '{_quote(folder)}' ({options})")
    return sorted(int(path.name.removeprefix("_shard=")) for path in folder.glob("_shard=*"))


def _create_events_view(base, table: EventSource, folder: Path, numbers: Sequence[str]) -> None:
    """Validate the events batch by batch, and create the view `events` of the clean events."""
    n_rows = 0
    for number, (name, frame) in enumerate(table.batches()):
        events = validated_events(frame, name)
        columns = [column for column in (*REQUIRED, *numbers) if column in events]
        position = np.arange(n_rows, n_rows + len(events))
        n_rows += len(events)
        events = events[columns].assign(**{POSITION: position})
        events.to_parquet(folder / f"scratch/{number:06d}.parquet", index=False)
    if not n_rows:
        raise DataError("events", None, "user", "no rows", NO_EVENTS)
    rows = f"read_parquet('{_quote(folder)}/scratch/*.parquet', hive_partitioning=false)"
    base.execute(f"create view events as select * from {rows}")


def load_shard(work: Path, number: int, scan: dict) -> Users:
    """Load the users of one shard.

    Args:
        work: Folder of the partition.
        number: Number of the shard.
        scan: Content of its `scan.json`.

    Returns:
        The users; all their events are history.

    Raises:
        DataError: A fact is invalid.
    """
    shard = f"_shard={number}"
    facts = pd.read_parquet(work / "users" / shard, partitioning=None)
    tabular = facts.set_index("user")
    tabular.attrs["source"] = f"users, shard {number}"
    path = work / "events" / shard
    if path.exists():
        events = pd.read_parquet(path, partitioning=None)
        events = events.sort_values(POSITION, ignore_index=True).drop(columns=POSITION)
    else:  # only facts are known: `Users` needs an event, so add one and remove it
        row = ["\uffff", scan["cutoff"], *scan["modalities"][:1], "nothing"]
        events = pd.DataFrame([row], columns=list(REQUIRED))
    users = Users.from_events(
        events,
        scan["cutoff"],
        tabular=tabular,
        modalities=tuple(scan["modalities"]),
        horizon_days=scan["about"]["horizon_days"],
        unit=scan["about"]["unit"],
    )
    return users.select(facts["user"])


def _quote(path: Path) -> str:
    """Escape a path for a string literal in SQL."""
    return str(path).replace("'", "''")
