"""Which question of a bank tells a group of users from all others, and is that more than luck?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .cache import Cache
from .engine import Engine
from .groups import members
from .topics import HELD_OUT, TOPICS

FOLDS, SEEDS = 5, 3
DRAWS = 200  # random groups behind the chance line


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

    The frame, best first: query, topic, auc, auc_low, auc_high (out of fold, three seeds of five folds), n_group,
    n_rest, and chance, beyond_chance: `draws` random groups of the same size go the same way, and in 95 % of them the
    best of all questions stays below chance. The best of 72 is good by luck, too; only what passes that line is more.
    behind: clearly behind the best, by the 95 % interval of the difference over the same folds.

    The scorer is linear, but not the fitted `probe`: closeness to the mean anchor of the group minus that to the mean of the
    rest. A fit digs nearly the same out of every question; this weighs what the question itself brings to the fore, and takes
    seconds for all of them and all random groups. KeyError for an unknown id, ValueError when group or rest are too small.

    Source: the maximum over all tests as the null, Westfall and Young, Resampling-Based Multiple Testing (1993).

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
    held = yield from _embedded(engine, cache, list(bank), kept)
    groups = random_groups(inside, draws, np.random.default_rng(seed))
    best, ours = np.zeros(draws), []
    for done, query in enumerate(bank, 1):
        aucs = np.concatenate([group_aucs(held[query], folds) for folds in groups])
        best, ours = np.maximum(best, aucs[:, 1:].mean(axis=0)), [*ours, aucs[:, 0]]
        yield _update(done, len(bank), f"Compared under {done} of {len(bank)} questions ...")
    frame = _ranking(bank, np.array(ours), float(np.quantile(best, 0.95)) if draws else np.nan)
    frame = frame.assign(n_group=int(inside.sum()), n_rest=int((~inside).sum()))
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
        >>> row = {"query": "Why?", "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "chance": 0.62, "beyond_chance": True}
        >>> explained(pd.DataFrame([{**row, "behind": False, "n_group": 20, "n_rest": 80}]))[:62]
        '“Why?” tells these 20 users best from the other 80: AUC 0.80 ('
    """
    top, more = frame.iloc[0], int((~frame["behind"]).sum()) - 1
    line = f"the best of {len(frame)} question{'s' * (len(frame) != 1)} reaches {top.chance:.2f} in 1 of 20 random groups"
    if not top.beyond_chance:
        return f"No question tells these {top.n_group:,} {unit}s: “{top['query']}” comes to AUC {top.auc:.2f}, and {line}."
    tells = f"“{top['query']}” tells these {top.n_group:,} {unit}s best from the other {top.n_rest:,}"
    rivals = f" {more} other{'s are' if more > 1 else ' is'} not clearly behind." * bool(more)
    return f"{tells}: AUC {top.auc:.2f} ({top.auc_low:.2f} to {top.auc_high:.2f}).{rivals} By luck, {line}."


def _embedded(engine: Engine, cache: Cache, queries: list[str], kept: MutableMapping[str, np.ndarray]) -> Iterator[dict]:
    """Ask what is not kept yet, all of it in one visit of each user; only whole results are kept. Returns all of them."""
    held = {query: kept[query] for query in queries if query in kept}  # the store may let go of some before the end
    new = [query for query in queries if query not in held]
    if not new:
        return held
    out, done = np.zeros((len(new), len(cache), engine.model.config.dim), np.float32), 0
    for rows, z in engine.stream(cache, new):
        out[:, rows] = z.swapaxes(0, 1)
        done += len(rows)
        yield _update(done, len(cache), f"Asked {done:,} of {len(cache):,} {cache.unit}s {len(new)} questions ...")
    found = {query: z.copy() for query, z in zip(new, out, strict=True)}  # a view of one would hold all of them
    kept.update(found)
    return held | found


@dataclass(frozen=True)
class Groups:
    """Hold groups of one size, ours first, and one way to fold the users of each, both sides spread evenly."""

    group: Bool[np.ndarray, "draw user"]
    fold: Int[np.ndarray, "draw user"]
    weight: list[Float[np.ndarray, "draw user"]]  # one a fold: means of group minus rest of all users outside it


def random_groups(inside: Bool[np.ndarray, " user"], draws: int, rng: np.random.Generator) -> list[Groups]:
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


def group_aucs(z: Float[np.ndarray, "user dim"], folds: Groups) -> Float[np.ndarray, "fold draw"]:
    """Score users by the means of group and rest without their fold: the AUC of each group in each fold."""
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
    return aucs


def half_interval(aucs: Float[np.ndarray, "question fold"]) -> Float[np.ndarray, " question"]:
    """Give half the 95 % interval of each question's mean; folds share users they are fitted on (Nadeau and Bengio 2003)."""
    from scipy.stats import t

    many = aucs.shape[1]
    return t.ppf(0.975, many - 1) * aucs.std(axis=1, ddof=1) * np.sqrt(1 / many + 1 / (FOLDS - 1))


def _ranking(bank: Mapping[str, str], aucs: Float[np.ndarray, "question fold"], chance: float) -> pd.DataFrame:
    mean, reach = aucs.mean(axis=1), half_interval(aucs)
    frame = pd.DataFrame({"query": list(bank), "topic": list(bank.values()), "auc": mean, "chance": chance})
    frame = frame.assign(auc_low=np.maximum(0, mean - reach), auc_high=np.minimum(1, mean + reach), beyond_chance=mean > chance)
    gap = aucs[mean.argmax()] - aucs  # fold by fold, so that what is hard about a fold counts for neither
    frame["behind"] = gap.mean(axis=1) > half_interval(gap)
    return frame.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _caption(draws: int) -> str:
    said = f"AUC out of fold ({SEEDS} x {FOLDS} folds), nearest mean; chance line by {draws} random groups of that size."
    return f"{said} A group drawn on a map stands together under the map's own question: that this one tells it is no news."


def _update(done: int, total: int, sentence: str, frame: pd.DataFrame | None = None, caption: str = "") -> dict:
    return {"done": done, "total": total, "sentence": sentence, "frame": frame, "caption": caption}
