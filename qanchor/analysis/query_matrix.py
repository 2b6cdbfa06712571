"""Cross questions with groups: separation, leaning to yes and shift of each group per question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import (
    CHANCE_QUANTILE,
    FOLDS,
    group_mask,
    nearest_mean_aucs,
    random_groups,
)
from qanchor.analysis.shift import residual_shift
from qanchor.data.export import MIN_GROUP_SIZE
from qanchor.data.users import Users
from qanchor.evaluation.intervals import auc_columns
from qanchor.evaluation.metrics import auc_of_ranks
from qanchor.utils.arrays import l2_normalize
from qanchor.utils.text import count, plural
from qanchor.utils.types import EmbeddingRows, UserFloats, UserMask

MAX_QUERIES = 8  # questions that are chosen by default
MAX_GROUPS = 10  # groups that are made by default
# share of the users in the default group of a modality: those with most of it in their events
TOP_SHARE = 0.25


@dataclass(frozen=True)
class MatrixProgress:
    """Report the progress of a matrix.

    Args:
        stage: "users" (being embedded under the question), "scores" or "row" (a row is complete).
        row: Number of the question, from 0.
        done: Units of work done in this row, which has one unit per user.
        frame: The rows so far, or None before the first.
    """

    stage: str
    row: int
    done: int
    frame: pd.DataFrame | None


def query_group_matrix(
    embedding_cache: EmbeddingCache,
    queries: Sequence[str],
    groups: Mapping[str, Iterable[str]],
    *,
    cells: MutableMapping[tuple, dict] | None = None,
) -> Iterator[MatrixProgress | pd.DataFrame]:
    """Measure what every question does to every group of users, one question at a time.

    Args:
        embedding_cache: The users. Their embeddings are read from it and added to it.
        queries: The questions.
        groups: Ids of the users of each group, by its name. At least 10 users must be in each group
            and outside it.
        cells: Cache of results by question and group (default: a new dict). With it, one more
            question costs only its row and one more group only its column.

    Yields:
        `MatrixProgress`, and last the frame. Closing the iterator cancels. The frame has one row
        per question and group: `query, group, n, n_rest` and three measures, each with a chance
        level (the best of these questions stays below it in 95 % of the random groups of that size)
        and whether it is beyond that level:

        auc, auc_low, auc_high, chance, beyond_chance: how well the question separates the group,
            as in `rank_queries_for_group`.
        yes_score, yes_score_chance, yes_score_beyond: how often a user of the group has a higher
            score from `Engine.rank` than one of the others. The chance level is a distance from
            0.5. NaN if the question has no yes/no answer.
        shift, shift_rest, ratio, ratio_chance, ratio_beyond: the median residual shift from the
            empty query, of the group and of the others; `ratio` is the first divided by the second.
            The chance level is a factor in either direction.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If a group is too small or a question is empty. Both are raised before anything
            is computed.

    Source: null distribution of the maximum over all tests; Westfall and Young, Resampling-Based
    Multiple Testing (1993).

    Example:
        >>> from qanchor.analysis.embedding_cache import EmbeddingCache
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> cache = EmbeddingCache(engine, engine.prefill(users))
        >>> groups = {"some": users.ids[:20], "most": users.ids[20:]}
        >>> *_, frame = query_group_matrix(cache, ["Will this user travel?"], groups)
        >>> frame[["group", "n", "n_rest"]].to_numpy().tolist()
        [['some', 20, 40], ['most', 40, 20]]
    """
    queries = _checked_queries(queries)
    masks = _group_masks(embedding_cache, groups)
    cells = {} if cells is None else cells
    n_users = len(embedding_cache.ids)
    rows = []
    frame = None
    for row, query in enumerate(queries):
        keys = {name: (query, np.packbits(inside).tobytes()) for name, inside in masks.items()}
        # read them first: a full cache may evict some of them later
        known = {name: cells[key] for name, key in keys.items() if key in cells}
        missing = [name for name in masks if name not in known]
        if missing:
            for stage, done, _ in embedding_cache.embed("", query):
                yield MatrixProgress(stage, row, done, frame)
            yield MatrixProgress("scores", row, n_users - 1, frame)
            z = embedding_cache.embeddings[query]
            empty = embedding_cache.embeddings[""]
            moved = residual_shift(l2_normalize(empty), l2_normalize(z))
            ranking = embedding_cache.engine.score(embedding_cache.cache, query)
            rank = ranking["score"].rank().to_numpy()  # ties share their mean rank
            for name in missing:
                known[name] = _measure_cell(z, rank, moved, masks[name])
                cells[keys[name]] = known[name]
        for name in masks:
            rows.append({"query": query, "group": name, **known[name]})
        frame = _matrix_frame(rows)
        yield MatrixProgress("row", row, n_users, frame)
    yield frame


def _checked_queries(queries: Sequence[str]) -> list[str]:
    """Return the distinct questions; raise ValueError if there is none or an empty one."""
    queries = list(dict.fromkeys(str(query).strip() for query in queries))
    if not queries or "" in queries:
        sizes = f"Found {count(len(queries), 'question')}, {queries.count('')} of them empty"
        raise ValueError(f"{sizes}. Write at least one, and none empty.")
    return queries


def _group_masks(
    embedding_cache: EmbeddingCache, groups: Mapping[str, Iterable[str]]
) -> dict[str, UserMask]:
    """Return the mask of each group by name; raise an error that names the group at fault."""
    masks = {}
    for name, ids in groups.items():
        try:
            masks[str(name)] = group_mask(embedding_cache, ids)
        except (KeyError, ValueError) as error:
            raise type(error)(f"Group {str(name)!r}: {error.args[0]}") from error
    if not masks:
        unit = plural(embedding_cache.cache.unit)
        raise ValueError(f"Found 0 groups; at least 1 is required. Name some {unit}.")
    return masks


def default_groups(users: Users) -> dict[str, tuple[str, ...]]:
    """Make one group per label; without labels, per binary fact; without these, per modality.

    A group holds the users with the label or fact, or with the largest shares of the modality.

    Args:
        users: The users.

    Returns:
        Ids by name of the group, at most 10 groups; empty if none has enough users.

    Example:
        >>> {name: len(ids) for name, ids in default_groups(qa.make_sample_users(60)).items()}
        {'Active': ..., 'Concert': ...}
    """
    facts = users.tabular
    is_binary = (facts.isin([0, 1]) | facts.isna()).all()
    counts = users.modality_counts()
    shares = counts.div(counts.sum(axis=1), axis=0)
    shares = shares.loc[:, shares.nunique() > 1].add_prefix("much ")
    has_much = shares.rank(pct=True, method="min") > 1 - TOP_SHARE
    for table in (users.labels == 1, facts.loc[:, is_binary] == 1, has_much):
        n_inside = table.sum()
        n_smaller = np.minimum(n_inside, len(users) - n_inside)
        table = table.loc[:, n_smaller >= MIN_GROUP_SIZE].iloc[:, :MAX_GROUPS]
        groups = {}
        for name, inside in table.items():
            groups[str(name)] = tuple(table.index[inside].astype(str))
        if groups:
            return groups
    return {}


def _measure_cell(z: EmbeddingRows, rank: UserFloats, moved: UserFloats, inside: UserMask) -> dict:
    """Measure one group, and random groups of its size, which are the same for every question.

    Keys with `random_` are of the random groups: AUCs, distances of the yes score from 0.5, and
    absolute logarithms of the ratio.
    """
    n_users = len(inside)
    n_group = int(inside.sum())
    groups, folds = random_groups(inside)
    aucs = nearest_mean_aucs(z, groups, folds)
    rows_inside = np.nonzero(groups)[1].reshape(-1, n_group)
    rows_outside = np.nonzero(~groups)[1].reshape(-1, n_users - n_group)
    yes_score = auc_of_ranks(rank[rows_inside].sum(1), n_group, n_users)
    shift = np.maximum(np.median(moved[rows_inside], axis=1), 1e-9)
    shift_rest = np.maximum(np.median(moved[rows_outside], axis=1), 1e-9)
    return {
        "n": n_group,
        "n_rest": n_users - n_group,
        "aucs": aucs[:, 0],
        "yes_score": float(yes_score[0]),
        "shift": float(shift[0]),
        "shift_rest": float(shift_rest[0]),
        "random_auc": aucs[:, 1:].mean(0),
        "random_yes_score": np.abs(yes_score[1:] - 0.5),
        "random_ratio": np.abs(np.log(shift[1:] / shift_rest[1:])),
    }


def _matrix_frame(rows: list[dict]) -> pd.DataFrame:
    """Build the frame of the results so far, with the chance levels for these questions."""
    frame = pd.DataFrame(rows)
    frame = frame.assign(**auc_columns(np.stack(frame["aucs"]), FOLDS))
    yes_score = frame["yes_score"]
    yes_score_chance = _chance_levels(frame, "random_yes_score")
    ratio = frame["shift"] / frame["shift_rest"]
    ratio_chance = np.exp(_chance_levels(frame, "random_ratio"))
    frame["ratio"] = ratio
    frame["chance"] = _chance_levels(frame, "random_auc")
    frame["yes_score_chance"] = yes_score_chance
    frame["ratio_chance"] = ratio_chance
    frame["beyond_chance"] = frame["auc"] > frame["chance"]
    frame["yes_score_beyond"] = (yes_score - 0.5).abs() > yes_score_chance
    frame["ratio_beyond"] = np.abs(np.log(ratio)) > np.log(ratio_chance)
    return frame.drop(columns=["aucs", "random_auc", "random_yes_score", "random_ratio"])


def _chance_levels(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Return for each row the level that the best question exceeds in 5 % of the random groups."""
    levels = {}
    for group, values in frame.groupby("group")[measure]:
        best_of_random = np.fmax.reduce(list(values))
        levels[group] = float(np.quantile(best_of_random, CHANCE_QUANTILE))
    return frame["group"].map(levels)
