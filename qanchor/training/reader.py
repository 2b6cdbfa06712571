"""Train the pointing reader on concepts of the users' own past: about a minute on a laptop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qanchor.models.pointing import (
    PRIOR_KINDS,
    PROFILE_DIM,
    PROFILE_SCALE,
    PointingReader,
    TokenInput,
    is_pretrained,
    mean_text,
    read_questions,
    row_batches,
    thing_input,
    token_input,
)
from qanchor.models.user_tokens import MAX_TOKENS
from qanchor.training.answers import AnsweredUsers, answer_losses, fit_answers
from qanchor.training.checkpoint import Checkpoint, fingerprint
from qanchor.training.concept_task import (
    MAX_QUESTIONS,
    ConceptTask,
    Rows,
    Sample,
    decides_share,
    is_held_out,
    training_questions,
)
from qanchor.useru.concepts import MEASURES, Concept
from qanchor.utils.types import StageProgress

FITTED_USERS = 96  # users per draw when the prior and the scales are fitted
QUESTIONS_PER_STEP = 16
MIN_QUESTIONS = 64  # encoded by a language model
ANSWERED_USERS = 12  # users per step in the joint loss of answers
ANSWERED_QUESTIONS = 4  # questions per step in the joint loss of answers
ANSWER_DRAWS = 10  # batches of users and questions that written answers are fitted on
ANSWER_STEPS = 200
WEIGHT_DECAY = 0.02
MAX_GRAD_NORM = 1.0
SENSE_STEPS = 500
SENSE_DECAY = 1.0  # weight decay of the polarity
SENSE_BATCH = (96, 72, 144)  # questions of each group in a step
PRIOR_DRAWS = 12  # batches of users and questions that the prior of a measure is fitted on
MAX_PAIRS = 48  # pairs of users per question that the prior is fitted on
PRIOR_C = 0.01  # inverse regularization strength of the prior
LEAST_SPREAD = 0.5  # minimum spread of an input for one measure, relative to that for all
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # candidates for the weight of the body
DEFAULT_SHARE = 0.5  # if too few users can decide
MIN_JUDGES = 20  # users that can decide
ALONE_WEIGHT = 0.5  # of the loss of the body without the prior
JUDGED_AT_ONCE = 25  # questions per pass
AVERAGE_DECAY = 0.98  # of the moving average of the weights
AVERAGE_FROM = 0.5  # share of the steps after which weights are averaged
CHECKPOINT_STEPS = 10  # between two checkpoints
LOSSES = ("ranking", "contrastive", "autoregressive")


@dataclass(frozen=True)
class Budget:
    """Training budget of a reader.

    Args:
        steps: Number of training steps.
        users: Users per step.
        tokens: Number of tokens of each user in training, the first ones; inference uses all.
        questions: Maximum number of distinct questions about concepts.
        learning_rate: Peak learning rate.
        trains_prior: Whether the steps also train the prior, which is fitted before them.
        contrastive: Weight of the contrastive loss between users and answers, which needs a
            `LanguageBody` (default 0: off).
        autoregressive: Weight of the autoregressive loss of answers, likewise (default 0: off).
        judged: Number of questions for choosing the weight of the body (default 200).
        scaled: Number of questions for fitting the scale of the state (default 64).
    """

    steps: int
    users: int
    tokens: int
    questions: int
    learning_rate: float
    trains_prior: bool
    contrastive: float = 0.0
    autoregressive: float = 0.0
    judged: int = 200
    scaled: int = 64


POINTING_BUDGET = Budget(
    steps=240,
    users=96,
    tokens=MAX_TOKENS,
    questions=MAX_QUESTIONS,
    learning_rate=2e-3,
    trains_prior=True,
)
# what a language model can do on a laptop within minutes
LANGUAGE_BUDGET = Budget(
    steps=120,
    users=64,
    tokens=96,
    questions=512,
    learning_rate=1e-3,
    trains_prior=False,
    contrastive=0.1,  # with the paper's 1, the body ranks worse (benchmark `reading`)
    autoregressive=1.0,
)


# smaller, since the user's tokens and each question run through all layers
PREFIX_BUDGET = replace(LANGUAGE_BUDGET, users=12, tokens=64, questions=256, judged=50, scaled=8)


def train_reader(
    reader: PointingReader,
    task: ConceptTask,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    progress: StageProgress | None = None,
    budget: Budget | None = None,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Train the reader on concepts, without the held-out users, concepts and wordings.

    Args:
        reader: Reader to train in place.
        task: Training data, from `make_concept_task`.
        steps: Number of steps (default: that of the budget).
        minutes: Stop after this many minutes of steps (default: no limit).
        seed: Seed of the sampling (default 0).
        progress: Called with (stage, done, total) (default: none).
        budget: Training budget (default: that of the kind of reader).
        checkpoint: File to save checkpoints to and resume from (default: none).

    Returns:
        One row per step: step, loss, ranking, contrastive and autoregressive (NaN if unused).

    Raises:
        ValueError: `steps` is below 1.
        CheckpointError: The checkpoint belongs to another training run, or is damaged.
    """
    budget = _budget(reader, budget, steps)
    progress = progress or (lambda *_: None)
    rng = np.random.default_rng(seed)
    with reader.threads():
        _fit_scale(reader, task)
        questions, weights = training_questions(task)
        fit_sense(reader, task, questions, seed)
        _fit_prior(reader, _Batches(task, questions, weights, _trains_prior, rng))
        if reader.has_language_model or budget.questions < len(questions):
            progress("reading questions", 0, 1)
            n = min(budget.questions, len(questions))
            chosen = rng.choice(questions, n, replace=False, p=weights)
            task = select_questions(reader, task, chosen)
            questions = np.arange(n)
            weights = np.full(n, 1 / n)
            progress("reading questions", 1, 1)
        batches = _Batches(task, questions, weights, _trains_body, rng)
        training = _Training(reader, batches, budget, seed)
        training.run(minutes, progress, checkpoint)
        _fit_share(reader, task, _some(questions, budget.judged, rng))
        _fit_state_scale(reader, batches, _some(questions, budget.scaled, rng))
        _fit_profile(reader, task.samples[0], batches.users[0])
        if budget.autoregressive:
            _fit_answers(reader, batches, budget, progress)
    return pd.DataFrame(training.history)


