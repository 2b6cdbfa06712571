"""Fit associations: low-rank factors of all user activity, and a ridge regression per outcome."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.data.things import ThingEvents
from qanchor.models.associations import Associations, association_features, thing_table
from qanchor.models.pointing import ASSOCIATED
from qanchor.models.user_tokens import UserTokens
from qanchor.useru.concepts import MEASURES, Outcomes
from qanchor.utils.types import UserInts

MAX_RANK = 64  # number of factors
USERS_PER_FACTOR = 8
RIDGE = 3000.0
FOLDS = 4  # of users; in training, a user is scored by heads fitted without the user's fold
MIN_TARGET_SPREAD = 0.02  # outcomes with a smaller standard deviation get no head


class AssociationFit:
    """Fit associations: `add` the users at one cut-off after another, then `solve`.

    Args:
        tokens: Tokens at the latest training cut-off; the factors are fitted on them.
        fold: Fold of each user, 0 to 3; -1 for users to leave out.
    """

    def __init__(self, tokens: UserTokens, fold: UserInts):
        from sklearn.utils.extmath import randomized_svd

        self.things = tuple(thing.name for thing in tokens.things)
        which, numbers = _inputs(tokens, fold >= 0)
        table = thing_table(which, numbers, len(self.things)).numpy()
        rank = max(min(MAX_RANK, len(table) // USERS_PER_FACTOR, len(self.things)), 1)
        basis = randomized_svd(table - table.mean(0), rank, random_state=0)[2]
        factors = basis.T.reshape(len(self.things), len(ASSOCIATED), -1)
        self.factors = factors.astype(np.float16)
        self.features: list[np.ndarray] = []
        self.folds: list[np.ndarray] = []
        # by measure: features times targets for each fold, and the sum of squares of the targets
        self.products: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}

    def add(
        self, tokens: UserTokens, fold: UserInts, events: ThingEvents, outcomes: Outcomes
    ) -> None:
        """Add the users at one cut-off.

        Args:
            tokens: Tokens at the cut-off, of the same things.
            fold: Fold of each user; -1 for users to leave out.
            events: Events of the users.
            outcomes: Outcomes of all users of `tokens` after the cut-off.
        """
        used = fold >= 0
        which, numbers = _inputs(tokens, used)
        level = torch.from_numpy(tokens.level[used])
        factors = torch.from_numpy(self.factors.astype(np.float32))
        features = association_features(which, numbers, level, factors).numpy()
        self.features.append(features)
        self.folds.append(fold[used])
        # histories are longer at later cut-offs, so users are only compared within a cut-off
        centred = features - features.mean(0)
        parts = [fold[used] == number for number in range(FOLDS)]
        for measure in MEASURES:
            target = outcomes.targets(events, measure)[used].astype(np.float32)
            known = ~np.isnan(target)
            mean = np.where(known, target, 0).sum(0) / np.maximum(known.sum(0), 1)
            target = np.where(known, target - mean, 0)
            product = np.stack([centred[part].T @ target[part] for part in parts])
            squares = np.square(target).sum(0)
            self.products[measure] = self.products.get(measure, 0) + product
            self.squares[measure] = self.squares.get(measure, 0) + squares

    def solve(self) -> Associations:
        """Return the associations fitted on all cut-offs."""
        mean = np.concatenate(self.features).mean(0)
        within = np.concatenate([part - part.mean(0) for part in self.features])
        spread = within.std(0) + 1e-6
        standard = within / spread
        fold = np.concatenate(self.folds)
        grams = np.stack([standard[fold == k].T @ standard[fold == k] for k in range(FOLDS)])
        gram = grams.sum(0)
        ridge = RIDGE * np.eye(len(gram), dtype=gram.dtype)
        heads = []
        for measure in MEASURES:
            product = self.products[measure] / spread[:, None]
            known = np.sqrt(self.squares[measure] / len(standard)) >= MIN_TARGET_SPREAD
            everything = product.sum(0)
            solved = [
                np.linalg.solve(gram - grams[k] + ridge, everything - product[k])
                for k in range(FOLDS)
            ]
            solved.append(np.linalg.solve(gram + ridge, everything))
            heads.append([np.where(known, part, 0).T for part in solved])
        return Associations(
            self.things,
            self.factors,
            mean.astype(np.float32),
            spread.astype(np.float32),
            np.array(heads, np.float16).swapaxes(0, 1),
            (gram / len(standard)).astype(np.float32),
        )


def _inputs(
    tokens: UserTokens, used: np.ndarray
) -> tuple[Int[Tensor, "user token"], Float[Tensor, "user token column"]]:
    """Return the things of the tokens of some users, and their numbers in `ASSOCIATED`."""
    numbers = tokens.numbers[used][..., ASSOCIATED]
    return torch.from_numpy(tokens.which[used]), torch.from_numpy(numbers)
