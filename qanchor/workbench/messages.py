"""Every sentence of the interface: the back ends compute, this module puts results into words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd

from qanchor.analysis.attention import MEAN_OF_ALL
from qanchor.analysis.clusters import (
    ISLANDS,
    LINE,
    STABLE,
    SUBSAMPLE_SHARE,
    SUBSAMPLES,
    ClusterComparison,
    stable_clusters,
)
from qanchor.analysis.embedding_cache import PARAPHRASES
from qanchor.analysis.group_queries import FOLDS, SEEDS
from qanchor.analysis.query_matrix import MatrixProgress
from qanchor.analysis.shift import N_NEIGHBORS, share_beyond_noise
from qanchor.evaluation.backtest import BacktestResult
from qanchor.useru.topics import by_name
from qanchor.utils.text import count, plural

# Rank correlation from which on attention and deletion are said to agree so well.
AGREEMENT_WORDS = (
    (0.8, "they agree"),
    (0.5, "they partly agree"),
    (0.2, "they hardly agree"),
    (-0.2, "they do not agree"),
)
GOOD_AGREEMENT = AGREEMENT_WORDS[0][0]
MAX_NAMED_MOVERS = 3
MEASURE_NOTES = {
    "auc": f"AUC out of fold ({SEEDS} x {FOLDS} folds, nearest mean); chance is .5. A high AUC "
    "says that under this question "
    "these users are similar to each other and different from the others, not what they answer, "
    "nor why.",
    "yes_score": "How often a user of the group leans more to yes than one of the others; chance "
    "is .5. No label is used. It "
    "compares users and is no share of users who say yes.",
    "ratio": "How far the group moves from its place under the empty query, relative to how far "
    "the others move (medians of "
    "the residual). A high ratio says that the question shows something the general profile does "
    "not; not yes or no.",
}

# The lens


def embedding_progress(done: int, total: int, unit: str, n_queries: int = 1) -> str:
    """Say how many users are embedded.

    Example:
        >>> embedding_progress(10, 60, "family", 72)
        'Embedded 10 of 60 families under 72 questions ...'
    """
    under = "" if n_queries == 1 else f" under {count(n_queries, 'question')}"
    return f"Embedded {done:,} of {count(total, unit)}{under} ..."


def opening_message(n: int, unit: str) -> str:
    """Say what the first map shows."""
    return f"{count(n, unit)} before any question."


def shift_summary(
    shift: pd.DataFrame, unit: str = "user", paraphrases: int = len(PARAPHRASES)
) -> str:
    """Say how many users moved and which moved most.

    Args:
        shift: A frame with `user, residual, beyond_noise`, from `embedding_shift`. Its gained and
        lost neighbours are row
            numbers, see `neighbors_changed`; the sentence does not name them.
        unit: The word for a user; default "user".
        paraphrases: Paraphrases behind the noise floor; default 5.

    Example:
        >>> shift_summary(pd.DataFrame({"user": ["a", "b"], "residual": [0.9, 0.1], "beyond_noise": [True, False]}))
        '1 of 2 users moved beyond the noise floor (5 paraphrases). a moved most.'
    """
    moved = shift[shift["beyond_noise"]].sort_values(
        ["residual", "user"], ascending=[False, True], kind="stable"
    )
    floor = f"the noise floor ({count(paraphrases, 'paraphrase')})"
    summary = f"{len(moved):,} of {count(len(shift), unit)} moved beyond {floor}."
    names = [str(user) for user in moved["user"][:MAX_NAMED_MOVERS]]
    return f"{summary} {join_names(names)} moved most." if names else summary


def projection_caption(points: pd.DataFrame, unit: str = "user") -> str:
    """Say how the map was made and how far to trust it; `points` from `joint_projection`."""
    about = points.attrs
    users = count(about["users"], unit)
    method = about["method"].upper()
    trust = f"Trustworthiness {about['trustworthiness']:.2f}"
    if points["query"].nunique() < 2:
        return f"One {method} map of {users}. {trust}."
    removed = f"a common rotation and offset of {about['removed']:.2f} was removed"
    return f"One joint {method} map of {users} under both queries. {trust}; {removed}."


def novelty_warning(novel: bool, unit: str = "user") -> str:
    """Warn if training asked nothing like the query (`attrs["novel"]` of a ranking); empty if not.

    Example:
        >>> novelty_warning(True, "member")
        'Training contained no similar question, so the result mostly shows the general profile of each member.'
    """
    if not novel:
        return ""
    return (
        "Training contained no similar question, so the result mostly shows the general "
        f"profile of each {unit}."
    )


def unanswerable_note(query: str, nearest: Sequence[str]) -> str:
    """Say that nothing in the data speaks of a query, and what can be asked.

    Args:
        query: The query.
        nearest: Labels of the nearest things in the data.

    Example:
        >>> unanswerable_note("Will this user fly?", ["cart", "payment"])
        'Nothing in these events speaks of “Will this user fly?”. You can ask about: cart, payment.'
    """
    return f"Nothing in these events speaks of “{query}”. You can ask about: {', '.join(nearest)}."


def evidence_note(evidence: Sequence[dict], unit: str) -> str:
    """Say what a query points at; `evidence` from the `attrs` of a ranking.

    Args:
        evidence: Records with `text`, `weight` and `users`.
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


