"""The selection panel: who is chosen, what sets them apart, which question tells them, and names to find them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event, RLock

import numpy as np
import pandas as pd
from traitlets import Dict, List

from widgets._bars import VALUES, bars, dots, figures, told
from widgets.base import Selection, View, Worker, closing, log, plain, script, still_page, vacant
from widgets._named import HOW, Group
from widgets.result_card import ClaimCard

LISTED = 14  # rows of the comparison; of each kind, half as many are there when it is looked at alone


class SelectionPanel(View):
    """Show who is chosen in a view, what sets them apart from the rest, and which question tells them.

    selection  of a view: `lens.selection`. The panel follows it, and sets it.
    describe   called as `describe(ids)`; gives a frame, the most telling first: `kind, name, group, rest` and, where known,
               their bounds `group_low` ... `rest_high`, `beyond_chance`. Kind "number" holds numbers, the others shares.
    explain    called as `explain(ids)`; yields updates `{"done", "total", "sentence", "caption", "frame"}`, the last with a
               frame, best first: `query, auc, auc_low, auc_high, chance`. Closing the iterator cancels the work.
    export     called as `export(ids, path, least=..., salt=...)`, writes a file.
    facts      called as `facts()`, gives what a claim card says of a result.
    least      groups of fewer users are neither written to a file nor claimed.

    Example:
        >>> chosen = Selection(("a", "b", "c"), lambda rows: None)
        >>> panel = SelectionPanel(chosen)
        >>> chosen.ids = ["a", "c"]
        >>> panel.save("both"), panel, panel.named["both"].ids
        (Group(name='both', ids=('a', 'c')), SelectionPanel(2 of 3 users chosen, 1 named), ('a', 'c'))
    """

    _esm = script("geometry.mjs", "dom.mjs", "kernel.mjs", "selection.mjs")
    _css = script("lens.css", "selection.css")
    _about = Dict().tag(sync=True)  # title and what the panel can do: never changes
    _shown = Dict().tag(sync=True)  # n, sentence, rows: what sets them apart
    _ranked = Dict().tag(sync=True)  # rows, sentence, caption, chance, n, now: which question tells them
    _status = Dict().tag(sync=True)  # busy, done, total, note, error
    _names = List().tag(sync=True)  # name and n of each named group

    def __init__(
        self,
        selection: Selection,
        describe: Callable[[tuple[str, ...]], pd.DataFrame] | None = None,
        explain: Callable[[tuple[str, ...]], Iterator[dict]] | None = None,
        export: Callable[..., Path] | None = None,
        facts: Callable[[], dict] | None = None,
        least: int = 10,
        title: str = "Selection",
    ):
        self.selection, self.least, self.named = selection, least, {}
        self._describe, self._explain, self._export, self._facts = describe, explain, export, facts
        self._guard = RLock()
        self._found: tuple = ((), None)  # ids, and the frame that describes them
        self._explained: dict[tuple, dict] = {}  # ids: the last update
        self._last: tuple = ()  # the ids whose ranking is shown
        self._describer, self._explainer = Worker(), Worker(selection.turn)
        can = {"describes": describe is not None, "explains": explain is not None, "exports": export is not None}
        super().__init__(_about={"title": title, "total": len(selection.everyone), "least": least, **can})
        selection.observe(self._follow)
        self.on_msg(self._heard)
        self._follow(selection.rows)

    @property
    def description(self) -> pd.DataFrame:
        """Give what sets the chosen apart from the rest, as `describe` does; no rows while nobody is chosen."""
        return self._described(self.selection.ids).copy()

    @property
    def ranking(self) -> pd.DataFrame:
        """Give the questions that tell the chosen from the rest, best first; no rows before `explain()`."""
        found = self._explained.get(self.selection.ids)
        return (
            pd.DataFrame(columns=["query", "auc", "auc_low", "auc_high", "chance"]) if found is None else found["frame"].copy()
        )

    @property
    def sentence(self) -> str:
        """Say who is chosen and what sets them apart."""
        self._describe_now()
        return self._shown["sentence"]

    def explain(self) -> str:
        """Ask which question tells the chosen from the rest, wait, and give the sentence that says so."""
        self._explainer.run(partial(self._work, self._ready(), aloud=True))
        return self._explained[self.selection.ids]["sentence"]

    def save(self, name: str) -> Group:
        """Keep the chosen under a name; a name that is taken is given to them anew."""
        name = str(name).strip()
        if not name:
            raise ValueError("the name is empty: write one, such as 'travellers'")
        self.named[name] = Group(name, self.selection.ids)
        self._list()
        return self.named[name]

    def recall(self, name: str) -> None:
        """Choose the users of a named group."""
        self.selection.ids = self._group(name).ids

    def forget(self, name: str) -> None:
        """Drop a name; the users stay as they are."""
        del self.named[self._group(name).name]
        self._list()

    def combine(self, first: str, how: str, second: str) -> Group:
        """Choose what two named groups make: how is "intersect", "unite" or "subtract" (the second from the first)."""
        if how not in HOW:
            raise ValueError(f"how is {how!r}: say {', '.join(HOW)}")
        made = HOW[how](self._group(first), self._group(second))
        self.selection.ids = made.ids
        return made

    def export(self, path, salt: str | None = None) -> Path:
        """Write the chosen to a CSV or Parquet file, ids hashed if you give a salt (a secret of yours); few are refused."""
        if self._export is None:
            raise ValueError("this panel cannot write files: make it with export=partial(qa.export_group, users)")
        return self._export(self.selection.ids, Path(path), least=self.least, salt=salt)

    def claim(self, text: str = "") -> ClaimCard:
        """Keep what is shown as a claim card: the best question if one was asked for, else what sets the group apart most."""
        n, frame = len(self.selection), self.ranking if len(self.ranking) else self.description
        if n < self.least:
            raise ValueError(f"{n} user(s) chosen, at least {self.least} are needed for a claim: choose more")
        if not len(frame):
            raise ValueError("nothing is known of them: make the panel with describe=..., or choose some users but not all")
        top, facts = (
            frame.iloc[0],
            {**(self._facts() if self._facts else {}), "n": len(self.selection.everyone), "chosen": f"{n:,}"},
        )
        if "query" in frame:
            facts |= {"query": top["query"], "metric": "AUC out of fold, the chosen against the rest", "value": top["auc"]}
            facts |= {"low": top["auc_low"], "high": top["auc_high"], "best_of": f"{len(frame)} questions"}
            facts |= {"chance_line": f"{top['chance']:.2f}", "sentence": self._explained[self.selection.ids]["sentence"]}
        else:
            unit = "medians" if top["kind"] == "number" else "shares"
            facts |= {
                "query": "no query",
                "metric": f"difference of {unit}, the chosen minus the rest: {top['kind']} {top['name']}",
            }
            facts |= {"value": top["group"] - top["rest"], "sentence": self.sentence}
            facts |= {end: top[end] for end in ("low", "high") if end in top}
        return ClaimCard.of(facts, dots(self._ranked["rows"]) if "query" in frame else bars(self._shown["rows"]), text=text)

    def _words(self) -> str:
        n, total = len(self.selection), len(self.selection.everyone)
        return f"SelectionPanel({n:,} of {total:,} user{'s' * (total != 1)} chosen, {len(self.named)} named)"

    def _still(self) -> str:
        self._describe_now()
        ranking = self.ranking.head(10)
        table = [["question", "AUC", "95 %", "chance line"]] if len(ranking) else []
        for row in ranking.itertuples():
            table.append([row.query, f"{row.auc:.2f}", f"{row.auc_low:.2f} to {row.auc_high:.2f}", f"{row.chance:.2f}"])
        found = self._explained.get(self.selection.ids, {})
        named = [f"{group.name}: {len(group.ids):,} users" for group in self.named.values()]
        words = [self.sentence, found.get("sentence", ""), found.get("caption", ""), *named]
        return still_page(self._about["title"], words, bars(self._shown["rows"]), table)

    def _group(self, name: str) -> Group:
        if name not in self.named:
            raise KeyError(f"no group is named {name!r}: there are {', '.join(self.named) or 'none, so save one first'}")
        return self.named[name]

    def _list(self) -> None:
        self._names = [{"name": group.name, "n": len(group.ids)} for group in self.named.values()]

    def _follow(self, rows: np.ndarray) -> None:
        """Others are chosen: say how many at once, and what sets them apart as soon as that is known."""
        with self._guard:
            self._shown = {**self._shown, "n": len(rows), "waiting": True, "sentence": ""}
        self._describer.start(lambda stop: self._describe_now(stop))
        if self.selection.ids in self._explained:
            self._last = self.selection.ids
        self._rank()

    def _described(self, ids: tuple[str, ...]) -> pd.DataFrame:
        if self._describe is None or not 0 < len(ids) < len(self.selection.everyone):
            return pd.DataFrame(columns=["kind", "name", *VALUES])
        known, frame = self._found
        if known != ids:
            frame = self._describe(ids)
            self._found = (ids, frame)
        return frame

    def _describe_now(self, stop: Event | None = None) -> None:
        ids = self.selection.ids
        try:
            frame = self._described(ids)
        except Exception as error:
            log.exception("describing %d users failed", len(ids))
            return self._tell(error=f"They could not be compared: {plain(error)}")
        if stop is not None and stop.is_set():
            return  # others are chosen by now
        with self._guard:
            some = frame.head(LISTED) if len(frame) else frame
            kinds = frame.groupby("kind", sort=False).head(LISTED // 2)
            rows = [figures(row) for row in frame.loc[some.index.union(kinds.index)].to_dict("records")]
            sentence = told(frame, len(ids), len(self.selection.everyone))
            self._shown = {"n": len(ids), "sentence": sentence, "rows": rows, "of": len(frame), "waiting": False}

    def _ready(self) -> tuple[str, ...]:
        if self._explain is None:
            raise ValueError("this panel asks no questions: make it with explain=partial(qa.explain_group, engine, cache)")
        return self.selection.ids

    def _work(self, ids: tuple[str, ...], stop: Event, aloud: bool = False) -> None:
        """Ask every question, show how far it is, and keep the ranking; on Cancel or an error the last one stays."""
        self._tell(busy=True, done=0, total=1, note="Asking")
        try:
            last = self._explained.get(ids) or self._listen(ids, stop)
            if last is None:
                return self._tell(note="Cancelled.")
            self._explained[ids] = last
            self._last = ids
            self._tell()
            self._rank()
        except Exception as error:
            log.exception("explaining %d users failed", len(ids))
            self._tell(error=f"No question could be found: {plain(error)}")
            if aloud:
                raise
        except BaseException:  # an interrupted cell
            self._tell(note="Interrupted.")
            raise

    def _listen(self, ids: tuple[str, ...], stop: Event) -> dict | None:
        updates, last = self._explain(ids), None
        with closing(updates):
            for update in updates:
                if stop.is_set():
                    return None
                last = update
                self._tell(busy=True, done=int(update["done"]), total=int(update["total"]), note=str(update["sentence"]))
        if last is None or last.get("frame") is None:
            raise ValueError("no ranking was given")
        return last

    def _rank(self) -> None:
        """Bring the ranking to the browser; `now` says whether it is of those who are chosen."""
        found = self._explained.get(self._last)
        if found is None:
            return
        rows = [{**figures(row), "query": str(row["query"])} for row in found["frame"].to_dict("records")]
        told = {"rows": rows, "sentence": str(found["sentence"]), "caption": str(found.get("caption", ""))}
        self._ranked = {**told, "n": len(self._last), "now": self._last == self.selection.ids}

    def _heard(self, _widget, message: dict, buffers: list) -> None:
        """Do what the browser asks, and say in the view what cannot be done."""
        kind, name = message.get("type"), str(message.get("name", ""))
        try:
            if kind == "explain":
                self._explainer.start(partial(self._work, self._ready()))
            elif kind == "cancel":
                self._explainer.cancel()
                if self._status.get("busy"):
                    self._tell(at_once=True, **self._status | {"note": "Cancelling"})
            elif kind == "clear":
                self.selection.clear()
            elif kind in ("save", "recall", "forget"):
                getattr(self, kind)(name)
                self._tell(note=f"Saved as “{name.strip()}”." if kind == "save" else "")
            elif kind == "combine":
                made = self.combine(str(message["first"]), str(message["how"]), str(message["second"]))
                self._tell(note=f"{made.name}: {len(made.ids):,} users." if made.ids else f"{made.name} is nobody.")
            elif kind == "export":
                path = self.export(vacant(self._name(), str(message.get("ending", ""))), message.get("salt") or None)
                self._tell(note=f"Written: {path.name}, {len(self.selection):,} users, beside this notebook.")
            elif kind == "keep":
                self._tell(
                    note=f"Kept: {self.claim().save(vacant(f'claim {self._name()}', 'html')).name}, beside this notebook."
                )
        except Exception as error:
            log.exception("%s failed", kind)
            self._tell(error=plain(error))

    def _name(self) -> str:
        ids = self.selection.ids
        return next((group.name for group in self.named.values() if group.ids == ids), f"group of {len(ids)}")
