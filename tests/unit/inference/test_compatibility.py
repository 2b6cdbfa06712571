"""Users that differ from those of a run: said, counted, and nothing is left out in silence."""

import pytest

import qanchor as qa
from tests.tiny import CUTOFF, brief_fits, habits


@pytest.fixture(scope="module")
def table():
    return habits(40).assign(amount=3.0)


@pytest.fixture(scope="module")
def users(table):
    return qa.Users.from_events(table, CUTOFF, unit="member", name="club")


@pytest.fixture(scope="module")
def model(users):
    with brief_fits():
        return qa.fit(users, text_encoder="hash", steps=5, progress=False)


def other_users(table):
    """The same users after a new source began and a column was renamed."""
    changed = table.rename(columns={"amount": "total_amount"})
    changed.loc[::3, "modality"] = "podcast"
    return qa.Users.from_events(changed, CUTOFF, unit="member", name="club")


def test_the_users_of_the_run_do_not_differ(model, users):
    assert qa.Engine(model).input_differences(users) == []


def test_new_modalities_and_missing_numbers_are_said(model, table):
    others = other_users(table)
    n = (others.history()["modality"] == "podcast").sum()
    new, missing = qa.Engine(model).input_differences(others)
    assert new.startswith(f"club has {n:,} events of 'podcast', a modality that is new to the run")
    assert "only by its name" in new
    assert "'amount', which club lacks" in missing
    assert "if 'total_amount' is the same column, rename it" in missing


def test_every_way_of_reading_says_it_and_goes_on(model, table):
    others = other_users(table)
    engine = qa.Engine(model)
    with pytest.warns(UserWarning, match="new to the run"):
        cache = engine.prefill(others)
    assert engine.embed(cache, "Will this member play chess?").shape[0] == len(others)


def test_a_column_that_is_gone_is_said_without_a_guess(model, table):
    without = qa.Users.from_events(table.drop(columns="amount"), CUTOFF)
    (message,) = qa.Engine(model).input_differences(without)
    assert "add the column, or train again" in message
