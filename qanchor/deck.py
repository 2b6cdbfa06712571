"""A deck of questions against groups of users: which question tells which group, who leans to yes, and who shifts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from . import maps
from .asker import Asker
from .cache import Recent
from .explain import FOLDS, SEEDS, group_aucs, half_interval, question_bank, random_groups
from .groups import LEAST, members
from .measures import topic_rates
from .schema import Users
from .topics import TOPICS
from .verdict import judge

CELLS = 2_000  # results that a deck keeps, the newest: 6 kB each, and an eighth of a byte a user
DRAWS = 200  # random groups behind each chance line
CARDS, COLUMNS = 8, 10  # questions and groups that are taken when none are named
MUCH = 0.25  # of the users are the group of a modality: those of whose events it makes the largest share
READS = {
    "auc": f"AUC out of fold ({SEEDS} x {FOLDS} folds, nearest mean): .5 is a coin. A high one says that the question sees "
    "these users as alike and unlike the others; not what they answer, nor why.",
    "lean": "How often one of the group leans more to yes than one of the others: .5 is a coin, below it the others do. No "
    "label is used; it compares, and is no share of users who say yes.",
    "ratio": "How far the group moves from where it stands when nothing is asked, as a multiple of how far the others do "
    "(medians of the residual). More says that the question brings out what its general portrait does not hold; not yes or no.",
}
LUCK = "Colour: beyond what the best of {questions} reaches in 1 of 20 random groups of that size, so of 20 groups without "
LUCK += "meaning about one would be coloured. The others are all who are not in the group. A group made from what the model "
LUCK += "reads, or drawn on a map, is told by that: no news."


@dataclass(frozen=True)
class Cell:
    """Hold what one question does to one group, and to as many random groups as were drawn (the last three)."""

    aucs: Float[np.ndarray, " fold"]
    lean: float
    shift: float
    rest: float
    auc_luck: Float[np.ndarray, " draw"]
    lean_luck: Float[np.ndarray, " draw"]  # distance from .5
    ratio_luck: Float[np.ndarray, " draw"]  # absolute logarithm


def shift_matrix(
    ask: Asker,
    queries: Sequence[str],
    groups: Mapping[str, Iterable[str]],
    *,
    cells: MutableMapping[tuple, Cell] | None = None,
    floors: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Iterator[dict]:
    """Put a deck of questions to all users, and say what each does to each group: yields progress, row by row.

    ask       `engine.asker(cache)`: its embeddings are read and filled, so what was asked before costs no model time.
    groups    ids by name; at least 10 users must be in each, and outside it.
    cells     results by question and group, read and filled: a further question costs its own row, a further group its column.
    floors    measure each question's noise floor, too: five rewordings, several times the work. Known ones are always told.
    Each update has done, total, sentence, caption, reads (how to read each measure) and frame: the rows so far, None before the
    first. Close the iterator to cancel. One row a question and group: query, group, n, n_rest, and three measures, each with
    what the best of all these questions stays below in 95 % of `draws` random groups of that size, and whether it is beyond:

    auc, auc_low, auc_high, chance, beyond_chance   how well the question tells the group, the very numbers of `explain_group`.
    lean, lean_chance, lean_beyond                  how often a user of the group leans more to yes (the score of
                `Engine.verdict`) than one of the others; the line is a distance from .5. NaN: the question is of no topic.
    shift, shift_rest, noise_floor, ratio, ratio_chance, ratio_beyond   median residual from "nothing asked", of the group and
                of the others; ratio is the one by the other; the line is a factor, up or down.

    KeyError for an unknown id, ValueError for a group too small or a question that is empty, before anything is asked.

    Source: the maximum over all tests as the null, Westfall and Young, Resampling-Based Multiple Testing (1993).

    Example:
        >>> users = qa.make_world(60)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> ask, groups = engine.asker(engine.prefill(users)), {"some": users.ids[:20], "most": users.ids[20:]}
        >>> *_, last = shift_matrix(ask, ["Will this user travel?"], groups, draws=20)
        >>> last["frame"][["group", "n", "n_rest"]].to_numpy().tolist()
        [['some', 20, 40], ['most', 40, 20]]
    """
    queries = list(dict.fromkeys(str(query).strip() for query in queries))
    if not queries or not all(queries):
        raise ValueError(f"{len(queries)} questions, {queries.count('')} of them empty: write at least one, and none empty")
    inside = {str(name): _inside(ask, str(name), ids) for name, ids in groups.items()}
    if not inside:
        raise ValueError(f"0 groups, at least 1 is needed: name some {ask.cache.unit}s")
    return _rows(ask, queries, inside, {} if cells is None else cells, floors, draws, seed)


def _rows(
    ask: Asker, queries: list[str], inside: dict, cells: MutableMapping, floors: bool, draws: int, seed: int
) -> Iterator[dict]:
    total, unit, found = len(ask.ids), ask.cache.unit, {}
    told = {"total": total * len(queries), "caption": LUCK.format(questions=_many(len(queries))), "reads": READS}
    if total < 2 * ask.engine.model.config.dim:
        told["caption"] += f" {total:,} {unit}s are few: the common rotation that is taken out hides much of a shift."

    def update(done: int, words: str) -> dict:
        return told | {"done": done, "sentence": words, "frame": _frame(found, ask.floors)}

    for place, query in enumerate(queries):
        keys = {name: (query, np.packbits(group).tobytes(), draws, seed) for name, group in inside.items()}
        which, end = f"question {place + 1} of {len(queries)}", total * (place + 1)
        row = {name: cells[key] for name, key in keys.items() if key in cells}  # a store may let go of some before the end
        if new := [name for name in keys if name not in row]:
            for step in (step for text in ("", query) for step in ask.embed(text)):
                yield update(total * place + step["done"], step["sentence"].replace(" ...", f", {which} ..."))
            yield update(end - 1, f"Weighing yes against no, {which} ...")
            each = _each_user(ask, query)
            row |= {name: _cell(ask.kept[query], *each, inside[name], draws, seed) for name in new}
            cells.update((keys[name], row[name]) for name in new)
        if floors and query not in ask.floors:
            yield update(end - 1, f"Measuring what rewording alone does, {which} ...")
            ask.floor(query)
        found |= {(query, name): (inside[name], row[name]) for name in keys}
        yield update(end, f"Asked {which} ...")
    last = update(told["total"], "")
    yield last | {"sentence": told_apart(last["frame"], unit)}


def told_apart(frame: pd.DataFrame, unit: str = "user") -> str:
    """Say in words what `shift_matrix` found.

    Example:
        >>> row = {"query": "Why?", "group": "some", "n": 20, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}
        >>> told_apart(pd.DataFrame([row | {"chance": 0.6, "beyond_chance": True}]))
        '1 of 1 cell is told beyond luck. Clearest: “Why?” tells “some” (20 users) from the others, AUC 0.80 (0.70 to 0.90).'
    """
    told = frame[frame["beyond_chance"]]
    if told.empty:
        return f"None of {_many(frame['query'].nunique())} tells any of {_many(frame['group'].nunique(), 'group')} beyond luck."
    top = told.loc[told["auc"].idxmax()]
    words = f"{len(told)} of {_many(len(frame), 'cell')} {'is' if len(told) == 1 else 'are'} told beyond luck. Clearest: "
    words += f"“{top['query']}” tells “{top['group']}” ({_many(int(top['n']), unit)}) from the others, "
    return words + f"AUC {top['auc']:.2f} ({top['auc_low']:.2f} to {top['auc_high']:.2f})."


def default_deck(users: Users, many: int = CARDS) -> list[str]:
    """Choose questions of the bank for these users: one a domain of life, of which about half of the users have events.

    Example:
        >>> len(default_deck(qa.make_world(60), many=5))
        5
    """
    text = {topic: query for query, topic in question_bank(users.unit).items()}
    order = np.argsort(np.abs((topic_rates(users) > 0).mean(0) - 0.5), kind="stable")
    best = {TOPICS[place].domain: TOPICS[place].name for place in reversed(order)}  # the last that enters is the nearest
    first = [TOPICS[place].name for place in order]
    return [text[name] for name in sorted(best.values(), key=first.index)[:many]]


def default_groups(users: Users, many: int = COLUMNS, least: int = LEAST) -> dict[str, tuple[str, ...]]:
    """Make groups of what is known: who has each label, else each fact of 0 and 1, else much of each modality.

    Groups of fewer than `least` users, inside or outside, are left out.

    Example:
        >>> {name: len(ids) for name, ids in default_groups(qa.make_world(60), many=2).items()}
        {'Active': ..., 'Concert': ...}
    """
    facts = users.tabular.loc[:, users.tabular.isin([0, 1]).where(users.tabular.notna(), True).all()]
    past = users.history()
    shares = pd.crosstab(past["user"], past["modality"], normalize="index").reindex(list(users.ids))
    much = (shares.rank(pct=True, method="min") > 1 - MUCH).loc[:, shares.nunique() > 1].add_prefix("much ")
    for table in (users.labels == 1, facts == 1, much):
        table = table.loc[:, (table.sum() >= least) & ((~table).sum() >= least)].iloc[:, :many]
        if len(table.columns):
            return {str(name): tuple(table.index[table[name]].astype(str)) for name in table}
    return {}


class Deck:
    """Hold a deck of questions and groups of some users: the callable that a `ShiftMatrix` asks.

    ask, users   of the same users: `engine.asker(cache)`, whose store is shared, and who they are.
    `queries` and `groups` are what it opens with (`default_deck`, `default_groups`, or your own); `deck(queries, groups)` gives
    the updates of `shift_matrix`. The newest results are kept.

    Example:
        >>> users = qa.make_world(60)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> deck = Deck(engine.asker(engine.prefill(users)), users)
        >>> *_, last = deck(deck.queries[:1], {"some": users.ids[:20]})
        >>> last["frame"]["query"].tolist() == deck.queries[:1]
        True
    """

    def __init__(
        self,
        ask: Asker,
        users: Users,
        queries: Sequence[str] | None = None,
        groups: Mapping[str, Iterable[str]] | None = None,
        seed: int = 0,
    ):
        self.ask, self.ids, self.unit, self.least, self.seed = ask, users.ids, users.unit, LEAST, seed
        self.queries = default_deck(users) if queries is None else list(queries)
        self.groups = default_groups(users) if groups is None else {name: tuple(ids) for name, ids in groups.items()}
        self._cells = Recent(CELLS)

    def __call__(self, queries: Sequence[str], groups: Mapping[str, Iterable[str]]) -> Iterator[dict]:
        """Ask, row by row; see `shift_matrix`."""
        return shift_matrix(self.ask, queries, groups, cells=self._cells, seed=self.seed)


def _inside(ask: Asker, name: str, ids: Iterable[str]) -> Bool[np.ndarray, " user"]:
    try:
        inside = members(ask.ids, ids)
    except (KeyError, ValueError) as error:
        raise type(error)(f"group {name!r}: {error.args[0]}") from error
    few, side = min((int(inside.sum()), "in"), (int((~inside).sum()), "outside"))
    if few < LEAST:
        more = "more" if side == "in" else "fewer"
        raise ValueError(f"group {name!r}: {_many(few, ask.cache.unit)} {side} it, at least {LEAST} are needed: choose {more}")
    return inside


def _each_user(ask: Asker, query: str) -> tuple[Float[np.ndarray, " user"], Float[np.ndarray, " user"]]:
    """Say of each user how far it leans to yes, as a rank, and how far it moved from where it stands when nothing is asked."""
    from scipy.stats import rankdata

    z, cache = ask.kept[query], ask.cache
    score = judge(ask.engine.model, ask.ids, query, z, cache.unit, cache.horizon_days)["score"]
    moved = maps.residuals(maps.unit(ask.kept[""]), maps.unit(z))
    return rankdata(score, nan_policy="propagate"), moved


def _cell(
    z: Float[np.ndarray, "user dim"],
    rank: Float[np.ndarray, " user"],
    moved: Float[np.ndarray, " user"],
    inside: Bool[np.ndarray, " user"],
    draws: int,
    seed: int,
) -> Cell:
    """Measure one group, and random groups of its size (the same ones under every question)."""
    folds = random_groups(inside, draws, np.random.default_rng(seed))
    aucs, group, n = np.concatenate([group_aucs(z, some) for some in folds]), folds[0].group, int(inside.sum())
    ours, theirs = (np.nonzero(side)[1].reshape(len(group), -1) for side in (group, ~group))
    lean = (rank[ours].sum(1) - n * (n + 1) / 2) / (n * (len(rank) - n))
    here, there = (np.maximum(np.median(moved[side], axis=1), 1e-9) for side in (ours, theirs))
    luck = aucs[:, 1:].mean(0), np.abs(lean[1:] - 0.5), np.abs(np.log(here[1:] / there[1:]))
    return Cell(aucs[:, 0], float(lean[0]), float(here[0]), float(there[0]), *luck)


def _frame(found: Mapping[tuple[str, str], tuple[np.ndarray, Cell]], floors: Mapping[str, float]) -> pd.DataFrame | None:
    """Lay out what was found so far; the chance lines are those of the questions so far."""
    if not found:
        return None
    frame = pd.DataFrame(list(found), columns=["query", "group"])
    cells = [cell for _, cell in found.values()]
    frame["n"] = [int(group.sum()) for group, _ in found.values()]
    frame["n_rest"] = [int((~group).sum()) for group, _ in found.values()]
    aucs = np.array([cell.aucs for cell in cells])
    mean, reach = aucs.mean(1), half_interval(aucs)
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


def _many(n: int, word: str = "question") -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"
