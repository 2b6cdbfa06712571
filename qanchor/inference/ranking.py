"""Answers without labels: how far each user's anchor leans to yes, and the graded answer it stands
nearest to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from qanchor.models.heads import EncodedQueries
from qanchor.models.model import QAnchor
from qanchor.models.text_encoder import cached_vectors, text_vectors
from qanchor.useru.answers import answers, asked_horizon, style_of
from qanchor.useru.pairs import SUMMARY_QUERY, SUMMARY_WORDINGS
from qanchor.useru.schedule import default_horizons
from qanchor.useru.topics import TOPICS
from qanchor.utils.io import cache_dir

N_WORDINGS = 8  # wordings that say together what a query means
SHARPNESS = 0.1  # of the weights by which they do: a cosine of 0.1 less weighs a factor e less
TEXTS_PER_PASS = 64
IDENTICAL_SHARE = 0.9  # of the users: if so many have the same answer, that is reported
TOP_USERS = 10  # those looked at first
NOVEL_FROM = 0.9  # novelty from which on a query counts as unlike every query of the training
KINDS = ("profile", "future")
ANSWERS_VERSION = 1  # increase it when a change to the code changes the embeddings of answers
SUMMARY = -1  # the place of the question about everything: no topic, no grades
# A text vector hardly knows "stop" from "start". Words that deny are counted: only what denies as
# often can mean the same.
NEGATIONS = re.compile(
    r"\b(?:not|cannot|never|no|nothing|without|stop(?:s|ped|ping)?|quit(?:s|ting)?|cease[sd]?|cancel(?:s|led)?"
    r"|giv(?:e|es|ing) up|unlikely|less|fewer|fall(?:s|en|ing)?|drop(?:s|ped|ping)?|declin(?:e[sd]?|ing)|decreas(?:e[sd]?|ing)"
    r"|shrink(?:s|ing)?|reduc(?:es?|ing)|cut(?:s|ting)? (?:back|down)|avoid(?:s|ing)?|lacks?|dislikes?|hates?)\b|n['’]t\b",
    re.IGNORECASE,
)
# what analysts type, and no training wording says: of a topic's yes, and of its no
EXTRA_WORDINGS = {
    "lapse": (
        (
            "Will this {user} churn?",
            "Is this {user} about to leave?",
            "Will we lose this {user}?",
            "Will this {user} stop coming?",
        ),
        ("Will this {user} keep coming?", "Will this {user} stay?"),
    ),
    "visits_up": (
        ("Will visits of this {user} rise?",),
        (
            "Will this {user} stop coming?",
            "Will visits of this {user} fall?",
            "Will this {user} come less often?",
            "Is this {user} here less than before?",
        ),
    ),
}
FUTURE_WORDING = re.compile(r"^Will |about to")  # such wordings ask of the future alone
NEGATED_WORDINGS = {
    "profile": (
        "Is this {user} not {state}?",
        "Is there no sign of {thing} in the history of this {user}?",
        "Does this {user} never {does}?",
        "Does this {user} {does} less than before?",
    ),
    "future": (
        "Will this {user} not {does} in the next month?",
        "Is this {user} unlikely to {does} soon?",
        "Will this {user} no longer {does}?",
        "Will this {user} give up {thing} next month?",
    ),
}


@dataclass(frozen=True)
class AnswerBank:
    """Hold every wording of every topic as a text vector, and the five graded answers to each."""

    names: list[str]  # of the topic, for each wording
    wordings: Float[np.ndarray, "wording text"]  # centred, at unit length
    middle: Float[np.ndarray, " text"]  # what all questions share says nothing of which is meant
    place: np.ndarray  # (wording,): row of `texts` and `graded`, or SUMMARY
    sign: np.ndarray  # (wording,): -1 where its yes is the topic's no
    denies: np.ndarray  # (wording,): how often it denies, odd or even
    texts: list[list[str]]  # one sentence a grade
    graded: Float[np.ndarray, "answer grade dim"]
    lean: Float[np.ndarray, "answer dim"]  # yes minus no


def label_free_scores(
    model: QAnchor,
    ids: Sequence[str],
    query: str,
    anchors: Float[np.ndarray, "user dim"],
    unit: str = "user",
    horizon_days: int = 30,
    encoded: EncodedQueries | None = None,
) -> pd.DataFrame:
    """Score users label-free: similarity to "yes" answers minus similarity to "no" answers.

    See `Engine.rank`, which embeds the users first.

    Args:
        model: Trained model.
        ids: Ids of the users.
        query: Text of the query.
        anchors: Embeddings of the users for the query, in the order of `ids`.
        unit: What one user is called. Default: "user".
        horizon_days: Days ahead that a query about the future means. Default: 30.
        encoded: The query as `Engine.encode_query` returned it, so that its text vector is not
            computed again. Default: compute it.

    Returns:
        One row a user, in the order of `ids`, with the columns and attributes of `Engine.rank`.
    """
    sticks = answer_bank(model, unit, query_horizon(query, horizon_days))
    vector = _query_vectors(model, [query], encoded)
    like = (_unit_rows(vector - sticks.middle) @ sticks.wordings.T)[0]
    like = np.where(sticks.denies == negation_parity(query), like, -np.inf)
    near = np.argsort(-like, kind="stable")[:N_WORDINGS]
    place, weight = sticks.place[near], np.exp(like[near] / SHARPNESS)
    lean = weight / weight.sum() * (place != SUMMARY) * sticks.sign[near] @ sticks.lean[place]
    frame = pd.DataFrame({"user": list(ids), "score": anchors @ lean, "answer": ""})
    frame.attrs["measured"] = ("", KINDS[1], 1)  # of a question about everything
    if (
        place[0] != SUMMARY
        # the answer is of the topic that bears most of the score, so that none contradicts the
        # order
    ):
        bears = (
            pd.Series(weight * sticks.sign[near] * (sticks.lean[place] @ lean)).groupby(place).sum()
        )
        best = bears.drop(SUMMARY, errors="ignore").idxmax()
        frame["answer"] = [
            sticks.texts[best][grade] for grade in (anchors @ sticks.graded[best].T).argmax(1)
        ]
        means = 1 if (weight * sticks.sign[near])[place == best].sum() > 0 else -1
        frame.attrs["measured"] = (TOPICS[best // 2].name, KINDS[best % 2], means)
    telling = near[like[near] > like[near[0]] - 2 * SHARPNESS]
    frame.attrs["topics"] = list(
        dict.fromkeys(f"{'not ' * int(sticks.sign[i] < 0)}{sticks.names[i]}" for i in telling)
    )
    identical = count_identical_answers(frame)
    frame.attrs |= {"novel": is_novel(model, query, encoded), "identical": identical}
    return frame


def count_identical_answers(ranking: pd.DataFrame) -> tuple[int, int] | None:
    """Count the users with the same answer, if these are nearly all users or nearly all of the ten
    with the highest scores.

    Args:
        ranking: A frame with `score` and `answer`, from `label_free_scores`.

    Returns:
        (users with the same answer, users looked at), or None if answers differ or there are none.

    Example:
        >>> answers = ["Very likely to travel."] * 97 + [""] * 3
        >>> count_identical_answers(pd.DataFrame({"score": range(100), "answer": answers}))
        (97, 100)
    """
    for part in (ranking, ranking.nlargest(TOP_USERS, "score")):
        answers = part["answer"][part["answer"] != ""]
        most = 0 if answers.empty else int(answers.value_counts().max())
        if len(part) > 1 and most >= IDENTICAL_SHARE * len(part):
            return most, len(part)
    return None


def negation_parity(query: str) -> int:
    """Say whether a query denies an even (0) or an odd number of times (1): "not stop" is as good
    as neither.

    Example:
        >>> [negation_parity(q) for q in ("Will this user travel?", "Won't this user travel?", "Will this user not stop travelling?")]
        [0, 1, 0]
    """
    return len(NEGATIONS.findall(query)) % 2


def is_novel(model: QAnchor, query: str, encoded: EncodedQueries | None = None) -> bool:
    """Return whether a query is unlike every query of the training.

    Args:
        model: Trained model.
        query: Text of the query.
        encoded: The query as `Engine.encode_query` returned it. Default: compute its text vector.

    Returns:
        False if the query resembles a training query, or if the model cannot tell (it is untrained
        or has no skip).
    """
    if model.skip is None or not model.skip.query_memory.any():
        return False
    if encoded is None:
        text_embedding = model.query_text_embeddings([query])
    else:
        text_embedding = encoded.encoding.text_embedding
    return model.skip.novelty(text_embedding).item() >= NOVEL_FROM


@lru_cache(maxsize=6)  # some seconds of reading, the same for every query
def answer_bank(model: QAnchor, unit: str, horizon_days: int) -> AnswerBank:
    """Embed two wordings of each of the five answers to each topic, and each wording of its
    questions.
    """
    queries, said, falls = (
        [SUMMARY_QUERY, *(wording.format(user=unit) for wording in SUMMARY_WORDINGS)],
        [],
        [],
    )
    names, place, sign = ["summary"] * len(queries), [SUMMARY] * len(queries), [1] * len(queries)
    for topic in TOPICS:
        for kind in KINDS:
            words = {"user": unit, "does": topic.does, "thing": topic.thing, "state": topic.state}
            yes, no = (
                [w for w in some if kind == "future" or not FUTURE_WORDING.search(w)]
                for some in EXTRA_WORDINGS.get(topic.name, ((), ()))
            )
            for means, wordings in (
                (1, (*getattr(topic, kind), *yes)),
                (-1, (*NEGATED_WORDINGS[kind], *no)),
            ):
                wordings = [wording.format(**words) for wording in wordings]
                if means < 0:  # "give up recent silence" is no denial of silence
                    wordings = [
                        wording
                        for wording in wordings
                        if negation_parity(wording) != negation_parity(topic.does)
                    ]
                names += [topic.name] * len(wordings)
                queries += wordings
                place += [len(falls)] * len(wordings)
                sign += [means] * len(wordings)
            falls.append(topic.name.endswith("_down"))  # a trend, of which a fall means yes
    said = _graded(unit, horizon_days)
    graded = (
        np.concatenate([_embed_answers(model, batch) for batch in _batches(said)])
        .reshape(len(said), 5, 2, -1)
        .mean(2)
    )
    lean = (graded[:, 4] - graded[:, 0]) * np.where(falls, -1, 1)[:, None]
    vectors = _query_vectors(model, queries)
    middle, first = vectors.mean(0), [[_once(pair[0]) for pair in pairs] for pairs in said]
    told = np.array(place), np.array(sign), np.array([negation_parity(query) for query in queries])
    return AnswerBank(names, _unit_rows(vectors - middle), middle, *told, first, graded, lean)


def _once(answer: str) -> str:
    """Let "Not coming more and more often: activity at under half the former rate." deny once: the
    second half says it all.
    """
    opening, _, tail = answer.partition(": ")
    return (
        f"{tail[0].upper()}{tail[1:]}"
        if opening.startswith("Not ") and "former rate" in tail
        else answer
    )


def iter_warm_up(
    model: QAnchor, query: str, unit: str, horizon_days: int
) -> Iterator[tuple[int, int]]:
    """Read what `label_free_scores` needs of a query, batch by batch; yields (done, total).
    Stopped, it loses nothing it read.
    """
    batches = _batches(_graded(unit, query_horizon(query, horizon_days)))
    for done, batch in enumerate(batches, 1):
        _embed_answers(model, batch)
        yield done, len(batches)


def query_horizon(query: str, horizon_days: int) -> int:
    """Say how many days ahead a query looks: those it names, or the users' own."""
    return asked_horizon(query, default_horizons(horizon_days)) or horizon_days


