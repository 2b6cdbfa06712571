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

MAX_RANK = 64  # number of factors
USERS_PER_FACTOR = 8
RIDGE = 3000.0
FOLDS = 4  # of users; in training, a user is scored by heads fitted without the user's fold
MIN_TARGET_SPREAD = 0.02  # outcomes with a smaller standard deviation get no head


class AssociationFit:
    """Fit associations: `add` the users at one cut-off after another, then `solve`.

    Users are left out if their fold is -1.

    Args:
        tokens: Tokens at the latest training cut-off; the factors are fitted on them.
    """

    def __init__(self, tokens: UserTokens):
        from sklearn.utils.extmath import randomized_svd

        self.things = tuple(thing.name for thing in tokens.things)
        which, numbers = _inputs(tokens, tokens.fold >= 0)
        table = thing_table(which, numbers, len(self.things)).numpy()
        rank = max(min(MAX_RANK, len(table) // USERS_PER_FACTOR, len(self.things)), 1)
        basis = randomized_svd(table - table.mean(0), rank, random_state=0)[2]
        factors = basis.T.reshape(len(self.things), len(ASSOCIATED), -1)
        self.factors = factors.astype(np.float16)
        # of the users at each cut-off
        self.features: list[np.ndarray] = []
        self.centred: list[np.ndarray] = []
        self.folds: list[np.ndarray] = []
        # by measure: features times targets for each fold, and the sum of squares of the targets
        self.products = dict.fromkeys(MEASURES, 0)
        self.squares = dict.fromkeys(MEASURES, 0)

    def add(self, tokens: UserTokens, events: ThingEvents, outcomes: Outcomes) -> None:
        """Add the users at one cut-off.

        Args:
            tokens: Tokens at the cut-off, of the same things.
            events: Events of the users.
            outcomes: Outcomes of all users of `tokens` after the cut-off.
        """
        used = tokens.fold >= 0
        fold = tokens.fold[used]
        which, numbers = _inputs(tokens, used)
        level = torch.from_numpy(tokens.level[used])
        factors = torch.from_numpy(self.factors.astype(np.float32))
        features = association_features(which, numbers, level, factors).numpy()
        # histories are longer at later cut-offs, so users are only compared within a cut-off
        centred = features - features.mean(0)
        self.features.append(features)
        self.centred.append(centred)
        self.folds.append(fold)
        parts = [fold == number for number in range(FOLDS)]
        for measure in MEASURES:
            target = outcomes.targets(events, measure)[used]
            target = _centred(target.astype(np.float32))
            self.products[measure] += np.stack([centred[part].T @ target[part] for part in parts])
            self.squares[measure] += np.square(target).sum(0)

    def solve(self) -> Associations:
        """Return the associations fitted on all cut-offs."""
        mean = np.concatenate(self.features).mean(0)
        centred = np.concatenate(self.centred)
        spread = centred.std(0) + 1e-6
        standard = centred / spread
        fold = np.concatenate(self.folds)
        parts = [fold == number for number in range(FOLDS)]
        grams = np.stack([standard[part].T @ standard[part] for part in parts])
        gram = grams.sum(0)
        ridge = RIDGE * np.eye(len(gram), dtype=gram.dtype)
        heads = []
        for measure in MEASURES:
            products = self.products[measure] / spread[:, None]
            product = products.sum(0)
            known = np.sqrt(self.squares[measure] / len(standard)) >= MIN_TARGET_SPREAD
            sets = []
            # each set of heads leaves out one fold, the last set none
            for own_gram, own_product in zip([*grams, 0], [*products, 0], strict=True):
                solved = np.linalg.solve(gram - own_gram + ridge, product - own_product)
                sets.append(np.where(known, solved, 0).T)
            heads.append(sets)
        return Associations(
            self.things,
            self.factors,
            mean.astype(np.float32),
            spread.astype(np.float32),
            np.array(heads, np.float16).swapaxes(0, 1),
            (gram / len(standard)).astype(np.float32),
        )


def _centred(target: np.ndarray) -> np.ndarray:
    """Return targets minus the mean of the known ones; 0 where unknown."""
    known = ~np.isnan(target)
    n_known = np.maximum(known.sum(0), 1)
    mean = np.where(known, target, 0).sum(0) / n_known
    return np.where(known, target - mean, 0)


def _inputs(
    tokens: UserTokens, used: np.ndarray
) -> tuple[Int[Tensor, "user token"], Float[Tensor, "user token column"]]:
    """Return the things of the tokens of some users, and their numbers in `ASSOCIATED`."""
    numbers = tokens.numbers[used][..., ASSOCIATED]
    return torch.from_numpy(tokens.which[used]), torch.from_numpy(numbers)
