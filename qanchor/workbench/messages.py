"""Every sentence of the interface: the back ends compute, this module puts results into words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd

from qanchor.analysis.clusters import (
    ISLANDS,
    LINE,
    STABLE,
    SUBSAMPLE_SHARE,
    SUBSAMPLES,
    ClusterComparison,
)
from qanchor.analysis.group_queries import FOLDS, SEEDS
from qanchor.analysis.query_matrix import MatrixProgress
from qanchor.analysis.shift import N_NEIGHBORS, share_standing_out
from qanchor.evaluation.backtest import BacktestResult
from qanchor.models.words import asks_limit, asks_two_things
from qanchor.useru.concepts import ANY_EVENT
from qanchor.utils.text import count, plural

# Rank correlation from which on attention and deletion are said to agree so well.
AGREEMENT_WORDS = (
    (0.8, "they agree"),
    (0.5, "they partly agree"),
    (0.2, "they hardly agree"),
    (-0.2, "they do not agree"),
    (-np.inf, "they contradict each other"),
)
GOOD_AGREEMENT = AGREEMENT_WORDS[0][0]
MAX_NAMED = 3
PERIOD_NAMES = {1: "day", 7: "week", 30: "month", 90: "quarter"}
MEASURE_NOTES = {
    "auc": f"AUC out of fold ({SEEDS} x {FOLDS} folds, nearest mean); chance is .5. A high AUC says"
    " that under this question these users are similar to each other and different from the others,"
    " not what they answer, nor why.",
    "yes_score": "How often a user of the group leans more to yes than one of the others; chance is"
    " .5. No label is used. It compares users and is no share of users who say yes.",
    "ratio": "How far the group moves from its place under the empty query, relative to how far the"
    " others move (medians of the residual). A high ratio says that the question shows something"
    " the general profile does not; not yes or no.",
}


def progress_message(what: str, done: int, total: int, noun: str, where: str = "") -> str:
    """Say how far a computation has come.

    Args:
        what: A verb in the past tense.
        done: Number of items done.
        total: Number of items.
        noun: The word for one item.
        where: Words after the noun; default: none.

    Example:
        >>> progress_message("Embedded", 10, 60, "family", " under 72 questions")
        'Embedded 10 of 60 families under 72 questions ...'
    """
    return f"{what} {done:,} of {count(total, noun)}{where} ..."


# The lens

COMPARING = "Comparing with other questions ..."
PREPARING = "Compiling UMAP, once: the map will be redrawn ..."
BACKTESTING = "Backtesting the ranking ..."
NOBODY_ELSE = "There is nobody to compare with."


def opening_message(n: int, unit: str) -> str:
    """Say what the first map shows.

    Args:
        n: Number of users.
        unit: The word for a user.
    """
    return f"{count(n, unit)} before any question. Ask something to see who moves."


def ranking_begins(unit: str) -> str:
    """Say that users are being ranked.

    Args:
        unit: The word for a user.
    """
    return f"Ranking all {plural(unit)} ..."


def interpretation_sentence(ranking: pd.DataFrame) -> str:
    """Say what a query was interpreted as; empty if nothing in the data speaks of it.

    Args:
        ranking: From `Engine.score`.

    Example:
        >>> ranking = pd.DataFrame()
        >>> ranking.attrs |= {"topics": ["tea", "coffee"], "sign": 1}
        >>> ranking.attrs |= {"measure": "more", "threshold": 0.0}
        >>> interpretation_sentence(ranking)
        'Interpreted as a question about tea, coffee (more than before).'
    """
    attrs = ranking.attrs
    topics = attrs["topics"][:MAX_NAMED]
    if not topics:
        return ""
    asked = asked_note(topics, attrs["sign"], attrs["measure"], attrs["threshold"])
    return f"Interpreted as a question about {asked}."


def order_sentence(ranking: pd.DataFrame, unit: str = "user") -> str:
    """Say who ranks first, or why users cannot be ranked.

    Args:
        ranking: A frame with `user, score`, from `Engine.score`.
        unit: The word for a user; default "user".

    Example:
        >>> ranking = pd.DataFrame({"user": ["a", "b", "c", "d"], "score": [0.1, 0.4, 0.3, 0.2]})
        >>> order_sentence(ranking)
        'b, c and d rank first of 4 users.'
        >>> order_sentence(ranking.assign(score=0.5))
        'This question cannot rank users: none scores higher than the others.'
    """
    if len(ranking) < 2:
        return NOBODY_ELSE
    if ranking["score"].nunique() < 2:
        return f"This question cannot rank {plural(unit)}: none scores higher than the others."
    first = ranking.nlargest(MAX_NAMED, "score")["user"].astype(str)
    return f"{join_names(first.tolist())} rank first of {count(len(ranking), unit)}."


def shift_summary(shift: pd.DataFrame, unit: str = "user") -> str:
    """Say how many users stand out, how many would by chance, and who stands out most.

    Args:
        shift: From `embedding_shift`.
        unit: The word for a user; default "user".

    Returns:
        The sentences; empty if there was no other question to compare with.

    Example:
        >>> shift = pd.DataFrame({"user": ["a", "b"], "toward_yes": [2.0, 0.1], "elsewhere": 1.0})
        >>> shift["stands_out"] = shift["toward_yes"] > shift["elsewhere"]
        >>> shift.attrs["others"] = 19
        >>> shift_summary(shift)
        '1 of 2 users stands out: this question moves them further toward yes than any of 19 other
        questions (by chance: 0). a stands out most.'
    """
    n_others = shift.attrs.get("others", 0)
    if not n_others:
        return ""
    by_chance = len(shift) / (n_others + 1)
    margin = (shift["toward_yes"] - shift["elsewhere"])[shift["stands_out"]]
    names = shift.loc[margin.sort_values(ascending=False, kind="stable").index, "user"].astype(str)
    of_all = f"{len(names):,} of {count(len(shift), unit)}"
    if len(names) <= by_chance:
        return (
            f"No more {plural(unit)} stand out than by chance: this question moves {of_all} further"
            f" toward yes than any of {n_others} other questions (by chance: {by_chance:,.0f})."
        )
    stand = "stands" if len(names) == 1 else "stand"
    return (
        f"{of_all} {stand} out: this question moves them further toward yes than any of {n_others}"
        f" other questions (by chance: {by_chance:,.0f})."
        f" {join_names(names[:MAX_NAMED].tolist())} {stand} out most."
    )


def projection_caption(points: pd.DataFrame, unit: str = "user") -> str:
    """Say how a map was made and how far to trust it.

    Args:
        points: From `joint_projection`.
        unit: The word for a user; default "user".
    """
    about = points.attrs
    users = count(about["users"], unit)
    if about["users"] < 2:
        return f"A map of {users}. {NOBODY_ELSE}"
    method = about["method"].upper()
    trust = f"Trustworthiness {about['trustworthiness']:.2f}"
    if points["query"].nunique() < 2:
        return f"One {method} map of {users}. {trust}."
    removed = f"a common rotation and offset of {about['removed']:.2f} was removed"
    return f"One joint {method} map of {users} under both queries. {trust}; {removed}."


def unanswerable_note(query: str, nearest: Sequence[str]) -> str:
    """Say that a query has no answer in the data, and suggest what to ask instead.

    Args:
        query: The query.
        nearest: Labels of the events that are closest to it.

    Example:
        >>> unanswerable_note("Will this user fly?", ["cart", "payment"])
        'Nothing in these events speaks of “Will this user fly?”. You can ask about: cart, payment.'
        >>> unanswerable_note("Who fills a cart but does not pay?", ["cart", "payment"])
        '“Who fills a cart but does not pay?” asks two things at once. Ask them one by one.'
    """
    if asks_two_things(query):
        return f"“{query}” asks two things at once. Ask them one by one."
    if asks_limit(query):
        return f"The limit in “{query}” was not understood. Ask for at least that number instead."
    return f"Nothing in these events speaks of “{query}”. You can ask about: {', '.join(nearest)}."


def evidence_note(evidence: Sequence[dict], unit: str) -> str:
    """Say which events a ranking depends on.

    Args:
        evidence: Records with `text`, `weight` and `users`, from the `attrs` of a ranking.
        unit: The word for a user.

    Example:
        >>> evidence_note([{"text": "cart", "weight": 0.8, "users": 40}], "visitor")
        'points at: cart (80 %, 40 visitors)'
    """
    parts = [
        f"{row['text']} ({100 * row['weight']:.0f} %, {count(row['users'], unit)})"
        for row in evidence
    ]
    return f"points at: {', '.join(parts)}"


ASKED_OF = {  # what is asked of events by each measure of concepts, and what denies it
    "occurs": ("", "none"),
    "more": ("more than before", "no more than before"),
    "less": ("less than before", "no less than before"),
    "first": ("for the first time", "not for the first time"),
    "exceeds": ("", "none"),  # without a threshold, any amount
    "high": ("a lot", "little"),
    "share": ("a large share of all", "a small share of all"),
}


def asked_note(topics: Sequence[str], sign: int, measure: str, threshold: float = 0.0) -> str:
    """Say what a query asks.

    Args:
        topics: From the `attrs` of a ranking, at least one.
        sign: Likewise: -1 if each topic has "not" before it.
        measure: Likewise.
        threshold: Likewise; default 0, no number is asked for.

    Example:
        >>> asked_note(["tea", "coffee"], 1, "occurs"), asked_note(["not tea"], -1, "occurs")
        ('tea, coffee', 'tea (none)')
        >>> asked_note(["not tea"], -1, "more")
        'tea (no more than before)'
        >>> asked_note(["not tea", "not coffee"], -1, "high", 3.0)
        'tea, coffee (fewer than 3 times)'
        >>> asked_note(["not paid"], 1, "occurs")  # an event of that name
        'not paid'
    """
    denies = sign < 0
    if denies:
        topics = [topic.removeprefix("not ") for topic in topics]
    note = ASKED_OF[measure][denies]
    if threshold and measure == "exceeds":
        bound = "less than" if denies else "at least"
        note = f"{bound} {threshold:,g}"
    elif threshold:
        bound = "fewer than" if denies else "at least"
        note = f"{bound} {threshold:,g} times"
        if topics[0] == ANY_EVENT:
            note = f"on {bound} {threshold:,g} days"
    names = ", ".join(topics).replace("_", " ")
    return f"{names} ({note})" if note else names


CHANCE_NOTE = "chance: how many of the users in the same fifth of that ranking did so"


def backtest_summary(result: BacktestResult) -> str:
    """Say how well a backtest ordered the users.

    Args:
        result: From `backtest`.

    Example:
        >>> result = BacktestResult(0.71, 0.66, 0.76, 400, "tea", 30, "2025-05-02", "member")
        >>> order, outcome = backtest_summary(result).split(" Measured on ")
        >>> order
        'Backtest as of 2025-05-02: 71 of 100 pairs are in the right order
        (95 %: 66 to 76; chance: 50).'
        >>> outcome
        '400 members by the 30 days after: tea.'
    """
    unit = result.unit
    if not result.topic:
        return "No backtest: nothing in these events says what came true."
    if result.right is None:
        return f"No backtest: the outcomes of {count(result.n, unit)} are too few or all equal."
    interval = f"95 %: {100 * result.low:.0f} to {100 * result.high:.0f}; chance: 50"
    if result.before is not None:
        interval += f"; a plain count of the days before: {100 * result.before:.0f}"
    verdict = ""
    if result.high < 0.5:
        verdict = ": worse than chance"
    elif result.low <= 0.5:
        verdict = ": no better than chance"
    right = f"{100 * result.right:.0f} of 100 pairs are in the right order ({interval}){verdict}."
    topics = result.topic.split(", ")
    asked = asked_note(topics, result.sign, result.measure, result.threshold)
    outcome = f"Measured on {count(result.n, unit)} by the {result.days} days after: {asked}."
    if result.shares:
        first, *_, last = (f"{100 * share:.0f}" for share in result.shares)
        outcome += f" Of the fifth ranked highest {first} of 100, of the lowest {last}."
    if result.optimistic:
        outcome += f" Training has seen these {plural(unit)}, so this is optimistic."
    return f"Backtest as of {result.cutoff}: {right} {outcome}"


def provenance(
    run: str, seed: int = 0, shift: pd.DataFrame | None = None, unit: str = "user"
) -> dict:
    """Return the facts of a result card: how the result was made and, of a shift, its size.

    Args:
        run: SHA-256 of the run.
        seed: Seed of the map; default 0.
        shift: From `embedding_shift`; default: none.
        unit: The word for a user; default "user".

    Returns:
        `run, seed, unit, units, version`; with a shift also `metric, value, low, high, n`: the
        share of users that stand out, with its 95 % interval.

    Example:
        >>> moved = pd.DataFrame({"user": ["a", "b"], "stands_out": [True, False]})
        >>> moved.attrs["others"] = 19
        >>> record = provenance("", 0, moved)
        >>> {name: record[name] for name in ("metric", "value", "n")}
        {'metric': 'share of users that stand out (by chance: 1 in 20)', 'value': 0.5, 'n': 2}
    """
    try:
        installed = f"qanchor {version('qanchor')}"
    except PackageNotFoundError:  # a checkout that nobody installed
        installed = "qanchor, not installed"
    words = {"unit": unit, "units": plural(unit)}
    facts: dict = {"run": run, "seed": seed, **words, "version": installed}
    if shift is not None and shift.attrs.get("others"):
        value, low, high = share_standing_out(shift)
        chance = f"by chance: 1 in {shift.attrs['others'] + 1}"
        facts["metric"] = f"share of {plural(unit)} that stand out ({chance})"
        facts |= {"value": value, "low": low, "high": high, "n": len(shift)}
    return facts


# Attention


def attention_summary(table: pd.DataFrame, users: str = "users") -> str:
    """Say where most attention goes, which deletion moves users most, and whether they agree.

    Args:
        table: From `attention_table`, of one query or two.
        users: Whose attention it is: an id, or the plural word for users; default "users".
    """
    by_query = [rows.set_index("modality") for _, rows in table.groupby("query", sort=False)]
    first = by_query[0]
    modalities = first[first["kind"] == "modality"]
    if modalities.empty:
        return "There is no modality to look at."
    top = modalities["weight"].idxmax()
    summary = (
        f"Of all modalities, {top} gets most attention ({_percent(modalities['weight'][top])})"
    )
    if modalities["deletion_effect"].notna().any():
        strongest = modalities["deletion_effect"].idxmax()
        effect = modalities["deletion_effect"][strongest]
        summary += f"; deleting {strongest} moves {users} farthest ({effect:.2g}). "
        summary += _agreement_sentence(first["agreement"].iloc[0])
    else:
        summary += "."
    if len(by_query) > 1:
        summary += f" {_comparison_sentence(first, by_query[1])}"
    return summary


def _agreement_sentence(correlation: float) -> str:
    if np.isnan(correlation):
        return "Too few modalities to compare attention with deletion."
    words = next(words for least, words in AGREEMENT_WORDS if correlation >= least)
    number = f"{correlation:.2f}".replace("-", "−")
    sentence = (
        f"Rank agreement of attention and deletion: {number} (1 is the same order, 0 none): {words}"
    )
    advice = "" if correlation >= GOOD_AGREEMENT else "; do not read attention as importance"
    return f"{sentence}{advice}."


def _comparison_sentence(first: pd.DataFrame, second: pd.DataFrame) -> str:
    modalities = first[first["kind"] == "modality"]
    difference = (modalities["weight"] - second["weight"]).dropna()
    up = difference.idxmax()
    down = difference.idxmin()
    gain = _points(difference[up])
    loss = _points(difference[down])
    return (
        f"Compared with the other query, {up} gains most ({gain}) and {down} loses most ({loss})."
    )


def deletion_progress(modality: str, n: int, unit: str) -> str:
    """Say that a modality was deleted.

    Args:
        modality: The modality.
        n: Number of users.
        unit: The word for a user.
    """
    return f"Deleted {modality} from {count(n, unit)} ..."


def attention_caption(ids: list[str], of: int, unit: str, seed: int) -> str:
    """Say which users the attention is of, and how it was measured.

    Args:
        ids: The users that were read.
        of: Number of users that they were sampled from.
        unit: The word for a user.
        seed: Seed of the sample.

    Example:
        >>> attention_caption(["a"], 1, "user", 0).split(". ")[1]
        'Deletion effect: 1 - cosine after reading the user without the modality.'
    """
    who = ids[0] if of == 1 else f"Mean over {count(len(ids), unit)}"
    if len(ids) < of:
        who += f" of {of:,} (drawn by seed {seed})"
    how = "attention shows how much each score depends on the events (absolute sum of gradients)"
    effect = f"Deletion effect: 1 - cosine after reading the {unit} without the modality."
    return f"{who}; {how}. {effect}"


ANSWERING = "Generating the answers ..."
READ_ATTENTION = "Read the attention of"
DELETED_EACH = "Deleted each modality once from"


def edit_summary(drop: Collection, reword: Mapping) -> str:
    """Say what was edited.

    Args:
        drop: Events that were dropped.
        reword: New texts by event.

    Example:
        >>> edit_summary([3, 4], {5: "tea"})
        'Without 2 events and with 1 event reworded'
    """
    parts = []
    if len(drop):
        parts.append(f"without {count(len(drop), 'event')}")
    if reword:
        parts.append(f"with {count(len(reword), 'event')} reworded")
    return " and ".join(parts).capitalize()


def edit_result(
    drop: Collection, reword: Mapping, user: str, moved: float, same_answer: bool
) -> str:
    """Say how far an edited user moved and whether the answer changed.

    Args:
        drop: Events that were dropped.
        reword: New texts by event.
        user: The user.
        moved: 1 - cosine of the embeddings before and after.
        same_answer: Whether the answers before and after are equal.

    Example:
        >>> edit_result([3], {}, "a", 0.00002, True)
        'Without 1 event, a moves by less than 0.0001 (1 - cosine). The answer stays the same.'
    """
    distance = f"{moved:.4f}" if moved >= 0.0001 else "less than 0.0001"
    answer = "The answer stays the same." if same_answer else "The answer changes."
    return f"{edit_summary(drop, reword)}, {user} moves by {distance} (1 - cosine). {answer}"


# Clusters


def transitions_summary(transitions: pd.DataFrame, unit: str = "user") -> str:
    """Say how many clusters stayed, split, merged, appeared or dissolved.

    Args:
        transitions: From `cluster_transitions`.
        unit: The word for a user; default "user".

    Example:
        >>> from qanchor.analysis.clusters import cluster_transitions
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> transitions_summary(cluster_transitions(before, before.assign(cluster=[0, 0, 1, 1])))
        '1 cluster became 2: 1 split.'
    """
    kind = transitions["kind"]
    old = int((transitions["from_cluster"].unique() >= 0).sum())
    new = int((transitions["to_cluster"].unique() >= 0).sum())
    counts = {
        "stayed": ((kind == "stays") & (transitions["from_cluster"] >= 0)).sum(),
        "split": len(transitions.attrs["split"]),
        "merged": len(transitions.attrs["merge"]),
        "new": len(transitions.attrs["birth"]),
        "dissolved": len(transitions.attrs["death"]),
    }
    changes = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "none on either side"
    summary = f"{count(old, 'cluster')} became {new}: {changes}."
    left = transitions.loc[kind == "leaver", "users"].sum()
    arrived = transitions.loc[kind == "joiner", "users"].sum()
    if left or arrived:
        total = count(int(transitions["users"].sum()), unit)
        summary += f" {left:,} of {total} left a cluster that continued, {arrived:,} joined one."
    return summary


def clusters_summary(clusters: pd.DataFrame, unit: str = "user") -> str:
    """Say how many clusters there are and how many of them are reliable.

    Args:
        clusters: From `find_clusters`.
        unit: The word for a user; default "user".

    Example:
        >>> from qanchor.analysis.clusters import find_clusters
        >>> rows = np.random.default_rng(0).normal(size=(200, 16))
        >>> clusters_summary(find_clusters(rows, range(200)))
        'No clusters: the 200 users form one continuum.'
    """
    n_clusters = len(clusters.attrs["stability"])
    total = len(clusters)
    inside = int((clusters["cluster"] >= 0).sum())
    if not n_clusters:
        return f"No clusters: the {count(total, unit)} form one continuum."
    verb = "contains" if n_clusters == 1 else "contain"
    summary = f"{count(n_clusters, 'cluster')} {verb} {inside:,} of {count(total, unit)}"
    if inside < total:
        summary += ", the others are in none"
    unreliable = sum(share < STABLE for share in clusters.attrs["stability"].values())
    if unreliable:
        which = f"{unreliable} of them {'is' if unreliable == 1 else 'are'}"
        if n_clusters == 1:
            which = "it is"
        summary += f"; {which} not reliable (stability below {STABLE:g})"
    summary += "."
    # two islands far apart lie along one line, too, but contain nearly everybody
    if clusters.attrs["first_axis"] > LINE and inside < ISLANDS * total:
        they = "It is a dense stretch" if n_clusters == 1 else "They are dense stretches"
        summary += (
            f" {they} of one line, which holds {clusters.attrs['first_axis']:.0%} of the variance."
        )
    return summary


def comparison_caption(comparison: ClusterComparison, unit: str = "user") -> str:
    """Say how map and clusters were made.

    Args:
        comparison: From `compare_clusters`.
        unit: The word for a user; default "user".
    """
    about = comparison.after.attrs
    neighbors = (
        f"{comparison.neighbors_kept:.0%} of the {N_NEIGHBORS} nearest neighbours were kept."
    )
    size = f"at least {count(about['least'], unit)}, {about['axes']} principal axes"
    method = f"Clusters: HDBSCAN, {size}, {SUBSAMPLES} subsamples of {SUBSAMPLE_SHARE:.0%}."
    return f"{projection_caption(comparison.points, unit)} {neighbors} {method}"


# Selected users


def group_summary(frame: pd.DataFrame, n: int, total: int, unit: str = "user") -> str:
    """Say how many users are selected and what sets them apart beyond chance.

    Args:
        frame: From `describe_group`.
        n: Selected users.
        total: All users.
        unit: The word for a user; default "user".

    Example:
        >>> row = {"kind": "text", "name": "buy tea", "group": 0.5, "rest": 0.1}
        >>> group_summary(pd.DataFrame([row | {"beyond_chance": True}]), 20, 100)
        '20 of 100 users selected. What sets them apart most: “buy tea” 50 % against 10 %.'
    """
    selected = f"{n:,} of {count(total, unit)} selected."
    telling = frame[frame["beyond_chance"]]
    if telling.empty:
        return f"{selected} Of {count(len(frame), 'comparison')}, none is beyond chance."
    parts = []
    for row in telling.head(MAX_NAMED).itertuples():
        number = ",.6g" if row.kind == "number" else ".0%"
        values = f"{row.group:{number}} against {row.rest:{number}}".replace("%", " %")
        parts.append(f"“{row.name:.40}” {values}")  # the first 40 characters of a name
    return f"{selected} What sets them apart most: {'; '.join(parts)}."


def retention_summary(frame: pd.DataFrame) -> str:
    """Say how many users were still active in the last period that half of each side lived through.

    Args:
        frame: From `retention`.

    Example:
        >>> rows = [{"side": "all", "period": 2, "users": 40, "active": 10, "share": 0.25}]
        >>> frame = pd.DataFrame(rows)
        >>> frame.attrs["period_days"] = 7
        >>> retention_summary(frame)
        'In week 2 after their first day 25 % (10 of 40) were active.'
    """
    sides = {name: side.set_index("period") for name, side in frame.groupby("side", sort=False)}
    last = []
    for side in sides.values():
        halved = side.index[side["users"] >= side["users"].max() / 2]
        last.append(int(halved.max()))
    period = min(last)
    days = frame.attrs["period_days"]
    name = PERIOD_NAMES.get(days, "period")
    rows = {side: table.loc[period] for side, table in sides.items()}
    shares = {side: _counted_share(row) for side, row in rows.items()}
    length = "" if days in PERIOD_NAMES else f" (of {count(days, 'day')})"
    begin = f"In {name} {period}{length} after their first day"
    if "all" in shares:
        return f"{begin} {shares['all']} were active."
    if len(shares) == 1:
        known, other = ("selected", "rest") if "group" in shares else ("rest", "selected")
        share = next(iter(shares.values()))
        return f"{begin} {share} of the {known} were active; the {other} are too few to say."
    both = (
        f"{begin} {shares['group']} of the selected were active, and {shares['rest']} of the rest"
    )
    group, rest = rows["group"], rows["rest"]
    overlap = group["low"] <= rest["high"] and rest["low"] <= group["high"]
    return f"{both}{': within chance' if overlap else ''}."


def _counted_share(row: pd.Series) -> str:
    """Write a share with the numbers behind it."""
    share = f"{row['share']:.0%}".replace("%", " %")
    return f"{share} ({int(row['active']):,} of {int(row['users']):,})"


def funnel_summary(frame: pd.DataFrame) -> str:
    """Say how many users came to the end of a funnel, and at which step the largest share was lost.

    Args:
        frame: From `funnel`.

    Example:
        >>> rows = [{"side": "all", "step": "view", "users": 50, "active": 40, "share": 0.8}]
        >>> rows.append({"side": "all", "step": "pay", "users": 50, "active": 10, "share": 0.2})
        >>> funnel_summary(pd.DataFrame(rows))
        '20 % (10 of 50) come to “pay”. From “view” to “pay” 75 % are lost.'
    """
    sides = [side for _, side in frame.groupby("side", sort=False)]
    first = sides[0]
    active = first["active"].to_numpy()
    steps = first["step"].to_numpy()
    ends = [_counted_share(side.iloc[-1]) for side in sides]
    of_whom = " of the selected" if len(sides) == 2 else ""
    end = f"{ends[0]}{of_whom} come to “{steps[-1]}”"
    if len(sides) == 2:
        end += f", and {ends[1]} of the rest"
    lost = 1 - active[1:] / np.maximum(active[:-1], 1)
    if not active[0] or not lost.any():
        return f"{end}."
    worst = int(lost.argmax())
    share = f"{lost[worst]:.0%}".replace("%", " %")
    path = f"From “{steps[worst]}” to “{steps[worst + 1]}”"
    more = ", more than at any other step" if len(lost) > 1 else ""
    return f"{end}. {path} {share}{of_whom} are lost{more}."


# Questions for groups


def group_queries_summary(ranking: pd.DataFrame, unit: str = "user") -> str:
    """Say which question separates a group best.

    Args:
        ranking: From `rank_queries_for_group`.
        unit: The word for a user; default "user".

    Example:
        >>> row = {"query": "Why?", "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "chance": 0.62}
        >>> row |= {"beyond_chance": True, "behind": False, "n_group": 20, "n_rest": 80}
        >>> group_queries_summary(pd.DataFrame([row]))[:66]
        '“Why?” separates these 20 users best from the other 80: AUC 0.80 ('
    """
    top = ranking.iloc[0]
    users = count(int(top["n_group"]), unit)
    line = (
        f"the best of {count(len(ranking), 'question')} reaches {top['chance']:.2f} in 1 of "
        "20 random groups"
    )
    if not top["beyond_chance"]:
        best = f"“{top['query']}” reaches AUC {top['auc']:.2f}"
        return f"No question separates these {users} better than chance: {best}, and {line}."
    summary = (
        f"“{top['query']}” separates these {users} best from the other {top['n_rest']:,}:"
        f" {_auc_words(top)}."
    )
    rivals = int((~ranking["behind"]).sum()) - 1
    if rivals > 0:
        summary += f" {rivals} other{' is' if rivals == 1 else 's are'} not clearly worse."
    return f"{summary} By chance, {line}."


def group_queries_caption(draws: int) -> str:
    """Say how the questions were compared.

    Args:
        draws: Number of random groups behind the chance level.
    """
    method = (
        f"AUC out of fold ({SEEDS} x {FOLDS} folds), nearest mean; chance level from "
        f"{draws} random groups of that size."
    )
    return (
        f"{method} A group selected on a map is close together under the question of that "
        "map, so this one is no finding."
    )


def matrix_progress(progress: MatrixProgress, n_queries: int, n_users: int, unit: str) -> str:
    """Say which question of a matrix is being measured.

    Args:
        progress: From `query_group_matrix`.
        n_queries: Number of questions.
        n_users: Number of users.
        unit: The word for a user.
    """
    which = f"question {progress.row + 1} of {n_queries}"
    if progress.stage == "users":
        return progress_message("Embedded", progress.done, n_users, unit, f", {which}")
    if progress.stage == "scores":
        return f"Ranking all {plural(unit)}, {which} ..."
    return f"Measured {which} ..."


def matrix_summary(frame: pd.DataFrame, unit: str = "user") -> str:
    """Say how many cells of a matrix are significant and which is clearest.

    Args:
        frame: From `query_group_matrix`.
        unit: The word for a user; default "user".

    Example:
        >>> row = {"query": "Why?", "group": "some", "n": 20, "chance": 0.6, "beyond_chance": True}
        >>> matrix_summary(pd.DataFrame([row | {"auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}]))
        '1 of 1 cell is significant. Clearest: “Why?” separates “some” (20 users) from the others,
        AUC 0.80 (0.70 to 0.90).'
    """
    significant = frame[frame["beyond_chance"]]
    if significant.empty:
        questions = count(frame["query"].nunique(), "question")
        groups = count(frame["group"].nunique(), "group")
        return (
            f"No significant cells: none of {questions} separates any of {groups} better than "
            "chance."
        )
    top = significant.loc[significant["auc"].idxmax()]
    verb = "is" if len(significant) == 1 else "are"
    cells = f"{len(significant)} of {count(len(frame), 'cell')} {verb} significant."
    group = f"“{top['group']}” ({count(int(top['n']), unit)})"
    separates = f"“{top['query']}” separates {group} from the others"
    return f"{cells} Clearest: {separates}, {_auc_words(top)}."


def matrix_caption(n_queries: int, n_users: int, dim: int, unit: str = "user") -> str:
    """Say what the colour of a matrix means, and when shifts are hard to see.

    Args:
        n_queries: Number of questions.
        n_users: Number of users.
        dim: Dimensions of the embedding.
        unit: The word for a user; default "user".
    """
    level = (
        f"the best of {count(n_queries, 'question')} stays below it in 19 of 20 random "
        "groups of that size"
    )
    caption = (
        f"Colour: beyond chance ({level}), so about 1 of 20 meaningless groups would be "
        "coloured. The others are all "
        f"{plural(unit)} outside the group. A group that was made from what the model reads, or "
        "selected on a map, is "
        "separated by that, so it is no finding."
    )
    if n_users < 2 * dim:
        caption += (
            f" {count(n_users, unit)} are few: the common rotation that is removed hides "
            "much of a shift."
        )
    return caption


# Prompt tuning


def tuning_begins(n: int, unit: str) -> str:
    """Say that a prompt is being tuned.

    Args:
        n: Number of users.
        unit: The word for a user.
    """
    return f"Reading the question for {count(n, unit)}"


def evaluation_begins(n: int, unit: str) -> str:
    """Say that a prompt is being evaluated.

    Args:
        n: Number of users.
        unit: The word for a user.
    """
    return f"Evaluating on {count(n, unit)} that were held out"


def prompt_summary(comparison: pd.DataFrame, unit: str = "user") -> str:
    """Say whether tuning gained anything beyond chance.

    Args:
        comparison: From `compare_prompt`.
        unit: The word for a user; default "user".

    Example:
        >>> rows = [("auc", 0.7, 0.71, 0.01, -0.02, 0.04), ("ks", 0.3, 0.4, 0.1, 0.02, 0.2)]
        >>> columns = ["measure", "before", "after", "gain", "low", "high"]
        >>> comparison = pd.DataFrame(rows, columns=columns)
        >>> comparison.attrs["n"] = 300
        >>> prompt_summary(comparison)
        'On 300 held-out users, AUC is .700 before and .710 after: no gain beyond chance
        (95 %: -.020 to +.040).'
    """
    auc = comparison.set_index("measure").loc["auc"]
    intervals = comparison.attrs.get("intervals", {})
    at_chance = [side for side, (low, _) in intervals.items() if low <= 0.5]
    sides = []
    for side in ("before", "after"):
        words = f"{_decimal(auc[side])} {side}"
        if at_chance == [side]:
            words += " (no better than chance)"
        sides.append(words)
    neither = ", neither better than chance" if len(at_chance) == 2 else ""
    if auc["low"] > 0:
        verdict = f"a gain of {_decimal(auc['gain'])}, beyond chance"
    elif auc["high"] < 0:
        verdict = "worse, beyond chance"
    else:
        verdict = "no gain beyond chance"
    interval = f"95 %: {_decimal(auc['low'], '+')} to {_decimal(auc['high'], '+')}"
    users = f"{comparison.attrs['n']:,} held-out {plural(unit)}"
    return f"On {users}, AUC is {' and '.join(sides)}{neither}: {verdict} ({interval})."


# Small words


def join_names(names: list[str]) -> str:
    """Join names with commas and "and".

    Args:
        names: The names.

    Example:
        >>> join_names(["a"]), join_names(["a", "b"]), join_names(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _auc_words(row: pd.Series) -> str:
    return f"AUC {row['auc']:.2f} ({row['auc_low']:.2f} to {row['auc_high']:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points".replace("-", "−")


def _decimal(value: float, sign: str = "") -> str:
    """Format a number with three decimals and no leading zero."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)
