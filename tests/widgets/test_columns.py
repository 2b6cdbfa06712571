"""Columns of the users: what they are, the colors they give, and conditions on them."""

from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from qanchor.widgets import QueryLens
from qanchor.widgets.columns import MAX_CATEGORIES, UserColumns, find_ids

FRAME = pd.DataFrame(
    {
        "user": list("abcdefghij"),
        "recent": [("one",)] * 10,
        "age": [18, 20, 30, 40, 50, 60, 70, 80, 90, np.nan],
        "city": ["Oslo"] * 4 + ["Rome"] * 3 + [None] * 3,
        "Paid": [0.0, 1.0] * 5,
        "same": [1] * 10,
    }
)


def test_who_a_user_is_and_what_all_share_are_no_columns():
    assert UserColumns(FRAME).names == ["age", "city", "Paid"]


def test_a_number_has_a_scale_and_is_unknown_where_it_is_missing():
    packed = UserColumns(FRAME).pack("age")
    values = np.frombuffer(packed["values"], np.float32)
    assert values[0] == 0 and values[8] == 1 and np.isnan(values[9])
    assert (packed["low"], packed["high"]) == ("18.3", "88.4")


def test_few_numbers_and_texts_are_categories_the_most_frequent_first():
    columns = UserColumns(FRAME)
    packed = columns.pack("city")
    assert (packed["names"], packed["counts"]) == (["Oslo", "Rome"], [4, 3])
    assert np.frombuffer(packed["codes"], np.int32).tolist() == [0] * 4 + [1] * 3 + [-1] * 3
    assert columns.pack("Paid")["names"] == ["0", "1"]


def test_beyond_the_colors_there_are_categories_share_one():
    names = [f"city {min(row, 20)}" for row in range(40)]
    packed = UserColumns(pd.DataFrame({"user": range(40), "city": names})).pack("city")
    assert len(packed["names"]) == MAX_CATEGORIES
    assert packed["names"][-1] == "all others" and sum(packed["counts"]) == 40


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("age >= 50", [4, 5, 6, 7, 8]),
        ("AGE>=50 and City = rome", [4, 5, 6]),
        ("city != Oslo", [4, 5, 6]),
        ("paid = 1", [1, 3, 5, 7, 9]),
        ("paid == yes", [1, 3, 5, 7, 9]),
        ("city = 'Oslo'", [0, 1, 2, 3]),
    ],
)
def test_conditions(text, rows):
    assert UserColumns(FRAME).find(text).tolist() == rows


def test_what_names_no_column_is_no_condition():
    assert UserColumns(FRAME).find("height > 2") is None
    assert UserColumns(FRAME).find("rice cooker") is None


def test_days_truth_and_numbers_in_any_form_are_compared_as_such():
    frame = pd.DataFrame({"user": range(4)})
    frame["signup"] = pd.to_datetime(
        ["2024-05-31 10:00", "2024-06-01 09:00", "2024-06-02 00:00", None]
    )
    frame["vip"] = [True, False, True, False]
    frame["price"] = [Decimal(9), Decimal(10), Decimal(11), Decimal(100)]
    frame["stay"] = pd.to_timedelta([1, 2, 30, 9], "D")
    columns = UserColumns(frame)
    assert columns.find("signup = 2024-6-1").tolist() == [1]
    assert columns.find("signup <= 2024-06-01").tolist() == [0, 1]
    assert columns.find("vip = true").tolist() == columns.find("vip = yes").tolist() == [0, 2]
    assert columns.find("price > 10").tolist() == [2, 3]
    assert columns.find("stay ≥ 9").tolist() == [2, 3]
    with pytest.raises(ValueError, match="price > much: only numbers and days"):
        columns.find("price > much")


def test_names_and_values_may_hold_what_conditions_are_made_of():
    frame = pd.DataFrame({"user": range(3), "City and State": ["Oslo", "Rome and Bari", "Oslo"]})
    frame["a>=b"] = [1, 6, 7]
    frame["age"] = [1, 2, 3]
    frame["Age"] = [9, 8, 7]
    columns = UserColumns(frame)
    assert columns.find("City and State = Rome and Bari").tolist() == [1]
    assert columns.find("a>=b > 5 and City and State = oslo").tolist() == [2]
    assert columns.find("age = 1").tolist() == [0] and columns.find("Age = 7").tolist() == [2]


