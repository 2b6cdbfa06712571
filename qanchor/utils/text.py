"""English plurals, and searching texts for words."""

from __future__ import annotations

import re

import pandas as pd

IRREGULAR_PLURALS = {"child": "children", "person": "people"}


def plural(noun: str) -> str:
    """Return the plural of an English noun.

    Args:
        noun: Singular noun or noun phrase; only the last word changes.

    Returns:
        The plural.

    Example:
        >>> [plural(noun) for noun in ("user", "family", "sales person", "match", "toy")]
        ['users', 'families', 'sales people', 'matches', 'toys']
    """
    for singular, irregular in IRREGULAR_PLURALS.items():
        if noun.lower().endswith(singular):
            return noun[: 1 - len(singular)] + irregular[1:]
    if re.search("[^aeiou]y$", noun, re.IGNORECASE):
        return f"{noun[:-1]}ies"
    if re.search("(s|x|z|ch|sh)$", noun, re.IGNORECASE):
        return f"{noun}es"
    return f"{noun}s"


def has_words(texts: pd.Series, words: str) -> pd.Series:
    """Return which texts contain all of the given words.

    Args:
        texts: Texts, categorical.
        words: Words separated by spaces, in any order. Case is ignored, a word also matches part of
            a longer one, and a blank string matches no text.

    Example:
        >>> texts = pd.Series(["red shoe", "Shoe", None], dtype="category")
        >>> has_words(texts, "shoe RED").tolist(), has_words(texts, " ").tolist()
        ([True, False, False], [False, False, False])
    """
    found = texts.cat.categories
    for word in words.casefold().split():
        found = found[found.str.casefold().str.contains(word, regex=False)]
    return texts.isin(found if words.strip() else [])


def count(n: int, noun: str) -> str:
    """Return a number followed by its noun, in the singular or plural.

    Args:
        n: Number of items.
        noun: Singular noun.

    Returns:
        The number with thousands separators, then the noun.

    Example:
        >>> count(1, "family"), count(1200, "family")
        ('1 family', '1,200 families')
    """
    return f"{n:,} {noun if n == 1 else plural(noun)}"