def identical_answers_note(
    identical: tuple[int, int] | None, total: int, unit: str = "user"
) -> str:
    """Say if nearly all users, or the highest-ranked ones, have the same answer; empty if not.

    Args:
        identical: `attrs["identical"]` of a ranking: (users with the same answer, users looked at),
        or None.
        total: Users in all.
        unit: The word for a user; default "user".

    Example:
        >>> identical_answers_note((97, 100), 100, "member")
        '97 of 100 members have the same answer. Use the order, which separates them.'
        >>> identical_answers_note((10, 10), 100, "member")
        '10 of the 10 members nearest to yes have the same answer. Use the order, which separates them.'
    """
    if identical is None:
        return ""
    same, of = identical
    users = count(of, unit) if of == total else f"the {count(of, unit)} nearest to yes"
    return f"{same:,} of {users} have the same answer. Use the order, which separates them."


def topics_note(topics: Collection[str]) -> str:
    """Say what a query was interpreted as; `topics` from the `attrs` of a ranking.

    Example:
        >>> topics_note(["visits_up", "not lapse"])
        'interpreted as a question about visits up, not lapse'
    """
    return f"interpreted as a question about {', '.join(topics).replace('_', ' ')}"


def backtest_progress(stage: str) -> str:
    """Say what a backtest does; the counts are in the update."""
    return f"{stage[:1].upper()}{stage[1:]}"


PAST_OUTCOMES = {  # what a backtest looks at, by measure of concepts
    "occurs": "was there {topic}",
    "more": "was there more of it than before ({topic})",
    "less": "was there less of it than before ({topic})",
    "first": "was it there for the first time ({topic})",
    "high": "was there much of it ({topic})",
    "share": "was it much of all that happened ({topic})",
}
PAST_DENIALS = {
    "occurs": "was there no {topic}",
    "more": "was there no more of it than before ({topic})",
    "less": "was there no less of it than before ({topic})",
    "first": "was it not there for the first time ({topic})",
    "high": "was there little of it ({topic})",
    "share": "was it little of all that happened ({topic})",
}


