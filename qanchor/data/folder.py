"""A folder of your own users, read table by table: every problem is noted, and what can be mended
is mended on the way.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.faults import TRUTHS, Notes, decode, numbers, tidy, times, words
from qanchor.data.validation import COLUMN_MEANINGS, REQUIRED

LIKELY = {  # what tables elsewhere call these columns, with "_" for what is no letter
    "user": r"(user|member|customer|client|account|household|patient|student|reader|subscriber|guest|visitor|player|donor)"
    r"(_?(id|no|nr|number))?|uid",
    "time": r"timestamp|date_?time|date|event_time|created_at",
    "modality": r"source|channel|event_type",
    "text": r"description|event_name|title",
}
# what they may be called: taken where the cells agree and no other column could be meant
PERHAPS = {
    "user": r"id|who|person|card_?(id|no|nr|number)",
    "time": r"ts|day|when",
    "modality": r"type|kind|category|area|location|place|where",
    "text": r"event|items?|product|name|what|action|activity|details?|notes?",
}
UNSURE = ("id", "name")  # of a row or a user, of a product or a person: nobody but you can tell
# what its cells hold
SUITS = {
    "user": ("words", "numbers"),
    "time": ("times",),
    "modality": ("words",),
    "text": ("words",),
}
DATE = r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
MORE = "; more may show once this is mended"
KINDS = 20  # words at most that become columns of 0 and 1
DAY = pd.Timedelta(days=1)


class Folder:
    """Read a folder table by table, note every problem, and mend the tables on the way."""

    def __init__(
        self,
        folder: Path,
        today: pd.Timestamp,
        notes: Notes,
        about: dict,
        cutoff: pd.Timestamp | None,
    ):
        self.folder, self.today, self.notes, self.about, self.cutoff = (
            folder,
            today,
            notes,
            about,
            cutoff,
        )
        self.names, self.tables, self.ids, self.comma = {}, {}, {}, set()
        if not any((self.folder / f"events.{kind}").exists() for kind in ("parquet", "csv")):
            needed = f"write one row an event with {', '.join(REQUIRED)}"
            raise FileNotFoundError(f"{folder} has no events.parquet or events.csv: {needed}")
        for stem, needed in (("events", REQUIRED), ("users", ("user",)), ("labels", ("user",))):
            if (frame := self._open(stem, needed)) is not None:
                frame = self._named(stem, frame, needed)
                self.tables[stem] = (
                    self._events(frame) if stem == "events" else self._facts(stem, frame)
                )

    def _open(self, stem: str, needed: tuple[str, ...]) -> pd.DataFrame | None:
        there = [
            path for kind in ("parquet", "csv") if (path := self.folder / f"{stem}.{kind}").exists()
        ]
        if not there:
            return None
        self.names[stem] = there[0].name
        if len(there) > 1:
            self.notes.whole(
                there[1].name,
                stem,
                there[0].name,
                "not read, for that file is: remove one",
                blocking=False,
            )
        try:
            return (
                pd.read_parquet(there[0])
                if there[0].suffix == ".parquet"
                else self._read_csv(stem, there[0], needed)
            )
        except Exception as error:
            value, cure = _unreadable(str(error))
            self.notes.whole(there[0].name, stem, value, cure + MORE)
            return None

    def _read_csv(self, stem: str, path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
        text, encoding = decode(path.read_bytes())
        if encoding:
            cure = (
                "a mark before the first column: save without BOM"
                if encoding == "utf-8-sig"
                else "not UTF-8: save it as UTF-8"
            )
            self.notes.whole(
                path.name, stem, encoding, cure, f"read as {encoding}", encoding != "utf-8-sig"
            )
        line = text.lstrip("\r\n").split("\n", 1)[0][:10_000].rstrip("\r")
        head = {mark: next(csv.reader([line], delimiter=mark), []) for mark in ",;\t|"}
        parted = max(head, key=lambda mark: (len(_meant(head[mark], needed)), len(head[mark])))
        if parted != ",":
            self.notes.whole(
                path.name, stem, parted, "columns parted so: part them by commas", "read so"
            )
            self.comma.add(stem)
        for name in sorted({name for name in head[parted] if head[parted].count(name) > 1}):
            self.notes.whole(path.name, name, head[parted], "two columns of one name: rename one")
        ids = {name for name in head[parted] if _called("user", name)}
        kept = dict.fromkeys(ids | set(_meant(head[parted], REQUIRED)), str)
        raw = io.BytesIO(text.replace("\x00", "\uffff").encode())
        frame = pd.read_csv(raw, sep=parted, dtype=kept, low_memory=False)
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError(
                "lines have more fields than the header: put a text that holds a comma into quotes"
            )
        return frame

    def _named(self, stem: str, frame: pd.DataFrame, needed: tuple[str, ...]) -> pd.DataFrame:
        """Give the frame columns with the names needed, those that are there, and rows numbered as
        in the file.
        """
        file = self.names[stem]
        hidden = [
            name for name in frame.index.names if name in needed and name not in frame.columns
        ]
        for name in hidden:
            self.notes.whole(
                file, name, "index", "stands in the index: write it as a column", "made a column"
            )
        frame = frame.reset_index(drop=not hidden)
        frame.columns = [str(name) for name in frame.columns]
        for name, plain in _meant(frame.columns, needed).items():
            if name != plain:
                self.notes.whole(
                    file, plain, name, f"written otherwise: name it {plain}", "renamed"
                )
                frame = frame.rename(columns={name: plain})
        for name in frame.columns[frame.columns.duplicated()].unique():
            self.notes.whole(file, name, list(frame.columns), "two columns of one name: rename one")
        frame = frame.loc[:, ~frame.columns.duplicated()]
        blank = frame.isna().all(axis=1)
        nobody = pd.Series(None, frame.index, object, name="user")
        self.notes.rows(file, nobody, blank, "an empty row: drop it", "row dropped")
        return (
            frame[~blank]
            if set(needed) <= set(frame)
            else self._supplied(file, frame[~blank], needed)
        )

    def _supplied(self, file: str, frame: pd.DataFrame, needed: tuple[str, ...]) -> pd.DataFrame:
        """Tell which columns are missing; take another for one, or one source for all rows, where
        that leaves no doubt.
        """
        maybe, left = _maybe(frame, needed)
        claims = [column for near in maybe.values() for column in near]
        sure = {
            near[0]: name
            for name, near in maybe.items()
            if len(near) == 1 and _sure(name, near[0], frame[near[0]])
        }
        sure = {column: name for column, name in sure.items() if claims.count(column) == 1}
        for column, name in sure.items():
            cure = f"taken for {COLUMN_MEANINGS[name]}: rename it to {name!r}, or the right one"
            self.notes.whole(file, name, column, cure, "renamed")
        frame = frame.rename(columns=sure)
        columns, known = (
            sorted(frame.columns, key=lambda name: name in needed),
            self.about.get("modalities") or ["event"],
        )
        for name in [name for name in maybe if name not in frame]:
            hint = f" (is it {' or '.join(map(repr, maybe[name]))}?)" if maybe[name] else ""
            cure, done = (
                (
                    f"missing{hint}: {COLUMN_MEANINGS[name]}; rename the column that holds "
                    f"it to {name!r}"
                ),
                "",
            )
            if name == "modality" and not maybe[name] and not left and len(known) == 1:
                cure, done = f"{cure}, or let all rows be of one kind", f"{known[0]!r} in all rows"
                frame = frame.assign(modality=known[0])
            self.notes.whole(file, name, columns, cure if done else cure + MORE, done)
        return frame

    def _events(self, frame: pd.DataFrame) -> pd.DataFrame:
        file, out = self.names["events"], pd.DataFrame(index=frame.index)
        if not len(frame):
            self.notes.whole(file, "user", "no rows", "the table is empty: give at least one event")
            return frame
        there = [name for name in REQUIRED if name in frame]
        for name in there:
            if name == "time":
                out[name] = times(self.notes, file, frame[name])
            else:
                out[name], ids = words(self.notes, file, frame[name])
                if name == "user":
                    self.ids["events"] = ids
        gaps = {SUITS[name][0] for name in REQUIRED if name not in frame}
        for name in frame.columns.difference(REQUIRED, sort=False):
            out[name] = self._number("events", frame[name], gaps)
        late = self._late(file, out["time"]) if "time" in out else False
        out = out[~late & out[there].notna().all(axis=1)]
        if not len(out):
            self.notes.whole(
                file, "user", "no rows", "no event is left: give at least one that can be kept"
            )
            return out
        if "modality" in out:
            self._known(file, out["modality"])
        if not gaps:
            again = out.duplicated()
            cure = "the same event twice: keep one; two real events need two times"
            self.notes.rows(file, out["text"], again, cure, "row dropped", False)
            out = out[~again]
        if {"user", "time"} <= set(out):
            user, time = out["user"].cat.codes.to_numpy(), out["time"].to_numpy()
            order = np.argsort(user, kind="stable")
            back = np.zeros(len(out), bool)
            back[order[1:]] = (np.diff(user[order]) == 0) & (
                np.diff(time[order]) < np.timedelta64(0)
            )
            self.notes.rows(
                file,
                out["time"],
                back,
                "earlier than the row of this user before it",
                "sorted",
                False,
            )
        return out

    def _known(self, file: str, modality: pd.Series) -> None:
        known = self.about.get("modalities") or list(modality.cat.categories)
        for name in modality.cat.categories.difference(known):
            near = "".join(
                f" (is it {close!r}?)" for close in difflib.get_close_matches(name, known, 1)
            )
            cure = f"not one of {', '.join(known)}{near}: add it to about.json's modalities"
            self.notes.rows(file, modality, modality == name, cure)

    def _late(self, file: str, time: pd.Series) -> pd.Series:
        never, end = time > self.today + DAY, pd.NaT  # a day of grace: times may be local ones
        self.notes.rows(
            file, time, never, "beyond today: correct it or drop the row", "row dropped"
        )
        if self.cutoff is not None:
            days = self.about.get("horizon_days", 30)
            end = self.cutoff + pd.Timedelta(days=days)
            said = f"the end of the {days} days after the cut-off in which answers lie"
            cure = f"beyond the horizon ({end}), {said}: not used, drop it"
            self.notes.rows(file, time, (time >= end) & ~never, cure, "row dropped", False)
        return never | (time >= end)

    def _number(self, stem: str, given: pd.Series, gaps: set[str]) -> pd.Series:
        """Read a column of numbers; one that holds what a missing column would may be that one, and
        is left alone.
        """
        if gaps and _holds(given) in gaps:
            return pd.Series(np.nan, given.index)
        return numbers(self.notes, self.names[stem], given, stem == "labels", stem in self.comma)

    def _facts(self, stem: str, frame: pd.DataFrame) -> pd.DataFrame:
        file, out = self.names[stem], pd.DataFrame(index=frame.index)
        gaps = set() if "user" in frame else {"words", "numbers"} if stem == "labels" else {"words"}
        if not gaps:
            out["user"], self.ids[stem] = words(self.notes, file, frame["user"])
        for name in frame.columns.difference(["user"], sort=False):
            coded = _kinds(frame[name], {*frame.columns, *out.columns}) if stem == "users" else None
            if coded is None:
                out[name] = self._number(stem, frame[name], gaps)
            else:
                done = f"written as {coded.shape[1]} columns of 0 and 1"
                self.notes.rows(
                    file,
                    frame[name],
                    frame[name].notna(),
                    "words, not numbers: encode them as numbers",
                    done,
                )
                out = out.join(coded)
        if gaps:
            return out
        out = out[out["user"].notna()]
        again = out.duplicated()
        self.notes.rows(file, out["user"], again, "the same row twice: keep one", "row dropped")
        out = out[~again]
        self.notes.rows(
            file,
            out["user"],
            out["user"].duplicated(),
            "two rows of one user that contradict: keep one",
        )
        return out


def _kinds(given: pd.Series, taken: set[str]) -> pd.DataFrame | None:
    """Give a column that holds words of a few kinds as one column of 0 and 1 for each; None for any
    other.
    """
    cells = given.dropna().astype(object)
    if not cells.map(lambda cell: isinstance(cell, str)).all():
        return None
    words = cells.map(lambda cell: tidy(cell, True)).replace("", np.nan).reindex(given.index)
    kinds = sorted(words.dropna().unique())
    if not 2 <= len(kinds) <= min(KINDS, len(given) // 2):
        return None
    columns = {
        f"{given.name}.{kind}": (words == kind).astype(float).where(words.notna()) for kind in kinds
    }
    read = pd.to_numeric(pd.Series(kinds).str.replace(",", "."), errors="coerce")
    return None if read.notna().any() or taken & set(columns) else pd.DataFrame(columns)


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", tidy(name, True).lower()).strip("_")


def _meant(names, needed: tuple[str, ...]) -> dict[str, str]:
    """Say which columns are those needed, whatever they are called; where two could be one, neither
    is.
    """
    found = {}
    for wanted in needed:
        same = [name for name in names if name == wanted] or [
            name for name in names if tidy(name, True).lower() == wanted
        ]
        fits = set(same or [name for name in names if re.fullmatch(LIKELY[wanted], _plain(name))])
        found |= dict.fromkeys(fits, wanted) if len(fits) == 1 else {}
    return found


def _called(wanted: str, name: str) -> bool:
    return bool(re.fullmatch(f"{wanted}|{LIKELY[wanted]}|{PERHAPS[wanted]}", _plain(name)))


def _maybe(frame: pd.DataFrame, needed: tuple[str, ...]) -> tuple[dict[str, list[str]], list[str]]:
    """Say which columns could be each that is missing, by its name or as the last of its kind, and
    which of words are left.
    """
    free = {o: _holds(frame[o]) for o in frame.columns if o not in needed}
    maybe = {name: [o for o in free if _called(name, o)] for name in needed if name not in frame}
    maybe = {
        name: [o for o in near if free[o] in SUITS[name]] or near for name, near in maybe.items()
    }
    for kind in ("times", "words"):
        left = [
            o
            for o, holds in free.items()
            if holds == kind and not any(o in near for near in maybe.values())
        ]
        empty = [name for name, near in maybe.items() if not near and kind in SUITS[name]]
        # all rows can be of one kind
        empty = empty if len(empty) == 1 else [name for name in empty if name != "modality"]
        if len(empty) == len(left) == 1 and frame.shape[1] >= len(REQUIRED):
            maybe[empty[0]], left = left, []
    return maybe, left


def _sure(name: str, column: str, given: pd.Series) -> bool:
    """Tell whether a column can be taken for the one missing: named like it, full, and of cells
    that suit it.
    """
    few = name != "modality" or given.map(str).nunique() <= KINDS
    named = _called(name, column) and _plain(column) not in UNSURE
    return all((named, few, given.notna().mean() > 0.9, _holds(given) in SUITS[name]))


def _holds(given: pd.Series) -> str:
    """Tell what most cells of a column hold: numbers (or yes and no), times or words."""
    if pd.api.types.is_numeric_dtype(given):
        return "numbers"
    cells = given.dropna().head(1000).map(str).astype(str)
    if cells.str.match(DATE).mean() > 0.5:
        return "times"
    read = pd.to_numeric(
        cells.str.replace(",", "."), errors="coerce"
    ).notna() | cells.str.lower().isin(TRUTHS)
    return "numbers" if read.mean() > 0.5 else "words"


def _unreadable(told: str) -> tuple[str, str]:
    """Say where a table cannot be read, and the cure, as far as the reader knows."""
    if found := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", told):
        cure = (
            f"{found[3]} fields under a header of {found[1]}: put a text that holds a comma "
            "into quotes"
        )
        return f"line {found[2]}", cure
    if found := re.search(r"EOF inside string starting at row (\d+)", told):
        return f"row {found[1]}", "a quote opens there and never closes: close it"
    if told.startswith("lines have more fields"):
        return "a line", told
    return told, "cannot be read: write it again as parquet or csv"
