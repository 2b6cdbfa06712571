"""Ten questions a data set answers with labels, the plain baselines for them, and one table of all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .answers import answers, style_of
from .habits import signed_log
from .probe import held_out_scores, summary
from .schema import Users
from .topics import by_name

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
WINDOWS = (30, 90)  # days before the cut-off, beside the whole history
COMPONENTS = 64
MAX_COLUMNS = 2_000  # texts counted, the commonest first: a probe on more columns than users learns them by heart
Held = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]  # (task, method) -> held-out scores and folds, (seed, user)


def baseline_features(users: Users, vectors: Any = None) -> dict[str, Float[np.ndarray, "user column"]]:
    """Describe every user in plain numbers, the ways people do today: {method: (user, column)}, in the order of `ids`.

    rfm: recency, frequency and money by modality, with the last 30 and 90 days beside the whole, and the known facts.
    counts: log counts of the texts. rfm_svd: rfm and 64 components of the counts. lightgbm: rfm and counts, for boosted
    trees. With `vectors`, a dict text -> (dim,) or an array in the order of the events' text categories: minilm (mean
    vector of the events), minilm_rfm, rfm_svd_minilm. Only history is read, and no label.

    Example:
        >>> events = pd.DataFrame({"user": ["a", "b", "b"], "modality": "bill", "text": ["tea", "tea", "rice"],
        ...     "time": pd.to_datetime(["2025-01-01", "2025-01-05", "2025-02-02"])})
        >>> baseline_features(Users.from_events(events, cutoff="2025-02-01"))["counts"].round(2)
        array([[0.69],
               [0.69]])
    """
    past = users.history()
    rfm, counts = _rfm(users, past), _counts(users, past)
    dense = np.asarray(np.log1p(counts[:, _commonest(counts)].toarray()), dtype=float)
    small = components(np.log1p(counts))
    features = {"rfm": rfm, "counts": dense, "rfm_svd": np.hstack([rfm, small])}
    if find_spec("lightgbm"):
        features["lightgbm"] = np.hstack([rfm, dense])
    if vectors is not None:
        mean = _mean_vectors(users, past, vectors)
        features |= {"minilm": mean, "minilm_rfm": np.hstack([mean, rfm])}
        features["rfm_svd_minilm"] = np.hstack([rfm, small, components(mean)])
    return features


def replies(unit: str = "user") -> dict[str, tuple[list[str], list[str]]]:
    """Give the answers that mean yes, and those that mean no, to the query of each task about the future.

    Example:
        >>> yes, no = replies("household")["baby"]
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

    features, tasks and how (seed, seeds, folds, progress): as `hold_out` takes them. The rows of task "average" come first.

    Example:
        >>> known = np.random.default_rng(0).normal(size=(60, 2))
        >>> events = pd.DataFrame({"user": [f"{i:02}" for i in range(60)], "time": "2025-01-01", "modality": "m", "text": "t"})
        >>> labels = pd.DataFrame({"pet": known[:, 0] > 0}, index=events["user"]).astype(float)
        >>> score_tasks(Users.from_events(events, labels=labels), {"known": known})[["task", "domain", "method", "n"]]
              task    domain method   n
        0  average       all  known  60
        1      pet  interest  known  60
    """
    return task_frame(users, hold_out(users, features, tasks, **how))


def hold_out(
    users: Users,
    features: Mapping[str, Any],
    tasks: Iterable[str] | None = None,
    seed: int = 0,
    seeds: int = 5,
    folds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Held:
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
        fit = boosted if method == "lightgbm" else None
        held[task, method] = held_out_scores(values, users.label(task), seed, folds, seeds, fit)
        if progress:
            progress(done, len(todo))
    return held


def task_frame(users: Users, held: Held) -> pd.DataFrame:
    """Turn held-out scores into the tasks frame, averages first (their interval: users drawn anew for all tasks at once)."""
    rows = []
    for method in dict.fromkeys(method for _, method in held):
        probes = {task: summary(*held[task, name], users.label(task)) for task, name in held if name == method}
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
    users: Users, held: Held, method: str, minus: str | None = None, draws: int = 500, seed: int = 0
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


def boosted(x: Float[np.ndarray, "user dim"], y: Int[np.ndarray, " user"], new: Float[np.ndarray, "new dim"], seed: int):
    """Fit boosted trees (LightGBM, small data settings) on (x, y) and score `new`."""
    import lightgbm

    model = lightgbm.LGBMClassifier(
        n_estimators=200, learning_rate=0.03, num_leaves=15, min_child_samples=20, subsample=0.8, subsample_freq=1,
        colsample_bytree=0.3, reg_lambda=5.0, random_state=seed, n_jobs=1, verbose=-1,
    )  # fmt: skip
    return model.fit(x, y).booster_.predict(new)


def _aucs(scores: np.ndarray, labels: np.ndarray, weights: Float[np.ndarray, "draw user"]) -> Float[np.ndarray, " draw"]:
    """Give the AUC under each row of user weights; users without label or score are left out. Twin: `probe.auc`."""
    known = np.flatnonzero(~np.isnan(scores) & ~np.isnan(labels))
    order = known[np.argsort(scores[known], kind="stable")]
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))  # ties share a group
    sides = labels[order], 1 - labels[order]
    positive, negative = (np.add.reduceat(weights[:, order] * side, starts, axis=1) for side in sides)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _rfm(users: Users, past: pd.DataFrame) -> Float[np.ndarray, "user column"]:
    """Count, time and sum each user's events, by modality and over all."""
    age = ((users.cutoff - past["time"]) / pd.Timedelta(days=1)).to_numpy()
    user, modality = past["user"].cat.codes.to_numpy().astype(int), past["modality"].cat.codes.to_numpy().astype(int)
    span = float(age.max(initial=1.0))
    parts = []
    for kind in (None, *range(len(users.modalities))):
        chosen = np.ones(len(past), bool) if kind is None else modality == kind
        numbers = np.nan_to_num(past.loc[chosen, list(users.numbers)].to_numpy(float))
        parts += _rfm_of(user[chosen], age[chosen], numbers, len(users), span)
    facts = users.tabular.fillna(users.tabular.median()).fillna(0.0)
    table = np.column_stack([*parts, facts, users.tabular.isna()]).astype(float)
    return table[:, table.std(axis=0) > 1e-9]