def _budget(reader: PointingReader, budget: Budget | None, steps: int | None) -> Budget:
    """Return the training budget of a reader for a number of steps."""
    if budget is None and not reader.has_language_model:
        budget = POINTING_BUDGET
    elif budget is None:
        budget = PREFIX_BUDGET if reader.reads_prefix else LANGUAGE_BUDGET
    if steps is not None:
        budget = replace(budget, steps=steps)
        if reader.has_language_model:  # do not encode questions that would never be asked
            asked = max(QUESTIONS_PER_STEP * steps, MIN_QUESTIONS)
            budget = replace(budget, questions=min(budget.questions, asked))
    if budget.steps < 1:
        raise ValueError(f"steps is {budget.steps}. Pass 1 or more.")
    return budget


def select_questions(reader: PointingReader, task: ConceptTask, places: Rows) -> ConceptTask:
    """Return a task with some of its questions, encoded by the language model if there is one.

    Args:
        reader: Reader that the questions are for.
        task: Training data, from `make_concept_task`.
        places: Indices of the questions.
    """
    questions = tuple(task.questions[place] for place in places)
    words = [question.wording.query for question in questions]
    encoded = reader.read_words(task.encoded.at(places), words)
    return replace(task, questions=questions, encoded=encoded)


def _some(rows: Rows, n: int, rng: np.random.Generator) -> Rows:
    """Return a random sample of at most `n` users or questions."""
    return rng.choice(rows, min(n, len(rows)), replace=False)


# -- batches --


def _trains_prior(user: str) -> bool:
    return not is_held_out(user)


def _trains_body(user: str) -> bool:
    return not (is_held_out(user) or decides_share(user))


class _Batch(NamedTuple):
    """Users and questions. `ConceptTask` has the answers: `task.targets(*batch)`."""

    sample: Sample
    rows: Rows  # row numbers of the users in the sample
    asked: Rows  # indices of the questions


