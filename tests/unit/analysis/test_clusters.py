"""Planted groups are found, a blob is none, the ledger's users add up, and names come from the past
alone.
"""

import time

import numpy as np
import pandas as pd
import pytest
from jaxtyping import TypeCheckError
from sklearn.metrics import adjusted_rand_score, silhouette_score

from qanchor.analysis import clusters, groups, projection
from qanchor.analysis.clusters import NONE, cluster_transitions, compare_clusters, find_clusters
from qanchor.data.users import Users
from qanchor.evaluation.probe import linear_probe
from qanchor.utils import arrays
from qanchor.workbench.clusters import comparison_update
from qanchor.workbench.messages import clusters_summary, transitions_summary

DIM = 128


def planted(sizes=(120, 90, 60), seed=0, spread=0.04):
    """Groups of unit rows around directions drawn at random, and whose each is."""
    random, label = np.random.default_rng(seed), np.repeat(range(len(sizes)), sizes)
    rows = arrays.l2_normalize(random.normal(size=(len(sizes), DIM)))[
        label
    ] + spread * random.normal(size=(len(label), DIM))
    order = random.permutation(len(label))
    return rows[order], label[order]


def blob(users=400, seed=0, decay=20.0):
    """One group: normal numbers, some directions wider than others, away from the origin."""
    random = np.random.default_rng(seed)
    return random.normal(size=(users, DIM)) * np.exp(-np.arange(DIM) / decay) + 0.5


def ids(rows):
    return [f"u{i:04}" for i in range(len(rows))]


def frame(*labels, name="u"):
    return pd.DataFrame({"user": [f"{name}{i:03}" for i in range(len(labels))], "cluster": labels})


def spans(*sizes):
    return [cluster for cluster, size in sizes for _ in range(size)]


def test_planted_groups_are_found_and_are_stable():
    rows, label = planted()
    found = find_clusters(rows, ids(rows))
    assert list(found) == ["user", "cluster"] and found["user"].tolist() == ids(rows)
    assert adjusted_rand_score(label, found["cluster"]) > 0.97
    assert (
        found["cluster"]
        .value_counts()
        .sort_index()
        .drop(NONE, errors="ignore")
        .is_monotonic_decreasing
    )
    assert min(found.attrs["stability"].values()) > 0.9
    assert clusters_summary(found).startswith(
        f"3 clusters contain {(found['cluster'] >= 0).sum()} of 270 users"
    )
    found.attrs["stability"][1] = 0.55
    assert clusters_summary(found).endswith("; 1 of them is not reliable (stability below 0.6).")


@pytest.mark.parametrize("decay", [2.0, 20.0, 1e9])
def test_one_blob_is_one_continuum(decay):
    found = [find_clusters(blob(seed=seed, decay=decay), range(400)) for seed in range(5)]
    assert all((f["cluster"] == NONE).all() and f.attrs["stability"] == {} for f in found)
    assert (
        clusters_summary(found[0], "household")
        == "No clusters: the 400 households form one continuum."
    )


def test_stability_falls_as_groups_run_into_each_other():
    def least_stable(spread):
        found = find_clusters(planted(spread=spread)[0], range(270))
        return (
            min(found.attrs["stability"].values(), default=0.0)
            if len(found.attrs["stability"]) == 3
            else 0.0
        )

    assert least_stable(0.04) > 0.9 > 0.6 > least_stable(0.25)


def test_clusters_along_one_line_are_said_to_be_stretches_of_it():
    random = np.random.default_rng(0)
    rows = np.c_[
        3 * np.ones(600), 2 * random.beta(0.4, 0.4, 600) - 1, 0.1 * random.normal(size=(600, 6))
    ]  # dense at its ends
    found = find_clusters(rows, ids(rows))
    assert found.attrs["first_axis"] > 0.85 and len(found.attrs["stability"]) == 2
    assert "dense stretches of one line, which holds" in clusters_summary(found)
    assert find_clusters(planted()[0], range(270)).attrs["first_axis"] < 0.8


