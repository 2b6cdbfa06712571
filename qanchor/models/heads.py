"""The heads: from hidden states, and from the coarse numbers that a query lets through, to the embedding."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

GATE = 256  # width inside the skip's gate
KNOWN, STRANGE = 0.8, 0.6  # cosine to the nearest taught query: from the first on nothing of the portrait, below the second all


class Projection(nn.Module):
    """Take a hidden state to the embedding space: whitened, Linear, ReLU, Linear (paper, section 3.2)."""

    def __init__(self, width: int, hidden: int, dim: int):
        super().__init__()
        # hidden states of a language model are nearly parallel: without centring every cosine starts near 1
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.inner = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, dim)

    def whiten(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return ((hidden.float() - self.centre) / self.spread).clamp(-8, 8)

    def forward(self, hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... dim"]:
        return self.out(F.relu(self.inner(self.whiten(hidden))))


class QueryEncoding(NamedTuple):
    """A query in numbers, whoever is asked: its state read with no user in front, and the text vector of its words."""

    hidden: Float[Tensor, "... width"]
    text_embedding: Float[Tensor, "... text"]

    def at(self, place) -> QueryEncoding:
        """Choose queries by their place: an array of any shape."""
        return QueryEncoding(self.hidden[place], self.text_embedding[place])

    def expand_to(self, users: int) -> QueryEncoding:
        """Ask the same of every user: (query, ...) to (user, query, ...)."""
        return QueryEncoding(*(part.expand(users, -1, -1) for part in self))


@runtime_checkable
class SoftPromptProtocol(Protocol):
    """What can be asked though nobody can type it: words, vectors behind them, and what is added to the words' text vector."""

    query: str
    vectors: Float[Tensor, "vector width"]
    offset: Float[Tensor, " text"]
    run: str  # sha256 of the run that it was learned on


QueryLike = str | SoftPromptProtocol


def query_text(query: QueryLike) -> str:
    """Give the words of a query, typed or learned."""
    return query if isinstance(query, str) else query.query


class GatedSkip(nn.Module):
    """Carry the coarse numbers past the language model, gated by what the query asks; the answer's tower has none.

    Not in the paper: between the slots and the embedding most of what the tables know is lost, and this brings it back.
    What the numbers say is worked out once a user; the gate reads the query's text vector, which knows a question in new words
    better than a language model's state does, and chooses from it: its ReLU shuts most of them out, so that an embedding says
    what was asked and little else. The coarse numbers belong to the prefix, so cached prefixes stay valid.
    """

    def __init__(self, coarse: int, text: int, hidden: int, dim: int, dropout: float, memory: int):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(coarse, hidden)
        self.straight = nn.Linear(coarse, hidden, bias=False)
        self.gate = nn.Sequential(nn.Linear(text, GATE), nn.GELU(), nn.Linear(GATE, hidden), nn.ReLU())
        self.out = nn.Linear(hidden, dim)
        self.share = nn.Parameter(torch.tensor(0.1))  # how far the prefix moves the anchor off the query read alone
        self.register_buffer("query_memory", torch.zeros(memory, text))

    @torch.no_grad()
    def remember(self, meaning: Float[Tensor, "query text"]) -> None:
        """Keep text vectors of queries that training asks, as many as there is room for: each farthest from those before."""
        unit = F.normalize(meaning, dim=-1)
        best, at = torch.full((len(unit),), -1.0, device=unit.device), 0
        for row in self.query_memory[: len(unit)]:
            row.copy_(unit[at])
            best = torch.maximum(best, unit @ unit[at])
            at = int(best.argmin())

    def novelty(self, meaning: Float[Tensor, "... text"]) -> Float[Tensor, "... one"]:
        """Say how unlike all taught queries a query is: 0 (near one of them) to 1."""
        near = (F.normalize(meaning, dim=-1) @ self.query_memory.T).amax(-1, keepdim=True)
        return ((KNOWN - near) / (KNOWN - STRANGE)).clamp(0, 1)

    def forward(
        self, coarse: Float[Tensor, "user number"], meaning: Float[Tensor, "user branch text"]
    ) -> Float[Tensor, "user branch dim"]:
        hidden = self.dropout(F.gelu(self.inner(self.dropout(coarse))))
        known = self.dropout(hidden + self.straight(coarse))
        return self.out(known[:, None] * self.gate(meaning))
