"""Read users from any table or folder, and report how it was read and what was left out."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.cells import (
    attribute_columns,
    check_known_ids,
    has_decimal_comma,
    read_ids,
    read_label,
    read_numbers,
    read_words,
)
from qanchor.data.columns import (
    Roles,
    find_attributes,
    find_columns,
    find_fact_columns,
    kind_of,
    may_be_attribute,
    plain_name,
)
from qanchor.data.dates import read_times
from qanchor.data.metadata import ABOUT_FIELDS, read_about
from qanchor.data.sources import Table, find_tables, open_table
from qanchor.data.users import Users, training_problem
from qanchor.data.validation import (
    LIKE_A_LABEL,
    MAX_TIME,
    NO_EVENTS,
    NOT_A_TIME,
    REQUIRED,
    TOO_LONG,
    Findings,
    Report,
    check_modalities,
    check_years,
    cut_texts,
    parse_cutoff,
)
from qanchor.errors import DataError
from qanchor.utils.io import atomic_directory
from qanchor.utils.text import count
from qanchor.utils.types import TimeLike

TOTALS = ("total", "totals", "grand total", "sum", "summe", "gesamt", "subtotal", "totale")
NO_ID_DROPPED = "a user needs an id. The row is left out."
DAY = pd.Timedelta(days=1)
REPEATED = (
    'the same as an earlier row. It is kept; to leave it out, write {"duplicates": "drop"} into'
    ' about.json or pass duplicates="drop" to read_events.'
)
MIN_ATTRIBUTE_USERS = 10  # with fewer users, a number may be constant for each by chance

DEFAULTS = {
    "name": "events",
    "columns": {},
    "modalities": (),
    "duplicates": "keep",
    "positive": None,
    "timezone": None,
}
USERS_OPTIONS = (
    "name",
    "cutoff",
    "modalities",
    "horizon_days",
    "unit",
    "words",
)  # of `Users.from_events`
NO_FACTS = pd.DataFrame(index=pd.Index([], name="user", dtype=str))
NO_FACTS.attrs = {"source": "users", "columns": []}


def read_events(
    source: object,
    *,
    user: str | None = None,
    time: str | list[str] | None = None,
    text: str | list[str] | None = None,
    modality: str | None = None,
    numbers: list[str] | None = None,
    attributes: list[str] | None = None,
    cutoff: TimeLike | None = None,
    horizon_days: int | None = None,
    unit: str | None = None,
    words: Mapping[str, str] | None = None,
    positive: str | None = None,
    duplicates: str | None = None,
    timezone: str | None = None,
) -> Users:
    """Read users from a raw table of events; columns that you do not name are inferred.

    `users.report` says how each column was read, and what was left out and why. Every row and every
    sum of the table is either kept or reported.

    Args:
        source: pandas or polars frame, pyarrow table, path of a file (csv, tsv, txt, parquet,
            jsonl, xlsx; also gzip), or a folder with `events` and, if there are any, `users`
            (one row of attributes per user), `labels` and `about.json`.
        user: Column of the user ids. Ids are words: 007 and 7 are two users.
        time: Column of the time, or two columns: the day and the time of day.
        text: Column that says what happened, or several whose words are joined; or, if no column
            has this name, what every event is called (default without a column: "event", or
            "purchase" where there are amounts).
        modality: Column of the kind of source; or, if no column has this name, the modality of
            every event (default without a column: "event").
        numbers: Number columns to keep (default: all except ids).
        attributes: Columns that describe the user (default: those that never change in a user's
            history). Words become one column of 0 and 1 for each kind.
        cutoff: Time that divides history from future (default: just after the last event).
        horizon_days: Days after the cut-off that questions are about (default 30).
        unit: Word for one user in questions, such as "customer" (default "user").
        words: What people call a column, modality, text or attribute, by its name, such as
            `{"priv": "private label brand"}`. Questions are matched against these words (default:
            against the names).
        positive: Word that means 1, if the labels are words (default: none).
        duplicates: "keep" equal events (default), or "drop" all but the first.
        timezone: Time zone of times without one, such as "Europe/Berlin" (default: UTC).

    Returns:
        The users.

    Raises:
        DataError: A value or a column is invalid or ambiguous. The message says which one and what
            to do.
        FileNotFoundError: There is no such file.
        ValueError: `duplicates` is neither "keep" nor "drop".

    Example:
        >>> orders = pd.DataFrame({"Customer ID": ["007", "7"], "date": ["20250131", "20250201"]})
        >>> users = read_events(orders.assign(price=[2.5, 4]), unit="customer")
        >>> users
        Users(events: 2 customers, 2 events, cut-off 2025-02-01)
        >>> users.events["text"].iloc[0], users.numbers
        ('purchase', ('price',))
    """
    columns = {
        "user": user,
        "time": time,
        "text": text,
        "modality": modality,
        "numbers": numbers,
        "attributes": attributes,
    }
    settings = {
        "columns": _given(columns),
        "cutoff": cutoff,
        "horizon_days": horizon_days,
        "unit": unit,
        "words": words,
        "positive": positive,
        "duplicates": duplicates,
        "timezone": timezone,
    }
    users, findings = _Reader(source, _given(settings)).read()
    findings.raise_errors()
    if users.report.dropped:
        warnings.warn(
            f"{count(users.report.dropped, 'row')} of {users.report.rows:,} were left out."
            " Print users.report to see why.",
            stacklevel=2,
        )
    return users


def _given(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if value is not None}


def load_users(path: str | Path) -> Users:
    """Read a folder of users: one written by `Users.save`, or any that `read_events` reads.

    Args:
        path: The folder, with `events` and, if there are any, `users`, `labels` and `about.json`.

    Returns:
        The users.

    Raises:
        DataError: A value or a column is invalid or ambiguous. The message says which one and what
            to do.
        FileNotFoundError: There is no folder, or it has no events.

    Example:
        >>> import tempfile
        >>> events = pd.DataFrame([["a", "2025-01-01", "bill", "noodles"]], columns=REQUIRED)
        >>> load_users(Users.from_events(events).save(tempfile.mkdtemp()))
        Users(users: 1 user, 1 events, cut-off 2025-01-01)
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path} is not a folder. Give the folder that holds events.")
    return read_events(path)


