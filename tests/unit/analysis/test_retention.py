"""Retention and funnels, beside plain loops over the events."""

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.analysis.retention import MIN_USERS, funnel, retention
from qanchor.data.users import Users

CUTOFF = pd.Timestamp("2025-04-01")


@pytest.fixture(scope="module")
def users() -> Users:
    rng = np.random.default_rng(0)
    n = 3000
    day = rng.integers(0, 90, n)
    events = pd.DataFrame(
        {
            "user": [f"u{user:02}" for user in rng.integers(0, 60, n)],
            "time": pd.Timestamp("2025-01-01") + pd.to_timedelta(day, unit="D"),
            "modality": rng.choice(["view", "cart"], n),
            "text": rng.choice(["red shoe", "blue shoe", "green hat"], n),
        }
    )
    keep = (events["user"] != "u00") | (events["time"] > "2025-03-20")  # came late
    return Users.from_events(events[keep], cutoff=CUTOFF)


def plain_retention(users, members, period_days):
    rows = []
    events = users.history()
    for period in range(26):
        there = active = 0
        for user in members:
            times = events.loc[events["user"] == user, "time"]
            begin = times.min() + pd.Timedelta(days=period * period_days)
            end = begin + pd.Timedelta(days=period_days)
            if end <= users.cutoff:
                there += 1
                active += ((times >= begin) & (times < end)).any()
        if there < MIN_USERS:
            break
        rows.append((period, there, active))
    return rows


def test_retention_equals_a_loop_over_users_and_periods(users):
    group = users.ids[:15]
    frame = retention(users, group, period_days=7)
    for side, members in (("group", group), ("rest", users.ids[15:])):
        found = frame.loc[frame["side"] == side, ["period", "users", "active"]]
        assert list(found.itertuples(index=False, name=None)) == plain_retention(users, members, 7)
    assert (frame["low"] <= frame["share"]).all() and (frame["share"] <= frame["high"]).all()


def test_a_user_counts_only_in_periods_that_are_over(users):
    assert retention(users, period_days=30)["users"].tolist() == [59, 59, 26]


def test_the_period_fits_the_history(users):
    assert retention(users).attrs["period_days"] == 7
    with pytest.raises(ValueError, match=r"period_days is 0\. Pass 1 or more"):
        retention(users, period_days=0)


def plain_funnel(users, steps):
    events = users.history().sort_values("time")
    reached = [0] * len(steps)
    for user in users.ids:
        since = pd.Timestamp.min
        used = []
        for number, step in enumerate(steps):
            own = events[(events["user"] == user) & (events["time"] >= since)]
            own = own.drop(index=used, errors="ignore")
            own = own[own["text"].str.contains(step) | (own["modality"] == step)]
            if own.empty:
                break
            used.append(own.index[0])
            since = own["time"].iloc[0]
            reached[number] += 1
    return reached


@pytest.mark.parametrize(
    "steps", [["red", "blue", "hat"], ["view", "cart"], ["hat", "hat", "hat"], ["red", "cart"]]
)
def test_a_funnel_equals_a_loop_over_users(users, steps):
    few = users.select(users.ids[:25])
    thin = few.events.groupby("user", observed=True).head(5)
    few = Users.from_events(thin, cutoff=CUTOFF)
    assert funnel(few, steps)["active"].tolist() == plain_funnel(few, steps)


def test_a_funnel_of_a_group_stands_beside_the_rest(users):
    frame = funnel(users, ["Red Shoe", "cart"], users.ids[:20])
    assert frame["side"].tolist() == ["group", "group", "rest", "rest"]
    assert frame["users"].tolist() == [20, 20, 40, 40]
    both = funnel(users, ["Red Shoe", "cart"])
    assert (
        frame.groupby("step")["active"].sum().to_dict()
        == both.set_index("step")["active"].to_dict()
    )


def test_what_a_funnel_cannot_be_is_told(users):
    with pytest.raises(ValueError, match=r"Found 1 step\. Pass two or more"):
        funnel(users, ["view", " "])
    with pytest.raises(ValueError, match=r"Nobody did .zebra. before the cut-off"):
        funnel(users, ["view", "zebra"])
    with pytest.raises(ValueError, match="Fewer than 10 users have a whole period of 90 days"):
        retention(users.select(users.ids[:12]), period_days=90)
    with pytest.raises(KeyError, match="'nobody' is not among"):
        retention(users, ["nobody"])


def test_events_of_one_moment_may_follow_each_other_but_each_counts_once():
    rows = []
    for user in range(12):
        rows += [(f"u{user:02}", "view"), (f"u{user:02}", "pay"), (f"u{user:02}", "green tea")]
        rows += [(f"u{user:02}", "tea")]
    events = pd.DataFrame(rows, columns=["user", "text"]).assign(modality="shop")
    users = Users.from_events(events.assign(time=pd.Timestamp("2025-01-01")), cutoff=CUTOFF)
    assert funnel(users, ["view", "pay", "view"])["active"].tolist() == [12, 12, 0]
    for steps in (["tea", "green tea"], ["green tea", "tea"], ["pay", "view"]):
        assert funnel(users, steps)["active"].tolist() == [12, 12]
    with pytest.raises(ValueError, match="steps is the text 'view'"):
        funnel(users, "view")


def test_both_are_public():
    assert qa.retention is retention and qa.funnel is funnel
