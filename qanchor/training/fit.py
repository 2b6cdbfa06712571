"""`fit`: from users to a model that answers typed questions about them, in seconds."""

from __future__ import annotations

import torch

from qanchor.config import SMALL
from qanchor.data.users import Users
from qanchor.models.crossing import CROSSING_LAYERS, LateCrossing
from qanchor.models.pointing import EMBEDDING_DIM, PointingReader
from qanchor.models.pointing_model import NO_BACKBONE, PointingModel
from qanchor.models.text_encoder import text_vectors
from qanchor.models.user_tokens import TokenReader
from qanchor.training.reader import make_concept_task, train_reader
from qanchor.utils.progress import ProgressBars
from qanchor.utils.types import StageProgress

INDUCING = "inducing concepts"


def fit(
    users: Users,
    minutes: float | None = None,
    *,
    seed: int = 0,
    text_encoder: str = "minilm",
    steps: int | None = None,
    backbone: str = NO_BACKBONE,
    crossing_layers: int = CROSSING_LAYERS,
    progress: StageProgress | bool = True,
) -> PointingModel:
    """Train a model on users' own past, without labels.

    Concepts that can be asked about are induced from the events, and the model learns at earlier
    cut-offs what followed. `python -m tests.benchmarks fitted` measures how long it takes.

    Args:
        users: The users, from `read_events` or `load_users`. Events at or after their cut-off are
            not read.
        minutes: Stop training after so many minutes (default: never).
        seed: Seed of weights and draws (default 0).
        text_encoder: Encoder of questions and events: "minilm" (default), "hash" (knows no words,
            for tests), a Hugging Face id, or a local folder.
        steps: Training steps (default 240; 120 with a language model).
        backbone: Language model whose last layers read the users' events: "none" (default),
            "smollm2" (packaged), "tiny" (random weights, for tests), a Hugging Face id, or a local
            folder. `python -m tests.benchmarks reading` compares it with "none".
        crossing_layers: Last layers of it that look at the users (default 8).
        progress: True for progress bars with the time left (default), False for none, or a
            function that is called with (stage, done, total).

    Returns:
        The model. Pass it to `Engine`, or save it with `save_pretrained`.

    Raises:
        ValueError: The history is too short, or too few users have one.
        WeightsError: The language model cannot be loaded.

    Example:
        >>> users = qa.make_sample_users(200)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> engine.embed(engine.prefill(users), "Will this user travel soon?").shape
        (200, 128)
    """
    bars = ProgressBars()
    report = bars if progress is True else progress or _ignore
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            text = text_vectors(["user"], text_encoder).shape[1]
            body = None
            if backbone != NO_BACKBONE:
                body = LateCrossing(backbone, text, crossing_layers)
            reader = PointingReader(text, body)
        report(INDUCING, 0, 1)
        task = make_concept_task(users, text_encoder, seed)
        report(INDUCING, 1, 1)
        train_reader(reader, task, steps=steps, minutes=minutes, seed=seed, progress=report)
    finally:
        bars.close()
    tokens = TokenReader(users, text_encoder).read()
    population = tokens.with_associations(task.associations.of_all_users()).population
    config = SMALL.replace(
        backbone=backbone,
        text_encoder=text_encoder,
        embedding_dim=EMBEDDING_DIM,
        lora_num_layers=reader.body.n_layers if reader.has_language_model else 0,
    )
    return PointingModel(config, reader, task.concepts, population).eval()


def _ignore(stage: str, done: int, total: int) -> None:
    """Report nothing."""
