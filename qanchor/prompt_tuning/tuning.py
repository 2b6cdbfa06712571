"""Learn a soft prompt from labels, to the end or a step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.prompt_tuning.labels import encode_labels, stratified_split
from qanchor.prompt_tuning.soft_prompt import TEMPERATURE_FACTORS, PromptObjective, SoftPrompt

VALIDATION_INTERVAL = 10  # steps between two looks at the validation users
OFFSET_SCALE = (
    0.5  # the size of the offset, its numbers being about 1: faster, a few hundred labels lead a right question astray
)


def tune_prompt(
    engine: Engine,
    cache: PrefixCache,
    query: str,
    labels: pd.Series,
    *,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> tuple[SoftPrompt, pd.DataFrame]:
    """Learn from labels what a query should look at: a soft prompt and the prototypes of the classes, on users read once.

    labels     index user, any two or more values; NaN is skipped. Only these users are looked at: keep others for judging.
    progress   called with (step, steps).
    how        vectors, steps, seed and so on: the options of `iter_tune_prompt`, which shows every step and can be stopped.

    Returns the prompt and its history: step, loss, valid, one row every 10 steps. Source: paper, equation 7.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> cache = engine.prefill(users)
        >>> prompt, history = tune_prompt(engine, cache, "Why?", users.label("Active"), steps=10)
        >>> engine.embed(cache, ["Why?", prompt]).shape, history.step.tolist()
        ((40, 2, 32), [0, 10])
    """
    for now in iter_tune_prompt(engine, cache, query, labels, **how):
        if progress and now.step:
            progress(now.step, now.steps)
    return now.prompt, now.history


@dataclass(frozen=True, eq=False)
class TuningState:
    """Say how a tuning stands after `step` of at most `steps` steps: the best prompt so far, and the history until here."""

    step: int
    steps: int
    prompt: SoftPrompt
    history: pd.DataFrame

    @property
    def best(self) -> int:
        """Name the step whose prompt is kept: the one with the least loss on the validation users."""
        return int(self.history["step"][self.history["valid"].idxmin()])


def iter_tune_prompt(
    engine: Engine,
    cache: PrefixCache,
    query: str,
    labels: pd.Series,
    *,
    vectors: int = 6,
    steps: int = 500,
    lr: float = 0.02,
    tau: float = 0.07,
    gate: bool = True,
    seek: bool = False,
    seed: int = 0,
    valid: float = 0.2,
    patience: int = 100,
    balanced: bool = True,
    batch: int = 32,
) -> Iterator[TuningState]:
    """Tune as `tune_prompt` does, a step at a time: yields how it stands. Close the iterator to stop; what was yielded is kept.

    vectors    how many stand behind the query; gate: also learn what opens the skip (False is the paper's plain form).
    seek       begin with the gate open as it is for that question, of those that training asked, which tells the classes best,
               if the validation users agree: a vague or a wrong question gets where no small step would lead it.
    lr         step of Adam as a share of each part's own size, falling to 0 by a cosine; batch: users a step.
    valid      share of each class held out of the tuning: the state with the least loss there is kept, and the tuning ends when
               that has not fallen for `patience` steps. balanced: every class is drawn, and weighs, alike.

    The model is frozen and the cache stays as it was; keys and values of the labelled users are held twice meanwhile. The first
    update, of step 0, is the prompt before any step. Source: paper, equation 7 (6 vectors, 500 steps).

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> for now in iter_tune_prompt(engine, engine.prefill(users), "Why?", users.label("Active")):
        ...     if now.step == 3:
        ...         break  # and keep the best so far
        >>> now.prompt, now.best
        (SoftPrompt('Why?', 6 vectors, 2 classes), 0)
    """
    if min(vectors, steps) < 0:
        raise ValueError(f"{vectors} vectors, {steps} steps: both must be 0 or more")
    truth, classes = encode_labels(cache, labels)
    rng = np.random.default_rng(seed)
    tuned, checked = stratified_split(truth, valid, rng)
    tuning = PromptObjective(engine, cache, query, truth, balanced)
    prompt = tuning.begin(classes, tuned, vectors, tau, rng)
    if seek and gate:
        prompt = min(
            prompt,
            tuning.search_initial_prompt(prompt, tuned),
            key=lambda begun: tuning.loss(begun, checked, TEMPERATURE_FACTORS),
        )
    words = engine.model.backbone.get_input_embeddings().weight
    sizes = {"vectors": words.float().std().item(), "prototypes": engine.model.config.embedding_dim**-0.5}
    sizes |= {"offset": OFFSET_SCALE} if gate else {}
    draws = [rng.choice(tuned, min(batch, len(tuned)), p=tuning.weights(tuned)) for _ in range(steps)]
    yield from _descend(tuning, prompt, {name: lr * size for name, size in sizes.items()}, draws, checked, patience)


def _descend(
    tuning: PromptObjective, prompt: SoftPrompt, rates: dict[str, float], draws: list, checked, patience: int
) -> Iterator[TuningState]:
    """Take a step on each draw of users, looking at the validation users every 10; yields how it stands."""
    live = {name: getattr(prompt, name).clone().requires_grad_() for name in rates}
    optimiser = torch.optim.Adam([{"params": [live[name]], "lr": rate} for name, rate in rates.items()])
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, len(draws)))
    history, losses = pd.DataFrame([(0, math.nan, tuning.loss(prompt, checked))], columns=["step", "loss", "valid"]), []
    yield (now := TuningState(0, len(draws), prompt, history))
    for step, rows in enumerate(draws, 1):
        losses.append(tuning.step(replace(prompt, **live), rows, optimiser))
        falling.step()
        now = replace(now, step=step)
        if step % VALIDATION_INTERVAL == 0 or step == len(draws):
            here = replace(prompt, **{name: tensor.detach().clone() for name, tensor in live.items()})
            row, losses = (step, float(np.mean(losses)), tuning.loss(here, checked)), []
            better = row[2] < now.history["valid"].min()
            history = pd.DataFrame([*now.history.itertuples(index=False), row], columns=now.history.columns)
            now = replace(now, history=history, prompt=here if better else now.prompt)
        yield now
        if step - now.best >= patience:
            return
