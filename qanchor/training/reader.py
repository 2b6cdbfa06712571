"""Train the pointing reader on concepts of the users' own past: about a minute on a laptop."""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.data.things import ThingEvents
from qanchor.data.users import MIN_TRAINING_USERS, Users, training_problem
from qanchor.models.associations import Associations
from qanchor.models.language_body import LanguageBody
from qanchor.models.pointing import (
    PRIOR_KINDS,
    PROFILE_DIM,
    PROFILE_SCALE,
    PointingReader,
    QuestionInput,
    TokenInput,
    is_pretrained,
    mean_text,
    question_input,
    read_questions,
    thing_input,
    token_input,
)
from qanchor.models.text_encoder import wording_vectors
from qanchor.models.user_tokens import MAX_TOKENS, TokenReader, UserTokens
from qanchor.training.answers import AnsweredUsers, answer_losses, fit_answers
from qanchor.training.associations import FOLDS, AssociationFit
from qanchor.training.checkpoint import Checkpoint, CheckpointState, fingerprint
from qanchor.useru.concept_answers import concept_grades
from qanchor.useru.concepts import (
    FAMILIES,
    MAX_SHARE,
    MEASURES,
    MIN_SHARE,
    Concept,
    Outcomes,
    Wording,
    behavior_wordings,
    induce_concepts,
    topic_wordings,
    wordings,
)
from qanchor.utils.text import count
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
CUTOFF_HORIZONS = (1, 1.33, 1.67, 2, 2.5, 3)  # cut-offs before the users' own, in horizons
HELD_OUT_USERS = 10  # 1 user in 10 is held out of all training; another 1 in 10 chooses the share
FAMILY_WEIGHTS = {  # relative frequency of questions about each family
    "text": 1.0,
    "cluster": 0.4,
    "topic": 0.4,
    "modality": 0.2,
    "number": 0.4,
    "time": 0.1,
    "behavior": 0.4,
}
DENIED_SHARE = 0.25  # share of negated questions in each family
SENSE_STEPS = 500
SENSE_DECAY = 1.0  # weight decay of the polarity
SENSE_BATCH = (96, 72, 144)  # questions of each group in a step
MAX_QUESTIONS = 1500  # about texts, modalities, numbers and times
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
CHECKPOINT_STEPS = 10  # between two checkpoints
LOSSES = ("ranking", "contrastive", "autoregressive")
AVERAGE_FROM = 0.5  # share of the steps after which weights are averaged


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


def default_budget(reader: PointingReader) -> Budget:
    """Return the default training budget of a reader.

    Args:
        reader: The reader.
    """
    if not reader.has_language_model:
        return POINTING_BUDGET
    return PREFIX_BUDGET if reader.reads_prefix else LANGUAGE_BUDGET


@dataclass(frozen=True)
class Sample:
    """All users at one cut-off, with the truth of each concept afterwards."""

    cutoff: pd.Timestamp
    events: ThingEvents
    tokens: UserTokens
    rows: np.ndarray  # row numbers of the users in `Users.ids`
    truth: dict[int, np.ndarray]  # horizon in days -> (user, concept)
    grades: dict[int, np.ndarray]  # likewise, -1 for unknown
    horizons_ago: float  # time from the cut-off to the users' own, in horizons


@dataclass(frozen=True)
class Question:
    """A question about a concept."""

    concept: int  # index into `ConceptTask.concepts`
    wording: Wording
    days: int  # horizon that the answer is computed for


