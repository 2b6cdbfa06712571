"""Query encodings, the shared projection, and the query-gated skip connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

GATE_WIDTH = 256  # hidden width of the skip's gate
# Cosine to the nearest training query: from the first on a query is familiar (novelty 0), below
# the second it is novel (novelty 1).
FAMILIAR_SIMILARITY = 0.8
NOVEL_SIMILARITY = 0.6
MAX_WHITENED = 8.0  # standard deviations at which whitened states are clipped


class Projection(nn.Module):
    """Project hidden states to the embedding space: whiten, Linear, ReLU, Linear.

    Source: paper, section 3.2.

    Args:
        width: Width of the backbone.
        hidden: Hidden width.
        dim: Output dimensions.
    """

    def __init__(self, width: int, hidden: int, dim: int):
        super().__init__()
        # hidden states of a language model are nearly parallel: without centring, every cosine
        # starts near 1
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.inner = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, dim)

    def whiten(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Standardize hidden states with the fitted mean and standard deviation.

        Args:
            hidden: Hidden states of the backbone.

        Returns:
            Standardized states, clipped at 8 standard deviations.
        """
        standardized = (hidden.float() - self.centre) / self.spread
        return standardized.clamp(-MAX_WHITENED, MAX_WHITENED)

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... dim"]:
        return self.out(F.relu(self.inner(self.whiten(hidden))))


class QueryEncoding(NamedTuple):
    """Hold queries as the heads read them, the same for every user.

    hidden is the state at <USER_EMB> with no user in front; text_embedding is the text vector of
    the query, scaled to values of about 1 (width 0 without the skip).
    """

    hidden: Float[Tensor, "... width"]
    text_embedding: Float[Tensor, "... text"]

    def at(self, index) -> QueryEncoding:
        """Select queries.

        Args:
            index: Index, slice or index array of any shape.

        Returns:
            The queries at `index`, in its shape.
        """
        return QueryEncoding(self.hidden[index], self.text_embedding[index])

    def expand_to(self, users: int) -> QueryEncoding:
        """Repeat the queries for every user, without copying.

        Args:
            users: Number of users.

        Returns:
            Tensors of shape (user, query, ...) for tensors of shape (query, ...).
        """
        return QueryEncoding(*(part.expand(users, -1, -1) for part in self))


@runtime_checkable
class SoftPromptProtocol(Protocol):
    """Describe a query with learned vectors, such as `qa.SoftPrompt`."""

    query: str  # words in front of the vectors
    vectors: Float[Tensor, "vector width"]
    offset: Float[Tensor, " text"]  # added to the text vector of the words
    run: str  # sha256 of the run that it was tuned on


QueryLike = str | SoftPromptProtocol


@dataclass(frozen=True, eq=False)
class EncodedQueries:
    """Hold queries that were tokenized and encoded once, for repeated use.

    Made by `Engine.encode_query` and `Engine.encode_queries`.
    """

    queries: tuple[QueryLike, ...]
    ids: list[list[int]]  # token ids; ids below USER_EMB are rows of `soft`
    soft: Float[Tensor, "vector width"] | None  # vectors of the soft prompts
    encoding: QueryEncoding | None  # None: a model from `fit`

    def __len__(self) -> int:
        return len(self.queries)

    def text_vectors(self) -> Float[np.ndarray, "query text"]:
        """Return the unit text vectors of the queries, as `text_vectors` gives them.

        The text encoder's vectors are float16, so undoing the scale of the encoding is exact.
        """
        scaled = self.encoding.text_embedding.cpu().numpy()
        vectors = scaled / max(scaled.shape[1], 1) ** 0.5
        return vectors.astype(np.float16).astype(np.float32)


def require_own_prompt(query: QueryLike, run: str) -> None:
    """Raise ValueError if a query is a soft prompt that was tuned on another run.

    Args:
        query: Text or soft prompt.
        run: sha256 of the run of the model.
    """
    if isinstance(query, str) or query.run == run:
        return
    prompt_run = query.run[:16] or "unsaved"
    model_run = run[:16] or "unsaved"
    raise ValueError(
        f"the soft prompt of {query.query!r} was tuned on run {prompt_run}, "
        f"this model is of run {model_run}: load that run, or tune it again"
    )


def query_text(query: QueryLike) -> str:
    """Return the words of a query.

    Args:
        query: Text or soft prompt.
    """
    return query if isinstance(query, str) else query.query


class GatedSkip(nn.Module):
    """Carry the coarse numbers past the language model, gated by the text of the query.

    Not in the paper: between the prefix tokens and the embedding most of what the tables know is
    lost, and this restores it. The gate reads the query's text vector, which covers rewordings
    better than the language model's state, and its ReLU closes most channels, so that an embedding
    reveals little that the query does not ask for. The coarse numbers belong to the prefix, so
    cached prefixes stay valid. The target tower has no skip.

    Args:
        coarse: Number of coarse numbers.
        text: Width of the text vectors.
        hidden: Hidden width.
        dim: Output dimensions.
        dropout: Dropout probability.
        memory: Training queries kept to measure novelty.
    """

    def __init__(self, coarse: int, text: int, hidden: int, dim: int, dropout: float, memory: int):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(coarse, hidden)
        self.straight = nn.Linear(coarse, hidden, bias=False)
        self.gate = nn.Sequential(
            nn.Linear(text, GATE_WIDTH), nn.GELU(), nn.Linear(GATE_WIDTH, hidden), nn.ReLU()
        )
        self.out = nn.Linear(hidden, dim)
        # how far the prefix moves the anchor off the query's own state
        self.share = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("query_memory", torch.zeros(memory, text))

    @torch.no_grad()
    def remember(self, text_embedding: Float[Tensor, "query text"]) -> None:
        """Fill the query memory with training queries, by farthest-point sampling.

        Args:
            text_embedding: Text vectors of the training queries. If there are more than the memory
                holds, each stored query is the one least similar to those before it.
        """
        unit = F.normalize(text_embedding, dim=-1)
        similarity = torch.full((len(unit),), -1.0, device=unit.device)
        farthest = 0
        for row in self.query_memory[: len(unit)]:
            row.copy_(unit[farthest])
            similarity = torch.maximum(similarity, unit @ unit[farthest])
            farthest = int(similarity.argmin())

    def novelty(self, text_embedding: Float[Tensor, "... text"]) -> Float[Tensor, "... one"]:
        """Compute how unlike the training queries each query is.

        Args:
            text_embedding: Text vectors of the queries, of any length.

        Returns:
            0 (similar to a training query) to 1 (unlike all of them).
        """
        similarity = F.normalize(text_embedding, dim=-1) @ self.query_memory.T
        nearest = similarity.amax(-1, keepdim=True)
        novelty = (FAMILIAR_SIMILARITY - nearest) / (FAMILIAR_SIMILARITY - NOVEL_SIMILARITY)
        return novelty.clamp(0, 1)

    def forward(
        self,
        coarse: Float[Tensor, "user number"],
        text_embedding: Float[Tensor, "user branch text"],
    ) -> Float[Tensor, "user branch dim"]:
        hidden = self.dropout(F.gelu(self.inner(self.dropout(coarse))))
        features = self.dropout(hidden + self.straight(coarse))
        return self.out(features[:, None] * self.gate(text_embedding))
