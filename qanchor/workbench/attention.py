"""The back end of the attention view: attention over modalities beside deletion, two queries, one
edited user.
"""

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

USERS_PER_UPDATE = 16  # users between two updates: about two seconds on a laptop
MAX_CACHED_USERS = 4096  # users times queries whose results are cached


class AttentionBackend:
    """Measure where the model looks under a query, and what deleting each modality does.

    Calling it, `backend(query, versus, users)`, returns an iterator of `Update`; closing the
    iterator cancels between two batches. Work is counted in users read. `data["table"]` is None at
    first, then has the attention, and at last the deletion effects. It has one row per query and
    row of attention:

    modality, kind: kind is "modality" for what can be deleted, else "other".
    tokens, weight, per_token: means over users; weight is the share of the absolute gradient of the
    score, see `modality_attention`.
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
            raise ValueError(f"most is {most}. At least 1 user must be looked at.")
        self.engine = engine
        self.users = users
        self.ids = users.ids
        self.unit = users.unit
        self.units = plural(users.unit)
        self.most = most
        self.seed = seed
        self.queries = list(engine.suggest_queries(users))
        self.names = attention_rows(users.modalities)
        # by label of the query and ids of the users that were read together
        self.results: dict[tuple[str, tuple[str, ...]], UserAttention] = {}

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
    ) -> Iterator[tuple[int, str, bool]]:
        """Look at users and delete their modalities, batch by batch: yields how many readings are
        done, what to say, and whether the table can show more than before.
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
        """Read the attention of some users, for the queries under which it is not known yet."""
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
        """Delete every modality of some users, for the queries under which that is not known yet.

        Yields (modality, users read). Only whole results are cached.
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
    """Return users in groups that are read together."""
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
