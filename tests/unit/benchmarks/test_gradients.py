"""Gradient times input is the slope of the score when a modality's inputs are scaled."""

from dataclasses import replace

import numpy as np
import torch

from qanchor.analysis.attention import row_names, slot_row_codes
from qanchor.models.collate import collate_users
from tests.benchmarks.gradients import coarse_row_matrix, gradient_x_input
from tests.tiny import make_engine, make_model, make_users

QUERY = "Will this user travel soon?"


def test_gradients_are_those_of_small_steps():
    """Scale one modality's slots and numbers a little: the score moves as gradient times input
    says.
    """
    engine = make_engine(make_model())
    users = make_users().select(["a", "e", "f"])
    model, names = engine.model, row_names(engine.model.preprocessor)
    anchors = engine.embed(engine.prefill(users), QUERY).astype(float)
    shares = gradient_x_input(engine, users, QUERY, anchors)
    np.testing.assert_allclose(sum(shares.values()), 1, atol=1e-5)
    prefix = model.encode_prefix(collate_users(model.preprocessor.transform(users), [0, 1, 2]))
    apart = torch.from_numpy(anchors - anchors.mean(0)).float()
    asked, query = model.build_query_batch([QUERY], 3), model.encode_queries([QUERY]).expand_to(3)
    code, step, moved = slot_row_codes(model.preprocessor, prefix), 1e-3, {}
    for name in names:
        ends = []
        for sign in (1, -1):
            grow = 1 + sign * step * (code == names.index(name)).float()[..., None]
            numbers = 1 + sign * step * coarse_row_matrix(model.preprocessor)[:, names.index(name)]
            bent = replace(prefix, tokens=prefix.tokens * grow, coarse=prefix.coarse * numbers)
            with torch.no_grad():
                ends.append((model.anchors(bent, asked, query)[0][:, 0] * apart).sum(1))
        moved[name] = ((ends[0] - ends[1]) / (2 * step)).abs().numpy()
    total = sum(moved.values())
    for name in names:
        np.testing.assert_allclose(shares[name], moved[name] / total, atol=0.03)
