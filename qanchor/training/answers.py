"""Train the answers of a reader with a language model.

The joint loss (paper, section 3.3) has a contrastive and an autoregressive part. Afterwards, the
projection of `Anchor.told` is fitted: the score and state, which are an extra input of answers.
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

ANSWERED_PAIRS = 24  # (user, question) pairs per step of the joint loss
TOLD_PAIRS = 48  # (user, question) pairs per step of `fit_answers`
LEARNING_RATE = 1e-2  # of `fit_answers`


def answer_losses(
    reader: PointingReader,
    users: TokenInput,
    question: QuestionInput,
    things: ThingInput,
    wordings: Sequence[Wording],
    grades: Int[np.ndarray, "user query"],
    rng: np.random.Generator,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the contrastive and the autoregressive loss on random pairs of users and questions.

    The autoregressive loss covers answers given the users' anchors, and the same answers without a
    user, so that `score_answers` can compare their likelihoods.

    Args:
        reader: Reader with a language model.
        users: Tokens of the users.
        question: The questions, with `states` from the language model.
        things: Things that the tokens refer to.
        wordings: Wordings of the questions.
        grades: Grade of the true answer for each user and question; -1 if unknown.
        rng: Random generator that draws the pairs.
    """
    body = reader.body
    of_user, of_query = draw_pairs(grades, ANSWERED_PAIRS, rng)
    texts, asked, which = _distinct_answers(wordings, grades, of_user, of_query)
    # answers after the anchors of users, then each distinct answer without a user
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
    grades: Int[np.ndarray, "user query"]


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


def told_loss(
    reader: PointingReader, batch: AnsweredUsers, rng: np.random.Generator
) -> Float[Tensor, ""]:
    """Return the autoregressive loss of the answers to random pairs of users and questions.

    Args:
        reader: Reader with a language model.
        batch: Users and questions with the true answers.
        rng: Random generator that draws the pairs.
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
    """Return the distinct (question, answer) texts of some pairs.

    Returns:
        The texts, the index of the question of each text, and the index of the text of each pair.
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
