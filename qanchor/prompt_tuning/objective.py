"""Loss and initialization of soft prompts on labelled users."""

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

Rows = Int[np.ndarray, " row"]  # row numbers of users in a cache
Anchors = Float[Tensor, "user dim"]
ClassNumbers = Int[Tensor, " user"]
Prototypes = Float[Tensor, "label dim"]
TEMPERATURE = 0.07  # of the prototype loss
USERS_PER_PASS = 64  # users per forward pass
PROMPTS_PER_PASS = 16  # starting points per forward pass
# Starting points are compared at the best of these multiples of the temperature: a few steps
# correct the spread of the embeddings, but not the order of the users.
TEMPERATURE_FACTORS = (1, 2, 4, 8, 16, 32)


class PromptObjective:
    """Compute embeddings, loss and training steps of a soft prompt on labelled users.

    Args:
        engine: Serves the model, which stays frozen.
        cache: Users from `engine.prefill`; not modified.
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
        """Embed users for prompts, with gradients for the prompts.

        Args:
            prompts: Soft prompts or questions.
            rows: Row numbers of the users; repeats are allowed.
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
            prompt: Soft prompt whose tensors are the optimizer's parameters.
            rows: Row numbers of the users; repeats are allowed.
            optimizer: Optimizer to step.

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
        """Compute the loss averaged over classes, so that classes of any size count equally.

        Args:
            prompt: Soft prompt.
            rows: Row numbers of the users.
            factors: Multiples of the prompt's temperature to try; the lowest loss is returned.
                Default: the temperature itself.
        """
        anchors = self.anchors([prompt], rows)[:, 0]
        return class_loss(anchors, self.labels[rows], prompt, factors)

    @torch.no_grad()
    def initialize(self, classes: tuple, rows: Rows, num_virtual_tokens: int) -> SoftPrompt:
        """Return a prompt equivalent to the question, with class means as prototypes.

        Args:
            classes: Labels, in the order of the class numbers.
            rows: Row numbers of the users whose mean embeddings become the prototypes.
            num_virtual_tokens: Number of vectors, which start as zeros.
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
        """Point the prompt at the training concept that separates the classes best.

        The label of every concept that training asked about is tried as the content of the
        question.

        Args:
            prompt: Prompt to start from.
            rows: Row numbers of the labelled users.

        Returns:
            The prompt with the offset to the best concept, and the class means it gives as
            prototypes.
        """
        asked = dict.fromkeys(concept.label for concept in self.model.concepts if concept.things)
        vectors = text_vectors(list(asked), self.model.config.text_encoder).astype(np.float32)
        tokens = self.tokens
        question = encode_questions(self.model, [self.query], tokens.unit, tokens.horizon_days)
        offsets = torch.from_numpy(vectors) - question.content
        labels = self.labels[rows]
        best_prompt = prompt
        best_loss = np.inf
        for batch in offsets.split(PROMPTS_PER_PASS):
            candidates = [replace(prompt, offset=offset) for offset in batch]
            anchors = self.anchors(candidates, rows).unbind(1)
            for candidate, own in zip(candidates, anchors, strict=True):
                candidate = replace(candidate, prototypes=class_centroids(own, labels))
                loss = class_loss(own, labels, candidate, TEMPERATURE_FACTORS)
                if loss < best_loss:
                    best_loss = loss
                    best_prompt = candidate
        return best_prompt


@torch.no_grad()
def class_loss(
    anchors: Anchors, labels: ClassNumbers, prompt: SoftPrompt, factors: Sequence[int]
) -> float:
    """Compute the prototype loss (paper, equation 7), averaged over classes.

    Args:
        anchors: Embeddings of users.
        labels: Class number of each user.
        prompt: Soft prompt that the users were embedded for.
        factors: Multiples of its temperature to try; the lowest loss is returned.
    """
    masks = [labels == label for label in labels.unique()]
    losses = []
    for factor in factors:
        temperature = prompt.temperature * factor
        parts = []
        for mask in masks:
            loss = prototype_loss(anchors[mask], prompt.prototypes, labels[mask], temperature)
            parts.append(loss.item())
        losses.append(float(np.mean(parts)))
    return min(losses)


def class_centroids(anchors: Anchors, labels: ClassNumbers) -> Prototypes:
    """Compute the mean embedding of each class, scaled to unit length.

    Args:
        anchors: Embeddings of users.
        labels: Class number of each user.
    """
    means = [anchors[labels == label].mean(0) for label in labels.unique()]
    return F.normalize(torch.stack(means), dim=-1)
