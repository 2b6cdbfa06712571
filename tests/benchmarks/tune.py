"""Bench `tune`: what a step of tuning costs on users read once, against steps that read them anew;
the gradients must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qanchor.config import SMALL, Config
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.models.collate import collate_users
from qanchor.models.model import QAnchor
from qanchor.prompt_tuning.soft_prompt import PromptObjective, SoftPrompt
from qanchor.training.losses import prototype_loss
from tests.benchmarks.machine import timed
from tests.benchmarks.speed import fresh

LEARNED = ("vectors", "prototypes", "offset")


def tune(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    config: Config = SMALL,
    most: int = 200,
    rows: int = 32,
    rounds: int = 5,
    vectors: int = 6,
) -> dict:
    """Time one step of tuning (loss, gradients) for `rows` of at most `most` users three ways, in
    turn; medians count.

    step_s: on cached prefixes with the query's words read behind them. reread_s: prefixes and words
    are read again first,
    without gradients. anew_s: prefix, words and vectors in one pass with no cache. bound: tokens a
    user of the last by those of
    the first. max_rel_diff: of the gradients of first and last, in float32, by the greatest of each
    part. Labels are drawn.
    """
    people = users().sample(most)
    made = Engine(QAnchor.from_pretrained(run) if run else fresh(config, people))
    query = f"Will this {people.unit} order takeout next month?"
    tuning, prompt, some = _set_up(made, people, query, vectors, rows)
    readings = made.model.preprocessor.transform(people)
    bare = [replace(group, kv=None) for group in tuning.users.groups]
    kept = tuning.users.groups

    def reread() -> None:
        tuning.users.groups = bare
        _gradients(prompt, tuning, some)
        tuning.users.groups = kept

    ways = {"step_s": lambda: _gradients(prompt, tuning, some), "reread_s": reread}
    ways["anew_s"] = lambda: gradients_anew(prompt, tuning, readings, some)
    times = [[timed(way, made.model.device) for way in ways.values()] for _ in range(rounds + 1)]
    found = dict(
        zip(ways, np.median(times[1:], 0).tolist(), strict=True)
    )  # the first round only warms up
    words, kind = len(tuning.users.words), str(made.model.backbone.dtype).removeprefix("torch.")
    slots = float(tuning.users.select(some).prefix.length()[:-1].float().mean()) - words
    told = {
        "users": len(some),
        "slots": slots,
        "words": words,
        "vectors": vectors,
        "dtype": kind,
    } | found
    told |= {
        "speedup": found["anew_s"] / found["step_s"],
        "speedup_reread": found["reread_s"] / found["step_s"],
    }
    told["bound"] = (slots + words + vectors + 1) / (vectors + 1)
    return told | {"max_rel_diff": _difference(run, config, people, query, vectors)}


def _set_up(
    engine: Engine, people: Users, query: str, vectors: int, rows: int
) -> tuple[PromptObjective, SoftPrompt, np.ndarray]:
    """Read users, draw labels, and begin a prompt whose every part takes gradients."""
    cache, rng = engine.prefill(people), np.random.default_rng(0)
    tuning = PromptObjective(engine, cache, query, rng.permutation(len(people)) % 2)
    prompt = tuning.initialize((0, 1), np.arange(len(people)), vectors, rng)
    live = {name: getattr(prompt, name).clone().requires_grad_() for name in LEARNED}
    return (
        tuning,
        replace(prompt, **live),
        rng.choice(len(people), min(rows, len(people)), replace=False),
    )


def _gradients(prompt: SoftPrompt, tuning: PromptObjective, rows: np.ndarray) -> list[Tensor]:
    group = tuning.users.select(rows)
    return _of(
        prototype_loss(
            tuning.anchors(prompt, group),
            prompt.prototypes,
            tuning.labels(group),
            prompt.temperature,
        ),
        prompt,
    )


def gradients_anew(
    prompt: SoftPrompt, tuning: PromptObjective, readings, rows: np.ndarray
) -> list[Tensor]:
    """Give the loss's gradients with every user read from the start, prompt in place: the plain
    twin of a step.
    """
    z = tuning.model.embed(collate_users(readings, rows).to(tuning.model.device), prompt)
    label = torch.from_numpy(tuning.truth[rows]).to(z.device)
    return _of(prototype_loss(z, prompt.prototypes, label, prompt.temperature), prompt)


def _of(loss: Tensor, prompt: SoftPrompt) -> list[Tensor]:
    parts = [getattr(prompt, name) for name in LEARNED]
    return list(
        torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True)
    )  # the offset: without a skip


def _difference(
    run: Path | None, config: Config, people: Users, query: str, vectors: int, rows: int = 8
) -> float:
    """Give the greatest difference between a step's gradients and its plain twin's, in float32, as
    a share of the greatest.
    """
    few = people.sample(rows)
    model = (
        QAnchor.from_pretrained(run, dtype="float32")
        if run
        else fresh(config.replace(dtype="float32"), people)
    )
    tuning, prompt, some = _set_up(Engine(model), few, query, vectors, rows)
    pairs = zip(
        _gradients(prompt, tuning, some),
        gradients_anew(prompt, tuning, model.preprocessor.transform(few), some),
        strict=True,
    )
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
