"""Queries: plain texts, or soft prompts that were tuned on a run."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class SoftPromptProtocol(Protocol):
    """Describe a query with learned vectors, such as `qa.SoftPrompt`."""

    @property
    def query(self) -> str:
        """Text of the question."""

    @property
    def vectors(self) -> Float[Tensor, "vector width"]:
        """Vectors whose sum is added to the text vector of the question."""

    @property
    def offset(self) -> Float[Tensor, " text"]:
        """Vector added to the text vector of the content words."""

    @property
    def run(self) -> str:
        """Sha256 of the run that it was tuned on."""


QueryLike = str | SoftPromptProtocol


def query_text(query: QueryLike) -> str:
    """Return the text of a query.

    Args:
        query: Text or soft prompt.
    """
    return query if isinstance(query, str) else query.query


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
        f"The soft prompt of {query.query!r} was tuned on run {prompt_run}, but this model is run"
        f" {model_run}. Load that run, or tune the prompt again."
    )
