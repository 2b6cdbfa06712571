"""One joint training step, the same for any number of processes."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qanchor.config import Config
from qanchor.models.collate import collate_queries, collate_users, group_by_length
from qanchor.models.features import UserFeatures
from qanchor.models.heads import QueryEncoding
from qanchor.models.model import QAnchor
from qanchor.training.dataset import PairDataset
from qanchor.training.losses import autoregressive_loss, contrastive_loss

NO_MASK_MARGIN = 2.0  # no cosine exceeds another by more: every negative is kept


def joint_step(
    wrapped,
    model: QAnchor,
    samples: PairDataset,
    features: UserFeatures,
    when: tuple[int, int, int],
    accelerator,
) -> tuple[tuple[float, float, float], int]:
    """Run forward and backward of the joint loss on users with K pairs each (paper, section 3.3).

    Every process computes the contrastive loss of the whole batch; its gradient flows through its
    own users, so that the sum over processes is the gradient of one process with all users. With
    `config.mini_batch_size` or `config.mini_batch_num_tokens` the users of a process run in parts:
    once without gradients for the embeddings that the contrastive loss compares, then again part by
    part with the gradient of each embedding (GradCache, Gao et al. 2021). Memory is that of one
    part.

    Args:
        wrapped: The model as `accelerator` prepared it.
        model: The model.
        samples: Training pairs.
        features: Features of the samples.
        when: Seed, step, and steps in all.
        accelerator: `accelerate.Accelerator`.

    Returns:
        The losses of the whole batch (joint, contrastive, autoregressive), and its pairs.

    Raises:
        ValueError: If there are fewer users in the batch than processes.
    """
    config = model.config
    seed, step, total = when
    rng = np.random.default_rng((seed, 1, step))
    if config.head_warmup_steps:  # positives are learned already: mask from the first step on
        margin = config.false_negative_margin
    else:
        margin = false_negative_margin_at(config, step, total)

    chosen, own = _draw_samples(config.train_batch_size, len(samples), rng, accelerator)
    pairs = samples.draw(rng, chosen, config.queries_per_user)
    tokens = features.lengths()[chosen] + samples.tokens(pairs)
    order, groups = _parts(config, tokens, accelerator.num_processes)
    chosen, pairs = chosen[order], pairs[order]
    own_samples, own_pairs = chosen[own], pairs[own]
    parts = [
        MicroBatch(model, samples, features, own_samples[group], own_pairs[group])
        for group in groups
    ]
    # with its own seed, dropout of a part is the same in both passes
    seeds = [int(rng.integers(2**62)) + accelerator.process_index for _ in parts]

    def compare(anchors: Tensor, targets: Tensor) -> Tensor:
        same = samples.same(pairs, model.device)
        anchors = all_gather_with_grad(anchors, accelerator)
        targets = all_gather_with_grad(targets, accelerator)
        variant = config.contrastive_variant
        return contrastive_loss(anchors, targets, config.temperature, margin, variant, same)

    n_tokens = accelerator.reduce(sum(part.asked.writes.sum() for part in parts), "sum")
    autoregressive = torch.zeros((), device=model.device)
    contrastive = None
    gradients = None
    if len(parts) > 1:
        contrastive, gradients = _cached_gradients(wrapped, parts, seeds, compare)
    for i, (part, part_seed) in enumerate(zip(parts, seeds, strict=True)):
        is_last = i + 1 == len(parts)  # gradients are exchanged once
        with nullcontext() if is_last else accelerator.no_sync(wrapped):
            anchors, writing, targets = part.read(wrapped, part_seed)
            if gradients is None:
                contrastive = loss = compare(anchors, targets)
            else:
                anchor_gradients, target_gradients = gradients
                loss = (anchors * anchor_gradients[i]).sum()
                loss = loss + (targets * target_gradients[i]).sum()
            loss = config.contrastive_weight * loss
            if config.autoregressive_weight:
                ids = part.asked.next_ids[part.asked.writes]
                part_loss = autoregressive_loss(model.logits(writing), ids) * len(ids) / n_tokens
                loss = loss + config.autoregressive_weight * part_loss
                autoregressive = autoregressive + part_loss.detach()
            # gradients are averaged over processes: multiply by their number
            accelerator.backward(loss * accelerator.num_processes)
    contrastive_value = contrastive.item()
    autoregressive_value = accelerator.reduce(autoregressive, "sum").item()
    joint = (
        config.contrastive_weight * contrastive_value
        + config.autoregressive_weight * autoregressive_value
    )
    return (joint, contrastive_value, autoregressive_value), pairs.size


def _cached_gradients(wrapped, parts: list[MicroBatch], seeds: list[int], compare):
    """Return the contrastive loss, and its gradients for anchors and targets by part."""
    with torch.no_grad():
        outputs = [part.read(wrapped, seed) for part, seed in zip(parts, seeds, strict=True)]
    anchors = torch.cat([anchor for anchor, _, _ in outputs]).requires_grad_()
    targets = torch.cat([target for _, _, target in outputs]).requires_grad_()
    loss = compare(anchors, targets)
    sizes = [len(anchor) for anchor, _, _ in outputs]
    gradients = [
        gradient.split(sizes) for gradient in torch.autograd.grad(loss, [anchors, targets])
    ]
    return loss, gradients


class MicroBatch:
    """Hold some users of a step with their pairs as tensors.

    Args:
        model: The model.
        samples: Training pairs.
        features: Features of the samples.
        chosen: Numbers of the samples.
        pairs: Rows of the pairs, (sample, pair).
    """

    def __init__(
        self,
        model: QAnchor,
        samples: PairDataset,
        features: UserFeatures,
        chosen: np.ndarray,
        pairs: np.ndarray,
    ):
        self.model = model
        self.samples = samples
        self.pairs = pairs
        self.batch = collate_users(features, chosen).to(model.device)
        queries = [[samples.query_ids[samples.query[pair]] for pair in row] for row in pairs]
        answers = [[samples.answer_ids[samples.answer[pair]] for pair in row] for row in pairs]
        self.asked = collate_queries(queries, answers).to(model.device)

    def read(self, wrapped, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Run the model; each distinct query and answer is encoded once.

        Args:
            wrapped: The model as the accelerator prepared it.
            seed: Seed of the dropout, so that a resumed training draws the same.

        Returns:
            Anchors (pair, dim), hidden states that predict answer tokens (token, width), and
            targets (pair, dim).
        """
        samples, model = self.samples, self.model
        pair_answers = samples.answer[self.pairs.ravel()]
        answers, answer_of_pair = np.unique(pair_answers, return_inverse=True)
        queries, query_of_pair = np.unique(samples.query[self.pairs], return_inverse=True)
        query_index = torch.as_tensor(query_of_pair.reshape(self.pairs.shape))
        answer_ids = [samples.answer_ids[answer] for answer in answers]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            hidden = model.encode_query_tokens([samples.query_ids[query] for query in queries])
            encoding = QueryEncoding(hidden, samples.query_text_embeddings[queries])
            query = encoding.at(query_index)
            anchors, writing, targets = wrapped(self.batch, self.asked, query, answer_ids)
        return anchors, writing, targets[torch.as_tensor(answer_of_pair, device=model.device)]


