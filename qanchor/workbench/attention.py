"""The callable that an `AttentionLedger` asks: attention over modalities beside deletion, two queries, one edited user."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.analysis.attention import (
    UserAttention,
    ablatable_rows,
    attention_table,
    gradient_x_input,
    iter_attention_shares,
    iter_modality_ablation,
    row_names,
)
from qanchor.data.users import Users
from qanchor.data.validation import MAX_TEXT
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.inference.ranking import label_free_scores
from qanchor.models.heads import QueryLike, query_text
from qanchor.useru.suggestions import suggest_queries
from qanchor.utils.arrays import LRUCache
from qanchor.workbench.messages import attention_summary, edit_summary

USERS_PER_UPDATE = 16  # users between two updates: some two seconds of a laptop
MAX_CACHED_CHUNKS = 8  # chunks of users whose keys and values are kept for the next query
MAX_CACHED_LOOKS = 64  # queries of as many users as can be looked at, kept: some 50 MB


class AttentionBackend:
    """Say where the model looks when it is asked, and what deleting each modality does: the asker of an `AttentionLedger`.

    users     those that can be looked at; of more than `most` at once, so many are drawn by `seed` (the caption says so).
    prompts   soft prompts by name: typing the name asks the prompt. gradient: also give gradient times input (thrice the work).

    Calling it, `looker(query, versus, users)`, gives an iterator of updates `{done, total, ledger, sentence, caption}`; closing
    the iterator cancels between two batches. Work counts readings of a user. `ledger` is None at first, then has the attention,
    and at last the deletion effects, one row a query, layer, head_group and row of attention:
    query, layer, head_group   -1 is the mean of all layers, or heads. A group is of the heads that share keys.
    modality, kind             kind is "modality" for what can be deleted, else "other" (see `qanchor.attention.OWN`).
    slots, weight, per_token   means over users; the weights of one query, layer and head_group sum to 1, the sink included.
    deletion_effect, gradient  as in `modality_importance`, means over the users who have the modality; NaN where there is none.
    disagrees                  the modality's place by weight and its place by deletion effect are two or more apart.
    agreement                  rank correlation of weight and deletion effect over a user's modalities, mean over users.
    disagrees_per_token, agreement_per_token   the same for per_token.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> looker = AttentionBackend(qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))), users, most=2)
        >>> *_, last = looker("Will this user travel soon?")
        >>> last["done"] == last["total"], last["ledger"].query("layer == -1 and head_group == -1").weight.sum().round(4)
        (True, np.float64(1.0))
    """

    def __init__(
        self,
        engine: Engine,
        users: Users,
        *,
        prompts: Mapping[str, QueryLike] | None = None,
        most: int = 64,
        gradient: bool = False,
        seed: int = 0,
    ):
        self.engine, self.users, self.ids, self.unit = engine, users, users.ids, users.unit
        self.prompts, self.most, self.gradient, self.seed = dict(prompts or {}), most, gradient, seed
        self.queries = [*self.prompts, *suggest_queries(users)]
        self.names, self.kept, self._caches = (
            row_names(engine.model.preprocessor),
            LRUCache(MAX_CACHED_LOOKS * most),
            LRUCache(MAX_CACHED_CHUNKS),
        )
        if most < 1:
            raise ValueError(f"most is {most}: at least 1 user must be looked at")

    def __call__(self, query: QueryLike, versus: QueryLike | None = None, users: Sequence[str] | None = None) -> Iterator[dict]:
        """Look at `users` (ids; default: all) under a query and, to compare, under another."""
        asked = {self._label(q): self._asked(q) for q in (query, versus or "") if self._label(q)}
        if not self._label(query):
            raise ValueError("the query is empty: write a question, such as 'Will this user travel soon?'")
        ids, of = self._sample(users)
        for done, total, words, new in self._find(asked, self.users, ids):
            yield self._update(done, total, words, self.ledger(list(asked), ids) if new else None, self._caption(ids, of))
        ledger = self.ledger(list(asked), ids)
        yield self._update(
            total, total, attention_summary(ledger, ids[0] if of == 1 else f"{self.unit}s"), ledger, self._caption(ids, of)
        )

    def events(self, user: str) -> pd.DataFrame:
        """List what can be edited of one user, newest first: event (its row in `users.events`), time, modality, text."""
        past = self.users.history()
        mine = past[past["user"] == self._known(user)].iloc[::-1]
        told = mine[["time", "modality", "text"]].astype({"modality": str, "text": str})
        return told.rename_axis("event").reset_index()

    def rerun(self, query: QueryLike, user: str, drop: Collection = (), reword: Mapping | None = None) -> Iterator[dict]:
        """Drop or reword events of one user, read that user anew, and look again; updates as for a call.

        drop, reword   events by their number in `events`. The ledger's first query is the edited user, the second the user as
        it was. The last update also has moved (1 - cosine of the two embeddings) and before, after (the answers in words).
        """
        label, asked, user = self._label(query), self._asked(query), self._known(user)
        changed, edited = f"{label} (edited)", edit_user_events(self.users, user, drop, reword or {})
        self.kept.pop((changed, user), None)
        half = 1 + len(ablatable_rows(self.engine.model.preprocessor))
        for people, name, start in ((self.users, label, 0), (edited, changed, half)):
            for done, _, words, _ in self._find({name: asked}, people, [user]):
                yield self._update(start + done, 2 * half, words)
        yield self._update(2 * half, 2 * half, "Putting the answers in words ...")
        before, after = self.kept[label, user].anchor, self.kept[changed, user].anchor
        moved = max(1 - float(before @ after), 0.0)
        answers = [self._says(people, user, asked, z) for people, z in ((self.users, before), (edited, after))]
        far = f"{moved:.4f}" if moved >= 0.0001 else "less than 0.0001"
        told = f"{edit_summary(drop, reword or {})}, {user} moves by {far} (1 - cosine). "
        told += "The answer stays the same." if answers[0] == answers[1] else "The answer changes."
        last = self._update(2 * half, 2 * half, told, self.ledger([changed, label], [user]), self._caption([user], 1))
        yield last | {"moved": moved, "before": answers[0], "after": answers[1]}

    def ledger(self, labels: Sequence[str], ids: Sequence[str]) -> pd.DataFrame:
        """Put together what was found of these users: the frame that the class describes."""
        frames = []
        for label in labels:
            looks = [self.kept[label, user] for user in ids if (label, user) in self.kept]
            frames.append(attention_table(label, looks, self.names, ablatable_rows(self.engine.model.preprocessor)))
        return pd.concat(frames, ignore_index=True)

    # -- from here on: how it is done --

    def _label(self, query: QueryLike) -> str:
        return query.strip() if isinstance(query, str) else f"{query_text(query)} (tuned)"

    def _asked(self, query: QueryLike) -> QueryLike:
        return self.prompts.get(query.strip(), query.strip()) if isinstance(query, str) else query

    def _known(self, user: str) -> str:
        if str(user) not in self.ids:
            raise KeyError(f"user {str(user)!r} is not among the {len(self.ids):,} that can be looked at: check the id")
        return str(user)

    def _sample(self, users: Sequence[str] | None) -> tuple[list[str], int]:
        wanted = sorted({self._known(user) for user in (self.ids if users is None else users)})
        if not wanted:
            raise ValueError("0 users to look at, at least 1 is needed: choose some, or look at all")
        if len(wanted) <= self.most:
            return wanted, len(wanted)
        return sorted(np.random.default_rng(self.seed).choice(np.array(wanted), self.most, replace=False).tolist()), len(wanted)

    def _find(self, asked: Mapping[str, QueryLike], people: Users, ids: list[str]) -> Iterator[tuple[int, int, str, bool]]:
        """Look at users and delete their modalities, batch by batch: yields done, total, words, whether more can be shown."""
        names, chunks, done = ablatable_rows(self.engine.model.preprocessor), _chunks(ids), 0
        total = len(ids) * (1 + len(names))
        for chunk in chunks:
            self._look(asked, people, chunk)
            done += len(chunk)
            yield done, total, f"Looked at {done:,} of {len(ids):,} {self.unit}s ...", done == len(ids)
        middle = {label: np.mean([self.kept[label, user].anchor for user in ids], axis=0) for label in asked}
        for chunk in chunks:
            for name, part_done in self._delete(asked, people, chunk, middle if len(ids) > 1 else None):
                words = f"Deleted {name} from {len(chunk):,} {self.unit}{'s' * (len(chunk) != 1)} ..."
                yield done + part_done, total, words, False
            done += len(chunk) * len(names)
            yield (
                done,
                total,
                f"Deleted everything once from {(done - len(ids)) // len(names):,} of {len(ids):,} {self.unit}s ...",
                True,
            )

    def _look(self, asked: Mapping[str, QueryLike], people: Users, chunk: list[str]) -> None:
        for place in ((label, user) for label in asked for user in chunk if (label, user) in self.kept):
            self.kept.move_to_end(place)  # none of these may be let go for the others
        new = {label: q for label, q in asked.items() if any((label, user) not in self.kept for user in chunk)}
        if not new:
            return
        cache = self._read(people, chunk)
        anchors = self.engine.embed(cache, list(new.values())).astype(float)
        for k, (label, query) in enumerate(new.items()):
            for ids, weight, count in iter_attention_shares(self.engine, cache, query, chunk):
                for i, user in enumerate(ids):
                    none = np.full(len(self.names), np.nan)
                    cube = self._with_means(weight[:, i].astype(float))
                    self.kept[label, user] = UserAttention(
                        cube, count[i].astype(float), anchors[cache.ids.index(user), k], none, none
                    )

    def _with_means(self, weight: Float[np.ndarray, "layer head row"]) -> Float[np.ndarray, "layer1 head_group1 row"]:
        layers, heads, rows = weight.shape
        groups = getattr(self.engine.model.backbone.config, "num_key_value_heads", heads)
        cube = weight.reshape(layers, groups, heads // groups, rows).mean(2)
        cube = np.concatenate([cube.mean(1, keepdims=True), cube], 1)
        return np.concatenate([cube.mean(0, keepdims=True), cube], 0)

    def _read(self, people: Users, chunk: list[str]) -> PrefixCache:
        if people is not self.users:  # edited: never to be mistaken for the user as it was
            return self.engine.prefill(people)
        key = tuple(chunk)
        if key not in self._caches:
            self._caches[key] = self.engine.prefill(people.select(chunk))
        return self._caches[key]

    def _delete(self, asked: Mapping[str, QueryLike], people: Users, chunk: list[str], middle) -> Iterator[tuple[str, int]]:
        """Delete every modality of some users, for the queries of which that is not known yet; keeps whole results only."""
        new = {k: q for k, q in asked.items() if any(np.isnan(self.kept[k, user].effect).all() for user in chunk)}
        if not new:
            return
        some, queries = people.select(chunk), list(new.values())
        whole = np.stack([[self.kept[label, user].anchor for label in new] for user in chunk])
        effect, slope = (np.full((len(chunk), len(new), len(self.names)), np.nan) for _ in range(2))
        for done, (name, _, has, moved) in enumerate(iter_modality_ablation(self.engine, some, queries, whole), 1):
            effect[:, :, self.names.index(name)] = np.where(has[:, None], moved, np.nan)
            yield name, done * len(chunk)
        for k, (label, query) in enumerate(new.items()):
            if self.gradient and middle:
                found = gradient_x_input(self.engine, some, query, whole[:, k], middle[label])
                slope[:, k] = np.where(np.isnan(effect[:, k]), np.nan, np.stack([found[name] for name in self.names], 1))
            for i, user in enumerate(chunk):
                self.kept[label, user] = replace(self.kept[label, user], effect=effect[i, k], gradient=slope[i, k])

    def _says(self, people: Users, user: str, query: QueryLike, anchor: Float[np.ndarray, " dim"]) -> str:
        """Say one user's answer: the graded one that is nearest, or where there is none, one written freely."""
        whom = (people.unit, people.horizon_days)
        found = label_free_scores(self.engine.model, [user], query_text(query), anchor[None].astype(np.float32), *whom)
        return found["says"][0] or self.engine.generate(self._read(people, [user]), user, query)

    def _caption(self, ids: list[str], of: int) -> str:
        config = self.engine.model.backbone.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        whom = f"{ids[0]}" if of == 1 else f"Mean over {len(ids):,} {self.unit}s"
        whom += f" of {of:,} (drawn by seed {self.seed})" if len(ids) < of else ""
        told = f"{whom}; {layers} layers, {heads} heads. Deletion effect: 1 - cosine after reading anew without the modality."
        skip = " Attention does not see the skip, by which numbers reach the embedding past the language model."
        return told + (skip if self.engine.model.skip is not None else "")

    @staticmethod
    def _update(done: int, total: int, sentence: str, ledger: pd.DataFrame | None = None, caption: str = "") -> dict:
        return {"done": done, "total": total, "ledger": ledger, "sentence": sentence, "caption": caption}


