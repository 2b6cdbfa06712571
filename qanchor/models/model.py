"""`QAnchor`: a trained reader, with everything needed to read new users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from qanchor.models.crossing import LateCrossing
from qanchor.models.defaults import NO_BACKBONE
from qanchor.models.language_body import LanguageBody
from qanchor.models.pointing import EMBEDDING_DIM, PointingReader
from qanchor.models.population import Population
from qanchor.models.prefix import UserPrefix
from qanchor.useru.concepts import Concept
from qanchor.utils.device import best_device


@dataclass(frozen=True)
class Config:
    """Configuration of a model.

    Args:
        text_encoder: Encoder of questions and events, see `fit` (default "minilm").
        backbone: Language model that reads the events, see `fit` (default "none").
        crossing_layers: Number of its last layers that attend to the users; 0 (default) is the
            paper's form, in which a user is a prefix.
    """

    text_encoder: str = "minilm"
    backbone: str = NO_BACKBONE
    crossing_layers: int = 0

    @property
    def embedding_dim(self) -> int:
        """Return the number of dimensions of an embedding."""
        return EMBEDDING_DIM


class QAnchor(nn.Module):
    """Embed and rank users for a question by attention over their own events.

    `fit` trains one in about a minute. Without a language model, the text vector of the question
    attends to the user's events; with one, the language model reads them. Answers are facts counted
    from the events; a language model adds a predicted answer in front.

    Args:
        config: Configuration.
        reader: Trained reader.
        concepts: Concepts that it was trained on.
        population: Distributions over the training users, for percentiles.
        history: One row per training step: step, loss, ranking, contrastive, autoregressive
            (default: none).

    Example:
        >>> users = qa.make_sample_users(60)
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
        history: pd.DataFrame | None = None,
    ):
        super().__init__()
        self.config = config
        self.reader = reader
        self.concepts = concepts
        self.population = population
        self.history = history
        self.run = ""  # sha256 of the run that the weights were loaded from

    @property
    def device(self) -> torch.device:
        """Return the device that users are read on."""
        return next(self.reader.body.parameters()).device

    @classmethod
    def from_pretrained(cls, path: str | Path) -> QAnchor:
        """Load a run from a folder.

        Args:
            path: Folder written by `save_pretrained`.

        Returns:
            The model in evaluation mode.

        Raises:
            RunError: A file is missing, damaged, or has another format.
            WeightsError: The language model of the run cannot be loaded.

        Example:
            >>> import tempfile
            >>> users = qa.make_sample_users(60)
            >>> model = qa.fit(users, text_encoder="hash", steps=10, progress=False)
            >>> folder = model.save_pretrained(tempfile.mkdtemp() + "/run")
            >>> qa.QAnchor.from_pretrained(folder).config == model.config
            True
        """
        from qanchor.models.serialization import load_model

        return load_model(path)

    def save_pretrained(self, path: str | Path, metrics: dict | None = None) -> Path:
        """Save the model as a folder (a *run*).

        The folder holds config.json, concepts.json, reader.safetensors and, if there are any,
        history.json and metrics.json. An existing run is replaced only when the new one is
        complete. The pretrained weights of the language model are not saved.

        Args:
            path: Folder to write.
            metrics: Anything JSON can hold (default: none).

        Returns:
            The folder.

        Raises:
            OSError: The disk is full or the folder cannot be written.
        """
        from qanchor.models.serialization import save_model

        return save_model(self, path, metrics)


def make_body(config: Config, text: int) -> LanguageBody | None:
    """Return the language model body of a reader, on the GPU if there is one.

    Args:
        config: Configuration of the model.
        text: Dimension of the text vectors.

    Returns:
        The body; None if the backbone is "none".

    Raises:
        WeightsError: The language model cannot be loaded.
        ValueError: `crossing_layers` is negative.
    """
    if config.backbone == NO_BACKBONE:
        return None
    if config.crossing_layers == 0:
        body = UserPrefix(config.backbone, text)
    else:
        body = LateCrossing(config.backbone, text, config.crossing_layers)
    return body.to(best_device())
