"""A group beside the rest: what was planted is found, chance is called chance, and nothing of the
future is read.
"""

import csv
import hashlib
import hmac

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, fisher_exact

from qanchor import GroupQueriesBackend, Users, export_group, make_sample_users
from qanchor.analysis.embedding_cache import EmbeddingCache
from qanchor.analysis.group_queries import (
    FOLDS,
    nearest_mean_aucs,
    question_bank,
    random_groups,
    rank_queries_for_group,
)
from qanchor.analysis.groups import describe_group
from qanchor.data.export import escape_formula
from qanchor.evaluation.intervals import wilson_interval
from qanchor.evaluation.metrics import roc_auc
from qanchor.workbench.messages import group_queries_summary
from tests.fitted import cache_of, fitted_engine, sample_users

CUTOFF = pd.Timestamp("2025-03-01")
GROUP = [f"u{i:03}" for i in range(20)]


def planted(users=120, seed=0, future=()):
    """Users of whom the first 20 drink tea, pay more and carry a label; `future` rows are added
    after the cut-off.
    """
    rng, rows = np.random.default_rng(seed), []
    for i in range(users):
        tea = rng.random() < (0.8 if i < 20 else 0.2)
        for text in ["tea"] * tea + ["rice", "soap", "bread"][: rng.integers(1, 4)]:
            rows.append(
                (
                    f"u{i:03}",
                    CUTOFF - pd.Timedelta(hours=int(rng.integers(1, 900))),
                    "bill",
                    text,
                    rng.gamma(3, 9 + 9 * (i < 20)),
                )
            )
    rows += list(future)
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text", "amount"])
    index = pd.Index([f"u{i:03}" for i in range(users)], name="user")
    labels = pd.DataFrame(
        {"likes": [1.0] * 18 + [0.0] * 2 + [1.0] * 10 + [0.0] * (users - 31) + [np.nan]}, index
    )
    facts = pd.DataFrame(
        {
            "home.owner": rng.integers(0, 2, users).astype(float),
            "home.rooms": rng.integers(1, 6, users).astype(float),
        },
        index,
    )
    return Users.from_events(events, CUTOFF, tabular=facts, labels=labels)


