"""The lens: frames that say who moved, stable maps, rankings that follow, nothing asked twice,
nothing left by a cancel.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.analysis import projection, shift
from qanchor.analysis.embedding_cache import PARAPHRASES
from qanchor.inference.engine import Engine
from qanchor.useru.suggestions import suggest_queries
from qanchor.workbench.messages import backtest_summary
from qanchor.workbench.updates import Update
from tests.tiny import make_engine, make_model, make_users


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(make_model())


@pytest.fixture
def asker(engine):
    return qa.LensBackend(
        engine, engine.prefill(make_users(), tokens=40), make_users(), method="pca"
    )


def test_the_lens_moves_everybody_and_says_so(asker):
    updates = list(asker("Will this user travel soon?"))
    mapped = [u for u in updates if "points" in u.data and "ranking" not in u.data][-1]
    assert mapped.done == mapped.total == 9 and all(u.done <= u.total for u in updates)
    last, points, shifted = updates[-1], mapped.data["points"], mapped.data["shift"]
    assert (
        last.done == last.total
        and last.message == mapped.message
        and last.caption == mapped.caption
    )
    assert last.data["points"] is points and last.data["shift"] is shifted
    assert list(points.columns[:5]) == ["user", "query", "x", "y", "trust"]
    assert set(points["query"]) == {"", "Will this user travel soon?"} and len(points) == 18
    assert set(shifted["user"]) == set(asker.ids) and (shifted["from_query"] == "").all()
    assert (
        "9 users" in last.message
        and f"{len(PARAPHRASES)} paraphrases" in last.message
        and last.caption
    )
    again = list(asker("Will this user travel soon?"))
    assert len(again) < len(updates)  # kept: nothing is asked twice
    pd.testing.assert_frame_equal(again[-1].data["shift"], shifted)


@pytest.mark.slow  # compiles pynndescent
def test_of_many_users_the_map_comes_before_who_moved(engine, monkeypatch):
    for module in ("analysis.shift", "analysis.projection", "workbench.lens"):
        monkeypatch.setattr(f"qanchor.{module}.MAX_EXACT_USERS", 8)
    monkeypatch.setattr("qanchor.analysis.projection.BLOCK", 3)
    asker = qa.LensBackend(engine, engine.prefill(make_users(), tokens=40), make_users())
    assert asker.method == "pca"
    first, last = [
        u
        for u in asker("Will this user travel soon?")
        if "points" in u.data and "ranking" not in u.data
    ]
    assert "shift" not in first.data and "PCA" in first.caption and len(last.data["shift"]) == 9
    assert first.data["points"] is last.data["points"]  # drawn once


@pytest.mark.slow
def test_of_many_users_each_map_lies_as_the_last_of_its_method(engine, monkeypatch):
    for module in ("analysis.shift", "analysis.projection", "workbench.lens"):
        monkeypatch.setattr(f"qanchor.{module}.MAX_EXACT_USERS", 8)
    monkeypatch.setattr("qanchor.analysis.projection.BLOCK", 3)
    drawn = []

    def joint_map(*given, method, last, plain=projection.joint_projection):
        # UMAP can do nothing with nine users
        points = plain(*given, method="pca", last=last)
        points.attrs["method"] = method
        drawn.append((method, last, points))
        return points

    monkeypatch.setattr("qanchor.workbench.lens.joint_projection", joint_map)
    asker = qa.LensBackend(
        engine, engine.prefill(make_users(), tokens=40), make_users(), method="umap"
    )
    first, second = list(asker("Why?")), list(asker("Will this user travel soon?"))
    (pca, umap), (next_pca, next_umap) = drawn[:2], drawn[2:]
    assert [method for method, *_ in drawn] == ["pca", "umap"] * 2
    assert (
        pca[1] is None and umap[1] is pca[2] and next_pca[1] is pca[2] and next_umap[1] is umap[2]
    )
    for updates in (first, second):  # the map, who moved on it, then the slow one
        shown = [u for u in updates if "points" in u.data and "ranking" not in u.data]
        assert [u.caption.split()[2] for u in shown] == ["PCA", "PCA", "UMAP"]
        assert ["shift" in u.data for u in shown] == [False, True, True]


def test_the_floor_is_what_rewordings_move_of_about_so_many_users(asker, engine, monkeypatch):
    query, texts = "Why?", [p.format("Why?") for p in PARAPHRASES]
    base, *reworded = engine.embed(asker.cache, [query, *texts]).transpose(1, 0, 2)
    everybody = shift.noise_floor(base, reworded)
    list(asker.embed(query))
    store = asker.embedding_cache
    assert store.noise_floor(query) == pytest.approx(everybody, rel=1e-3) and everybody > 0
    assert asker.noise_floors is store.noise_floors and asker.embeddings is store.embeddings
    asker.noise_floors.clear()
    monkeypatch.setattr(
        "qanchor.analysis.embedding_cache.PARAPHRASE_USERS", 4
    )  # of nine users: every second group
    rows = np.concatenate([group.rows for group in asker.cache.groups[::2]])
    asked, iter_embed = [], engine.iter_embed
    monkeypatch.setattr(
        engine,
        "iter_embed",
        lambda cache, texts: asked.extend(cache.groups) or iter_embed(cache, texts),
    )
    assert store.noise_floor(query) == pytest.approx(
        shift.noise_floor(base[rows], [z[rows] for z in reworded]), rel=1e-3
    )
    assert sum(len(group.rows) for group in asked) == len(rows) < 9


def test_a_cancelled_query_leaves_nothing_behind(asker):
    updates = asker("Is this user a driver?", previous="Why?")
    assert next(updates).done < 9
    updates.close()
    assert not asker.embeddings
    assert list(asker("Is this user a driver?", previous="Why?"))[-1].data["points"] is not None


def test_the_lens_answers_in_words(asker, engine):
    answers = engine.rank(asker.cache, "Why?").set_index("user")["answer"]
    assert asker.answer("a", "Why?") == answers["a"]
    assert len(asker.queries) == 6 and all("{}" not in query for query in asker.queries)


def test_the_ranking_follows_the_map_in_the_order_of_the_users(asker, engine):
    query = "Will this user travel soon?"
    updates = list(asker(query))
    places = [place for place, update in enumerate(updates) if "ranking" in update.data]
    first_map = next(place for place, update in enumerate(updates) if "points" in update.data)
    assert first_map < places[0] and places == list(
        range(places[0], len(updates))
    )  # the map is there first
    *working, ranking = [updates[place].data["ranking"] for place in places]
    assert working and all(frame is None for frame in working)
    assert list(ranking.columns) == ["user", "score", "answer"] and ranking[
        "user"
    ].tolist() == list(asker.ids)
    expected = engine.rank(asker.cache, query).set_index("user").loc[list(asker.ids)]
    np.testing.assert_allclose(ranking["score"], expected["score"], atol=1e-5)
    assert ranking["answer"].tolist() == expected["answer"].tolist()
    alone = list(asker.rank(query))[-1].data["ranking"]
    pd.testing.assert_frame_equal(alone, ranking)
    assert not any(
        "ranking" in update.data for update in asker("", previous=query)
    )  # nothing is asked


def test_a_query_is_embedded_once_for_map_and_ranking(asker, engine, monkeypatch):
    asked, iter_embed = [], engine.iter_embed
    monkeypatch.setattr(
        engine,
        "iter_embed",
        lambda cache, texts: (
            asked.extend(getattr(texts, "queries", texts)) or iter_embed(cache, texts)
        ),
    )
    list(asker("Why?"))
    assert asked.count("Why?") == 1 and asked.count("") == 1


def test_the_backtest_is_that_of_the_library(engine):
    users, query = make_users(), "Will this user churn?"
    asker = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
    *steps, last = asker.backtest(query)
    result = qa.backtest(engine, users, query)
    assert (
        last.data["backtest"] == result
        and last.message == backtest_summary(result)
        and last.done == last.total
    )
    assert Update(len(users), len(users), "Reading the past") in steps
    assert not any("backtest" in step.data for step in steps)


def test_users_may_be_named_after_they_were_read(engine):
    users = make_users()
    cache = engine.prefill(users)
    asker = qa.LensBackend(engine, cache, dataclasses.replace(users, unit="member"), method="pca")
    *_, last = asker("Will this member churn?")
    assert (
        "member" in last.message
        and "user" not in last.message
        and last.caption.count("members") == 1
    )
    assert (asker.unit, asker.units) == ("member", "members")
    assert any("this member" in query for query in asker.queries) and cache.unit == "user"


def test_suggestions_are_of_what_the_users_do():
    day, rows = (
        "2025-01-01",
        [
            (f"m{i}", text)
            for i in range(40)
            for text in ("yoga class", "protein shake")[: 1 + i % 2]
        ],
    )
    events = pd.DataFrame(rows, columns=["user", "text"]).assign(time=day, modality="visit")
    gym = qa.Users.from_events(events, unit="member", cutoff="2025-02-01")
    asked = suggest_queries(gym)
    assert not any(
        word in " ".join(asked) for word in ("travel", "baby", "takeout", "price", "user ")
    )
    assert any("exercise" in query for query in asked) and "Will this member stop coming?" in asked

    events["text"] = events["text"].map(
        {"yoga class": "book: a crime novel", "protein shake": "book: a romance"}
    )
    library = qa.Users.from_events(events, unit="reader", cutoff="2025-02-01")
    assert not any(word in " ".join(suggest_queries(library)) for word in ("watch", "film"))
    events["text"] = events["text"].str.replace("book", "movie").str.replace("novel", "story")
    many = pd.concat(
        [events] * 30 + [events.assign(text="a cake recipe")]
    )  # said of all, but seldom
    told = suggest_queries(qa.Users.from_events(many, cutoff="2025-02-01"))
    assert any("film" in query for query in told) and not any(
        "sweets" in query or "cook" in query for query in told
    )

    grown = suggest_queries(qa.make_sample_users(60))
    assert "Will this user travel soon?" in grown and len(set(grown)) == 6
