"""What every view shares: the base class, background jobs, the selection and named groups."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anywidget
import numpy as np
import pandas as pd
from IPython.display import HTML

STATIC_DIR = Path(__file__).parent / "static"
MIN_STATUS_INTERVAL = 0.05  # seconds between two progress messages
MAX_FILE_STEM = 60  # characters
MAX_UNDONE = 50  # changes of a selection that can be taken back
SHORT_WAIT = 0.5  # seconds to wait for the turn before saying so
log = logging.getLogger("qanchor.widgets")
Ids = tuple[str, ...]
Job = Callable[[threading.Event], None]
RowsHandler = Callable[[np.ndarray], None]  # is called with row numbers of users


# Files and words


def read_static(*names: str) -> str:
    """Join files of `widgets/static` into the one script or style sheet a browser is given.

    A browser that gets a view as one module cannot import its neighbors, so imports are left out.
    Comments and indentation are left out, too; no text in a script spans lines.

    Args:
        names: File names, each after those it imports.

    Returns:
        The joined text.
    """
    left_out = r'^import .*? from "\./.*?";\n|^ *//[^\n]*\n|^ */\*\*.*?\*/\n|^ +'
    pattern = re.compile(left_out, flags=re.M | re.S)
    parts = []
    for name in names:
        path = STATIC_DIR / name
        text = path.read_text(encoding="utf-8")
        parts.append(pattern.sub("", text))
    return "\n".join(parts)


def atomic_write(path: Path, text: str) -> Path:
    """Write a text file so that a reader, or a crash, finds the old file or the new one.

    Args:
        path: The file to write.
        text: Its content.

    Returns:
        `path`.
    """
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial_path.write_text(text, encoding="utf-8", newline="\n")
        return partial_path.replace(path)
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise


def unused_path(name: str, extension: str) -> Path:
    """Return a file name made from `name` that does not exist in the current folder.

    Args:
        name: Any text; characters that do not belong in a file name become hyphens.
        extension: Without its dot.

    Returns:
        A relative path.
    """
    words = re.sub(r"[^\w-]+", "-", name)
    stem = words.strip("-")[:MAX_FILE_STEM] or "kept"
    path = Path(f"{stem}.{extension}")
    number = 1
    while path.exists():
        number += 1
        path = Path(f"{stem}-{number}.{extension}")
    return path


def error_message(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(message).strip().splitlines()  # str(KeyError) would be quoted
    return lines[0] if lines else type(error).__name__


def count_noun(number: int, unit: str, units: str) -> str:
    """Return a number with its noun.

    Args:
        number: How many.
        unit: The noun for one.
        units: The noun for any other number.

    Returns:
        The words.

    Example:
        >>> count_noun(1, "family", "families"), count_noun(2_000, "family", "families")
        ('1 family', '2,000 families')
    """
    return f"{number:,} {unit if number == 1 else units}"


def unit_words(source) -> tuple[str, str]:
    """Return the words for one user and for several: `unit` and `units`, if there are both.

    Args:
        source: A back end that may have them as attributes, or a mapping.

    Example:
        >>> unit_words(None)
        ('user', 'users')
    """
    read = source.get if isinstance(source, Mapping) else partial(getattr, source)
    unit = read("unit", None)
    units = read("units", None)
    return (unit, units) if unit and units else ("user", "users")


# The base class and background jobs


class View(anywidget.AnyWidget):
    """Base class of the views: an anywidget that stays readable where no script may run.

    A view defines `_summary()`, the text of its repr, and `_html()`, its content as HTML without
    scripts. A view that asks a back end has a trait `_status`; it works in its `_worker`.

    Args:
        turn: A lock that views of one model share (default: a lock of its own).
        traits: Values of traits.
    """

    _status_time = 0.0  # when the status was last set

    def __init__(self, turn: threading.RLock | None = None, **traits):
        self._guard = threading.RLock()  # held while traits change
        self._worker = Worker(turn)
        super().__init__(**traits)
        self.on_msg(self._on_message)

    def _on_message(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks."""

    def __repr__(self) -> str:
        return self._summary()

    def to_html(self) -> HTML:
        """Return what is shown now as HTML that stays readable without a kernel."""
        return HTML(self._html())

    def _set_status(self, at_once: bool = False, **status) -> None:
        """Set the status line; leave out progress that follows too soon, unless `at_once`."""
        now = time.monotonic()
        midway = status.get("busy") and 0 < status["done"] < status["total"]
        if midway and not at_once and now - self._status_time < MIN_STATUS_INTERVAL:
            return
        with self._guard:
            self._status_time = now
            self._status = status

    def _add_to_status(self, **more) -> None:
        """Add to the status line of work that runs."""
        with self._guard:  # the worker may be reporting its end just now
            if self._status.get("busy"):
                self._set_status(at_once=True, **self._status | more)

    def _show(self, **status) -> None:
        """Show what is kept, if something else is on the screen, and the status."""
        self._set_status(**status)

    def _show_end(self, how: str) -> None:
        """Show that work ended without a result: it was "Cancelled" or "Interrupted"."""
        self._show(note=f"{how}.")

    @contextmanager
    def _showing_failure(self, what: str, raise_errors: bool) -> Iterator[None]:
        """Show, after the words `what`, why work failed, or that it was broken off.

        Errors are raised again only if `raise_errors`, as a cell wants it.
        """
        try:
            yield
        except Cancelled:
            self._show_end("Cancelled")
        except Exception as error:
            log.exception(what)
            self._show(error=f"{what}: {error_message(error)}")
            if raise_errors:
                raise
        except BaseException:  # an interrupted cell
            self._show_end("Interrupted")
            raise

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = super()._repr_mimebundle_(**kwargs)
        data["text/plain"] = repr(self)
        try:
            data["text/html"] = self._html()
        except Exception:  # a notebook must open whatever the data holds
            log.exception("no static HTML of %r", self)
        return data, metadata


