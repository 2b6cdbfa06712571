"""Which question of a bank tells a group of users from all others, and is that more than the luck of the best of many?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .cache import Cache
from .engine import Engine
from .groups import members
from .probe import summary
from .topics import HELD_OUT, TOPICS

FOLDS, SEEDS = 5, 3
DRAWS = 200  # random groups behind the chance line
EXPLAINED = ["query", "topic", "auc", "auc_low", "auc_high", "chance", "beyond_chance", "n_group", "n_rest"]


def explain_group(
    engine: Engine,
    cache: Cache,
    ids: Iterable[str],
    questions: Sequence[str] | Mapping[str, str] | None = None,
    *,
    kept: MutableMapping[str, np.ndarray] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Iterator[dict]:
    """Ask which question tells a group from all other users best: yields progress, and at last the ranking.

    questions   texts, or a mapping to the name of their topic; default `question_bank`. All are asked in one visit of a user.
    kept        embeddings by query, read and filled (an `Asker` has such a store): the next group costs no model time.
    Each update has done, total, sentence, caption and frame, which is None until the last. Close the iterator to cancel.

    The frame, best first: query, topic, auc, auc_low, auc_high (out of fold, as in `probe`, three seeds of five folds),
    n_group, n_rest, and chance, beyond_chance: `draws` random groups of the same size go the same way, and in 95 % of them the
    best of all questions stays below chance. The best of 72 is good by luck, too; only what passes that line is more.

    The scorer is the linear discriminant under the Ledoit-Wolf covariance of all users: in closed form, so that questions times
    random groups take seconds, where the logistic probe would take an hour. KeyError for an unknown id, ValueError when group
    or rest are too small to leave some out.

    Source: the maximum over all tests as the null, Westfall and Young (1993); covariance, Ledoit and Wolf (2004).

    Example:
        >>> users = qa.make_world(40)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> *_, last = explain_group(engine, engine.prefill(users), users.ids[:12], ["Why?", "Will this user travel?"])
        >>> list(last["frame"]["query"]), int(last["frame"]["n_group"][0])
        ([...], 12)
    """
    inside = members(cache.ids, ids)
    small = min(inside.sum(), (~inside).sum())
    if small < 2 * FOLDS:
        told = f"{inside.sum():,} {cache.unit}s in the group and {(~inside).sum():,} outside, at least {2 * FOLDS} of each"
        raise ValueError(f"{told} are needed: choose {'more' if inside.sum() == small else 'fewer'}")
    asked = question_bank(cache.unit) if questions is None else questions
    bank = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked, "")
    kept = {} if kept is None else kept
    yield from _embedded(engine, cache, list(bank), kept)
    groups = _random_groups(inside, draws, np.random.default_rng(seed))
    best, rows, fold = np.zeros(draws), [], np.array([folds.fold[0] for folds in groups]).astype(int)
    for done, (query, topic) in enumerate(bank.items(), 1):
        z = _whitened(kept[query])
        scores, aucs = zip(*(_told(z, folds) for folds in groups), strict=True)
        best = np.maximum(best, np.mean(aucs, axis=0)[1:])
        found = summary(np.array(scores), fold, inside)
        rows.append((query, topic, found.auc, found.auc_low, found.auc_high))
        yield _update(done, len(bank), f"Compared under {done} of {len(bank)} questions ...")
    chance = float(np.quantile(best, 0.95)) if draws else np.nan
    frame = pd.DataFrame(rows, columns=EXPLAINED[:5]).assign(
        chance=chance, n_group=int(inside.sum()), n_rest=int((~inside).sum())
    )
    frame = frame.assign(beyond_chance=frame["auc"] > chance)[EXPLAINED]
    frame = frame.sort_values("auc", ascending=False, kind="stable", ignore_index=True)
    yield _update(len(bank), len(bank), explained(frame, cache.unit), frame, _caption(draws))


def question_bank(unit: str = "user") -> dict[str, str]:
    """Give one question of each topic that the model was taught, and the topic's name.

    Example:
        >>> bank = question_bank("household")
        >>> len(bank), bank["Does this household like cakes and candy?"]
        (72, 'sweets')
    """
    return {topic.profile[-1 - HELD_OUT].format(user=unit): topic.name for topic in TOPICS}


def explained(frame: pd.DataFrame, unit: str = "user") -> str:
    """Say in words what `explain_group` found.

    Example:
        >>> row = ("Why?", "", 0.8, 0.7, 0.9, 0.62, True, 20, 80)
        >>> explained(pd.DataFrame([row], columns=EXPLAINED))[:61]
        '“Why?” tells these 20 users best from the other 80: AUC 0.80 '
    """
    top = frame.iloc[0]
    line = f"the best of {len(frame)} question{'s' * (len(frame) != 1)} reaches {top.chance:.2f} in 1 of 20 random groups"
    if not top.beyond_chance:
        return f"No question tells these {top.n_group:,} {unit}s: “{top['query']}” comes to AUC {top.auc:.2f}, and {line}."
    whom = f"these {top.n_group:,} {unit}s best from the other {top.n_rest:,}"
    return f"“{top['query']}” tells {whom}: AUC {top.auc:.2f} ({top.auc_low:.2f} to {top.auc_high:.2f}). By luck, {line}."


def _embedded(engine: Engine, cache: Cache, queries: list[str], kept: MutableMapping[str, np.ndarray]) -> Iterator[dict]:
    """Ask what is not kept yet, all of it in one visit of each user; only whole results are kept."""
    new = [query for query in queries if query not in kept]
    if not new:
        return
    out, done = np.zeros((len(new), len(cache), engine.model.config.dim), np.float32), 0
    for rows, z in engine.stream(cache, new):
        out[:, rows] = z.swapaxes(0, 1)
        done += len(rows)
        yield _update(done, len(cache), f"Asked {done:,} of {len(cache):,} {cache.unit}s {len(new)} questions ...")
    kept.update(zip(new, out, strict=True))


@dataclass(frozen=True)
class Groups:
    """Hold groups of one size, ours first, and one way to fold the users of each, both sides spread evenly."""

    group: Bool[np.ndarray, "draw user"]
    fold: Int[np.ndarray, "draw user"]
    weight: list[Float[np.ndarray, "draw user"]]  # one a fold: means of group minus rest of all users outside it


def _random_groups(inside: Bool[np.ndarray, " user"], draws: int, rng: np.random.Generator) -> list[Groups]:
    """Draw random groups as large as ours, and fold all alike, `SEEDS` times."""
    many, ours = int(inside.sum()), np.argsort(~inside, kind="stable")  # the group first, then the rest
    orders = np.array([ours, *(rng.permutation(len(ours)) for _ in range(draws))])
    group, number = np.zeros(orders.shape, bool), np.concatenate([np.arange(many), np.arange(len(ours) - many)]) % FOLDS
    np.put_along_axis(group, orders[:, :many], True, axis=1)
    found = []
    for _ in range(SEEDS):
        for order in orders:
            rng.shuffle(order[:many])
            rng.shuffle(order[many:])
        fold = np.empty(orders.shape, np.int8)
        np.put_along_axis(fold, orders, number[None].astype(np.int8), axis=1)
        found.append(Groups(group, fold, [_means(group, fold != k) for k in range(FOLDS)]))
    return found


def _means(group: Bool[np.ndarray, "draw user"], fitted: Bool[np.ndarray, "draw user"]) -> Float[np.ndarray, "draw user"]:
    ours, theirs = group & fitted, ~group & fitted
    return (ours / ours.sum(1, keepdims=True) - theirs / theirs.sum(1, keepdims=True)).astype(np.float32)


def _whitened(z: Float[np.ndarray, "user dim"]) -> Float[np.ndarray, "user dim"]:
    """Turn anchors so that their covariance over all users is one: the discriminant is then the means' difference."""
    from sklearn.covariance import ledoit_wolf

    z = z.astype(float) - z.mean(axis=0)
    values, axes = np.linalg.eigh(ledoit_wolf(z, assume_centered=True)[0])
    return (z @ axes / np.sqrt(np.maximum(values, values[-1] * 1e-9))).astype(np.float32)


