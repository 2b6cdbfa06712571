"""Cluster-based soft prompts: vectors learned from labels that stand behind a query, tuned on users that were read once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .backbone import sha256
from .batch import USER_EMB, branches
from .cache import Cache, Group
from .engine import Engine
from .heads import Query
from .held import Held
from .labels import divided, numbered
from .losses import prototype_loss
from .runs import RunError, mend, replaced

FORMAT = 1
TENSORS = ("vectors", "offset", "prototypes")
NOISE = 0.02  # of the first vectors, around the mean word vector
EVERY = 10  # steps between two looks at the validation users
MOVED = 0.5  # the size of the offset, its numbers being about 1: faster, a few hundred labels lead a right question astray
AT_ONCE = 64  # users embedded together when all are


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Ask what labels mean: a query with learned vectors behind it, and one prototype a class. Made by `tune_prompt`.

    Stands wherever a query does: `engine.embed(cache, prompt)`, also in a list with others. The vectors come after the words
    and before <USER_EMB>, so cached prefixes stay valid. offset is added to the words' text vector, which opens the skip's gate
    (zero in the paper's plain form). run: sha256 of the run that it belongs to; another run refuses it.

    Source: paper, equation 7.

    Example:
        >>> SoftPrompt("Why?", (0, 1), torch.zeros(6, 64), torch.zeros(384), torch.eye(2, 32), 0.07)
        SoftPrompt('Why?', 6 vectors, 2 classes)
    """

    query: str
    classes: tuple
    vectors: Float[Tensor, "vector width"]
    offset: Float[Tensor, " text"]
    prototypes: Float[Tensor, "label dim"]
    tau: float
    run: str = ""

    def __repr__(self) -> str:
        return f"SoftPrompt({self.query!r}, {len(self.vectors)} vectors, {len(self.classes)} classes)"

    def chances(self, anchors: Float[np.ndarray, "user dim"]) -> Float[np.ndarray, "user label"]:
        """Give each user's share of every class, in the order of `classes`: softmax of anchor . prototype / tau."""
        logits = torch.from_numpy(anchors).float() @ F.normalize(self.prototypes, dim=-1).cpu().T / self.tau
        return logits.softmax(-1).numpy()

    def save(self, folder) -> Path:
        """Keep it as a folder of a few kB: prompt.json and prompt.safetensors; it takes the place of an older prompt there.

        ValueError: the model was not loaded from a run, or the folder holds something else.
        """
        folder = vacant(Path(folder))
        if not self.run:
            raise ValueError(f"{folder}: the model has no run, 1 is needed: save it, load the run, and tune on that")
        with replaced(folder) as aside:
            save_file({k: getattr(self, k).cpu().contiguous() for k in TENSORS}, aside / "prompt.safetensors")
            told = {k: getattr(self, k) for k in ("query", "classes", "tau", "run")}
            told = {"format": FORMAT, **told, "sha256": sha256(aside / "prompt.safetensors")}
            (aside / "prompt.json").write_text(json.dumps(told, indent=1) + "\n")
        return folder

    @staticmethod
    def load(folder, engine: Engine) -> SoftPrompt:
        """Load what `save` kept, for the run that it was tuned on. RunError: missing, torn, or of another run."""
        folder = Path(folder)
        mend(folder)
        path = folder / "prompt.json"
        if not path.exists():
            raise RunError(
                f"{folder} is no soft prompt (no prompt.json): tune one with `python -m qanchor tune --out {folder}`"
            )
        try:
            told = json.loads(path.read_text())
            found, expected = sha256(folder / "prompt.safetensors"), told.pop("sha256")
            if found != expected or told.pop("format") != FORMAT:
                raise ValueError(
                    f"prompt.safetensors has sha256 {found[:16]}, prompt.json says {expected[:16]}, format {FORMAT}"
                )
            tensors = load_file(folder / "prompt.safetensors", device=str(engine.model.device))
            prompt = SoftPrompt(**told | {"classes": tuple(told["classes"])}, **{k: tensors[k] for k in TENSORS})
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise RunError(f"{folder}: {error}: torn, swapped or of another version; copy it again, or tune it anew") from error
        if prompt.run != engine.model.run:
            ours = engine.model.run[:16] or "none"
            raise RunError(
                f"{folder} was tuned on run {prompt.run[:16]}, this engine serves run {ours}: load that run, or tune anew"
            )
        return prompt