@contextmanager
def closing(updates: Iterable) -> Iterator[Iterable]:
    """Close an iterator of updates at the end, which cancels its work; lists need no closing."""
    try:
        yield updates
    finally:
        close = getattr(updates, "close", None)
        if close is not None:
            close()


class Cancelled(Exception):
    """The work was cancelled."""


def until_cancelled(updates: Iterable, stop: threading.Event) -> Iterator:
    """Yield updates; once `stop` is set, raise `Cancelled`."""
    for update in updates:
        if stop.is_set():
            raise Cancelled
        yield update
    if stop.is_set():
        raise Cancelled


def attempt(work: Callable[[], dict], failed: str) -> dict:
    """Return what `work` returns or, if it fails, only `error`: the words `failed` and why."""
    try:
        return work()
    except Exception as error:
        log.exception(failed)
        return {"error": f"{failed}: {error_message(error)}"}


def do_nothing() -> None:
    """Do nothing."""


class Worker:
    """Run one job at a time in the background; a newer job replaces the running one.

    A job is called with a `threading.Event` and stops when it is set.

    Args:
        turn: A lock; workers that share it never run together (default: a lock of its own).
    """

    def __init__(self, turn: threading.RLock | None = None):
        self.turn = turn or threading.RLock()
        self._stop = threading.Event()

    def start(
        self,
        job: Job,
        on_wait: Callable[[], None] = do_nothing,
        on_cancel: Callable[[], None] = do_nothing,
    ) -> threading.Thread:
        """Run a job in the background as soon as the one before has stopped.

        Args:
            job: What to run.
            on_wait: Called if another worker has the turn.
            on_cancel: Called if the job was cancelled before it began.

        Returns:
            The thread it runs in.
        """
        self.cancel()
        self._stop = stop = threading.Event()
        thread = threading.Thread(
            target=self._work, args=(job, stop, on_wait, on_cancel), daemon=True
        )
        thread.start()
        return thread

    def run(self, job: Job) -> None:
        """Run a job in this thread, after the one that is running has ended."""
        with self.turn:
            self._stop = stop = threading.Event()
            job(stop)

    def cancel(self) -> None:
        """Ask the running job, and any that waits, to stop."""
        self._stop.set()

    def _work(self, job, stop, on_wait, on_cancel) -> None:
        if not self.turn.acquire(timeout=SHORT_WAIT):
            on_wait()
            self.turn.acquire()
        try:
            if stop.is_set():
                on_cancel()
            else:
                job(stop)
        finally:
            self.turn.release()


# Users that are selected, and groups that have a name


