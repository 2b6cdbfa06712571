"""The joint loss of one batch, alike for any number of processes: each reads its share of the users, all see all embeddings."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qanchor.models.collate import collate_queries, collate_users, group_by_length
from qanchor.models.features import UserFeatures
from qanchor.models.heads import QueryEncoding
from qanchor.models.model import QAnchor
from qanchor.training.dataset import PairDataset
from qanchor.training.losses import autoregressive_loss, contrastive_loss


def joint_step(wrapped, model: QAnchor, samples: PairDataset, readings: UserFeatures, when: tuple[int, int, int], accelerator):
    """Draw users and K pairs each, and go back through the joint loss (paper, section 3.3: the sum of both).

    wrapped  the model as `accelerator` prepared it;  when  seed, step, steps in all.
    Each process computes the loss of the whole batch, its gradient flows through the process's own users, and the sum over
    processes is the gradient of one process with all of them. With `config.mini_batch_size` a process's users pass in parts:
    first without gradients, for the embeddings that the contrastive loss compares; then part by part with what this loss wants
    of each embedding (GradCache, Gao et al. 2021). Memory is then that of one part. With `config.mini_batch_num_tokens` users of like
    length pass together, as many as that budget allows.
    Returns the three losses of the whole batch (joint, contrastive, autoregressive), and its number of pairs.
    """
    config, (seed, step, total) = model.config, when
    rng = np.random.default_rng((seed, 1, step))
    margin = config.false_negative_margin if config.head_warmup_steps else false_negative_margin_at(config, step, total)
    everyone, mine = _share(config.train_batch_size, len(samples), rng, accelerator)
    every_pair = samples.draw(rng, everyone, config.queries_per_user)
    order, groups = _parts(config, readings.lengths()[everyone] + samples.tokens(every_pair), accelerator.num_processes)
    everyone, every_pair = everyone[order], every_pair[order]
    chosen, pairs = everyone[mine], every_pair[mine]
    parts = [MicroBatch(model, samples, readings, chosen[some], pairs[some]) for some in groups]
    seeds = [int(rng.integers(2**62)) + accelerator.process_index for _ in parts]  # each part drops out alike both times

    def compare(anchors, targets):
        same = samples.same(every_pair, model.device)
        anchors, targets = all_gather_with_grad(anchors, accelerator), all_gather_with_grad(targets, accelerator)
        return contrastive_loss(anchors, targets, config.temperature, margin, config.contrastive_variant, same)

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


class MicroBatch:
    """Some users of a step with their pairs, ready to be read."""

    def __init__(self, model: QAnchor, samples: PairDataset, readings: UserFeatures, chosen: np.ndarray, pairs: np.ndarray):
        self.model, self.samples, self.pairs = model, samples, pairs
        self.batch = collate_users(readings, chosen).to(model.device)
        ask = [[samples.query_ids[samples.query[p]] for p in row] for row in pairs]
        say = [[samples.answer_ids[samples.answer[p]] for p in row] for row in pairs]
        self.asked = collate_queries(ask, say).to(model.device)

    def read(self, wrapped, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give anchors (pair, dim), hidden states that write (token, width), and targets (pair, dim)."""
        samples, model = self.samples, self.model
        answers, which = np.unique(samples.answer[self.pairs.ravel()], return_inverse=True)  # each distinct one is read once
        queries, of = np.unique(samples.query[self.pairs], return_inverse=True)
        with torch.random.fork_rng():  # dropout draws from each step's own seed: a resumed training draws the same
            torch.manual_seed(seed)
            alone = model.encode_query_tokens([samples.query_ids[q] for q in queries])
            query = QueryEncoding(alone, samples.meaning_of_query[queries]).at(torch.as_tensor(of.reshape(self.pairs.shape)))
            anchors, writing, targets = wrapped(self.batch, self.asked, query, [samples.answer_ids[a] for a in answers])
        return anchors, writing, targets[torch.as_tensor(which, device=model.device)]


def all_gather_with_grad(own: Float[Tensor, "pair dim"], accelerator) -> Float[Tensor, "every dim"]:
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
    most = config.mini_batch_size or each
    if not config.mini_batch_num_tokens:
        return np.arange(len(tokens)), [np.arange(at, min(at + most, each)) for at in range(0, each, most)]
    order = shares.argsort(1, kind="stable")
    longest = np.take_along_axis(shares, order, 1).max(0)
    return (order + each * np.arange(processes)[:, None]).ravel(), group_by_length(longest, config.mini_batch_num_tokens, most)


def false_negative_margin_at(config, step: int, steps: int) -> float:
    """Leave every negative in at first: while positives are still unlearned, the mask takes all of them for false."""
    return config.false_negative_margin if step >= config.false_negative_start * steps else 2.0
