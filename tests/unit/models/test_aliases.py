"""Aliases: a question means all that a topic truly matches, and nothing where it does not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.data.users import Users
from qanchor.models.aliases import MIN_NAME, MIN_PHRASE, Aliases
from qanchor.models.pointing import question_input, relevance, thing_input, word_fit
from qanchor.models.user_tokens import TokenReader
from tests.unit.models.test_user_tokens import CUTOFF

pytestmark = pytest.mark.weights
TEXTS = ["dog foods", "cat litter", "tea", "ward transfer", "coupon redeemed dog foods"]
TEXTS += ["wine bottle", "beer", "hotel booking", "train ticket", "mobile game coins"]
ABOUT_PETS = ["dog foods", "cat litter", "coupon redeemed dog foods"]


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    n = 200
    table = pd.DataFrame(
        {
            "user": [f"u{i:02}" for i in rng.integers(12, size=n)],
            "time": CUTOFF - pd.to_timedelta(rng.integers(1, 90, size=n), "D"),
            "modality": "shop",
            "text": rng.choice(TEXTS, n),
            "amount": 2.0,
            "discount": rng.choice([0.0, 0.5], n),
        }
    )
    return TokenReader(Users.from_events(table, CUTOFF)).read()


def fit_of(tokens, *queries):
    question = question_input(queries, "user", "minilm", [30] * len(queries), 30)
    return question, thing_input(tokens), [thing.label for thing in tokens.things]


def test_a_question_about_a_topic_means_all_its_texts(tokens):
    question, things, labels = fit_of(tokens, "Will this user buy something for a pet?")
    fit = dict(zip(labels, word_fit(question, things)[0].tolist(), strict=True))
    assert min(fit[text] for text in ABOUT_PETS) > max(fit["tea"], fit["ward transfer"])
    assert len({round(fit[text], 6) for text in ABOUT_PETS}) == 1


def test_a_column_has_its_alias(tokens):
    question, things, labels = fit_of(tokens, "Is this user price-conscious?")
    assert labels[int(word_fit(question, things)[0].argmax())] == "discount"


def test_a_stem_without_the_meaning_is_no_match(tokens):
    members = tokens.aliases.things_by_label(tokens.things)
    assert "money transfers" not in members
    assert members["pets"] == tuple(sorted(f"text:{text}" for text in ABOUT_PETS))


def test_what_one_word_of_a_phrase_says_is_not_enough(tokens):
    question, things, _ = fit_of(tokens, "Will this user spend much less than before?")
    aliases = things.aliases
    assert not aliases.match(question.content, question.spelling, question.names_one).any()


def test_an_alias_whose_name_contradicts_does_not_fit():
    content = torch.tensor([[1.0, 0.0]])
    alias = Aliases(
        topics=torch.tensor([0]),
        labels=("pets",),
        names=torch.tensor([[1.0, 0.0]]),
        vectors=torch.tensor([[[0.8, 0.6]]]),
        spelling=torch.zeros(1, 1, 4),
        members=torch.tensor([[1.0], [0.0]]),
    )
    rest = torch.zeros(1, 4), torch.zeros(1, 72)
    assert alias.match(content, *rest).tolist() == [[pytest.approx(0.8), 0]]
    other = replace(alias, names=torch.tensor([[0.0, 1.0]]))
    assert other.match(content, *rest).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("Will this user buy wine?", "wine bottle"),
        ("Will this user buy beer?", "beer"),
        ("Will this user stay in a hotel?", "hotel booking"),
    ],
)
def test_a_question_that_names_one_thing_of_a_topic_does_not_mean_the_others(tokens, query, meant):
    question, things, labels = fit_of(tokens, query)
    relevant = relevance(word_fit(question, things))[0]
    assert [labels[row] for row in np.flatnonzero(relevant > 0.5)] == [meant]


def test_what_is_meant_is_what_a_loop_finds(tokens):
    question, things, _ = fit_of(tokens, "Will this user get something for pets?", "Will it rain?")
    given = things.aliases
    found = word_fit(question, things)
    own = question.content @ things.vector.T + question.spelling @ things.spelling.T / 2
    n_lent = 0
    for query in range(2):
        of_alias = np.zeros(len(tokens.things))
        for alias in range(len(tokens.aliases.labels)):
            cosine = given.vectors[alias] @ question.content[query]
            spelled = given.spelling[alias] @ question.spelling[query]
            if given.names[alias] @ question.content[query] < MIN_NAME:
                continue
            fit = max([0, *(cosine + spelled / 2)[cosine >= MIN_PHRASE].tolist()])
            members = tokens.aliases.members[alias].bool().numpy()
            of_alias[members] = np.maximum(of_alias[members], fit)
        expected = own[query].clamp(min=0).numpy()
        if of_alias.max() > expected.max():
            n_lent += 1
            expected = np.maximum(expected, of_alias)
        assert np.allclose(found[query], expected, atol=1e-5)
    assert n_lent == 1


def test_without_any_alias_the_words_alone_count():
    table = pd.DataFrame({"user": ["a", "b"], "time": CUTOFF - pd.Timedelta(days=3)})
    table = table.assign(modality="web", text=["qqx", "qqy"])
    tokens = TokenReader(Users.from_events(table, CUTOFF)).read()
    question, things, _ = fit_of(tokens, "Will this user buy dog food?")
    own = question.content @ things.vector.T + question.spelling @ things.spelling.T / 2
    assert tokens.aliases.labels == ()
    assert torch.equal(word_fit(question, things), own.clamp(min=0))
