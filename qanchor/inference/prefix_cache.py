"""`PrefixCache`: users that were read once, in batches of similar length with keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from qanchor.models.prefix_encoder import Prefix, token_columns
from qanchor.models.user_tokens import UserTokens
from qanchor.utils.text import count

TOKEN_TOLERANCE = 1e-4  # prefix tokens that differ by less, relative to their size, are equal
MIN_FILLED_SHARE = 0.75  # with more padding than this allows, truncated keys are moved together


@dataclass
class UserBatch:
    """Hold users of similar length that run together: their prefixes, keys and values."""

    rows: np.ndarray  # places of the users in `PrefixCache.ids`
    prefix: Prefix | None  # None: a model from `fit`
    kv: object | None  # None: beyond the memory budget, computed again for every query


@dataclass
class PrefixCache:
    """Hold users that were read once, made by `Engine.prefill`. Queries never change it.

    `ids` is the order of the rows of every embedding.

    Example:
        >>> qa.PrefixCache(("a", "b"), "user")
        PrefixCache(2 users, 0 tokens)
    """

    ids: tuple[str, ...]
    unit: str  # what one user is called, such as "household"
    horizon_days: int = 30  # days ahead that a query about the future means
    groups: list[UserBatch] = field(default_factory=list)
    tokens: UserTokens | None = None  # what questions point at; only with a pointing reader

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        prefixes = [batch.prefix for batch in self.groups if batch.prefix is not None]
        tokens = sum(int(prefix.mask.sum()) for prefix in prefixes)
        if self.groups and not prefixes:
            tokens = int((self.tokens.which >= 0).sum())
        return f"PrefixCache({count(len(self), self.unit)}, {tokens:,} tokens)"


def fork_kv(kv):
    """Copy a key-value cache without copying its tensors; extending the copy leaves it unchanged.

    Args:
        kv: Key-value cache.
    """
    forked = copy.copy(kv)
    forked.layers = [copy.copy(layer) for layer in kv.layers]
    return forked


def select_users(batch: UserBatch, places: Int[np.ndarray, " place"]) -> UserBatch:
    """Select users of a batch.

    Args:
        batch: Users; it is not changed.
        places: Places of the users in the batch; one may be repeated.

    Returns:
        A batch of the selected users, without keys and values if `batch` has none.
    """
    at = torch.from_numpy(places).to(batch.prefix.mask.device)
    kv = None if batch.kv is None else fork_kv(batch.kv)
    is_whole = np.array_equal(places, np.arange(len(batch.rows)))
    if kv is not None and not is_whole:
        kv.batch_select_indices(at)
    return UserBatch(batch.rows[places], select_prefix_rows(batch.prefix, at), kv)


def kv_nbytes(kv) -> int:
    """Return the memory of keys and values, in bytes.

    Args:
        kv: Key-value cache.
    """
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in kv.layers)


def select_prefix_rows(prefix: Prefix, rows: Int[Tensor, " some"]) -> Prefix:
    """Select users of a prefix.

    Args:
        prefix: Prefixes of users.
        rows: Row numbers.
    """
    return Prefix(**{column.name: getattr(prefix, column.name)[rows] for column in fields(prefix)})


def truncate(batch: UserBatch, length: Int[Tensor, " user"]) -> UserBatch:
    """Keep each user's first prefix tokens with their keys and values.

    Args:
        batch: Users with keys and values; they are not changed.
        length: Tokens to keep, for each user.

    Returns:
        A view of the batch, or a copy where a view would be padding for more than a quarter.
    """
    prefix = batch.prefix
    columns, is_token = token_columns(prefix.mask, torch.zeros_like(length), length)
    width = int(columns.masked_fill(~is_token, 0).max()) + 1
    if length.sum() < MIN_FILLED_SHARE * width * len(length):
        users = torch.arange(len(length), device=length.device)[:, None]
        kv = _map_kv(
            batch.kv, lambda states: states.transpose(1, 2)[users, columns].transpose(1, 2)
        )
        return UserBatch(batch.rows, prefix.at(columns, is_token), kv)
    mask = prefix.mask[:, :width] & (prefix.positions()[:, :width] < length[:, None])
    shorter = Prefix(
        tokens=prefix.tokens[:, :width] * mask[..., None],
        mask=mask,
        kind=prefix.kind[:, :width],
        modality=prefix.modality[:, :width],
        coarse=prefix.coarse,
    )
    kv = _map_kv(batch.kv, lambda states: states[:, :, :width])
    return UserBatch(batch.rows, shorter, kv)


def empty_user(batch: UserBatch) -> UserBatch:
    """Return a user (row -1) without prefix tokens, behind which a query is read on its own.

    Args:
        batch: Any users with keys and values, for the shapes.
    """
    one = select_users(batch, np.array([0]))
    columns = {column.name: getattr(one.prefix, column.name)[:, :0] for column in fields(Prefix)}
    columns["coarse"] = one.prefix.coarse * 0
    kv = _map_kv(one.kv, lambda states: states[:, :, :0])
    return UserBatch(np.array([-1]), Prefix(**columns), kv)


def _map_kv(kv, change: Callable[[Tensor], Tensor]):
    """Return a key-value cache with keys and values of all layers changed by a function."""
    changed = fork_kv(kv)
    for layer in changed.layers:
        layer.keys = change(layer.keys)
        layer.values = change(layer.values)
    return changed


def common_prefix_length(old: Prefix, new: Prefix) -> Int[Tensor, " user"]:
    """Count the tokens at the start of each user's prefix that are equal in two prefixes.

    Args:
        old: Prefixes of users.
        new: Prefixes of the same users.

    Returns:
        Number of equal tokens before the first difference, padding left out.
    """
    shorter = torch.minimum(old.length(), new.length())
    zero = torch.zeros_like(shorter)
    first = old.at(*token_columns(old.mask, zero, shorter))
    second = new.at(*token_columns(new.mask, zero, shorter))
    size = new.tokens.abs().amax().clamp(min=1e-9)
    difference = (first.tokens - second.tokens).abs().amax(-1)
    equal = (difference <= TOKEN_TOLERANCE * size) & first.mask
    return equal.long().cumprod(1).sum(1)
