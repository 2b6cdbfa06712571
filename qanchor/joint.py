"""The joint loss of one batch, alike for any number of processes: each reads its share of the users, all see all embeddings."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .batch import batch_users, branches, length_groups
from .heads import Query
from .losses import autoregressive_loss, contrastive_loss
from .model import QAnchor
from .reader import Readings
from .schema import Users

EVENLY = 0.75  # 0: the commonest answers of all; 1: the commonest of each group alike
SUMMARIES = 4  # every so many-th answer of the fits is a summary


def check_pairs(pairs: pd.DataFrame, users: Users) -> None:
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


class Samples:
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
        self.query_ids = [model.query_ids(q, 10**6)[: model.config.max_query] for q in self.queries]
        self.meaning_of_query = model.meaning(list(self.queries))
        self.answer_ids = [model.answer_ids(a) for a in self.answers]
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

    def common(self, most: int) -> Samples:
        """Keep the pairs of `most` answers: the commonest, weighed within their topic, grade and horizon.

        By counts alone the fits would hardly ever see a high grade of a short horizon, and could not tell it from a low one.
        A quarter of the room is for answers without a grade, which are summaries: nearly all distinct, they would drop out.
        """
        counts = np.bincount(self.answer, minlength=len(self.answers))
        group = np.zeros(len(counts), int)
        group[self.answer] = self.group
        share = counts / np.bincount(self.group)[group] ** EVENLY
        order, kept = np.argsort(-share, kind="stable"), np.zeros(len(counts), bool)
        summaries, graded = order[self.ungraded[order]], order[~self.ungraded[order]]
        room = min(len(summaries), most // SUMMARIES)
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


def joint_step(wrapped, model: QAnchor, samples: Samples, readings: Readings, when: tuple[int, int, int], accelerator):
    """Draw users and K pairs each, and go back through the joint loss (paper, section 3.3: the sum of both).

    wrapped  the model as `accelerator` prepared it;  when  seed, step, steps in all.
    Each process computes the loss of the whole batch, its gradient flows through the process's own users, and the sum over
    processes is the gradient of one process with all of them. With `config.users_at_once` a process's users pass in parts:
    first without gradients, for the embeddings that the contrastive loss compares; then part by part with what this loss wants
    of each embedding (GradCache, Gao et al. 2021). Memory is then that of one part. With `config.tokens_at_once` users of like
    length pass together, as many as that budget allows.
    Returns the three losses of the whole batch (joint, contrastive, autoregressive), and its number of pairs.
    """
    config, (seed, step, total) = model.config, when
    rng = np.random.default_rng((seed, 1, step))
    margin = config.margin if config.warm_steps else margin_at(config, step, total)
    everyone, mine = _share(config.users_per_step, len(samples), rng, accelerator)
    every_pair = samples.draw(rng, everyone, config.queries_per_user)
    order, groups = _parts(config, readings.lengths()[everyone] + samples.tokens(every_pair), accelerator.num_processes)
    everyone, every_pair = everyone[order], every_pair[order]
    chosen, pairs = everyone[mine], every_pair[mine]
    parts = [_Part(model, samples, readings, chosen[some], pairs[some]) for some in groups]
    seeds = [int(rng.integers(2**62)) + accelerator.process_index for _ in parts]  # each part drops out alike both times

    def compare(anchors, targets):
        same = samples.same(every_pair, model.device)
        anchors, targets = gathered(anchors, accelerator), gathered(targets, accelerator)
        return contrastive_loss(anchors, targets, config.temperature, margin, config.variant, same)

    tokens = accelerator.reduce(sum(part.asked.writes.sum() for part in parts), "sum")
    spoken, contrastive, wanted = torch.zeros((), device=model.device), None, None
    if len(parts) > 1:
        with torch.no_grad():
            found = [part.read(wrapped, number) for part, number in zip(parts, seeds, strict=True)]
        cached = [torch.cat(column).requires_grad_() for column in ([f[0] for f in found], [f[2] for f in found])]
        contrastive = compare(*cached)
        wanted = [g.split([len(f[0]) for f in found]) for g in torch.autograd.grad(contrastive, cached)]
    for i, (part, number) in enumerate(zip(parts, seeds, strict=True)):
        with nullcontext() if i + 1 == len(parts) else accelerator.no_sync(wrapped):  # gradients are exchanged once
            anchors, writing, targets = part.read(wrapped, number)
            if wanted is None:
                contrastive = loss = compare(anchors, targets)
            else:
                loss = (anchors * wanted[0][i]).sum() + (targets * wanted[1][i]).sum()
            loss = config.contrastive_weight * loss
            if config.autoregressive_weight:
                ids = part.asked.next_ids[part.asked.writes]
                said = autoregressive_loss(model.logits(writing), ids) * len(ids) / tokens
                loss, spoken = loss + config.autoregressive_weight * said, spoken + said.detach()
            accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged: times their number
    told = contrastive.item(), accelerator.reduce(spoken, "sum").item()
    whole = config.contrastive_weight * told[0] + config.autoregressive_weight * told[1]
    return (whole, *told), every_pair.size


class _Part:
    """Some users of a step with their pairs, ready to be read."""

    def __init__(self, model: QAnchor, samples: Samples, readings: Readings, chosen: np.ndarray, pairs: np.ndarray):
        self.model, self.samples, self.pairs = model, samples, pairs
        self.batch = batch_users(readings, chosen).to(model.device)
        ask = [[samples.query_ids[samples.query[p]] for p in row] for row in pairs]
        say = [[samples.answer_ids[samples.answer[p]] for p in row] for row in pairs]
        self.asked = branches(ask, say).to(model.device)

    def read(self, wrapped, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give anchors (pair, dim), hidden states that write (token, width), and targets (pair, dim)."""
        samples, model = self.samples, self.model
        answers, which = np.unique(samples.answer[self.pairs.ravel()], return_inverse=True)  # each distinct one is read once
        queries, of = np.unique(samples.query[self.pairs], return_inverse=True)
        with torch.random.fork_rng():  # dropout draws from each step's own seed: a resumed training draws the same
            torch.manual_seed(seed)
            alone = model.query_hidden([samples.query_ids[q] for q in queries])
            query = Query(alone, samples.meaning_of_query[queries]).at(torch.as_tensor(of.reshape(self.pairs.shape)))
            anchors, writing, targets = wrapped(self.batch, self.asked, query, [samples.answer_ids[a] for a in answers])
        return anchors, writing, targets[torch.as_tensor(which, device=model.device)]


