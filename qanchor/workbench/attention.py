"""Back end of the attention view: attention and deletion effects for queries and edited users."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from qanchor.analysis.attention import (
    UserAttention,
    ablatable_rows,
    attention_rows,
    attention_shares,
    attention_table,
    iter_deletion_effects,
)
from qanchor.data.users import Users
from qanchor.data.validation import MAX_TEXT
from qanchor.inference.engine import Engine
from qanchor.models.queries import QueryLike, query_text
from qanchor.utils.text import count, plural
from qanchor.workbench.messages import (
    ANSWERING,
    DELETED_EACH,
    READ_ATTENTION,
    attention_caption,
    attention_summary,
    deletion_progress,
    edit_result,
    progress_message,
)
from qanchor.workbench.updates import Update

USERS_PER_UPDATE = 16  # users per batch between two updates: about two seconds on a laptop
MAX_CACHED_USERS = 4096  # pairs of user and query whose results are cached


class AttentionBackend:
    """Measure what the model attends to under a query, and the effect of deleting each modality.

    Calling it, `backend(query, versus, users)`, returns an iterator of `Update`; closing the
    iterator cancels between two batches. Progress is counted in encoded users. `data["table"]` is
    None at first, then holds the attention, and at the end also the deletion effects. It has one
    row per query and modality or other group of tokens (see `attention_rows`):

    modality, kind: `kind` is "modality" if the row can be deleted, else "other".
    tokens, weight, per_token: means over users; `weight` is the attention, see
        `modality_attention`.
    deletion_effect: mean over the users that have the modality, see `modality_importance`; NaN if
        none has.
    disagrees: whether the ranks of the modality by weight and by deletion effect differ by two or
        more.
    agreement: rank correlation of weight and deletion effect over a user's modalities, averaged
        over users.
    disagrees_per_token, agreement_per_token: the same for `per_token`.

    Attributes: `ids`, `unit`, `units`, `queries` (suggestions).

    Args:
        engine: The model.
        users: The users that can be analyzed.
        most: Largest number of users per call (default 64). From more, a sample is drawn, and the
            caption says so.
        seed: Seed of the sample (default 0).

    Raises:
        ValueError: If `most` is less than 1.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> *_, last = AttentionBackend(engine, users, most=2)("Will this user come back?")
        >>> last.done == last.total, bool(abs(last.data["table"]["weight"].sum() - 1) < 1e-4)
        (True, True)
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
            raise ValueError(f"most is {most}. Pass 1 or more users.")
        self.engine = engine
        self.users = users
        self.ids = users.ids
        self.unit = users.unit
        self.units = plural(users.unit)
        self.most = most
        self.seed = seed
        self.queries = list(engine.suggest_queries(users))
        self.names = attention_rows(users.modalities)
        # by label of the query and ids of the users of a batch
        self.results: dict[tuple[str, tuple[str, ...]], UserAttention] = {}

    def __call__(
        self, query: QueryLike, versus: QueryLike | None = None, users: Sequence[str] | None = None
    ) -> Iterator[Update]:
        """Analyze users under a query and, for comparison, under another one.

        Args:
            query: The query, or a soft prompt.
            versus: The query to compare with (default: none).
            users: Ids of the users (default: all users).

        Yields:
            Updates with `data["table"]`.

        Raises:
            KeyError: If a user is unknown.
            ValueError: If the query is empty, or there are no users.
        """
        queries = dict(map(_named, (query, versus or "")))
        if not next(iter(queries)):
            raise ValueError(
                "The query is empty. Write a question, such as 'Will this user travel soon?'."
            )
        queries.pop("", None)
        ids, of = self._sample(users)
        caption = attention_caption(ids, of, self.unit, self.seed)
        total = len(ids) * (1 + len(ablatable_rows(self.users)))
        if len(self.results) * USERS_PER_UPDATE > MAX_CACHED_USERS:
            self.results.clear()
        for done, message, has_news in self._look_and_delete(queries, self.users, ids):
            table = self._table(queries, ids) if has_news else None
            yield Update(done, total, message, caption, data={"table": table})
        message = attention_summary(table, ids[0] if of == 1 else self.units)
        yield Update(total, total, message, caption, data={"table": table})

    def events(self, user: str) -> pd.DataFrame:
        """List the events of one user that can be edited, newest first.

        Args:
            user: The user.

        Returns:
            `event` (the row in `users.events`), `time`, `modality`, `text`.

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
        """Drop or reword events of one user, encode this user again, and repeat the analysis.

        Args:
            query: The query.
            user: Id of the user.
            drop: Events to drop, by their number in `events` (default: none).
            reword: New texts by number of the event (default: none).

        Yields:
            Updates as for a call. In the last table, the first query is for the edited user and the
            second for the original one. The data of the last update also has `moved` (1 - cosine
            between the two embeddings), `before` and `after` (the two answers).

        Raises:
            KeyError: If the user or an event is unknown.
            ValueError: If nothing is changed, or a text is empty or too long.
        """
        reword = reword or {}
        label, resolved = _named(query)
        user = self._known(user)
        label_edited = f"{label} (edited)"
        edited = edit_user_events(self.users, user, drop, reword)
        self.results.pop((label_edited, (user,)), None)
        half = 1 + len(ablatable_rows(self.users))
        for start, people, name in ((0, self.users, label), (half, edited, label_edited)):
            for done, message, _ in self._look_and_delete({name: resolved}, people, [user]):
                yield Update(start + done, 2 * half, message, data={"table": None})
        yield Update(2 * half, 2 * half, ANSWERING, data={"table": None})

        before = self.results[label, (user,)].anchor
        after = self.results[label_edited, (user,)].anchor
        moved = max(1 - float(before[0] @ after[0]), 0.0)
        answers = []
        for people in (self.users.select([user]), edited):
            cache = self.engine.prefill(people)
            answers.append(self.engine.generate(cache, user, resolved))
        was, now = answers
        table = self._table([label_edited, label], [user])
        data = {"table": table, "moved": moved, "before": was, "after": now}
        message = edit_result(drop, reword, user, moved, was == now)
        caption = attention_caption([user], 1, self.unit, self.seed)
        yield Update(2 * half, 2 * half, message, caption, data=data)

    def _table(self, labels: Iterable[str], ids: Sequence[str]) -> pd.DataFrame:
        """Build the table of the results so far."""
        modalities = ablatable_rows(self.users)
        frames = []
        for label in labels:
            results = [self.results[label, chunk] for chunk in _chunks(ids)]
            frames.append(attention_table(label, results, self.names, modalities))
        return pd.concat(frames, ignore_index=True)

    def _known(self, user: str) -> str:
        if str(user) not in self.ids:
            raise KeyError(
                f"User {str(user)!r} is not among the {len(self.ids):,} users of this view. "
                "Check the id."
            )
        return str(user)

    def _sample(self, users: Sequence[str] | None) -> tuple[list[str], int]:
        """Return the users to analyze, and the number of users that they are a sample of."""
        ids = sorted({self._known(user) for user in (self.ids if users is None else users)})
        if not ids:
            raise ValueError("No users selected. Select at least one, or analyze all users.")
        if len(ids) <= self.most:
            return ids, len(ids)
        sample = np.random.default_rng(self.seed).choice(np.array(ids), self.most, replace=False)
        return sorted(sample.tolist()), len(ids)

    def _look_and_delete(
        self, queries: Mapping[str, QueryLike], people: Users, ids: list[str]
    ) -> Iterator[tuple[int, str, bool]]:
        """Measure attention and deletion effects, batch by batch.

        Yields (users encoded so far, message, whether the table has new results).
        """
        n_modalities = len(ablatable_rows(self.users))
        chunks = [people.select(chunk) for chunk in _chunks(ids)]
        done = 0
        for users in chunks:
            self._look(queries, users)
            done += len(users)
            message = progress_message(READ_ATTENTION, done, len(ids), self.unit)
            yield done, message, done == len(ids)
        users_done = 0
        for users in chunks:
            for modality, readings in self._delete(queries, users):
                message = deletion_progress(modality, len(users), self.unit)
                yield done + readings, message, False
            done += len(users) * n_modalities
            users_done += len(users)
            message = progress_message(DELETED_EACH, users_done, len(ids), self.unit)
            yield done, message, True

    def _look(self, queries: Mapping[str, QueryLike], users: Users) -> None:
        """Compute the attention of some users, for the queries without a cached result."""
        new = [label for label in queries if (label, users.ids) not in self.results]
        if not new:
            return
        cache = self.engine.prefill(users)
        anchors = self.engine.embed(cache, [queries[label] for label in new]).astype(float)
        for k, label in enumerate(new):
            weight, tokens = attention_shares(self.engine, cache, queries[label], self.names)
            unknown = np.full(weight.shape, np.nan)
            look = UserAttention(weight.astype(float), tokens, anchors[:, k], unknown)
            self.results[label, users.ids] = look

    def _delete(self, queries: Mapping[str, QueryLike], users: Users) -> Iterator[tuple[str, int]]:
        """Delete each modality of some users in turn, for the queries without a cached result.

        Yields (modality, users encoded). Only complete results are cached.
        """
        looks = {label: self.results[label, users.ids] for label in queries}
        new = [label for label, look in looks.items() if np.isnan(look.effect).all()]
        if not new:
            return
        whole = np.stack([looks[label].anchor for label in new], axis=1)
        asked = [queries[label] for label in new]
        effect = np.full((len(users), len(new), len(self.names)), np.nan)
        effects = iter_deletion_effects(self.engine, users, asked, whole)
        for done, (name, moved) in enumerate(effects, 1):
            effect[:, :, self.names.index(name)] = moved
            yield name, done * len(users)
        for k, label in enumerate(new):
            self.results[label, users.ids] = replace(looks[label], effect=effect[:, k])


def _chunks(ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the batches of users that are encoded together."""
    starts = range(0, len(ids), USERS_PER_UPDATE)
    return [tuple(ids[start : start + USERS_PER_UPDATE]) for start in starts]


def _named(query: QueryLike) -> tuple[str, QueryLike]:
    """Return the name of a query in the table, and the query."""
    if isinstance(query, str):
        return query.strip(), query.strip()
    return f"{query_text(query)} (tuned)", query


def edit_user_events(
    users: Users, user: str, drop: Collection = (), reword: Mapping | None = None
) -> Users:
    """Return one user as if some events had not been recorded, or had other texts.

    The result equals `Users` built from an events table with these changes.

    Args:
        users: The users.
        user: Id of the user.
        drop: Events to drop, by their row in `users.events` (default: none).
        reword: New texts by row (default: none).

    Returns:
        The edited user alone.

    Raises:
        KeyError: If an event is not of this user.
        ValueError: If nothing is changed, or a text is empty or too long.

    Example:
        >>> users = qa.make_sample_users(5)
        >>> first = users.events.index[users.events["user"] == users.ids[0]][0]
        >>> edited = edit_user_events(users, users.ids[0], drop=[first])
        >>> len(users.select([users.ids[0]]).events) - len(edited.events)
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
