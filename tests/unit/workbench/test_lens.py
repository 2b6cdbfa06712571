"""The lens: frames that say who moved, stable maps, rankings that follow, nothing asked twice,
nothing left by a cancel.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.analysis import projection, shift
from qanchor.inference.engine import Engine
from qanchor.workbench.messages import backtest_summary
from tests.fitted import fitted_engine, sample_users

QUERY, OTHER = "Will this user come back?", "Will this user be less active than before?"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return fitted_engine()


@pytest.fixture
def lens(engine):
    return qa.LensBackend(engine, engine.prefill(sample_users()), sample_users(), method="pca")


def test_without_other_questions_the_lens_says_who_ranks_first(lens):
    lens._suggested = ()
    updates = list(lens(QUERY))
    mapped = [u for u in updates if "points" in u.data and "ranking" not in u.data][-1]
    assert next(u.message for u in updates if "ranking" in u.data) == "Ranking all users ..."
    assert mapped.done == mapped.total == 60 and all(u.done <= u.total for u in updates)
    last, points, shifted = updates[-1], mapped.data["points"], mapped.data["shift"]
    assert last.done == last.total and last.caption == mapped.caption != ""
    assert shifted["toward_yes"].isna().all() and not shifted["stands_out"].any()
    first = last.data["ranking"].nlargest(3, "score")["user"].tolist()
    words = f"Interpreted as a question about any event. {first[0]}, {first[1]} and {first[2]} rank"
    assert mapped.message == "" and last.message == f"{words} first of 60 users."
    assert last.message == f"{last.data['interpretation']} {last.data['order']}"
    assert last.data["points"] is points and last.data["shift"] is shifted
    assert list(points.columns[:5]) == ["user", "query", "x", "y", "trust"]
    assert set(points["query"]) == {"", QUERY} and len(points) == 120
    assert set(shifted["user"]) == set(lens.ids) and (shifted["from_query"] == "").all()
    again = list(lens(QUERY))
    assert len(again) < len(updates)  # kept: nothing is asked twice
    pd.testing.assert_frame_equal(again[-1].data["shift"], shifted)


@pytest.fixture
def comparing(lens):
    """A lens with suggestions that "hash" understands: names of modalities."""
    concepts = lens.engine.model.concepts
    names = dict.fromkeys(concept.label for concept in concepts if concept.family == "modality")
    lens._suggested = (*names, QUERY, "Does this user suffer from diabetes?")
    return lens


def test_the_lens_says_who_stands_out_against_other_questions(comparing):
    lens = comparing
    *names, _, _ = lens._suggested
    for previous in ("", names[0]):
        updates = list(lens(QUERY, previous=previous))
        first, *_, mapped = [u for u in updates if "points" in u.data and "ranking" not in u.data]
        assert "shift" not in first.data, "users move before they are compared"
        shifted = mapped.data["shift"]
        others = [name for name in names if name != previous]
        assert shifted.attrs["others"] == len(others) > 2
        assert f"any of {len(others)} other questions (by chance: " in mapped.message
        assert updates[-1].message == mapped.message
        assert (shifted["from_query"] == previous).all()
        embedded = [lens.embeddings[text] for text in (previous, QUERY, *others)]
        here, elsewhere = shift.compare_with_others(embedded[0], embedded[1], embedded[2:])
        np.testing.assert_allclose(shifted["toward_yes"], here, rtol=1e-3, atol=1e-4)
        assert shifted["stands_out"].tolist() == (here > elsewhere).tolist()
    *_, last = lens(names[0])
    assert last.data["shift"].attrs["others"] == len(names), "QUERY takes the place of the name"
    *_, last = lens("Does this user suffer from diabetes?")
    assert last.data["shift"].attrs["others"] == 0 and last.message == ""


def test_where_embedding_takes_long_the_questions_asked_before_are_compared(comparing, monkeypatch):
    monkeypatch.setattr("qanchor.workbench.lens.MAX_EMBEDDED_UNASKED", 60)
    monkeypatch.setattr("qanchor.workbench.lens.MIN_OTHERS", 2)
    lens = comparing
    *names, _, _ = lens._suggested
    assert lens._unasked == []
    for query in names[:2]:
        *_, last = lens(query)
        assert last.data["shift"].attrs["others"] == 0
    assert last.message == f"{last.data['interpretation']} {last.data['order']}"
    *_, last = lens(QUERY)
    assert last.data["shift"].attrs["others"] == 2
    assert "further toward yes than any of 2 other questions (by chance: 20)" in last.message


def test_what_nothing_speaks_of_is_refused_in_words(lens):
    query = "Does this user suffer from diabetes?"
    *_, last = lens(query)
    assert last.warning.startswith(f"Nothing in these events speaks of “{query}”. You can ask")
    assert last.message == "" and last.data["ranking"]["score"].isna().all()
    assert lens.answer(lens.ids[0], query) == last.warning


@pytest.mark.slow  # compiles pynndescent
def test_of_many_users_the_map_comes_before_who_moved(engine, monkeypatch):
    for module in ("analysis.shift", "workbench.lens"):
        monkeypatch.setattr(f"qanchor.{module}.MAX_EXACT_USERS", 59)
    monkeypatch.setattr("qanchor.analysis.projection.BLOCK", 3)
    lens = qa.LensBackend(engine, engine.prefill(sample_users()), sample_users())
    assert lens.method == "pca"
    first, last = [u for u in lens(QUERY) if "points" in u.data and "ranking" not in u.data]
    assert "shift" not in first.data and "PCA" in first.caption and len(last.data["shift"]) == 60
    assert first.data["points"] is last.data["points"]  # drawn once


@pytest.mark.slow
def test_of_many_users_each_map_lies_as_the_last_of_its_method(engine, monkeypatch):
    for module in ("analysis.shift", "workbench.lens"):
        monkeypatch.setattr(f"qanchor.{module}.MAX_EXACT_USERS", 59)
    monkeypatch.setattr("qanchor.analysis.projection.BLOCK", 3)
    drawn = []

    def joint_map(*given, method, last, plain=projection.joint_projection):
        # UMAP can do nothing with so few users
        points = plain(*given, method="pca", last=last)
        points.attrs["method"] = method
        drawn.append((method, last, points))
        return points

    monkeypatch.setattr("qanchor.workbench.lens.joint_projection", joint_map)
    lens = qa.LensBackend(engine, engine.prefill(sample_users()), sample_users(), method="umap")
    first, second = list(lens(OTHER)), list(lens(QUERY))
    (pca, umap), (next_pca, next_umap) = drawn[:2], drawn[2:]
    assert [method for method, *_ in drawn] == ["pca", "umap"] * 2
    assert (
        pca[1] is None and umap[1] is pca[2] and next_pca[1] is pca[2] and next_umap[1] is umap[2]
    )
    for updates in (first, second):  # the map, who moved on it, the ranking, then the slow map
        shown = [u for u in updates if "points" in u.data]
        assert [u.caption.split()[2] for u in shown] == ["PCA"] * 4 + ["UMAP"]
        assert ["shift" in u.data for u in shown] == [False] + [True] * 4
        assert [u.data.get("ranking") is not None for u in shown] == [False] * 3 + [True] * 2


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("n_users", [1, 2])
def test_one_user_is_one_dot_and_two_users_are_compared(engine, n_users):
    users = sample_users().select(sample_users().ids[:n_users])
    method = "umap" if n_users == 1 else "pca"  # of one user there is no neighbourhood to fit
    lens = qa.LensBackend(engine, engine.prefill(users), users, method=method)
    for query, previous in (("", None), (QUERY, None), (OTHER, QUERY)):
        *_, last = lens(query, previous)
        assert len(last.data["points"]) == 2 * n_users
        assert last.data["points"][["x", "y", "trust"]].notna().all(axis=None)
        assert ("There is nobody to compare with." in last.caption) == (n_users == 1)
    assert last.data["shift"]["neighbours_kept"].tolist() == [1] * n_users
    assert (last.data["order"] == "There is nobody to compare with.") == (n_users == 1)


def test_a_cancelled_query_leaves_nothing_behind(engine, monkeypatch):
    monkeypatch.setattr("qanchor.models.pointing.USERS_PER_PASS", 10)
    lens = qa.LensBackend(engine, engine.prefill(sample_users()), sample_users(), method="pca")
    updates = lens(QUERY, previous=OTHER)
    assert next(updates).done == 10
    updates.close()
    assert not lens.embeddings
    assert list(lens(QUERY, previous=OTHER))[-1].data["points"] is not None


def test_the_lens_answers_in_words(lens, engine):
    user = lens.ids[0]
    answers = engine.rank(lens.cache, OTHER).set_index("user")["answer"]
    assert lens.answer(user, OTHER) == answers[user]
    assert len(lens.queries) == 6 and all("{}" not in query for query in lens.queries)


def test_the_timeline_marks_the_events_that_a_query_means_in_any_way_of_meaning(lens):
    users = sample_users()
    things = {thing.name: thing.words for thing in lens.cache.tokens.things}
    user = users.ids[0]
    history = users.history()
    events = history[history["user"] == user].reset_index(drop=True)
    afternoon = events["time"].dt.hour.between(12, 17)
    text = events["text"].mode()[0]
    cases = {
        f"modality:{events['modality'][0]}": events["modality"] == events["modality"][0],
        f"text:{text}": events["text"] == text,
        "time:afternoon": afternoon,
        "number:amount": events["amount"].fillna(0) != 0,
    }
    for name, meant in cases.items():
        frame = lens.timeline(user, things[name])
        assert list(frame) == ["time", "modality", "text", "evidence", "weight"]
        assert frame["weight"].notna().tolist() == meant.tolist()
        columns = ["time", "modality", "text"]
        pd.testing.assert_frame_equal(frame[columns].astype(str), events[columns].astype(str))
        assert meant.any() and not meant.all()
        assert frame["evidence"].tolist() == meant.tolist(), name
        assert f": {meant.sum()} time" in lens.answer(user, things[name])
    assert lens.timeline(user, QUERY)["evidence"].all()  # means any event
    assert lens.timeline(user, QUERY)["weight"].isna().all()
    for nothing in ("", "Does this user suffer from diabetes?"):
        assert not lens.timeline(user, nothing)["evidence"].any()
    with pytest.raises(KeyError, match="nobody"):
        lens.timeline("nobody", QUERY)


def test_a_user_without_events_has_an_empty_timeline(engine):
    users = sample_users()
    silent = users.ids[3]
    users = dataclasses.replace(users, events=users.events[users.events["user"] != silent])
    lens = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
    for query in ("", QUERY, "afternoon"):
        assert lens.timeline(silent, query).empty


def test_the_ranking_follows_the_map_in_the_order_of_the_users(lens, engine):
    query = QUERY
    updates = list(lens(query))
    places = [place for place, update in enumerate(updates) if "ranking" in update.data]
    first_map = next(place for place, update in enumerate(updates) if "points" in update.data)
    assert first_map < places[0] and places == list(
        range(places[0], len(updates))
    )  # the map is there first
    *working, ranking = [updates[place].data["ranking"] for place in places]
    assert working and all(frame is None for frame in working)
    assert list(ranking.columns) == ["user", "score", "answer"] and ranking[
        "user"
    ].tolist() == list(lens.ids)
    expected = engine.rank(lens.cache, query).set_index("user").loc[list(lens.ids)]
    np.testing.assert_allclose(ranking["score"], expected["score"], atol=1e-5)
    assert ranking["answer"].tolist() == expected["answer"].tolist()
    alone = list(lens.rank(query))[-1].data["ranking"]
    pd.testing.assert_frame_equal(alone, ranking)
    assert not any(
        "ranking" in update.data for update in lens("", previous=query)
    )  # nothing is asked


def test_a_query_is_embedded_once_for_map_and_ranking(lens, engine, monkeypatch):
    asked, iter_embed = [], engine.iter_embed
    monkeypatch.setattr(
        engine,
        "iter_embed",
        lambda cache, texts: (
            asked.extend(getattr(texts, "queries", texts)) or iter_embed(cache, texts)
        ),
    )
    list(lens(OTHER))
    assert asked.count(OTHER) == 1 and asked.count("") == 1


def test_the_backtest_is_that_of_the_library(engine):
    users = sample_users()
    lens = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
    # "hash" knows no words: a question is about what it is called like
    query = next(concept.label for concept in engine.model.concepts if concept.family == "modality")
    *steps, last = lens.backtest(query)
    result = qa.backtest(engine, users, query)
    assert last.data["backtest"] == result and last.done == last.total
    assert last.message == backtest_summary(result)
    assert last.message.startswith(f"Backtest as of {result.cutoff}: ")
    assert f" users by the 30 days after: {query}." in last.message
    assert steps and not any("backtest" in step.data for step in steps)


def test_users_may_be_named_after_they_were_read(engine):
    users = sample_users()
    cache = engine.prefill(users)
    lens = qa.LensBackend(engine, cache, dataclasses.replace(users, unit="member"), method="pca")
    *_, last = lens("Will this member come back?")
    assert (
        "member" in last.message
        and "user" not in last.message
        and last.caption.count("members") == 1
    )
    assert (lens.unit, lens.units) == ("member", "members")
    assert any("this member" in query for query in lens.queries) and cache.unit == "user"


def test_the_columns_are_the_facts_and_labels_of_the_users(lens):
    users = sample_users()
    columns = lens.columns
    assert list(columns) == [*users.tabular, *users.labels]
    assert tuple(columns.index) == lens.ids


def test_users_are_found_by_the_words_of_what_they_did_before_the_cutoff(lens):
    history = sample_users().history()
    text = history["text"].astype(str).iloc[0]
    words = f"{text.split()[-1]} {text.split()[0]}".upper()  # in any order and case
    has_words = [
        all(word in event.lower() for word in words.lower().split())
        for event in history["text"].astype(str)
    ]
    assert set(lens.find(words)) == set(history.loc[has_words, "user"].astype(str))
    assert lens.find("zebra") == lens.find(" ") == ()
