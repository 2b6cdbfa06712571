"""One explicit training loop: the heads on coarse numbers, then both towers jointly (K queries a pass), the heads again."""

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
from qanchor.training.checkpoint import Checkpoint, fingerprint
from qanchor.training.dataset import PairDataset, validate_pairs
from qanchor.training.joint_step import false_negative_margin_at, joint_step
from qanchor.training.losses import contrastive_loss

HEADS_LEARNING_RATE = 2e-3  # of `train_heads`
HISTORY = ("step", "loss", "contrastive", "autoregressive", "pairs_per_s")


class FP32MasterWeights:
    """Give bfloat16 weights a float32 copy for the optimiser: small steps are lost in eight bits of fraction."""

    def __init__(self, model: nn.Module, lr: float, head_lr: float, decay: float):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.live = [p for _, p in named]
        self.copy = [p.detach().float().clone().requires_grad_() for p in self.live]
        pairs = list(zip(named, self.copy, strict=True))
        self.groups = [[c for (n, _), c in pairs if ("lora" in n) == lora] for lora in (True, False)]
        options = [{"params": g, "lr": r} for g, r in zip(self.groups, (lr, head_lr), strict=True) if g]
        self.optimiser = torch.optim.AdamW(options, weight_decay=decay, betas=(0.9, 0.98))
        self.base = [o["lr"] for o in self.optimiser.param_groups]

    def step(self, factor: float, clip: float) -> None:
        """Take one step at `factor` times the learning rates; LoRA and heads are clipped apart, so neither drowns the other."""
        for master, live in zip(self.copy, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None
        for group in self.groups:
            if group:
                nn.utils.clip_grad_norm_(group, clip)
        for group, lr in zip(self.optimiser.param_groups, self.base, strict=True):
            group["lr"] = lr * factor
        self.optimiser.step()
        with torch.no_grad():
            for master, live in zip(self.copy, self.live, strict=True):
                live.copy_(master)


def train(
    model: QAnchor,
    users: Users,
    pairs: pd.DataFrame,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> pd.DataFrame:
    """Teach the model that a user, asked a query, means its answer; returns the history, one row a step.

    Under `accelerate launch` several processes share each batch of `users_per_step` users, and learn what one would.

    pairs       columns user, cutoff, query, answer (`make_pairs`); the users' events stand in `users`.
    steps       joint steps (default: config.steps); minutes: end after so long. Reading and warm start are never shortened;
                there are fewer joint steps (five at least), then fewer of the last fit (a tenth at least). A resumed training
                does not know how long its last fit takes: it comes on top.
    checkpoint  a file for the whole state, and one beside it for the state before; with `resume` training goes on from there,
                bit for bit on one CPU thread (to `steps`, or as planned). CheckpointError: both torn, or of another training.
    progress    called with (stage, done, total, loss); `training_stages` names the stages.

    Returns columns step, loss, contrastive, autoregressive, pairs_per_s. Source: paper, sections 3.3 and 4.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> pairs = qa.make_pairs(users, per_sample=4)
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, pairs[["user", "cutoff"]].drop_duplicates(), qa.TINY))
        >>> qa.train(model, users, pairs, steps=2).step.tolist()
        [1, 2]
    """
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    config, began = model.config, time.monotonic()
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    model.to(accelerator.device)
    model.run = ""  # what comes out is no run's until it is saved and loaded
    report = progress if progress and accelerator.is_main_process else lambda *_: None
    validate_pairs(pairs, users)
    samples = PairDataset(model, pairs)
    if model.skip is not None:
        model.skip.remember(samples.meaning_of_query)
    readings = model.preprocessor.transform(users, samples.keys, lambda *n: report("reading", *n, float("nan")))
    key = fingerprint(config.to_dict(), seed, pairs, readings.coarse)
    kept_at = None if checkpoint is None else Checkpoint(Path(checkpoint), key)
    found = kept_at.read() if resume and kept_at else None
    model.train()
    fit = lambda stage, salt, n: train_heads(model, samples, readings, seed + salt, n, stage, report)  # noqa: E731
    reading, fitting = fit("warm start", 0, 0 if found else config.head_warmup_steps)
    each, last = fitting / max(config.head_warmup_steps, 1), config.head_refit_steps  # each: seconds of a step of a fit
    end = None if minutes is None else began + minutes * 60 - reading
    rows = _joint_steps(model, samples, readings, accelerator, seed, steps, end and end - each * last, kept_at, found, report)
    if end is not None and each:
        last = broadcast_object_list([min(last, max(last // 10, int((end - time.monotonic()) / each)))])[0]
    fit("last fit", 1, last)
    model.eval()
    return pd.DataFrame(rows, columns=list(HISTORY))


def training_stages(config: Config, resumed: bool = False) -> dict[str, tuple[str, str, int]]:
    """Name the stages of a training: words for each, the earlier stage whose steps cost as much, its steps (0: as many).

    Example:
        >>> from qanchor.config import SMALL
        >>> list(training_stages(SMALL, resumed=True)), training_stages(SMALL)["last fit"]
        (['reading', 'training', 'last fit, reading', 'last fit'], ('last fit', 'warm start', 1600))
    """
    plan, warm = {"reading": ("reading users", "", 0)}, config.head_warmup_steps and not resumed
    if warm:
        plan |= {"warm start, reading": ("reading queries and answers", "", 0), "warm start": ("warm start", "", 0)}
    plan["training"] = ("joint steps", "", 0)
    if config.head_refit_steps:
        like = ("warm start, reading", "warm start") if warm else ("", "")
        plan["last fit, reading"] = ("reading queries and answers", like[0], 0)
        plan["last fit"] = ("last fit", like[1], config.head_refit_steps)
    return plan


def _joint_steps(model, samples, readings, accelerator, seed, steps, end, kept_at, found, report) -> list[dict]:
    """Take the joint steps, from what was `found` or from the start: `steps`, or as many as are done at the time `end`."""
    from accelerate.utils import broadcast_object_list

    config = model.config
    wrapped = accelerator.prepare(model)  # from here on the weights of all processes are the first one's
    masters = FP32MasterWeights(model, config.lora_learning_rate, config.head_learning_rate, config.weight_decay)
    start, planned, rows = 0, config.steps, []
    if found:
        _restore(found.state, model, masters)
        start, planned, rows = found.step, found.total, found.rows
    step, total = start, steps or planned
    while step < total:
        tick = time.monotonic()
        parts, n = joint_step(wrapped, model, samples, readings, (seed, step, total), accelerator)
        masters.step(_factor(config, step, total), config.max_grad_norm)
        step += 1
        rows.append(dict(zip(HISTORY, (step, *parts, n / (time.monotonic() - tick)), strict=True)))
        if end is not None and step == start + 4:  # by now the speed is known: set the length of the schedule by it
            total = max(step + 1, min(total if steps else 10**9, step + _steps_until(end, rows[-3:], n)))
            total = broadcast_object_list([total])[0]  # by one clock for all processes
        report("training", step, total, rows[-1]["loss"])
        if kept_at and accelerator.is_main_process and (step % 10 == 0 or step == total):
            kept_at.write(_state(model, masters), step, total, rows)
    return rows


def _factor(config, step: int, total: int) -> float:
    """Scale the learning rates: up over the first share of the steps, then down along a cosine."""
    return min((step + 1) / max(int(config.warmup_ratio * total), 1), 0.5 * (1 + np.cos(np.pi * step / total)) + 0.02)


def _steps_until(end: float, lately: list[dict], pairs: int) -> int:
    return int((end - time.monotonic()) / np.mean([pairs / row["pairs_per_s"] for row in lately]))


def train_heads(
    model: QAnchor, samples: PairDataset, readings: UserFeatures, seed: int, steps: int, stage: str, report
) -> tuple[float, float]:
    """Fit projection and skip on coarse numbers and queries read alone, with the backbone at rest.

    Queries and answers are read once each; a step then costs only the heads, so thousands of them fit into minutes.
    Before the joint training this is its warm start, and it sets the projection's centre and spread, without which all cosines
    start near 1; afterwards it fits the heads to what the joint training has made of the backbone.
    report  called with (stage, done, total, loss).  Returns the seconds of reading and of fitting, 0 for no steps.
    """
    config, device, began = model.config, model.device, time.monotonic()
    if not steps:
        return 0.0, 0.0
    samples = samples.common(config.head_max_answers)
    used = np.unique(samples.answer[np.concatenate(samples.rows)])
    asked = len(samples.query_ids)
    tell = lambda done: report(f"{stage}, reading", done, asked + len(used), float("nan"))  # noqa: E731
    alone = _read_alone(model, [[*ids, USER_EMB] for ids in samples.query_ids], tell)
    said = _read_alone(model, [samples.answer_ids[a] for a in used], lambda done: tell(asked + done))
    place = np.zeros(len(samples.answers), np.int64)
    place[used] = np.arange(len(used))
    both, read_at = torch.cat([alone, said]), time.monotonic()
    model.projection.centre.copy_(both.mean(0))
    model.projection.spread.copy_(both.std(0).clamp(min=1e-3))
    heads = [p for m in (model.projection, model.skip) if m is not None for p in m.parameters()]
    optimiser = torch.optim.AdamW(heads, lr=HEADS_LEARNING_RATE, weight_decay=config.weight_decay)
    rise = max(0.1, min(1.5 / steps, 0.3))  # a share of exactly one step is what OneCycleLR cannot divide by
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, HEADS_LEARNING_RATE, total_steps=steps, pct_start=rise)
    coarse = torch.from_numpy(readings.coarse).to(device)
    k = config.head_queries_per_user
    for step in range(steps):
        rng = np.random.default_rng((seed, 2, step))
        chosen = rng.choice(samples.usable, min(config.head_batch_size // k, len(samples.usable)), replace=False)
        pairs = samples.draw(rng, chosen, k)
        query = QueryEncoding(alone, samples.meaning_of_query).at(samples.query[pairs])
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**62)))
            anchors = model.project_anchor(query.hidden, coarse[chosen], query).flatten(0, 1)
            noise = torch.randn_like(anchors) * config.anchor_noise / model.projection.out.out_features**0.5
            anchors = nn.functional.normalize(anchors + noise, dim=-1)
        answers, which = np.unique(samples.answer[pairs.ravel()], return_inverse=True)
        targets = model.project_target(said[place[answers]])[torch.as_tensor(which, device=device)]
        margin = false_negative_margin_at(config, step, steps)
        loss = contrastive_loss(
            anchors, targets, config.temperature, margin, config.contrastive_variant, samples.same(pairs, device)
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(heads, config.max_grad_norm)
        optimiser.step()
        schedule.step()
        if step % 10 == 9 or step + 1 == steps:
            report(stage, step + 1, steps, loss.item())
    return read_at - began, time.monotonic() - read_at


@torch.no_grad()
def _read_alone(model: QAnchor, rows: list[list[int]], report) -> Float[Tensor, "row width"]:
    out, done, training = None, 0, model.training
    model.eval()  # dropout would blur what is read once and used often
    for group in group_by_length([len(r) for r in rows], 4096):
        hidden = model.encode_text([rows[i] for i in group]).float()
        out = hidden.new_zeros(len(rows), hidden.shape[1]) if out is None else out
        out[torch.as_tensor(group, device=hidden.device)] = hidden
        done += len(group)
        report(done)
    model.train(training)
    return out


def _state(model: QAnchor, masters: FP32MasterWeights) -> dict[str, Tensor]:
    """Gather everything that the next step depends on."""
    state = {f"master.{i}": c.detach() for i, c in enumerate(masters.copy)}
    state |= {f"buffer.{n}": b for n, b in model.projection.named_buffers()}
    for i, master in enumerate(masters.copy):
        state |= {f"moment.{i}.{k}": v for k, v in masters.optimiser.state[master].items() if isinstance(v, Tensor)}
    return state


@torch.no_grad()
def _restore(state: dict[str, Tensor], model: QAnchor, masters: FP32MasterWeights) -> None:
    for i, (master, live) in enumerate(zip(masters.copy, masters.live, strict=True)):
        master.copy_(state[f"master.{i}"])
        live.copy_(master)
        prefix = f"moment.{i}."
        moments = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if moments:
            masters.optimiser.state[master] = {k: v if k == "step" else v.to(master.device) for k, v in moments.items()}
    for name, buffer in model.projection.named_buffers():
        buffer.copy_(state[f"buffer.{name}"])
