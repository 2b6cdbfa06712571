"""Where the model looks when it is asked, over modalities; and beside it what deleting each of them does to the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .batch import USER_EMB, Branches, batch_users, length_groups
from .cache import Cache, part
from .encoder import GROUP, USER, Prefix
from .engine import Engine
from .heads import Asked, words_of
from .model import QAnchor
from .reader import Reader
from .schema import Users

TABULAR = "tabular"
OWN = ("user", "summary", TABULAR, "query", "soft prompt", "sink")  # rows of the frame beside the modalities
SUMMARIES = ("time", "counts", "words")  # groups of numbers that sum up the events of every modality
COLUMNS = ["user", "query", "layer", "head", "modality", "weight", "per_token"]


def row_names(reader: Reader) -> list[str]:
    """Name the rows that attention is summed over: the modalities, then those of `OWN` that are none."""
    if both := sorted(set(OWN) & set(reader.modalities) - {TABULAR}):
        raise ValueError(f"a modality is named {both[0]!r}, which here stands for slots of no modality: rename it, train anew")
    return [*reader.modalities, *(name for name in OWN if name not in reader.modalities)]


@torch.inference_mode()
def attention(
    engine: Engine, cache: Cache, query: Asked, users: Sequence[str] | None = None, *, by_head: bool = False
) -> pd.DataFrame:
    """Say where the model looks when it is asked `query`: the attention of <USER_EMB>, summed over each modality's slots.

    users     ids (default: all of the cache); by_head: a row a head, else head is -1, their mean.
    Returns columns user, query, layer, head, modality, weight, per_token. The weights of one user, layer and head sum to 1;
    per_token is the weight by the number of slots. A modality's row holds its own slot and its habits and events. Beside the
    modalities stand `user` (the user slot), `summary` and `tabular` (groups of numbers), `query` (its own words), `soft prompt`
    (its vectors) and `sink`, the first slot of all: language models leave there what they do not need elsewhere.

    Only the anchor's rows are kept, from cached prefixes, in the eager form for this pass alone. KeyError: an unread user.

    Example:
        >>> users = qa.make_world(40)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> frame = attention(engine, engine.prefill(users), "Will this user travel soon?", users.ids[:2])
        >>> frame.groupby(["user", "layer"])["weight"].sum().round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    wanted = list(cache.ids if users is None else dict.fromkeys(map(str, users)))
    if not wanted:
        raise ValueError("0 users to look at, at least 1 is needed: give ids, or none for all of the cache")
    if unread := sorted(set(wanted) - set(cache.ids)):
        raise KeyError(f"user {unread[0]!r} is not among the {len(cache):,} that were read: prefill it first")
    names, frames = row_names(engine.model.reader), []
    for ids, weight, count in shares(engine, cache, query, wanted):
        frames.append(_frame(ids, query, names, weight if by_head else weight.mean(2, keepdims=True), count))
    order = pd.Categorical(pd.concat(frames)["user"], wanted, ordered=True)
    return pd.concat(frames).assign(user=order).sort_values("user", kind="stable", ignore_index=True).astype({"user": "str"})


