"""What a user is: a bundle of timed events from several modalities, some fixed facts, and labels kept apart."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

REQUIRED = ("user", "time", "modality", "text")
MAX_TEXT = 2_000  # characters; the text encoder reads about 256 tokens, so more is a mistake upstream


class DataError(ValueError):
    """Bad input, told as: file, row, column, value, cure."""

    def __init__(self, file, row, column, value, cure):
        self.file, self.row, self.column, self.value, self.cure = str(file), row, column, value, cure
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        where = "" if row is None else f", row {row}"
        super().__init__(f"{file}{where}, column {column!r}: {shown}: {cure}")


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
        cutoff = events["time"].max() + pd.Timedelta(1, "us") if cutoff is None else pd.Timestamp(cutoff)
        order = modalities or tuple(sorted(events["modality"].unique()))
        for word in events["modality"].unique():
            if word not in order:
                raise DataError(source, None, "modality", word, f"not one of {order}: add it to about.json's modalities")
        known = set(events["user"].unique())
        for frame in (tabular, labels):
            known |= set() if frame is None else set(frame.index.astype(str))
        ids = tuple(sorted(known))
        events = events.assign(
            user=pd.Categorical(events["user"], categories=list(ids)),
            modality=pd.Categorical(events["modality"], categories=list(order)),
            text=events["text"].astype("category"),
        )
        events = events.sort_values(["user", "time", "modality", "text"], kind="stable").reset_index(drop=True)
        return cls(
            name,
            events,
            cutoff,
            order,
            _by_user(tabular, ids, "users"),
            _by_user(labels, ids, "labels"),
            horizon_days,
            unit,
            ids,
        )

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
        counts = past.groupby(["user", "modality"], observed=False).size().unstack(fill_value=0)
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
            if stem == "events" or frame.shape[1] > 1:
                aside = folder / f".{stem}.parquet.part"
                frame.to_parquet(aside, index=False, compression="zstd", compression_level=19)
                aside.replace(folder / f"{stem}.parquet")
        about = {
            "name": self.name,
            "unit": self.unit,
            "cutoff": str(self.cutoff),
            "horizon_days": self.horizon_days,
            "modalities": list(self.modalities),
        }
        aside = folder / ".about.json.part"
        aside.write_text(json.dumps(about, indent=2) + "\n")
        aside.replace(folder / "about.json")
        return folder


def _by_user(frame: pd.DataFrame | None, ids: tuple[str, ...], source: str) -> pd.DataFrame:
    """Reindex a facts or labels frame by user id; refuse what is not a number."""
    if frame is None:
        return pd.DataFrame(index=pd.Index(ids, name="user"))
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            bad = frame[column].iloc[0] if len(frame) else None
            raise DataError(source, 0, column, bad, "not a number: encode it as numbers, or leave the column out")
    frame = frame.astype(float)
    if np.isinf(frame.to_numpy()).any():
        row, column = np.argwhere(np.isinf(frame.to_numpy()))[0]
        raise DataError(source, int(row), frame.columns[column], np.inf, "not finite: leave the cell empty")
    frame.index = frame.index.astype(str)
    if frame.index.has_duplicates:
        raise DataError(source, None, "user", frame.index[frame.index.duplicated()][0], "twice: one row a user")
    return frame.reindex(list(ids)).rename_axis("user")


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
        out[column] = events[column].astype(str)
    _refuse(source, "user", out["user"], out["user"].str.strip() == "", "a user needs an id")
    _refuse(source, "text", out["text"], out["text"].str.len() > MAX_TEXT, f"over {MAX_TEXT:,} characters: shorten it")
    _refuse(source, "text", out["text"], out["text"].str.contains("\x00", regex=False), "a null byte: remove it")
    time = pd.to_datetime(events["time"], errors="coerce", utc=True).dt.tz_localize(None)
    _refuse(source, "time", events["time"], time.isna(), "not a time: write it as 2025-01-31 18:00:00")
    out.insert(1, "time", time.astype("datetime64[us]"))
    for column in events.columns.difference(REQUIRED, sort=False):
        values = pd.to_numeric(events[column], errors="coerce").astype(float)
        _refuse(
            source,
            column,
            events[column],
            values.isna() & events[column].notna(),
            "not a number: encode it, or drop the column",
        )
        _refuse(source, column, events[column], np.isinf(values), "not finite: leave the cell empty")
        out[column] = values
    return out.reset_index(drop=True)


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
                raise DataError(
                    path.name, None, stem, str(error), "cannot be read: write it again as parquet or csv"
                ) from error
            return path, frame
    return None


def load_users(path) -> Users:
    """Read a folder of your own users: `events` and, if you have them, `users`, `labels` (parquet or csv) and `about.json`.

    Raises DataError naming file, row, column, value and cure; FileNotFoundError when there is no events file.
    """
    folder = Path(path)
    found = _read(folder, "events")
    if found is None:
        raise FileNotFoundError(
            f"{folder} has no events.parquet or events.csv: write one row an event with {', '.join(REQUIRED)}"
        )
    about_path = folder / "about.json"
    about = {}
    if about_path.exists():
        try:
            about = json.loads(about_path.read_text())
        except ValueError as error:
            raise DataError("about.json", None, "about", str(error), "not JSON: mend it or remove the file") from error
    frames = {}
    for stem in ("users", "labels"):
        table = _read(folder, stem)
        if table is not None:
            if "user" not in table[1]:
                raise DataError(table[0].name, None, "user", list(table[1].columns), "missing: one row a user")
            frames[stem] = table[1].set_index("user")
    return Users.from_events(
        found[1],
        about.get("cutoff"),
        name=about.get("name", folder.name),
        tabular=frames.get("users"),
        labels=frames.get("labels"),
        modalities=tuple(about["modalities"]) if "modalities" in about else None,
        horizon_days=about.get("horizon_days", 30),
        unit=about.get("unit", "user"),
        source=found[0].name,
    )
