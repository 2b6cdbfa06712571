"""The three losses, as pure functions of tensors: contrastive (masked), autoregressive, prototype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

AWAY = float("-inf")


def contrastive_loss(
    anchor: Float[Tensor, "pair dim"],
    target: Float[Tensor, "pair dim"],
    temperature: float = 0.07,
    margin: float = 0.1,
    variant: str = "paper",
    same: Bool[Tensor, "pair pair"] | None = None,
) -> Float[Tensor, ""]:
    """Pull each anchor to its own answer and push it from the others (paper, equations 3-5).

    anchor, target   unit vectors, row i of one belongs to row i of the other.
    temperature      divides the cosines; margin: a negative more similar than the positive by this much is false, and dropped.
    variant          "paper": anchor-target, anchor-anchor and target-target negatives, one joint mask;
                     "release": the released code's form, without target-target, each term masked by its own similarity.
    same             pairs whose answer texts are identical: never negatives of each other.
    Returns the mean over rows of -log(positive / (positive + negatives)); log-sum-exp, so it stays finite at any temperature.

    Example:
        >>> eye = torch.eye(4)
        >>> bool(contrastive_loss(eye, eye) < contrastive_loss(eye, eye.roll(1, 0)))
        True
    """
    kinds = [anchor @ target.T, anchor @ anchor.T] + ([target @ target.T] if variant == "paper" else [])
    similarity = torch.stack(kinds)  # kind pair pair
    positive = kinds[0].diagonal()
    false = similarity.detach() > (positive.detach() + margin)[None, :, None]
    drop = false.any(0, keepdim=True).expand_as(false) if variant == "paper" else false
    drop = drop | torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    if same is not None:
        drop = drop | same
    negatives = (similarity / temperature).masked_fill(drop, AWAY).permute(1, 0, 2).flatten(1)
    logits = torch.cat([positive[:, None] / temperature, negatives], 1)
    return (torch.logsumexp(logits, 1) - logits[:, 0]).mean()


def autoregressive_loss(logits: Float[Tensor, "token vocabulary"], ids: Int[Tensor, " token"]) -> Float[Tensor, ""]:
    """Ask how surprising the answers' tokens are: mean cross-entropy over answer tokens only (paper, section 3.3).

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
    """Pull each anchor to the prototype of its label (paper, equation 7), both sides at unit length.

    Example:
        >>> eye = torch.eye(2)
        >>> bool(prototype_loss(eye, eye, torch.tensor([0, 1])) < 1e-5)
        True
    """
    logits = F.normalize(anchor, dim=-1) @ F.normalize(prototype, dim=-1).T / temperature
    return F.cross_entropy(logits, label)
