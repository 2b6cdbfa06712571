"""What is read of a user is what loops would read, nothing of it comes from the future, and strange
users do no harm.
"""

import numpy as np
import pandas as pd
import pytest

from qanchor.config import TINY
from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.models.collate import collate_users
from qanchor.models.features import user_summary
from qanchor.models.preprocessor import CLIP, UserPreprocessor
from tests.tiny import CUTOFF, cutoffs, make_users

DAY = pd.Timedelta(days=1)


@pytest.fixture(scope="module")
def users() -> Users:
    return make_users()


@pytest.fixture(scope="module")
def preprocessor(users) -> UserPreprocessor:
    return UserPreprocessor.fit(users, cutoffs(users), TINY)


def same(first, second) -> bool:
    """Say whether two readings are equal to the last bit, whatever texts the users' tables list."""
    alike = [first.users == second.users]
    whole = ("coarse", "modal_text", "modal_number", "present")
    alike += [np.array_equal(getattr(first, name), getattr(second, name)) for name in whole]
    for (ids, *rest), (others, *more) in zip(first.events, second.events, strict=True):
        alike.append(np.array_equal(first.vectors[ids], second.vectors[others]))
        alike += [np.array_equal(a, b) for a, b in zip(rest, more, strict=True)]
    return all(alike)


def changed(users: Users, future: pd.DataFrame | None) -> Users:
    """Give the same users with another future, and the same list of texts or a longer one."""
    plain = users.history().astype({"user": str, "modality": str, "text": str})
    events = plain if future is None else pd.concat([plain, future], ignore_index=True)
    return Users.from_events(
        events,
        users.cutoff,
        tabular=users.tabular,
        labels=1 - users.labels,
        modalities=users.modalities,
    )


def test_nothing_at_or_after_the_cutoff_is_read(users, preprocessor):
    read = preprocessor.transform(users)
    plain = users.events.astype({"user": str, "modality": str, "text": str})
    ahead = plain[plain["time"] >= CUTOFF]
    other = ahead.assign(
        time=ahead["time"] + 3 * DAY, amount=1e6, modality="app", text="something never seen"
    )
    now = other.assign(time=CUTOFF)
    assert len(ahead) > 5
    for future in (None, other, now, pd.concat([other, now])):
        assert same(read, preprocessor.transform(changed(users, future)))


def test_progress_counts_texts_and_users_and_ends_with_all_of_them(users):
    """A few users are told of, too; texts that must be encoded first are counted with them."""
    told, samples = [], cutoffs(users)
    UserPreprocessor.fit(users, samples, TINY, lambda done, total: told.append((done, total)))
    texts = len(users.events["text"].cat.categories)
    assert (
        told[0] == (min(texts, 256), texts + len(samples))
        and told[-1] == (texts + len(samples),) * 2
    )
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_fitting_reads_no_future_either(users, preprocessor):
    ahead = users.future().astype({"user": str, "modality": str, "text": str})
    twin = changed(users, ahead.assign(amount=5e5))
    again = UserPreprocessor.fit(twin, cutoffs(twin), TINY)
    assert all(
        np.array_equal(again.mean[k], preprocessor.mean[k])
        and np.array_equal(again.std[k], preprocessor.std[k])
        for k in preprocessor.mean
    )
    assert again.vocabulary == preprocessor.vocabulary and np.array_equal(
        again.counts, preprocessor.counts
    )


def test_an_earlier_cutoff_reads_less(users, preprocessor):
    early = cutoffs(users).assign(cutoff=CUTOFF - 40 * DAY)
    kept = users.events[users.events["time"] < CUTOFF - 40 * DAY].astype(
        {"user": str, "modality": str, "text": str}
    )
    short = Users.from_events(
        kept, CUTOFF - 40 * DAY, tabular=users.tabular, modalities=users.modalities
    )
    assert same(preprocessor.transform(users, early), preprocessor.transform(short)) and not same(
        preprocessor.transform(users, early), preprocessor.transform(users)
    )


