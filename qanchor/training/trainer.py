"""The training loop: fit the heads, train both towers jointly, fit the heads again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.config import Config
from qanchor.data.users import Users
from qanchor.models.collate import USER_EMB, group_by_length
from qanchor.models.features import UserFeatures
from qanchor.models.heads import QueryEncoding
from qanchor.models.model import QAnchor
from qanchor.training.checkpoint import Checkpoint, CheckpointState, fingerprint
from qanchor.training.dataset import PairDataset, validate_pairs
from qanchor.training.joint_step import false_negative_margin_at, joint_step
from qanchor.training.losses import contrastive_loss

HEAD_FIT_LEARNING_RATE = 2e-3  # peak learning rate of `train_heads`
ADAM_BETAS = (0.9, 0.98)
CHECKPOINT_INTERVAL = 10  # joint steps between two checkpoints
TIMED_STEPS = 3  # recent joint steps that give the time of a step
SCHEDULED_AFTER = 4  # joint steps after which a time budget sets the length of the schedule
MIN_REFIT_DIVISOR = 10  # a time budget leaves at least a tenth of the last fit
TEXT_TOKENS_PER_PASS = 4096  # tokens of queries or answers in a forward pass, padding included
REPORT_INTERVAL = 10  # steps of a head fit between two progress reports
HISTORY = ("step", "loss", "contrastive", "autoregressive", "pairs_per_s")

Report = Callable[[str, int, int, float], object]  # stage, done, total, loss


class FP32MasterWeights:
    """Optimize bfloat16 weights through float32 copies, which keep small updates.

    Args:
        model: Model; only parameters that require gradients are optimized.
        lr: Peak learning rate of LoRA.
        head_lr: Peak learning rate of all other parameters.
        decay: Weight decay of AdamW.
    """

    def __init__(self, model: nn.Module, lr: float, head_lr: float, decay: float):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.live = [parameter for _, parameter in named]
        self.copy = [p.detach().float().clone().requires_grad_() for p in self.live]
        lora, heads = [], []
        for (name, _), master in zip(named, self.copy, strict=True):
            (lora if "lora" in name else heads).append(master)
        self.groups = [lora, heads]
        options = [
            {"params": group, "lr": rate}
            for group, rate in zip(self.groups, (lr, head_lr), strict=True)
            if group
        ]
        self.optimizer = torch.optim.AdamW(options, weight_decay=decay, betas=ADAM_BETAS)
        self.base = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, factor: float, clip: float) -> None:
        """Take one step. LoRA and heads are clipped separately, so that neither dominates.

        Args:
            factor: Multiple of the peak learning rates.
            clip: Gradient norm at which each group is clipped.
        """
        for master, live in zip(self.copy, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None
        for group in self.groups:
            if group:
                nn.utils.clip_grad_norm_(group, clip)
        for group, rate in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        with torch.no_grad():
            for master, live in zip(self.copy, self.live, strict=True):
                live.copy_(master)


def train(
    model: QAnchor,
    users: Users,
    pairs: pd.DataFrame,
    *,
    features: UserFeatures | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Report | None = None,
) -> pd.DataFrame:
    """Train a model on pairs: a user's anchor for a query should be near the answer's target.

    Under `accelerate launch` several processes share each batch of `config.train_batch_size`
    users, and learn what one process would. Source: paper, sections 3.3 and 4.

    Args:
        model: Model to train, in place.
        users: Users that the pairs were made of.
        pairs: Columns user, cutoff, query and answer, from `make_pairs`.
        features: Features of the distinct (user, cutoff) of the pairs in their order, from
            `UserPreprocessor.fit_transform`. Default: compute them here.
        steps: Joint steps. Default: `config.steps`.
        minutes: Time budget. Encoding the texts and the warm start are never shortened; there are
            fewer joint steps (at least 5), then fewer steps of the last fit (at least a tenth). A
            resumed training cannot time its last fit, which then exceeds the budget. Default: none.
        seed: Seed of batches and dropout. Default: 0.
        checkpoint: File for the state of the joint training; the state before it is stored beside
            it. Default: none.
        resume: Continue from the checkpoint, bit for bit on one CPU thread. Default: False.
        progress: Called with (stage, done, total, loss); `training_stages` names the stages.
            Default: none.

    Returns:
        One row a joint step: step, loss, contrastive, autoregressive, pairs_per_s.

    Raises:
        ValueError: If the pairs or the features do not fit the users.
        CheckpointError: If all checkpoints are damaged, or of another training.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> pairs = qa.make_pairs(users, per_sample=4)
        >>> samples = pairs[["user", "cutoff"]].drop_duplicates()
        >>> preprocessor, features = qa.UserPreprocessor.fit_transform(users, samples, qa.TINY)
        >>> model = qa.QAnchor(qa.TINY, preprocessor)
        >>> qa.train(model, users, pairs, features=features, steps=2).step.tolist()
        [1, 2]
    """
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    config = model.config
    start = time.monotonic()
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    model.to(accelerator.device)
    model.run = ""  # the trained model belongs to no run until it is saved and loaded
    is_reporting = progress and accelerator.is_main_process
    report = progress if is_reporting else lambda *_: None
    validate_pairs(pairs, users)
    samples = PairDataset(model, pairs)
    if model.skip is not None:
        model.skip.remember(samples.query_text_embeddings)
    features = _sample_features(model, users, samples, features, report)
    store = None
    if checkpoint is not None:
        key = fingerprint(config.to_dict(), seed, pairs, features.coarse)
        store = Checkpoint(Path(checkpoint), key)
    saved = store.read() if resume and store else None

    model.train()
    warmup_steps = 0 if saved else config.head_warmup_steps
    encoding_s, fitting_s = train_heads(
        model, samples, features, seed, warmup_steps, "warm start", report
    )
    head_step_s = fitting_s / max(config.head_warmup_steps, 1)
    refit_steps = config.head_refit_steps
    end = None
    joint_end = None
    if minutes is not None:
        end = start + minutes * 60 - encoding_s
        joint_end = end - head_step_s * refit_steps
    rows = _joint_steps(
        model, samples, features, accelerator, seed, steps, joint_end, store, saved, report
    )
    if end is not None and head_step_s:
        affordable = int((end - time.monotonic()) / head_step_s)
        refit_steps = min(refit_steps, max(refit_steps // MIN_REFIT_DIVISOR, affordable))
        refit_steps = broadcast_object_list([refit_steps])[0]
    train_heads(model, samples, features, seed + 1, refit_steps, "last fit", report)
    model.eval()
    return pd.DataFrame(rows, columns=list(HISTORY))


def _sample_features(
    model: QAnchor,
    users: Users,
    samples: PairDataset,
    features: UserFeatures | None,
    report: Report,
) -> UserFeatures:
    """Return the features of the samples, computed here unless they are given."""
    if features is None:
        return model.preprocessor.transform(
            users, samples.keys, lambda done, total: report("reading", done, total, float("nan"))
        )
    if features.users != tuple(samples.keys["user"]):
        raise ValueError(
            f"The features have {len(features):,} samples, the pairs {len(samples):,}, or their "
            "users differ. Compute them with UserPreprocessor.fit_transform on "
            'pairs[["user", "cutoff"]].drop_duplicates().'
        )
    return features


def training_stages(
    config: Config, resumed: bool = False, with_features: bool = False
) -> dict[str, str]:
    """Return the stages of a training and their titles, in order.

    Args:
        config: Configuration.
        resumed: The training continues from a checkpoint. Default: False.
        with_features: `train` is given the features, and does not read the users. Default: False.

    Example:
        >>> from qanchor.config import SMALL
        >>> list(training_stages(SMALL, resumed=True))
        ['reading', 'training', 'last fit, reading', 'last fit']
    """
    texts_title = "reading queries and answers"
    stages = {}
    if not with_features:
        stages["reading"] = "reading users"
    if config.head_warmup_steps and not resumed:
        stages["warm start, reading"] = texts_title
        stages["warm start"] = "warm start"
    stages["training"] = "joint steps"
    if config.head_refit_steps:
        stages["last fit, reading"] = texts_title
        stages["last fit"] = "last fit"
    return stages


def _joint_steps(
    model: QAnchor,
    samples: PairDataset,
    features: UserFeatures,
    accelerator,
    seed: int,
    steps: int | None,
    end: float | None,
    store: Checkpoint | None,
    saved: CheckpointState | None,
    report: Report,
) -> list[dict]:
    """Take the joint steps: `steps`, or as many as fit until the time `end`; return the history."""
    from accelerate.utils import broadcast_object_list

    config = model.config
    wrapped = accelerator.prepare(model)  # every process now has the weights of the first
    masters = FP32MasterWeights(
        model, config.lora_learning_rate, config.head_learning_rate, config.weight_decay
    )
    first_step, planned, rows = 0, config.steps, []
    if saved:
        _restore(saved.state, model, masters)
        first_step, planned, rows = saved.step, saved.total, saved.rows
    step = first_step
    total = steps or planned
    while step < total:
        step_start = time.monotonic()
        when = (seed, step, total)
        losses, n_pairs = joint_step(wrapped, model, samples, features, when, accelerator)
        masters.step(_learning_rate_factor(config, step, total), config.max_grad_norm)
        step += 1
        pairs_per_s = n_pairs / (time.monotonic() - step_start)
        rows.append(dict(zip(HISTORY, (step, *losses, pairs_per_s), strict=True)))
        # the time of a step is known by now: set the length of the schedule
        if end is not None and step == first_step + SCHEDULED_AFTER:
            affordable = step + _steps_until(end, rows[-TIMED_STEPS:], n_pairs)
            total = max(step + 1, min(total if steps else 10**9, affordable))
            total = broadcast_object_list([total])[0]  # one clock decides for all processes
        report("training", step, total, rows[-1]["loss"])
        is_due = step % CHECKPOINT_INTERVAL == 0 or step == total
        if store and accelerator.is_main_process and is_due:
            store.write(_state(model, masters), step, total, rows)
    return rows


def _learning_rate_factor(config: Config, step: int, total: int) -> float:
    """Return the multiple of the peak learning rates: linear warm-up, then a cosine to 2 %."""
    warmup = (step + 1) / max(int(config.warmup_ratio * total), 1)
    cosine = 0.5 * (1 + np.cos(np.pi * step / total)) + 0.02
    return min(warmup, cosine)


def _steps_until(end: float, recent_rows: list[dict], n_pairs: int) -> int:
    """Return how many steps of `n_pairs` pairs fit until the time `end`."""
    step_seconds = np.mean([n_pairs / row["pairs_per_s"] for row in recent_rows])
    return int((end - time.monotonic()) / step_seconds)


def train_heads(
    model: QAnchor,
    samples: PairDataset,
    features: UserFeatures,
    seed: int,
    steps: int,
    stage: str,
    report: Report,
) -> tuple[float, float]:
    """Fit projection and skip on coarse numbers and on queries alone, with a frozen backbone.

    Queries and answers are encoded once; a step then runs only the heads, so thousands of steps
    take minutes. Before the joint training this also sets the mean and standard deviation of the
    projection, without which all cosines start near 1; afterwards it fits the heads to the trained
    backbone.

    Args:
        model: Model to train, in place.
        samples: Training pairs.
        features: Features of the samples.
        seed: Seed of batches, dropout and noise.
        steps: Steps; 0 does nothing.
        stage: Name of the stage in the reports.
        report: Called with (stage, done, total, loss).

    Returns:
        Seconds of encoding the texts, and seconds of fitting.
    """
    if not steps:
        return 0.0, 0.0
    config, device = model.config, model.device
    start = time.monotonic()
    samples = samples.common(config.head_max_answers)
    used = np.unique(samples.answer[np.concatenate(samples.rows)])
    n_queries = len(samples.query_ids)
    n_texts = n_queries + len(used)

    def report_texts(done: int) -> None:
        report(f"{stage}, reading", done, n_texts, float("nan"))

    query_rows = [[*ids, USER_EMB] for ids in samples.query_ids]
    answer_rows = [samples.answer_ids[answer] for answer in used]
    query_hidden = _encode_texts(model, query_rows, report_texts)
    answer_hidden = _encode_texts(model, answer_rows, lambda done: report_texts(n_queries + done))
    place = np.zeros(len(samples.answers), np.int64)  # row of `answer_hidden` of each answer
    place[used] = np.arange(len(used))
    all_hidden = torch.cat([query_hidden, answer_hidden])
    encoded_at = time.monotonic()
    model.projection.centre.copy_(all_hidden.mean(0))
    model.projection.spread.copy_(all_hidden.std(0).clamp(min=1e-3))

    modules = [module for module in (model.projection, model.skip) if module is not None]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=HEAD_FIT_LEARNING_RATE, weight_decay=config.weight_decay
    )
    # OneCycleLR divides by zero if the rise takes exactly one step
    rise = max(0.1, min(1.5 / steps, 0.3))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, HEAD_FIT_LEARNING_RATE, total_steps=steps, pct_start=rise
    )
    coarse = torch.from_numpy(features.coarse).to(device)
    encoding = QueryEncoding(query_hidden, samples.query_text_embeddings)
    k = config.head_queries_per_user
    n_samples = min(config.head_batch_size // k, len(samples.usable))
    noise_scale = config.anchor_noise / model.projection.out.out_features**0.5
    for step in range(steps):
        rng = np.random.default_rng((seed, 2, step))
        chosen = rng.choice(samples.usable, n_samples, replace=False)
        pairs = samples.draw(rng, chosen, k)
        query = encoding.at(samples.query[pairs])
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**62)))
            anchors = model.project_anchor(query.hidden, coarse[chosen], query).flatten(0, 1)
            noise = torch.randn_like(anchors) * noise_scale
            anchors = nn.functional.normalize(anchors + noise, dim=-1)
        pair_answers = samples.answer[pairs.ravel()]
        answers, answer_of_pair = np.unique(pair_answers, return_inverse=True)
        targets = model.project_target(answer_hidden[place[answers]])
        targets = targets[torch.as_tensor(answer_of_pair, device=device)]
        margin = false_negative_margin_at(config, step, steps)
        same = samples.same(pairs, device)
        variant = config.contrastive_variant
        loss = contrastive_loss(anchors, targets, config.temperature, margin, variant, same)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        done = step + 1
        if done % REPORT_INTERVAL == 0 or done == steps:
            report(stage, done, steps, loss.item())
    return encoded_at - start, time.monotonic() - encoded_at


@torch.no_grad()
def _encode_texts(
    model: QAnchor, rows: list[list[int]], report: Callable[[int], object]
) -> Float[Tensor, "row width"]:
    """Return the state at the last token of each row, in float32; `report` gets rows done."""
    out = None
    done = 0
    was_training = model.training
    model.eval()  # no dropout: each text is encoded once and used in many steps
    for group in group_by_length([len(row) for row in rows], TEXT_TOKENS_PER_PASS):
        hidden = model.encode_text([rows[i] for i in group]).float()
        if out is None:
            out = hidden.new_zeros(len(rows), hidden.shape[1])
        out[torch.as_tensor(group, device=hidden.device)] = hidden
        done += len(group)
        report(done)
    model.train(was_training)
    return out


def _state(model: QAnchor, masters: FP32MasterWeights) -> dict[str, Tensor]:
    """Return every tensor that the next joint step depends on."""
    state = {}
    for i, master in enumerate(masters.copy):
        state[f"master.{i}"] = master.detach()
        for name, value in masters.optimizer.state[master].items():
            if isinstance(value, Tensor):
                state[f"moment.{i}.{name}"] = value
    for name, buffer in model.projection.named_buffers():
        state[f"buffer.{name}"] = buffer
    return state


@torch.no_grad()
def _restore(state: dict[str, Tensor], model: QAnchor, masters: FP32MasterWeights) -> None:
    """Load what `_state` returned."""
    for i, (master, live) in enumerate(zip(masters.copy, masters.live, strict=True)):
        master.copy_(state[f"master.{i}"])
        live.copy_(master)
        prefix = f"moment.{i}."
        moments = {}
        for name, value in state.items():
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                # AdamW keeps the step count on the CPU
                moments[key] = value if key == "step" else value.to(master.device)
        if moments:
            masters.optimizer.state[master] = moments
    for name, buffer in model.projection.named_buffers():
        buffer.copy_(state[f"buffer.{name}"])