def _rfm_of(user: np.ndarray, age: np.ndarray, numbers: np.ndarray, n: int, span: float) -> list[np.ndarray]:
    """Give the columns of one modality; amounts as signed logs, since a few users spend a hundred times the median."""
    count, last, first = np.bincount(user, minlength=n), np.full(n, span + 1), np.zeros(n)
    np.minimum.at(last, user, age)
    np.maximum.at(first, user, age)
    days = np.bincount(np.unique(np.stack([user, age.astype(int)]), axis=1)[0], minlength=n)
    gap = np.maximum(first - last, 1) / np.maximum(days - 1, 1)
    columns = [np.log1p(count), np.log1p(last), np.log1p(days), np.log(gap), np.log1p(last / gap)]
    totals = [count, *(np.bincount(user, column, n) for column in numbers.T)]
    for days_back in WINDOWS:
        rows = age <= days_back
        recent = [np.bincount(user[rows], minlength=n), *(np.bincount(user[rows], column[rows], n) for column in numbers.T)]
        columns += [signed_log(values) for values in recent]
        # the trend: the window's share of the whole (without a whole there is no part: 0)
        columns += [part / np.where(total == 0, 1, total) for part, total in zip(recent, totals, strict=True)]
    columns += [signed_log(total) for total in totals[1:]] + [total / np.maximum(count, 1) for total in totals[1:]]
    return columns + [np.bincount(user, column > 0, n) / np.maximum(count, 1) for column in numbers.T]


def _counts(users: Users, past: pd.DataFrame):
    """Count each user's texts, one column a modality and text: sparse (user, column)."""
    from scipy.sparse import csr_matrix

    texts = len(past["text"].cat.categories)
    column = past["modality"].cat.codes.to_numpy().astype(np.int64) * texts + past["text"].cat.codes.to_numpy()
    seen, column = np.unique(column, return_inverse=True)
    cells = (past["user"].cat.codes.to_numpy(), column)
    return csr_matrix((np.ones(len(past)), cells), (len(users), len(seen)))  # equal cells add up


def _commonest(counts) -> np.ndarray:
    """Choose the columns that most users have, at least two of them where any has."""
    having = np.asarray((counts > 0).sum(axis=0)).ravel()
    best = np.argsort(-having, kind="stable")[:MAX_COLUMNS]
    return np.sort(best[having[best] >= min(2, having.max(initial=0))])


def _mean_vectors(users: Users, past: pd.DataFrame, vectors: Any) -> Float[np.ndarray, "user dim"]:
    """Average the text vectors of each user's events; a user without any stands at the mean of all."""
    from scipy.sparse import csr_matrix

    texts = past["text"].cat.categories
    table = np.asarray([vectors[t] for t in texts] if isinstance(vectors, Mapping) else vectors, dtype=float)
    if len(table) != len(texts):
        raise ValueError(f"{len(table)} vectors for {len(texts)} texts: give one a category of events['text'], in that order")
    cells = (past["user"].cat.codes.to_numpy(), past["text"].cat.codes.to_numpy())
    counts = csr_matrix((np.ones(len(past)), cells), (len(users), len(texts)))
    total = np.asarray(counts.sum(axis=1))
    mean = (counts @ table) / np.maximum(total, 1)
    return np.where(total > 0, mean, mean[total[:, 0] > 0].mean(axis=0) if total.any() else 0.0)


def components(table, n: int = COMPONENTS) -> Float[np.ndarray, "user component"]:
    """Keep the `n` directions that hold most of a (user, column) table."""
    from sklearn.decomposition import TruncatedSVD

    n = min(n, min(table.shape) - 1)
    with np.errstate(invalid="ignore"):  # it divides by the variance, which may be 0
        return TruncatedSVD(n, random_state=0).fit_transform(table) if n > 0 else np.zeros((table.shape[0], 1))
