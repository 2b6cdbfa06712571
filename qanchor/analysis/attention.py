"""Attention over modalities, beside what deleting each of them does to the answer."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.analysis.pointing_attention import (
    ATTRIBUTE_ROW,
    iter_pointing_shares,
    pointing_rows,
)
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.inference.pointing_engine import PointingEngine
from qanchor.inference.prefix_cache import PrefixCache, select_users
from qanchor.models.collate import USER_EMB
from qanchor.models.heads import QueryLike, query_text
from qanchor.models.model import QAnchor
from qanchor.models.prefix_encoder import GROUP, USER, Prefix
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.utils.types import Progress

TABULAR = ATTRIBUTE_ROW
# rows of the frame beside the modalities
NON_MODALITY_ROWS = ("user", "summary", TABULAR, "query", "soft prompt", "sink")
# groups of numbers that sum up the events of every modality
SUMMARY_GROUPS = ("time", "counts", "words")
ATTENTION_COLUMNS = ["user", "query", "layer", "head", "modality", "weight", "per_token"]


def row_names(preprocessor: UserPreprocessor) -> list[str]:
    """Return the names of the rows that attention is summed over: the modalities, then the other
    rows.

    Args:
        preprocessor: The preprocessor of the model.

    Returns:
        The names.

    Raises:
        ValueError: If a modality has the name of another row.
    """
    clashes = sorted(set(NON_MODALITY_ROWS) & set(preprocessor.modalities) - {TABULAR})
    if clashes:
        name = f"A modality is named {clashes[0]!r}, which is reserved for tokens of no modality."
        raise ValueError(f"{name} Rename it and train again.")
    return list(dict.fromkeys([*preprocessor.modalities, *NON_MODALITY_ROWS]))


@torch.inference_mode()
def modality_attention(
    engine: Engine,
    cache: PrefixCache,
    query: QueryLike,
    users: Sequence[str] | None = None,
    *,
    by_head: bool = False,
) -> pd.DataFrame:
    """Return the attention of <USER_EMB> under a query, summed over the tokens of each modality.

    Only the anchor's rows are kept, from cached prefixes, with eager attention for this pass alone.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        query: The query or soft prompt.
        users: Ids; default: all of the cache.
        by_head: Return a row per head; default False, then head is -1, the mean of all.

    Returns:
        `user, query, layer, head, modality, weight, per_token`. The weights of one user, layer and
        head sum to 1; per_token is the weight divided by the number of tokens. The row of a
        modality covers its own token, its habits and its events. The other rows are `user` (the
        user token), `summary` and `tabular` (groups of numbers), `query` (its own words), `soft
        prompt` (its vectors) and `sink`, the first token: language models leave there what they do
        not need elsewhere.

    Raises:
        KeyError: If a user was not read.
        ValueError: If there are no users.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> frame = modality_attention(engine, engine.prefill(users), "Will this user travel soon?", users.ids[:2])
        >>> frame.groupby(["user", "layer"])["weight"].sum().round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    wanted = list(cache.ids if users is None else dict.fromkeys(map(str, users)))
    if not wanted:
        raise ValueError("No users selected. Give ids, or none for all of the cache.")
    unread = sorted(set(wanted) - set(cache.ids))
    if unread:
        raise KeyError(
            f"User {unread[0]!r} is not among the {len(cache):,} that were read. Prefill it first."
        )
    modalities = cache.tokens.population.named("modality") if cache.tokens else ()
    names = attention_rows(engine, modalities)
    frames = []
    for ids, weight, count in iter_attention_shares(engine, cache, query, wanted, names):
        if not by_head:
            weight = weight.mean(2, keepdims=True)
        frames.append(_attention_frame(ids, query, names, weight, count))
    frame = pd.concat(frames)
    frame["user"] = pd.Categorical(frame["user"], wanted, ordered=True)
    frame = frame.sort_values("user", kind="stable", ignore_index=True)
    return frame.astype({"user": "str"})


