"""Training pairs as token ids and index arrays."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch

from qanchor.data.users import Users
from qanchor.models.model import QAnchor

# Exponent of the group size when the most common answers are chosen. 0: by counts alone; 1: each
# group (topic, kind, grade, horizon) gets the same share.
GROUP_BALANCE_EXPONENT = 0.75
UNGRADED_DIVISOR = 4  # one answer in 4 of the head fits may be ungraded (a summary)
NO_LIMIT = 10**6  # tokens; training queries are cut instead of refused


def validate_pairs(pairs: pd.DataFrame, users: Users) -> None:
    """Check training pairs.

    Args:
        pairs: Columns user, cutoff, query and answer.
        users: Users that the pairs were made of.

    Raises:
        ValueError: If there is no pair, a column is missing, a cell is empty, the cut-offs are not
            times without a time zone, or a user is unknown.
    """
    if not len(pairs):
        raise ValueError(
            "0 pairs to train on, at least 1 is needed: make them with make_pairs(users)"
        )
    for name in ("user", "cutoff", "query", "answer"):
        if name not in pairs:
            raise ValueError(
                f"pairs have columns {list(pairs)}, no {name!r}: make them with make_pairs(users)"
            )
        empty = pairs[name].isna()
        if empty.any():
            row = int(np.flatnonzero(empty)[0])
            raise ValueError(f"pairs, row {row}: {name} is empty: fill it or drop the row")
    if not pd.api.types.is_datetime64_dtype(pairs["cutoff"]):
        raise ValueError(
            f"pairs: cutoff is {pairs['cutoff'].dtype}, times without a zone are needed: "
            "use pd.to_datetime"
        )
    unknown = ~pairs["user"].isin(users.ids)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise ValueError(
            f"pairs, row {row}: user {pairs['user'].iloc[row]!r} is not among the "
            f"{len(users):,} of {users.name}: give the users that the pairs were made of"
        )


def _group_numbers(pairs: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    """Return the number of each row's group by those of the columns that exist."""
    existing = [name for name in columns if name in pairs]
    if not existing:
        return np.zeros(len(pairs), int)
    return pairs.groupby(existing, dropna=False, observed=True).ngroup().to_numpy()


class PairDataset:
    """Group pairs by sample (user, cut-off): one sample is read once for all its pairs.

    Args:
        model: Tokenizes and encodes the queries.
        pairs: Columns user, cutoff, query and answer; topic, kind, grade and horizon_days are used
            where they exist.
    """

    def __init__(self, model: QAnchor, pairs: pd.DataFrame):
        self.keys = pairs[["user", "cutoff"]].drop_duplicates().reset_index(drop=True)
        sample_keys = pd.MultiIndex.from_frame(self.keys)
        pair_keys = pd.MultiIndex.from_frame(pairs[["user", "cutoff"]])
        sample = sample_keys.get_indexer(pair_keys)
        order = np.argsort(sample, kind="stable")
        starts = np.searchsorted(sample[order], np.arange(1, len(self.keys)))
        self.rows = np.split(order, starts)  # rows of `pairs` of each sample
        self.query, self.queries = pd.factorize(pairs["query"])
        self.answer, self.answers = pd.factorize(pairs["answer"])
        self.meaning = self._meaning_numbers(pairs)
        self.group = _group_numbers(pairs, ("topic", "kind", "grade", "horizon_days"))
        grade = pairs.get("grade", pd.Series(0, pairs.index))
        self.ungraded = np.zeros(len(self.answers), bool)
        self.ungraded[self.answer[grade < 0]] = True
        self.usable = np.arange(len(self.rows))  # samples with at least one pair
        max_tokens = model.config.max_query_tokens
        self.query_ids = [model.tokenize_query(q, NO_LIMIT)[:max_tokens] for q in self.queries]
        self.query_text_embeddings = model.query_text_embeddings(list(self.queries))
        self.answer_ids = [model.tokenize_answer(answer) for answer in self.answers]
        self.query_lengths = np.array([len(ids) for ids in self.query_ids])
        self.answer_lengths = np.array([len(ids) for ids in self.answer_ids])

    def __len__(self) -> int:
        return len(self.rows)

    def _meaning_numbers(self, pairs: pd.DataFrame) -> np.ndarray:
        """Number the meanings of answers: the same topic, kind and grade mean the same.

        Such answers differ only in words or horizon. They are never negatives of each other;
        otherwise a model memorizes the wording of each user's answer.
        """
        if not {"topic", "grade"} <= set(pairs):
            return self.answer
        is_graded = (pairs["grade"] >= 0).to_numpy()
        graded = _group_numbers(pairs, ("topic", "kind", "grade"))
        return np.where(is_graded, graded, graded.max(initial=0) + 1 + self.answer)

    def same(self, rows: np.ndarray, device) -> torch.Tensor:
        """Compute which pairs have answers of the same meaning.

        Args:
            rows: Rows of the pairs, of any shape.
            device: Device of the result.

        Returns:
            Boolean (pair, pair).
        """
        meaning = torch.as_tensor(self.meaning[rows.ravel()], device=device)
        return meaning[:, None] == meaning[None]

    def common(self, most: int) -> PairDataset:
        """Return the pairs of the most common answers, weighted within their groups.

        By counts alone the head fits would rarely see high grades of short horizons. Up to a
        quarter of the answers are ungraded (summaries), which are nearly all distinct.

        Args:
            most: Distinct answers to keep.
        """
        counts = np.bincount(self.answer, minlength=len(self.answers))
        group = np.zeros(len(counts), int)
        group[self.answer] = self.group
        share = counts / np.bincount(self.group)[group] ** GROUP_BALANCE_EXPONENT
        order = np.argsort(-share, kind="stable")
        ungraded = order[self.ungraded[order]]
        graded = order[~self.ungraded[order]]
        n_ungraded = min(len(ungraded), most // UNGRADED_DIVISOR)
        chosen = np.zeros(len(counts), bool)
        chosen[ungraded[:n_ungraded]] = True
        chosen[graded[: most - n_ungraded]] = True
        subset = copy.copy(self)
        subset.rows = [rows[chosen[self.answer[rows]]] for rows in self.rows]
        subset.usable = np.flatnonzero([len(rows) > 0 for rows in subset.rows])
        return subset

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Count the tokens behind each sample's prefix: queries, <USER_EMB> and answers.

        Args:
            rows: Rows of the pairs, (sample, pair).
        """
        lengths = self.query_lengths[self.query[rows]] + self.answer_lengths[self.answer[rows]]
        return lengths.sum(1)

    def draw(self, rng: np.random.Generator, samples: np.ndarray, k: int) -> np.ndarray:
        """Draw pairs of samples.

        Args:
            rng: Random generator.
            samples: Numbers of the samples.
            k: Pairs of each sample; a sample with fewer repeats some.

        Returns:
            Rows of the pairs, (sample, k).
        """
        drawn = []
        for sample in samples:
            rows = self.rows[sample]
            drawn.append(rng.choice(rows, k, replace=len(rows) < k))
        return np.stack(drawn)
