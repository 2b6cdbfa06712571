"""`Associations`: predict an outcome from everything that a user did.

Buying cat litter, for example, predicts buying pet food. There is one linear head for each thing
and measure, on low-rank factors of the activity with all things; a question uses the weighted mean
of the heads of the things that it refers to. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Things = Int[Tensor, "user token"]
Numbers = Float[Tensor, "user token column"]
Features = Float[Tensor, "user feature"]


class AssociationInput(NamedTuple):
    """Fields of `Associations` as tensors, for the reader."""

    factors: Float[Tensor, "thing column rank"]
    mean: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]
    heads: Float[Tensor, "set measure thing_or_any feature"]
    covariance: Float[Tensor, "feature feature"]
    is_taught: Float[Tensor, "measure thing_or_any"]  # 1 where there is a head


@dataclass(frozen=True)
class Associations:
    """Hold linear heads on low-rank factors of all user activity, fitted at past cut-offs.

    Args:
        things: Names of the things.
        factors: Projection of the token numbers in `ASSOCIATED`, for each thing, to the factors.
        mean: Mean of each feature: the factors of a user, then the user-level numbers.
        spread: Standard deviation of each feature.
        heads: Weights of the features for each measure and thing, any event last; zero where
            nothing could be learned. The last set is fitted on all users. The sets before it exist
            only in training; each leaves out one fold of users.
        covariance: Covariance of the standardized features.
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
            things: Names of the things. Unknown ones get zeros as factors and heads.
        """
        row = rows_of(things, self.things)
        factors = np.pad(self.factors, ((0, 1), (0, 0), (0, 0)))
        heads = np.pad(self.heads, ((0, 0), (0, 0), (0, 1), (0, 0)))
        of_any = len(self.things)
        heads = heads.take([*row, of_any], axis=2)
        return replace(self, things=tuple(things), factors=factors[row], heads=heads)

    def of_all_users(self) -> Associations:
        """Return the same associations with only the heads that are fitted on all users."""
        return replace(self, heads=self.heads[-1:])

    def tensors(self) -> AssociationInput:
        """Return the arrays as float32 tensors, and where there are heads."""
        is_taught = self.heads[-1].any(-1)
        arrays = (self.factors, self.mean, self.spread, self.heads, self.covariance, is_taught)
        return AssociationInput(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


def rows_of(names: Sequence[str], things: Sequence[str]) -> Int[np.ndarray, " name"]:
    """Return the row of each name in a list of things; -1 if it is not there.

    Args:
        names: Names to look up.
        things: Names of the things.
    """
    row_of = {name: row for row, name in enumerate(things)}
    return np.array([row_of.get(name, -1) for name in names], int)


def thing_table(
    which: Things, numbers: Numbers, n_things: int
) -> Float[Tensor, "user thing_column"]:
    """Return the token numbers as a dense table of users by things; 0 if a user lacks a thing.

    Args:
        which: Thing of each token; -1 for padding.
        numbers: Numbers of each token; 0 for padding.
        n_things: Number of things.
    """
    n_users, _, n_columns = numbers.shape
    first = which.clamp(min=0)[..., None] * n_columns
    place = first + torch.arange(n_columns)
    table = numbers.new_zeros(n_users, n_things * n_columns)
    return table.scatter_add(1, place.flatten(1), numbers.flatten(1))


def association_features(
    which: Things,
    numbers: Numbers,
    level: Float[Tensor, "user level"],
    factors: Float[Tensor, "thing column rank"],
) -> Features:
    """Return the features of the linear heads: factors of all tokens, and user-level numbers.

    Args:
        which: Thing of each token; -1 for padding.
        numbers: Numbers of each token in `ASSOCIATED`; 0 for padding.
        level: User-level numbers.
        factors: Projection to the factors, from `Associations`.
    """
    table = thing_table(which, numbers, len(factors))
    return torch.cat([table @ factors.flatten(0, 1), level], 1)


def score_associations(
    features: Features,
    associations: AssociationInput,
    meant: Float[Tensor, "query thing_or_any"],
    measure: Float[Tensor, "query measure"],
    fold: Int[Tensor, " user"] | None = None,
) -> Float[Tensor, "user query"]:
    """Return how strongly each user's activity is associated with what each question asks for.

    The standard deviation over users is 1 if everything that the question refers to has heads, and
    less if some of it has none.

    Args:
        features: From `association_features`.
        associations: The associations.
        meant: Weight of each thing, any event last; sums to 1 for each question.
        measure: Probabilities of the measures of each question.
        fold: Set of heads for each user; -1 is the one fitted on all users (default: -1 for all).
    """
    standard = (features - associations.mean) / associations.spread
    heads = associations.heads[-1:] if fold is None else associations.heads
    weight = torch.einsum("qm,qt->qmt", measure, meant).flatten(1)
    head = weight @ heads.flatten(1, 2)  # (set, query, feature)
    known = (weight * associations.is_taught.flatten()).sum(1)
    variance = ((head @ associations.covariance) * head).sum(-1)
    scale = known / variance.clamp(min=1e-12).sqrt()
    head = head * scale[..., None]
    values = standard @ head.transpose(1, 2)  # (set, user, query)
    if fold is None:
        return values[-1]
    return values[fold, torch.arange(len(fold))]