class _Batches:
    """Draw batches of users and questions.

    Late cut-offs are drawn more often, since their histories are about as long as at inference.
    """

    def __init__(
        self,
        task: ConceptTask,
        questions: Rows,
        weights: np.ndarray,
        is_drawn: Callable[[str], bool],
        rng: np.random.Generator,
    ):
        self.task = task
        self.things = thing_input(task.samples[0].tokens)  # the same in all samples
        self.questions = questions
        self.weights = weights
        self.users = [
            np.flatnonzero([is_drawn(user) for user in sample.tokens.ids])
            for sample in task.samples
        ]
        self.rng = rng
        lateness = np.array([sample.horizons_ago**-2.0 for sample in task.samples])
        self.lateness = lateness / lateness.sum()

    def draw(self, only: np.ndarray | slice = slice(None), n_users: int = FITTED_USERS) -> _Batch:
        """Return random users of one sample, and random questions.

        Args:
            only: Mask or slice of the questions that may be drawn (default: all).
            n_users: Number of users to draw (default 96).
        """
        place = self.rng.choice(len(self.users), p=self.lateness)
        rows = _some(self.users[place], n_users, self.rng)
        n_questions = min(QUESTIONS_PER_STEP, len(self.questions))
        weights = self.weights[only]
        asked = self.rng.choice(self.questions[only], n_questions, p=weights / weights.sum())
        return _Batch(self.task.samples[place], rows, asked)

    def answered(self, reader: PointingReader, batch: _Batch, n_tokens: int) -> AnsweredUsers:
        """Return the anchors of a batch with the true answers."""
        question = self.task.encoded.at(batch.asked)
        anchor = reader.anchor(_first_tokens(batch, n_tokens), question, self.things)
        wordings = self.task.wordings(batch.asked)
        return AnsweredUsers(anchor, question, wordings, self.task.grades(*batch))


def _first_tokens(batch: _Batch, n: int) -> TokenInput:
    """Return `n` tokens per user: those other than texts, then the most distinctive texts."""
    users = token_input(batch.sample.tokens, batch.rows)
    return users._replace(which=users.which[:, :n], numbers=users.numbers[:, :n])


# -- training steps --