@dataclass
class _Reader:
    """Read one source: first each of its tables, then check the tables against each other."""

    source: object
    settings: dict
    findings: Findings = field(default_factory=Findings)

    def read(self) -> tuple[Users | None, Findings]:
        """Return the users (None if there are errors) and all findings."""
        paths = {"events": self.source}
        about = dict(DEFAULTS)
        if isinstance(self.source, str | Path) and Path(self.source).is_dir():
            folder = Path(self.source)
            if folder.suffix != ".parquet" and not any(folder.glob("part-*")):
                paths = find_tables(folder)
            about["name"] = folder.name
            about |= self._attempt({}, self._read_about, folder)
        columns = about["columns"] | self.settings["columns"]
        about |= self.settings
        about["columns"] = columns
        about["modalities"] = tuple(about["modalities"])
        duplicates = about["duplicates"]
        if duplicates not in ("keep", "drop"):
            raise ValueError(f"duplicates={duplicates!r} is neither 'keep' nor 'drop'.")
        events = self._attempt(None, self._read_events, paths["events"], about)
        facts = NO_FACTS
        labels = NO_FACTS
        users = None
        if "users" in paths:
            facts = self._attempt(NO_FACTS, self._read_facts, paths["users"])
        if "labels" in paths:
            labels = self._attempt(NO_FACTS, self._read_labels, paths["labels"], about["positive"])
        if events is not None:
            known = events.rows["user"].cat.categories
            check_known_ids(self.findings, facts, known)
            check_known_ids(self.findings, labels, known, needed=True)
            self._check_inputs(events.table.name, events.inputs(), labels)
        self._check_inputs(facts.attrs["source"], facts.attrs["columns"], labels)
        if not self.findings.of("error"):
            users = self._attempt(None, self._assemble, about, events, facts, labels)
        return users, self.findings

    def _attempt(self, default, step, *arguments):
        """Run a step; a `DataError` becomes a finding, so that the next steps run as well."""
        try:
            return step(*arguments)
        except DataError as error:
            findings = self.findings.of_table(error.file)
            findings.add(error.column, error.value, error.hint, row=error.row)
            return default

    def _read_about(self, folder: Path) -> dict:
        about = read_about(folder / "about.json")
        findings = self.findings.of_table("about.json")
        message = f"not read. The fields are {', '.join(ABOUT_FIELDS)}."
        for key in sorted(about.keys() - set(ABOUT_FIELDS)):
            findings.add(key, about[key], message, "note")
        return about

    def _read_events(self, source, about: dict) -> _Events:
        table = open_table(source, self.findings)
        if table.frame.empty:
            raise DataError(table.name, None, "user", "no rows", NO_EVENTS)
        roles = find_columns(table, about["columns"])
        modalities = about["modalities"]
        if roles.modality is None and len(modalities) == 1:
            roles.default_modality = modalities[0]
        events = _Events(table, roles, about["columns"])
        events.read_columns(about["timezone"])
        events.drop_rows(about["duplicates"])
        if modalities:
            check_modalities(table.findings, events.rows["modality"], modalities)
        return events

    def _read_facts(self, source) -> pd.DataFrame:
        table = open_table(source, self.findings)
        findings = table.findings
        frame = table.frame
        roles = find_fact_columns(table)
        result = read_ids(findings, frame[roles.user]).to_frame("user")
        for name in frame.columns.drop([roles.user, *roles.left_out]):
            if name in roles.numbers:
                values = read_numbers(findings, frame[name], "fact", table.semicolons)
            else:
                values = read_words(findings, frame[name], "modality")
            others = frame.columns.drop(name).union(result.columns)
            result = result.join(attribute_columns(findings, values, others))
        return _one_row_per_user(table, roles, result)

    def _read_labels(self, source, positive: str | None) -> pd.DataFrame:
        return read_label_table(open_table(source, self.findings), positive)

    def _check_inputs(self, file: str, columns: list[str], labels: pd.DataFrame) -> None:
        """Check that no input is a label.

        Columns have their names in the file: one of words may become attributes of other names.
        """
        findings = self.findings.of_table(file)
        for name in sorted(set(labels).intersection(columns)):
            findings.add(name, name, LIKE_A_LABEL)

    def _assemble(self, about: dict, events: _Events, facts, labels) -> Users | None:
        findings = events.findings
        times = events.rows["time"]
        if times.empty:
            message = "no event is left. Provide at least one valid event."
            raise DataError(findings.file, None, "user", "no rows", message)
        end = times.max() + DAY
        if "cutoff" in about:
            end = parse_cutoff(about["cutoff"], "cutoff")
        attributes = events.take_attributes(end, facts.columns)
        tabular = facts.join(attributes, how="outer")
        tabular.attrs = facts.attrs
        if self.findings.of("error"):
            return None
        options = {name: about[name] for name in USERS_OPTIONS if name in about}
        users = Users.from_events(
            events.finish(),
            tabular=tabular,
            labels=labels,
            source=findings.file,
            **options,
        )
        self._check_words(users)
        first = users.events.groupby("user", observed=True)["time"].min()
        new = first.index[first >= users.cutoff]
        if len(new):
            message = (
                f"{count(len(new), users.unit)} without an event before the cut-off"
                f" ({users.cutoff}). Nothing is known about them."
            )
            findings.add("user", str(new[0]), message, "note")
        return replace(users, report=events.report())

    def _check_words(self, users: Users) -> None:
        """Report `words` whose name does not occur in the data."""
        names = [*users.numbers, *users.tabular]
        for column in ("modality", "text"):
            names += list(users.events[column].cat.categories)
        findings = self.findings.of_table("words")
        message = "no column, modality, text or attribute has this name. Its words are not used."
        for name in sorted(set(users.words).difference(names)):
            findings.add("words", name, message, "note")