def backtest_summary(result: BacktestResult, unit: str | None = None) -> str:
    """Say how often a ranking of an earlier day was right.

    Args:
        result: The result of `backtest`.
        unit: The word for a user; default: that of the result.

    Example:
        >>> result = BacktestResult(0.71, 0.66, 0.76, 400, "lapse", 30, "2025-05-02", "member")
        >>> order, outcome = backtest_summary(result).split(" Measured on ")
        >>> order
        'Backtest as of 2025-05-02: 71 of 100 pairs are in the right order (95 %: 66 to 76; chance: 50).'
        >>> outcome
        '400 members: did they stop shopping here in the 30 days after?'
    """
    unit = result.unit if unit is None else unit
    if not result.topic and result.pointed:
        return "No backtest: nothing in these events says what came true."
    if not result.topic:
        return "No backtest: the question is not about a single topic."
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
    negation = "not " if result.topic.startswith("not ") else ""
    when = f"in the {result.days} days after" if result.days else "until then"
    right = f"{100 * result.right:.0f} of 100 pairs are in the right order ({interval}){verdict}."
    topic = result.topic.removeprefix("not ")
    if result.pointed:
        outcomes = PAST_DENIALS if negation else PAST_OUTCOMES
        asked = outcomes[result.measure].format(topic=topic)
    else:
        asked = f"did they {negation}{by_name(topic).does}"
    outcome = f"Measured on {count(result.n, unit)}: {asked} {when}?"
    if result.shares:
        first, *_, last = (f"{100 * share:.0f}" for share in result.shares)
        outcome += f" Of the fifth ranked highest {first} of 100, of the lowest {last}."
    if result.optimistic:
        outcome += f" Training has seen these {plural(unit)}, so this is optimistic."
    return f"Backtest as of {result.cutoff}: {right} {outcome}"


def provenance(
    run: str, seed: int = 0, shift: pd.DataFrame | None = None, unit: str = "user"
) -> dict:
    """Return what a result card says of a result.

    Args:
        run: Fingerprint of the run.
        seed: Seed of the map; default 0.
        shift: From `embedding_shift`; default: none.
        unit: The word for a user; default "user".

    Returns:
        `run, seed, unit, version`, and of a shift `metric, value, low, high, n`: the share of users
        that moved, with its 95 % interval.

    Example:
        >>> moved = pd.DataFrame({"user": ["a", "b"], "beyond_noise": [True, False], "noise_floor": 0.3})
        >>> {name: value for name, value in provenance("", 0, moved).items() if name in ("metric", "value", "n")}
        {'metric': 'share of users beyond the noise floor of 0.30', 'value': 0.5, 'n': 2}
    """
    try:
        installed = f"qanchor {version('qanchor')}"
    except PackageNotFoundError:  # a checkout that nobody installed
        installed = "qanchor, not installed"
    facts: dict = {"run": run, "seed": seed, "unit": unit, "version": installed}
    if shift is not None:
        value, low, high = share_beyond_noise(shift)
        floor = shift["noise_floor"].max()
        facts["metric"] = f"share of {plural(unit)} beyond the noise floor of {floor:.2f}"
        facts |= {"value": value, "low": low, "high": high, "n": len(shift)}
    return facts


# Attention


def attention_summary(table: pd.DataFrame, users: str = "users") -> str:
    """Say where most attention goes, which deletion moves users most, and whether the two agree.

    Args:
        table: From `attention_table`, of one query or two.
        users: Whose attention it is: an id, or the plural word for users; default "users".
    """
    means = table[(table["layer"] == MEAN_OF_ALL) & (table["head_group"] == MEAN_OF_ALL)]
    by_query = [
        means[means["query"] == query].set_index("modality")
        for query in dict.fromkeys(means["query"])
    ]
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
    words = "they contradict each other"
    for least, candidate in AGREEMENT_WORDS:
        if correlation >= least:
            words = candidate
            break
    number = f"{correlation:.2f}".replace("-", "−")
    sentence = (
        f"Rank agreement of attention and deletion: {number} (1 is the same order, 0 none): {words}"
    )
    return (
        f"{sentence}."
        if correlation >= GOOD_AGREEMENT
        else f"{sentence}; do not read attention as importance."
    )


def _comparison_sentence(first: pd.DataFrame, second: pd.DataFrame) -> str:
    difference = (first["weight"] - second["weight"]).dropna()
    modalities = first.index[first["kind"] == "modality"]
    difference = difference[difference.index.isin(modalities)]
    up = difference.idxmax()
    down = difference.idxmin()
    gain = _points(difference[up])
    loss = _points(difference[down])
    return (
        f"Compared with the other query, {up} gains most ({gain}) and {down} loses most ({loss})."
    )


