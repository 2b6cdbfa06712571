"""Label-free ranking by pointing: a score for each user, and what the question was read as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from qanchor.models.heads import QueryLike, query_text
from qanchor.models.pointing import (
    RELATIVE_FIT,
    QuestionInput,
    Reading,
    question_input,
    read_questions,
    replace_unit,
    thing_input,
    token_gradients,
    token_input,
    word_fit,
)
from qanchor.models.pointing_model import PointingModel
from qanchor.models.text_encoder import text_vectors
from qanchor.models.user_tokens import TOKEN_NUMBERS, UserTokens
from qanchor.useru.answers import asked_horizon, past_fact
from qanchor.useru.concepts import MEASURES, behavior_queries
from qanchor.useru.schedule import default_horizons

# A question is answerable if its content words fit something in the data (cosine plus half the
# share of common trigrams), or if it asks about behaviour in general.
MIN_FIT = 0.66
MIN_BEHAVIOR_SIMILARITY = 0.66
MAX_EVIDENCE = 5
MAX_EVIDENCE_USERS = 200  # users that evidence is measured on
MAX_CANDIDATES = 8  # things of the greatest saliency
MIN_EVIDENCE_WEIGHT = 0.05
ANY_EVENT = "any event"
COUNT = TOKEN_NUMBERS.index("count")
LAST = TOKEN_NUMBERS.index("days since the last")


@dataclass(frozen=True)
class Interpretation:
    """What a question was read as.

    Args:
        answerable: Whether anything in the data speaks of the question.
        read_as: Labels of what it means, best first; "any event" for behaviour in general.
        things: Rows of these things; empty for behaviour in general.
        sign: 1, or -1 if its yes means that it does not happen.
        measure: What it measures of them, one of `qanchor.useru.concepts.MEASURES`.
        horizon_days: Days that it looks ahead.
        nearest: Labels of the nearest things, also if they do not fit.
    """

    answerable: bool
    read_as: tuple[str, ...]
    things: tuple[int, ...] = field(default=())
    sign: int = 1
    measure: str = "occurs"
    horizon_days: int = 30
    nearest: tuple[str, ...] = ()


def encode_questions(
    model: PointingModel, queries: Sequence[QueryLike], unit: str, horizon_days: int
) -> QuestionInput:
    """Encode questions for the reader of a model.

    Args:
        model: Trained model.
        queries: Texts and soft prompts.
        unit: Word for one of the users.
        horizon_days: Days that a question looks ahead unless it names others.
    """
    texts = [query_text(query) for query in queries]
    days = [_horizon(text, horizon_days) for text in texts]
    question = question_input(texts, unit, model.config.text_encoder, days, horizon_days)
    words = [replace_unit(text, unit) for text in texts]
    question = model.reader.read_words(question, words)
    vector = question.vector.clone()
    content = question.content.clone()
    for row, query in enumerate(queries):
        if not isinstance(query, str):
            vector[row] += query.vectors.sum(0)
            content[row] += query.offset
    return question._replace(vector=vector, content=content)


def _horizon(query: str, horizon_days: int) -> int:
    """Return the days that a question looks ahead."""
    return asked_horizon(query, default_horizons(horizon_days)) or horizon_days


def interpret(
    model: PointingModel, tokens: UserTokens, query: str
) -> tuple[Interpretation, QuestionInput]:
    """Say what a question means in the users' own events.

    Args:
        model: Trained model.
        tokens: Tokens of the users.
        query: The question.

    Returns:
        The interpretation, and the question as the reader takes it.
    """
    encoder = model.config.text_encoder
    unit = tokens.unit
    days = _horizon(query, tokens.horizon_days)
    question = encode_questions(model, [query], unit, tokens.horizon_days)
    things = thing_input(tokens)
    fit = word_fit(question, things)[0].numpy()
    order = np.argsort(-fit, kind="stable")
    behavior = text_vectors(behavior_queries(), encoder).astype(np.float32)
    text = replace_unit(query, unit)
    similarity = float((behavior @ text_vectors([text], encoder)[0].astype(np.float32)).max())
    best = float(fit[order[0]]) if len(order) else 0.0
    labels = [thing.label for thing in tokens.things]
    nearest = tuple(dict.fromkeys(labels[i] for i in order[: 2 * MAX_EVIDENCE]))[:MAX_EVIDENCE]
    sign = 1 if float(model.reader.sign(question)[0]) >= 0 else -1
    measure = MEASURES[int(model.reader.meaning(question, things).measure[0].argmax())]
    common = {"sign": sign, "measure": measure, "horizon_days": days, "nearest": nearest}
    if best >= MIN_FIT and best >= similarity:
        meant = [int(i) for i in order[:MAX_EVIDENCE] if fit[i] >= RELATIVE_FIT * best]
        read_as = tuple(dict.fromkeys(labels[i] for i in meant))
        return Interpretation(True, read_as, tuple(meant), **common), question
    if similarity >= MIN_BEHAVIOR_SIMILARITY:
        return Interpretation(True, (ANY_EVENT,), **common), question
    return Interpretation(False, (), **common), question


def rank_by_pointing(model: PointingModel, tokens: UserTokens, query: str) -> pd.DataFrame:
    """Score users for a question by what they did before, without a label.

    Args:
        model: Trained model.
        tokens: Tokens of the users.
        query: The question.

    Returns:
        One row per user in the order of `tokens.ids`: `user, score` and `answer` (how often what is
        meant happened before, and when last). `attrs` holds what `Engine.rank` says, `evidence`
        (records `text, weight, users` of what was pointed at), `answerable`, `nearest`, `things`
        (rows of what is meant; empty for any event) and `measure` (of them). A question that
        nothing in the data speaks of gives NaN scores and no answers.
    """
    meaning, question = interpret(model, tokens, query)
    frame = pd.DataFrame({"user": list(tokens.ids), "score": np.nan, "answer": ""})
    evidence = []
    if meaning.answerable:
        reading = read_questions(model.reader, tokens, question)
        frame["score"] = reading.score[:, 0].numpy()
        evidence = _evidence(model, tokens, question, reading, meaning.things)
        thing = meaning.read_as[0] + " or the like" * (len(meaning.read_as) > 1)
        count, days_since = _meant_events(tokens, meaning.things)
        facts = [
            past_fact(thing, int(n), float(days)) for n, days in zip(count, days_since, strict=True)
        ]
        # whether something never happened is not known of users with tokens left out
        is_known = (count > 0) | (tokens.n_left_out == 0)
        frame["answer"] = np.where(is_known, facts, "")
    frame.attrs |= {
        "topics": [f"{'not ' * (meaning.sign < 0)}{label}" for label in meaning.read_as],
        "measured": ("", "future", meaning.sign),
        "novel": not meaning.answerable,
        "identical": None,
        "answerable": meaning.answerable,
        "nearest": list(meaning.nearest),
        "things": list(meaning.things),
        "measure": meaning.measure,
        "evidence": evidence,
    }
    return frame


def _meant_events(tokens: UserTokens, things: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each user did what is meant, and days since the last time."""
    if things:
        meant = np.isin(tokens.which, things)
    else:
        is_modality = np.array([thing.kind == "modality" for thing in tokens.things])
        meant = np.append(is_modality, False)[tokens.which]
    count = np.where(meant, np.expm1(tokens.numbers[..., COUNT]), 0).sum(1).round()
    last = np.where(meant, np.expm1(tokens.numbers[..., LAST]), np.inf).min(1)
    return count.astype(int), np.where(np.isfinite(last), last.round(), np.nan)


