"""Embeddings of the queries that were asked last, of the same users."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.utils.arrays import LRUCache

# newest queries that are cached: 164 MB for 2,000 users; the questions of a group fit in
MAX_CACHED_QUERIES = 160
# embeddings that are cached at most, 2 GB of 128 numbers: 40 queries of 100,000 users
MAX_CACHED_EMBEDDINGS = 4_000_000
MIN_CACHED_QUERIES = 8  # queries that are cached however many users there are


class EmbeddingCache:
    """Embed users under queries and keep the newest results.

    `embeddings` (query to array (user, dim)) is an LRU cache.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> store = EmbeddingCache(engine, engine.prefill(users))
        >>> *_, last = store.embed("Will this user come back?")
        >>> last, store.embeddings["Will this user come back?"].shape
        (('users', 60, 60), (60, 128))
    """

    def __init__(self, engine: Engine, cache: PrefixCache):
        self.engine = engine
        self.cache = cache
        self.ids = cache.ids
        affordable = MAX_CACHED_EMBEDDINGS // len(cache)
        size = min(MAX_CACHED_QUERIES, max(MIN_CACHED_QUERIES, affordable))
        self.embeddings = LRUCache(size)

    def embed(self, *queries: str) -> Generator[tuple[str, int, int], None, dict[str, np.ndarray]]:
        """Embed all users under queries, those that are not cached in one visit of each user.

        Args:
            *queries: The queries; there may be more of them than are cached.

        Yields:
            ("users", done, total) while there is something to embed. Closing the iterator cancels:
            only whole results are cached.

        Returns:
            Query to (user, dim).
        """
        results = {query: self.embeddings[query] for query in queries if query in self.embeddings}
        missing = [query for query in dict.fromkeys(queries) if query not in results]
        if missing:
            shape = (len(self.ids), self.engine.model.config.embedding_dim)
            # an array a query, because a view of one query would keep all of them in memory
            embedded = {query: np.zeros(shape, np.float32) for query in missing}
            done = 0
            for rows, z in self.engine.iter_embed(self.cache, missing):
                for place, query in enumerate(missing):
                    embedded[query][rows] = z[:, place]
                done += len(rows)
                yield "users", done, len(self.ids)
            self.embeddings.update(embedded)
            results |= embedded
        return results
