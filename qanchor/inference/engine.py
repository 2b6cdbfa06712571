"""Ask many questions of users read once: `prefill`, then `embed` and `generate` run only the query's few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qanchor.data.users import Users
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
from qanchor.models.collate import QueryBatch, collate_users, group_by_length, pack_queries
from qanchor.models.features import UserFeatures
from qanchor.models.heads import QueryEncoding, QueryLike
from qanchor.models.model import QAnchor
from qanchor.models.prefix_encoder import Prefix, gather_slots
from qanchor.utils.text import plural

Pack = tuple[QueryBatch, QueryEncoding]


class Engine:
    """Serve a trained model: read users once, ask often.

    model   from `load_model` or `build_model`; its LoRA is folded into the weights, so train it no further.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> model = qa.build_model(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> engine = qa.Engine(model)
        >>> engine.embed(engine.prefill(users), "Will this user travel soon?").shape
        (40, 32)
    """

    def __init__(self, model: QAnchor):
        merge_lora(model.backbone)
        self.model = model.eval().requires_grad_(False)

    @torch.inference_mode()
    def prefill(
        self,
        users: Users,
        *,
        budget_gb: float = 6.0,
        tokens: int = 4096,
        side: str = "right",
        progress: Callable[[int, int], None] | None = None,
    ) -> PrefixCache:
        """Read every user up to the cut-off, once.

        budget_gb   memory for keys and values; users beyond it keep only their slots and are read again when asked.
        tokens      slots a forward pass; side: where pads stand ("left" or "right"; the result is the same).
        progress    called with (done, total) users.
        """
        if not len(users):
            raise ValueError("0 users to read, at least 1 is needed: check the folder or the selection")
        cache = PrefixCache(users.ids, users.unit, users.horizon_days)
        groups = self._groups(self.model.preprocessor.transform(users), np.arange(len(users)), tokens, side)
        return self._hold(cache, groups, budget_gb, progress)

    @torch.inference_mode()
    def update(
        self, cache: PrefixCache, users: Users, *, budget_gb: float = 6.0, progress: Callable[[int, int], None] | None = None
    ) -> PrefixCache:
        """Read what has happened since: gives a new cache of the same users at another cut-off, equal to reading them anew.

        users   the same ones with all their events up to the new cut-off.
        Slots that begin alike are kept with their keys and values, the others run: with `token_order="append_only"` those are the new
        events and the slots that sum up, otherwise all of them. Users whose window has moved on (less than half of their slots
        are kept) are read anew, together.
        """
        if tuple(users.ids) != cache.ids:
            odd = next(iter(set(users.ids) ^ set(cache.ids)), "none, but their order differs")
            raise ValueError(f"{len(users):,} users, the cache holds {len(cache):,} (odd one: {odd}): append to the same users")
        later = PrefixCache(users.ids, users.unit, users.horizon_days)
        return self._hold(later, self._appended(cache, users), budget_gb, progress)

    def _hold(self, cache: PrefixCache, groups: Iterator[UserBatch], budget_gb: float, progress) -> PrefixCache:
        """Gather groups into a cache; those beyond the budget give their keys and values back."""
        held = done = 0
        for group in groups:
            held += kv_nbytes(group.kv)
            group.kv = group.kv if held <= budget_gb * 1e9 else None
            cache.groups.append(group)
            done += len(group.rows)
            if progress:
                progress(done, len(cache))
        return cache

    def _appended(self, cache: PrefixCache, users: Users) -> Iterator[UserBatch]:
        readings, anew = self.model.preprocessor.transform(users), []
        for old in cache.groups:
            fresh = self.model.encode_prefix(collate_users(readings, old.rows).to(self.model.device))
            kept = common_prefix_length(old.prefix, fresh) if old.kv is not None else torch.zeros_like(fresh.length())
            run, moved = (fresh.length() - kept).cpu().numpy(), (2 * kept < fresh.length()).cpu().numpy()
            anew.append(old.rows[moved])
            stay = np.flatnonzero(~moved)
            for some in group_by_length(run[stay], 4096, most=64, alike=4.0):  # a group once parted is never united
                yield self._extend(old, fresh, kept, torch.from_numpy(np.sort(stay[some])).to(kept.device))
        yield from self._groups(readings, np.concatenate(anew))

    def _extend(self, old: UserBatch, fresh: Prefix, kept: Tensor, at: Tensor) -> UserBatch:
        """Run the slots of `fresh` from number `kept` on, of the users `at`, behind what the old group holds before."""
        fresh, kept, rows = select_prefix_rows(fresh, at), kept[at], old.rows[at.cpu().numpy()]
        before = truncate(select_users(old, at.cpu().numpy()), kept)
        if (kept == fresh.length()).all():  # nothing happened to them
            return UserBatch(rows, replace(before.prefix, coarse=fresh.coarse), before.kv)
        after = fresh.at(*gather_slots(fresh.mask, kept, fresh.length()))
        self.model.extend(after, before.prefix.mask, kept, before.kv)
        both = (
            torch.cat([getattr(p, name) for p in (before.prefix, after)], 1) for name in ("slots", "mask", "kind", "modality")
        )
        return UserBatch(rows, Prefix(*both, fresh.coarse), before.kv)

    def _groups(self, readings: UserFeatures, whom: np.ndarray, tokens: int = 4096, side: str = "right") -> Iterator[UserBatch]:
        for some in group_by_length(readings.lengths()[whom] + 1, tokens, most=64):
            rows = whom[some]
            prefix = self.model.encode_prefix(collate_users(readings, rows, side).to(self.model.device))
            yield UserBatch(rows, prefix, self.model.prefill(prefix))

    def embed(
        self, cache: PrefixCache, query: QueryLike | Sequence[QueryLike], progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "user ..."]:
        """Embed each user as an answer to `query`: (user, dim) for one query, (user, query, dim) for a list; unit length.

        Rows stand in the order of `cache.ids`. A list of queries, soft prompts among them, is asked in one visit of each user,
        and gives the same as asking one by one.
        """
        queries = [query] if (one := isinstance(query, QueryLike)) else list(query)
        if not queries:
            raise ValueError("0 queries, at least 1 is needed")
        out = np.zeros((len(cache), len(queries), self.model.config.embedding_dim), np.float32)
        done = 0
        for rows, z in self.iter_embed(cache, queries):
            out[rows] = z
            done += len(rows)
            if progress:
                progress(done, len(cache))
        return out[:, 0] if one else out

    def iter_embed(self, cache: PrefixCache, queries: Sequence[QueryLike]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embed group by group: yields (row numbers, (user, query, dim)). Close the iterator to stop."""
        packs = self._packs(queries)
        for group in cache.groups:
            yield group.rows, self._ask(group, packs(len(group.rows)))

    @torch.inference_mode()
    def iter_embed_uncached(self, users: Users, queries: Sequence[QueryLike]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read and ask group by group, keeping nothing, for users asked only once: yields what `iter_embed` does."""
        packs = self._packs(queries)
        readings = self.model.preprocessor.transform(users)
        for group in self._groups(readings, np.arange(len(readings))):
            yield group.rows, self._ask(group, packs(len(group.rows)))

    def _packs(self, queries: Sequence[QueryLike]) -> Callable[[int], list[Pack]]:
        """Pack queries: gives what tells the packs to ask of so many users at once."""
        lengths, query = [len(row) + 1 for row in self.model.tokenize(queries)[0]], self.model.encode_queries(queries)
        laid: dict[tuple[int, int], Pack] = {}

        def packs(users: int) -> list[Pack]:
            cuts = pack_queries(lengths, users)
            for some in cuts:
                if (some.start, some.stop) not in laid:
                    laid[some.start, some.stop] = self.model.build_query_batch(queries[some]), query.at(some)
            return [laid[some.start, some.stop] for some in cuts]

        return packs

    @torch.inference_mode()
    def _ask(self, group: UserBatch, packs: list[Pack]) -> np.ndarray:
        group = replace(group, kv=self.kv(group))
        return torch.cat([self.anchors(group, *pack) for pack in packs], 1).float().cpu().numpy()

    def anchors(self, group: UserBatch, asked: QueryBatch, query: QueryEncoding) -> Float[Tensor, "user query dim"]:
        """Run packed queries against one copy of the keys and values; no query sees another, gradients reach soft prompts."""
        hidden = self.model.decode_with_cache(group.prefix, asked, fork_kv(self.kv(group)))
        return self.model.pool_anchors(hidden, asked, group.prefix, query.expand_to(len(hidden)))

    @torch.no_grad()
    def kv(self, group: UserBatch):
        """Give a group's keys and values, reading its prefixes again where none are kept."""
        return group.kv if group.kv is not None else self.model.prefill(group.prefix)

    @torch.inference_mode()
    def generate(self, cache: PrefixCache, user: str, query: QueryLike, limit: int = 40) -> str:
        """Let the model say its answer in words for one user (greedy, at most `limit` tokens)."""
        if user not in cache.ids:
            raise KeyError(f"user {user!r} is not among the {len(cache):,} that were read: prefill it first")
        row = cache.ids.index(user)
        whole = next(g for g in cache.groups if row in g.rows)
        one = select_users(whole, np.flatnonzero(whole.rows == row))
        kv, asked = self.kv(one), self.model.build_query_batch([query])
        hidden = self.model.decode_with_cache(one.prefix, asked, kv)[:, -1]
        mask = torch.cat([one.prefix.mask, torch.ones_like(asked.ids, dtype=torch.bool)], 1).long()
        ids = list(greedy_decode(self.model.backbone, hidden, kv, mask, self.model.tokenizer.eos_token_id, limit))
        return self.model.tokenizer.decode(ids).strip()

    def rank(self, cache: PrefixCache, query: str, progress: Callable[[str, int, int], None] | None = None) -> pd.DataFrame:
        """Rank users zero-shot by how well a "yes" to the query fits them; no label is used.

        The wordings of the 72 topics that are nearest to the query, and negate as often as it, say what it means here. `score`
        is the cosine to their "yes" answers minus that to their "no" answers. It ranks the users of one query and is no
        probability. `answer` is, of the five graded answers to the topic that bears most of the score, the one nearest to the
        user's embedding; it is empty for the question about everything, which `generate` can answer.

        Args:
            cache: The users, read by `prefill`.
            query: The query.
            progress: Called with (stage, done, total); default: not called.

        Returns:
            A frame `user, score, answer`, the highest score first. Its `attrs`: `topics`, the topics that the query was
            interpreted as, nearest first ("not visits_up" if its no is meant); `measured`, the topic that bears most of the
            score, its kind, and 1 or -1 as its yes or its no is meant; `novel`, whether training asked nothing like it;
            `identical`, (users with the same answer, users looked at) if nearly all have the same one, else None.
        """
        tell = progress or (lambda stage, done, total: None)
        for done, total in iter_warm_up(self.model, query, cache.unit, cache.horizon_days):
            tell("reading graded answers", done, total)
        anchors = self.embed(cache, query, lambda done, total: tell(f"asking {plural(cache.unit)}", done, total))
        found = label_free_scores(self.model, cache.ids, query, anchors, cache.unit, cache.horizon_days)
        return found.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def greedy_decode(
    model: nn.Module, hidden: Float[Tensor, "one dim"], cache, mask: Int[Tensor, "one past"], eos: int, limit: int
):
    """Write greedily from the last hidden state of one row on; yields token ids until `eos` or `limit`."""
    position = mask.sum(-1, keepdim=True)
    for _ in range(limit):
        token = model.lm_head(hidden.to(model.dtype)).argmax(-1, keepdim=True)
        if token.item() == eos:
            return
        yield token.item()
        mask = torch.cat([mask, mask.new_ones(1, 1)], -1)
        out = model.model(input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        hidden, position = out.last_hidden_state[:, -1], position + 1
