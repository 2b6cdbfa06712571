"""Cluster-based soft prompts: vectors learned from labels that stand behind a query, tuned on users that were read once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .batch import branches
from .cache import Cache, Group, fork
from .engine import Engine
from .files import disk_faults, sha256
from .heads import Query
from .held import Held
from .labels import even
from .losses import prototype_loss
from .runs import RunError, mend, replaced

FORMAT = 1
TENSORS = ("vectors", "offset", "prototypes")
NOISE = 0.02  # of the first vectors, around the mean word vector
AT_ONCE = 64  # users embedded together when all are
MILDER = (1, 2, 4, 8, 16, 32)  # temperatures, as multiples: steps soon mend a wrong spread, but not a wrong order of the users
PAIRS_AT_ONCE = 8192  # of a user and a text vector, seen by the heads together: some 100 MB


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
            with disk_faults(folder):
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
            if not all(isinstance(told[name], str) for name in ("query", "run")):
                raise ValueError(f"query {told['query']!r} or run {told['run']!r} is no text")
            tensors = load_file(folder / "prompt.safetensors", device=str(engine.model.device))
            prompt = SoftPrompt(**told | {"classes": tuple(told["classes"])}, **{k: tensors[k] for k in TENSORS})
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
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


class Tuning:
    """Hold the labelled users, and what a prompt's anchors, loss and steps on them are."""

    def __init__(self, engine: Engine, cache: Cache, query: str, truth: Int[np.ndarray, " user"], balanced: bool = True):
        self.engine, self.model, self.query, self.truth, self.balanced = engine, engine.model, query, truth, balanced
        self.held, self.meaning = Held(engine, cache, np.flatnonzero(truth >= 0), query), engine.model.meaning([query])

    def anchors(self, prompt: SoftPrompt, group: Group) -> Float[Tensor, "user dim"]:
        """Embed users that `Held.take` gave; gradients reach the prompt's vectors and offset."""
        hidden = self.hidden(prompt, group)
        # the last row is nobody: the prompt read with no user in front, as `QAnchor.ask` reads it
        query = Query(hidden[-1], self.meaning + prompt.offset).to_each(len(hidden) - 1)
        return self.model.anchor(hidden[:-1], group.prefix.coarse[:-1], query)[:, 0]

    def hidden(self, prompt: SoftPrompt, group: Group) -> Float[Tensor, "row one width"]:
        """Read the prompt's vectors behind these users, and behind nobody: the state at each one's <USER_EMB>."""
        (ids,), soft = self.model.spell([prompt])
        asked = branches([[ids[len(self.held.words) :]]], soft=soft).to(self.model.device)
        return self.model.behind(group.prefix, asked, fork(self.engine.kv(group)))[:, asked.anchor[0]]

    def step(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"], optimiser: torch.optim.Optimizer) -> float:
        """Take one step on these users; gives the loss before it."""
        group = self.held.take(rows)
        loss = prototype_loss(self.anchors(prompt, group), prompt.prototypes, self.labels(group), prompt.tau)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    @torch.no_grad()
    def loss(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"], milder: tuple = (1,)) -> float:
        """Give the loss on these users, every class weighing alike if the tuning is balanced; the least over `milder` tau."""
        return class_loss(*self._all(prompt, rows), prompt.prototypes, prompt.tau, milder, self.balanced)

    @torch.no_grad()
    def begin(self, classes: tuple, rows: Int[np.ndarray, " row"], vectors: int, tau: float, rng) -> SoftPrompt:
        """Begin at the mean word vector with a little noise, and at the class means of the anchors that this gives."""
        mean = self.model.backbone.get_input_embeddings().weight.float().mean(0)
        noise = torch.from_numpy(rng.normal(0, NOISE, (vectors, len(mean)))).to(mean)
        offset, none = torch.zeros_like(self.meaning[0]), mean.new_zeros(len(classes), self.model.config.dim)
        prompt = SoftPrompt(self.query, classes, mean + noise, offset, none, tau, self.model.run)
        return replace(prompt, prototypes=centres(*self._all(prompt, rows)))

    @torch.no_grad()
    def sought(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"]) -> SoftPrompt:
        """Begin elsewhere: at that text vector of a taught query under which the classes of these users lie best apart.

        Only the heads run anew, so hundreds of them cost what a few steps do. Without a skip it is the prompt as it was.
        """
        skip = self.model.skip
        if skip is None:
            return prompt
        groups = [self.held.take(some) for some in np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))]
        hidden = [self.hidden(prompt, group) for group in groups]
        users, alone = torch.cat([h[:-1] for h in hidden]), hidden[0][-1]
        coarse, label = torch.cat([g.prefix.coarse[:-1] for g in groups]), torch.cat([self.labels(g) for g in groups])
        # they are kept at unit length: give each number back its size of about 1
        taught, best = skip.taught[skip.taught.any(-1)] * skip.taught.shape[1] ** 0.5, (math.inf, prompt)
        for some in taught.split(max(1, PAIRS_AT_ONCE // len(users))):
            query = Query(alone.expand(len(some), -1), some).to_each(len(users))
            for meaning, z in zip(
                some, self.model.anchor(users.expand(-1, len(some), -1), coarse, query).unbind(1), strict=True
            ):
                loss = class_loss(z, label, middle := centres(z, label), prompt.tau, MILDER, self.balanced)
                if loss < best[0]:
                    best = loss, replace(prompt, offset=meaning - self.meaning[0], prototypes=middle)
        return best[1]

    def weights(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"] | None:
        """Say how often each of these users is drawn: if balanced, every class alike."""
        return even(self.truth[rows]) if self.balanced else None

    def _all(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"]) -> tuple[Tensor, Tensor]:
        """Embed many users, some at a time: their anchors and labels."""
        groups = map(self.held.take, np.split(rows, range(AT_ONCE, len(rows), AT_ONCE)))
        z, label = zip(*((self.anchors(prompt, g), self.labels(g)) for g in groups), strict=True)
        return torch.cat(z), torch.cat(label)

    def labels(self, group: Group) -> Int[Tensor, " user"]:
        """Give the labels of users that `Held.take` gave."""
        return torch.from_numpy(self.truth[group.rows[:-1]]).to(self.model.device)


@torch.no_grad()
def class_loss(
    z: Float[Tensor, "user dim"],
    label: Int[Tensor, " user"],
    prototypes: Float[Tensor, "label dim"],
    tau: float,
    milder: Sequence[int] = (1,),
    balanced: bool = True,
) -> float:
    """Give the prototype loss, every class weighing alike if balanced; the least over `milder` times tau (equation 7)."""
    sides = [label == k for k in label.unique()] if balanced else [label >= 0]
    return min(
        float(np.mean([prototype_loss(z[s], prototypes, label[s], tau * times).item() for s in sides])) for times in milder
    )


def centres(z: Float[Tensor, "user dim"], label: Int[Tensor, " user"]) -> Float[Tensor, "label dim"]:
    """Give the mean anchor of each class, at unit length."""
    return F.normalize(torch.stack([z[label == k].mean(0) for k in label.unique()]), dim=-1)
