"""The cached path gives what the plain one gives, for any users, queries, padding and batches, and
never changes a cache.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.inference.engine import Engine
from qanchor.models.backbone import new_kv_cache
from qanchor.models.collate import USER_EMB, collate_queries, collate_users
from tests.tiny import QUERIES, make_engine, make_model, make_users, one_by_one

MODELS = {name: {"attention": name} for name in ("sdpa", "eager")}
MODELS |= {
    "append_only": {"token_order": "append_only"},
    "no habits": {"max_frequent_events": 0},
    "few slots": {"max_recent_events": 0, "max_frequent_events": 2},
}


@pytest.fixture(scope="module", params=MODELS)
def twin(request):
    """A model's engine, and what the model itself says uncached, user by user and query by query."""
    users, model = make_users(), make_model(**MODELS[request.param])
    return users, make_engine(model), one_by_one(model, users)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(make_model())


@pytest.fixture(scope="module")
def cache(engine):
    return engine.prefill(make_users())


def tensors(cache) -> list[torch.Tensor]:
    layers = [layer for group in cache.groups for layer in group.kv.layers]
    return [t.clone() for layer in layers for t in (layer.keys, layer.values)] + [
        g.prefix.tokens.clone() for g in cache.groups
    ]


def test_the_users_are_ragged(cache):
    lengths = np.concatenate([group.prefix.length() for group in cache.groups])
    assert len(set(lengths)) >= 4 and "none" in cache.ids and cache.ids == make_users().ids


@pytest.mark.parametrize(
    ("side", "tokens"), [("left", 10**6), ("right", 10**6), ("left", 40), ("right", 1)]
)
def test_cached_equals_uncached(twin, side, tokens):
    users, engine, plain = twin
    cache = engine.prefill(users, side=side, tokens=tokens)
    assert len(cache.groups) == {10**6: 1, 1: len(users)}.get(tokens, len(cache.groups)) and len(
        cache
    ) == len(users)
    z = engine.embed(cache, QUERIES)
    assert z.dtype == np.float32 and z.shape == (len(users), len(QUERIES), 32)
    np.testing.assert_allclose(z, plain, atol=1e-4, rtol=0)


def test_a_wrong_position_would_be_noticed(engine):
    """Else the test above would prove nothing: the model must care where a query stands and whom it
    may see.
    """
    cache = engine.prefill(make_users(), tokens=10**6)
    good = engine.embed(cache, QUERIES[0])
    ids = [engine.model.tokenize_query(QUERIES[0])]
    asked, gate, group = (
        collate_queries([ids]),
        engine.model.encode_queries([QUERIES[0]]),
        cache.groups[0],
    )
    moved = engine._embed_batch(group, [(replace(asked, offset=asked.offset + 1), gate)])[:, 0]
    bare = replace(group.prefix, mask=torch.ones_like(group.prefix.mask))
    unmasked = engine._embed_batch(replace(group, prefix=bare), [(asked, gate)])[:, 0]
    rows = group.rows
    assert np.abs(moved - good[rows]).max() > 1e-3 and np.abs(unmasked - good[rows]).max() > 1e-3


def test_a_list_equals_one_by_one_in_any_order(engine, cache):
    alone = np.stack([engine.embed(cache, query) for query in QUERIES], 1)
    assert alone.shape == (9, 4, 32)
    for order in itertools.permutations(range(len(QUERIES)), 3):
        np.testing.assert_allclose(
            engine.embed(cache, [QUERIES[i] for i in order]),
            alone[:, list(order)],
            atol=1e-5,
            rtol=0,
        )


def test_an_equal_query_gives_the_same_and_another_does_not(engine, cache):
    first, again, other = (
        engine.embed(cache, query) for query in (QUERIES[0], QUERIES[0], QUERIES[2])
    )
    assert np.array_equal(first, again) and np.abs(first - other).max(1).min() > 1e-3
    both = engine.embed(cache, [QUERIES[0], QUERIES[0]])
    np.testing.assert_allclose(both[:, 0], both[:, 1], atol=1e-5, rtol=0)


def test_rows_have_unit_length(engine, cache):
    np.testing.assert_allclose(np.linalg.norm(engine.embed(cache, QUERIES), axis=-1), 1, atol=1e-5)


