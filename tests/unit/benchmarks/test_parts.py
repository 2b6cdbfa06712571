"""Parts of embeddings recombine what the model is made of: with nothing changed they are the embeddings that
the engine gives, and each loses what it should and nothing else.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qanchor.inference.engine import Engine
from tests.benchmarks.parts import (
    control_embeddings,
    language_embeddings,
    read_states,
    shuffled_rows,
    whole_embeddings,
)
from tests.benchmarks.tables import CONTROLS
from tests.tiny import QUERIES, make_model, make_users


def served(changed=lambda model: None, **changes):
    """Read all tiny users with a model of some changes: engine, states and plain embeddings."""
    model = make_model(**changes)
    with torch.no_grad():
        changed(model)
    engine = Engine(model)
    cache = engine.prefill(make_users(), tokens=128)
    states = read_states(engine, cache, QUERIES)
    return engine, states, engine.embed(cache, list(QUERIES))


@torch.no_grad()
def without_coarse(model):
    """Let the coarse numbers reach no embedding: the skip is zero, and there is no profile."""
    model.skip.out.weight.zero_()
    model.skip.out.bias.zero_()
    model.profile.zero_()


def differ(some, others):
    """Say whether every user's embedding of every query differs."""
    return (np.abs(some - others).max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize("changes", [{}, {"gated_skip": False}, {"token_order": "append_only"}])
def test_recombining_with_nothing_changed_gives_the_embeddings_of_the_engine(changes):
    engine, states, embeddings = served(**changes)
    again = whole_embeddings(engine.model, states)
    np.testing.assert_allclose(again, embeddings, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(again, axis=-1), 1, atol=1e-5)


def test_states_without_a_cache_of_keys_are_the_same():
    engine, states, _ = served()
    cache = engine.prefill(make_users(), budget_gb=0)
    assert all(batch.kv is None for batch in cache.groups)
    again = read_states(engine, cache, QUERIES)
    torch.testing.assert_close(again.hidden, states.hidden, atol=1e-4, rtol=0)
    assert torch.equal(again.coarse, states.coarse)


@pytest.mark.parametrize("users", [2, 3, 50])
def test_a_shuffle_gives_everybody_the_row_of_another(users):
    rows = shuffled_rows(users)
    assert sorted(rows) == list(range(users)) and (rows != np.arange(users)).all()
    assert np.array_equal(rows, shuffled_rows(users, seed=0))
    assert users < 50 or not np.array_equal(rows, shuffled_rows(users, seed=1))


def test_every_control_differs_from_the_embedding_and_has_its_width():
    engine, states, embeddings = served()
    found = control_embeddings(engine.model, states)
    assert set(found) == {"anchor", *CONTROLS}
    np.testing.assert_allclose(found.pop("anchor"), embeddings, atol=1e-4)
    for control, changed in found.items():
        assert changed.shape == embeddings.shape and np.isfinite(changed).all(), control
        assert differ(changed, embeddings), control
    profile = engine.model.config.profile_dim
    assert not found["llm_alone"][..., -profile:].any()


def test_without_the_skip_a_user_that_is_not_read_is_like_any_other():
    engine, states, embeddings = served(without_coarse)
    found = control_embeddings(engine.model, states)
    same = np.broadcast_to(found["hidden_alone"][:1], embeddings.shape)
    np.testing.assert_allclose(found["hidden_alone"], same, atol=1e-6)
    assert differ(embeddings[1:], np.broadcast_to(embeddings[:1], embeddings[1:].shape))
    assert not found["skip_alone"].any(), "nothing is left"
    rows = shuffled_rows(len(embeddings))
    np.testing.assert_allclose(found["shuffled"], embeddings[rows], atol=1e-5)
    np.testing.assert_allclose(found["llm_alone"], embeddings, atol=1e-5)


def test_a_run_without_a_skip_has_no_skip_alone():
    engine, states, embeddings = served(gated_skip=False)
    found = control_embeddings(engine.model, states)
    assert set(found) == {"anchor", *CONTROLS} - {"skip_alone"}
    np.testing.assert_allclose(found["llm_alone"], embeddings, atol=1e-5)
    np.testing.assert_allclose(found["shuffled"], found["llm_alone_shuffled"], atol=1e-6)


def test_a_shuffle_moves_the_states_and_leaves_the_skip():
    engine, states, _ = served()
    found = control_embeddings(engine.model, states, seed=3)
    rows = shuffled_rows(len(states.hidden), seed=3)
    np.testing.assert_allclose(found["llm_alone_shuffled"], found["llm_alone"][rows], atol=1e-6)
    assert differ(found["shuffled"], whole_embeddings(engine.model, states)[rows]), "other skips"
    noise = states._replace(hidden=torch.randn_like(states.hidden))
    for control in ("skip_alone", "hidden_alone"):
        again = control_embeddings(engine.model, noise)[control]
        np.testing.assert_array_equal(again, found[control])


def test_parts_add_up_to_the_embedding():
    engine, states, embeddings = served()
    model, one = engine.model, 4
    for place, query in enumerate(QUERIES):
        encoding = model.encode_queries([query])
        alone = encoding.hidden[0]
        moved = alone + model.skip.share * (states.hidden[one, place] - alone)
        language = model.projection(moved)
        skip = model.skip(states.coarse[one : one + 1], encoding.text_embedding[None])[0, 0]
        own = F.normalize(language + skip, dim=-1).detach().numpy()
        whole = embeddings[one, place][: len(own)]
        np.testing.assert_allclose(whole / np.linalg.norm(whole), own, atol=1e-4)
        wanted = F.normalize(language, dim=-1).detach().numpy()
        found = language_embeddings(model, states)[one, place][: len(own)]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
