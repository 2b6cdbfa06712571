"""Answers behind the anchor equal a plain pass over the whole sequence."""

import copy

import pytest
import torch
import torch.nn.functional as F

from qanchor.models import language_body
from qanchor.models.backbone import without_lora
from qanchor.models.crossing import LateCrossing
from qanchor.models.pointing import BodyInput
from tests.unit.models.test_crossing import QUERIES, asked, body, known_of, language_model, users

__all__ = ["asked", "body", "users"]  # fixtures
ANSWERS = ["Yes, a few events.", "No."]


@pytest.fixture(params=[2, 1])
def deep(request, monkeypatch):
    """Return a body of three layers, of which two or one cross."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    monkeypatch.setattr(language_body, "load_backbone", lambda *_: language_model(config))
    body = LateCrossing("deep", text=384, layers=request.param)
    for name, weight in body.named_parameters():
        if "lora_B" in name or name in ("start", "gate"):
            torch.nn.init.normal_(weight, 0, 0.3)
    return body.eval()


def projected(layer, name: str, hidden, answering):
    """Return a projection with LoRA from the anchor on, and without it at the question's words."""
    module = getattr(layer.self_attn, name)
    plain = getattr(module, "base_layer", module)
    return torch.where(answering[:, None], module(hidden), plain(hidden))


