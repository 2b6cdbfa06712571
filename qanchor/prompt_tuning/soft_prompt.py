"""Cluster-based soft prompts, tuned on cached prefixes."""

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

from qanchor.errors import RunError
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache, UserBatch, empty_user, fork_kv, select_users
from qanchor.models.collate import collate_queries
from qanchor.models.heads import QueryEncoding
from qanchor.models.prefix_encoder import Prefix
from qanchor.models.serialization import atomic_replace, restore_interrupted
from qanchor.prompt_tuning.labels import balanced_weights
from qanchor.training.losses import prototype_loss
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import disk_errors


class CachedQueryUsers:
    """Hold some users of a cache with a query's words read behind their prefixes; any of them can be taken at will.

    Words come before a soft prompt's vectors and do not depend on them: read here once, they cost its tuning nothing. Keys and
    values of these users are held a second time; those beyond the cache's budget are read again whenever they are taken.
    Beside those taken stands, last, row -1: nobody, behind whom the query is read alone in the same pass.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> held = CachedQueryUsers(engine, engine.prefill(users), np.arange(5, 30), "Why?")
        >>> sorted(held.take(np.array([7, 29, 7])).rows.tolist())
        [-1, 7, 7, 29]
    """

    def __init__(self, engine: Engine, cache: PrefixCache, rows: Int[np.ndarray, " row"], query: str):
        self.engine, self.model, self.words = engine, engine.model, engine.model.tokenize_query(query)
        self.groups, self.place = [], np.full((len(cache), 2), -1)
        whole = cache.groups[0]
        self.nobody = self._behind(empty_user(replace(whole, kv=engine.kv(whole))))
        for group in cache.groups:
            some = np.flatnonzero(np.isin(group.rows, rows))
            if len(some):
                self.place[group.rows[some]] = [[len(self.groups), i] for i in range(len(some))]
                self.groups.append(self._behind(select_users(group, some)))

    def take(self, rows: Int[np.ndarray, " row"]) -> UserBatch:
        """Lay any users (one may come twice) side by side, and nobody last; shorter prefixes get pads in front, never seen."""
        where = self.place[rows]
        parts = [select_users(self.groups[g], where[where[:, 0] == g, 1]) for g in np.unique(where[:, 0])] + [self.nobody]
        width = max(p.prefix.mask.shape[1] for p in parts)
        caches = [self.engine.kv(p) for p in parts]
        kv = fork_kv(caches[0])
        for layer, each in zip(kv.layers, zip(*(c.layers for c in caches), strict=True), strict=True):
            layer.keys, layer.values = (
                _side_by_side([getattr(x, name) for x in each], 2, width) for name in ("keys", "values")
            )
        columns = {name: [getattr(p.prefix, name) for p in parts] for name in vars(parts[0].prefix)}
        prefix = {name: torch.cat(c) if name == "coarse" else _side_by_side(c, 1, width) for name, c in columns.items()}
        return UserBatch(np.concatenate([p.rows for p in parts]), Prefix(**prefix), kv)

    @torch.no_grad()
    def _behind(self, group: UserBatch) -> UserBatch:
        """Read the query's words behind the prefixes, as if they were slots of these."""
        if not self.words:
            return group
        asked = collate_queries([[self.words]]).to(self.model.device)
        parts = ("ids", "branch", "offset", "writes", "next_ids")
        asked = replace(asked, **{name: getattr(asked, name)[:, :-1] for name in parts})  # without <USER_EMB>
        if group.kv is not None:
            self.model.decode_with_cache(group.prefix, asked, group.kv)
        old = group.prefix
        slots = self.model.embed_tokens(asked.ids).to(old.slots.dtype).expand(len(old.slots), -1, -1)
        mask = torch.ones(slots.shape[:2], dtype=torch.bool, device=slots.device)
        grown = {"slots": slots, "mask": mask, "kind": -mask.long(), "modality": -mask.long()}
        grown = {name: torch.cat([getattr(old, name), more], 1) for name, more in grown.items()}
        return UserBatch(group.rows, replace(old, **grown), group.kv)


