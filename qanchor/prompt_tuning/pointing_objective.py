"""Soft prompts for a run from `fit`: what a question points at is tuned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qanchor.inference.evidence import encode_questions
from qanchor.inference.pointing_engine import PointingEngine
from qanchor.inference.prefix_cache import PrefixCache, UserBatch
from qanchor.models.pointing import thing_input, token_input
from qanchor.prompt_tuning.soft_prompt import (
    OFFSET_SCALE,
    Anchors,
    ClassNumbers,
    PromptObjective,
    Rows,
    SoftPrompt,
)
from qanchor.utils.types import UserInts


class PointingObjective(PromptObjective):
    """Compute anchors, loss and training steps of a soft prompt that changes where a question points.

    The offset is added to the text vector of the content words, the sum of the vectors to that of
    the whole question.

    Args:
        engine: Serves the model, which stays frozen.
        cache: From `engine.prefill`; it is not changed.
        query: Words of the prompt.
        labels: Class number of each user of the cache, -1 for users without a label.
    """

    def __init__(
        self,
        engine: PointingEngine,
        cache: PrefixCache,
        query: str,
        labels: UserInts,
    ):
        self.engine = engine
        self.model = engine.model
        self.query = query
        self.truth = labels
        self.tokens = cache.tokens
        self.things = thing_input(cache.tokens)
        self.question = encode_questions(
            self.model, [query], cache.tokens.unit, cache.tokens.horizon_days
        )
        self.text_embedding = self.question.content

    def sizes(self) -> dict[str, float]:
        """Return the size of each part of a prompt, which its learning rate is a share of."""
        text = self.text_embedding.shape[1] ** -0.5  # text vectors have length 1
        return {
            "vectors": text / 8,
            "prototypes": self.model.config.embedding_dim**-0.5,
            "offset": OFFSET_SCALE * text,
        }

    def initial_vector(self) -> Float[Tensor, " text"]:
        """Return what the vectors of a prompt start at: nothing."""
        return torch.zeros_like(self.text_embedding[0])

    def anchors(self, prompt: SoftPrompt, batch: UserBatch) -> Anchors:
        """Embed users with gradients for the prompt's vectors and offset.

        Args:
            prompt: Soft prompt.
            batch: Rows of the users.
        """
        question = self.question._replace(
            vector=self.question.vector + prompt.vectors.sum(0),
            content=self.question.content + prompt.offset,
        )
        users = token_input(self.tokens, batch.rows)
        return self.model.reader(users, question, self.things).embedding[:, 0]

    def labels(self, batch: UserBatch) -> ClassNumbers:
        """Return the class numbers of users.

        Args:
            batch: Rows of the users.
        """
        return torch.from_numpy(self.truth[batch.rows])

    def select(self, rows: Rows) -> UserBatch:
        """Return a batch of users.

        Args:
            rows: Rows of the users; one may be repeated.
        """
        return UserBatch(rows, None, None)

    @torch.no_grad()
    def search_initial_prompt(self, prompt: SoftPrompt, rows: Rows) -> SoftPrompt:
        """Find the thing that separates the classes of users best when the prompt points at it.

        Args:
            prompt: Prompt to start from.
            rows: Rows of the labelled users.

        Returns:
            The prompt with the offset to that thing and its class means.
        """
        best_prompt = prompt
        best_loss = np.inf
        for vector in self.things.vector:
            offset = vector - self.text_embedding[0]
            candidate = self.with_class_means(replace(prompt, offset=offset), rows)
            loss = self.loss(candidate, rows)
            if loss < best_loss:
                best_loss = loss
                best_prompt = candidate
        return best_prompt
