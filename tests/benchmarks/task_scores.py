"""Benchmark tasks: questions that the labels of a data set answer, and one table of all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from qanchor.data.sample import QUERIES as SAMPLE_QUERIES
from qanchor.data.users import Users
from qanchor.evaluation.probe import cross_val_scores, summarize_cv
from tests.benchmarks.baselines import fit_boosted_trees

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
# questions that the labels answer, with `{user}` for the unit word; those of the sample world have
# theirs in qanchor.data.sample
QUERIES = SAMPLE_QUERIES | {
    "lapse": "Will this {user} stop shopping here?",
    "spend_drop": "Will this {user} spend much less than before?",
    "visits_up": "Will this {user} come more often than before?",
    "redeem": "Will this {user} redeem a coupon?",
    "discount": "Is this {user} price-conscious, buying mostly at a discount?",
    "private_label": "Will this {user} choose the store's own brand?",
    "baby": "Will this {user} buy baby products?",
    "pet": "Will this {user} buy pet supplies?",
    "high_income": "Does this {user} have a high income?",
    "age55": "Is this {user} older than 55?",
    "female": "Is this {user} a woman?",
    "age35": "Is this {user} older than 35?",
}
# rewordings that do not change the question
PARAPHRASES = (
    "{} Please answer.",
    "Tell me: {}",
    "A question: {}",
    "I would like to know: {}",
    "{} What do you think?",
)
TASK_COLUMNS = ["task", "domain", "method", "auc", "auc_low", "auc_high", "ks", "n", "positives"]
# (task, method) -> held-out scores and fold numbers, each (seed, user)
HeldOutScores = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def task_query(task: str, unit: str) -> str:
    """Return the question that the label of a task answers.

    Args:
        task: Name of the label.
        unit: Word for one of the users.

    Example:
        >>> task_query("pet", "household")
        'Will this household buy pet supplies?'
    """
    return QUERIES.get(task, f"{task}?").replace("{user}", unit)


def score_tasks(
    users: Users, features: Mapping[str, Any], tasks: Iterable[str] | None = None, **how
) -> pd.DataFrame:
    """Evaluate every method on every label in one table.

    Args:
        users: Users with labels.
        features: Features by method, as in `cross_validate_tasks`.
        tasks: Labels. Default: all with enough users of both classes. **how: seed, seeds, folds and
        progress of `cross_validate_tasks`.

    Returns:
        Columns task, domain, method, auc, auc_low, auc_high, ks, n, positives; the rows of task
        "average" come first.

    Example:
        >>> known = np.random.default_rng(0).normal(size=(60, 2))
        >>> ids = [f"{i:02}" for i in range(60)]
        >>> events = pd.DataFrame({"user": ids, "time": "2025-01-01", "modality": "m", "text": "t"})
        >>> labels = pd.DataFrame({"pet": known[:, 0] > 0}, index=events["user"]).astype(float)
        >>> users = Users.from_events(events, labels=labels)
        >>> score_tasks(users, {"known": known})[["task", "domain", "method", "n"]]
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
    """Score every user on every task with every method, fitted on other users.

    Args:
        users: Users with labels.
        features: By method: (user, dim) in the order of `users.ids`, or a function from a task to
            that, for embeddings under the task's own query. A linear probe is fitted on them;
            boosted trees if the method's name ends in "lightgbm".
        tasks: Labels. Default: all with at least `folds` users of both classes.
        seed: First seed of the folds. Default: 0.
        seeds: Repetitions with other folds. Default: 5.
        folds: Folds. Default: 5.
        progress: Called with (done, total) pairs of task and method. Default: none.

    Returns:
        (scores, fold numbers), each (seed, user), by (task, method).
    """
    if tasks is None:
        tasks = []
        for task in users.labels:
            counts = users.label(task).value_counts().reindex([0.0, 1.0], fill_value=0)
            if counts.min() >= folds:
                tasks.append(task)
    todo = [(task, method) for task in tasks for method in features]
    scores = {}
    for done, (task, method) in enumerate(todo, 1):
        values = features[method]
        if callable(values):
            values = values(task)
        fit = fit_boosted_trees if method.endswith("lightgbm") else None
        scores[task, method] = cross_val_scores(values, users.label(task), seed, folds, seeds, fit)
        if progress:
            progress(done, len(todo))
    return scores


