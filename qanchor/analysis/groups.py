"""What sets a group or a cluster of users apart from all others."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Int

from qanchor.data.export import membership_mask
from qanchor.data.users import Users
from qanchor.utils.types import UserMask

# average users added to either side before odds are taken, so that one user with a rare text does
# not win
PRIOR_USERS = 10
FAMILY_ERROR = (
    0.05  # chance that any text is called distinctive if none is (Bonferroni over all texts)
)
MAX_LISTED_TEXTS = 5  # distinctive texts listed of a cluster
MIN_TEXT_HOLDERS = 5  # users of a cluster that have a text that is called distinctive


def describe_clusters(clusters: pd.DataFrame, users: Users) -> pd.DataFrame:
    """Name each cluster by what its users did before the cut-off and others did not.

    A text is distinctive if the odds that a user of the cluster has it, once or often, exceed those
    of the others beyond
    chance: log-odds with a prior (Monroe et al. 2008), corrected for the number of texts. A random
    group has none.

    Args:
        clusters: From `find_clusters`, of these users or some of them.
        users: The users.

    Returns:
        One row per cluster: `cluster, users, share` (of all users), `stability`, `events` (median
        per user), `modality` (whose share in the users' events exceeds that of the others most;
        empty if none does), `texts` and a short `name`.

    Raises:
        KeyError: If a user is unknown.
        ValueError: If `clusters` lacks a column.

    Example:
        >>> day, rows = pd.Timestamp("2025-01-01"), [(f"u{i}", "tea" if i < 40 else "soap") for i in range(80)]
        >>> events = pd.DataFrame(rows, columns=["user", "text"]).assign(time=day, modality="bill")
        >>> users = qa.Users.from_events(events, cutoff="2025-02-01")
        >>> clusters = pd.DataFrame({"user": users.ids, "cluster": [int(int(u[1:]) >= 40) for u in users.ids]})
        >>> describe_clusters(clusters, users)["name"].tolist()
        ['tea', 'soap']
    """
    _check_clusters(clusters, users)
    past = users.history()
    past = past[past["user"].isin(clusters["user"])]
    number = clusters.set_index("user")["cluster"]
    texts = past[["user", "text"]].astype(str).drop_duplicates()
    distinctive_texts = distinctive(number, texts["user"], texts["text"])
    events = past["user"].value_counts().reindex(number.index, fill_value=0)
    often, words = _distinctive_modality(number, past), _distinctive_words(number, texts)
    stability = clusters.attrs.get("stability", {})
    rows = []
    for cluster in range(int(number.max()) + 1):
        size, half = int((number == cluster).sum()), float(events[number == cluster].median())
        few = _activity(half, float(events[number != cluster].median()))
        name = ", ".join([*words.get(cluster, []), *few][:3]) or (
            f"more {often[cluster]}" if often[cluster] else ""
        )
        row = (
            cluster,
            size,
            size / len(number),
            stability.get(cluster, np.nan),
            half,
            often[cluster],
        )
        rows.append(
            (
                *row,
                distinctive_texts.get(cluster, [])[:MAX_LISTED_TEXTS],
                name or f"nothing telling ({cluster})",
            )
        )
    frame = pd.DataFrame(
        rows,
        columns=["cluster", "users", "share", "stability", "events", "modality", "texts", "name"],
    )
    return frame.astype(
        {"cluster": int, "users": int, "share": float, "stability": float, "events": float}
    )


def _check_clusters(clusters: pd.DataFrame, users: Users) -> None:
    for column in ("user", "cluster"):
        if column not in clusters:
            columns = ", ".join(map(str, clusters))
            raise ValueError(
                f"There is no column {column!r} (found {columns}). Give what find_clusters "
                "returned."
            )
    unknown = sorted(set(clusters["user"]) - set(users.ids))
    if unknown:
        where = f"among the {len(users):,} of {users.name}"
        raise KeyError(f"User {unknown[0]!r} is not {where}. Give the users that were clustered.")


def distinctive(number: pd.Series, who: pd.Series, what: pd.Series) -> dict[int, list[str]]:
    """List for each cluster what sets its users apart, the most distinctive first; pairs of (who,
    what) are unique.
    """
    from scipy.stats import norm

    code, names = pd.factorize(what, sort=True)
    table = np.zeros((int(number.max()) + 2, len(names)))  # the last row is that of none
    np.add.at(table, (number.loc[who].to_numpy(), code), 1)
    names, table = names[common := table.sum(axis=0) >= MIN_TEXT_HOLDERS], table[:, common]
    sizes, doubt = (
        np.bincount(number + 1, minlength=len(table)),
        norm.isf(FAMILY_ERROR / max(1, len(names))),
    )
    by_cluster = {}
    for cluster, has in enumerate(table[:-1]):
        inside, outside, all_have = (
            sizes[cluster + 1],
            len(number) - sizes[cluster + 1],
            table.sum(axis=0),
        )
        prior = PRIOR_USERS * all_have / len(number)
        yes, no = has + prior, inside - has + PRIOR_USERS - prior
        others, lack = all_have - has + prior, outside - all_have + has + PRIOR_USERS - prior
        spread = np.sqrt(1 / yes + 1 / np.maximum(no, 0.5) + 1 / others + 1 / np.maximum(lack, 0.5))
        sure = (
            np.log(yes / np.maximum(no, 0.5))
            - np.log(others / np.maximum(lack, 0.5))
            - doubt * spread
        )
        order = np.argsort(-sure, kind="stable")
        by_cluster[cluster] = [
            str(names[i]) for i in order if sure[i] > 0 and has[i] >= MIN_TEXT_HOLDERS
        ]
    return by_cluster


def _distinctive_words(number: pd.Series, texts: pd.DataFrame) -> dict[int, list[str]]:
    """Return the two most distinctive words of each cluster's events, the second from other texts
    than the first.
    """
    homes = {
        text: set(re.findall(r"[^\W\d_]{3,}", text.lower())) for text in texts["text"].unique()
    }
    pairs = texts.assign(text=texts["text"].map(homes)).explode("text").dropna().drop_duplicates()
    words_by_cluster = {}
    for cluster, words in distinctive(number, pairs["user"], pairs["text"]).items():
        where = {word: {text for text, has in homes.items() if word in has} for word in words}
        apart = [
            word for word in words[1:] if len(where[word] & where[words[0]]) < len(where[word]) / 2
        ]
        words_by_cluster[cluster] = [*words[:1], *apart[:1]]
    return words_by_cluster


def _distinctive_modality(number: pd.Series, past: pd.DataFrame) -> list[str]:
    """Return for each cluster the modality whose share in a user's events exceeds that of the
    others most, beyond chance.
    """
    from scipy.stats import norm

    share = pd.crosstab(past["user"].astype(str), past["modality"].astype(str), normalize="index")
    place, names = number.loc[share.index].to_numpy(), []
    for cluster in range(int(number.max()) + 1):
        inside, outside = share[place == cluster], share[place != cluster]
        if min(len(inside), len(outside)) < 2:
            names.append("")
            continue
        more = inside.mean() - outside.mean()
        doubt = norm.isf(FAMILY_ERROR / share.shape[1]) * np.sqrt(
            inside.var() / len(inside) + outside.var() / len(outside)
        )
        names.append(str(more.idxmax()) if more.max() > doubt[more.idxmax()] else "")
    return names


def _activity(events: float, others: float) -> list[str]:
    return (
        ["few events"]
        if events < 0.6 * others
        else ["many events"]
        if events > 1.6 * others
        else []
    )


# users who must have a text for it to be compared: whoever is in the group, so this favours no
# group
MIN_TEXT_USERS = 5
Z = 1.96  # standard deviations on either side hold 95 %
GROUP_COLUMNS = [
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
]
DESCRIPTION_COLUMNS = [*GROUP_COLUMNS, "p", "beyond_chance", "n_group", "n_rest"]


def describe_group(users: Users, ids: Iterable[str]) -> pd.DataFrame:
    """Compare a group with all other users, the most significant difference first.

    Only the history before the cut-off is read; labels are what was observed after it. Texts of
    fewer than five users are left out.

    Args:
        users: The users.
        ids: The group.

    Returns:
        One row per comparison:

        kind, name: of a text, modality, fact or label, `group` and `rest` are the shares of users
        that have it (of a label, among those with a known one); of a number they are medians over
        the users.
        group_low, group_high, rest_low, rest_high: 95 % intervals (Wilson; of a median, by order
        statistics).
        difference, low, high: group minus rest with its 95 % interval, combined by Newcombe's
        method.
        p, beyond_chance: exact, or by ranks for numbers; true if p is significant after correction
        for all comparisons (Bonferroni), so about 1 in 20 random groups has any such row.
        n_group, n_rest: users compared.

    Raises:
        KeyError: If an id is unknown.
        ValueError: If the group is empty or holds everybody.

    Source: Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> frame = describe_group(users, users.ids[:12])
        >>> sorted(set(frame.kind)), int(frame.n_group.max()), int(frame.n_rest.max())
        (['label', 'modality', 'number', 'text'], 12, 28)
    """
    inside = membership_mask(users.ids, ids)
    past = users.history()
    parts = [
        _compare_shares_of_users(past, "text", inside),
        _compare_shares_of_users(past, "modality", inside),
    ]
    numbers = _numbers(users, past)
    binary = numbers.columns[
        numbers.isin([0, 1]).where(numbers.notna(), True).all()
        & numbers.columns.isin(users.tabular)
    ]
    parts += [
        _compare_binary("fact", numbers[binary], inside),
        _compare_binary("label", users.labels, inside),
    ]
    parts += [_medians(numbers.drop(columns=binary), inside)]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    for end, far in (("low", "group_low rest_high"), ("high", "group_high rest_low")):
        ours, theirs = far.split()
        reach = np.hypot(frame[ours] - frame["group"], frame[theirs] - frame["rest"])
        frame[end] = frame["difference"] + (reach if end == "high" else -reach)
    frame["beyond_chance"] = frame["p"] * len(frame) < 0.05
    order = (
        frame.assign(size=-frame["difference"].abs())
        .sort_values(["p", "size"], kind="stable")
        .index
    )
    return frame.loc[order, DESCRIPTION_COLUMNS].reset_index(drop=True)


def _compare_shares_of_users(past: pd.DataFrame, kind: str, inside: UserMask) -> pd.DataFrame:
    """Compare the shares of users with at least one such event; rare texts are left out."""
    pairs = past[["user", kind]].drop_duplicates()
    names, ours = pairs[kind].cat.categories, inside[pairs["user"].cat.codes]
    in_group = np.bincount(pairs[kind].cat.codes[ours], minlength=len(names))
    in_all = np.bincount(pairs[kind].cat.codes, minlength=len(names))
    frequent = in_all >= (MIN_TEXT_USERS if kind == "text" else 1)
    n_group = np.full(frequent.sum(), inside.sum())
    n_rest = np.full(frequent.sum(), (~inside).sum())
    return _shares(
        kind, names[frequent], in_group[frequent], n_group, (in_all - in_group)[frequent], n_rest
    )


def _compare_binary(kind: str, table: pd.DataFrame, inside: UserMask) -> pd.DataFrame:
    """Compare the shares of ones among those known."""
    table = table.loc[:, table.notna()[inside].any() & table.notna()[~inside].any()]
    counts = [how for rows in (inside, ~inside) for how in (table[rows].sum(), table[rows].count())]
    return _shares(kind, table.columns, *(count.to_numpy(dtype=int) for count in counts))


def _shares(kind: str, names, ours, n_group, theirs, n_rest) -> pd.DataFrame:
    """Build the frame of the shares of both sides, with intervals and Fisher's exact p, both tails."""
    from scipy.stats import hypergeom

    margins = n_group + n_rest, n_group, ours + theirs
    tails = np.minimum(hypergeom.sf(ours - 1, *margins), hypergeom.cdf(ours, *margins))
    sides = {}
    for side, count, n in (("group", ours, n_group), ("rest", theirs, n_rest)):
        sides[side] = count / n
        sides[f"{side}_low"], sides[f"{side}_high"] = wilson_interval(count, n)
    frame = pd.DataFrame(
        {
            "kind": kind,
            "name": [str(name) for name in names],
            **sides,
            "p": np.minimum(1, 2 * tails),
        }
    )
    return frame.assign(difference=frame["group"] - frame["rest"], n_group=n_group, n_rest=n_rest)


