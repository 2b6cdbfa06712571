"""The engine of a run without a language model: exact, per user, and nothing of the future."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.analysis.attention import modality_attention, modality_importance
from qanchor.data.users import Users
from qanchor.errors import RunError
from qanchor.inference.evidence import encode_questions
from qanchor.inference.pointing_engine import PointingEngine
from qanchor.models.pointing import read_questions, thing_input, token_input
from qanchor.workbench.attention import AttentionBackend
from tests.unit.training.test_reader import CUTOFF, habits

QUERY = "Will this member play chess?"


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(habits(), CUTOFF, unit="member")


@pytest.fixture(scope="module")
def engine(users) -> PointingEngine:
    return qa.Engine(qa.fit(users, text_encoder="hash", steps=40, progress=False))


@pytest.fixture(scope="module")
def cache(engine, users):
    return engine.prefill(users)


def test_engine_fits_the_model(engine, cache, users):
    assert isinstance(engine, PointingEngine)
    assert cache.ids == users.ids
    assert repr(cache).startswith(f"PrefixCache({len(users)} members, ")
    assert repr(cache) != f"PrefixCache({len(users)} members, 0 tokens)"


def test_batches_are_their_plain_twin(engine, cache):
    queries = [QUERY, "Will this member buy bread?", ""]
    tokens = cache.tokens
    question = encode_questions(engine.model, queries, tokens.unit, tokens.horizon_days)
    plain = read_questions(engine.model.reader, tokens, question).embedding.numpy()
    found = engine.embed(cache, queries)
    np.testing.assert_allclose(found, plain, atol=1e-4)
    np.testing.assert_allclose(engine.embed(cache, QUERY), plain[:, 0], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


def test_a_user_alone_is_the_user_among_others(engine, cache, users):
    some = list(users.ids[3:6])
    alone = engine.embed(engine.prefill(users.select(some)), QUERY)
    np.testing.assert_allclose(alone, engine.embed(cache, QUERY)[3:6], atol=1e-4)


def test_the_first_axis_orders_users_as_the_score_does(engine, cache):
    (_, reading), *_ = engine.iter_read(cache, [QUERY])
    axis = reading.embedding[:, 0, 0]
    assert torch.equal(axis.argsort(stable=True), reading.score[:, 0].argsort(stable=True))


def test_later_events_have_no_influence(engine, cache, users):
    late = users.events["time"] >= users.cutoff
    changed = users.events.copy()
    changed.loc[late, "text"] = changed["text"].iloc[0]
    later = replace(users, events=changed)
    same = engine.embed(engine.prefill(later), QUERY)
    np.testing.assert_array_equal(same, engine.embed(cache, QUERY))


def test_update_is_prefill_at_the_new_cutoff(engine, cache, users):
    earlier = replace(users, cutoff=users.cutoff - pd.Timedelta(days=10))
    updated = engine.update(engine.prefill(earlier), users)
    np.testing.assert_array_equal(engine.embed(updated, QUERY), engine.embed(cache, QUERY))
    with pytest.raises(ValueError, match="append to the same users"):
        engine.update(cache, users.select(list(users.ids[:4])))


def test_a_saved_run_embeds_the_same(engine, cache, users, tmp_path):
    folder = engine.model.save_pretrained(tmp_path / "run")
    loaded = qa.Engine(qa.QAnchor.from_pretrained(folder))
    found = loaded.embed(loaded.prefill(users), QUERY)
    np.testing.assert_array_equal(found, engine.embed(cache, QUERY))
    (folder / "concepts.json").write_text("{}")
    with pytest.raises(RunError, match=r"concepts\.json has sha256"):
        qa.QAnchor.from_pretrained(folder)


def test_attention_sums_to_one_over_modalities(engine, cache, users):
    frame = modality_attention(engine, cache, QUERY, users.ids[:5])
    assert frame.groupby("user")["weight"].sum().round(4).tolist() == [1.0] * 5
    assert set(users.modalities) <= set(frame["modality"])


def test_a_gradient_is_the_slope_of_the_score_in_the_presence_of_a_token(engine, cache):
    reader = engine.model.reader
    tokens = cache.tokens
    question = encode_questions(engine.model, [QUERY], tokens.unit, tokens.horizon_days)
    things = thing_input(tokens)
    rows, gradients = next(engine.iter_token_gradients(cache, QUERY))
    users = token_input(tokens, rows)
    step = 1e-2
    place = int(np.abs(gradients[0]).argmax())
    scores = []
    for sign in (1, -1):
        presence = torch.ones(users.which.shape)
        presence[0, place] += sign * step
        scores.append(reader(users._replace(presence=presence), question, things).score[0, 0])
    slope = float(scores[0] - scores[1]) / (2 * step)
    assert slope == pytest.approx(float(gradients[0, place]), rel=0.02, abs=1e-3)
    with torch.no_grad():
        whole = reader(users, question, things).score
        there = reader(
            users._replace(presence=torch.ones(users.which.shape)), question, things
        ).score
    torch.testing.assert_close(whole, there, atol=1e-4, rtol=0)


def test_a_deletion_is_an_exact_reading_without(engine, cache, users):
    some = users.select(list(users.ids[:4]))
    frame = modality_importance(engine, some, QUERY)
    name = users.modalities[0]
    without = replace(some, events=some.events[some.events["modality"] != name])
    z = engine.embed(engine.prefill(without), QUERY)
    moved = 1 - (z * engine.embed(cache, QUERY)[:4]).sum(1)
    found = frame[frame["modality"] == name].set_index("user")["deletion_effect"]
    expected = pd.Series(moved, some.ids)[found.index]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_attention_view_works(engine, users):
    backend = AttentionBackend(engine, users, most=3)
    *_, last = backend(QUERY)
    assert "how much each score depends on the events" in last.caption
    events = backend.events(users.ids[0])
    *_, edited = backend.rerun(QUERY, users.ids[0], drop=[events["event"].iloc[0]])
    assert edited.data["moved"] >= 0


def test_every_view_of_a_session_works(engine, users):
    session = qa.WorkbenchSession(engine, users, method="pca")
    assert session.lens.queries[0] == "Will this member come back?"
    assert any(query.endswith("” within 30 days?") for query in session.matrix.queries)
    groups = {"first": users.ids[:30], "last": users.ids[-30:]}
    *_, matrix = session.matrix(session.matrix.queries[:2], groups)
    assert len(matrix.data["frame"]) == 4
    *_, explained = session.explain(users.ids[:30])
    assert explained.data["frame"]["auc"].between(0, 1).all()
    *_, answered = session.lens(QUERY)
    assert answered.data["ranking"]["user"].tolist() == list(users.ids)


def test_a_soft_prompt_is_a_query(engine, cache, users):
    labels = pd.Series([float("bread" in user_texts(users, user)) for user in users.ids], users.ids)
    labels[:6] = 1 - labels[:6]  # two classes in any case
    prompt, history = qa.tune_prompt(engine, cache, QUERY, labels, steps=60, seek=True)
    assert history["valid"].min() <= history["valid"].iloc[0]
    z = engine.embed(cache, [QUERY, prompt])
    assert not np.allclose(z[:, 0], z[:, 1])
    nothing = replace(
        prompt, vectors=torch.zeros_like(prompt.vectors), offset=torch.zeros_like(prompt.offset)
    )
    np.testing.assert_allclose(engine.embed(cache, nothing), z[:, 0], atol=1e-6)
    with pytest.raises(ValueError, match="was tuned on run"):
        engine.embed(cache, replace(prompt, run="another"))


def test_a_whole_data_set_is_embedded_shard_by_shard(engine, cache, users, tmp_path):
    run = engine.model.save_pretrained(tmp_path / "run")
    out = tmp_path / "embeddings"
    qa.embed_dataset(users, run, [QUERY], out, shards=3)
    parts = [pd.read_parquet(path) for path in sorted(out.glob("part-*.parquet"))]
    table = pd.concat(parts).set_index("user").loc[list(users.ids)]
    found = np.stack(table["embedding"].to_numpy())
    np.testing.assert_allclose(found, engine.embed(cache, QUERY), atol=2e-3)  # half precision


def user_texts(users: Users, user: str) -> str:
    return " ".join(users.events[users.events["user"] == user]["text"].astype(str))


def test_no_users_and_unknown_users_are_refused(engine, cache, users):
    with pytest.raises(ValueError, match="There are no users to read"):
        engine.prefill(users.select([]))
    with pytest.raises(KeyError, match="nobody"):
        engine.generate(cache, "nobody", QUERY)
