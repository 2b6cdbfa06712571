"""Late crossing equals its plain twin, and equals the language model when users are shut out."""

import copy

import numpy as np
import pytest
import torch

import qanchor as qa
from qanchor.data.sample import make_sample_users
from qanchor.errors import WeightsError
from qanchor.models import language_body
from qanchor.models.backbone import CharTokenizer, without_lora
from qanchor.models.crossing import LateCrossing
from qanchor.models.language_body import LEVEL_TOKENS
from qanchor.models.pointing import (
    N_PRIOR_NUMBERS,
    BodyInput,
    question_input,
    thing_input,
    token_input,
    word_fit,
)
from qanchor.models.user_tokens import TokenReader
from tests.tiny import make_model, make_users

QUERIES = ["Will this user travel soon?", "tea"]


@pytest.fixture(scope="module")
def users():
    return make_sample_users(60)


@pytest.fixture(scope="module")
def asked(users):
    """Return tokens of five users, things, and two questions without states."""
    tokens = TokenReader(users, "hash").read()
    question = question_input(QUERIES, "user", "hash", [30, 30], 30)
    return token_input(tokens, np.arange(5)), thing_input(tokens), question


@pytest.fixture
def body():
    torch.manual_seed(0)
    body = LateCrossing("tiny", text=384)
    for name, weight in body.named_parameters():
        if weight.requires_grad and ("lora_B" in name or name in ("start", "gate")):
            torch.nn.init.normal_(weight, 0, 0.3)
    return body.eval()


def known_of(users, queries: int):
    return torch.randn(len(users.which), queries, N_PRIOR_NUMBERS)


