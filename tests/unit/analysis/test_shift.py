"""A user stands out whom no other query moves as far; a rotation moves nobody."""

import numpy as np
import pandas as pd
import pytest
from jaxtyping import TypeCheckError
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import roc_auc_score

from qanchor.analysis import projection, shift
from qanchor.utils import arrays
from qanchor.workbench import messages

USERS, DIM = 300, 32
IDS = [f"u{i:03}" for i in range(USERS)]


def embeddings(seed=0, users=USERS):
    """Four loose groups of unit rows."""
    random = np.random.default_rng(seed)
    rows = (
        random.normal(size=(users, DIM))
        + 3 * random.normal(size=(4, DIM))[random.integers(0, 4, users)]
    )
    return arrays.l2_normalize(rows)


def reworded(rows, seed, scale=0.02):
    return arrays.l2_normalize(
        rows + np.random.default_rng(seed).normal(scale=scale, size=rows.shape)
    )


def rotation(seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0]


def test_a_rotation_and_an_offset_are_not_movement():
    rows = embeddings()
    turned = rows @ rotation() + 0.3
    aligned, removed = shift.align(rows, turned)
    np.testing.assert_allclose(aligned, rows, atol=1e-9)
    assert removed > 0.5
    assert shift.residual_shift(rows, turned).max() < 1e-9
    assert shift.align(rows, rows)[1] < 1e-9


def asked(rows, seed, users=None):
    """Embeddings under a query that moves a tenth of the users, or those given, far toward yes."""
    random = np.random.default_rng(seed)
    about = random.random(USERS) < 0.1 if users is None else users
    after = rows + random.normal(scale=0.02, size=rows.shape)
    after[:, shift.SCORE] += about
    after[about] += 0.3 * random.normal(size=DIM)  # in a direction of the query's own
    return arrays.l2_normalize(after + random.normal(scale=0.1, size=DIM))


def test_a_paraphrase_makes_nobody_stand_out():
    rows = embeddings()
    before = asked(rows, 1)
    others = [asked(rows, seed) for seed in range(10, 29)]
    for seed in range(90, 100):
        frame = shift.embedding_shift(before, reworded(before, seed), IDS, "a", "b", others)
        assert frame.stands_out.mean() < 0.01
    assert not shift.embedding_shift(before, before, IDS, "a", "a", others).stands_out.any()


def test_a_query_like_the_others_makes_its_share_stand_out_and_every_user_has_one_query():
    rows = embeddings()
    queries = [asked(rows, seed) for seed in range(20)]
    stands_out = []
    for place, after in enumerate(queries):
        others = queries[:place] + queries[place + 1 :]
        frame = shift.embedding_shift(rows, after, IDS, "", "b", others)
        stands_out.append(frame.stands_out)
    assert frame.attrs["others"] == 19
    assert np.mean(stands_out) == pytest.approx(0.05, abs=0.01)
    assert np.max(np.mean(stands_out, axis=1)) < 0.2


def test_a_planted_group_stands_out_and_others_do_not():
    rows = embeddings()
    group = np.random.default_rng(1).random(USERS) < 0.2
    others = [asked(rows, seed) for seed in range(10, 29)]
    frame = shift.embedding_shift(rows, asked(rows, 5, group), IDS, "a", "b", others)
    assert roc_auc_score(group, frame.toward_yes - frame.elsewhere) > 0.85
    assert frame.stands_out[~group].mean() < 0.05
    # those that no other query is about
    assert frame.stands_out[group & (frame.elsewhere < 1.5)].mean() > 0.9
    away = shift.embedding_shift(rows, rows - 0.5 * group[:, None], IDS, "a", "b", others)
    assert away.stands_out[group].mean() < 0.05, "a move away from yes is not counted"


def test_the_comparison_agrees_with_loops():
    rows = embeddings(users=40)
    queries = [asked(embeddings(), seed)[:40] for seed in range(5)]

    def toward(after):
        moved = [after[i] - after.mean(0) - (rows[i] - rows.mean(0)) for i in range(40)]
        score = [after[i, 0] - after[:, 0].mean() for i in range(40)]
        direction = sum(score[i] * moved[i] for i in range(40))
        direction = direction / np.sqrt((direction**2).sum())
        return np.array([sum(moved[i] * direction) for i in range(40)])

    moves = [toward(after) for after in queries]
    spreads = [move.std() for move in moves]
    units = [max(spread, np.median(spreads[1:])) for spread in spreads]
    np.testing.assert_allclose(shift.toward_yes(rows, queries[0]), moves[0])
    here, elsewhere = shift.compare_with_others(rows, queries[0], queries[1:])
    for i in range(40):
        assert here[i] == pytest.approx(moves[0][i] / units[0])
        others = [moves[k][i] / units[k] for k in range(1, 5)]
        assert elsewhere[i] == pytest.approx(max(1.0, *others))


