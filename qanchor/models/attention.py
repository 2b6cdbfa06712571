"""Attention of few tokens to long prefixes, where several query heads share keys: no copy of the keys for each of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MAX_QUERY_TOKENS = 128  # tokens attended at once; with more the copy is cheap beside the work


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
    """Lay the heads that share keys below each other, as if they were tokens of one head; else as `plain` does.

    `plain` (transformers' own sdpa) repeats keys and values for every head of a group, which for a short question behind a long
    prefix costs as much as attending. On a CPU the products are also written out: the fused kernel is made for many tokens, and
    with few of them takes twice as long, and five times going back; and questions that cannot see each other are attended a few
    at a time, so that none is compared with many others in vain. Equal to `plain`, and tested to be.
    """
    users, heads, tokens, size = query.shape
    shared, cpu = key.shape[1], query.device.type == "cpu" and not dropout
    if attention_mask is None or shared == heads or (tokens > MAX_QUERY_TOKENS and not cpu):
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **how)
    cuts = attention_pieces(attention_mask)
    if max(some.stop - some.start for some in cuts) > MAX_QUERY_TOKENS:
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **how)
    scaling = size**-0.5 if scaling is None else scaling
    if not cpu:
        mask = attention_mask[:, :, None].expand(-1, -1, heads // shared, -1, -1).flatten(2, 3)
        stacked = query.reshape(users, shared, -1, size)
        out = nn.functional.scaled_dot_product_attention(stacked, key, value, mask, dropout, scale=scaling)
        return out.reshape(users, heads, tokens, size).transpose(1, 2).contiguous(), None
    before, outs = key.shape[2] - tokens, []
    for some in cuts:
        held, mask = (key, value), attention_mask[:, :, some]
        if len(cuts) > 1:
            own = slice(before + some.start, before + some.stop)
            held = tuple(torch.cat([kept[:, :, :before], kept[:, :, own]], 2) for kept in held)
            mask = torch.cat([mask[..., :before], mask[..., own]], -1)
        stacked = query[:, :, some].reshape(users, shared, -1, size)
        outs.append(explicit_attention(stacked, *held, mask, scaling).reshape(users, heads, -1, size))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


def attention_pieces(mask: Bool[Tensor, "user one token seen"]) -> list[slice]:
    """Cut tokens into runs of `MAX_QUERY_TOKENS` at most, as far as none looks from one run into another; a longer run stays whole.

    Example:
        >>> own = torch.block_diag(*[torch.ones(90, 90)] * 2).bool()
        >>> attention_pieces(own[None, None])
        [slice(0, 90, None), slice(90, 180, None)]
    """
    tokens = mask.shape[2]
    if tokens <= MAX_QUERY_TOKENS:
        return [slice(0, tokens)]
    first = mask[:, 0, :, -tokens:].any(0).int().argmax(-1)  # the earliest of these tokens that each looks at
    apart = first.flip(0).cummin(0).values.flip(0) == torch.arange(tokens)
    starts = [*apart.nonzero()[:, 0].tolist(), tokens]
    ends = [0]
    for at, after in pairwise(starts):
        if after - ends[-1] > MAX_QUERY_TOKENS and at > ends[-1]:
            ends.append(at)
    return [slice(*ends) for ends in pairwise([*ends, tokens])]


def explicit_attention(
    query: Float[Tensor, "user shared stacked size"],
    key: Float[Tensor, "user shared seen size"],
    value: Float[Tensor, "user shared seen size"],
    mask: Bool[Tensor, "user one token seen"],
    scaling: float,
) -> Float[Tensor, "user shared stacked size"]:
    """Attend as the definition says; the softmax reckons in float32 whatever it is given: a copy in float32 would cost most."""
    score = (query * scaling) @ key.transpose(-1, -2)
    hidden = torch.zeros_like(mask, dtype=score.dtype).masked_fill(~mask, torch.finfo(score.dtype).min)
    score.unflatten(2, (-1, mask.shape[2])).add_(hidden[:, :, None])
    return score.softmax(-1) @ value
