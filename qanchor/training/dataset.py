"""Training pairs as token ids and index arrays."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch

from qanchor.data.users import Users
from qanchor.models.model import QAnchor

GROUP_BALANCE = 0.75  # 0: the commonest answers of all; 1: the commonest of each group alike
SUMMARY_SHARE = 4  # every so many-th answer of the fits is a summary


def validate_pairs(pairs: pd.DataFrame, users: Users) -> None:
    """Refuse what cannot be trained on: no rows, a column that lacks, an empty cell, a user that nobody knows."""
    if not len(pairs):
        raise ValueError("0 pairs to train on, at least 1 is needed: make them with make_pairs(users)")
    for name in ("user", "cutoff", "query", "answer"):
        if name not in pairs:
            raise ValueError(f"pairs have columns {list(pairs)}, no {name!r}: make them with make_pairs(users)")
        if (empty := pairs[name].isna()).any():
            raise ValueError(f"pairs, row {int(np.flatnonzero(empty)[0])}: {name} is empty: fill it or drop the row")
    if not pd.api.types.is_datetime64_dtype(pairs["cutoff"]):
        raise ValueError(f"pairs: cutoff is {pairs['cutoff'].dtype}, times without a zone are needed: use pd.to_datetime")
    if (unknown := ~pairs["user"].isin(users.ids)).any():
        row = int(np.flatnonzero(unknown)[0])
        told = f"pairs, row {row}: user {pairs['user'].iloc[row]!r} is not among the {len(users):,} of {users.name}"
        raise ValueError(f"{told}: give the users that the pairs were made of")


def _numbered(pairs: pd.DataFrame, fields: tuple[str, ...]) -> np.ndarray:
    """Number the rows by what stands in those of the fields that there are."""
    there = [name for name in fields if name in pairs]
    return pairs.groupby(there, dropna=False, observed=True).ngroup().to_numpy() if there else np.zeros(len(pairs), int)


class PairDataset:
    """Group pairs by (user, cut-off): one sample is one reading with all the pairs that belong to it."""

    def __init__(self, model: QAnchor, pairs: pd.DataFrame):
        self.keys = pairs[["user", "cutoff"]].drop_duplicates().reset_index(drop=True)
        at = pd.MultiIndex.from_frame(self.keys).get_indexer(pd.MultiIndex.from_frame(pairs[["user", "cutoff"]]))
        order = np.argsort(at, kind="stable")
        self.rows = np.split(order, np.searchsorted(at[order], np.arange(1, len(self.keys))))
        self.query, self.queries = pd.factorize(pairs["query"])
        self.answer, self.answers = pd.factorize(pairs["answer"])
        self.meaning = self._meaning(pairs)
        self.group = _numbered(pairs, ("topic", "kind", "grade", "horizon_days"))
        self.ungraded = np.zeros(len(self.answers), bool)
        self.ungraded[self.answer[pairs.get("grade", pd.Series(0, pairs.index)) < 0]] = True
        self.usable = np.arange(len(self.rows))
        self.query_ids = [model.tokenize_query(q, 10**6)[: model.config.max_query_tokens] for q in self.queries]
        self.meaning_of_query = model.query_text_embeddings(list(self.queries))
        self.answer_ids = [model.tokenize_answer(a) for a in self.answers]
        self.sizes = [np.array([len(ids) for ids in rows]) for rows in (self.query_ids, self.answer_ids)]

    def __len__(self) -> int:
        return len(self.rows)

    def _meaning(self, pairs: pd.DataFrame) -> np.ndarray:
        """Number what the answers mean: those of one topic, kind and grade say the same in other words (or of other days).

        They are never negatives of each other; otherwise a model learns by heart which wording each user was dealt.
        """
        if not {"topic", "grade"} <= set(pairs):
            return self.answer
        graded, code = (pairs["grade"] >= 0).to_numpy(), _numbered(pairs, ("topic", "kind", "grade"))
        return np.where(graded, code, code.max(initial=0) + 1 + self.answer)

    def same(self, rows: np.ndarray, device) -> torch.Tensor:
        """Mark which of these pairs mean the same."""
        meaning = torch.as_tensor(self.meaning[rows.ravel()], device=device)
        return meaning[:, None] == meaning[None]

    def common(self, most: int) -> PairDataset:
        """Keep the pairs of `most` answers: the commonest, weighed within their topic, grade and horizon.

        By counts alone the fits would hardly ever see a high grade of a short horizon, and could not tell it from a low one.
        A quarter of the room is for answers without a grade, which are summaries: nearly all distinct, they would drop out.
        """
        counts = np.bincount(self.answer, minlength=len(self.answers))
        group = np.zeros(len(counts), int)
        group[self.answer] = self.group
        share = counts / np.bincount(self.group)[group] ** GROUP_BALANCE
        order, kept = np.argsort(-share, kind="stable"), np.zeros(len(counts), bool)
        summaries, graded = order[self.ungraded[order]], order[~self.ungraded[order]]
        room = min(len(summaries), most // SUMMARY_SHARE)
        kept[summaries[:room]] = kept[graded[: most - room]] = True
        fewer = copy.copy(self)
        fewer.rows = [rows[kept[self.answer[rows]]] for rows in self.rows]
        fewer.usable = np.flatnonzero([len(rows) > 0 for rows in fewer.rows])
        return fewer

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Count the tokens of queries, <USER_EMB> and answers of each row of `rows` (sample, pair) behind its prefix."""
        return (self.sizes[0][self.query[rows]] + self.sizes[1][self.answer[rows]]).sum(1)

    def draw(self, rng: np.random.Generator, samples: np.ndarray, k: int) -> np.ndarray:
        """Choose k pairs of each sample (again some, where there are fewer): (sample, k) rows of `pairs`."""
        return np.stack([rng.choice(self.rows[s], k, replace=len(self.rows[s]) < k) for s in samples])
