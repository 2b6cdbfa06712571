"""Ask many questions of users read once: `prefill`, then `embed` and `answer` run only the query's few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .asker import Asker, suggestions
from .backbone import merge_lora
from .batch import Branches, batch_users, length_groups, packed
from .cache import Cache, Group, fork, in_common, keep, nbytes, part, take_users
from .encoder import Prefix, place
from .heads import Asked, Query
from .model import QAnchor
from .reader import Readings
from .schema import Users
from .verdict import judge, prepare

Pack = tuple[Branches, Query]


class Engine:
    """Serve a trained model: read users once, ask often.

    model   from `load` or `build`; its LoRA is folded into the weights, so train it no further.

    Example:
        >>> users = qa.make_world(40)
        >>> model = qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))
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
    ) -> Cache:
        """Read every user up to the cut-off, once.

        budget_gb   memory for keys and values; users beyond it keep only their slots and are read again when asked.
        tokens      slots a forward pass; side: where pads stand ("left" or "right"; the result is the same).
        progress    called with (done, total) users.
        """
        if not len(users):
            raise ValueError("0 users to read, at least 1 is needed: check the folder or the selection")
        cache = Cache(users.ids, users.unit, users.horizon_days, queries=suggestions(users))
        groups = self._groups(self.model.reader.read(users), np.arange(len(users)), tokens, side)
        return self._hold(cache, groups, budget_gb, progress)

    @torch.inference_mode()
    def append(
        self, cache: Cache, users: Users, *, budget_gb: float = 6.0, progress: Callable[[int, int], None] | None = None
    ) -> Cache:
        """Read what has happened since: gives a new cache of the same users at another cut-off, equal to reading them anew.

        users   the same ones with all their events up to the new cut-off.
        Slots that begin alike are kept with their keys and values, the others run: with `layout="appendable"` those are the new
        events and the slots that sum up, otherwise all of them. Users whose window has moved on (less than half of their slots
        are kept) are read anew, together.
        """
        if tuple(users.ids) != cache.ids:
            odd = next(iter(set(users.ids) ^ set(cache.ids)), "none, but their order differs")
            raise ValueError(f"{len(users):,} users, the cache holds {len(cache):,} (odd one: {odd}): append to the same users")
        later = Cache(users.ids, users.unit, users.horizon_days, queries=cache.queries)
        return self._hold(later, self._appended(cache, users), budget_gb, progress)

    def _hold(self, cache: Cache, groups: Iterator[Group], budget_gb: float, progress) -> Cache:
        """Gather groups into a cache; those beyond the budget give their keys and values back."""
        held = done = 0
        for group in groups:
            held += nbytes(group.kv)
            group.kv = group.kv if held <= budget_gb * 1e9 else None
            cache.groups.append(group)
            done += len(group.rows)
            if progress:
                progress(done, len(cache))
        return cache

    def _appended(self, cache: Cache, users: Users) -> Iterator[Group]:
        readings, anew = self.model.reader.read(users), []
        for old in cache.groups:
            fresh = self.model.encode_prefix(batch_users(readings, old.rows).to(self.model.device))
            kept = in_common(old.prefix, fresh) if old.kv is not None else torch.zeros_like(fresh.length())
            run, moved = (fresh.length() - kept).cpu().numpy(), (2 * kept < fresh.length()).cpu().numpy()
            anew.append(old.rows[moved])
            stay = np.flatnonzero(~moved)
            for some in length_groups(run[stay], 4096, most=64, alike=4.0):  # a group once parted is never united
                yield self._extend(old, fresh, kept, torch.from_numpy(np.sort(stay[some])).to(kept.device))
        yield from self._groups(readings, np.concatenate(anew))

    def _extend(self, old: Group, fresh: Prefix, kept: Tensor, at: Tensor) -> Group:
        """Run the slots of `fresh` from number `kept` on, of the users `at`, behind what the old group holds before."""
        fresh, kept, rows = take_users(fresh, at), kept[at], old.rows[at.cpu().numpy()]
        before = keep(part(old, at.cpu().numpy()), kept)
        if (kept == fresh.length()).all():  # nothing happened to them
            return Group(rows, replace(before.prefix, coarse=fresh.coarse), before.kv)
        after = fresh.at(*place(fresh.mask, kept, fresh.length()))
        self.model.extend(after, before.prefix.mask, kept, before.kv)
        both = (
            torch.cat([getattr(p, name) for p in (before.prefix, after)], 1) for name in ("slots", "mask", "kind", "modality")
        )
        return Group(rows, Prefix(*both, fresh.coarse), before.kv)

    def _groups(self, readings: Readings, whom: np.ndarray, tokens: int = 4096, side: str = "right") -> Iterator[Group]:
        for some in length_groups(readings.lengths()[whom] + 1, tokens, most=64):
            rows = whom[some]
            prefix = self.model.encode_prefix(batch_users(readings, rows, side).to(self.model.device))
            yield Group(rows, prefix, self.model.prefill(prefix))

    def embed(
        self, cache: Cache, query: Asked | Sequence[Asked], progress: Callable[[int, int], None] | None = None
    ) -> Float[np.ndarray, "user ..."]:
        """Embed each user as an answer to `query`: (user, dim) for one query, (user, query, dim) for a list; unit length.

        Rows stand in the order of `cache.ids`. A list of queries, soft prompts among them, is asked in one visit of each user,
        and gives the same as asking one by one.
        """
        queries = [query] if (one := isinstance(query, Asked)) else list(query)
        if not queries:
            raise ValueError("0 queries, at least 1 is needed")
        out = np.zeros((len(cache), len(queries), self.model.config.dim), np.float32)
        done = 0
        for rows, z in self.stream(cache, queries):
            out[rows] = z
            done += len(rows)
            if progress:
                progress(done, len(cache))
        return out[:, 0] if one else out

    def stream(self, cache: Cache, queries: Sequence[Asked]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embed group by group: yields (row numbers, (user, query, dim)). Close the iterator to stop."""
        packs = self._packs(queries)
        for group in cache.groups:
            yield group.rows, self._ask(group, packs(len(group.rows)))

    @torch.inference_mode()
    def sweep(self, users: Users, queries: Sequence[Asked]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read and ask group by group, keeping nothing, for users asked only once: yields what `stream` does."""
        packs = self._packs(queries)
        readings = self.model.reader.read(users)
        for group in self._groups(readings, np.arange(len(readings))):
            yield group.rows, self._ask(group, packs(len(group.rows)))

    def _packs(self, queries: Sequence[Asked]) -> Callable[[int], list[Pack]]:
        """Pack queries: gives what tells the packs to ask of so many users at once."""
        lengths, query = [len(row) + 1 for row in self.model.spell(queries)[0]], self.model.ask(queries)
        laid: dict[tuple[int, int], Pack] = {}

        def packs(users: int) -> list[Pack]:
            cuts = packed(lengths, users)
            for some in cuts:
                if (some.start, some.stop) not in laid:
                    laid[some.start, some.stop] = self.model.lay_out(queries[some]), query.at(some)
            return [laid[some.start, some.stop] for some in cuts]

        return packs

    @torch.inference_mode()
    def _ask(self, group: Group, packs: list[Pack]) -> np.ndarray:
        group = replace(group, kv=self.kv(group))
        return torch.cat([self.anchors(group, *pack) for pack in packs], 1).float().cpu().numpy()

    def anchors(self, group: Group, asked: Branches, query: Query) -> Float[Tensor, "user query dim"]:
        """Run packed queries against one copy of the keys and values; no query sees another, gradients reach soft prompts."""
        hidden = self.model.behind(group.prefix, asked, fork(self.kv(group)))
        return self.model.ends(hidden, asked, group.prefix, query.to_each(len(hidden)))

    @torch.no_grad()
    def kv(self, group: Group):
        """Give a group's keys and values, reading its prefixes again where none are kept."""
        return group.kv if group.kv is not None else self.model.prefill(group.prefix)

    @torch.inference_mode()
    def answer(self, cache: Cache, user: str, query: Asked, limit: int = 40) -> str:
        """Let the model say its answer in words for one user (greedy, at most `limit` tokens)."""
        if user not in cache.ids:
            raise KeyError(f"user {user!r} is not among the {len(cache):,} that were read: prefill it first")
        row = cache.ids.index(user)
        whole = next(g for g in cache.groups if row in g.rows)
        one = part(whole, np.flatnonzero(whole.rows == row))
        kv, asked = self.kv(one), self.model.lay_out([query])
        hidden = self.model.behind(one.prefix, asked, kv)[:, -1]
        mask = torch.cat([one.prefix.mask, torch.ones_like(asked.ids, dtype=torch.bool)], 1).long()
        ids = list(generate(self.model.backbone, hidden, kv, mask, self.model.tokenizer.eos_token_id, limit))
        return self.model.tokenizer.decode(ids).strip()

    def verdict(self, cache: Cache, query: str, progress: Callable[[str, int, int], None] | None = None) -> pd.DataFrame:
        """Say of each user how much a yes fits to `query`, and in words how much so, without a single label; best first.

        Columns user, score, says. The wordings of the 72 topics that are nearest to the query, and deny as often as it, say
        what it means here (`attrs["topics"]` names them, nearest first, "not visits_up" if its no is meant; `attrs["measured"]`
        gives what topic bears most of the score, its kind, and 1 or -1 as its yes or its no is meant; `attrs["warning"]` says
        so if training asked nothing like it). `score` is the cosine to their answers of a yes minus that to those of a no: it
        ranks the users of one query, and is no probability. `says` is, of the five graded answers to the topic that bears most
        of the score, the one nearest to the user's anchor; it is empty for the question about everything, which `answer` may
        write on.
        progress   called with (stage, done, total).
        """
        tell = progress or (lambda stage, done, total: None)
        for done, total in prepare(self.model, query, cache.unit, cache.horizon_days):
            tell("reading graded answers", done, total)
        anchors = self.embed(cache, query, lambda done, total: tell(f"asking {cache.unit}s", done, total))
        found = judge(self.model, cache.ids, query, anchors, cache.unit, cache.horizon_days)
        return found.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def asker(self, cache: Cache, start: str = "", method: str | None = None, users: Users | None = None) -> Asker:
        """Give the callable that a `QueryLens` asks.

        method   of the map: "umap" or "pca" (None: "pca" beyond 20,000 users).
        users    those of the cache, where the lens shall be able to tell how often an order was right (`qa.hindsight`); of two
                 units theirs counts, so users may be named after they were read.
        """
        return Asker(self, cache, start, method, users=users)


def generate(model: nn.Module, hidden: Float[Tensor, "one dim"], cache, mask: Int[Tensor, "one past"], eos: int, limit: int):
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
