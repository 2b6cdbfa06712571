"""The user as a prefix: many questions on cached keys and values equal one plain pass of the
language model for each user and question.
"""

import numpy as np
import pytest
import torch

from qanchor.data.sample import make_sample_users
from qanchor.models.language_body import LEVEL_TOKENS
from qanchor.models.pointing import (
    N_PRIOR_NUMBERS,
    BodyInput,
    question_input,
    thing_input,
    token_input,
)
from qanchor.models.prefix import UserPrefix
from qanchor.models.user_tokens import TokenReader

QUERIES = ["Will this user travel soon?", "tea", ""]


@pytest.fixture(scope="module")
def asked():
    """Return tokens of five users of different lengths, things, and three questions."""
    tokens = TokenReader(make_sample_users(60), "hash").read()
    question = question_input(QUERIES, "user", "hash", [30, 30, 30], 30)
    return token_input(tokens, np.arange(5)), thing_input(tokens), question


@pytest.fixture
def body():
    torch.manual_seed(0)
    body = UserPrefix("tiny", text=384)
    for name, weight in body.named_parameters():
        if "lora_B" in name or name == "start":
            torch.nn.init.normal_(weight, 0, 0.3)
        elif "_proj" in name:
            weight.data.mul_(6)  # at their first size a wrong position would change nothing
    return body.eval()


@torch.no_grad()
def plain_hidden(body, users, things, known, user: int, query: int):
    """Run one user and one question through the language model of transformers, in one pass."""
    there = torch.cat([torch.ones(LEVEL_TOKENS, dtype=torch.bool), users.which[user] >= 0])
    prefix = body.widen(body.user_tokens(users, users.numbers, things)[user][there])
    ids = torch.tensor(body._tokenize(QUERIES[query]))
    embedding = body.backbone.get_input_embeddings()
    anchor = embedding.weight.mean(0) + body.start + body.evidence(known[user, query])
    vectors = torch.cat([prefix, embedding(ids), anchor[None]])[None]
    return body.backbone.model(inputs_embeds=vectors).last_hidden_state[0, -1]


def test_questions_on_cached_prefixes_equal_plain_passes(body, asked):
    users, things, question = asked
    question = question._replace(states=body.encode(QUERIES))
    known = torch.randn(5, len(QUERIES), N_PRIOR_NUMBERS)
    with torch.no_grad():
        prefix = body.prefill(users, users.numbers, things)
        given = BodyInput(users, users.numbers, question, things, known)
        cached, attention = body.anchor(given._replace(users=users._replace(prefix=prefix)))
        anew, _ = body.anchor(given)
    assert len(set(prefix.length.tolist())) > 1
    for user in range(5):
        for query in range(len(QUERIES)):
            plain = plain_hidden(body, users, things, known, user, query)
            assert torch.allclose(cached.hidden[user, query], plain, atol=1e-4)
    assert torch.allclose(cached.hidden, anew.hidden, atol=1e-6)
    has_tokens = (users.which >= 0).any(1)
    share = attention.sum(-1)[has_tokens]
    assert torch.allclose(share, torch.ones_like(share))


def test_a_question_does_not_see_the_other_questions(body, asked):
    users, things, question = asked
    question = question._replace(states=body.encode(QUERIES))
    known = torch.randn(5, len(QUERIES), N_PRIOR_NUMBERS)
    given = BodyInput(users, users.numbers, question, things, known)
    with torch.no_grad():
        together, _ = body.anchor(given)
        alone, _ = body.anchor(given._replace(question=question.at([1]), known=known[:, [1]]))
    assert torch.allclose(together.hidden[:, 1], alone.hidden[:, 0], atol=1e-5)


def test_the_anchor_without_users_is_that_of_the_language_model(body):
    for name, weight in body.named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    states = body.encode(QUERIES)
    embedding = body.backbone.get_input_embeddings()
    start = embedding.weight.mean(0) + body.start + body.evidence.bias
    with torch.no_grad():
        alone = body.anchor_alone(states).hidden[0]
        for query, text in enumerate(QUERIES):
            words = embedding(torch.tensor(body._tokenize(text)))
            plain = body.backbone.model(inputs_embeds=torch.cat([words, start[None]])[None])
            assert torch.allclose(alone[query], plain.last_hidden_state[0, -1], atol=1e-4)
