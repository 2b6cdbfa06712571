"""What `fit` reaches on a data set with labels, and whether it refuses what cannot be answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import qanchor as qa
from qanchor.data.users import Users
from qanchor.inference.evidence import encode_questions, interpret
from qanchor.models.aliases import Aliases
from qanchor.models.pointing import (
    PointingReader,
    QuestionInput,
    read_questions,
    thing_input,
    token_input,
)
from qanchor.models.user_tokens import UserTokens
from qanchor.training.concept_task import make_concept_task
from qanchor.training.reader import train_reader
from tests.benchmarks.engines import rank_scores, with_label_horizon
from tests.benchmarks.task_scores import task_query

UNANSWERABLE = Path(__file__).with_name("unanswerable.txt")
FREQUENCY, AGE_OF_LAST = 0, 1  # columns of a user's numbers as a whole
ABLATIONS = {  # what a model is fitted and asked without
    "without_associations": lambda tokens: tokens.with_associations(None),
    "without_aliases": lambda tokens: replace(tokens, aliases=no_members(tokens.aliases)),
}
COUNTED = 0  # of the numbers that the prior starts from: how often
MAX_WORDINGS = 400  # held-out wordings that are checked


def fitted(users: Callable[[], Users], run=None, seeds: int = 1, *, progress=None) -> dict:
    """Fit a pointing model; rank users for the question of each label, and embed them for it.

    `label_free` is the AUC of the ranking, which saw no label; it is missing if the question was
    refused. `prior` is the same without what the reader's body learned: linear in what was counted
    and in associations. `associations` is the association score alone, `persistence` how often what
    is meant happened before; `without_associations` and `without_aliases` (of topics) are rankings
    of models that were fitted without them. Two controls need no model: `frequency` counts all
    events, `recency` is the time of the last; if the question was read as a denial, few events and
    a long time ago. `probe` is the AUC of a linear probe on the embedding. `grade` is the rank
    correlation (Spearman) of the chance that the backtest gives each user with what came true, and
    `chance_error` the mean distance between the chance of a fifth of the ranking and the share that
    came true. The averages are over the questions that were answered. `refused` counts 40 questions
    that no event log of this kind can answer (each should be refused), and wordings about the
    users' own concepts that training did not see (none should be). Households of the Complete
    Journey are asked about the days that their labels cover. `run` is not looked at.
    """
    people = with_label_horizon(users())
    start = time.monotonic()
    model = qa.fit(people, progress=progress or False)
    seconds = time.monotonic() - start
    engine = qa.Engine(model)
    cache = engine.prefill(people)
    ablated = {
        name: (fit_without(people, model.config.text_encoder, remove), remove(cache.tokens))
        for name, remove in ABLATIONS.items()
    }
    level = cache.tokens.level
    rows = []
    for task in people.labels.columns:
        query = task_query(task, people.unit)
        label = people.label(task).reindex(cache.ids)
        known = label.notna().to_numpy()
        embeddings = engine.embed(cache, query)
        ranking = rank_scores(engine, cache, query)
        probe = qa.linear_probe(embeddings[known], label[known].astype(int), seed=0, seeds=seeds)
        sense = interpret(model, cache.tokens, query)[0].sign
        scores = {
            "frequency": sense * level[:, FREQUENCY],
            "recency": -sense * level[:, AGE_OF_LAST],
        }
        if ranking is not None:
            scores["label_free"] = ranking
            question = encode_questions(model, [query], people.unit, people.horizon_days)
            scores["prior"] = read_questions(model.reader, cache.tokens, question).prior[:, 0]
            scores |= parts_of_prior(model.reader, cache.tokens, question)
            for name, (reader, tokens) in ablated.items():
                scores[name] = read_questions(reader, tokens, question).score[:, 0]
        aucs = {name: roc_auc_score(label[known], score[known]) for name, score in scores.items()}
        row = {"task": task, "query": query, "probe": probe.auc} | aucs
        if ranking is not None:
            chance = qa.backtest(engine, people, query).chances(ranking)[known]
            row |= judged_chances(chance, label[known].to_numpy())
        rows.append(row)
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


def no_members(aliases: Aliases) -> Aliases:
    """Return aliases of nothing."""
    return replace(aliases, members=torch.zeros_like(aliases.members))


def judged_chances(chance: np.ndarray, outcome: np.ndarray) -> dict[str, float]:
    """Return how well the chances of users fit what came true; empty without chances."""
    if np.isnan(chance).any():
        return {}
    parts = pd.DataFrame({"chance": chance, "outcome": outcome}).groupby("chance")["outcome"]
    distance = (parts.mean() - parts.mean().index).abs()
    found = {"chance_error": float(np.average(distance, weights=parts.size()))}
    if len(parts) > 1:
        found["grade"] = float(spearmanr(chance, outcome).statistic)
    return found


def parts_of_prior(
    reader: PointingReader, tokens: UserTokens, question: QuestionInput
) -> dict[str, np.ndarray]:
    """Return two baselines in the question's sense: how often what it means happened before, and
    the association score.
    """
    things = thing_input(tokens)
    users = token_input(tokens)
    with torch.inference_mode():
        meaning = reader.meaning(question, things)
        sign = reader.sign(question)
        persistence = reader.known_numbers(users, meaning, things)[:, 0, COUNTED]
        association = reader.association_score(users, meaning, things)[:, 0]
        return {
            "persistence": (persistence * sign).numpy(),
            "associations": (association * sign).numpy(),
        }


def fit_without(
    people: Users, encoder: str, remove: Callable[[UserTokens], UserTokens]
) -> PointingReader:
    """Return a reader that was trained as `fit` trains one, on tokens without some part."""
    task = make_concept_task(people, encoder)
    samples = [replace(sample, tokens=remove(sample.tokens)) for sample in task.samples]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reader = PointingReader(task.encoded.vector.shape[1])
    train_reader(reader, replace(task, samples=tuple(samples)))
    return reader


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
