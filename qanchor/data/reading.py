"""Read users from any table or folder, and report what was taken for what and left out."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.cells import (
    check_equal_ids,
    check_known_ids,
    has_decimal_comma,
    one_column_per_kind,
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
)
from qanchor.data.dates import Times, read_times
from qanchor.data.metadata import ABOUT_FIELDS, read_about
from qanchor.data.sources import Table, find_tables, open_table
from qanchor.data.users import Users
from qanchor.data.validation import (
    EMPTY,
    LIKE_A_LABEL,
    MAX_TIME,
    REQUIRED,
    Findings,
    Report,
    apply_rules,
    check_modalities,
    parse_cutoff,
)
from qanchor.errors import DataError
from qanchor.utils.io import atomic_directory
from qanchor.utils.text import count

TOTALS = ("total", "totals", "grand total", "sum", "summe", "gesamt", "subtotal", "totale")
DAY = pd.Timedelta(days=1)
MIN_ATTRIBUTE_USERS = 10  # fewer users have a number in common by chance


def read_events(
    source,
    *,
    user: str | None = None,
    time: str | list[str] | None = None,
    text: str | list[str] | None = None,
    modality: str | None = None,
    numbers: list[str] | None = None,
    attributes: list[str] | None = None,
    cutoff=None,
    horizon_days: int | None = None,
    unit: str | None = None,
    duplicates: str | None = None,
    timezone: str | None = None,
) -> Users:
    """Read users from a table of events as it is; columns that are not named are inferred.

    `users.report` says which column was taken for what, and what was left out and why: all rows
    and all sums of the table are kept or reported.

    Args:
        source: pandas or polars frame, pyarrow table, path of a file (csv, tsv, txt, parquet,
            jsonl, xlsx; also gzip), or a folder with `events` and, if there are any, `users`
            (one row of attributes per user), `labels` and `about.json`.
        user: Column of the user ids. Ids are words: 007 and 7 are two users.
        time: Column of the time, or of the day and of the time of day.
        text: Column that says what happened, or several whose words are joined; or, if no column
            has this name, what every event is called (default without a column: "event", or
            "purchase" where there are amounts).
        modality: Column of the kind of source; or, if no column has this name, the one modality
            (default without a column: "event").
        numbers: Number columns to keep (default: all that are no ids).
        attributes: Columns that describe the user (default: those that never change in a user's
            history). Words become one column of 0 and 1 for each kind.
        cutoff: Time that divides history from future (default: just after the last event).
        horizon_days: Days after the cut-off that questions are about (default 30).
        unit: Word for one user in questions, such as "customer" (default "user").
        duplicates: "keep" equal events (default), or "drop" all but the first.
        timezone: Zone of times that name none, such as "Europe/Berlin" (default: UTC).

    Returns:
        The users.

    Raises:
        DataError: A value or a column is not clear; names place and value and says what to do.
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
    columns = {"user": user, "time": time, "text": text, "modality": modality}
    columns |= {"numbers": numbers, "attributes": attributes}
    about = {"cutoff": cutoff, "horizon_days": horizon_days, "unit": unit}
    about |= {"duplicates": duplicates, "timezone": timezone}
    about = {name: value for name, value in about.items() if value is not None}
    columns = {role: told for role, told in columns.items() if told is not None}
    users, findings = _Reader(source, about | {"columns": columns}).read()
    findings.raise_errors()
    if users.report.dropped:
        warnings.warn(
            f"{count(users.report.dropped, 'row')} of {users.report.rows:,} were left out."
            " Print users.report to see why.",
            stacklevel=2,
        )
    return users


