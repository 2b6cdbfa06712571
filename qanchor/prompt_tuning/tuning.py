"""Tune a soft prompt on labels, in one call or step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.prompt_tuning.labels import encode_labels, stratified_split
from qanchor.prompt_tuning.objective import TEMPERATURE_FACTORS, PromptObjective
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.utils.types import Progress

VALIDATION_INTERVAL = 10  # steps between validations
VALIDATION_SHARE = 0.2  # fraction of each class used for validation
BATCH_SIZE = 32  # users per step
# Scale of the parts of a prompt, which their learning rates are relative to; text vectors have
# length 1. With a larger offset, a few hundred labels pull a good question off its meaning.
VECTOR_SIZE = 1 / 8
OFFSET_SIZE = 0.5


def tune_prompt(
    engine: Engine,
    cache: PrefixCache,
    query: str,
    labels: pd.Series,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[SoftPrompt, pd.DataFrame]:
    """Tune a soft prompt on labelled users. The users are not read again.

    Source: paper, equation 7.

    Args:
        engine: Engine that serves the model, which stays frozen.
        cache: Users from `engine.prefill`; not modified.
        query: The question that the prompt starts from.
        labels: Series indexed by user id, with at least two distinct values; NaN is skipped. Only
            these users are used for tuning; keep others for evaluation.
        progress: Called with (step, steps). Default: none.
        **options: Options of `iter_tune_prompt`, such as `steps` and `seed`.

    Returns:
        The prompt with the lowest validation loss, and the history with one row every 10 steps:
        step, loss (mean training loss since the last row) and valid (validation loss).

    Raises:
        KeyError: If a labelled user is not in the cache.
        ValueError: If there are too few labels, or an option is out of range.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> cache = engine.prefill(users)
        >>> prompt, history = tune_prompt(engine, cache, "Why?", users.label("Active"), steps=10)
        >>> engine.embed(cache, ["Why?", prompt]).shape, history.step.tolist()
        ((60, 2, 128), [0, 10])
    """
    for state in iter_tune_prompt(engine, cache, query, labels, **options):
        if progress and state.step:
            progress(state.step, state.steps)
    return state.prompt, state.history


@dataclass(frozen=True, eq=False)
class TuningState:
    """Hold the state of tuning after `step` of at most `steps` steps."""

    step: int
    steps: int
    prompt: SoftPrompt  # the best one so far
    history: pd.DataFrame

    @property
    def best(self) -> int:
        """Return the step of `prompt`: the one with the lowest validation loss."""
        return int(self.history["step"][self.history["valid"].idxmin()])


def iter_tune_prompt(
    engine: Engine,
    cache: PrefixCache,
    query: str,
    labels: pd.Series,
    *,
    num_virtual_tokens: int = 6,
    steps: int = 500,
    lr: float = 0.02,
    seek: bool = False,
    seed: int = 0,
    patience: int = 100,
) -> Iterator[TuningState]:
    """Tune a soft prompt step by step. Close the iterator to stop; yielded states stay valid.

    Source: paper, equation 7 (6 vectors, 500 steps).

    Args:
        engine: Engine that serves the model, which stays frozen.
        cache: Users from `engine.prefill`; not modified.
        query: The question that the prompt starts from.
        labels: Series indexed by user id, with at least two distinct values; NaN is skipped.
        num_virtual_tokens: Number of vectors. Their sum is added to the text vector of the
            question, so that more vectors take larger steps. Default: 6.
        steps: Maximum number of steps. Default: 500.
        lr: Initial learning rate of Adam, relative to the scale of each part; decays to 0 with a
            cosine schedule. Default: 0.02.
        seek: Start from the training concept that separates the classes best, if this lowers the
            validation loss. This helps if the question is vague or poorly worded. Default: False.
        seed: Seed of the split and the batches. Default: 0.
        patience: Stop after this many steps without a lower validation loss. Default: 100.

    Yields:
        The state before the first step (step 0) and after every step.

    Raises:
        KeyError: If a labelled user is not in the cache.
        ValueError: If there are too few labels, or an option is out of range.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> cache = engine.prefill(users)
        >>> for state in iter_tune_prompt(engine, cache, "Why?", users.label("Active")):
        ...     if state.step == 3:
        ...         break  # and use the best prompt so far
        >>> state.prompt, state.best
        (SoftPrompt('Why?', 6 vectors, 2 classes), 0)
    """
    from sklearn.utils import compute_sample_weight

    if min(num_virtual_tokens, steps) < 0:
        raise ValueError(
            f"num_virtual_tokens is {num_virtual_tokens} and steps is {steps}."
            " Both must be 0 or more."
        )
    numbers, classes = encode_labels(cache, labels)
    rng = np.random.default_rng(seed)
    tuning, validation = stratified_split(numbers, VALIDATION_SHARE, rng)
    objective = PromptObjective(engine, cache, query, numbers)
    prompt = objective.initialize(classes, tuning, num_virtual_tokens)
    if seek:
        prompt = min(
            (prompt, objective.search_start(prompt, tuning)),
            key=lambda candidate: objective.loss(candidate, validation, TEMPERATURE_FACTORS),
        )
    text_rate = lr * prompt.offset.numel() ** -0.5
    rates = {
        "vectors": VECTOR_SIZE * text_rate,
        "offset": OFFSET_SIZE * text_rate,
        "prototypes": lr * prompt.prototypes.shape[1] ** -0.5,
    }
    weights = compute_sample_weight("balanced", numbers[tuning]) / len(tuning)
    batch_size = min(BATCH_SIZE, len(tuning))
    batches = [rng.choice(tuning, batch_size, p=weights) for _ in range(steps)]
    yield from _optimize(objective, prompt, rates, batches, validation, patience)


def _optimize(
    objective: PromptObjective,
    prompt: SoftPrompt,
    rates: dict[str, float],
    batches: list[np.ndarray],
    validation: np.ndarray,
    patience: int,
) -> Iterator[TuningState]:
    """Take one step on each batch of users, and validate every 10 steps."""
    live = {name: getattr(prompt, name).clone().requires_grad_() for name in rates}
    groups = [{"params": [live[name]], "lr": rate} for name, rate in rates.items()]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(batches)))
    columns = ["step", "loss", "valid"]
    history_rows = [(0, math.nan, objective.loss(prompt, validation))]
    losses = []
    state = TuningState(0, len(batches), prompt, pd.DataFrame(history_rows, columns=columns))
    yield state
    for step, rows in enumerate(batches, 1):
        losses.append(objective.step(replace(prompt, **live), rows, optimizer))
        schedule.step()
        state = replace(state, step=step)
        if step % VALIDATION_INTERVAL == 0 or step == len(batches):
            tensors = {name: tensor.detach().clone() for name, tensor in live.items()}
            current = replace(prompt, **tensors)
            valid_loss = objective.loss(current, validation)
            is_better = valid_loss < state.history["valid"].min()
            history_rows.append((step, float(np.mean(losses)), valid_loss))
            losses = []
            history = pd.DataFrame(history_rows, columns=columns)
            best = current if is_better else state.prompt
            state = replace(state, history=history, prompt=best)
        yield state
        if step - state.best >= patience:
            return
