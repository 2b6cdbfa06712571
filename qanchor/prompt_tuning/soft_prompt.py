"""Cluster-based soft prompts: a query with learned vectors, and one prototype a class."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
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
from qanchor.inference.prefix_cache import (
    PrefixCache,
    UserBatch,
    empty_user,
    fork_kv,
    select_users,
)
from qanchor.models.collate import QueryBatch, collate_queries
from qanchor.models.heads import QueryEncoding
from qanchor.models.prefix_encoder import Prefix
from qanchor.models.serialization import atomic_replace, restore_interrupted
from qanchor.training.losses import prototype_loss
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import disk_errors
from qanchor.utils.types import EmbeddingRows, UserInts

Rows = Int[np.ndarray, " row"]  # rows of users in a cache
Anchors = Float[Tensor, "user dim"]
Prototypes = Float[Tensor, "label dim"]
ClassNumbers = Int[Tensor, " user"]
FORMAT = 2
TENSORS = ("vectors", "offset", "prototypes")
TEMPERATURE = 0.07  # of the loss
INIT_NOISE = 0.02  # standard deviation of the initial vectors around the mean word vector
# Size of the offset that its learning rate is a share of; text vectors have values of about 1.
# With a larger one, a few hundred labels move a good query away from what it asks.
OFFSET_SCALE = 0.5
USERS_PER_PASS = 64  # users embedded together for a loss over all of them
PAIRS_PER_PASS = 8192  # pairs of user and query in one pass of the heads, about 100 MB
# Multiples of the temperature under which starting points are compared: a few steps correct the
# spread of the embeddings, but not the order of the users.
TEMPERATURE_FACTORS = (1, 2, 4, 8, 16, 32)


class CachedQueryUsers:
    """Cache some users with a query's words run behind their prefixes.

    The words come before the vectors of a soft prompt and do not depend on them, so tuning needs to
    run them only once. Keys and values of these users are stored a second time; users beyond the
    cache's memory budget run again whenever they are selected.

    Args:
        engine: Serves the model.
        cache: From `engine.prefill`; it is not changed.
        rows: Rows of the users in `cache.ids`.
        query: Text.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> cached = CachedQueryUsers(engine, engine.prefill(users), np.arange(5, 30), "Why?")
        >>> sorted(cached.select(np.array([7, 29, 7])).rows.tolist())
        [-1, 7, 7, 29]
    """

    def __init__(self, engine: Engine, cache: PrefixCache, rows: Rows, query: str):
        self.engine = engine
        self.model = engine.model
        self.words = self.model.tokenize_query(query)
        self.groups: list[UserBatch] = []
        self.place = np.full((len(cache), 2), -1)  # group and place of each user in it
        first = cache.groups[0]
        self.empty = self._append_words(empty_user(replace(first, kv=engine.kv(first))))
        for group in cache.groups:
            places = np.flatnonzero(np.isin(group.rows, rows))
            if len(places):
                numbers = np.arange(len(places))
                index = np.column_stack([np.full_like(numbers, len(self.groups)), numbers])
                self.place[group.rows[places]] = index
                self.groups.append(self._append_words(select_users(group, places)))

    def select(self, rows: Rows) -> UserBatch:
        """Return a batch of users, with an empty user (row -1) last.

        Behind the empty user the query is read with no user in front, in the same pass.

        Args:
            rows: Rows of the users; one may be repeated.

        Returns:
            The users, ordered by their groups; shorter prefixes are padded in front.
        """
        place = self.place[rows]
        parts = []
        for number in np.unique(place[:, 0]):
            places = place[place[:, 0] == number, 1]
            parts.append(select_users(self.groups[number], places))
        parts.append(self.empty)
        width = max(part.prefix.mask.shape[1] for part in parts)

        caches = [self.engine.kv(part) for part in parts]
        kv = fork_kv(caches[0])
        for i, layer in enumerate(kv.layers):
            layers = [cache.layers[i] for cache in caches]
            layer.keys = _concatenate([each.keys for each in layers], 2, width)
            layer.values = _concatenate([each.values for each in layers], 2, width)

        columns = {}
        for name in vars(parts[0].prefix):
            tensors = [getattr(part.prefix, name) for part in parts]
            is_padded = name != "coarse"
            columns[name] = _concatenate(tensors, 1, width) if is_padded else torch.cat(tensors)
        all_rows = np.concatenate([part.rows for part in parts])
        return UserBatch(all_rows, Prefix(**columns), kv)

    @torch.no_grad()
    def _append_words(self, group: UserBatch) -> UserBatch:
        """Run the query's words behind the prefixes, as if they were prefix tokens."""
        if not self.words:
            return group
        asked = _without_last_token(collate_queries([[self.words]]).to(self.model.device))
        if group.kv is not None:
            self.model.decode_with_cache(group.prefix, asked, group.kv)
        old = group.prefix
        users = len(old.tokens)
        tokens = self.model.embed_tokens(asked.ids).to(old.tokens.dtype).expand(users, -1, -1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        no_kind = -mask.long()
        longer = replace(
            old,
            tokens=torch.cat([old.tokens, tokens], 1),
            mask=torch.cat([old.mask, mask], 1),
            kind=torch.cat([old.kind, no_kind], 1),
            modality=torch.cat([old.modality, no_kind], 1),
        )
        return UserBatch(group.rows, longer, group.kv)


def _without_last_token(asked: QueryBatch) -> QueryBatch:
    """Return a batch of one query without its <USER_EMB>."""
    names = ("ids", "branch", "offset", "writes", "next_ids")
    return replace(asked, **{name: getattr(asked, name)[:, :-1] for name in names})


def _concatenate(tensors: list[Tensor], dim: int, width: int) -> Tensor:
    """Concatenate along the users, each tensor padded in front to `width` along `dim`."""
    padded = []
    for tensor in tensors:
        later_dims = [0, 0] * (tensor.ndim - 1 - dim)
        padded.append(F.pad(tensor, (*later_dims, width - tensor.shape[dim], 0)))
    return torch.cat(padded)


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Hold a query with learned vectors and one prototype a class. Made by `tune_prompt`.

    It can be used wherever a query can: `engine.embed(cache, prompt)`, also in a list. The vectors
    come after the words and before <USER_EMB>, so cached prefixes stay valid.

    Source: paper, equation 7.

    Example:
        >>> SoftPrompt("Why?", (0, 1), torch.zeros(6, 64), torch.zeros(384), torch.eye(2, 32), 0.07)
        SoftPrompt('Why?', 6 vectors, 2 classes)
    """

    query: str  # words in front of the vectors
    classes: tuple  # labels, in the order of the prototypes
    vectors: Float[Tensor, "vector width"]
    # added to the text vector of the words, which opens the skip's gate; zero in the paper's form
    offset: Float[Tensor, " text"]
    prototypes: Prototypes
    temperature: float
    run: str = ""  # sha256 of the run that it was tuned on; other runs refuse it

    def __repr__(self) -> str:
        sizes = f"{len(self.vectors)} vectors, {len(self.classes)} classes"
        return f"SoftPrompt({self.query!r}, {sizes})"

    def predict_proba(self, anchors: EmbeddingRows) -> Float[np.ndarray, "user label"]:
        """Compute class shares: softmax of anchor @ prototype / temperature.

        Args:
            anchors: Embeddings of users under this prompt.

        Returns:
            Shares that sum to 1, in the order of `classes`.
        """
        prototypes = F.normalize(self.prototypes, dim=-1).cpu()
        logits = torch.from_numpy(anchors).float() @ prototypes.T / self.temperature
        return logits.softmax(-1).numpy()

    def save(self, folder: str | Path) -> Path:
        """Save the prompt as a folder of a few kB: prompt.json and prompt.safetensors.

        Args:
            folder: Folder to write; an older prompt there is replaced.

        Returns:
            The folder.

        Raises:
            ValueError: If the model was not loaded from a run, or the folder holds something else.
        """
        folder = require_vacant(Path(folder))
        if not self.run:
            raise ValueError(
                f"{folder}: the model has no run, 1 is needed: "
                "save it, load the run, and tune on that"
            )
        with atomic_replace(folder) as aside:
            path = aside / "prompt.safetensors"
            with disk_errors(folder):
                save_file({name: getattr(self, name).cpu().contiguous() for name in TENSORS}, path)
            about = {
                "format": FORMAT,
                "query": self.query,
                "classes": self.classes,
                "temperature": self.temperature,
                "run": self.run,
                "sha256": sha256_file(path),
            }
            (aside / "prompt.json").write_text(json.dumps(about, indent=1) + "\n")
        return folder

    @staticmethod
    def load(folder: str | Path, engine: Engine) -> SoftPrompt:
        """Load a saved prompt.

        Args:
            folder: Folder written by `save`.
            engine: Serves the run that the prompt was tuned on.

        Returns:
            The prompt, on the device of the model.

        Raises:
            RunError: If a file is missing or damaged, or the prompt is of another run.
        """
        folder = Path(folder)
        restore_interrupted(folder)
        path = folder / "prompt.json"
        if not path.exists():
            raise RunError(
                f"{folder} is no soft prompt (no prompt.json): "
                f"tune one with `python -m qanchor tune-prompt --out {folder}`"
            )
        try:
            prompt = _read_prompt(folder, str(engine.model.device))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
            raise RunError(
                f"{folder}: {error}: torn, swapped or of another version; "
                "copy it again, or tune it again"
            ) from error
        if prompt.run != engine.model.run:
            served = engine.model.run[:16] or "none"
            raise RunError(
                f"{folder} was tuned on run {prompt.run[:16]}, this engine serves run {served}: "
                "load that run, or tune again"
            )
        return prompt


def _read_prompt(folder: Path, device: str) -> SoftPrompt:
    about = json.loads((folder / "prompt.json").read_text())
    path = folder / "prompt.safetensors"
    digest = sha256_file(path)
    expected = about["sha256"]
    if digest != expected or about["format"] != FORMAT:
        raise ValueError(
            f"{path.name} has sha256 {digest[:16]}, prompt.json says {expected[:16]}, "
            f"format {about['format']} (this version reads {FORMAT})"
        )
    if not isinstance(about["query"], str) or not isinstance(about["run"], str):
        raise ValueError(f"query {about['query']!r} or run {about['run']!r} is no text")
    tensors = load_file(path, device=device)
    return SoftPrompt(
        query=about["query"],
        classes=tuple(about["classes"]),
        temperature=about["temperature"],
        run=about["run"],
        **{name: tensors[name] for name in TENSORS},
    )


def require_vacant(folder: Path) -> Path:
    """Check that a folder is new, empty, or holds a soft prompt, so that saving loses nothing.

    Args:
        folder: Folder to write.

    Returns:
        The folder.

    Raises:
        ValueError: If it holds anything else.
    """
    if folder.exists() and not (folder / "prompt.json").exists():
        names = sorted(path.name for path in folder.iterdir())
        if names:
            raise ValueError(
                f"{folder} holds {names[0]!r} and no prompt.json: "
                "name a new folder, or that of a soft prompt"
            )
    return folder


class PromptObjective:
    """Compute anchors, loss and training steps of a soft prompt on labelled users.

    Args:
        engine: Serves the model, which stays frozen.
        cache: From `engine.prefill`; it is not changed.
        query: Words in front of the prompt's vectors.
        labels: Class number of each user of the cache, -1 for users without a label.
    """

    def __init__(
        self,
        engine: Engine,
        cache: PrefixCache,
        query: str,
        labels: UserInts,
    ):
        self.engine = engine
        self.model = engine.model
        self.query = query
        self.truth = labels
        self.users = CachedQueryUsers(engine, cache, np.flatnonzero(labels >= 0), query)
        self.text_embedding = self.model.query_text_embeddings([query])

    def sizes(self) -> dict[str, float]:
        """Return the size of each part of a prompt, which its learning rate is a share of."""
        words = self.model.backbone.get_input_embeddings().weight
        return {
            "vectors": words.float().std().item(),
            "prototypes": self.model.config.embedding_dim**-0.5,
            "offset": OFFSET_SCALE,
        }

    def initial_vector(self) -> Float[Tensor, " width"]:
        """Return what the vectors of a prompt start at: the mean word vector."""
        words = self.model.backbone.get_input_embeddings().weight
        return words.float().mean(0)

    def anchors(self, prompt: SoftPrompt, batch: UserBatch) -> Anchors:
        """Embed users with gradients for the prompt's vectors and offset.

        Args:
            prompt: Soft prompt.
            batch: From `CachedQueryUsers.select`.
        """
        hidden = self.hidden(prompt, batch)
        # the last row is the empty user: the prompt read with no user in front
        query = QueryEncoding(hidden[-1], self.text_embedding + prompt.offset)
        query = query.expand_to(len(hidden) - 1)
        return self.model.project_anchor(hidden[:-1], batch.prefix.coarse[:-1], query)[:, 0]

    def hidden(self, prompt: SoftPrompt, batch: UserBatch) -> Float[Tensor, "row one width"]:
        """Run the prompt's vectors behind users.

        Args:
            prompt: Soft prompt.
            batch: From `CachedQueryUsers.select`.

        Returns:
            The state at <USER_EMB> of each user; the last row is the empty user.
        """
        (ids,), soft = self.model.tokenize([prompt])
        n_words = len(self.users.words)
        asked = collate_queries([[ids[n_words:]]], soft=soft).to(self.model.device)
        kv = fork_kv(self.engine.kv(batch))
        return self.model.decode_with_cache(batch.prefix, asked, kv)[:, asked.anchor[0]]

    def select(self, rows: Rows) -> UserBatch:
        """Return a batch of users, see `CachedQueryUsers.select`.

        Args:
            rows: Rows of the users; one may be repeated.
        """
        return self.users.select(rows)

    def step(
        self,
        prompt: SoftPrompt,
        rows: Rows,
        optimizer: torch.optim.Optimizer,
    ) -> float:
        """Take one optimizer step.

        Args:
            prompt: Soft prompt whose tensors the optimizer updates.
            rows: Rows of the users of the step.
            optimizer: Optimizer.

        Returns:
            The loss before the step.
        """
        batch = self.select(rows)
        anchors = self.anchors(prompt, batch)
        loss = prototype_loss(anchors, prompt.prototypes, self.labels(batch), prompt.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def loss(
        self,
        prompt: SoftPrompt,
        rows: Rows,
        temperature_factors: Sequence[int] = (1,),
    ) -> float:
        """Compute the loss on users.

        Args:
            prompt: Soft prompt.
            rows: Rows of the users.
            temperature_factors: Multiples of the prompt's temperature; the lowest loss over them
                counts. Default: only the temperature itself.

        Returns:
            The mean loss over classes, however many users each has.
        """
        anchors, labels = self._embed_all(prompt, rows)
        return class_loss(
            anchors,
            labels,
            prompt.prototypes,
            prompt.temperature,
            temperature_factors,
        )

    @torch.no_grad()
    def initialize(
        self,
        classes: tuple,
        rows: Rows,
        vectors: int,
        rng: np.random.Generator,
    ) -> SoftPrompt:
        """Create a prompt at the initial vector, with the class means as prototypes.

        Args:
            classes: Labels, in the order of the class numbers.
            rows: Rows of the users that give the class means.
            vectors: Number of vectors.
            rng: Draws the noise around the mean word vector.
        """
        mean = self.initial_vector()
        noise = torch.from_numpy(rng.normal(0, INIT_NOISE, (vectors, len(mean)))).to(mean)
        prompt = SoftPrompt(
            query=self.query,
            classes=classes,
            vectors=mean + noise,
            offset=torch.zeros_like(self.text_embedding[0]),
            prototypes=mean.new_zeros(len(classes), self.model.config.embedding_dim),
            temperature=TEMPERATURE,
            run=self.model.run,
        )
        return self.with_class_means(prompt, rows)

    def with_class_means(self, prompt: SoftPrompt, rows: Rows) -> SoftPrompt:
        """Return a prompt whose prototypes are the class means of some users under it.

        Args:
            prompt: Soft prompt.
            rows: Rows of the users.
        """
        return replace(prompt, prototypes=class_centroids(*self._embed_all(prompt, rows)))

    @torch.no_grad()
    def search_initial_prompt(self, prompt: SoftPrompt, rows: Rows) -> SoftPrompt:
        """Find the training query whose text vector separates the classes of users best.

        Only the heads run for each training query, so hundreds of them take as long as a few steps.

        Args:
            prompt: Prompt to start from.
            rows: Rows of the labelled users.

        Returns:
            The prompt with the offset to that text vector and its class means; without a skip or
            stored training queries, the prompt unchanged.
        """
        skip = self.model.skip
        if skip is None:
            return prompt
        batches = list(self._batches(rows))
        hidden = [self.hidden(prompt, batch) for batch in batches]
        users = torch.cat([states[:-1] for states in hidden])
        query_hidden = hidden[0][-1]
        coarse = torch.cat([batch.prefix.coarse[:-1] for batch in batches])
        labels = torch.cat([self.labels(batch) for batch in batches])
        # they are stored at unit length: scale them back to values of about 1
        stored = skip.query_memory[skip.query_memory.any(-1)]
        candidates = stored * skip.query_memory.shape[1] ** 0.5
        best_loss = math.inf
        best_prompt = prompt
        for chunk in candidates.split(max(1, PAIRS_PER_PASS // len(users))):
            encoding = QueryEncoding(query_hidden.expand(len(chunk), -1), chunk)
            states = users.expand(-1, len(chunk), -1)
            anchors = self.model.project_anchor(states, coarse, encoding.expand_to(len(users)))
            for candidate, z in zip(chunk, anchors.unbind(1), strict=True):
                centroids = class_centroids(z, labels)
                loss = class_loss(z, labels, centroids, prompt.temperature, TEMPERATURE_FACTORS)
                if loss < best_loss:
                    best_loss = loss
                    offset = candidate - self.text_embedding[0]
                    best_prompt = replace(prompt, offset=offset, prototypes=centroids)
        return best_prompt

    def labels(self, batch: UserBatch) -> ClassNumbers:
        """Return the class numbers of users, on the device of the model.

        Args:
            batch: From `CachedQueryUsers.select`; its last row, the empty user, is left out.
        """
        return torch.from_numpy(self.truth[batch.rows[:-1]]).to(self.model.device)

    def _batches(self, rows: Rows) -> Iterator[UserBatch]:
        for chunk in np.split(rows, range(USERS_PER_PASS, len(rows), USERS_PER_PASS)):
            yield self.select(chunk)

    def _embed_all(self, prompt: SoftPrompt, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the anchors and class numbers of any number of users, in the same order."""
        anchors = []
        labels = []
        for batch in self._batches(rows):
            anchors.append(self.anchors(prompt, batch))
            labels.append(self.labels(batch))
        return torch.cat(anchors), torch.cat(labels)


@torch.no_grad()
def class_loss(
    anchors: Anchors,
    labels: ClassNumbers,
    prototypes: Prototypes,
    temperature: float,
    temperature_factors: Sequence[int] = (1,),
) -> float:
    """Compute the prototype loss (paper, equation 7), averaged over classes.

    Args:
        anchors: Embeddings of users.
        labels: Class number of each user.
        prototypes: One prototype a class.
        temperature: Temperature.
        temperature_factors: Multiples of the temperature; the lowest loss over them counts.
            Default: only the temperature itself.
    """
    masks = [labels == label for label in labels.unique()]
    losses = []
    for factor in temperature_factors:
        parts = [
            prototype_loss(anchors[mask], prototypes, labels[mask], temperature * factor).item()
            for mask in masks
        ]
        losses.append(float(np.mean(parts)))
    return min(losses)


def class_centroids(anchors: Anchors, labels: ClassNumbers) -> Prototypes:
    """Compute the mean embedding of each class, at unit length.

    Args:
        anchors: Embeddings of users.
        labels: Class number of each user.
    """
    means = [anchors[labels == label].mean(0) for label in labels.unique()]
    return F.normalize(torch.stack(means), dim=-1)
