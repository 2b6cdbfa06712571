"""A deck against groups: the numbers of one group alone, luck called luck, directions right, nothing asked twice."""

import functools

import numpy as np
import pandas as pd
import pytest

from qanchor import (
    LensBackend,
    PrefixCache,
    QueryMatrixBackend,
    Users,
    make_sample_users,
    query_group_matrix,
    rank_queries_for_group,
)
from qanchor.analysis import group_queries, query_matrix
from qanchor.evaluation.metrics import roc_auc
from qanchor.useru.topics import TOPICS
from tests.tiny import make_engine, make_model, make_users

PEOPLE = tuple(f"u{i:03}" for i in range(300))
QUERIES = [f"q{k}" for k in range(4)]
GROUPS = {"planted": PEOPLE[:40], "others": PEOPLE[100:160], "random": PEOPLE[5::6]}


@functools.cache
def idle():
    """An engine that is never asked, for everything is kept."""
    return make_engine(make_model())


@pytest.fixture
def ask(monkeypatch):
    """Embeddings by query; under q1 the first forty stand aside, lean to yes (their first number) and move farther."""
    random = np.random.default_rng(0)
    base = random.normal(size=(300, 16))
    kept = {query: base + 0.5 * random.normal(size=base.shape) for query in ["", *QUERIES]}
    kept["q1"][:40, 0] += 3
    asker = LensBackend(idle(), PrefixCache(PEOPLE, "user"), make_users())
    asker.kept.update({query: (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for query, z in kept.items()})

    def judge(model, ids, query, anchors, unit, horizon_days):
        return pd.DataFrame({"score": anchors[:, 0] if query != "q3" else np.full(len(anchors), np.nan)})

    monkeypatch.setattr(query_matrix, "label_free_scores", judge)
    return asker


def told(ask, queries=QUERIES, groups=GROUPS, **more):
    *_, last = query_group_matrix(ask, queries, groups, **more)
    return last["frame"].set_index(["query", "group"]), last


def test_cells_are_the_numbers_of_each_group_alone(ask):
    frame, last = told(ask)
    for name, ids in GROUPS.items():
        *_, one = rank_queries_for_group(ask.engine, ask.cache, ids, QUERIES, kept=ask.kept)
        alone = one["frame"].set_index("query")
        ours = frame.xs(name, level="group").loc[alone.index]
        columns = ["auc", "auc_low", "auc_high", "chance", "n_group", "n_rest"]
        np.testing.assert_allclose(ours[["auc", "auc_low", "auc_high", "chance", "n", "n_rest"]], alone[columns])
    assert frame.loc[("q1", "planted"), "beyond_chance"] and frame["auc"].idxmax() == ("q1", "planted")
    assert "“q1” tells “planted” (40 users)" in last["sentence"] and "best of 4 questions" in last["caption"]


def test_lean_and_shift_against_plain_counts(ask):
    frame, _ = told(ask)
    inside = np.isin(PEOPLE, GROUPS["planted"])
    cell = frame.loc[("q1", "planted")]
    assert cell["lean"] == pytest.approx(roc_auc(ask.kept["q1"][:, 0], inside)) and cell["lean_beyond"] and cell["lean"] > 0.8
    moved = query_matrix.maps.residuals(*(ask.kept[query].astype(float) for query in ("", "q1")))
    assert cell["shift"] == pytest.approx(np.median(moved[inside]), rel=1e-4)
    assert cell["ratio"] == pytest.approx(np.median(moved[inside]) / np.median(moved[~inside]), rel=1e-4)
    assert cell["ratio"] > cell["ratio_chance"] > 1 and cell["ratio_beyond"]
    strange = frame.loc["q3"]
    assert strange["lean"].isna().all() and not strange["lean_beyond"].any() and strange["lean_chance"].notna().all()
    assert frame["noise_floor"].isna().all()
    ask.floors["q1"] = 0.25
    assert told(ask)[0].loc["q1", "noise_floor"].eq(0.25).all()


def test_groups_without_meaning_are_seldom_coloured(ask):
    """Of 40 random groups about 2 have any cell beyond luck, of each measure; 7 would be odd."""
    random = np.random.default_rng(4)
    groups = {f"g{k}": random.choice(PEOPLE, 45, replace=False) for k in range(40)}
    frame, last = told(ask, groups=groups)
    for beyond in ("beyond_chance", "lean_beyond", "ratio_beyond"):
        assert frame[beyond].groupby("group").any().sum() < 7, beyond
    assert len(last["frame"]) == 160


def test_rows_come_one_by_one_and_nothing_is_worked_out_twice(ask, monkeypatch):
    cells, made = {}, []
    whole = query_matrix._measure_cell
    monkeypatch.setattr(query_matrix, "_measure_cell", lambda *a: made.append(1) or whole(*a))
    rows = [
        0 if update["frame"] is None else len(update["frame"])
        for update in query_group_matrix(ask, QUERIES, GROUPS, cells=cells)
    ]
    assert rows == sorted(rows) and set(rows) == {0, 3, 6, 9, 12} and len(made) == 12
    before, _ = told(ask, cells=cells)
    assert len(made) == 12
    grown, _ = told(ask, [*QUERIES, ""][:2], {**GROUPS, "new": PEOPLE[200:230]}, cells=cells)
    assert len(made) == 14
    pd.testing.assert_frame_equal(
        grown[["auc", "lean", "ratio"]].loc[[("q0", "planted")]], before[["auc", "lean", "ratio"]].loc[[("q0", "planted")]]
    )
    assert grown.loc[("q0", "planted"), "chance"] <= before.loc[("q0", "planted"), "chance"]  # the best of fewer
    running = query_group_matrix(ask, QUERIES, GROUPS)
    next(running)
    running.close()
    assert told(ask)[0]["auc"].equals(before["auc"])


def test_what_cannot_be_asked_is_refused_before_anything_is(ask):
    few = {"few": PEOPLE[:9]}
    for queries, groups, error, words in (
        (QUERIES, few, ValueError, "group 'few': 9 users in it, at least 10 are needed: choose more"),
        (QUERIES, {"all but few": PEOPLE[9:]}, ValueError, "9 users outside it, at least 10 are needed: choose fewer"),
        (QUERIES, {"odd": ["zoe"]}, KeyError, "group 'odd': user 'zoe' is not among the 300"),
        (QUERIES, {"all": PEOPLE}, ValueError, "group 'all': the group holds 300 of 300"),
        (QUERIES, {}, ValueError, "0 groups"),
        (["q0", " "], GROUPS, ValueError, "2 questions, 1 of them empty"),
        ([], GROUPS, ValueError, "0 questions"),
    ):
        with pytest.raises(error, match=words):
            query_group_matrix(ask, queries, groups)


def test_a_deck_of_a_world_is_diverse_and_its_groups_are_its_labels():
    users = make_sample_users(200)
    asked, groups = query_matrix.default_queries(users), query_matrix.default_groups(users)
    topics = [group_queries.question_bank()[query] for query in asked]
    domains = {topic.domain for topic in TOPICS if topic.name in topics}
    assert len(asked) == len(domains) == 8
    assert set(groups) <= set(users.labels) and all(len(ids) >= 10 for ids in groups.values())
    assert set(groups["Active"]) == set(users.labels.index[users.labels["Active"] == 1])
    assert [len(query_matrix.default_queries(users, many)) for many in (5, 12)] == [5, 12]


def test_groups_without_labels_are_facts_or_modalities():
    random, rows = np.random.default_rng(0), []
    cutoff = pd.Timestamp("2025-03-01")
    for i, user in enumerate(PEOPLE[:60]):
        rows += [(user, cutoff - pd.Timedelta(days=int(d)), "app" if d < 4 + i % 20 else "bill", "tea") for d in range(1, 30)]
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text"])
    index = pd.Index(PEOPLE[:60], name="user")
    facts = pd.DataFrame({"home.owner": (np.arange(60) < 25) * 1.0, "home.rooms": random.integers(1, 9, 60) * 1.0}, index)
    groups = query_matrix.default_groups(Users.from_events(events, cutoff, tabular=facts))
    assert {name: len(ids) for name, ids in groups.items()} == {"home.owner": 25}
    groups = query_matrix.default_groups(Users.from_events(events, cutoff))
    assert {name: len(ids) for name, ids in groups.items()} == {"much bill": 15, "much app": 15}
    assert query_matrix.default_groups(Users.from_events(events[events["user"] < "u012"], cutoff)) == {}
    rare = events.assign(modality=np.where(events["user"] < "u012", events["modality"], "bill"))
    assert set(query_matrix.default_groups(Users.from_events(rare, cutoff))["much app"]) == set(PEOPLE[:12])  # nobody who has none
    assert len(query_matrix.default_queries(Users.from_events(events, cutoff))) == 8  # they speak of next to nothing


def test_a_deck_keeps_the_newest_cells_and_gives_the_same_without_the_others(ask, monkeypatch):
    monkeypatch.setattr(query_matrix, "MAX_CACHED_CELLS", 2)  # fewer than one row has
    held = QueryMatrixBackend(ask, make_sample_users(60), QUERIES, GROUPS)
    whole, _ = told(ask)
    for _ in range(2):
        *_, last = held(QUERIES, GROUPS)
        pd.testing.assert_frame_equal(last["frame"].set_index(["query", "group"]), whole)
    assert len(held._cells) == 2


def test_a_deck_answers_with_the_real_path():
    users = make_sample_users(60)
    engine = make_engine(make_model(users))
    ask = LensBackend(engine, engine.prefill(users), users, method="pca")
    dealt = QueryMatrixBackend(ask, users, queries=["Will this user travel soon?"], groups={"some": users.ids[:20]})
    *_, last = dealt(dealt.queries, dealt.groups)
    assert last["done"] == last["total"] == 60 and last["frame"]["lean"].between(0, 1).all()
    assert set(ask.kept) == {"", "Will this user travel soon?"} and "60 users are few" in last["caption"]
    *_, last = query_group_matrix(ask, dealt.queries, dealt.groups, floors=True, draws=20)
    assert last["frame"]["noise_floor"].iloc[0] == ask.floors["Will this user travel soon?"] > 0
