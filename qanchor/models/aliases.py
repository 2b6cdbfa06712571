"""Aliases: names for several things at once, so that a question can refer to all of them.

They come from the 72 topics: "pets" covers dog food and cat litter. The phrases of a topic become
aliases of the things that match it both by word stems and by text vector. A phrase that names only
some of them ("dog food", or the list "beer, wine and spirits") is not an alias.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.data.things import Thing
from qanchor.models.text_encoder import text_vectors
from qanchor.models.words import content_words, spelling_vectors
from qanchor.useru.topics import LIST, TOPICS, Topic, match

MIN_AGREEMENT = 0.3  # cosine of a text and the nearest wording of a topic whose stems it has
MIN_PHRASE = 0.7  # cosine of a question and the best phrase of an alias
MIN_NAME = 0.4  # cosine of a question and the label of an alias
# things of topics that have no stems, by the name of the topic
MEASURED_THINGS = {"discount": "number:discount", "store_brand": "number:private"}


@dataclass(frozen=True)
class Aliases:
    """Hold the aliases of some things, as returned by `topic_aliases`.

    Args:
        topics: Row of each alias in `TOPICS`.
        labels: Label of each alias, such as "pets".
        names: Unit text vector of each label.
        vectors: Unit text vectors of the phrases of each alias.
        spelling: Hashed character trigrams of the phrases of each alias.
        members: Which things each alias stands for; the last row means no alias.
    """

    topics: Int[Tensor, " alias"]
    labels: tuple[str, ...]
    names: Float[Tensor, "alias text"]
    vectors: Float[Tensor, "alias phrase text"]
    spelling: Float[Tensor, "alias phrase spelling"]
    members: Float[Tensor, "alias_or_none thing"]

    def match(
        self,
        content: Float[Tensor, "query text"],
        spelling: Float[Tensor, "query spelling"],
        names_one: Float[Tensor, "query topic"],
    ) -> Float[Tensor, "query alias_or_none"]:
        """Return how well each alias fits each question; 0 if it does not.

        An alias fits if the question is similar to one of its phrases and also to its label: "spend
        less" is similar to the phrase "spend time on games", but not to the label of that alias. A
        question that names only part of the topic ("beer" for "alcohol") does not fit.

        Args:
            content: Unit text vectors of the questions' content words.
            spelling: Hashed character trigrams of the same words.
            names_one: 1 where a question names only part of a topic.
        """
        cosine = torch.einsum("qd,apd->qap", content, self.vectors)
        fit = cosine + torch.einsum("qs,aps->qap", spelling, self.spelling) / 2
        has_name = content @ self.names.T >= MIN_NAME
        agrees = (cosine >= MIN_PHRASE) & has_name[:, :, None]
        whole = 1 - names_one[:, self.topics]
        return F.pad((fit * agrees).amax(-1) * whole, (0, 1))

    def things_by_label(self, things: Sequence[Thing]) -> dict[str, tuple[str, ...]]:
        """Return the names of the things of each alias, by its label.

        Labels that are lists are left out, since they name only some of the things.

        Args:
            things: The things.
        """
        named = {}
        for label, members in zip(self.labels, self.members, strict=False):
            if not LIST.search(label):
                named[label] = tuple(things[row].name for row in np.flatnonzero(members))
        return named


def topic_aliases(
    things: Sequence[Thing], vectors: Float[np.ndarray, "thing text"], encoder: str
) -> Aliases:
    """Return the aliases of things that the 72 topics give.

    Args:
        things: The things.
        vectors: Unit text vectors of the things.
        encoder: Text encoder.
    """
    topics = _encode_topics(encoder)
    cosine = [(wordings @ vectors.T).max(0) for wordings in topics.wordings]
    agrees = np.stack(cosine) >= MIN_AGREEMENT
    is_text = np.array([thing.kind == "text" for thing in things], bool)
    has_stem = match([thing.words for thing in things]).T & is_text
    names = np.array([thing.name for thing in things])
    measured = np.stack([names == MEASURED_THINGS.get(topic.name, "") for topic in TOPICS])
    members = (has_stem & agrees) | measured
    rows = np.flatnonzero(members.any(1))
    none = np.zeros((1, len(things)))
    return Aliases(
        topics=torch.from_numpy(rows),
        labels=tuple(TOPICS[row].thing for row in rows),
        names=torch.from_numpy(topics.names[rows]),
        vectors=torch.from_numpy(topics.phrases[rows]),
        spelling=torch.from_numpy(topics.spelling[rows]),
        members=torch.from_numpy(np.concatenate([members[rows], none])).float(),
    )


class _EncodedTopics(NamedTuple):
    names: Float[np.ndarray, "topic text"]
    phrases: Float[np.ndarray, "topic phrase text"]
    spelling: Float[np.ndarray, "topic phrase spelling"]
    wordings: list[np.ndarray]  # of each topic, (wording, text)


@cache
def _encode_topics(encoder: str) -> _EncodedTopics:
    """Encode the labels, phrases and wordings of all topics."""
    phrases = [_phrases(topic) for topic in TOPICS]
    n_phrases = max(len(of_topic) for of_topic in phrases)
    padded = []
    for of_topic in phrases:
        missing = n_phrases - len(of_topic)
        padded += [*of_topic, *of_topic[:1] * missing]
    labels = [topic.thing for topic in TOPICS]
    wordings = [_wordings(topic) for topic in TOPICS]
    texts = [*labels, *padded, *itertools.chain(*wordings)]
    vectors = text_vectors(texts, encoder).astype(np.float32)
    n_first = len(labels) + len(padded)
    names, of_phrases, rest = np.split(vectors, [len(labels), n_first])
    ends = np.cumsum([len(of_topic) for of_topic in wordings])[:-1]
    shape = (len(TOPICS), n_phrases, -1)
    return _EncodedTopics(
        names,
        of_phrases.reshape(shape),
        spelling_vectors(padded).reshape(shape),
        np.split(rest, ends),
    )


def _phrases(topic: Topic) -> list[str]:
    """Return the content words of the phrases and questions that name a topic as a whole."""
    questions = [text.format(user="user") for text in topic.questions]
    whole = []
    for text in questions:
        if not (topic.part.search(text) or LIST.search(text)):
            whole.append(text)
    contents = [content_words(text) for text in (*topic.names, *whole)]
    return list(dict.fromkeys(contents))


def _wordings(topic: Topic) -> list[str]:
    """Return the content words of all wordings of a topic, including those about part of it."""
    texts = [text.format(user="user") for text in (*topic.framed, *topic.questions)]
    return [topic.thing, topic.does, *map(content_words, texts)]
