"""A group of users beside all others: what sets it apart, and how to take it elsewhere."""

from __future__ import annotations

import csv
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from .files import write_whole
from .schema import Users

LEAST = 10  # users: a smaller group is not written to a file, for it points at persons
SHARED = 5  # users who must have a text for it to be compared: whoever is in the group, so this favours no group
Z = 1.96  # standard deviations on either side hold 95 %
SHOWN = ["kind", "name", "group", "group_low", "group_high", "rest", "rest_low", "rest_high", "difference", "low", "high"]
DESCRIBED = [*SHOWN, "p", "beyond_chance", "n_group", "n_rest"]


def describe_group(users: Users, ids: Iterable[str]) -> pd.DataFrame:
    """Say what sets a group apart from all other users, the most telling first.

    Only history before the cut-off is read; labels, of course, are what was observed after it. Columns
    kind        text, modality, fact, label: `group` and `rest` are the shares of users that have it (a fact of 0 and 1, a label
                that is known); number: they are medians over the users (of the user's sum, count of events, or fact).
    group_low, group_high, rest_low, rest_high   95 % intervals (Wilson's; of a median, by order statistics).
    difference, low, high   group minus rest with its 95 % interval, the two put together by Newcombe's method.
    p, beyond_chance        exact, or by ranks for numbers; true where p holds after counting everything that was compared
                (Bonferroni): of random groups, about 1 in 20 has any such row.
    n_group, n_rest         users compared.
    Texts of fewer than five users are left out. KeyError for an unknown id, ValueError for a group of nobody or everybody.

    Source: Newcombe, Statistics in Medicine 17 (1998), 873-890, method 10.

    Example:
        >>> users = qa.make_world(40)
        >>> found = describe_group(users, users.ids[:12])
        >>> sorted(set(found.kind)), int(found.n_group.max()), int(found.n_rest.max())
        (['label', 'modality', 'number', 'text'], 12, 28)
    """
    inside = members(users.ids, ids)
    past = users.history()
    parts = [_had(past, "text", inside), _had(past, "modality", inside)]
    numbers = _numbers(users, past)
    binary = numbers.columns[numbers.isin([0, 1]).where(numbers.notna(), True).all() & numbers.columns.isin(users.tabular)]
    parts += [_yes("fact", numbers[binary], inside), _yes("label", users.labels, inside)]
    parts += [_medians(numbers.drop(columns=binary), inside)]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    for end, far in (("low", "group_low rest_high"), ("high", "group_high rest_low")):
        ours, theirs = far.split()
        reach = np.hypot(frame[ours] - frame["group"], frame[theirs] - frame["rest"])
        frame[end] = frame["difference"] + (reach if end == "high" else -reach)
    frame["beyond_chance"] = frame["p"] * len(frame) < 0.05
    order = frame.assign(size=-frame["difference"].abs()).sort_values(["p", "size"], kind="stable").index
    return frame.loc[order, DESCRIBED].reset_index(drop=True)


