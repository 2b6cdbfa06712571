"""Train the answers of a reader with a language model.

The joint loss (paper, section 3.3) has a contrastive and an autoregressive part. Afterwards, the
projection of `Anchor.told` is fitted: the score and state, which are an extra input of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.models.language_body import LanguageBody
from qanchor.models.pointing import Anchor, PointingReader, QuestionInput
from qanchor.training.losses import autoregressive_loss, contrastive_loss
from qanchor.useru.concept_answers import graded_answers
from qanchor.useru.concepts import Wording
from qanchor.utils.types import Progress

ANSWERED_PAIRS = 24  # (user, question) pairs per step of the joint loss
TOLD_PAIRS = 48  # (user, question) pairs per step of `fit_answers`
LEARNING_RATE = 1e-2  # of `fit_answers`

Loss = Float[Tensor, ""]
Grades = Int[np.ndarray, "user query"]  # grade of the true answer; -1 if unknown
PairRows = Int[np.ndarray, " pair"]


@dataclass(frozen=True)
class AnsweredUsers:
    """Anchors of users and questions, with the true answers.

    Args:
        anchor: Anchors of users and questions.
        question: The questions, with `states` from the language model.
        wordings: Wordings of the questions.
        grades: Grade of the true answer for each user and question; -1 if unknown.
    """

    anchor: Anchor
    question: QuestionInput
    wordings: Sequence[Wording]
    grades: Grades


class AnsweredPairs(NamedTuple):
    """Random pairs of users and questions, with the texts of their true answers."""

    anchor: Anchor  # of each pair
    texts: list[tuple[str, str]]  # distinct (question, answer)
    asked: Int[Tensor, " text"]  # index of the question of each text
    which: Int[Tensor, " pair"]  # index of the text of each pair


def answer_losses(
    reader: PointingReader, batch: AnsweredUsers, rng: np.random.Generator
) -> tuple[Loss, Loss]:
    """Compute the contrastive and the autoregressive loss on random pairs of users and questions.

    The autoregressive loss covers answers given the users' anchors, and the same answers without a
    user, so that `score_answers` can compare their likelihoods.

    Args:
        reader: Reader with a language model.
        batch: Users and questions with the true answers.
        rng: Random generator that draws the pairs.
    """
    body = reader.body
    pairs = _answered_pairs(batch, ANSWERED_PAIRS, rng)
    # answers after the anchors of users, then each distinct answer without a user
    alone = body.anchor_alone(batch.question.states).at(0, pairs.asked)
    anchor = Anchor(*(torch.cat(parts) for parts in zip(pairs.anchor, alone, strict=True)))
    rows = torch.cat([pairs.which, torch.arange(len(pairs.texts))])
    hidden, mask, autoregressive = _read_answers(body, batch.question, pairs, anchor, rows)
    # the two towers
    embedding = body.project_anchors(pairs.anchor)
    of_text = len(pairs.which) + pairs.which
    target = body.project_answers(hidden[of_text], mask[of_text])
    same = pairs.which[:, None] == pairs.which
    contrastive = contrastive_loss(embedding.cpu(), target.cpu(), same=same)
    return contrastive, autoregressive.cpu()


def fit_answers(
    reader: PointingReader,
    batches: Sequence[AnsweredUsers],
    steps: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> None:
    """Fit the projection of `Anchor.told`, the extra input of answers, by the autoregressive loss.

    All other weights are frozen.

    Args:
        reader: Trained reader with a language model; changed in place.
        batches: Users and questions with the true answers.
        steps: Number of training steps.
        rng: Random generator that draws the pairs.
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


def told_loss(reader: PointingReader, batch: AnsweredUsers, rng: np.random.Generator) -> Loss:
    """Return the autoregressive loss of the answers to random pairs of users and questions.

    Args:
        reader: Reader with a language model.
        batch: Users and questions with the true answers.
        rng: Random generator that draws the pairs.
    """
    pairs = _answered_pairs(batch, TOLD_PAIRS, rng)
    _, _, loss = _read_answers(reader.body, batch.question, pairs, pairs.anchor, pairs.which)
    return loss


def _answered_pairs(batch: AnsweredUsers, n: int, rng: np.random.Generator) -> AnsweredPairs:
    """Draw at most `n` pairs of users and questions with known answers."""
    of_user, of_query = draw_pairs(batch.grades, n, rng)
    texts = []
    question_of = {}
    for user, query in zip(of_user.tolist(), of_query.tolist(), strict=True):
        wording = batch.wordings[query]
        answers = graded_answers(wording.measure, wording.sign)
        text = (wording.query, answers[batch.grades[user, query]])
        texts.append(text)
        question_of[text] = query
    distinct = list(question_of)
    which = torch.tensor([distinct.index(text) for text in texts])
    asked = torch.tensor([question_of[text] for text in distinct])
    return AnsweredPairs(batch.anchor.at(of_user, of_query), distinct, asked, which)


def _read_answers(
    body: LanguageBody, question: QuestionInput, pairs: AnsweredPairs, anchor: Anchor, rows: Tensor
) -> tuple[Tensor, Tensor, Loss]:
    """Run the texts of some rows after their anchors.

    Returns:
        States of the answers, their mask, and the autoregressive loss.
    """
    encoded = body.encode_answers(*zip(*pairs.texts, strict=True)).at(rows)
    states = question.states.at(pairs.asked[rows])
    hidden = body.answer_states(states, anchor, encoded)
    logits = body.answer_logits(anchor, hidden, encoded.mask)
    loss = autoregressive_loss(logits, encoded.ids[encoded.mask])
    return hidden, encoded.mask, loss


def draw_pairs(
    grades: Grades,
    n: int,
    rng: np.random.Generator,
    weights: Float[np.ndarray, " query"] | None = None,
) -> tuple[PairRows, PairRows]:
    """Draw (user, question) pairs with known answers; all grades of a question are equally likely.

    Args:
        grades: Grade of the true answer; -1 if unknown.
        n: Number of pairs to draw; fewer if fewer answers are known.
        rng: Random generator.
        weights: Sampling weight of each question (default: equal).

    Returns:
        Row numbers of the users, and indices of the questions.
    """
    of_user, of_query = np.nonzero(grades >= 0)
    kind = of_query * (grades.max() + 1) + grades[of_user, of_query]
    weight = 1 / np.bincount(kind)[kind]
    if weights is not None:
        weight = weight * weights[of_query]
    chosen = rng.choice(len(kind), min(n, len(kind)), replace=False, p=weight / weight.sum())
    return of_user[chosen], of_query[chosen]