def task_frame(users: Users, scores: HeldOutScores) -> pd.DataFrame:
    """Build the table of tasks from held-out scores, averages first.

    Args:
        users: Users with labels.
        scores: From `cross_validate_tasks`.

    Returns:
        Columns as `score_tasks`. The interval of an average resamples users for all tasks at once.
    """
    rows = []
    for method in dict.fromkeys(method for _, method in scores):
        probes = {
            task: summarize_cv(*scores[task, name], users.label(task))
            for task, name in scores
            if name == method
        }
        mean_auc, mean_ks = np.mean([[probe.auc, probe.ks] for probe in probes.values()], axis=0)
        pooled, low, high = average_auc(users, scores, method)
        average = {
            "task": "average",
            "domain": "all",
            "method": method,
            "auc": mean_auc,
            "auc_low": mean_auc + low - pooled,
            "auc_high": mean_auc + high - pooled,
            "ks": mean_ks,
            "n": len(users),
            "positives": sum(probe.positives for probe in probes.values()),
        }
        rows.append(average)
        for task, probe in probes.items():
            domain = DOMAINS.get(task, "own")
            rows.append({"task": task, "domain": domain, "method": method, **vars(probe)})
    order = ["average", *dict.fromkeys(task for task, _ in scores)]
    frame = pd.DataFrame(rows, columns=TASK_COLUMNS)
    frame = frame.sort_values("task", key=lambda tasks: tasks.map(order.index), kind="stable")
    return frame.reset_index(drop=True)


def average_auc(
    users: Users,
    scores: HeldOutScores,
    method: str,
    minus: str | None = None,
    draws: int = 500,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Compute a method's average AUC over its tasks, or its difference to another method's.

    Each bootstrap draw takes the same users for every task and both methods, so that what is hard
    for both cancels out.

    Args:
        users: Users with labels.
        scores: From `cross_validate_tasks`.
        method: Method.
        minus: Method to subtract, on the tasks that both have. Default: none.
        draws: Bootstrap samples. Default: 500.
        seed: Seed. Default: 0.

    Returns:
        Value, and the ends of its 95 % interval.

    Raises:
        KeyError: If no task was scored by the method (and by `minus`).
    """
    n_users = len(users)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_users, np.full(n_users, 1 / n_users), draws).astype(float)
    weights = np.vstack([np.ones(n_users), drawn])  # row 0: every user once
    tasks = [
        task
        for task, name in scores
        if name == method and (minus is None or (task, minus) in scores)
    ]
    if not tasks:
        methods = sorted({name for _, name in scores})
        raise KeyError(f"no task scored by {method!r} (and {minus!r}): there are {methods}")

    def average(name: str) -> np.ndarray:
        aucs = []
        for task in tasks:
            labels = users.label(task).to_numpy()
            task_scores, _ = scores[task, name]
            aucs += [_weighted_aucs(row, labels, weights) for row in task_scores]
        return np.mean(aucs, axis=0)

    values = average(method)
    if minus is not None:
        values = values - average(minus)
    low, high = np.nanquantile(values[1:], (0.025, 0.975))  # NaN: a draw without a single positive
    return float(values[0]), float(low), float(high)


def _weighted_aucs(
    scores: np.ndarray, labels: np.ndarray, weights: Float[np.ndarray, "draw user"]
) -> Float[np.ndarray, " draw"]:
    """Compute the AUC under each row of user weights. Its plain twin is `roc_auc`.

    Users without a label or score are left out.
    """
    known = np.flatnonzero(~np.isnan(scores) & ~np.isnan(labels))
    order = known[np.argsort(scores[known], kind="stable")]
    tie_starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    weights = weights[:, order]
    is_positive = labels[order]
    positive = np.add.reduceat(weights * is_positive, tie_starts, axis=1)
    negative = np.add.reduceat(weights * (1 - is_positive), tie_starts, axis=1)
    negatives_below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (positive * negatives_below).sum(axis=1) / pairs
