"""Bench `senses`: whether questions that nobody taught are read as yes or as no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qanchor.data.users import Users
from qanchor.models.pointing import PointingReader, QuestionInput, question_input
from qanchor.training.concept_task import ConceptTask, make_concept_task, training_questions
from qanchor.training.reader import fit_sense

SENSES = Path(__file__).with_name("senses.csv")
VERBS = ("buy", "use", "have", "do", "see", "get")
MAX_OWN = 40  # concepts of the users' own that are asked about
WITHOUT = ("", "phrasing", "vector")  # parts of a question, one of which is left out
# the cheap baseline: a question with one of these words denies
DENIALS = r"\b(?:not|no|never|unlikely|without|stop|quit|leave|churn|cancel)\b|n't\b"


def senses(
    users: Callable[[], Users], run=None, seeds: int = 5, *, encoder: str = "minilm", progress=None
) -> dict:
    """Fit the sense of questions and judge it on frames, topics and whole questions that are in no
    wording: `own` is asked about concepts of the users' that were never taught, `topic` about
    anything, `question` is about staying and leaving.

    Beside it: the same without one part of what is read, and a list of words instead of a model
    (`without` is "model"). `run` is not looked at.
    """
    people = users()
    task = make_concept_task(people, encoder)
    cases = sense_cases(task)
    taught, _ = training_questions(task)
    days = [people.horizon_days] * len(cases)
    asked = question_input(list(cases["query"]), "user", encoder, days, people.horizon_days)
    denies = cases["query"].str.contains(DENIALS, case=False)
    rows = _shares(cases, 1 - 2 * denies, "model")
    for seed in range(seeds):
        for part in WITHOUT:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                reader = PointingReader(task.encoded.vector.shape[1])
            fit_sense(reader, _without(task, part), taught, seed)
            with torch.no_grad():
                read_as = reader.sign(_blank(asked, part)).sign().numpy()
            rows += _shares(cases, read_as, part)
        if progress:
            progress("senses", seed + 1, seeds)
    keys = ["without", "kind", "sense"]
    table = pd.DataFrame(rows).groupby(keys, sort=False)["right"].agg(["mean", "min"])
    return {
        "rows": table.round(4).reset_index().to_dict("records"),
        "questions": len(cases),
        "seeds": seeds,
    }


def sense_cases(task: ConceptTask) -> pd.DataFrame:
    """Return one row a question: query, kind, and sense, 1 or -1.

    Args:
        task: Its held-out concepts are asked about, too.
    """
    listed = pd.read_csv(SENSES)
    listed["text"] = listed["text"].str.replace("{user}", "user")
    of_kind = dict(list(listed.groupby("kind")))
    held_out = [
        concept.label for concept in task.concepts if concept.split != "train" and concept.things
    ]
    labels = sorted(set(held_out))[:MAX_OWN]
    own = [f"{VERBS[place % len(VERBS)]} {label}" for place, label in enumerate(labels)]
    cases = [of_kind["question"][["text", "sense", "kind"]]]
    for kind, contents in (("topic", of_kind["topic"]["text"]), ("own", own)):
        for content in contents:
            framed = of_kind["frame"][["text", "sense"]].assign(kind=kind)
            framed["text"] = framed["text"].str.replace("{v}", content)
            cases.append(framed)
    return pd.concat(cases, ignore_index=True).rename(columns={"text": "query"})


def _shares(cases: pd.DataFrame, read_as: np.ndarray | pd.Series, without: str) -> list[dict]:
    """Return the share of questions that are read right, by kind and sense."""
    right = (cases["sense"] == read_as).groupby([cases["kind"], cases["sense"]]).mean()
    return [
        {"without": without, "kind": kind, "sense": sense, "right": share}
        for (kind, sense), share in right.items()
    ]


def _blank(question: QuestionInput, part: str) -> QuestionInput:
    """Return questions without one part."""
    if not part:
        return question
    return question._replace(**{part: torch.zeros_like(getattr(question, part))})


def _without(task: ConceptTask, part: str) -> ConceptTask:
    """Return a task whose questions and topics lack one part."""
    width = task.encoded.vector.shape[1]
    columns = {"vector": slice(width), "phrasing": slice(width, None)}
    topics = task.topic_wording.clone()
    if part:
        topics[:, columns[part]] = 0
    return replace(task, encoded=_blank(task.encoded, part), topic_wording=topics)
