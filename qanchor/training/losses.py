"""Contrastive, autoregressive and prototype losses, as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def contrastive_loss(
    anchor: Float[Tensor, "pair dim"],
    target: Float[Tensor, "pair dim"],
    temperature: float = 0.07,
    margin: float = 0.1,
    same: Bool[Tensor, "pair pair"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the contrastive loss with masked false negatives (paper, equations 3 to 5).

    Args:
        anchor: Unit embeddings of user and query.
        target: Unit embeddings of answers; row i belongs to row i of `anchor`.
        temperature: Cosines are divided by it. Default: 0.07.
        margin: A negative that is more similar than the positive by more than this counts as false
            and is dropped. Default: 0.1.
        same: Pairs whose answers mean the same; they are never negatives. Default: none.

    Returns:
        The mean over rows of -log(positive / (positive + negatives)), by log-sum-exp, so that it is
        finite at any temperature.

    Example:
        >>> eye = torch.eye(4)
        >>> bool(contrastive_loss(eye, eye) < contrastive_loss(eye, eye.roll(1, 0)))
        True
    """
    kinds = [anchor @ target.T, anchor @ anchor.T, target @ target.T]
    similarity = torch.stack(kinds)  # (kind, pair, pair)
    positive = kinds[0].diagonal()
    limit = positive.detach()[:, None] + margin
    dropped = (similarity.detach() > limit).any(0)  # false in one kind, false in all
    dropped.fill_diagonal_(True)
    if same is not None:
        dropped |= same
    negatives = (similarity / temperature).masked_fill(dropped, float("-inf"))
    negatives = negatives.permute(1, 0, 2).flatten(1)  # all kinds of a row side by side
    logits = torch.cat([positive[:, None] / temperature, negatives], 1)
    return (torch.logsumexp(logits, 1) - logits[:, 0]).mean()


def autoregressive_loss(
    logits: Float[Tensor, "token vocabulary"], ids: Int[Tensor, " token"]
) -> Float[Tensor, ""]:
    """Compute the mean cross-entropy of answer tokens (paper, section 3.3).

    Args:
        logits: Next-token logits at the positions before the answer tokens.
        ids: Answer tokens.

    Example:
        >>> autoregressive_loss(torch.zeros(3, 5), torch.tensor([0, 1, 2])).round(decimals=4)
        tensor(1.6094)
    """
    return F.cross_entropy(logits.float(), ids)


def prototype_loss(
    anchor: Float[Tensor, "user dim"],
    prototype: Float[Tensor, "label dim"],
    label: Int[Tensor, " user"],
    temperature: float = 0.07,
) -> Float[Tensor, ""]:
    """Compute the cross-entropy of cosines to class prototypes (paper, equation 7).

    Args:
        anchor: Embeddings of users; they are normalized.
        prototype: One prototype per class; they are normalized.
        label: Class number of each user.
        temperature: Cosines are divided by it. Default: 0.07.

    Example:
        >>> eye = torch.eye(2)
        >>> bool(prototype_loss(eye, eye, torch.tensor([0, 1])) < 1e-5)
        True
    """
    logits = F.normalize(anchor, dim=-1) @ F.normalize(prototype, dim=-1).T / temperature
    return F.cross_entropy(logits, label)