def test_stability_agrees_with_loops(monkeypatch):
    monkeypatch.setattr(clusters, "SUBSAMPLES", 4)
    rows, _ = planted((40, 30), spread=0.06)
    flat = clusters._principal_axes(arrays.l2_normalize(rows))
    label = clusters._dense_clusters(flat, 10)
    random, overlaps = np.random.default_rng(clusters.SEED), []
    for _ in range(4):
        some = sorted(random.choice(70, 35, replace=False))
        again = clusters._dense_clusters(flat[some], 5)
        theirs = [{some[i] for i in range(35) if again[i] == k} for k in range(again.max() + 1)]
        ours = [{i for i in some if label[i] == k} for k in range(label.max() + 1)]
        overlaps.append([max(len(a & b) / len(a | b) for b in theirs) for a in ours])
    stability = clusters._stability(flat, label, 10)
    np.testing.assert_allclose(stability, np.mean(overlaps, axis=0))


def test_the_same_users_give_the_same_clusters():
    rows, _ = planted(spread=0.17)
    first, again = find_clusters(rows, ids(rows)), find_clusters(rows, ids(rows))
    pd.testing.assert_frame_equal(first, again)
    assert first.attrs == again.attrs


def test_two_thousand_users_and_twenty_subsamples_take_seconds():
    rows, _ = planted((700, 600, 500, 200))
    began = time.process_time()
    find_clusters(rows, ids(rows))
    assert time.process_time() - began < 10


def test_mistakes_of_finding_are_told():
    rows, _ = planted()
    with pytest.raises(ValueError, match=r"least is 1 for 270 users"):
        find_clusters(rows, ids(rows), least=1)
    with pytest.raises(ValueError, match="at least 15"):
        find_clusters(rows[:5], ids(rows[:5]))


def test_users_who_are_all_alike_are_no_clusters():
    found = find_clusters(np.ones((40, 8)), range(40))
    assert found.attrs["stability"] == {} and clusters_summary(found).startswith("No clusters")
    twins = np.repeat(np.eye(2, 8), 20, axis=0)
    assert find_clusters(twins, range(40))["cluster"].value_counts().to_dict() == {0: 20, 1: 20}


LEDGERS = {
    "stay": (spans((0, 30), (1, 20), (-1, 5)), spans((0, 30), (1, 20), (-1, 5)), {"stays": 55}),
    "renumbered": (spans((0, 30), (1, 20)), spans((1, 30), (0, 20)), {"stays": 50}),
    "split": (
        spans((0, 50), (1, 20)),
        spans((0, 30), (2, 20), (1, 20)),
        {"split": 50, "stays": 20},
    ),
    "merge": (
        spans((0, 30), (1, 20), (2, 15)),
        spans((0, 50), (1, 15)),
        {"merge": 50, "stays": 15},
    ),
    "birth": (
        spans((0, 30), (-1, 40)),
        spans((0, 30), (1, 25), (-1, 15)),
        {"stays": 45, "birth": 25},
    ),
    "death": (spans((0, 30), (1, 20)), spans((0, 30), (-1, 20)), {"stays": 30, "death": 20}),
    "leavers": (
        spans((0, 30), (1, 20)),
        spans((0, 25), (-1, 5), (1, 18), (0, 2)),
        {"stays": 43, "leaver": 7},
    ),
    "joiners": (
        spans((0, 30), (-1, 9)),
        spans((0, 30), (0, 4), (-1, 5)),
        {"stays": 35, "joiner": 4},
    ),
    "shuffle": ([0, 1, 2, 3] * 25, spans((0, 25), (1, 25), (2, 25), (3, 25)), {"birth": 100}),
    "nobody": (spans((-1, 12)), spans((-1, 12)), {"stays": 12}),
    "split and merge": (
        spans((0, 50), (1, 30)),
        spans((0, 30), (1, 20), (0, 30)),
        {"merge": 60, "split": 20},
    ),
}


@pytest.mark.parametrize("name", LEDGERS)
def test_the_ledger_names_what_was_planted_and_adds_up(name):
    before, after, kinds = LEDGERS[name]
    before, after = frame(*before), frame(*after)
    ledger = cluster_transitions(before, after.sample(frac=1, random_state=0))
    assert list(ledger) == ["from_cluster", "to_cluster", "users", "share_from", "share_to", "kind"]
    assert ledger.groupby("kind")["users"].sum().to_dict() == kinds
    assert (
        ledger.groupby("from_cluster")["users"].sum().to_dict()
        == before["cluster"].value_counts().to_dict()
    )
    assert (
        ledger.groupby("to_cluster")["users"].sum().to_dict()
        == after["cluster"].value_counts().to_dict()
    )
    np.testing.assert_allclose(ledger.groupby("from_cluster")["share_from"].sum(), 1)
    np.testing.assert_allclose(ledger.groupby("to_cluster")["share_to"].sum(), 1)
    assert (ledger["users"] > 0).all()