def load_users(path) -> Users:
    """Read a folder of users, as `Users.save` writes it or as `read_events` understands it.

    Args:
        path: The folder, with `events` and, if there are any, `users`, `labels` and `about.json`.

    Returns:
        The users.

    Raises:
        DataError: A value or a column is not clear; names place and value and says what to do.
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
    """Read one source: its tables, one after another, then what lies across them."""

    source: object
    told: dict
    today: pd.Timestamp | None = None
    findings: Findings = field(default_factory=Findings)
    seen_ids: dict = field(default_factory=dict)

    def read(self) -> tuple[Users | None, Findings]:
        """Return the users, None if there are errors, and all that was found."""
        if self.today is None:
            self.today = pd.Timestamp.now("UTC").tz_localize(None)
        paths = self._paths()
        about = self._about() or {}
        name = about.get("name", "events")
        parts = [
            self._attempt(self._read_events, paths["events"], about),
            self._attempt(self._read_facts, paths.get("users"), "users"),
            self._attempt(self._read_facts, paths.get("labels"), "labels", about.get("positive")),
        ]
        events, facts, labels = parts
        check_equal_ids(self.findings, self.seen_ids)
        if events is not None:
            self._check_ids(facts, events, needed=False)
            self._check_ids(labels, events, needed=True)
            self._check_labels(labels, events.table.name, events.inputs())
        if facts is not None:
            self._check_labels(labels, facts.attrs["source"], facts.attrs["columns"])
        if self.findings.of("error"):
            return None, self.findings
        users = self._attempt(self._assemble, name, about, events, facts, labels)
        return users, self.findings

    def _attempt(self, step, *arguments):
        """Run a step; what it raises becomes a finding, so that the next steps are read too."""
        try:
            return step(*arguments)
        except DataError as error:
            self.findings.add(error.file, error.column, error.value, error.hint, row=error.row)
            return None

    def _paths(self) -> dict:
        path = self.source
        if not isinstance(path, str | Path):
            return {"events": path}
        path = Path(path)
        if not path.is_dir() or path.suffix == ".parquet" or any(path.glob("part-*")):
            return {"events": path}
        return find_tables(path)

    def _about(self) -> dict:
        about = {"columns": {}}
        if isinstance(self.source, str | Path) and Path(self.source).is_dir():
            path = Path(self.source) / "about.json"
            about |= {"name": Path(self.source).name}
            about |= self._attempt(read_about, path) or {}
            for key in sorted(about.keys() - set(ABOUT_FIELDS)):
                message = f"not read: only {', '.join(ABOUT_FIELDS)} are"
                self.findings.add(path.name, key, about[key], message, "note")
        columns = about["columns"] | self.told["columns"]
        about |= self.told | {"columns": columns}
        if about.setdefault("duplicates", "keep") not in ("keep", "drop"):
            raise ValueError(f"duplicates={about['duplicates']!r} is neither 'keep' nor 'drop'.")
        return about

    def _read_events(self, source, about: dict) -> _Events:
        table = open_table(source, self.findings)
        if not len(table.frame):
            message = "the table is empty: give at least one event"
            raise DataError(table.name, None, "user", "no rows", message)
        roles = find_columns(table, about["columns"], self.findings)
        if roles.modality is None and len(about.get("modalities", ())) == 1:
            roles.kind = about["modalities"][0]
        events = _Events(table, roles, self.findings, self.today, about["columns"])
        events.read_columns(self.seen_ids, about.get("timezone"))
        events.drop_rows(about["duplicates"])
        if about.get("modalities"):
            known = tuple(about["modalities"])
            check_modalities(self.findings, table.name, events.rows["modality"], known)
        return events

    def _read_facts(self, source, stem: str, positive: str | None = None) -> pd.DataFrame | None:
        if source is None:
            return None
        table = open_table(source, self.findings, stem)
        roles = find_fact_columns(table, self.findings)
        frame = table.frame
        result = pd.DataFrame(index=frame.index)
        result["user"] = read_ids(self.findings, table.name, frame[roles.user], self.seen_ids)
        if stem == "labels":  # a label may be constant or named like an id
            rows = {name: why for name, why in roles.left_out.items() if why == "row numbers"}
            roles.left_out = rows
        for name in frame.columns.difference([roles.user, *roles.left_out], sort=False):
            if stem == "labels":
                result[name] = read_label(self.findings, table.name, frame[name], positive)
            elif name in roles.words:
                words = read_words(self.findings, table.name, frame[name], "modality")
                taken = set(frame.columns) | set(result)
                result = result.join(one_column_per_kind(self.findings, table.name, words, taken))
            else:
                comma = table.semicolons
                result[name] = read_numbers(self.findings, table.name, frame[name], "fact", comma)
        for name, reason in roles.left_out.items():
            self.findings.add(table.name, name, None, f"left out: {reason}", "note")
        return self._one_row_per_user(table.name, result, list(frame.columns))

    def _one_row_per_user(self, file: str, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        user = frame["user"]
        self.findings.rows(file, user, user.isna(), f"{EMPTY} (left out)", "dropped")
        frame = frame[user.notna()]
        again = frame.duplicated()
        self.findings.rows(file, frame["user"], again, "the same row twice: one is kept", "dropped")
        frame = frame[~again]
        message = "two rows of one user that contradict: keep one row a user"
        self.findings.rows(file, frame["user"], frame["user"].duplicated(), message)
        result = frame[~frame["user"].duplicated()].astype({"user": str}).set_index("user")
        result.attrs["source"] = file
        result.attrs["columns"] = columns
        return result

    def _check_ids(self, frame: pd.DataFrame | None, events: _Events, needed: bool) -> None:
        if frame is not None:
            known = set(events.rows["user"].cat.categories)
            ids = pd.Series(frame.index, name="user")
            check_known_ids(self.findings, frame.attrs["source"], ids, known, needed)

    def _check_labels(self, labels: pd.DataFrame | None, file: str, inputs: list[str]) -> None:
        """Refuse an input that is named like a label, also where its words became other columns."""
        names = [] if labels is None else labels.columns
        for name in sorted(set(names) & set(inputs)):
            self.findings.add(file, name, name, LIKE_A_LABEL)

    def _assemble(self, name: str, about: dict, events: _Events, facts, labels) -> Users | None:
        file = events.table.name
        rows = events.rows
        if not len(rows):
            message = "no event is left: give at least one that can be kept"
            raise DataError(file, None, "user", "no rows", message)
        end = rows["time"].max() + DAY
        if about.get("cutoff") is not None:
            end = parse_cutoff(about["cutoff"], "cutoff")
        attributes = events.take_attributes(end, facts)
        if self.findings.of("error"):
            return None
        if facts is None:
            tabular = attributes
        else:
            tabular = facts.join(attributes, how="outer")
            tabular.attrs["source"] = facts.attrs["source"]
        users = Users.from_events(
            events.finish(),
            about.get("cutoff"),
            name=name,
            tabular=tabular if tabular.shape[1] else None,
            labels=labels,
            modalities=tuple(about.get("modalities", ())) or None,
            horizon_days=about.get("horizon_days", 30),
            unit=about.get("unit", "user"),
            source=file,
        )
        self._note_no_history(users, file)
        return replace(users, report=events.report(self.findings))

    def _note_no_history(self, users: Users, file: str) -> None:
        first = users.events.groupby("user", observed=True)["time"].min()
        new = first.index[first >= users.cutoff]
        if len(new):
            message = (
                f"{count(len(new), users.unit)} without an event before the cut-off"
                f" ({users.cutoff}): nothing is known of them"
            )
            self.findings.add(file, "user", str(new[0]), message, "note")


class _Events:
    """The events of one table on their way: columns are read, then rows are dropped and counted."""

    def __init__(
        self,
        table: Table,
        roles: Roles,
        findings: Findings,
        today: pd.Timestamp,
        told: dict,
    ):
        self.text_is_told = "text" in told
        self.numbers_are_told = "numbers" in told
        self.table = table
        self.roles = roles
        self.findings = findings
        self.today = today
        self.rows = pd.DataFrame(index=table.frame.index)
        self.given_sums = pd.Series(dtype=float)
        self.time_cells = pd.Series(dtype=object)
        self.unclear_time = ""
        self.joined: list[str] = []
        self.attributes: dict[str, str] = {}

    def inputs(self) -> list[str]:
        """Return the columns of which a model may see something."""
        return [name for name in self.table.frame if name not in self.roles.left_out]

    def _cells(self, name: str) -> pd.Series:
        return self.table.frame[name]

    def read_columns(self, seen_ids: dict, timezone: str | None) -> None:
        """Read user, time, modality and numbers of all rows."""
        file = self.table.name
        roles = self.roles
        self.rows["user"] = read_ids(self.findings, file, self._cells(roles.user), seen_ids)
        self.rows["time"] = self._read_time(timezone)
        if roles.modality is None:
            modality = pd.Series(roles.kind, self.rows.index, dtype="category")
        else:
            modality = read_words(self.findings, file, self._cells(roles.modality), "modality")
        self.rows["modality"] = modality
        texts = [self._cells(name) for name in roles.numbers if not _is_typed(self._cells(name))]
        comma = self.table.semicolons and any(_has_comma(cells) for cells in texts)
        for name in roles.numbers:
            self.rows[name] = read_numbers(self.findings, file, self._cells(name), comma=comma)
        self.given_sums = self.rows[roles.numbers].sum()

    def _read_time(self, timezone: str | None) -> pd.Series:
        cells = self._cells(self.roles.time[0])
        if len(self.roles.time) > 1:
            parts = [self._cells(name).astype(str).str.strip() for name in self.roles.time]
            cells = parts[0].str[:10] + " " + parts[1]
            cells = cells.where(self._cells(self.roles.time[0]).notna())
            cells.name = self.roles.time[0]
        file = self.table.name
        read = read_times(cells, timezone)
        if read.how:
            kind = "changed" if read.guess else "note"
            known = read.time.notna()
            self.findings.rows(file, cells, known, _time_message(read), kind)
        self.time_cells = cells
        self.unclear_time = read.unclear
        return read.time

    def drop_rows(self, duplicates: str) -> None:
        """Leave out rows that are no events, each with its reason, and report what cannot be read."""
        rows = self.rows
        user = self._cells(self.roles.user)
        time = self.time_cells
        blank = self.table.frame.isna().all(axis=1)
        self._drop(blank, user, "an empty row: left out")
        no_time = time.isna() | (time.astype(str).str.strip() == "")
        names = rows["user"].astype(str).str.casefold()
        total = names.isin(TOTALS) & no_time
        self._drop(total, user, "a row of totals, not an event: left out")
        self._drop(rows["user"].isna(), user, "a user needs an id: the row is left out")
        self._drop(no_time, time, "no time: the row is left out")
        if self.roles.modality is not None:
            cells = self._cells(self.roles.modality)
            self._drop(rows["modality"].isna(), cells, "no modality: the row is left out")
        self._check_times()
        self._drop_late()
        self._handle_duplicates(duplicates)

    def _drop(self, bad: pd.Series, cells: pd.Series, message: str) -> None:
        bad = bad.reindex(self.rows.index)
        if bad.any():
            self.findings.rows(self.table.name, cells.loc[self.rows.index], bad, message, "dropped")
            self.rows = self.rows[~bad]

    def _check_times(self) -> None:
        cells = self.time_cells.loc[self.rows.index]
        time = self.rows["time"]
        message = "not a time: write it as 2025-01-31 18:00:00"
        if self.unclear_time:
            message = f"{self.unclear_time}: write it as 2025-01-31 18:00:00"
        self.findings.rows(self.table.name, cells, time.isna(), message)
        early = time.where(time < MAX_TIME)  # a later one is left out below
        apply_rules(self.findings, self.table.name, early, "time", cells)

    def _drop_late(self) -> None:
        """Leave out events beyond today: a slip of the pen, or 9999 for "never"."""
        time = self.rows["time"]
        late = time > self.today + DAY  # a day of grace: times may be local ones
        if late.mean() > 0.5:  # the clock of this machine is wrong, or the table is about plans
            late = time >= MAX_TIME
        self._drop(late, self.time_cells, "beyond today: the row is left out")

    def _handle_duplicates(self, duplicates: str) -> None:
        again = self.table.frame.loc[self.rows.index, self.inputs()].duplicated()
        cells = self._cells(self.roles.user)
        if duplicates == "drop":
            self._drop(again, cells, "the same as an earlier row: left out")
        elif again.any():
            message = 'the same as an earlier row: kept; pass duplicates="drop" to leave it out'
            self.findings.rows(self.table.name, cells.loc[self.rows.index], again, message, "note")

    def take_attributes(self, cutoff: pd.Timestamp, facts: pd.DataFrame | None) -> pd.DataFrame:
        """Return the columns that describe users, from events before the cut-off only."""
        roles = self.roles
        user = self.rows["user"]
        past = self.rows["time"] < cutoff
        frame = self.table.frame.loc[self.rows.index]
        found = roles.attributes
        if found is None:
            candidates = list(roles.words)
            if user[past].nunique() >= MIN_ATTRIBUTE_USERS and not self.numbers_are_told:
                candidates += [name for name in roles.numbers if may_be_attribute(name)]
            found = find_attributes(frame, candidates, user, past)
        result = pd.DataFrame(index=pd.Index(sorted(user.cat.categories), name="user"))
        taken = set() if facts is None else set(facts)
        for name in found:
            self._take_attribute(name, past, result, taken)
        return result

    def _take_attribute(self, name, past, result: pd.DataFrame, taken: set[str]) -> None:
        file = self.table.name
        cells = self._cells(name).loc[self.rows.index]
        is_number = name in self.roles.numbers or kind_of(cells) == "numbers"
        if is_number:
            values = read_numbers(Findings(), file, cells, "fact", self.table.semicolons)
        else:
            values = read_words(Findings(), file, cells, "modality")
        first = pd.DataFrame({"user": self.rows["user"], "cell": values})[past].dropna()
        first = first.drop_duplicates("user").set_index("user")["cell"].rename(name)
        first = first.reindex(result.index)
        self._note_later_values(name, values, first)
        if is_number and name in taken:
            message = f"the attribute {name!r} exists already: rename one of the two columns"
            self.findings.add(file, name, name, message)
            return
        if is_number:
            result[name] = first.astype(float)
            self.rows = self.rows.drop(columns=name, errors="ignore")
            self.attributes[name] = name
            return
        words = first.astype("category")
        if words.nunique() > max(20, len(words) // 2):
            reason = f"{count(words.nunique(), 'word')} of {count(len(words), 'user')}, like names"
            self.roles.left_out[name] = reason
            return
        columns = one_column_per_kind(self.findings, file, words, taken)
        self.attributes[name] = f"{name} ({count(columns.shape[1], 'kind')})"
        result[list(columns)] = columns

    def _note_later_values(self, name: str, values: pd.Series, first: pd.Series) -> None:
        expected = self.rows["user"].astype(str).map(first)
        other = values.astype(object).ne(expected.astype(object)) & values.notna()
        message = "an attribute that is another one in this row: the first of the user is used"
        cells = self._cells(name).loc[self.rows.index]
        self.findings.rows(self.table.name, cells, other & expected.notna(), message, "note")

    def finish(self) -> pd.DataFrame:
        """Return the events with the columns that `Users.from_events` reads."""
        words = [name for name in self.roles.words if name not in self.attributes]
        words = [name for name in words if name not in self.roles.left_out]
        if self.text_is_told:
            reason = "words beside the text that was asked for"
            self.roles.left_out |= dict.fromkeys(words, reason)
            words = []
        self.joined = [*self.roles.text, *words]
        rows = self.rows.assign(text=self._join_words(self.joined))
        numbers = [name for name in self.roles.numbers if name in rows]
        return rows[[*REQUIRED, *numbers]].reset_index(drop=True)

    def _join_words(self, columns: list[str]) -> pd.Series:
        file = self.table.name
        index = self.rows.index
        if not columns:
            return pd.Series(self.roles.word, index, dtype="category")
        parts = [self._read_part(name) for name in columns]
        codes = pd.DataFrame({i: part.cat.codes for i, part in enumerate(parts)}, index=index)
        group = codes.groupby(list(codes), sort=False).ngroup()
        first = codes[~group.duplicated()]
        texts = []
        for row in first.itertuples(index=False):
            words = [
                str(part.cat.categories[code])
                for part, code in zip(parts, row, strict=True)
                if code >= 0
            ]
            texts.append(", ".join(words) or self.roles.word)
        text = pd.Series(np.array(texts, object)[group.to_numpy()], index, dtype="category")
        empty = (codes == -1).all(axis=1)
        message = f"no words: called {self.roles.word!r}"
        self.findings.rows(file, self._cells(columns[0]).loc[index], empty, message, "changed")
        cut = apply_rules(self.findings, file, pd.Series(text.cat.categories.astype(str)), "text")
        return text.cat.rename_categories(dict(zip(text.cat.categories, cut, strict=True)))

    def _read_part(self, name: str) -> pd.Series:
        cells = self._cells(name).loc[self.rows.index]
        words = read_words(self.findings, self.table.name, cells)
        if name in self.roles.text or kind_of(cells) != "numbers":
            return words
        named = {number: f"{name} {number}" for number in words.cat.categories}
        return words.cat.rename_categories(named)  # a number alone says nothing

    def report(self, findings: Findings) -> Report:
        """Return what was taken for what, with rows and sums."""
        roles = self.roles
        kept = self.rows[[name for name in roles.numbers if name in self.rows]].sum()
        source = self.given_sums[kept.index]
        columns = {
            "user": [roles.user],
            "time": roles.time,
            "text": self.joined or [f"(none: every event is {roles.word!r})"],
            "modality": [roles.modality or f"(none: every event is {roles.kind!r})"],
            "numbers": list(kept.index),
            "attributes": list(self.attributes.values()),
            "left out": [f"{name or 'first'} ({why})" for name, why in roles.left_out.items()],
        }
        sums = pd.DataFrame({"source": source, "kept": kept, "dropped": source - kept})
        return Report(
            self.table.name, columns, len(self.table.frame), len(self.rows), sums, list(findings)
        )


def _is_typed(cells: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(cells)


def _has_comma(cells: pd.Series) -> bool:
    known = cells.dropna().astype(str).str.strip()
    return has_decimal_comma(known.iloc[:2000])


def _time_message(read: Times) -> str:
    example = read.time[read.time.notna()].iloc[0]
    return f"read as time: {read.how}; this one is {example}"


def check_folder(path, out=None, today=None) -> tuple[dict, str]:
    """Tell what is in a table or folder and what is wrong with it, as plain data and in words.

    Args:
        path: Anything that `read_events` reads.
        out: Folder for the users as they were read; written whole or not at all. Default: none.
        today: Events beyond it are left out (default: now).

    Returns:
        The data holds `in_order` and `problems`, and for what can be read also the users, events,
        modalities and the report. The text says the same.

    Raises:
        ValueError: `out` is the folder or lies in it.
        FileExistsError: `out` holds something.
        FileNotFoundError: There are no events.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "events.csv").write_text("user,time,modality,text\\na,soon,bill,tea\\n")
        >>> check_folder(folder)[0]["in_order"]
        False
    """
    users, findings = _Reader(path, {"columns": {}}, today).read()
    errors = findings.of("error")
    data = {"in_order": not errors, "problems": [asdict(finding) for finding in findings]}
    if users is None or errors:
        lines = [f"{finding.kind}: {finding}" for finding in [*errors, *findings.of("dropped")]]
        lines.append("Rows are counted from 0, without the header: row 0 is line 2 of a csv file.")
        lines.append(
            f"{path} cannot be read: {count(len(errors), 'error')}, only you can fix them."
        )
        return data, "\n".join(lines)
    lines = [str(users.report)]
    if out is not None:
        _save_new(users, Path(path), Path(out))
        data["fixed"] = str(out)
        lines.append(f"The users are written to {out}.")
        path = out
    inside = _contents(users)
    lines += [f"{name}: {_listed(value)}" for name, value in inside.items() if value]
    folder = shlex.quote(str(path))
    if Path(path).is_dir():
        lines.append(f"next: python -m qanchor train --preset small --users {folder} --out RUN")
    else:
        lines.append(f"next: python -m qanchor check {folder} --fix FOLDER")
    return data | inside | {"report": users.report.to_dict()}, "\n".join(lines)


def _save_new(users: Users, path: Path, out: Path) -> None:
    if path.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} is {path} or lies in it. Choose another folder for --fix.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something already. Choose a new or an empty folder.")
    if out.exists():
        out.rmdir()
    with atomic_directory(out) as aside:
        users.save(aside)


def _contents(users: Users) -> dict:
    past = users.history()
    return {
        "users": len(users),
        "events": len(users.events),
        "history": len(past),
        "days": (past["time"].max() - past["time"].min()).days + 1 if len(past) else 0,
        "cutoff": str(users.cutoff),
        "horizon_days": users.horizon_days,
        "modalities": past.groupby("modality", observed=False).size().to_dict(),
        "numbers": list(users.numbers),
        "unknown": _unknown(users.tabular),
        "labels": {name: int(known) for name, known in users.labels.notna().sum().items()},
        "texts": int(users.events["text"].nunique()),
    }


def _listed(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {n:,}" for name, n in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _unknown(facts: pd.DataFrame) -> dict[str, int]:
    """Count the users of whom an attribute is not known; kinds of one word under its one name."""
    empty: dict[str, dict[str, int]] = {}
    for name, n in facts.isna().sum().items():
        empty.setdefault(str(name).partition(".")[0], {})[str(name)] = int(n)
    result = {}
    for group, columns in empty.items():
        alike = len(columns) > 1 and len(set(columns.values())) == 1
        result |= {group: next(iter(columns.values()))} if alike else columns
    return {name: n for name, n in result.items() if n}
