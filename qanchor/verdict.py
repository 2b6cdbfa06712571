"""Answers without labels: how far each user's anchor leans to yes, and the graded answer it stands nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from .answers import answers, asked_horizon, style_of
from .model import QAnchor
from .moments import default_horizons
from .pairs import SUMMARY_QUERY, SUMMARY_WORDINGS
from .texts import text_vectors
from .topics import TOPICS

NEAREST = 8  # wordings that say together what a query means
SHARPNESS = 0.1  # of the weights by which they do: a cosine of 0.1 less weighs a factor e less
READ_AT_ONCE = 64
UNLIKE = 0.9  # strangeness from which on a question is said to be unlike all that training asked
SUMMARY = -1  # the place of the question about everything: no topic, no grades


@dataclass(frozen=True)
class Yardsticks:
    """Hold every wording of every topic as a text vector, and the five graded answers to each."""

    names: list[str]  # of the topic, for each wording
    wordings: Float[np.ndarray, "wording text"]  # centred, at unit length
    middle: Float[np.ndarray, " text"]  # what all questions share says nothing of which is meant
    place: np.ndarray  # (wording,): row of `texts` and `graded`, or SUMMARY
    texts: list[list[str]]  # one sentence a grade
    graded: Float[np.ndarray, "answer grade dim"]
    lean: Float[np.ndarray, "answer dim"]  # yes minus no


def judge(
    model: QAnchor,
    ids: Sequence[str],
    query: str,
    anchors: Float[np.ndarray, "user dim"],
    unit: str = "user",
    horizon_days: int = 30,
) -> pd.DataFrame:
    """Judge users by their anchors under `query`, one row of `anchors` an id; see `Engine.verdict`, which embeds them first."""
    sticks = yardsticks(model, unit, asked_horizon(query, default_horizons(horizon_days)) or horizon_days)
    like = _unit(_vectors(model, [query]) - sticks.middle) @ sticks.wordings.T
    near = np.argsort(-like[0], kind="stable")[:NEAREST]
    weight = np.exp(like[0, near] / SHARPNESS) * (sticks.place[near] != SUMMARY)
    best, lean = sticks.place[near[0]], weight / weight.sum() @ sticks.lean[sticks.place[near]]
    frame = pd.DataFrame({"user": list(ids), "score": anchors @ lean, "says": ""})
    if best != SUMMARY:
        frame["says"] = [sticks.texts[best][grade] for grade in (anchors @ sticks.graded[best].T).argmax(1)]
    telling = near[like[0, near] > like[0, near[0]] - 2 * SHARPNESS]
    frame.attrs["topics"] = list(dict.fromkeys(sticks.names[i] for i in telling))
    frame.attrs["warning"] = warning(model, query, unit)
    return frame


def warning(model: QAnchor, query: str, unit: str = "user") -> str:
    """Say so where a query is unlike all that training asked; empty where it is not, or where a model cannot tell.

    It cannot without a skip, or untrained.
    """
    if model.skip is None or not model.skip.taught.any():
        return ""
    strange = model.skip.strangeness(model.meaning([query])).item() >= UNLIKE
    return f"Training asked nothing like it: it mostly shows who a {unit} is altogether." if strange else ""


@lru_cache(maxsize=6)  # some seconds of reading, the same for every query
@torch.inference_mode()
def yardsticks(model: QAnchor, unit: str, horizon_days: int) -> Yardsticks:
    """Embed two wordings of each of the five answers to each topic, and each wording of its questions."""
    queries, said, falls = [SUMMARY_QUERY, *(wording.format(user=unit) for wording in SUMMARY_WORDINGS)], [], []
    names, place = ["summary"] * len(queries), [SUMMARY] * len(queries)
    for topic in TOPICS:
        for kind in ("profile", "future"):
            wordings = [wording.format(user=unit) for wording in getattr(topic, kind)]
            names += [topic.name] * len(wordings)
            queries += wordings
            place += [len(said)] * len(wordings)
            count = style_of(topic) == "count"
            whom = {"unit": unit, "horizon_days": horizon_days}
            said.append([answers(topic, grade, kind, none=count and not grade, **whom)[:2] for grade in range(5)])
            falls.append(topic.name.endswith("_down"))  # a trend, of which a fall means yes
    texts = [text for graded in said for pair in graded for text in pair]
    vectors = [model.embed_answer(texts[i : i + READ_AT_ONCE]) for i in range(0, len(texts), READ_AT_ONCE)]
    graded = torch.cat(vectors).float().cpu().numpy().reshape(len(said), 5, 2, -1).mean(2)
    lean = (graded[:, 4] - graded[:, 0]) * np.where(falls, -1, 1)[:, None]
    vectors = _vectors(model, queries)
    middle, first = vectors.mean(0), [[pair[0] for pair in graded_pairs] for graded_pairs in said]
    return Yardsticks(names, _unit(vectors - middle), middle, np.array(place), first, graded, lean)


def _vectors(model: QAnchor, queries: list[str]) -> Float[np.ndarray, "query text"]:
    """Turn queries into text vectors: of the same meaning in other words these know more than a language model's states."""
    return text_vectors(queries, model.config.text_encoder).astype(np.float32)


def _unit(vectors: Float[np.ndarray, "query text"]) -> Float[np.ndarray, "query text"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