def test_the_ledger_adds_up_whatever_happens():
    random = np.random.default_rng(0)
    for _ in range(30):
        many = int(random.integers(10, 300))
        before, after = (frame(*random.integers(-1, random.integers(1, 9), many)) for _ in range(2))
        ledger = cluster_transitions(before, after)
        assert ledger["users"].sum() == many and ledger["kind"].notna().all()
        assert (
            ledger.groupby("from_cluster")["users"].sum()
            == before["cluster"].value_counts().sort_index()
        ).all()
        assert (
            ledger.groupby("to_cluster")["users"].sum()
            == after["cluster"].value_counts().sort_index()
        ).all()


def test_the_ledger_counts_clusters_in_words():
    ledger = cluster_transitions(
        frame(*LEDGERS["split and merge"][0]), frame(*LEDGERS["split and merge"][1])
    )
    assert ledger.attrs == {"split": [0], "merge": [0], "birth": [], "death": []}
    assert transitions_summary(ledger) == ("2 clusters became 2: 1 split, 1 merged.")
    shuffled = cluster_transitions(frame(*LEDGERS["shuffle"][0]), frame(*LEDGERS["shuffle"][1]))
    assert transitions_summary(shuffled).startswith("4 clusters became 4: 4 new, 4 dissolved.")
    with pytest.raises(ValueError, match="User 'u002' is on one side only"):
        cluster_transitions(frame(0, 0, 0), frame(0, 0))


CUTOFF = pd.Timestamp("2025-03-01")


def shoppers(seed=0, users=200):
    """Half buy takeout, half tea; all open an app; a text from after the cut-off would tell them
    apart at once.
    """
    random, rows = np.random.default_rng(seed), []
    for i in range(users):
        own = (
            ("ordered a takeout dinner", "takeout for two")
            if i < users // 2
            else ("bought green tea", "searched for tea cups")
        )
        texts = [str(random.choice(own)) for _ in range(4)] + ["opened the news app"] * int(
            random.integers(1, 6)
        )
        rows += [
            (f"u{i:04}", CUTOFF - pd.Timedelta(days=k + 1), "app" if "app" in t else "bill", t)
            for k, t in enumerate(texts)
        ]
        rows.append(
            (f"u{i:04}", CUTOFF + pd.Timedelta(days=1), "bill", f"future of {i < users // 2}")
        )
    return Users.from_events(
        pd.DataFrame(rows, columns=["user", "time", "modality", "text"]), CUTOFF
    )


def test_clusters_are_named_by_what_sets_them_apart_before_the_cutoff():
    users = shoppers()
    found = pd.DataFrame({"user": users.ids, "cluster": (np.arange(200) >= 100).astype(int)})
    names = groups.describe_clusters(found, users)
    assert list(names) == [
        "cluster",
        "users",
        "share",
        "stability",
        "events",
        "modality",
        "texts",
        "name",
    ]
    assert names["users"].tolist() == [100, 100] and names["share"].tolist() == [0.5, 0.5]
    assert set(names["texts"][0]) == {"ordered a takeout dinner", "takeout for two"}
    assert names["name"].tolist() == ["takeout", "tea"] and "future" not in names.to_string()
    assert names["modality"].tolist() == ["", ""]


def test_once_or_often_is_the_same_to_a_name():
    users = shoppers()
    often = pd.concat(
        [
            users.events,
            *[users.events[users.events["user"] == "u0150"].assign(text="opened a bank app")] * 50,
        ]
    )
    loud = Users.from_events(often.astype({"user": str, "text": str, "modality": str}), CUTOFF)
    found = pd.DataFrame({"user": loud.ids, "cluster": (np.arange(200) >= 100).astype(int)})
    assert all(
        "bank" not in text
        for texts in groups.describe_clusters(found, loud)["texts"]
        for text in texts
    )


def test_a_random_group_has_nothing_telling():
    users, random = shoppers(), np.random.default_rng(0)
    told = []
    for _ in range(20):
        found = pd.DataFrame({"user": users.ids, "cluster": random.integers(0, 2, 200)})
        told += groups.describe_clusters(found, users)["name"].tolist()
    assert sum(name.startswith("nothing distinctive") for name in told) >= 38