def export_group(
    users: Users,
    ids: Iterable[str],
    path,
    *,
    beside: pd.DataFrame | None = None,
    least: int = LEAST,
    salt: str | None = None,
) -> Path:
    """Write a group to a file, one row a user as in `users.frame()`: CSV or Parquet, by the path's ending.

    beside  further columns, a row a user in its column `user`, such as `lens.order`: the file has its order (but that of
            the hashes with a salt); who is not in it comes last.
    least   a group of fewer users is refused, for so few are persons.
    salt    a secret of yours: ids become their HMAC-SHA256 under it, and rows are sorted by that. Recent texts stay.
    Texts in a CSV that a spreadsheet would run (they begin with = + - @) get an apostrophe in front. The file is written whole
    or not at all. ValueError: nobody, too few users, an empty salt, another ending, a `beside` of nobody of them.

    Example:
        >>> import tempfile
        >>> users = qa.make_world(40)
        >>> path = export_group(users, users.ids[:12], tempfile.mkdtemp() + "/some.csv", salt="a secret")
        >>> len(pd.read_csv(path)), len(pd.read_csv(path).user[0])
        (12, 64)
        >>> order = pd.DataFrame({"user": users.ids[::-1], "score": np.arange(40)})
        >>> pd.read_csv(export_group(users, users.ids[:12], path, beside=order)).score[:3].tolist()
        [28, 29, 30]
    """
    path, ids = Path(path), list(ids)
    if not ids:
        raise ValueError(f"nobody is chosen: draw around some {users.unit}s in the lens first, then run this cell again")
    inside = members(users.ids, ids)
    if inside.sum() < least:
        raise ValueError(f"{inside.sum()} {users.unit}(s) in the group, at least {least} are needed for a file: choose more")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path.name} ends with {path.suffix or 'nothing'}: name it .csv or .parquet")
    frame = users.frame()[inside].reset_index(drop=True)
    frame = frame if beside is None else _beside(frame, beside)
    if salt is not None:
        if not salt:
            raise ValueError("the salt is empty, so anybody could find the ids by trying: give a secret of yours")
        frame["user"] = [hmac.new(salt.encode(), user.encode(), hashlib.sha256).hexdigest() for user in frame["user"]]
        frame = frame.sort_values("user", ignore_index=True)
    if path.suffix == ".parquet":
        return write_whole(path, lambda aside: frame.to_parquet(aside, index=False))
    frame = frame.apply(lambda column: column.map(harmless) if column.dtype.kind not in "biufM" else column).rename(
        columns=harmless
    )
    # texts always in quotes: a carriage return would else begin a row of its own, with a cell that nobody looked at
    return write_whole(path, lambda aside: frame.to_csv(aside, index=False, quoting=csv.QUOTE_NONNUMERIC))


def _beside(frame: pd.DataFrame, beside: pd.DataFrame) -> pd.DataFrame:
    """Set further columns beside a frame of users, and bring its rows into their order."""
    twice = int(beside["user"].duplicated().sum()) if "user" in beside else 0
    taken = [name for name in beside if name in frame and name != "user"]
    if "user" not in beside or twice or taken:
        told = "no column 'user'" if "user" not in beside else f"{twice} users twice" if twice else f"columns {taken} again"
        raise ValueError(f"`beside` has {told}: give one row a user and new columns, as lens.order has")
    more = beside.assign(user=beside["user"].astype(str)).set_index("user")
    place = more.index.get_indexer(frame["user"])
    if (place < 0).all():
        raise ValueError(f"`beside` has none of the {len(frame)} users: wait until the lens has found who is nearest to a yes")
    order = np.argsort(np.where(place < 0, len(more), place), kind="stable")
    return frame.join(more, on="user").iloc[order].reset_index(drop=True)


