"""Words of questions and things: content words, amounts and spelling."""

from __future__ import annotations

import re
import zlib
from math import ceil, floor

import numpy as np
from jaxtyping import Float

from qanchor.useru.horizons import DAYS, MONTH, RATE

SPELLING_DIM = 1024  # hashed character trigrams
# words that say how a question is asked, not what it is about
FUNCTION_WORDS = frozenset(
    """
    a about again all almost an and any anything are as at be been before being by can continue
    continues continuing could day days did do does doing during each else enjoy enjoying enjoys
    ever every everything exactly expect expected fan few fewer fond for from gets going had has
    have having he her him his how if in interested into is it its just keen less let likely
    many may might month months more most much my nearly never next no not nothing of often on
    one only or other our out over per quit quite quits quitting rather same she should since so
    some someone something soon stop stopped stopping stops such than that the their them then
    there these they thing things this those time times to too two unlikely up us user users
    very was we week weeks were what when where whether which while who why will with within
    without would year years you your
    """.split()  # noqa: SIM905
)
# verbs that mean something else without their particle
PHRASAL_VERBS = re.compile(r"\b(check|log|opt|sign|top) (in|out|up|on|off)\b")

# a place that is the shop or the app as a whole
PLACE = re.compile(
    r"\b(?:to|at|in|into|on) (?:the|our|this|my) (?:shop|store|site|website|app|service)\b",
    re.IGNORECASE,
)
# a question with only these content words is about buying anything
BUYING = frozenset("buy buying keep order ordering purchase shop shopping stop".split())  # noqa: SIM905
# text encoders confuse these with "more"
FEWER = re.compile(r"\bfewer\b|\bcut(?:ting)? (?:back|down) on\b", re.IGNORECASE)
TWO_THINGS = re.compile(
    r"(?<!nothing )(?<!anything )\bbut\b"
    r"|\band (?:then|never|not|(?:do|does|will|has) not|(?:do|does|wo|has)n['’]t)\b"
    # "goes a week without paying" is one thing
    r"|\b(?!(?:do|go|goes|going|times?|while|period|quarters?|hours?|days?|weeks?|months?|years?"
    r"|users?)\b)\w+ without (?:ever )?\w+ing\b"
    r"|\bbefore (?-i:(?!evening|morning|spring)[a-z]\w*ing\b)"  # not "before Thanksgiving"
    r"|\babandon\w* (?:\w+ ){1,2}(?:basket|cart|checkout|order)s?\b",
    re.IGNORECASE,
)
# how far a question looks ahead, or how often: no part of what it is about
NUMBER_OF_TIMES = re.compile(r"\b\d+[ -]?(?=(?:time|day|week|month|year)s?\b)", re.IGNORECASE)
NUMBERS = {"once": 1, "twice": 2, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
NUMBERS |= {"six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12}
WORDED = "|".join(NUMBERS)
DIGITS = r"\d++(?:,\d{3})*+(?:\.\d+)?+"
NUMBER = rf"(?<![\d.,])(?P<number>{DIGITS}|{WORDED})"
LEAST = r"(?P<least>at least|more than|over|above|(?:no|not) (?:less|fewer) than|a minimum of) "
LIMIT = (
    r"(?P<limit>(?:less|fewer) than|(?:no|not) more than|at most|(?<!sign )up to|under|below"
    r"|a maximum of) "
)
BOUND = rf"(?:{LEAST}|{LIMIT})"
# "more than 3 times" is at least 4, and "at most 3 times" denies at least 4
ABOVE = (
    "more than",
    "over",
    "above",
    "no more than",
    "not more than",
    "at most",
    "up to",
    "a maximum of",
)
AT_MOST = ("at_most", "fewer", "most")  # groups of the patterns below: "3 times or fewer"
# "at least 3 times", "2 to 4 times", "3 times or less", "twice a week"; no comparison such as
# "3 times as much"
REPEATED = re.compile(
    rf"\b(?:{BOUND}|(?:between )?(?P<first>{DIGITS}|{WORDED})(?: to | and | or | ?[-–] ?))?"
    rf"(?:{NUMBER}(?: or (?:more|(?P<at_most>less|fewer)))? times|(?P<count>(?<!at )once|twice))\b"
    rf"(?: or (?:more|(?P<fewer>less|fewer))|(?P<most> at most))?(?:{RATE})?"
    r"(?! (?:an?|per|each|every|as|more|less|the)\b)",
    re.IGNORECASE,
)
# "at least 10 product views", "3 or more product views"
COUNTED = re.compile(
    rf"(?<!\bfor )\b(?:{BOUND}{NUMBER}"
    rf"|(?P<some>{DIGITS}|{WORDED}) or (?:more|(?P<fewer>less|fewer))) "
    rf"(?=(?P<noun>[^\W\d_]+)(?:(?: \w+)?{RATE})?)",
    re.IGNORECASE,
)
# "at least five CDs at a time" is an amount
IN_ONE_EVENT = re.compile(
    r"\b(?:at once|at a time|in one (?:basket|go|order|purchase|session|visit))\b", re.IGNORECASE
)
# nouns after a number that is an amount or a time, and counts no events
UNITS = frozenset(
    """
    cent cents day days dollar dollars eur euro euros gbp gram grams guests hour hours hundred kg
    kilometers km meters mile miles million minute minutes month months night nights people percent
    persons point points pound pounds second seconds star stars thousand time times usd week weeks
    year years
    """.split()  # noqa: SIM905
)
AMOUNT = re.compile(
    rf"(?<!\bfor )\b(?:{BOUND}|exceeds? |between )[$€£]?(?P<amount>{DIGITS})\b"
    r"(?!%| (?:hundred|million|thousand|percent|guests|nights?|people|persons|times?|days?|weeks?"
    r"|months?|years?)\b)"
    rf"|(?<![\w.,])[$€£]?(?P<some>{DIGITS}) (?:\w+ )?or (?:more|(?P<fewer>less))\b",
    re.IGNORECASE,
)


def content_words(query: str) -> str:
    """Return the content words of a question, or the whole question if there are none.

    Args:
        query: The question, with "user" in place of the unit word.

    Example:
        >>> content_words("Will this user put something into the cart next month?")
        'put cart'
        >>> content_words("Will this user log in nearly every day?")
        'login'
    """
    joined = NUMBER_OF_TIMES.sub("", PHRASAL_VERBS.sub(r"\1\2", query.lower()))
    words = re.findall(r"[^\W_]+(?:['’]t\b)?", joined)
    content = [word for word in words if word not in FUNCTION_WORDS]
    return " ".join(word for word in content if not word.endswith(("'t", "’t"))) or query


def asks_two_things(query: str) -> bool:
    """Return whether a question asks two things at once, such as what happens and what does not.

    Args:
        query: The question.

    Example:
        >>> asks_two_things("Who fills a cart but does not pay?")
        True
        >>> asks_two_things("Who buys nothing but bread?")
        False
        >>> asks_two_things("Will this user abandon the cart?")  # fill it, and not buy
        True
    """
    return TWO_THINGS.search(query) is not None


def asked_amount(query: str) -> float:
    """Return the smallest amount that a question asks for; 0 if it names none.

    "At most 20 dollars" denies the amount, see `asks_limit`.

    Args:
        query: The question.

    Example:
        >>> asked_amount("Who will spend more than $1,250 at once?")
        1250.0
        >>> asked_amount("Who will pay 20 dollars or more?")
        20.0
        >>> asked_amount("Will this user pay more than 3 times?")
        0.0
    """
    found = AMOUNT.search(query)
    return 0.0 if found is None else _number(found["amount"] or found["some"])


def _number(word: str) -> float:
    """Return the value of a number in digits or words."""
    word = word.lower().replace(",", "")
    return float(NUMBERS.get(word, word))


def _find_times(query: str) -> re.Match | None:
    """Return where a question says how many times, or how many of something; None if nowhere."""
    found = REPEATED.search(query)
    if found is not None:
        return found
    found = COUNTED.search(query)
    if found is None or IN_ONE_EVENT.search(query):
        return None
    return None if found["noun"].lower() in UNITS | FUNCTION_WORDS else found


def asked_times(query: str, days: float = MONTH) -> int:
    """Return how many times a question asks for something to happen at least; 0 if it names none.

    "At most 2 times" denies that it happens at least 3 times, see `asks_limit`.

    Args:
        query: The question.
        days: Number of days that the question looks ahead, for rates such as "twice a week"
            (default: 30).

    Example:
        >>> often = ("at least 3 times", "twice", "more than once", "at most twice", "soon")
        >>> [asked_times(f"Who pays {times}?") for times in often]
        [3, 2, 2, 3, 0]
        >>> asked_times("Who pays 3 times a week?", days=14)
        6
        >>> asked_times("Who writes more than 10 reviews?")
        11
    """
    found = _find_times(query)
    if found is None:
        return 0
    named = found.groupdict()
    word = named.get("first") or named["number"] or named.get("count") or named.get("some")
    number = _number(word)
    if named["period"]:
        number *= days / DAYS[named["period"].lower()]
    bound = named["limit"] or named["least"] or ""
    if bound.lower() in ABOVE or any(map(named.get, AT_MOST)):
        return floor(number) + 1
    return ceil(number)


def asks_limit(query: str) -> bool:
    """Return whether a question asks for something to happen at most so many times, or for at most
    an amount.

    Args:
        query: The question.

    Example:
        >>> asks_limit("Who pays no more than twice?"), asks_limit("Who pays more than twice?")
        (True, False)
    """
    found = _find_times(query) or AMOUNT.search(query)
    if found is None:
        return False
    named = found.groupdict()
    return any(map(named.get, ("limit", *AT_MOST)))


def plain_words(query: str) -> str:
    """Return a question with "less", "often" and "hardly ever" in place of words for them that text
    encoders confuse with others.

    Args:
        query: The question.

    Example:
        >>> plain_words("Will this user pay at least twice, or fewer bills?")
        'Will this user pay often, or less bills?'
        >>> plain_words("Will this user pay at most 3 times?")
        'Will this user pay hardly ever?'
        >>> plain_words("Will this user write more than 10 reviews?")
        'Will this user write often reviews?'
        >>> plain_words("Will this user spend less than 10 dollars?")
        'Will this user spend hardly ever dollars?'
    """
    is_limit = asks_limit(query)
    found = _find_times(query)
    if found is None and is_limit:
        found = AMOUNT.search(query)
    if found is not None:
        often = "hardly ever" if is_limit else "often"
        if not is_limit and asked_times(query) <= 1:
            often = ""
        space = " " if found.re is COUNTED else ""
        query = query[: found.start()] + often + space + query[found.end() :]
    return FEWER.sub("less", query)


def spelling_vectors(texts) -> Float[np.ndarray, "text spelling"]:
    """Return hashed character trigrams of texts as unit vectors, to match names by spelling.

    Args:
        texts: Texts in plain words.
    """
    out = np.zeros((len(texts), SPELLING_DIM), np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            padded = f" {word} "
            for start in range(len(padded) - 2):
                trigram = padded[start : start + 3].encode("utf-8", "surrogatepass")
                out[row, zlib.crc32(trigram) % SPELLING_DIM] = 1
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6)
