"""Aliases: names that people use for several things at once, so that a question can mean them all.

The 72 topics are knowledge of English: "pets" are dog food and cat litter. A topic lends its
phrases to the things that it truly matches, by the stems of their words and by text vector. What
names one of them ("dog food", or the list "beer, wine and spirits") is no name of them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qanchor.data.things import Thing
from qanchor.models.text_encoder import text_vectors
from qanchor.models.words import content_words, spelling_vectors
from qanchor.useru.topics import LIST, TOPICS, Topic, match

MIN_AGREEMENT = 0.3  # cosine of a text and the nearest wording of a topic whose stems it has
MIN_PHRASE = 0.7  # cosine of a question and a phrase of what it means
MIN_NAME = 0.4  # cosine of a question and the name of what it means
# of topics without words, by name
MEASURED_THINGS = {"discount": "number:discount", "store_brand": "number:private"}


class AliasInput(NamedTuple):
    """Aliases as the reader takes them."""

    topic: Int[Tensor, " alias"]  # row of `TOPICS`
    name: Float[Tensor, "alias text"]
    vector: Float[Tensor, "alias phrase text"]
    spelling: Float[Tensor, "alias phrase spelling"]
    member: Float[Tensor, "alias_or_none thing"]  # the last row is no alias

    def match(
        self,
        content: Float[Tensor, "query text"],
        spelling: Float[Tensor, "query spelling"],
        names_one: Float[Tensor, "query topic"],
    ) -> Float[Tensor, "query alias_or_none"]:
        """Return how well each alias fits each question; 0 where it does not.

        An alias fits if one of its phrases does and its name does not contradict: "spend time on
        games" is not what "spend less" means. It does not fit a question that names one of its
        things.

        Args:
            content: Unit text vectors of the questions' content words.
            spelling: Their hashed trigrams.
            names_one: 1 where a question names only one of the things of a topic.
        """
        cosine = torch.einsum("qd,apd->qap", content, self.vector)
        fit = cosine + torch.einsum("qs,aps->qap", spelling, self.spelling) / 2
        agrees = (cosine >= MIN_PHRASE) & (content @ self.name.T >= MIN_NAME)[:, :, None]
        whole = 1 - names_one[:, self.topic]
        return F.pad((fit * agrees).amax(-1) * whole, (0, 1))


@dataclass(frozen=True)
class Aliases:
    """Hold the aliases of some things. Made by `topic_aliases`.

    Args:
        topics: Row of each alias in `TOPICS`.
        labels: What people call the things of each alias.
        names: Unit text vector of each label.
        vectors: Unit text vector of each of its phrases.
        spelling: Hashed trigrams of each of its phrases.
        members: Which things it is an alias of.
    """

    topics: Int[np.ndarray, " alias"]
    labels: tuple[str, ...]
    names: Float[np.ndarray, "alias text"]
    vectors: Float[np.ndarray, "alias phrase text"]
    spelling: Float[np.ndarray, "alias phrase spelling"]
    members: Bool[np.ndarray, "alias thing"]

    def things_by_label(self, things: Sequence[Thing]) -> dict[str, tuple[str, ...]]:
        """Return the names of the things of each alias, by what people call it. Lists are left out,
        since they name some of them.

        Args:
            things: The things.
        """
        return {
            label: tuple(things[row].name for row in np.flatnonzero(members))
            for label, members in zip(self.labels, self.members, strict=True)
            if not LIST.search(label)
        }

    def tensors(self) -> AliasInput:
        """Return the aliases as the reader takes them."""
        return AliasInput(
            torch.from_numpy(self.topics),
            torch.from_numpy(self.names),
            torch.from_numpy(self.vectors),
            torch.from_numpy(self.spelling),
            torch.from_numpy(np.pad(self.members, ((0, 1), (0, 0))).astype(np.float32)),
        )


def topic_aliases(
    things: Sequence[Thing], vectors: Float[np.ndarray, "thing text"], encoder: str
) -> Aliases:
    """Return the aliases that topics lend to things.

    Args:
        things: The things.
        vectors: Their unit text vectors.
        encoder: Text encoder.
    """
    topics = _encode_topics(encoder)
    cosine = [wordings @ vectors.T for wordings in topics.wordings]
    agrees = np.stack([of_topic.max(0) for of_topic in cosine]) >= MIN_AGREEMENT
    is_text = np.array([thing.kind == "text" for thing in things], bool)
    has_stem = match([thing.words for thing in things]).T & is_text
    names = np.array([thing.name for thing in things])
    measured = np.stack([names == MEASURED_THINGS.get(topic.name, "") for topic in TOPICS])
    members = (has_stem & agrees) | measured
    rows = np.flatnonzero(members.any(1))
    return Aliases(
        topics=rows,
        labels=tuple(TOPICS[row].thing for row in rows),
        names=topics.names[rows],
        vectors=topics.phrases[rows],
        spelling=topics.spelling[rows],
        members=members[rows],
    )


class _EncodedTopics(NamedTuple):
    names: Float[np.ndarray, "topic text"]
    phrases: Float[np.ndarray, "topic phrase text"]
    spelling: Float[np.ndarray, "topic phrase spelling"]
    wordings: list[np.ndarray]  # of each topic, (wording, text)


@cache
def _encode_topics(encoder: str) -> _EncodedTopics:
    """Return the text vectors of all that is said of topics."""
    phrases = [_phrases(topic) for topic in TOPICS]
    n_phrases = max(len(of_topic) for of_topic in phrases)
    padded = [of_topic + of_topic[:1] * (n_phrases - len(of_topic)) for of_topic in phrases]
    flat = [phrase for of_topic in padded for phrase in of_topic]
    shape = (len(TOPICS), n_phrases, -1)
    wordings = [_wordings(topic) for topic in TOPICS]
    texts = [topic.thing for topic in TOPICS] + flat + [text for row in wordings for text in row]
    vectors = text_vectors(texts, encoder).astype(np.float32)
    names, of_phrases, rest = np.split(vectors, [len(TOPICS), len(TOPICS) + len(flat)])
    ends = np.cumsum([len(row) for row in wordings])[:-1]
    return _EncodedTopics(
        names,
        of_phrases.reshape(shape),
        spelling_vectors(flat).reshape(shape),
        np.split(rest, ends),
    )


def _phrases(topic: Topic) -> list[str]:
    """Return the contents of what a topic is called as a whole."""
    questions = [text.format(user="user") for text in topic.questions]
    whole = [text for text in questions if not (topic.part.search(text) or LIST.search(text))]
    contents = [content_words(text) for text in (*topic.names, *whole)]
    return list(dict.fromkeys(contents))


def _wordings(topic: Topic) -> list[str]:
    """Return the contents of all that is said of a topic, of one of its things as well."""
    texts = [text.format(user="user") for text in (*topic.framed, *topic.questions)]
    return [topic.thing, topic.does, *map(content_words, texts)]