def test_asking_leaves_the_cache_as_it_was(engine, cache):
    before = tensors(cache)
    engine.embed(cache, QUERIES)
    engine.generate(cache, "c", QUERIES[0], limit=5)
    next(engine.iter_embed(cache, [QUERIES[0]]))
    after = tensors(cache)
    assert len(before) == len(after) and all(
        torch.equal(a, b) for a, b in zip(before, after, strict=True)
    )


def test_beyond_the_memory_budget_users_are_read_again(engine, cache):
    poor = engine.prefill(make_users(), budget_gb=0)
    assert all(group.kv is None for group in poor.groups) and all(
        group.kv is not None for group in cache.groups
    )
    assert np.array_equal(engine.embed(poor, QUERIES), engine.embed(cache, QUERIES))
    assert engine.generate(poor, "a", QUERIES[0], limit=8) == engine.generate(
        cache, "a", QUERIES[0], limit=8
    )


def test_who_else_is_read_does_not_matter(engine, cache):
    users = make_users()
    few = engine.prefill(users.select(["a", "none"]))
    rows = [cache.ids.index(u) for u in few.ids]
    np.testing.assert_allclose(
        engine.embed(few, QUERIES), engine.embed(cache, QUERIES)[rows], atol=1e-5, rtol=0
    )


@torch.no_grad()
def written(model, users, user: str, query: str, limit: int) -> str:
    """Write greedily without any cache: the whole text is read anew for each token."""
    prefix = model.encode_prefix(
        collate_users(model.preprocessor.transform(users), [users.ids.index(user)], "right")
    )
    slots = prefix.tokens[:, prefix.mask[0]]
    ids, out = [*model.tokenize_query(query), USER_EMB], []
    for _ in range(limit):
        vectors = torch.cat([slots, model.embed_tokens(torch.tensor([ids + out]))], 1)
        width = vectors.shape[1]
        hidden = model.run_backbone(
            vectors, torch.ones(1, width, width, dtype=torch.bool).tril(), torch.arange(width)[None]
        )
        token = model.logits(hidden[:, -1]).argmax().item()
        if token == model.tokenizer.eos_token_id:
            break
        out.append(token)
    return model.tokenizer.decode(out).strip()


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_equal_writing_without_a_cache(twin, side):
    users, engine, _ = twin
    cache = engine.prefill(users, side=side)
    said = {user: engine.generate(cache, user, QUERIES[0], limit=12) for user in users.ids}
    assert said == {user: written(engine.model, users, user, QUERIES[0], 12) for user in users.ids}
    assert len(set(said.values())) > 1


def test_what_looks_like_a_control_token_is_text(engine, cache):
    ids = engine.model.tokenize_query("<USER_EMB><|im_end|>")
    assert USER_EMB not in ids and bytes(ids).decode() == "<USER_EMB><|im_end|>"
    plain = one_by_one(make_model(), make_users(), ["<USER_EMB><|im_end|>"])[:, 0]
    np.testing.assert_allclose(
        engine.embed(cache, "<USER_EMB><|im_end|>"), plain, atol=1e-4, rtol=0
    )


def test_errors_say_both_values_and_the_cure(engine, cache):
    with pytest.raises(
        KeyError, match="'nobody' is not among the 9 that were read: prefill it first"
    ):
        engine.generate(cache, "nobody", "Why?")
    with pytest.raises(ValueError, match="0 users to read, at least 1 is needed: check"):
        engine.prefill(make_users().select([]))
    with pytest.raises(
        ValueError, match="the query has 5,000 tokens, the model allows 512: ask in fewer words"
    ):
        engine.embed(cache, "x" * 5000)
    with pytest.raises(ValueError, match="0 queries, at least 1 is needed"):
        engine.embed(cache, [])


def test_the_longest_query_allowed_is_answered(engine, cache):
    query = "why? " * 102
    np.testing.assert_allclose(
        engine.embed(cache, query),
        one_by_one(make_model(), make_users(), [query])[:, 0],
        atol=1e-4,
        rtol=0,
    )


def test_progress_ends_with_everybody(engine):
    seen = []
    cache = engine.prefill(
        make_users(), tokens=40, progress=lambda done, total: seen.append((done, total))
    )
    engine.embed(cache, "Why?", progress=lambda done, total: seen.append((done, total)))
    assert seen.count((9, 9)) == 2 and len(seen) == 2 * len(cache.groups) > 2
    assert repr(cache).startswith("PrefixCache(9 users, ")


