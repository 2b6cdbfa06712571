"""User-understanding pairs (UserU, paper 3.1): questions about concepts with graded answers.

Concepts, wordings and grades are those that `fit` trains on; see `qanchor.training.concept_task`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.training.answers import draw_pairs
from qanchor.training.concept_task import (
    ConceptTask,
    Sample,
    is_held_out,
    make_concept_task,
    question_weights,
)
from qanchor.useru.concept_answers import graded_answers
from qanchor.useru.concepts import Concept, Wording
from qanchor.utils.io import atomic_directory, write_json

COUNTED = ("split", "family", "measure", "grade")  # in the report of `write_pairs`


def make_pairs(
    users: Users, *, per_user: int = 8, seed: int = 0, text_encoder: str = "minilm"
) -> pd.DataFrame:
    """Make questions with graded answers from users' events.

    Concepts are induced from the events. Each has several question wordings, affirmative or
    negated. At each past cut-off, the answers are computed from the days that follow. Each family
    of concepts gets a fixed share of the pairs, and all grades of a question are equally likely, so
    that rare answers occur. Nothing at or after `users.cutoff` is read.

    Args:
        users: The users.
        per_user: Average number of pairs per user at each past cut-off (default 8).
        seed: Seed of the wordings and the sampling (default 0).
        text_encoder: Encoder of the texts that concepts are made of, as in `fit` (default
            "minilm").

    Returns:
        One row per pair, with columns `user`; `cutoff` (only earlier events may be input);
        `horizon_days` (the answer covers this many days after the cut-off); `query`; `answer`;
        `concept` (its label), `family` and `measure`; `sign` (-1 if the question is negated, else
        1); `grade` (0 is the lowest); and `split`: "train", or "held_out_user", "held_out_concept"
        or "held_out_wording" for pairs to keep out of training.

    Raises:
        ValueError: `per_user` is below 1, the history is too short, or too few users have one.

    Example:
        >>> pairs = make_pairs(qa.make_sample_users(60), per_user=2, text_encoder="hash")
        >>> len(pairs), pairs["answer"][0]
        (480, 'Yes, much.')
    """
    return pd.concat(iter_pairs(users, per_user, seed, text_encoder), ignore_index=True)


def write_pairs(
    users: Users,
    folder: str | Path,
    *,
    per_user: int = 8,
    seed: int = 0,
    text_encoder: str = "minilm",
) -> dict:
    """Write the pairs of `make_pairs` into a new folder: one parquet file per past cut-off.

    Only the pairs of one cut-off are in memory. The folder appears when all files are complete.

    Args:
        users: The users.
        folder: Folder to create.
        per_user: As in `make_pairs`.
        seed: As in `make_pairs`.
        text_encoder: As in `make_pairs`.

    Returns:
        The content of `pairs.json` in the folder: number of pairs, the cut-off of each file, and
        pairs by split, family, measure and grade.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: As in `make_pairs`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "pairs"
        >>> write_pairs(qa.make_sample_users(60), folder, per_user=2, text_encoder="hash")["pairs"]
        480
    """
    folder = Path(folder)
    if folder.exists():
        if not folder.is_dir() or any(folder.iterdir()):
            raise FileExistsError(f"{folder} exists and is not empty. Choose a new folder.")
        folder.rmdir()
    cutoffs = {}
    counts = {name: Counter() for name in COUNTED}
    with atomic_directory(folder) as aside:
        for number, pairs in enumerate(iter_pairs(users, per_user, seed, text_encoder)):
            file = f"pairs-{number:04d}.parquet"
            pairs.to_parquet(aside / file, index=False, compression="zstd")
            cutoffs[file] = str(pairs["cutoff"].iloc[0])
            for name, counted in counts.items():
                counted.update(pairs[name].astype(str))
        report = {"source": users.name, "pairs": counts["split"].total(), "cutoffs": cutoffs}
        report |= {name: dict(sorted(counted.items())) for name, counted in counts.items()}
        write_json(aside / "pairs.json", report)
    return report


def iter_pairs(
    users: Users, per_user: int = 8, seed: int = 0, text_encoder: str = "minilm"
) -> Iterator[pd.DataFrame]:
    """Yield the pairs of one past cut-off at a time, earliest first.

    Args:
        users: The users.
        per_user: As in `make_pairs`.
        seed: As in `make_pairs`.
        text_encoder: As in `make_pairs`.
    """
    if per_user < 1:
        raise ValueError(f"per_user is {per_user}. Pass 1 or more.")
    task = make_concept_task(users, text_encoder, seed)
    # training rounds the time that a wording names to the nearest horizon; here the answer must
    # cover exactly the days that the question names
    asked = [
        place
        for place, question in enumerate(task.questions)
        if question.wording.days in (0, question.days)
    ]
    for number, sample in enumerate(reversed(task.samples)):
        rng = np.random.default_rng([seed, number])
        yield _draw(task, sample, np.array(asked), per_user, rng)


def _draw(
    task: ConceptTask, sample: Sample, asked: np.ndarray, per_user: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Draw pairs at one cut-off, sorted by user."""
    n_users = len(sample.rows)
    grades = task.grades(sample, np.arange(n_users), asked)
    weights = question_weights(task, asked)
    rows, columns = draw_pairs(grades, per_user * n_users, rng, weights)
    pairs = []
    for place in np.lexsort((columns, rows)).tolist():
        row = rows[place]
        column = columns[place]
        question = task.questions[asked[column]]
        concept = task.concepts[question.concept]
        wording = question.wording
        user = sample.tokens.ids[row]
        grade = int(grades[row, column])
        pair = {
            "user": user,
            "cutoff": sample.cutoff,
            "horizon_days": question.days,
            "query": wording.query,
            "answer": graded_answers(wording.measure, wording.sign)[grade],
            "concept": concept.label,
            "family": concept.family,
            "measure": wording.measure,
            "sign": wording.sign,
            "grade": grade,
            "split": _split(user, concept, wording),
        }
        pairs.append(pair)
    return pd.DataFrame(pairs)


def _split(user: str, concept: Concept, wording: Wording) -> str:
    """Return the split of a pair, see `make_pairs`."""
    if is_held_out(user):
        return "held_out_user"
    if concept.split == "held_out":
        return "held_out_concept"
    return "held_out_wording" if wording.held_out else "train"