def test_indicators_of_one_fact_are_one_column():
    frame = pd.DataFrame({"user": range(4), "city.Oslo": [1, 0, 0, 0], "city.Rome": [0, 1, 1, 0]})
    frame["app.a"] = [1, 1, 0, 0]
    frame["app.b"] = [1, 0, 1, 0]  # two at once: no values of one fact
    columns = UserColumns(frame)
    assert columns.names == ["app.a", "app.b", "city"]
    assert columns.find("city = rome").tolist() == [1, 2]
    assert columns.pack("city")["counts"] == [2, 1]


def test_strange_columns_do_no_harm():
    frame = pd.DataFrame({"user": range(30), "many": [{"a": 1}] * 30, "rich": [np.inf, *range(29)]})
    frame["kind"] = ["all others", *[f"kind {row % 9}" for row in range(29)]]
    frame["day"] = pd.date_range("2024-01-01", periods=30)
    frame = pd.concat([frame, frame[["rich"]]], axis=1)  # a name twice
    columns = UserColumns(frame)
    assert columns.names == ["rich", "kind", "day"]
    assert np.isnan(np.frombuffer(columns.pack("rich")["values"], np.float32)[0])
    assert sum(columns.pack("kind")["counts"]) == 30
    assert columns.pack("day")["low"] == "2024-01-01"


def test_an_id_is_found_whole_before_its_beginnings():
    assert find_ids(["u1", "u10", "v"], "u1").tolist() == [0]
    assert find_ids(["u11", "u10", "v"], "U1").tolist() == [0, 1]
    assert find_ids(["u1"], " ").tolist() == []


class Backend:
    """A back end that knows a label and who bought a lamp."""

    columns = pd.DataFrame({"city": range(10), "Left": [0, 1] * 5}, index=list("jihgfedcba"))

    def __call__(self, query, previous):
        return iter(())

    def find(self, text):
        return ("c", "d") if text == "lamp" else ()


def test_the_lens_finds_and_colors_by_columns_of_its_frame_and_its_back_end():
    lens = QueryLens(FRAME, Backend())
    assert lens._about["columns"] == ["age", "city", "Paid", "city (2)", "Left"]
    assert lens.find("Left = 0") == ("b", "d", "f", "h", "j")
    assert lens.find("lamp") == ("c", "d")
    assert lens._found["sentence"] == "2 users: an event with the words lamp"
    assert lens.find("zebra") == () and lens._found["sentence"] == "Nobody: zebra"
    assert len(lens.selection) == 2  # who was selected before
    assert lens.find("") == () and lens._found["sentence"] == ""
    lens.color_by("Left")
    assert lens._column["counts"] == [5, 5]
    with pytest.raises(KeyError, match="no column 'height' to color by: choose one of age, city"):
        lens.color_by("height")


def test_the_table_has_what_is_shown_of_each_user(asked_lens):
    lens = asked_lens
    lens.selection.ids = ["b"]
    table = lens.table()
    assert table["user"].tolist() == ["a", "b", "c"]
    assert table["selected"].tolist() == [False, True, False]
    assert table["x"].tolist() == [1.0, 2.0, 3.0] and table["score"].tolist() == [0.1, 0.3, 0.2]
    assert table["stands_out"].tolist() == [True, False, False]
    assert table["x (column)"].tolist() == [7, 8, 9]


@pytest.fixture
def asked_lens():
    ids = ["a", "b", "c"]
    points = pd.DataFrame({"user": ids * 2, "query": [""] * 3 + ["q"] * 3, "y": 0.0})
    points["x"] = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]
    points["trust"] = 1.0
    shift = pd.DataFrame({"user": ids[::-1], "toward_yes": [0.1, 0.2, 0.9], "elsewhere": 0.3})
    shift = shift.assign(from_query="", to_query="q", stands_out=shift["toward_yes"] > 0.3)
    shift = shift.assign(residual=0.5, neighbours_kept=1.0, gained=[()] * 3, lost=[()] * 3)
    ranking = pd.DataFrame({"user": ids, "score": [0.1, 0.3, 0.2], "answer": "often"})

    def backend(query, previous):
        said = {"done": 1, "total": 1, "message": "", "caption": "", "warning": ""}
        yield SimpleNamespace(**said, data={"points": points, "shift": shift})
        yield SimpleNamespace(**said, data={"ranking": ranking})

    lens = QueryLens(pd.DataFrame({"user": ids, "x": [7, 8, 9]}), backend)
    lens.ask("q")
    return lens
