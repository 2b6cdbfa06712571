"""Attention of a few query tokens to long prefixes, without repeating keys for grouped heads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MAX_QUERY_TOKENS = (
    128  # tokens in one piece; with more, the repeated keys cost little in comparison
)


def grouped_attention(
    plain: Callable,
    module: nn.Module,
    query: Float[Tensor, "user head token size"],
    key: Float[Tensor, "user shared seen size"],
    value: Float[Tensor, "user shared seen size"],
    attention_mask: Bool[Tensor, "user one token seen"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **how,
) -> tuple[Float[Tensor, "user token head size"], None]:
    """Compute grouped-query attention by stacking the heads that share keys along the tokens.

    `plain` (sdpa of transformers) repeats keys and values for every head of a group. For a short
    query behind a long prefix that costs as much as the attention itself. On a CPU the products are
    also written out, because the fused kernel is slow for few tokens (2 times forward, 5 times
    backward), and queries that cannot see each other run in pieces. Tested equal to `plain`.

    Args:
        plain: Fallback with the same arguments, for everything this is not made for.
        module: Attention module, passed to `plain`.
        query: Queries of all heads.
        key: Keys, one for each group of heads.
        value: Values, one for each group of heads.
        attention_mask: True where a token may attend; None: causal, handled by `plain`.
        scaling: Scale of the scores; default: 1 / sqrt(size).
        dropout: Dropout probability of the attention weights. **how: Passed to `plain`.

    Returns:
        The attention output, and None in place of the weights.
    """
    users, heads, tokens, size = query.shape
    shared = key.shape[1]
    on_cpu = query.device.type == "cpu" and not dropout
    if attention_mask is None or shared == heads or (tokens > MAX_QUERY_TOKENS and not on_cpu):
        return plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **how
        )
    pieces = attention_pieces(attention_mask)
    if max(piece.stop - piece.start for piece in pieces) > MAX_QUERY_TOKENS:
        return plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **how
        )
    scaling = size**-0.5 if scaling is None else scaling
    if not on_cpu:
        mask = attention_mask[:, :, None].expand(-1, -1, heads // shared, -1, -1).flatten(2, 3)
        stacked = query.reshape(users, shared, -1, size)
        sdpa = nn.functional.scaled_dot_product_attention
        out = sdpa(stacked, key, value, mask, dropout, scale=scaling)
        return out.reshape(users, heads, tokens, size).transpose(1, 2).contiguous(), None
    before = key.shape[2] - tokens
    outs = []
    for piece in pieces:
        piece_key, piece_value, mask = key, value, attention_mask[:, :, piece]
        if len(pieces) > 1:  # the prefix and the piece itself
            own = slice(before + piece.start, before + piece.stop)
            piece_key = torch.cat([key[:, :, :before], key[:, :, own]], 2)
            piece_value = torch.cat([value[:, :, :before], value[:, :, own]], 2)
            mask = torch.cat([mask[..., :before], mask[..., own]], -1)
        stacked = query[:, :, piece].reshape(users, shared, -1, size)
        out = explicit_attention(stacked, piece_key, piece_value, mask, scaling)
        outs.append(out.reshape(users, heads, -1, size))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


def attention_pieces(mask: Bool[Tensor, "user one token seen"]) -> list[slice]:
    """Split tokens into runs that do not attend to each other.

    Args:
        mask: True where a token may attend; the tokens themselves are the last keys.

    Returns:
        Runs of at most `MAX_QUERY_TOKENS` tokens where the mask allows it; longer ones stay whole.

    Example:
        >>> own = torch.block_diag(*[torch.ones(90, 90)] * 2).bool()
        >>> attention_pieces(own[None, None])
        [slice(0, 90, None), slice(90, 180, None)]
    """
    tokens = mask.shape[2]
    if tokens <= MAX_QUERY_TOKENS:
        return [slice(0, tokens)]
    # the earliest of these tokens that each attends to
    first = mask[:, 0, :, -tokens:].any(0).int().argmax(-1)
    earliest_later = first.flip(0).cummin(0).values.flip(0)
    starts = [*(earliest_later == torch.arange(tokens)).nonzero()[:, 0].tolist(), tokens]
    ends = [0]
    for at, after in pairwise(starts):
        if after - ends[-1] > MAX_QUERY_TOKENS and at > ends[-1]:
            ends.append(at)
    return [slice(*bounds) for bounds in pairwise([*ends, tokens])]


def explicit_attention(
    query: Float[Tensor, "user shared stacked size"],
    key: Float[Tensor, "user shared seen size"],
    value: Float[Tensor, "user shared seen size"],
    mask: Bool[Tensor, "user one token seen"],
    scaling: float,
) -> Float[Tensor, "user shared stacked size"]:
    """Compute attention as defined: softmax(query @ key.T * scaling + mask) @ value.

    The softmax computes in float32 internally whatever the dtype; an explicit copy in float32 would
    cost more than everything else.

    Args:
        query: Heads of a group, stacked along the tokens.
        key: Keys of each group.
        value: Values of each group.
        mask: True where a token may attend.
        scaling: Scale of the scores.

    Returns:
        The attention output, stacked like `query`.
    """
    score = (query * scaling) @ key.transpose(-1, -2)
    lowest = torch.finfo(score.dtype).min
    hidden = torch.zeros_like(mask, dtype=score.dtype).masked_fill(~mask, lowest)
    score.unflatten(2, (-1, mask.shape[2])).add_(hidden[:, :, None])
    return score.softmax(-1) @ value
