"""The back end of the attention view: attention over modalities beside deletion, two queries, one
edited user.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.analysis.attention import (
    UserAttention,
    ablatable_rows,
    attention_rows,
    attention_table,
    iter_attention_shares,
    iter_modality_ablation,
)
from qanchor.data.users import Users
from qanchor.data.validation import MAX_TEXT
from qanchor.inference.engine import Engine
from qanchor.inference.pointing_engine import PointingEngine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.heads import QueryLike, query_text
from qanchor.utils.arrays import LRUCache
from qanchor.utils.text import count, plural
from qanchor.workbench.messages import (
    ANSWERING,
    attention_caption,
    attention_progress,
    attention_summary,
    deletion_progress,
    deletions_done,
    edit_result,
    pointing_caption,
)
from qanchor.workbench.updates import Update

USERS_PER_UPDATE = 16  # users between two updates: about two seconds on a laptop
MAX_CACHED_CHUNKS = 8  # chunks of users whose keys and values are cached for the next query
MAX_CACHED_LOOKS = 64  # queries that are cached for as many users as can be looked at: about 50 MB


@dataclass(frozen=True)
class Step:
    """Report how far looking at users is; `has_news` if the table can show more than before."""

    done: int
    total: int
    message: str
    has_news: bool = False


class AttentionBackend:
    """Measure where the model looks under a query, and what deleting each modality does.

    Calling it, `backend(query, versus, users)`, returns an iterator of `Update`; closing the
    iterator cancels between two batches. Work is counted in users read. `data["table"]` is None at
    first, then has the attention, and at last the deletion effects. Its rows are one query, layer,
    head group and row of attention each:

    query, layer, head_group: -1 is the mean of all layers, or heads. A group consists of the heads
    that share keys.
    modality, kind: kind is "modality" for what can be deleted, else "other".
    slots, weight, per_token: means over users; the weights of one query, layer and head group sum
    to 1, the sink included.
    deletion_effect: see `modality_importance`; mean over the users that have the modality, NaN if
    none has.
    disagrees: the ranks of the modality by weight and by deletion effect are two or more apart.
    agreement: rank correlation of weight and deletion effect over a user's modalities, mean over
    users.
    disagrees_per_token, agreement_per_token: the same for per_token.

    Attributes: `ids`, `unit`, `units`, `queries` (suggestions).

    Args:
        engine: The model.
        users: The users that can be looked at.
        most: Users that are looked at at most; default 64. A sample is drawn from more, and the
        caption says so.
        seed: Seed of the sample; default 0.

    Raises:
        ValueError: If `most` is less than 1.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> *_, last = AttentionBackend(engine, users, most=2)("Will this user travel soon?")
        >>> means = last.data["table"].query("layer == -1 and head_group == -1")
        >>> last.done == last.total, means.weight.sum().round(4)
        (True, np.float64(1.0))
    """

    def __init__(
        self,
        engine: Engine,
        users: Users,
        *,
        most: int = 64,
        seed: int = 0,
    ):
        if most < 1:
            raise ValueError(f"most is {most}. At least 1 user must be looked at.")
        self.engine = engine
        self.users = users
        self.ids = users.ids
        self.unit = users.unit
        self.units = plural(users.unit)
        self.most = most
        self.seed = seed
        self.queries = list(engine.suggest_queries(users))
        self.names = attention_rows(engine, users.modalities)
        self.results = LRUCache(
            MAX_CACHED_LOOKS * most
        )  # (label of the query, user) -> UserAttention
        self._prefixes = LRUCache(MAX_CACHED_CHUNKS)

    def __call__(
        self, query: QueryLike, versus: QueryLike | None = None, users: Sequence[str] | None = None
    ) -> Iterator[Update]:
        """Look at users under a query and, to compare, under another.

        Args:
            query: The query, or a soft prompt.
            versus: What to compare with; default: nothing.
            users: Ids; default: all users.

        Yields:
            Updates with `data["table"]`.

        Raises:
            KeyError: If a user is unknown.
            ValueError: If the query is empty, or there are no users.
        """
        queries = {
            self._label(q): self._resolve(q) for q in (query, versus or "") if self._label(q)
        }
        if not self._label(query):
            raise ValueError(
                "The query is empty. Write a question, such as 'Will this user travel soon?'."
            )
        ids, of = self._sample(users)
        caption = self._caption(ids, of)
        total = len(ids)
        for step in self._look_and_delete(queries, self.users, ids):
            total = step.total
            table = self.table(list(queries), ids) if step.has_news else None
            yield Update(step.done, step.total, step.message, caption, data={"table": table})
        table = self.table(list(queries), ids)
        message = attention_summary(table, ids[0] if of == 1 else self.units)
        yield Update(total, total, message, caption, data={"table": table})

    def events(self, user: str) -> pd.DataFrame:
        """List the events of one user that can be edited, newest first.

        Args:
            user: The user.

        Returns:
            `event` (its row in `users.events`), `time`, `modality`, `text`.

        Raises:
            KeyError: If the user is unknown.
        """
        history = self.users.history()
        events = history[history["user"] == self._known(user)].iloc[::-1]
        columns = events[["time", "modality", "text"]].astype({"modality": str, "text": str})
        return columns.rename_axis("event").reset_index()

    def rerun(
        self, query: QueryLike, user: str, drop: Collection = (), reword: Mapping | None = None
    ) -> Iterator[Update]:
        """Drop or reword events of one user, read this user again, and look again.

        Args:
            query: The query.
            user: The user.
            drop: Events to drop, by their number in `events`; default: none.
            reword: New texts by number of the event; default: none.

        Yields:
            Updates as for a call. In the last one the first query of the table is the edited user
            and the second the user as it was; its data also has `moved` (1 - cosine of the two
            embeddings) and `before`, `after` (the two answers).

        Raises:
            KeyError: If the user or an event is unknown.
            ValueError: If nothing is changed, or a text is empty or too long.
        """
        reword = reword or {}
        label = self._label(query)
        resolved = self._resolve(query)
        user = self._known(user)
        label_edited = f"{label} (edited)"
        edited = edit_user_events(self.users, user, drop, reword)
        self.results.pop((label_edited, user), None)
        half = 1 + len(ablatable_rows(self.engine, self.users))
        for start, people, name in ((0, self.users, label), (half, edited, label_edited)):
            for step in self._look_and_delete({name: resolved}, people, [user]):
                yield Update(start + step.done, 2 * half, step.message, data={"table": None})
        yield Update(2 * half, 2 * half, ANSWERING, data={"table": None})

        before = self.results[label, user].anchor
        after = self.results[label_edited, user].anchor
        moved = max(1 - float(before @ after), 0.0)
        answer_before = self._answer(self.users, user, resolved, before)
        answer_after = self._answer(edited, user, resolved, after)
        message = edit_result(drop, reword, user, moved, answer_before == answer_after)
        data = {
            "table": self.table([label_edited, label], [user]),
            "moved": moved,
            "before": answer_before,
            "after": answer_after,
        }
        yield Update(2 * half, 2 * half, message, self._caption([user], 1), data=data)

    def table(self, labels: Sequence[str], ids: Sequence[str]) -> pd.DataFrame:
        """Build the table of the results so far.

        Args:
            labels: The queries, as they are named in the table.
            ids: The users.

        Returns:
            The table that the class describes.
        """
        modalities = ablatable_rows(self.engine, self.users)
        frames = []
        for label in labels:
            results = [self.results[label, user] for user in ids if (label, user) in self.results]
            frames.append(attention_table(label, results, self.names, modalities))
        return pd.concat(frames, ignore_index=True)

    def _label(self, query: QueryLike) -> str:
        """Return the name of a query in the table."""
        return query.strip() if isinstance(query, str) else f"{query_text(query)} (tuned)"

    def _resolve(self, query: QueryLike) -> QueryLike:
        return query.strip() if isinstance(query, str) else query

    def _known(self, user: str) -> str:
        if str(user) not in self.ids:
            raise KeyError(
                f"User {str(user)!r} is not among the {len(self.ids):,} that can be looked at. "
                "Check the id."
            )
        return str(user)

    def _sample(self, users: Sequence[str] | None) -> tuple[list[str], int]:
        """Return the users to look at, and of how many they are a sample."""
        ids = sorted({self._known(user) for user in (self.ids if users is None else users)})
        if not ids:
            raise ValueError("No users selected. Select at least one, or look at all.")
        if len(ids) <= self.most:
            return ids, len(ids)
        sample = np.random.default_rng(self.seed).choice(np.array(ids), self.most, replace=False)
        return sorted(sample.tolist()), len(ids)

    def _look_and_delete(
        self, queries: Mapping[str, QueryLike], people: Users, ids: list[str]
    ) -> Iterator[Step]:
        """Look at users and delete their modalities, batch by batch."""
        modalities = ablatable_rows(self.engine, self.users)
        chunks = _chunks(ids)
        total = len(ids) * (1 + len(modalities))
        done = 0
        for chunk in chunks:
            self._look(queries, people, chunk)
            done += len(chunk)
            yield Step(done, total, attention_progress(done, len(ids), self.unit), done == len(ids))
        for chunk in chunks:
            for modality, part_done in self._delete(queries, people, chunk):
                yield Step(
                    done + part_done, total, deletion_progress(modality, len(chunk), self.unit)
                )
            done += len(chunk) * len(modalities)
            users_done = (done - len(ids)) // len(modalities)
            yield Step(done, total, deletions_done(users_done, len(ids), self.unit), True)

    def _look(self, queries: Mapping[str, QueryLike], people: Users, chunk: list[str]) -> None:
        """Read the attention of some users, for the queries under which it is not known yet."""
        new = {}
        for label, query in queries.items():
            for user in chunk:
                if (label, user) in self.results:
                    self.results.move_to_end((label, user))  # must not be evicted for the others
                else:
                    new[label] = query
        if not new:
            return
        cache = self._prefill(people, chunk)
        anchors = self.engine.embed(cache, list(new.values())).astype(float)
        unknown = np.full(len(self.names), np.nan)
        for k, (label, query) in enumerate(new.items()):
            for ids, weight, slots in iter_attention_shares(
                self.engine, cache, query, chunk, self.names
            ):
                for i, user in enumerate(ids):
                    cube = self._with_means(weight[:, i].astype(float))
                    anchor = anchors[cache.ids.index(user), k]
                    self.results[label, user] = UserAttention(
                        cube, slots[i].astype(float), anchor, unknown
                    )

    def _with_means(
        self, weight: Float[np.ndarray, "layer head row"]
    ) -> Float[np.ndarray, "layer1 head_group1 row"]:
        """Average the heads of a group, and put the means over groups and layers first."""
        layers, heads, rows = weight.shape
        groups = heads
        if not isinstance(self.engine, PointingEngine):
            groups = getattr(self.engine.model.backbone.config, "num_key_value_heads", heads)
        cube = weight.reshape(layers, groups, heads // groups, rows).mean(2)
        cube = np.concatenate([cube.mean(1, keepdims=True), cube], 1)
        return np.concatenate([cube.mean(0, keepdims=True), cube], 0)

    def _prefill(self, people: Users, chunk: list[str]) -> PrefixCache:
        if people is not self.users:  # edited: must not be mistaken for the user as it was
            return self.engine.prefill(people)
        key = tuple(chunk)
        if key not in self._prefixes:
            self._prefixes[key] = self.engine.prefill(people.select(chunk))
        return self._prefixes[key]

    def _delete(
        self, queries: Mapping[str, QueryLike], people: Users, chunk: list[str]
    ) -> Iterator[tuple[str, int]]:
        """Delete every modality of some users, for the queries under which that is not known yet.

        Yields (modality, users read). Only whole results are cached.
        """
        new = {}
        for label, query in queries.items():
            if any(np.isnan(self.results[label, user].effect).all() for user in chunk):
                new[label] = query
        if not new:
            return
        users = people.select(chunk)
        whole = np.stack([[self.results[label, user].anchor for label in new] for user in chunk])
        shape = (len(chunk), len(new), len(self.names))
        effect = np.full(shape, np.nan)
        ablation = iter_modality_ablation(self.engine, users, list(new.values()), whole)
        for done, (name, _, has, moved) in enumerate(ablation, 1):
            effect[:, :, self.names.index(name)] = np.where(has[:, None], moved, np.nan)
            yield name, done * len(chunk)
        for k, label in enumerate(new):
            for i, user in enumerate(chunk):
                look = self.results[label, user]
                self.results[label, user] = replace(look, effect=effect[i, k])

    def _answer(
        self, people: Users, user: str, query: QueryLike, anchor: Float[np.ndarray, " dim"]
    ) -> str:
        """Return the graded answer nearest to one user, or generated text if there is none."""
        cache = self._prefill(people, [user])
        ranking = self.engine.score(cache, query_text(query), anchor[None].astype(np.float32))
        return ranking["answer"][0] or self.engine.generate(cache, user, query)

    def _caption(self, ids: list[str], of: int) -> str:
        if isinstance(self.engine, PointingEngine):
            return pointing_caption(ids, of, self.unit, self.seed)
        config = self.engine.model.backbone.config
        layers = config.num_hidden_layers
        heads = config.num_attention_heads
        has_skip = self.engine.model.skip is not None
        return attention_caption(ids, of, self.unit, self.seed, layers, heads, has_skip)


def edit_user_events(
    users: Users, user: str, drop: Collection = (), reword: Mapping | None = None
) -> Users:
    """Return one user as if some events had not been recorded, or had other texts.

    Equal to building the users from an events table that is changed in this way.

    Args:
        users: The users.
        user: The user.
        drop: Events to drop, by their row in `users.events`; default: none.
        reword: New texts by row; default: none.

    Returns:
        The edited user alone.

    Raises:
        KeyError: If an event is not of this user.
        ValueError: If nothing is changed, or a text is empty or too long.

    Example:
        >>> users = qa.make_sample_users(5)
        >>> first = users.events.index[users.events["user"] == users.ids[0]][0]
        >>> len(users.select([users.ids[0]]).events) - len(edit_user_events(users, users.ids[0], drop=[first]).events)
        1
    """
    drop = [int(row) for row in drop]
    reword = {int(row): str(text).strip() for row, text in (reword or {}).items()}
    events = users.events[users.events["user"] == user]
    for row in (*drop, *reword):
        if row not in events.index:
            raise KeyError(
                f"Event {row} is not among the {len(events):,} of user {user!r}. Use numbers "
                "from events(user)."
            )
    for text in reword.values():
        if not 0 < len(text) <= MAX_TEXT:
            length = f"A text has {count(len(text), 'character')}; 1 to {MAX_TEXT:,} are allowed."
            raise ValueError(f"{length} To remove an event, drop it.")
    if not drop and not reword:
        raise ValueError("No event was dropped or reworded. Change at least one.")
    texts = events["text"].astype(str)
    texts.update(pd.Series(reword, dtype=str))
    events = events.assign(text=texts.astype("category")).drop(index=drop)
    events = events.sort_values(
        ["user", "time", "modality", "text"], kind="stable"
    )  # a new text may change ties
    return replace(users, events=events.reset_index(drop=True)).select([user])


def _chunks(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + USERS_PER_UPDATE] for start in range(0, len(ids), USERS_PER_UPDATE)]