def edit_user_events(users: Users, user: str, drop: Collection = (), reword: Mapping | None = None) -> Users:
    """Give one user as if some events had never been recorded, or had been told in other words.

    drop, reword   events by their row in `users.events`. Equal to building the users from an events table so changed.
    KeyError: no event of this user; ValueError: nothing is changed, or a text is empty or too long.

    Example:
        >>> users = qa.make_sample_users(5)
        >>> first = users.events.index[users.events["user"] == users.ids[0]][0]
        >>> len(users.select([users.ids[0]]).events) - len(edit_user_events(users, users.ids[0], drop=[first]).events)
        1
    """
    drop, reword = [int(row) for row in drop], {int(row): str(text).strip() for row, text in (reword or {}).items()}
    mine = users.events[users.events["user"] == user]
    for row in (*drop, *reword):
        if row not in mine.index:
            raise KeyError(f"event {row} is none of the {len(mine):,} of user {user!r}: take numbers from events(user)")
    for text in reword.values():
        if not 0 < len(text) <= MAX_TEXT:
            raise ValueError(f"a text has {len(text):,} characters, 1 to {MAX_TEXT:,} are allowed: drop the event instead")
    if not drop and not reword:
        raise ValueError("no event was dropped or reworded: change one, then run again")
    texts = mine["text"].astype(str)
    texts.update(pd.Series(reword, dtype=str))
    events = mine.assign(text=texts.astype("category")).drop(index=drop)
    events = events.sort_values(["user", "time", "modality", "text"], kind="stable")  # a new text may change ties
    return replace(users, events=events.reset_index(drop=True)).select([user])


def _chunks(ids: list[str]) -> list[list[str]]:
    return [ids[start : start + USERS_PER_UPDATE] for start in range(0, len(ids), USERS_PER_UPDATE)]
