"""A folder of your own users, read table by table: every problem is noted, and what can be mended is mended on the way."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from .about import read_about
from .faults import Notes, decode, numbers, tidy, times, words
from .schema import REQUIRED

ABOUT = ("name", "unit", "cutoff", "horizon_days", "modalities")
LIKELY = {  # what tables elsewhere call these columns, with "_" for what is no letter
    "user": r"(user|member|customer|client|account|household)(_?(id|no|nr|number))?|uid",
    "time": r"timestamp|date_?time|date|event_time|created_at",
    "modality": r"source|channel|event_type",
    "text": r"description|event_name|title",
}
PERHAPS = {"user": ("id",), "time": ("ts", "day"), "modality": ("type", "kind"), "text": ("event", "item", "product", "name")}
KINDS = 20  # words at most that become columns of 0 and 1
DAY, YEAR, LONGEST = pd.Timedelta(days=1), pd.Timedelta(days=366), 3660  # days of a horizon


class Folder:
    """Read a folder table by table, note every problem, and mend the tables on the way."""

    def __init__(self, folder, today):
        self.folder, self.notes, self.names, self.tables, self.ids, self.comma = Path(folder), Notes(), {}, {}, {}, set()
        self.today = pd.Timestamp.now("UTC").tz_localize(None) if today is None else pd.Timestamp(today)
        if not any((self.folder / f"events.{kind}").exists() for kind in ("parquet", "csv")):
            needed = f"write one row an event with {', '.join(REQUIRED)}"
            raise FileNotFoundError(f"{folder} has no events.parquet or events.csv: {needed}")
        self.about = self._about()
        for stem, needed in (("events", REQUIRED), ("users", ("user",)), ("labels", ("user",))):
            frame = self._open(stem, needed)
            frame = None if frame is None else self._named(stem, frame, needed)
            if frame is not None:
                self.tables[stem] = self._events(frame) if stem == "events" else self._facts(stem, frame)
        if "events" in self.tables:
            self._compare()

    def _about(self) -> dict:
        file, self.cutoff = "about.json", None
        try:
            about = read_about(self.folder / file)
        except (ValueError, OSError, RecursionError) as error:
            place = getattr(error, "column", "about"), getattr(error, "value", str(error))
            self.notes.whole(file, *place, getattr(error, "cure", "cannot be read: mend it or remove the file"))
            return {}
        for key in sorted(set(about) - set(ABOUT)):
            self.notes.whole(file, key, about[key], f"not read: only {', '.join(ABOUT)} are", severe=False)
        names = about.get("modalities", [])
        clean = list(dict.fromkeys(filter(None, (tidy(name, True) for name in names))))
        if clean != names:
            about["modalities"] = clean
            self.notes.whole(file, "modalities", names, "a name twice, empty or not plain", "each written once, plainly")
        if about.get("horizon_days", 30) > LONGEST:
            self.notes.whole(file, "horizon_days", about.pop("horizon_days"), f"over {LONGEST:,} days: is that meant?")
        if about.get("cutoff") is not None:
            self.cutoff = self._cutoff(file, about)
        return about

    def _cutoff(self, file: str, about: dict) -> pd.Timestamp | None:
        given = about["cutoff"]
        if not isinstance(given, str) or not re.match(r"\s*\d{4}", given):
            self.notes.whole(file, "cutoff", given, 'not a day in quotes: write "2025-01-31"')
            return None
        cutoff = pd.Timestamp(given)
        if cutoff.tz is not None:
            cutoff = cutoff.tz_convert("UTC").tz_localize(None)
            about["cutoff"] = str(cutoff)
            self.notes.whole(file, "cutoff", given, "has a time zone: write it in UTC, without one", "written in UTC")
        if cutoff > self.today + YEAR:
            self.notes.whole(file, "cutoff", given, "over a year ahead: is the year right?")
            return None
        return cutoff

    def _open(self, stem: str, needed: tuple[str, ...]) -> pd.DataFrame | None:
        there = [path for kind in ("parquet", "csv") if (path := self.folder / f"{stem}.{kind}").exists()]
        if not there:
            return None
        self.names[stem] = there[0].name
        if len(there) > 1:
            self.notes.whole(there[1].name, stem, there[0].name, "not read, for that file is: remove one", severe=False)
        try:
            return pd.read_parquet(there[0]) if there[0].suffix == ".parquet" else self._read_csv(stem, there[0], needed)
        except Exception as error:
            self.notes.whole(there[0].name, stem, *_unreadable(str(error)))
            return None

    def _read_csv(self, stem: str, path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
        text, encoding = decode(path.read_bytes())
        if encoding:
            cure = (
                "a mark before the first column: save without BOM" if encoding == "utf-8-sig" else "not UTF-8: save it as UTF-8"
            )
            self.notes.whole(path.name, stem, encoding, cure, f"read as {encoding}", encoding != "utf-8-sig")
        line = text.lstrip("\r\n").split("\n", 1)[0][:10_000].rstrip("\r")
        head = {mark: next(csv.reader([line], delimiter=mark), []) for mark in ",;\t|"}
        parted = max(head, key=lambda mark: (len(_meant(head[mark], needed)), len(head[mark])))
        if parted != ",":
            self.notes.whole(path.name, stem, parted, "columns parted so: part them by commas", "read so")
            self.comma.add(stem)
        for name in sorted({name for name in head[parted] if head[parted].count(name) > 1}):
            self.notes.whole(path.name, name, head[parted], "two columns of one name: rename one")
        kept = {name: str for name in _meant(head[parted], REQUIRED)}
        raw = io.BytesIO(text.replace("\x00", "\uffff").encode())
        frame = pd.read_csv(raw, sep=parted, dtype=kept, low_memory=False)
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError("lines have more fields than the header: put a text that holds a comma into quotes")
        return frame

    def _named(self, stem: str, frame: pd.DataFrame, needed: tuple[str, ...]) -> pd.DataFrame | None:
        """Give the frame columns with the names needed and rows numbered as in the file; None when that cannot be."""
        file = self.names[stem]
        hidden = [name for name in frame.index.names if name in needed and name not in frame.columns]
        for name in hidden:
            self.notes.whole(file, name, "index", "stands in the index: write it as a column", "made a column")
        frame = frame.reset_index(drop=not hidden)
        frame.columns = [str(name) for name in frame.columns]
        for name, plain in _meant(frame.columns, needed).items():
            if name != plain:
                self.notes.whole(file, plain, name, f"written otherwise: name it {plain}", "renamed")
                frame = frame.rename(columns={name: plain})
        for name in frame.columns[frame.columns.duplicated()].unique():
            self.notes.whole(file, name, list(frame.columns), "two columns of one name: rename one")
        frame = frame.loc[:, ~frame.columns.duplicated()]
        missing = [name for name in needed if name not in frame.columns]
        for name in missing:
            maybe = [o for o in frame.columns if re.fullmatch(LIKELY[name], _plain(o)) or _plain(o) in PERHAPS[name]]
            near = f" (is it {' or '.join(map(repr, maybe))}?)" if maybe else ""
            self.notes.whole(file, name, list(frame.columns), f"missing{near}: needed are {', '.join(needed)}")
        if missing:
            return None
        blank = frame.isna().all(axis=1)
        self.notes.rows(file, frame["user"], blank, "an empty row: drop it", "row dropped")
        return frame[~blank]

    def _events(self, frame: pd.DataFrame) -> pd.DataFrame:
        file, out = self.names["events"], pd.DataFrame(index=frame.index)
        if not len(frame):
            self.notes.whole(file, "user", "no rows", "the table is empty: give at least one event")
            return frame
        out["user"], self.ids["events"] = words(self.notes, file, frame["user"])
        out["time"] = times(self.notes, file, frame["time"])
        out["modality"], out["text"] = (words(self.notes, file, frame[name])[0] for name in ("modality", "text"))
        for name in frame.columns.difference(REQUIRED, sort=False):
            out[name] = numbers(self.notes, file, frame[name], comma="events" in self.comma)
        out = out[~self._late(file, out["time"]) & out[list(REQUIRED)].notna().all(axis=1)]
        if not len(out):
            self.notes.whole(file, "user", "no rows", "no event is left: give at least one that can be kept")
            return out
        known = self.about.get("modalities") or list(out["modality"].cat.categories)
        for name in out["modality"].cat.categories.difference(known):
            near = "".join(f" (is it {close!r}?)" for close in difflib.get_close_matches(name, known, 1))
            cure = f"not one of {', '.join(known)}{near}: add it to about.json's modalities"
            self.notes.rows(file, out["modality"], out["modality"] == name, cure)
        again = out.duplicated()
        cure = "the same event twice: keep one; two real events need two times"
        self.notes.rows(file, out["text"], again, cure, "row dropped", False)
        out = out[~again]
        user, time = out["user"].cat.codes.to_numpy(), out["time"].to_numpy()
        order = np.argsort(user, kind="stable")
        back = np.zeros(len(out), bool)
        back[order[1:]] = (np.diff(user[order]) == 0) & (np.diff(time[order]) < np.timedelta64(0))
        self.notes.rows(file, out["time"], back, "earlier than the row of this user before it", "sorted", False)
        return out

    def _late(self, file: str, time: pd.Series) -> pd.Series:
        never, end = time > self.today + DAY, pd.NaT  # a day of grace: times may be local ones
        self.notes.rows(file, time, never, "beyond today: correct it or drop the row", "row dropped")
        if self.cutoff is not None:
            end = self.cutoff + pd.Timedelta(days=self.about.get("horizon_days", 30))
            self.notes.rows(file, time, (time >= end) & ~never, f"beyond the horizon ({end}): drop it", "row dropped", False)
        return never | (time >= end)

    def _facts(self, stem: str, frame: pd.DataFrame) -> pd.DataFrame:
        file, out = self.names[stem], pd.DataFrame(index=frame.index)
        out["user"], self.ids[stem] = words(self.notes, file, frame["user"])
        for name in frame.columns.drop("user"):
            coded = _kinds(frame[name], {*frame.columns, *out.columns}) if stem == "users" else None
            if coded is None:
                out[name] = numbers(self.notes, file, frame[name], stem == "labels", stem in self.comma)
            else:
                done = f"written as {coded.shape[1]} columns of 0 and 1"
                self.notes.rows(file, frame[name], frame[name].notna(), "words, not numbers: encode them as numbers", done)
                out = out.join(coded)
        out = out[out["user"].notna()]
        again = out.duplicated()
        self.notes.rows(file, out["user"], again, "the same row twice: keep one", "row dropped")
        out = out[~again]
        self.notes.rows(file, out["user"], out["user"].duplicated(), "two rows of one user that contradict: keep one")
        return out

    def _compare(self) -> None:
        """Look across the tables: ids that become equal, users without events or history, labels among the inputs."""
        events = self.tables["events"]
        raw = {}
        for stem, ids in self.ids.items():
            for before, after in ids.items():
                raw.setdefault(after, {}).setdefault(before, stem)
        for after, forms in raw.items():
            if after and len(forms) > 1:
                cure = "ids that become equal when trimmed and normalised: say which user each is"
                self.notes.whole(self.names[list(forms.values())[-1]], "user", list(forms), cure)
        for stem in self.tables.keys() - {"events"}:
            user = self.tables[stem]["user"]
            alone = ~user.isin(set(events["user"].astype(str)))
            self.notes.rows(self.names[stem], user, alone, "no event of this user: is the id the same in events?", severe=False)
        if self.cutoff is not None and len(events):
            first = events.groupby("user", observed=True)["time"].min()
            new = events["user"].isin(first.index[first >= self.cutoff]) & ~events["user"].duplicated()
            cure = f"no event before the cut-off ({self.cutoff}): nothing of this user can be read"
            self.notes.rows(self.names["events"], events["user"], new, cure, severe=False)
        labels = set(self.tables.get("labels", pd.DataFrame()).columns) - {"user"}
        for stem in ("events", "users"):
            for name in sorted(labels & set(self.tables.get(stem, pd.DataFrame()).columns)):
                cure = "named like a label: a label must never be an input, drop the column or rename one"
                self.notes.whole(self.names[stem], name, name, cure)

    def write(self, folder: Path) -> None:
        """Write the mended tables, events sorted by user and time."""
        folder.mkdir(parents=True)
        for stem, frame in self.tables.items():
            if stem == "events":
                frame = frame.sort_values(["user", "time"], kind="stable").astype(dict.fromkeys(("modality", "text"), str))
            frame.astype({"user": str}).to_parquet(folder / f"{stem}.parquet", index=False)
        if self.about:
            (folder / "about.json").write_text(json.dumps(self.about, indent=2) + "\n")


def _kinds(given: pd.Series, taken: set[str]) -> pd.DataFrame | None:
    """Give a column that holds words of a few kinds as one column of 0 and 1 for each; None for any other."""
    cells = given.dropna().astype(object)
    if not cells.map(lambda cell: isinstance(cell, str)).all():
        return None
    words = cells.map(lambda cell: tidy(cell, True)).replace("", np.nan).reindex(given.index)
    kinds = sorted(words.dropna().unique())
    if not 2 <= len(kinds) <= min(KINDS, len(given) // 2):
        return None
    columns = {f"{given.name}.{kind}": (words == kind).astype(float).where(words.notna()) for kind in kinds}
    read = pd.to_numeric(pd.Series(kinds).str.replace(",", "."), errors="coerce")
    return None if read.notna().any() or taken & set(columns) else pd.DataFrame(columns)


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", tidy(name, True).lower()).strip("_")


def _meant(names, needed: tuple[str, ...]) -> dict[str, str]:
    """Say which columns are those needed, whatever they are called; where two could be one, neither is."""
    found = {}
    for wanted in needed:
        same = [name for name in names if name == wanted] or [name for name in names if tidy(name, True).lower() == wanted]
        fits = set(same or [name for name in names if re.fullmatch(LIKELY[wanted], _plain(name))])
        found |= dict.fromkeys(fits, wanted) if len(fits) == 1 else {}
    return found


def _unreadable(told: str) -> tuple[str, str]:
    """Say where a table cannot be read, and the cure, as far as the reader knows."""
    if found := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", told):
        cure = f"{found[3]} fields under a header of {found[1]}: put a text that holds a comma into quotes"
        return f"line {found[2]}", cure
    if found := re.search(r"EOF inside string starting at row (\d+)", told):
        return f"row {found[1]}", "a quote opens there and never closes: close it"
    if told.startswith("lines have more fields"):
        return "a line", told
    return told, "cannot be read: write it again as parquet or csv"