def test_one_user_may_be_read_at_several_cutoffs(users, preprocessor):
    twice = pd.DataFrame({"user": ["a", "b", "a"], "cutoff": [CUTOFF, CUTOFF, CUTOFF - 30 * DAY]})
    read = preprocessor.transform(users, twice)
    assert (
        read.users == ("a", "b", "a")
        and len(read) == 3
        and not np.array_equal(read.coarse[0], read.coarse[2])
    )
    np.testing.assert_allclose(
        read.coarse[0], preprocessor.transform(users).coarse[0], atol=1e-4
    )  # a product of 3 rows, and of 9


def by_hand(past: pd.DataFrame, cutoff) -> list[float]:
    """Count, recent count, days since the last, days between first and last, share at weekends, sum
    and mean of amounts.
    """
    ages = [(cutoff - t) / DAY for t in past["time"]]
    amounts = [0.0 if np.isnan(a) else a for a in past["amount"]]
    weekend = sum(t.day_of_week >= 5 for t in past["time"]) / max(len(past), 1)
    last, first = (min(ages), max(ages)) if ages else (400.0, 400.0)
    known = [len(ages), sum(a <= 30 for a in ages), last, first - last if ages else 0.0]
    return [
        *np.log1p(known),
        weekend,
        np.log1p(sum(amounts)),
        np.log1p(sum(amounts) / max(len(past), 1)),
    ]


def one(users, user: str, recent: int = 6) -> tuple[dict, pd.DataFrame]:
    past = users.history()
    past = past[past["user"] == user]
    texts = len(users.events["text"].cat.categories)
    code = past["modality"].cat.codes.to_numpy(np.int64) * texts + past["text"].cat.codes.to_numpy(
        np.int64
    )
    time = past["time"].to_numpy()
    number = np.nan_to_num(past[["amount"]].to_numpy(np.float32))
    vectors = np.eye(texts, dtype=np.float16)
    return user_summary(
        (users.cutoff.to_numpy() - time) / np.timedelta64(1, "D"),
        time,
        code,
        number,
        vectors,
        3,
        recent,
    ), past


@pytest.mark.parametrize("user", ["a", "b", "c", "later", "none"])
def test_measures_by_modality_equal_the_loops(users, user):
    read, past = one(users, user)
    for place, modality in enumerate(users.modalities):
        own = past[past["modality"] == modality]
        found = read["modal"][place]
        # columns 4 to 6 are the clock: weekend, and the hour as sine and cosine
        np.testing.assert_allclose(
            [*found[:5], found[7], found[8]], by_hand(own, users.cutoff), atol=1e-4
        )
        assert read["present"][place] == (len(own) > 0)
        np.testing.assert_allclose(
            found[11], np.log1p(own["text"].nunique()), atol=1e-5
        )  # after the trend and ten days


def test_shares_by_modality_equal_the_loops():
    rng = np.random.default_rng(0)
    modality, amount = np.sort(rng.integers(0, 2, 30)), rng.gamma(2.0, 5.0, 30)
    saved = np.where(rng.random(30) < 0.4, rng.gamma(1.0, 3.0, 30), 0.0)
    time = np.datetime64("2025-01-01") + np.sort(rng.integers(0, 80, 30)) * np.timedelta64(1, "D")
    age = (np.datetime64("2025-04-01") - time) / np.timedelta64(1, "D")
    for numbers, often, weighed in (
        (np.column_stack([amount, saved]), 2, 1),
        (np.zeros((30, 0)), 0, 0),
    ):
        read = user_summary(
            age, time, modality * 4, numbers.astype(np.float32), np.eye(4, dtype=np.float16), 3, 6
        )["modal"]
        assert np.isfinite(read).all() and not read[2, read.shape[1] - often - weighed :].any()
        for kind in (0, 1) if often else ():
            own = [i for i in range(30) if modality[i] == kind]
            share = sum(saved[i] > 0 for i in own) / len(own)
            mean = sum(saved[i] * amount[i] for i in own) / sum(amount[i] for i in own)
            np.testing.assert_allclose(read[kind, -3:], [1.0, share, np.log1p(mean)], atol=1e-4)


