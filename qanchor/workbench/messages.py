"""Every sentence that the views show."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

MEAN_OF_ALL = -1
FOLDS, SEEDS = 5, 3
AGREEMENT_WORDS = ((0.8, "they tell the same"), (0.5, "they partly agree"), (0.2, "poor"), (-0.2, "they do not agree"))


def attention_summary(frame: pd.DataFrame, whom: str = "users") -> str:
    """Say what a ledger shows: where most attention goes, which deletion moves users most, and whether the two agree."""
    whole = frame[(frame["layer"] == MEAN_OF_ALL) & (frame["head_group"] == MEAN_OF_ALL)]
    first, *second = (whole[whole["query"] == query].set_index("modality") for query in dict.fromkeys(whole["query"]))
    looked = first[first["kind"] == "modality"]
    if looked.empty:
        return "There is no modality to look at."
    most = looked["weight"].idxmax()
    told = f"Of all modalities, {most} gets most attention ({_percent(looked['weight'][most])})"
    if looked["deletion_effect"].notna().any():
        moves = looked["deletion_effect"].idxmax()
        told += f"; deleting {moves} moves {whom} farthest ({looked['deletion_effect'][moves]:.2g}). "
        told += _agreement_sentence(first["agreement"].iloc[0])
    else:
        told += "."
    return told + (_comparison_sentence(first, second[0]) if second else "")


def _agreement_sentence(rank: float) -> str:
    if np.isnan(rank):
        return "Too few modalities to say whether attention tells what deletion shows."
    verdict = next((words for least, words in AGREEMENT_WORDS if rank >= least), "they contradict each other")
    told = f"Rank agreement of attention and deletion: {rank:.2f} (1 is the same order, 0 none): {verdict}"
    told = told.replace(": -", ": −")
    return told + ("." if rank >= AGREEMENT_WORDS[0][0] else "; do not read attention as importance.")


def _comparison_sentence(first: pd.DataFrame, second: pd.DataFrame) -> str:
    apart = (first["weight"] - second["weight"]).dropna()[lambda d: d.index.isin(first.index[first["kind"] == "modality"])]
    up, down = apart.idxmax(), apart.idxmin()
    return f" Against the other query, {up} gains most ({_points(apart[up])}) and {down} loses most ({_points(apart[down])})."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points".replace("-", "−")


def shift_summary(shift: pd.DataFrame, unit: str = "user", paraphrases: int = 5) -> str:
    """Say in words how many moved and who moved most.

    Example:
        >>> shift_summary(pd.DataFrame({"user": ["a", "b"], "residual": [0.9, 0.1], "beyond_noise": [True, False]}))
        '1 of 2 users moved beyond the noise floor (5 paraphrases). a moved most.'
    """
    moved = shift[shift["beyond_noise"]].sort_values(["residual", "user"], ascending=[False, True], kind="stable")
    words = f"{paraphrases} paraphrase" + "s" * (paraphrases != 1)
    text = f"{len(moved):,} of {len(shift):,} {unit}s moved beyond the noise floor ({words})."
    first = [str(user) for user in moved["user"][:3]]
    return text + (f" {' and '.join([', '.join(first[:-1]), first[-1]] if first[1:] else first)} moved most." if first else "")


def projection_caption(points: pd.DataFrame, unit: str = "user") -> str:
    """Say how the map was made and how far to believe it; `points` as `joint_projection` returned them."""
    about, both = points.attrs, points["query"].nunique() > 1
    kind = f"{'joint ' * both}{about['method'].upper()} map of {about['users']:,} {unit}s{' under both queries' * both}"
    moved = f"; a common rotation and offset of {about['removed']:.2f} was removed" if both else ""
    return f"One {kind}. Trustworthiness {about['trustworthiness']:.2f}{moved}."


def transitions_summary(ledger: pd.DataFrame, unit: str = "user") -> str:
    """Say in words what became of the clusters.

    Example:
        >>> before = pd.DataFrame({"user": list("abcd"), "cluster": [0, 0, 0, 0]})
        >>> transitions_summary(cluster_transitions(before, before.assign(cluster=[0, 0, 1, 1])))
        '1 cluster became 2: 1 split.'
    """
    old, new = (ledger.loc[ledger[side] >= 0, side].nunique() for side in ("from_cluster", "to_cluster"))
    stayed = int(((ledger["kind"] == "stays") & (ledger["from_cluster"] >= 0)).sum())
    words = {"split": "split", "merge": "merged", "birth": "born", "death": "dissolved"}
    counts = {"stayed": stayed} | {word: len(ledger.attrs[kind]) for kind, word in words.items()}
    told = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "none on either side"
    left, joined = (int(ledger.loc[ledger["kind"] == kind, "users"].sum()) for kind in ("leaver", "joiner"))
    went = f" {left:,} of {int(ledger['users'].sum()):,} {unit}s left a cluster that lived on, {joined:,} joined one."
    return f"{old} cluster{'s' * (old != 1)} became {new}: {told}.{went if left or joined else ''}"


def clusters_summary(clusters: pd.DataFrame, unit: str = "user") -> str:
    """Say in words how many groups there are and how far to believe them.

    Example:
        >>> clusters_summary(find_clusters(np.random.default_rng(0).normal(size=(200, 16)), range(200)))
        'No clusters beyond one continuum of 200 users.'
    """
    from qanchor.analysis.clusters import ISLANDS, LINE, STABLE, stable_clusters

    found, total, inside = len(clusters.attrs["stability"]), len(clusters), int((clusters["cluster"] >= 0).sum())
    if not found:
        return f"No clusters beyond one continuum of {total:,} {unit}s."
    sure = len(stable_clusters(clusters))
    who = "it" if found == 1 else f"{found - sure} of them"
    believed = "" if sure == found else f"; {who} cannot be believed (stability below {STABLE:g})"
    many = f"{found} cluster{'s' * (found != 1)} hold{'s' * (found == 1)}"
    line, others = clusters.attrs["first_axis"], "" if inside == total else ", the others are in none"
    # two islands far apart lie along one line, too, but hold nearly everybody
    stretches = line > LINE and inside < ISLANDS * total
    they = "It is a dense stretch" if found == 1 else "They are dense stretches"
    where = f" {they} of one line, which holds {line:.0%} of all differences." if stretches else ""
    return f"{many} {inside:,} of {total:,} {unit}s{others}{believed}.{where}"


def edit_summary(drop: Collection, reword: Mapping) -> str:
    """Say in words what was changed."""
    many = [f"{len(some):,} event{'s' * (len(some) != 1)}" for some in (drop, reword)]
    told = " and ".join([f"without {many[0]}"] * (len(drop) > 0) + [f"with {many[1]} reworded"] * bool(reword))
    return told[:1].upper() + told[1:]


def group_queries_summary(frame: pd.DataFrame, unit: str = "user") -> str:
    """Say in words what `rank_queries_for_group` found.

    Example:
        >>> row = {"query": "Why?", "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "chance": 0.62, "beyond_chance": True}
        >>> group_queries_summary(pd.DataFrame([{**row, "behind": False, "n_group": 20, "n_rest": 80}]))[:62]
        '“Why?” tells these 20 users best from the other 80: AUC 0.80 ('
    """
    top, more = frame.iloc[0], int((~frame["behind"]).sum()) - 1
    line = f"the best of {len(frame)} question{'s' * (len(frame) != 1)} reaches {top.chance:.2f} in 1 of 20 random groups"
    if not top.beyond_chance:
        return f"No question tells these {top.n_group:,} {unit}s: “{top['query']}” comes to AUC {top.auc:.2f}, and {line}."
    tells = f"“{top['query']}” tells these {top.n_group:,} {unit}s best from the other {top.n_rest:,}"
    rivals = f" {more} other{'s are' if more > 1 else ' is'} not clearly behind." * bool(more)
    return f"{tells}: AUC {top.auc:.2f} ({top.auc_low:.2f} to {top.auc_high:.2f}).{rivals} By luck, {line}."


def _group_queries_caption(draws: int) -> str:
    said = f"AUC out of fold ({SEEDS} x {FOLDS} folds), nearest mean; chance line by {draws} random groups of that size."
    return f"{said} A group drawn on a map stands together under the map's own question: that this one tells it is no news."


def prompt_summary(found: pd.DataFrame, unit: str = "user") -> str:
    """Say whether tuning gained anything beyond chance, and which AUC is no better than luck, by the frame of `compare_prompt`.

    Example:
        >>> rows = [("auc", 0.7, 0.71, 0.01, -0.02, 0.04), ("ks", 0.3, 0.4, 0.1, 0.02, 0.2)]
        >>> found = pd.DataFrame(rows, columns=["measure", "before", "after", "gain", "low", "high"])
        >>> found.attrs["n"] = 300
        >>> prompt_summary(found)
        'On 300 users never tuned on, AUC is .700 before and .710 after: no gain beyond chance (95 %: -.020 to +.040).'
    """
    row = found.set_index("measure").loc["auc"]
    gain, low, high = (f"{row[k]:+.3f}".replace("0.", ".") for k in ("gain", "low", "high"))
    sides = [f"{row[side]:.3f} {side}".replace("0.", ".") for side in ("before", "after")]
    lucky = [low <= 0.5 for low, _ in found.attrs.get("intervals", {}).values()]
    if any(lucky) and not all(lucky):
        sides = [f"{side} (no better than luck)" if luck else side for side, luck in zip(sides, lucky, strict=True)]
    what = f"a gain of {gain[1:]}, beyond" if row["low"] > 0 else "worse, beyond" if row["high"] < 0 else "no gain beyond"
    begin = f"On {found.attrs['n']:,} {unit}s never tuned on, AUC is {' and '.join(sides)}"
    begin += ", neither better than luck" if lucky and all(lucky) else ""
    return f"{begin}: {what} chance (95 %: {low} to {high})."


MEASURE_NOTES = {
    "auc": f"AUC out of fold ({SEEDS} x {FOLDS} folds, nearest mean): .5 is a coin. A high one says that the question sees "
    "these users as alike and unlike the others; not what they answer, nor why.",
    "lean": "How often one of the group leans more to yes than one of the others: .5 is a coin, below it the others do. No "
    "label is used; it compares, and is no share of users who say yes.",
    "ratio": "How far the group moves from where it stands when nothing is asked, as a multiple of how far the others do "
    "(medians of the residual). More says that the question brings out what its general portrait does not hold; not yes or no.",
}
CHANCE_NOTE = (
    "Colour: beyond what the best of {questions} reaches in 1 of 20 random groups of that size, so of 20 groups without "
)
CHANCE_NOTE += (
    "meaning about one would be coloured. The others are all who are not in the group. A group made from what the model "
)
CHANCE_NOTE += "reads, or drawn on a map, is told by that: no news."


def matrix_summary(frame: pd.DataFrame, unit: str = "user") -> str:
    """Say in words what `query_group_matrix` found.

    Example:
        >>> row = {"query": "Why?", "group": "some", "n": 20, "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}
        >>> matrix_summary(pd.DataFrame([row | {"chance": 0.6, "beyond_chance": True}]))
        '1 of 1 cell is told beyond luck. Clearest: “Why?” tells “some” (20 users) from the others, AUC 0.80 (0.70 to 0.90).'
    """
    told = frame[frame["beyond_chance"]]
    if told.empty:
        return (
            f"None of {_count(frame['query'].nunique())} tells any of {_count(frame['group'].nunique(), 'group')} beyond luck."
        )
    top = told.loc[told["auc"].idxmax()]
    words = f"{len(told)} of {_count(len(frame), 'cell')} {'is' if len(told) == 1 else 'are'} told beyond luck. Clearest: "
    words += f"“{top['query']}” tells “{top['group']}” ({_count(int(top['n']), unit)}) from the others, "
    return words + f"AUC {top['auc']:.2f} ({top['auc_low']:.2f} to {top['auc_high']:.2f})."


def _count(n: int, word: str = "question") -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"
