"""Answers of a reader with a language model: the joint loss, in which users and answers stand side
by side and answers are put in words (paper, section 3.3), and the fit of what answers are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.models.pointing import Anchor, PointingReader, QuestionInput, ThingInput, TokenInput
from qanchor.training.losses import autoregressive_loss, contrastive_loss
from qanchor.useru.concept_answers import graded_answers
from qanchor.useru.concepts import Wording
from qanchor.utils.types import Progress

ANSWERED_PAIRS = 24  # of a user and a question, in a step
TOLD_PAIRS = 48  # likewise, where only what answers are told is fitted
LEARNING_RATE = 1e-2  # of that fit


def answer_losses(
    reader: PointingReader,
    users: TokenInput,
    question: QuestionInput,
    things: ThingInput,
    wordings: Sequence[Wording],
    grades: Int[np.ndarray, "user query"],
    rng: np.random.Generator,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the contrastive and the autoregressive loss over some pairs of users and questions.

    The autoregressive loss is that of the answers behind the users' anchors and of the same answers
    without a user, so that what both say can be compared.

    Args:
        reader: Reader whose body is a `LateCrossing`.
        users: Tokens of the users.
        question: The questions, read by the language model.
        things: What tokens stand for.
        wordings: The questions in words.
        grades: Which of the graded answers is true of each user; -1 if it is not known.
        rng: Random generator that chooses the pairs.
    """
    body = reader.body
    of_user, of_query = draw_pairs(grades, ANSWERED_PAIRS, rng)
    texts, asked, which = _distinct_answers(wordings, grades, of_user, of_query)
    # answers behind the anchors of users, then each distinct one without a user
    known = reader.anchor(users, question, things).at(of_user, of_query)
    alone = body.anchor_alone(question.states).at(0, asked)
    anchor = Anchor(*(torch.cat(parts) for parts in zip(known, alone, strict=True)))
    rows = torch.cat([which, torch.arange(len(texts))])
    encoded = body.encode_answers(*zip(*texts, strict=True)).at(rows)
    hidden = body.answer_states(question.states.at(asked).at(rows), anchor, encoded)
    logits = body.answer_logits(anchor, hidden, encoded.mask)
    # the two towers
    embedding = body.project_anchors(known)
    of_text = len(which) + which
    target = body.project_answers(hidden[of_text], encoded.mask[of_text])
    same = which[:, None] == which[None]
    contrastive = contrastive_loss(embedding.cpu(), target.cpu(), same=same)
    return contrastive, autoregressive_loss(logits, encoded.ids[encoded.mask]).cpu()


@dataclass(frozen=True)
class AnsweredUsers:
    """Users and questions that a reader has read, with the answers that are true.

    Args:
        anchor: Anchors of users and questions.
        question: The questions, read by the language model.
        wordings: The questions in words.
        grades: Which of the graded answers is true of each user; -1 if it is not known.
    """

    anchor: Anchor
    question: QuestionInput
    wordings: Sequence[Wording]
    grades: Int[np.ndarray, "user query"]


def fit_answers(
    reader: PointingReader,
    batches: Sequence[AnsweredUsers],
    steps: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> None:
    """Fit what answers are told of the score and the state behind it, by the loss of the next
    token; all other weights stay as they are.

    Args:
        reader: Trained reader with a language model; changed in place.
        batches: Users and questions.
        steps: Training steps.
        rng: Random generator that chooses the pairs.
        progress: Called with (done, total) steps (default: none).
    """
    tell = reader.body.train().tell.requires_grad_(True)
    optimizer = torch.optim.AdamW(tell.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        loss = told_loss(reader, batches[rng.integers(len(batches))], rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps)
    tell.requires_grad_(False)
    reader.body.eval()


def told_loss(
    reader: PointingReader, batch: AnsweredUsers, rng: np.random.Generator
) -> Float[Tensor, ""]:
    """Return the loss of the next token of some answers.

    Args:
        reader: Reader with a language model.
        batch: Users and questions.
        rng: Random generator that chooses the pairs.
    """
    body = reader.body
    of_user, of_query = draw_pairs(batch.grades, TOLD_PAIRS, rng)
    texts, asked, which = _distinct_answers(batch.wordings, batch.grades, of_user, of_query)
    anchor = batch.anchor.at(of_user, of_query)
    encoded = body.encode_answers(*zip(*texts, strict=True)).at(which)
    hidden = body.answer_states(batch.question.states.at(asked).at(which), anchor, encoded)
    logits = body.answer_logits(anchor, hidden, encoded.mask)
    return autoregressive_loss(logits, encoded.ids[encoded.mask])


def _distinct_answers(
    wordings: Sequence[Wording],
    grades: Int[np.ndarray, "user query"],
    of_user: Int[np.ndarray, " pair"],
    of_query: Int[np.ndarray, " pair"],
) -> tuple[list[tuple[str, str]], list[int], Int[Tensor, " pair"]]:
    """Return the distinct questions and answers of some pairs, the place of the question of each,
    and which of them each pair has.
    """
    pairs = []
    for user, query in zip(of_user, of_query, strict=True):
        wording = wordings[query]
        answers = graded_answers(wording.measure, wording.sign)
        pairs.append((wording.query, answers[grades[user, query]]))
    query_of = dict(zip(pairs, of_query.tolist(), strict=True))
    texts = list(query_of)
    which = torch.tensor([texts.index(pair) for pair in pairs])
    return texts, list(query_of.values()), which


def draw_pairs(
    grades: Int[np.ndarray, "user query"],
    n: int,
    rng: np.random.Generator,
    weights: Float[np.ndarray, " query"] | None = None,
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]:
    """Draw pairs of a user and a question whose answer is known, all grades of a question alike.

    Args:
        grades: Which answer is true; -1 if it is not known.
        n: Pairs to draw, fewer if fewer are known.
        rng: Random generator.
        weights: How often each question is drawn (default: all alike).

    Returns:
        Rows of the users, and places of the questions.
    """
    of_user, of_query = np.nonzero(grades >= 0)
    kind = of_query * (grades.max() + 1) + grades[of_user, of_query]
    weight = 1 / np.bincount(kind)[kind]
    if weights is not None:
        weight = weight * weights[of_query]
    chosen = rng.choice(len(kind), min(n, len(kind)), replace=False, p=weight / weight.sum())
    return of_user[chosen], of_query[chosen]
