"""Saliency of events in a run from `fit`: which of their own events users' scores depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qanchor.inference.pointing_engine import PointingEngine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.heads import QueryLike
from qanchor.models.user_tokens import UserTokens

# rows of the attention beside the modalities
NUMBER_ROW = "number columns"
TIME_ROW = "time of day"
ATTRIBUTE_ROW = "tabular"
POINTING_ROWS = (NUMBER_ROW, TIME_ROW, ATTRIBUTE_ROW)
ROW_OF_KIND = {"number": NUMBER_ROW, "time": TIME_ROW, "attribute": ATTRIBUTE_ROW}


def pointing_rows(modalities: Sequence[str]) -> list[str]:
    """Return the names of the rows that attention is summed over.

    Args:
        modalities: Modalities of the users.

    Raises:
        ValueError: A modality has the name of another row.
    """
    clashes = [name for name in modalities if name in (NUMBER_ROW, TIME_ROW)]
    if clashes:
        name = f"A modality is named {clashes[0]!r}, which is reserved for tokens of no modality."
        raise ValueError(f"{name} Rename it and read the events again.")
    return list(dict.fromkeys([*modalities, *POINTING_ROWS]))


def thing_rows(tokens: UserTokens, names: Sequence[str]) -> np.ndarray:
    """Return the row of `names` that each thing belongs to; -1 for none.

    Args:
        tokens: Tokens of the users.
        names: From `pointing_rows`.
    """
    place = {name: row for row, name in enumerate(names)}
    rows = [place.get(ROW_OF_KIND.get(thing.kind, thing.modality), -1) for thing in tokens.things]
    return np.array(rows, int)


def iter_pointing_shares(
    engine: PointingEngine,
    cache: PrefixCache,
    query: QueryLike,
    users: Sequence[str],
    names: Sequence[str],
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Yield, batch by batch, ids, weights (1 layer, user, 1 head, row), and tokens of each row.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        query: The query or soft prompt.
        users: Ids of the users to look at.
        names: From `pointing_rows`.
    """
    tokens = cache.tokens
    row_of = np.append(thing_rows(tokens, names), -1)
    is_chosen = np.isin(np.array(cache.ids, dtype=object), list(users))
    for rows, gradients in engine.iter_token_gradients(cache, query):
        chosen = np.flatnonzero(is_chosen[rows])
        if not len(chosen):
            continue
        gradients = gradients[chosen]
        which = tokens.which[rows[chosen]][:, : gradients.shape[1]]
        row = np.where(which >= 0, row_of[which], -1)
        is_row = row[..., None] == np.arange(len(names))
        weight = np.abs((gradients[..., None] * is_row).sum(1))
        total = np.maximum(weight.sum(-1, keepdims=True), 1e-9)
        ids = [cache.ids[place] for place in rows[chosen]]
        yield ids, (weight / total)[None, :, None], is_row.sum(1)