def test_without_other_queries_nobody_stands_out():
    rows = embeddings()
    frame = shift.embedding_shift(rows, asked(rows, 1), IDS, "a", "b", [])
    assert not frame.stands_out.any() and frame.toward_yes.isna().all()
    assert frame.residual.max() > 0.1 and messages.shift_summary(frame) == ""
    with pytest.raises(ValueError, match="at least 1 is required"):
        shift.compare_with_others(rows, rows, [])


def test_neighbours_kept_agrees_with_loops():
    before, after, k = embeddings(users=40), embeddings(1, users=40), 15

    def near(rows, i):
        return sorted(
            (j for j in range(40) if j != i), key=lambda j: np.linalg.norm(rows[i] - rows[j])
        )[:k]

    kept = [len(set(near(before, i)) & set(near(after, i))) / k for i in range(40)]
    frame = shift.neighbors_changed(before, after, IDS[:40])
    np.testing.assert_allclose(frame.neighbours_kept, kept)
    for i in range(40):
        was, now = near(before, i), near(after, i)
        assert frame.gained[i] == tuple(j for j in now if j not in was)[:5]
        assert frame.lost[i] == tuple(j for j in was if j not in now)[:5]


def test_gained_and_lost_are_row_numbers_whatever_the_ids():
    before, after = embeddings(users=60), embeddings(1, users=60)
    ids = [f"u{i}, u{i + 1}" for i in range(60)]  # an id may hold ", "
    frame = shift.embedding_shift(before, after, ids, "a", "b", [])
    plain = shift.embedding_shift(before, after, IDS[:60], "a", "b", [])
    assert (
        frame["user"].tolist() == ids
        and frame["gained"].str.len().max() == shift.MAX_LISTED_NEIGHBORS
    )
    for column in ("gained", "lost"):
        assert frame[column].tolist() == plain[column].tolist()
        rows = [row for listed in frame[column] for row in listed]
        assert rows and all(type(row) is int and 0 <= row < 60 for row in rows)
        assert all(place not in listed for place, listed in enumerate(frame[column]))
    near, _ = shift.nearest_neighbors(after, 15)
    assert all(set(listed) <= set(near[place]) for place, listed in enumerate(frame["gained"]))


def test_point_trust_averages_to_trustworthiness():
    rows = embeddings(users=120)
    places = rows[:, :2]
    trust = projection.pointwise_trustworthiness(rows, places, k=10)
    assert trust.min() >= 0 and trust.max() <= 1
    assert trust.mean() == pytest.approx(trustworthiness(rows, places, n_neighbors=10), abs=0.01)


def test_pca_map_keeps_still_users_still_and_repeats_itself():
    rows = embeddings()
    points = projection.joint_projection(rows, rows @ rotation(), IDS, ("a", "b"), method="pca")
    assert list(points) == ["user", "query", "x", "y", "trust"]
    assert points.user[:USERS].tolist() == IDS and points["query"].unique().tolist() == ["a", "b"]
    xy = points[["x", "y"]].to_numpy()
    np.testing.assert_allclose(xy[:USERS], xy[USERS:], atol=1e-6)
    assert points.x.std() >= points.y.std()
    pd.testing.assert_frame_equal(
        points, projection.joint_projection(rows, rows @ rotation(), IDS, ("a", "b"), method="pca")
    )
    caption = messages.projection_caption(points)
    assert caption.startswith(
        "One joint PCA map of 300 users under both queries. Trustworthiness 0."
    )
    alone = messages.projection_caption(
        projection.joint_projection(rows, rows, IDS, ("", ""), method="pca")
    )
    assert (
        alone.startswith("One PCA map of 300 users. Trustworthiness 0.") and "rotation" not in alone
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 8), (40, 8), (30, 64)])
def test_the_components_are_those_of_scikit_learn(shape):
    rows = np.random.default_rng(0).normal(size=shape)
    expected = PCA(2, svd_solver="full").fit_transform(rows)
    np.testing.assert_allclose(projection._pca(rows), expected, atol=1e-10)
    assert not projection._pca(np.ones(shape)).any(), "equal users are in one place"