def test_modality_and_activity_are_named_too():
    rows = [(f"u{i:03}", "bill", f"thing {i}") for i in range(40) for _ in range(4)]
    rows += [
        (f"u{i:03}", "search" if k % 3 else "bill", f"thing {i}")
        for i in range(40, 80)
        for k in range(20)
    ]
    events = pd.DataFrame(rows, columns=["user", "modality", "text"]).assign(
        time=CUTOFF - pd.Timedelta(days=1)
    )
    users = Users.from_events(events, CUTOFF)
    found = pd.DataFrame({"user": users.ids, "cluster": (np.arange(80) >= 40).astype(int)})
    names = groups.describe_clusters(found, users)
    assert names["modality"].tolist() == ["bill", "search"] and names["events"].tolist() == [4, 20]
    assert names["name"].tolist() == ["few events", "many events"]


def test_names_need_users_that_are_known():
    users = shoppers()
    with pytest.raises(ValueError, match="no column 'cluster'"):
        groups.describe_clusters(pd.DataFrame({"user": users.ids}), users)
    with pytest.raises(KeyError, match="'stranger' is not among the 200"):
        groups.describe_clusters(pd.DataFrame({"user": ["stranger"], "cluster": [0]}), users)
    nobody = groups.describe_clusters(pd.DataFrame({"user": users.ids, "cluster": NONE}), users)
    assert nobody.empty and "name" in nobody


def two_sides(users):
    """All in one blob before; after, the takeout half has split off."""
    random = np.random.default_rng(0)
    half = np.arange(len(users)) < len(users) // 2
    before = blob(len(users))
    after = 0.04 * random.normal(size=before.shape) + np.where(
        half[:, None], np.eye(DIM)[0], np.eye(DIM)[1]
    )
    return before, after, half


def test_compare_gives_all_that_the_view_draws():
    users = shoppers()
    before, after, half = two_sides(users)
    held_out = pd.Series(half.astype(float), list(users.ids)).where(np.arange(200) % 2 == 0)
    stars = {"takeout": np.eye(DIM)[0], "not": np.eye(DIM)[1]}
    compared = compare_clusters(
        before, after, users, labels=held_out, prototypes=stars, method="pca"
    )
    assert compared.transitions["kind"].tolist() == ["birth", "birth"]
    assert compared.names[["side", "name"]].to_numpy().tolist() == [
        ["after", "takeout"],
        ["after", "tea"],
    ]
    expected = linear_probe(after, held_out.to_numpy())
    assert compared.scores["auc"][1] == expected.auc and compared.scores["n"].tolist() == [100, 100]
    assert compared.scores["silhouette"][1] > 0.5 > compared.scores["silhouette"][0]
    known = held_out.notna().to_numpy()
    apart = silhouette_score(arrays.l2_normalize(after)[known], half[known])
    assert compared.scores["silhouette"][1] == pytest.approx(apart)
    update = comparison_update(compared, "family")
    assert update.message == "0 clusters became 2: 2 new." and update.done == update.total
    assert update.data["summaries"]["before"] == "No clusters: the 200 families form one continuum."
    assert update.data["summaries"]["after"] == "2 clusters contain 200 of 200 families."
    assert (update.data["unit"], update.data["units"]) == ("family", "families")
    for name in ("points", "before", "after", "names", "transitions", "scores"):
        assert update.data[name] is getattr(compared, name)
    assert (
        "Trustworthiness" in update.caption
        and f"{compared.neighbors_kept:.0%} of the 15 nearest" in update.caption
    )
    assert (
        "HDBSCAN, at least 15 families, 16 principal axes, 20 subsamples of 50%" in update.caption
    )
    points = compared.points
    marks = points[points["query"] == projection.MARK].set_index("user")
    assert list(marks.index) == ["takeout", "not"] and len(points) == 402
    middle = (
        points[points["query"] == "after"]
        .set_index("user")
        .loc[np.array(users.ids)[half], ["x", "y"]]
        .mean()
    )
    far = (
        points[points["query"] == "after"]
        .set_index("user")
        .loc[np.array(users.ids)[~half], ["x", "y"]]
        .mean()
    )
    star = marks.loc["takeout", ["x", "y"]]
    assert np.linalg.norm((star - middle).astype(float)) < np.linalg.norm(
        (star - far).astype(float)
    )


def test_compare_works_with_little_and_refuses_what_does_not_fit():
    users = shoppers()
    before, after, _ = two_sides(users)
    compared = compare_clusters(before, after, users, method="pca")
    assert compared.scores.empty
    with pytest.raises(
        (ValueError, TypeCheckError), match="after"
    ):  # the second while shapes are checked
        compare_clusters(before, after[1:], users, method="pca")