def read_label_table(
    table: Table, positive: str | None = None, column: str | None = None
) -> pd.DataFrame:
    """Read a table of labels.

    Args:
        table: The table; its findings collect what is found.
        positive: Word that means 1, if the labels are words (default: none).
        column: Name of a single column to read (default: all).

    Returns:
        Index `user`; 0, 1 or NaN.

    Raises:
        DataError: The user column is not clear.
    """
    frame = table.frame
    roles = find_fact_columns(table)
    # a label may be constant or named like an id
    roles.left_out = {name: why for name, why in roles.left_out.items() if why == "row numbers"}
    result = read_ids(table.findings, frame[roles.user]).to_frame("user")
    for name in frame.columns.drop([roles.user, *roles.left_out]):
        if column in (None, name):
            result[name] = read_label(table.findings, frame[name], positive)
    return _one_row_per_user(table, roles, result)


def _one_row_per_user(table: Table, roles: Roles, frame: pd.DataFrame) -> pd.DataFrame:
    """Index facts or labels by user; drop rows without a user and repeated rows."""
    findings = table.findings
    for name, reason in roles.left_out.items():
        findings.add(name, None, f"left out: {reason}", "note")
    user = frame["user"]
    no_user = user.isna()
    findings.rows(user, no_user, NO_ID_DROPPED, "dropped")
    again = frame.duplicated() & ~no_user
    findings.rows(user, again, "the same row twice. One is kept.", "dropped")
    frame = frame[~no_user & ~again]
    user = frame["user"]
    again = user.duplicated()
    findings.rows(user, again, "two rows of one user that contradict. Keep one row per user.")
    result = frame[~again].astype({"user": str}).set_index("user")
    result.attrs = {"source": table.name, "columns": list(table.frame)}
    return result


