"""The pointing reader learns from the past alone, points at what is asked, and can be denied."""

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.data.users import Users
from qanchor.models.pointing import (
    COUNT,
    PRIOR_KINDS,
    PointingReader,
    mean_text,
    question_input,
    read_questions,
    relevance,
    thing_input,
    token_input,
)
from qanchor.models.user_tokens import TokenReader
from qanchor.training.concept_task import is_held_out, make_concept_task, training_cutoffs
from qanchor.training.reader import ranking_loss, train_reader
from qanchor.useru.concepts import MEASURES
from tests.tiny import CUTOFF, brief_fits, habits


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(habits(), CUTOFF)


@pytest.fixture(scope="module")
def trained(users):
    task = make_concept_task(users, "hash")
    reader = PointingReader(384)
    with brief_fits(sense_steps=300):
        losses = train_reader(reader, task, steps=60)
    return task, reader, losses


def test_the_loss_falls(trained):
    losses = trained[2]["loss"]
    assert losses[-10:].mean() < 0.9 * losses[:10].mean()


def test_a_question_ranks_users_by_what_they_did(users, trained):
    from sklearn.metrics import roc_auc_score

    tokens = TokenReader(users, "hash").read()
    question = question_input(["buy tea"], "user", "hash", [30], 30)
    score = read_questions(trained[1], tokens, question).score[:, 0].numpy()
    future = users.future()
    happened = future.loc[future["text"] == "buy_tea", "user"].astype(str)
    assert roc_auc_score(np.isin(tokens.ids, happened), score) > 0.7


def test_attention_sums_to_one_over_a_user(users, trained):
    tokens = TokenReader(users, "hash").read()
    question = question_input(["buy tea", "chess?"], "user", "hash", [30, 30], 30)
    attention = read_questions(trained[1], tokens, question).attention
    torch.testing.assert_close(attention.sum(-1), torch.ones(len(users), 2))


def test_the_mean_text_is_that_of_the_tokens_one_by_one(users):
    tokens = TokenReader(users, "hash").read()
    given = token_input(tokens)
    found = mean_text(given, thing_input(tokens))
    for which, numbers, mean in zip(given.which[:20], given.numbers, found, strict=False):
        there = which >= 0
        vectors = torch.from_numpy(tokens.vectors)[which[there]]
        weight = numbers[there, COUNT]
        plain = (weight[:, None] * vectors).sum(0) / weight.sum()
        torch.testing.assert_close(mean, plain, atol=1e-4, rtol=0)


def test_batches_do_not_change_a_reading(users, trained):
    tokens = TokenReader(users, "hash").read()
    question = question_input(["buy tea"], "user", "hash", [30], 30)
    whole = read_questions(trained[1], tokens, question)
    alone = read_questions(trained[1], tokens.select([7]), question)
    torch.testing.assert_close(whole.score[7:8], alone.score, atol=1e-4, rtol=0)


def test_nothing_after_the_cutoff_reaches_the_task(users):
    table = habits()
    table.loc[table["time"] >= CUTOFF, "text"] = "surprise"
    changed = Users.from_events(table, CUTOFF)
    first, second = make_concept_task(users, "hash"), make_concept_task(changed, "hash")
    assert first.concepts == second.concepts
    assert first.questions == second.questions
    for a, b in zip(first.samples, second.samples, strict=True):
        np.testing.assert_array_equal(a.tokens.numbers, b.tokens.numbers)
        for days, truth in a.truth.items():
            np.testing.assert_array_equal(truth, b.truth[days])


def test_held_out_users_are_in_no_step(users, trained):
    table = habits()
    held_out = table["user"].map(is_held_out)
    assert 0 < held_out.mean() < 0.3
    # what only held-out users do later must leave the weights as they are
    task = make_concept_task(users, "hash")
    for sample in task.samples:
        rows = [is_held_out(user) for user in sample.tokens.ids]
        for truth in sample.truth.values():
            truth[rows] = 1 - truth[rows]
    torch.manual_seed(0)
    one = PointingReader(384)
    torch.manual_seed(0)
    two = PointingReader(384)
    with brief_fits(sense_steps=5):
        changed = train_reader(one, task, steps=5)
        losses = train_reader(two, trained[0], steps=5)
    pd.testing.assert_frame_equal(changed, losses, atol=1e-4)


def test_a_short_history_is_refused_with_what_it_needs(users):
    table = habits()
    short = Users.from_events(table[table["time"] > CUTOFF - pd.Timedelta(days=20)], CUTOFF)
    with pytest.raises(ValueError, match="days of history before the cut-off; 45 are needed"):
        training_cutoffs(short)


def test_late_cutoffs_are_drawn_more(trained):
    ago = [sample.horizons_ago for sample in trained[0].samples]
    assert ago == sorted(ago) and ago[0] == pytest.approx(1)