def vacant(folder: Path) -> Path:
    """Refuse a folder that holds anything but a soft prompt: it would be lost."""
    if folder.exists() and not (folder / "prompt.json").exists() and (names := sorted(p.name for p in folder.iterdir())):
        raise ValueError(f"{folder} holds {names[0]!r} and no prompt.json: name a new folder, or that of a soft prompt")
    return folder


def tune_prompt(
    engine: Engine,
    cache: Cache,
    query: str,
    labels: pd.Series,
    *,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> tuple[SoftPrompt, pd.DataFrame]:
    """Learn from labels what a query should look at: a soft prompt and the prototypes of the classes, on users read once.

    labels     index user, any two or more values; NaN is skipped. Only these users are looked at: keep others for judging.
    progress   called with (step, steps).
    how        vectors, steps, seed and so on: the options of `watch_tuning`, which shows every step and can be stopped.

    Returns the prompt and its history: step, loss, valid, one row every 10 steps. Source: paper, equation 7.

    Example:
        >>> users = qa.make_world(40)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> cache = engine.prefill(users)
        >>> prompt, history = tune_prompt(engine, cache, "Why?", users.label("Active"), steps=10)
        >>> engine.embed(cache, ["Why?", prompt]).shape, history.step.tolist()
        ((40, 2, 32), [0, 10])
    """
    for now in watch_tuning(engine, cache, query, labels, **how):
        if progress and now.step:
            progress(now.step, now.steps)
    return now.prompt, now.history


@dataclass(frozen=True, eq=False)
class Tuned:
    """Say how a tuning stands after `step` of at most `steps` steps: the best prompt so far, and the history until here."""

    step: int
    steps: int
    prompt: SoftPrompt
    history: pd.DataFrame

    @property
    def best(self) -> int:
        """Name the step whose prompt is kept: the one with the least loss on the validation users."""
        return int(self.history["step"][self.history["valid"].idxmin()])


def watch_tuning(
    engine: Engine,
    cache: Cache,
    query: str,
    labels: pd.Series,
    *,
    vectors: int = 6,
    steps: int = 500,
    lr: float = 0.02,
    tau: float = 0.07,
    gate: bool = True,
    seed: int = 0,
    valid: float = 0.2,
    patience: int = 100,
    balanced: bool = True,
    batch: int = 32,
) -> Iterator[Tuned]:
    """Tune as `tune_prompt` does, a step at a time: yields how it stands. Close the iterator to stop; what was yielded is kept.

    vectors    how many stand behind the query; gate: also learn what opens the skip (False is the paper's plain form).
    lr         step of Adam as a share of each part's own size, falling to 0 by a cosine; batch: users a step.
    valid      share of each class held out of the tuning: the state with the least loss there is kept, and the tuning ends when
               that has not fallen for `patience` steps. balanced: every class is drawn, and weighs, alike.

    The model is frozen and the cache stays as it was; keys and values of the labelled users are held twice meanwhile. The first
    update, of step 0, is the prompt before any step. Source: paper, equation 7 (6 vectors, 500 steps).

    Example:
        >>> users = qa.make_world(40)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> for now in watch_tuning(engine, engine.prefill(users), "Why?", users.label("Active")):
        ...     if now.step == 3:
        ...         break  # and keep the best so far
        >>> now.prompt, now.best
        (SoftPrompt('Why?', 6 vectors, 2 classes), 0)
    """
    if min(vectors, steps) < 0:
        raise ValueError(f"{vectors} vectors, {steps} steps: both must be 0 or more")
    truth, classes = numbered(cache, labels)
    rng = np.random.default_rng(seed)
    tuned, checked = divided(truth, valid, rng)
    tuning = Tuning(engine, cache, query, truth, balanced)
    prompt = tuning.begin(classes, tuned, vectors, tau, rng)
    words = engine.model.backbone.get_input_embeddings().weight
    sizes = {"vectors": words.float().std().item(), "prototypes": engine.model.config.dim**-0.5}
    sizes |= {"offset": MOVED} if gate else {}
    draws = [rng.choice(tuned, min(batch, len(tuned)), p=tuning.weights(tuned)) for _ in range(steps)]
    yield from _descend(tuning, prompt, {name: lr * size for name, size in sizes.items()}, draws, checked, patience)


def _descend(
    tuning: Tuning, prompt: SoftPrompt, rates: dict[str, float], draws: list, checked, patience: int
) -> Iterator[Tuned]:
    """Take a step on each draw of users, looking at the validation users every 10; yields how it stands."""
    live = {name: getattr(prompt, name).clone().requires_grad_() for name in rates}
    optimiser = torch.optim.Adam([{"params": [live[name]], "lr": rate} for name, rate in rates.items()])
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, len(draws)))
    history, losses = pd.DataFrame([(0, math.nan, tuning.loss(prompt, checked))], columns=["step", "loss", "valid"]), []
    yield (now := Tuned(0, len(draws), prompt, history))
    for step, rows in enumerate(draws, 1):
        losses.append(tuning.step(replace(prompt, **live), rows, optimiser))
        falling.step()
        now = replace(now, step=step)
        if step % EVERY == 0 or step == len(draws):
            here = replace(prompt, **{name: tensor.detach().clone() for name, tensor in live.items()})
            row, losses = (step, float(np.mean(losses)), tuning.loss(here, checked)), []
            better = row[2] < now.history["valid"].min()
            history = pd.DataFrame([*now.history.itertuples(index=False), row], columns=now.history.columns)
            now = replace(now, history=history, prompt=here if better else now.prompt)
        yield now
        if step - now.best >= patience:
            return