@torch.inference_mode()
def iter_attention_shares(
    engine: Engine,
    cache: PrefixCache,
    query: QueryLike,
    users: Sequence[str],
    names: Sequence[str],
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Yield, batch by batch, ids, weights (layer, user, head, row), and the number of tokens of
    each row of `names`.
    """
    if isinstance(engine, PointingEngine):
        yield from iter_pointing_shares(engine, cache, query, users, names)
        return
    model = engine.model
    asked = model.build_query_batch([query])
    is_prompt = asked.ids < USER_EMB
    query_codes = torch.where(is_prompt, names.index("soft prompt"), names.index("query"))
    chosen = np.isin(np.array(cache.ids, dtype=object), list(users))
    for group in cache.groups:
        places = np.flatnonzero(chosen[group.rows])
        if not len(places):
            continue
        batch = select_users(group, places)
        kv = engine.kv(batch)
        with record_attention(model, int(asked.anchor[0, 0])) as recorded:
            model.decode_with_cache(batch.prefix, asked, kv)
        prefix_codes = slot_row_codes(model.preprocessor, batch.prefix)
        codes = torch.cat([prefix_codes, query_codes.expand(len(places), -1)], 1)
        ids = [cache.ids[i] for i in batch.rows]
        yield ids, *_sum_by_row(torch.stack(recorded), codes, len(names))


@contextmanager
def record_attention(model: QAnchor, place: int) -> Iterator[list[Float[Tensor, "user head key"]]]:
    """Record in every layer the attention of the token at `place`; one entry per layer, in float32."""
    recorded: list[Tensor] = []
    layers = model.backbone.model.layers
    before = model.backbone.config._attn_implementation

    def record(_module, _inputs, output) -> None:
        recorded.append(output[1][:, :, place].float())

    hooks = [layer.self_attn.register_forward_hook(record) for layer in layers]
    model.backbone.set_attn_implementation("eager")  # sdpa computes no weights
    try:
        yield recorded
    finally:
        model.backbone.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def slot_row_codes(preprocessor: UserPreprocessor, prefix: Prefix) -> Int[Tensor, "user slot"]:
    """Return the row of `row_names` that each prefix token belongs to; padding belongs to none
    (-1).
    """
    names = row_names(preprocessor)
    kinds = ["summary" if group in SUMMARY_GROUPS else TABULAR for group in preprocessor.groups()]
    row_of_group = [names.index(kind) for kind in kinds]
    row_of_group = torch.tensor(row_of_group, device=prefix.mask.device)
    code = torch.where(prefix.kind == USER, names.index("user"), prefix.modality)
    is_group = prefix.kind == GROUP
    number = (is_group.cumsum(1) - 1).clamp(min=0)  # groups are in the preprocessor's order
    code = torch.where(is_group, row_of_group[number], code)
    is_first = (prefix.mask.cumsum(1) == 1) & prefix.mask
    return torch.where(is_first, names.index("sink"), code).masked_fill(~prefix.mask, -1)


def _sum_by_row(
    attention: Float[Tensor, "layer user head key"], code: Int[Tensor, "user key"], rows: int
):
    """Sum attention over the keys of each row: (layer, user, head, row), and the number of keys
    (user, row).
    """
    member = row_membership(code, rows)
    weight = torch.einsum("luhk,ukr->luhr", attention, member)
    weight = weight / weight.sum(-1, keepdim=True)  # of half precision, so they miss 1 by a little
    return weight.cpu().numpy(), member.sum(1).cpu().numpy()


def row_membership(code: Int[Tensor, "user key"], rows: int) -> Float[Tensor, "user key row"]:
    return (F.one_hot(code.clamp(min=0), rows) * (code >= 0)[..., None]).float()


def _product_frame(levels: dict) -> pd.DataFrame:
    """Return one row for each combination of the levels, which are its columns."""
    return pd.MultiIndex.from_product(levels.values(), names=levels).to_frame(index=False)


def _attention_frame(
    ids: list[str], query: QueryLike, names: list[str], weight: np.ndarray, count: np.ndarray
) -> pd.DataFrame:
    layers, _, heads, _ = weight.shape
    levels = {"layer": range(layers), "user": ids, "head": range(heads), "modality": names}
    frame = _product_frame(levels).assign(weight=weight.ravel())
    tokens = np.broadcast_to(count[None, :, None], weight.shape).ravel()
    frame["per_token"] = frame["weight"] / np.maximum(tokens, 1)
    frame["query"] = query_text(query)
    if heads == 1:
        frame["head"] = -1
    frame = frame.loc[tokens > 0, ATTENTION_COLUMNS]
    return frame.sort_values(["user", "layer", "head"], kind="stable")


def modality_importance(
    engine: Engine,
    users: Users,
    query: QueryLike | Sequence[QueryLike],
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure how far a user's embedding moves when a modality is deleted.

    Args:
        engine: The model.
        users: The users. Each is read once whole, and once without each of the modalities and the
        facts.
        query: One query, or several that share these readings.
        progress: Called with (done, total) modalities; default: not called.

    Returns:
        `user, query, modality, events, deletion_effect`. deletion_effect: 1 - cosine to the
        embedding of the whole user. Modalities that a user lacks are left out.

    Example:
        >>> users = qa.make_sample_users(40).sample(3)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> frame = modality_importance(engine, users, "Will this user travel soon?")
        >>> list(frame.columns), bool((frame.deletion_effect >= 0).all())
        (['user', 'query', 'modality', 'events', 'deletion_effect'], True)
    """
    asked = [query] if isinstance(query, QueryLike) else list(query)
    whole = engine.embed(engine.prefill(users), asked).astype(float)
    names = ablatable_rows(engine, users)
    frames = []
    ablation = iter_modality_ablation(engine, users, asked, whole)
    for done, (name, events, has, moved) in enumerate(ablation, 1):
        for one, effect in zip(asked, moved.T, strict=True):
            columns = {"user": list(users.ids), "query": query_text(one), "modality": name}
            columns |= {"events": events, "deletion_effect": effect}
            frames.append(pd.DataFrame(columns)[has])
        if progress:
            progress(done, len(names))
    return pd.concat(frames).sort_values(["user", "query"], kind="stable", ignore_index=True)


def attention_rows(engine: Engine, modalities: Sequence[str]) -> list[str]:
    """Return the names of the rows that attention is summed over.

    Args:
        engine: The model.
        modalities: Modalities of the users; a language model has those of its run instead.
    """
    if isinstance(engine, PointingEngine):
        return pointing_rows(modalities)
    return row_names(engine.model.preprocessor)


def ablatable_rows(engine: Engine, users: Users) -> list[str]:
    """Return the rows that can be deleted: the modalities, and the facts."""
    if isinstance(engine, PointingEngine):
        facts = [TABULAR] if len(users.tabular.columns) else []
        return list(dict.fromkeys([*users.modalities, *facts]))
    preprocessor = engine.model.preprocessor
    return [m for m in row_names(preprocessor) if m in preprocessor.modalities or m == TABULAR]


def iter_modality_ablation(
    engine: Engine,
    users: Users,
    queries: Sequence[QueryLike],
    whole: Float[np.ndarray, "user query dim"],
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Read users without one modality after another: yields its name, its events (user,), who has
    it, and how far they move.
    """
    past = users.history()
    counts = pd.crosstab(past["user"], past["modality"], dropna=False)
    for name in ablatable_rows(engine, users):
        less = np.zeros_like(whole)
        for rows, z in engine.iter_embed_uncached(without_modality(users, name), queries):
            less[rows] = z
        events = counts.get(name, pd.Series(0, counts.index)).to_numpy()
        has = events > 0
        if name == TABULAR:
            has = has | users.tabular.notna().any(axis=1).to_numpy()
        yield name, events, has, np.maximum(1 - (whole * less).sum(-1), 0.0)


def without_modality(users: Users, modality: str) -> Users:
    """Return the same users as if one modality had not been recorded ("tabular": their facts)."""
    events = users.events[users.events["modality"] != modality].reset_index(drop=True)
    tabular = users.tabular * np.nan if modality == TABULAR else users.tabular
    return replace(users, events=events, tabular=tabular)


def rank_agreement(
    attention: pd.DataFrame, importance: pd.DataFrame, column: str = "weight"
) -> pd.DataFrame:
    """Correlate attention with deletion effects over each user's modalities (Spearman).

    Args:
        attention: From `modality_attention`; it is averaged over layers and heads.
        importance: From `modality_importance`.
        column: "weight" (default) or "per_token".

    Returns:
        `user, modalities, correlation`; users with fewer than 3 modalities are left out.

    Example:
        >>> attention = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"], "weight": [0.5, 0.3, 0.2]})
        >>> importance = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"], "deletion_effect": [0.9, 0.2, 0.1]})
        >>> rank_agreement(attention, importance)
          user  modalities  correlation
        0    a           3          1.0
    """
    mean = attention.groupby(["user", "modality"], sort=False)[column].mean()
    both = importance.set_index(["user", "modality"]).join(mean, how="inner").reset_index()
    rows = []
    for user, frame in both.groupby("user", sort=False):
        if len(frame) >= MIN_RANKED:
            rank = frame[column].corr(frame["deletion_effect"], method="spearman")
            rows.append({"user": user, "modalities": len(frame), "correlation": rank})
    return pd.DataFrame(rows, columns=["user", "modalities", "correlation"])


MIN_RANK_GAP = 2  # difference of a modality's two ranks from which on it is marked
MEAN_OF_ALL = -1  # as a layer or head group: the mean of all
MIN_RANKED = 3  # modalities that can be ranked
MEASURES = ("weight", "per_token")
TABLE_COLUMNS = [
    "query",
    "layer",
    "head_group",
    "modality",
    "kind",
    "slots",
    "weight",
    "per_token",
    "deletion_effect",
]
TABLE_COLUMNS += ["disagrees", "disagrees_per_token", "agreement", "agreement_per_token"]


@dataclass(frozen=True)
class UserAttention:
    """Hold the attention and the effects of one user and query; index 0 of layers and head groups
    is the mean of all.
    """

    weight: Float[np.ndarray, "layer head_group row"]
    slots: Float[np.ndarray, " row"]
    anchor: Float[np.ndarray, " dim"]
    effect: Float[np.ndarray, " row"]  # NaN: not deleted, or nothing there to delete

    def by(self, measure: str) -> Float[np.ndarray, "layer head_group row"]:
        """Return the weight of each row, or per token of it."""
        return self.weight if measure == "weight" else self.weight / np.maximum(self.slots, 1)


def attention_table(
    query: str, results: Sequence[UserAttention], names: Sequence[str], modalities: Collection[str]
) -> pd.DataFrame:
    """Average the results of users under one query: one row per layer, head group and row of
    attention.

    Args:
        query: Name of the query.
        results: One per user.
        names: Names of the rows.
        modalities: The rows that can be deleted.

    Returns:
        The table that `AttentionBackend` describes.

    Example:
        >>> weight, slots, effect = np.full((1, 1, 2), 0.5), np.array([1.0, 5]), np.array([0.2, np.nan])
        >>> one = UserAttention(weight, slots, np.ones(1), effect)
        >>> attention_table("Why?", [one], ["bill", "sink"], ["bill"])[["modality", "weight", "per_token", "deletion_effect"]]
          modality  weight  per_token  deletion_effect
        0     bill     0.5        0.5              0.2
        1     sink     0.5        0.1              NaN
    """
    weight = np.mean([result.weight for result in results], axis=0)
    slots = np.mean([result.slots for result in results], axis=0)
    effects = np.array([result.effect for result in results])
    effect = _mean_of_known(effects)
    layers, groups, rows = weight.shape
    levels = {
        "layer": range(MEAN_OF_ALL, layers - 1),
        "head_group": range(MEAN_OF_ALL, groups - 1),
        "modality": names,
    }
    frame = _product_frame(levels)
    frame["query"] = query
    frame["slots"] = np.tile(slots, layers * groups)
    frame["deletion_effect"] = np.tile(effect, layers * groups)
    frame["kind"] = np.where(frame["modality"].isin(list(modalities)), "modality", "other")
    for measure, after in zip(MEASURES, ("", "_per_token"), strict=True):
        values = weight if measure == "weight" else weight / np.maximum(slots, 1e-9)
        frame[measure] = values.ravel()
        frame[f"disagrees{after}"] = ranks_disagree(values, effect).ravel()
        cubes = np.array([result.by(measure) for result in results]).reshape(len(results), -1, rows)
        frame[f"agreement{after}"] = np.repeat(mean_rank_agreement(cubes, effects), rows)
    return frame[frame["slots"] > 0][TABLE_COLUMNS].reset_index(drop=True)


def ranks_disagree(
    values: Float[np.ndarray, "... row"], effect: Float[np.ndarray, " row"]
) -> np.ndarray:
    """Mark the rows whose ranks by value and by deletion effect are two or more apart.

    Args:
        values: A value per row.
        effect: The deletion effect per row; rows without one are not ranked.

    Returns:
        True where they are; nowhere with fewer than three ranked rows.

    Example:
        >>> ranks_disagree(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.9]))
        array([ True, False,  True])
    """
    known = np.isfinite(effect)
    if known.sum() < MIN_RANKED:
        return np.zeros(values.shape, bool)
    value_rank = _ranks(np.where(known, values, np.nan))
    effect_rank = _ranks(effect)
    return np.abs(value_rank - effect_rank) >= MIN_RANK_GAP  # False for NaN


def mean_rank_agreement(
    values: Float[np.ndarray, "user cell row"], effects: Float[np.ndarray, "user row"]
) -> Float[np.ndarray, " cell"]:
    """Correlate the ranks of values and deletion effects over each user's rows, and average over
    users.

    Args:
        values: A value per user, cell and row.
        effects: The deletion effect per user and row; rows without one are not ranked.

    Returns:
        One correlation per cell; users with fewer than three ranked rows or equal ones are left
        out; NaN if none is left.

    Example:
        >>> mean_rank_agreement(np.array([[[0.5, 0.3, 0.2]], [[0.5, 0.3, 0.2]]]), np.array([[3.0, 2, 1], [1, 2, 3]]))
        array([0.])
    """
    known = np.isfinite(effects)
    known &= known.sum(1, keepdims=True) >= MIN_RANKED
    value_rank = _ranks(np.where(known[:, None], values, np.nan))
    effect_rank = _ranks(np.where(known, effects, np.nan))[:, None]
    a = value_rank - _mean_of_known(value_rank, -1, keepdims=True)
    b = effect_rank - _mean_of_known(effect_rank, -1, keepdims=True)
    size = np.sqrt(np.nansum(a**2, -1) * np.nansum(b**2, -1))
    correlation = np.nansum(a * b, -1) / np.where(size > 0, size, np.nan)
    return _mean_of_known(correlation)


def _ranks(values: np.ndarray) -> np.ndarray:
    flat = pd.DataFrame(values.reshape(-1, values.shape[-1])).rank(axis=1)
    return flat.to_numpy().reshape(values.shape)


def _mean_of_known(values: np.ndarray, axis: int = 0, keepdims: bool = False) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing, the mean is NaN
        return np.nanmean(values, axis=axis, keepdims=keepdims)
