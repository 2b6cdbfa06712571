"""Rank questions by how well they separate a group of users from the others, beyond chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int8

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.data.export import membership_mask
from qanchor.evaluation.intervals import auc_columns, cv_half_width
from qanchor.evaluation.metrics import auc_of_ranks
from qanchor.useru.concepts import Concept, templates
from qanchor.utils.text import count
from qanchor.utils.types import EmbeddingRows, UserMask

GroupMasks = Bool[np.ndarray, "draw user"]
FoldNumbers = Int8[np.ndarray, "seed draw user"]
FOLDS = 5
SEEDS = 3  # repetitions of the cross-validation, with other folds
DRAWS = 200  # random groups that determine the chance level
SEED = 0  # of random groups and folds
MIN_USERS_PER_SIDE = 2 * FOLDS  # smallest size of the group, and of the rest
# share of the random groups for which even the best question stays below the chance level
CHANCE_QUANTILE = 0.95
MAX_QUESTIONS = 60  # in a question bank
# families of concepts in a question bank, and the measures of these that are asked about
BANK = {
    "behavior": ("occurs", "more", "less", "high"),
    "topic": ("occurs",),
    "modality": ("high",),
    "number": ("high",),
    "time": ("occurs",),
    "text": ("occurs",),
}


def rank_queries_for_group(
    embedding_cache: EmbeddingCache, ids: Iterable[str], questions: Sequence[str]
) -> Iterator[tuple[str, int, int] | pd.DataFrame]:
    """Rank questions by how well they separate a group from all other users.

    A user's score is the dot product with the mean embedding of the group minus that with the mean
    of the rest. A fitted `linear_probe` would separate a group about equally well under every
    question. This scorer measures what the question itself emphasizes, and takes seconds for all
    questions and all random groups.

    Args:
        embedding_cache: The users. Their embeddings are read from it and added to it, so the next
            group needs no run of the model.
        ids: Ids of the group.
        questions: The questions. They share one pass over the users.

    Yields:
        ("users", done, total) while users are embedded, ("questions", done, total) while questions
        are compared, and last the frame, best question first: `query, auc, auc_low, auc_high` (out
        of fold, three seeds of five folds), `n_group`, `n_rest`, `chance` (the best of all
        questions stays below it in 95 % of 200 random groups), `beyond_chance`, and `behind`
        (clearly worse than the best, by the 95 % interval of the difference over the same folds).
        With many questions the best AUC is inflated by chance; only values above `chance` are
        significant. Closing the iterator cancels.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If fewer than 10 users are inside or outside the group.

    Source: null distribution of the maximum over all tests; Westfall and Young, Resampling-Based
    Multiple Testing (1993).

    Example:
        >>> from qanchor.analysis.embedding_cache import EmbeddingCache
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> cache = EmbeddingCache(engine, engine.prefill(users))
        >>> queries = ["Why?", "Will this user travel?"]
        >>> *_, ranking = rank_queries_for_group(cache, users.ids[:12], queries)
        >>> sorted(ranking["query"]), int(ranking["n_group"][0])
        (['Why?', 'Will this user travel?'], 12)
    """
    inside = group_mask(embedding_cache, ids)
    queries = list(dict.fromkeys(questions))

    embeddings = yield from embedding_cache.embed(*queries)
    groups, folds = random_groups(inside)
    best_of_random = np.zeros(DRAWS)
    aucs_of_group = []
    for done, query in enumerate(queries, 1):
        aucs = nearest_mean_aucs(embeddings[query], groups, folds)
        aucs_of_group.append(aucs[:, 0])
        best_of_random = np.maximum(best_of_random, aucs[:, 1:].mean(axis=0))
        yield "questions", done, len(queries)

    aucs = np.array(aucs_of_group)
    frame = pd.DataFrame({"query": queries, **auc_columns(aucs, FOLDS)})
    frame["chance"] = np.quantile(best_of_random, CHANCE_QUANTILE)
    frame["beyond_chance"] = frame["auc"] > frame["chance"]
    # paired by fold, so that the difficulty of a fold cancels out
    gap = aucs[frame["auc"].argmax()] - aucs
    frame["behind"] = gap.mean(axis=1) > cv_half_width(gap, FOLDS)
    frame["n_group"] = inside.sum()
    frame["n_rest"] = (~inside).sum()
    yield frame.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def group_mask(embedding_cache: EmbeddingCache, ids: Iterable[str]) -> UserMask:
    """Return a mask of the users of a group, and check its size.

    Args:
        embedding_cache: The users.
        ids: Ids of the group.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If fewer than 10 users are inside or outside the group.
    """
    inside = membership_mask(embedding_cache.ids, ids)
    n_group = int(inside.sum())
    n_rest = len(inside) - n_group
    if min(n_group, n_rest) < MIN_USERS_PER_SIDE:
        users = count(n_group, embedding_cache.cache.unit)
        advice = "more" if n_group < n_rest else "fewer"
        raise ValueError(
            f"The group has {users} and {n_rest:,} are outside it; at least {MIN_USERS_PER_SIDE}"
            f" of each are required. Select {advice}."
        )
    return inside


def question_bank(concepts: Sequence[Concept], unit: str = "user") -> list[str]:
    """Return one question about each of the concepts of a data set, the most general ones first.

    Args:
        concepts: The concepts in the order of `model.concepts`: the most common texts first.
        unit: Word for one user (default "user").

    Returns:
        At most 60 questions: about behaviour, topics, modalities, numbers and times, then texts.

    Example:
        >>> tea = Concept("text:tea", "text", "tea", ("text:tea",))
        >>> question_bank([tea, Concept("behavior:any", "behavior", "any event", ())], "guest")
        ['Will this guest come back?', 'Will there be tea soon?']
    """
    questions = []
    for family, measures in BANK.items():
        for concept in concepts:
            if concept.family == family and concept.measure in measures:
                texts, _ = templates(concept)
                text = next(text for text in texts if "{verb}" not in text)
                questions.append(text.format(user=unit, t=concept.label, when="soon"))
    return list(dict.fromkeys(questions))[:MAX_QUESTIONS]


def random_groups(inside: UserMask) -> tuple[GroupMasks, FoldNumbers]:
    """Draw `DRAWS` random groups of the size of `inside`, and assign the users of each to folds.

    The users of a group, and those outside it, are spread evenly over the folds. This is repeated
    `SEEDS` times. Equal masks give equal groups.

    Args:
        inside: Mask of the given group.

    Returns:
        The groups, the given one first, and the fold of each user.
    """
    rng = np.random.default_rng(SEED)
    n_users = len(inside)
    n_group = int(inside.sum())
    orders = [np.argsort(~inside, kind="stable")]  # the group first, then the rest
    for _ in range(DRAWS):
        orders.append(rng.permutation(n_users))
    orders = np.array(orders)
    groups = np.zeros(orders.shape, bool)
    np.put_along_axis(groups, orders[:, :n_group], True, axis=1)

    places = np.arange(n_users)
    places[n_group:] -= n_group
    fold_of_place = (places % FOLDS).astype(np.int8)
    folds = np.empty((SEEDS, *orders.shape), np.int8)
    for fold in folds:
        for order in orders:
            rng.shuffle(order[:n_group])
            rng.shuffle(order[n_group:])
        np.put_along_axis(fold, orders, fold_of_place[None], axis=1)
    return groups, folds


def nearest_mean_aucs(z: EmbeddingRows, groups: GroupMasks, folds: FoldNumbers) -> np.ndarray:
    """Score users by the means of group and rest in the other folds, and return the AUCs.

    Args:
        z: Embeddings of the users.
        groups: Groups, from `random_groups`.
        folds: Folds, from `random_groups`.

    Returns:
        The AUC of each group in each fold; folds of all repetitions one after another.
    """
    aucs = []
    for fold in folds:
        score = np.zeros(fold.shape)
        for k in range(FOLDS):
            ours = groups & (fold != k)
            theirs = ~groups & (fold != k)
            means = ours / ours.sum(1, keepdims=True) - theirs / theirs.sum(1, keepdims=True)
            np.copyto(score, means.astype(np.float32) @ z @ z.T, where=fold == k)
        aucs += _aucs_by_fold(score, groups, fold)
    return np.array(aucs)


def _aucs_by_fold(score, groups, fold) -> list[np.ndarray]:
    """Return the AUC of each group in each fold, ranking the users of a fold by score."""
    # sort by fold, then by score: the position within a fold is the rank, for all draws at once
    lowest = score.min(axis=1, keepdims=True)
    spread = np.ptp(score, axis=1, keepdims=True) * 1.01 + 1e-12
    order = (fold + (score - lowest) / spread).argsort(axis=1)
    is_inside = np.take_along_axis(groups, order, axis=1)
    starts = np.cumsum(np.bincount(fold[0]))[:-1]
    aucs = []
    for part in np.split(is_inside, starts, axis=1):
        n_users = part.shape[1]
        rank_sum = part @ np.arange(1.0, n_users + 1)
        aucs.append(auc_of_ranks(rank_sum, part.sum(axis=1), n_users))
    return aucs