def attention_progress(done: int, total: int, unit: str) -> str:
    """Say of how many users attention was read."""
    return f"Read the attention of {done:,} of {count(total, unit)} ..."


def deletion_progress(modality: str, n: int, unit: str) -> str:
    """Say which modality was deleted from how many users."""
    return f"Deleted {modality} from {count(n, unit)} ..."


def deletions_done(done: int, total: int, unit: str) -> str:
    """Say for how many users every modality was deleted."""
    return f"Deleted each modality once from {done:,} of {count(total, unit)} ..."


def _attention_caption(ids: list[str], of: int, unit: str, seed: int, what: str) -> str:
    """Say of whom and of what attention was read."""
    who = ids[0] if of == 1 else f"Mean over {count(len(ids), unit)}"
    if len(ids) < of:
        who += f" of {of:,} (drawn by seed {seed})"
    effect = f"Deletion effect: 1 - cosine after reading the {unit} without the modality."
    return f"{who}; {what}. {effect}"


def pointing_caption(ids: list[str], of: int, unit: str, seed: int) -> str:
    """Say of whom the attention of a model from `fit` was read.

    Args:
        ids: The users that were read.
        of: Users they were drawn from.
        unit: The word for a user.
        seed: Seed of the sample.

    Example:
        >>> pointing_caption(["a"], 1, "user", 0)
        'a; attention shows how much each score depends on the events (absolute sum of gradients). Deletion effect: 1 - cosine after reading the user without the modality.'
    """
    what = "attention shows how much each score depends on the events (absolute sum of gradients)"
    return _attention_caption(ids, of, unit, seed, what)


def attention_caption(
    ids: list[str], of: int, unit: str, seed: int, layers: int, heads: int, has_skip: bool
) -> str:
    """Say of whom attention was read and how.

    Args:
        ids: The users that were read.
        of: Users they were drawn from.
        unit: The word for a user.
        seed: Seed of the sample.
        layers: Layers of the backbone.
        heads: Heads of a layer.
        has_skip: Whether the model has a skip, which attention does not show.

    Example:
        >>> attention_caption(["a"], 1, "user", 0, 2, 4, False)
        'a; 2 layers, 4 heads. Deletion effect: 1 - cosine after reading the user without the modality.'
    """
    size = f"{count(layers, 'layer')}, {count(heads, 'head')}"
    caption = _attention_caption(ids, of, unit, seed, size)
    if has_skip:
        caption += (
            " Attention does not show the skip, through which numbers reach the embedding "
            "past the language model."
        )
    return caption


ANSWERING = "Generating the answers ..."


def edit_summary(drop: Collection, reword: Mapping) -> str:
    """Say what was changed.

    Example:
        >>> edit_summary([3, 4], {5: "tea"})
        'Without 2 events and with 1 event reworded'
    """
    parts = []
    if len(drop):
        parts.append(f"without {count(len(drop), 'event')}")
    if reword:
        parts.append(f"with {count(len(reword), 'event')} reworded")
    words = " and ".join(parts)
    return words[:1].upper() + words[1:]


def edit_result(
    drop: Collection, reword: Mapping, user: str, moved: float, same_answer: bool
) -> str:
    """Say how far an edited user moved and whether the answer changed.

    Example:
        >>> edit_result([3], {}, "a", 0.00002, True)
        'Without 1 event, a moves by less than 0.0001 (1 - cosine). The answer stays the same.'
    """
    distance = f"{moved:.4f}" if moved >= 0.0001 else "less than 0.0001"
    answer = "The answer stays the same." if same_answer else "The answer changes."
    return f"{edit_summary(drop, reword)}, {user} moves by {distance} (1 - cosine). {answer}"


# Clusters