def _evidence(
    model: PointingModel, tokens: UserTokens, question: QuestionInput, reading: Reading, things
) -> list[dict]:
    """Return what carries the scores: how much they change if a thing is hidden from all users.

    Candidates are what the question means and the things of the greatest saliency.
    """
    rows = np.linspace(0, len(tokens) - 1, min(len(tokens), MAX_EVIDENCE_USERS)).astype(int)
    sample = tokens.select(np.unique(rows))
    score = reading.score[np.unique(rows)]
    n_things = len(tokens.things)
    users = np.bincount(tokens.which[tokens.which >= 0], minlength=n_things)
    with torch.inference_mode(False):  # gradients are needed, whatever the caller does
        some = token_input(sample)
        gradients = token_gradients(model.reader, some, question, thing_input(sample))
    which = some.which.numpy()
    present = which >= 0
    saliency = np.bincount(which[present], np.abs(gradients[present]), n_things)
    candidates = np.argsort(-saliency, kind="stable")[:MAX_CANDIDATES].tolist()
    candidates = [i for i in dict.fromkeys([*things, *candidates]) if users[i]]
    effects = []
    for thing in candidates:
        hidden = np.arange(n_things) == thing
        without = read_questions(model.reader, sample.without(hidden), question)
        effects.append(float((score - without.score).abs().mean()))
    weights = np.array(effects) / max(sum(effects), 1e-9)
    order = np.argsort(-weights, kind="stable")[:MAX_EVIDENCE]
    return [
        {
            "text": tokens.things[candidates[place]].label,
            "weight": round(float(weights[place]), 4),
            "users": int(users[candidates[place]]),
        }
        for place in order
        if weights[place] >= MIN_EVIDENCE_WEIGHT
    ]


@torch.inference_mode()
def token_contributions(
    model: PointingModel, tokens: UserTokens, user: str, question: QuestionInput
) -> pd.DataFrame:
    """Return how much each token of a user changes the score: exact, by leaving it out.

    Args:
        model: Trained model.
        tokens: Tokens of the users.
        user: Id of the user.
        question: One question, as `interpret` returns it.

    Returns:
        One row per token, largest change first: `text, kind, modality, count, days_since, attention`
        and `contribution` (score with the token minus score without it).

    Raises:
        KeyError: The user is not among those of `tokens`.
    """
    if user not in tokens.ids:
        raise KeyError(
            f"User {user!r} is not among the {len(tokens):,} that were read. Prefill it first."
        )
    one = tokens.select([tokens.ids.index(user)])
    places = np.flatnonzero(one.which[0] >= 0)
    whole = read_questions(model.reader, one, question)
    # one copy of the user for each token, without that token
    copies = one.select([0] * max(len(places), 1))
    which = copies.which.copy()
    which[np.arange(len(places)), places] = -1
    without = read_questions(model.reader, replace(copies, which=which), question)
    change = whole.score[0, 0] - without.score[: len(places), 0]
    rows = []
    for number, place in enumerate(places):
        thing = one.things[one.which[0, place]]
        rows.append(
            {
                "text": thing.label,
                "kind": thing.kind,
                "modality": thing.modality,
                "count": round(float(np.expm1(one.numbers[0, place, COUNT]))),
                "days_since": round(float(np.expm1(one.numbers[0, place, LAST]))),
                "attention": float(whole.attention[0, 0, place]),
                "contribution": float(change[number]),
            }
        )
    columns = ["text", "kind", "modality", "count", "days_since", "attention", "contribution"]
    frame = pd.DataFrame(rows, columns=columns)
    order = frame["contribution"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True)
