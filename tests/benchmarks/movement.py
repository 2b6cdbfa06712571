"""Bench `movement`: who stands out under a question, by several statistics, beside the plain
residual.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

import qanchor as qa
from qanchor.analysis.shift import SCORE, compare_with_others, residual_shift, toward_yes
from qanchor.evaluation.metrics import roc_auc
from qanchor.inference.evidence import interpret
from qanchor.utils.types import EmbeddingRows, StageProgress, UserFloats
from tests.benchmarks.engines import open_engine
from tests.benchmarks.task_scores import PARAPHRASES, task_query

OTHERS = 19
Moves = Float[np.ndarray, "query user"]


def unaligned(before: EmbeddingRows, after: EmbeddingRows) -> UserFloats:
    """Return how far each user moved, with what all have in common."""
    return np.linalg.norm(after - before, axis=1)


def score_change(before: EmbeddingRows, after: EmbeddingRows) -> UserFloats:
    """Return how far the score alone moved: the rest of the embedding is not looked at."""
    change = after[:, SCORE] - before[:, SCORE]
    return change - change.mean()


# statistic -> move of each user between two queries, and what the unit of a query is
STATISTICS = {
    "residual": (residual_shift, np.mean),
    "unaligned": (unaligned, np.mean),
    "score": (score_change, np.std),
    "toward_yes": (toward_yes, np.std),
}


def movement(
    users: Callable[[], qa.Users],
    run=None,
    seeds: int = 1,
    *,
    most: int = 600,
    progress: StageProgress = lambda stage, done, total: None,
) -> dict:
    """Measure who stands out under the question of each label, from no question and from another.

    `rows` has the means over questions, by statistic and the query before: `share` that stands out
    (the largest move among 20 questions), its extremes, AUC of the move and of its margin over the
    largest elsewhere, for users with events that the question means and for the label, and how much
    more often those who stand out have them (`lift`). The rule of the lens is "lens". `residual`
    with rule "paraphrases" is the control: beyond what five paraphrases move. `paraphrased` is the
    share that stands out from a question to its paraphrase, `other_questions` the share under each
    of the other questions by the rule of the lens. `seeds` is not looked at.
    """
    people = users()
    people = people.select(people.ids[:most])
    engine = open_engine(run, people)
    cache = engine.prefill(people)
    meanings = {}

    def meaning(query: str):
        if query not in meanings:
            meanings[query], _ = interpret(engine.model, cache.tokens, query)
        return meanings[query]

    asked = {task: task_query(task, people.unit) for task in people.labels}
    asked = {task: query for task, query in asked.items() if meaning(query).things}
    bank = [q for q in engine.suggest_queries(people, 2 * OTHERS) if meaning(q).answerable]
    reworded = [p.format(query) for query in asked.values() for p in PARAPHRASES]
    queries = list(dict.fromkeys(["", *bank, *asked.values(), *reworded]))
    z = engine.embed(cache, queries, progress=lambda *done: progress("embed", *done))
    embeddings = {query: z[:, place].astype(float) for place, query in enumerate(queries)}

    rows = []
    paraphrased = []
    for place, (task, query) in enumerate(asked.items()):
        before = list(asked.values())[place - 1]
        label = people.label(task).to_numpy()
        things = np.isin(cache.tokens.which, meaning(query).things).any(axis=1)
        evidence = things if meaning(query).sign > 0 else ~things
        for previous in ("", before):
            known = [meaning(text) for text in (query, previous) if text]
            if len(known) == 2 and known[0].overlaps(known[1]):
                continue
            others = [q for q in bank if not any(meaning(q).overlaps(one) for one in known)]
            others = [embeddings[q] for q in others[:OTHERS]]
            pair = embeddings[previous], embeddings[query]
            texts = [embeddings[p.format(query)] for p in PARAPHRASES]
            for statistic, rule, move, limit in judged(*pair, others, texts):
                about = {"statistic": statistic, "rule": rule, "from": "another" * bool(previous)}
                rows.append(about | described(move, limit, evidence, label))
        others = [q for q in bank if not meaning(q).overlaps(meaning(query))][:OTHERS]
        for paraphrase in PARAPHRASES:
            text = paraphrase.format(query)
            if meaning(text).things != meaning(query).things:
                continue  # read as something else
            pair = embeddings[query], embeddings[text]
            for statistic, rule, move, limit in judged(*pair, [embeddings[q] for q in others]):
                share = float((move > limit).mean())
                paraphrased.append({"statistic": statistic, "rule": rule, "share": share})
    shares_of_others = []  # each of 20 suggestions, against the 19 others
    for query in bank[: OTHERS + 1]:
        others = [embeddings[q] for q in bank[: OTHERS + 1] if q != query]
        move, limit = compare_with_others(embeddings[""], embeddings[query], others)
        shares_of_others.append(float((move > limit).mean()))
    keys = ["statistic", "rule", "from"]
    frame = pd.DataFrame(rows)
    table = frame.groupby(keys, sort=False).mean()
    shares = frame.groupby(keys, sort=False)["share"]
    table = table.assign(share_min=shares.min(), share_max=shares.max()).round(4).reset_index()
    same = pd.DataFrame(paraphrased).groupby(keys[:2], sort=False)["share"].agg(["mean", "max"])
    return {
        "rows": table.to_dict("records"),
        "paraphrased": same.round(4).reset_index().to_dict("records"),
        "other_questions": {
            "mean": round(float(np.mean(shares_of_others)), 4),
            "min": min(shares_of_others),
            "max": max(shares_of_others),
        },
        "questions": len(asked),
        "others": OTHERS,
        "users": len(people),
    }


def judged(
    before: EmbeddingRows,
    after: EmbeddingRows,
    others: list[EmbeddingRows],
    paraphrases: list[EmbeddingRows] = (),
):
    """Yield statistic, rule, the move of each user, and the limit beyond which a user stands out.

    Args:
        before: Embeddings under the query before.
        after: Embeddings under the query.
        others: Embeddings under each of the other queries.
        paraphrases: Embeddings under the query in other words.
    """
    for name, (statistic, unit) in STATISTICS.items():
        moves = np.stack([statistic(before, rows) for rows in [after, *others]])
        moves /= np.array([[max(unit(row), 1e-9)] for row in moves])
        yield name, "others", moves[0], moves[1:].max(axis=0)
    yield "toward_yes", "lens", *compare_with_others(before, after, others)
    if len(paraphrases):
        worst = np.max([residual_shift(after, rows) for rows in paraphrases], axis=0)
        residual = residual_shift(before, after)
        yield "residual", "paraphrases", residual, np.full(len(after), np.quantile(worst, 0.95))


def described(move: UserFloats, limit: UserFloats, evidence, label) -> dict:
    """Describe who stands out, beside who has evidence and the label."""
    stands_out = move > limit
    row = {"share": float(stands_out.mean())}
    for name, truth in (("evidence", evidence), ("label", label)):
        row[f"{name}_auc"] = roc_auc(move, truth)
        row[f"{name}_margin_auc"] = roc_auc(move - limit, truth)
        rate = truth[stands_out].mean() if stands_out.any() else np.nan
        row[f"{name}_lift"] = float(rate / truth.mean())
    return row
