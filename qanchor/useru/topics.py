"""The 72 topics: what people call them, how they ask about them, and which events are about them.

`topics.csv` holds one row per topic: its name, domain and phrases; its `words` (stems), separated
by commas; and two hand-written questions, one about the past and one about the future. More
questions are made from frames (templates).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from qanchor.utils.io import read_resource_rows

LIST = re.compile(r",|\b(and|or)\b")  # marks a phrase that names several things
N_PROFILE_FRAMES, N_FUTURE_FRAMES = 5, 4  # questions per topic made from frames
# The first frame depends on the topic's row in the table, so that topics use different frames.
PROFILE_FRAMES = (
    "Is this {user} {state}?",
    "What do the records of this {user} say about {thing}?",
    "Would you say that this {user} is {state}?",
    "Is there any sign of {thing} in the history of this {user}?",
    "Does this {user} seem to be {state}?",
    "Do the records suggest that this {user} is {state}?",
)
ENDING = re.compile(r"(?:ings?|ers?|es|ed|s|e)$")  # "gaming" and "games" are one word
WORD_FRAMES = (
    "Does this {user} {does}?",
    "How often does this {user} {does}?",
    "How much is there about {thing} in the records of this {user}?",
    "How much of what this {user} does is about {thing}?",
)
FUTURE_FRAMES = (
    "Will this {user} {does} in the next month?",
    "How likely is this {user} to {does} in the next 30 days?",
    "Do you expect this {user} to {does} next month?",
    "Is this {user} about to {does}?",
    "Over the coming month, will this {user} {does}?",
    "What are the chances that this {user} will {does} within 30 days?",
    "Looking 30 days ahead, will this {user} {does}?",
    "Should we expect this {user} to {does} soon?",
)


@dataclass(frozen=True)
class Topic:
    """A topic: which events are about it, and how people ask about it.

    Args:
        name: Unique name, such as "baby".
        domain: Group of topics, such as "family".
        words: Lower-case stems. A text is about the topic if a stem starts a word in it; a stem
            that ends in "." must match the whole word.
        questions: Hand-written questions about the past and the future, with `{user}` in place of
            the unit word.
        framed: Questions made from frames, in the same form.
        does: Verb phrase, as in "likely to <does>".
        thing: Noun phrase, as in "no sign of <thing>".
        state: Predicate, as in "clearly <state>".
    """

    name: str
    domain: str
    words: tuple[str, ...]
    questions: tuple[str, ...]
    framed: tuple[str, ...]
    does: str
    thing: str
    state: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return the phrases that name the whole topic, without lists such as "beer and wine"."""
        return tuple(text for text in (self.thing, self.does, self.state) if not LIST.search(text))

    @cached_property
    def part(self) -> re.Pattern:
        """Return a pattern of texts that name only part of the topic, as "beer" does for "alcohol".

        It consists of the stems that occur in none of the topic's names, in no form of the word.
        """
        names = " ".join(self.names)
        roots = {ENDING.sub("", word) for word in names.lower().split()}
        stems = [stem for stem in self.words if ENDING.sub("", stem) not in roots]
        return _pattern([stem for stem in stems if not _pattern([stem]).search(names)])


def match(texts) -> np.ndarray:
    """Return which texts are about which topics.

    Args:
        texts: Iterable of event texts.

    Returns:
        Bool array (text, topic), topics in the order of `TOPICS`.

    Example:
        >>> hit = match(["BABY FOODS", "beers/ales"])
        >>> [TOPICS[column].name for column in hit.argmax(axis=1)]
        ['baby', 'alcohol']
    """
    texts = pd.Series(list(texts), dtype=object).astype(str)
    hits = [texts.str.contains(_pattern(topic.words)) for topic in TOPICS]
    return np.array(hits, bool).T


def names_one(texts) -> np.ndarray:
    """Return which texts name only part of a topic, such as "beer" for the topic "alcohol".

    Args:
        texts: Iterable of texts.

    Returns:
        Bool array (text, topic), topics in the order of `TOPICS`.

    Example:
        >>> alcohol = [topic.name for topic in TOPICS].index("alcohol")
        >>> names_one(["buy beer", "buy alcohol"])[:, alcohol].tolist()
        [True, False]
    """
    return np.array([_names_one(text) for text in texts], bool).reshape(-1, len(TOPICS))


@lru_cache(maxsize=8192)
def _names_one(text: str) -> list[bool]:
    """Return, for each topic, whether a text names only part of it."""
    return [topic.part.search(text) is not None for topic in TOPICS]


def _pattern(stems: Sequence[str]) -> re.Pattern:
    """Return a pattern of words that start with any of the stems; without stems, of no word."""
    ends = [re.escape(stem.rstrip(".")) + r"\b" * stem.endswith(".") for stem in stems]
    return re.compile(f"(?<![a-z])(?:{'|'.join(ends) or '(?!)'})", re.IGNORECASE)


def _fill_frames(frames: tuple[str, ...], row: int, n: int, phrases: dict[str, str]) -> list[str]:
    """Fill `n` frames with a topic's phrases, starting at a frame that depends on its row."""
    chosen = [frames[(3 * row + step) % len(frames)] for step in range(n)]
    return [frame.format(user="{user}", **phrases) for frame in chosen]


def _make_topic(row: int, cells: dict[str, str]) -> Topic:
    phrases = {name: cells[name] for name in ("does", "thing", "state")}
    words = tuple(word.strip() for word in cells["words"].split(",") if word)
    frames = PROFILE_FRAMES + WORD_FRAMES if words else PROFILE_FRAMES
    framed = _fill_frames(frames, row, N_PROFILE_FRAMES, phrases)
    framed += _fill_frames(FUTURE_FRAMES, row, N_FUTURE_FRAMES, phrases)
    questions = (cells["profile"], cells["future"])
    return Topic(cells["name"], cells["domain"], words, questions, tuple(framed), **phrases)


_ROWS = read_resource_rows("qanchor.useru", "topics.csv")
TOPICS: tuple[Topic, ...] = tuple(_make_topic(row, cells) for row, cells in enumerate(_ROWS))
