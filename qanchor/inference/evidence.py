"""Label-free ranking: a score for each user, the interpretation of the question, the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from qanchor.inference.prefix_cache import UserBatch
from qanchor.models.model import QAnchor
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
from qanchor.models.queries import QueryLike, query_text
from qanchor.models.text_encoder import text_vectors
from qanchor.models.user_tokens import TOKEN_NUMBERS, UserTokens
from qanchor.models.words import (
    asked_amount,
    asked_times,
    asks_limit,
    asks_two_things,
    content_words,
)
from qanchor.useru.concept_answers import past_fact
from qanchor.useru.concepts import ANY_EVENT, MEASURES, behavior_queries
from qanchor.useru.horizons import query_horizon

# A question is answerable if its content words match something in the data (cosine of text vectors
# plus half the trigram similarity) or a question about behaviour in general (cosine).
MIN_FIT = 0.66
MIN_BEHAVIOR_SIMILARITY = 0.66
MAX_EVIDENCE = 5
MAX_EVIDENCE_USERS = 200  # users on whom evidence is measured
MAX_CANDIDATES = 8  # things with the highest saliency
MIN_EVIDENCE_WEIGHT = 0.05
COUNT = TOKEN_NUMBERS.index("count")
LAST = TOKEN_NUMBERS.index("days since the last")


@dataclass(frozen=True)
class Interpretation:
    """How a question was understood.

    Args:
        answerable: Whether anything in the data matches the question.
        read_as: Labels of the matching things, best first. If a topic covers them, its name comes
            first; behaviour in general is "any event".
        things: Row numbers of the matching things; empty for behaviour in general.
        sign: 1 if yes means that it happens, -1 if yes means that it does not.
        measure: What is measured of the things, one of `qanchor.useru.concepts.MEASURES`.
        nearest: Labels of the most similar things, whether or not they match.
        threshold: Smallest amount that the question asks for or, if the measure is "high", number
            of times; 0 (default) if it names none.
    """

    answerable: bool
    read_as: tuple[str, ...]
    things: tuple[int, ...]
    sign: int
    measure: str
    nearest: tuple[str, ...]
    threshold: float = 0.0

    @property
    def topics(self) -> list[str]:
        """Return the labels, with "not" before each if yes means that it does not happen."""
        return [f"not {label}" if self.sign < 0 else label for label in self.read_as]

    def overlaps(self, other: Interpretation) -> bool:
        """Return whether both mean some of the same things, or both any event.

        Args:
            other: Of another question.
        """
        return bool(set(self.things) & set(other.things)) or self.things == other.things


def encode_questions(
    model: QAnchor, queries: Sequence[QueryLike], unit: str, horizon_days: int
) -> QuestionInput:
    """Encode questions for the reader of a model.

    A soft prompt shifts the text vectors of a question (`vector`) and of its content (`content`),
    and so changes whether it is about any event (`behavior`). All other inputs depend on its words
    alone.

    Args:
        model: Trained model.
        queries: Texts and soft prompts.
        unit: Singular noun for a user, such as "customer".
        horizon_days: Number of days that a question looks ahead if it names no time.
    """
    texts = [query_text(query) for query in queries]
    days = [query_horizon(text, horizon_days) for text in texts]
    question = question_input(texts, unit, model.config.text_encoder, days, horizon_days)
    words = [replace_unit(text, unit) for text in texts]
    question = model.reader.read_words(question, words)
    prompts = [row for row, query in enumerate(queries) if not isinstance(query, str)]
    if not prompts:
        return question
    vector = question.vector.clone()
    content = question.content.clone()
    behavior = question.behavior.clone()
    for row in prompts:
        vector[row] += queries[row].vectors.sum(0)
        content[row] += queries[row].offset
    general = [content_words(text) for text in behavior_queries()]
    general = text_vectors(general, model.config.text_encoder).astype(np.float32)
    behavior[prompts] = (content[prompts] @ torch.from_numpy(general).T).amax(1)
    return question._replace(vector=vector, content=content, behavior=behavior)


def interpret(
    model: QAnchor, tokens: UserTokens, query: str
) -> tuple[Interpretation, QuestionInput]:
    """Interpret a question: match it to things in the users' events.

    Args:
        model: Trained model.
        tokens: Tokens of the users.
        query: The question.

    Returns:
        The interpretation, and the encoded question.
    """
    question = encode_questions(model, [query], tokens.unit, tokens.horizon_days)
    things = thing_input(tokens)
    sign = 1 if float(model.reader.sign(question)[0]) >= 0 else -1
    measure = MEASURES[int(model.reader.meaning(question, things).measure[0].argmax())]
    fit = word_fit(question, things)[0].numpy()
    best = float(fit.max(initial=0))
    behavior = float(question.behavior[0])
    # ties: the most common first
    order = np.lexsort((tokens.population.rarity, -fit)).tolist()
    labels = [thing.label for thing in tokens.things]
    nearest = _first_distinct([labels[row] for row in order[: 2 * MAX_EVIDENCE]])
    meant = []
    read_as = ()
    threshold = 0.0
    is_one = not asks_two_things(query)
    if is_one and best >= max(MIN_FIT, behavior):
        kind = tokens.things[order[0]].kind  # the same events have a text and a modality
        fitting = [row for row in order if fit[row] >= RELATIVE_FIT * best]
        meant = [row for row in fitting if tokens.things[row].kind == kind]
        names = [labels[row] for row in meant]
        alias = things.aliases.match(question.content, question.spelling, question.names_one)[0]
        if len(meant) > 1 and alias.max() >= best:
            names.insert(0, tokens.aliases.labels[int(alias.argmax())])
        read_as = _first_distinct(names)
        if kind == "number":
            threshold = asked_amount(query)
        if threshold:
            measure = "exceeds"
    elif is_one and behavior >= MIN_BEHAVIOR_SIMILARITY:
        read_as = (ANY_EVENT,)
    days = query_horizon(query, tokens.horizon_days)
    times = asked_times(query, days)
    if read_as and not threshold and times > 1:
        threshold = float(times)
        measure = "high"
    if not meant:  # any event is counted by the day
        threshold = min(threshold, float(days))
    if asks_limit(query) and not (threshold and sign < 0):
        read_as = ()  # a limit of something else, or not understood as a denial
    meaning = Interpretation(
        bool(read_as), read_as, tuple(meant), sign, measure, nearest, threshold
    )
    return meaning, question


def _first_distinct(labels: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))[:MAX_EVIDENCE]


def rank_by_pointing(
    model: QAnchor, tokens: UserTokens, query: str, batches: Sequence[UserBatch] | None = None
) -> pd.DataFrame:
    """Score users for a question by their past events, without labels.

    Args:
        model: Trained model.
        tokens: Tokens of the users.
        query: The question.
        batches: Batches with cached prefixes (default: no prefix is cached).

    Returns:
        One row per user in the order of `tokens.ids`: `user`, `score` and `answer` (how often the
        matching things happened before, and when last). `attrs` holds what `Engine.rank` documents,
        and `things` (row numbers of the matching things; empty for any event), `measure` and
        `threshold`, see `Interpretation`. Scores are NaN and answers empty if the question asks two
        things at once, or nothing in the data matches it.
    """
    meaning, question = interpret(model, tokens, query)
    frame = pd.DataFrame({"user": list(tokens.ids), "score": np.nan, "answer": ""})
    evidence = []
    if meaning.answerable:
        reading = read_questions(model.reader, tokens, question, batches)
        frame["score"] = reading.score[:, 0].numpy()
        evidence = _evidence(model, tokens, question, reading, meaning.things)
        frame["answer"] = past_answers(tokens, meaning)
    frame.attrs |= {
        "topics": meaning.topics,
        "sign": meaning.sign,
        "answerable": meaning.answerable,
        "nearest": list(meaning.nearest),
        "things": list(meaning.things),
        "meant": _meant_things(tokens, meaning.things),
        "measure": meaning.measure,
        "threshold": meaning.threshold,
        "evidence": evidence,
    }
    return frame


def score_weights(
    model: QAnchor, tokens: UserTokens, user: str, things: Sequence[int], question: QuestionInput
) -> np.ndarray:
    """Compute how much each of some things adds to the score of one user.

    It is the score minus the score with the thing hidden, so the weights need not add up to the
    score.

    Args:
        model: Trained model.
        tokens: Tokens of the users.
        user: The user.
        things: Rows of the things; one that the user does not have adds 0.
        question: The question, as the reader takes it.

    Returns:
        One weight per thing.
    """
    hidden = np.array([-1, *things])  # nothing is hidden from the first copy of the user
    copies = tokens.select([tokens.ids.index(user)] * len(hidden))
    is_hidden = copies.which == hidden[:, None]
    sample = replace(copies, which=np.where(is_hidden, -1, copies.which))
    score = read_questions(model.reader, sample, question).score[:, 0].numpy()
    return score[0] - score[1:]


def _n_users(tokens: UserTokens) -> np.ndarray:
    """Return how many users have each thing."""
    return np.bincount(tokens.which[tokens.which >= 0], minlength=len(tokens.things))


def _meant_things(tokens: UserTokens, things: tuple[int, ...]) -> list[dict]:
    """Return the best matching things of a question, and how many users have each."""
    users = _n_users(tokens).tolist()
    return [
        {"text": tokens.things[thing].label, "users": users[thing]}
        for thing in things[:MAX_EVIDENCE]
    ]


def past_answers(tokens: UserTokens, meaning: Interpretation) -> np.ndarray:
    """Say how often each user did what a question asks about, and when last.

    Args:
        tokens: Tokens of the users.
        meaning: Interpretation of an answerable question.

    Returns:
        One text per user. It is empty if none is found but tokens of the user were left out.
    """
    label = meaning.read_as[0]
    if len(meaning.read_as) > 1:
        label += " or the like"
    count, days_since = _meant_events(tokens, meaning.things)
    facts = map(partial(past_fact, label), count.tolist(), days_since.tolist())
    is_known = (count > 0) | (tokens.n_left_out == 0)
    return np.where(is_known, list(facts), "")


def _meant_events(tokens: UserTokens, things: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each user did any of the things, and the days since the last time."""
    kinds = [thing.kind for thing in tokens.things]
    any_event = [row for row, kind in enumerate(kinds) if kind == "modality"]
    meant = np.isin(tokens.which, things or any_event)
    count = np.where(meant, np.expm1(tokens.numbers[..., COUNT]), 0).sum(1)
    last = np.where(meant, np.expm1(tokens.numbers[..., LAST]), np.inf).min(1)
    return count.round().astype(int), last.round()


