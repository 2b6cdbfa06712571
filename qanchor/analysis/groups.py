"""Describe what distinguishes a group or a cluster of users from all others."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from qanchor.data.export import membership_mask
from qanchor.data.users import Users
from qanchor.evaluation.intervals import wilson_interval
from qanchor.utils.types import UserMask

# average users added to both sides before computing odds, so that one user with a rare text does
# not win
PRIOR_USERS = 10
MIN_ODDS_USERS = 0.5  # smallest denominator of odds
# probability that anything is called distinctive if nothing is (Bonferroni over all comparisons)
FAMILY_ERROR = 0.05
WORD = re.compile(r"[^\W\d_]{3,}")
MAX_LISTED_TEXTS = 5  # distinctive texts listed per cluster
MAX_NAME_PARTS = 3  # parts of a cluster's name
MIN_TEXT_HOLDERS = 5  # users of a cluster that must have a text for it to be distinctive
CLUSTER_TYPES = {
    "cluster": int,
    "users": int,
    "share": float,
    "stability": float,
    "events": float,
    "modality": "str",
    "texts": object,
    "name": "str",
}


def describe_clusters(clusters: pd.DataFrame, users: Users) -> pd.DataFrame:
    """Name each cluster by what its users did before the cut-off and others did not.

    A text is distinctive if the odds that a user has it (once or often) are higher in the cluster
    than elsewhere, beyond chance: log-odds with a prior (Monroe et al. 2008), corrected for the
    number of texts. A random group has no distinctive text (in 95 % of cases).

    Args:
        clusters: Clusters of all or some of these users, from `find_clusters`.
        users: The users.

    Returns:
        One row per cluster: `cluster, users, share` (of all users), `stability`, `events` (median
        per user), `modality` (the one whose share of a user's events exceeds that of the others
        most; empty if none does), `texts` (distinctive ones) and a short `name`.

    Raises:
        KeyError: If a user is unknown.
        ValueError: If `clusters` lacks a column.

    Example:
        >>> rows = [(f"u{i}", "tea" if i < 40 else "soap") for i in range(80)]
        >>> events = pd.DataFrame(rows, columns=["user", "text"])
        >>> events = events.assign(time=pd.Timestamp("2025-01-01"), modality="bill")
        >>> users = qa.Users.from_events(events, cutoff="2025-02-01")
        >>> number = [int(int(user[1:]) >= 40) for user in users.ids]
        >>> clusters = pd.DataFrame({"user": users.ids, "cluster": number})
        >>> describe_clusters(clusters, users)["name"].tolist()
        ['tea', 'soap']
    """
    for column in ("user", "cluster"):
        if column not in clusters:
            columns = ", ".join(map(str, clusters))
            raise ValueError(
                f"There is no column {column!r} (found {columns}). Pass the frame that "
                "find_clusters returns."
            )
    past = users.select(clusters["user"]).history()
    number = clusters.set_index("user")["cluster"]
    texts = past[["user", "text"]].astype(str).drop_duplicates()
    texts_of = distinctive(number, texts["user"], texts["text"])
    words_of = _distinctive_words(number, texts)
    events = past["user"].value_counts().reindex(number.index, fill_value=0)
    stability = clusters.attrs.get("stability", {})
    rows = []
    for cluster, modality in enumerate(_distinctive_modality(number, past)):
        inside = number == cluster
        median = events[inside].median()
        others = events[~inside].median()
        parts = words_of[cluster]
        if median < 0.6 * others:
            parts.append("few events")
        if median > 1.6 * others:
            parts.append("many events")
        if not parts and modality:
            parts.append(f"more {modality}")
        if not parts:
            parts.append(f"nothing distinctive ({cluster})")
        row = {
            "cluster": cluster,
            "users": int(inside.sum()),
            "share": inside.mean(),
            "stability": stability.get(cluster, np.nan),
            "events": median,
            "modality": modality,
            "texts": texts_of[cluster][:MAX_LISTED_TEXTS],
            "name": ", ".join(parts[:MAX_NAME_PARTS]),
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=list(CLUSTER_TYPES)).astype(CLUSTER_TYPES)


def distinctive(number: pd.Series, who: pd.Series, what: pd.Series) -> dict[int, list[str]]:
    """List for each cluster what its users have and others do not, the most distinctive first.

    Args:
        number: Index user; number of the cluster, -1 for none.
        who: User of each pair.
        what: What this user has, such as a text. Pairs are unique.

    Returns:
        Distinctive items by cluster; clusters without any have an empty list.
    """
    from scipy.stats import norm

    n_users = len(number)
    holders = pd.crosstab(number.loc[who].to_numpy(), what.to_numpy())
    holders = holders.loc[:, holders.sum() >= MIN_TEXT_HOLDERS]
    total = holders.sum()
    prior = PRIOR_USERS * total / n_users
    z = norm.isf(FAMILY_ERROR / max(1, len(total)))
    by_cluster = {}
    holders = holders.reindex(range(number.max() + 1), fill_value=0)
    for cluster, have in holders.iterrows():
        size = int((number == cluster).sum())
        ours, our_variance = _log_odds(have, size, prior)
        theirs, their_variance = _log_odds(total - have, n_users - size, prior)
        lowest = ours - theirs - z * np.sqrt(our_variance + their_variance)
        lowest = lowest[(lowest > 0) & (have >= MIN_TEXT_HOLDERS)]
        lowest = lowest.sort_values(ascending=False, kind="stable")
        by_cluster[cluster] = lowest.index.astype(str).tolist()
    return by_cluster


def _log_odds(have: pd.Series, size: int, prior: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return the log-odds that one of `size` users has each text, and their variance."""
    yes = have + prior
    no = (size - have + PRIOR_USERS - prior).clip(lower=MIN_ODDS_USERS)
    return np.log(yes / no), 1 / yes + 1 / no