def test_the_ranking_loss_is_a_mean_over_pairs_of_each_question():
    rng = np.random.default_rng(0)
    score = torch.from_numpy(rng.normal(size=(9, 4))).float()
    target = torch.from_numpy(rng.choice([0.0, 1.0, np.nan], (9, 4))).float()
    target[:, 3] = 1  # a question without a no has no pair
    losses = []
    weights = []
    for column in range(4):
        yes = [row for row in range(9) if target[row, column] == 1]
        no = [row for row in range(9) if target[row, column] == 0]
        pairs = [(a, b) for a in yes for b in no]
        apart = [float(score[a, column] - score[b, column]) for a, b in pairs]
        losses.append(np.mean(np.log1p(np.exp(-np.array(apart)))) if pairs else 0)
        weights.append(min(len(yes), len(no)) ** 0.5)
    expected = np.dot(losses, weights) / np.sum(weights)
    assert float(ranking_loss(score, target)) == pytest.approx(expected, abs=1e-4)


def test_a_question_tells_what_it_measures_of_topics_that_no_data_have(users, trained):
    asked = {
        "Will this user polish the silver next month?": "occurs",
        "Will this user polish the silver more often than before?": "more",
        "Will this user polish the silver much less than before?": "less",
        "Does this user mostly polish the silver?": "share",
        "Will this user polish the silver nearly every day?": "high",
    }
    question = question_input(list(asked), "user", "hash", [30] * len(asked), 30)
    things = thing_input(TokenReader(users, "hash").read())
    measured = trained[1].meaning(question, things).measure.argmax(1)
    assert [MEASURES[place] for place in measured] == list(asked.values())


def test_what_fits_best_is_meant_and_nothing_if_nothing_fits():
    fit = torch.tensor([[0.9, 0.88, 0.5], [0.2, 0.1, 0.15]])
    meant = relevance(fit)
    assert (meant[0, :2] > 0.9).all() and meant[0, 2] < 0.01
    assert (meant[1] < 0.01).all()


def test_whether_there_is_what_everybody_has_a_share_of_is_read_as_how_much(users, trained):
    things = thing_input(TokenReader(users, "hash").read())
    question = question_input(["Will this user buy tea?"], "user", "hash", [30], 30)
    plain = trained[1].meaning(question, things).measure[0]
    shared = things._replace(is_share_of_all=torch.ones_like(things.is_share_of_all))
    moved = trained[1].meaning(question, shared).measure[0]
    occurs, share = MEASURES.index("occurs"), MEASURES.index("share")
    assert plain[occurs] > 0.5 > plain[share] and moved[share] > 0.5 > moved[occurs]
    assert float(moved.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_events_numbers_and_any_event_have_priors_of_their_own(users, trained, kind):
    things = thing_input(TokenReader(users, "hash").read())
    question = question_input(["Will this user buy tea?"], "user", "hash", [30], 30)
    meaning = trained[1].meaning(question, things)
    if kind == "any event":
        question = question_input(["Will this user come back?"], "user", "hash", [30], 30)
        meaning = trained[1].meaning(question, things)
    elif kind == "number":
        things = things._replace(is_number=torch.ones_like(things.is_number))
    shares = trained[1].prior_shares(meaning, things).view(len(PRIOR_KINDS), -1).sum(1)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    assert PRIOR_KINDS[int(shares.argmax())] == kind and shares.max() > 0.9


def test_the_prior_counts_what_is_meant(users, trained):
    tokens = TokenReader(users, "hash").read()
    question = question_input(["buy tea"], "user", "hash", [30], 30)
    things = thing_input(tokens)
    meaning = trained[1].meaning(question, things)
    known = trained[1].known_numbers(token_input(tokens), meaning, things)
    past = users.history()
    tea = past[past["text"] == "buy_tea"].groupby("user", observed=False).size()
    counted = np.log1p(tea.reindex(tokens.ids).to_numpy())
    np.testing.assert_allclose(known[:, 0, 0].numpy(), counted, atol=0.05)


def test_what_hardly_differs_for_one_measure_gets_no_large_weight(users, monkeypatch):
    """Of another thing it may differ much: a large weight would then decide alone."""
    plain = PointingReader.known_numbers
    occurs = MEASURES.index("occurs")
    generator = torch.Generator().manual_seed(0)

    def known_numbers(self, users, meaning, things):
        known = plain(self, users, meaning, things).clone()
        noise = torch.randn(known.shape[:2], generator=generator)
        is_occurs = meaning.measure.argmax(1) == occurs
        known[..., 0] = noise * torch.where(is_occurs, 0.01, 1.0)
        return known

    monkeypatch.setattr(PointingReader, "known_numbers", known_numbers)
    reader = PointingReader(384)
    with brief_fits(sense_steps=300):
        train_reader(reader, make_concept_task(users, "hash"), steps=1)
    weight = reader.prior.weight.view(len(PRIOR_KINDS), len(MEASURES), -1)
    assert weight[:, occurs].any() and weight[:, occurs, 0].abs().max() < 0.5