def anchors(users=150, planted=30, queries=12, seed=0, size=1.2) -> EmbeddingCache:
    """Embeddings by query: under query 3 the first users stand aside."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(users, 16))
    embeddings = {f"q{k}": base + rng.normal(size=base.shape) for k in range(queries)}
    embeddings["q3"][:planted] += size * rng.normal(size=16)
    store = EmbeddingCache(fitted_engine(), cache_of(tuple(f"u{i:03}" for i in range(users))))
    for query, z in embeddings.items():
        store.embeddings[query] = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return store


def ranked(*args) -> pd.DataFrame:
    *_, ranking = rank_queries_for_group(*args)
    return ranking


def test_what_was_planted_stands_first():
    found = describe_group(planted(), GROUP)
    assert (
        set(found.head(3).name) == {"likes", "tea", "amount"} and found.head(3).beyond_chance.all()
    )
    row = found.set_index(["kind", "name"]).loc[("text", "tea")]
    users = planted()
    had = users.history().query("text == 'tea'").groupby("user", observed=False).size() > 0
    inside = had.index.isin(GROUP)
    assert row.group == had[inside].mean() and row.rest == had[~inside].mean()
    table = [[had[rows].sum(), (~had[rows]).sum()] for rows in (inside, ~inside)]
    assert (
        1 <= row.p / fisher_exact(table).pvalue <= 2.01
    )  # both tails: doubled, so never less than the one of Fisher
    assert (
        row.low < row.difference < row.high
        and row.low > 0
        and (row.n_group, row.n_rest) == (20, 100)
    )


def test_shares_are_of_those_known_and_facts_and_medians_have_their_places():
    found = describe_group(planted(), GROUP).set_index(["kind", "name"])
    likes = found.loc[("label", "likes")]
    assert (likes.group, likes.n_rest) == (0.9, 99) and likes.rest == 10 / 99
    assert ("fact", "home.owner") in found.index and ("number", "home.rooms") in found.index
    users = planted()
    sums = users.history().groupby("user", observed=False)["amount"].sum()
    assert found.loc[("number", "amount")].group == sums[sums.index.isin(GROUP)].median()
    inside = found[["group", "rest"]].to_numpy()
    assert (found[["group_low", "rest_low"]].to_numpy() <= inside).all() and (
        inside <= found[["group_high", "rest_high"]].to_numpy()
    ).all()


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (10, 10), (250, 600)])
def test_wilson_is_scipys(count, n):
    ours, theirs = (
        wilson_interval(np.array([count]), np.array([n])),
        binomtest(count, n).proportion_ci(method="wilson"),
    )
    np.testing.assert_allclose([ours[0][0], ours[1][0]], [theirs.low, theirs.high], atol=1e-4)


@pytest.mark.slow
def test_random_groups_are_seldom_found_special():
    """Of 60 random groups, about 3 or fewer have any row beyond chance; 9 would be odd."""
    users, rng = make_sample_users(300), np.random.default_rng(0)
    found = [
        describe_group(users, rng.choice(users.ids, 30, replace=False)).query("kind != 'label'")
        for _ in range(60)
    ]
    assert sum(bool(frame.beyond_chance.any()) for frame in found) < 9


def test_no_event_after_the_cutoff_is_read():
    late = [(user, CUTOFF + pd.Timedelta(days=1), "late", "secret", 10_000.0) for user in GROUP]
    at = [(user, CUTOFF, "bill", "tea", 10_000.0) for user in GROUP]
    pd.testing.assert_frame_equal(
        describe_group(planted(), GROUP), describe_group(planted(future=late + at), GROUP)
    )


def test_groups_of_strangers_nobody_and_everybody_are_refused():
    users = planted()
    with pytest.raises(KeyError, match="'zoe' is not among the 120"):
        describe_group(users, ["u001", "zoe"])
    for ids in ((), users.ids):
        with pytest.raises(ValueError, match="nothing to compare"):
            describe_group(users, ids)
    store = anchors()
    told = (
        "The group has 9 users and 141 are outside it; at least 10 of each are required. "
        "Select more."
    )
    with pytest.raises(ValueError, match=told):
        next(rank_queries_for_group(store, store.ids[:9], list(store.embeddings)))


def test_the_question_that_separates_a_planted_group_comes_first():
    store = anchors()
    *steps, frame = rank_queries_for_group(store, store.ids[:30], list(store.embeddings))
    assert (
        frame["query"][0] == "q3" and frame.beyond_chance[0] and not frame.beyond_chance[1:].any()
    )
    assert frame.behind.tolist() == [False] + [True] * 11 and frame.auc.is_monotonic_decreasing
    assert (frame.auc_low <= frame.auc).all() and (frame.auc <= frame.auc_high).all()
    assert steps == [("questions", k, 12) for k in range(1, 13)]
    *progress, last = GroupQueriesBackend(store, list(store.embeddings))(store.ids[:30])
    assert last.message.startswith("“q3” separates these 30 users best from the other 120: AUC 0.9")
    assert last.done == last.total == 12 and progress[0].message == "Compared 1 of 12 questions ..."
    assert not any(update.data for update in progress)
    pd.testing.assert_frame_equal(last.data["frame"], frame)


def test_the_chance_line_holds_what_it_says():
    """Random groups pass the line in about 5 % of cases, whichever of twelve questions is the best:
    12 of 80 would be odd.
    """
    store = anchors(size=0)
    queries, rng = list(store.embeddings), np.random.default_rng(3)
    passed = []
    for _ in range(80):
        group = rng.choice(store.ids, 15, replace=False)
        passed.append(ranked(store, group, queries).beyond_chance.any())
    assert sum(passed) < 12
    single = ranked(store, store.ids[:15], ["q0"]).chance[0]
    assert single < ranked(store, store.ids[:15], queries).chance[0], "the best of more is luckier"


def test_folded_scores_are_those_of_a_loop():
    z = anchors(users=60).embeddings["q3"]
    inside = np.arange(60) < 14
    groups, folds = random_groups(inside)
    fast, z = nearest_mean_aucs(z, groups, folds)[FOLDS : 2 * FOLDS], z.astype(float)
    assert (groups.sum(axis=1) == 14).all() and (groups[0] == inside).all()
    for draw in range(4):
        group, fold = groups[draw], folds[1, draw]
        for k in range(FOLDS):
            towards = z[group & (fold != k)].mean(axis=0) - z[~group & (fold != k)].mean(axis=0)
            assert abs(fast[k, draw] - roc_auc(z[fold == k] @ towards, group[fold == k])) < 1e-6


def test_it_is_cancelled_between_users_and_keeps_only_what_is_whole(monkeypatch):
    monkeypatch.setattr("qanchor.models.pointing.USERS_PER_PASS", 16)
    users, engine = sample_users(), fitted_engine()
    store = EmbeddingCache(engine, engine.prefill(users))
    steps = rank_queries_for_group(store, users.ids[:12], ["Why?", "Where?"])
    stage, done, total = next(steps)
    assert stage == "users" and 0 < done < total == len(users)
    steps.close()
    assert not store.embeddings
    whole = ranked(store, users.ids[:12], ["Why?", "Where?"])
    np.testing.assert_allclose(
        store.embeddings["Where?"], engine.embed(store.cache, "Where?"), atol=1e-5
    )
    calls = []
    monkeypatch.setattr(engine, "iter_embed", lambda *args: calls.append(args))
    again = ranked(store, users.ids[:12], ["Why?", "Where?"])
    assert not calls, "what is cached is not asked again"
    pd.testing.assert_frame_equal(whole, again)


def test_the_bank_asks_each_concept_once_and_words_say_what_is_not_there():
    concepts = fitted_engine().model.concepts
    bank = question_bank(concepts, "viewer")
    assert len(bank) == len(set(bank)) == 60
    assert all("{" not in query and query.endswith("?") for query in bank)
    assert bank[0] == "Will this viewer come back?" and "user" not in " ".join(bank)
    text = next(concept.label for concept in concepts if concept.family == "text")
    assert f"Will there be {text} soon?" in bank, "the most common texts come last"
    assert GroupQueriesBackend(anchors()).questions == question_bank(concepts)
    store = anchors(size=0)
    *_, last = GroupQueriesBackend(store, list(store.embeddings))(store.ids[:30])
    assert last.message.startswith("No question separates these 30 users better than chance")
    words = group_queries_summary(last.data["frame"], "family")
    assert words.startswith("No question separates these 30 families better than chance")


def test_files_hold_the_group_hashed_on_request(tmp_path):
    users = planted()
    path = export_group(users, GROUP, tmp_path / "tea.csv")
    frame = pd.read_csv(path)
    assert (
        frame.user.tolist() == GROUP
        and frame.events.sum() == users.history().user.isin(GROUP).sum()
    )
    hidden = pd.read_parquet(
        export_group(users, GROUP, tmp_path / "tea.parquet", salt="pepper")
    ).user
    assert set(hidden) == {
        hmac.new(b"pepper", user.encode(), hashlib.sha256).hexdigest() for user in GROUP
    }
    assert hidden.is_monotonic_increasing, "the order would give the ids away"


def test_small_groups_bad_endings_and_empty_salts_are_refused(tmp_path):
    users = planted()
    with pytest.raises(ValueError, match="Found 9 users in the group; at least 10 are needed"):
        export_group(users, GROUP[:9], tmp_path / "few.csv")
    with pytest.raises(ValueError, match=r"tea\.xlsx is not a \.csv or \.parquet file"):
        export_group(users, GROUP, tmp_path / "tea.xlsx")
    with pytest.raises(ValueError, match="salt is empty"):
        export_group(users, GROUP, tmp_path / "tea.csv", salt="")
    assert not list(tmp_path.iterdir())
    assert export_group(users, GROUP[:9], tmp_path / "few.csv", least=5).exists()


@pytest.mark.parametrize("nobody", [(), [], iter(())])
def test_nobody_chosen_is_told_as_such(tmp_path, nobody):
    words = "No users selected. Select some in the lens and run this cell again."
    with pytest.raises(ValueError, match=f"^{words}$"):
        export_group(planted(), nobody, tmp_path / "tea.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "＝1"])
def test_no_cell_is_a_formula(tmp_path, bad):
    assert escape_formula(bad) == f"'{bad}"
    rows = [(f"{bad}{i}", CUTOFF - pd.Timedelta(days=1), bad, bad, 1.0) for i in range(24)]
    users = Users.from_events(
        pd.DataFrame(rows, columns=["user", "time", "modality", "text", "amount"]), CUTOFF
    )
    text = export_group(users, users.ids[:12], tmp_path / "some.csv").read_text()
    cells = pd.read_csv(tmp_path / "some.csv", header=None, dtype=str).to_numpy().ravel()
    assert len(text) > 100 and not [
        c for c in cells if isinstance(c, str) and c.strip()[:1] in "=+-@＝"
    ]


def test_a_carriage_return_begins_no_cell_of_its_own(tmp_path):
    rows = [(f"u{i}", CUTOFF - pd.Timedelta(days=1), "bill", "tea\r=1+1", 1.0) for i in range(24)]
    users = Users.from_events(
        pd.DataFrame(rows, columns=["user", "time", "modality", "text", "amount"]), CUTOFF
    )
    path = export_group(users, users.ids[:12], tmp_path / "some.csv")
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "tea\r=1+1" in "".join(cells) and not [cell for cell in cells if cell.startswith("=")]


def test_numbers_stay_numbers_in_a_csv():
    assert (escape_formula(-2), escape_formula("tea"), escape_formula("")) == (-2, "tea", "")
