"""A deck of questions against groups of users: which question tells which group, who leans to yes, and who shifts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from qanchor.analysis.group_queries import corrected_half_width, nearest_mean_aucs, question_bank, random_groups
from qanchor.analysis.shift import residual_shift
from qanchor.data.export import MIN_GROUP_SIZE, membership_mask
from qanchor.data.users import Users
from qanchor.inference.ranking import label_free_scores
from qanchor.useru.behavior import topic_rates
from qanchor.useru.topics import TOPICS
from qanchor.utils.arrays import LRUCache, l2_normalize
from qanchor.workbench.lens import LensBackend
from qanchor.workbench.messages import CHANCE_NOTE, MEASURE_NOTES, _count, matrix_summary

MAX_CACHED_CELLS = 2_000  # results that a deck keeps, the newest: 6 kB each, and an eighth of a byte a user
RANDOM_GROUPS = 200  # random groups behind each chance line
MAX_QUERIES, MAX_GROUPS = 8, 10  # questions and groups that are taken when none are named
TOP_SHARE = 0.25  # of the users are the group of a modality: those of whose events it makes the largest share


@dataclass(frozen=True)
class MatrixCell:
    """Hold what one question does to one group, and to as many random groups as were drawn (the last three)."""

    aucs: Float[np.ndarray, " fold"]
    lean: float
    shift: float
    rest: float
    auc_luck: Float[np.ndarray, " draw"]
    lean_luck: Float[np.ndarray, " draw"]  # distance from .5
    ratio_luck: Float[np.ndarray, " draw"]  # absolute logarithm


def query_group_matrix(
    ask: LensBackend,
    queries: Sequence[str],
    groups: Mapping[str, Iterable[str]],
    *,
    cells: MutableMapping[tuple, MatrixCell] | None = None,
    floors: bool = False,
    draws: int = RANDOM_GROUPS,
    seed: int = 0,
) -> Iterator[dict]:
    """Put a deck of questions to all users, and say what each does to each group: yields progress, row by row.

    ask       `LensBackend(engine, cache, users)`: its embeddings are read and filled, so what was asked before costs no model time.
    groups    ids by name; at least 10 users must be in each, and outside it.
    cells     results by question and group, read and filled: a further question costs its own row, a further group its column.
    floors    measure each question's noise floor, too: five rewordings, several times the work. Known ones are always told.
    Each update has done, total, sentence, caption, reads (how to read each measure) and frame: the rows so far, None before the
    first. Close the iterator to cancel. One row a question and group: query, group, n, n_rest, and three measures, each with
    what the best of all these questions stays below in 95 % of `draws` random groups of that size, and whether it is beyond:

    auc, auc_low, auc_high, chance, beyond_chance   how well the question tells the group, the very numbers of `rank_queries_for_group`.
    lean, lean_chance, lean_beyond                  how often a user of the group leans more to yes (the score of
                `Engine.rank`) than one of the others; the line is a distance from .5. NaN: the question is of no topic.
    shift, shift_rest, noise_floor, ratio, ratio_chance, ratio_beyond   median residual from "nothing asked", of the group and
                of the others; ratio is the one by the other; the line is a factor, up or down.

    KeyError for an unknown id, ValueError for a group too small or a question that is empty, before anything is asked.

    Source: the maximum over all tests as the null, Westfall and Young, Resampling-Based Multiple Testing (1993).

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> ask, groups = qa.LensBackend(engine, engine.prefill(users), users), {"some": users.ids[:20], "most": users.ids[20:]}
        >>> *_, last = query_group_matrix(ask, ["Will this user travel?"], groups, draws=20)
        >>> last["frame"][["group", "n", "n_rest"]].to_numpy().tolist()
        [['some', 20, 40], ['most', 40, 20]]
    """
    queries = list(dict.fromkeys(str(query).strip() for query in queries))
    if not queries or not all(queries):
        raise ValueError(f"{len(queries)} questions, {queries.count('')} of them empty: write at least one, and none empty")
    inside = {str(name): _group_mask(ask, str(name), ids) for name, ids in groups.items()}
    if not inside:
        raise ValueError(f"0 groups, at least 1 is needed: name some {ask.cache.unit}s")
    return _iter_rows(ask, queries, inside, {} if cells is None else cells, floors, draws, seed)


def _iter_rows(
    ask: LensBackend, queries: list[str], inside: dict, cells: MutableMapping, floors: bool, draws: int, seed: int
) -> Iterator[dict]:
    total, unit, found = len(ask.ids), ask.cache.unit, {}
    told = {
        "total": total * len(queries),
        "caption": CHANCE_NOTE.format(questions=_count(len(queries))),
        "reads": MEASURE_NOTES,
    }
    if total < 2 * ask.engine.model.config.embedding_dim:
        told["caption"] += f" {total:,} {unit}s are few: the common rotation that is taken out hides much of a shift."

    def update(done: int, words: str) -> dict:
        return told | {"done": done, "sentence": words, "frame": _matrix_frame(found, ask.floors)}

    for place, query in enumerate(queries):
        keys = {name: (query, np.packbits(group).tobytes(), draws, seed) for name, group in inside.items()}
        which, end = f"question {place + 1} of {len(queries)}", total * (place + 1)
        row = {name: cells[key] for name, key in keys.items() if key in cells}  # a store may let go of some before the end
        if new := [name for name in keys if name not in row]:
            for step in (step for text in ("", query) for step in ask.embed(text)):
                yield update(total * place + step["done"], step["sentence"].replace(" ...", f", {which} ..."))
            yield update(end - 1, f"Weighing yes against no, {which} ...")
            each = _user_scores(ask, query)
            row |= {name: _measure_cell(ask.kept[query], *each, inside[name], draws, seed) for name in new}
            cells.update((keys[name], row[name]) for name in new)
        if floors and query not in ask.floors:
            yield update(end - 1, f"Measuring what rewording alone does, {which} ...")
            ask.floor(query)
        found |= {(query, name): (inside[name], row[name]) for name in keys}
        yield update(end, f"Asked {which} ...")
    last = update(told["total"], "")
    yield last | {"sentence": matrix_summary(last["frame"], unit)}


def default_queries(users: Users, many: int = MAX_QUERIES) -> list[str]:
    """Choose questions of the bank for these users: one a domain of life, of which about half of the users have events.

    Example:
        >>> len(default_queries(qa.make_sample_users(60), many=5))
        5
    """
    text = {topic: query for query, topic in question_bank(users.unit).items()}
    order = np.argsort(np.abs((topic_rates(users) > 0).mean(0) - 0.5), kind="stable")
    best = {TOPICS[place].domain: TOPICS[place].name for place in reversed(order)}  # the last that enters is the nearest
    first = [TOPICS[place].name for place in order]
    return [text[name] for name in sorted(best.values(), key=first.index)[:many]]


def default_groups(users: Users, many: int = MAX_GROUPS, least: int = MIN_GROUP_SIZE) -> dict[str, tuple[str, ...]]:
    """Make groups of what is known: who has each label, else each fact of 0 and 1, else much of each modality.

    Groups of fewer than `least` users, inside or outside, are left out.

    Example:
        >>> {name: len(ids) for name, ids in default_groups(qa.make_sample_users(60), many=2).items()}
        {'Active': ..., 'Concert': ...}
    """
    facts = users.tabular.loc[:, users.tabular.isin([0, 1]).where(users.tabular.notna(), True).all()]
    past = users.history()
    shares = pd.crosstab(past["user"], past["modality"], normalize="index").reindex(list(users.ids))
    much = (shares.rank(pct=True, method="min") > 1 - TOP_SHARE).loc[:, shares.nunique() > 1].add_prefix("much ")
    for table in (users.labels == 1, facts == 1, much):
        table = table.loc[:, (table.sum() >= least) & ((~table).sum() >= least)].iloc[:, :many]
        if len(table.columns):
            return {str(name): tuple(table.index[table[name]].astype(str)) for name in table}
    return {}


class QueryMatrixBackend:
    """Hold a deck of questions and groups of some users: the callable that a `ShiftMatrix` asks.

    ask, users   of the same users: `LensBackend(engine, cache, users)`, whose store is shared, and who they are.
    `queries` and `groups` are what it opens with (`default_queries`, `default_groups`, or your own); `deck(queries, groups)` gives
    the updates of `query_group_matrix`. The newest results are kept.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> deck = QueryMatrixBackend(qa.LensBackend(engine, engine.prefill(users), users), users)
        >>> *_, last = deck(deck.queries[:1], {"some": users.ids[:20]})
        >>> last["frame"]["query"].tolist() == deck.queries[:1]
        True
    """

    def __init__(
        self,
        ask: LensBackend,
        users: Users,
        queries: Sequence[str] | None = None,
        groups: Mapping[str, Iterable[str]] | None = None,
        seed: int = 0,
    ):
        self.ask, self.ids, self.unit, self.least, self.seed = ask, users.ids, users.unit, MIN_GROUP_SIZE, seed
        self.queries = default_queries(users) if queries is None else list(queries)
        self.groups = default_groups(users) if groups is None else {name: tuple(ids) for name, ids in groups.items()}
        self._cells = LRUCache(MAX_CACHED_CELLS)

    def __call__(self, queries: Sequence[str], groups: Mapping[str, Iterable[str]]) -> Iterator[dict]:
        """Ask, row by row; see `query_group_matrix`."""
        return query_group_matrix(self.ask, queries, groups, cells=self._cells, seed=self.seed)


def _group_mask(ask: LensBackend, name: str, ids: Iterable[str]) -> Bool[np.ndarray, " user"]:
    try:
        inside = membership_mask(ask.ids, ids)
    except (KeyError, ValueError) as error:
        raise type(error)(f"group {name!r}: {error.args[0]}") from error
    few, side = min((int(inside.sum()), "in"), (int((~inside).sum()), "outside"))
    if few < MIN_GROUP_SIZE:
        more = "more" if side == "in" else "fewer"
        raise ValueError(
            f"group {name!r}: {_count(few, ask.cache.unit)} {side} it, at least {MIN_GROUP_SIZE} are needed: choose {more}"
        )
    return inside


def _user_scores(ask: LensBackend, query: str) -> tuple[Float[np.ndarray, " user"], Float[np.ndarray, " user"]]:
    """Say of each user how far it leans to yes, as a rank, and how far it moved from where it stands when nothing is asked."""
    from scipy.stats import rankdata

    z, cache = ask.kept[query], ask.cache
    score = label_free_scores(ask.engine.model, ask.ids, query, z, cache.unit, cache.horizon_days)["score"]
    moved = residual_shift(l2_normalize(ask.kept[""]), l2_normalize(z))
    return rankdata(score, nan_policy="propagate"), moved


def _measure_cell(
    z: Float[np.ndarray, "user dim"],
    rank: Float[np.ndarray, " user"],
    moved: Float[np.ndarray, " user"],
    inside: Bool[np.ndarray, " user"],
    draws: int,
    seed: int,
) -> MatrixCell:
    """Measure one group, and random groups of its size (the same ones under every question)."""
    folds = random_groups(inside, draws, np.random.default_rng(seed))
    aucs, group, n = np.concatenate([nearest_mean_aucs(z, some) for some in folds]), folds[0].group, int(inside.sum())
    ours, theirs = (np.nonzero(side)[1].reshape(len(group), -1) for side in (group, ~group))
    lean = (rank[ours].sum(1) - n * (n + 1) / 2) / (n * (len(rank) - n))
    here, there = (np.maximum(np.median(moved[side], axis=1), 1e-9) for side in (ours, theirs))
    luck = aucs[:, 1:].mean(0), np.abs(lean[1:] - 0.5), np.abs(np.log(here[1:] / there[1:]))
    return MatrixCell(aucs[:, 0], float(lean[0]), float(here[0]), float(there[0]), *luck)


def _matrix_frame(
    found: Mapping[tuple[str, str], tuple[np.ndarray, MatrixCell]], floors: Mapping[str, float]
) -> pd.DataFrame | None:
    """Lay out what was found so far; the chance lines are those of the questions so far."""
    if not found:
        return None
    frame = pd.DataFrame(list(found), columns=["query", "group"])
    cells = [cell for _, cell in found.values()]
    frame["n"] = [int(group.sum()) for group, _ in found.values()]
    frame["n_rest"] = [int((~group).sum()) for group, _ in found.values()]
    aucs = np.array([cell.aucs for cell in cells])
    mean, reach = aucs.mean(1), corrected_half_width(aucs)
    frame = frame.assign(auc=mean, auc_low=np.maximum(0, mean - reach), auc_high=np.minimum(1, mean + reach))
    for name in ("lean", "shift", "rest"):
        frame["shift_rest" if name == "rest" else name] = [getattr(cell, name) for cell in cells]
    frame["noise_floor"] = frame["query"].map(floors).astype(float)
    frame["ratio"] = frame["shift"] / frame["shift_rest"]
    for line, luck in (("chance", "auc_luck"), ("lean_chance", "lean_luck"), ("ratio_chance", "ratio_luck")):
        best = (
            pd.Series([getattr(cell, luck) for cell in cells]).groupby(frame["group"]).agg(lambda rows: np.fmax.reduce([*rows]))
        )
        frame[line] = frame["group"].map(best.map(lambda luck: float(np.quantile(luck, 0.95))))
    frame["ratio_chance"] = np.exp(frame["ratio_chance"])
    frame["beyond_chance"] = frame["auc"] > frame["chance"]
    frame["lean_beyond"] = (frame["lean"] - 0.5).abs() > frame["lean_chance"]
    frame["ratio_beyond"] = np.abs(np.log(frame["ratio"])) > np.log(frame["ratio_chance"])
    return frame