@torch.inference_mode()
def shares(
    engine: Engine, cache: Cache, query: Asked, users: Sequence[str]
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Look group by group: yields ids, weights (layer, user, head, row) and how many slots each row of `row_names` has."""
    asked, names = engine.model.lay_out([query]), row_names(engine.model.reader)
    chosen = np.isin(np.array(cache.ids, dtype=object), list(users))
    for group in cache.groups:
        if len(places := np.flatnonzero(chosen[group.rows])):
            some = part(group, places)
            kv = engine.kv(some)
            with looking(engine.model, int(asked.anchor[0, 0])) as looks:
                engine.model.behind(some.prefix, asked, kv)
            code = torch.cat([slot_rows(engine.model.reader, some.prefix), _word_rows(asked, names, len(places))], 1)
            yield [cache.ids[i] for i in some.rows], *_summed(torch.stack(looks), code, len(names))


@contextmanager
def looking(model: QAnchor, place: int) -> Iterator[list[Float[Tensor, "user head key"]]]:
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


def slot_rows(reader: Reader, prefix: Prefix) -> Int[Tensor, "user slot"]:
    """Say to which row of `row_names` each slot belongs; pads belong to none (-1)."""
    names, device = row_names(reader), prefix.mask.device
    groups = [names.index("summary" if name in SUMMARIES else TABULAR) for name in reader.groups()]
    code = torch.where(prefix.kind == USER, names.index("user"), prefix.modality)
    number = ((prefix.kind == GROUP).cumsum(1) - 1).clamp(min=0)  # groups stand in the reader's order
    code = torch.where(prefix.kind == GROUP, torch.tensor(groups, device=device)[number], code)
    first = (prefix.mask.cumsum(1) == 1) & prefix.mask
    return torch.where(first, names.index("sink"), code).masked_fill(~prefix.mask, -1)


def _word_rows(asked: Branches, names: list[str], users: int) -> Int[Tensor, "user token"]:
    code = torch.where(asked.ids < USER_EMB, names.index("soft prompt"), names.index("query"))
    return code.expand(users, -1)


def _summed(looks: Float[Tensor, "layer user head key"], code: Int[Tensor, "user key"], rows: int):
    """Sum attention over the keys of each row: (layer, user, head, row), and how many keys each has (user, row)."""
    member = _members(code, rows)
    weight = torch.einsum("luhk,ukr->luhr", looks, member)
    weight = weight / weight.sum(-1, keepdim=True)  # of half precision, so they miss 1 by a little
    return weight.cpu().numpy(), member.sum(1).cpu().numpy()


def _members(code: Int[Tensor, "user key"], rows: int) -> Float[Tensor, "user key row"]:
    return (F.one_hot(code.clamp(min=0), rows) * (code >= 0)[..., None]).float()


def _frame(ids: list[str], query: Asked, names: list[str], weight: np.ndarray, count: np.ndarray) -> pd.DataFrame:
    layers, _, heads, _ = weight.shape
    index = pd.MultiIndex.from_product([range(layers), ids, range(heads), names], names=["layer", "user", "head", "modality"])
    many = np.broadcast_to(count[None, :, None], weight.shape).ravel()
    frame = pd.DataFrame({"weight": weight.ravel(), "per_token": weight.ravel() / np.maximum(many, 1)}, index).reset_index()
    frame = frame[many > 0].assign(query=words_of(query))
    return (frame if heads > 1 else frame.assign(head=-1))[COLUMNS].sort_values(["user", "layer", "head"], kind="stable")


def effects(
    engine: Engine,
    users: Users,
    query: Asked | Sequence[Asked],
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
        >>> users = qa.make_world(40).sample(3)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> found = effects(engine, users, "Will this user travel soon?")
        >>> list(found.columns), bool((found.deletion_effect >= 0).all())
        (['user', 'query', 'modality', 'events', 'deletion_effect', 'gradient'], True)
    """
    asked = [query] if isinstance(query, Asked) else list(query)
    whole = engine.embed(engine.prefill(users), asked).astype(float)
    names, frames = deletable(engine.model.reader), []
    slopes = [gradients(engine, users, q, whole[:, k]) if gradient else {} for k, q in enumerate(asked)]
    for done, (name, events, has, moved) in enumerate(deletions(engine, users, asked, whole), 1):
        for k, one in enumerate(asked):
            frame = pd.DataFrame({"user": list(users.ids), "query": words_of(one)})
            frame = frame.assign(
                modality=name, events=events, deletion_effect=moved[:, k], gradient=slopes[k].get(name, np.nan)
            )
            frames.append(frame[has])
        if progress:
            progress(done, len(names))
    return pd.concat(frames).sort_values(["user", "query"], kind="stable", ignore_index=True)


def deletable(reader: Reader) -> list[str]:
    """Name the rows that can be deleted: the modalities, and the facts."""
    return [m for m in row_names(reader) if m in reader.modalities or m == TABULAR]


def deletions(
    engine: Engine, users: Users, queries: Sequence[Asked], whole: Float[np.ndarray, "user query dim"]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Read users without one modality after the other: yields its name, its events (user,), who has it, who moves how far."""
    counts = pd.crosstab(users.history()["user"], users.history()["modality"]).reindex(index=list(users.ids), fill_value=0)
    for name in deletable(engine.model.reader):
        less = np.zeros_like(whole)
        for rows, z in engine.sweep(without(users, name), queries):
            less[rows] = z
        events = counts.get(name, pd.Series(0, counts.index)).to_numpy()
        has = (events > 0) | (users.tabular.notna().any(axis=1).to_numpy() if name == TABULAR else False)
        yield name, events, has, np.maximum(1 - (whole * less).sum(-1), 0.0)


def without(users: Users, modality: str) -> Users:
    """Give the same users as if one modality had never been recorded ("tabular": their facts)."""
    events = users.events[users.events["modality"] != modality].reset_index(drop=True)
    tabular = users.tabular * np.nan if modality == TABULAR else users.tabular
    return replace(users, events=events, tabular=tabular)


def gradients(
    engine: Engine,
    users: Users,
    query: Asked,
    anchors: Float[np.ndarray, "user dim"],
    middle: Float[np.ndarray, " dim"] | None = None,
) -> dict[str, np.ndarray]:
    """Give gradient times input of each modality, as |sum| over its slots and numbers, by the sum over all rows: (user,).

    middle  what a user is set apart from (default: the mean of these users' anchors).
    """
    model, readings = engine.model, engine.model.reader.read(users)
    apart = torch.from_numpy(anchors - (anchors.mean(0) if middle is None else middle)).float().to(model.device)
    asked, names = model.ask([query]), row_names(model.reader)
    out = torch.zeros(len(users), len(names))
    for rows in length_groups(readings.lengths() + 1, 2048, most=16):
        prefix = model.encode_prefix(batch_users(readings, rows).to(model.device))
        slots, coarse = prefix.slots.clone().requires_grad_(), prefix.coarse.clone().requires_grad_()
        one = replace(prefix, slots=slots, coarse=coarse)
        anchor = model.anchors(one, model.lay_out([query], len(rows)), asked.to_each(len(rows)))[0][:, 0]
        score = (anchor * apart[torch.as_tensor(rows, device=model.device)]).sum()
        by_slot, by_number = torch.autograd.grad(score, [slots, coarse], allow_unused=True, materialize_grads=True)
        member = _members(slot_rows(model.reader, one), len(names))
        found = torch.einsum("us,usr->ur", (by_slot * slots).sum(-1), member)
        found = found + torch.einsum("un,nr->ur", by_number * coarse, number_rows(model.reader).to(coarse.device))
        out[torch.as_tensor(rows)] = (found.abs() / found.abs().sum(1, keepdim=True).clamp(min=1e-12)).detach().cpu()
    return {name: out[:, i].numpy().astype(float) for i, name in enumerate(names)}


def number_rows(reader: Reader) -> Float[Tensor, "number row"]:
    """Say to which row each coarse number belongs: those of modalities stand first, then the groups."""
    names, groups = row_names(reader), reader.groups()
    each = reader.sizes()["modal_number"]
    code = np.repeat(np.arange(len(reader.modalities)), each)
    code = np.append(code, np.zeros(reader.sizes()["coarse"] - len(code), int))
    for name, place in groups.items():
        code[place] = names.index("summary" if name in SUMMARIES else TABULAR)
    return F.one_hot(torch.from_numpy(code), len(names)).float()


def agreement(looks: pd.DataFrame, found: pd.DataFrame, column: str = "weight") -> pd.DataFrame:
    """Ask whether attention tells what deletion shows: the rank correlation over a user's modalities, user by user.

    looks   from `attention` (averaged over layers and heads); found: from `effects`; column: weight or per_token.
    Returns columns user, modalities, correlation; users with fewer than 3 modalities are left out.

    Example:
        >>> looks = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"], "weight": [0.5, 0.3, 0.2]})
        >>> found = pd.DataFrame({"user": "a", "modality": ["x", "y", "z"], "deletion_effect": [0.9, 0.2, 0.1]})
        >>> agreement(looks, found)
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