@torch.no_grad()
def plain_logits(body, query: str, answer: str, seen, start, told=0.0):
    """Return the logits of an answer by one pass over question, anchor and answer.

    `seen` is what the anchor takes from the user in each crossing layer, `start` what is added to
    it where they begin, and `told` what is added to the answer there, and to the anchor at the end.
    """
    ids = body.tokenizer(query)
    anchor = len(ids)
    ids = torch.tensor([*ids, 0, *body.tokenizer(f" {answer}")])
    embedding = body.backbone.get_input_embeddings()
    hidden = embedding(ids).clone()
    hidden[anchor] = embedding.weight.mean(0)
    n = len(ids)
    places = torch.arange(n)
    causal = torch.zeros(n, n).masked_fill(places > places[:, None], -torch.inf)
    for number, layer in enumerate(body.backbone.model.layers):
        place = number - body.first
        answering = places >= anchor if place >= 0 else torch.zeros(n, dtype=torch.bool)
        if place == 0:
            hidden[anchor] += start
            hidden[anchor + 1 :] += told
        normed = layer.input_layernorm(hidden)
        shape = (1, n, -1, body.head_dim)
        query_, key, value = (
            projected(layer, name, normed, answering).view(shape)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query_, key = (body._rotate(part, places[None])[0] for part in (query_, key))
        heads = []
        for head in range(body.heads):
            kv = head // (body.heads // body.kv_heads)
            logits = query_[:, head] @ key[:, kv].T * body.head_dim**-0.5
            heads.append((logits + causal).softmax(-1) @ value[0, :, kv])
        mixed = torch.stack(heads, 1)
        if place >= 0 and seen is not None:
            gate = torch.sigmoid(body.gate[place])[:, None]
            mixed[anchor] = gate * seen[place] + (1 - gate) * mixed[anchor]
        hidden = hidden + projected(layer, "o_proj", mixed.flatten(1), answering)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    hidden = body.backbone.model.norm(hidden)
    hidden[anchor] += told
    return body.backbone.lm_head(hidden[anchor:-1])


@torch.no_grad()
def fast_logits(body, anchor, states, queries, answers):
    """Return the logits of each answer behind the anchor of its row."""
    encoded = body.encode_answers(queries, answers)
    hidden = body.answer_states(states, anchor, encoded)
    logits = body.answer_logits(anchor, hidden, encoded.mask)
    return logits.split(encoded.mask.sum(1).tolist())


@torch.no_grad()
def test_answers_equal_a_pass_over_the_whole_sequence(deep, asked, monkeypatch):
    users, things, question = asked
    question = question._replace(states=deep.encode(QUERIES))
    known = known_of(users, 2)
    looked = []
    look = LateCrossing._look
    monkeypatch.setattr(
        LateCrossing, "_look", lambda *args: looked.append(look(*args)) or looked[-1]
    )
    anchors, _ = deep.anchor(BodyInput(users, users.numbers, question, things, known))
    torch.nn.init.normal_(deep.tell.weight, 0, 0.1)
    anchors = anchors._replace(told=torch.randn_like(anchors.told))
    of_user, of_query = [0, 1, 2, 3], [0, 1, 1, 0]
    queries = [QUERIES[query] for query in of_query]
    answers = [ANSWERS[0], ANSWERS[1], ANSWERS[0], ANSWERS[1]]
    states = question.states.at(of_query)
    found = fast_logits(deep, anchors.at(of_user, of_query), states, queries, answers)
    for row, (user, query) in enumerate(zip(of_user, of_query, strict=True)):
        seen = [part[user, query].flatten(0, 1) for _, part in looked]
        start = deep.start + deep.evidence(known[user, query])
        told = deep.tell(anchors.told[user, query])
        plain = plain_logits(deep, queries[row], answers[row], seen, start, told)
        torch.testing.assert_close(found[row], plain, atol=1e-4, rtol=0)


@torch.no_grad()
def test_answers_without_a_user_are_those_of_the_language_model(deep):
    states = deep.encode(QUERIES)
    alone = deep.anchor_alone(states).at([0, 0], [0, 1])
    found = fast_logits(deep, alone, states, QUERIES, ANSWERS)
    for row in range(2):
        start = deep.start + deep.evidence.bias
        plain = plain_logits(deep, QUERIES[row], ANSWERS[row], None, start)
        torch.testing.assert_close(found[row], plain, atol=1e-4, rtol=0)
    deep.start.zero_()
    deep.evidence.bias.zero_()
    with without_lora(deep.backbone):
        alone = deep.anchor_alone(states).at([0, 0], [0, 1])
        found = fast_logits(deep, alone, states, QUERIES, ANSWERS)
        ids = deep.tokenizer(QUERIES[0])
        embedding = deep.backbone.get_input_embeddings()
        vectors = embedding(torch.tensor([*ids, 0, *deep.tokenizer(f" {ANSWERS[0]}")]))
        vectors[len(ids)] = embedding.weight.mean(0)
        plain = deep.backbone(inputs_embeds=vectors[None]).logits[0, len(ids) : -1]
    torch.testing.assert_close(found[0], plain, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_shut_gate_is_no_user(deep, asked):
    users, things, question = asked
    question = question._replace(states=deep.encode(QUERIES))
    shut = copy.deepcopy(deep)
    shut.gate.fill_(-1e4)
    shut.evidence.weight.zero_()
    anchors, _ = shut.anchor(BodyInput(users, users.numbers, question, things, known_of(users, 2)))
    alone = shut.anchor_alone(question.states)
    for part, expected in zip(anchors, alone, strict=True):
        torch.testing.assert_close(part, expected.expand_as(part), atol=1e-4, rtol=0)


@torch.no_grad()
def test_scores_are_log_probabilities_beside_those_without_a_user(deep, asked):
    users, things, question = asked
    question = question.at([0])._replace(states=deep.encode(QUERIES[:1]))
    anchor, _ = deep.anchor(BodyInput(users, users.numbers, question, things, known_of(users, 1)))
    answers = deep.encode_answers(QUERIES[:1] * 2, ANSWERS)
    scores = deep.score_answers(anchor, question.states, answers)
    alone = deep.anchor_alone(question.states)
    for place, answer in enumerate(ANSWERS):
        ids = torch.tensor(deep.tokenizer(f" {answer}"))
        log_probs = []
        for some in (anchor.at([3], [0]), alone.at([0], [0])):
            (logits,) = fast_logits(deep, some, question.states, QUERIES[:1], [answer])
            log_probs.append(-F.cross_entropy(logits, ids, reduction="sum"))
        assert float(scores[3, place]) == pytest.approx(
            float(log_probs[0] - log_probs[1]), abs=1e-3
        )


def test_an_answer_is_read_alike_in_any_batch_and_remembered(deep):
    together = deep.encode_answers(QUERIES, ANSWERS)
    deep._remembered_answers.clear()
    alone = deep.encode_answers(QUERIES[1:], ANSWERS[1:])
    n = alone.ids.shape[1]
    assert together.mask[1].sum() == n == len(ANSWERS[1]) + 1
    torch.testing.assert_close(together.hidden[1, :n], alone.hidden[0], atol=1e-4, rtol=0)
    assert torch.equal(together.ids[1, :n], alone.ids[0])
    assert list(deep._remembered_answers) == [(QUERIES[1], ANSWERS[1])]
