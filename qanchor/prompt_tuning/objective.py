"""The loss of soft prompts on labelled users, and where a prompt may start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.inference.engine import Engine
from qanchor.inference.evidence import encode_questions
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.pointing import thing_input, token_input
from qanchor.models.text_encoder import text_vectors
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.training.losses import prototype_loss
from qanchor.utils.types import UserInts

Rows = Int[np.ndarray, " row"]  # rows of users in a cache
Anchors = Float[Tensor, "user dim"]
ClassNumbers = Int[Tensor, " user"]
Prototypes = Float[Tensor, "label dim"]
TEMPERATURE = 0.07  # of the loss
USERS_PER_PASS = 64  # users embedded together for a loss over all of them
PROMPTS_PER_PASS = 16  # starting points that are embedded together
# Multiples of the temperature under which starting points are compared: a few steps correct the
# spread of the embeddings, but not the order of the users.
TEMPERATURE_FACTORS = (1, 2, 4, 8, 16, 32)


class PromptObjective:
    """Compute embeddings, loss and training steps of a soft prompt on labelled users.

    Args:
        engine: Serves the model, which stays frozen.
        cache: From `engine.prefill`; it is not changed.
        query: The question.
        labels: Class number of each user of the cache, -1 for users without a label.
    """

    def __init__(self, engine: Engine, cache: PrefixCache, query: str, labels: UserInts):
        self.model = engine.model
        self.query = query
        self.labels = torch.tensor(labels)
        self.tokens = cache.tokens
        self.things = thing_input(cache.tokens)

    def anchors(
        self, prompts: Sequence[SoftPrompt | str], rows: Rows
    ) -> Float[Tensor, "user prompt dim"]:
        """Embed users under prompts, with gradients for the prompts.

        Args:
            prompts: Soft prompts or questions.
            rows: Rows of the users; one may be repeated.
        """
        tokens = self.tokens
        question = encode_questions(self.model, prompts, tokens.unit, tokens.horizon_days)
        parts = []
        with self.model.reader.threads():
            for batch in np.split(rows, range(USERS_PER_PASS, len(rows), USERS_PER_PASS)):
                users = token_input(tokens, batch)
                parts.append(self.model.reader(users, question, self.things).embedding)
        return torch.cat(parts)

    def step(self, prompt: SoftPrompt, rows: Rows, optimizer: torch.optim.Optimizer) -> float:
        """Take one optimizer step.

        Args:
            prompt: Soft prompt with the parameters of the optimizer.
            rows: Rows of the users; one may be repeated.
            optimizer: Optimizer.

        Returns:
            The loss before the step.
        """
        anchors = self.anchors([prompt], rows)[:, 0]
        loss = prototype_loss(anchors, prompt.prototypes, self.labels[rows], prompt.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def loss(self, prompt: SoftPrompt, rows: Rows, factors: Sequence[int] = (1,)) -> float:
        """Compute the mean loss over classes, however many users each has.

        Args:
            prompt: Soft prompt.
            rows: Rows of the users.
            factors: Multiples of the prompt's temperature; the lowest loss over them counts.
                Default: only the temperature itself.
        """
        anchors = self.anchors([prompt], rows)[:, 0]
        temperatures = [prompt.temperature * factor for factor in factors]
        return class_loss(anchors, self.labels[rows], prompt.prototypes, temperatures)

    @torch.no_grad()
    def initialize(self, classes: tuple, rows: Rows, num_virtual_tokens: int) -> SoftPrompt:
        """Return a prompt that is the question itself, with the class means as prototypes.

        Args:
            classes: Labels, in the order of the class numbers.
            rows: Rows of the users that give the class means.
            num_virtual_tokens: Number of vectors.
        """
        anchors = self.anchors([self.query], rows)[:, 0]
        width = self.things.vector.shape[1]
        return SoftPrompt(
            query=self.query,
            classes=classes,
            vectors=torch.zeros(num_virtual_tokens, width),
            offset=torch.zeros(width),
            prototypes=class_centroids(anchors, self.labels[rows]),
            temperature=TEMPERATURE,
            run=self.model.run,
        )

    @torch.no_grad()
    def search_start(self, prompt: SoftPrompt, rows: Rows) -> SoftPrompt:
        """Find which of the things that training asked about separates the classes best when the
        prompt points at it.

        Args:
            prompt: Prompt to start from.
            rows: Rows of the labelled users.

        Returns:
            The prompt with the offset to that thing and its class means.
        """
        asked = dict.fromkeys(concept.label for concept in self.model.concepts if concept.things)
        vectors = text_vectors(list(asked), self.model.config.text_encoder).astype(np.float32)
        tokens = self.tokens
        question = encode_questions(self.model, [self.query], tokens.unit, tokens.horizon_days)
        offsets = torch.from_numpy(vectors) - question.content
        labels = self.labels[rows]
        temperatures = [prompt.temperature * factor for factor in TEMPERATURE_FACTORS]
        best_prompt = prompt
        best_loss = np.inf
        for batch in offsets.split(PROMPTS_PER_PASS):
            candidates = [replace(prompt, offset=offset) for offset in batch]
            anchors = self.anchors(candidates, rows)
            for place, candidate in enumerate(candidates):
                centroids = class_centroids(anchors[:, place], labels)
                loss = class_loss(anchors[:, place], labels, centroids, temperatures)
                if loss < best_loss:
                    best_loss = loss
                    best_prompt = replace(candidate, prototypes=centroids)
        return best_prompt


@torch.no_grad()
def class_loss(
    anchors: Anchors,
    labels: ClassNumbers,
    prototypes: Prototypes,
    temperatures: Sequence[float],
) -> float:
    """Compute the prototype loss (paper, equation 7), averaged over classes.

    Args:
        anchors: Embeddings of users.
        labels: Class number of each user.
        prototypes: One prototype a class.
        temperatures: Temperatures; the lowest loss over them counts.
    """
    masks = [labels == label for label in labels.unique()]
    losses = []
    for temperature in temperatures:
        parts = [
            prototype_loss(anchors[mask], prototypes, labels[mask], temperature).item()
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