def transitions_summary(transitions: pd.DataFrame, unit: str = "user") -> str:
    """Say what became of the clusters.

    Example:
        >>> from qanchor.analysis.clusters import cluster_transitions
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> transitions_summary(cluster_transitions(before, before.assign(cluster=[0, 0, 1, 1])))
        '1 cluster became 2: 1 split.'
    """
    kind = transitions["kind"]
    old = transitions.loc[transitions["from_cluster"] >= 0, "from_cluster"].nunique()
    new = transitions.loc[transitions["to_cluster"] >= 0, "to_cluster"].nunique()
    counts = {
        "stayed": int(((kind == "stays") & (transitions["from_cluster"] >= 0)).sum()),
        "split": len(transitions.attrs["split"]),
        "merged": len(transitions.attrs["merge"]),
        "new": len(transitions.attrs["birth"]),
        "dissolved": len(transitions.attrs["death"]),
    }
    changes = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "none on either side"
    summary = f"{count(old, 'cluster')} became {new}: {changes}."
    left = int(transitions.loc[kind == "leaver", "users"].sum())
    arrived = int(transitions.loc[kind == "joiner", "users"].sum())
    if left or arrived:
        total = count(int(transitions["users"].sum()), unit)
        summary += f" {left:,} of {total} left a cluster that continued, {arrived:,} joined one."
    return summary


