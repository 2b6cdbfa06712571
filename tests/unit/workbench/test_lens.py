"""The asker: frames that say who moved, maps that do not turn over, nothing asked twice, nothing left behind by a cancel."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.analysis import projection, shift
from qanchor.inference.engine import Engine
from qanchor.useru.suggestions import suggest_queries
from qanchor.workbench.lens import PARAPHRASES
from tests.tiny import make_engine, make_model, make_users


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(make_model())


@pytest.fixture
def asker(engine):
    return qa.LensBackend(engine, engine.prefill(make_users(), tokens=40), make_users(), method="pca")


def test_the_asker_moves_everybody_and_says_so(asker):
    updates = list(asker("Will this user travel soon?"))
    last = updates[-1]
    assert last["done"] == last["total"] == 9 and all(u["done"] <= u["total"] for u in updates)
    assert list(last["points"].columns[:5]) == ["user", "query", "x", "y", "trust"]
    assert set(last["points"]["query"]) == {"", "Will this user travel soon?"} and len(last["points"]) == 18
    assert set(last["shift"]["user"]) == set(asker.ids) and (last["shift"]["from_query"] == "").all()
    assert "9 users" in last["sentence"] and f"{len(PARAPHRASES)} paraphrases" in last["sentence"] and last["caption"]
    again = list(asker("Will this user travel soon?"))
    assert len(again) < len(updates)  # kept: nothing is asked twice
    pd.testing.assert_frame_equal(again[-1]["shift"], last["shift"])


def test_of_many_users_the_map_comes_before_who_moved(engine, monkeypatch):
    for module in ("analysis.shift", "analysis.projection", "workbench.lens"):
        monkeypatch.setattr(f"qanchor.{module}.MAX_EXACT_USERS", 8)
    monkeypatch.setattr("qanchor.analysis.projection.BLOCK", 3)
    asker = qa.LensBackend(engine, engine.prefill(make_users(), tokens=40), make_users())
    assert asker.method == "pca"
    first, last = [u for u in asker("Will this user travel soon?") if u["points"] is not None]
    assert first["shift"] is None and "PCA" in first["caption"] and len(last["shift"]) == 9
    assert first["points"] is last["points"]  # drawn once


def test_of_many_users_each_map_lies_as_the_last_of_its_method(engine, monkeypatch):
    for module in ("analysis.shift", "analysis.projection", "workbench.lens"):
        monkeypatch.setattr(f"qanchor.{module}.MAX_EXACT_USERS", 8)
    monkeypatch.setattr("qanchor.analysis.projection.BLOCK", 3)
    drawn = []

    def joint_map(*given, plain=projection.joint_projection):
        *_, method, last = given
        points = plain(*given[:-2], "pca", last)  # UMAP can do nothing with nine users
        points.attrs["method"] = method
        drawn.append((method, last, points))
        return points

    monkeypatch.setattr("qanchor.workbench.lens.joint_projection", joint_map)
    asker = qa.LensBackend(engine, engine.prefill(make_users(), tokens=40), make_users(), method="umap")
    first, second = list(asker("Why?")), list(asker("Will this user travel soon?"))
    (pca, umap), (next_pca, next_umap) = drawn[:2], drawn[2:]
    assert [method for method, *_ in drawn] == ["pca", "umap"] * 2
    assert pca[1] is None and umap[1] is pca[2] and next_pca[1] is pca[2] and next_umap[1] is umap[2]
    for updates in (first, second):  # the map, who moved on it, then the slow one
        shown = [u for u in updates if u["points"] is not None]
        assert [u["caption"].split()[2] for u in shown] == ["PCA", "PCA", "UMAP"]
        assert [u["shift"] is None for u in shown] == [True, False, False]


def test_the_floor_is_what_rewordings_move_of_about_so_many_users(asker, engine, monkeypatch):
    query, texts = "Why?", [p.format("Why?") for p in PARAPHRASES]
    base, *reworded = engine.embed(asker.cache, [query, *texts]).transpose(1, 0, 2)
    everybody = shift.noise_floor(base, reworded)
    list(asker.embed(query))
    assert asker.floor(query) == pytest.approx(everybody, rel=1e-3) and everybody > 0
    asker.floors.clear()
    monkeypatch.setattr("qanchor.workbench.lens.PARAPHRASE_USERS", 4)  # of nine users: every second group
    rows = np.concatenate([group.rows for group in asker.cache.groups[::2]])
    asked, stream = [], engine.iter_embed
    monkeypatch.setattr(engine, "iter_embed", lambda cache, texts: asked.extend(cache.groups) or stream(cache, texts))
    assert asker.floor(query) == pytest.approx(shift.noise_floor(base[rows], [z[rows] for z in reworded]), rel=1e-3)
    assert sum(len(group.rows) for group in asked) == len(rows) < 9


def test_a_cancelled_query_leaves_nothing_behind(asker):
    asking = asker("Is this user a driver?", previous="Why?")
    assert next(asking)["done"] < 9
    asking.close()
    assert not asker.kept
    assert list(asker("Is this user a driver?", previous="Why?"))[-1]["points"] is not None


def test_the_asker_answers_in_words(asker, engine):
    says = engine.rank(asker.cache, "Why?").set_index("user")["says"]
    assert asker.answer("a", "Why?") == says["a"]
    assert len(asker.queries) == 6 and all("{}" not in query for query in asker.queries)


def test_who_leans_to_yes_is_the_verdict_in_the_order_of_the_users(asker, engine):
    query = "Will this user travel soon?"
    *working, found = asker.lean(query)
    assert working and set(working) == {None} and found["user"].tolist() == list(asker.ids)
    told = engine.rank(asker.cache, query).set_index("user").loc[list(asker.ids), "score"]
    np.testing.assert_allclose(found["score"], told, atol=1e-5)


def test_looking_back_is_hindsight(engine):
    users, query = make_users(), "Will this user churn?"
    asker = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
    *steps, told = asker.look_back(query)
    assert told == qa.backtest(engine, users, query) and ("reading the past", len(users), len(users)) in steps


def test_users_may_be_named_after_they_were_read(engine):
    users = make_users()
    cache = engine.prefill(users)
    asker = qa.LensBackend(engine, cache, dataclasses.replace(users, unit="member"), method="pca")
    *_, last = asker("Will this member churn?")
    assert "member" in last["sentence"] and "user" not in last["sentence"] and last["caption"].count("members") == 1
    assert any("this member" in query for query in asker.queries) and cache.unit == "user"


def test_suggestions_are_of_what_the_users_do():
    day, rows = "2025-01-01", [(f"m{i}", text) for i in range(40) for text in ("yoga class", "protein shake")[: 1 + i % 2]]
    events = pd.DataFrame(rows, columns=["user", "text"]).assign(time=day, modality="visit")
    gym = qa.Users.from_events(events, unit="member", cutoff="2025-02-01")
    asked = suggest_queries(gym)
    assert not any(word in " ".join(asked) for word in ("travel", "baby", "takeout", "price", "user "))
    assert any("exercise" in query for query in asked) and "Will this member stop coming?" in asked

    events["text"] = events["text"].map({"yoga class": "book: a crime novel", "protein shake": "book: a romance"})
    library = qa.Users.from_events(events, unit="reader", cutoff="2025-02-01")
    assert not any(word in " ".join(suggest_queries(library)) for word in ("watch", "film"))
    events["text"] = events["text"].str.replace("book", "movie").str.replace("novel", "story")
    many = pd.concat([events] * 30 + [events.assign(text="a cake recipe")])  # said of all, but seldom
    told = suggest_queries(qa.Users.from_events(many, cutoff="2025-02-01"))
    assert any("film" in query for query in told) and not any("sweets" in query or "cook" in query for query in told)

    grown = suggest_queries(qa.make_sample_users(60))
    assert "Will this user travel soon?" in grown and len(set(grown)) == 6
