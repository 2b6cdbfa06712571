"""`Engine`: read users once into a prefix cache, then run only the few tokens of each query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qanchor.data.users import Users
from qanchor.inference.evidence import rank_by_pointing
from qanchor.inference.prefix_cache import (
    PrefixCache,
    UserBatch,
    common_prefix_length,
    fork_kv,
    kv_nbytes,
    select_prefix_rows,
    select_users,
    truncate,
)
from qanchor.inference.ranking import iter_warm_up, label_free_scores
from qanchor.models.backbone import merge_lora
from qanchor.models.collate import (
    QueryBatch,
    collate_queries,
    collate_users,
    group_by_length,
    pack_queries,
)
from qanchor.models.compatibility import LEFT_OUT, input_differences
from qanchor.models.features import UserFeatures
from qanchor.models.heads import EncodedQueries, QueryEncoding, QueryLike
from qanchor.models.model import QAnchor
from qanchor.models.pointing_model import PointingModel
from qanchor.models.prefix_encoder import Prefix, token_columns
from qanchor.models.user_tokens import TokenReader, UserTokens
from qanchor.useru.suggestions import suggest_concept_queries, suggest_queries
from qanchor.utils.text import plural
from qanchor.utils.types import Progress, StageProgress

Queries = Sequence[QueryLike] | EncodedQueries
Pack = tuple[QueryBatch, QueryEncoding]  # queries that run in one pass
PREFIX_TOKENS_PER_PASS = 4096
MAX_USERS_PER_PASS = 64
# Longest part of a batch divided by its shortest when prefixes are extended: batches that are
# split are never joined again, so only large differences split them.
MAX_EXTEND_RATIO = 4.0


class Engine:
    """Serve a trained model: read users once, query often.

    Args:
        model: Trained model. Its LoRA is merged into the weights, so it cannot be trained further.
            For the model of `fit` the engine is a `PointingEngine`.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> engine = qa.Engine(model)
        >>> engine.embed(engine.prefill(users), "Will this user travel soon?").shape
        (40, 32)
    """

    def __new__(cls, model: QAnchor | PointingModel) -> Engine:
        """Return the engine that fits the model."""
        if cls is Engine and isinstance(model, PointingModel):
            from qanchor.inference.pointing_engine import PointingEngine

            cls = PointingEngine
        return super().__new__(cls)

    def __init__(self, model: QAnchor | PointingModel):
        merge_lora(model.backbone)
        self.model = model.eval().requires_grad_(False)

    @property
    def pointing(self) -> PointingModel | None:
        """Return what ranks users for typed questions, if the run has it."""
        return self.model.pointing

    # -- reading users --

    @torch.inference_mode()
    def prefill(
        self,
        users: Users,
        *,
        budget_gb: float = 6.0,
        tokens: int = PREFIX_TOKENS_PER_PASS,
        side: str = "right",
        progress: Progress | None = None,
    ) -> PrefixCache:
        """Read every user up to the cut-off, once.

        Args:
            users: Users to read.
            budget_gb: Memory for keys and values, in GB. Users beyond it keep only their prefix
                tokens, and are run again for every query. Default: 6.
            tokens: Prefix tokens in a forward pass, padding included. Default: 4096.
            side: Side of the padding, "right" (default) or "left"; results are the same.
            progress: Called with (done, total) users. Default: none.

        Returns:
            A cache of the users, in the order of `users.ids`.

        Raises:
            ValueError: If there are no users.
        """
        if not len(users):
            raise ValueError(
                "0 users to read, at least 1 is needed: check the folder or the selection"
            )
        features = self.model.preprocessor.transform(users)
        batches = self._prefill_batches(features, np.arange(len(users)), tokens, side)
        cache = PrefixCache(users.ids, users.unit, users.horizon_days)
        if self.pointing is not None:
            cache.tokens = self.read_tokens(users)
        return self._fill(cache, batches, budget_gb, progress)

    @torch.inference_mode()
    def update(
        self,
        cache: PrefixCache,
        users: Users,
        *,
        budget_gb: float = 6.0,
        progress: Progress | None = None,
    ) -> PrefixCache:
        """Return a cache of the same users at another cut-off, equal to prefilling them again.

        Prefix tokens that are unchanged up to the first difference keep their keys and values; the
        others run again. With `token_order="append_only"` those are the new events and the coarse
        tokens, otherwise all tokens. Users that keep less than half of their tokens are read again,
        together.

        Args:
            cache: Cache of the users; it is not changed.
            users: The same users with all their events up to the new cut-off.
            budget_gb: Memory for keys and values, in GB. Default: 6.
            progress: Called with (done, total) users. Default: none.

        Returns:
            The new cache.

        Raises:
            ValueError: If the users are not those of the cache, in the same order.
        """
        self.require_same_users(cache, users)
        updated = PrefixCache(users.ids, users.unit, users.horizon_days)
        if self.pointing is not None:
            updated.tokens = self.read_tokens(users)
        return self._fill(updated, self._updated_batches(cache, users), budget_gb, progress)

    def _fill(
        self,
        cache: PrefixCache,
        batches: Iterator[UserBatch],
        budget_gb: float,
        progress: Progress | None,
    ) -> PrefixCache:
        """Add batches to a cache; those beyond the budget drop their keys and values."""
        used_bytes = 0
        done = 0
        for batch in batches:
            used_bytes += kv_nbytes(batch.kv)
            if used_bytes > budget_gb * 1e9:
                batch.kv = None
            cache.groups.append(batch)
            done += len(batch.rows)
            if progress:
                progress(done, len(cache))
        return cache

    def _updated_batches(self, cache: PrefixCache, users: Users) -> Iterator[UserBatch]:
        features = self.model.preprocessor.transform(users)
        rows_to_read = []
        for old in cache.groups:
            padded = collate_users(features, old.rows).to(self.model.device)
            new = self.model.encode_prefix(padded)
            if old.kv is None:
                unchanged = torch.zeros_like(new.length())
            else:
                unchanged = common_prefix_length(old.prefix, new)
            to_run = (new.length() - unchanged).cpu().numpy()
            moved = (2 * unchanged < new.length()).cpu().numpy()
            rows_to_read.append(old.rows[moved])
            stay = np.flatnonzero(~moved)
            parts = group_by_length(
                to_run[stay],
                PREFIX_TOKENS_PER_PASS,
                most=MAX_USERS_PER_PASS,
                alike=MAX_EXTEND_RATIO,
            )
            for part in parts:
                at = torch.from_numpy(np.sort(stay[part])).to(unchanged.device)
                yield self._extend(old, new, unchanged, at)
        yield from self._prefill_batches(features, np.concatenate(rows_to_read))

    def _extend(self, old: UserBatch, new: Prefix, unchanged: Tensor, at: Tensor) -> UserBatch:
        """Run the tokens of `new` after the unchanged ones, for the users at `at` of a batch."""
        new = select_prefix_rows(new, at)
        unchanged = unchanged[at]
        places = at.cpu().numpy()
        rows = old.rows[places]
        before = truncate(select_users(old, places), unchanged)
        if (unchanged == new.length()).all():  # no new events
            return UserBatch(rows, replace(before.prefix, coarse=new.coarse), before.kv)
        after = new.at(*token_columns(new.mask, unchanged, new.length()))
        self.model.extend(after, before.prefix.mask, unchanged, before.kv)
        columns = {
            name: torch.cat([getattr(before.prefix, name), getattr(after, name)], 1)
            for name in ("tokens", "mask", "kind", "modality")
        }
        return UserBatch(rows, Prefix(**columns, coarse=new.coarse), before.kv)

    def _prefill_batches(
        self,
        features: UserFeatures,
        rows: np.ndarray,
        tokens: int = PREFIX_TOKENS_PER_PASS,
        side: str = "right",
    ) -> Iterator[UserBatch]:
        """Run the prefixes of some rows of the features, in batches of similar length."""
        lengths = features.lengths()[rows] + 1
        for part in group_by_length(lengths, tokens, most=MAX_USERS_PER_PASS):
            padded = collate_users(features, rows[part], side).to(self.model.device)
            prefix = self.model.encode_prefix(padded)
            yield UserBatch(rows[part], prefix, self.model.prefill(prefix))

    def read_tokens(self, users: Users) -> UserTokens:
        """Read what questions can point at: all that `rank` needs of a run with a pointing reader.

        Args:
            users: Users to read, up to their cut-off. It takes seconds where `prefill` takes
                minutes, since the language model is not run.
        """
        encoder = self.model.config.text_encoder
        return TokenReader(users, encoder, population=self.pointing.population).read()

    def suggest_queries(self, users: Users, many: int = 6) -> tuple[str, ...]:
        """Return questions that fit users, of what the run has learned to ask.

        Args:
            users: The users.
            many: Number of questions at most. Default: 6.
        """
        if self.pointing is None:
            return suggest_queries(users)[:many]
        population = self.pointing.population
        share = dict(zip(population.things, np.exp(-population.rarity).tolist(), strict=True))
        return suggest_concept_queries(
            self.pointing.concepts, share, users.unit, users.horizon_days, many
        )

    # -- checks --

    def input_differences(self, users: Users) -> list[str]:
        """Return where users differ from those that the run was trained on, a message for each.

        Args:
            users: Users to read.
        """
        preprocessor = self.model.preprocessor
        return input_differences(users, preprocessor.modalities, preprocessor.numbers, LEFT_OUT)

    def require_same_users(self, cache: PrefixCache, users: Users) -> None:
        """Raise ValueError unless users are those of a cache, in the same order.

        Args:
            cache: From `prefill`.
            users: Users.
        """
        if tuple(users.ids) != cache.ids:
            odd = next(iter(set(users.ids) ^ set(cache.ids)), "none, but their order differs")
            raise ValueError(
                f"{len(users):,} users, the cache holds {len(cache):,} (odd one: {odd}): "
                "append to the same users"
            )

    def require_user(self, cache: PrefixCache, user: str) -> int:
        """Return the row of a user in a cache, or raise KeyError.

        Args:
            cache: From `prefill`.
            user: Id of the user.
        """
        if user not in cache.ids:
            raise KeyError(
                f"user {user!r} is not among the {len(cache):,} that were read: prefill it first"
            )
        return cache.ids.index(user)

    # -- queries --

    def encode_query(self, query: QueryLike) -> EncodedQueries:
        """Tokenize and encode one query, for repeated use.

        Args:
            query: Text or soft prompt.

        Returns:
            Token ids, hidden state and text vector. It can be passed wherever `iter_embed` and
            `embed` take a list of queries.

        Raises:
            ValueError: If the query is too long, or a soft prompt was tuned on another run.

        Example:
            >>> users = qa.make_sample_users(40)
            >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
            >>> len(qa.Engine(model).encode_query("Why?").ids[0])
            4
        """
        return self.encode_queries([query])

    @torch.no_grad()
    def encode_queries(self, queries: Queries) -> EncodedQueries:
        """Tokenize and encode queries, for repeated use.

        Args:
            queries: Texts and soft prompts. Encoded queries are returned as they are.

        Returns:
            Token ids, hidden states and text vectors of all queries.

        Raises:
            ValueError: If a query is too long, or a soft prompt was tuned on another run.
        """
        if isinstance(queries, EncodedQueries):
            return queries
        ids, soft = self.model.tokenize(queries)
        encoding = self.model.encode_queries(queries, (ids, soft))
        return EncodedQueries(tuple(queries), ids, soft, encoding)

    def embed(
        self,
        cache: PrefixCache,
        query: QueryLike | Queries,
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "user ..."]:
        """Embed every user for one query or several.

        Several queries run in one visit of each user, and give the same as one by one.

        Args:
            cache: From `prefill`.
            query: A query, or a list of queries; soft prompts are queries.
            progress: Called with (done, total) users. Default: none.

        Returns:
            Unit embeddings in the order of `cache.ids`: (user, dim) for one query, (user, query,
            dim) for a list.

        Raises:
            ValueError: If there is no query, or one is too long or of another run.
        """
        is_one = isinstance(query, QueryLike)
        queries = [query] if is_one else query
        if not len(queries):
            raise ValueError("0 queries, at least 1 is needed")
        out = np.zeros((len(cache), len(queries), self.model.config.embedding_dim), np.float32)
        done = 0
        for rows, embeddings in self.iter_embed(cache, queries):
            out[rows] = embeddings
            done += len(rows)
            if progress:
                progress(done, len(cache))
        return out[:, 0] if is_one else out

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
        packs = self._packs(queries)
        for batch in cache.groups:
            yield batch.rows, self._embed_batch(batch, packs(len(batch.rows)))

    @torch.inference_mode()
    def iter_embed_uncached(
        self, users: Users, queries: Queries
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read and embed users batch by batch and keep nothing, for users queried only once.

        Args:
            users: Users to read.
            queries: Queries, or what `encode_queries` returned for them.

        Yields:
            Row numbers of a batch, and its embeddings (user, query, dim).
        """
        packs = self._packs(queries)
        features = self.model.preprocessor.transform(users)
        for batch in self._prefill_batches(features, np.arange(len(features))):
            yield batch.rows, self._embed_batch(batch, packs(len(batch.rows)))

    def _packs(self, queries: Queries) -> Callable[[int], list[Pack]]:
        """Encode queries once; return a function from a number of users to the packs to run."""
        encoded = self.encode_queries(queries)
        lengths = [len(ids) + 1 for ids in encoded.ids]  # with <USER_EMB>
        made: dict[tuple[int, int], Pack] = {}

        def packs(users: int) -> list[Pack]:
            result = []
            for part in pack_queries(lengths, users):
                key = (part.start, part.stop)
                if key not in made:
                    batch = collate_queries([encoded.ids[part]], soft=encoded.soft)
                    made[key] = batch.to(self.model.device), encoded.encoding.at(part)
                result.append(made[key])
            return result

        return packs

    @torch.inference_mode()
    def _embed_batch(self, batch: UserBatch, packs: list[Pack]) -> np.ndarray:
        batch = replace(batch, kv=self.kv(batch))
        parts = [self.anchors(batch, asked, query) for asked, query in packs]
        return torch.cat(parts, 1).float().cpu().numpy()

    def anchors(
        self, batch: UserBatch, asked: QueryBatch, query: QueryEncoding
    ) -> Float[Tensor, "user query dim"]:
        """Embed a batch for packed queries, with gradients for soft prompts.

        No query attends to another, and the keys and values of the batch are not changed.

        Args:
            batch: Users.
            asked: Queries, one row for all users.
            query: Encoding of the queries, (query, ...).
        """
        kv = fork_kv(self.kv(batch))
        hidden = self.model.decode_with_cache(batch.prefix, asked, kv)
        encoding = query.expand_to(len(hidden))
        return self.model.pool_anchors(hidden, asked, batch.prefix, encoding)

    @torch.no_grad()
    def kv(self, batch: UserBatch):
        """Return the keys and values of a batch; beyond the memory budget its prefixes run again.

        Args:
            batch: Users.
        """
        return batch.kv if batch.kv is not None else self.model.prefill(batch.prefix)

    @torch.inference_mode()
    def generate(self, cache: PrefixCache, user: str, query: QueryLike, limit: int = 40) -> str:
        """Generate the model's answer for one user, by greedy decoding.

        Args:
            cache: From `prefill`.
            user: Id of the user.
            query: Text or soft prompt.
            limit: Tokens, at most. Default: 40.

        Returns:
            The answer.

        Raises:
            KeyError: If the user is not in the cache.
        """
        row = self.require_user(cache, user)
        batch = next(batch for batch in cache.groups if row in batch.rows)
        one = select_users(batch, np.flatnonzero(batch.rows == row))
        kv = self.kv(one)
        asked = self.model.build_query_batch([query])
        hidden = self.model.decode_with_cache(one.prefix, asked, kv)[:, -1]
        query_mask = torch.ones_like(asked.ids, dtype=torch.bool)
        mask = torch.cat([one.prefix.mask, query_mask], 1).long()
        eos = self.model.tokenizer.eos_token_id
        ids = list(greedy_decode(self.model.backbone, hidden, kv, mask, eos, limit))
        return self.model.tokenizer.decode(ids).strip()

    def rank(
        self,
        cache: PrefixCache | UserTokens,
        query: str,
        progress: StageProgress | None = None,
    ) -> pd.DataFrame:
        """Rank users for a query without labels.

        A run with a pointing reader (see `fit`) scores each user by the events that the query
        points at. Other runs use the cosine to "yes" answers minus the cosine to "no" answers,
        where the training wordings nearest to the query determine what yes and no mean. In both
        cases the score ranks the users of one query and is not a probability.

        Args:
            cache: From `prefill`, or from `read_tokens` if the run has a pointing reader.
            query: Text.
            progress: Called with (stage, done, total). Default: none.

        Returns:
            One row a user, best first: user, score, and the answer: what happened before, or the
            nearest graded answer to the topic that contributes most (empty for the question about
            everything; use `generate`). `attrs` holds `topics` (what the query was read as, nearest
            first), `measured` (main topic, kind, 1 or -1 for its yes or its no), `novel` (training
            asked nothing like it) and `identical` ((users with the same answer, users looked at) if
            nearly all have the same answer, else None). With a pointing reader it also holds
            `answerable`, `evidence` (records `text, weight, users` of what was pointed at) and
            `nearest` (what can be asked instead); if nothing in the data speaks of the query, all
            scores are NaN.
        """
        tokens = cache if isinstance(cache, UserTokens) else cache.tokens
        if self.pointing is not None and tokens is not None:
            scores = rank_by_pointing(self.pointing, tokens, query)
            return scores.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        report = progress or (lambda stage, done, total: None)
        for done, total in iter_warm_up(self.model, query, cache.unit, cache.horizon_days):
            report("reading graded answers", done, total)
        encoded = self.encode_query(query)
        stage = f"asking {plural(cache.unit)}"
        anchors = self.embed(cache, encoded, lambda done, total: report(stage, done, total))[:, 0]
        scores = self.score(cache, query, anchors, encoded)
        return scores.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def score(
        self,
        cache: PrefixCache,
        query: str,
        anchors: Float[np.ndarray, "user dim"],
        encoded: EncodedQueries | None = None,
    ) -> pd.DataFrame:
        """Score embedded users for a query without labels, see `rank`.

        Args:
            cache: From `prefill`.
            query: Text.
            anchors: Embeddings of the users under the query. A run with a pointing reader does not
                need them.
            encoded: What `encode_query` returned for the query. Default: encode it.

        Returns:
            The rows of `rank` in the order of `cache.ids`.
        """
        if self.pointing is not None and cache.tokens is not None:
            return rank_by_pointing(self.pointing, cache.tokens, query)
        return label_free_scores(
            self.model, cache.ids, query, anchors, cache.unit, cache.horizon_days, encoded
        )


def greedy_decode(
    model: nn.Module,
    hidden: Float[Tensor, "one dim"],
    cache,
    mask: Int[Tensor, "one past"],
    eos: int,
    limit: int,
) -> Iterator[int]:
    """Decode greedily from the last hidden state of one row.

    Args:
        model: Language model.
        hidden: Hidden state at the last token.
        cache: Key-value cache of all earlier tokens; it is extended.
        mask: 1 for cached tokens that are not padding.
        eos: Id of the token that ends the answer.
        limit: Tokens, at most.

    Yields:
        Token ids, without `eos`.
    """
    position = mask.sum(-1, keepdim=True)
    for _ in range(limit):
        token = model.lm_head(hidden.to(model.dtype)).argmax(-1, keepdim=True)
        if token.item() == eos:
            return
        yield token.item()
        mask = torch.cat([mask, mask.new_ones(1, 1)], -1)
        out = model.model(
            input_ids=token,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state[:, -1]
        position = position + 1
