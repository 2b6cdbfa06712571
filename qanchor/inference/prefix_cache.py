"""The prefix cache: users that were read once, in groups of like length, with the keys and values of their slots."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from qanchor.models.prefix_encoder import Prefix, gather_slots
from qanchor.utils.text import count

SLOT_TOLERANCE = 1e-4  # of the slots' size: a slot that moved by less is the same slot


@dataclass
class UserBatch:
    """Hold some users of like length that are read together: their prefix, and its keys and values."""

    rows: np.ndarray
    prefix: Prefix
    kv: object | None  # None: beyond the memory budget, made again when asked


@dataclass
class PrefixCache:
    """Hold users that were read once. Asking never changes it; `ids` gives the order of every embedding.

    Made by `Engine.prefill`.

    Example:
        >>> qa.PrefixCache(("a", "b"), "user")
        Cache(2 users, 0 slots)
    """

    ids: tuple[str, ...]
    unit: str
    horizon_days: int = 30
    groups: list[UserBatch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        slots = sum(int(g.prefix.mask.sum()) for g in self.groups)
        return f"Cache({count(len(self), self.unit)}, {slots:,} slots)"


def fork_kv(kv):
    """Copy the layer objects, not their tensors: appending rebinds the copies and leaves the cache as it was."""
    forked = copy.copy(kv)
    forked.layers = [copy.copy(layer) for layer in kv.layers]
    return forked


def select_users(group: UserBatch, places: Int[np.ndarray, " place"]) -> UserBatch:
    """Take some users out of a group, by their places in it (one may come twice); what is not kept stays so."""
    at = torch.from_numpy(places).to(group.prefix.mask.device)
    kv = None if group.kv is None else fork_kv(group.kv)
    if kv is not None and not np.array_equal(places, np.arange(len(group.rows))):
        kv.batch_select_indices(at)
    return UserBatch(group.rows[places], select_prefix_rows(group.prefix, at), kv)


def kv_nbytes(kv) -> int:
    """Count the memory of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in kv.layers)


def select_prefix_rows(prefix: Prefix, rows: Int[Tensor, " some"]) -> Prefix:
    """Choose users of a prefix by place."""
    return Prefix(**{f.name: getattr(prefix, f.name)[rows] for f in fields(prefix)})


def truncate(group: UserBatch, kept: Int[Tensor, " user"]) -> UserBatch:
    """Keep each user's first slots, `kept` of them, with their keys and values: a view, unless pads fill a quarter of it."""
    prefix, zero = group.prefix, torch.zeros_like(kept)
    columns, real = gather_slots(prefix.mask, zero, kept)
    width = int(columns.masked_fill(~real, 0).max()) + 1
    if kept.sum() < 0.75 * width * len(kept):
        users = torch.arange(len(kept), device=kept.device)[:, None]
        kv = _map_kv(group.kv, lambda held: held.transpose(1, 2)[users, columns].transpose(1, 2))
        return UserBatch(group.rows, prefix.at(columns, real), kv)
    mask = prefix.mask[:, :width] & (prefix.positions()[:, :width] < kept[:, None])
    cut = (getattr(prefix, name)[:, :width] for name in ("kind", "modality"))
    kv = _map_kv(group.kv, lambda held: held[:, :, :width])
    return UserBatch(group.rows, Prefix(prefix.slots[:, :width] * mask[..., None], mask, *cut, prefix.coarse), kv)


def empty_user(group: UserBatch) -> UserBatch:
    """Give one who has no slots at all, row -1: behind them a query is read with no user in front."""
    one = select_users(group, np.array([0]))
    none = {f.name: getattr(one.prefix, f.name)[:, :0] for f in fields(one.prefix)} | {"coarse": one.prefix.coarse * 0}
    return UserBatch(np.array([-1]), Prefix(**none), _map_kv(one.kv, lambda held: held[:, :, :0]))


def _map_kv(kv, change):
    """Change keys and values of all layers alike; the cache itself stays."""
    changed = fork_kv(kv)
    for layer in changed.layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    return changed


def common_prefix_length(old: Prefix, new: Prefix) -> Int[Tensor, " user"]:
    """Count the slots with which each user's old and new prefix begin alike, pads left out."""
    shorter = torch.minimum(old.length(), new.length())
    a, b = (prefix.at(*gather_slots(prefix.mask, torch.zeros_like(shorter), shorter)) for prefix in (old, new))
    alike = (a.slots - b.slots).abs().amax(-1) <= SLOT_TOLERANCE * new.slots.abs().amax().clamp(min=1e-9)
    return (alike & a.mask).long().cumprod(1).sum(1)
