"""Users of a cache side by side, with a query's words read behind their prefixes: what the steps of a tuning run on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from .batch import branches
from .cache import Cache, Group, fork, nobody, part
from .encoder import Prefix
from .engine import Engine


class Held:
    """Hold some users of a cache with a query's words read behind their prefixes; any of them can be taken at will.

    Words come before a soft prompt's vectors and do not depend on them: read here once, they cost its tuning nothing. Keys and
    values of these users are held a second time; those beyond the cache's budget are read again whenever they are taken.
    Beside those taken stands, last, row -1: nobody, behind whom the query is read alone in the same pass.

    Example:
        >>> users = qa.make_world(40)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> held = Held(engine, engine.prefill(users), np.arange(5, 30), "Why?")
        >>> sorted(held.take(np.array([7, 29, 7])).rows.tolist())
        [-1, 7, 7, 29]
    """

    def __init__(self, engine: Engine, cache: Cache, rows: Int[np.ndarray, " row"], query: str):
        self.engine, self.model, self.words = engine, engine.model, engine.model.query_ids(query)
        self.groups, self.place = [], np.full((len(cache), 2), -1)
        whole = cache.groups[0]
        self.nobody = self._behind(nobody(replace(whole, kv=engine.kv(whole))))
        for group in cache.groups:
            some = np.flatnonzero(np.isin(group.rows, rows))
            if len(some):
                self.place[group.rows[some]] = [[len(self.groups), i] for i in range(len(some))]
                self.groups.append(self._behind(part(group, some)))

    def take(self, rows: Int[np.ndarray, " row"]) -> Group:
        """Lay any users (one may come twice) side by side, and nobody last; shorter prefixes get pads in front, never seen."""
        where = self.place[rows]
        parts = [part(self.groups[g], where[where[:, 0] == g, 1]) for g in np.unique(where[:, 0])] + [self.nobody]
        width = max(p.prefix.mask.shape[1] for p in parts)
        caches = [self.engine.kv(p) for p in parts]
        kv = fork(caches[0])
        for layer, each in zip(kv.layers, zip(*(c.layers for c in caches), strict=True), strict=True):
            layer.keys, layer.values = (
                _side_by_side([getattr(x, name) for x in each], 2, width) for name in ("keys", "values")
            )
        columns = {name: [getattr(p.prefix, name) for p in parts] for name in vars(parts[0].prefix)}
        prefix = {name: torch.cat(c) if name == "coarse" else _side_by_side(c, 1, width) for name, c in columns.items()}
        return Group(np.concatenate([p.rows for p in parts]), Prefix(**prefix), kv)

    @torch.no_grad()
    def _behind(self, group: Group) -> Group:
        """Read the query's words behind the prefixes, as if they were slots of these."""
        if not self.words:
            return group
        asked = branches([[self.words]]).to(self.model.device)
        parts = ("ids", "branch", "offset", "writes", "next_ids")
        asked = replace(asked, **{name: getattr(asked, name)[:, :-1] for name in parts})  # without <USER_EMB>
        if group.kv is not None:
            self.model.behind(group.prefix, asked, group.kv)
        old = group.prefix
        slots = self.model.word_vectors(asked.ids).to(old.slots.dtype).expand(len(old.slots), -1, -1)
        mask = torch.ones(slots.shape[:2], dtype=torch.bool, device=slots.device)
        grown = {"slots": slots, "mask": mask, "kind": -mask.long(), "modality": -mask.long()}
        grown = {name: torch.cat([getattr(old, name), more], 1) for name, more in grown.items()}
        return Group(group.rows, replace(old, **grown), group.kv)


def _side_by_side(tensors: list[Tensor], dim: int, width: int) -> Tensor:
    """Concatenate along the users, padded in front to `width` along `dim`."""
    return torch.cat([F.pad(t, (*([0, 0] * (t.ndim - 1 - dim)), width - t.shape[dim], 0)) for t in tensors])