class Tuning:
    """Hold the labelled users, and what a prompt's anchors, loss and steps on them are."""

    def __init__(self, engine: Engine, cache: Cache, query: str, truth: Int[np.ndarray, " user"], balanced: bool = True):
        self.engine, self.model, self.query, self.truth, self.balanced = engine, engine.model, query, truth, balanced
        self.held, self.meaning = Held(engine, cache, np.flatnonzero(truth >= 0), query), engine.model.meaning([query])

    def anchors(self, prompt: SoftPrompt, group: Group) -> Float[Tensor, "user dim"]:
        """Embed users of these prefixes; gradients reach the prompt's vectors and offset."""
        (ids,), soft = self.model.spell([prompt])
        asked = branches([[ids[len(self.held.words) :]]], soft=soft).to(self.model.device)
        return self.engine.anchors(group, asked, self.ask(prompt))[:, 0]

    def ask(self, prompt: SoftPrompt) -> Query:
        """Read the prompt with no user in front, as `QAnchor.ask` does, but for the text vector, which is known here."""
        (ids,), soft = self.model.spell([prompt])
        return Query(self.model.read_alone([[*ids, USER_EMB]], soft), self.meaning + prompt.offset)

    def step(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"], optimiser: torch.optim.Optimizer) -> float:
        """Take one step on these users; gives the loss before it."""
        group = self.held.take(rows)
        loss = prototype_loss(self.anchors(prompt, group), prompt.prototypes, self._labels(group), prompt.tau)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    @torch.no_grad()
    def loss(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"]) -> float:
        """Give the loss on these users, every class weighing alike if the tuning is balanced."""
        z, label = self._all(prompt, rows)
        sides = [label == k for k in label.unique()] if self.balanced else [label >= 0]
        return float(np.mean([prototype_loss(z[s], prompt.prototypes, label[s], prompt.tau).item() for s in sides]))

    @torch.no_grad()
    def begin(self, classes: tuple, rows: Int[np.ndarray, " row"], vectors: int, tau: float, rng) -> SoftPrompt:
        """Begin at the mean word vector with a little noise, and at the class means of the anchors that this gives."""
        mean = self.model.backbone.get_input_embeddings().weight.float().mean(0)
        noise = torch.from_numpy(rng.normal(0, NOISE, (vectors, len(mean)))).to(mean)
        offset, none = torch.zeros_like(self.meaning[0]), mean.new_zeros(len(classes), self.model.config.dim)
        prompt = SoftPrompt(self.query, classes, mean + noise, offset, none, tau, self.model.run)
        z, label = self._all(prompt, rows)
        means = torch.stack([z[label == k].mean(0) for k in range(len(classes))])
        return replace(prompt, prototypes=F.normalize(means, dim=-1))

    def weights(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"] | None:
        """Say how often each of these users is drawn: if balanced, every class alike."""
        label = self.truth[rows]
        return 1 / (len(np.unique(label)) * np.bincount(label)[label]) if self.balanced else None

    def _all(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"]) -> tuple[Tensor, Tensor]:
        """Embed many users, some at a time: their anchors and labels."""
        groups = map(self.held.take, np.split(rows, range(AT_ONCE, len(rows), AT_ONCE)))
        z, label = zip(*((self.anchors(prompt, g), self._labels(g)) for g in groups), strict=True)
        return torch.cat(z), torch.cat(label)

    def _labels(self, group: Group) -> Int[Tensor, " user"]:
        return torch.from_numpy(self.truth[group.rows]).to(self.model.device)
