"""Who is nearest to a yes under the query that is shown, and how often such an order was right before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from threading import Event, RLock

import numpy as np
import pandas as pd

from widgets.base import Worker, closing, log, plain
from widgets.packing import leaning

MOST = 0.8  # of the users: where more than so many moved, that they did tells nobody apart


class Order:
    """Rank the users of one query after another by how near they are to a yes, beside the kernel, and look back when asked.

    lean        called as `lean(query)`; yields None, then a frame of `user` and `score`.
    look_back   called as `look_back(query)`; yields (stage, done, total), then one object with `right, low, high, n, cutoff`
                whose str says it all.
    show        called with `{"query", "words"}`, and the "score" of a query that has a yes.
    show_past   called with `{"query", "words"}` of what looking back found (no words: nothing yet), and "busy" meanwhile.
    """

    def __init__(
        self,
        ids: tuple[str, ...],
        lean: Callable[[str], Iterator[pd.DataFrame | None]] | None,
        look_back: Callable[[str], Iterator] | None,
        show: Callable[[dict], None],
        show_past: Callable[[dict], None],
        turn: RLock,
        kept: int,
    ):
        self.can_rank, self.can_look_back = lean is not None, lean is not None and look_back is not None
        self._ids, self._lean, self._look_back, self._kept = ids, lean, look_back, kept
        self._show, self._show_past = show, show_past
        self._worker, self._told, self._past = Worker(turn), {}, {}

    def rank(self, query: str) -> None:
        """Find who is nearest to a yes, and show it; a failure is told in the place of the words."""
        self._worker.start(partial(self._rank, query))

    def look_back(self, query: str) -> None:
        """Find how often the order of a query that was ranked was right before, and show it."""
        self._worker.start(partial(self._back, query))

    def cancel(self) -> None:
        """Stop what runs; nothing that was found is lost."""
        self._worker.cancel()

    def frame(self, query: str) -> pd.DataFrame:
        """Give the order of a query that was ranked, the nearest to yes first: `user, score`."""
        told = self._told.get(query, {})
        if "score" not in told:
            return pd.DataFrame(columns=["user", "score"])
        frame = pd.DataFrame({"user": self._ids, "score": _scores(told)})
        return frame[frame["score"] > -np.inf].sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def facts(self, query: str, moved: str, share: float, warning: str, rows: np.ndarray, unit: str) -> dict:
        """Say what a claim card tells of a query, of the order and of the chosen `rows`.

        moved, share   the sentence that says who moved, and the share that did: where it is most users, the order is the claim.
        """
        told, past = self._told.get(query, {}), self._past.get(query)
        facts, ranked = {"sentence": f"{moved} {warning}".strip()}, "score" in told
        chosen = f"{len(rows):,} {unit}{'s' * (len(rows) != 1)}"
        if ranked and share > MOST:  # that they moved tells nobody apart
            facts = {"sentence": f"{told['nearest']} {warning}".strip(), "who_moved": moved}
            if past is not None and past.right is not None:
                facts |= {"metric": f"pairs of {unit}s in the right order, asked as of {past.cutoff} (luck: 0.5)", "n": past.n}
                facts |= {"value": past.right, "low": past.low, "high": past.high}
        if ranked:
            facts["order"] = told["words"]
            score = _scores(told)
            nearer = np.searchsorted(np.sort(score), score[rows]) / max(len(score) - 1, 1)  # than so many of the others
            chosen += f", on average nearer to yes than {nearer.mean():.0%} of all" if len(rows) else ""
        if ranked and self.can_look_back:
            facts["in_hindsight"] = "not looked at" if past is None else str(past).removeprefix("in hindsight, ")
        return facts | ({"chosen": chosen} if len(rows) else {})

    def marks(self, query: str, share: float, rows: np.ndarray) -> tuple[np.ndarray | None, str]:
        """Say whom a claim card's map marks: the movers (None), or where most moved the chosen, or those nearest to yes."""
        told, marked = self._told.get(query, {}), np.zeros(len(self._ids), bool)
        if share <= MOST or "score" not in told:
            return None, "moved beyond the noise floor"
        near = np.argsort(-_scores(told))[: max(len(marked) // 10, 1)]
        marked[rows if len(rows) else near] = True
        return marked, "are the chosen" if len(rows) else "are the tenth nearest to yes"

    def _rank(self, query: str, stop: Event) -> None:
        try:
            if query not in self._told:
                with closing(self._lean(query)) as updates:
                    frame = next((frame for frame in updates if stop.is_set() or frame is not None), None)
                if frame is None:
                    return  # stopped
                self._told = dict([*self._told.items(), (query, leaning(self._ids, frame))][-self._kept :])
            self._show({"query": query, **self._told[query]})
            self._show_past(self._said(query))
        except Exception as error:
            log.exception("no order of %r", query)
            self._show({"query": query, "words": f"Who leans to yes is not known: {plain(error)}"})

    def _back(self, query: str, stop: Event) -> None:
        try:
            with closing(iter(()) if query in self._past else self._look_back(query)) as steps:
                for step in steps:
                    if stop.is_set():
                        break
                    if isinstance(step, tuple):
                        stage, done, total = step
                        self._show_past({"query": query, "busy": True, "words": f"{_big(stage)}: {done:,} of {total:,} ..."})
                    else:
                        self._past = dict([*self._past.items(), (query, step)][-self._kept :])
            self._show_past(self._said(query))
        except Exception as error:
            log.exception("no hindsight of %r", query)
            self._show_past({"query": query, "words": f"No hindsight: {plain(error)}"})

    def _said(self, query: str) -> dict:
        past = self._past.get(query)
        return {"query": query, "words": "" if past is None else f"{_big(str(past))}."}


def _scores(told: dict) -> np.ndarray:
    """Give the scores that the browser has, one a user; of whom none is known comes last."""
    return np.nan_to_num(np.frombuffer(told["score"], np.float32), nan=-np.inf)


def _big(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