def _told(z: Float[np.ndarray, "user dim"], folds: Groups) -> tuple[Float[np.ndarray, " user"], Float[np.ndarray, " draw"]]:
    """Score users by discriminants fitted without their fold: our group's scores, and each group's AUC over the folds."""
    out = np.zeros(folds.fold.shape)
    for k, weight in enumerate(folds.weight):
        np.copyto(out, weight @ z @ z.T, where=folds.fold == k)
    # sorted by fold, then by score, ranks are the same row of numbers for every draw
    spread = np.ptp(out, axis=1, keepdims=True) * 1.01 + 1e-12
    order = (folds.fold + (out - out.min(axis=1, keepdims=True)) / spread).argsort(axis=1)
    ours, sizes = np.take_along_axis(folds.group, order, axis=1), np.bincount(folds.fold[0])
    aucs = np.zeros((FOLDS, len(out)))
    for k, part in enumerate(np.split(ours, np.cumsum(sizes)[:-1], axis=1)):
        many = part.sum(axis=1)
        aucs[k] = (part @ np.arange(1.0, sizes[k] + 1) - many * (many + 1) / 2) / (many * (sizes[k] - many))
    return out[0], aucs.mean(axis=0)


def _caption(draws: int) -> str:
    said = f"AUC out of fold ({SEEDS} x {FOLDS} folds), linear discriminant; chance line by {draws} random groups of that size."
    return f"{said} A group drawn on a map stands together under the map's own question: that this one tells it is no news."


def _update(done: int, total: int, sentence: str, frame: pd.DataFrame | None = None, caption: str = "") -> dict:
    return {"done": done, "total": total, "sentence": sentence, "frame": frame, "caption": caption}
