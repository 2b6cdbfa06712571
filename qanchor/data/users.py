"""What a user is: a bundle of timed events from several modalities, some fixed facts, and labels kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import partial
from pathlib import Path
import json
import numpy as np
import pandas as pd

from qanchor.data.metadata import validated_metadata
from qanchor.data.validation import REQUIRED, _checked_table, _moment, _reject, checked_events
from qanchor.errors import DataError
from qanchor.utils.io import atomic_write


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
        _reject(source, "modality", every, unknown, f"not one of {order}: add it to about.json's modalities")
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
                atomic_write(folder / f"{stem}.parquet", small)
        about = {"name": self.name, "unit": self.unit, "cutoff": str(self.cutoff)}
        about |= {"horizon_days": self.horizon_days, "modalities": list(self.events["modality"].cat.categories)}
        atomic_write(folder / "about.json", lambda aside: aside.write_text(json.dumps(about, indent=2) + "\n"))
        return folder


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
    about = validated_metadata(folder / "about.json")
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
