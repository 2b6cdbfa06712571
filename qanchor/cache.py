"""The prefix cache: users that were read once, in groups of like length, with the keys and values of their slots."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .encoder import Prefix

SAME = 1e-4  # of the slots' size: a slot that moved by less is the same slot


@dataclass
class Group:
    """Hold some users of like length that are read together: their prefix, and its keys and values."""

    rows: np.ndarray
    prefix: Prefix
    kv: object | None  # None: beyond the memory budget, made again when asked


@dataclass
class Cache:
    """Hold users that were read once. Asking never changes it; `ids` gives the order of every embedding.

    Made by `Engine.prefill`.

    Example:
        >>> qa.Cache(("a", "b"), "user")
        Cache(2 users, 0 slots)
    """

    ids: tuple[str, ...]
    unit: str
    horizon_days: int = 30
    groups: list[Group] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        slots = sum(int(g.prefix.mask.sum()) for g in self.groups)
        return f"Cache({len(self):,} {self.unit}s, {slots:,} slots)"


def fork(kv):
    """Copy the layer objects, not their tensors: appending rebinds the copies and leaves the cache as it was."""
    forked = copy.copy(kv)
    forked.layers = [copy.copy(layer) for layer in kv.layers]
    return forked


def part(group: Group, places: Int[np.ndarray, " place"]) -> Group:
    """Take some users out of a group, by their places in it (one may come twice); what is not kept stays so."""
    at = torch.from_numpy(places).to(group.prefix.mask.device)
    kv = None if group.kv is None else fork(group.kv)
    if kv is not None:
        kv.batch_select_indices(at)
    return Group(group.rows[places], take_users(group.prefix, at), kv)


def nbytes(kv) -> int:
    """Count the memory of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in kv.layers)


def take_users(prefix: Prefix, rows: Int[Tensor, " some"]) -> Prefix:
    """Choose users of a prefix by place."""
    return Prefix(**{f.name: getattr(prefix, f.name)[rows] for f in fields(prefix)})


def take_slots(some: Prefix, columns: Int[Tensor, "user some"], mask: Bool[Tensor, "user some"]) -> Prefix:
    """Choose of each user the slots at `columns`; those outside `mask` become pads."""
    slots = some.slots.gather(1, columns[..., None].expand(-1, -1, some.slots.shape[-1])) * mask[..., None]
    return Prefix(slots, mask, some.kind.gather(1, columns), some.modality.gather(1, columns), some.coarse)


def take_kv(kv, rows: Int[Tensor, " some"], columns: Int[Tensor, "some slot"]):
    """Choose users of a cache by place, and of each user the keys and values at `columns`; the cache itself stays."""
    chosen = fork(kv)
    for layer in chosen.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name)[rows]
            at = columns[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[-1])
            setattr(layer, name, held.gather(2, at))
    return chosen


def in_common(old: Prefix, new: Prefix) -> Int[Tensor, " user"]:
    """Count the slots with which each user's old and new prefix begin alike, pads left out."""
    (a, known), (b, wanted) = (_packed(prefix) for prefix in (old, new))
    width = min(a.shape[1], b.shape[1])
    size = new.slots.abs().amax().clamp(min=1e-9)
    alike = (a[:, :width] - b[:, :width]).abs().amax(-1) <= SAME * size
    return (alike & known[:, :width] & wanted[:, :width]).long().cumprod(1).sum(1)


def _packed(prefix: Prefix) -> tuple[Tensor, Bool[Tensor, "user slot"]]:
    """Give the slots from each user's first on, pads at the end."""
    columns, real = place(prefix.mask, torch.zeros_like(prefix.length()), prefix.length(), "right")
    return prefix.slots.gather(1, columns[..., None].expand(-1, -1, prefix.slots.shape[-1])), real


def place(
    mask: Bool[Tensor, "user slot"], first: Int[Tensor, " user"], end: Int[Tensor, " user"], pads: str = "left"
) -> tuple[Int[Tensor, "user some"], Bool[Tensor, "user some"]]:
    """Say in which columns each user's slots from number `first` to before `end` stand, and which of these are no pads."""
    width = int((end - first).max())
    number = first[:, None] + torch.arange(width, device=mask.device)
    if pads == "left":
        number = number - (width - (end - first))[:, None]
    columns = (~mask).long().argsort(dim=1, stable=True)  # slots in their order, then pads
    return columns.gather(1, number.clamp(0, mask.shape[1] - 1)), (number >= first[:, None]) & (number < end[:, None])
