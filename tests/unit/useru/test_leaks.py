"""No future, no label: whatever happens at or after a cut-off, what is read and asked before it
stays equal to the last bit.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanchor.config import TINY
from qanchor.data.users import Users
from qanchor.errors import DataError
from qanchor.models.collate import collate_users
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.useru.pairs import make_pairs

CUTOFF, EARLIER = pd.Timestamp("2025-04-01"), pd.Timestamp("2025-02-20")
HORIZON, MINUTE = pd.Timedelta(days=30), pd.Timedelta(minutes=1)
IDS = tuple("abcdefgh")
MODALITIES = ("bill", "search", "coupon")
TEXTS = ("paid for diapers", "bought coffee", "cat food", "hotel booking", "beer", "fresh fruit")
LATE = "zanzibar"  # stands in every event of the future and in no other
SIDES = (-1, 0, 1)  # a minute before the cut-off, at it, a minute after

event = st.tuples(
    st.sampled_from(IDS),
    st.integers(-85 * 1440, 40 * 1440) | st.sampled_from(SIDES),  # minutes from the cut-off
    st.sampled_from(MODALITIES),
    st.sampled_from(TEXTS),
    st.sampled_from([np.nan, 0.0, 1.0, 12.5]),
)
histories = st.lists(event, min_size=40, max_size=90)
facts = st.lists(st.sampled_from([np.nan, 0.0, 1.0, 44.0]), min_size=len(IDS), max_size=len(IDS))
labels = st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=len(IDS), max_size=len(IDS))


def frame_of(rows, around=CUTOFF) -> pd.DataFrame:
    """Make the events; those at or after `around` carry the word that must never be read."""
    every = [
        (user, side, "bill", "beer", 2.0) for user in IDS[:3] for side in SIDES
    ]  # always something on the edge
    frame = pd.DataFrame([*rows, *every], columns=["user", "minute", "modality", "text", "amount"])
    frame["time"] = around + pd.to_timedelta(frame.pop("minute"), unit="min")
    frame["text"] = frame["text"].where(frame["time"] < around, f"{LATE} " + frame["text"])
    return frame.assign(discount=frame["amount"] * 0.1)


def users_of(frame: pd.DataFrame, rooms, truth, modalities=MODALITIES) -> Users:
    people = pd.Index(list(IDS), name="user")
    table = pd.DataFrame({"home.rooms": rooms, "age.years": rooms[::-1]}, people)
    known = pd.DataFrame({"travels": truth, "amounts": truth, "rooms": truth}, people)
    return Users.from_events(frame, CUTOFF, tabular=table, labels=known, modalities=modalities)


def other_futures(frame: pd.DataFrame, start: pd.Timestamp, seed: int) -> dict[str, pd.DataFrame]:
    """Change, remove, add to and move what lies at or after `start`."""
    rng = np.random.default_rng(seed)
    past, ahead = frame[frame["time"] < start], frame[frame["time"] >= start]
    n = 15
    new = {
        "user": rng.choice(IDS, n),
        "modality": rng.choice(MODALITIES, n),
        "text": f"{LATE} on the moon",
        "amount": 1e6,
    }
    new = pd.DataFrame(new).assign(
        discount=5e5, time=start + MINUTE * rng.choice([0, 0, 1, 60, 9_000], n)
    )
    changed = ahead.assign(
        text=f"{LATE} in space", amount=-9e5, modality=rng.choice(MODALITIES, len(ahead))
    )
    futures = {
        "changed": changed,
        "removed": ahead[:0],
        "added to": pd.concat([new, ahead]),
        "moved": ahead.assign(time=start),
    }
    return {name: pd.concat([past, future]) for name, future in futures.items()}


def readings_equal(first, second, why: str) -> None:
    """Compare two readings to the last bit, whatever other texts the users' tables list."""
    for name in ("coarse", "modal_text", "modal_number", "present"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), (why, name)
    for user, (ids, *rest), (others, *more) in zip(
        first.users, first.events, second.events, strict=True
    ):
        assert np.array_equal(first.vectors[ids], second.vectors[others]), (why, user, "texts")
        assert all(np.array_equal(a, b) for a, b in zip(rest, more, strict=True)), (why, user)


def at(cutoff: pd.Timestamp) -> pd.DataFrame:
    return pd.DataFrame({"user": list(IDS), "cutoff": cutoff})


def texts_read(users: Users, readings) -> set[str]:
    texts = users.events["text"].cat.categories
    return {texts[i] for ids, *_ in readings.events for i in ids}


@settings(max_examples=10, deadline=None)
@given(histories, facts, labels, st.integers(0, 99), st.sampled_from([CUTOFF, EARLIER]))
def test_readings_and_what_is_fitted_know_nothing_of_the_future(rows, rooms, truth, seed, cutoff):
    frame = frame_of(rows, cutoff)
    users = users_of(frame, rooms, truth)
    preprocessor = UserPreprocessor.fit(users, at(cutoff), TINY)
    read = preprocessor.transform(users, at(cutoff))
    told = texts_read(users, read)
    assert told and not [text for text in told if LATE in text], (
        "a text of the future stands in the prefix"
    )
    late = read.vectors[users.events["text"].cat.categories.str.contains(LATE)].astype(np.float32)
    shown = collate_users(read, range(len(read)))
    shown = shown.event_text[shown.event_mask].numpy()
    assert len(late) and not (shown[:, None] == late[None]).all(-1).any()
    for name, other in other_futures(frame, cutoff, seed).items():
        twin = users_of(other, rooms, truth)
        readings_equal(read, preprocessor.transform(twin, at(cutoff)), name)
        readings_equal(
            read,
            UserPreprocessor.fit(twin, at(cutoff), TINY).transform(users, at(cutoff)),
            f"fitted on {name}",
        )


