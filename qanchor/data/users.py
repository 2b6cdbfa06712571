"""Users: timed events of several modalities, facts, and labels that are never an input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.validation import (
    LIKE_A_LABEL,
    REQUIRED,
    Findings,
    Report,
    check_modalities,
    parse_cutoff,
    validated_events,
    validated_facts,
)
from qanchor.errors import DataError
from qanchor.utils.io import atomic_write, write_json
from qanchor.utils.text import count
from qanchor.utils.types import TimeLike

RECENT_EVENTS = 5  # texts per user in `Users.frame()["recent"]`
MIN_TRAINING_USERS = 30  # with an event before a training cut-off
TRAINING_HORIZONS = 1.5  # of history: one after a training cut-off, and half of one before it


@dataclass(frozen=True)
class Users:
    """Events, facts and labels of many users, with the cut-off that divides past from future.

    Create it with `read_events`, `load_users` or `Users.from_events`, which validate the input.

    Args:
        name: Name of the data set.
        events: One row per event, sorted by user and time: `user, time, modality, text` and number
            columns (float, NaN for none). `user`, `modality` and `text` are categorical.
        cutoff: Events before it are history and may be read; the others are the future.
        modalities: Modalities of the history; tables list them in this order.
        tabular: Index `user`; facts known before the first event, NaN for unknown. A model reads
            each that is not 0 as a token of the user.
        labels: Index `user`; 0, 1 or NaN (unknown). Never an input.
        horizon_days: Days after the cut-off that questions are about (default 30).
        unit: Word for one user in questions, such as "household" (default "user").
        ids: Ids of all users, sorted.
        words: What people call a column, modality, text or attribute, by its name, such as
            `{"priv": "private label brand"}`. Questions are matched against these words.
        report: How `read_events` read the table; None if the users were created without it.

    Example:
        >>> users = Users.from_events(pd.DataFrame({"user": ["a"], "time": ["2025-01-01"],
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
    unit: str = "user"
    ids: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    report: Report | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_events(
        cls,
        events: pd.DataFrame,
        cutoff: TimeLike | None = None,
        *,
        name: str = "users",
        tabular: pd.DataFrame | None = None,
        labels: pd.DataFrame | None = None,
        modalities: tuple[str, ...] | None = None,
        horizon_days: int = 30,
        unit: str = "user",
        words: Mapping[str, str] | None = None,
        source: str = "events",
    ) -> Users:
        """Validate plain tables and return them as `Users`.

        Args:
            events: One row per event: `user, time, modality, text` and any number columns.
            cutoff: Time that divides history from future (default: just after the last event).
            name: Name of the data set (default "users").
            tabular: Facts, index `user`, number columns (default: none).
            labels: Labels, index `user`, values 0, 1 or NaN (default: none).
            modalities: Allowed modalities in order (default: those before the cut-off, sorted).
            horizon_days: Days after the cut-off that questions are about (default 30).
            unit: Word for one user in questions (default "user").
            words: What people call a column, modality, text or attribute, by its name (default: the
                name itself).
            source: Name of the events table in error messages (default "events").

        Returns:
            The users that occur in any of the three tables.

        Raises:
            DataError: A table has an invalid value. The message names table, row and column.

        Example:
            >>> rows = [["a", "2025-01-01", "bill", "noodles"], ["b", "2025-01-02", "bill", "tea"]]
            >>> Users.from_events(pd.DataFrame(rows, columns=REQUIRED)).ids
            ('a', 'b')
        """
        events = validated_events(events.reset_index(drop=True), source)
        facts_source = "users" if tabular is None else tabular.attrs.get("source", "users")
        tabular = validated_facts(tabular, "users")
        labels = validated_facts(labels, "labels", binary=True)
        for table, frame in ((source, events), (facts_source, tabular)):
            for column in labels.columns.intersection(frame.columns):
                raise DataError(table, None, column, column, LIKE_A_LABEL)
        if cutoff is None:
            cutoff = events["time"].max() + pd.Timedelta(1, "us")
        else:
            cutoff = parse_cutoff(cutoff, source)
        seen = events["modality"]
        if modalities:
            check_modalities(Findings(source, strict=True), seen, modalities)
        # By default the modalities are those of the history: a modality that appears only later
        # must not change how the past is read.
        order = modalities or tuple(sorted(seen[events["time"] < cutoff].unique()))
        late = sorted(set(seen.unique()) - set(order))
        ids = tuple(sorted(set(events["user"].unique()).union(tabular.index, labels.index)))
        index = pd.Index(ids, name="user")
        events = events.assign(
            user=pd.Categorical(events["user"], categories=list(ids)),
            modality=pd.Categorical(events["modality"], categories=[*order, *late]),
            text=events["text"].astype("category"),
        )
        sort_columns = ["user", "time", "modality", "text"]
        events = events.sort_values(sort_columns, kind="stable").reset_index(drop=True)
        return cls(
            name=name,
            events=events,
            cutoff=cutoff,
            modalities=order,
            tabular=tabular.reindex(index),
            labels=labels.reindex(index),
            horizon_days=horizon_days,
            unit=unit,
            ids=ids,
            words=dict(words or {}),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        sizes = f"{count(len(self), self.unit)}, {len(self.events):,} events"
        return f"Users({self.name}: {sizes}, cut-off {self.cutoff:%Y-%m-%d})"

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the number columns of the events, in order."""
        return tuple(column for column in self.events.columns if column not in REQUIRED)

    @property
    def history_days(self) -> int:
        """Number of full days from the first event to the cut-off."""
        return max(0, (self.cutoff - self.events["time"].min()).days)

    def history(self, cutoff: TimeLike | None = None) -> pd.DataFrame:
        """Return the events strictly before a cut-off.

        Args:
            cutoff: Time (default: the users' own cut-off).
        """
        end = pd.Timestamp(self.cutoff if cutoff is None else cutoff)
        return self.events[self.events["time"] < end]

    def future(self) -> pd.DataFrame:
        """Return the events in the `horizon_days` from the cut-off on."""
        end = self.cutoff + pd.Timedelta(days=self.horizon_days)
        return self.events[self.events["time"].between(self.cutoff, end, inclusive="left")]

    def label(self, name: str) -> pd.Series:
        """Return one label of every user, in the order of `ids`.

        Args:
            name: Name of the label.

        Returns:
            Index `user`; 0, 1 or NaN (unknown).

        Raises:
            KeyError: There is no label of this name.
        """
        if name not in self.labels:
            names = ", ".join(self.labels) or "none"
            raise KeyError(f"There is no label {name!r} in {self.name}. Its labels are: {names}.")
        return self.labels[name]

    def select(self, ids: Iterable[str]) -> Users:
        """Return only these users, everything else unchanged.

        Args:
            ids: Ids of the users to keep; order and repeats do not matter.

        Raises:
            KeyError: An id is unknown.
        """
        selected = sorted({str(user) for user in ids})
        missing = sorted(set(selected) - set(self.ids))
        if missing:
            raise KeyError(
                f"User {missing[0]!r} is not among the {len(self):,} of {self.name}."
                " Choose ids from `users.ids`."
            )
        events = self.events[self.events["user"].isin(selected)]
        user = events["user"].cat.set_categories(selected)
        return replace(
            self,
            events=events.assign(user=user).reset_index(drop=True),
            tabular=self.tabular.loc[selected],
            labels=self.labels.loc[selected],
            ids=tuple(selected),
        )

    def sample(self, n: int, seed: int = 0) -> Users:
        """Return `n` users drawn at random.

        Args:
            n: Number of users. If there are not more than this, all are returned.
            seed: Seed of the draw (default 0).
        """
        if n >= len(self):
            return self
        rng = np.random.default_rng(seed)
        return self.select(rng.choice(self.ids, n, replace=False))

    def modality_counts(self) -> pd.DataFrame:
        """Return how many events of each modality each user has in the history.

        Returns:
            Index `user` in the order of `ids`; one column for each modality, those of the future
            last.
        """
        past = self.history()
        return pd.crosstab(past["user"], past["modality"], dropna=False).rename(columns=str)

    def frame(self) -> pd.DataFrame:
        """Return one row per user that describes the history, for tables and views.

        Returns:
            `user, events, first, last`, the number of events of each modality, and `recent`: a
            tuple of the texts of the last 5 events, newest first.
        """
        past = self.history()
        by_user = past.groupby("user", observed=False)
        times = by_user["time"].agg(events="size", first="min", last="max")
        newest = by_user.tail(RECENT_EVENTS).iloc[::-1].astype({"text": str})
        recent = newest.groupby("user", observed=False)["text"].agg(tuple)
        counts = self.modality_counts()[list(self.modalities)]
        frame = times.join(counts).assign(recent=recent)
        return frame.reset_index().astype({"user": str})

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `load_users` reads; each file is written atomically.

        Args:
            folder: Folder to write; created if needed. Tables of an earlier save are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        frames = {
            "events": self.events.astype({"user": str, "modality": str, "text": str}),
            "users": self.tabular.reset_index(),
            "labels": self.labels.reset_index(),
        }
        has_all_ids = self.events["user"].nunique() == len(self)
        options = {"index": False, "compression": "zstd", "compression_level": 19}
        for stem, frame in frames.items():
            path = folder / f"{stem}.parquet"
            tells_ids = stem == "users" and not has_all_ids
            if frame.shape[1] > 1 or tells_ids:
                atomic_write(path, partial(frame.to_parquet, **options))
            else:  # no facts or labels
                path.unlink(missing_ok=True)  # left from an earlier save
        about = {
            "name": self.name,
            "unit": self.unit,
            "cutoff": str(self.cutoff),
            "horizon_days": self.horizon_days,
            "modalities": list(self.events["modality"].cat.categories),
            "columns": {name: name for name in REQUIRED} | {"numbers": list(self.numbers)},
        }
        if self.words:
            about["words"] = dict(self.words)
        write_json(folder / "about.json", about)
        return folder


def training_problem(users: Users) -> str:
    """Return why `fit` cannot train on users and what to do about it; empty if it can.

    Args:
        users: The users.

    Example:
        >>> rows = [["a", "2025-01-01", "bill", "tea"], ["b", "2025-02-08", "bill", "tea"]]
        >>> users = Users.from_events(pd.DataFrame(rows, columns=REQUIRED))
        >>> for sentence in training_problem(users).split(". "):
        ...     print(sentence)
        38 days of history before the cut-off; 45 are needed
        Write {"horizon_days": 25} into about.json or pass horizon_days=25 to read_events
        2 users; 30 are needed
        Collect more.
    """
    horizon = users.horizon_days
    days = users.history_days
    days_needed = ceil(TRAINING_HORIZONS * horizon)
    problems = []
    if days < days_needed:
        horizon = int(days / TRAINING_HORIZONS)
        found = f"{count(days, 'day')} of history before the cut-off; {days_needed} are needed."
        advice = "Collect more days."
        if horizon:
            field = f'{{"horizon_days": {horizon}}}'
            advice = f"Write {field} into about.json or pass horizon_days={horizon} to read_events."
        problems.append(f"{found} {advice}")
    cutoff = users.cutoff - pd.Timedelta(days=horizon)
    n_known = users.history(cutoff)["user"].nunique()
    needed = f"{MIN_TRAINING_USERS} are needed."
    if len(users) < MIN_TRAINING_USERS:
        problems.append(f"{count(len(users), users.unit)}; {needed} Collect more.")
    elif n_known < MIN_TRAINING_USERS:
        found = f"{count(n_known, users.unit)} with an event before {cutoff:%Y-%m-%d}"
        problems.append(f"{found}; {needed} Pass a later cutoff or a shorter horizon_days.")
    return " ".join(problems)
