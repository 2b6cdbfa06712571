"""Attention of few tokens to long prefixes, where several query heads share keys: no copy of the keys for each of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

FEW = 64  # tokens; with more the copy is cheap beside the work


def grouped(
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
    with few of them takes twice as long, and five times going back. Equal to `plain`, and tested to be.
    """
    users, heads, tokens, size = query.shape
    shared = key.shape[1]
    if attention_mask is None or shared == heads or tokens > FEW:
        return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **how)
    each = heads // shared
    mask = attention_mask[:, :, None].expand(-1, -1, each, -1, -1).flatten(2, 3)
    stacked = query.reshape(users, shared, each * tokens, size)
    if query.device.type == "cpu" and not dropout:
        out = written_out(stacked, key, value, mask, size**-0.5 if scaling is None else scaling)
    else:
        out = nn.functional.scaled_dot_product_attention(stacked, key, value, mask, dropout, scale=scaling)
    return out.reshape(users, heads, tokens, size).transpose(1, 2).contiguous(), None


def written_out(
    query: Float[Tensor, "user head token size"],
    key: Float[Tensor, "user head seen size"],
    value: Float[Tensor, "user head seen size"],
    mask: Bool[Tensor, "user one token seen"],
    scaling: float,
) -> Float[Tensor, "user head token size"]:
    """Attend as the definition says, with the softmax in float32."""
    score = (query @ key.transpose(-1, -2)).float() * scaling
    return score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1).to(value.dtype) @ value
