"""All that the views of a workbench ask, of one engine and its users: read once, and handed over as one object."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .compare import compare
from .deck import Deck
from .engine import Engine
from .explain import explain_group
from .groups import describe_group, export_group
from .looker import Looker
from .schema import Users
from .tuner import Tuner


class Desk:
    """Read users once and hold what each view of a workbench asks of them: `Workbench(Desk(engine, users))`.

    frame    who the users are; ask: for a `QueryLens`; describe, explain, export, facts: for a `SelectionPanel`;
    look     for an `AttentionLedger`; tune: for a `PromptLab` (None without labels); compare(before, after): for a
             `ClusterLedger`, of two queries that were asked or typed; deck: for a `ShiftMatrix`.
    method   of the map: "umap" or "pca" (None: as `engine.asker`). progress: called with (done, total) users as they are read.

    All of them share one store of embeddings by query: what one view has asked costs the next nothing.

    Example:
        >>> users = qa.make_world(40)
        >>> desk = Desk(qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))), users, method="pca")
        >>> desk.compare("", "Will this user travel soon?")["sentence"].split(".")[0]
        '0 clusters became 0: none on either side'
    """

    def __init__(
        self, engine: Engine, users: Users, *, method: str | None = None, progress: Callable[[int, int], None] | None = None
    ):
        self.engine, self.users = engine, users
        self.cache = engine.prefill(users, progress=progress)
        self.frame, self.ask = users.frame(), engine.asker(self.cache, method=method, users=users)
        self.method = self.ask.method
        self.describe, self.export = partial(describe_group, users), partial(export_group, users)
        self.explain = partial(explain_group, engine, self.cache, kept=self.ask.kept)
        self.facts, self.look = self.ask.facts, Looker(engine, users)
        self.deck = Deck(self.ask, users)
        self.tune = Tuner(engine, self.cache, users) if len(users.labels.columns) else None

    def compare(self, before: str, after: str) -> dict:
        """Cluster the users under two queries and keep the books: the frames that a `ClusterLedger` draws."""
        return compare(self._embedded(before), self._embedded(after), self.users, method=self.method)

    def _embedded(self, query: str):
        if query not in self.ask.kept:
            self.ask.kept[query] = self.engine.embed(self.cache, query)
        return self.ask.kept[query]
