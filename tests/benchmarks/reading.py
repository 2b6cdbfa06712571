"""Does the language model read? `fit` with late crossing beside its controls, on one data set."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.evaluation.probe import linear_probe
from qanchor.models import language_body
from qanchor.models.backbone import load_backbone
from qanchor.models.crossing import CROSSING_LAYERS, FIT_SCALES, LateCrossing
from qanchor.models.language_body import LEVEL_TOKENS, EvidenceDropout, LanguageBody
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
from qanchor.models.prefix import UserPrefix
from qanchor.models.user_tokens import N_LEVEL_NUMBERS, N_TOKEN_NUMBERS, TokenReader, UserTokens
from qanchor.training.concept_task import ConceptTask, is_held_out, make_concept_task
from qanchor.training.reader import (
    LANGUAGE_BUDGET,
    POINTING_BUDGET,
    PREFIX_BUDGET,
    select_questions,
    train_reader,
)
from qanchor.training.teaching import make_taught_task
from qanchor.useru.concept_answers import graded_answers
from qanchor.utils.io import atomic_write
from qanchor.utils.types import StageProgress
from tests.benchmarks.concepts import concept_past, judged_questions, without_held_out
from tests.benchmarks.engines import shuffled_rows
from tests.benchmarks.task_scores import DOMAINS, task_query
from tests.benchmarks.tasks import interval

WIDTH = 576  # of SmolLM2
HEADS = 9
MAX_JUDGED = 400  # questions about concepts
COMPARED = "language_model"
BODIES = (
    "pointing",
    "same_budget",
    "one_layer",
    "random_weights",
    "language_model",
    "light_contrastive",
    "without_contrastive",
    "without_autoregressive",
    "ranking_only",
    "longer",
    "four_layers",
    "sixteen_layers",
    "dense_teaching",
    "prefix",
)
RANKING_BUDGET = replace(LANGUAGE_BUDGET, contrastive=0.0, autoregressive=0.0)
BUDGETS = {  # of all others, LANGUAGE_BUDGET
    "pointing": POINTING_BUDGET,
    "same_budget": RANKING_BUDGET,
    "language_model": replace(LANGUAGE_BUDGET, contrastive=1.0),
    "light_contrastive": LANGUAGE_BUDGET,
    "without_contrastive": replace(LANGUAGE_BUDGET, contrastive=0.0),
    "without_autoregressive": replace(LANGUAGE_BUDGET, autoregressive=0.0),
    "ranking_only": RANKING_BUDGET,
    "longer": replace(LANGUAGE_BUDGET, steps=3 * LANGUAGE_BUDGET.steps),
    "prefix": PREFIX_BUDGET,
    "one_layer": RANKING_BUDGET,
}
LAYERS = {"four_layers": 4, "sixteen_layers": 16}
MAX_WRITTEN = 40  # questions whose answers are written


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

    def forward(self, given):
        users, standard, question, things, known = given
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
    parts: Path | None = None,
    progress: StageProgress | None = None,
) -> dict:
    """Train a reader with each body on the same concepts, and judge it on the questions of the
    labels and on concepts.

    Bodies are A `pointing`, B `language_model` with the contrastive loss of the paper, C
    `random_weights` (the same shape, drawn at random) and D `one_layer`. B, C and D are trained as
    far as a language model can be in minutes; `same_budget` is A trained no further. Of each:
    `label_free` (prior and body, as it ranks), `prior` (F, without reading), `alone` (the body
    without the prior), `shuffled` (E, `alone` with all of another user), and `probe` with labels.
    The anchor of B, C and D starts from the evidence that the prior weighs, so there are three
    further controls: `tokens_shuffled` keeps the evidence and takes the tokens of another user,
    `evidence_shuffled` does the reverse, and `tokens_only` has no evidence (half of the users lack
    it in training, too). `concepts` is the AUC on users that were kept from training, by what was
    held out, beside the prior and persistence. `minus` is B minus each other body, with 95 %
    intervals over users. `run` is not looked at. B is trained with the ranking loss and the joint
    loss of answers; `prefix` is the paper's form, in which users run through all layers, so it is
    trained on fewer of them. `light_contrastive` has a tenth of the contrastive loss;
    `without_contrastive`, `without_autoregressive` and `ranking_only` leave losses out.
    In `dense_teaching`, which is what `fit` does, half of what the body is taught is the
    probability that A, trained before, gives each user. `longer` has three times the steps,
    `four_layers` and `sixteen_layers` as many crossing layers.
    `written` is how the answer that the language model writes agrees with what happened (rank
    correlation of the grades over users that were kept from training), beside the grade that its
    score and persistence alone give.

    What is found of each body and seed is kept in the folder `parts`, and not measured again.
    """
    people = users()
    rows = {}
    scores = {}
    for name in bodies:
        for seed in range(seeds):
            report = None if progress is None else partial(_report, progress, name)
            kept = None if parts is None else parts / f"{name}-{seed}.npz"
            if kept is None or not kept.exists():
                row, of_body = _measure(name, people, encoder, backbone, steps, seed, report)
                if kept is not None:
                    _keep(kept, row, of_body)
            else:
                row, of_body = _kept(kept)
            for key, score in of_body.items():
                scores.setdefault((name, *key), []).append(score)
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


def _measure(
    name: str,
    people: Users,
    encoder: str,
    backbone: str,
    steps: int | None,
    seed: int,
    progress: StageProgress | None,
) -> tuple[dict, dict]:
    """Train one body; return what is found of it, and its scores by kind and task."""
    tokens = TokenReader(people, encoder).read()
    task = make_concept_task(people, encoder, seed)
    tokens = tokens.with_associations(task.associations.of_all_users())
    reader = _new_reader(name, task.encoded.vector.shape[1], backbone, seed)
    budget = BUDGETS.get(name, LANGUAGE_BUDGET)
    start = time.monotonic()
    if name == "dense_teaching":
        task = make_taught_task(task, steps, seed, progress)
    train_reader(reader, task, steps, seed=seed, progress=progress, budget=budget)
    seconds = time.monotonic() - start
    row, of_body = _judge(reader, tokens, people, encoder)
    row |= {"seconds": round(seconds, 1), "concepts": _concepts(reader, task, people)}
    if isinstance(reader.body, LanguageBody):
        row["written"] = written_grades(reader, task)
    return row, of_body


def _keep(path: Path, row: dict, scores: dict) -> None:
    """Write what was found of one body."""
    arrays = {"/".join(key): score for key, score in scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    told = json.dumps(row, default=float)
    with BytesIO() as packed:
        np.savez(packed, row=told, **arrays)
        atomic_write(path, lambda part: part.write_bytes(packed.getvalue()))


def _kept(path: Path) -> tuple[dict, dict]:
    """Read what was found of one body."""
    with np.load(path) as arrays:
        scores = {tuple(key.split("/")): arrays[key] for key in arrays.files if key != "row"}
        return json.loads(str(arrays["row"])), scores


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
        if name == "prefix":
            return PointingReader(text, UserPrefix(backbone, text))
        loader = _load_random if name == "random_weights" else load_backbone
        with patch.object(language_body, "load_backbone", loader):
            body = LateCrossing(backbone, text, LAYERS.get(name, CROSSING_LAYERS))
        return PointingReader(text, body)


@torch.no_grad()
def _load_random(backbone: str) -> tuple:
    """Load a language model with random matrices; norm weights are 1 and biases 0."""
    model, tokenizer = load_backbone(backbone)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0, 0.02)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model, tokenizer


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
        known = label.notna().to_numpy(copy=True)
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
    for rows in row_batches(len(tokens), reader.users_per_pass):
        users = [token_input(tokens, some) for some in (rows, others[rows])]
        known = [reader.known_numbers(some, meaning, things) for some in users]
        known.append(reader.known_mean.expand_as(known[0]))
        for name, read, start in (("tokens", 1, 0), ("evidence", 0, 1), ("none", 0, 2)):
            state, _ = reader.body(reader.body_input(users[read], question, things, known[start]))
            found[name].append(reader.alone(state)[..., 0] * reader.sign(question))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _concepts(reader: PointingReader, task: ConceptTask, people: Users) -> dict:
    """Return AUCs on concepts, by what was held out, for users kept from training."""
    n = min(MAX_JUDGED, len(task.questions))
    places = np.sort(np.random.default_rng(0).choice(len(task.questions), n, replace=False))
    frame = judged_questions(reader, select_questions(reader, task, places), people)
    return frame.groupby("split")[["auc", "prior", "persistence"]].mean().to_dict("index")


def written_grades(reader: PointingReader, task: ConceptTask) -> dict[str, dict[str, float]]:
    """Return rank correlations of grades with what happened to users kept from training, mean over
    questions, for concepts that were trained on and for others.

    Args:
        reader: Reader whose body is a `LateCrossing`.
        task: What it was trained on.

    Returns:
        For each split `written` (the grade of the answer that is written), `score` and
        `persistence` (users in the order of the score, or of how often it happened before, with as
        many users of each grade as among those trained on), and `questions`.
    """
    sample = task.samples[0]
    kept = np.array([is_held_out(user) for user in sample.tokens.ids])
    rows = np.flatnonzero(kept)
    past = concept_past(sample.events, task.concepts, sample.rows[rows], sample.cutoff)
    judged = _graded_questions(task, rows)
    asked = select_questions(reader, task, judged)
    users = token_input(sample.tokens, rows)
    unseen = without_held_out(sample.tokens, task.concepts)
    things_of = {"train": thing_input(sample.tokens), "held_out": thing_input(unseen)}
    found = []
    for place, question in enumerate(asked.questions):
        wording = question.wording
        split = task.concepts[question.concept].split
        things = things_of[split]
        grades = sample.grades[question.days][:, question.concept]
        known = grades[rows] >= 0
        true = grades[rows][known]
        trained = grades[~kept & (grades >= 0)]
        answers = graded_answers(wording.measure, wording.sign)
        one = asked.encoded.at([place])
        with torch.inference_mode():
            written = reader.score_answers(users, one, things, wording.query, answers)
            score = reader(users, one, things).score[:, 0].numpy() * wording.sign
        chosen = {
            "written": written.argmax(1).numpy()[known],
            "score": _grades_in_order(score[known], trained),
            "persistence": _grades_in_order(past[known, question.concept], trained),
        }
        row = {name: _rank_correlation(grade, true) for name, grade in chosen.items()}
        found.append(row | {"split": split})
    groups = pd.DataFrame(found).groupby("split")
    table = groups.mean().assign(questions=groups.size())
    return table.round(4).to_dict("index")


def _graded_questions(task: ConceptTask, rows: np.ndarray) -> np.ndarray:
    """Return places of questions of which some users have different grades, half of them about
    concepts that were held out.
    """
    rng = np.random.default_rng(0)
    grades = task.grades(task.samples[0], rows, np.arange(len(task.questions)))
    differs = np.array([len(np.unique(column[column >= 0])) > 1 for column in grades.T])
    splits = np.array([task.concepts[question.concept].split for question in task.questions])
    chosen = []
    for split in ("train", "held_out"):
        places = np.flatnonzero(differs & (splits == split))
        n = min(MAX_WRITTEN // 2, len(places))
        chosen.append(rng.choice(places, n, replace=False))
    return np.sort(np.concatenate(chosen))


def _grades_in_order(score: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Return grades that rise with a score, as frequent as those of users that were trained on."""
    rank = rankdata(score) / (len(score) + 1)
    return np.quantile(trained, rank, method="inverted_cdf")