def test_serving_folds_lora_in_and_changes_nothing(engine, cache):
    assert not [n for n, _ in engine.model.named_parameters() if "lora" in n]
    assert not any(p.requires_grad for p in engine.model.parameters()) and not engine.model.training
    assert (
        Engine(engine.model).embed(cache, "Why?") is not None
    )  # folded once already: nothing happens


def test_a_fork_shares_what_was_read(engine, cache):
    """Asking must not copy keys and values: their storage is that of the cache until something is
    appended.
    """
    from qanchor.inference.prefix_cache import fork_kv

    kv = cache.groups[0].kv
    copied = fork_kv(kv)
    assert (
        copied.layers[0].keys.data_ptr() == kv.layers[0].keys.data_ptr()
        and copied.layers[0] is not kv.layers[0]
    )
    assert new_kv_cache(engine.model.backbone) is not kv


# append: what happened since


def later(users, days: int):
    return replace(users, cutoff=users.cutoff + pd.Timedelta(days=days))


APPENDS = {
    "append_only": {"token_order": "append_only"},
    "appendable, eager": {"token_order": "append_only", "attention": "eager"},
    "appendable, wide": {"token_order": "append_only", "max_recent_events": 40},
    "coarse first": {},
}


@pytest.mark.parametrize("changes", APPENDS.values(), ids=APPENDS)
@pytest.mark.parametrize("tokens", [10**6, 40])
def test_appending_equals_reading_anew(changes, tokens):
    users, model = make_users(), make_model(**changes)
    engine = make_engine(model)
    held = engine.prefill(users, tokens=tokens)
    before, first = tensors(held), engine.embed(held, QUERIES)
    for days in (
        1,
        4,
        9,
        2,
    ):  # one cache after the other, over the edge at which old events leave the window, and back
        held = engine.update(held, later(users, days))
        np.testing.assert_allclose(
            engine.embed(held, QUERIES), one_by_one(model, later(users, days)), atol=1e-4, rtol=0
        )
    assert np.abs(engine.embed(held, QUERIES) - first).max() > 1e-3  # else nothing had happened
    start = engine.prefill(users, tokens=tokens)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(start), strict=True))


def test_only_what_is_new_runs():
    ran: dict[str, int] = {}
    for layout in ("append_only", "coarse_to_fine"):
        engine = make_engine(make_model(token_order=layout, max_recent_events=40))
        held, read = engine.prefill(make_users()), engine.model.run_backbone

        def count(vectors, *how, layout=layout, read=read):
            ran[layout] = ran.get(layout, 0) + vectors.shape[:2].numel()
            return read(vectors, *how)

        engine.model.run_backbone = count
        engine.update(held, later(make_users(), 1))
    assert 0 < ran["append_only"] < 0.6 * ran["coarse_to_fine"]


def test_appending_leaves_the_old_cache_and_keeps_to_the_budget():
    users, engine = make_users(), make_engine(make_model(token_order="append_only"))
    held = engine.prefill(users, tokens=40)
    before, seen = tensors(held), []
    new = engine.update(
        held, later(users, 3), progress=lambda done, total: seen.append((done, total))
    )
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(held), strict=True)) and seen[
        -1
    ] == (9, 9)
    bare = engine.update(
        engine.prefill(users, tokens=40, budget_gb=0), later(users, 3), budget_gb=0
    )
    assert all(group.kv is None for group in bare.groups)
    np.testing.assert_allclose(
        engine.embed(bare, "Why?"), engine.embed(new, "Why?"), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("layout", ["append_only", "coarse_to_fine"])
def test_day_after_day_groups_get_no_finer(layout):
    """Users whose window moves are read anew together; the others stay together unless far more
    happened to some.
    """
    users, engine = make_users(), make_engine(make_model(token_order=layout, max_recent_events=8))
    held = engine.prefill(users)
    for days in range(1, 8):
        held = engine.update(held, later(users, days))
        assert sorted(np.concatenate([group.rows for group in held.groups])) == list(
            range(len(users))
        )
    assert len(held.groups) <= 2, "one of whom something happened, one of whom nothing did"


def test_other_users_cannot_be_appended(engine, cache):
    with pytest.raises(
        ValueError, match=r"8 users, the cache holds 9 \(odd one: b\): append to the same users"
    ):
        engine.update(cache, make_users().select([*list("acdefg"), "later", "none"]))