class _Events:
    """Turn one table into events: parse its columns, then drop and count invalid rows."""

    def __init__(self, table: Table, roles: Roles, named_columns: dict):
        self.table = table
        self.findings = table.findings
        self.roles = roles
        self.named_columns = named_columns
        self.rows = pd.DataFrame(index=table.frame.index)
        self.given_sums = pd.Series(dtype=float)
        self.unclear_time = ""
        self.joined: list[str] = []
        self.attributes: dict[str, str] = {}

    def inputs(self) -> list[str]:
        """Return the columns that are not left out, so a model may see them."""
        return [name for name in self.table.frame if name not in self.roles.left_out]

    def _cells(self, name: str) -> pd.Series:
        """Return the cells of a column, in the rows that have been kept so far."""
        return self.table.frame[name].loc[self.rows.index]

    def read_columns(self, timezone: str | None) -> None:
        """Parse user, time, modality and numbers of all rows.

        Args:
            timezone: Time zone of times without one; None for UTC.
        """
        roles = self.roles
        frame = self.table.frame
        findings = self.findings
        rows = self.rows
        rows["user"] = read_ids(findings, frame[roles.user])
        rows["time"] = self._read_time(timezone)
        if roles.modality is None:
            rows["modality"] = pd.Series(roles.default_modality, frame.index, dtype="category")
        else:
            rows["modality"] = read_words(findings, frame[roles.modality], "modality")
        numbers = frame[roles.numbers]
        comma = self.table.semicolons and any(has_decimal_comma(numbers[name]) for name in numbers)
        for name in numbers:
            rows[name] = read_numbers(findings, numbers[name], comma=comma)
        self.given_sums = rows[roles.numbers].sum()

    def _read_time(self, timezone: str | None) -> pd.Series:
        frame = self.table.frame
        day, *clock = self.roles.time
        if clock:
            days = frame[day].astype(str).str.strip().str[:10]
            clocks = frame[clock[0]].astype(str).str.strip()
            joined = days + " " + clocks
            frame[day] = joined.where(frame[day].notna())
        read = read_times(frame[day], timezone)
        self.unclear_time = read.unclear
        known = read.time.notna()
        if read.how and known.any():
            example = read.time[known].iloc[0]
            message = f"read as time: {read.how}. This one is {example}."
            self.findings.rows(frame[day], known, message, "changed" if read.guess else "note")
        return read.time

    def drop_rows(self, duplicates: str) -> None:
        """Drop rows that are not events, each with a reason, and report times that are invalid.

        Args:
            duplicates: "keep" (and report) or "drop" rows that equal an earlier one.
        """
        rows = self.rows
        frame = self.table.frame
        user = self.roles.user
        day = self.roles.time[0]
        modality = self.roles.modality
        no_time = frame[day].isna() | (frame[day].astype(str).str.strip() == "")
        total = rows["user"].astype(str).str.casefold().isin(TOTALS) & no_time
        self._drop(frame.isna().all(axis=1), user, "an empty row. It is left out.")
        self._drop(total, user, "a row of totals, not an event. It is left out.")
        self._drop(rows["user"].isna(), user, NO_ID_DROPPED)
        self._drop(no_time, day, "no time. The row is left out.")
        if modality is not None:
            self._drop(rows["modality"].isna(), modality, "no modality. The row is left out.")
        self._check_times(day)
        self._drop_late(day)
        again = frame.loc[self.rows.index, self.inputs()].duplicated()
        if duplicates == "drop":
            self._drop(again, user, "the same as an earlier row. It is left out.")
        else:
            self.findings.rows(self._cells(user), again, REPEATED, "note")

    def _drop(self, bad: pd.Series, column: str, message: str) -> None:
        """Drop the rows marked in `bad`, and report them."""
        bad = bad.loc[self.rows.index]
        self.findings.rows(self._cells(column), bad, message, "dropped")
        self.rows = self.rows[~bad]

    def _check_times(self, day: str) -> None:
        cells = self._cells(day)
        time = self.rows["time"]
        message = NOT_A_TIME
        if self.unclear_time:
            message = f"{self.unclear_time}. Write it as 2025-01-31 18:00:00."
        self.findings.rows(cells, time.isna(), message)
        early = time.where(time < MAX_TIME)  # a later one is left out below
        check_years(self.findings, early, cells)

    def _drop_late(self, day: str) -> None:
        """Drop events in the future: typing errors, or the year 9999 for "never"."""
        time = self.rows["time"]
        today = pd.Timestamp.now("UTC").tz_localize(None)
        late = time > today + DAY  # tolerate one day, since times may be local
        if late.mean() > 0.5:  # the clock of this machine is wrong, or the events are planned ones
            late = time >= MAX_TIME
        self._drop(late, day, "beyond today. The row is left out.")

    def take_attributes(self, cutoff: pd.Timestamp, taken: pd.Index) -> pd.DataFrame:
        """Return the columns that describe users, from events before the cut-off only.

        Args:
            cutoff: The cut-off.
            taken: Names of attributes that exist already.

        Returns:
            Index `user`; one column per attribute, or per word of it.
        """
        roles = self.roles
        past = self.rows["time"] < cutoff
        users = sorted(self.rows["user"].unique())
        result = pd.DataFrame(index=pd.Index(users, name="user", dtype=str))
        for name in self._attribute_names(past):
            cells = self._cells(name)
            is_number = name in roles.numbers or kind_of(cells) == "numbers"
            if is_number:
                values = read_numbers(Findings(), cells, "fact", self.table.semicolons)
            else:
                values = read_words(Findings(), cells, "modality")
            values = self._first_values(cells, values, past).reindex(result.index)
            n_kinds = values.nunique()
            if not is_number and n_kinds > max(20, len(users) // 2):
                reason = f"{count(n_kinds, 'word')} for {count(len(users), 'user')}, like names"
                roles.left_out[name] = reason
                continue
            columns = attribute_columns(self.findings, values, taken)
            self.attributes[name] = name
            if is_number:
                self.rows = self.rows.drop(columns=name, errors="ignore")
            else:
                self.attributes[name] += f" ({count(columns.shape[1], 'kind')})"
            result[list(columns)] = columns
        return result

    def _attribute_names(self, past: pd.Series) -> list[str]:
        """Return the columns that are named as attributes, or else are found to describe users."""
        roles = self.roles
        if roles.attributes is not None:
            return roles.attributes
        user = self.rows["user"][past]
        candidates = list(roles.words)
        if user.nunique() >= MIN_ATTRIBUTE_USERS and "numbers" not in self.named_columns:
            candidates += [name for name in roles.numbers if may_be_attribute(name)]
        return find_attributes(self.table.frame.loc[user.index, candidates], user)

    def _first_values(self, cells: pd.Series, values: pd.Series, past: pd.Series) -> pd.Series:
        """Return the first value of each user in the history, and note rows with other values."""
        ids = self.rows["user"]
        first = values[past].groupby(ids[past], observed=True).first()
        values = values.astype(object)
        expected = ids.map(first.astype(object)).astype(object)
        other = values.notna() & expected.notna() & (values != expected)
        message = "an attribute with another value in this row. The user's first value is used."
        self.findings.rows(cells, other, message, "note")
        return first

    def finish(self) -> pd.DataFrame:
        """Return the events with the columns that `Users.from_events` reads."""
        roles = self.roles
        words = self._event_words()
        self.joined = [*roles.text, *words]
        self.rows["text"] = self._join_words(self.joined)
        if roles.text and words:
            text = roles.text[0]
            n_kinds = self.rows["text"].nunique()
            n_alone = self._cells(text).nunique()
            message = (
                f"joined with {', '.join(words)}: {n_kinds:,} kinds instead of {n_alone:,}. To read"
                f' it alone, write {{"columns": {{"text": "{text}"}}}} into about.json or pass'
                f' text="{text}" to read_events.'
            )
            if n_kinds > n_alone:
                self.findings.add(text, None, message, "note")
        return self.rows[[*REQUIRED, *self._numbers()]].reset_index(drop=True)

    def _event_words(self) -> list[str]:
        """Return the columns whose words are joined to the text; leave out the others."""
        roles = self.roles
        owner = plain_name(roles.user).removesuffix("_id")
        words = []
        for name in roles.words:
            if name in self.attributes or name in roles.left_out:
                continue
            if "text" in self.named_columns:
                roles.left_out[name] = "not named in text"
            elif roles.text and plain_name(name).startswith(f"{owner}_"):
                reason = f"describes the {owner}, not the event; name it in text= to keep it"
                roles.left_out[name] = reason
            else:
                words.append(name)
        return words

    def _numbers(self) -> list[str]:
        """Return the number columns that did not become attributes."""
        return [name for name in self.roles.numbers if name in self.rows]

    def _join_words(self, columns: list[str]) -> pd.Series:
        index = self.rows.index
        default = self.roles.default_text
        if not columns:
            return pd.Series(default, index, dtype="category")
        texts = pd.Series("", index, dtype=str)
        for name in columns:
            words = self._read_part(name).astype(str)
            comma = np.where((texts != "") & words.notna(), ", ", "")
            texts = texts + comma + words.fillna("")
        empty = texts == ""
        texts, too_long = cut_texts(texts.mask(empty, default))
        self.findings.rows(texts, too_long, TOO_LONG, "changed")
        message = f"no words. The event is called {default!r}."
        self.findings.rows(self._cells(columns[0]), empty, message, "changed")
        return texts.astype("category")

    def _read_part(self, name: str) -> pd.Series:
        cells = self._cells(name)
        words = read_words(self.findings, cells)
        if name in self.roles.text or kind_of(cells) != "numbers":
            return words
        return words.cat.rename_categories(lambda number: f"{name} {number}")  # bare: no meaning

    def report(self) -> Report:
        """Return the report: the role of each column, with counts of rows and sums of numbers."""
        roles = self.roles
        numbers = self._numbers()
        sums = pd.DataFrame({"source": self.given_sums[numbers], "kept": self.rows[numbers].sum()})
        sums["dropped"] = sums["source"] - sums["kept"]
        columns = {
            "user": [roles.user],
            "time": roles.time,
            "text": self.joined or [f"(none: every event is {roles.default_text!r})"],
            "modality": [roles.modality or f"(none: every event is {roles.default_modality!r})"],
            "numbers": numbers,
            "attributes": list(self.attributes.values()),
            "left out": [f"{name or 'first'} ({why})" for name, why in roles.left_out.items()],
        }
        return Report(
            source=self.table.name,
            columns=columns,
            rows=len(self.table.frame),
            kept=len(self.rows),
            sums=sums,
            findings=list(self.findings.found),
        )


def check_folder(path, out=None) -> tuple[dict, str]:
    """Check a table or folder; return its content and its problems, as plain data and as text.

    Args:
        path: Anything that `read_events` reads.
        out: Folder to which the cleaned users are written, atomically (default: none).

    Returns:
        Data and text, which say the same. The data has `in_order` (no errors) and `problems`; if
        the users could be read, also their counts, modalities, labels and the report.

    Raises:
        ValueError: `out` is `path` or lies in it.
        FileExistsError: `out` is not empty.
        FileNotFoundError: There are no events.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "events.csv").write_text("user,time,modality,text\\na,soon,bill,tea\\n")
        >>> check_folder(folder)[0]["in_order"]
        False
    """
    users, findings = _Reader(path, {"columns": {}}).read()
    errors = findings.of("error")
    data = {"in_order": not errors, "problems": [asdict(finding) for finding in findings.found]}
    if users is None:
        lines = [f"{finding.kind}: {finding}" for finding in errors + findings.of("dropped")]
        lines += [
            "Rows are counted from 0, without the header. Row 0 is line 2 of a csv file.",
            f"{path} has {count(len(errors), 'error')}. Correct the table and check it again.",
        ]
        return data, "\n".join(lines)
    lines = [str(users.report)]
    if out is not None:
        _save_new(users, Path(path), Path(out))
        data["fixed"] = str(out)
        lines.append(f"The users are written to {out}.")
        path = out
    inside = _contents(users)
    problem = training_problem(users)
    inside["training"] = problem or "there are enough users and days of history."
    lines += [f"{name}: {_as_words(value)}" for name, value in inside.items() if value]
    folder = shlex.quote(str(path))
    if not Path(path).is_dir():
        lines.append(f"next: qanchor check {folder} --fix FOLDER")
    elif not problem:
        lines.append(f"next: qanchor fit --users {folder} --out RUN")
    return data | inside | {"report": users.report.to_dict()}, "\n".join(lines)


def _save_new(users: Users, path: Path, out: Path) -> None:
    if out.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{out} is {path} or lies in it. Choose another folder for --fix.")
    if out.exists():
        try:
            out.rmdir()
        except OSError as error:
            message = f"{out} is not an empty folder. Choose a new or an empty one."
            raise FileExistsError(message) from error
    with atomic_directory(out) as aside:
        users.save(aside)


def _contents(users: Users) -> dict:
    past = users.history()
    return {
        "users": len(users),
        "events": len(users.events),
        "history": len(past),
        "days": users.history_days,
        "cutoff": str(users.cutoff),
        "horizon_days": users.horizon_days,
        "modalities": past.groupby("modality", observed=False).size().to_dict(),
        "numbers": list(users.numbers),
        "labels": {name: int(known) for name, known in users.labels.notna().sum().items()},
        "texts": int(users.events["text"].nunique()),
    }


def _as_words(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {n:,}" for name, n in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
