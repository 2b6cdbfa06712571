"""Fit associations: factors of all that users did, and a ridge regression for each outcome."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from qanchor.data.things import ThingEvents
from qanchor.models.associations import Associations, association_features
from qanchor.models.user_tokens import TOKEN_NUMBERS, UserTokens
from qanchor.useru.concepts import MEASURES, Outcomes

COLUMNS = tuple(
    TOKEN_NUMBERS.index(name) for name in ("count", "count in the last horizon", "amount")
)
MAX_RANK = 64  # factors of a user
USERS_PER_FACTOR = 8
RIDGE = 3000.0
FOLDS = 4  # of users; in training, each is read with heads that did not see it
HASHED_APART = 1000  # the fold must not follow from whether a user is held out
MIN_TARGET_SPREAD = 0.02  # standard deviation of an outcome that a head is fitted for


class AssociationFit:
    """Fit associations, one cut-off after another.

    Args:
        tokens: Tokens at the latest training cut-off; the factors are fitted on them.
        rows: Rows of the users that may be used.
    """

    def __init__(self, tokens: UserTokens, rows: Int[np.ndarray, " user"]):
        from sklearn.utils.extmath import randomized_svd

        self.things = tuple(thing.name for thing in tokens.things)
        rank = max(min(MAX_RANK, len(rows) // USERS_PER_FACTOR, len(self.things)), 1)
        table = np.zeros((len(rows), len(self.things), len(COLUMNS)), np.float32)
        user, place = np.nonzero(tokens.which[rows] >= 0)
        thing = tokens.which[rows][user, place]
        table[user, thing] = tokens.numbers[rows][user, place][:, COLUMNS]
        table = table.reshape(len(rows), -1)
        basis = randomized_svd(table - table.mean(0), rank, random_state=0)[2]
        factors = basis.T.reshape(len(self.things), len(COLUMNS), -1)
        self.factors = factors.astype(np.float16)
        self.features: list[np.ndarray] = []
        self.folds: list[np.ndarray] = []
        # one for each fold: centred features times targets, and squares of the targets
        self.products: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}

    def add(
        self,
        tokens: UserTokens,
        rows: Int[np.ndarray, " user"],
        events: ThingEvents,
        outcomes: Outcomes,
    ) -> None:
        """Learn from users at one cut-off.

        Args:
            tokens: Tokens at the cut-off, of the same things.
            rows: Rows of the users that may be used.
            events: Events of the users.
            outcomes: What all users of `tokens` did after it.
        """
        features = association_features(
            torch.from_numpy(tokens.which[rows]),
            torch.from_numpy(tokens.numbers[rows][..., COLUMNS]),
            torch.from_numpy(tokens.level[rows]),
            torch.from_numpy(self.factors.astype(np.float32)),
        ).numpy()
        fold = user_folds(tokens.ids)[rows]
        self.features.append(features)
        self.folds.append(fold)
        # histories grow from cut-off to cut-off: users are compared within one
        centred = features - features.mean(0)
        for measure in MEASURES:
            target = outcomes.targets(events, measure)[rows].astype(np.float32)
            known = ~np.isnan(target)
            mean = np.where(known, target, 0).sum(0) / np.maximum(known.sum(0), 1)
            target = np.where(known, target - mean, 0)
            parts = [fold == number for number in range(FOLDS)]
            product = np.stack([centred[part].T @ target[part] for part in parts])
            squares = np.square(target).sum(0)
            self.products[measure] = self.products.get(measure, 0) + product
            self.squares[measure] = self.squares.get(measure, 0) + squares

    def solve(self) -> Associations:
        """Return the associations of all cut-offs."""
        everything = np.concatenate(self.features)
        mean = everything.mean(0)
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
            # without each fold, then with all
            sums = zip([*grams, 0 * gram], [*product, 0 * product[0]], strict=True)
            solved = [
                np.linalg.solve(gram - left_out + ridge, product.sum(0) - without)
                for left_out, without in sums
            ]
            heads.append([np.where(known, part, 0).T for part in solved])
        return Associations(
            self.things,
            COLUMNS,
            self.factors,
            mean.astype(np.float32),
            spread.astype(np.float32),
            np.array(heads, np.float16).swapaxes(0, 1),
            (gram / len(standard)).astype(np.float32),
        )


def user_folds(ids: Sequence[str]) -> Int[np.ndarray, " user"]:
    """Return the fold of each user, by hash of the id.

    Args:
        ids: Ids of the users.
    """
    hashes = [zlib.crc32(user.encode("utf-8", "surrogatepass")) for user in ids]
    return np.array(hashes, int) // HASHED_APART % FOLDS
