"""The cached path gives what the plain one gives, for any users, queries and batches, reads nothing
of the future, and never changes a cache.
"""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.errors import RunError
from qanchor.inference.evidence import encode_questions
from qanchor.models import pointing
from qanchor.models.pointing import read_questions, thing_input, token_input
from qanchor.utils.arrays import LRUCache
from tests.tiny import FORMS, QUERIES, make_model, make_users

SOME = ("u000", "u001", "u007", "later", "none")


@pytest.fixture(scope="module", params=FORMS)
def engine(request) -> qa.Engine:
    """Return an engine of each form, which reads users with a prefix in three batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointing, "PREFIXES_PER_PASS", 16)
        yield qa.Engine(make_model(request.param))


@pytest.fixture(scope="module")
def cache(engine):
    return engine.prefill(make_users())


@pytest.fixture(scope="module")
def embedded(engine, cache) -> np.ndarray:
    return engine.embed(cache, QUERIES)


def contents(cache) -> list[torch.Tensor]:
    """Return copies of the arrays of a cache."""
    arrays = [torch.tensor(cache.tokens.which), torch.tensor(cache.tokens.numbers)]
    for batch in cache.groups:
        arrays += [part.clone() for part in batch.prefix or ()]
    return arrays


def test_the_users_are_ragged(cache):
    lengths = (cache.tokens.which >= 0).sum(1)
    assert len(set(lengths)) >= 4 and cache.ids == make_users().ids
    assert repr(cache) == f"PrefixCache(42 users, {lengths.sum():,} tokens)"


def test_an_engine_of_a_folder_is_one_of_its_model(tmp_path, engine, cache, embedded):
    engine.model.save_pretrained(tmp_path / "run")
    loaded = qa.Engine(tmp_path / "run")
    np.testing.assert_allclose(loaded.embed(cache, QUERIES[0]), embedded[:, 0], atol=1e-4)
    with pytest.raises(RunError, match="nowhere is not a run"):
        qa.Engine(str(tmp_path / "nowhere"))


def test_cached_equals_uncached(engine, cache, embedded):
    """Against each user and query alone, with nothing padded."""
    assert embedded.dtype == np.float32 and embedded.shape == (42, len(QUERIES), 128)
    rows = [cache.ids.index(user) for user in SOME]
    plain = []
    for row, query in itertools.product(rows, QUERIES):
        tokens = cache.tokens.select([row])
        width = max(int((tokens.which >= 0).sum()), 1)
        cut = {"which": tokens.which[:, :width], "numbers": tokens.numbers[:, :width]}
        question = encode_questions(engine.model, [query], tokens.unit, tokens.horizon_days)
        alone = read_questions(engine.model.reader, replace(tokens, **cut), question)
        plain.append(alone.embedding[0, 0].numpy())
    plain = np.reshape(plain, (len(rows), len(QUERIES), 128))
    np.testing.assert_allclose(embedded[rows], plain, atol=1e-4, rtol=0)
    assert np.abs(plain[0] - plain[1]).max() > 1e-2  # else a mixed-up user would not be noticed
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=-1), 1, atol=1e-5)


def test_a_list_equals_one_by_one_in_any_order(engine, cache, embedded):
    for place, query in enumerate(QUERIES):
        alone = engine.embed(cache, query)
        np.testing.assert_allclose(alone, embedded[:, place], atol=1e-4, rtol=0)
    for order in ([3, 0, 2], [1, 3], [2, 2]):
        found = engine.embed(cache, [QUERIES[place] for place in order])
        np.testing.assert_allclose(found, embedded[:, order], atol=1e-4, rtol=0)


def test_another_query_gives_another_embedding(embedded):
    assert np.abs(embedded[:, 0] - embedded[:, 2]).max(1).min() > 1e-3


def test_asking_leaves_the_cache_as_it_was(engine, cache):
    before = contents(cache)
    engine.rank(cache, QUERIES[0])
    engine.generate(cache, "u001", QUERIES[0])
    next(engine.iter_embed(cache, [QUERIES[0]]))
    next(engine.iter_token_gradients(cache, QUERIES[0]))
    for old, new in zip(before, contents(cache), strict=True):
        assert torch.equal(old, new)


def test_beyond_the_memory_budget_users_are_read_again(engine, cache, embedded):
    prefixes = [batch.prefix for batch in cache.groups if batch.prefix is not None]
    assert len(prefixes) == (3 if engine.model.reader.reads_prefix else 0)
    bytes_of_one = prefixes[0].keys.nbytes + prefixes[0].values.nbytes if prefixes else 0
    for budget_gb, kept in ((0, 0), (1.2 * bytes_of_one / 1e9, min(1, len(prefixes)))):
        poor = engine.prefill(make_users(), budget_gb=budget_gb)
        assert sum(batch.prefix is not None for batch in poor.groups) == kept
        np.testing.assert_allclose(engine.embed(poor, QUERIES), embedded, atol=1e-5, rtol=0)
        pd.testing.assert_frame_equal(
            engine.score(poor, QUERIES[0]), engine.score(cache, QUERIES[0]), atol=1e-5
        )


def test_an_answer_is_the_same_from_a_cached_prefix(engine, cache):
    poor = engine.prefill(make_users(), budget_gb=0)
    reader = engine.model.reader
    if reader.has_language_model:
        question = engine._encode(cache, [QUERIES[0]])
        things = thing_input(cache.tokens)
        for user in SOME:
            with torch.inference_mode():
                cached = reader.anchor(cache.user_input(user), question, things)
                plain = reader.anchor(poor.user_input(user), question, things)
            torch.testing.assert_close(cached.hidden, plain.hidden, atol=1e-4, rtol=0)
            assert (cache.user_input(user).prefix is not None) == reader.reads_prefix
    for user in SOME:
        assert engine.generate(cache, user, QUERIES[0]) == engine.generate(poor, user, QUERIES[0])


def test_an_answer_needs_no_ranking(engine, cache, monkeypatch):
    monkeypatch.setattr("qanchor.inference.evidence._evidence", lambda *_: [])
    answers = engine.score(cache, QUERIES[0]).set_index("user")["answer"]
    monkeypatch.setattr("qanchor.inference.evidence.read_questions", lambda *_: 1 / 0)
    for user in SOME:
        assert engine.generate(cache, user, QUERIES[0]).endswith(answers[user])
    assert engine.generate(cache, "u001", "Does this user suffer from diabetes?") == ""


@pytest.mark.parametrize("engine", ["crossing"], indirect=True)
def test_a_language_model_reads_each_question_of_a_lens_once(engine, cache, monkeypatch):
    lens = qa.LensBackend(engine, cache, make_users(), method="pca")
    body = engine.model.reader.body
    read, plain = [], body._read
    monkeypatch.setattr(body, "_remembered", LRUCache(64))
    monkeypatch.setattr(body, "_read", lambda queries: read.extend(queries) or plain(queries))
    query = "Will this user buy tea?"
    *_, last = lens(query)
    assert last.data["ranking"]["score"].notna().all() and lens.answer("u001", query)
    assert sorted(read) == ["", query]  # and not the questions that it might compare with


@pytest.mark.parametrize("engine", ["prefix"], indirect=True)
def test_a_lens_ranks_and_answers_from_the_prefixes_that_were_read(engine, cache, monkeypatch):
    lens = qa.LensBackend(engine, cache, make_users(), method="pca")
    # evidence hides tokens, so users are read again for it
    monkeypatch.setattr("qanchor.inference.evidence._evidence", lambda *_: [])
    monkeypatch.setattr(engine.model.reader.body, "prefill", lambda *_: pytest.fail("read again"))
    *_, last = lens.rank(QUERIES[0])
    assert last.data["ranking"]["score"].notna().all() and lens.answer("u001", QUERIES[0])


def test_who_else_is_read_does_not_matter(engine, cache, embedded):
    few = engine.prefill(make_users().select(list(SOME)))
    rows = [cache.ids.index(user) for user in few.ids]
    np.testing.assert_allclose(engine.embed(few, QUERIES), embedded[rows], atol=1e-4, rtol=0)


def test_later_events_have_no_influence(engine, embedded):
    users = make_users()
    late = users.events["time"] >= users.cutoff
    changed = users.events.copy()
    changed.loc[late, "text"] = changed["text"].iloc[0]
    cache = engine.prefill(replace(users, events=changed))
    np.testing.assert_array_equal(engine.embed(cache, QUERIES), embedded)


def test_a_gradient_is_the_slope_of_the_score_in_the_presence_of_a_token(engine, cache):
    reader = engine.model.reader
    question = encode_questions(engine.model, [QUERIES[0]], cache.unit, cache.horizon_days)
    things = thing_input(cache.tokens)
    rows, gradients = next(engine.iter_token_gradients(cache, QUERIES[0]))
    users = token_input(cache.tokens, rows)
    step = 1e-2
    place = int(np.abs(gradients[1]).argmax())
    scores = []
    for sign in (1, -1):
        presence = torch.ones(users.which.shape)
        presence[1, place] += sign * step
        there = users._replace(presence=presence)
        scores.append(reader(there, question, things).score[1, 0])
    slope = float(scores[0] - scores[1]) / (2 * step)
    assert slope == pytest.approx(float(gradients[1, place]), rel=0.02, abs=1e-3)
    whole = reader(users, question, things).score
    there = users._replace(presence=torch.ones(users.which.shape))
    torch.testing.assert_close(whole, reader(there, question, things).score, atol=1e-4, rtol=0)


def test_errors_say_the_value_and_the_cure(engine, cache):
    with pytest.raises(KeyError, match=r"'nobody' is not among the 42 that were read\. Prefill it"):
        engine.generate(cache, "nobody", "Why?")
    prompt = SimpleNamespace(query="Why?", vectors=None, offset=None, run="another")
    with pytest.raises(ValueError, match=r"soft prompt of 'Why\?' was tuned on run another"):
        engine.generate(cache, "u001", prompt)
    with pytest.raises(ValueError, match=r"no users to read\. Check the folder"):
        engine.prefill(make_users().select([]))
    with pytest.raises(ValueError, match=r"There are 0 queries\. Pass at least 1"):
        engine.embed(cache, [])
    if engine.model.reader.has_language_model:
        with pytest.raises(ValueError, match=r"has 5,000 tokens, .* at most 256\. Use fewer"):
            engine.embed(cache, "x" * 5000)


def test_progress_ends_with_everybody(engine):
    seen = []

    def report(done, total):
        seen.append((done, total))

    cache = engine.prefill(make_users(), progress=report)
    engine.embed(cache, "Why?", progress=report)
    done = list(np.cumsum([len(batch.rows) for batch in cache.groups]))
    assert seen == [(n, 42) for n in done * 2]


def test_a_served_model_is_not_trained(engine):
    assert not engine.model.training
    assert not any(weight.requires_grad for weight in engine.model.parameters())
