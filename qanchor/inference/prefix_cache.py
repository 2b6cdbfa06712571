"""`PrefixCache`: the tokens of users, read once for any number of queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from qanchor.models.pointing import PrefixStates, TokenInput, token_input
from qanchor.models.user_tokens import UserTokens
from qanchor.utils.text import count


class UserBatch(NamedTuple):
    """Users that are processed in one forward pass."""

    rows: Int[np.ndarray, " user"]  # row numbers of the users in `PrefixCache.ids`
    # cached keys and values; None if no language model reads users as a prefix, or beyond the
    # memory budget (the prefix is then recomputed for every query)
    prefix: PrefixStates | None = None


@dataclass
class PrefixCache:
    """Hold users that were read once, as returned by `Engine.prefill`. Queries never change it.

    Args:
        tokens: Tokens of the users.
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
        """Return the ids of the users, in the order of the rows of every embedding."""
        return self.tokens.ids

    @property
    def unit(self) -> str:
        """Return the singular noun for a user, such as "household"."""
        return self.tokens.unit

    @property
    def horizon_days(self) -> int:
        """Return how many days a query looks ahead by default."""
        return self.tokens.horizon_days

    def user_input(self, user: str) -> TokenInput:
        """Return the reader's input for one user, with the cached prefix if there is one.

        Args:
            user: Id of the user.
        """
        row = self.ids.index(user)
        for rows, prefix in self.groups:
            if prefix is not None and row in rows:
                # padded to the width of the batch, as the prefix is
                one = _select(token_input(self.tokens, rows), rows == row)
                return one._replace(prefix=_select(prefix, rows == row))
        return token_input(self.tokens, [row])

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        tokens = int((self.tokens.which >= 0).sum())
        return f"PrefixCache({count(len(self), self.unit)}, {tokens:,} tokens)"


def _select(parts: tuple, mask: np.ndarray) -> Any:
    """Select users from a named tuple of tensors; fields that are None stay None."""
    return type(parts)(*(None if part is None else part[mask] for part in parts))