class _Training:
    """Run training steps, with weight averaging, and save or restore all that they depend on."""

    def __init__(self, reader: PointingReader, batches: _Batches, budget: Budget, seed: int):
        self.reader = reader.train()
        self.batches = batches
        self.budget = budget
        self.seed = seed
        self.answer_rng = np.random.default_rng(seed)
        self.parameters = _trained_weights(reader, budget)
        # running statistics, which steps change as well
        self.buffers = [part for name, part in reader.named_buffers() if not is_pretrained(name)]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=budget.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, budget.learning_rate, total_steps=budget.steps
        )
        self.update_average = torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY)
        self.average: list[Tensor] = []
        self.history: list[dict] = []

    def run(self, minutes: float | None, progress: StageProgress, path: Path | None) -> None:
        """Take the steps of the budget, then set the weights to their average."""
        budget = self.budget
        started = time.monotonic()
        checkpoint = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if path is not None:
                checkpoint = Checkpoint(path, self.fingerprint())
                saved = checkpoint.read()
                if saved:
                    self.restore(saved)
            while len(self.history) < budget.steps:
                self.step()
                done = len(self.history)
                progress("training the reader", done, budget.steps)
                if checkpoint and (done % CHECKPOINT_STEPS == 0 or done == budget.steps):
                    checkpoint.write(self.state())
                if minutes and time.monotonic() - started > 60 * minutes:
                    break
        with torch.no_grad():
            for weight, mean in zip(self.parameters, self.average or self.parameters, strict=True):
                weight.copy_(mean)
        self.reader.eval().requires_grad_(False)
        self.reader.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take an optimizer step on the sum of the losses."""
        losses = self.losses()
        loss = sum(losses.values())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        step = len(self.history)
        if step + 1 < self.budget.steps:
            self.schedule.step()
        if self.average:
            self.update_average(self.average, self.parameters, step)
        elif step >= AVERAGE_FROM * self.budget.steps:
            self.average = [weight.detach().clone() for weight in self.parameters]
        row = {"step": step + 1, "loss": loss.item()} | dict.fromkeys(LOSSES, math.nan)
        self.history.append(row | {name: value.item() for name, value in losses.items()})

    def losses(self) -> dict[str, Tensor]:
        """Return the losses of the next step by name."""
        task = self.batches.task
        batch = self.batches.draw(n_users=self.budget.users)
        tokens = _first_tokens(batch, self.budget.tokens)
        reading = self.reader(tokens, task.encoded.at(batch.asked), self.batches.things)
        target = task.body_targets(*batch)
        ranking = ranking_loss(reading.score, target)
        alone = ranking_loss(reading.alone, target)
        return {"ranking": ranking + ALONE_WEIGHT * alone} | self.answer_losses(batch)

    def answer_losses(self, batch: _Batch) -> dict[str, Tensor]:
        """Return the weighted losses of answers by name.

        Losses of weight 0 are left out, so that unused weights have no gradient instead of a zero
        one. If fewer than two answers are known, there are no losses.
        """
        contrastive = self.budget.contrastive
        autoregressive = self.budget.autoregressive
        if not (contrastive or autoregressive):
            return {}
        asked = np.array(list(dict.fromkeys(batch.asked))[:ANSWERED_QUESTIONS])
        batch = _Batch(batch.sample, batch.rows[:ANSWERED_USERS], asked)
        if (self.batches.task.grades(*batch) >= 0).sum() < 2:
            return {}
        answered = self.batches.answered(self.reader, batch, self.budget.tokens)
        losses = answer_losses(self.reader, answered, self.answer_rng)
        named = {}
        if contrastive:
            named["contrastive"] = contrastive * losses[0]
        if autoregressive:
            named["autoregressive"] = autoregressive * losses[1]
        return named

    def fingerprint(self) -> str:
        """Return a fingerprint of the training run: settings, data and initial weights."""
        task = self.batches.task
        settings = {
            "budget": asdict(self.budget),
            "seed": self.seed,
            "questions": [question.wording.query for question in task.questions],
            "cutoffs": [str(sample.cutoff) for sample in task.samples],
        }
        arrays = [task.encoded.vector.numpy()]
        for sample in task.samples:
            arrays += [sample.tokens.numbers, *sample.truth.values()]
        for name, weight in self.reader.named_parameters():
            if weight.requires_grad or is_pretrained(name):
                first = weight.detach().flatten()[:64]  # enough to tell models apart
                arrays.append(first.cpu().numpy())
        return fingerprint(settings, arrays)

    def state(self) -> dict:
        """Return all that the next steps depend on, for a checkpoint."""
        return {
            "history": self.history,
            "weights": [weight.detach() for weight in self.parameters],
            "average": self.average,
            "buffers": self.buffers,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_random": torch.get_rng_state(),
            "random": self.batches.rng.bit_generator.state,
            "answer_random": self.answer_rng.bit_generator.state,
        }

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        """Resume from the state of a checkpoint."""
        self.history = state["history"]
        for weight, saved in zip(self.parameters, state["weights"], strict=True):
            weight.copy_(saved)
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
        for weight, mean in zip(self.parameters, state["average"], strict=False):
            self.average.append(mean.to(weight.device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["torch_random"])
        self.batches.rng.bit_generator.state = state["random"]
        self.answer_rng.bit_generator.state = state["answer_random"]


def _trained_weights(reader: PointingReader, budget: Budget) -> list[nn.Parameter]:
    """Return the weights to train, and freeze all others."""
    parts = ("body.", "out.", "alone.", "prior.")
    if not budget.trains_prior:
        parts = parts[:-1]
    for name, weight in reader.named_parameters():
        is_trained = name.startswith(parts) and name != "body.tell.weight"
        weight.requires_grad_(is_trained and not is_pretrained(name))
    return [weight for weight in reader.parameters() if weight.requires_grad]


def ranking_loss(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean logistic loss over pairs of users with a yes and a no to the same question.

    Args:
        score: Scores, (user, question).
        target: Answers, (user, question): 1 or 0, or the probability of a yes, which weights the
            pairs; NaN for unknown.
    """
    yes = target.nan_to_num(0)
    no = (1 - target).nan_to_num(0)
    difference = score[:, None] - score[None]  # (user of the yes, user of the no, question)
    pairs = yes[:, None] * no[None]
    loss = (F.softplus(-difference) * pairs).sum((0, 1)) / pairs.sum((0, 1)).clamp(min=1)
    weight = torch.minimum(yes.sum(0), no.sum(0)).sqrt()
    return (loss * weight).sum() / weight.sum().clamp(min=1)


# -- fits before the training steps --


def _fit_scale(reader: PointingReader, task: ConceptTask) -> None:
    """Fit mean and standard deviation of the token numbers."""
    numbers = [sample.tokens.numbers[sample.tokens.which >= 0] for sample in task.samples]
    _fit_moments(reader.mean, reader.spread, np.concatenate(numbers))


def _fit_moments(mean: Tensor, spread: Tensor, values: np.ndarray) -> None:
    """Set two buffers to the mean and the standard deviation of the rows."""
    mean.copy_(torch.from_numpy(values.mean(0)))
    spread.copy_(torch.from_numpy(values.std(0) + 1e-2))


