"""Label-free ranking by pointing: a score for each user, and what the question was read as."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from qanchor.models.model import QAnchor
from qanchor.models.pointing import (
    QuestionInput,
    Reading,
    question_input,
    read_questions,
    replace_unit,
)
from qanchor.models.text_encoder import text_vectors
from qanchor.models.user_tokens import TOKEN_NUMBERS, UserTokens
from qanchor.useru.answers import asked_horizon
from qanchor.useru.concepts import behavior_queries
from qanchor.useru.schedule import default_horizons

# A question is answerable if its content words fit something in the data (cosine plus half the
# share of common trigrams), or if it asks about behaviour in general.
MIN_FIT = 0.66
MIN_BEHAVIOR_SIMILARITY = 0.66
MAX_EVIDENCE = 5
MIN_EVIDENCE_WEIGHT = 0.05
MIN_RELATIVE_FIT = 0.75  # of the best fit: what fits nearly as well is meant, too
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
        horizon_days: Days that it looks ahead.
        nearest: Labels of the nearest things, also if they do not fit.
    """

    answerable: bool
    read_as: tuple[str, ...]
    things: tuple[int, ...] = field(default=())
    sign: int = 1
    horizon_days: int = 30
    nearest: tuple[str, ...] = ()


def interpret(
    model: QAnchor, tokens: UserTokens, query: str, unit: str, horizon_days: int
) -> tuple[Interpretation, QuestionInput]:
    """Say what a question means in the users' own events.

    Args:
        model: Model with a trained pointing reader.
        tokens: Tokens of the users.
        query: The question.
        unit: Word for one of the users.
        horizon_days: The users' own horizon.

    Returns:
        The interpretation, and the question as the reader takes it.
    """
    encoder = model.config.text_encoder
    days = asked_horizon(query, default_horizons(horizon_days)) or horizon_days
    question = question_input([query], unit, encoder, [days], horizon_days)
    cosine = tokens.vectors @ question.content[0].numpy()
    spelling = tokens.spelling @ question.spelling[0].numpy()
    fit = cosine + spelling / 2
    order = np.argsort(-fit, kind="stable")
    behavior = text_vectors(behavior_queries(), encoder).astype(np.float32)
    text = replace_unit(query, unit)
    similarity = float((behavior @ text_vectors([text], encoder)[0].astype(np.float32)).max())
    best = float(fit[order[0]]) if len(order) else 0.0
    labels = [thing.label for thing in tokens.things]
    nearest = tuple(dict.fromkeys(labels[i] for i in order[: 2 * MAX_EVIDENCE]))[:MAX_EVIDENCE]
    sign = 1 if float(model.reader.sign(question)[0]) >= 0 else -1
    common = {"sign": sign, "horizon_days": days, "nearest": nearest}
    if best >= MIN_FIT and best >= similarity:
        meant = [int(i) for i in order[:MAX_EVIDENCE] if fit[i] >= MIN_RELATIVE_FIT * best]
        read_as = tuple(dict.fromkeys(labels[i] for i in meant))
        return Interpretation(True, read_as, tuple(meant), **common), question
    if similarity >= MIN_BEHAVIOR_SIMILARITY:
        return Interpretation(True, (ANY_EVENT,), **common), question
    return Interpretation(False, (), **common), question


def rank_by_pointing(
    model: QAnchor, tokens: UserTokens, query: str, unit: str, horizon_days: int
) -> pd.DataFrame:
    """Score users for a question by what they did before, without a label.

    Args:
        model: Model with a trained pointing reader.
        tokens: Tokens of the users.
        query: The question.
        unit: Word for one of the users.
        horizon_days: The users' own horizon.

    Returns:
        One row per user in the order of `tokens.ids`: `user, score, count` and `days_since` (how
        often what is meant happened, and how long ago; NaN if never). `attrs` holds
        `interpretation`, and `evidence`: records `text, weight, users` of what was pointed at.
        A question that nothing in the data speaks of gives NaN scores.
    """
    interpretation, question = interpret(model, tokens, query, unit, horizon_days)
    count, days_since = _meant_events(tokens, interpretation.things)
    frame = pd.DataFrame(
        {"user": list(tokens.ids), "score": np.nan, "count": count, "days_since": days_since}
    )
    evidence = []
    if interpretation.answerable:
        reading = read_questions(model.reader, tokens, question)
        frame["score"] = reading.score[:, 0].numpy()
        evidence = _evidence(tokens, reading)
    frame.attrs |= {"interpretation": interpretation, "evidence": evidence}
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


def _evidence(tokens: UserTokens, reading: Reading) -> list[dict]:
    """Return what the users' attention points at: label, mean weight, users that have it."""
    weight = reading.attention[:, 0].numpy()
    which = tokens.which
    present = which >= 0
    n_things = len(tokens.things)
    total = np.bincount(which[present], weight[present], minlength=n_things)
    users = np.bincount(which[present], minlength=n_things)
    share = total / max(total.sum(), 1e-9)
    order = np.argsort(-share, kind="stable")[:MAX_EVIDENCE]
    return [
        {
            "text": tokens.things[i].label,
            "weight": round(float(share[i]), 4),
            "users": int(users[i]),
        }
        for i in order
        if share[i] >= MIN_EVIDENCE_WEIGHT
    ]


@torch.inference_mode()
def token_contributions(
    model: QAnchor, tokens: UserTokens, user: str, question: QuestionInput
) -> pd.DataFrame:
    """Return how much each token of a user changes the score: exact, by leaving it out.

    Args:
        model: Model with a trained pointing reader.
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
