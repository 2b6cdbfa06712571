"""Which question of a bank tells a group of users from all others, and is that more than luck?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from qanchor.data.export import membership_mask
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.useru.topics import HELD_OUT, TOPICS
from qanchor.workbench.messages import _group_queries_caption, group_queries_summary

FOLDS, SEEDS = 5, 3
DRAWS = 200  # random groups behind the chance line


def rank_queries_for_group(
    engine: Engine,
    cache: PrefixCache,
    ids: Iterable[str],
    questions: Sequence[str] | Mapping[str, str] | None = None,
    *,
    kept: MutableMapping[str, np.ndarray] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Iterator[dict]:
    """Ask which question tells a group from all other users best: yields progress, and at last the ranking.

    questions   texts, or a mapping to the name of their topic; default `question_bank`. All are asked in one visit of a user.
    kept        embeddings by query, read and filled (an `LensBackend` has such a store): the next group costs no model time.
    Each update has done, total, sentence, caption and frame, which is None until the last. Close the iterator to cancel.

    The frame, best first: query, topic, auc, auc_low, auc_high (out of fold, three seeds of five folds), n_group,
    n_rest, and chance, beyond_chance: `draws` random groups of the same size go the same way, and in 95 % of them the
    best of all questions stays below chance. The best of 72 is good by luck, too; only what passes that line is more.
    behind: clearly behind the best, by the 95 % interval of the difference over the same folds.

    The scorer is linear, but not the fitted `linear_probe`: closeness to the mean anchor of the group minus that to the mean of the
    rest. A fit digs nearly the same out of every question; this weighs what the question itself brings to the fore, and takes
    seconds for all of them and all random groups. KeyError for an unknown id, ValueError when group or rest are too small.

    Source: the maximum over all tests as the null, Westfall and Young, Resampling-Based Multiple Testing (1993).

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> *_, last = rank_queries_for_group(engine, engine.prefill(users), users.ids[:12], ["Why?", "Will this user travel?"])
        >>> list(last["frame"]["query"]), int(last["frame"]["n_group"][0])
        ([...], 12)
    """
    inside = membership_mask(cache.ids, ids)
    small = min(inside.sum(), (~inside).sum())
    if small < 2 * FOLDS:
        told = f"{inside.sum():,} {cache.unit}s in the group and {(~inside).sum():,} outside, at least {2 * FOLDS} of each"
        raise ValueError(f"{told} are needed: choose {'more' if inside.sum() == small else 'fewer'}")
    asked = question_bank(cache.unit) if questions is None else questions
    bank = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(asked, "")
    kept = {} if kept is None else kept
    held = yield from _embed_missing(engine, cache, list(bank), kept)
    groups = random_groups(inside, draws, np.random.default_rng(seed))
    best, ours = np.zeros(draws), []
    for done, query in enumerate(bank, 1):
        aucs = np.concatenate([nearest_mean_aucs(held[query], folds) for folds in groups])
        best, ours = np.maximum(best, aucs[:, 1:].mean(axis=0)), [*ours, aucs[:, 0]]
        yield _group_queries_update(done, len(bank), f"Compared under {done} of {len(bank)} questions ...")
    frame = _ranking(bank, np.array(ours), float(np.quantile(best, 0.95)) if draws else np.nan)
    frame = frame.assign(n_group=int(inside.sum()), n_rest=int((~inside).sum()))
    yield _group_queries_update(
        len(bank), len(bank), group_queries_summary(frame, cache.unit), frame, _group_queries_caption(draws)
    )


def question_bank(unit: str = "user") -> dict[str, str]:
    """Give one question of each topic that the model was taught, and the topic's name.

    Example:
        >>> bank = question_bank("household")
        >>> len(bank), bank["Does this household like cakes and candy?"]
        (72, 'sweets')
    """
    return {topic.profile[-1 - HELD_OUT].format(user=unit): topic.name for topic in TOPICS}


def _embed_missing(
    engine: Engine, cache: PrefixCache, queries: list[str], kept: MutableMapping[str, np.ndarray]
) -> Iterator[dict]:
    """Ask what is not kept yet, all of it in one visit of each user; only whole results are kept. Returns all of them."""
    held = {query: kept[query] for query in queries if query in kept}  # the store may let go of some before the end
    new = [query for query in queries if query not in held]
    if not new:
        return held
    out, done = np.zeros((len(new), len(cache), engine.model.config.embedding_dim), np.float32), 0
    for rows, z in engine.iter_embed(cache, new):
        out[:, rows] = z.swapaxes(0, 1)
        done += len(rows)
        yield _group_queries_update(
            done, len(cache), f"Asked {done:,} of {len(cache):,} {cache.unit}s {len(new)} questions ..."
        )
    found = {query: z.copy() for query, z in zip(new, out, strict=True)}  # a view of one would hold all of them
    kept.update(found)
    return held | found


@dataclass(frozen=True)
class RandomGroups:
    """Hold groups of one size, ours first, and one way to fold the users of each, both sides spread evenly."""

    group: Bool[np.ndarray, "draw user"]
    fold: Int[np.ndarray, "draw user"]
    weight: list[Float[np.ndarray, "draw user"]]  # one a fold: means of group minus rest of all users outside it


def random_groups(inside: Bool[np.ndarray, " user"], draws: int, rng: np.random.Generator) -> list[RandomGroups]:
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
        found.append(RandomGroups(group, fold, [_mean_difference_weights(group, fold != k) for k in range(FOLDS)]))
    return found


def _mean_difference_weights(
    group: Bool[np.ndarray, "draw user"], fitted: Bool[np.ndarray, "draw user"]
) -> Float[np.ndarray, "draw user"]:
    ours, theirs = group & fitted, ~group & fitted
    return (ours / ours.sum(1, keepdims=True) - theirs / theirs.sum(1, keepdims=True)).astype(np.float32)


def nearest_mean_aucs(z: Float[np.ndarray, "user dim"], folds: RandomGroups) -> Float[np.ndarray, "fold draw"]:
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


def corrected_half_width(aucs: Float[np.ndarray, "question fold"]) -> Float[np.ndarray, " question"]:
    """Give half the 95 % interval of each question's mean; folds share users they are fitted on (Nadeau and Bengio 2003)."""
    from scipy.stats import t

    many = aucs.shape[1]
    return t.ppf(0.975, many - 1) * aucs.std(axis=1, ddof=1) * np.sqrt(1 / many + 1 / (FOLDS - 1))


def _ranking(bank: Mapping[str, str], aucs: Float[np.ndarray, "question fold"], chance: float) -> pd.DataFrame:
    mean, reach = aucs.mean(axis=1), corrected_half_width(aucs)
    frame = pd.DataFrame({"query": list(bank), "topic": list(bank.values()), "auc": mean, "chance": chance})
    frame = frame.assign(auc_low=np.maximum(0, mean - reach), auc_high=np.minimum(1, mean + reach), beyond_chance=mean > chance)
    gap = aucs[mean.argmax()] - aucs  # fold by fold, so that what is hard about a fold counts for neither
    frame["behind"] = gap.mean(axis=1) > corrected_half_width(gap)
    return frame.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _group_queries_update(done: int, total: int, sentence: str, frame: pd.DataFrame | None = None, caption: str = "") -> dict:
    return {"done": done, "total": total, "sentence": sentence, "frame": frame, "caption": caption}