@lru_cache(maxsize=6)
def _graded(unit: str, horizon_days: int) -> list[list[list[str]]]:
    """Give, of each topic and kind, two wordings of each of the five answers."""
    said, whom = [], {"unit": unit, "horizon_days": horizon_days}
    for topic, kind in product(TOPICS, KINDS):
        count = style_of(topic) == "count"
        said.append(
            [
                answers(topic, grade, kind, none=count and not grade, **whom)[:2]
                for grade in range(5)
            ]
        )
    return said


def _batches(said: list[list[list[str]]]) -> list[tuple[str, ...]]:
    texts = [text for graded in said for pair in graded for text in pair]
    return [tuple(texts[i : i + TEXTS_PER_PASS]) for i in range(0, len(texts), TEXTS_PER_PASS)]


@lru_cache(maxsize=256)  # of some models and horizons: 64 vectors each
@torch.inference_mode()
def _embed_answers(model: QAnchor, texts: tuple[str, ...]) -> Float[np.ndarray, "text dim"]:
    """Embed answers; those of a run are kept on disk, half a MB of them, for they are the same
    whoever is asked what.
    """
    if not model.run or model.config.backbone == "tiny":  # the tiny one reads them in no time
        return model.embed_answer(list(texts)).float().cpu().numpy()
    encode = lambda new, _: model.embed_answer(new).half().cpu().numpy()  # noqa: E731
    return cached_vectors(texts, _answers_dir(model), encode).astype(np.float32)


def _answers_dir(model: QAnchor) -> Path:
    """Name the folder for the answers of a run, as this code reads them here; weights changed in
    their place go unnoticed.
    """
    libraries = " ".join(version(name) for name in ("torch", "transformers", "peft"))
    where = (
        f"{ANSWERS_VERSION} {libraries} {model.run} {model.backbone.dtype} "
        f"{model.device.type} {json.dumps(model.config.to_dict(), sort_keys=True)} "
    )
    return cache_dir() / "answers" / hashlib.sha256(where.encode()).hexdigest()[:24]


def _query_vectors(
    model: QAnchor, queries: list[str], encoded: EncodedQueries | None = None
) -> Float[np.ndarray, "query text"]:
    """Return the text vectors of queries; they match rewordings better than language model states."""
    if encoded is not None and model.skip is not None:  # without the skip, none were computed
        return encoded.text_vectors()
    return text_vectors(queries, model.config.text_encoder).astype(np.float32)


def _unit_rows(vectors: Float[np.ndarray, "query text"]) -> Float[np.ndarray, "query text"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