def harmless(cell):
    """Give a text back so that no spreadsheet takes it for a formula; other values stay.

    Example:
        >>> harmless("=HYPERLINK(1)"), harmless("tea = 3"), harmless(-2)
        ("'=HYPERLINK(1)", 'tea = 3', -2)
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in tuple("=+-@＝＋－＠") else cell


def members(everyone: Sequence[str], ids: Iterable[str]) -> Bool[np.ndarray, " user"]:
    """Say who of everyone is in the group; refuse strangers, nobody and everybody.

    Example:
        >>> members(("a", "b", "c"), ["c"])
        array([False, False,  True])
    """
    index, ids = pd.Index(everyone), [str(user) for user in ids]
    rows = index.get_indexer(pd.Index(ids, dtype=index.dtype))
    if (rows < 0).any():
        raise KeyError(f"user {ids[int(np.argmin(rows))]!r} is not among the {len(index):,}: choose from these")
    inside = np.zeros(len(index), dtype=bool)
    inside[rows] = True
    if inside.all() or not inside.any():
        raise ValueError(
            f"the group holds {inside.sum():,} of {len(index):,} users, so there is nothing to compare: choose some"
        )
    return inside


def _had(past: pd.DataFrame, kind: str, inside: Bool[np.ndarray, " user"]) -> pd.DataFrame:
    """Compare the shares of users with at least one such event; texts of next to nobody are left out."""
    pairs = past[["user", kind]].drop_duplicates()
    names, ours = pairs[kind].cat.categories, inside[pairs["user"].cat.codes]
    ours, all_of = (np.bincount(pairs[kind].cat.codes[some], minlength=len(names)) for some in (ours, slice(None)))
    some = all_of >= (SHARED if kind == "text" else 1)
    n = np.full(some.sum(), inside.sum()), np.full(some.sum(), (~inside).sum())
    return _shares(kind, names[some], ours[some], n[0], (all_of - ours)[some], n[1])


def _yes(kind: str, table: pd.DataFrame, inside: Bool[np.ndarray, " user"]) -> pd.DataFrame:
    """Compare the shares of ones among those known."""
    table = table.loc[:, table.notna()[inside].any() & table.notna()[~inside].any()]
    counts = [how for rows in (inside, ~inside) for how in (table[rows].sum(), table[rows].count())]
    return _shares(kind, table.columns, *(count.to_numpy(dtype=int) for count in counts))


def _shares(kind: str, names, ours, n_group, theirs, n_rest) -> pd.DataFrame:
    """Put the shares of both sides into a frame, with intervals and Fisher's exact p, both tails."""
    from scipy.stats import hypergeom

    known = ours, n_group + n_rest, n_group, ours + theirs
    tails = np.minimum(hypergeom.sf(known[0] - 1, *known[1:]), hypergeom.cdf(*known))
    sides = {}
    for side, count, n in (("group", ours, n_group), ("rest", theirs, n_rest)):
        sides[side] = count / n
        sides[f"{side}_low"], sides[f"{side}_high"] = wilson(count, n)
    frame = pd.DataFrame({"kind": kind, "name": [str(name) for name in names], **sides, "p": np.minimum(1, 2 * tails)})
    return frame.assign(difference=frame["group"] - frame["rest"], n_group=n_group, n_rest=n_rest)


def wilson(count: Int[np.ndarray, " row"], n: Int[np.ndarray, " row"]) -> tuple[np.ndarray, np.ndarray]:
    """Give the 95 % interval (low, high) of shares `count` of `n`.

    Example:
        >>> [bound.round(3).tolist() for bound in wilson(np.array([0, 5]), np.array([10, 10]))]
        [[0.0, 0.237], [0.278, 0.763]]
    """
    middle, width = count + Z**2 / 2, Z * np.sqrt(count * (n - count) / n + Z**2 / 4)
    return np.maximum(0, (middle - width) / (n + Z**2)), np.minimum(1, (middle + width) / (n + Z**2))


def _numbers(users: Users, past: pd.DataFrame) -> pd.DataFrame:
    """Give the numbers of each user: events, events of each modality, sums, facts (NaN where there is none)."""
    by = past.groupby("user", observed=False)
    counts = pd.crosstab(past["user"], past["modality"], dropna=False).rename(columns=lambda name: f"events of {name}")
    sums = by[list(users.numbers)].sum(min_count=1)
    table = pd.concat([by.size().rename("events"), counts.loc[:, counts.any()], sums, users.tabular], axis=1)
    return table.reindex(list(users.ids)).astype(float)


def _medians(table: pd.DataFrame, inside: Bool[np.ndarray, " user"]) -> pd.DataFrame:
    """Compare medians, with intervals by order statistics, and p by ranks (Mann and Whitney)."""
    from scipy.stats import binom, mannwhitneyu

    rows = []
    for name in table:
        sides = [np.sort(table.loc[where, name].dropna()) for where in (inside, ~inside)]
        if min(map(len, sides)) < SHARED or np.ptp(np.concatenate(sides)) == 0:
            continue
        cells = []
        for side in sides:
            first = max(int(binom.ppf(0.025, len(side), 0.5)) - 1, 0)
            cells += [np.median(side), side[first], side[-1 - first]]
        rows.append(("number", str(name), *cells, cells[0] - cells[3], mannwhitneyu(*sides).pvalue, *map(len, sides)))
    return pd.DataFrame(rows, columns=[*SHOWN[:9], "p", "n_group", "n_rest"])
