"""Does the language model read? `fit` with late crossing beside its controls, on one data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.evaluation.probe import linear_probe
from qanchor.models.crossing import FIT_SCALES, LEVEL_TOKENS, EvidenceDropout, LateCrossing
from qanchor.models.pointing import (
    N_PRIOR_NUMBERS,
    STATE_DIM,
    PointingReader,
    QuestionInput,
    question_input,
    read_questions,
    replace_unit,
    row_batches,
    thing_input,
    token_input,
    word_fit,
)
from qanchor.models.user_tokens import N_LEVEL_NUMBERS, N_TOKEN_NUMBERS, TokenReader, UserTokens
from qanchor.training.reader import (
    LANGUAGE_BUDGET,
    POINTING_BUDGET,
    ConceptTask,
    make_concept_task,
    select_questions,
    train_reader,
)
from qanchor.utils.types import StageProgress
from tests.benchmarks.concepts import judged_questions
from tests.benchmarks.parts import shuffled_rows
from tests.benchmarks.task_scores import DOMAINS, task_query
from tests.benchmarks.tasks import interval

WIDTH = 576  # of SmolLM2
HEADS = 9
MAX_JUDGED = 400  # questions about concepts
COMPARED = "language_model"
BODIES = ("pointing", "same_budget", "language_model", "random_weights", "one_layer")


class OneLayer(nn.Module):
    """Control D: one attention layer over the same tokens in place of the language model.

    Args:
        text: Width of the text vectors.
    """

    def __init__(self, text: int):
        super().__init__()
        self.text = nn.Linear(text, WIDTH)
        self.number = nn.Linear(N_TOKEN_NUMBERS, WIDTH)
        self.level_norm = nn.LayerNorm(N_LEVEL_NUMBERS)
        self.level = nn.Linear(N_LEVEL_NUMBERS, LEVEL_TOKENS * WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(2 * text, WIDTH)
        self.evidence = nn.Linear(N_PRIOR_NUMBERS, WIDTH)
        self.drop_evidence = EvidenceDropout()
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        scales = torch.zeros(HEADS)
        scales[: len(FIT_SCALES)] = torch.tensor(FIT_SCALES)
        self.fit_scale = nn.Parameter(scales)
        self.state = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, STATE_DIM), nn.GELU())

    def encode(self, queries: Sequence[str]) -> None:
        """Return nothing: the layer reads text vectors."""

    def forward(self, users, standard, question, things, known):
        size = things.vector.shape[1] ** 0.5
        which = users.which.clamp(min=0)
        own = F.gelu(self.text(things.vector * size)[which] + self.number(standard))
        level = F.gelu(self.level(self.level_norm(users.level)))
        tokens = self.norm(torch.cat([level.unflatten(-1, (LEVEL_TOKENS, -1)), own], 1))
        asked = torch.cat([question.vector, question.content], -1) * size
        asked = self.query(asked) + self.evidence(self.drop_evidence(known))
        bias = word_fit(question, things)[:, which].transpose(0, 1)[:, :, None]
        bias = F.pad(bias * self.fit_scale[:, None], (LEVEL_TOKENS, 0))
        heads = [part.unflatten(-1, (HEADS, -1)) for part in (asked, self.key(tokens))]
        logits = torch.einsum("uqhd,uthd->uqht", *heads) * (WIDTH // HEADS) ** -0.5
        there = F.pad(users.log_presence(), (LEVEL_TOKENS, 0))[:, None, None]
        weight = (logits + bias + there).softmax(-1)
        value = self.value(tokens).unflatten(-1, (HEADS, -1))
        seen = torch.einsum("uqht,uthd->uqhd", weight, value).flatten(2)
        return self.state(asked + self.out(seen)), weight.mean(2)[:, :, LEVEL_TOKENS:]


def reading(
    users: Callable[[], Users],
    run=None,
    seeds: int = 1,
    *,
    bodies: Sequence[str] = BODIES,
    backbone: str = "smollm2",
    encoder: str = "minilm",
    steps: int | None = None,
    progress: StageProgress | None = None,
) -> dict:
    """Train a reader with each body on the same concepts, and judge it on the questions of the
    labels and on concepts.

    Bodies are A `pointing`, B `language_model`, C `random_weights` (the same shape, drawn at
    random) and D `one_layer`. B, C and D are trained as far as a language model can be in minutes;
    `same_budget` is A trained no further. Of each: `label_free` (prior and body, as it ranks),
    `prior` (F, without reading), `alone` (the body without the prior), `shuffled` (E, `alone` with
    all of another user), and `probe` with labels. The anchor of B, C and D starts from the evidence
    that the prior weighs, so there are three further controls: `tokens_shuffled` keeps the evidence
    and takes the tokens of another user, `evidence_shuffled` does the reverse, and `tokens_only`
    has no evidence (half of the users lack it in training, too). `concepts` is the AUC on users
    that were kept from training, by what was held out, beside the prior and persistence. `minus` is
    B minus each other body, with 95 % intervals over users. `run` is not looked at.
    """
    people = users()
    tokens = TokenReader(people, encoder).read()
    rows = {}
    scores = {}
    for name in bodies:
        for seed in range(seeds):
            task = make_concept_task(people, encoder, seed)
            tokens = tokens.with_associations(task.associations.of_all_users())
            start = time.monotonic()
            reader = _new_reader(name, task.encoded.vector.shape[1], backbone, seed)
            report = None if progress is None else partial(_report, progress, name)
            budget = POINTING_BUDGET if name == "pointing" else LANGUAGE_BUDGET
            train_reader(reader, task, steps, seed=seed, progress=report, budget=budget)
            seconds = time.monotonic() - start
            row, of_body = _judge(reader, tokens, people, encoder)
            for key, score in of_body.items():
                scores.setdefault((name, *key), []).append(score)
            row |= {"seconds": round(seconds, 1), "concepts": _concepts(reader, task, people)}
            rows.setdefault(name, []).append(row)
    return {
        "data": people.name,
        "users": len(people),
        "rows": {name: _mean(of_seeds) for name, of_seeds in rows.items()},
        "seeds": rows,
        "minus": {
            name: {kind: _minus(people, scores, kind, name) for kind in ("label_free", "alone")}
            for name in bodies
            if name != COMPARED and COMPARED in bodies
        },
    }


def _report(progress: StageProgress, name: str, stage: str, done: int, total: int) -> None:
    progress(f"{name}: {stage}", done, total)


def _new_reader(name: str, text: int, backbone: str, seed: int) -> PointingReader:
    """Return an untrained reader with the body of a name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("pointing", "same_budget"):
            return PointingReader(text)
        if name == "one_layer":
            return PointingReader(text, OneLayer(text))
        body = LateCrossing(backbone, text, random=name == "random_weights")
        return PointingReader(text, body)


