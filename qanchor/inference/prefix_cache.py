"""`PrefixCache`: users that were read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Int
from numpy import ndarray

from qanchor.models.pointing import PrefixStates
from qanchor.models.user_tokens import UserTokens
from qanchor.utils.text import count


class UserBatch(NamedTuple):
    """Users that run together."""

    rows: Int[ndarray, " user"]  # places of the users in `PrefixCache.ids`
    # what a language model has read of them; None without one that reads a prefix, and beyond the
    # memory budget, where it is computed again for every query
    prefix: PrefixStates | None = None


@dataclass
class PrefixCache:
    """Hold users that were read once, made by `Engine.prefill`. Queries never change it.

    Attributes: `ids` (the order of the rows of every embedding), `unit`, `horizon_days`.

    Args:
        tokens: What questions point at.
        groups: Batches of the users (default: none).

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> engine.prefill(users.select(users.ids[:1]))
        PrefixCache(1 user, 92 tokens)
    """

    tokens: UserTokens
    groups: list[UserBatch] = field(default_factory=list)

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids of the users."""
        return self.tokens.ids

    @property
    def unit(self) -> str:
        """Return what one user is called, such as "household"."""
        return self.tokens.unit

    @property
    def horizon_days(self) -> int:
        """Return the days ahead that a query about the future means."""
        return self.tokens.horizon_days

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        tokens = int((self.tokens.which >= 0).sum())
        return f"PrefixCache({count(len(self), self.unit)}, {tokens:,} tokens)"
