"""Training data of the reader: concepts, questions about them, and what was true of past users."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.data.things import ThingEvents
from qanchor.data.users import MIN_TRAINING_USERS, Users, training_problem
from qanchor.models.associations import Associations
from qanchor.models.pointing import QuestionInput, question_input
from qanchor.models.text_encoder import wording_vectors
from qanchor.models.user_tokens import TokenReader, UserTokens
from qanchor.training.associations import FOLDS, AssociationFit
from qanchor.useru.concept_answers import concept_grades
from qanchor.useru.concepts import (
    BEHAVIOR,
    FAMILIES,
    MAX_SHARE,
    MIN_SHARE,
    Concept,
    Outcomes,
    Wording,
    induce_concepts,
    topic_wordings,
    wordings,
)
from qanchor.utils.text import count

CUTOFF_HORIZONS = (1, 1.33, 1.67, 2, 2.5, 3)  # cut-offs before the users' own, in horizons
HELD_OUT_USERS = 10  # 1 user in 10 is held out of all training; another 1 in 10 chooses the share
MAX_QUESTIONS = 1500  # about texts, modalities, numbers and times
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

Rows = Int[np.ndarray, " _"]  # row numbers of users, or indices of questions


@dataclass(frozen=True)
class Sample:
    """All users at one cut-off, with the truth of each concept afterwards."""

    cutoff: pd.Timestamp
    events: ThingEvents
    tokens: UserTokens
    rows: Rows  # row numbers of the users in `Users.ids`
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

    def wordings(self, asked: Rows) -> list[Wording]:
        """Return the wordings of some questions.

        Args:
            asked: Indices of the questions.
        """
        return [self.questions[place].wording for place in asked]

    def truth(self, sample: Sample, rows: Rows, asked: Rows) -> np.ndarray:
        """Return whether the concepts of some questions are true of some users: 1, 0 or NaN.

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        return self._columns(sample.truth, rows, asked)

    def targets(self, sample: Sample, rows: Rows, asked: Rows) -> Tensor:
        """Return the answers for some users and questions: 1 (yes), 0 (no) or NaN (unknown).

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        truth = self.truth(sample, rows, asked)
        affirms = [wording.sign > 0 for wording in self.wordings(asked)]
        return torch.from_numpy(np.where(affirms, truth, 1 - truth)).float()

    def body_targets(self, sample: Sample, rows: Rows, asked: Rows) -> Tensor:
        """Return the training targets of the body: the answers. Subclasses may use probabilities.

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        return self.targets(sample, rows, asked)

    def grades(self, sample: Sample, rows: Rows, asked: Rows) -> np.ndarray:
        """Return the grade of the true answer for some users and questions; -1 for unknown.

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        return self._columns(sample.grades, rows, asked)

    def _columns(self, values: dict[int, np.ndarray], rows: Rows, asked: Rows) -> np.ndarray:
        """Return the values of some users, (user, question), for the horizon of each question."""
        questions = [self.questions[place] for place in asked]
        columns = [values[question.days][rows, question.concept] for question in questions]
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
    horizon = pd.Timedelta(days=users.horizon_days)
    earliest = users.events["time"].min() + horizon / 2
    cutoffs = [users.cutoff - horizon * share for share in CUTOFF_HORIZONS]
    return [cutoff for cutoff in cutoffs if cutoff >= earliest]


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
    first = TokenReader(users, encoder, until=min(cutoffs))
    topics = first.aliases.things_by_label(first.things)
    concepts = induce_concepts(first.events, first.vectors, min(cutoffs), topics)
    samples = _read_samples(users, encoder, cutoffs, concepts)
    rng = np.random.default_rng(seed)
    questions = _make_questions(users, concepts, samples, rng)
    encoded = question_input(
        [question.wording.query for question in questions],
        "user",
        encoder,
        [question.days for question in questions],
        users.horizon_days,
    )
    behaviors = [wording for wording in wordings(BEHAVIOR, rng) if not wording.held_out]
    general = (*behaviors, *topic_wordings(rng))
    topic_wording = wording_vectors([wording.query for wording in general], encoder)
    return ConceptTask(
        concepts,
        questions,
        encoded,
        samples,
        general,
        len(behaviors),
        torch.from_numpy(topic_wording.astype(np.float32)),
    )


def _horizons(users: Users) -> list[int]:
    """Return the horizons that answers are computed for, in days."""
    return sorted({users.horizon_days, max(1, users.horizon_days // 4)})


def _read_samples(
    users: Users,
    encoder: str,
    cutoffs: Sequence[pd.Timestamp],
    concepts: Sequence[Concept],
) -> tuple[Sample, ...]:
    """Read the users at each cut-off, and fit associations on all of them."""
    reader = TokenReader(users, encoder, until=max(cutoffs))
    events = reader.events
    fitted = None
    samples = []
    for cutoff in cutoffs:
        tokens = reader.read(cutoff)
        if len(tokens) < MIN_TRAINING_USERS:
            continue
        rows = pd.Index(users.ids).get_indexer(tokens.ids)
        outcomes = {}
        truth = {}
        grades = {}
        for days in _horizons(users):
            outcomes[days] = Outcomes.of(events, rows, cutoff, days)
            truth[days] = outcomes[days].truth(events, concepts)
            grades[days] = concept_grades(outcomes[days], events, concepts, truth[days])
        tokens = replace(tokens, fold=np.array([_fold(user) for user in tokens.ids]))
        fitted = fitted or AssociationFit(tokens)
        fitted.add(tokens, events, outcomes[users.horizon_days])
        ago = (users.cutoff - cutoff) / pd.Timedelta(days=users.horizon_days)
        samples.append(Sample(cutoff, events, tokens, rows, truth, grades, ago))
    associations = fitted.solve()
    return tuple(
        replace(sample, tokens=sample.tokens.with_associations(associations)) for sample in samples
    )


def _make_questions(
    users: Users,
    concepts: Sequence[Concept],
    samples: Sequence[Sample],
    rng: np.random.Generator,
) -> tuple[Question, ...]:
    """Return questions about the concepts that are true of some of the users.

    Of those that are not about any event, `MAX_QUESTIONS` are kept: encoding them all would take
    longer than training.
    """
    horizon = users.horizon_days
    share = np.nanmean(np.concatenate([sample.truth[horizon] for sample in samples]), 0)
    questions = []
    for concept in np.flatnonzero((share > MIN_SHARE) & (share < MAX_SHARE)).tolist():
        for wording in wordings(concepts[concept], rng):
            days = _nearest(wording.days or horizon, _horizons(users))
            questions.append(Question(concept, wording, days))
    if not questions:
        raise ValueError(
            f"Nothing differs among the {count(len(users), users.unit)} of {users.name} in the"
            f" {horizon} days after any past cut-off. Pass more users or another horizon_days."
        )
    kept = np.array([not concepts[question.concept].things for question in questions])
    others = np.flatnonzero(~kept)
    if len(others) > MAX_QUESTIONS:
        others = rng.choice(others, MAX_QUESTIONS, replace=False)
    kept[others] = True
    return tuple(questions[place] for place in np.flatnonzero(kept))


def _nearest(days: int, horizons: Sequence[int]) -> int:
    """Return the horizon with the smallest ratio to a number of days."""
    return min(horizons, key=lambda horizon: abs(np.log(horizon / days)))


def training_questions(task: ConceptTask) -> tuple[Rows, np.ndarray]:
    """Return the indices of the questions to train on, and their sampling weights.

    Args:
        task: Training data, from `make_concept_task`.
    """
    places = []
    for place, question in enumerate(task.questions):
        concept = task.concepts[question.concept]
        if concept.split == "train" and not question.wording.held_out:
            places.append(place)
    # with few concepts, all may be held out
    places = np.array(places or range(len(task.questions)))
    return places, question_weights(task, places)


def question_weights(task: ConceptTask, places: Rows) -> np.ndarray:
    """Return the sampling weights of questions, which sum to 1.

    Each family has a fixed share (`FAMILY_WEIGHTS`), and so have negated questions in each family
    (`DENIED_SHARE`).

    Args:
        task: Training data with concepts and questions.
        places: Indices of the questions to draw from.
    """
    questions = [task.questions[place] for place in places]
    families = [task.concepts[question.concept].family for question in questions]
    affirms = np.array([question.wording.sign > 0 for question in questions])
    family_share = np.array([FAMILY_WEIGHTS[family] for family in families])
    sign_share = np.where(affirms, 1 - DENIED_SHARE, DENIED_SHARE)
    group = 2 * np.array([FAMILIES.index(family) for family in families]) + affirms
    n_alike = np.bincount(group)[group]
    weights = family_share * sign_share / n_alike
    return weights / weights.sum()
