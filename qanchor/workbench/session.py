"""All that the views of a workbench ask, of one engine and its users: read once, and handed over as one object."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qanchor.analysis.clusters import compare_clusters
from qanchor.analysis.group_queries import rank_queries_for_group
from qanchor.analysis.groups import describe_group
from qanchor.analysis.query_matrix import QueryMatrixBackend
from qanchor.data.export import export_group
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.workbench.attention import AttentionBackend
from qanchor.workbench.lens import LensBackend
from qanchor.workbench.prompt_tuning import PromptTuningBackend


class WorkbenchSession:
    """Read users once and hold what each view of a workbench asks of them: `Workbench(Desk(engine, users))`.

    frame    who the users are; ask: for a `QueryLens`; describe, explain, export, facts: for a `SelectionPanel`;
    look     for an `AttentionLedger`; tune: for a `PromptLab` (None without labels); compare(before, after): for a
             `ClusterLedger`, of two queries that were asked or typed; deck: for a `ShiftMatrix`.
    method   of the map: "umap" or "pca" (None: as `LensBackend`). progress: called with (done, total) users as they are read.

    All of them share one store of embeddings by query: what one view has asked costs the next nothing.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> desk = WorkbenchSession(qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))), users, method="pca")
        >>> desk.compare("", "Will this user travel soon?")["sentence"].split(".")[0]
        '0 clusters became 0: none on either side'
    """

    def __init__(
        self, engine: Engine, users: Users, *, method: str | None = None, progress: Callable[[int, int], None] | None = None
    ):
        self.engine, self.users = engine, users
        self.cache = engine.prefill(users, progress=progress)
        self.frame, self.ask = users.frame(), LensBackend(engine, self.cache, users, method=method)
        self.method = self.ask.method
        self.describe, self.export = partial(describe_group, users), partial(export_group, users)
        self.explain = partial(rank_queries_for_group, engine, self.cache, kept=self.ask.kept)
        self.facts, self.look = self.ask.facts, AttentionBackend(engine, users)
        self.deck = QueryMatrixBackend(self.ask, users)
        self.tune = PromptTuningBackend(engine, self.cache, users) if len(users.labels.columns) else None

    def compare(self, before: str, after: str) -> dict:
        """Cluster the users under two queries and keep the books: the frames that a `ClusterLedger` draws."""
        return compare_clusters(self._embedded(before), self._embedded(after), self.users, method=self.method)

    def _embedded(self, query: str):
        if query not in self.ask.kept:
            self.ask.kept[query] = self.engine.embed(self.cache, query)
        return self.ask.kept[query]
