"""`Engine`: read users once, then ask any number of questions about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from qanchor.data.users import Users
from qanchor.inference.evidence import (
    encode_questions,
    interpret,
    past_answers,
    rank_by_pointing,
    require_read,
)
from qanchor.inference.prefix_cache import PrefixCache, UserBatch
from qanchor.models.compatibility import input_differences
from qanchor.models.model import QAnchor
from qanchor.models.pointing import (
    Reading,
    iter_readings,
    replace_unit,
    row_batches,
    thing_input,
    token_gradients,
    token_input,
)
from qanchor.models.queries import QueryLike, query_text, require_own_prompt
from qanchor.models.user_tokens import TokenReader
from qanchor.useru.concept_answers import graded_answers
from qanchor.useru.suggestions import suggest_queries
from qanchor.utils.types import Progress


class Engine:
    """Serve a trained model: read users once, then run any number of queries.

    Args:
        model: Trained model, or the folder of a run.

    Raises:
        RunError: The folder is not a run, or the run is damaged.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> engine.embed(engine.prefill(users), "Will this user travel soon?").shape
        (60, 128)
    """

    def __init__(self, model: QAnchor | str | Path):
        if not isinstance(model, QAnchor):
            model = QAnchor.from_pretrained(model)
        self.model = model.eval().requires_grad_(False)

    # -- reading users --

    def prefill(
        self, users: Users, *, budget_gb: float = 6.0, progress: Progress | None = None
    ) -> PrefixCache:
        """Read the events of every user before the cut-off, once.

        Args:
            users: Users to read.
            budget_gb: Memory for cached keys and values in GB (default 6). Only used if a language
                model reads users as a prefix (the paper's form); users beyond the budget are read
                again for every query.
            progress: Called with (done, total) users (default: none).

        Returns:
            The cached users, in the order of `users.ids`.

        Raises:
            ValueError: There are no users.
        """
        if not len(users):
            raise ValueError("There are no users to read. Check the folder or the selection.")
        encoder = self.model.config.text_encoder
        tokens = TokenReader(users, encoder, population=self.model.population).read()
        cache = PrefixCache(tokens)
        things = thing_input(tokens)
        reader = self.model.reader
        left = budget_gb * 1e9
        for rows in row_batches(len(users), reader.users_per_pass):
            prefix = None
            if reader.reads_prefix and left > 0:
                with torch.inference_mode():
                    prefix = reader.prefill(token_input(tokens, rows), things)
                left -= prefix.keys.nbytes + prefix.values.nbytes
                if left < 0:
                    prefix = None
            cache.groups.append(UserBatch(rows, prefix))
            if progress:
                progress(int(rows[-1]) + 1, len(users))
        return cache

    def suggest_queries(self, users: Users, many: int = 6) -> tuple[str, ...]:
        """Return questions that suit the users, among the concepts that the run was trained on.

        Args:
            users: The users.
            many: Maximum number of questions (default 6).
        """
        population = self.model.population
        share = dict(zip(population.things, np.exp(-population.rarity).tolist(), strict=True))
        return suggest_queries(self.model.concepts, share, users.unit, users.horizon_days, many)

    # -- checks --

    def input_differences(self, users: Users) -> list[str]:
        """Return a message for each difference between the users and the run's training users.

        Args:
            users: Users to check.
        """
        return input_differences(users, self.model.population)

    # -- queries --

    def embed(
        self,
        cache: PrefixCache,
        query: QueryLike | Sequence[QueryLike],
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "user ..."]:
        """Embed every user for one query or several.

        Several queries run in one pass over the users, with the same results as one by one.

        Args:
            cache: Users from `prefill`.
            query: A text or soft prompt, or a list of them.
            progress: Called with (done, total) users (default: none).

        Returns:
            Unit embeddings in the order of `cache.ids`: (user, dim) for one query, (user, query,
            dim) for a list.

        Raises:
            ValueError: There is no query, a query is too long, or a soft prompt was tuned on
                another run.
        """
        is_one = isinstance(query, QueryLike)
        queries = [query] if is_one else query
        if not len(queries):
            raise ValueError("There are 0 queries. Pass at least 1.")
        out = np.zeros((len(cache), len(queries), self.model.config.embedding_dim), np.float32)
        for rows, embeddings in self.iter_embed(cache, queries):
            out[rows] = embeddings
            if progress:
                progress(int(rows[-1]) + 1, len(cache))
        return out[:, 0] if is_one else out

    def iter_embed(
        self, cache: PrefixCache, queries: Sequence[QueryLike]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embed users batch by batch. Close the iterator to stop.

        Args:
            cache: Users from `prefill`.
            queries: Texts and soft prompts.

        Yields:
            Row numbers of a batch, and its embeddings (user, query, dim).
        """
        for rows, reading in self.iter_read(cache, queries):
            yield rows, reading.embedding.numpy()

    def iter_read(
        self, cache: PrefixCache, queries: Sequence[QueryLike]
    ) -> Iterator[tuple[np.ndarray, Reading]]:
        """Compute scores, attention over tokens, and embeddings, batch by batch.

        Args:
            cache: Users from `prefill`.
            queries: Texts and soft prompts.

        Yields:
            Row numbers of a batch, and the reader's output for it.
        """
        question = self._encode(cache, queries)
        yield from iter_readings(self.model.reader, cache.tokens, question, cache.groups)

    def iter_token_gradients(
        self, cache: PrefixCache, query: QueryLike
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Compute, batch by batch, how much each user's score depends on each token.

        Args:
            cache: Users from `prefill`.
            query: Text or soft prompt.

        Yields:
            Row numbers of a batch, and the gradients (user, token), see `token_gradients`.
        """
        tokens = cache.tokens
        with torch.inference_mode(False):  # gradients are needed, even if the caller disables them
            question = self._encode(cache, [query])
            things = thing_input(tokens)
        for batch in cache.groups:
            with torch.inference_mode(False):
                users = token_input(tokens, batch.rows)
                gradients = token_gradients(self.model.reader, users, question, things)
            yield batch.rows, gradients

    def _encode(self, cache: PrefixCache, queries: Sequence[QueryLike]):
        """Encode queries for the reader, and reject soft prompts of another run."""
        for query in queries:
            require_own_prompt(query, self.model.run)
        return encode_questions(self.model, queries, cache.unit, cache.horizon_days)

    def generate(self, cache: PrefixCache, user: str, query: QueryLike) -> str:
        """Answer a query about one user with a fact counted from the events.

        With a language model, a predicted answer comes first: of all graded answers, the one whose
        likelihood is highest relative to an unknown user.

        Args:
            cache: Users from `prefill`.
            user: Id of the user.
            query: Text or soft prompt.

        Returns:
            The answer; empty if nothing in the data matches the query.

        Raises:
            KeyError: The user is not in the cache.
            ValueError: The soft prompt was tuned on another run.
        """
        require_read(cache.tokens, [user])
        question = self._encode(cache, [query])
        text = query_text(query)
        tokens = cache.tokens.select([cache.ids.index(user)])
        meaning, _ = interpret(self.model, tokens, text)
        if not meaning.answerable:
            return ""
        [fact] = past_answers(tokens, meaning)
        reader = self.model.reader
        if not reader.has_language_model:
            return fact
        answers = graded_answers(meaning.measure, meaning.sign)
        one = cache.user_input(user)
        words = replace_unit(text, cache.unit)
        with torch.inference_mode():
            score = reader.score_answers(one, question, thing_input(tokens), words, answers)
        return f"{answers[int(score.argmax())]} {fact}".strip()

    def rank(self, cache: PrefixCache, query: str, without: Collection[str] = ()) -> pd.DataFrame:
        """Rank users for a query without labels, by the events that the query points at.

        The score ranks users for one query; it is not a probability.

        Args:
            cache: Users from `prefill`.
            query: Text.
            without: Labels of things to exclude from the interpretation, taken from
                `attrs["meant"]` (default: none).

        Returns:
            One row per user, best first: `user`, `score` and `answer` (how often it happened so
            far, and when last). `attrs` holds `topics` (how the query was understood, best match
            first), `meant` (records `text, users` of the matching things), `sign` (-1 if yes means
            that it does not happen, else 1), `answerable`, `evidence` (records `text, weight,
            users` of the things that the scores depend on) and `nearest` (similar things to ask
            about). If nothing in the data matches the query, all scores are NaN.
        """
        scores = self.score(cache, query, without)
        return scores.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def score(self, cache: PrefixCache, query: str, without: Collection[str] = ()) -> pd.DataFrame:
        """Score users for a query without labels, see `rank`.

        Args:
            cache: Users from `prefill`.
            query: Text.
            without: As for `rank`.

        Returns:
            The rows of `rank` in the order of the users.
        """
        tokens = replace(cache.tokens, not_meant=tuple(without))
        return rank_by_pointing(self.model, tokens, query, cache.groups)
