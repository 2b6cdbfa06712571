"""Graded answers in words: one sentence that says how much, compared with whom, and sometimes one
number from the tables.
"""

from __future__ import annotations

import re

import numpy as np

from qanchor.useru.topics import Topic
from qanchor.utils.text import plural

# Grades run from 0 to 4. "count": 0 is none, 1 to 4 the quarters of the users who have any;
# "level": the fifths of all users;
# "stop": silent days at the end, as a share of the horizon; "trend": the rate divided by the former
# rate.
CUTS = {
    "count": (0.25, 0.5, 0.75),
    "level": (0.2, 0.4, 0.6, 0.8),
    "stop": (0.1, 0.25, 0.5, 1),
    "trend": (0.5, 0.87, 1.15, 1.5),
}
OPENINGS = {  # the grade comes first, so that a preprocessor has it at once
    "profile": (
        ("Not {state}", "Not at all {state}"),
        ("Not really {state}", "Hardly {state}"),
        ("Up to a point {state}", "In part {state}"),
        ("Clearly {state}", "Plainly {state}"),
        ("Very clearly {state}", "Without any doubt {state}"),
    ),
    "future": (
        ("Very unlikely to {does}", "Not expected to {does}"),
        ("Rather unlikely to {does}", "Less likely than not to {does}"),
        ("May well {does}", "As likely as not to {does}"),
        ("Likely to {does}", "Expected to {does}"),
        ("Very likely to {does}", "Almost certain to {does}"),
    ),
    "trend profile": (
        ("Not {state}", "Not at all {state}"),
        ("Not really {state}", "Hardly {state}"),
        ("No clear sign of {thing}", "Little sign of {thing}"),
        ("Clearly {state}", "Plainly {state}"),
        ("Very clearly {state}", "Without any doubt {state}"),
    ),
    "count future": (
        ("Very unlikely to {does}", "Not expected to {does}"),
        ("May {does}, if only a little", "Might {does} a little"),
        ("Likely to {does}", "Expected to {does}"),
        ("Very likely to {does}", "Quite sure to {does}"),
        ("Almost certain to {does}", "Bound to {does}"),
    ),
}
TAILS = {  # every one of them is a claim that `pairs.check_pairs_by_hand` checks
    "none": ("none at all {span}", "no sign of {thing} {span}", "nothing of the kind {span}"),
    "count": (
        (),
        (
            "near the bottom of the {users} with any",
            "about as little as the lightest {users} with any",
        ),
        (
            "a little below the middle of the {users} with any",
            "not far below half of the {users} with any",
        ),
        (
            "above the middle of the {users} with any",
            "more of it than half of the {users} with any",
        ),
        (
            "in the top quarter of the {users} with any",
            "more of it than three in four {users} with any",
        ),
    ),
    "level": (
        ("in the lowest fifth of all {users} {span}", "less so than four in five {users} {span}"),
        ("below most {users} {span}", "less so than most {users} {span}"),
        (
            "near the average of all {users} {span}",
            "no more and no less so than most {users} {span}",
        ),
        ("above most {users} {span}", "more so than most {users} {span}"),
        ("in the top fifth of all {users} {span}", "more so than four in five {users} {span}"),
    ),
    "stop": (
        ("fewer than {a} silent days {end}", "not even {a} quiet days {end}"),
        ("{a} to {b} silent days {end}", "quiet for {a} to {b} days {end}"),
        ("at least {b} silent days {end}", "quiet for {b} days or more {end}"),
        ("at least {c} silent days {end}", "quiet for {c} days or more {end}"),
        ("at least {d} silent days {end}", "quiet for {d} days or more {end}"),
    ),
    "trend": (
        ("{noun} at under half the former rate", "less than half as much {noun} as before"),
        ("{noun} well below the former rate", "noticeably less {noun} than before"),
        ("{noun} much as before", "{noun} close to the former rate"),
        ("{noun} well above the former rate", "noticeably more {noun} than before"),
        ("{noun} at over one and a half times the former rate", "far more {noun} than before"),
    ),
}
MAX_WORDS = 24  # of a summary
THIRDS = ("first", "middle", "last")  # the time bins of a summary
MONTH = 30  # days: the horizon that need not be said
LENGTHS = {
    7: "week",
    14: "two weeks",
    60: "two months",
    90: "three months",
    180: "six months",
    365: "year",
}
SAID = re.compile(
    r"in the next (?:month|30 days|period)|this coming month|next month|within 30 days|\bsoon\b|coming up"
)
SUMMARY = (
    "Among the least active",
    "Less active than most",
    "About as active as most",
    "More active than most",
    "Very active",
)


def style_of(topic: Topic) -> str:
    """Say how a topic is graded: "count", "level", "stop" or "trend"."""
    if topic.measure == "words" or topic.measure.startswith("modality:"):
        return "count"
    return {"stop": "stop", "trend": "trend", "spend_trend": "trend"}.get(topic.measure, "level")


