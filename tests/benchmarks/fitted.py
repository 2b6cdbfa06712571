"""What `fit` reaches on a data set with labels, and whether it refuses what cannot be answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from sklearn.metrics import roc_auc_score

import qanchor as qa
from qanchor.data.users import Users
from qanchor.inference.evidence import encode_questions, interpret
from qanchor.models.pointing import read_questions
from qanchor.training.reader import make_concept_task
from tests.benchmarks.task_scores import task_query

UNANSWERABLE = Path(__file__).with_name("unanswerable.txt")
FREQUENCY, AGE_OF_LAST = 0, 1  # columns of a user's numbers as a whole
MAX_WORDINGS = 400  # held-out wordings that are checked


def fitted(users: Callable[[], Users], run=None, seeds: int = 1, *, progress=None) -> dict:
    """Fit a pointing model; rank users for the question of each label, and embed them for it.

    `label_free` is the AUC of the ranking, which saw no label; it is missing if the question was
    refused. `prior` is the same without what the reader's body learned: linear in what was counted.
    Two controls need no model: `frequency` counts all events, `recency` is the time of the
    last; if the question was read as a denial, few events and a long time ago. `probe` is the AUC
    of a linear probe on the embedding. The averages are over the questions that were answered.
    `refused` counts 40 questions that no event log of this kind can answer (each should be
    refused), and wordings about the users' own concepts that training did not see (none should
    be). `run` is not looked at.
    """
    people = users()
    start = time.monotonic()
    model = qa.fit(people, progress=progress or False)
    seconds = time.monotonic() - start
    engine = qa.Engine(model)
    cache = engine.prefill(people)
    level = cache.tokens.level
    rows = []
    for task in people.labels.columns:
        query = task_query(task, people.unit)
        label = people.label(task).reindex(cache.ids)
        known = label.notna().to_numpy()
        embeddings = engine.embed(cache, query)
        ranking = engine.score(cache, query, embeddings)
        probe = qa.linear_probe(embeddings[known], label[known].astype(int), seed=0, seeds=seeds)
        sense = interpret(model, cache.tokens, query)[0].sign
        scores = {
            "frequency": sense * level[:, FREQUENCY],
            "recency": -sense * level[:, AGE_OF_LAST],
        }
        if ranking.attrs["answerable"]:
            scores["label_free"] = ranking["score"].to_numpy()
            question = encode_questions(model, [query], people.unit, people.horizon_days)
            reading = read_questions(model.reader, cache.tokens, question)
            scores["prior"] = reading.prior[:, 0].numpy()
        aucs = {name: roc_auc_score(label[known], score[known]) for name, score in scores.items()}
        rows.append({"task": task, "query": query, "probe": probe.auc} | aucs)
    answered = [row for row in rows if "label_free" in row]
    means = pd.DataFrame(answered).mean(numeric_only=True).to_dict()
    return {
        "users": len(people),
        "events": len(people.history()),
        "seconds": round(seconds, 1),
        "concepts": len(model.concepts),
        "rows": rows,
        "average": means,
        "refused": refusals(engine, cache, people),
    }


def refusals(engine: qa.Engine, cache: qa.PrefixCache, users: Users) -> dict:
    """Count refused questions: of those that cannot be answered, and of those that can."""
    unanswerable = [
        line.replace("{user}", users.unit) for line in UNANSWERABLE.read_text().splitlines()
    ]
    task = make_concept_task(users, engine.model.config.text_encoder)
    wordings = [
        question.wording.query.replace("user", users.unit)
        for question in task.questions
        if question.wording.held_out
    ][:MAX_WORDINGS]
    refused = {
        name: sum(
            not interpret(engine.model, cache.tokens, query)[0].answerable for query in queries
        )
        for name, queries in (("unanswerable", unanswerable), ("answerable", wordings))
    }
    return refused | {"of_unanswerable": len(unanswerable), "of_answerable": len(wordings)}
