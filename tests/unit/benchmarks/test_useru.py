"""Bench `useru`: copies of users differ as promised, and each scale is measured."""

from functools import partial

import numpy as np
import pytest

from qanchor.data.reading import load_users
from qanchor.data.sample import make_sample_users
from tests.benchmarks.card import card
from tests.benchmarks.useru import useru, write_copies


@pytest.mark.slow
def test_the_benchmark_measures_each_scale():
    told = useru(scales=(1, 2), source=partial(make_sample_users, 60))
    one, two = told["rows"]
    assert list(one) == ["scale", "events", "pairs", "seconds", "events_per_s", "peak_gb"]
    assert two["events"] == 2 * one["events"] and two["pairs"] > one["pairs"] > 0
    assert 0.05 < one["peak_gb"] < 4 and np.isfinite(told["growth_exponent"])


@pytest.mark.slow
def test_the_card_counts_pairs():
    told = card(lambda: make_sample_users(60))
    assert told["pairs"] > 0 and told["distinct"]["user"] <= 60
    assert 1 < told["query_words"]["low"] <= told["query_words"]["median"]


def test_copies_are_new_users_with_moved_times_and_amounts(tmp_path):
    people = make_sample_users(20)
    write_copies(partial(make_sample_users, 20), tmp_path, 3, seed=0)
    copies = load_users(tmp_path)
    assert (
        len(copies) == 60
        and len(copies.events) == 3 * len(people.events)
        and copies.cutoff == people.cutoff
    )
    first, moved = (copies.events[copies.events["user"] == f"{people.ids[0]}-{k}"] for k in (0, 2))
    own = people.events[people.events["user"] == people.ids[0]]
    assert (first["time"].to_numpy() == own["time"].to_numpy()).all()
    hours = np.unique(moved["time"].sort_values().to_numpy() - own["time"].to_numpy())
    assert len(hours) == 1 and abs(hours[0]) <= np.timedelta64(72, "h")
    factor = moved["amount"].sum() / own["amount"].sum()
    assert 0.79 < factor < 1.26 and factor != 1