@pytest.mark.parametrize("user", ["a", "c", "d", "none"])
def test_habits_and_text_means_equal_the_loops(users, user):
    read, past = one(users, user)
    texts = list(users.events["text"].cat.categories)
    keys, numbers = read["habits"]
    own = past.groupby([past["modality"].cat.codes, past["text"].cat.codes], observed=True)
    assert {(k // len(texts), k % len(texts)) for k in keys} == set(own.groups)
    for key, row in zip(keys, numbers, strict=True):
        few = own.get_group((key // len(texts), key % len(texts)))
        np.testing.assert_allclose(
            [*row[:5], row[7], row[8]], by_hand(few, users.cutoff), atol=1e-4
        )
    words = np.zeros(len(texts))
    for (_, text), group in own:
        words[text] += np.log1p(len(group))
    np.testing.assert_allclose(read["words"], words / max(words.sum(), 1), atol=1e-3)


def test_the_newest_events_come_last(users):
    read, past = one(users, "a", recent=6)
    keys, numbers = read["events"]
    newest = past.sort_values("time").tail(6)
    texts = len(users.events["text"].cat.categories)
    assert (keys % texts).tolist() == newest["text"].cat.codes.tolist() and len(numbers) == 6
    ages = ((users.cutoff - newest["time"]) / DAY).to_numpy()
    np.testing.assert_allclose(numbers[:, 2], np.log1p(ages), atol=1e-4)
    assert (
        len(one(users, "a", recent=0)[0]["events"][0]) == 0
        and len(one(users, "b")[0]["events"][0]) == 1
    )


def test_readings_are_finite_and_standardised(users, preprocessor):
    people = make_sample_users(120)
    fitted = UserPreprocessor.fit(people, cutoffs(people), TINY)
    read = fitted.transform(people)
    assert (
        np.isfinite(read.coarse).all()
        and np.abs(read.coarse).max() <= CLIP
        and read.coarse.dtype == np.float32
    )
    own = read.coarse[:, min(s.start for s in fitted.groups().values()) :]
    assert np.abs(own.mean(0)).max() < 0.3 and 0.5 < np.median(own.std(0)[own.std(0) > 1e-3]) < 1.2
    assert (
        np.abs(read.modal_number.mean((0, 1))).max() < 0.3
    )  # these over users and modalities together
    for readings in (read, preprocessor.transform(users)):
        assert all(
            np.isfinite(values).all() and np.abs(values).max(initial=0) <= CLIP
            for _, values, _, _ in readings.events
        )


def test_a_user_with_no_events_is_read(users, preprocessor):
    row = users.ids.index("none")
    read = preprocessor.transform(users)
    assert (
        not read.present[row].any()
        and len(read.events[row][0]) == 0
        and np.isfinite(read.coarse[row]).all()
    )
    assert not read.modal_text[row].any() and read.lengths()[row] == 0
    batch = collate_users(read, [row])
    assert not batch.event_mask.any() and batch.event_text.shape == (1, 1, 384)


def test_strangers_with_texts_and_facts_never_seen_are_read(users, preprocessor):
    events = pd.DataFrame(
        {"user": ["x", "x", "y"], "time": [CUTOFF - DAY, CUTOFF - 2 * DAY, CUTOFF - 9 * DAY]}
    )
    events = events.assign(
        modality=["bill", "search", "app"],
        text=["caviar", "submarine", "tea"],
        amount=[1e9, np.nan, np.nan],
    )
    facts = pd.DataFrame(
        {"age.years": [np.nan, 1e6], "shoe.size": [44.0, 45.0]}, pd.Index(["x", "y"], name="user")
    )
    for modalities in (
        users.modalities,
        ("search", "bill", "app"),
    ):  # their order is the run's own, not the data's
        strangers = Users.from_events(events, CUTOFF, tabular=facts, modalities=modalities)
        read = preprocessor.transform(strangers)
        assert np.isfinite(read.coarse).all() and np.abs(read.coarse).max() <= CLIP
        assert read.present.tolist() == [
            [True, False, True],
            [False, True, False],
        ] and read.lengths().tolist() == [4, 2]
    bare = Users.from_events(
        events[["user", "time", "modality", "text"]], CUTOFF
    )  # no amounts, no facts, other order
    assert (
        preprocessor.transform(bare).coarse.shape == read.coarse.shape
        and np.isfinite(preprocessor.transform(bare).coarse).all()
    )


def test_events_of_a_modality_never_seen_are_left_out(preprocessor):
    known = {"user": "x", "time": CUTOFF - DAY, "modality": "app", "text": "news"}
    new = known | {"modality": "radio"}
    both = preprocessor.transform(Users.from_events(pd.DataFrame([known, new]), CUTOFF))
    alone = preprocessor.transform(Users.from_events(pd.DataFrame([known]), CUTOFF))
    np.testing.assert_array_equal(both.coarse, alone.coarse)
    assert both.lengths().tolist() == alone.lengths().tolist()


def test_missing_facts_stand_in_the_middle_and_are_marked(users, preprocessor):
    read, groups = preprocessor.transform(users), preprocessor.groups()
    assert list(groups) == ["time", "counts", "words", "age", "home"]
    home = read.coarse[:, list(groups.values())[-1]]
    unknown = users.tabular["home.rooms"].isna().to_numpy()
    assert (
        home.shape[1] == 2 and unknown.any() and (home[unknown, 1] > home[~unknown, 1].max()).all()
    )
    assert np.abs(home[unknown, 0]).max() < 1.0


def test_who_else_is_read_does_not_matter(users, preprocessor):
    read, alone = preprocessor.transform(users), preprocessor.transform(users.select(["c", "none"]))
    rows = [users.ids.index("c"), users.ids.index("none")]
    np.testing.assert_allclose(alone.coarse, read.coarse[rows], atol=1e-5)
    for row, slots in zip(rows, alone.events, strict=True):
        assert np.array_equal(slots[1], read.events[row][1])


def test_sizes_and_groups_say_how_wide_readings_are(users, preprocessor):
    read, sizes = preprocessor.transform(users), preprocessor.sizes()
    assert (
        sizes["coarse"] == read.coarse.shape[1]
        and sizes["modal_number"] == read.modal_number.shape[2]
    )
    assert (
        sizes["event_number"] == read.events[0][1].shape[1]
        and preprocessor.text_dim == read.vectors.shape[1]
    )
    spans = [range(s.start, s.stop) for s in preprocessor.groups().values()]
    first = 3 * sizes["modal_number"]  # the modalities' own numbers stand first, and in their slots
    assert [i for span in spans for i in span] == list(range(first, sizes["coarse"]))


@pytest.mark.parametrize("token_order", ["coarse_to_fine", "append_only"])
def test_fit_transform_is_fit_then_transform(users, token_order, monkeypatch):
    config = TINY.replace(token_order=token_order)
    early = cutoffs(users).assign(cutoff=users.cutoff - 20 * DAY)
    samples = pd.concat([cutoffs(users), early], ignore_index=True)
    fitted = UserPreprocessor.fit(users, samples, config)
    expected = fitted.transform(users, samples)
    read = []
    raw = UserPreprocessor._raw_features
    monkeypatch.setattr(
        UserPreprocessor, "_raw_features", lambda *given: read.append(1) or raw(*given)
    )
    preprocessor, features = UserPreprocessor.fit_transform(users, samples, config)
    assert len(read) == 1 and same(expected, features) and len(features) == 18
    for name in ("idf", "counts", "words", "profile"):
        np.testing.assert_array_equal(getattr(preprocessor, name), getattr(fitted, name))
    assert preprocessor.vocabulary == fitted.vocabulary and list(preprocessor.mean) == list(
        fitted.mean
    )
    for part in fitted.mean:
        np.testing.assert_array_equal(preprocessor.mean[part], fitted.mean[part])
        np.testing.assert_array_equal(preprocessor.std[part], fitted.std[part])
