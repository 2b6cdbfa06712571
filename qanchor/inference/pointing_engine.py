"""`PointingEngine`: the engine of a run from `fit`. `Engine` returns it for one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from qanchor.data.users import Users
from qanchor.inference.engine import Engine, Queries
from qanchor.inference.evidence import encode_questions, rank_by_pointing
from qanchor.inference.prefix_cache import PrefixCache, UserBatch
from qanchor.models.compatibility import READ_BY_NAME, input_differences
from qanchor.models.heads import EncodedQueries, QueryLike, query_text, require_own_prompt
from qanchor.models.pointing import (
    Reading,
    iter_readings,
    row_batches,
    thing_input,
    token_gradients,
    token_input,
)
from qanchor.models.pointing_model import PointingModel
from qanchor.utils.types import Progress


class PointingEngine(Engine):
    """Serve a pointing model: tokens are read once, and every question attends to them.

    Args:
        model: Trained model.

    Example:
        >>> users = qa.make_sample_users(200)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> type(engine).__name__
        'PointingEngine'
    """

    def __init__(self, model: PointingModel):
        self.model = model.eval().requires_grad_(False)

    @property
    def pointing(self) -> PointingModel:
        """Return the model, which ranks users for typed questions."""
        return self.model

    def prefill(
        self, users: Users, *, progress: Progress | None = None, **_options: object
    ) -> PrefixCache:
        """Read every user up to the cut-off, once.

        Args:
            users: Users to read.
            progress: Called with (done, total) users. Default: none.
            **_options: Options of `Engine.prefill`; they do nothing here.

        Returns:
            A cache of the users, in the order of `users.ids`.

        Raises:
            ValueError: There are no users.
        """
        if not len(users):
            raise ValueError("There are no users to read. Check the folder or the selection.")
        cache = PrefixCache(users.ids, users.unit, users.horizon_days)
        cache.tokens = self.read_tokens(users)
        cache.groups = [UserBatch(rows, None, None) for rows in row_batches(len(users))]
        if progress:
            progress(len(users), len(users))
        return cache

    def update(
        self,
        cache: PrefixCache,
        users: Users,
        *,
        progress: Progress | None = None,
        **_options: object,
    ) -> PrefixCache:
        """Return a cache of the same users at another cut-off, see `Engine.update`.

        Args:
            cache: Cache of the users; it is not changed.
            users: The same users with all their events up to the new cut-off.
            progress: Called with (done, total) users. Default: none.
            **_options: Options of `Engine.update`; they do nothing here.

        Returns:
            The new cache.

        Raises:
            ValueError: The users are not those of the cache, in the same order.
        """
        self.require_same_users(cache, users)
        return self.prefill(users, progress=progress)

    def input_differences(self, users: Users) -> list[str]:
        """Return where users differ from those that the run was trained on, a message for each.

        Args:
            users: Users to read.
        """
        population = self.model.population
        return input_differences(
            users, population.named("modality"), population.named("number"), READ_BY_NAME
        )

    def encode_queries(self, queries: Queries) -> EncodedQueries:
        """Check queries for repeated use; a text vector is computed once and remembered.

        Args:
            queries: Texts and soft prompts. Encoded queries are returned as they are.
        """
        if isinstance(queries, EncodedQueries):
            return queries
        for query in queries:
            require_own_prompt(query, self.model.run)
        return EncodedQueries(tuple(queries), [], None, None)

    def iter_embed(
        self, cache: PrefixCache, queries: Queries
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embed batch by batch. Close the iterator to stop.

        Args:
            cache: From `prefill`.
            queries: Queries, or what `encode_queries` returned for them.

        Yields:
            Row numbers of a batch, and its embeddings (user, query, dim).
        """
        for rows, reading in self.iter_read(cache, queries):
            yield rows, reading.embedding.numpy()

    def iter_read(
        self, cache: PrefixCache, queries: Queries
    ) -> Iterator[tuple[np.ndarray, Reading]]:
        """Read users batch by batch: scores, attention over their tokens, and embeddings.

        Args:
            cache: From `prefill`.
            queries: Queries, or what `encode_queries` returned for them.

        Yields:
            Row numbers of a batch, and what the reader makes of it.
        """
        tokens = cache.tokens
        queries = self.encode_queries(queries).queries
        question = encode_questions(self.model, queries, tokens.unit, tokens.horizon_days)
        batches = [batch.rows for batch in cache.groups]
        yield from iter_readings(self.model.reader, tokens, question, batches)

    def iter_token_gradients(
        self, cache: PrefixCache, query: QueryLike
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Compute, batch by batch, how much each user's score depends on each token.

        Args:
            cache: From `prefill`.
            query: Text or soft prompt.

        Yields:
            Row numbers of a batch, and the gradients (user, token), see `token_gradients`.
        """
        self.encode_queries([query])  # refuses a prompt of another run
        tokens = cache.tokens
        with torch.inference_mode(False):  # gradients are needed, whatever the caller does
            question = encode_questions(self.model, [query], tokens.unit, tokens.horizon_days)
            things = thing_input(tokens)
        for batch in cache.groups:
            with torch.inference_mode(False):
                users = token_input(tokens, batch.rows)
                gradients = token_gradients(self.model.reader, users, question, things)
            yield batch.rows, gradients

    def iter_embed_uncached(
        self, users: Users, queries: Queries
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read and embed users batch by batch, for users queried only once.

        Args:
            users: Users to read.
            queries: Queries, or what `encode_queries` returned for them.

        Yields:
            Row numbers of a batch, and its embeddings (user, query, dim).
        """
        yield from self.iter_embed(self.prefill(users), queries)

    def generate(self, cache: PrefixCache, user: str, query: QueryLike, limit: int = 40) -> str:
        """Return what one user did of what a query means, counted in the table.

        Args:
            cache: From `prefill`.
            user: Id of the user.
            query: Text or soft prompt.
            limit: Not used; `Engine.generate` has it.

        Returns:
            The answer; empty if nothing in the data speaks of the query.

        Raises:
            KeyError: The user is not in the cache.
        """
        row = self.require_user(cache, user)
        one = cache.tokens.select([row])
        return rank_by_pointing(self.model, one, query_text(query))["answer"][0]