def clusters_summary(clusters: pd.DataFrame, unit: str = "user") -> str:
    """Say how many clusters there are and how reliable they are.

    Example:
        >>> from qanchor.analysis.clusters import find_clusters
        >>> clusters_summary(find_clusters(np.random.default_rng(0).normal(size=(200, 16)), range(200)))
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
    unreliable = n_clusters - len(stable_clusters(clusters))
    if unreliable:
        which = (
            "it is"
            if n_clusters == 1
            else f"{unreliable} of them {'is' if unreliable == 1 else 'are'}"
        )
        summary += f"; {which} not reliable (stability below {STABLE:g})"
    summary += "."
    # two islands far apart lie along one line, too, but contain nearly everybody
    if clusters.attrs["first_axis"] > LINE and inside < ISLANDS * total:
        they = "It is a dense stretch" if n_clusters == 1 else "They are dense stretches"
        summary += (
            f" {they} of one line, which holds {clusters.attrs['first_axis']:.0%} of the variance."
        )
    return summary


def paraphrase_noise(
    changed: int, changed_by_paraphrase: Collection[int], unit: str = "user"
) -> str:
    """Say how many users changed cluster, and how many do if the question is only reworded.

    Example:
        >>> paraphrase_noise(30, (0, 4, 2), "member")
        '30 members changed cluster; rewording the first question alone changes 0 to 4 (3 paraphrases).'
    """
    low, high = min(changed_by_paraphrase), max(changed_by_paraphrase)
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    reworded = count(len(changed_by_paraphrase), "paraphrase")
    return (
        f"{count(changed, unit)} changed cluster; rewording the first question alone changes "
        f"{span} ({reworded})."
    )


def comparison_summary(comparison: ClusterComparison, unit: str = "user") -> str:
    """Say what became of the clusters and how much of it rewording alone does."""
    summary = transitions_summary(comparison.transitions, unit)
    if comparison.changed_by_paraphrase:
        summary += (
            f" {paraphrase_noise(comparison.changed, comparison.changed_by_paraphrase, unit)}"
        )
    return summary


def comparison_caption(comparison: ClusterComparison, unit: str = "user") -> str:
    """Say how map and clusters were made."""
    about = comparison.after.attrs
    neighbors = (
        f"{comparison.neighbors_kept:.0%} of the {N_NEIGHBORS} nearest neighbours were kept."
    )
    size = f"at least {count(about['least'], unit)}, {about['axes']} principal axes"
    method = f"Clusters: HDBSCAN, {size}, {SUBSAMPLES} subsamples of {SUBSAMPLE_SHARE:.0%}."
    return f"{projection_caption(comparison.points, unit)} {neighbors} {method}"


# Questions for groups


def questions_progress(done: int, total: int) -> str:
    """Say how many questions were compared."""
    return f"Compared {done} of {count(total, 'question')} ..."


def group_queries_summary(ranking: pd.DataFrame, unit: str = "user") -> str:
    """Say which question separates a group best; `ranking` from `rank_queries_for_group`.

    Example:
        >>> row = {"query": "Why?", "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "chance": 0.62, "beyond_chance": True}
        >>> group_queries_summary(pd.DataFrame([{**row, "behind": False, "n_group": 20, "n_rest": 80}]))[:66]
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
    auc = f"AUC {top['auc']:.2f} ({top['auc_low']:.2f} to {top['auc_high']:.2f})"
    summary = (
        f"“{top['query']}” separates these {users} best from the other {top['n_rest']:,}: {auc}."
    )
    rivals = int((~ranking["behind"]).sum()) - 1
    if rivals > 0:
        summary += f" {rivals} other{' is' if rivals == 1 else 's are'} not clearly worse."
    return f"{summary} By chance, {line}."


def group_queries_caption(draws: int) -> str:
    """Say how the questions were compared."""
    method = (
        f"AUC out of fold ({SEEDS} x {FOLDS} folds), nearest mean; chance level from "
        f"{draws} random groups of that size."
    )
    return (
        f"{method} A group selected on a map is close together under the question of that "
        "map, so this one is no finding."
    )


def matrix_progress(progress: MatrixProgress, unit: str) -> str:
    """Say what is being measured."""
    which = f"question {progress.row + 1} of {progress.rows}"
    if progress.stage == "users":
        n_users = progress.total // progress.rows
        done = progress.done - n_users * progress.row
        return f"Embedded {done:,} of {count(n_users, unit)}, {which} ..."
    if progress.stage == "scores":
        return f"Comparing yes and no, {which} ..."
    return f"Measured {which} ..."


def matrix_summary(frame: pd.DataFrame, unit: str = "user") -> str:
    """Say what `query_group_matrix` found.

    Example:
        >>> row = {"query": "Why?", "group": "some", "n": 20, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}
        >>> matrix_summary(pd.DataFrame([row | {"chance": 0.6, "beyond_chance": True}]))
        '1 of 1 cell is significant. Clearest: “Why?” separates “some” (20 users) from the others, AUC 0.80 (0.70 to 0.90).'
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
    auc = f"AUC {top['auc']:.2f} ({top['auc_low']:.2f} to {top['auc_high']:.2f})"
    return f"{cells} Clearest: “{top['query']}” separates {group} from the others, {auc}."


def matrix_caption(n_queries: int, n_users: int, dim: int, unit: str = "user") -> str:
    """Say what the colour means and when a shift is hard to see.

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
    """Say on how many users a prompt is tuned."""
    return f"Reading the question for {count(n, unit)}"


def evaluation_begins(n: int, unit: str) -> str:
    """Say on how many users a prompt is evaluated."""
    return f"Evaluating on {count(n, unit)} that were held out"


def prompt_summary(comparison: pd.DataFrame, unit: str = "user") -> str:
    """Say whether tuning gained anything beyond chance; `comparison` from `compare_prompt`.

    Example:
        >>> rows = [("auc", 0.7, 0.71, 0.01, -0.02, 0.04), ("ks", 0.3, 0.4, 0.1, 0.02, 0.2)]
        >>> comparison = pd.DataFrame(rows, columns=["measure", "before", "after", "gain", "low", "high"])
        >>> comparison.attrs["n"] = 300
        >>> prompt_summary(comparison)
        'On 300 held-out users, AUC is .700 before and .710 after: no gain beyond chance (95 %: -.020 to +.040).'
    """
    auc = comparison.set_index("measure").loc["auc"]
    intervals = comparison.attrs.get("intervals", {})
    at_chance = [side for side, (low, _) in intervals.items() if low <= 0.5]
    sides = []
    for side in ("before", "after"):
        words = f"{_decimal(auc[side])} {side}"
        if side in at_chance and len(at_chance) == 1:
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
    """Join names as in a sentence.

    Example:
        >>> join_names(["a"]), join_names(["a", "b"]), join_names(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points".replace("-", "−")


def _decimal(value: float, sign: str = "") -> str:
    """Write a number with three decimals and no zero before the point."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1)
