"""Attention by modality is the sum of the gradients of a user's tokens, adds up, and stands beside
what deletion does.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.analysis.attention import (
    ROW_OF_KIND,
    TABULAR,
    attention_rows,
    modality_attention,
    modality_importance,
    rank_agreement,
    without_modality,
)
from tests.fitted import fitted_engine, sample_users

QUERY = "Will this user come back?"


@pytest.fixture(scope="module")
def cache():
    return fitted_engine().prefill(sample_users())


def test_the_frame_is_the_gradients_of_the_tokens_added_up_by_a_loop(cache, monkeypatch):
    monkeypatch.setattr("qanchor.models.pointing.USERS_PER_PASS", 16)
    batches = fitted_engine().prefill(sample_users())
    frame = modality_attention(fitted_engine(), batches, QUERY)
    assert list(frame.columns) == ["user", "query", "modality", "weight", "per_token"]
    assert list(dict.fromkeys(frame["user"])) == list(cache.ids) and set(frame["query"]) == {QUERY}
    np.testing.assert_allclose(frame.groupby("user")["weight"].sum(), 1, atol=1e-5)
    tokens = cache.tokens
    gradients = dict(fitted_engine_gradients(cache))
    for user in cache.ids[::20]:
        row = cache.ids.index(user)
        total = {}
        number = {}
        for which, gradient in zip(tokens.which[row], gradients[row], strict=False):
            if which >= 0:
                thing = tokens.things[which]
                name = ROW_OF_KIND.get(thing.kind, thing.modality)
                total[name] = total.get(name, 0) + gradient
                number[name] = number.get(name, 0) + 1
        whole = sum(abs(value) for value in total.values())
        found = frame[frame["user"] == user].set_index("modality")
        assert set(found.index) == set(total)
        for name, value in total.items():
            assert found["weight"][name] == pytest.approx(abs(value) / whole, abs=1e-4)
            per_token = found["weight"][name] / number[name]
            assert found["per_token"][name] == pytest.approx(per_token, rel=1e-5)


def fitted_engine_gradients(cache):
    for rows, gradients in fitted_engine().iter_token_gradients(cache, QUERY):
        yield from zip(rows.tolist(), gradients, strict=True)


def test_a_soft_prompt_asks_something_else(cache):
    engine = fitted_engine()
    plain = modality_attention(engine, cache, QUERY)
    prompt, _ = qa.tune_prompt(engine, cache, QUERY, sample_users().label("Active"), steps=2)
    far = replace(prompt, offset=prompt.offset + 1)
    tuned = modality_attention(engine, cache, far)
    assert set(tuned["query"]) == {QUERY}
    assert not np.allclose(tuned["weight"], plain["weight"], atol=1e-4)


def test_a_modality_that_bears_the_name_of_a_row_is_refused():
    with pytest.raises(ValueError, match="A modality is named 'time of day', which is reserved"):
        attention_rows(("bill", "time of day"))


def test_deletion_is_reading_again_without():
    engine = fitted_engine()
    users = sample_users().select(list(sample_users().ids[:6]))
    found = modality_importance(engine, users, QUERY)
    assert (found["deletion_effect"] >= 0).all() and found["deletion_effect"].max() > 1e-3
    bare = replace(users, events=users.events[(users.events["modality"] != "app").to_numpy()])
    both = [engine.embed(engine.prefill(some), QUERY) for some in (users, bare)]
    moved = pd.Series(1 - (both[0] * both[1]).sum(1), users.ids)
    rows = found[found["modality"] == "app"].set_index("user")
    np.testing.assert_allclose(rows["deletion_effect"], moved[rows.index], atol=1e-5)
    past = users.history()
    assert set(rows.index) == set(past.loc[past["modality"] == "app", "user"])
    assert without_modality(users, TABULAR).tabular.isna().all(axis=None)
    assert len(without_modality(users, TABULAR).events) == len(users.events)
    lost = without_modality(users, "app")
    assert lost.ids == users.ids and lost.modalities == users.modalities
    assert not (lost.events["modality"] == "app").any()


def test_agreement_ranks_within_a_user():
    looks = pd.DataFrame({"user": list("aaabbbcc"), "modality": list("xyzxyzxy")})
    looks["weight"] = [0.5, 0.3, 0.2, 0.5, 0.3, 0.2, 0.6, 0.4]
    effects = [0.9, 0.2, 0.1, 0.1, 0.2, 0.9, 0.1, 0.2]
    found = rank_agreement(looks, looks[["user", "modality"]].assign(deletion_effect=effects))
    assert found["user"].tolist() == ["a", "b"]
    assert found["correlation"].tolist() == pytest.approx([1, -1])
