"""Cache the embeddings of recent queries for one set of users."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.utils.arrays import LRUCache

# recent queries that are cached: 164 MB for 2,000 users; enough for all questions about a group
MAX_CACHED_QUERIES = 160
# largest number of cached embeddings, 2 GB at 128 dimensions: 40 queries of 100,000 users
MAX_CACHED_EMBEDDINGS = 4_000_000
MIN_CACHED_QUERIES = 8  # queries that are cached for any number of users


class EmbeddingCache:
    """Embed users under queries and keep the most recent results.

    `embeddings` (arrays of shape (user, dim) by query) is an LRU cache.

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
        """Embed all users under queries; those not in the cache share one pass over the users.

        Args:
            *queries: The queries; there may be more of them than the cache holds.

        Yields:
            ("users", done, total) while users are embedded. Closing the iterator cancels; only
            complete results are cached.

        Returns:
            Embeddings of shape (user, dim) by query.
        """
        results = {query: self.embeddings[query] for query in queries if query in self.embeddings}
        missing = [query for query in dict.fromkeys(queries) if query not in results]
        if not missing:
            return results
        n_users = len(self.ids)
        shape = (n_users, self.engine.model.config.embedding_dim)
        # one array per query: a view of a shared array would keep all queries in memory
        embedded = {query: np.zeros(shape, np.float32) for query in missing}
        done = 0
        for rows, z in self.engine.iter_embed(self.cache, missing):
            for column, query in enumerate(missing):
                embedded[query][rows] = z[:, column]
            done += len(rows)
            yield "users", done, n_users
        self.embeddings.update(embedded)
        return results | embedded
