"""A typed question answered in frames: where every user stands, who moved beyond what rewording does, and a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from . import maps
from .cache import Cache, Recent
from .hindsight import look_back
from .measures import topic_rates
from .pairs import SUMMARY_QUERY
from .schema import Users
from .topics import TOPICS, by_name
from .verdict import judge, prepare, warning

# Rewordings that leave the question as it was: what they move is the noise floor.
PARAPHRASES = ("{} Please answer.", "Tell me: {}", "A question: {}", "I would like to know: {}", "{} What do you think?")
BEHAVIOUR = ("Will this {} stop coming?", "Is this {} price-conscious?", "Is this {} here more than before?")
SUGGESTED = {  # asked first, where the users' events speak of it
    "travel": "Will this {} travel soon?",
    "baby": "Does this {} have a baby?",
    "takeout": "Will this {} order takeout next month?",
}
GENRES = ("cinema", "action", "comedy", "scifi")  # of books as of films, but asked about as films
LOOKED_AT, TEXTS = 300, 1_000  # users and texts at most that say what may be asked
REWORDED = 256  # users or so whom the rewordings are asked of, of every length: twice as many as dimensions
REMEMBERED = 160  # queries whose embeddings are kept, the newest: 164 MB of 2,000 users; a bank of 72 questions fits in
HELD = 4_000_000  # embeddings kept at most, 2 GB of 128 numbers: 40 queries of 100,000 users


class Asker:
    """Answer typed queries with frames: where every user stands, who moved, and a sentence that says so.

    Made by `engine.asker(cache)`. Calling it gives an iterator of updates; closing the iterator cancels the work. The newest
    embeddings are kept by query (`kept`), and so are noise floors (`floors`). `lean` says who is nearest to a yes, and
    `look_back` (None without `users`) how often such an order was right, as `qa.hindsight` does.

    Example:
        >>> users = qa.make_world(40)
        >>> model = qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))
        >>> engine = qa.Engine(model)
        >>> *_, last = engine.asker(engine.prefill(users), method="pca")("Will this user travel soon?")
        >>> list(last["points"].columns)
        ['user', 'query', 'x', 'y', 'trust']
    """

    def __init__(
        self, engine, cache: Cache, start: str = "", method: str | None = None, seed: int = 0, users: Users | None = None
    ):
        if users is not None and users.unit != cache.unit:  # named since they were read
            cache = replace(cache, unit=users.unit, queries=suggestions(users))
        self.engine, self.cache, self.ids, self.start, self.seed = engine, cache, cache.ids, start, seed
        self.many = len(cache) > maps.MANY
        self.method = method or ("pca" if self.many else "umap")
        self.queries, self.unit = list(cache.queries), cache.unit
        self.look_back = partial(look_back, engine, users) if users is not None else None  # whether an order was right before
        self.facts = partial(maps.facts, engine.model.run, seed, unit=cache.unit)  # of a shift: what a claim card says of it
        self.kept, self.floors = Recent(min(REMEMBERED, max(8, HELD // len(cache)))), Recent(REMEMBERED)
        self._maps: dict[str, pd.DataFrame] = {}  # the last of each method

    def __call__(self, query: str, previous: str | None = None) -> Iterator[dict]:
        """Ask; each update has done, total, points, shift, sentence, caption, and the last one has them all filled."""
        query, previous = query.strip(), self.start if previous is None else previous
        yield from self.embed(query)
        yield from self.embed(previous)

        pca = self._draw("pca", previous, query) if self.many or not self._maps else None  # at once; the first UMAP compiles
        if self.many:  # who moved takes longer: the map comes first
            yield self._update("", pca)

        shift, sentence = None, f"{len(self.ids):,} {self.cache.unit}s, before anything is asked."
        if query != previous:
            yield self._update("Measuring what rewording alone does ...")
            floor = self.floor(query)
            shift = maps.shift_frame(self.kept[previous], self.kept[query], self.ids, previous, query, floor)
            sentence = maps.sentence(shift, self.cache.unit, len(PARAPHRASES))
        doubt = warning(self.engine.model, query, self.cache.unit) if query else ""

        if pca is not None:
            yield self._update(sentence, pca, shift) | {"warning": doubt}
        if pca is None or self.method != "pca":
            yield self._update(sentence, self._draw(self.method, previous, query), shift) | {"warning": doubt}

    def lean(self, query: str) -> Iterator[pd.DataFrame | None]:
        """Rank the users of a query that was asked by how near they are to a yes: yields None while it reads, then the verdict.

        The verdict is that of `Engine.verdict`, in the order of the users. Close the iterator to stop.
        """
        whom = (self.cache.unit, self.cache.horizon_days)
        yield from (None for _ in prepare(self.engine.model, query, *whom))
        yield from (None for _ in self.embed(query))
        yield judge(self.engine.model, self.ids, query, self.kept[query], *whom)

    def answer(self, user: str, query: str) -> str:
        """Say the graded answer that one user's anchor is nearest to; the question about everything is answered freely."""
        list(self.embed(query))
        anchor = self.kept[query][[self.ids.index(str(user))]]
        says = judge(self.engine.model, [user], query, anchor, self.cache.unit, self.cache.horizon_days)["says"][0]
        return says or self.engine.answer(self.cache, str(user), query)

    def embed(self, query: str) -> Iterator[dict]:
        """Ask every user, unless that is kept: yields progress, then `kept[query]` is there."""
        if query in self.kept:
            self.kept.move_to_end(query)  # it must not be let go for the one it is compared with
            return
        out, done = np.zeros((len(self.ids), self.engine.model.config.dim), np.float32), 0
        for rows, z in self.engine.stream(self.cache, [query]):
            out[rows] = z[:, 0]
            done += len(rows)
            yield self._update(f"Asked {done:,} of {len(self.ids):,} {self.cache.unit}s ...", done=done)
        self.kept[query] = out  # only whole results are kept: a cancelled query leaves nothing behind

    def floor(self, query: str) -> float:
        """Measure the noise floor of a query that is kept: what its rewordings move."""
        if query not in self.floors:
            groups = self.cache.groups[:: max(1, round(len(self.ids) / REWORDED))]
            rows = np.concatenate([g.rows for g in groups])
            texts = [p.format(query) for p in PARAPHRASES]
            z = np.concatenate([z for _, z in self.engine.stream(Cache(self.ids, "", groups=groups), texts)])
            self.floors[query] = maps.noise_floor(self.kept[query][rows], [z[:, k] for k in range(len(texts))])
        return self.floors[query]

    def _draw(self, method: str, previous: str, query: str) -> pd.DataFrame:
        """Draw both queries on one map that lies as the last of its method did, the first UMAP as the PCA."""
        last = self._maps.get(method, self._maps.get("pca"))
        pair = (self.kept[previous], self.kept[query])
        self._maps[method] = maps.joint_map(*pair, self.ids, (previous, query), self.seed, method, last)
        return self._maps[method]

    def _update(self, sentence: str, points=None, shift=None, done: int | None = None) -> dict:
        total, caption = len(self.ids), "" if points is None else maps.caption(points, self.cache.unit)
        told = {"done": total if done is None else done, "total": total, "sentence": sentence, "caption": caption}
        return told | {"points": points, "shift": shift}


def suggestions(users: Users) -> tuple[str, ...]:
    """Suggest six questions that fit these users: of their behaviour, and of what their own events speak of.

    Example:
        >>> suggestions(qa.make_world(40))[0]
        'Will this user travel soon?'
    """
    share = topic_rates(users, LOOKED_AT, TEXTS)
    much = pd.Series(np.sqrt((share**2).mean(0)), [topic.name for topic in TOPICS])  # of what many do, or some do much of
    if much["learning"] >= much["cinema"]:  # stories are read here
        much[list(GENRES)] = 0
    much = much[much > 0.04 * much.max()].sort_values(ascending=False, kind="stable")
    order = list(dict.fromkeys([*(name for name in SUGGESTED if name in much), *much.index]))
    first = {by_name(name).domain: name for name in reversed(order)}
    order.sort(key=lambda name: first[by_name(name).domain] != name)  # a domain's others come last
    asked = [SUGGESTED.get(name, f"Will this {{}} {by_name(name).does} next month?") for name in order[:3]]
    behaviour = BEHAVIOUR[:2] if users.numbers else BEHAVIOUR[::2]
    return tuple(q.format(users.unit) for q in (*asked[:1], *behaviour, *asked[1:], SUMMARY_QUERY))