def wilson_interval(
    count: Int[np.ndarray, " row"], n: Int[np.ndarray, " row"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Wilson interval of shares.

    Args:
        count: Successes.
        n: Trials.

    Returns:
        (low, high).

    Example:
        >>> [bound.round(3).tolist() for bound in wilson_interval(np.array([0, 5]), np.array([10, 10]))]
        [[0.0, 0.237], [0.278, 0.763]]
    """
    middle, width = count + Z**2 / 2, Z * np.sqrt(count * (n - count) / n + Z**2 / 4)
    return np.maximum(0, (middle - width) / (n + Z**2)), np.minimum(
        1, (middle + width) / (n + Z**2)
    )


def _numbers(users: Users, past: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of each user: events, events of each modality, sums, facts (NaN if there
    is none).
    """
    by = past.groupby("user", observed=False)
    counts = pd.crosstab(past["user"], past["modality"], dropna=False).rename(
        columns=lambda name: f"events of {name}"
    )
    sums = by[list(users.numbers)].sum(min_count=1)
    table = pd.concat(
        [by.size().rename("events"), counts.loc[:, counts.any()], sums, users.tabular], axis=1
    )
    return table.reindex(list(users.ids)).astype(float)


def _medians(table: pd.DataFrame, inside: UserMask) -> pd.DataFrame:
    """Compare medians, with intervals by order statistics, and p by ranks (Mann and Whitney)."""
    from scipy.stats import binom, mannwhitneyu

    rows = []
    for name in table:
        sides = [np.sort(table.loc[where, name].dropna()) for where in (inside, ~inside)]
        if min(map(len, sides)) < MIN_TEXT_USERS or np.ptp(np.concatenate(sides)) == 0:
            continue
        cells = []
        for side in sides:
            first = max(int(binom.ppf(0.025, len(side), 0.5)) - 1, 0)
            cells += [np.median(side), side[first], side[-1 - first]]
        rows.append(
            (
                "number",
                str(name),
                *cells,
                cells[0] - cells[3],
                mannwhitneyu(*sides).pvalue,
                *map(len, sides),
            )
        )
    return pd.DataFrame(rows, columns=[*GROUP_COLUMNS[:9], "p", "n_group", "n_rest"])