def _judge(
    reader: PointingReader, tokens: UserTokens, people: Users, encoder: str
) -> tuple[dict, dict]:
    """Return average AUCs over the questions of the labels, and the label-free scores by task."""
    tasks = [task for task in people.labels.columns if DOMAINS.get(task) != "profile"]
    texts = [task_query(task, people.unit) for task in tasks]
    days = [people.horizon_days] * len(texts)
    question = question_input(texts, people.unit, encoder, days, people.horizon_days)
    question = reader.read_words(question, [replace_unit(text, people.unit) for text in texts])
    own = read_questions(reader, tokens, question)
    moved = tokens.select(shuffled_rows(len(tokens)))
    shuffled = read_questions(reader, moved, question)
    exchanged = _alone_exchanged(reader, tokens, question)
    found = []
    for column, task in enumerate(tasks):
        label = people.label(task).reindex(tokens.ids)
        known = label.notna().to_numpy()
        values = {
            "label_free": own.score,
            "prior": own.prior,
            "alone": own.alone,
            "shuffled": shuffled.alone,
            "tokens_shuffled": exchanged["tokens"],
            "evidence_shuffled": exchanged["evidence"],
            "tokens_only": exchanged["none"],
        }
        row = {
            name: roc_auc(score[known, column].numpy(), label[known].to_numpy())
            for name, score in values.items()
        }
        embedding = own.embedding[known, column].numpy()
        row["probe"] = linear_probe(embedding, label[known].astype(int), seed=0, seeds=2).auc
        found.append(row)
    kept = {
        (kind, task): score[:, column].numpy()
        for kind, score in (("label_free", own.score), ("alone", own.alone))
        for column, task in enumerate(tasks)
    }
    return {
        "average": pd.DataFrame(found).mean().to_dict(),
        "tasks": dict(zip(tasks, found, strict=True)),
    }, kept


@torch.no_grad()
def _alone_exchanged(
    reader: PointingReader, tokens: UserTokens, question: QuestionInput
) -> dict[str, Tensor]:
    """Return what the body says alone if its tokens are those of another user and the evidence that
    the anchor starts from is the user's own, the reverse, and without evidence.
    """
    things = thing_input(tokens)
    meaning = reader.meaning(question, things)
    others = shuffled_rows(len(tokens))
    found = {"tokens": [], "evidence": [], "none": []}
    for rows in row_batches(len(tokens)):
        users = [token_input(tokens, some) for some in (rows, others[rows])]
        known = [reader.known_numbers(some, meaning, things) for some in users]
        known = [(some - reader.known_mean) / reader.known_spread for some in known]
        known.append(torch.zeros_like(known[0]))
        for name, read, start in (("tokens", 1, 0), ("evidence", 0, 1), ("none", 0, 2)):
            standard = (users[read].numbers - reader.mean) / reader.spread
            state, _ = reader.body(users[read], standard, question, things, known[start])
            found[name].append(reader.alone(state)[..., 0] * reader.sign(question))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _concepts(reader: PointingReader, task: ConceptTask, people: Users) -> dict:
    """Return AUCs on concepts, by what was held out, for users kept from training."""
    n = min(MAX_JUDGED, len(task.questions))
    places = np.sort(np.random.default_rng(0).choice(len(task.questions), n, replace=False))
    frame = judged_questions(reader, select_questions(reader, task, places), people)
    return frame.groupby("split")[["auc", "prior", "persistence"]].mean().to_dict("index")


def _mean(rows: list[dict]) -> dict:
    """Return the mean over seeds of the average over tasks, of the seconds and of the concepts."""
    concepts = {
        split: pd.DataFrame([row["concepts"][split] for row in rows]).mean().round(4).to_dict()
        for split in rows[0]["concepts"]
    }
    average = pd.DataFrame([row["average"] for row in rows]).mean().round(4).to_dict()
    seconds = float(np.mean([row["seconds"] for row in rows]))
    return average | {"seconds": round(seconds, 1), "concepts": concepts}


def _minus(people: Users, scores: dict, kind: str, name: str) -> dict[str, float]:
    """Return by how much the average of the language model is above that of another body."""
    held = {
        (task, body): (np.array(of_seeds), np.zeros((len(of_seeds), len(people)), int))
        for (body, of_kind, task), of_seeds in scores.items()
        if of_kind == kind
    }
    return interval(people, held, COMPARED, minus=name)
