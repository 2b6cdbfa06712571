"""`Population`: reference distributions for percentiles, so that a user can be read alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from qanchor.data.things import SHARE_BASES, ThingEvents
from qanchor.models.associations import Associations, rows_of

QUANTILES = 21  # of the values of each thing
LEVEL_QUANTILES = 101  # of each user-level number


@dataclass(frozen=True)
class Population:
    """Hold distributions over many users at one cut-off. A run stores those of its training users.

    Percentiles are looked up in these tables, not computed among the users that happen to be read
    together. So a user has the same tokens alone, among others, and after others are removed.

    Args:
        things: Names of the things.
        rarity: log(number of users / number of users that have the thing).
        values: Quantiles of each thing's count, or of an attribute's value, over the users that
            have it; NaN if nobody has it.
        levels: Quantiles of each user-level number.
        n_users: Number of users.
        main_number: Number column that amounts are taken from; empty for none.
        share_base: What the share of each thing is relative to, as an index into `SHARE_BASES`.
        associations: Associations between the same things; None (default) if not learned.
    """

    things: tuple[str, ...]
    rarity: Float[np.ndarray, " thing"]
    values: Float[np.ndarray, "thing quantile"]
    levels: Float[np.ndarray, "level level_quantile"]
    n_users: int
    main_number: str
    share_base: Int[np.ndarray, " thing"]
    associations: Associations | None = None

    @classmethod
    def fit(
        cls,
        events: ThingEvents,
        thing: Int[np.ndarray, " token"],
        value: Float[np.ndarray, " token"],
        levels: Float[np.ndarray, "user level"],
    ) -> Population:
        """Compute the distributions from the tokens of users.

        Args:
            events: Events of the users; they have the things.
            thing: Thing of each token, as an index into `events.things`.
            value: Count of each token, or value of its attribute.
            levels: User-level numbers, one row per user.
        """
        n_users = len(levels)
        holders = np.bincount(thing, minlength=len(events.things))
        rarity = np.log(max(n_users, 1) / np.maximum(holders, 1))
        ordered = np.append(value[np.lexsort((value, thing))], np.nan)
        start = np.cumsum(holders) - holders
        steps = np.round(np.outer(holders - 1, np.linspace(0, 1, QUANTILES)))
        place = start[:, None] + steps.astype(int)
        place[holders == 0] = -1  # NaN
        share = np.linspace(0, 1, LEVEL_QUANTILES)
        level_quantiles = np.quantile(levels, share, axis=0, method="nearest")
        return cls(
            tuple(thing.name for thing in events.things),
            rarity.astype(np.float32),
            ordered[place].astype(np.float32),
            level_quantiles.T.astype(np.float32),
            n_users,
            events.main_number,
            events.share_base,
        )

    def named(self, kind: str) -> list[str]:
        """Return the names of the things of a kind, without the prefix of the kind.

        Args:
            kind: One of `qanchor.data.things.KINDS`, such as "modality".
        """
        prefix = f"{kind}:"
        return [name.removeprefix(prefix) for name in self.things if name.startswith(prefix)]

    def share_bases(self) -> dict[str, str]:
        """Return what the share of each thing is relative to, by the name of the thing."""
        bases = (SHARE_BASES[row] for row in self.share_base)
        return dict(zip(self.things, bases, strict=True))

    def align(self, things: Sequence[str]) -> Population:
        """Return the same population for another list of things.

        Args:
            things: Names of the things. Unknown ones get the rarity of a thing that one user has.
        """
        row = rows_of(things, self.things)
        rarity = np.append(self.rarity, np.float32(np.log(max(self.n_users, 1))))
        values = np.pad(self.values, ((0, 1), (0, 0)), constant_values=np.nan)
        return replace(
            self,
            things=tuple(things),
            rarity=rarity[row],
            values=values[row],
            share_base=np.append(self.share_base, 0)[row],
            associations=self.associations and self.associations.align(things),
        )

    def rank_values(
        self, thing: Int[np.ndarray, " token"], value: Float[np.ndarray, " token"]
    ) -> Float[np.ndarray, " token"]:
        """Return the percentile of each token among the users that have its thing, 0 to 1.

        It is 0.5 for things that nobody has.

        Args:
            thing: Thing of each token, as an index into `things`.
            value: Count of each token, or value of its attribute.
        """
        quantiles = self.values[thing]
        return np.where(np.isnan(quantiles[:, 0]), 0.5, _rank(value, quantiles))

    def rank_levels(
        self, levels: Float[np.ndarray, "user level"]
    ) -> Float[np.ndarray, "user level"]:
        """Return the percentile of each user-level number, 0 to 1.

        Args:
            levels: User-level numbers.
        """
        columns = zip(levels.T, self.levels, strict=True)
        return np.stack([_rank(level, quantiles) for level, quantiles in columns], 1)


def _rank(value: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Return the share of quantiles (of each value, or the same) below each value.

    Ties count half.
    """
    value = value.astype(np.float32)[:, None]
    below = (quantiles < value).mean(1)
    equal = (quantiles == value).mean(1)
    return below + equal / 2
