"""Attention over modalities, and the effect of deleting each modality on the embedding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.queries import QueryLike, query_text
from qanchor.models.user_tokens import UserTokens
from qanchor.utils.types import EmbeddingRows

# groups of tokens that are not modalities; attention is summed over modalities and these
NUMBER_ROW = "number columns"
TIME_ROW = "time of day"
TABULAR = "tabular"
ROW_OF_KIND = {"number": NUMBER_ROW, "time": TIME_ROW, "attribute": TABULAR}
MIN_RANK_GAP = 2  # a modality is marked if its two ranks differ by at least this much
MIN_RANKED = 3  # modalities that a rank correlation needs
TABLE_COLUMNS = [
    "query",
    "modality",
    "kind",
    "tokens",
    "weight",
    "per_token",
    "deletion_effect",
    "disagrees",
    "disagrees_per_token",
    "agreement",
    "agreement_per_token",
]


def attention_rows(modalities: Sequence[str]) -> list[str]:
    """Return the names of the groups of tokens that attention is summed over.

    They are the modalities, "number columns", "time of day" and "tabular" (the facts). Each is a
    row of the attention table.

    Args:
        modalities: Modalities of the users.

    Raises:
        ValueError: A modality has a reserved name.
    """
    for name in modalities:
        if name in (NUMBER_ROW, TIME_ROW):
            raise ValueError(
                f"A modality is named {name!r}, which is reserved for tokens without a modality. "
                "Rename it and read the events again."
            )
    return list(dict.fromkeys([*modalities, *ROW_OF_KIND.values()]))


def thing_rows(tokens: UserTokens, names: Sequence[str]) -> np.ndarray:
    """Return the position in `names` that each thing belongs to; -1 for none.

    Args:
        tokens: Tokens of the users.
        names: Rows, from `attention_rows`.
    """
    row_names = [ROW_OF_KIND.get(thing.kind, thing.modality) for thing in tokens.things]
    return pd.Index(names).get_indexer(row_names)


def modality_attention(engine: Engine, cache: PrefixCache, query: QueryLike) -> pd.DataFrame:
    """Return how much each user's score depends on each modality.

    The weight of a modality is the absolute value of the sum of the score's gradients over its
    tokens.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        query: The query or soft prompt.

    Returns:
        `user, query, modality, weight, per_token`. The weights of one user sum to 1, unless all
        gradients are zero; `per_token` is the weight divided by the number of tokens. In addition
        to modalities there are the rows `number columns`, `time of day` and `tabular` (the facts).

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> cache = engine.prefill(users.select(users.ids[:2]))
        >>> frame = modality_attention(engine, cache, "Will this user come back?")
        >>> frame.groupby("user")["weight"].sum().round(4).tolist()
        [1.0, 1.0]
    """
    names = attention_rows(cache.tokens.population.named("modality"))
    frame = attention_shares(engine, cache, query, names)
    frame = frame[frame["tokens"] > 0].reset_index(drop=True)
    frame["per_token"] = frame["weight"] / frame["tokens"]
    frame["query"] = query_text(query)
    return frame[["user", "query", "modality", "weight", "per_token"]]


def attention_shares(
    engine: Engine, cache: PrefixCache, query: QueryLike, names: Sequence[str]
) -> pd.DataFrame:
    """Return the share of each row in a user's attention, and its number of tokens.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        query: The query or soft prompt.
        names: Rows, from `attention_rows`.

    Returns:
        `user, modality, weight, tokens`, for each user one row for each of `names`.
    """
    tokens = cache.tokens
    n_rows = len(names)
    row_of_thing = np.append(thing_rows(tokens, names), -1)  # the last stands for no thing
    weights = []
    n_tokens = []
    for users, gradients in engine.iter_token_gradients(cache, query):
        things = tokens.which[users][:, : gradients.shape[1]]
        is_row = row_of_thing[things][..., None] == np.arange(n_rows)
        gradient_of_row = (gradients[..., None] * is_row).sum(axis=1)
        weights.append(np.abs(gradient_of_row))
        n_tokens.append(is_row.sum(axis=1))
    weight = np.concatenate(weights)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
    frame = pd.DataFrame({"user": np.repeat(cache.ids, n_rows)})
    frame["modality"] = np.tile(names, len(cache))
    frame["weight"] = weight.ravel()
    frame["tokens"] = np.concatenate(n_tokens).ravel()
    return frame


def modality_importance(
    engine: Engine, users: Users, query: QueryLike | Sequence[QueryLike]
) -> pd.DataFrame:
    """Measure how far a user's embedding moves when a modality is deleted.

    Args:
        engine: The model.
        users: The users. Each is encoded once in full, and once without each modality or the facts.
        query: One query, or several that share these encodings.

    Returns:
        `user, query, modality, deletion_effect`. The deletion effect is 1 - cosine between the
        embeddings with and without the modality. Modalities that a user lacks are left out.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> frame = modality_importance(engine, users.sample(3), "Will this user come back?")
        >>> list(frame.columns), bool((frame.deletion_effect >= 0).all())
        (['user', 'query', 'modality', 'deletion_effect'], True)
    """
    queries = [query] if isinstance(query, QueryLike) else list(query)
    whole = engine.embed(engine.prefill(users), queries).astype(float)
    frames = []
    for name, effects in iter_deletion_effects(engine, users, queries, whole):
        for one, effect in zip(queries, effects.T, strict=True):
            frame = pd.DataFrame({"user": users.ids, "query": query_text(one), "modality": name})
            frame["deletion_effect"] = effect
            frames.append(frame.dropna())
    return pd.concat(frames).sort_values(["user", "query"], kind="stable", ignore_index=True)


def ablatable_rows(users: Users) -> list[str]:
    """Return the rows that can be deleted: the modalities, and the facts if there are any.

    Args:
        users: The users.
    """
    names = list(users.modalities)
    if len(users.tabular.columns) and TABULAR not in names:
        names.append(TABULAR)
    return names


def iter_deletion_effects(
    engine: Engine,
    users: Users,
    queries: Sequence[QueryLike],
    whole: Float[np.ndarray, "user query dim"],
) -> Iterator[tuple[str, Float[np.ndarray, "user query"]]]:
    """Delete one modality at a time, and measure how far the users move.

    Args:
        engine: The model.
        users: The users.
        queries: Queries and soft prompts.
        whole: Embeddings of the users with all modalities.

    Yields:
        The modality, and the deletion effect for each user and query; NaN if a user lacks it.
    """
    names = ablatable_rows(users)
    lacks = users.modality_counts().reindex(columns=names, fill_value=0) == 0
    if TABULAR in names:
        lacks[TABULAR] &= users.tabular.isna().all(axis=1).to_numpy()
    for name in names:
        less = engine.embed(engine.prefill(without_modality(users, name)), queries)
        moved = np.maximum(1 - (whole * less).sum(-1), 0.0)
        moved[lacks[name]] = np.nan
        yield name, moved


def without_modality(users: Users, modality: str) -> Users:
    """Return the same users as if one modality had not been recorded.

    Args:
        users: The users.
        modality: The modality to remove; "tabular" also removes the facts.
    """
    events = users.events[users.events["modality"] != modality].reset_index(drop=True)
    tabular = users.tabular * np.nan if modality == TABULAR else users.tabular
    return replace(users, events=events, tabular=tabular)


def rank_agreement(
    attention: pd.DataFrame, importance: pd.DataFrame, column: str = "weight"
) -> pd.DataFrame:
    """Correlate attention with deletion effects over each user's modalities (Spearman).

    Args:
        attention: From `modality_attention`.
        importance: From `modality_importance`.
        column: "weight" (default) or "per_token".

    Returns:
        `user, modalities, correlation`; users with fewer than 3 modalities are left out.

    Example:
        >>> rows = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"]})
        >>> attention = rows.assign(weight=[0.5, 0.3, 0.2])
        >>> importance = rows.assign(deletion_effect=[0.9, 0.2, 0.1])
        >>> rank_agreement(attention, importance)
          user  modalities  correlation
        0    a           3          1.0
    """
    both = importance.merge(attention[["user", "modality", column]], on=["user", "modality"])
    rows = []
    for user, frame in both.groupby("user", sort=False):
        if len(frame) >= MIN_RANKED:
            correlations = frame[[column, "deletion_effect"]].corr("spearman")
            rows.append((user, len(frame), correlations.iloc[0, 1]))  # NaN if all are equal
    return pd.DataFrame(rows, columns=["user", "modalities", "correlation"])


@dataclass(frozen=True)
class UserAttention:
    """Hold the attention and the deletion effects of some users under one query.

    Args:
        table: `user, modality, weight, tokens` from `attention_shares`, and `deletion_effect`; NaN
            where nothing was deleted.
        anchor: Embedding of each user.
    """

    table: pd.DataFrame
    anchor: EmbeddingRows


def attention_table(query: str, users: pd.DataFrame, modalities: Collection[str]) -> pd.DataFrame:
    """Average the attention and the deletion effects of users under one query.

    Args:
        query: Name of the query.
        users: `user, modality, weight, tokens, deletion_effect`, see `UserAttention`.
        modalities: The rows that can be deleted, from `ablatable_rows`.

    Returns:
        The table that `AttentionBackend` describes.

    Example:
        >>> users = pd.DataFrame({"user": "a", "modality": ["bill", "time of day"], "weight": 0.5})
        >>> users = users.assign(tokens=[1.0, 5], deletion_effect=[0.2, np.nan])
        >>> table = attention_table("Why?", users, ["bill"])
        >>> table[["modality", "weight", "per_token", "deletion_effect"]]
              modality  weight  per_token  deletion_effect
        0         bill     0.5        0.5              0.2
        1  time of day     0.5        0.1              NaN
    """
    users = users.assign(per_token=users["weight"] / users["tokens"].clip(lower=1))
    deleted = users[["user", "modality", "deletion_effect"]].dropna()
    by_modality = users.groupby("modality", sort=False)
    table = by_modality[["tokens", "weight", "deletion_effect"]].mean().reset_index()
    effect = table["deletion_effect"]
    weight = table["weight"]
    per_token = weight / table["tokens"].clip(lower=1e-9)
    table["query"] = query
    table["kind"] = np.where(table["modality"].isin(list(modalities)), "modality", "other")
    table["per_token"] = per_token
    table["disagrees"] = ranks_disagree(weight, effect)
    table["disagrees_per_token"] = ranks_disagree(per_token, effect)
    for measure, name in (("weight", "agreement"), ("per_token", "agreement_per_token")):
        table[name] = rank_agreement(users, deleted, measure)["correlation"].mean()
    return table.loc[table["tokens"] > 0, TABLE_COLUMNS].reset_index(drop=True)


def ranks_disagree(values: pd.Series, effect: pd.Series) -> pd.Series:
    """Mark the rows whose ranks by value and by deletion effect are two or more apart.

    Args:
        values: A value per row.
        effect: The deletion effect per row; rows without one are not ranked.

    Returns:
        A boolean mask of the rows.

    Example:
        >>> ranks_disagree(pd.Series([0.5, 0.3, 0.2]), pd.Series([0.1, 0.2, 0.9])).tolist()
        [True, False, True]
    """
    rank = values.where(effect.notna()).rank()
    return (rank - effect.rank()).abs() >= MIN_RANK_GAP  # False for NaN