@settings(max_examples=6, deadline=None)
@given(histories, facts, labels, labels)
def test_no_label_enters_readings_or_pairs(rows, rooms, truth, other):
    frame = frame_of(rows)
    users, twin = users_of(frame, rooms, truth), users_of(frame, rooms, other)
    bare = Users.from_events(frame, CUTOFF, tabular=users.tabular, modalities=MODALITIES)
    preprocessor = UserPreprocessor.fit(users, at(CUTOFF), TINY)
    pairs = make_pairs(users, cutoffs=[EARLIER, CUTOFF])
    for same, why in ((twin, "other labels"), (bare, "no labels")):
        readings_equal(preprocessor.transform(users), preprocessor.transform(same), why)
        readings_equal(
            preprocessor.transform(users),
            UserPreprocessor.fit(same, at(CUTOFF), TINY).transform(users),
            f"fitted with {why}",
        )
        pd.testing.assert_frame_equal(pairs, make_pairs(same, cutoffs=[EARLIER, CUTOFF]))


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(histories, facts, labels, st.integers(0, 99))
def test_events_on_the_edge_are_future_to_every_pair(rows, rooms, truth, seed):
    """What tests/test_pairs.py says of random changes, here for events moved to the very cut-off."""
    cases = (
        (CUTOFF, [EARLIER, CUTOFF - HORIZON, CUTOFF], ["profile", "future"]),
        (EARLIER, [EARLIER], ["profile"]),
    )
    for start, cutoffs, kinds in cases:
        frame = frame_of(rows, start)
        told = make_pairs(users_of(frame, rooms, truth), cutoffs=cutoffs)
        for name, other in other_futures(frame, start, seed).items():
            after = make_pairs(users_of(other, rooms, truth), cutoffs=cutoffs)
            first, second = (
                table[table["kind"].isin(kinds)].reset_index(drop=True) for table in (told, after)
            )
            pd.testing.assert_frame_equal(first, second, obj=name)


def test_a_label_named_like_an_input_is_refused():
    rows, truth = [("a", -60, "bill", "beer", 2.0)] * 5, [1.0] * 8
    frame = frame_of(rows)
    labels = pd.DataFrame({"amount": truth}, pd.Index(list(IDS), name="user"))
    with pytest.raises(
        DataError, match=r"events.*amount.*named like a label, .* Drop the column, or rename one"
    ):
        Users.from_events(frame, CUTOFF, labels=labels)
    with pytest.raises(DataError, match=r"users.*rooms.*named like a label"):
        Users.from_events(
            frame,
            CUTOFF,
            tabular=labels.set_axis(["rooms"], axis=1),
            labels=labels.set_axis(["rooms"], axis=1),
        )


@pytest.mark.parametrize("name", ["coupon", "search", "mini"])
def test_a_modality_seen_between_a_sample_and_the_cutoff_changes_no_pair_before_it(name):
    """Some topics are told by a modality where there is one: that there will be one, an earlier
    moment must not know.
    """
    spoken = {
        "coupon": "coupon redeemed",
        "search": "looked up a hotel",
        "mini": "opened the mini program",
    }[name]
    rows = [
        (user, -1440 * day, "bill", spoken, 2.0)
        for k, user in enumerate(IDS)
        for day in range(40, 60 + 3 * k)
    ]
    frame, one = frame_of(rows), [("a", -1440 * 2, name, "x", np.nan)]
    late, how = (
        frame_of(rows + one),
        {"cutoffs": [CUTOFF - HORIZON], "per_sample": 40, "horizons": (30,)},
    )
    told, after = (
        make_pairs(users_of(events, [1.0] * 8, [1.0] * 8, None), **how) for events in (frame, late)
    )
    past = told["kind"] == "profile"
    assert past.any() and (name != "coupon" or "coupons" in set(told.loc[past, "topic"]))
    pd.testing.assert_frame_equal(
        told[past].reset_index(drop=True), after[after["kind"] == "profile"].reset_index(drop=True)
    )


@pytest.mark.parametrize("name", ["words", "events", "modality:coupon"])
def test_a_modality_named_like_a_measure_is_a_modality_like_any_other(name):
    rows = [
        (user, -1440 * day, "bill", "beer", 2.0)
        for k, user in enumerate(IDS)
        for day in range(5, 40 + k)
    ]
    frame = frame_of(rows)
    told, other = (
        make_pairs(
            users_of(frame.assign(modality=kind), [1.0] * 8, [1.0] * 8, None),
            cutoffs=[CUTOFF - HORIZON],
        )
        for kind in (name, "till")
    )
    assert len(told)
    pd.testing.assert_frame_equal(told, other)


def test_a_modality_first_seen_after_the_cutoff_changes_no_pair_before_it():
    """Modalities may be undeclared: then those of the history alone decide how it is counted."""
    rows = [
        (user, -1440 * day, "bill", "coupon redeemed: beer", 2.0)
        for k, user in enumerate(IDS)
        for day in range(5, 40 + k)
    ]
    frame = frame_of(rows)
    late = frame[frame["time"] >= CUTOFF].assign(modality="coupon")
    frame = frame[frame["time"] < CUTOFF]
    told, after = (
        make_pairs(users_of(events, [1.0] * 8, [1.0] * 8, None), cutoffs=[CUTOFF], per_sample=40)
        for events in (frame, pd.concat([frame, late]))
    )
    assert "coupons" in set(told["topic"])
    pd.testing.assert_frame_equal(told, after)