def test_umap_of_both_keeps_still_users_still():
    rows = embeddings()
    after = reworded(rows, 4)
    moved = np.arange(USERS) < 30
    after[moved] = np.roll(after[moved], 7, axis=1)
    first = projection.joint_projection(rows, after @ rotation(), IDS)
    xy = first[["x", "y"]].to_numpy()
    step = np.linalg.norm(xy[USERS:] - xy[:USERS], axis=1) / xy.std()
    assert np.median(step[~moved]) < 0.1
    assert roc_auc_score(moved, step) > 0.9
    assert first.attrs["trustworthiness"] > 0.8
    pd.testing.assert_frame_equal(first, projection.joint_projection(rows, after @ rotation(), IDS))
    again = projection.joint_projection(
        after, reworded(after, 8), IDS, ("after", "next"), last=first
    )
    here, there = xy[USERS:], again[["x", "y"]].to_numpy()[:USERS]
    assert (
        np.median(np.linalg.norm(there - here, axis=1)) < 0.5 * xy.std()
    )  # the picture does not turn over


def test_sentence_counts_and_names():
    shift = pd.DataFrame({"user": ["c", "b", "a", "d"], "toward_yes": [2.5, 2.9, 2.5, 0.1]})
    shift = shift.assign(elsewhere=1.0, stands_out=[True] * 3 + [False])
    shift.attrs["others"] = 3
    moves = "this question moves them further toward yes than any of 3 other questions"
    assert messages.shift_summary(shift) == (
        f"3 of 4 users stand out: {moves} (by chance: 1). b, c and a stand out most."
    )
    still = shift.assign(stands_out=False)
    assert messages.shift_summary(still, "household") == (
        "No more households stand out than by chance: "
        f"{moves.replace('them', '0 of 4 households')} (by chance: 1)."
    )
    assert messages.shift_summary(shift[:2]).endswith("b and c stand out most.")
    assert messages.shift_summary(shift[:1]).startswith("1 of 1 user stands out: ")


def test_mistakes_are_told():
    rows = embeddings()
    with pytest.raises(
        (ValueError, TypeCheckError), match=r"same users|after"
    ):  # the second while shapes are checked
        shift.align(rows, rows[1:])
    with pytest.raises(ValueError, match="umap"):
        projection.joint_projection(rows, rows, IDS, method="tsne")


@pytest.mark.parametrize("method", ["pca", pytest.param("umap", marks=pytest.mark.slow)])
def test_marks_stand_among_their_users_and_move_nobody_else(method):
    rows = embeddings(users=120)
    after = reworded(rows, 2) @ rotation()
    ids, stars = IDS[:120], {"first": after[0] * 3, "mean": after[:40].mean(axis=0)}
    points = projection.joint_projection(rows, after, ids, ("a", "b"), method=method, marks=stars)
    assert points["query"].tolist() == ["a"] * 120 + ["b"] * 120 + [projection.MARK] * 2
    assert points["user"].tolist() == [*ids, *ids, "first", "mean"]
    xy = points[["x", "y"]].to_numpy()
    assert (
        np.linalg.norm(xy[240] - xy[120]) < 0.2 * xy.std()
    )  # the first mark is the first user of the second query
    again = projection.joint_projection(
        rows, after, ids, ("a", "b"), method=method, marks=stars, last=points
    )
    assert again.shape == points.shape and np.isfinite(again[["x", "y"]].to_numpy()).all()


def test_the_nearest_neighbours_are_those_of_all_distances():
    rows = embeddings(users=40)
    distance = np.linalg.norm(rows[:, None] - rows, axis=-1) + np.diag([np.inf] * 40)
    neighbors, distances = shift.nearest_neighbors(rows, 5)
    np.testing.assert_array_equal(neighbors, distance.argsort(axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(distance, axis=1)[:, :5], atol=1e-4)


@pytest.mark.slow
def test_of_many_users_neighbours_and_trust_are_nearly_the_exact_ones(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(900, 6))
    rows[:3] = rows[3]  # twins
    places, exact, trust = (
        rows[:, :2],
        shift.nearest_neighbors(rows)[0],
        projection.pointwise_trustworthiness(rows, rows[:, :2]),
    )
    monkeypatch.setattr(shift, "MAX_EXACT_USERS", 500)
    monkeypatch.setattr(projection, "BLOCK", 450)
    near, distances = shift.nearest_neighbors(rows)
    np.testing.assert_allclose(
        distances, np.linalg.norm(rows[:, None] - rows[near], axis=-1), atol=1e-4
    )
    estimate = projection.pointwise_trustworthiness(rows, places)
    assert near.shape == exact.shape and not (near == np.arange(900)[:, None]).any()
    assert np.mean([len(set(a) & set(b)) / 15 for a, b in zip(near, exact, strict=True)]) > 0.95
    assert np.corrcoef(trust, estimate)[0, 1] > 0.5 and abs(trust.mean() - estimate.mean()) < 0.03
