"""A query is tokenized once and its text vector computed once, however much is done with it."""

import numpy as np
import pytest

import qanchor as qa
from qanchor.inference import ranking
from qanchor.models import model as model_module
from tests.tiny import QUERIES, make_engine, make_model, make_users


@pytest.fixture
def engine():
    return make_engine(make_model())


@pytest.fixture
def counts(engine, monkeypatch):
    """Texts that the tokenizer and the text encoder were given since."""
    tokenized, encoded = [], []
    tokenizer = engine.model.tokenizer

    class Counting:
        eos_token_id = tokenizer.eos_token_id
        decode = staticmethod(tokenizer.decode)

        def __call__(self, text):
            tokenized.append(text)
            return tokenizer(text)

    engine.model.tokenizer = Counting()
    for module in (model_module, ranking):

        def count(texts, *rest, real=module.text_vectors, **more):
            encoded.extend(texts)
            return real(texts, *rest, **more)

        monkeypatch.setattr(module, "text_vectors", count)
    return tokenized, encoded


def test_embedding_tokenizes_each_query_once(engine, counts):
    cache = engine.prefill(make_users(), tokens=40)
    engine.embed(cache, QUERIES)
    assert sorted(counts[0]) == sorted(QUERIES) and sorted(counts[1]) == sorted(QUERIES)


def test_ranking_tokenizes_and_encodes_the_query_once(engine, counts):
    engine.rank(engine.prefill(make_users()), QUERIES[0])
    assert counts[0].count(QUERIES[0]) == counts[1].count(QUERIES[0]) == 1


def test_a_lens_run_tokenizes_the_query_once(engine, counts):
    users = make_users()
    lens = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
    list(lens("Will this user move abroad?"))
    assert counts[0].count("Will this user move abroad?") == 1


def test_an_encoded_query_gives_the_same_as_its_text(engine):
    cache = engine.prefill(make_users())
    encoded = engine.encode_query(QUERIES[0])
    assert engine.encode_queries(encoded) is encoded and len(encoded) == 1
    np.testing.assert_array_equal(
        engine.embed(cache, encoded)[:, 0], engine.embed(cache, QUERIES[0])
    )
    several = engine.encode_queries(QUERIES)
    np.testing.assert_array_equal(engine.embed(cache, several), engine.embed(cache, QUERIES))


@pytest.mark.parametrize("gated_skip", [True, False])
def test_scores_with_an_encoded_query_are_equal(gated_skip):
    engine = make_engine(make_model(gated_skip=gated_skip))
    cache, query = engine.prefill(make_users()), QUERIES[0]
    encoded = engine.encode_query(query)
    anchors = engine.embed(cache, query)
    again = ranking.label_free_scores(engine.model, cache.ids, query, anchors, encoded=encoded)
    plain = ranking.label_free_scores(engine.model, cache.ids, query, anchors)
    np.testing.assert_array_equal(again["score"], plain["score"])
    assert again.attrs == plain.attrs
    if gated_skip:
        vectors = model_module.text_vectors([query], engine.model.config.text_encoder)
        np.testing.assert_array_equal(encoded.text_vectors(), vectors.astype(np.float32))
