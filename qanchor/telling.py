"""What sets a cluster of users apart: the events and the modality that its users have and others have not, and a short name."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from .schema import Users

PRIOR = 10  # users as all others are, added on either side before odds are taken: a rare text must not win by one user
SURE = 0.05  # the chance that any text is called telling where none is (shared among all texts: Bonferroni)
SAID = 5  # texts told of a cluster
FEWEST = 5  # users of a cluster that have what is called telling of it


def name_clusters(clusters: pd.DataFrame, users: Users, *, said: int = SAID) -> pd.DataFrame:
    """Name each cluster by the events that set it apart: what its users did before the cut-off and others did not.

    clusters   from `find_clusters`, of these users or some of them.
    Returns `cluster, users, share, stability, events, modality, texts, name`, one row a cluster: its users and their share of
    all, the median number of events, the modality that has the most larger a share of its users' events than of others' (empty:
    none has), the most telling texts (`said` at most) and a short name. A text is telling when the odds that a user of the
    cluster has it, be it once or often, beat the others' beyond chance: log-odds with a prior (Monroe et al. 2008), corrected
    for the number of texts. A random group gets none.

    Example:
        >>> day, rows = pd.Timestamp("2025-01-01"), [(f"u{i}", "tea" if i < 40 else "soap") for i in range(80)]
        >>> events = pd.DataFrame(rows, columns=["user", "text"]).assign(time=day, modality="bill")
        >>> users = qa.Users.from_events(events, cutoff="2025-02-01")
        >>> clusters = pd.DataFrame({"user": users.ids, "cluster": [int(int(u[1:]) >= 40) for u in users.ids]})
        >>> name_clusters(clusters, users)["name"].tolist()
        ['tea', 'soap']
    """
    _known(clusters, users)
    past = users.history()
    past = past[past["user"].isin(clusters["user"])]
    number = clusters.set_index("user")["cluster"]
    texts = past[["user", "text"]].astype(str).drop_duplicates()
    telling = _telling(number, texts["user"], texts["text"])
    events = past["user"].value_counts().reindex(number.index, fill_value=0)
    often, words = _modality(number, past), _words(number, texts)
    stability = clusters.attrs.get("stability", {})
    rows = []
    for cluster in range(int(number.max()) + 1):
        size, half = int((number == cluster).sum()), float(events[number == cluster].median())
        few = _activity(half, float(events[number != cluster].median()))
        name = ", ".join([*words.get(cluster, []), *few][:3]) or (f"more {often[cluster]}" if often[cluster] else "")
        row = (cluster, size, size / len(number), stability.get(cluster, np.nan), half, often[cluster])
        rows.append((*row, telling.get(cluster, [])[:said], name or f"nothing telling ({cluster})"))
    frame = pd.DataFrame(rows, columns=["cluster", "users", "share", "stability", "events", "modality", "texts", "name"])
    return frame.astype({"cluster": int, "users": int, "share": float, "stability": float, "events": float})


def _known(clusters: pd.DataFrame, users: Users) -> None:
    for column in ("user", "cluster"):
        if column not in clusters:
            raise ValueError(
                f"no column {column!r} (there are {', '.join(map(str, clusters))}): give what find_clusters returned"
            )
    if strangers := sorted(set(clusters["user"]) - set(users.ids)):
        raise KeyError(
            f"user {strangers[0]!r} is not among the {len(users):,} of {users.name}: give the users that were clustered"
        )


def _telling(number: pd.Series, who: pd.Series, what: pd.Series) -> dict[int, list[str]]:
    """List for each cluster what its users have and others have not, the most telling first; (who, what) stand there once."""
    from scipy.stats import norm

    code, names = pd.factorize(what, sort=True)
    table = np.zeros((int(number.max()) + 2, len(names)))  # the last row is that of none
    np.add.at(table, (number.loc[who].to_numpy(), code), 1)
    names, table = names[common := table.sum(axis=0) >= FEWEST], table[:, common]
    sizes, doubt = np.bincount(number + 1, minlength=len(table)), norm.isf(SURE / max(1, len(names)))
    found = {}
    for cluster, has in enumerate(table[:-1]):
        inside, outside, all_have = sizes[cluster + 1], len(number) - sizes[cluster + 1], table.sum(axis=0)
        prior = PRIOR * all_have / len(number)
        yes, no = has + prior, inside - has + PRIOR - prior
        others, lack = all_have - has + prior, outside - all_have + has + PRIOR - prior
        spread = np.sqrt(1 / yes + 1 / np.maximum(no, 0.5) + 1 / others + 1 / np.maximum(lack, 0.5))
        sure = np.log(yes / np.maximum(no, 0.5)) - np.log(others / np.maximum(lack, 0.5)) - doubt * spread
        order = np.argsort(-sure, kind="stable")
        found[cluster] = [str(names[i]) for i in order if sure[i] > 0 and has[i] >= FEWEST]
    return found


def _words(number: pd.Series, texts: pd.DataFrame) -> dict[int, list[str]]:
    """Give each cluster the two most telling words of its events, the second from other texts than the first."""
    homes = {text: set(re.findall(r"[^\W\d_]{3,}", text.lower())) for text in texts["text"].unique()}
    pairs = texts.assign(text=texts["text"].map(homes)).explode("text").dropna().drop_duplicates()
    said = {}
    for cluster, words in _telling(number, pairs["user"], pairs["text"]).items():
        where = {word: {text for text, has in homes.items() if word in has} for word in words}
        apart = [word for word in words[1:] if len(where[word] & where[words[0]]) < len(where[word]) / 2]
        said[cluster] = [*words[:1], *apart[:1]]
    return said


def _modality(number: pd.Series, past: pd.DataFrame) -> list[str]:
    """Name for each cluster the modality whose share of a user's events is most above that of others, beyond chance."""
    from scipy.stats import norm

    share = pd.crosstab(past["user"].astype(str), past["modality"].astype(str), normalize="index")
    place, names = number.loc[share.index].to_numpy(), []
    for cluster in range(int(number.max()) + 1):
        inside, outside = share[place == cluster], share[place != cluster]
        if min(len(inside), len(outside)) < 2:
            names.append("")
            continue
        more = inside.mean() - outside.mean()
        doubt = norm.isf(SURE / share.shape[1]) * np.sqrt(inside.var() / len(inside) + outside.var() / len(outside))
        names.append(str(more.idxmax()) if more.max() > doubt[more.idxmax()] else "")
    return names


def _activity(events: float, others: float) -> list[str]:
    return ["few events"] if events < 0.6 * others else ["many events"] if events > 1.6 * others else []