def _distinctive_words(number: pd.Series, texts: pd.DataFrame) -> dict[int, list[str]]:
    """Return up to two distinctive words per cluster, the second mostly from other texts."""
    words_in = {text: set(WORD.findall(text.lower())) for text in texts["text"].unique()}
    pairs = texts.assign(word=texts["text"].map(words_in)).explode("word").dropna()
    texts_with = pairs.groupby("word")["text"].agg(set)
    pairs = pairs[["user", "word"]].drop_duplicates()
    words_of = {}
    for cluster, words in distinctive(number, pairs["user"], pairs["word"]).items():
        words_of[cluster] = words[:1]
        for word in words[1:]:
            shared = texts_with[word] & texts_with[words[0]]
            if 2 * len(shared) < len(texts_with[word]):
                words_of[cluster].append(word)
                break
    return words_of


def _distinctive_modality(number: pd.Series, past: pd.DataFrame) -> list[str]:
    """Return for each cluster the modality whose mean share of a user's events is most above that
    of the others, beyond chance; "" for none.
    """
    from scipy.stats import norm

    share = pd.crosstab(past["user"].astype(str), past["modality"].astype(str), normalize="index")
    cluster_of = number.loc[share.index].to_numpy()
    z = norm.isf(FAMILY_ERROR / share.shape[1])
    names = []
    for cluster in range(number.max() + 1):
        inside = share[cluster_of == cluster]
        outside = share[cluster_of != cluster]
        difference = inside.mean() - outside.mean()
        spread = np.sqrt(inside.sem() ** 2 + outside.sem() ** 2)  # NaN of a single user
        more = difference[difference > z * spread]
        names.append("" if more.empty else str(more.idxmax()))
    return names


# users that must have a text for it to be compared; all users count, so that no group is favored
MIN_TEXT_USERS = 5
DESCRIPTION_COLUMNS = [
    "kind",
    "name",
    "group",
    "group_low",
    "group_high",
    "rest",
    "rest_low",
    "rest_high",
    "difference",
    "low",
    "high",
    "p",
    "beyond_chance",
    "n_group",
    "n_rest",
]


def describe_group(users: Users, ids: Iterable[str]) -> pd.DataFrame:
    """Compare a group with all other users, the most significant difference first.

    Only the history before the cut-off is used, and labels, which are observed after it. Texts of
    fewer than five users are left out.

    Args:
        users: The users.
        ids: Ids of the group.

    Returns:
        One row per comparison:

        kind, name: what is compared: a text, modality, fact, label or number.
        group, rest: for a number, the median over users; otherwise the share of users that have it
            (for a label, among users with a known one).
        group_low, group_high, rest_low, rest_high: 95 % intervals (Wilson; for a median, by order
            statistics).
        difference, low, high: group minus rest, with its 95 % interval by Newcombe's method.
        p: exact for shares, by ranks for numbers.
        beyond_chance: whether p is significant after correction for all comparisons (Bonferroni),
            so about 1 in 20 random groups has any such row.
        n_group, n_rest: number of users compared.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If the group is empty or holds all users.

    Source: Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> frame = describe_group(users, users.ids[:12])
        >>> sorted(set(frame.kind)), int(frame.n_group.max()), int(frame.n_rest.max())
        (['label', 'modality', 'number', 'text'], 12, 48)
    """
    inside = membership_mask(users.ids, ids)
    past = users.history()
    numbers = _numbers(users, past)
    is_binary = (numbers.isin([0, 1]) | numbers.isna()).all()
    binary = [name for name in users.tabular if is_binary[name]]
    parts = [
        _compare_shares_of_users(past, "text", inside),
        _compare_shares_of_users(past, "modality", inside),
        _compare_binary("fact", numbers[binary], inside),
        _compare_binary("label", users.labels, inside),
        _compare_medians(numbers.drop(columns=binary), inside),
    ]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    group = frame["group"]
    rest = frame["rest"]
    difference = group - rest
    frame["difference"] = difference
    frame["low"] = difference - np.hypot(group - frame["group_low"], frame["rest_high"] - rest)
    frame["high"] = difference + np.hypot(frame["group_high"] - group, rest - frame["rest_low"])
    frame["beyond_chance"] = frame["p"] * len(frame) < FAMILY_ERROR
    frame["size"] = -difference.abs()
    frame = frame.sort_values(["p", "size"], kind="stable", ignore_index=True)
    return frame[DESCRIPTION_COLUMNS]


