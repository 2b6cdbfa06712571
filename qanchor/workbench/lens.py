"""A typed question answered in frames: where every user stands, who moved beyond what rewording does, and a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from qanchor.analysis.projection import joint_projection
from qanchor.analysis.shift import MAX_EXACT_USERS, embedding_shift, noise_floor, provenance
from qanchor.data.users import Users
from qanchor.evaluation.backtest import iter_backtest
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.inference.ranking import iter_warm_up, label_free_scores, novelty_warning
from qanchor.useru.suggestions import suggest_queries
from qanchor.utils.arrays import LRUCache
from qanchor.workbench.messages import projection_caption, shift_summary

# Rewordings that leave the question as it was: what they move is the noise floor.
PARAPHRASES = ("{} Please answer.", "Tell me: {}", "A question: {}", "I would like to know: {}", "{} What do you think?")
PARAPHRASE_USERS = 256  # users or so whom the rewordings are asked of, of every length: twice as many as dimensions
MAX_CACHED_QUERIES = 160  # queries whose embeddings are kept, the newest: 164 MB of 2,000 users; a bank of 72 questions fits in
MAX_CACHED_EMBEDDINGS = 4_000_000  # embeddings kept at most, 2 GB of 128 numbers: 40 queries of 100,000 users


class LensBackend:
    """Answer typed queries with frames: where every user stands, who moved, and a sentence that says so.

    Calling it gives an iterator of updates; closing the iterator cancels the work. The newest
    embeddings are kept by query (`kept`), and so are noise floors (`floors`). `lean` says who is nearest to a yes, and
    `look_back` how often such an order was right, as `qa.backtest` does.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> engine = qa.Engine(model)
        >>> *_, last = qa.LensBackend(engine, engine.prefill(users), users, method="pca")("Will this user travel soon?")
        >>> list(last["points"].columns)
        ['user', 'query', 'x', 'y', 'trust']
    """

    def __init__(
        self,
        engine: Engine,
        cache: PrefixCache,
        users: Users,
        *,
        start: str = "",
        method: str | None = None,
        seed: int = 0,
    ):
        cache = replace(cache, unit=users.unit)  # the users may have been given a name since they were read
        self.engine, self.cache, self.ids, self.start, self.seed = engine, cache, cache.ids, start, seed
        self.many = len(cache) > MAX_EXACT_USERS
        self.method = method or ("pca" if self.many else "umap")
        self.queries, self.unit = list(suggest_queries(users)), cache.unit
        self.look_back = partial(iter_backtest, engine, users)  # whether such a ranking was right before
        self.facts = partial(provenance, engine.model.run, seed, unit=cache.unit)  # of a shift: what a claim card says of it
        self.kept, self.floors = (
            LRUCache(min(MAX_CACHED_QUERIES, max(8, MAX_CACHED_EMBEDDINGS // len(cache)))),
            LRUCache(MAX_CACHED_QUERIES),
        )
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
            shift = embedding_shift(self.kept[previous], self.kept[query], self.ids, previous, query, floor)
            sentence = shift_summary(shift, self.cache.unit, len(PARAPHRASES))
        doubt = novelty_warning(self.engine.model, query, self.cache.unit) if query else ""

        if pca is not None:
            yield self._update(sentence, pca, shift) | {"warning": doubt}
        if pca is None or self.method != "pca":
            yield self._update(sentence, self._draw(self.method, previous, query), shift) | {"warning": doubt}

    def lean(self, query: str) -> Iterator[pd.DataFrame | None]:
        """Rank the users of a query that was asked by how near they are to a yes: yields None while it reads, then the verdict.

        The verdict is that of `Engine.rank`, in the order of the users. Close the iterator to stop.
        """
        whom = (self.cache.unit, self.cache.horizon_days)
        yield from (None for _ in iter_warm_up(self.engine.model, query, *whom))
        yield from (None for _ in self.embed(query))
        yield label_free_scores(self.engine.model, self.ids, query, self.kept[query], *whom)

    def answer(self, user: str, query: str) -> str:
        """Say the graded answer that one user's anchor is nearest to; the question about everything is answered freely."""
        list(self.embed(query))
        anchor = self.kept[query][[self.ids.index(str(user))]]
        says = label_free_scores(self.engine.model, [user], query, anchor, self.cache.unit, self.cache.horizon_days)["says"][0]
        return says or self.engine.generate(self.cache, str(user), query)

    def embed(self, query: str) -> Iterator[dict]:
        """Ask every user, unless that is kept: yields progress, then `kept[query]` is there."""
        if query in self.kept:
            self.kept.move_to_end(query)  # it must not be let go for the one it is compared with
            return
        out, done = np.zeros((len(self.ids), self.engine.model.config.embedding_dim), np.float32), 0
        for rows, z in self.engine.iter_embed(self.cache, [query]):
            out[rows] = z[:, 0]
            done += len(rows)
            yield self._update(f"Asked {done:,} of {len(self.ids):,} {self.cache.unit}s ...", done=done)
        self.kept[query] = out  # only whole results are kept: a cancelled query leaves nothing behind

    def floor(self, query: str) -> float:
        """Measure the noise floor of a query that is kept: what its rewordings move."""
        if query not in self.floors:
            groups = self.cache.groups[:: max(1, round(len(self.ids) / PARAPHRASE_USERS))]
            rows = np.concatenate([g.rows for g in groups])
            texts = [p.format(query) for p in PARAPHRASES]
            z = np.concatenate([z for _, z in self.engine.iter_embed(PrefixCache(self.ids, "", groups=groups), texts)])
            self.floors[query] = noise_floor(self.kept[query][rows], [z[:, k] for k in range(len(texts))])
        return self.floors[query]

    def _draw(self, method: str, previous: str, query: str) -> pd.DataFrame:
        """Draw both queries on one map that lies as the last of its method did, the first UMAP as the PCA."""
        last = self._maps.get(method, self._maps.get("pca"))
        pair = (self.kept[previous], self.kept[query])
        self._maps[method] = joint_projection(*pair, self.ids, (previous, query), self.seed, method, last)
        return self._maps[method]

    def _update(self, sentence: str, points=None, shift=None, done: int | None = None) -> dict:
        total, caption = len(self.ids), "" if points is None else projection_caption(points, self.cache.unit)
        told = {"done": total if done is None else done, "total": total, "sentence": sentence, "caption": caption}
        return told | {"points": points, "shift": shift}
