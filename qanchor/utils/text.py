"""English words in the right number, and words in texts."""

from __future__ import annotations

import pandas as pd

IRREGULAR_PLURALS = {"child": "children", "person": "people"}
VOWELS = "aeiou"


def plural(noun: str) -> str:
    """Return the plural of an English noun.

    Args:
        noun: A noun in the singular; of several words the last one is changed.

    Returns:
        The plural.

    Example:
        >>> [plural(noun) for noun in ("user", "family", "sales person", "match", "toy")]
        ['users', 'families', 'sales people', 'matches', 'toys']
    """
    for singular, irregular in IRREGULAR_PLURALS.items():
        if noun.lower().endswith(singular):
            return noun[: len(noun) - len(singular) + 1] + irregular[1:]
    ending = noun.lower()
    if ending.endswith("y") and ending[-2:-1] not in ("", *VOWELS):
        return f"{noun[:-1]}ies"
    if ending.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun}s"


def has_words(texts: pd.Series, words: str) -> pd.Series:
    """Return which texts have all of some words; no text has none of them.

    Args:
        texts: The texts, categorical.
        words: The words, in any order; case does not matter.

    Example:
        >>> texts = pd.Series(["red shoe", "Shoe", None], dtype="category")
        >>> has_words(texts, "shoe RED").tolist(), has_words(texts, " ").tolist()
        ([True, False, False], [False, False, False])
    """
    wanted = words.casefold().split()
    found = []
    for text in texts.cat.categories:
        if wanted and all(word in text.casefold() for word in wanted):
            found.append(text)
    return texts.isin(found)


def count(n: int, noun: str) -> str:
    """Return a number with its noun in the right number.

    Args:
        n: How many.
        noun: What is counted, in the singular.

    Returns:
        The number with separators, then the noun.

    Example:
        >>> count(1, "family"), count(1200, "family")
        ('1 family', '1,200 families')
    """
    return f"{n:,} {noun if n == 1 else plural(noun)}"
