"""Cluster-based soft prompts: vectors learned from labels that stand behind a query, tuned on users that were read once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .backbone import sha256
from .batch import branches
from .cache import Cache, Group, fork
from .engine import Engine
from .heads import Query
from .held import Held
from .losses import prototype_loss
from .runs import RunError, mend, replaced

FORMAT = 1
TENSORS = ("vectors", "offset", "prototypes")
NOISE = 0.02  # of the first vectors, around the mean word vector
EVERY = 10  # steps between two looks at the validation users
MOVED = 0.5  # the size of the offset, its numbers being about 1: faster, a few hundred labels lead a right question astray
AT_ONCE = 64  # users embedded together when all are
FEWEST = 3  # users of a class: two to tune on, one to validate with


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
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SoftPrompt, pd.DataFrame]:
    """Learn from labels what a query should look at: a soft prompt and the prototypes of the classes, on users read once.

    labels     index user, any two or more values; NaN is skipped. Only these users are looked at: keep others for judging.
    vectors    how many stand behind the query; gate: also learn what opens the skip (False is the paper's plain form).
    lr         step of Adam as a share of each part's own size, falling to 0 by a cosine; batch: users a step.
    valid      share of each class held out of the tuning: the state with the least loss there is kept, and the tuning ends when
               that has not fallen for `patience` steps. balanced: every class is drawn, and weighs, alike.
    progress   called with (step, steps).

    The model is frozen and the cache stays as it was; keys and values of the labelled users are held twice meanwhile. Returns
    the prompt and its history: step, loss, valid, one row every 10 steps. Source: paper, equation 7 (6 vectors, 500 steps).

    Example:
        >>> users = qa.make_world(40)
        >>> engine = qa.Engine(qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY)))
        >>> cache = engine.prefill(users)
        >>> prompt, history = tune_prompt(engine, cache, "Why?", users.label("Active"), steps=10)
        >>> engine.embed(cache, ["Why?", prompt]).shape, history.step.tolist()
        ((40, 2, 32), [0, 10])
    """
    truth, classes = _classes(cache, labels)
    rng = np.random.default_rng(seed)
    tuned, checked = _split(truth, valid, rng)
    tuning = Tuning(engine, cache, query, truth, balanced)
    prompt = tuning.begin(classes, tuned, vectors, tau, rng)
    words = engine.model.backbone.get_input_embeddings().weight
    sizes = {"vectors": words.float().std().item(), "prototypes": engine.model.config.dim**-0.5}
    sizes |= {"offset": MOVED} if gate else {}
    draws = [rng.choice(tuned, min(batch, len(tuned)), p=tuning.weights(tuned)) for _ in range(steps)]
    return _descend(tuning, prompt, {name: lr * size for name, size in sizes.items()}, draws, checked, patience, progress)


def _descend(tuning: Tuning, prompt: SoftPrompt, rates: dict[str, float], draws: list, checked, patience: int, progress):
    """Take a step on each draw of users, looking at the validation users every 10: the best prompt, and the history."""
    live = {name: getattr(prompt, name).clone().requires_grad_() for name in rates}
    optimiser = torch.optim.Adam([{"params": [live[name]], "lr": rate} for name, rate in rates.items()])
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, len(draws)))
    history, best, losses = [(0, math.nan, tuning.loss(prompt, checked))], (0, prompt), []
    for step, rows in enumerate(draws, 1):
        losses.append(tuning.step(replace(prompt, **live), rows, optimiser))
        falling.step()
        if step % EVERY == 0 or step == len(draws):
            now = replace(prompt, **{name: tensor.detach().clone() for name, tensor in live.items()})
            history.append((step, float(np.mean(losses)), tuning.loss(now, checked)))
            losses = []
            if history[-1][2] < min(row[2] for row in history[:-1]):
                best = step, now
        if progress:
            progress(step, len(draws))
        if step - best[0] >= patience:
            break
    return best[1], pd.DataFrame(history, columns=["step", "loss", "valid"])


class Tuning:
    """Hold the labelled users, and what a prompt's anchors, loss and steps on them are."""

    def __init__(self, engine: Engine, cache: Cache, query: str, truth: Int[np.ndarray, " user"], balanced: bool = True):
        self.engine, self.model, self.query, self.truth, self.balanced = engine, engine.model, query, truth, balanced
        self.held, self.meaning = Held(engine, cache, np.flatnonzero(truth >= 0), query), engine.model.meaning([query])

    def anchors(self, prompt: SoftPrompt, group: Group) -> Float[Tensor, "user dim"]:
        """Embed users that `Held.take` gave; gradients reach the prompt's vectors and offset."""
        (ids,), soft = self.model.spell([prompt])
        asked = branches([[ids[len(self.held.words) :]]], soft=soft).to(self.model.device)
        hidden = self.model.behind(group.prefix, asked, fork(self.engine.kv(group)))[:, asked.anchor[0]]
        # the last row is nobody: the prompt read with no user in front, as `QAnchor.ask` reads it
        query = Query(hidden[-1], self.meaning + prompt.offset).to_each(len(hidden) - 1)
        return self.model.anchor(hidden[:-1], group.prefix.coarse[:-1], query)[:, 0]

    def step(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"], optimiser: torch.optim.Optimizer) -> float:
        """Take one step on these users; gives the loss before it."""
        group = self.held.take(rows)
        loss = prototype_loss(self.anchors(prompt, group), prompt.prototypes, self.labels(group), prompt.tau)
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
        z, label = zip(*((self.anchors(prompt, g), self.labels(g)) for g in groups), strict=True)
        return torch.cat(z), torch.cat(label)

    def labels(self, group: Group) -> Int[Tensor, " user"]:
        """Give the labels of users that `Held.take` gave."""
        return torch.from_numpy(self.truth[group.rows[:-1]]).to(self.model.device)


def known_labels(cache: Cache, labels: pd.Series) -> pd.Series:
    """Give the labels that are known, in the order of their users' ids; refuse users that were not read, or stand twice."""
    known = labels.dropna()
    known.index = known.index.astype(str)
    if strangers := sorted(set(known.index) - set(cache.ids)):
        raise KeyError(f"labelled user {strangers[0]!r} is not among the {len(cache):,} that were read: prefill it first")
    if known.index.has_duplicates:
        raise ValueError(f"user {known.index[known.index.duplicated()][0]!r} has 2 labels or more: keep one")
    return known.sort_index()


def _classes(cache: Cache, labels: pd.Series) -> tuple[Int[np.ndarray, " user"], tuple]:
    """Number the labels: for each user of the cache the place of its class, -1 for those without a label; and the classes."""
    known = known_labels(cache, labels)
    classes, number, counts = np.unique(known.to_numpy(), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"the {len(known):,} labels are of {len(classes)} class(es), at least 2 are needed: label others too")
    if counts.min() < FEWEST:
        few, told = counts.argmin(), "two to tune on, one to validate with: label more, or leave the class out"
        raise ValueError(f"class {classes.tolist()[few]!r} has {counts[few]} user(s), at least {FEWEST} are needed, {told}")
    truth = pd.Series(number, known.index).reindex(list(cache.ids)).fillna(-1).to_numpy(int)
    return truth, tuple(classes.tolist())


def _split(truth: Int[np.ndarray, " user"], valid: float, rng) -> tuple[Int[np.ndarray, " tuned"], Int[np.ndarray, " checked"]]:
    """Draw the validation users, a share of every class: (rows tuned on, rows validated with)."""
    if not 0 < valid < 1:
        raise ValueError(f"valid is {valid}: it must be above 0 and below 1, a share of the labelled users")
    tuned, checked = [], []
    for label in range(truth.max() + 1):
        rows = rng.permutation(np.flatnonzero(truth == label))
        some = min(max(1, round(valid * len(rows))), len(rows) - 2)
        checked.append(rows[:some])
        tuned.append(rows[some:])
    return np.concatenate(tuned), np.concatenate(checked)
