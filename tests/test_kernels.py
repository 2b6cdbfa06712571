"""Stacked heads attend as repeated keys do, and as a loop over heads says."""

import torch
from tiny import QUERIES, make_engine, make_model, make_users
from torch import nn

from qanchor import kernels
from qanchor.kernels import grouped


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
    found, weights = grouped(torch.sum, nn.Identity(), query, key, value, mask, scaling=8**-0.5)
    torch.testing.assert_close(found, by_hand(query, key, value, mask), atol=1e-5, rtol=1e-5)
    assert weights is None


def test_a_model_says_the_same_without(monkeypatch):
    engine, users, called = make_engine(make_model()), make_users(), []
    assert engine.model.backbone.config._attn_implementation == "grouped"
    few = kernels.written_out
    monkeypatch.setattr(kernels, "written_out", lambda *given: (called.append(1), few(*given))[1])
    cache = engine.prefill(users)
    fast = engine.embed(cache, QUERIES[0])
    assert called  # TINY has two heads for each key
    called.clear()
    monkeypatch.setattr(kernels, "FEW", 0)
    plain = engine.embed(cache, QUERIES[0])
    assert not called
    torch.testing.assert_close(torch.from_numpy(fast), torch.from_numpy(plain), atol=1e-5, rtol=0)
