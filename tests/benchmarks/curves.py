"""Bench `curves`: what a soft prompt gains by vectors and steps, without pre-training, and beside
LoRA on the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import nn

from qanchor.config import SMALL, Config
from qanchor.data.users import Users
from qanchor.evaluation.prompt_evaluation import compare_embeddings, compare_prompt, split_labels
from qanchor.inference.engine import Engine
from qanchor.models.collate import collate_users
from qanchor.models.model import QAnchor
from qanchor.prompt_tuning.labels import balanced_weights, encode_labels, stratified_split
from qanchor.prompt_tuning.soft_prompt import USERS_PER_PASS, class_centroids, class_loss
from qanchor.prompt_tuning.tuning import VALIDATION_INTERVAL, iter_tune_prompt, tune_prompt
from qanchor.training.losses import prototype_loss
from qanchor.training.trainer import FP32MasterWeights
from tests.benchmarks.prompts import VAGUE, held_scores, mean_gain
from tests.benchmarks.speed import fresh
from tests.benchmarks.tasks import askable

# the paper's AUC (average of its ten tasks, with its own questions)
PAPER = {
    "vectors": {1: 0.8146, 2: 0.8169, 4: 0.8201, 6: 0.8225, 8: 0.8205, 16: 0.8215},
    "steps": {100: 0.8159, 500: 0.8225},
}
TAU = 0.07  # that of `iter_tune_prompt`, so that LoRA learns by the same loss


def curves(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 1,
    *,
    config: Config = SMALL,
    most: int = 400,
    tasks: int = 3,
    vectors: tuple[int, ...] = (1, 2, 4, 8, 16),
    each: int = 100,
    steps: int = 500,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Tune a vague question for some labels in several ways, on half of the users, and judge each
    way on the others.

    Curves: `vectors`, so many of them and `each` steps; `steps`, 6 vectors and at most so many (a
    row every `each` of them; it ends where 100 steps better nothing on the validation users, and
    what is best until then is kept); `untrained`, `each` steps on the same model without
    pre-training; `lora`, the run's LoRA trained on the same labels by the same loss for `each`
    steps
    of half as many users, who are read anew each time. tasks: so many of the labels at most, evenly
    from their list, so that they are of several domains.

    before is the probe on the same labels under the typed question (of that model), after the same
    probe on what was tuned.
    rows: one a curve, x and task. average: over the tasks, the gain paired, with its 95 % interval.
    seeds is not looked at.
    """
    people = users().sample(most)
    give = (lambda: QAnchor.from_pretrained(run)) if run else (lambda: fresh(config, people))
    names = askable(people)
    names = names[:: -(-len(names) // tasks)]
    query, held, rows = VAGUE.replace("{user}", people.unit), {}, []
    for curve, x, task, found in _judged(
        people, give, query, names, vectors, each, steps, progress
    ):
        table = found.set_index("measure")
        row = {"curve": curve, "x": x, "task": task, "before": float(table.loc["auc", "before"])}
        rows.append(row | {"after": float(table.loc["auc", "after"])})
        held |= {
            (task, f"{curve} {x} {side}"): scores
            for side, scores in held_scores(people, found).items()
        }
    told = {"data": people.name, "users": len(people), "query": query, "tasks": names, "rows": rows}
    return told | {"average": _averages(people, held, rows), "paper": PAPER}


def _judged(
    people, give, query, names, vectors, each, steps, progress
) -> Iterator[tuple[str, int, str, pd.DataFrame]]:
    """Tune in every way; gives curve, x, task and what the judge found, as it comes."""
    total, done = len(names) * (len(vectors) + 3), 0
    engine = Engine(give())
    cache = engine.prefill(people)
    labels = {name: split_labels(cache, people.label(name), 0.5, 0) for name in names}
    for name, (learn, others) in labels.items():
        for many in vectors:
            prompt, _ = tune_prompt(engine, cache, query, learn, vectors=many, steps=each)
            yield "vectors", many, name, compare_prompt(engine, cache, prompt, learn, others)
            progress("tuning", done := done + 1, total)
        for step, prompt in _until(engine, cache, query, learn, each, steps):
            yield "steps", step, name, compare_prompt(engine, cache, prompt, learn, others)
        progress("tuning", done := done + 1, total)
    before = engine.embed(cache, [query])[:, 0]
    untrained = Engine(
        QAnchor(engine.model.config, engine.model.preprocessor, device=str(engine.model.device))
    )
    blank = untrained.prefill(people)
    for name, (learn, others) in labels.items():
        prompt, _ = tune_prompt(untrained, blank, query, learn, steps=each)
        yield "untrained", each, name, compare_prompt(untrained, blank, prompt, learn, others)
        progress("tuning", done := done + 1, total)
        truth, _ = encode_labels(cache, learn)
        after = fine_tuned(give(), people, query, truth, each)
        yield "lora", each, name, compare_embeddings(before, after, cache.ids, learn, others)
        progress("tuning", done := done + 1, total)


def _until(engine, cache, query, learn, each: int, steps: int) -> Iterator[tuple[int, object]]:
    """Tune once, and give the prompt that would be kept after every `each` steps."""
    reached, prompt = 0, None
    for now in iter_tune_prompt(engine, cache, query, learn, steps=steps):
        prompt = now.prompt
        if now.step and now.step % each == 0:
            yield (reached := now.step), prompt
    for step in range(reached + each, steps + 1, each):  # it ended early: what is kept stays
        yield step, prompt


def fine_tuned(
    model: QAnchor,
    people: Users,
    query: str,
    truth: Int[np.ndarray, " user"],
    steps: int,
    batch: int = 16,
    seed: int = 0,
) -> Float[np.ndarray, "user dim"]:
    """Train the model's LoRA on labels by the prototype loss, all else at rest, and embed the users
    with the best state.

    truth   class of each user, -1 for those that are not to be looked at; a fifth of each class
            validates, as in `tune_prompt`.

    Every step reads its users anew, for what LoRA changes is what a cache would hold. Source of the
    loss: paper, equation 7.
    """
    rng, readings = np.random.default_rng(seed), model.preprocessor.transform(people)
    tuned, checked = stratified_split(truth, 0.2, rng)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora" in name)
    label = torch.from_numpy(truth).to(model.device)
    embed = lambda rows: model.embed(collate_users(readings, rows).to(model.device), query)  # noqa: E731

    @torch.no_grad()
    def all_of(rows):
        return torch.cat(
            [
                embed(some)
                for some in np.split(rows, range(USERS_PER_PASS, len(rows), USERS_PER_PASS))
            ]
        )

    prototypes = nn.Parameter(class_centroids(all_of(tuned), label[tuned]))
    parts = nn.ModuleDict({"model": model, "classes": nn.ParameterList([prototypes])})
    masters = FP32MasterWeights(
        parts, model.config.lora_learning_rate / 3, model.config.embedding_dim**-0.5 / 50, 0.0
    )
    live = {name: weight for name, weight in parts.named_parameters() if weight.requires_grad}
    best = np.inf, {}
    for step in range(steps + 1):
        if step % VALIDATION_INTERVAL == 0 or step == steps:
            loss = class_loss(all_of(checked), label[checked], prototypes, TAU)
            if loss < best[0]:
                best = loss, {name: weight.detach().clone() for name, weight in live.items()}
        if step < steps:
            rows = rng.choice(tuned, min(batch, len(tuned)), p=balanced_weights(truth[tuned]))
            prototype_loss(embed(rows), prototypes, label[rows], TAU).backward()
            masters.step(0.5 * (1 + np.cos(np.pi * step / steps)), model.config.max_grad_norm)
    with torch.no_grad():
        for name, weight in live.items():
            weight.copy_(best[1][name])
    return all_of(np.arange(len(people))).float().cpu().numpy()


def _averages(people: Users, held: dict, rows: list[dict]) -> list[dict]:
    found = []
    for curve, x in dict.fromkeys((row["curve"], row["x"]) for row in rows):
        mine = [row for row in rows if (row["curve"], row["x"]) == (curve, x)]
        sides = {side: float(np.mean([row[side] for row in mine])) for side in ("before", "after")}
        found.append(
            {"curve": curve, "x": x, **sides, "gain": mean_gain(people, held, f"{curve} {x}")}
        )
    return found
