"""Padded tensors of users, of queries and answers, and of token budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qanchor.models.features import UserFeatures

MAX_PACK_TOKENS = 256  # query tokens of one user in one pass
MAX_TOKENS_PER_PASS = 2048  # query tokens of all users of a batch in one pass
MIN_PACK_TOKENS = 64  # query tokens of one user in one pass, however large the batch
USER_EMB = -1  # stands for <USER_EMB> in token ids; the model inserts its learned vector


TokenInts = Int[Tensor, "user token"]


class DeviceMixin:
    """Add `to(device)` to a dataclass of tensors."""

    def to(self, device):
        """Return a copy with every tensor on a device.

        Args:
            device: Torch device.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return type(self)(**moved)


@dataclass(frozen=True)
class PaddedBatch(DeviceMixin):
    """Hold the features of some users as padded tensors, the input of `PrefixEncoder`."""

    coarse: Float[Tensor, "user number"]
    modal_text: Float[Tensor, "user modality text"]
    modal_number: Float[Tensor, "user modality modal_number"]
    present: Bool[Tensor, "user modality"]
    event_text: Float[Tensor, "user event text"]
    event_number: Float[Tensor, "user event event_number"]
    event_modality: Int[Tensor, "user event"]
    event_recent: Bool[Tensor, "user event"]  # single recent events; the others are frequent texts
    event_mask: Bool[Tensor, "user event"]


def collate_users(
    features: UserFeatures, rows: Sequence[int] | np.ndarray, side: str = "right"
) -> PaddedBatch:
    """Pad some rows of the features into one batch.

    Args:
        features: From `UserPreprocessor.transform`.
        rows: Row numbers.
        side: Side of the padding, "right" (default) or "left". Padding is masked.

    Returns:
        Tensors on the CPU; row i is `rows[i]`.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> preprocessor = qa.UserPreprocessor.fit(users, None, qa.TINY)
        >>> qa.collate_users(preprocessor.transform(users), [0, 1]).event_mask.shape
        torch.Size([2, 12])
    """
    rows = [int(row) for row in rows]
    events = [features.events[row] for row in rows]
    vectors = features.vectors
    width = max([len(text_ids) for text_ids, *_ in events] + [1])
    shape = (len(rows), width)
    text = np.zeros((*shape, vectors.shape[1]), np.float32)
    number = np.zeros((*shape, events[0][1].shape[1]), np.float32)
    modality = np.zeros(shape, np.int64)
    recent = np.zeros(shape, bool)
    mask = np.zeros(shape, bool)
    for i, (text_ids, numbers, modalities, is_recent) in enumerate(events):
        at = slice(width - len(text_ids), width) if side == "left" else slice(0, len(text_ids))
        text[i, at] = vectors[text_ids]
        number[i, at] = numbers
        modality[i, at] = modalities
        recent[i, at] = is_recent
        mask[i, at] = True
    arrays = (
        features.coarse[rows],
        features.modal_text[rows],
        features.modal_number[rows],
        features.present[rows],
        text,
        number,
        modality,
        recent,
        mask,
    )
    tensors = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    return PaddedBatch(*tensors)


@dataclass(frozen=True)
class QueryBatch(DeviceMixin):
    """Hold K branches `query <USER_EMB> answer` for each user, laid end to end.

    A branch attends to its prefix and to itself, never to another branch.
    """

    ids: TokenInts  # USER_EMB marks the anchor; padding is 0
    branch: TokenInts  # number of the branch, -1 for padding
    offset: TokenInts  # position within the branch
    anchor: Int[Tensor, "user branch"]  # position of each branch's <USER_EMB>
    writes: Bool[Tensor, "user token"]  # whether the next token is to be predicted here
    next_ids: TokenInts  # the token to predict
    # vectors of soft prompts: id USER_EMB - 1 is row 0, USER_EMB - 2 is row 1, and so on
    soft: Float[Tensor, "vector width"] | None = None