def silent_days(horizon_days: int) -> tuple[int, ...]:
    """Give the four numbers of silent days that part the grades of "stop" (3, 8, 15, 30 for a
    horizon of 30 days).
    """
    return tuple(max(1, int(cut * horizon_days + 0.5)) for cut in CUTS["stop"])


def grades(
    style: str, values: np.ndarray, horizon_days: int = 30, begins: np.ndarray | None = None
) -> np.ndarray:
    """Grade each user's value against the others': int 0 to 4, or -1 where the value is unknown
    (NaN).

    begins  where the grades begin, as `grade_begins` gives it, when these are not all the users.

    Example:
        >>> grades("count", np.array([0, 1, 2, 3, 4]))
        array([0, 1, 2, 3, 4])
    """
    known = ~np.isnan(values)
    out = np.full(len(values), -1)
    if begins is None:
        begins = grade_begins(style, *np.unique(values[known], return_counts=True), horizon_days)
    out[known] = np.searchsorted(begins, values[known], side="right")
    if style in ("count", "level"):
        out[values == 0] = 0
    return out


def grade_begins(
    style: str, values: np.ndarray, counts: np.ndarray, horizon_days: int = 30
) -> np.ndarray:
    """Give the values at which the grades 1 to 4 begin (inf: nobody has it).

    values  those that occur among all users, sorted, each once;  counts  how many users have each.
    """
    if style in ("stop", "trend"):
        return np.array(
            silent_days(horizon_days) if style == "stop" else CUTS["trend"], dtype=float
        )
    if style == "count":
        values, counts = values[values > 0], counts[values > 0]
    values = np.append(values, np.inf)
    total = max(counts.sum(), 1)
    less, upto = (
        (np.cumsum(counts) - counts) / total,
        np.cumsum(counts) / total,
    )  # shares of the users: with less, with no more
    if style == "count":
        return values[np.searchsorted(less, (0, *CUTS["count"]), side="left")]
    low, high = (
        CUTS["level"][:2],
        CUTS["level"][2:],
    )  # the low grades are those with enough above, the high with enough below
    return values[
        np.append(
            np.searchsorted(upto, low, side="right"), np.searchsorted(less, high, side="left")
        )
    ]


def answers(
    topic: Topic,
    grade: int,
    kind: str,
    *,
    unit: str = "user",
    horizon_days: int = 30,
    none: bool = False,
) -> list[str]:
    """Give every wording of one graded answer; all wordings of a grade mean the same, no two topics
    share one.

    grade  0 (no) to 4 (very much so), as `grades` gives it.  kind  "profile" or "future".
    none   the value is exactly zero: say so instead of comparing (always so for grade 0 of a
           count).
    Of a topic named `..._down`, grade 4 of the trend is the strongest "no".

    Example:
        >>> from qanchor.useru.topics import by_name
        >>> answers(by_name("baby"), 0, "future", unit="household")[0]
        'Very unlikely to buy baby products: none at all in the next 30 days.'
    """
    style = style_of(topic)
    future = kind == "future"
    opening = 4 - grade if topic.name.endswith("_down") else grade
    openings = OPENINGS.get(f"{style} {kind}", OPENINGS[kind])[opening]
    none = (none and style == "level") or (grade == 0 and style == "count")
    tails = TAILS["none"] if none else TAILS[style][grade]
    words = dict(zip("abcd", silent_days(horizon_days), strict=True))
    words |= {
        "does": topic.does,
        "state": topic.state,
        "thing": topic.thing,
        "users": plural(unit),
        "span": span(kind, horizon_days),
    }
    words |= {"noun": "spending" if topic.measure == "spend_trend" else "activity"}
    words |= {"end": f"at the end of the next {horizon_days} days" if future else "up to now"}
    if future and horizon_days != MONTH:  # a month goes without saying
        tails = [
            tail if "{span}" in tail or "{end}" in tail else f"{tail} {{span}}" for tail in tails
        ]
    return [f"{head}: {tail}.".format(**words) for head in openings for tail in tails]


def look_ahead(query: str, horizon_days: int) -> str:
    """Ask about another horizon than a month, in words where there are some: "week", "three
    months".

    Example:
        >>> look_ahead("Will this user travel soon?", 7), look_ahead("Is this user about to move?", 45)
        ('Will this user travel in the next week?', 'Is this user about to move in the next 45 days?')
    """
    if horizon_days == MONTH:
        return query
    length = LENGTHS.get(horizon_days, f"{horizon_days} days")
    asked = SAID.sub(f"in the next {length}", query).replace("coming month", f"coming {length}")
    asked = asked.replace("30 days ahead", f"{horizon_days} days ahead").replace(
        "costly month", "costly time"
    )
    stated = re.search(rf"\b(?:{length}|{horizon_days} days)\b", asked)
    return asked if stated else f"{asked[:-1]} in the next {length}?"


