"""Stacked heads attend as repeated keys do, and as a loop over heads says."""

import torch
from torch import nn

from qanchor.models import attention as attention_module
from qanchor.models.attention import grouped_attention
from tests.tiny import QUERIES, make_engine, make_model, make_users


def by_hand(query, key, value, mask):
    """Attend head by head, user by user."""
    out = torch.zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    for user in range(query.shape[0]):
        for head in range(query.shape[1]):
            shared = head // (query.shape[1] // key.shape[1])
            score = query[user, head] @ key[user, shared].T / query.shape[-1] ** 0.5
            weight = score.masked_fill(~mask[user, 0], -torch.inf).softmax(-1)
            out[user, :, head] = weight @ value[user, shared]
    return out


def test_stacked_heads_attend_as_a_loop_says():
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 5, 8, generator=draw)
    key, value = (torch.randn(2, 2, 9, 8, generator=draw) for _ in range(2))
    mask = torch.rand(2, 1, 5, 9, generator=draw) > 0.4
    mask[..., 0] = True
    found, weights = grouped_attention(
        torch.sum, nn.Identity(), query, key, value, mask, scaling=8**-0.5
    )
    torch.testing.assert_close(found, by_hand(query, key, value, mask), atol=1e-5, rtol=1e-5)
    assert weights is None


def test_questions_that_cannot_see_each_other_are_attended_in_pieces(monkeypatch):
    """Three questions of 5 tokens behind 7 slots, at most 8 at once: the same as all in one,
    forward and back.
    """
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 15, 8, generator=draw).requires_grad_()
    key, value = (torch.randn(2, 2, 22, 8, generator=draw).requires_grad_() for _ in range(2))
    seen = torch.rand(2, 1, 15, 7, generator=draw) > 0.3
    mask = torch.cat(
        [seen, torch.block_diag(*[torch.ones(5, 5).tril()] * 3).bool().expand(2, 1, -1, -1)], -1
    )
    found, grads = [], []
    for few, cuts in ((64, 1), (8, 3), (11, 2)):
        monkeypatch.setattr(attention_module, "MAX_QUERY_TOKENS", few)
        assert len(attention_module.attention_pieces(mask)) == cuts
        out = grouped_attention(torch.sum, nn.Identity(), query, key, value, mask, scaling=8**-0.5)[
            0
        ]
        found.append(out)
        grads.append(torch.autograd.grad((out**2).sum(), (query, key, value)))
    torch.testing.assert_close(found[0], by_hand(query, key, value, mask), atol=1e-5, rtol=1e-5)
    for out, grad in zip(found[1:], grads[1:], strict=True):
        torch.testing.assert_close(out, found[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grad, grads[0], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_cut_is_left_to_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(attention_module, "MAX_QUERY_TOKENS", 8)
    query, key = torch.randn(1, 6, 15, 8), torch.randn(1, 2, 22, 8)
    mask = torch.cat([torch.ones(15, 7), torch.ones(15, 15).tril()], -1).bool()[None, None]
    plain = lambda module, query, *given, **how: (query.transpose(1, 2), None)  # noqa: E731
    assert torch.equal(
        grouped_attention(plain, nn.Identity(), query, key, key, mask)[0], query.transpose(1, 2)
    )
    apart = torch.cat(
        [torch.ones(15, 7), torch.block_diag(torch.ones(12, 12), torch.ones(3, 3))], -1
    ).bool()[None, None]
    assert [some.stop for some in attention_module.attention_pieces(apart)] == [12, 15]
    found = grouped_attention(plain, nn.Identity(), query, key, key, apart)[
        0
    ]  # a question of twelve is too long
    assert torch.equal(found, query.transpose(1, 2))


def test_a_model_says_the_same_without(monkeypatch):
    engine, users, called = make_engine(make_model()), make_users(), []
    assert engine.model.backbone.config._attn_implementation == "grouped"
    few = attention_module.explicit_attention
    monkeypatch.setattr(
        attention_module, "explicit_attention", lambda *given: (called.append(1), few(*given))[1]
    )
    cache = engine.prefill(users)
    fast = engine.embed(cache, QUERIES[0])
    assert called  # TINY has two heads for each key
    called.clear()
    monkeypatch.setattr(attention_module, "MAX_QUERY_TOKENS", 0)
    plain = engine.embed(cache, QUERIES[0])
    assert not called
    torch.testing.assert_close(torch.from_numpy(fast), torch.from_numpy(plain), atol=1e-5, rtol=0)