def collate_queries(
    queries: list[list[list[int]]],
    answers: list[list[list[int]]] | None = None,
    soft: Float[Tensor, "vector width"] | None = None,
) -> QueryBatch:
    """Pad the token ids of queries and answers into one batch.

    Args:
        queries: Token ids, `queries[user][branch]`. Every user has the same number of branches;
            their lengths may differ.
        answers: Token ids that end in eos, `answers[user][branch]`. Default: none, as at inference.
        soft: Vectors of soft prompts that the ids refer to. Default: none.

    Returns:
        Tensors on the CPU.
    """
    rows = []
    for user, user_queries in enumerate(queries):
        ids = []
        branch = []
        offset = []
        anchor = []
        writes = []
        next_ids = []
        for k, query in enumerate(user_queries):
            answer = answers[user][k] if answers else []
            anchor.append(len(ids) + len(query))
            tokens = [*query, USER_EMB, *answer[:-1]]
            ids += tokens
            branch += [k] * len(tokens)
            offset += range(len(tokens))
            writes += [False] * len(query) + [bool(answer)] * max(len(answer), 1)
            next_ids += [0] * len(query) + (answer or [0])
        rows.append((ids, branch, offset, writes, next_ids, anchor))
    width = max(len(row[0]) for row in rows)

    def padded(column: int, value: int | bool) -> Tensor:
        return torch.tensor([[*row[column], *[value] * (width - len(row[column]))] for row in rows])

    return QueryBatch(
        ids=padded(0, 0),
        branch=padded(1, -1),
        offset=padded(2, 0),
        anchor=torch.tensor([row[5] for row in rows]),
        writes=padded(3, False),
        next_ids=padded(4, 0),
        soft=soft,
    )


def branch_mask(
    prefix_mask: Bool[Tensor, "user prefix_token"], branch: TokenInts
) -> Bool[Tensor, "user token key"]:
    """Compute which keys each branch token may attend to: the prefix, then its own branch.

    Args:
        prefix_mask: False for padding of the prefix.
        branch: Number of the branch of each token; padding attends to itself.

    Returns:
        True where a token may attend; keys are the prefix tokens, then the branch tokens.
    """
    tokens = branch.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=branch.device).tril()
    own = (branch[:, :, None] == branch[:, None, :]) & causal
    return torch.cat([prefix_mask[:, None, :].expand(-1, tokens, -1), own], -1)


def group_by_length(
    lengths: Sequence[int] | np.ndarray, budget: int, most: int = 10**9, alike: float = np.inf
) -> list[np.ndarray]:
    """Group rows of similar length so that each group, padded, stays within a token budget.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a group, padding included. A longer row is a group of its own.
        most: Rows of a group. Default: no limit.
        alike: Longest row of a group divided by its shortest, at most. Default: no limit.

    Returns:
        Row numbers by group, shortest rows first.

    Example:
        >>> [group.tolist() for group in group_by_length([5, 1, 5, 1], budget=10)]
        [[1, 3], [0, 2]]
    """
    lengths = np.asarray(lengths)
    order = np.argsort(lengths, kind="stable")
    groups = []
    start = 0
    for end in range(1, len(order) + 1):
        full = (
            end == len(order)
            or (end + 1 - start) * max(lengths[order[end]], 1) > budget
            or end - start >= most
        )
        if full or lengths[order[end]] > alike * max(lengths[order[start]], 1):
            groups.append(order[start:end])
            start = end
    return groups


def pack_queries(lengths: Sequence[int], users: int = 1) -> list[slice]:
    """Split a list of queries into packs that run in one pass.

    Args:
        lengths: Tokens of each query.
        users: Users that are asked together; with many, packs get smaller. Default: 1.

    Returns:
        Slices of the list. A pack has at most 256 tokens, or one query.

    Example:
        >>> pack_queries([30, 30, 30, 70], users=32)
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    limit = min(MAX_PACK_TOKENS, max(MIN_PACK_TOKENS, MAX_TOKENS_PER_PASS // users))
    starts = []
    room = -1
    for position, length in enumerate(lengths):
        if length > room:
            starts.append(position)
            room = limit
        room -= length
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])]
