"""`Associations`: what goes along with an outcome, in all that a user did.

Who will buy pet food may be told by cat litter. Linear heads on factors of everything that users
did say so for each thing and measure; a question takes the mean head of the things that it means.
Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class AssociationInput(NamedTuple):
    """Associations as the reader takes them: fields of `Associations` as tensors."""

    factors: Float[Tensor, "thing column rank"]
    mean: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]
    heads: Float[Tensor, "set measure thing_or_any feature"]
    covariance: Float[Tensor, "feature feature"]
    is_taught: Float[Tensor, "measure thing_or_any"]  # 1 where there is a head


@dataclass(frozen=True)
class Associations:
    """Hold linear heads, fitted at past cut-offs, on factors of all that users did.

    Args:
        things: Names of the things.
        factors: Factors of the numbers of each thing that `ASSOCIATED` names.
        mean: Mean of each feature: the factors of a user, and the numbers of the user as a whole.
        spread: Standard deviation of each.
        heads: Weights of the features for each measure of each thing, and last of any event; zero
            where nothing could be learned. The last set is fitted on all users; sets before it,
            which only training has, are each fitted without one fold of them.
        covariance: Covariance of the standardised features.
    """

    things: tuple[str, ...]
    factors: Float[np.ndarray, "thing column rank"]
    mean: Float[np.ndarray, " feature"]
    spread: Float[np.ndarray, " feature"]
    heads: Float[np.ndarray, "set measure thing_or_any feature"]
    covariance: Float[np.ndarray, "feature feature"]

    def align(self, things: Sequence[str]) -> Associations:
        """Return the same associations for another list of things.

        Args:
            things: Names of the things. Those that were not known have no factors and no heads.
        """
        row_of = {name: row for row, name in enumerate(self.things)}
        row = np.array([row_of.get(name, len(self.things)) for name in things], int)
        factors = np.concatenate([self.factors, np.zeros_like(self.factors[:1])])
        of_any = self.heads[:, :, -1:]
        heads = np.concatenate([self.heads[:, :, :-1], np.zeros_like(of_any)], 2)
        heads = np.concatenate([heads[:, :, row], of_any], 2)
        return replace(self, things=tuple(things), factors=factors[row], heads=heads)

    def of_all_users(self) -> Associations:
        """Return the same associations with the heads that are fitted on all users alone."""
        return replace(self, heads=self.heads[-1:])

    def tensors(self) -> AssociationInput:
        """Return the arrays as tensors in float32, and where there are heads."""
        arrays = (self.factors, self.mean, self.spread, self.heads, self.covariance)
        arrays = (*arrays, self.heads[-1].any(-1))
        return AssociationInput(*(torch.from_numpy(part.astype(np.float32)) for part in arrays))


def thing_table(
    which: Int[Tensor, "user token"], numbers: Float[Tensor, "user token column"], n_things: int
) -> Float[Tensor, "user thing_column"]:
    """Return the numbers of each thing that each user has; 0 for those that it has not.

    Args:
        which: Thing of each token; -1 for padding.
        numbers: Numbers of each token; 0 for padding.
        n_things: Number of things.
    """
    n_users, _, n_columns = numbers.shape
    place = which.clamp(min=0)[..., None] * n_columns + torch.arange(n_columns)
    table = numbers.new_zeros(n_users, n_things * n_columns)
    return table.scatter_add(1, place.flatten(1), numbers.flatten(1))


def association_features(
    which: Int[Tensor, "user token"],
    numbers: Float[Tensor, "user token column"],
    level: Float[Tensor, "user level"],
    factors: Float[Tensor, "thing column rank"],
) -> Float[Tensor, "user feature"]:
    """Return what heads are linear in: factors of all tokens, and numbers of the user as a whole.

    Args:
        which: Thing of each token; -1 for padding.
        numbers: Numbers of each token that factors are of; 0 for padding.
        level: Numbers of each user as a whole.
        factors: Factors of the things.
    """
    table = thing_table(which, numbers, len(factors))
    return torch.cat([table @ factors.flatten(0, 1), level], 1)


def score_associations(
    features: Float[Tensor, "user feature"],
    associations: AssociationInput,
    meant: Float[Tensor, "query thing_or_any"],
    measure: Float[Tensor, "query measure"],
    fold: Int[Tensor, " user"] | None = None,
) -> Float[Tensor, "user query"]:
    """Return the association score: how far all that each user did goes along with what each
    question asks for.

    Its standard deviation over users is 1 where all that is meant has heads, and less where some
    of it has none.

    Args:
        features: From `association_features`.
        associations: The associations.
        meant: How far each thing, and last any event, is meant; each question's sum is 1.
        measure: Probabilities of the measures of each question.
        fold: Set of heads for each user, -1 for the one of all users (default: that for everyone).
    """
    standard = (features - associations.mean) / associations.spread
    heads = associations.heads[-1:] if fold is None else associations.heads
    weight = torch.einsum("qm,qt->qmt", measure, meant).flatten(1)
    head = weight @ heads.flatten(1, 2)  # (set, query, feature)
    known = (weight * associations.is_taught.flatten()).sum(1)
    variance = ((head @ associations.covariance) * head).sum(-1)
    head = head * (known / variance.clamp(min=1e-12).sqrt())[..., None]
    values = standard @ head.transpose(1, 2)  # (set, user, query)
    return values[-1] if fold is None else values[fold, torch.arange(len(fold))]
