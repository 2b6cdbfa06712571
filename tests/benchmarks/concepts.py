"""Bench `concepts`: how the pointing reader ranks users that it was not trained on, beside
persistence, by family of concepts and by what was held out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from qanchor.data.things import ThingEvents
from qanchor.data.users import Users
from qanchor.models.associations import Associations
from qanchor.models.pointing import read_questions
from qanchor.models.user_tokens import UserTokens
from qanchor.training.concept_task import ConceptTask, is_held_out, make_concept_task
from qanchor.training.fit import fit
from qanchor.useru.concepts import MEASURES, Concept

QUESTIONS_AT_ONCE = 128  # the attention of all at once would not fit into memory
MIN_ANSWERS = 3  # users of each answer


def concepts(
    users: Callable[[], Users],
    run=None,
    seeds: int = 1,
    *,
    encoder: str = "minilm",
    progress=None,
) -> dict:
    """Train a reader on the users' past and judge it at the latest training cut-off on users that
    were in no training step.

    `split` is "taught", "wording" (taught concept, new wording) or "concept" (never taught).
    A concept that was never taught has no associations, either. Persistence is how often the very
    same happened before. `polarity` is the share of questions whose sense is right. `run` and
    `seeds` are not looked at; `encoder` is the text encoder.
    """
    people = users()
    start = time.monotonic()
    task = make_concept_task(people, encoder)
    reader = fit(people, text_encoder=encoder, progress=progress or False).reader
    seconds = time.monotonic() - start
    frame = judged_questions(reader, task, people)
    columns = ["family", "measure", "split", "sign"]
    table = frame.groupby(columns)[["auc", "persistence"]].mean()
    table["questions"] = frame.groupby(columns).size()
    by_split = frame.groupby("split")[["auc", "persistence", "polarity"]].mean()
    return {
        "rows": table.round(4).reset_index().to_dict("records"),
        "splits": by_split.round(4).reset_index().to_dict("records"),
        "concepts": len(task.concepts),
        "questions": len(task.questions),
        "seconds": round(seconds, 1),
    }


def judged_questions(reader, task: ConceptTask, users: Users) -> pd.DataFrame:
    """Return one row per question with enough users of each answer: AUC of ours, of its prior alone
    and of persistence, and whether the question's sense is right.
    """
    sample = task.samples[0]
    held_out = np.flatnonzero([is_held_out(user) for user in sample.tokens.ids])
    places = np.arange(len(task.questions))
    tokens = sample.tokens.select(held_out)
    taught = _scores(reader, tokens, task)
    unseen = _scores(reader, without_held_out(tokens, task.concepts), task)
    target = task.targets(sample, held_out, places).numpy()
    past = concept_past(sample.events, task.concepts, sample.rows[held_out], sample.cutoff)
    sense = reader.sign(task.encoded).numpy()
    records = []
    for place, question in enumerate(task.questions):
        known = ~np.isnan(target[:, place])
        answers = target[known, place]
        if not MIN_ANSWERS <= answers.sum() <= len(answers) - MIN_ANSWERS:
            continue
        concept = task.concepts[question.concept]
        sign = question.wording.sign
        split = "wording" if question.wording.held_out else "taught"
        if concept.split == "held_out":
            split = "concept"
        score, prior = unseen if split == "concept" else taught
        before = sign * past[known, question.concept]
        records.append(
            {
                "family": concept.family,
                "measure": concept.measure,
                "split": split,
                "sign": sign,
                "auc": roc_auc_score(answers, score[known, place]),
                "prior": roc_auc_score(answers, prior[known, place]),
                "persistence": roc_auc_score(answers, before),
                "polarity": float(np.sign(sense[place]) == sign),
            }
        )
    return pd.DataFrame(records)


def _scores(reader, tokens: UserTokens, task: ConceptTask) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and prior of some users for all questions, read some questions at a time."""
    scores = []
    priors = []
    for start in range(0, len(task.questions), QUESTIONS_AT_ONCE):
        some = task.encoded.at(slice(start, start + QUESTIONS_AT_ONCE))
        reading = read_questions(reader, tokens, some)
        scores.append(reading.score.numpy())
        priors.append(reading.prior.numpy())
    return np.concatenate(scores, 1), np.concatenate(priors, 1)


def without_held_out(tokens: UserTokens, concepts: Sequence[Concept]) -> UserTokens:
    """Return tokens without the associations of what the held-out concepts ask."""
    asked = [
        (concept.measure, thing)
        for concept in concepts
        if concept.split == "held_out"
        for thing in concept.things
    ]
    return tokens.with_associations(without_heads(tokens.population.associations, asked))


def without_heads(associations: Associations, left_out: Sequence[tuple[str, str]]) -> Associations:
    """Return associations without the heads of some measures of some things."""
    heads = associations.heads.copy()
    row_of = {name: row for row, name in enumerate(associations.things)}
    for measure, name in left_out:
        if name in row_of:
            heads[:, MEASURES.index(measure), row_of[name]] = 0
    return replace(associations, heads=heads)


def concept_past(events: ThingEvents, concepts, rows: np.ndarray, cutoff) -> np.ndarray:
    """Return how often each concept was true in the past: the persistence baseline.

    Args:
        events: Of the users.
        concepts: The concepts.
        rows: Rows of the users in `events.users.ids`.
        cutoff: End of the past.
    """
    start = events.users.events["time"].min()
    count, total, largest = (part[rows] for part in events.counts(start, cutoff))
    days = events.days(start, cutoff)[rows]
    out = np.zeros((len(rows), len(concepts)), np.float32)
    for column, concept in enumerate(concepts):
        index = [events.index[name] for name in concept.things if name in events.index]
        source = largest if concept.measure == "exceeds" else count
        if concept.family == "number" and concept.measure == "high":
            source = total
        out[:, column] = source[:, index].sum(1) if concept.things else days
        if concept.measure in ("less", "first"):
            out[:, column] *= -1
    return out
