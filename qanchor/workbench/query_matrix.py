"""Back end of the query matrix: questions crossed with groups of users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.query_matrix import (
    MAX_QUERIES,
    default_groups,
    query_group_matrix,
)
from qanchor.data.export import MIN_GROUP_SIZE
from qanchor.data.users import Users
from qanchor.utils.arrays import LRUCache
from qanchor.utils.text import plural
from qanchor.workbench.messages import (
    MEASURE_NOTES,
    matrix_caption,
    matrix_progress,
    matrix_summary,
)
from qanchor.workbench.updates import Update

# most recent results that are cached: 6 kB each, plus an eighth of a byte per user
MAX_CACHED_CELLS = 2_000


class QueryMatrixBackend:
    """Measure what questions do to groups of users.

    Calling it, `backend(queries, groups)`, returns an iterator of `Update`; closing the iterator
    cancels.

    Attributes: `queries` and `groups` that a view starts with (see `Engine.suggest_queries` and
    `default_groups`), `ids`, `unit`, `units` and `least` (smallest size of a group).

    Args:
        embedding_cache: The users, such as `LensBackend.embedding_cache`.
        users: The same users.

    Example:
        >>> from qanchor.analysis.embedding_cache import EmbeddingCache
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> backend = QueryMatrixBackend(EmbeddingCache(engine, engine.prefill(users)), users)
        >>> *_, last = backend(backend.queries[:1], {"some": users.ids[:20]})
        >>> last.data["frame"]["query"].tolist() == backend.queries[:1]
        True
    """

    def __init__(self, embedding_cache: EmbeddingCache, users: Users):
        self.embedding_cache = embedding_cache
        self.ids = users.ids
        self.unit = users.unit
        self.units = plural(users.unit)
        self.least = MIN_GROUP_SIZE
        self.queries = list(embedding_cache.engine.suggest_queries(users, MAX_QUERIES))
        self.groups = default_groups(users)
        self._cells = LRUCache(MAX_CACHED_CELLS)

    def __call__(
        self, queries: Sequence[str], groups: Mapping[str, Iterable[str]]
    ) -> Iterator[Update]:
        """Measure what each question does to each group, row by row.

        Args:
            queries: The questions.
            groups: Ids of the users of each group, by its name.

        Yields:
            Updates with `data["frame"]`, the rows so far (None before the first; see
            `query_group_matrix`), and `data["reads"]`, which explains each measure.
        """
        n_queries = len({str(query).strip() for query in queries})
        n_users = len(self.ids)
        dim = self.embedding_cache.engine.model.config.embedding_dim
        caption = matrix_caption(n_queries, n_users, dim, self.unit)
        total = n_users * n_queries
        for step in query_group_matrix(self.embedding_cache, queries, groups, cells=self._cells):
            if isinstance(step, pd.DataFrame):
                done = total
                frame = step
                message = matrix_summary(frame, self.unit)
            else:
                done = n_users * step.row + step.done
                frame = step.frame
                message = matrix_progress(step, n_queries, n_users, self.unit)
            data = {"frame": frame, "reads": MEASURE_NOTES}
            yield Update(done, total, message, caption, data=data)
