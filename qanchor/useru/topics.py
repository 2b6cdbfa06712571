"""The 72 topics: what can be asked of a user, in which words, and which events are about it.

`topics.csv` holds one row per topic. Its columns are the fields of `Topic`; `words` are separated
by commas, and `profile_1` to `future_2` are wordings of its own, added to those made from frames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qanchor.utils.io import read_resource_rows

# The last `HELD_OUT` profile and future wordings of each topic are for tests only.
HELD_OUT = 1
N_PROFILE_FRAMES, N_FUTURE_FRAMES = 5, 4  # wordings of each topic that come from frames
# Frames rotate with the topic's row in the table, so that no frame is always the held-out one.
PROFILE_FRAMES = (
    "Is this {user} {state}?",
    "What do the records of this {user} say about {thing}?",
    "Would you say that this {user} is {state}?",
    "Is there any sign of {thing} in the history of this {user}?",
    "Does this {user} seem to be {state}?",
    "Do the records suggest that this {user} is {state}?",
)
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
    """One topic: which events are about it, and how people ask about it.

    Args:
        name: Unique name, such as "baby".
        domain: Group of topics, such as "family".
        words: Lower-case stems. A text is about the topic if a stem starts a word in it; a stem
            that ends in "." must match the whole word.
        measure: "words", or the behavior that answers are computed from: events, spend, basket,
            discount, private, weekend, evening, night, variety, stop, trend, spend_trend,
            modality:<name>.
        profile: Questions about the past, with `{user}` for the unit word; the last `HELD_OUT` are
            for tests only.
        future: Questions about what follows, likewise.
        does: Phrase for answers such as "likely to <does>".
        thing: Phrase for answers such as "no sign of <thing>".
        state: Phrase for answers such as "clearly <state>".
    """

    name: str
    domain: str
    words: tuple[str, ...]
    measure: str
    profile: tuple[str, ...]
    future: tuple[str, ...]
    does: str
    thing: str
    state: str


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
    hit = np.zeros((len(texts), len(TOPICS)), dtype=bool)
    for column, topic in enumerate(TOPICS):
        if topic.words:
            stems = "|".join(_stem_pattern(word) for word in topic.words)
            pattern = rf"(?<![a-z])(?:{stems})"
            hit[:, column] = texts.str.contains(pattern, case=False, regex=True)
    return hit


def _stem_pattern(stem: str) -> str:
    end = r"\b" if stem.endswith(".") else ""
    return re.escape(stem.rstrip(".")) + end


def by_name(name: str) -> Topic:
    """Return the topic of this name.

    Args:
        name: Name of a topic.

    Returns:
        The topic.

    Raises:
        KeyError: There is no topic of this name.

    Example:
        >>> by_name("baby").thing
        'baby care'
    """
    if name not in _TOPIC_BY_NAME:
        names = ", ".join(_TOPIC_BY_NAME)
        raise KeyError(f"There is no topic {name!r}. Choose one of {names}.")
    return _TOPIC_BY_NAME[name]


def _fill_frames(frames: tuple[str, ...], row: int, n: int, phrases: dict[str, str]) -> list[str]:
    """Fill `n` frames with a topic's phrases, starting at a frame that depends on its row."""
    chosen = [frames[(3 * row + step) % len(frames)] for step in range(n)]
    return [frame.format(user="{user}", **phrases) for frame in chosen]


def _make_topic(row: int, cells: dict[str, str]) -> Topic:
    phrases = {name: cells[name] for name in ("does", "thing", "state")}
    stems = cells["words"]
    words = () if stems == "-" else tuple(word.strip() for word in stems.split(","))
    frames = PROFILE_FRAMES
    if cells["measure"] == "words":
        frames = PROFILE_FRAMES + WORD_FRAMES
    profile = _fill_frames(frames, row, N_PROFILE_FRAMES, phrases)
    future = _fill_frames(FUTURE_FRAMES, row, N_FUTURE_FRAMES, phrases)
    return Topic(
        name=cells["name"],
        domain=cells["domain"],
        words=words,
        measure=cells["measure"],
        profile=(*profile, cells["profile_1"], cells["profile_2"]),
        future=(*future, cells["future_1"], cells["future_2"]),
        **phrases,
    )


def _read_topics() -> tuple[Topic, ...]:
    rows = read_resource_rows("qanchor.useru", "topics.csv")
    return tuple(_make_topic(row, cells) for row, cells in enumerate(rows))


TOPICS: tuple[Topic, ...] = _read_topics()
_TOPIC_BY_NAME = {topic.name: topic for topic in TOPICS}
