"""A user moved only if rewording does not move it as far; a rotation moves nobody."""

import numpy as np
import pandas as pd
import pytest
from jaxtyping import TypeCheckError
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


def test_nobody_moves_beyond_the_floor_when_only_the_words_change():
    rows = embeddings()
    floor = shift.noise_floor(rows, [reworded(rows, seed) for seed in range(5)])
    fresh = [
        shift.embedding_shift(rows, reworded(rows, seed), IDS, "a", "a in other words", floor)
        for seed in range(90, 100)
    ]
    assert pd.concat(fresh).beyond_noise.mean() < 0.02
    assert (
        shift.embedding_shift(rows, rows @ rotation(), IDS, "a", "b", floor).beyond_noise.sum() == 0
    )


def test_planted_movers_are_found_by_residual():
    rows = embeddings()
    moved = np.random.default_rng(1).random(USERS) < 0.1
    after = reworded(rows, 5)
    after[moved] = arrays.l2_normalize(
        after[moved] + np.random.default_rng(2).normal(scale=0.12, size=(moved.sum(), DIM))
    )
    after = after @ rotation(3)
    floor = shift.noise_floor(rows, [reworded(rows, seed) for seed in range(5)])
    frame = shift.embedding_shift(rows, after, IDS, "a", "b", floor)
    assert roc_auc_score(moved, frame.residual) > 0.95
    assert frame.beyond_noise[moved].mean() > 0.9
    assert frame.beyond_noise[~moved].mean() < 0.1
    assert frame.neighbours_kept[moved].mean() < frame.neighbours_kept[~moved].mean()


def test_neighbours_kept_agrees_with_loops():
    before, after, k = embeddings(users=40), embeddings(1, users=40), 5

    def near(rows, i):
        return sorted(
            (j for j in range(40) if j != i), key=lambda j: np.linalg.norm(rows[i] - rows[j])
        )[:k]

    kept = [len(set(near(before, i)) & set(near(after, i))) / k for i in range(40)]
    frame = shift.neighbors_changed(before, after, IDS[:40], k)
    np.testing.assert_allclose(frame.neighbours_kept, kept)
    for i in range(40):
        assert frame.gained[i] == tuple(j for j in near(after, i) if j not in near(before, i))
        assert frame.lost[i] == tuple(j for j in near(before, i) if j not in near(after, i))


def test_gained_and_lost_are_row_numbers_whatever_the_ids():
    before, after = embeddings(users=60), embeddings(1, users=60)
    ids = [f"u{i}, u{i + 1}" for i in range(60)]  # an id may hold ", "
    frame = shift.embedding_shift(before, after, ids, "a", "b", floor=0.1)
    plain = shift.embedding_shift(before, after, IDS[:60], "a", "b", floor=0.1)
    assert (
        frame["user"].tolist() == ids
        and frame["gained"].str.len().max() == shift.MAX_LISTED_NEIGHBORS
    )
    for column in ("gained", "lost"):
        assert frame[column].tolist() == plain[column].tolist()
        rows = [row for listed in frame[column] for row in listed]
        assert rows and all(type(row) is int and 0 <= row < 60 for row in rows)
        assert all(place not in listed for place, listed in enumerate(frame[column]))
    near = shift.knn_indices(after, 15)
    assert all(set(listed) <= set(near[place]) for place, listed in enumerate(frame["gained"]))


def test_noise_floor_agrees_with_loops_and_needs_a_paraphrase():
    rows = embeddings()
    others = [reworded(rows, seed) for seed in range(3)]
    worst = [max(shift.residual_shift(rows, other)[i] for other in others) for i in range(USERS)]
    assert shift.noise_floor(rows, others) == pytest.approx(np.quantile(worst, 0.95))
    with pytest.raises(ValueError, match="at least 1 paraphrase"):
        shift.noise_floor(rows, [])


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
    shift = pd.DataFrame(
        {
            "user": ["c", "b", "a", "d"],
            "residual": [0.5, 0.9, 0.5, 0.1],
            "beyond_noise": [True] * 3 + [False],
        }
    )
    assert (
        messages.shift_summary(shift)
        == "3 of 4 users moved beyond the noise floor (5 paraphrases). b, a and c moved most."
    )
    still = shift.assign(beyond_noise=False)
    assert (
        messages.shift_summary(still, "household")
        == "0 of 4 households moved beyond the noise floor (5 paraphrases)."
    )
    assert messages.shift_summary(shift[:2]).endswith("b and c moved most.")


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


@pytest.mark.slow
def test_of_many_users_neighbours_and_trust_are_nearly_the_exact_ones(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(900, 6))
    rows[:3] = rows[3]  # twins
    places, exact, trust = (
        rows[:, :2],
        shift.knn_indices(rows),
        projection.pointwise_trustworthiness(rows, rows[:, :2]),
    )
    monkeypatch.setattr(shift, "MAX_EXACT_USERS", 500)
    monkeypatch.setattr(projection, "BLOCK", 450)
    near, estimate = shift.knn_indices(rows), projection.pointwise_trustworthiness(rows, places)
    assert near.shape == exact.shape and not (near == np.arange(900)[:, None]).any()
    assert np.mean([len(set(a) & set(b)) / 15 for a, b in zip(near, exact, strict=True)]) > 0.95
    assert np.corrcoef(trust, estimate)[0, 1] > 0.5 and abs(trust.mean() - estimate.mean()) < 0.03