class Selection:
    """The selected users, which views and Python code read, set and observe.

    Args:
        ids: All users, in the order of the frame.
        on_change: Called with the row numbers of the selected users after each change.
        turn: A lock that views of one model share (default: a lock of its own).
        unit: The word for a user.
        units: Its plural.

    Example:
        >>> selection = Selection(("a", "b", "c"), lambda rows: None)
        >>> selection.ids = ["c", "a"]
        >>> selection, selection.ids
        (Selection(2 of 3 users), ('a', 'c'))
    """

    def __init__(
        self,
        ids: Ids,
        on_change: RowsHandler,
        turn: threading.RLock | None = None,
        unit: str = "user",
        units: str = "users",
    ):
        self.all_ids = ids
        self.unit = unit
        self.units = units
        self.turn = turn or threading.RLock()  # the model serves one of the views at a time
        self.rows = np.empty(0, dtype=np.int32)
        self._observers = [on_change]
        self._past: list[np.ndarray] = []  # earlier selections
        self._future: list[np.ndarray] = []  # selections that were taken back
        self._row_of = {user: row for row, user in enumerate(ids)}

    def observe(self, on_change: RowsHandler) -> None:
        """Call `on_change(rows)` after each change; observing twice is observing once."""
        if on_change not in self._observers:
            self._observers.append(on_change)

    @property
    def ids(self) -> Ids:
        """The selected users, in the order of the frame."""
        return tuple(self.all_ids[row] for row in self.rows)

    @ids.setter
    def ids(self, users: Iterable[str]) -> None:
        users = [users] if isinstance(users, str) else list(users)
        for user in users:
            if user not in self._row_of:
                raise KeyError(f"user {user!r} is not among the {len(self.all_ids):,} of this view")
        self.select_rows([self._row_of[user] for user in users])

    def select_rows(self, rows, mode: str = "replace") -> None:
        """Select users by row number.

        Args:
            rows: Row numbers; numbers that are no row are ignored.
            mode: "replace" the selection, "add" to it, or "subtract" from it.
        """
        rows = np.unique(np.asarray(rows, dtype=np.int32))
        if mode == "add":
            rows = np.union1d(self.rows, rows)
        elif mode == "subtract":
            rows = np.setdiff1d(self.rows, rows)
        known = (rows >= 0) & (rows < len(self.all_ids))
        rows = rows[known]
        if not np.array_equal(rows, self.rows):
            self._past = [*self._past, self.rows][-MAX_UNDONE:]
            self._future = []
        self._set(rows)

    @property
    def steps(self) -> dict[str, bool]:
        """Whether there is a change to `undo`, and one to `redo`."""
        return {"undo": bool(self._past), "redo": bool(self._future)}

    def undo(self) -> None:
        """Go back to the selection before the last change."""
        self._step(self._past, self._future)

    def redo(self) -> None:
        """Select again what `undo` took back."""
        self._step(self._future, self._past)

    def forget_changes(self) -> None:
        """Keep the selection, and leave nothing to undo or redo."""
        self._past = []
        self._future = []

    def _step(self, source: list[np.ndarray], target: list[np.ndarray]) -> None:
        if source:
            target.append(self.rows)
            self._set(source.pop())

    def _set(self, rows: np.ndarray) -> None:
        self.rows = rows
        for on_change in tuple(self._observers):
            try:
                on_change(self.rows)
            except Exception:  # one view that fails must not leave the others behind
                log.exception("a view did not follow the selection")

    def follow(self, message: dict, buffers: list) -> None:
        """Select as a message of the browser says; its buffer has the row numbers."""
        rows = np.frombuffer(buffers[0], dtype=np.int32) if buffers else []
        self.select_rows(rows, message.get("mode", "replace"))

    def clear(self) -> None:
        """Select nobody."""
        self.select_rows([])

    def __len__(self) -> int:
        return len(self.rows)

    def count(self, number: int) -> str:
        """Return a number of users, in words."""
        return count_noun(number, self.unit, self.units)

    @property
    def summary(self) -> str:
        """How many users are selected, in words."""
        everyone = self.count(len(self.all_ids))
        return f"{len(self):,} of {everyone}"

    def __repr__(self) -> str:
        return f"Selection({self.summary})"


@dataclass(frozen=True)
class Group:
    """Users under a name.

    Args:
        name: The name.
        ids: The users.
    """

    name: str
    ids: Ids


GROUP_OPERATIONS = {
    "intersect": ("&", pd.Index.intersection),
    "unite": ("|", pd.Index.union),
    "subtract": ("-", pd.Index.difference),
}


def combine_groups(first: Group, how: str, second: Group) -> Group:
    """Return the users in both of two groups, in either of them, or in the first one alone.

    Args:
        first: The first group.
        how: "intersect", "unite" or "subtract".
        second: The second group.

    Example:
        >>> combine_groups(Group("a", ("u1", "u2")), "subtract", Group("b", ("u2",)))
        Group(name='a - b', ids=('u1',))
    """
    sign, operation = GROUP_OPERATIONS[how]
    ids = operation(pd.Index(first.ids), pd.Index(second.ids), sort=False)
    name = f"{first.name} {sign} {second.name}"
    return Group(name, tuple(ids))