def fit_sense(reader: PointingReader, task: ConceptTask, questions: Rows, seed: int) -> None:
    """Fit the classifiers of a question's sign and measure, on wordings with known ones.

    Args:
        reader: Reader whose `polarity` and `intent` are fitted in place.
        task: Training data with questions and topics.
        questions: Indices of the questions, from `training_questions`.
        seed: Seed of the sampling.
    """
    taught = [*task.wordings(questions), *task.topics]
    affirms = torch.tensor([float(wording.sign > 0) for wording in taught])
    measures = torch.tensor([MEASURES.index(wording.measure) for wording in taught])
    reader.wording_mean.zero_()
    inputs = torch.cat([reader.wording(task.encoded.at(questions)), task.topic_wording])
    reader.wording_mean.copy_(inputs.mean(0))
    inputs -= reader.wording_mean
    # questions about these users, about staying and leaving, and about everyday topics, which must
    # not affect the sign
    n_own = len(questions)
    groups = np.split(np.arange(len(taught)), [n_own, n_own + task.n_behaviors])
    learned = [
        {"params": reader.polarity.parameters(), "weight_decay": SENSE_DECAY},
        {"params": reader.intent.parameters(), "weight_decay": WEIGHT_DECAY},
    ]
    optimizer = torch.optim.AdamW(learned, lr=5e-3)
    rng = np.random.default_rng(seed)
    for _ in range(SENSE_STEPS):
        drawn = map(rng.choice, groups, SENSE_BATCH)
        batch = np.concatenate(list(drawn))
        logit = 2 * reader.polarity(inputs[batch])[:, 0]
        sign_loss = F.binary_cross_entropy_with_logits(logit, affirms[batch])
        measure_loss = F.cross_entropy(reader.intent(inputs[batch]), measures[batch])
        loss = sign_loss + measure_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class _PriorData(NamedTuple):
    """Training data of one output of the prior."""

    inputs: np.ndarray  # of all users and questions, (row, input)
    differences: np.ndarray  # between users with a yes and users with a no, (pair, input)


@torch.no_grad()
def _fit_prior(reader: PointingReader, batches: _Batches) -> None:
    """Fit the prior of each measure before all other training: a logistic regression on user pairs.

    Its inputs are persistence, recency, activity and associations.
    """
    task = batches.task
    concepts = [task.concepts[task.questions[place].concept] for place in batches.questions]
    outputs = np.array([_prior_output(concept) for concept in concepts])
    data = {}
    for output in np.unique(outputs):
        drawn = _draw_prior(reader, batches, outputs == output)
        if len(drawn.differences):
            data[output] = drawn
    if not data:
        return
    everything = np.concatenate([drawn.inputs for drawn in data.values()])
    spread = everything.std(0)
    for output, (inputs, differences) in data.items():
        # an input that hardly varies here gets no large weight, since it may vary for other things
        scale = np.maximum(inputs.std(0), LEAST_SPREAD * spread) + 1e-3
        weight = _pair_regression(differences / scale) / scale
        reader.prior.weight[output] = torch.from_numpy(weight)
        reader.prior.bias[output] = -float(inputs.mean(0) @ weight)
    _share_prior(reader.prior)
    _fit_moments(reader.known_mean, reader.known_spread, everything)


def _prior_output(concept: Concept) -> int:
    """Return the output of the prior that belongs to a concept."""
    kind = "event"
    if not concept.things:
        kind = "any event"
    elif concept.family == "number":
        kind = "number"
    return PRIOR_KINDS.index(kind) * len(MEASURES) + MEASURES.index(concept.measure)


def _draw_prior(reader: PointingReader, batches: _Batches, only: np.ndarray) -> _PriorData:
    """Draw batches with some of the questions, and pairs of users with a yes and a no.

    Comparing users within a question removes the base rates of questions.
    """
    known = []
    truth = []
    for _ in range(PRIOR_DRAWS):
        batch = batches.draw(only)
        users = token_input(batch.sample.tokens, batch.rows)
        meaning = reader.meaning(batches.task.encoded.at(batch.asked), batches.things)
        known.append(reader.known_numbers(users, meaning, batches.things).numpy())
        truth.append(batches.task.truth(*batch))
    n_inputs = known[0].shape[-1]
    differences = [np.empty((0, n_inputs))]
    for numbers, answers in zip(known, truth, strict=True):
        for column, answer in enumerate(answers.T):
            yes = np.flatnonzero(answer == 1)
            no = np.flatnonzero(answer == 0)
            n = min(2 * len(yes), 2 * len(no), MAX_PAIRS)
            if n:
                one = numbers[batches.rng.choice(yes, n), column]
                other = numbers[batches.rng.choice(no, n), column]
                differences.append(one - other)
    inputs = np.concatenate([numbers.reshape(-1, n_inputs) for numbers in known])
    return _PriorData(inputs, np.concatenate(differences))