def _rank_correlation(grade: np.ndarray, true: np.ndarray) -> float:
    """Return Spearman's correlation; 0 if all users have the same grade."""
    if len(np.unique(grade)) < 2 or len(np.unique(true)) < 2:
        return 0.0
    return float(spearmanr(grade, true).statistic)


def _mean(rows: list[dict]) -> dict:
    """Return the mean over seeds of the average over tasks, of the seconds, and of concepts and
    written answers by split.
    """
    by_split = {
        kind: {
            split: pd.DataFrame([row[kind][split] for row in rows]).mean().round(4).to_dict()
            for split in rows[0][kind]
        }
        for kind in ("concepts", "written")
        if kind in rows[0]
    }
    average = pd.DataFrame([row["average"] for row in rows]).mean().round(4).to_dict()
    seconds = float(np.mean([row["seconds"] for row in rows]))
    return average | {"seconds": round(seconds, 1)} | by_split


def _minus(people: Users, scores: dict, kind: str, name: str) -> dict[str, float]:
    """Return by how much the average of the language model is above that of another body."""
    held = {
        (task, body): (np.array(of_seeds), np.zeros((len(of_seeds), len(people)), int))
        for (body, of_kind, task), of_seeds in scores.items()
        if of_kind == kind
    }
    return interval(people, held, COMPARED, minus=name)
