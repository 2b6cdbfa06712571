"""Dense teaching: a reader with a language model learns what a trained reader without one says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qanchor.models.pointing import PointingReader, thing_input, token_input
from qanchor.training.concept_task import ConceptTask, Rows, Sample
from qanchor.training.reader import POINTING_BUDGET, train_reader
from qanchor.utils.types import StageProgress

TAUGHT = 0.5  # weight of the teacher's probabilities beside the answers
CERTAIN = 0.98  # largest share of yes answers that the teacher's probabilities are centered on


@dataclass(frozen=True)
class TaughtTask(ConceptTask):
    """Concepts whose answers are mixed with the probabilities of a teacher, for all users."""

    teacher: PointingReader

    def body_targets(self, sample: Sample, rows: Rows, asked: Rows) -> Tensor:
        """Return the mean of the answers and the teacher's probabilities; the latter alone where
        the answer is unknown.

        Args:
            sample: The users.
            rows: Row numbers in `sample`.
            asked: Indices of the questions.
        """
        answers = self.targets(sample, rows, asked)
        things = thing_input(self.samples[0].tokens)
        with torch.no_grad():
            users = token_input(sample.tokens, rows)
            score = self.teacher(users, self.encoded.at(asked), things).score
        share = answers.nanmean(0).nan_to_num(0.5).clamp(1 - CERTAIN, CERTAIN)
        taught = (score - score.mean(0) + share.logit()).sigmoid()
        return torch.where(answers.isnan(), taught, taught.lerp(answers, 1 - TAUGHT))


def make_taught_task(
    task: ConceptTask,
    steps: int | None = None,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> TaughtTask:
    """Train a reader without a language model, the teacher, and return a task that it teaches.

    Args:
        task: Training data, from `make_concept_task`.
        steps: Training steps of the teacher if fewer than its budget has (default: all of them).
        seed: Seed of its weights and of the sampling (default 0).
        progress: Called with (stage, done, total) (default: none).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = PointingReader(task.encoded.vector.shape[1])
    if progress is not None:
        progress = partial(_report, progress)
    steps = min(steps or POINTING_BUDGET.steps, POINTING_BUDGET.steps)
    train_reader(teacher, task, steps, seed=seed, progress=progress)
    return TaughtTask(**vars(task), teacher=teacher)


def _report(progress: StageProgress, stage: str, done: int, total: int) -> None:
    progress(f"teacher: {stage}", done, total)
