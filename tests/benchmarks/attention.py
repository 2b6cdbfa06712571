"""Bench `attention`: the sample world knows which modalities carry a task; do the saliency of the
tokens and deletion name them?
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from qanchor.analysis.attention import (
    TABULAR,
    modality_importance,
    rank_agreement,
    thing_rows,
)
from qanchor.analysis.attention import modality_attention as look
from qanchor.data.sample import CARRIERS, QUERIES
from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.pointing import read_questions, thing_input, token_gradients, token_input
from qanchor.models.queries import QueryLike, query_text
from qanchor.prompt_tuning.tuning import tune_prompt
from qanchor.training.concept_task import make_concept_task
from qanchor.training.reader import select_questions
from tests.benchmarks.engines import open_engine

HELD_OUT_QUESTIONS = 60
MEASURES = ("weight", "per_token", "deletion_effect")


def attention(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    most: int = 100,
    tuned_on: int = 300,
    steps: int = 100,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Ask each task's question of the sample world's users, see which modalities saliency and
    deletion name, then tune and look again.

    A measure is averaged over users. as_it_is: of modalities with events. against: the same minus
    the modality's mean over all tasks, since one modality may have most of it whatever is asked.
    auc: how often a carrier (CARRIERS, two of five a task) stands above another modality; first:
    the share of tasks whose first is one. carriers: the part of the measure that falls to the
    carriers, mean over tasks. agreement: rank correlation of saliency and deletion over a user's
    modalities, mean over users and tasks.

    held_out: saliency, and raw attention as its control, compared with deletion for concepts that
    were never taught.

    tuned: the same under a soft prompt for each task, begun at the task's question and learned for
    at most `steps` steps from the labels of `tuned_on` other users. So is tried what the paper
    shows of one user: that tuning leads attention to the scenario's modality.

    Args:
        users: Returns users of the sample world.
        run: Folder of a run. Default: fit a model.
        seeds: Not used.
        most: Users that are looked at, at most.
        tuned_on: Users that prompts are tuned on, at most.
        steps: Steps of tuning.
        progress: Called with (stage, done, total).
    """
    every = users()
    if every.name != "world":
        raise ValueError(
            f"bench attention: data {every.name!r}: the truth is known of --data world alone"
        )
    engine = open_engine(run, every)
    people = every.sample(most)
    others = every.select(sorted(set(every.ids) - set(people.ids))).sample(tuned_on)
    asked: dict[str, QueryLike] = {
        task: QUERIES[task].format(user=people.unit) for task in CARRIERS
    }
    cache, read, prompts = engine.prefill(people), engine.prefill(others), {}
    progress("deleting", 0, 1)
    told = _told(engine, cache, people, asked)
    for done, task in enumerate(CARRIERS, 1):
        prompts[task], _ = tune_prompt(engine, read, asked[task], others.label(task), steps=steps)
        progress("tuning", done, len(CARRIERS))
    progress("deleting again", 0, 1)
    tuned = _told(engine, cache, people, prompts)
    return {
        "users": len(people),
        "chance": 0.4,
        **told,
        "tuned": {"users": len(others), "steps": steps, **tuned},
        "held_out": _held_out(engine, cache, every),
    }


def _held_out(engine: Engine, cache: PrefixCache, users: Users) -> dict[str, float]:
    """Compare saliency and raw attention with how much the score changes when the tokens of a
    modality are hidden, for questions about concepts that were never taught.
    """
    task = make_concept_task(users, engine.model.config.text_encoder)
    places = [
        place
        for place, question in enumerate(task.questions)
        if task.concepts[question.concept].split == "held_out" and not question.wording.held_out
    ]
    places = np.random.default_rng(0).permutation(places)[:HELD_OUT_QUESTIONS]
    reader = engine.model.reader
    tokens = cache.tokens
    question = select_questions(reader, task, places).encoded
    modalities = tokens.population.named("modality")
    row_of = thing_rows(tokens, modalities)
    whole = read_questions(reader, tokens, question)
    effects = [
        (whole.score - read_questions(reader, tokens.without(row_of == row), question).score).abs()
        for row in range(len(modalities))
    ]
    effects = torch.stack(effects, -1).numpy()
    own = token_input(tokens)
    things = thing_input(tokens)
    width = own.which.shape[1]
    row_of_token = np.append(row_of, -1)[tokens.which][:, :width]
    is_row = row_of_token[..., None] == np.arange(len(modalities))
    found = {"saliency": [], "raw_attention": []}
    for column in range(len(places)):
        weights = {
            "saliency": token_gradients(reader, own, question.at([column]), things),
            "raw_attention": whole.attention[:, column, :width].numpy(),
        }
        for name, weight in weights.items():
            shown = np.abs((weight[..., None] * is_row).sum(1))
            found[name] += _compared(shown, effects[:, column])
    means = {name: np.mean(pairs, axis=0) for name, pairs in found.items()}
    return {"questions": len(places)} | {
        name: {"agreement": float(agreement), "same_first": float(same)}
        for name, (agreement, same) in means.items()
    }


def _compared(shown: np.ndarray, effect: np.ndarray) -> list[tuple[float, float]]:
    """Return, for each user whose modalities differ in effect, the rank correlation with what is
    shown (0 if that is even) and whether both are largest for the same modality.
    """
    differs = effect.std(1) > 0
    return [
        (np.nan_to_num(spearmanr(weight, moved)[0]), float(weight.argmax() == moved.argmax()))
        for weight, moved in zip(shown[differs], effect[differs], strict=True)
    ]


def _told(
    engine: Engine,
    cache: PrefixCache,
    people: Users,
    asked: dict[str, QueryLike],
) -> dict:
    """Hold the measures under these questions, or prompts, against the carriers."""
    tasks = {query_text(one): task for task, one in asked.items()}
    looks = pd.concat([look(engine, cache, one) for one in asked.values()])
    found = modality_importance(engine, people, list(asked.values()))
    mean = looks.groupby(["query", "modality"])[["weight", "per_token"]].mean()
    of_deletion = found.groupby(["query", "modality"])[["deletion_effect"]].mean()
    table = mean.join(of_deletion, how="inner").reset_index()
    table["task"] = table["query"].map(tasks)
    events = table[table["modality"] != TABULAR].reset_index(drop=True)
    carries = [row.modality in CARRIERS[row.task] for row in events.itertuples()]
    told = {}
    for name in MEASURES:
        against = events[name] - events.groupby("modality")[name].transform("mean")
        part = (events[name] * carries).groupby(events["task"]).sum() / events.groupby("task")[
            name
        ].sum()
        told[name] = {
            "as_it_is": _named(events, events[name], carries),
            "against": _named(events, against, carries),
        }
        told[name]["carriers"] = float(part.mean())
    pairs = [(looks[looks["query"] == words], found[found["query"] == words]) for words in tasks]
    rank = {
        name: float(
            pd.concat([rank_agreement(*pair, name) for pair in pairs])["correlation"].mean()
        )
        for name in MEASURES[:2]
    }
    return {"named": told, "agreement": rank, "rows": table.to_dict("records")}


def _named(events: pd.DataFrame, values: pd.Series, carries: list[bool]) -> dict[str, float]:
    rank = values.groupby(events["task"]).rank()  # within a task, so that tasks are compared alike
    first = rank.groupby(events["task"]).idxmax()
    return {
        "auc": roc_auc(rank.to_numpy(), pd.Series(carries).to_numpy(float)),
        "first": float(pd.Series(carries)[first].mean()),
    }
