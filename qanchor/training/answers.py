"""The joint loss of a reader with a language model: users and answers side by side, and the answer
in words (paper, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.models.pointing import Anchor, PointingReader, QuestionInput, ThingInput, TokenInput
from qanchor.training.losses import autoregressive_loss, contrastive_loss
from qanchor.useru.concept_answers import graded_answers
from qanchor.useru.concepts import Wording

ANSWERED_PAIRS = 24  # of a user and a question, in a step


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
    pairs = []
    for user, query in zip(of_user, of_query, strict=True):
        wording = wordings[query]
        answers = graded_answers(wording.measure, wording.sign)
        pairs.append((wording.query, answers[grades[user, query]]))
    query_of = dict(zip(pairs, of_query.tolist(), strict=True))  # of each distinct text
    texts = list(query_of)
    asked = list(query_of.values())
    which = torch.tensor([texts.index(pair) for pair in pairs])
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
    of_text = len(pairs) + which
    target = body.project_answers(hidden[of_text], encoded.mask[of_text])
    same = which[:, None] == which[None]
    contrastive = contrastive_loss(embedding.cpu(), target.cpu(), same=same)
    return contrastive, autoregressive_loss(logits, encoded.ids[encoded.mask]).cpu()


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
