"""Attention by modality is what full eager attention says, adds up, and stands beside what deletion
does.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.analysis.attention import (
    modality_attention,
    modality_importance,
    rank_agreement,
    record_attention,
    row_names,
    without_modality,
)
from qanchor.models.collate import collate_users
from qanchor.models.prefix_encoder import EVENT, GROUP, HABIT, MODALITY
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from tests.tiny import make_engine, make_model, make_users

QUERY = "Will this user travel soon?"


@pytest.fixture(scope="module", params=["sdpa", "eager", "append_only"])
def engine(request):
    changes = (
        {"token_order": "append_only"}
        if request.param == "append_only"
        else {"attention": request.param}
    )
    return make_engine(make_model(**changes))


def by_hand(engine, users, user: str, query: str) -> np.ndarray:
    """Read one user uncached with every weight kept, and add up the anchor's row with a loop:
    (layer, head, row).
    """
    model, names = engine.model, row_names(engine.model.preprocessor)
    readings = model.preprocessor.transform(users)
    batch = collate_users(readings, [readings.users.index(user)])
    prefix, asked = model.encode_prefix(batch), model.build_query_batch([query])
    place = prefix.mask.shape[1] + int(asked.anchor[0, 0])
    with torch.no_grad(), record_attention(model, place) as looks:
        model.forward_uncached(prefix, asked)
    out = np.zeros((len(looks), looks[0].shape[1], len(names)))
    groups = iter(
        [
            "summary" if g in ("time", "counts", "words") else "tabular"
            for g in model.preprocessor.groups()
        ]
    )
    first = int(prefix.mask[0].float().argmax())
    for key in range(looks[0].shape[-1]):
        if key >= prefix.mask.shape[1]:
            name = "query"
        elif not prefix.mask[0, key]:
            continue
        else:
            kind = int(prefix.kind[0, key])
            name = next(groups) if kind == GROUP else "user"
            if kind in (MODALITY, HABIT, EVENT):
                name = model.preprocessor.modalities[int(prefix.modality[0, key])]
            name = "sink" if key == first else name
        for layer in range(len(out)):
            out[layer, :, names.index(name)] += looks[layer][0, :, key].numpy()
    return out


def test_the_frame_is_what_full_attention_says(engine):
    users, names = make_users(), row_names(engine.model.preprocessor)
    cache, before = (
        engine.prefill(users, tokens=40),
        engine.model.backbone.config._attn_implementation,
    )
    frame = modality_attention(engine, cache, QUERY, by_head=True)
    assert list(frame.columns) == [
        "user",
        "query",
        "layer",
        "head",
        "modality",
        "weight",
        "per_token",
    ]
    assert list(dict.fromkeys(frame["user"])) == list(users.ids) and set(frame["query"]) == {QUERY}
    np.testing.assert_allclose(
        frame.groupby(["user", "layer", "head"])["weight"].sum(), 1, atol=1e-5
    )
    for user in ("a", "d", "none"):
        wide = frame[frame["user"] == user].pivot(
            index=["layer", "head"], columns="modality", values="weight"
        )
        hand = by_hand(engine, users, user, QUERY)
        got = wide.reindex(columns=names).fillna(0).to_numpy().reshape(hand.shape)
        np.testing.assert_allclose(got, hand, atol=1e-4)
    assert engine.model.backbone.config._attn_implementation == before  # as it was


def test_heads_are_averaged_and_slots_counted(engine):
    users = make_users()
    cache = engine.prefill(users, budget_gb=0)  # nothing kept: read again
    heads, mean = (
        modality_attention(engine, cache, QUERY, ["g", "a"], by_head=True),
        modality_attention(engine, cache, QUERY, ["g", "a"]),
    )
    assert list(dict.fromkeys(mean["user"])) == ["g", "a"] and set(mean["head"]) == {-1}
    expected = heads.groupby(["user", "layer", "modality"], sort=False)["weight"].mean()
    found = mean.set_index(["user", "layer", "modality"])["weight"]
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), atol=1e-6)
    slots = (mean["weight"] / mean["per_token"]).round().astype(int)
    words = len(engine.model.tokenize_query(QUERY)) + 1
    assert (slots[mean["modality"] == "sink"] == 1).all() and (
        slots[mean["modality"] == "query"] == words
    ).all()
    group = next(g for g in cache.groups if cache.ids.index("a") in g.rows)
    held = group.prefix.length()[list(group.rows).index(cache.ids.index("a"))]
    assert slots[(mean["user"] == "a") & (mean["layer"] == 0)].sum() == words + int(held)


def test_a_soft_prompt_has_a_row_of_its_own(engine):
    model, cache = engine.model, engine.prefill(make_users())
    width, dim = len(model.user_emb), model.config.embedding_dim
    draw = torch.Generator().manual_seed(0)
    prompt = SoftPrompt(
        QUERY,
        (0, 1),
        torch.randn(3, width, generator=draw),
        torch.zeros(384),
        torch.eye(2, dim),
        0.1,
    )
    frame = modality_attention(engine, cache, prompt, ["a"])
    row = frame[frame["modality"] == "soft prompt"]
    assert len(row) == 2 and (row["weight"] > 0).all() and set(frame["query"]) == {QUERY}
    np.testing.assert_allclose(row["weight"] / row["per_token"], 3)
    np.testing.assert_allclose(frame.groupby("layer")["weight"].sum(), 1, atol=1e-5)


def test_unread_users_are_refused(engine):
    with pytest.raises(
        KeyError, match=r"User 'zoe' is not among the 9 that were read\. Prefill it first"
    ):
        modality_attention(engine, engine.prefill(make_users()), QUERY, ["a", "zoe"])
    with pytest.raises(ValueError, match="No users selected"):
        modality_attention(engine, engine.prefill(make_users()), QUERY, [])


def test_a_modality_that_bears_the_name_of_a_row_is_refused(engine):
    with pytest.raises(
        ValueError, match="A modality is named 'query', which is reserved for tokens of no modality"
    ):
        row_names(replace(engine.model.preprocessor, modalities=("bill", "query", "search")))


def test_deletion_is_reading_anew_without(engine):
    users = make_users()
    seen = []
    found = modality_importance(
        engine, users, QUERY, progress=lambda done, total: seen.append((done, total))
    )
    assert (
        seen[-1] == (4, 4)
        and (found["deletion_effect"] >= 0).all()
        and found["deletion_effect"].max() > 1e-3
    )
    assert set(found.loc[found["user"] == "none", "modality"]) == {
        "tabular"
    }  # nothing else to delete
    assert set(found.loc[found["user"] == "d", "modality"]) == {"bill", "tabular"}
    bare = replace(users, events=users.events[(users.events["modality"] != "app").to_numpy()])
    both = [engine.embed(engine.prefill(some), QUERY)[0] for some in (users, bare)]
    row = found[(found["user"] == "a") & (found["modality"] == "app")].iloc[0]
    assert row["deletion_effect"] == pytest.approx(1 - float(both[0] @ both[1]), abs=1e-5)
    assert (
        row["events"]
        == ((users.history()["user"] == "a") & (users.history()["modality"] == "app")).sum()
    )
    assert without_modality(users, "tabular").tabular.isna().all().all() and len(
        without_modality(users, "tabular").events
    ) == len(users.events)
    lost = without_modality(users, "app")
    assert (
        lost.ids == users.ids
        and not (lost.events["modality"] == "app").any()
        and lost.modalities == users.modalities
    )


def test_agreement_ranks_within_a_user():
    looks = pd.DataFrame({"user": list("aaabbbcc"), "layer": 0, "modality": list("xyzxyzxy")})
    looks["weight"] = [0.5, 0.3, 0.2, 0.5, 0.3, 0.2, 0.6, 0.4]
    looks = pd.concat([looks, looks.assign(layer=1)])
    found = looks[looks["layer"] == 0].assign(
        deletion_effect=[0.9, 0.2, 0.1, 0.1, 0.2, 0.9, 0.1, 0.2]
    )
    told = rank_agreement(looks, found.drop(columns=["weight", "layer"]))
    assert told["user"].tolist() == ["a", "b"] and told["correlation"].tolist() == pytest.approx(
        [1, -1]
    )