def asked_horizon(query: str, horizons: tuple[int, ...]) -> int | None:
    """Say which of these horizons a query means: the nearest to the one that it names, None when it
    names none.

    Example:
        >>> asked_horizon("Will this user travel in the next week?", (7, 30, 90)), asked_horizon("Is this user old?", (7, 30))
        (7, None)
    """
    named = [int(days) for days in re.findall(r"\b([1-9]\d{0,2}) days\b", query)]
    named += [
        days
        for days, words in (LENGTHS | {MONTH: "month"}).items()
        if re.search(rf"\b{words}\b", query)
    ]
    return min(horizons, key=lambda days: abs(np.log(days / named[0]))) if named else None


def past_fact(label: str, count: int, days_since: float) -> str:
    """Say how often something happened to a user before, and when last; from the tables alone.

    Args:
        label: What happened.
        count: How often.
        days_since: Days since the last time; not used if it never happened.

    Example:
        >>> past_fact("payment done", 3, 5.0), past_fact("payment done", 0, float("nan"))
        ('payment done: 3 times, last 5 days ago', 'payment done: never so far')
    """
    if not count:
        return f"{label}: never so far"
    times = {1: "once", 2: "twice"}.get(count, f"{count:,} times")
    ago = {0: "today", 1: "1 day ago"}.get(int(days_since), f"{int(days_since):,} days ago")
    return f"{label}: {times}, last {ago}"


def span(kind: str, horizon_days: int) -> str:
    return f"in the next {horizon_days} days" if kind == "future" else "so far"


def facts(
    topic: Topic, kind: str, value: float, spent: float, ago: float, horizon_days: int = 30
) -> list[str]:
    """Give the numbers that may stand behind an answer; money without a currency, days in full.

    value  the measure itself;  spent  money on the topic;  ago  days since the last occasion (NaN
           if there was none).
    """
    when = span(kind, horizon_days)
    style = style_of(topic)
    if style == "count":
        times = {1: "once", 2: "twice"}.get(int(value), f"{value:,.0f} times")
        last = [f"last {ago:.0f} days ago"] if kind == "profile" and ago >= 1.5 else []
        return (
            [f"{times} {when}", *last, *([f"{spent:,.0f} spent {when}"] if spent >= 1 else [])]
            if value > 0
            else []
        )
    if style == "stop":
        return [f"{int(value)} days"] if value >= 2 else []
    if style == "trend":
        return [f"{value:.0%} of the former rate"]
    say = {
        "events": "{value:,.0f} times {when}",
        "spend": "{value:,.0f} spent {when}",
        "basket": "{value:,.0f} each time",
        "discount": "{value:.0%} of purchases at a reduced price",
        "private": "{value:.0%} of spending",
        "variety": "{value:,.0f} different things",
    }.get(topic.measure, "{value:.0%} of the time")
    return [say.format(value=value, when=when)] if value > 0 else []


def with_fact(answer: str, fact: str) -> str:
    return f"{answer[:-1]} ({fact})."


def busiest_third(visits: np.ndarray) -> int:
    """Say in which third of the next days more than half of the visits fall: 0, 1, 2, or -1 when in
    none or with few visits.

    Example:
        >>> busiest_third(np.array([5, 1, 0])), busiest_third(np.array([2, 2, 2]))
        (0, -1)
    """
    best = int(np.argmax(visits))
    return best if visits.sum() >= 3 and 2 * visits[best] > visits.sum() else -1


def summary(activity: int, things: list[str], horizon_days: int = 30, third: int = -1) -> str:
    """Say what the next days bring: how active, mostly when, and on what.

    activity  a grade, -1 for no activity at all;  third  as `busiest_third` gives it.

    Example:
        >>> summary(4, ["pets", "tobacco"], third=2)
        'Very active in the next 30 days, mostly in the last third: pets; tobacco.'
    """
    if activity < 0:
        return f"No activity at all in the next {horizon_days} days."
    when = "" if third < 0 else f", mostly in the {THIRDS[third]} third"
    head = f"{SUMMARY[activity]} in the next {horizon_days} days{when}: "
    while len((head + " ".join(things)).split()) > MAX_WORDS:
        things = things[:-1]
    return f"{head}{'; '.join(things) or 'nothing that stands out'}."


def distinctive_topics(
    topics: list[Topic], value: np.ndarray, lower: np.ndarray, k: int
) -> list[Topic]:
    """Choose up to `k` topics by how often (value) and how unlike the others (lower: share with
    less), one domain counting half
    as much with each topic already taken from it."""
    score = np.sqrt(np.log1p(value)) * lower**2
    taken = []
    for _ in range(min(k, len(topics))):
        best = int(np.argmax(score))
        if score[best] <= 0:
            break
        taken.append(topics[best])
        score = score * [0.5 if topic.domain == topics[best].domain else 1 for topic in topics]
        score[best] = 0
    return taken