def _evidence(
    model: QAnchor, tokens: UserTokens, question: QuestionInput, reading: Reading, things
) -> list[dict]:
    """Return which things the scores depend on: the change if a thing is hidden from all users.

    Candidates are the matching things and the things with the highest saliency.
    """
    n_rows = min(len(tokens), MAX_EVIDENCE_USERS)
    rows = np.unique(np.linspace(0, len(tokens) - 1, n_rows).astype(int))
    sample = tokens.select(rows)
    users = _n_users(tokens).tolist()
    salient = _salient_things(model, sample, question)
    candidates = [
        thing for thing in dict.fromkeys([*things[:MAX_EVIDENCE], *salient]) if users[thing]
    ]
    effects = []
    for thing in candidates:
        hidden = np.arange(len(users)) == thing
        without = read_questions(model.reader, sample.without(hidden), question)
        effects.append(float((reading.score[rows] - without.score).abs().mean()))
    weights = pd.Series(effects, candidates, dtype=float) / max(sum(effects), 1e-9)
    largest = weights[weights >= MIN_EVIDENCE_WEIGHT].nlargest(MAX_EVIDENCE)
    return [
        {"text": tokens.things[thing].label, "weight": round(weight, 4), "users": users[thing]}
        for thing, weight in largest.items()
    ]


def _salient_things(model: QAnchor, tokens: UserTokens, question: QuestionInput) -> list[int]:
    """Return the things that the scores depend on most, by their gradients."""
    with torch.inference_mode(False):  # gradients are needed, even if the caller disables them
        users = token_input(tokens)
        gradients = token_gradients(model.reader, users, question, thing_input(tokens))
    which = users.which.numpy()
    present = which >= 0
    saliency = np.bincount(which[present], np.abs(gradients[present]), len(tokens.things))
    return np.argsort(-saliency, kind="stable")[:MAX_CANDIDATES].tolist()


def require_read(tokens: UserTokens, users: Sequence[str]) -> None:
    """Raise KeyError unless all users were read.

    Args:
        tokens: Tokens of the users that were read.
        users: Ids.
    """
    unread = sorted(set(users) - set(tokens.ids))
    if unread:
        raise KeyError(
            f"User {unread[0]!r} is not among the {len(tokens):,} that were read. Prefill it first."
        )