def all_gather_with_grad(own: Float[Tensor, "pair dim"], accelerator) -> Float[Tensor, "every dim"]:
    """Concatenate the rows of all processes; gradients flow through the own rows.

    Args:
        own: Rows of this process; every process has as many.
        accelerator: `accelerate.Accelerator`.
    """
    if accelerator.num_processes == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(accelerator.num_processes)]
    torch.distributed.all_gather(parts, own.detach().contiguous())
    parts[accelerator.process_index] = own
    return torch.cat(parts)


def _draw_samples(
    batch_size: int, n_samples: int, rng: np.random.Generator, accelerator
) -> tuple[np.ndarray, slice]:
    """Draw the samples of a step, the same in every process, and the slice of this process."""
    processes = accelerator.num_processes
    available = min(batch_size, n_samples)
    per_process = available // processes
    if not per_process:
        raise ValueError(
            f"{available} users a step for {processes} processes: "
            "raise train_batch_size, or take fewer"
        )
    start = accelerator.process_index * per_process
    chosen = rng.choice(n_samples, per_process * processes, replace=False)
    return chosen, slice(start, start + per_process)


def _parts(
    config: Config, tokens: np.ndarray, processes: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Split the samples of a step into parts that run together.

    Returns the order of the samples, each within the share of its process, and the rows of a share
    that run together. These rows are the same in every process, because the processes exchange
    embeddings and gradients part by part.
    """
    shares = tokens.reshape(processes, -1)
    per_process = shares.shape[1]
    most = config.mini_batch_size or per_process
    if not config.mini_batch_num_tokens:
        starts = range(0, per_process, most)
        groups = [np.arange(start, min(start + most, per_process)) for start in starts]
        return np.arange(len(tokens)), groups
    order = shares.argsort(1, kind="stable")
    longest = np.take_along_axis(shares, order, 1).max(0)
    offsets = per_process * np.arange(processes)[:, None]
    groups = group_by_length(longest, config.mini_batch_num_tokens, most)
    return (order + offsets).ravel(), groups


def false_negative_margin_at(config: Config, step: int, steps: int) -> float:
    """Return the margin of the false-negative mask at a step.

    At first every negative is kept: while positives are not learned, the mask would drop all.

    Args:
        config: Configuration.
        step: Steps done.
        steps: Steps in all.
    """
    is_masked = step >= config.false_negative_start * steps
    return config.false_negative_margin if is_masked else NO_MASK_MARGIN
