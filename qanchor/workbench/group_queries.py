"""The back end of the selection panel: which question separates the selected users from the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import DRAWS, question_bank, rank_queries_for_group
from qanchor.workbench.messages import (
    embedding_progress,
    group_queries_caption,
    group_queries_summary,
    questions_progress,
)
from qanchor.workbench.updates import Update


class GroupQueriesBackend:
    """Rank questions for a group of users.

    Calling it, `backend(ids)`, returns an iterator of `Update`; the last one has `data["frame"]`,
    see `rank_queries_for_group`. Closing the iterator cancels.

    Args:
        embedding_cache: The users.
        questions: Texts, or a mapping from texts to topic names; default `question_bank`.

    Example:
        >>> from qanchor.analysis.embedding_cache import EmbeddingCache
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> backend = GroupQueriesBackend(EmbeddingCache(engine, engine.prefill(users)), ["Why?"])
        >>> *_, last = backend(users.ids[:12])
        >>> last.data["frame"]["query"].tolist()
        ['Why?']
    """

    def __init__(
        self,
        embedding_cache: EmbeddingCache,
        questions: Sequence[str] | Mapping[str, str] | None = None,
    ):
        self.embedding_cache = embedding_cache
        self.questions = questions

    def __call__(self, ids: Iterable[str]) -> Iterator[Update]:
        """Rank the questions for a group.

        Args:
            ids: The group.

        Yields:
            Progress; the last update has `data["frame"]`.
        """
        unit = self.embedding_cache.cache.unit
        questions = question_bank(unit) if self.questions is None else self.questions
        missing = [query for query in questions if query not in self.embedding_cache.embeddings]
        done = 0
        total = len(questions)
        steps = rank_queries_for_group(self.embedding_cache, ids, questions)
        for step in steps:
            if isinstance(step, pd.DataFrame):
                message = group_queries_summary(step, unit)
                yield Update(
                    total, total, message, group_queries_caption(DRAWS), data={"frame": step}
                )
                continue
            stage, done, total = step
            if stage == "users":
                yield Update(done, total, embedding_progress(done, total, unit, len(missing)))
            else:
                yield Update(done, total, questions_progress(done, total))