def _side_by_side(tensors: list[Tensor], dim: int, width: int) -> Tensor:
    """Concatenate along the users, padded in front to `width` along `dim`."""
    return torch.cat([F.pad(t, (*([0, 0] * (t.ndim - 1 - dim)), width - t.shape[dim], 0)) for t in tensors])


FORMAT = 1
TENSORS = ("vectors", "offset", "prototypes")
INIT_NOISE = 0.02  # of the first vectors, around the mean word vector
USERS_PER_PASS = 64  # users embedded together when all are
TEMPERATURE_FACTORS = (
    1,
    2,
    4,
    8,
    16,
    32,
)  # temperatures, as multiples: steps soon mend a wrong spread, but not a wrong order of the users
PAIRS_PER_PASS = 8192  # of a user and a text vector, seen by the heads together: some 100 MB


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

    def predict_proba(self, anchors: Float[np.ndarray, "user dim"]) -> Float[np.ndarray, "user label"]:
        """Give each user's share of every class, in the order of `classes`: softmax of anchor . prototype / tau."""
        logits = torch.from_numpy(anchors).float() @ F.normalize(self.prototypes, dim=-1).cpu().T / self.tau
        return logits.softmax(-1).numpy()

    def save(self, folder) -> Path:
        """Keep it as a folder of a few kB: prompt.json and prompt.safetensors; it takes the place of an older prompt there.

        ValueError: the model was not loaded from a run, or the folder holds something else.
        """
        folder = require_vacant(Path(folder))
        if not self.run:
            raise ValueError(f"{folder}: the model has no run, 1 is needed: save it, load the run, and tune on that")
        with atomic_replace(folder) as aside:
            with disk_errors(folder):
                save_file({k: getattr(self, k).cpu().contiguous() for k in TENSORS}, aside / "prompt.safetensors")
            told = {k: getattr(self, k) for k in ("query", "classes", "tau", "run")}
            told = {"format": FORMAT, **told, "sha256": sha256_file(aside / "prompt.safetensors")}
            (aside / "prompt.json").write_text(json.dumps(told, indent=1) + "\n")
        return folder

    @staticmethod
    def load(folder, engine: Engine) -> SoftPrompt:
        """Load what `save` wrote, for the run that it was tuned on. RunError: missing, torn, or of another run."""
        folder = Path(folder)
        restore_interrupted(folder)
        path = folder / "prompt.json"
        if not path.exists():
            raise RunError(
                f"{folder} is no soft prompt (no prompt.json): tune one with `python -m qanchor tune --out {folder}`"
            )
        try:
            told = json.loads(path.read_text())
            found, expected = sha256_file(folder / "prompt.safetensors"), told.pop("sha256")
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


def require_vacant(folder: Path) -> Path:
    """Refuse a folder that holds anything but a soft prompt: it would be lost."""
    if folder.exists() and not (folder / "prompt.json").exists() and (names := sorted(p.name for p in folder.iterdir())):
        raise ValueError(f"{folder} holds {names[0]!r} and no prompt.json: name a new folder, or that of a soft prompt")
    return folder


