"""Questions against groups: the numbers of one group alone, chance called chance, directions right,
nothing asked twice.
"""

import numpy as np
import pandas as pd
import pytest

from qanchor import LensBackend, QueryMatrixBackend, Users
from qanchor.analysis import query_matrix
from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import rank_queries_for_group
from qanchor.analysis.query_matrix import query_group_matrix
from qanchor.analysis.shift import residual_shift
from qanchor.evaluation.metrics import roc_auc
from tests.fitted import cache_of, fitted_engine, sample_users

PEOPLE = tuple(f"u{i:03}" for i in range(300))
QUERIES = [f"q{k}" for k in range(4)]
GROUPS = {"planted": PEOPLE[:40], "others": PEOPLE[100:160], "random": PEOPLE[5::6]}


@pytest.fixture
def store(monkeypatch):
    """Embeddings by query; under q1 the first forty stand aside, lean to yes (their first number)
    and move farther.
    """
    random = np.random.default_rng(0)
    base = random.normal(size=(300, 16))
    embeddings = {query: base + 0.5 * random.normal(size=base.shape) for query in ["", *QUERIES]}
    embeddings["q1"][:40, 0] += 3

    def score(cache, query):
        leaning = store.embeddings[query][:, 0]
        return pd.DataFrame({"score": leaning * np.nan if query == "q3" else leaning})

    monkeypatch.setattr(fitted_engine(), "score", score)
    store = EmbeddingCache(fitted_engine(), cache_of(PEOPLE))
    for query, z in embeddings.items():
        store.embeddings[query] = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return store


def measured(store, queries=QUERIES, groups=GROUPS, **more):
    *_, frame = query_group_matrix(store, queries, groups, **more)
    return frame.set_index(["query", "group"])


def test_cells_are_the_numbers_of_each_group_alone(store):
    frame = measured(store)
    for name, ids in GROUPS.items():
        *_, one = rank_queries_for_group(store, ids, QUERIES)
        alone = one.set_index("query")
        ours = frame.xs(name, level="group").loc[alone.index]
        columns = ["auc", "auc_low", "auc_high", "chance", "n_group", "n_rest"]
        np.testing.assert_allclose(
            ours[["auc", "auc_low", "auc_high", "chance", "n", "n_rest"]], alone[columns]
        )
    assert frame.loc[("q1", "planted"), "beyond_chance"] and frame["auc"].idxmax() == (
        "q1",
        "planted",
    )


def test_yes_score_and_shift_against_plain_counts(store):
    frame = measured(store)
    inside = np.isin(PEOPLE, GROUPS["planted"])
    cell = frame.loc[("q1", "planted")]
    assert cell["yes_score"] == pytest.approx(roc_auc(store.embeddings["q1"][:, 0], inside))
    assert cell["yes_score_beyond"] and cell["yes_score"] > 0.8
    moved = residual_shift(*(store.embeddings[query].astype(float) for query in ("", "q1")))
    assert cell["shift"] == pytest.approx(np.median(moved[inside]), rel=1e-4)
    assert cell["ratio"] == pytest.approx(
        np.median(moved[inside]) / np.median(moved[~inside]), rel=1e-4
    )
    assert cell["ratio"] > cell["ratio_chance"] > 1 and cell["ratio_beyond"]
    strange = frame.loc["q3"]
    assert strange["yes_score"].isna().all() and not strange["yes_score_beyond"].any()
    assert strange["yes_score_chance"].notna().all()


def test_groups_without_meaning_are_seldom_significant(store):
    """Of 40 random groups about 2 have any significant cell, of each measure; 7 would be odd."""
    random = np.random.default_rng(4)
    groups = {f"g{k}": random.choice(PEOPLE, 45, replace=False) for k in range(40)}
    frame = measured(store, groups=groups)
    for beyond in ("beyond_chance", "yes_score_beyond", "ratio_beyond"):
        assert frame[beyond].groupby("group").any().sum() < 7, beyond
    assert len(frame) == 160


def test_rows_come_one_by_one_and_nothing_is_computed_twice(store, monkeypatch):
    cells, made = {}, []
    whole = query_matrix._measure_cell
    monkeypatch.setattr(query_matrix, "_measure_cell", lambda *a: made.append(1) or whole(*a))
    *steps, last = query_group_matrix(store, QUERIES, GROUPS, cells=cells)
    rows = [0 if step.frame is None else len(step.frame) for step in steps]
    assert rows == sorted(rows) and set(rows) == {0, 3, 6, 9, 12} and len(made) == len(last) == 12
    places = [(step.row, step.done) for step in steps]
    assert places == sorted(places) and places[-1] == (3, 300)
    assert {step.stage for step in steps} == {"scores", "row"}
    before = measured(store, cells=cells)
    assert len(made) == 12
    grown = measured(store, QUERIES[:2], {**GROUPS, "new": PEOPLE[200:230]}, cells=cells)
    assert len(made) == 14
    first = [("q0", "planted")]
    columns = ["auc", "yes_score", "ratio"]
    pd.testing.assert_frame_equal(grown[columns].loc[first], before[columns].loc[first])
    assert (
        grown.loc[("q0", "planted"), "chance"] <= before.loc[("q0", "planted"), "chance"]
    )  # the best of fewer
    running = query_group_matrix(store, QUERIES, GROUPS)
    next(running)
    running.close()
    assert measured(store)["auc"].equals(before["auc"])


