"""Maths against loops: two `for`s that anyone can check."""

import math

import pytest
import torch
import torch.nn.functional as F

from qanchor.training.losses import autoregressive_loss, contrastive_loss, prototype_loss


def unit(n, dim=8, seed=0):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_loops(u, v, tau, margin, same):
    total = 0.0
    for i in range(len(u)):
        positive = float(u[i] @ v[i])
        negatives = 0.0
        for j in range(len(u)):
            if j == i or (same is not None and same[i, j]):
                continue
            terms = [float(u[i] @ v[j]), float(u[i] @ u[j]), float(v[i] @ v[j])]
            if max(terms) <= positive + margin:
                negatives += sum(math.exp(t / tau) for t in terms)
        total -= math.log(math.exp(positive / tau) / (math.exp(positive / tau) + negatives))
    return total / len(u)


@pytest.mark.parametrize("margin", [-0.2, 0.1, 3.0])
def test_contrastive_equals_loops(margin):
    u, v = unit(12), unit(12, seed=1)
    same = torch.zeros(12, 12, dtype=torch.bool)
    same[2, 5] = same[5, 2] = True
    for mask in (None, same):
        found = contrastive_loss(u, v, 0.2, margin, mask)
        assert found.item() == pytest.approx(
            by_loops(u.double(), v.double(), 0.2, margin, mask), abs=1e-5
        )


def test_contrastive_stays_finite_when_cold_and_has_gradient():
    u, v = unit(6).requires_grad_(), unit(6, seed=1)
    loss = contrastive_loss(u, v, temperature=0.01)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(u.grad).all() and u.grad.abs().sum() > 0


def test_identical_answers_are_no_negatives():
    u, v = unit(4), unit(4, seed=1)
    v[1] = v[0]
    same = (v[:, None] == v[None]).all(-1)
    other = contrastive_loss(u, v, margin=3.0, same=same)
    assert other < contrastive_loss(u, v, margin=3.0)


def test_autoregressive_is_mean_surprise():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([1, 2, 3, 4, 5])
    expected = -sum(math.log(torch.softmax(logits[i], 0)[ids[i]].item()) for i in range(5)) / 5
    assert autoregressive_loss(logits, ids).item() == pytest.approx(expected, abs=1e-5)


def test_prototype_equals_loops():
    u, p, y = unit(9), unit(3, seed=1) * 5, torch.tensor([0, 1, 2] * 3)
    total = 0.0
    for i in range(9):
        scores = [math.exp(float(u[i] @ (p[k] / p[k].norm())) / 0.07) for k in range(3)]
        total -= math.log(scores[y[i]] / sum(scores))
    assert prototype_loss(u, p, y).item() == pytest.approx(total / 9, abs=1e-4)
