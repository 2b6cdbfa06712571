"""Attention over modalities, beside what deleting each of them does to the answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache, select_users
from qanchor.models.collate import USER_EMB, QueryBatch, collate_users, group_by_length
from qanchor.models.heads import QueryLike, query_text
from qanchor.models.model import QAnchor
from qanchor.models.prefix_encoder import GROUP, USER, Prefix
from qanchor.models.preprocessor import UserPreprocessor

TABULAR = "tabular"
NON_MODALITY_ROWS = ("user", "summary", TABULAR, "query", "soft prompt", "sink")  # rows of the frame beside the modalities
SUMMARY_GROUPS = ("time", "counts", "words")  # groups of numbers that sum up the events of every modality
ATTENTION_COLUMNS = ["user", "query", "layer", "head", "modality", "weight", "per_token"]


def row_names(preprocessor: UserPreprocessor) -> list[str]:
    """Name the rows that attention is summed over: the modalities, then those of `NON_MODALITY_ROWS` that are none."""
    if both := sorted(set(NON_MODALITY_ROWS) & set(preprocessor.modalities) - {TABULAR}):
        raise ValueError(f"a modality is named {both[0]!r}, which here stands for slots of no modality: rename it, train anew")
    return [*preprocessor.modalities, *(name for name in NON_MODALITY_ROWS if name not in preprocessor.modalities)]


@torch.inference_mode()
def modality_attention(
    engine: Engine, cache: PrefixCache, query: QueryLike, users: Sequence[str] | None = None, *, by_head: bool = False
) -> pd.DataFrame:
    """Say where the model looks when it is asked `query`: the attention of <USER_EMB>, summed over each modality's slots.

    users     ids (default: all of the cache); by_head: a row a head, else head is -1, their mean.
    Returns columns user, query, layer, head, modality, weight, per_token. The weights of one user, layer and head sum to 1;
    per_token is the weight by the number of slots. A modality's row holds its own slot and its habits and events. Beside the
    modalities stand `user` (the user slot), `summary` and `tabular` (groups of numbers), `query` (its own words), `soft prompt`
    (its vectors) and `sink`, the first slot of all: language models leave there what they do not need elsewhere.

    Only the anchor's rows are kept, from cached prefixes, in the eager form for this pass alone. KeyError: an unread user.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> frame = modality_attention(engine, engine.prefill(users), "Will this user travel soon?", users.ids[:2])
        >>> frame.groupby(["user", "layer"])["weight"].sum().round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    wanted = list(cache.ids if users is None else dict.fromkeys(map(str, users)))
    if not wanted:
        raise ValueError("0 users to look at, at least 1 is needed: give ids, or none for all of the cache")
    if unread := sorted(set(wanted) - set(cache.ids)):
        raise KeyError(f"user {unread[0]!r} is not among the {len(cache):,} that were read: prefill it first")
    names, frames = row_names(engine.model.preprocessor), []
    for ids, weight, count in iter_attention_shares(engine, cache, query, wanted):
        frames.append(_attention_frame(ids, query, names, weight if by_head else weight.mean(2, keepdims=True), count))
    order = pd.Categorical(pd.concat(frames)["user"], wanted, ordered=True)
    return pd.concat(frames).assign(user=order).sort_values("user", kind="stable", ignore_index=True).astype({"user": "str"})


