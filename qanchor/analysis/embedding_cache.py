"""Embeddings and noise floors of the queries that were asked last, of the same users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from qanchor.analysis.shift import noise_floor
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.heads import EncodedQueries
from qanchor.utils.arrays import LRUCache

# Rewordings that do not change the question. What they move is the noise floor.
PARAPHRASES = (
    "{} Please answer.",
    "Tell me: {}",
    "A question: {}",
    "I would like to know: {}",
    "{} What do you think?",
)
# about so many users, of every length, are asked the paraphrases: twice as many as dimensions
PARAPHRASE_USERS = 256
MAX_CACHED_QUERIES = (
    160  # newest queries that are cached: 164 MB for 2,000 users; a bank of 72 questions fits in
)
# embeddings that are cached at most, 2 GB of 128 numbers: 40 queries of 100,000 users
MAX_CACHED_EMBEDDINGS = 4_000_000
MIN_CACHED_QUERIES = 8  # queries that are cached however many users there are


class EmbeddingCache:
    """Embed users under queries and keep the newest results.

    `embeddings` (query to array (user, dim)) and `noise_floors` (query to number) are LRU caches.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> store = EmbeddingCache(engine, engine.prefill(users))
        >>> *_, last = store.embed("Will this user travel soon?")
        >>> last, store.embeddings["Will this user travel soon?"].shape
        ((40, 40), (40, 32))
    """

    def __init__(self, engine: Engine, cache: PrefixCache):
        self.engine = engine
        self.cache = cache
        self.ids = cache.ids
        affordable = MAX_CACHED_EMBEDDINGS // max(len(cache), 1)
        size = min(MAX_CACHED_QUERIES, max(MIN_CACHED_QUERIES, affordable))
        self.embeddings = LRUCache(size)
        self.noise_floors = LRUCache(MAX_CACHED_QUERIES)
        self._encodings = LRUCache(MAX_CACHED_QUERIES)

    def encode(self, query: str) -> EncodedQueries:
        """Return a query as token ids, hidden state and text vector; each query is encoded once.

        Args:
            query: The query.
        """
        if query not in self._encodings:
            self._encodings[query] = self.engine.encode_query(query)
        return self._encodings[query]

    def embed(self, query: str) -> Iterator[tuple[int, int]]:
        """Embed all users under a query, unless that is cached; then `embeddings[query]` is there.

        Args:
            query: The query.

        Yields:
            (done, total) users. Nothing if the query is cached. Closing the iterator cancels: only
            whole results are cached.
        """
        if query in self.embeddings:
            self.embeddings.move_to_end(
                query
            )  # it must not be evicted for the query that it is compared with
            return
        for step in self.embed_all([query]):
            if isinstance(step, tuple):
                yield step

    def embed_all(
        self, queries: Sequence[str]
    ) -> Iterator[tuple[int, int] | dict[str, np.ndarray]]:
        """Embed all users under several queries, asking those that are not cached in one visit of
        each user.

        Args:
            queries: The queries; there may be more of them than are cached.

        Yields:
            (done, total) users while there is something to embed; last a dict, query to (user,
            dim).
        """
        results = {query: self.embeddings[query] for query in queries if query in self.embeddings}
        missing = [query for query in dict.fromkeys(queries) if query not in results]
        if missing:
            shape = (len(missing), len(self.ids), self.engine.model.config.embedding_dim)
            rows_by_query = np.zeros(shape, np.float32)
            done = 0
            queries = self.encode(missing[0]) if len(missing) == 1 else missing
            for rows, z in self.engine.iter_embed(self.cache, queries):
                rows_by_query[:, rows] = z.swapaxes(0, 1)
                done += len(rows)
                yield done, len(self.ids)
            for query, embeddings in zip(missing, rows_by_query, strict=True):
                # a copy, because a view of one query would keep all of them in memory
                results[query] = embeddings if len(missing) == 1 else embeddings.copy()
                self.embeddings[query] = results[query]
        yield results

    def noise_floor(self, query: str) -> float:
        """Return the shift that rewording the query alone stays under for 95 % of the users.

        Args:
            query: A query that was embedded.

        Returns:
            The residual shift, see `analysis.shift.noise_floor`.
        """
        if query in self.noise_floors:
            return self.noise_floors[query]
        step = max(1, round(len(self.ids) / PARAPHRASE_USERS))
        groups = self.cache.groups[::step]
        rows = np.concatenate([group.rows for group in groups])
        texts = [paraphrase.format(query) for paraphrase in PARAPHRASES]
        subset = replace(self.cache, groups=groups)
        reworded = np.concatenate([z for _, z in self.engine.iter_embed(subset, texts)])
        by_paraphrase = [reworded[:, place] for place in range(len(texts))]
        self.noise_floors[query] = noise_floor(self.embeddings[query][rows], by_paraphrase)
        return self.noise_floors[query]
