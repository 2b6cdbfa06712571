"""Back end of the selection panel: which questions separate the selected users from the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import DRAWS, question_bank, rank_queries_for_group
from qanchor.workbench.messages import (
    group_queries_caption,
    group_queries_summary,
    progress_message,
)
from qanchor.workbench.updates import Update


class GroupQueriesBackend:
    """Rank questions for a group of users.

    Calling it, `backend(ids)`, returns an iterator of `Update`; the last one has `data["frame"]`,
    see `rank_queries_for_group`. Closing the iterator cancels.

    Args:
        embedding_cache: The users.
        questions: The questions (default: the `question_bank` of the model's concepts).

    Example:
        >>> from qanchor.analysis.embedding_cache import EmbeddingCache
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> backend = GroupQueriesBackend(EmbeddingCache(engine, engine.prefill(users)), ["Why?"])
        >>> *_, last = backend(users.ids[:12])
        >>> last.data["frame"]["query"].tolist()
        ['Why?']
    """

    def __init__(self, embedding_cache: EmbeddingCache, questions: Sequence[str] | None = None):
        self.embedding_cache = embedding_cache
        if questions is None:
            concepts = embedding_cache.engine.model.concepts
            questions = question_bank(concepts, embedding_cache.cache.unit)
        self.questions = list(questions)

    def __call__(self, ids: Iterable[str]) -> Iterator[Update]:
        """Rank the questions for a group.

        Args:
            ids: Ids of the group.

        Yields:
            Updates with the progress; the last one has `data["frame"]`.
        """
        unit = self.embedding_cache.cache.unit
        missing = set(self.questions) - set(self.embedding_cache.embeddings)
        under = "" if len(missing) == 1 else f" under {len(missing)} questions"
        total = len(self.questions)
        for step in rank_queries_for_group(self.embedding_cache, ids, self.questions):
            if isinstance(step, pd.DataFrame):
                message = group_queries_summary(step, unit)
                caption = group_queries_caption(DRAWS)
                yield Update(total, total, message, caption, data={"frame": step})
                return
            stage, done, total = step
            if stage == "users":
                message = progress_message("Embedded", done, total, unit, under)
            else:
                message = progress_message("Compared", done, total, "question")
            yield Update(done, total, message)
