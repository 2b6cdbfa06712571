"""Bench `card`: the figures of the data card, counted on the pairs of one data set."""

from __future__ import annotations

from collections.abc import Callable

import qanchor as qa


def card(users: Callable[[], qa.Users], run=None, seeds: int = 0, *, seed: int = 0) -> dict:
    """Describe the pairs of a data set: how many, how many distinct values of each column, and how
    many words questions and answers have.

    run and seeds are not looked at.
    """
    people = users()
    pairs = qa.make_pairs(people, seed=seed)
    words = {
        f"{name}_words": dict(
            zip(
                ("low", "median", "high"),
                pairs[name].str.split().str.len().quantile([0.05, 0.5, 0.95]).astype(int).tolist(),
                strict=True,
            )
        )
        for name in ("query", "answer")
    }
    distinct = pairs.nunique().astype(int).to_dict()
    return {"data": people.name, "pairs": len(pairs), "distinct": distinct} | words
