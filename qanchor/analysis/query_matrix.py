"""Many questions against many groups: which question separates which group, who leans to yes, and
who shifts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import (
    CHANCE_QUANTILE,
    auc_columns,
    nearest_mean_aucs,
    question_bank,
    random_groups,
)
from qanchor.analysis.shift import residual_shift
from qanchor.data.export import MIN_GROUP_SIZE, membership_mask
from qanchor.data.users import Users
from qanchor.useru.behavior import topic_rates
from qanchor.useru.topics import TOPICS
from qanchor.utils.arrays import l2_normalize
from qanchor.utils.text import count, plural
from qanchor.utils.types import EmbeddingRows, UserFloats, UserMask

RandomValues = Float[np.ndarray, " draw"]
RANDOM_GROUPS = 200  # random groups behind each chance level
MAX_QUERIES = 8  # questions that are chosen by default
MAX_GROUPS = 10  # groups that are made by default
# of the users form the group of a modality: those with the largest share of it in their events
TOP_SHARE = 0.25


@dataclass(frozen=True)
class MatrixCell:
    """Hold what one question does to one group, and to random groups of its size (the `random_`
    fields).
    """

    aucs: Float[np.ndarray, " fold"]
    yes_score: float
    shift: float
    shift_rest: float
    random_auc: RandomValues
    random_yes_score: RandomValues  # distance from 0.5
    random_ratio: RandomValues  # absolute logarithm


@dataclass(frozen=True)
class MatrixProgress:
    """Report how far a matrix is.

    Args:
        stage: "users" (being embedded under the question), "scores" or "row" (a row is complete).
        row: Number of the question, from 0.
        rows: Number of questions.
        done: Units of work that are done; a row has one unit per user.
        total: Units of work in all.
        frame: The rows so far, or None before the first.
    """

    stage: str
    row: int
    rows: int
    done: int
    total: int
    frame: pd.DataFrame | None


def query_group_matrix(
    embedding_cache: EmbeddingCache,
    queries: Sequence[str],
    groups: Mapping[str, Iterable[str]],
    *,
    cells: MutableMapping[tuple, MatrixCell] | None = None,
    draws: int = RANDOM_GROUPS,
    seed: int = 0,
) -> Iterator[MatrixProgress | pd.DataFrame]:
    """Put every question to all users and measure what it does to each group, row by row.

    Args:
        embedding_cache: The users; their embeddings are read from it and added to it.
        queries: The questions.
        groups: Ids by name; at least 10 users must be in each, and outside it.
        cells: Results by question and group, read and filled, so that a further question costs only
        its row and a further
            group only its column; default: a new dict.
        draws: Random groups behind each chance level; default 200.
        seed: Seed of the random groups; default 0.

    Yields:
        `MatrixProgress`, and last the frame. Closing the iterator cancels. One row per question and
        group: `query, group, n, n_rest`, and three measures, each with a chance level (the best of
        all these questions stays below it in 95 % of the random groups of that size) and whether it
        is beyond that level:

        auc, auc_low, auc_high, chance, beyond_chance: how well the question separates the group, as
        `rank_queries_for_group`.
        yes_score, yes_score_chance, yes_score_beyond: how often a user of the group has a higher
        score of `Engine.rank` than one of the others; the chance level is a distance from 0.5. NaN
        if the question has no yes. shift, shift_rest, noise_floor, ratio, ratio_chance,
        ratio_beyond: the median residual shift from the empty query, of the group and of the
        others; ratio is the first by the second, its chance level a factor, up or down.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If a group is too small or a question is empty. Both are raised before anything
        is asked.

    Source: the maximum over all tests as the null, Westfall and Young, Resampling-Based Multiple
    Testing (1993).

    Example:
        >>> from qanchor.analysis.embedding_cache import EmbeddingCache
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> cache, groups = EmbeddingCache(engine, engine.prefill(users)), {"some": users.ids[:20], "most": users.ids[20:]}
        >>> *_, frame = query_group_matrix(cache, ["Will this user travel?"], groups, draws=20)
        >>> frame[["group", "n", "n_rest"]].to_numpy().tolist()
        [['some', 20, 40], ['most', 40, 20]]
    """
    queries = list(dict.fromkeys(str(query).strip() for query in queries))
    if not queries or not all(queries):
        sizes = f"Found {count(len(queries), 'question')}, {queries.count('')} of them empty"
        raise ValueError(f"{sizes}. Write at least one, and none empty.")
    members = {
        str(name): _group_mask(embedding_cache, str(name), ids) for name, ids in groups.items()
    }
    if not members:
        unit = plural(embedding_cache.cache.unit)
        raise ValueError(f"Found 0 groups; at least 1 is required. Name some {unit}.")
    cells = {} if cells is None else cells
    return _iter_rows(embedding_cache, queries, members, cells, draws, seed)


def _iter_rows(
    embedding_cache: EmbeddingCache,
    queries: list[str],
    members: dict[str, np.ndarray],
    cells: MutableMapping[tuple, MatrixCell],
    draws: int,
    seed: int,
) -> Iterator[MatrixProgress | pd.DataFrame]:
    n_users = len(embedding_cache.ids)
    results: dict[tuple[str, str], tuple[np.ndarray, MatrixCell]] = {}

    def progress(stage: str, row: int, done: int) -> MatrixProgress:
        frame = _matrix_frame(results, embedding_cache.noise_floors)
        return MatrixProgress(
            stage, row, len(queries), n_users * row + done, n_users * len(queries), frame
        )

    for row, query in enumerate(queries):
        keys = {}
        for name, group in members.items():
            keys[name] = (query, np.packbits(group).tobytes(), draws, seed)
        # read now: a full cache may evict some meanwhile
        known = {name: cells[key] for name, key in keys.items() if key in cells}
        missing = [name for name in keys if name not in known]
        if missing:
            for text in ("", query):
                for done, _ in embedding_cache.embed(text):
                    yield progress("users", row, done)
            yield progress("scores", row, n_users - 1)
            z = embedding_cache.embeddings[query]
            ranks, moved = _user_scores(embedding_cache, query)
            for name in missing:
                known[name] = _measure_cell(z, ranks, moved, members[name], draws, seed)
                cells[keys[name]] = known[name]
        for name in keys:
            results[query, name] = (members[name], known[name])
        yield progress("row", row, n_users)
    yield _matrix_frame(results, embedding_cache.noise_floors)


def default_queries(users: Users, many: int = MAX_QUERIES) -> list[str]:
    """Choose questions for these users, one per domain of life, about topics that about half of the
    users have events of.

    Args:
        users: The users.
        many: Number of questions at most; default 8.

    Returns:
        Questions of `question_bank`.

    Example:
        >>> len(default_queries(qa.make_sample_users(60), many=5))
        5
    """
    text = {topic: query for query, topic in question_bank(users.unit).items()}
    order = np.argsort(np.abs((topic_rates(users) > 0).mean(0) - 0.5), kind="stable")
    best = {}
    for place in order:
        topic = TOPICS[place]
        best.setdefault(topic.domain, text[topic.name])  # the nearest to a half comes first
    return list(best.values())[:many]


def default_groups(users: Users) -> dict[str, tuple[str, ...]]:
    """Make groups of known users: those with each label, else with each binary fact, else with much
    of each modality.

    Args:
        users: The users.

    Returns:
        Ids by name of the group; empty if there is nothing to make groups of.

    Example:
        >>> {name: len(ids) for name, ids in default_groups(qa.make_sample_users(60)).items()}
        {'Active': ..., 'Concert': ...}
    """
    facts = users.tabular
    is_binary = (facts.isin([0, 1]) | facts.isna()).all()
    facts = facts.loc[:, is_binary]
    past = users.history()
    shares = pd.crosstab(past["user"], past["modality"], normalize="index").reindex(list(users.ids))
    shares = shares.loc[:, shares.nunique() > 1].add_prefix("much ")
    much = shares.rank(pct=True, method="min") > 1 - TOP_SHARE
    for table in (users.labels == 1, facts == 1, much):
        n_inside = table.sum()
        is_large = np.minimum(n_inside, len(table) - n_inside) >= MIN_GROUP_SIZE
        names = list(table.columns[is_large])[:MAX_GROUPS]
        if names:
            return {str(name): tuple(table.index[table[name]].astype(str)) for name in names}
    return {}


def _group_mask(embedding_cache: EmbeddingCache, name: str, ids: Iterable[str]) -> UserMask:
    """Mark the users of a group; refuse unknown users and groups that are too small or too large."""
    try:
        inside = membership_mask(embedding_cache.ids, ids)
    except (KeyError, ValueError) as error:
        raise type(error)(f"Group {name!r}: {error.args[0]}") from error
    n_inside = int(inside.sum())
    n_outside = int((~inside).sum())
    if min(n_inside, n_outside) >= MIN_GROUP_SIZE:
        return inside
    unit = embedding_cache.cache.unit
    required = f"at least {MIN_GROUP_SIZE} are required"
    if n_inside < n_outside:
        raise ValueError(f"Group {name!r} has {count(n_inside, unit)}; {required}. Select more.")
    raise ValueError(
        f"Only {count(n_outside, unit)} outside group {name!r}; {required}. Select fewer."
    )


def _user_scores(embedding_cache: EmbeddingCache, query: str) -> tuple[UserFloats, UserFloats]:
    """Return the rank of each user by its yes score, and its shift from the empty query."""
    from scipy.stats import rankdata

    z = embedding_cache.embeddings[query]
    ranking = embedding_cache.engine.score(embedding_cache.cache, query, z)
    moved = residual_shift(l2_normalize(embedding_cache.embeddings[""]), l2_normalize(z))
    return rankdata(ranking["score"], nan_policy="propagate"), moved


def _measure_cell(
    z: EmbeddingRows,
    rank: UserFloats,
    moved: UserFloats,
    inside: UserMask,
    draws: int,
    seed: int,
) -> MatrixCell:
    """Measure one group, and random groups of its size (the same ones under every question)."""
    folds_by_seed = random_groups(inside, draws, np.random.default_rng(seed))
    aucs = np.concatenate([nearest_mean_aucs(z, folds) for folds in folds_by_seed])
    group = folds_by_seed[0].group  # (draw, user), the group itself first
    n = int(inside.sum())
    rows_inside = np.nonzero(group)[1].reshape(len(group), -1)
    rows_outside = np.nonzero(~group)[1].reshape(len(group), -1)
    yes_score = (rank[rows_inside].sum(1) - n * (n + 1) / 2) / (n * (len(rank) - n))
    shift = np.maximum(np.median(moved[rows_inside], axis=1), 1e-9)
    shift_rest = np.maximum(np.median(moved[rows_outside], axis=1), 1e-9)
    return MatrixCell(
        aucs=aucs[:, 0],
        yes_score=float(yes_score[0]),
        shift=float(shift[0]),
        shift_rest=float(shift_rest[0]),
        random_auc=aucs[:, 1:].mean(0),
        random_yes_score=np.abs(yes_score[1:] - 0.5),
        random_ratio=np.abs(np.log(shift[1:] / shift_rest[1:])),
    )


def _matrix_frame(
    results: Mapping[tuple[str, str], tuple[np.ndarray, MatrixCell]],
    noise_floors: Mapping[str, float],
) -> pd.DataFrame | None:
    """Build the frame of the results so far; the chance levels are those of the questions so far."""
    if not results:
        return None
    rows = []
    for (query, name), (group, cell) in results.items():
        row = {"query": query, "group": name, "n": int(group.sum()), "n_rest": int((~group).sum())}
        rows.append(row | vars(cell))
    frame = pd.DataFrame(rows)
    frame = frame.assign(**auc_columns(np.stack(frame["aucs"])))
    frame["noise_floor"] = frame["query"].map(noise_floors.get).astype(float)
    frame["ratio"] = frame["shift"] / frame["shift_rest"]
    frame["chance"] = _chance_levels(frame, "random_auc")
    frame["yes_score_chance"] = _chance_levels(frame, "random_yes_score")
    frame["ratio_chance"] = np.exp(_chance_levels(frame, "random_ratio"))
    frame["beyond_chance"] = frame["auc"] > frame["chance"]
    frame["yes_score_beyond"] = (frame["yes_score"] - 0.5).abs() > frame["yes_score_chance"]
    frame["ratio_beyond"] = np.abs(np.log(frame["ratio"])) > np.log(frame["ratio_chance"])
    return frame.drop(columns=["aucs", "random_auc", "random_yes_score", "random_ratio"])


def _chance_levels(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Return for each row what the best question stays below in 95 % of the random groups of its
    size.
    """
    levels = {}
    for name, rows in frame.groupby("group")[measure]:
        best_question = np.fmax.reduce(list(rows))
        levels[name] = float(np.quantile(best_question, CHANCE_QUANTILE))
    return frame["group"].map(levels)
