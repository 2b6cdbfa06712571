"""The joint loss: both parts fall, reach the language model, and need the user."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.data.users import Users
from qanchor.inference.evidence import encode_questions
from qanchor.models.crossing import LateCrossing
from qanchor.models.pointing import PointingReader, thing_input, token_input
from qanchor.training.answers import (
    AnsweredUsers,
    answer_losses,
    draw_pairs,
    fit_answers,
    told_loss,
)
from qanchor.training.concept_task import make_concept_task
from qanchor.training.reader import LANGUAGE_BUDGET, select_questions, train_reader
from qanchor.useru.concept_answers import graded_answers
from tests.tiny import CUTOFF, brief_fits, habits

N_USERS = 12
QUERY = "Will this user play chess?"
RANKING_ALONE = replace(LANGUAGE_BUDGET, contrastive=0.0, autoregressive=0.0)


@pytest.fixture(scope="module", autouse=True)
def brief():
    with brief_fits():
        yield


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(habits(60), CUTOFF)


@pytest.fixture(scope="module")
def task(users):
    return make_concept_task(users, "hash")


def new_reader() -> PointingReader:
    torch.manual_seed(0)
    return PointingReader(384, LateCrossing("tiny", text=384))


@pytest.fixture
def few(task):
    """Return a reader, and the losses of a few pairs as a function."""
    reader = new_reader()
    places = [
        place
        for place, question in enumerate(task.questions)
        if task.concepts[question.concept].name.startswith("text:") and not question.wording.days
    ][::40][:4]
    asked = select_questions(reader, task, np.array(places))
    sample = task.samples[0]
    rows = np.arange(N_USERS)

    question = asked.encoded
    wordings = [question.wording for question in asked.questions]
    grades = asked.grades(sample, rows, np.arange(len(wordings)))

    def losses():
        users = token_input(sample.tokens, rows)
        anchor = reader.anchor(users, question, thing_input(sample.tokens))
        batch = AnsweredUsers(anchor, question, wordings, grades)
        return answer_losses(reader, batch, np.random.default_rng(0))

    return reader, losses


@pytest.mark.parametrize("kind", [0, 1], ids=["contrastive", "autoregressive"])
def test_each_loss_falls_and_reaches_lora(few, kind):
    reader, losses = few
    reader.train()
    weights = [weight for weight in reader.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    values = []
    for step in range(40):
        optimizer.zero_grad()
        loss = losses()[kind]
        loss.backward()
        if step == 1:  # at first all LoRA updates are 0, and so is the gradient of their inputs
            for name, weight in reader.named_parameters():
                if "lora_" in name:
                    assert weight.grad.abs().max() > 0, name
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.05


def test_what_answers_are_told_is_fitted_and_nothing_else(few, task):
    reader, _ = few
    reader.eval().requires_grad_(False)
    sample = task.samples[0]
    asked = select_questions(reader, task, np.arange(0, len(task.questions), 40)[:4])
    rows = np.arange(N_USERS)
    anchor = reader.anchor(
        token_input(sample.tokens, rows), asked.encoded, thing_input(sample.tokens)
    )
    # the score that answers are told is that of the reader
    read = reader(token_input(sample.tokens, rows), asked.encoded, thing_input(sample.tokens))
    torch.testing.assert_close(anchor.told[..., 0], read.score, atol=1e-4, rtol=0)
    grades = asked.grades(sample, rows, np.arange(4))
    wordings = [question.wording for question in asked.questions]
    batch = AnsweredUsers(anchor, asked.encoded, wordings, grades)
    before = {name: tensor.clone() for name, tensor in reader.state_dict().items()}
    rng = np.random.default_rng(0)
    first = told_loss(reader, batch, np.random.default_rng(1)).item()
    fit_answers(reader, [batch], 60, rng)
    assert told_loss(reader, batch, np.random.default_rng(1)).item() < first - 0.1
    for name, tensor in reader.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name != "body.tell.weight")
    assert not reader.training and not any(w.requires_grad for w in reader.parameters())


def test_weights_of_0_leave_answers_out(task, monkeypatch):
    first = new_reader()
    losses = train_reader(first, task, 3, budget=RANKING_ALONE)
    second = new_reader()
    for part in (second.body.project, second.body.anchor_norm, second.body.answer_norm):
        part.requires_grad_(False)
        monkeypatch.setattr(part, "forward", None)
    monkeypatch.setattr(second.body, "encode_answers", None)
    with torch.no_grad():
        second.body.project[0].weight.fill_(7)
    again = train_reader(second, task, 3, budget=RANKING_ALONE)
    pd.testing.assert_frame_equal(again, losses, check_exact=True)
    for (name, one), two in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert "project" in name or torch.equal(one, two)


def test_pairs_are_drawn_alike_over_the_grades_of_a_question():
    grades = np.zeros((200, 2), int)
    grades[:10] = 1
    grades[10:20] = -1
    of_user, of_query = draw_pairs(grades, 40, np.random.default_rng(0))
    assert len(set(zip(of_user.tolist(), of_query.tolist(), strict=True))) == 40
    drawn = grades[of_user, of_query]
    assert (drawn >= 0).all() and 0.25 < (drawn == 1).mean() < 0.6
    assert len(draw_pairs(grades, 1000, np.random.default_rng(0))[0]) == 380
    _, of_query = draw_pairs(grades, 40, np.random.default_rng(0), np.array([0.9, 0.1]))
    assert (of_query == 0).mean() > 0.7


@pytest.mark.slow
def test_a_trained_run_writes_answers_about_the_user(users, tmp_path):
    model = qa.fit(users, text_encoder="hash", backbone="tiny", steps=40, progress=False)
    engine = qa.Engine(model)
    cache = engine.prefill(users)
    reader = model.reader
    answers = graded_answers("occurs", 1)
    question = encode_questions(model, [QUERY], "user", 30)
    things = thing_input(cache.tokens)

    def scores(reader, tokens):
        with torch.no_grad():
            return reader.score_answers(token_input(tokens), question, things, QUERY, answers)

    own = scores(reader, cache.tokens)
    moved = np.roll(np.arange(len(users)), 1)
    others = scores(reader, cache.tokens.select(moved))
    assert (own - others).abs().mean() > 1e-3
    torch.testing.assert_close(own[moved], others, atol=1e-4, rtol=0)
    hidden = cache.tokens.without(np.ones(len(cache.tokens.things), bool))
    assert (own - scores(reader, hidden)).abs().mean() > 1e-3
    best = answers[int(own[3].argmax())]
    assert engine.generate(cache, users.ids[3], QUERY).startswith(f"{best} play chess: ")
    loaded = qa.QAnchor.from_pretrained(model.save_pretrained(tmp_path / "run")).reader
    torch.testing.assert_close(scores(loaded, cache.tokens), own, atol=1e-4, rtol=0)
    for name, tensor in reader.body.state_dict().items():
        if name.startswith(("project", "anchor_norm", "answer_norm")):
            assert torch.equal(loaded.body.state_dict()[name], tensor)
