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
        label, query = _named(query)
        if not query:
            raise ValueError(
                "The query is empty. Write a question, such as 'Will this user travel soon?'."
            )
        queries = {label: query}
        other_label, versus = _named(versus or "")
        if versus:
            queries[other_label] = versus
        ids, of = self._sample(users)
        caption = attention_caption(ids, of, self.unit, self.seed)
        if len(self.results) * USERS_PER_UPDATE > MAX_CACHED_USERS:
            self.results.clear()
        for update in self._measure(queries, self.users.select(ids)):
            yield replace(update, caption=caption)
        table = update.data["table"]
        message = attention_summary(table, ids[0] if of == 1 else self.units)
        yield replace(update, message=message, caption=caption)

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
        label, query = _named(query)
        user = self._known(user)
        label_edited = f"{label} (edited)"
        original = self.users.select([user])
        edited = edit_user_events(self.users, user, drop, reword)
        self.results.pop((label_edited, (user,)), None)
        no_table = {"table": None}
        total = 2 * (1 + len(ablatable_rows(self.users)))
        for update in self._measure({label: query}, original):
            yield replace(update, total=total, data=no_table)
        for update in self._measure({label_edited: query}, edited):
            yield replace(update, done=total // 2 + update.done, total=total, data=no_table)
        yield Update(total, total, ANSWERING, data=no_table)

        before = self.results[label, (user,)].anchor[0]
        after = self.results[label_edited, (user,)].anchor[0]
        moved = max(1 - float(before @ after), 0.0)
        answer_before = self._answer(original, query)
        answer_after = self._answer(edited, query)
        message = edit_result(drop, reword, user, moved, answer_before == answer_after)
        caption = attention_caption([user], 1, self.unit, self.seed)
        data = {
            "table": self._table([label_edited, label], [user]),
            "moved": moved,
            "before": answer_before,
            "after": answer_after,
        }
        yield Update(total, total, message, caption, data=data)

    def _answer(self, one_user: Users, query: QueryLike) -> str:
        """Return the answer of one user."""
        [user] = one_user.ids
        return self.engine.generate(self.engine.prefill(one_user), user, query)

    def _table(self, labels: Iterable[str], ids: Sequence[str]) -> pd.DataFrame:
        """Build the table of the results so far."""
        modalities = ablatable_rows(self.users)
        tables = []
        for label in labels:
            users = pd.concat([self.results[label, batch].table for batch in _batches(ids)])
            tables.append(attention_table(label, users, modalities))
        return pd.concat(tables, ignore_index=True)

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

    def _measure(self, queries: Mapping[str, QueryLike], users: Users) -> Iterator[Update]:
        """Measure attention, then deletion effects, batch by batch.

        Args:
            queries: Queries by label.
            users: The users to analyze.

        Yields:
            Updates without a caption. `data["table"]` is None, except after all attention and after
            the deletions of each batch.
        """
        n_users = len(users)
        n_modalities = len(ablatable_rows(users))
        total = n_users * (1 + n_modalities)
        batches = [users.select(batch) for batch in _batches(users.ids)]

        n_read = 0
        for batch in batches:
            self._read_attention(queries, batch)
            n_read += len(batch)
            message = progress_message(READ_ATTENTION, n_read, n_users, self.unit)
            table = self._table(queries, users.ids) if n_read == n_users else None
            yield Update(n_read, total, message, data={"table": table})

        n_deleted = 0
        for batch in batches:
            done = n_users + n_deleted * n_modalities
            for modality in self._delete_modalities(queries, batch):
                done += len(batch)
                message = deletion_progress(modality, len(batch), self.unit)
                yield Update(done, total, message, data={"table": None})
            n_deleted += len(batch)
            done = n_users + n_deleted * n_modalities
            message = progress_message(DELETED_EACH, n_deleted, n_users, self.unit)
            table = self._table(queries, users.ids)
            yield Update(done, total, message, data={"table": table})

    def _read_attention(self, queries: Mapping[str, QueryLike], users: Users) -> None:
        """Compute the attention of some users, for the queries without a cached result."""
        new = [label for label in queries if (label, users.ids) not in self.results]
        if not new:
            return
        cache = self.engine.prefill(users)
        anchors = self.engine.embed(cache, [queries[label] for label in new]).astype(float)
        for column, label in enumerate(new):
            table = attention_shares(self.engine, cache, queries[label], self.names)
            table = table.astype({"weight": float}).assign(deletion_effect=np.nan)
            self.results[label, users.ids] = UserAttention(table, anchors[:, column])

    def _delete_modalities(self, queries: Mapping[str, QueryLike], users: Users) -> Iterator[str]:
        """Delete each modality of some users in turn, for the queries without a cached result.

        Yields the modality. Only complete results are cached.
        """
        new = {}
        for label in queries:
            result = self.results[label, users.ids]
            if result.table["deletion_effect"].isna().all():
                new[label] = replace(result, table=result.table.copy())
        if not new:
            return
        new_queries = [queries[label] for label in new]
        whole = np.stack([result.anchor for result in new.values()], axis=1)
        for name, effects in iter_deletion_effects(self.engine, users, new_queries, whole):
            for column, result in enumerate(new.values()):
                rows = result.table["modality"] == name
                result.table.loc[rows, "deletion_effect"] = effects[:, column]
            yield name
        for label, result in new.items():
            self.results[label, users.ids] = result


def _batches(ids: Sequence[str]) -> list[tuple[str, ...]]:
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
    # a new text may change the order of events at the same time
    events = events.sort_values(["user", "time", "modality", "text"], kind="stable")
    return replace(users, events=events.reset_index(drop=True)).select([user])
