"""Ten questions a data set answers with labels, the plain baselines for them, and one table of all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.users import Users
from qanchor.evaluation.baselines import fit_boosted_trees
from qanchor.evaluation.probe import cross_val_scores, summarize_cv
from qanchor.useru.answers import answers, style_of
from qanchor.useru.topics import by_name

DOMAINS = {
    task: domain
    for domain, tasks in {
        "risk": "lapse spend_drop Fraud Money",
        "engagement": "visits_up Active Concert Login Forest",
        "marketing": "redeem discount private_label Takeout Brand Promo Value",
        "interest": "baby pet",
        "profile": "high_income age55 female age35",
    }.items()
    for task in tasks.split()
}
# task: topic whose answers mean yes and no | the question whose answer the label holds
_ASKED = """
lapse         | lapse       | Will this {user} stop shopping here?
spend_drop    | spend_down  | Will this {user} spend much less than before?
visits_up     | visits_up   | Will this {user} come more often than before?
redeem        | coupons     | Will this {user} redeem a coupon?
discount      | discount    | Is this {user} price-conscious, buying mostly at a discount?
private_label | store_brand | Will this {user} choose the store's own brand?
baby          | baby        | Will this {user} buy baby products?
pet           | pets        | Will this {user} buy pet supplies?
high_income   | luxury      | Does this {user} have a high income?
age55         | elder_care  | Is this {user} older than 55?
Active        | active      | Will this {user} be very active next month?
Concert       | concerts    | Will this {user} go to a concert next month?
Login         | login       | Will this {user} log in nearly every day next month?
Forest        | forest      | Will this {user} plant a tree next month?
Fraud         | fraud       | Will this {user} make a fraudulent payment?
Money         | cash_advance | Will this {user} need a cash loan next month?
Takeout       | takeout     | Will this {user} order takeout next month?
Brand         | brand       | Will this {user} buy from a favourite brand next month?
Promo         | promo       | Will this {user} take up a promotion next month?
Value         | luxury      | Will this {user} buy something expensive next month?
female        | -           | Is this {user} a woman?
age35         | -           | Is this {user} older than 35?
"""
_FIELDS = [[field.strip() for field in line.split("|")] for line in _ASKED.strip().splitlines()]
QUERIES = {task: query for task, _, query in _FIELDS}  # with `{user}` for the unit word
COLUMNS = ["task", "domain", "method", "auc", "auc_low", "auc_high", "ks", "n", "positives"]
HeldOutScores = dict[
    tuple[str, str], tuple[np.ndarray, np.ndarray]
]  # (task, method) -> held-out scores and folds, (seed, user)


def reference_answers(unit: str = "user") -> dict[str, tuple[list[str], list[str]]]:
    """Give the answers that mean yes, and those that mean no, to the query of each task about the future.

    Example:
        >>> yes, no = reference_answers("household")["baby"]
        >>> no[0]
        'Very unlikely to buy baby products: none at all in the next 30 days.'
    """
    found = {}
    for task, name, _ in _FIELDS:
        if DOMAINS[task] != "profile":
            topic = by_name(name)
            low, high = (
                answers(topic, end, "future", unit=unit, none=not end and style_of(topic) == "count") for end in (0, 4)
            )
            # a topic named ..._down measures a trend, of which a fall means yes
            found[task] = (low, high) if name.endswith("_down") else (high, low)
    return found


def score_tasks(users: Users, features: Mapping[str, Any], tasks: Iterable[str] | None = None, **how) -> pd.DataFrame:
    """Score every method on every label in one table: `task, domain, method, auc, auc_low, auc_high, ks, n, positives`.

    features, tasks and how (seed, seeds, folds, progress): as `cross_validate_tasks` takes them. The rows of task "average" come first.

    Example:
        >>> known = np.random.default_rng(0).normal(size=(60, 2))
        >>> events = pd.DataFrame({"user": [f"{i:02}" for i in range(60)], "time": "2025-01-01", "modality": "m", "text": "t"})
        >>> labels = pd.DataFrame({"pet": known[:, 0] > 0}, index=events["user"]).astype(float)
        >>> score_tasks(Users.from_events(events, labels=labels), {"known": known})[["task", "domain", "method", "n"]]
              task    domain method   n
        0  average       all  known  60
        1      pet  interest  known  60
    """
    return task_frame(users, cross_validate_tasks(users, features, tasks, **how))


def cross_validate_tasks(
    users: Users,
    features: Mapping[str, Any],
    tasks: Iterable[str] | None = None,
    seed: int = 0,
    seeds: int = 5,
    folds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> HeldOutScores:
    """Score each user on each task by each method, fitted on other users: {(task, method): (scores, fold)}.

    features: {method: (user, dim) in the order of `ids`, or a function task -> that, for embeddings under the task's own
    query}. A linear probe reads them, boosted trees those of the method named lightgbm. tasks: labels; default all that
    have `folds` users of both classes.
    """
    both = {t: users.label(t).value_counts().reindex([0.0, 1.0], fill_value=0).min() for t in users.labels}
    tasks = [t for t, few in both.items() if few >= folds] if tasks is None else tasks
    todo = [(task, method) for task in tasks for method in features]
    held = {}
    for done, (task, method) in enumerate(todo, 1):
        values = features[method](task) if callable(features[method]) else features[method]
        fit = fit_boosted_trees if method == "lightgbm" else None
        held[task, method] = cross_val_scores(values, users.label(task), seed, folds, seeds, fit)
        if progress:
            progress(done, len(todo))
    return held


def task_frame(users: Users, held: HeldOutScores) -> pd.DataFrame:
    """Turn held-out scores into the tasks frame, averages first (their interval: users drawn anew for all tasks at once)."""
    rows = []
    for method in dict.fromkeys(method for _, method in held):
        probes = {task: summarize_cv(*held[task, name], users.label(task)) for task, name in held if name == method}
        mean, gap = np.mean([[p.auc, p.ks] for p in probes.values()], axis=0)
        pooled, low, high = average_auc(users, held, method)
        whole = {"auc": mean, "auc_low": mean + low - pooled, "auc_high": mean + high - pooled, "ks": gap}
        rows.append({"task": "average", "domain": "all", "method": method, **whole, "n": len(users)})
        rows[-1]["positives"] = sum(p.positives for p in probes.values())
        rows += [{"task": t, "domain": DOMAINS.get(t, "own"), "method": method, **vars(p)} for t, p in probes.items()]
    order = ["average", *dict.fromkeys(task for task, _ in held)]
    frame = pd.DataFrame(rows, columns=COLUMNS).sort_values("task", key=lambda t: t.map(order.index), kind="stable")
    return frame.reset_index(drop=True)


def average_auc(
    users: Users, held: HeldOutScores, method: str, minus: str | None = None, draws: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """Give a method's average AUC over its tasks, or by how much it stands above another's: (value, low, high), 95 %.

    Each draw takes the same users for every task and both methods: what is hard for both cancels out.
    """
    weights = np.random.default_rng(seed).multinomial(len(users), np.full(len(users), 1 / len(users)), draws).astype(float)
    weights = np.vstack([np.ones(len(users)), weights])
    tasks = [task for task, name in held if name == method and (minus is None or (task, minus) in held)]
    if not tasks:
        raise KeyError(f"no task scored by {method!r} (and {minus!r}): there are {sorted({m for _, m in held})}")

    def average(name: str) -> np.ndarray:
        labels = {task: users.label(task).to_numpy() for task in tasks}
        return np.mean([_aucs(s, labels[t], weights) for t in tasks for s in held[t, name][0]], axis=0)

    values = average(method) - (0 if minus is None else average(minus))
    low, high = np.nanquantile(values[1:], (0.025, 0.975))  # NaN: a draw without a single positive
    return float(values[0]), float(low), float(high)


def _aucs(scores: np.ndarray, labels: np.ndarray, weights: Float[np.ndarray, "draw user"]) -> Float[np.ndarray, " draw"]:
    """Give the AUC under each row of user weights; users without label or score are left out. Twin: `probe.roc_auc`."""
    known = np.flatnonzero(~np.isnan(scores) & ~np.isnan(labels))
    order = known[np.argsort(scores[known], kind="stable")]
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))  # ties share a group
    sides = labels[order], 1 - labels[order]
    positive, negative = (np.add.reduceat(weights[:, order] * side, starts, axis=1) for side in sides)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
