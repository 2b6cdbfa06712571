"""`PointingModel`: a pointing reader with all it needs to read other users."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from qanchor.config import Config
from qanchor.models.pointing import PointingReader
from qanchor.models.population import Population
from qanchor.useru.concepts import Concept

NO_BACKBONE = "none"


class PointingModel(nn.Module):
    """Embed and rank users for a question by attention over their own events.

    `fit` trains one in seconds. Without a language model the question's text vector attends to the
    user's events; with one, its last layers attend to them. Answers are facts counted in them. A `QAnchor` may have one as `pointing`,
    which then ranks its users. Not in the paper.

    Args:
        config: Configuration; only `text_encoder` and `embedding_dim` are used.
        reader: Trained reader.
        concepts: Concepts that it was trained on.
        population: The training users, which percentiles are taken from.

    Example:
        >>> users = qa.make_sample_users(200)
        >>> model = qa.fit(users, text_encoder="hash", steps=10, progress=False)
        >>> len(model.concepts) > 100, model.config.embedding_dim
        (True, 128)
    """

    def __init__(
        self,
        config: Config,
        reader: PointingReader,
        concepts: tuple[Concept, ...],
        population: Population,
    ):
        super().__init__()
        self.config = config
        self.reader = reader
        self.concepts = concepts
        self.population = population
        self.run = ""  # sha256 of the run that the weights were loaded from

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.reader.mean.device

    def save_pretrained(
        self,
        path: str | Path,
        history: pd.DataFrame | None = None,
        metrics: dict | None = None,
    ) -> Path:
        """Save the model as a folder (a *run*), see `QAnchor.save_pretrained`.

        Args:
            path: Folder to write. `QAnchor.from_pretrained` loads it.
            history: Training history (default: none).
            metrics: Anything JSON can hold (default: none).

        Returns:
            The folder.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        from qanchor.models.serialization import save_pointing_model

        return save_pointing_model(self, path, history, metrics)
