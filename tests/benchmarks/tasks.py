"""Bench `tasks`: what the embeddings and rankings of `fit` know of the labels, beside every
baseline, and what other questions would give.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import qanchor as qa
from qanchor.data.sample import sample_ground_truth
from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.inference.evidence import encode_questions
from qanchor.models.pointing import PointingReader, read_questions
from qanchor.models.text_encoder import text_vectors
from qanchor.utils.types import StageProgress
from tests.benchmarks.baselines import baseline_features, token_features
from tests.benchmarks.earlier import earlier_labels, earlier_scores
from tests.benchmarks.engines import open_engine, rank_scores, shuffled_rows, with_label_horizon
from tests.benchmarks.fitted import parts_of_prior
from tests.benchmarks.task_scores import (
    PARAPHRASES,
    HeldOutScores,
    average_auc,
    cross_validate_tasks,
    task_frame,
    task_query,
)

GENERIC = "What are the {user}'s most likely actions in the next period?"  # the paper's fixed query
KINDS = ("right", "none", "generic", "wrong", *(f"paraphrase {i}" for i in range(len(PARAPHRASES))))
LADDER = {
    "tables": "rfm_svd",
    "vectors": "minilm",
    "tokens": "features",
    "untrained": "anchor_untrained",
    "trained": "anchor",
}


def tasks(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 5,
    *,
    progress: StageProgress = lambda stage, done, total: None,
) -> dict:
    """Judge a model by the users' labels: its ranking without labels beside what else needs none,
    and probes on its frozen embeddings beside every baseline.

    `zero_shot` is the AUC of the ranking, for the questions that are answered,
    `zero_shot_intervals` the same with 95 % intervals. `zero_shot_others` has what else needs no
    label: persistence, parts of the model (see `label_free_scores`), and models fitted at earlier
    cut-offs where labels can be computed there; `zero_shot_minus` is by how much `zero_shot` is
    above each of them, paired. For the rest see `probed`.

    Args:
        users: Returns the users.
        run: Folder of a run. Default: fit a model to the users.
        seeds: Repetitions of the cross-validation of probes. 0: no probes. Default: 5.
        progress: Called with (stage, done, total).
    """
    people = with_label_horizon(users())
    names = askable(people)
    engine = open_engine(run, people, progress)
    cache = engine.prefill(people)
    scores = label_free_scores(engine, cache, people, names)
    encoder = engine.model.config.text_encoder
    scores |= earlier_scores(encoder, people, earlier_labels(people), names)
    result = {"data": people.name, "users": len(people), "seeds": seeds}
    result |= judge_label_free(people, scores)
    ranked = [task for task in names if task in result.get("zero_shot", {})]
    if seeds:
        result |= probed(engine, cache, people, names, ranked, seeds, progress)
    return result


def probed(
    engine: qa.Engine,
    cache: qa.PrefixCache,
    people: Users,
    names: list[str],
    ranked: list[str],
    seeds: int,
    progress: StageProgress,
) -> dict:
    """Score the labels by every baseline and by embeddings under each task's own question.

    `average` is over all labels, `average_ranked` over those that are also ranked without labels.

    Also: the same model untrained, the rungs of the information ladder, and what other questions
    than the right one give (fewer seeds, the same folds for all of them), with intervals, and by
    how much the right question is above each other one, paired: `query_minus`.
    """
    texts = list(people.events["text"].cat.categories)
    vectors = text_vectors(texts, engine.model.config.text_encoder)
    own = token_features(cache.tokens)
    features: dict = baseline_features(people, vectors)
    features |= {"features": own["logistic"][0], "features_lightgbm": own["lightgbm"][0]}
    random_weights = untrained(engine, cache)
    features["anchor_untrained"] = embeddings_by_question(
        random_weights, cache, people, names, ("right",)
    )["right"]
    ours = embeddings_by_question(engine, cache, people, names, KINDS, progress)
    features |= {"anchor_no_query": ours["none"], "anchor": ours["right"]}
    held = cross_validate_tasks(
        people, features, names, seeds=seeds, progress=partial(progress, "probes")
    )
    frame = task_frame(people, held)
    average = averages(frame)
    of_ranked = {key: score for key, score in held.items() if key[0] in ranked}
    result = {"average": average, "average_ranked": averages(task_frame(people, of_ranked))}
    result["tasks"] = frame[frame["task"] != "average"].to_dict("records")
    result |= {"recovered": _recovered(people, frame)} if people.name == "world" else {}
    result["ladder"] = [
        {"rung": rung, "method": method, "auc": average[method]["auc"]}
        for rung, method in LADDER.items()
    ]
    others = [method for method in average if method != "anchor"]
    result["anchor_minus"] = {m: interval(people, held, "anchor", minus=m) for m in others}
    asked = cross_validate_tasks(
        people, ours, names, seeds=min(seeds, 2), progress=partial(progress, "other questions")
    )
    means = averages(task_frame(people, asked))
    result["query"] = _by_kind({kind: row["auc"] for kind, row in means.items()})
    result["query_intervals"] = _by_kind(
        {kind: {n: row[n] for n in ("auc", "low", "high")} for kind, row in means.items()}
    )
    result["query_minus"] = _by_kind(
        {kind: interval(people, asked, "right", minus=kind) for kind in KINDS[1:]}
    )
    return result


def untrained(engine: qa.Engine, cache: qa.PrefixCache) -> qa.Engine:
    """Return an engine of the same model with a reader of random weights."""
    model = copy.deepcopy(engine.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.reader = PointingReader(cache.tokens.vectors.shape[1])
    return qa.Engine(model)


def _by_kind(found: dict) -> dict:
    """Put the rewordings of the right query in one list."""
    return {kind: value for kind, value in found.items() if kind in KINDS[:4]} | {
        "paraphrases": [found[k] for k in KINDS[4:]]
    }


def interval(people: Users, held: dict, method: str, minus: str | None = None) -> dict[str, float]:
    return dict(
        zip(("auc", "low", "high"), average_auc(people, held, method, minus=minus), strict=True)
    )


def askable(people: Users) -> list[str]:
    """Name the labels that folds can be made of."""
    names = [
        t
        for t in people.labels
        if min((people.label(t) == 1).sum(), (people.label(t) == 0).sum()) >= 5
    ]
    if not names:
        raise ValueError(
            f"{people.name} has no label with 5 users of each class: give labels.parquet, or "
            "--data journey"
        )
    return names


def right_queries(people: Users, names: list[str]) -> dict[str, str]:
    """Return each task's own query."""
    return {name: task_query(name, people.unit) for name in names}


