"""What a user is: a bundle of timed events from several modalities, some fixed facts, and labels kept apart."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from .about import DataError, checked_about
from .files import whole, write_whole

MEANS = {  # the columns of events, and what each says
    "user": "the id of who did it, or of whom a row is about",
    "time": "when it happened",
    "modality": "the kind of source a row comes from, such as payment, search or visit",
    "text": "what happened, in words, such as 'yoga class'",
}
REQUIRED = tuple(MEANS)
MAX_TEXT = 2_000  # characters; the text encoder reads about 256 tokens, so more is a mistake upstream
FIRST, LAST = pd.Timestamp("1900-01-01"), pd.Timestamp("2200-01-01")  # no behaviour is older, and none is known from then on
HALF = "half a character (a lone surrogate): remove it"
LARGEST = 1e15  # of a number: beyond it sums lose their cents, and at last overflow


@dataclass(frozen=True)
class Users:
    """Hold many users' events, the cut-off that divides past from future, and what is known or asked of them.

    events   one row an event, sorted by user and time: `user, time, modality, text` and number columns (float, NaN = none);
             user, modality and text are categorical.
    cutoff   events before it are history and may be read; events at or after it are the future.
    tabular  index user; fixed facts known before the first event, columns named `group.feature` (one slot a group).
    labels   index user; 0, 1 or NaN (unknown); never an input.

    Example:
        >>> users = Users.from_events(pd.DataFrame({"user": ["a"], "time": pd.to_datetime(["2025-01-01"]),
        ...     "modality": ["bill"], "text": ["paid for noodles"]}), cutoff="2025-02-01")
        >>> len(users), users.modalities
        (1, ('bill',))
    """

    name: str
    events: pd.DataFrame
    cutoff: pd.Timestamp
    modalities: tuple[str, ...]
    tabular: pd.DataFrame
    labels: pd.DataFrame
    horizon_days: int = 30
    unit: str = "user"  # the word for one of them in questions and sentences: user, household, viewer
    ids: tuple[str, ...] = field(default=())

    @classmethod
    def from_events(
        cls,
        events: pd.DataFrame,
        cutoff=None,
        *,
        name: str = "users",
        tabular: pd.DataFrame | None = None,
        labels: pd.DataFrame | None = None,
        modalities: tuple[str, ...] | None = None,
        horizon_days: int = 30,
        unit: str = "user",
        source: str = "events",
    ) -> Users:
        """Make `Users` from a plain events table; the cut-off defaults to just after the last event."""
        events = checked_events(events, source)
        tabular, labels = _checked_table(tabular, "users"), _checked_table(labels, "labels", binary=True)
        for table, columns in ((source, events), ("users", tabular)):
            for column in labels.columns.intersection(columns.columns):
                cure = "named like a label, which must never be an input: drop the column, or rename one"
                raise DataError(table, None, column, column, cure)
        cutoff = events["time"].max() + pd.Timedelta(1, "us") if cutoff is None else _moment(cutoff, source)
        # undeclared, they are those of the history: one seen only afterwards must not change how the past is read
        every, past = events["modality"], events["modality"][events["time"] < cutoff]
        order = modalities or tuple(sorted(past.unique()))
        late = [] if modalities else sorted(set(every) - set(order))
        unknown = ~every.isin([*order, *late])
        _refuse(source, "modality", every, unknown, f"not one of {order}: add it to about.json's modalities")
        known = set(events["user"].unique())
        ids = tuple(sorted(known.union(tabular.index, labels.index)))
        index = pd.Index(ids, name="user")
        events = events.assign(
            user=pd.Categorical(events["user"], categories=list(ids)),
            modality=pd.Categorical(events["modality"], categories=[*order, *late]),
            text=events["text"].astype("category"),
        )
        events = events.sort_values(["user", "time", "modality", "text"], kind="stable").reset_index(drop=True)
        facts, labels = tabular.reindex(index), labels.reindex(index)
        return cls(name, events, cutoff, order, facts, labels, horizon_days, unit, ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Users({self.name}: {len(self):,} {self.unit}s, {len(self.events):,} events, cut-off {self.cutoff:%Y-%m-%d})"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Name the number columns of the events (amount, items ...), in order."""
        return tuple(c for c in self.events.columns if c not in REQUIRED)

    def history(self, cutoff=None) -> pd.DataFrame:
        """Give the events strictly before `cutoff` (default: the users' own)."""
        return self.events[self.events["time"] < pd.Timestamp(self.cutoff if cutoff is None else cutoff)]

    def future(self, cutoff=None, days: int | None = None) -> pd.DataFrame:
        """Give the events from `cutoff` on, for `days` (default: `horizon_days`)."""
        start = pd.Timestamp(self.cutoff if cutoff is None else cutoff)
        end = start + pd.Timedelta(days=self.horizon_days if days is None else days)
        return self.events[(self.events["time"] >= start) & (self.events["time"] < end)]

    def label(self, name: str) -> pd.Series:
        """Give one label for every user (index user; NaN where unknown), in the order of `ids`."""
        if name not in self.labels:
            raise KeyError(f"no label {name!r} in {self.name}: there are {', '.join(self.labels) or 'none'}")
        return self.labels[name]

    def select(self, ids) -> Users:
        """Keep only these users (by id), everything else alike."""
        wanted = [str(i) for i in ids]
        missing = sorted(set(wanted) - set(self.ids))
        if missing:
            raise KeyError(f"user {missing[0]!r} is not among the {len(self):,} of {self.name}")
        keep = tuple(sorted(set(wanted)))
        events = self.events[self.events["user"].isin(keep)]
        events = events.assign(user=events["user"].cat.set_categories(list(keep))).reset_index(drop=True)
        return replace(self, events=events, tabular=self.tabular.loc[list(keep)], labels=self.labels.loc[list(keep)], ids=keep)

    def sample(self, n: int, seed: int = 0) -> Users:
        """Keep `n` users drawn by `seed` (all of them when there are no more)."""
        if n >= len(self):
            return self
        return self.select(np.random.default_rng(seed).choice(np.array(self.ids), n, replace=False))

    def frame(self) -> pd.DataFrame:
        """Describe each user in one row for the views: `user, events, <modality> counts ..., first, last, recent`."""
        past = self.history()
        by = past.groupby("user", observed=False)
        counts = past.groupby(["user", "modality"], observed=False).size().unstack(fill_value=0)[list(self.modalities)]
        counts.columns = [str(c) for c in counts.columns]
        recent = past.groupby("user", observed=True)["text"].agg(lambda texts: " · ".join(texts.astype(str).iloc[-5:][::-1]))
        frame = pd.DataFrame({"events": by.size(), "first": by["time"].min(), "last": by["time"].max()}).join(counts)
        frame["recent"] = recent.reindex(frame.index).fillna("").astype(str)
        return frame.rename_axis("user").reset_index().astype({"user": str})

    def save(self, folder) -> Path:
        """Write the folder that `load_users` reads, each file aside first and then renamed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = self.events.astype({"user": str, "modality": str, "text": str})
        frames = {"events": plain, "users": self.tabular.reset_index(), "labels": self.labels.reset_index()}
        for stem, frame in frames.items():
            if frame.shape[1] == 1:  # no facts or labels: an older file must not stand for them
                (folder / f"{stem}.parquet").unlink(missing_ok=True)
            else:
                small = partial(frame.to_parquet, index=False, compression="zstd", compression_level=19)
                write_whole(folder / f"{stem}.parquet", small)
        about = {"name": self.name, "unit": self.unit, "cutoff": str(self.cutoff)}
        about |= {"horizon_days": self.horizon_days, "modalities": list(self.events["modality"].cat.categories)}
        write_whole(folder / "about.json", lambda aside: aside.write_text(json.dumps(about, indent=2) + "\n"))
        return folder


def _checked_table(frame: pd.DataFrame | None, source: str, binary: bool = False) -> pd.DataFrame:
    """Check a facts or labels table (index user): ids once, finite numbers, labels 0 or 1."""
    if frame is None:
        return pd.DataFrame(index=pd.Index([], dtype=str, name="user"))
    source = frame.attrs.get("source", source)  # the file's name, when it came from one
    ids = pd.Series(frame.index)
    _refuse(source, "user", ids, ids.isna(), "a user needs an id")
    _refuse(source, "user", ids, _halved(ids), HALF)
    ids = ids.astype(str)
    _refuse(source, "user", ids, ids.duplicated(), "twice: one row a user")
    out = pd.DataFrame(index=pd.Index(ids, name="user"))
    for column in frame.columns:
        given = frame[column].reset_index(drop=True)
        values = pd.to_numeric(given, errors="coerce").astype(float)
        cure = "not a number: encode it as numbers, or leave the column out"
        _refuse(source, column, given, values.isna() & given.notna(), cure)
        _refuse(source, column, given, np.isinf(values), "not finite: leave the cell empty")
        if binary:
            _refuse(source, column, given, values.notna() & ~values.isin([0, 1]), "a label is 0, 1 or empty")
        out[column] = values.to_numpy()
    return out


def checked_events(events: pd.DataFrame, source="events") -> pd.DataFrame:
    """Check an events table once, where it enters, and give it clean types: str, datetime64, str, str, float ..."""
    for column in REQUIRED:
        if column not in events:
            raise DataError(source, None, column, list(events.columns), f"missing: needed are {', '.join(REQUIRED)}")
    if not len(events):
        raise DataError(source, None, "user", "no rows", "the table is empty: give at least one event")
    out = pd.DataFrame(index=events.index)
    for column in ("user", "modality", "text"):
        _refuse(source, column, events[column], events[column].isna(), "empty: fill it or drop the row")
        _refuse(source, column, events[column], _halved(events[column]), HALF)
        out[column] = events[column].astype(str)
    _refuse(source, "user", out["user"], out["user"].str.strip() == "", "a user needs an id")
    _refuse(source, "text", out["text"], out["text"].str.strip() == "", "empty: fill it or drop the row")
    _refuse(source, "text", out["text"], out["text"].str.len() > MAX_TEXT, f"over {MAX_TEXT:,} characters: shorten it")
    _refuse(source, "text", out["text"], out["text"].str.contains("\x00", regex=False), "a null byte: remove it")
    # ISO only: 03/04/2025 is March or April, and a bare number would silently be read as nanoseconds since 1970
    given = events["time"].astype(str) if pd.api.types.is_numeric_dtype(events["time"]) else events["time"]
    time = pd.to_datetime(given, errors="coerce", utc=True, format="ISO8601").dt.tz_localize(None)
    clock = given.isin(("now", "today")) if given.dtype in (object, "str") else False  # pandas would look at the clock
    _refuse(source, "time", events["time"], time.isna() | clock, "not a time: write it as 2025-01-31 18:00:00")
    odd = (time < FIRST) | (time >= LAST)
    _refuse(source, "time", events["time"], odd, f"not from {FIRST.year} to {LAST.year - 1}: is the year right?")
    out.insert(1, "time", time.astype("datetime64[us]"))
    for column in events.columns.difference(REQUIRED, sort=False):
        if events[column].dtype.kind in "mM":
            raise DataError(source, None, column, str(events[column].dtype), "a time, not a number: write one, or drop it")
        values = pd.to_numeric(events[column], errors="coerce").astype(float)
        words = values.isna() & events[column].notna()
        _refuse(source, column, events[column], words, "not a number: encode it, or drop the column")
        _refuse(source, column, events[column], np.isinf(values), "not finite: leave the cell empty")
        _refuse(source, column, events[column], values.abs() > LARGEST, f"beyond {LARGEST:.0e}: is that meant?")
        out[column] = values
    return out.reset_index(drop=True)


def _moment(cutoff, source: str) -> pd.Timestamp:
    try:
        found = pd.Timestamp(cutoff)
    except (ValueError, TypeError) as error:
        raise DataError(source, None, "cutoff", cutoff, "not a time: write it as 2025-01-31") from error
    if pd.isna(found) or found.tzinfo:
        raise DataError(source, None, "cutoff", cutoff, "not a plain time without an offset: write it as 2025-01-31")
    return found


def _halved(values: pd.Series) -> pd.Series:
    """Find texts with half a character in them, which no file takes; only loose objects can hold one."""
    if values.dtype != object:
        return pd.Series(False, index=values.index)
    return values.map(lambda text: isinstance(text, str) and not text.isascii() and whole(text) != text)


def _refuse(source, column: str, values: pd.Series, bad: pd.Series, cure: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad.to_numpy())[0])
        raise DataError(source, row, column, values.iloc[row], cure)


def _read(folder: Path, stem: str) -> tuple[Path, pd.DataFrame] | None:
    for path, read in ((folder / f"{stem}.parquet", pd.read_parquet), (folder / f"{stem}.csv", pd.read_csv)):
        if path.exists():
            try:
                frame = read(path)
            except Exception as error:
                cure = "cannot be read: write it again as parquet or csv"
                raise DataError(path.name, None, stem, str(error), cure) from error
            return path, frame
    return None


def load_users(path) -> Users:
    """Read a folder of your own users: `events` and, if you have them, `users`, `labels` (parquet or csv) and `about.json`.

    Raises DataError naming file, row, column, value and cure; FileNotFoundError when there is no events file.

    Example:
        >>> users = Users.from_events(pd.DataFrame([["a", "2025-01-01", "bill", "noodles"]], columns=REQUIRED))
        >>> import tempfile
        >>> load_users(users.save(tempfile.mkdtemp()))
        Users(users: 1 users, 1 events, cut-off 2025-01-01)
    """
    folder = Path(path)
    found = _read(folder, "events")
    if found is None:
        needed = f"write one row an event with {', '.join(REQUIRED)}"
        raise FileNotFoundError(f"{folder} has no events.parquet or events.csv: {needed}")
    about = checked_about(folder / "about.json")
    frames = {}
    for stem in ("users", "labels"):
        table = _read(folder, stem)
        if table is not None:
            if "user" not in table[1]:
                raise DataError(table[0].name, None, "user", list(table[1].columns), "missing: one row a user")
            frames[stem] = table[1].set_index("user")
            frames[stem].attrs["source"] = table[0].name
    return Users.from_events(
        found[1],
        about.get("cutoff"),
        name=about.get("name", folder.name),
        tabular=frames.get("users"),
        labels=frames.get("labels"),
        modalities=tuple(about.get("modalities", ())) or None,
        horizon_days=about.get("horizon_days", 30),
        unit=about.get("unit", "user"),
        source=found[0].name,
    )