@torch.inference_mode()
def iter_attention_shares(
    engine: Engine, cache: PrefixCache, query: QueryLike, users: Sequence[str]
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Look group by group: yields ids, weights (layer, user, head, row) and how many slots each row of `row_names` has."""
    asked, names = engine.model.build_query_batch([query]), row_names(engine.model.preprocessor)
    chosen = np.isin(np.array(cache.ids, dtype=object), list(users))
    for group in cache.groups:
        if len(places := np.flatnonzero(chosen[group.rows])):
            some = select_users(group, places)
            kv = engine.kv(some)
            with record_attention(engine.model, int(asked.anchor[0, 0])) as looks:
                engine.model.decode_with_cache(some.prefix, asked, kv)
            code = torch.cat(
                [slot_row_codes(engine.model.preprocessor, some.prefix), _query_row_codes(asked, names, len(places))], 1
            )
            yield [cache.ids[i] for i in some.rows], *_sum_by_row(torch.stack(looks), code, len(names))


@contextmanager
def record_attention(model: QAnchor, place: int) -> Iterator[list[Float[Tensor, "user head key"]]]:
    """Let every layer tell where the token at `place` of what is read looks; one entry a layer, in float32."""
    looks: list[Tensor] = []
    layers, before = model.backbone.model.layers, model.backbone.config._attn_implementation
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, out: looks.append(out[1][:, :, place].float())) for layer in layers
    ]
    model.backbone.set_attn_implementation("eager")  # sdpa computes no weights
    try:
        yield looks
    finally:
        model.backbone.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def slot_row_codes(preprocessor: UserPreprocessor, prefix: Prefix) -> Int[Tensor, "user slot"]:
    """Say to which row of `row_names` each slot belongs; pads belong to none (-1)."""
    names, device = row_names(preprocessor), prefix.mask.device
    groups = [names.index("summary" if name in SUMMARY_GROUPS else TABULAR) for name in preprocessor.groups()]
    code = torch.where(prefix.kind == USER, names.index("user"), prefix.modality)
    number = ((prefix.kind == GROUP).cumsum(1) - 1).clamp(min=0)  # groups stand in the preprocessor's order
    code = torch.where(prefix.kind == GROUP, torch.tensor(groups, device=device)[number], code)
    first = (prefix.mask.cumsum(1) == 1) & prefix.mask
    return torch.where(first, names.index("sink"), code).masked_fill(~prefix.mask, -1)


def _query_row_codes(asked: QueryBatch, names: list[str], users: int) -> Int[Tensor, "user token"]:
    code = torch.where(asked.ids < USER_EMB, names.index("soft prompt"), names.index("query"))
    return code.expand(users, -1)


def _sum_by_row(looks: Float[Tensor, "layer user head key"], code: Int[Tensor, "user key"], rows: int):
    """Sum attention over the keys of each row: (layer, user, head, row), and how many keys each has (user, row)."""
    member = _row_membership(code, rows)
    weight = torch.einsum("luhk,ukr->luhr", looks, member)
    weight = weight / weight.sum(-1, keepdim=True)  # of half precision, so they miss 1 by a little
    return weight.cpu().numpy(), member.sum(1).cpu().numpy()


def _row_membership(code: Int[Tensor, "user key"], rows: int) -> Float[Tensor, "user key row"]:
    return (F.one_hot(code.clamp(min=0), rows) * (code >= 0)[..., None]).float()


def _attention_frame(ids: list[str], query: QueryLike, names: list[str], weight: np.ndarray, count: np.ndarray) -> pd.DataFrame:
    layers, _, heads, _ = weight.shape
    index = pd.MultiIndex.from_product([range(layers), ids, range(heads), names], names=["layer", "user", "head", "modality"])
    many = np.broadcast_to(count[None, :, None], weight.shape).ravel()
    frame = pd.DataFrame({"weight": weight.ravel(), "per_token": weight.ravel() / np.maximum(many, 1)}, index).reset_index()
    frame = frame[many > 0].assign(query=query_text(query))
    return (frame if heads > 1 else frame.assign(head=-1))[ATTENTION_COLUMNS].sort_values(
        ["user", "layer", "head"], kind="stable"
    )


def modality_importance(
    engine: Engine,
    users: Users,
    query: QueryLike | Sequence[QueryLike],
    *,
    gradient: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Say what each modality does to the answer: how far a user's embedding moves when the modality is deleted.

    users     those to look at: each is read once whole, and once without each of the modalities (and without the facts).
    query     one, or several that share these readings; gradient: False leaves it out (NaN).
    Returns columns user, query, modality, events, deletion_effect, gradient. deletion_effect: 1 - cosine to the whole user's
    embedding. gradient: gradient times input, over what the modality feeds (its slots, and its own coarse numbers), of the
    embedding's part that sets this user apart from the others; of its size. Rows of modalities that a user lacks are left out.

    Example:
        >>> users = qa.make_sample_users(40).sample(3)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> found = modality_importance(engine, users, "Will this user travel soon?")
        >>> list(found.columns), bool((found.deletion_effect >= 0).all())
        (['user', 'query', 'modality', 'events', 'deletion_effect', 'gradient'], True)
    """
    asked = [query] if isinstance(query, QueryLike) else list(query)
    whole = engine.embed(engine.prefill(users), asked).astype(float)
    names, frames = ablatable_rows(engine.model.preprocessor), []
    slopes = [gradient_x_input(engine, users, q, whole[:, k]) if gradient else {} for k, q in enumerate(asked)]
    for done, (name, events, has, moved) in enumerate(iter_modality_ablation(engine, users, asked, whole), 1):
        for k, one in enumerate(asked):
            frame = pd.DataFrame({"user": list(users.ids), "query": query_text(one)})
            frame = frame.assign(
                modality=name, events=events, deletion_effect=moved[:, k], gradient=slopes[k].get(name, np.nan)
            )
            frames.append(frame[has])
        if progress:
            progress(done, len(names))
    return pd.concat(frames).sort_values(["user", "query"], kind="stable", ignore_index=True)


def ablatable_rows(preprocessor: UserPreprocessor) -> list[str]:
    """Name the rows that can be deleted: the modalities, and the facts."""
    return [m for m in row_names(preprocessor) if m in preprocessor.modalities or m == TABULAR]


def iter_modality_ablation(
    engine: Engine, users: Users, queries: Sequence[QueryLike], whole: Float[np.ndarray, "user query dim"]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Read users without one modality after the other: yields its name, its events (user,), who has it, who moves how far."""
    counts = pd.crosstab(users.history()["user"], users.history()["modality"]).reindex(index=list(users.ids), fill_value=0)
    for name in ablatable_rows(engine.model.preprocessor):
        less = np.zeros_like(whole)
        for rows, z in engine.iter_embed_uncached(without_modality(users, name), queries):
            less[rows] = z
        events = counts.get(name, pd.Series(0, counts.index)).to_numpy()
        has = (events > 0) | (users.tabular.notna().any(axis=1).to_numpy() if name == TABULAR else False)
        yield name, events, has, np.maximum(1 - (whole * less).sum(-1), 0.0)


def without_modality(users: Users, modality: str) -> Users:
    """Give the same users as if one modality had never been recorded ("tabular": their facts)."""
    events = users.events[users.events["modality"] != modality].reset_index(drop=True)
    tabular = users.tabular * np.nan if modality == TABULAR else users.tabular
    return replace(users, events=events, tabular=tabular)


def gradient_x_input(
    engine: Engine,
    users: Users,
    query: QueryLike,
    anchors: Float[np.ndarray, "user dim"],
    middle: Float[np.ndarray, " dim"] | None = None,
) -> dict[str, np.ndarray]:
    """Give gradient times input of each modality, as |sum| over its slots and numbers, by the sum over all rows: (user,).

    middle  what a user is set apart from (default: the mean of these users' anchors).
    """
    model, readings = engine.model, engine.model.preprocessor.transform(users)
    apart = torch.from_numpy(anchors - (anchors.mean(0) if middle is None else middle)).float().to(model.device)
    asked, names = model.encode_queries([query]), row_names(model.preprocessor)
    out = torch.zeros(len(users), len(names))
    for rows in group_by_length(readings.lengths() + 1, 2048, most=16):
        prefix = model.encode_prefix(collate_users(readings, rows).to(model.device))
        slots, coarse = prefix.tokens.clone().requires_grad_(), prefix.coarse.clone().requires_grad_()
        one = replace(prefix, tokens=slots, coarse=coarse)
        anchor = model.anchors(one, model.build_query_batch([query], len(rows)), asked.expand_to(len(rows)))[0][:, 0]
        score = (anchor * apart[torch.as_tensor(rows, device=model.device)]).sum()
        by_slot, by_number = torch.autograd.grad(score, [slots, coarse], allow_unused=True, materialize_grads=True)
        member = _row_membership(slot_row_codes(model.preprocessor, one), len(names))
        found = torch.einsum("us,usr->ur", (by_slot * slots).sum(-1), member)
        found = found + torch.einsum("un,nr->ur", by_number * coarse, coarse_row_matrix(model.preprocessor).to(coarse.device))
        out[torch.as_tensor(rows)] = (found.abs() / found.abs().sum(1, keepdim=True).clamp(min=1e-12)).detach().cpu()
    return {name: out[:, i].numpy().astype(float) for i, name in enumerate(names)}


def coarse_row_matrix(preprocessor: UserPreprocessor) -> Float[Tensor, "number row"]:
    """Say to which row each coarse number belongs: those of modalities stand first, then the groups."""
    names, groups = row_names(preprocessor), preprocessor.groups()
    each = preprocessor.sizes()["modal_number"]
    code = np.repeat(np.arange(len(preprocessor.modalities)), each)
    code = np.append(code, np.zeros(preprocessor.sizes()["coarse"] - len(code), int))
    for name, place in groups.items():
        code[place] = names.index("summary" if name in SUMMARY_GROUPS else TABULAR)
    return F.one_hot(torch.from_numpy(code), len(names)).float()


def rank_agreement(looks: pd.DataFrame, found: pd.DataFrame, column: str = "weight") -> pd.DataFrame:
    """Ask whether attention tells what deletion shows: the rank correlation over a user's modalities, user by user.

    looks   from `modality_attention` (averaged over layers and heads); found: from `modality_importance`; column: weight or per_token.
    Returns columns user, modalities, correlation; users with fewer than 3 modalities are left out.

    Example:
        >>> looks = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"], "weight": [0.5, 0.3, 0.2]})
        >>> found = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"], "deletion_effect": [0.9, 0.2, 0.1]})
        >>> rank_agreement(looks, found)
          user  modalities  correlation
        0    a           3          1.0
    """
    mean = looks.groupby(["user", "modality"], sort=False)[column].mean()
    both = found.set_index(["user", "modality"]).join(mean, how="inner").reset_index()
    rows = []
    for user, some in both.groupby("user", sort=False):
        if len(some) >= 3:
            rank = some[column].corr(some["deletion_effect"], method="spearman")
            rows.append({"user": user, "modalities": len(some), "correlation": rank})
    return pd.DataFrame(rows, columns=["user", "modalities", "correlation"])


MIN_RANK_GAP = 2  # places by which a modality's two ranks must differ to be marked
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
    "gradient",
]
TABLE_COLUMNS += ["disagrees", "disagrees_per_token", "agreement", "agreement_per_token"]


@dataclass(frozen=True)
class UserAttention:
    """Hold what was found of one user and query; place 0 of layers and head groups is the mean of all."""

    weight: Float[np.ndarray, "layer head_group row"]
    slots: Float[np.ndarray, " row"]
    anchor: Float[np.ndarray, " dim"]
    effect: Float[np.ndarray, " row"]  # NaN: not deleted, or nothing there to delete
    gradient: Float[np.ndarray, " row"]

    def by(self, measure: str) -> Float[np.ndarray, "layer head_group row"]:
        """Give the weight of each row, or of one of its slots."""
        return self.weight if measure == "weight" else self.weight / np.maximum(self.slots, 1)


def attention_table(
    query: str, looks: Sequence[UserAttention], names: Sequence[str], modalities: Collection[str]
) -> pd.DataFrame:
    """Average what was found of users under one query into the ledger: one row a layer, head_group and row of attention.

    names   of the rows; modalities: those that can be deleted. The columns are told by `AttentionBackend`.

    Example:
        >>> one = UserAttention(np.full((1, 1, 2), 0.5), np.array([1.0, 5]), np.ones(1), np.array([0.2, np.nan]), np.full(2, np.nan))
        >>> attention_table("Why?", [one], ["bill", "sink"], ["bill"])[["modality", "weight", "per_token", "deletion_effect"]]
          modality  weight  per_token  deletion_effect
        0     bill     0.5        0.5              0.2
        1     sink     0.5        0.1              NaN
    """
    weight, slots = np.mean([look.weight for look in looks], axis=0), np.mean([look.slots for look in looks], axis=0)
    effects = np.array([look.effect for look in looks])
    effect, gradient = _mean_of_known(effects), _mean_of_known(np.array([look.gradient for look in looks]))
    layers, groups, rows = weight.shape
    index = [range(MEAN_OF_ALL, layers - 1), range(MEAN_OF_ALL, groups - 1), names]
    frame = pd.DataFrame(index=pd.MultiIndex.from_product(index, names=["layer", "head_group", "modality"])).reset_index()
    each = {"slots": slots, "deletion_effect": effect, "gradient": gradient}
    frame = frame.assign(query=query, **{name: np.tile(values, layers * groups) for name, values in each.items()})
    frame["kind"] = np.where(frame["modality"].isin(list(modalities)), "modality", "other")
    for measure, after in zip(MEASURES, ("", "_per_token"), strict=True):
        values = weight if measure == "weight" else weight / np.maximum(slots, 1e-9)
        frame[measure] = values.ravel()
        frame[f"disagrees{after}"] = ranks_disagree(values, effect).ravel()
        cubes = np.array([look.by(measure) for look in looks]).reshape(len(looks), -1, rows)
        frame[f"agreement{after}"] = np.repeat(mean_rank_agreement(cubes, effects), rows)
    return frame[frame["slots"] > 0][TABLE_COLUMNS].reset_index(drop=True)


def ranks_disagree(values: Float[np.ndarray, "... row"], effect: Float[np.ndarray, " row"]) -> np.ndarray:
    """Mark the rows whose place by value and whose place by deletion effect are two or more apart.

    Places are counted among the rows with an effect; fewer than three have no places.

    Example:
        >>> ranks_disagree(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.9]))
        array([ True, False,  True])
    """
    known = np.isfinite(effect)
    if known.sum() < MIN_RANKED:
        return np.zeros(values.shape, bool)
    by_value, by_effect = (_ranks(np.where(known, v, np.nan)) for v in (values, effect))
    return np.abs(by_value - by_effect) >= MIN_RANK_GAP  # NaN is not


def mean_rank_agreement(
    values: Float[np.ndarray, "user cell row"], effects: Float[np.ndarray, "user row"]
) -> Float[np.ndarray, " cell"]:
    """Correlate the ranks of values and effects over each user's rows with an effect, and average over users.

    Users with fewer than three such rows, or with all alike, are left out; NaN where nobody is left.

    Example:
        >>> mean_rank_agreement(np.array([[[0.5, 0.3, 0.2]], [[0.5, 0.3, 0.2]]]), np.array([[3.0, 2, 1], [1, 2, 3]]))
        array([0.])
    """
    effects = np.where((np.isfinite(effects).sum(1) >= MIN_RANKED)[:, None], effects, np.nan)[:, None]
    ranks = [_ranks(np.where(np.isfinite(effects), v, np.nan)) for v in (values, np.broadcast_to(effects, values.shape))]
    a, b = (r - _mean_of_known(r, -1, keepdims=True) for r in ranks)
    size = np.sqrt(np.nansum(a**2, -1) * np.nansum(b**2, -1))
    return _mean_of_known(np.where(size > 0, np.nansum(a * b, -1) / np.where(size > 0, size, 1), np.nan))


def _ranks(values: np.ndarray) -> np.ndarray:
    flat = pd.DataFrame(values.reshape(-1, values.shape[-1])).rank(axis=1)
    return flat.to_numpy().reshape(values.shape)


def _mean_of_known(values: np.ndarray, axis: int = 0, keepdims: bool = False) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing, the mean is NaN
        return np.nanmean(values, axis=axis, keepdims=keepdims)
