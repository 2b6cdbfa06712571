"""A language model learns from the answers and from a reader without one."""

import numpy as np
import pytest
import torch

import qanchor as qa
from qanchor.data.users import Users
from qanchor.models.pointing import thing_input, token_input
from qanchor.training.concept_task import make_concept_task
from qanchor.training.teaching import make_taught_task
from tests.tiny import CUTOFF, brief_fits, habits


@pytest.fixture(scope="module", autouse=True)
def brief():
    with brief_fits():
        yield


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(habits(60), CUTOFF)


def test_targets_are_the_mean_of_the_answers_and_what_the_teacher_says(users):
    task = make_concept_task(users, "hash")
    sample = task.samples[0]
    rows = np.arange(len(sample.tokens))
    asked = np.arange(12)
    taught = make_taught_task(task, steps=8)
    answers = task.targets(sample, rows, asked)
    target = taught.body_targets(sample, rows, asked)
    assert ((target >= 0) & (target <= 1)).all(), "known for all, if only by the teacher"
    with torch.no_grad():
        reading = taught.teacher(
            token_input(sample.tokens, rows), task.encoded.at(asked), thing_input(sample.tokens)
        )
    score = reading.score - reading.score.mean(0)
    share = answers.nanmean(0).nan_to_num(0.5).clamp(0.02, 0.98)
    says = torch.sigmoid(score + torch.log(share / (1 - share)))
    known = ~answers.isnan()
    torch.testing.assert_close(target[known], (says[known] + answers[known]) / 2)
    torch.testing.assert_close(target[~known], says[~known])
    assert says.std(0).min() > 0, "the teacher tells users apart"
    again = make_taught_task(task, steps=8).body_targets(sample, rows, asked)
    torch.testing.assert_close(again, target, atol=1e-5, rtol=0)  # so a training can be resumed


@pytest.mark.parametrize(("backbone", "is_taught"), [("none", False), ("tiny", True)])
def test_only_a_language_model_has_a_teacher(users, backbone, is_taught):
    stages = []
    qa.fit(
        users,
        text_encoder="hash",
        backbone=backbone,
        steps=2,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert any(stage.startswith("teacher: ") for stage in stages) == is_taught