@torch.no_grad()
def plain_state(body, users, question, things, known, user: int, query: int):
    """Read one user for one question with loops: keys and values of every token and word."""
    states = question.states.at([query])
    there = torch.cat([torch.ones(LEVEL_TOKENS, dtype=torch.bool), users.which[user] >= 0])
    wide = body.widen(body.user_tokens(users, users.numbers, things)[user][there])
    fit = word_fit(question, things)[query][users.which[user].clamp(min=0)]
    fit = torch.cat([torch.zeros(LEVEL_TOKENS), fit])[there]
    hidden = states.hidden[0] + body.start + body.evidence(known[user, query])
    position = states.length[:1, None]
    for place, layer in enumerate(body.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        asked = attention.q_proj(normed).view(1, 1, body.heads, -1)
        turned = body._rotate(asked, position)[0, 0]
        own_key = attention.k_proj(normed).view(1, 1, body.kv_heads, -1)
        own_key = body._rotate(own_key, position)[0, 0]
        own_value = attention.v_proj(normed).view(body.kv_heads, -1)
        held = wide * layer.input_layernorm.weight
        keys = attention.k_proj(held).view(len(held), body.kv_heads, -1)
        values = attention.v_proj(held).view(len(held), body.kv_heads, -1)
        heads = []
        for head in range(body.heads):
            kv = head // (body.heads // body.kv_heads)
            scale = body.head_dim**-0.5
            logits = keys[:, kv] @ asked[0, 0, head] * scale + body.fit_scale[place, head] * fit
            seen = logits.softmax(0) @ values[:, kv]
            words = torch.cat([states.keys[0, place, :, kv], own_key[kv : kv + 1]])
            said = torch.cat([states.values[0, place, :, kv], own_value[kv : kv + 1]])
            heard = (words @ turned[head] * scale).softmax(0) @ said
            gate = torch.sigmoid(body.gate[place, head])
            heads.append(gate * seen + (1 - gate) * heard)
        hidden = hidden + attention.o_proj(torch.cat(heads))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return body.state(body.backbone.model.norm(hidden))


def test_crossing_equals_its_plain_twin(body, asked):
    users, things, question = asked
    question = question._replace(states=body.encode(QUERIES))
    known = known_of(users, 2)
    with torch.no_grad():
        state, attention = body(BodyInput(users, users.numbers, question, things, known))
    for user in range(5):
        for query in range(2):
            plain = plain_state(body, users, question, things, known, user, query)
            assert torch.allclose(state[user, query], plain, atol=1e-4)
    has_tokens = (users.which >= 0).any(1)
    assert torch.allclose(attention.sum(-1)[has_tokens], torch.ones(int(has_tokens.sum()), 2))


def test_with_users_shut_out_the_state_is_that_of_the_language_model(body, asked):
    assert_shut_is_the_language_model(body, asked)


@torch.no_grad()
def assert_shut_is_the_language_model(body, asked):
    users, things, question = asked
    question = question._replace(states=body.encode(QUERIES))
    shut = copy.deepcopy(body)
    shut.gate.fill_(-1e4)
    shut.start.zero_()
    for weight in shut.evidence.parameters():
        weight.zero_()
    with without_lora(shut.backbone):
        state, _ = shut(BodyInput(users, users.numbers, question, things, known_of(users, 2)))
        ids = torch.tensor([shut.tokenizer(QUERIES[0])])
        embedding = shut.backbone.get_input_embeddings()
        anchor = embedding.weight.mean(0)[None, None]
        vectors = torch.cat([embedding(ids), anchor], 1)
        alone = shut.backbone.model(inputs_embeds=vectors).last_hidden_state[0, -1]
    assert torch.allclose(state[:, 0], shut.state(alone).expand(5, -1), atol=1e-4)


def test_a_question_is_read_alike_in_any_batch_and_remembered(body):
    together = body.encode(QUERIES)
    body._remembered.clear()
    alone = body.encode(QUERIES[1:])
    assert torch.allclose(together.hidden[1], alone.hidden[0], atol=1e-4)
    length = int(alone.length[0])
    assert torch.allclose(together.keys[1, :, :length], alone.keys[0, :, :length], atol=1e-4)
    assert body.encode(QUERIES[1:]).hidden is not None and len(body._remembered) == 1


def test_a_question_that_is_too_long_is_refused(body):
    with pytest.raises(ValueError, match="has 400 tokens, but the model reads"):
        body.encode(["a" * 400])


def test_a_body_without_a_crossing_layer_is_refused():
    with pytest.raises(ValueError, match="layers is 0"):
        LateCrossing("tiny", text=384, layers=0)


def language_model(config):
    """Return what `load_backbone` gives for a random model of a configuration."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval(), CharTokenizer()


def test_a_language_model_of_another_type_is_refused(monkeypatch):
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=2)
    monkeypatch.setattr(language_body, "load_backbone", lambda *_: language_model(config))
    with pytest.raises(WeightsError, match="'some/gpt' is of type 'gpt2'"):
        LateCrossing("some/gpt", text=384)


def test_qwen_is_read_as_llama_is(monkeypatch, asked):
    """Its projections have biases."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    monkeypatch.setattr(language_body, "load_backbone", lambda *_: language_model(config))
    qwen = LateCrossing("qwen", text=384).eval()
    with torch.no_grad():
        for layer in qwen.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                torch.nn.init.normal_(getattr(layer.self_attn, name).base_layer.bias)
    assert_shut_is_the_language_model(qwen, asked)


def test_what_the_language_model_reads_changes_the_anchor():
    model = make_model("crossing")
    tokens = qa.Engine(model).prefill(make_users()).tokens
    question = question_input(QUERIES, "user", "hash", [30, 30], 30)
    question = model.reader.read_words(question, QUERIES)
    own = token_input(tokens, np.arange(20))
    others = token_input(tokens, np.roll(np.arange(20), 1))
    things = thing_input(tokens)
    with torch.no_grad():
        score = model.reader(own, question, things).alone
        shuffled = model.reader(others, question, things).alone
    assert (score - shuffled).abs().mean() > 1e-3
    assert torch.allclose(score.roll(1, 0), shuffled, atol=1e-4)


def test_a_large_language_model_trains_in_bfloat16_where_that_is_fast(body, monkeypatch):
    seen = []

    @language_body.in_bfloat16_if_training
    def step(self):
        seen.append(torch.is_autocast_enabled("cpu"))

    monkeypatch.setattr(language_body, "has_fast_bf16", lambda device: True)
    width = body.backbone.config.hidden_size
    for training, least in ((True, width), (True, width + 1), (False, width)):
        monkeypatch.setattr(language_body, "MIN_BFLOAT16_WIDTH", least)
        step(body.train(training))
    assert seen == [True, False, False]
