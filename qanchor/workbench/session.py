"""All back ends of a workbench in one object, for one engine and its users."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from qanchor.analysis.clusters import compare_clusters
from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.groups import describe_group
from qanchor.analysis.retention import funnel, retention
from qanchor.data.export import export_group
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.workbench.attention import AttentionBackend
from qanchor.workbench.clusters import comparison_update
from qanchor.workbench.group_queries import GroupQueriesBackend
from qanchor.workbench.lens import LensBackend
from qanchor.workbench.messages import funnel_summary, group_summary, retention_summary
from qanchor.workbench.prompt_tuning import PromptTuningBackend
from qanchor.workbench.query_matrix import QueryMatrixBackend
from qanchor.workbench.updates import Update


class WorkbenchSession:
    """Encode users once and provide the back end of every view:
    `Workbench(WorkbenchSession(engine, users))`.

    All back ends share one cache of embeddings, so no view repeats a computation of another.

    Attributes: `engine`, `users`, `cache`; `frame` (one row per user); `lens`, `attention`,
    `matrix`, `tuning` (None without labels): the back ends of these views; `describe`, `explain`,
    `export`, `provenance`: for the selection panel; `retention`, `funnel`, `steps` (examples): for
    the retention view; `compare`: for the cluster view.

    Args:
        engine: The model.
        users: The users.
        method: Method of the map, "umap" or "pca" (default: as for `LensBackend`).

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> session = WorkbenchSession(engine, users, method="pca")
        >>> session.compare("", "Will this user come back?").message
        '0 clusters became 0: none on either side.'
    """

    def __init__(self, engine: Engine, users: Users, *, method: str | None = None):
        self.engine = engine
        self.users = users
        self.cache = engine.prefill(users)
        self.frame = users.frame()
        self.steps = users.modalities
        self.embedding_cache = EmbeddingCache(engine, self.cache)
        self.lens = LensBackend(
            engine, self.cache, users, method=method, embedding_cache=self.embedding_cache
        )
        self.attention = AttentionBackend(engine, users)
        self.matrix = QueryMatrixBackend(self.embedding_cache, users)
        has_labels = len(users.labels.columns) > 0
        self.tuning = PromptTuningBackend(engine, self.cache, users) if has_labels else None
        self.explain = GroupQueriesBackend(self.embedding_cache)
        self.export = partial(export_group, users)
        self.provenance = self.lens.provenance

    def describe(self, ids: Collection[str]) -> Update:
        """Compare selected users with all others.

        Args:
            ids: Ids of the selected users.

        Returns:
            An update whose message says how they differ; `data["frame"]` comes from
            `describe_group`.
        """
        frame = describe_group(self.users, ids)
        n_selected = len(set(map(str, ids)))
        message = group_summary(frame, n_selected, len(self.users), self.users.unit)
        return Update(1, 1, message, data={"frame": frame})

    def retention(self, ids: Collection[str] | None = None) -> Update:
        """Count how many users stay after their first day, for selected users and all others.

        Args:
            ids: Ids of the selected users (default: all users are one group).

        Returns:
            An update with a summary; `data["frame"]` comes from `analysis.retention.retention`.
        """
        frame = retention(self.users, ids)
        return Update(1, 1, retention_summary(frame), data={"frame": frame})

    def funnel(self, ids: Collection[str] | None, steps: Sequence[str]) -> Update:
        """Count how many users reached each step of a funnel.

        Args:
            ids: Ids of the selected users; None if all users are one group.
            steps: The steps in order, see `analysis.retention.funnel`.

        Returns:
            An update with a summary; `data["frame"]` comes from `analysis.retention.funnel`.
        """
        frame = funnel(self.users, steps, ids)
        return Update(1, 1, funnel_summary(frame), data={"frame": frame})

    def compare(self, before: str, after: str) -> Update:
        """Compare the clusters of the users under two queries.

        Args:
            before: The first query; "" for the embeddings without a question.
            after: The second query.

        Returns:
            An update from `comparison_update`.
        """
        for _ in self.embedding_cache.embed(before, after):
            pass
        embeddings = self.embedding_cache.embeddings
        comparison = compare_clusters(
            embeddings[before], embeddings[after], self.users, method=self.lens.method
        )
        return comparison_update(comparison, self.users.unit)
