"""The training signal: no leak, every claim true, both ends of every topic, reproducible."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.useru.answers import CUTS, answers, grades, style_of
from qanchor.useru.pairs import COLUMNS, SUMMARY_QUERY, make_pairs
from qanchor.useru.schedule import default_cutoffs
from qanchor.useru.topics import HELD_OUT, TOPICS, by_name
from tests.oracles.pairs import check_pairs_by_hand

START, CUTOFF, MIDDLE = (
    pd.Timestamp("2025-01-01"),
    pd.Timestamp("2025-04-01"),
    pd.Timestamp("2025-02-20"),
)
HORIZON = pd.Timedelta(days=30)
IDS = tuple("abcdefgh")
TEXTS = (
    "paid for diapers",
    "bought coffee",
    "cat food",
    "hotel booking",
    "a movie ticket",
    "beer",
    "fresh fruit",
    "nothing much",
)


@pytest.fixture(scope="module")
def world() -> Users:
    return make_sample_users(300, seed=1)


@pytest.fixture(scope="module")
def pairs(world) -> pd.DataFrame:
    return make_pairs(world)


def frame_of(rows) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["user", "minute", "modality", "text", "amount"])
    frame["time"] = START + pd.to_timedelta(frame.pop("minute"), unit="min")
    return frame.assign(discount=frame["amount"] * 0.1, private=(frame["amount"] % 2))


def users_of(frame: pd.DataFrame) -> Users:
    known = pd.DataFrame(
        {"known": 1.0}, index=list(IDS)
    )  # the users stay, whatever becomes of their events
    return Users.from_events(
        frame, CUTOFF, labels=known, modalities=("bill", "search", "campaign", "coupon")
    )


event = st.tuples(
    st.sampled_from(IDS),
    st.integers(0, 120 * 24 * 60),
    st.sampled_from(["bill", "search", "campaign", "coupon"]),
    st.sampled_from(TEXTS),
    st.sampled_from([np.nan, 0.0, 1.0, 5.0, 12.5]),
)


def changed(frame: pd.DataFrame, low, high, seed: int) -> pd.DataFrame:
    """Change, drop and add events from `low` up to `high`, and nothing else."""
    rng = np.random.default_rng(seed)
    inside = (frame["time"] >= low) & (frame["time"] < high)
    touched = frame[inside & (rng.random(len(frame)) < 0.7)].copy()
    touched["text"], touched["amount"] = (
        rng.choice(TEXTS, len(touched)),
        rng.choice([1.0, 99.0], len(touched)),
    )
    minutes = rng.integers(0, int((high - low) / pd.Timedelta(minutes=1)), 12)
    new = {
        "user": rng.choice(IDS, 12),
        "modality": "bill",
        "text": "hotel booking",
        "amount": 1000.0,
        "discount": 500.0,
    }
    new = pd.DataFrame(new).assign(private=1.0, time=low + pd.to_timedelta(minutes, unit="min"))
    return pd.concat([frame[~inside], touched, new])


@settings(max_examples=12, deadline=None)
@given(st.lists(event, min_size=40, max_size=160), st.integers(0, 99))
def test_no_pair_reads_what_comes_after_the_cutoff(rows, seed):
    frame = frame_of(rows)
    frame.loc[0, "time"] = START  # some history, always
    told = make_pairs(users_of(frame), cutoffs=[MIDDLE, CUTOFF - HORIZON, CUTOFF], seed=seed)
    after = make_pairs(
        users_of(changed(frame, CUTOFF, CUTOFF + HORIZON, seed)),
        cutoffs=[MIDDLE, CUTOFF - HORIZON, CUTOFF],
        seed=seed,
    )
    pd.testing.assert_frame_equal(told, after)


@settings(max_examples=12, deadline=None)
@given(st.lists(event, min_size=40, max_size=160), st.integers(0, 99))
def test_a_profile_reads_only_its_past_and_a_future_only_its_days(rows, seed):
    frame = frame_of(rows)
    frame.loc[0, "time"] = START
    told, ahead, later = (
        make_pairs(users_of(table), cutoffs=[MIDDLE], seed=seed)
        for table in (
            frame,
            changed(frame, MIDDLE, MIDDLE + HORIZON, seed),
            changed(frame, MIDDLE + HORIZON, CUTOFF, seed),
        )
    )
    same = [table[table["kind"] == "profile"].reset_index(drop=True) for table in (told, ahead)]
    pd.testing.assert_frame_equal(*same)
    pd.testing.assert_frame_equal(told, later)


@settings(max_examples=6, deadline=None)
@given(st.lists(event, min_size=60, max_size=160), st.integers(0, 9))
def test_every_claim_holds_on_random_histories(rows, seed):
    frame = frame_of(rows)
    frame.loc[0, "time"] = START
    users = users_of(frame)
    told = make_pairs(users, cutoffs=[MIDDLE], seed=seed)
    assert check_pairs_by_hand(users, told).all()


def test_columns_counts_and_kinds(world, pairs):
    assert list(pairs.columns) == COLUMNS and len(default_cutoffs(world)) == 6
    assert set(pairs["kind"]) == {"future", "profile"} and pairs["cutoff"].dtype == "datetime64[us]"
    sizes = pairs[pairs["topic"] != "summary"].groupby(["user", "cutoff", "kind"]).size().unstack()
    assert (sizes["future"] == 5).all() and (sizes["profile"] == 3).all()
    assert not pairs.duplicated(["user", "cutoff", "kind", "topic", "horizon_days"]).any()
    assert (
        pairs["cutoff"] + pd.to_timedelta(pairs["horizon_days"], unit="D") <= world.cutoff
    ).all()
    fixed = pairs.loc[pairs["topic"] == "summary", "query"] == SUMMARY_QUERY
    assert (
        0.4 < fixed.mean() < 0.6
        and (pairs.loc[pairs["topic"] == "summary", "horizon_days"] == 30).all()
    )


def test_reproducible_and_no_global_state(world):
    some = world.sample(60)
    np.random.seed(3)  # noqa: NPY002 - on purpose: the global generator must not matter, and not move
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    told = make_pairs(some)
    pd.testing.assert_frame_equal(told, make_pairs(some))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (make_pairs(some, seed=1)["answer"] != told["answer"]).mean() > 0.5


def test_answers_of_two_topics_never_read_alike():
    said = {}
    for topic in TOPICS:
        for kind in ("profile", "future"):
            for grade in range(5):
                for none in (True, False) if grade == 0 else (False,):
                    for answer in answers(topic, grade, kind, unit="household", none=none):
                        assert said.setdefault(answer, (topic.name, grade, kind)) == (
                            topic.name,
                            grade,
                            kind,
                        )
                        assert 5 <= len(answer.split()) <= 24 and "{" not in answer


def test_both_ends_of_every_topic_occur(pairs):
    for (topic, kind), table in pairs[pairs["topic"] != "summary"].groupby(["topic", "kind"]):
        heads = [
            {a.split(":")[0] for a in answers(by_name(topic), grade, kind)} for grade in range(5)
        ]
        head = table["answer"].str.split(":").str[0]
        no, yes = (
            (heads[0], heads[1] | heads[2])
            if style_of(by_name(topic)) == "count"
            else (heads[0] | heads[1], set())
        )
        yes |= heads[3] | heads[4]
        low, high = head.isin(no).mean(), head.isin(yes).mean()
        assert len(table) < 40 or topic == "lapse" or (low > 0.1 and high > 0.1), (
            topic,
            kind,
            low,
            high,
        )


def test_grades_against_loops():
    rng = np.random.default_rng(0)
    value = np.where(rng.random(200) < 0.4, 0, rng.integers(1, 9, 200)).astype(float)
    value[:5] = np.nan
    some = [v for v in value if v > 0]
    for v, grade in zip(value, grades("count", value), strict=True):
        lower = sum(o < v for o in some) / len(some)
        want = (
            -1 if np.isnan(v) else 0 if v == 0 else 1 + sum(lower >= cut for cut in CUTS["count"])
        )
        assert grade == want
    assert grades("stop", np.array([0, 3, 7.9, 8, 15, 30, np.nan])).tolist() == [
        0,
        1,
        1,
        2,
        3,
        4,
        -1,
    ]
    assert grades("trend", np.array([0, 0.5, 1, 1.2, 2])).tolist() == [0, 1, 2, 3, 4]
    assert grades("level", np.arange(10.0)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_reflection_agrees_on_the_world_and_sees_a_lie(world, pairs):
    sample = pairs.sample(200, random_state=0)
    assert check_pairs_by_hand(world, sample).all()
    told = sample[sample["answer"].str.contains(r"\(\d+")]
    lied = told.assign(answer=told["answer"].str.replace(r"\((\d)", r"(7\1", regex=True))
    assert len(lied) > 5 and not check_pairs_by_hand(world, lied).any()
    turned = sample[sample["answer"].str.startswith("Very unlikely")]
    turned = turned.assign(answer=turned["answer"].str.replace("Very unlikely", "Very likely"))
    assert len(turned) > 5 and not check_pairs_by_hand(world, turned).any()


def test_held_out_wordings_are_not_asked(pairs):
    kept = {
        w.format(user=u)
        for t in TOPICS
        for w in (*t.profile[-HELD_OUT:], *t.future[-HELD_OUT:])
        for u in ("user",)
    }
    assert not kept & set(pairs["query"])


def test_late_cutoffs_give_profiles_only_and_later_ones_are_refused(world):
    late = make_pairs(world, cutoffs=[world.cutoff])
    assert set(late["kind"]) == {"profile"}
    week = make_pairs(
        world, cutoffs=[world.cutoff - pd.Timedelta(days=8)]
    )  # a week of the future is known, no month
    assert set(week.loc[week["kind"] == "future", "horizon_days"]) == {7} and "summary" not in set(
        week["topic"]
    )
    with pytest.raises(ValueError, match="after the users' own"):
        make_pairs(world, cutoffs=[world.cutoff + HORIZON])


def test_too_little_history():
    frame = frame_of(
        [("a", 10, "bill", "bought coffee", 1.0), ("b", 50 * 24 * 60, "bill", "beer", 1.0)]
    )
    assert make_pairs(users_of(frame), cutoffs=[MIDDLE]).empty  # nobody with five events
    assert list(make_pairs(users_of(frame), cutoffs=[MIDDLE]).columns) == COLUMNS
    short = Users.from_events(frame.assign(time=CUTOFF - pd.Timedelta(days=9)), CUTOFF)
    with pytest.raises(ValueError, match="too short"):
        make_pairs(short)


def test_users_without_numbers(world):
    bare = Users.from_events(world.events[["user", "time", "modality", "text"]], world.cutoff)
    told = make_pairs(bare, cutoffs=[MIDDLE + pd.Timedelta(days=60)])
    assert len(told) and not set(told["topic"]) & {
        "spend",
        "basket",
        "discount",
        "store_brand",
        "spend_up",
    }
    assert check_pairs_by_hand(bare, told.sample(40, random_state=0)).all()


def test_other_horizons_are_asked_and_answered_in_their_own_words(world):
    """A week, 45 days, two months: the query and the answer say which, and reflection counts the
    same days.
    """
    for days, said in ((7, "week"), (45, "45 days"), (60, "two months")):
        whole = Users.from_events(world.events, world.cutoff, horizon_days=days)
        told = make_pairs(
            whole, horizons=(days,), cutoffs=[world.cutoff - pd.Timedelta(days=days)], per_sample=4
        )
        ahead = told[told["kind"] == "future"]
        assert len(ahead) > 100 and (ahead["horizon_days"] == days).all()
        fixed = ahead["query"] == SUMMARY_QUERY
        assert ahead.loc[~fixed, "query"].str.contains(rf"\b(?:{said}|{days} days)\b").all()
        assert not ahead["query"].str.contains(r"\bmonth\b|30 days|soon").any()
        assert ahead["answer"].str.contains(rf"{days} days|silent|quiet").all() or days == 30
        assert check_pairs_by_hand(whole, told.sample(60, random_state=0)).all()
    with pytest.raises(ValueError, match=r"horizon 0 is invalid\. Give whole days"):
        make_pairs(world, horizons=(0,))
    with pytest.raises(ValueError, match="repeat a value"):
        make_pairs(world, horizons=(30, 30))


@pytest.mark.slow
@pytest.mark.parametrize("horizons", [(7,), (7, 30), (5, 6, 7, 8, 9, 10, 30), ()])
def test_a_sample_has_its_pairs_whatever_the_horizons(world, horizons):
    told = make_pairs(world, horizons=horizons, per_sample=20)
    sizes = (
        told[told["topic"] != "summary"]
        .groupby(["user", "cutoff", "kind"])
        .size()
        .unstack(fill_value=0)
    )
    assert (sizes["profile"] == 8).all() and (not horizons or (sizes["future"] == 12).all())
    assert set(told.loc[told["kind"] == "future", "horizon_days"]) == set(horizons)


@pytest.mark.slow
def test_a_quiet_week_is_no_farewell(world):
    told = make_pairs(world, per_sample=96)
    assert set(
        told.loc[(told["topic"] == "lapse") & (told["kind"] == "future"), "horizon_days"]
    ) == {30}


def test_the_summary_says_when(world, pairs):
    told = pairs[pairs["topic"] == "summary"]
    said = told["answer"].str.extract(r"mostly in the (first|middle|last) third")[0]
    assert (
        0.02 < said.notna().mean() < 0.9
        and check_pairs_by_hand(world, told.sample(40, random_state=1)).all()
    )


@pytest.mark.parametrize("seed", range(5))
def test_what_is_said_of_most_users_is_true_of_most_users(seed):
    """Ties are told by what is true of them: of equal users, nobody is "in the lowest fifth" for
    there being many.
    """
    rng = np.random.default_rng(seed)
    value = rng.choice(rng.integers(1, 9, 4), int(rng.integers(1, 60))).astype(float)
    for v, grade in zip(value, grades("level", value), strict=True):
        lower, higher = (value < v).mean(), (value > v).mean()
        assert (higher >= 0.8, higher >= 0.6, True, lower >= 0.6, lower >= 0.8)[grade]
        assert grade != 2 or max(lower, higher) < 0.6
