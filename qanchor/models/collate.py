"""Readings and pairs to padded tensors: a `PaddedBatch` of users, and the `QueryBatch` of queries and answers behind each prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qanchor.models.features import UserFeatures

MAX_PACK_TOKENS, MAX_TOKENS_PER_PASS = (
    256,
    2048,
)  # tokens of queries read at once: of one user, and of all users of a group together (`bench cache`)
USER_EMB = -1  # stands for <USER_EMB> in token ids; the model puts its learned vector there


class DeviceMixin:
    """Let a dataclass of tensors move to a device as one."""

    def to(self, device):
        """Move every tensor to `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class PaddedBatch(DeviceMixin):
    """Hold some users' readings as padded tensors, ready for the encoder."""

    coarse: Float[Tensor, "user number"]
    modal_text: Float[Tensor, "user modality text"]
    modal_number: Float[Tensor, "user modality modal_number"]
    present: Bool[Tensor, "user modality"]
    event_text: Float[Tensor, "user event text"]
    event_number: Float[Tensor, "user event event_number"]
    event_modality: Int[Tensor, "user event"]
    event_recent: Bool[Tensor, "user event"]  # newest single events; the others are habits
    event_mask: Bool[Tensor, "user event"]
    text: Int[Tensor, "user event"]  # the place of each event's text in `texts`
    texts: tuple[str, ...]  # the distinct ones of the batch, for an encoder that learns


def collate_users(readings: UserFeatures, rows: Sequence[int] | np.ndarray, side: str = "right") -> PaddedBatch:
    """Pad these rows of the readings into one batch; the pads stand on `side` of the events and are masked.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> preprocessor = qa.UserPreprocessor.fit(users, None, qa.TINY)
        >>> qa.collate_users(preprocessor.transform(users), [0, 1]).event_mask.shape
        torch.Size([2, 12])
    """
    rows = [int(r) for r in rows]
    slots = [readings.slots[r] for r in rows]
    width = max([len(s[0]) for s in slots] + [1])
    vectors = readings.vectors
    text = np.zeros((len(rows), width, vectors.shape[1]), np.float32)
    number = np.zeros((len(rows), width, slots[0][1].shape[1]), np.float32)
    modality, recent, mask, code = (np.zeros((len(rows), width), t) for t in (np.int64, bool, bool, np.int64))
    for i, (ids, values, kinds, fresh) in enumerate(slots):
        at = slice(width - len(ids), width) if side == "left" else slice(0, len(ids))
        text[i, at], number[i, at], modality[i, at] = vectors[ids], values, kinds
        recent[i, at], mask[i, at], code[i, at] = fresh, True, ids
    distinct = np.unique(code[mask])
    code = np.searchsorted(distinct, code).clip(max=max(len(distinct) - 1, 0))  # pads: any
    whole = (readings.coarse[rows], readings.modal_text[rows], readings.modal_number[rows], readings.present[rows])
    arrays = (*whole, text, number, modality, recent, mask, code)
    return PaddedBatch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays), tuple(readings.texts[i] for i in distinct))


@dataclass(frozen=True)
class QueryBatch(DeviceMixin):
    """Hold K branches `query <USER_EMB> answer` a user, laid end to end; a branch sees its prefix and itself, never another."""

    ids: Int[Tensor, "user token"]  # USER_EMB marks the anchor; pads are 0
    branch: Int[Tensor, "user token"]  # number of the branch, -1 for pads
    offset: Int[Tensor, "user token"]  # place within the branch
    anchor: Int[Tensor, "user branch"]  # where each branch's <USER_EMB> stands
    writes: Bool[Tensor, "user token"]  # from <USER_EMB> on: the next token is to be predicted
    next_ids: Int[Tensor, "user token"]  # the token to predict there
    soft: Float[Tensor, "vector width"] | None = None  # of learned queries: id USER_EMB - 1 is its first row, and so on down


def collate_queries(
    queries: list[list[list[int]]],
    answers: list[list[list[int]]] | None = None,
    soft: Float[Tensor, "vector width"] | None = None,
) -> QueryBatch:
    """Lay out token ids: `queries[user][branch]` and, for training, `answers[user][branch]` (ending in eos).

    Every user has the same number of branches; their lengths may differ.
    """
    rows = []
    for user, asked in enumerate(queries):
        ids, branch, offset, anchor, writes, following = [], [], [], [], [], []
        for k, query in enumerate(asked):
            answer = answers[user][k] if answers else []
            anchor.append(len(ids) + len(query))
            whole = [*query, USER_EMB, *answer[:-1]]
            ids += whole
            branch += [k] * len(whole)
            offset += range(len(whole))
            writes += [False] * len(query) + [bool(answer)] * max(len(answer), 1)
            following += [0] * len(query) + (answer or [0])
        rows.append((ids, branch, offset, writes, following, anchor))
    width = max(len(r[0]) for r in rows)
    padded = [
        torch.tensor([list(r[i]) + [pad] * (width - len(r[i])) for r in rows]) for i, pad in enumerate((0, -1, 0, False, 0))
    ]
    ids, branch, offset, writes, following = padded
    return QueryBatch(ids, branch, offset, torch.tensor([r[5] for r in rows]), writes, following, soft)


def branch_mask(prefix_mask: Bool[Tensor, "user slot"], branch: Int[Tensor, "user token"]) -> Bool[Tensor, "user token key"]:
    """Say what each branch token may look at: the whole prefix, then its own branch up to itself; pads look at themselves."""
    tokens = branch.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=branch.device).tril()
    own = (branch[:, :, None] == branch[:, None, :]) & causal
    return torch.cat([prefix_mask[:, None, :].expand(-1, tokens, -1), own], -1)


def group_by_length(
    lengths: Sequence[int] | np.ndarray, budget: int, most: int = 10**9, alike: float = np.inf
) -> list[np.ndarray]:
    """Group rows of like length so that padded tokens stay within `budget` a group (and rows within `most`).

    alike   the longest of a group is at most so many times as long as its shortest.

    Example:
        >>> [g.tolist() for g in group_by_length([5, 1, 5, 1], budget=10)]
        [[1, 3], [0, 2]]
    """
    order, groups, start = np.argsort(lengths, kind="stable"), [], 0
    lengths = np.asarray(lengths)
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * max(lengths[order[end]], 1) > budget or end - start >= most
        if full or lengths[order[end]] > alike * max(lengths[order[start]], 1):
            groups.append(order[start:end])
            start = end
    return groups


def pack_queries(lengths: Sequence[int], users: int = 1) -> list[slice]:
    """Cut a list of queries into packs of at most `MAX_PACK_TOKENS` tokens (or of one query), fewer behind many users.

    Example:
        >>> pack_queries([30, 30, 30, 70], users=32)
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    starts, room, most = [], -1, min(MAX_PACK_TOKENS, max(64, MAX_TOKENS_PER_PASS // users))
    for at, length in enumerate(lengths):
        if length > room:
            starts.append(at)
            room = most
        room -= length
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])]