def _compare_shares_of_users(past: pd.DataFrame, kind: str, inside: UserMask) -> pd.DataFrame:
    """Compare the shares of users with each text or modality; rare texts are left out."""
    least = MIN_TEXT_USERS if kind == "text" else 1
    pairs = past[["user", kind]].drop_duplicates()
    n_all = pairs[kind].value_counts(sort=False)
    n_all = n_all[n_all >= least]
    is_ours = inside[pairs["user"].cat.codes]
    n_ours = pairs.loc[is_ours, kind].value_counts(sort=False)[n_all.index]
    return _compare_shares(kind, n_ours, inside.sum(), n_all - n_ours, (~inside).sum())


def _compare_binary(kind: str, table: pd.DataFrame, inside: UserMask) -> pd.DataFrame:
    """Compare the shares of ones among the known values."""
    is_known = table.notna()
    table = table.loc[:, is_known[inside].any() & is_known[~inside].any()]
    ours = table[inside]
    theirs = table[~inside]
    return _compare_shares(kind, ours.sum(), ours.count(), theirs.sum(), theirs.count())


def _compare_shares(kind: str, ours: pd.Series, n_group, theirs: pd.Series, n_rest) -> pd.DataFrame:
    """Build the frame of the shares of both sides, with intervals and two-sided Fisher exact p."""
    from scipy.stats import hypergeom

    names = ours.index.astype(str)
    ours = ours.to_numpy(int)
    theirs = theirs.to_numpy(int)
    frame = pd.DataFrame({"kind": kind, "name": names, "n_group": n_group, "n_rest": n_rest})
    for side, have in (("group", ours), ("rest", theirs)):
        n = frame[f"n_{side}"].to_numpy()
        frame[side] = have / n
        frame[f"{side}_low"], frame[f"{side}_high"] = wilson_interval(have, n)
    null = hypergeom(n_group + n_rest, n_group, ours + theirs)
    frame["p"] = np.minimum(1, 2 * np.minimum(null.sf(ours - 1), null.cdf(ours)))
    return frame


def _numbers(users: Users, past: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of each user: counts of events, sums of number columns, and facts."""
    by_user = past.groupby("user", observed=False)
    events = by_user.size().rename("events")
    counts = users.modality_counts()
    counts = counts.loc[:, counts.any()].add_prefix("events of ")
    sums = by_user[list(users.numbers)].sum(min_count=1)
    table = pd.concat([events, counts, sums, users.tabular], axis=1)
    return table.reindex(list(users.ids)).astype(float)


def _compare_medians(table: pd.DataFrame, inside: UserMask) -> pd.DataFrame:
    """Compare medians, with intervals by order statistics and p of the Mann-Whitney U test."""
    from scipy.stats import binom, mannwhitneyu

    rows = []
    for name, values in table.items():
        group = np.sort(values[inside].dropna())
        rest = np.sort(values[~inside].dropna())
        if min(len(group), len(rest)) < MIN_TEXT_USERS or values.nunique() < 2:
            continue
        row = {"kind": "number", "name": str(name), "p": mannwhitneyu(group, rest).pvalue}
        for side, ordered in (("group", group), ("rest", rest)):
            n = len(ordered)
            first = max(int(binom.ppf(0.025, n, 0.5)) - 1, 0)
            row[side] = np.median(ordered)
            row[f"{side}_low"] = ordered[first]
            row[f"{side}_high"] = ordered[-1 - first]
            row[f"n_{side}"] = n
        rows.append(row)
    return pd.DataFrame(rows)