def gathered(own: Float[Tensor, "pair dim"], accelerator) -> Float[Tensor, "every dim"]:
    """Lay the rows of all processes one below the other; gradients flow through one's own."""
    if accelerator.num_processes == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(accelerator.num_processes)]
    torch.distributed.all_gather(parts, own.detach().contiguous())
    parts[accelerator.process_index] = own
    return torch.cat(parts)


def _share(wanted: int, samples: int, rng: np.random.Generator, accelerator) -> tuple[np.ndarray, slice]:
    """Draw the users of a step, the same in every process, and say which are one's own: as many in each."""
    processes = accelerator.num_processes
    each = min(wanted, samples) // processes
    if not each:
        raise ValueError(f"{min(wanted, samples)} users a step for {processes} processes: raise users_per_step, or take fewer")
    own = slice(accelerator.process_index * each, (accelerator.process_index + 1) * each)
    return rng.choice(samples, each * processes, replace=False), own


def _parts(config, tokens: np.ndarray, processes: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Order the users of a step, each within its process's share, and say which rows of a share pass together.

    The rows are the same for every process, which exchange embeddings and gradients part by part.
    """
    shares = tokens.reshape(processes, -1)
    each = shares.shape[1]
    most = config.users_at_once or each
    if not config.tokens_at_once:
        return np.arange(len(tokens)), [np.arange(at, min(at + most, each)) for at in range(0, each, most)]
    order = shares.argsort(1, kind="stable")
    longest = np.take_along_axis(shares, order, 1).max(0)
    return (order + each * np.arange(processes)[:, None]).ravel(), length_groups(longest, config.tokens_at_once, most)


def margin_at(config, step: int, steps: int) -> float:
    """Leave every negative in at first: while positives are still unlearned, the mask takes all of them for false."""
    return config.margin if step >= config.mask_after * steps else 2.0