class PromptObjective:
    """Hold the labelled users, and what a prompt's anchors, loss and steps on them are."""

    def __init__(self, engine: Engine, cache: PrefixCache, query: str, truth: Int[np.ndarray, " user"], balanced: bool = True):
        self.engine, self.model, self.query, self.truth, self.balanced = engine, engine.model, query, truth, balanced
        self.held, self.meaning = (
            CachedQueryUsers(engine, cache, np.flatnonzero(truth >= 0), query),
            engine.model.query_text_embeddings([query]),
        )

    def anchors(self, prompt: SoftPrompt, group: UserBatch) -> Float[Tensor, "user dim"]:
        """Embed users that `Held.take` gave; gradients reach the prompt's vectors and offset."""
        hidden = self.hidden(prompt, group)
        # the last row is nobody: the prompt read with no user in front, as `QAnchor.ask` reads it
        query = QueryEncoding(hidden[-1], self.meaning + prompt.offset).expand_to(len(hidden) - 1)
        return self.model.project_anchor(hidden[:-1], group.prefix.coarse[:-1], query)[:, 0]

    def hidden(self, prompt: SoftPrompt, group: UserBatch) -> Float[Tensor, "row one width"]:
        """Read the prompt's vectors behind these users, and behind nobody: the state at each one's <USER_EMB>."""
        (ids,), soft = self.model.tokenize([prompt])
        asked = collate_queries([[ids[len(self.held.words) :]]], soft=soft).to(self.model.device)
        return self.model.decode_with_cache(group.prefix, asked, fork_kv(self.engine.kv(group)))[:, asked.anchor[0]]

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
        noise = torch.from_numpy(rng.normal(0, INIT_NOISE, (vectors, len(mean)))).to(mean)
        offset, none = torch.zeros_like(self.meaning[0]), mean.new_zeros(len(classes), self.model.config.embedding_dim)
        prompt = SoftPrompt(self.query, classes, mean + noise, offset, none, tau, self.model.run)
        return replace(prompt, prototypes=class_centroids(*self._all(prompt, rows)))

    @torch.no_grad()
    def search_initial_prompt(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"]) -> SoftPrompt:
        """Begin elsewhere: at that text vector of a taught query under which the classes of these users lie best apart.

        Only the heads run anew, so hundreds of them cost what a few steps do. Without a skip it is the prompt as it was.
        """
        skip = self.model.skip
        if skip is None:
            return prompt
        groups = [self.held.take(some) for some in np.split(rows, range(USERS_PER_PASS, len(rows), USERS_PER_PASS))]
        hidden = [self.hidden(prompt, group) for group in groups]
        users, alone = torch.cat([h[:-1] for h in hidden]), hidden[0][-1]
        coarse, label = torch.cat([g.prefix.coarse[:-1] for g in groups]), torch.cat([self.labels(g) for g in groups])
        # they are kept at unit length: give each number back its size of about 1
        taught, best = skip.query_memory[skip.query_memory.any(-1)] * skip.query_memory.shape[1] ** 0.5, (math.inf, prompt)
        for some in taught.split(max(1, PAIRS_PER_PASS // len(users))):
            query = QueryEncoding(alone.expand(len(some), -1), some).expand_to(len(users))
            for meaning, z in zip(
                some, self.model.project_anchor(users.expand(-1, len(some), -1), coarse, query).unbind(1), strict=True
            ):
                loss = class_loss(z, label, middle := class_centroids(z, label), prompt.tau, TEMPERATURE_FACTORS, self.balanced)
                if loss < best[0]:
                    best = loss, replace(prompt, offset=meaning - self.meaning[0], prototypes=middle)
        return best[1]

    def weights(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"] | None:
        """Say how often each of these users is drawn: if balanced, every class alike."""
        return balanced_weights(self.truth[rows]) if self.balanced else None

    def _all(self, prompt: SoftPrompt, rows: Int[np.ndarray, " row"]) -> tuple[Tensor, Tensor]:
        """Embed many users, some at a time: their anchors and labels."""
        groups = map(self.held.take, np.split(rows, range(USERS_PER_PASS, len(rows), USERS_PER_PASS)))
        z, label = zip(*((self.anchors(prompt, g), self.labels(g)) for g in groups), strict=True)
        return torch.cat(z), torch.cat(label)

    def labels(self, group: UserBatch) -> Int[Tensor, " user"]:
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


def class_centroids(z: Float[Tensor, "user dim"], label: Int[Tensor, " user"]) -> Float[Tensor, "label dim"]:
    """Give the mean anchor of each class, at unit length."""
    return F.normalize(torch.stack([z[label == k].mean(0) for k in label.unique()]), dim=-1)