def test_what_cannot_be_asked_is_refused_before_anything_is(store):
    few = {"few": PEOPLE[:9]}
    for queries, groups, error, words in (
        (
            QUERIES,
            few,
            ValueError,
            "Group 'few': The group has 9 users and 291 are outside it; at least 10 of each",
        ),
        (
            QUERIES,
            {"most": PEOPLE[9:]},
            ValueError,
            "Group 'most': The group has 291 users and 9 are outside it; at least 10 of each",
        ),
        (QUERIES, {"odd": ["zoe"]}, KeyError, "Group 'odd': User 'zoe' is not among the 300"),
        (QUERIES, {"all": PEOPLE}, ValueError, "Group 'all': The group holds 300 of 300"),
        (QUERIES, {}, ValueError, "Found 0 groups; at least 1 is required. Name some users."),
        (["q0", " "], GROUPS, ValueError, "Found 2 questions, 1 of them empty"),
        ([], GROUPS, ValueError, "Found 0 questions"),
    ):
        with pytest.raises(error, match=words):
            next(query_group_matrix(store, queries, groups))


def test_default_queries_are_suggestions_and_default_groups_are_the_labels(store):
    users = sample_users()
    backend = QueryMatrixBackend(store, users)
    assert backend.queries == list(fitted_engine().suggest_queries(users, 8))
    assert 3 < len(set(backend.queries)) == len(backend.queries) <= 8
    assert set(backend.groups) <= set(users.labels)
    assert all(len(ids) >= 10 for ids in backend.groups.values())
    active = users.labels.index[users.labels["Active"] == 1]
    assert set(backend.groups["Active"]) == set(active)


def test_groups_without_labels_are_facts_or_modalities():
    random, rows = np.random.default_rng(0), []
    cutoff = pd.Timestamp("2025-03-01")
    for i, user in enumerate(PEOPLE[:60]):
        rows += [
            (user, cutoff - pd.Timedelta(days=int(d)), "app" if d < 4 + i % 20 else "bill", "tea")
            for d in range(1, 30)
        ]
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text"])
    index = pd.Index(PEOPLE[:60], name="user")
    facts = pd.DataFrame(
        {"home.owner": (np.arange(60) < 25) * 1.0, "home.rooms": random.integers(1, 9, 60) * 1.0},
        index,
    )
    groups = query_matrix.default_groups(Users.from_events(events, cutoff, tabular=facts))
    assert {name: len(ids) for name, ids in groups.items()} == {"home.owner": 25}
    groups = query_matrix.default_groups(Users.from_events(events, cutoff))
    assert {name: len(ids) for name, ids in groups.items()} == {"much bill": 15, "much app": 15}
    assert (
        query_matrix.default_groups(Users.from_events(events[events["user"] < "u012"], cutoff))
        == {}
    )
    rare = events.assign(modality=np.where(events["user"] < "u012", events["modality"], "bill"))
    groups = query_matrix.default_groups(Users.from_events(rare, cutoff))
    assert set(groups["much app"]) == set(PEOPLE[:12])  # nobody who has none


def test_the_back_end_caches_the_newest_cells_and_gives_the_same_without_the_others(
    store, monkeypatch
):
    monkeypatch.setattr(
        "qanchor.workbench.query_matrix.MAX_CACHED_CELLS", 2
    )  # fewer than one row has
    backend = QueryMatrixBackend(store, sample_users())
    whole = measured(store)
    for _ in range(2):
        *_, last = backend(QUERIES, GROUPS)
        pd.testing.assert_frame_equal(last.data["frame"].set_index(["query", "group"]), whole)
    assert len(backend._cells) == 2
    assert (
        "“q1” separates “planted” (40 users)" in last.message
        and "best of 4 questions" in last.caption
    )


def test_the_back_end_answers_with_the_real_path():
    users, engine = sample_users(), fitted_engine()
    lens = LensBackend(engine, engine.prefill(users), users, method="pca")
    store, query = lens.embedding_cache, "Will this user come back?"
    groups = {"some": users.ids[:20]}
    backend = QueryMatrixBackend(store, users)
    updates = list(backend([query], groups))
    last = updates[-1]
    assert last.done == last.total == 60 and last.data["frame"]["yes_score"].between(0, 1).all()
    assert set(lens.embeddings) == {"", query} and "60 users are few" in last.caption
    assert (
        set(last.data["reads"]) == {"auc", "yes_score", "ratio"}
        and updates[0].data["frame"] is None
    )
    assert updates[0].message.startswith("Embedded ") and updates[0].message.endswith(
        "question 1 of 1 ..."
    )