@dataclass(frozen=True)
class ConceptTask:
    """Training data of the reader: concepts, questions about them, and samples of users."""

    concepts: tuple[Concept, ...]
    questions: tuple[Question, ...]
    encoded: QuestionInput
    samples: tuple[Sample, ...]
    # independent of the data, to teach sign and measure only: `n_behaviors` questions about staying
    # and leaving, then questions about everyday topics
    topics: tuple[Wording, ...]
    n_behaviors: int
    topic_wording: Float[Tensor, "topic wording"]

    @property
    def associations(self) -> Associations:
        """Return the associations, with heads for each fold of users and for all users."""
        return self.samples[0].tokens.population.associations

    def targets(self, sample: Sample, rows: np.ndarray, asked: np.ndarray) -> Tensor:
        """Return the answers for some users and questions: 1 (yes), 0 (no) or NaN (unknown).

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        columns = []
        for place in asked:
            question = self.questions[place]
            truth = sample.truth[question.days][rows, question.concept]
            columns.append(truth if question.wording.sign > 0 else 1 - truth)
        return torch.from_numpy(np.stack(columns, 1)).float()

    def body_targets(self, sample: Sample, rows: np.ndarray, asked: np.ndarray) -> Tensor:
        """Return the training targets of the body: the answers. Subclasses may use probabilities.

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        return self.targets(sample, rows, asked)

    def grades(self, sample: Sample, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return the grade of the true answer for some users and questions; -1 for unknown.

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        questions = [self.questions[place] for place in asked]
        columns = [sample.grades[asked.days][rows, asked.concept] for asked in questions]
        return np.stack(columns, 1)


def is_held_out(user: str) -> bool:
    """Return whether a user is held out of all training, by hash of the id.

    Args:
        user: Id of the user.
    """
    return _hash(user) % HELD_OUT_USERS == 0


def decides_share(user: str) -> bool:
    """Return whether a user helps to choose the weight of the body, by hash of the id.

    The prior is trained on these users, the body is not.

    Args:
        user: Id of the user.
    """
    return _hash(user) % HELD_OUT_USERS == 1


def _fold(user: str) -> int:
    """Return the fold of a user, for associations; -1 if the user is held out."""
    # the last digit decides who is held out, so the fold must not depend on it
    return -1 if is_held_out(user) else _hash(user) // HELD_OUT_USERS % FOLDS


def _hash(user: str) -> int:
    return zlib.crc32(user.encode("utf-8", "surrogatepass"))


def training_cutoffs(users: Users) -> list[pd.Timestamp]:
    """Return past cut-offs, latest first, each at least one horizon before the users' own.

    Args:
        users: The users.

    Raises:
        ValueError: The history is shorter than one and a half horizons, or too few users have one.
    """
    problem = training_problem(users)
    if problem:
        raise ValueError(f"{users.name}: {problem}")
    start = users.events["time"].min()
    horizon = pd.Timedelta(days=users.horizon_days)
    cutoffs = [users.cutoff - horizon * share for share in CUTOFF_HORIZONS]
    return [cutoff for cutoff in cutoffs if cutoff - start >= horizon / 2]


def make_concept_task(users: Users, encoder: str, seed: int = 0) -> ConceptTask:
    """Induce concepts, make questions about them, and compute the true answers.

    Args:
        users: The users. Events at or after their cut-off are not read.
        encoder: Text encoder.
        seed: Seed of the wordings (default 0).

    Raises:
        ValueError: The history is too short, or too few users have one.
    """
    cutoffs = training_cutoffs(users)
    horizon = users.horizon_days
    horizons = sorted({horizon, max(1, horizon // 4)})
    first = TokenReader(users, encoder, until=min(cutoffs))
    topics = first.aliases.things_by_label(first.things)
    concepts = induce_concepts(first.events, first.vectors, min(cutoffs), topics)
    reader = TokenReader(users, encoder, until=max(cutoffs))
    samples = []
    fitted = None
    for cutoff in cutoffs:
        tokens = reader.read(cutoff)
        if len(tokens) < MIN_TRAINING_USERS:
            continue
        rows = pd.Index(users.ids).get_indexer(tokens.ids)
        outcomes = {days: Outcomes.of(reader.events, rows, cutoff, days) for days in horizons}
        truth = {days: outcomes[days].truth(reader.events, concepts) for days in horizons}
        grades = {
            days: concept_grades(outcomes[days], reader.events, concepts, truth[days])
            for days in horizons
        }
        fold = np.array([_fold(user) for user in tokens.ids])
        if fitted is None:
            fitted = AssociationFit(tokens, fold)
        fitted.add(tokens, fold, reader.events, outcomes[horizon])
        tokens = replace(tokens, fold=fold)
        ago = (users.cutoff - cutoff) / pd.Timedelta(days=horizon)
        samples.append(Sample(cutoff, reader.events, tokens, rows, truth, grades, ago))
    associations = fitted.solve()
    samples = [
        replace(sample, tokens=sample.tokens.with_associations(associations)) for sample in samples
    ]
    share = np.nanmean(np.concatenate([sample.truth[horizon] for sample in samples]), 0)
    asked_about = np.flatnonzero((share > MIN_SHARE) & (share < MAX_SHARE))
    rng = np.random.default_rng(seed)
    questions = [
        Question(int(concept), wording, _nearest_horizon(wording.days, horizons, horizon))
        for concept in asked_about
        for wording in wordings(concepts[concept], rng)
    ]
    if not questions:
        raise ValueError(
            f"Nothing differs among the {count(len(users), users.unit)} of {users.name} in the"
            f" {horizon} days after any past cut-off. Pass more users or another horizon_days."
        )
    questions = _at_most(questions, concepts, rng)
    encoded = question_input(
        [question.wording.query for question in questions],
        "user",
        encoder,
        [question.days for question in questions],
        horizon,
    )
    behaviors = [wording for wording in behavior_wordings(rng) if not wording.held_out]
    topics = [*behaviors, *topic_wordings(rng)]
    topic_wording = wording_vectors([topic.query for topic in topics], encoder)
    return ConceptTask(
        concepts,
        tuple(questions),
        encoded,
        tuple(samples),
        tuple(topics),
        len(behaviors),
        torch.from_numpy(topic_wording.astype(np.float32)),
    )


def _at_most(
    questions: list[Question], concepts: Sequence[Concept], rng: np.random.Generator
) -> list[Question]:
    """Return all questions about any event, and at most `MAX_QUESTIONS` of the others."""
    is_general = np.array([not concepts[question.concept].things for question in questions])
    others = np.flatnonzero(~is_general)
    if len(others) > MAX_QUESTIONS:  # encoding them all would take longer than training
        others = rng.choice(others, MAX_QUESTIONS, replace=False)
    places = np.union1d(np.flatnonzero(is_general), others)
    return [questions[place] for place in places]


def _nearest_horizon(days: int, horizons: Sequence[int], own: int) -> int:
    """Return the horizon nearest to the one that a wording names, or `own` if it names none."""
    if not days:
        return own
    return min(horizons, key=lambda horizon: abs(np.log(horizon / days)))


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
        budget: Training budget (default: `default_budget`).
        checkpoint: File to save checkpoints to and resume from (default: none).

    Returns:
        One row per step: step, loss, ranking, contrastive and autoregressive (NaN if unused).

    Raises:
        ValueError: `steps` is below 1, or the body does not support the losses of the budget.
        CheckpointError: The checkpoint belongs to another training run, or is damaged.
    """
    if budget is None:
        budget = default_budget(reader)
    if steps is not None:
        # do not encode questions that would never be asked
        asked = max(QUESTIONS_PER_STEP * steps, MIN_QUESTIONS)
        questions = min(budget.questions, asked) if reader.has_language_model else budget.questions
        budget = replace(budget, steps=steps, questions=questions)
    if budget.steps < 1:
        raise ValueError(f"steps is {budget.steps}. Pass 1 or more.")
    if (budget.contrastive or budget.autoregressive) and not isinstance(reader.body, LanguageBody):
        raise ValueError(
            f"contrastive is {budget.contrastive} and autoregressive {budget.autoregressive}, but"
            f" {type(reader.body).__name__} writes no answers. Set both to 0."
        )
    rng = np.random.default_rng(seed)
    with reader.threads():
        _fit_scale(reader, task)
        questions, weights = training_questions(task)
        fit_sense(reader, task, questions, seed)
        users = [_rows(sample, lambda user: not is_held_out(user)) for sample in task.samples]
        _fit_prior(reader, _Batches(task, questions, weights, users, rng))
        users = [
            _rows(sample, lambda user: not (is_held_out(user) or decides_share(user)))
            for sample in task.samples
        ]
        if reader.has_language_model or budget.questions < len(questions):
            task, questions, weights = _read_questions(
                reader, task, questions, weights, budget.questions, rng, progress
            )
        batches = _Batches(task, questions, weights, users, rng)
        history = _train(reader, batches, budget, minutes, seed, progress, checkpoint)
        _fit_share(reader, task, _some(questions, budget.judged, rng))
        _fit_state_scale(reader, task, _some(questions, budget.scaled, rng), users, rng)
        _fit_profile(reader, task.samples[0], users[0])
        if budget.autoregressive:
            _fit_answers(reader, batches, budget, progress)
    return pd.DataFrame(history)


def _train(
    reader: PointingReader,
    batches: _Batches,
    budget: Budget,
    minutes: float | None,
    seed: int,
    progress: StageProgress | None,
    checkpoint: Path | None,
) -> list[dict]:
    """Run the training steps, average the weights over the later ones, and return the losses."""
    reader.train()
    parameters = _trained_weights(reader, budget)
    buffers = [part for name, part in reader.named_buffers() if not is_pretrained(name)]
    steps = _Steps(parameters, buffers, budget, batches.rng, np.random.default_rng(seed))
    saved = None
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint is not None:
            saved = Checkpoint(checkpoint, _fingerprint(reader, batches, budget, seed))
            steps.restore(saved.read())
        while len(steps.history) < budget.steps:
            steps.take(_losses(reader, batches, budget, steps.answer_rng))
            done = len(steps.history)
            if progress:
                progress("training the reader", done, budget.steps)
            if saved is not None and (done % CHECKPOINT_STEPS == 0 or done == budget.steps):
                saved.write(*steps.state())
            if minutes and time.monotonic() - started > 60 * minutes:
                break
    with torch.no_grad():
        for weight, mean in zip(parameters, steps.average or parameters, strict=True):
            weight.copy_(mean)
    reader.eval().requires_grad_(False)
    reader.zero_grad(set_to_none=True)
    return steps.history


def _losses(
    reader: PointingReader, batches: _Batches, budget: Budget, answer_rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return the losses of the next step by name; their sum is minimized."""
    task = batches.task
    sample, rows, asked = batches.draw(n_users=budget.users)
    tokens = some_tokens(token_input(sample.tokens, rows), budget.tokens)
    reading = reader(tokens, task.encoded.at(asked), batches.things)
    target = task.body_targets(sample, rows, asked)
    ranking = ranking_loss(reading.score, target)
    losses = {"ranking": ranking + ALONE_WEIGHT * ranking_loss(reading.alone, target)}
    if budget.contrastive or budget.autoregressive:
        answered = np.array(list(dict.fromkeys(asked))[:ANSWERED_QUESTIONS])
        rows = rows[:ANSWERED_USERS]
        losses |= _answer_losses(reader, batches, budget, sample, rows, answered, answer_rng)
    return losses


class _Steps:
    """Take optimizer steps with weight averaging, and save or restore everything they depend on."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        buffers: list[Tensor],
        budget: Budget,
        rng: np.random.Generator,
        answer_rng: np.random.Generator,
    ):
        self.parameters = parameters
        self.buffers = buffers  # running statistics, which steps change as well
        self.budget = budget
        self.rng = rng
        self.answer_rng = answer_rng
        self.optimizer = torch.optim.AdamW(
            parameters, lr=budget.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, budget.learning_rate, total_steps=budget.steps
        )
        self.update_average = torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY)
        self.average: list[Tensor] = []
        self.history: list[dict] = []

    def take(self, losses: dict[str, Tensor]) -> None:
        """Take an optimizer step on the sum of the losses."""
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
        row = {"step": step + 1, "loss": loss.item()}
        for name in LOSSES:
            row[name] = losses[name].item() if name in losses else float("nan")
        self.history.append(row)

    def state(self) -> tuple[dict[str, Tensor], int, dict]:
        """Return the arguments of `Checkpoint.write`."""
        state = {"random": torch.get_rng_state()}
        for place, weight in enumerate(self.parameters):
            state[f"weight.{place}"] = weight.detach()
            moments = self.optimizer.state[weight]
            state |= {f"{name}.{place}": value for name, value in moments.items()}
        state |= {f"average.{place}": mean for place, mean in enumerate(self.average)}
        state |= {f"buffer.{place}": buffer for place, buffer in enumerate(self.buffers)}
        rngs = [rng.bit_generator.state for rng in (self.rng, self.answer_rng)]
        return state, len(self.history), {"history": self.history, "rngs": rngs}

    @torch.no_grad()
    def restore(self, saved: CheckpointState | None) -> None:
        """Resume from a checkpoint, if there is one."""
        if saved is None:
            return
        state = saved.state
        torch.set_rng_state(state["random"])
        for place, weight in enumerate(self.parameters):
            weight.copy_(state[f"weight.{place}"])
            self.optimizer.state[weight] = {
                "step": state[f"step.{place}"],
                "exp_avg": state[f"exp_avg.{place}"].to(weight.device),
                "exp_avg_sq": state[f"exp_avg_sq.{place}"].to(weight.device),
            }
        for place, buffer in enumerate(self.buffers):
            buffer.copy_(state[f"buffer.{place}"])
        if "average.0" in state:
            self.average = [
                state[f"average.{place}"].to(weight.device)
                for place, weight in enumerate(self.parameters)
            ]
        self.history = saved.about["history"]
        for rng, words in zip((self.rng, self.answer_rng), saved.about["rngs"], strict=True):
            rng.bit_generator.state = words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # schedule steps before optimizer steps
            for _ in range(min(saved.step, self.budget.steps - 1)):
                self.schedule.step()


def _fingerprint(reader: PointingReader, batches: _Batches, budget: Budget, seed: int) -> str:
    """Return a fingerprint of the training run: settings, data and initial weights."""
    task = batches.task
    words = [question.wording.query for question in task.questions]
    cutoffs = [str(sample.cutoff) for sample in task.samples]
    settings = {"budget": asdict(budget), "seed": seed, "questions": words, "cutoffs": cutoffs}
    arrays = [task.encoded.vector.numpy()]
    for sample in task.samples:
        arrays += [sample.tokens.numbers, *sample.truth.values()]
    for name, weight in reader.named_parameters():
        if weight.requires_grad or is_pretrained(name):
            arrays.append(
                weight.detach().flatten()[:64].cpu().numpy()
            )  # enough to tell models apart
    return fingerprint(settings, arrays)


def _answer_losses(
    reader: PointingReader,
    batches: _Batches,
    budget: Budget,
    sample: Sample,
    rows: np.ndarray,
    asked: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Return the weighted losses of answers by name; none if fewer than two answers are known."""
    task = batches.task
    grades = task.grades(sample, rows, asked)
    if (grades >= 0).sum() < 2:
        return {}
    contrastive, autoregressive = answer_losses(
        reader,
        some_tokens(token_input(sample.tokens, rows), budget.tokens),
        task.encoded.at(asked),
        batches.things,
        [task.questions[place].wording for place in asked],
        grades,
        rng,
    )
    losses = {
        "contrastive": budget.contrastive * contrastive,
        "autoregressive": budget.autoregressive * autoregressive,
    }
    # leave out losses of weight 0, so that unused weights have no gradient instead of a zero one
    return {name: loss for name, loss in losses.items() if getattr(budget, name)}


def _trained_weights(reader: PointingReader, budget: Budget) -> list[nn.Parameter]:
    """Return the weights to train, and freeze all others."""
    parts = ["body.", "out.", "alone."]
    if budget.trains_prior:
        parts.append("prior.")
    for name, weight in reader.named_parameters():
        is_trained = name.startswith(tuple(parts)) and name != "body.tell.weight"
        weight.requires_grad_(is_trained and not is_pretrained(name))
    return [weight for weight in reader.parameters() if weight.requires_grad]


def some_tokens(users: TokenInput, n: int) -> TokenInput:
    """Keep the first tokens of each user: those other than texts, then the most distinctive texts.

    Args:
        users: Tokens of the users.
        n: Number of tokens to keep per user.
    """
    return users._replace(which=users.which[:, :n], numbers=users.numbers[:, :n])


def _read_questions(
    reader: PointingReader,
    task: ConceptTask,
    questions: np.ndarray,
    weights: np.ndarray,
    limit: int,
    rng: np.random.Generator,
    progress: StageProgress | None,
) -> tuple[ConceptTask, np.ndarray, np.ndarray]:
    """Sample at most `limit` questions, and encode them with the language model if there is one.

    Returns:
        The task with these questions only, their indices, and their sampling weights.
    """
    if progress:
        progress("reading questions", 0, 1)
    n = min(limit, len(questions))
    chosen = rng.choice(len(questions), n, replace=False, p=weights)
    smaller = select_questions(reader, task, questions[chosen])
    if progress:
        progress("reading questions", 1, 1)
    return smaller, np.arange(n), np.full(n, 1 / n)


def select_questions(reader: PointingReader, task: ConceptTask, places: np.ndarray) -> ConceptTask:
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


def _some(questions: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random sample of at most `n` questions."""
    return rng.choice(questions, min(n, len(questions)), replace=False)


@torch.no_grad()
def _fit_share(reader: PointingReader, task: ConceptTask, asked: np.ndarray) -> None:
    """Choose the weight of the body relative to the prior, on users the body was not trained on.

    If the body does not generalize, its weight becomes 0.
    """
    sample = task.samples[0]
    judges = np.flatnonzero([decides_share(user) for user in sample.tokens.ids])
    target = task.targets(sample, judges, asked)
    encoded = task.encoded.at(asked)
    tokens = sample.tokens.select(judges)
    parts = np.split(np.arange(len(asked)), range(JUDGED_AT_ONCE, len(asked), JUDGED_AT_ONCE))
    read = [read_questions(reader, tokens, encoded.at(part)) for part in parts]
    prior = torch.cat([part.prior for part in read], 1)
    learned = torch.cat([part.score for part in read], 1) - prior
    losses = [float(ranking_loss(prior + share * learned, target)) for share in SHARES]
    share = SHARES[int(np.argmin(losses))] if len(judges) >= MIN_JUDGES else DEFAULT_SHARE
    reader.out.weight.mul_(share)
    reader.out.bias.mul_(share)


def _fit_scale(reader: PointingReader, task: ConceptTask) -> None:
    """Fit mean and standard deviation of the token numbers."""
    numbers = [sample.tokens.numbers[sample.tokens.which >= 0] for sample in task.samples]
    numbers = np.concatenate(numbers)
    reader.mean.copy_(torch.from_numpy(numbers.mean(0)))
    reader.spread.copy_(torch.from_numpy(numbers.std(0) + 1e-2))


class _Batches:
    """Draw batches of users and questions.

    Late cut-offs are drawn more often, since their histories are about as long as at inference.
    """

    def __init__(
        self,
        task: ConceptTask,
        questions: np.ndarray,
        weights: np.ndarray,
        users: list[np.ndarray],
        rng: np.random.Generator,
    ):
        self.task = task
        self.things = thing_input(task.samples[0].tokens)  # the same in all samples
        self.questions = questions
        self.weights = weights
        self.users = users
        self.rng = rng
        self.usable = [place for place, rows in enumerate(users) if len(rows)]
        lateness = np.array([task.samples[place].horizons_ago ** -2.0 for place in self.usable])
        self.lateness = lateness / lateness.sum()

    def draw(
        self, only: np.ndarray | slice = slice(None), n_users: int = FITTED_USERS
    ) -> tuple[Sample, np.ndarray, np.ndarray]:
        """Return a sample, row numbers of its users, and indices of questions.

        Args:
            only: Mask or slice of the questions that may be drawn (default: all).
            n_users: Number of users to draw (default 96).
        """
        place = int(self.rng.choice(self.usable, p=self.lateness))
        rows = self.users[place]
        rows = self.rng.choice(rows, min(n_users, len(rows)), replace=False)
        n_questions = min(QUESTIONS_PER_STEP, len(self.questions))
        weights = self.weights[only]
        asked = self.rng.choice(self.questions[only], n_questions, p=weights / weights.sum())
        return self.task.samples[place], rows, asked


@torch.no_grad()
def _fit_prior(reader: PointingReader, batches: _Batches) -> None:
    """Fit the prior of each measure before all other training: a logistic regression on user pairs.

    Its inputs are persistence, recency, activity and associations.
    """
    from sklearn.linear_model import LogisticRegression

    task = batches.task
    things = batches.things
    signs = np.array([question.wording.sign for question in task.questions])
    concepts = [task.concepts[question.concept] for question in task.questions]
    measures = np.array([_prior_row(concept) for concept in concepts])
    drawn = {}
    for measure in np.unique(measures[batches.questions]):
        known = []
        targets = []
        of_measure = measures[batches.questions] == measure
        for _ in range(PRIOR_DRAWS):
            sample, rows, asked = batches.draw(of_measure)
            users = token_input(sample.tokens, rows)
            meaning = reader.meaning(task.encoded.at(asked), things)
            known.append(reader.known_numbers(users, meaning, things).numpy())
            target = task.targets(sample, rows, asked).numpy()
            targets.append(np.where(signs[asked] > 0, target, 1 - target))
        pairs = _pairs(known, targets, batches.rng)
        if len(pairs):
            known = np.concatenate([part.reshape(-1, part.shape[-1]) for part in known])
            drawn[measure] = (known, pairs)
    if not drawn:
        return
    everything = np.concatenate([known for known, _ in drawn.values()])
    for measure, (known, pairs) in drawn.items():
        # an input that hardly varies here gets no large weight, since it may vary for other things
        least = LEAST_SPREAD * everything.std(0)
        spread = np.maximum(known.std(0), least) + 1e-3
        # flip every other pair, so that there are two classes
        flip = np.where(np.arange(len(pairs)) % 2, -1, 1)
        fitted = LogisticRegression(C=PRIOR_C, fit_intercept=False, max_iter=300)
        fitted.fit(pairs / spread * flip[:, None], flip)
        weight = fitted.coef_[0] / spread
        reader.prior.weight[measure] = torch.from_numpy(weight)
        reader.prior.bias[measure] = -float(known.mean(0) @ weight)
    # if a measure was not fitted for a kind, copy it from the first kind that it was fitted for
    weight = reader.prior.weight.view(len(PRIOR_KINDS), len(MEASURES), -1)
    bias = reader.prior.bias.view(len(PRIOR_KINDS), len(MEASURES))
    is_learned = weight.any(-1)
    for kind, measure in (~is_learned).nonzero().tolist():
        first = int(is_learned[:, measure].int().argmax())
        weight[kind, measure] = weight[first, measure]
        bias[kind, measure] = bias[first, measure]
    reader.known_mean.copy_(torch.from_numpy(everything.mean(0)))
    reader.known_spread.copy_(torch.from_numpy(everything.std(0) + 1e-2))


def _prior_row(concept: Concept) -> int:
    """Return the output of the prior that belongs to a concept."""
    kind = "event"
    if not concept.things:
        kind = "any event"
    elif concept.family == "number":
        kind = "number"
    return PRIOR_KINDS.index(kind) * len(MEASURES) + MEASURES.index(concept.measure)


def _pairs(
    known: list[np.ndarray], targets: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Return input differences between users with a yes and users with a no to the same question.

    Comparing users within a question removes the base rates of questions.

    Args:
        known: Inputs of the prior in each draw, (user, question, input).
        targets: Answers in each draw, (user, question).
        rng: Random generator that draws the pairs.
    """
    differences = [np.empty((0, known[0].shape[-1]))]
    for numbers, target in zip(known, targets, strict=True):
        for column in range(target.shape[1]):
            yes = np.flatnonzero(target[:, column] == 1)
            no = np.flatnonzero(target[:, column] == 0)
            if not (len(yes) and len(no)):
                continue
            n = min(2 * min(len(yes), len(no)), MAX_PAIRS)
            differences.append(
                numbers[rng.choice(yes, n), column] - numbers[rng.choice(no, n), column]
            )
    return np.concatenate(differences)


@torch.no_grad()
def _fit_state_scale(
    reader: PointingReader,
    task: ConceptTask,
    asked: np.ndarray,
    users: list[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Fit mean and standard deviation of the state, so that embeddings use all its dimensions."""
    encoded = task.encoded.at(asked)
    states = []
    hook = reader.body.register_forward_hook(lambda _module, _inputs, out: states.append(out[0]))
    for sample, rows in zip(task.samples, users, strict=True):
        if len(rows):
            drawn = rng.choice(rows, min(FITTED_USERS, len(rows)), replace=False)
            reader(token_input(sample.tokens, drawn), encoded, thing_input(sample.tokens))
    hook.remove()
    states = torch.cat([state.flatten(0, 1) for state in states])
    reader.state_mean.copy_(states.mean(0))
    reader.state_spread.copy_(states.std(0) + 1e-2)


@torch.no_grad()
def _fit_profile(reader: PointingReader, sample: Sample, rows: np.ndarray) -> None:
    """Fit the principal directions of the mean text vectors of users."""
    if not len(rows):
        return
    tokens = sample.tokens
    texts = mean_text(token_input(tokens, rows), thing_input(tokens))
    reader.profile_mean.copy_(texts.mean(0))
    directions = torch.linalg.svd(texts - texts.mean(0), full_matrices=False).Vh[:PROFILE_DIM].T
    length = ((texts - texts.mean(0)) @ directions).norm(dim=1).mean()
    directions = PROFILE_SCALE * directions / length.clamp(min=1e-9)
    reader.profile_directions[:, : directions.shape[1]] = directions


def _fit_answers(
    reader: PointingReader, batches: _Batches, budget: Budget, progress: StageProgress | None
) -> None:
    """Fit the extra input of written answers (`fit_answers`), on anchors that are computed once."""
    task = batches.task
    answered = []
    for _ in range(ANSWER_DRAWS):
        sample, rows, asked = batches.draw(n_users=budget.users)
        asked = np.unique(asked)
        grades = task.grades(sample, rows, asked)
        if (grades < 0).all():
            continue
        users = some_tokens(token_input(sample.tokens, rows), budget.tokens)
        question = task.encoded.at(asked)
        with torch.no_grad():
            anchor = reader.anchor(users, question, batches.things)
        wordings = [task.questions[place].wording for place in asked]
        answered.append(AnsweredUsers(anchor, question, wordings, grades))
    if answered:
        report = None if progress is None else partial(progress, "fitting written answers")
        fit_answers(reader, answered, min(ANSWER_STEPS, budget.steps), batches.rng, report)


def fit_sense(reader: PointingReader, task: ConceptTask, questions: np.ndarray, seed: int) -> None:
    """Fit the classifiers of a question's sign and measure, on wordings with known ones.

    Args:
        reader: Reader whose `polarity` and `intent` are fitted in place.
        task: Training data with questions and topics.
        questions: Indices of the questions, from `training_questions`.
        seed: Seed of the sampling.
    """
    taught = [*(task.questions[place].wording for place in questions), *task.topics]
    affirms = torch.tensor([float(wording.sign > 0) for wording in taught])
    measures = torch.tensor([MEASURES.index(wording.measure) for wording in taught])
    reader.wording_mean.zero_()
    inputs = torch.cat([reader.wording(task.encoded.at(questions)), task.topic_wording])
    reader.wording_mean.copy_(inputs.mean(0))
    inputs -= reader.wording_mean
    # questions about these users, about staying and leaving, and about everyday topics, which must
    # not affect the sign
    ends = [len(questions), len(questions) + task.n_behaviors]
    groups = np.split(np.arange(len(taught)), ends)
    learned = [
        {"params": reader.polarity.parameters(), "weight_decay": SENSE_DECAY},
        {"params": reader.intent.parameters(), "weight_decay": WEIGHT_DECAY},
    ]
    optimizer = torch.optim.AdamW(learned, lr=5e-3)
    rng = np.random.default_rng(seed)
    for _ in range(SENSE_STEPS):
        drawn = zip(groups, SENSE_BATCH, strict=True)
        batch = np.concatenate([rng.choice(group, n) for group, n in drawn])
        logit = 2 * reader.polarity(inputs[batch])[:, 0]
        loss = F.binary_cross_entropy_with_logits(logit, affirms[batch])
        loss = loss + F.cross_entropy(reader.intent(inputs[batch]), measures[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def training_questions(task: ConceptTask) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the questions to train on, and their sampling weights.

    Args:
        task: Training data, from `make_concept_task`.
    """
    places = []
    for place, question in enumerate(task.questions):
        concept = task.concepts[question.concept]
        if concept.split == "train" and not question.wording.held_out:
            places.append(place)
    if not places:  # with few concepts, all may be held out
        places = list(range(len(task.questions)))
    places = np.array(places)
    return places, question_weights(task, places)


def question_weights(task: ConceptTask, places: np.ndarray) -> np.ndarray:
    """Return the sampling weights of questions, which sum to 1.

    Each family has a fixed share (`FAMILY_WEIGHTS`), and so have negated questions in each family
    (`DENIED_SHARE`).

    Args:
        task: Training data with concepts and questions.
        places: Indices of the questions to draw from.
    """
    questions = [task.questions[place] for place in places]
    families = [task.concepts[question.concept].family for question in questions]
    affirmative = np.array([question.wording.sign > 0 for question in questions])
    group = 2 * np.array([FAMILIES.index(family) for family in families]) + affirmative
    share = np.array([FAMILY_WEIGHTS[family] for family in families])
    share = share * np.where(affirmative, 1 - DENIED_SHARE, DENIED_SHARE)
    weights = share / np.bincount(group)[group]
    return weights / weights.sum()


def _rows(sample: Sample, keep: Callable[[str], bool]) -> np.ndarray:
    """Return the row numbers of the users for which `keep` is true."""
    return np.flatnonzero([keep(user) for user in sample.tokens.ids])


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
