"""The back end of the query lens: where every user is on the map, who moved, and who is nearest to
a yes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice

import pandas as pd

from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.projection import compile_umap, joint_projection
from qanchor.analysis.shift import MAX_EXACT_USERS, embedding_shift
from qanchor.data.things import ThingEvents
from qanchor.data.users import Users
from qanchor.evaluation.backtest import backtest
from qanchor.inference.engine import Engine
from qanchor.inference.evidence import Interpretation, interpret, score_weights
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.utils.text import has_words, plural
from qanchor.workbench.messages import (
    BACKTESTING,
    COMPARING,
    PREPARING,
    backtest_summary,
    interpretation_sentence,
    opening_message,
    order_sentence,
    progress_message,
    projection_caption,
    provenance,
    ranking_begins,
    shift_summary,
    unanswerable_note,
)
from qanchor.workbench.updates import Update

# Questions that a question is compared with: by chance 1 user in 20 stands out.
MAX_OTHERS = 19
MIN_OTHERS = 4  # with fewer, too many stand out by chance
SPARE_OTHERS = 2  # take the place of those that mean what is asked
# Users times questions that are embedded for it unasked: about ten seconds, once.
MAX_EMBEDDED_UNASKED = 100_000
WAIT = 0.2  # seconds between two looks whether UMAP is compiled


class LensBackend:
    """Answer typed queries: where every user is, who moved, and who is nearest to a yes.

    Calling it, `lens(query, previous)`, returns an iterator of `Update`; closing the iterator
    cancels the work.

    Attributes: `ids`, `unit`, `units` (its plural), `queries` (suggestions), `method`, `embeddings`
    (the newest, by query), `embedding_cache` (which holds them), and `provenance` (called with
    `shift=`, what a result card says).

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        users: The same users.
        method: Of the map, "umap" or "pca"; default "umap", beyond 20,000 users "pca".
        embedding_cache: A cache that is shared with other back ends; default: a new one.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> backend = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
        >>> *_, last = backend("Will this user come back?")
        >>> list(last.data), list(last.data["ranking"].columns)[:2]
        (['points', 'shift', 'ranking', 'interpretation', 'order', 'meant'], ['user', 'score'])
    """

    def __init__(
        self,
        engine: Engine,
        cache: PrefixCache,
        users: Users,
        *,
        method: str | None = None,
        embedding_cache: EmbeddingCache | None = None,
    ):
        self.engine = engine
        # the users may have been given a name since they were read
        self.cache = replace(cache, tokens=replace(cache.tokens, unit=users.unit))
        self.ids = cache.ids
        self.unit = users.unit
        self.units = plural(users.unit)
        self.queries = list(engine.suggest_queries(users))
        self.provenance = partial(provenance, engine.model.run, unit=users.unit)
        self.embedding_cache = embedding_cache or EmbeddingCache(engine, self.cache)
        self.embeddings = self.embedding_cache.embeddings
        self._suggested = engine.suggest_queries(users, 2 * MAX_OTHERS)
        self._meanings: dict[str, Interpretation] = {}
        # without a language model it takes about a second
        self.backtests_unasked = not engine.model.reader.has_language_model
        self._users = users
        self._has_many_users = len(cache) > MAX_EXACT_USERS
        self.method = method or ("pca" if self._has_many_users else "umap")
        self._maps: dict[str, pd.DataFrame] = {}  # the last map of each method

    def __call__(self, query: str, previous: str | None = None) -> Iterator[Update]:
        """Ask every user a query.

        Args:
            query: The query; the empty one makes the opening map.
            previous: The query to compare with; default the empty one.

        Yields:
            Progress; then updates with `data["points"]` (`user, query, x, y, trust`) and
            `data["shift"]` (see `embedding_shift`); then, for a query that is not empty, updates
            of `rank`. The last update has all of them. Without other questions to compare with
            the maps have no message, and the last update says who ranks first. The first map is a
            PCA, which is there at once; it is replaced last.
        """
        query = query.strip()
        previous = previous or ""
        method = self._quick_method()
        for last in self._map_and_shift(method, query, previous):
            yield last
        if query:
            found = last
            for update in self.rank(query):
                message = update.message
                if update.data["ranking"] is not None and (found.message or found.warning):
                    message = found.message
                data = {**found.data, **update.data}
                last = replace(
                    found, done=update.done, total=update.total, message=message, data=data
                )
                yield last
        if method != self.method:
            yield from self._refine(last, previous, query)

    def rank(self, query: str, without: Collection[str] = ()) -> Iterator[Update]:
        """Rank the users by how near they are to a yes, as `Engine.rank` does, but in the order of
        `ids`.

        Args:
            query: The query.
            without: Labels of things that it does not mean, see `Engine.rank`.

        Yields:
            Updates with `data["ranking"]`: None, and in the last one a frame `user, score, answer`.
            The last one also has two sentences in its data, `interpretation` and `order`, and
            `meant`, records `text, users` of the things that the query means.
        """
        yield Update(0, 1, ranking_begins(self.unit), data={"ranking": None})
        ranking = self.engine.score(self.cache, query, without)
        interpretation = interpretation_sentence(ranking)
        order = order_sentence(ranking, self.unit)
        data = {"ranking": ranking, "interpretation": interpretation, "order": order}
        data["meant"] = ranking.attrs["meant"]
        yield Update(1, 1, f"{interpretation} {order}".strip(), data=data)

    def backtest(self, query: str, without: Collection[str] = ()) -> Iterator[Update]:
        """Measure how often such a ranking was right before, see `qa.backtest`.

        Args:
            query: The query.
            without: As for `rank`.

        Yields:
            Progress; the last update has `data["backtest"]`, a `BacktestResult`, and says it.
        """
        yield Update(0, 1, BACKTESTING)
        result = backtest(self.engine, self._users, query, without)
        yield Update(1, 1, backtest_summary(result), data={"backtest": result})

    @property
    def columns(self) -> pd.DataFrame:
        """What is known of each user beside the events: facts, and labels, which no model reads."""
        facts = self._users.tabular
        labels = self._users.labels
        taken = {name: f"{name} (label)" for name in labels if name in facts}
        return facts.join(labels.rename(columns=taken))

    def find(self, text: str) -> tuple[str, ...]:
        """Return the users who did something before the cut-off whose text has all of some words.

        Args:
            text: The words; case does not matter.
        """
        events = self._users.history()
        did = events.loc[has_words(events["text"], text), "user"]
        return tuple(did.astype(str).unique())

    def answer(self, user: str, query: str) -> str:
        """Return what one user did of what a query means, see `Engine.generate`.

        Args:
            user: The user.
            query: The query.

        Returns:
            The answer; for a query that nothing in the data speaks of, what can be asked instead.
        """
        return self.engine.generate(self.cache, str(user), query) or self._warning(query)

    def timeline(self, user: str, query: str = "") -> pd.DataFrame:
        """Return the events of one user before the cut-off, and which of them a query means.

        Args:
            user: The user.
            query: The query; default the empty one, which means no event.

        Returns:
            One row per event, oldest first: `time, modality, text`, `evidence`, whether the query
            means the event, so that `answer` counts it, and `weight`, by how much the score falls
            without this event and all of the same kind (NaN where the query does not mean the
            event, or means any event). A query that nothing in the data speaks of means no event.

        Raises:
            KeyError: The user is unknown.

        Example:
            >>> users = qa.make_sample_users(60)
            >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
            >>> backend = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
            >>> frame = backend.timeline(users.ids[0], "Will this user come back?")
            >>> list(frame), bool(frame["evidence"].all())  # any event is a return
            (['time', 'modality', 'text', 'evidence', 'weight'], True)
        """
        one = self._users.select([user])
        events = one.history()
        # each event as a user of its own, to learn which things it is of
        own = ThingEvents(replace(one, events=events.assign(user=pd.Categorical(events.index))))
        tokens = self.cache.tokens
        meaning, question = interpret(self.engine.model, tokens, query)
        things = [row for row in meaning.things if tokens.things[row].name in own.index]
        weights = score_weights(self.engine.model, tokens, user, things, question)
        rows = own.rows_of(tokens.things[row].name for row in things)
        weight = pd.Series(own.rows["thing"]).map(dict(zip(rows, weights, strict=True)))
        weight = weight.groupby(own.rows["user"]).sum(min_count=1).reindex(events.index)
        means_any = meaning.answerable and not meaning.things
        evidence = weight.notna() | means_any
        return events[["time", "modality", "text"]].assign(evidence=evidence, weight=weight)

    def _quick_method(self) -> str:
        """Return the method of the map that is drawn first: while UMAP is slow, a PCA."""
        if self.method == "pca" or self._has_many_users:
            return "pca"
        return "pca" if compile_umap().is_alive() or not self._maps else "umap"

    def _refine(self, last: Update, previous: str, query: str) -> Iterator[Update]:
        """Draw the map once more by the slow method, as soon as it is compiled."""
        while compile_umap().is_alive():
            yield Update(last.done, last.total, PREPARING)
            compile_umap().join(WAIT)
        points = self._draw(self.method, previous, query)
        caption = projection_caption(points, self.unit)
        yield replace(last, caption=caption, data={**last.data, "points": points})

    def _map_and_shift(self, method: str, query: str, previous: str) -> Iterator[Update]:
        """Make the maps of two queries and measure who moved."""
        n_users = len(self.ids)
        for _, done, _ in self.embedding_cache.embed(query, previous):
            yield Update(done, n_users, progress_message("Embedded", done, n_users, self.unit))

        points = self._draw(method, previous, query)
        message = "" if query else opening_message(n_users, self.unit)
        warning = self._warning(query)
        yield self._map_update(message, warning, points, None)

        for _ in self.embedding_cache.embed(*self._unasked):
            yield Update(n_users, n_users, COMPARING)
        shift = None
        if query != previous:
            before = self.embeddings[previous]
            after = self.embeddings[query]
            others = [self.embeddings[text] for text in self._other_queries(query, previous)]
            shift = embedding_shift(before, after, self.ids, previous, query, others)
            message = shift_summary(shift, self.unit)
        yield self._map_update(message, warning, points, shift)

    @cached_property
    def _unasked(self) -> list[str]:
        """Suggestions that can be answered, to compare queries with; none if embedding them would
        take long.
        """
        room = self.embeddings.limit - SPARE_OTHERS - 2  # beside the query and the previous one
        many = min(MAX_OTHERS, MAX_EMBEDDED_UNASKED // len(self.ids), room)
        if many < MIN_OTHERS or self.engine.model.reader.has_language_model:
            return []
        answerable = (text for text in self._suggested if self._meaning(text).answerable)
        return list(islice(answerable, many + SPARE_OTHERS))

    def _other_queries(self, query: str, previous: str) -> list[str]:
        """Choose what to compare a query with: suggestions, or without them what was asked before,
        but nothing that means what the query or the previous one does.

        Returns:
            No question if the query has no answer, or if there are fewer than four.
        """
        if not query or not self._meaning(query).answerable:
            return []
        asked = [self._meaning(text) for text in (query, previous) if text]
        others = []
        for text in self._unasked or [text for text in self.embeddings if text]:
            meaning = self._meaning(text)
            if meaning.answerable and not any(meaning.overlaps(one) for one in asked):
                others.append(text)
        return others[:MAX_OTHERS] if len(others) >= MIN_OTHERS else []

    def _meaning(self, query: str) -> Interpretation:
        """Return what a query means; meanings are cached."""
        if query not in self._meanings:
            self._meanings[query], _ = interpret(self.engine.model, self.cache.tokens, query)
        return self._meanings[query]

    def _warning(self, query: str) -> str:
        """Warn of a query that the run cannot answer."""
        if not query:
            return ""
        meaning = self._meaning(query)
        return "" if meaning.answerable else unanswerable_note(query, meaning.nearest)

    def _draw(self, method: str, previous: str, query: str) -> pd.DataFrame:
        """Draw both queries on one map, aligned to the last map of its method; the first UMAP is
        aligned to the PCA.
        """
        last = self._maps.get(method, self._maps.get("pca"))
        before = self.embeddings[previous]
        after = self.embeddings[query]
        self._maps[method] = joint_projection(
            before, after, self.ids, (previous, query), method=method, last=last
        )
        return self._maps[method]

    def _map_update(
        self, message: str, warning: str, points: pd.DataFrame, shift: pd.DataFrame | None
    ) -> Update:
        total = len(self.ids)
        caption = projection_caption(points, self.unit)
        data = {"points": points} if shift is None else {"points": points, "shift": shift}
        return Update(total, total, message, caption, warning, data)