def _pair_regression(differences: np.ndarray) -> np.ndarray:
    """Return the weights of a logistic regression that orders pairs of users."""
    from sklearn.linear_model import LogisticRegression

    # flip every other pair, so that there are two classes
    flip = np.where(np.arange(len(differences)) % 2, -1, 1)
    model = LogisticRegression(C=PRIOR_C, fit_intercept=False, max_iter=300)
    return model.fit(differences * flip[:, None], flip).coef_[0]


def _share_prior(prior: nn.Linear) -> None:
    """Copy a measure that was not fitted for a kind from the first kind that it was fitted for."""
    weight = prior.weight.view(len(PRIOR_KINDS), len(MEASURES), -1)
    bias = prior.bias.view(len(PRIOR_KINDS), len(MEASURES))
    is_fitted = weight.any(-1)
    for kind, measure in (~is_fitted).nonzero().tolist():
        first = int(is_fitted[:, measure].int().argmax())
        weight[kind, measure] = weight[first, measure]
        bias[kind, measure] = bias[first, measure]


# -- fits after the training steps --


@torch.no_grad()
def _fit_share(reader: PointingReader, task: ConceptTask, asked: Rows) -> None:
    """Choose the weight of the body relative to the prior, on users the body was not trained on.

    If the body does not generalize, its weight becomes 0.
    """
    sample = task.samples[0]
    judges = np.flatnonzero([decides_share(user) for user in sample.tokens.ids])
    share = DEFAULT_SHARE
    if len(judges) >= MIN_JUDGES:
        tokens = sample.tokens.select(judges)
        target = task.targets(sample, judges, asked)
        priors = []
        scores = []
        for part in row_batches(len(asked), JUDGED_AT_ONCE):
            reading = read_questions(reader, tokens, task.encoded.at(asked[part]))
            priors.append(reading.prior)
            scores.append(reading.score)
        prior = torch.cat(priors, 1)
        learned = torch.cat(scores, 1) - prior
        losses = [float(ranking_loss(prior + share * learned, target)) for share in SHARES]
        share = SHARES[int(np.argmin(losses))]
    reader.out.weight.mul_(share)
    reader.out.bias.mul_(share)


@torch.no_grad()
def _fit_state_scale(reader: PointingReader, batches: _Batches, asked: Rows) -> None:
    """Fit mean and standard deviation of the state, so that embeddings use all its dimensions."""
    question = batches.task.encoded.at(asked)
    things = batches.things
    meaning = reader.meaning(question, things)
    states = []
    for sample, rows in zip(batches.task.samples, batches.users, strict=True):
        users = token_input(sample.tokens, _some(rows, FITTED_USERS, batches.rng))
        known = reader.known_numbers(users, meaning, things)
        state, _ = reader.body(reader.body_input(users, question, things, known))
        states.append(state.flatten(0, 1))
    states = torch.cat(states)
    reader.state_mean.copy_(states.mean(0))
    reader.state_spread.copy_(states.std(0) + 1e-2)


@torch.no_grad()
def _fit_profile(reader: PointingReader, sample: Sample, rows: Rows) -> None:
    """Fit the principal directions of the mean text vectors of users."""
    texts = mean_text(token_input(sample.tokens, rows), thing_input(sample.tokens))
    mean = texts.mean(0)
    directions = torch.linalg.svd(texts - mean, full_matrices=False).Vh[:PROFILE_DIM].T
    length = ((texts - mean) @ directions).norm(dim=1).mean()
    directions = PROFILE_SCALE * directions / length.clamp(min=1e-9)
    reader.profile_mean.copy_(mean)
    reader.profile_directions[:, : directions.shape[1]] = directions


def _fit_answers(
    reader: PointingReader, batches: _Batches, budget: Budget, progress: StageProgress
) -> None:
    """Fit the extra input of written answers (`fit_answers`), on anchors that are computed once."""
    answered = []
    for _ in range(ANSWER_DRAWS):
        batch = batches.draw(n_users=budget.users)
        batch = batch._replace(asked=np.unique(batch.asked))
        if (batches.task.grades(*batch) >= 0).any():
            with torch.no_grad():
                answered.append(batches.answered(reader, batch, budget.tokens))
    if answered:
        report = partial(progress, "fitting written answers")
        fit_answers(reader, answered, min(ANSWER_STEPS, budget.steps), batches.rng, report)