def embeddings_by_question(
    engine: qa.Engine,
    cache: qa.PrefixCache,
    people: Users,
    names: list[str],
    kinds: Sequence[str],
    progress: StageProgress = lambda stage, done, total: None,
) -> dict[str, Callable]:
    """Ask all that the table needs in one visit of the users: {kind of query: task ->
    embeddings}.
    """
    right = right_queries(people, names)
    generic = GENERIC.replace("{user}", people.unit)
    texts = {}
    for i, (name, query) in enumerate(right.items()):
        # wrong: the next task's query but two, since neighbours in the list ask for like things (of
        # three that is its own)
        wrong = right[names[(i + (3 if len(names) > 3 else 1)) % len(names)]]
        asked = (query, "", generic, wrong, *(p.format(query) for p in PARAPHRASES))
        texts |= {(name, kind): text for kind, text in zip(KINDS, asked, strict=True)}
    wanted = list(dict.fromkeys(text for (_, kind), text in texts.items() if kind in kinds))
    anchors = engine.embed(cache, wanted, partial(progress, f"asking {len(wanted)}"))
    place = {text: k for k, text in enumerate(wanted)}
    return {kind: (lambda task, kind=kind: anchors[:, place[texts[task, kind]]]) for kind in kinds}


def averages(frame: pd.DataFrame) -> dict:
    mean = (
        frame[frame["task"] == "average"]
        .set_index("method")
        .rename(columns={"auc_low": "low", "auc_high": "high"})
    )
    return mean[["auc", "ks", "low", "high"]].to_dict("index")


def _recovered(people: Users, frame: pd.DataFrame) -> dict[str, float]:
    """Say which share of what can be known each method finds: (AUC - .5) / (oracle - .5) of the
    averages.
    """
    known = sample_ground_truth(max(int(i.removeprefix("u")) for i in people.ids) + 1).reindex(
        list(people.ids)
    )
    rows = frame[frame["task"] != "average"]
    oracle = np.mean(
        [roc_auc(known[f"p.{task}"], people.label(task)) for task in rows["task"].unique()]
    )
    return {
        method: (mean - 0.5) / (oracle - 0.5)
        for method, mean in rows.groupby("method")["auc"].mean().items()
    }


def label_free_scores(
    engine: qa.Engine, cache: qa.PrefixCache, people: Users, names: list[str]
) -> HeldOutScores:
    """Score each task that is answered without labels: by the ranking, by parts of it, and by how
    often what the question means happened before.

    `prior` is the ranking without the body that reads, `alone` the body without the prior, and
    `shuffled` the body alone when each user has the events of another.
    """
    reader = engine.model.reader
    others = cache.tokens.select(shuffled_rows(len(cache.tokens)))
    scores = {}
    for task, query in right_queries(people, names).items():
        ranking = rank_scores(engine, cache, query)
        if ranking is None:
            continue
        question = encode_questions(engine.model, [query], people.unit, people.horizon_days)
        own = read_questions(reader, cache.tokens, question)
        methods = {
            "anchor": ranking,
            "persistence": parts_of_prior(reader, cache.tokens, question)["persistence"],
            "prior": own.prior[:, 0].numpy(),
            "alone": own.alone[:, 0].numpy(),
            "shuffled": read_questions(reader, others, question).alone[:, 0].numpy(),
        }
        for method, score in methods.items():
            # nothing was fitted: all are of one fold
            scores[task, method] = score[None], np.zeros((1, len(people)), int)
    return scores


def judge_label_free(people: Users, scores: HeldOutScores) -> dict[str, dict]:
    """Judge scores that no label of the judged window was used for: those of the method "anchor",
    and all others beside them. Empty if no question was answered.
    """
    answered = {task for task, method in scores if method == "anchor"}
    scores = {key: score for key, score in scores.items() if key[0] in answered}
    methods = list(dict.fromkeys(method for _, method in scores))
    if not methods:
        return {}
    spans: dict[str, dict] = {
        method: {"average": interval(people, scores, method)} for method in methods
    }
    for (task, method), score in scores.items():
        spans[method][task] = interval(people, {(task, method): score}, method)
    ours = spans.pop("anchor")
    return {
        "zero_shot": {name: span["auc"] for name, span in ours.items()},
        "zero_shot_intervals": ours,
        "zero_shot_others": spans,
        "zero_shot_minus": {m: interval(people, scores, "anchor", minus=m) for m in spans},
    }
