"""Bench `card`: the figures of the data card, counted on the pairs of one data set."""

from __future__ import annotations

from collections.abc import Callable

from qanchor.data.users import Users
from qanchor.useru.pairs import make_pairs
from tests.oracles.pairs import check_pairs_by_hand

PER_SAMPLE = 96  # as training takes them
REFLECTED = 300  # pairs judged by the second, slower route


def card(users: Callable[[], Users], run=None, seeds: int = 0, *, seed: int = 0) -> dict:
    """Describe the pairs of a data set: how many, on what, how long, how often "no", and which
    share reflection drops.

    run and seeds are not looked at.

    Example:
        >>> card(lambda: qa.make_sample_users(60))["samples"]
        360
    """
    people = users()
    pairs = make_pairs(people, per_sample=PER_SAMPLE, seed=seed)
    graded = pairs[pairs["grade"] >= 0]
    counts = {
        name: int(pairs[name].nunique()) for name in ("user", "cutoff", "query", "answer", "topic")
    }
    judged = pairs.sample(min(REFLECTED, len(pairs)), random_state=seed)
    told = {
        "data": people.name,
        "pairs": len(pairs),
        "samples": len(pairs[["user", "cutoff"]].drop_duplicates()),
    }
    told |= {"distinct": counts, "kinds": pairs["kind"].value_counts().to_dict()}
    ahead = pairs.loc[pairs["kind"] == "future", "horizon_days"]
    told["ahead"] = {str(days): int(n) for days, n in ahead.value_counts().sort_index().items()}
    told["grades"] = {
        str(g): float(share)
        for g, share in graded["grade"].value_counts(normalize=True).sort_index().items()
    }
    for name in ("query", "answer"):
        words = pairs[name].str.split().str.len().quantile([0.05, 0.5, 0.95])
        told[f"{name}_words"] = dict(
            zip(("low", "median", "high"), words.astype(int).tolist(), strict=True)
        )
    told["topics"] = {"most": pairs["topic"].value_counts().head(5).to_dict()}
    told["topics"]["least"] = pairs["topic"].value_counts().tail(5).to_dict()
    return told | {
        "reflected": len(judged),
        "dropped": float(1 - check_pairs_by_hand(people, judged).mean()),
    }
