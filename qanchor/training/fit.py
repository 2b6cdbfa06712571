"""`fit`: from users to a model that answers typed questions about them."""

from __future__ import annotations

from pathlib import Path

import torch

from qanchor.data.users import Users
from qanchor.models.defaults import CROSSING_LAYERS, NO_BACKBONE
from qanchor.models.model import Config, QAnchor, make_body
from qanchor.models.pointing import PointingReader
from qanchor.models.text_encoder import text_vectors
from qanchor.models.user_tokens import TokenReader
from qanchor.training.concept_task import make_concept_task
from qanchor.training.reader import train_reader
from qanchor.training.teaching import make_taught_task
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
    checkpoint: str | Path | None = None,
    progress: StageProgress | bool = True,
) -> QAnchor:
    """Train a model on users' own past, without labels.

    Concepts to ask about are induced from the events. At earlier cut-offs, the model learns to
    predict what followed. `python -m tests.benchmarks fitted` measures how long it takes. A
    language model also learns from a model without one, which is trained first.

    Args:
        users: The users, from `read_events` or `load_users`. Events at or after their cut-off are
            not read.
        minutes: Stop training after this many minutes (default: no limit).
        seed: Seed of the weights and the sampling (default 0).
        text_encoder: Encoder of questions and events: "minilm" (default), "hash" (random vectors,
            for tests), a Hugging Face id, or a local folder.
        steps: Training steps (default 240; 120 with a language model).
        backbone: Language model whose last layers read the users' events: "none" (default),
            "smollm2" (packaged), "tiny" (random weights, for tests), a Hugging Face id, or a local
            folder. `python -m tests.benchmarks reading` compares it with "none".
        crossing_layers: Number of its last layers that attend to the users (default 8); 0 is the
            paper's form, in which a user is a prefix that runs through all layers.
        checkpoint: File for checkpoints (default: none). If it exists, training resumes from it and
            gives the same weights up to rounding.
        progress: True for progress bars with the time left (default), False for none, or a
            function that is called with (stage, done, total).

    Returns:
        The model. Pass it to `Engine`, or save it with `save_pretrained`.

    Raises:
        ValueError: The history is too short, or too few users have one.
        CheckpointError: The checkpoint belongs to another training run, or is damaged.
        WeightsError: The language model cannot be loaded.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> engine.embed(engine.prefill(users), "Will this user travel soon?").shape
        (60, 128)
    """
    config = Config(text_encoder, backbone, crossing_layers if backbone != NO_BACKBONE else 0)
    bars = ProgressBars()
    report = bars if progress is True else progress or (lambda *_: None)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            text = text_vectors(["user"], text_encoder).shape[1]
            reader = PointingReader(text, make_body(config, text))
        report(INDUCING, 0, 1)
        task = make_concept_task(users, text_encoder, seed)
        report(INDUCING, 1, 1)
        if reader.has_language_model:
            task = make_taught_task(task, steps, seed, report)
        history = train_reader(
            reader,
            task,
            steps=steps,
            minutes=minutes,
            seed=seed,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            progress=report,
        )
    finally:
        bars.close()
    tokens = TokenReader(users, text_encoder).read()
    population = tokens.with_associations(task.associations.of_all_users()).population
    return QAnchor(config, reader, task.concepts, population, history).eval()
