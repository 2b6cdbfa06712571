"""Data is checked where it enters: an error names file, row, column, value and cure, and the future
stays the future.
"""

import copy
import json

import pandas as pd
import pytest

from qanchor.data.labels import read_labels
from qanchor.data.reading import load_users
from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.data.validation import MAX_TEXT
from qanchor.errors import DataError

GOOD = (
    "user,time,modality,text,amount\na,2025-01-01 "
    "10:00,bill,noodles,3\nb,2025-01-02,search,flights,\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "events.csv").write_text(GOOD)
    return tmp_path


def small_events(**change) -> pd.DataFrame:
    row = {"user": "a", "time": "2025-01-01", "modality": "bill", "text": "noodles", "amount": 3.0}
    return pd.DataFrame([row, {**row, **change}])


def frames_equal(left: Users, right: Users) -> None:
    words = {"user": str, "modality": str, "text": str}
    pd.testing.assert_frame_equal(left.events.astype(words), right.events.astype(words))
    pd.testing.assert_frame_equal(left.tabular, right.tabular)
    pd.testing.assert_frame_equal(left.labels, right.labels)
    for name in ("name", "cutoff", "modalities", "horizon_days", "unit", "ids"):
        assert getattr(left, name) == getattr(right, name), name


REFUSED = [  # file, its text; row, column and value of the error, what it says to do
    ("events.csv", GOOD.replace("2025-01-02", "soon"), 1, "time", "soon", "2025-01-31 18:00:00"),
    ("events.csv", GOOD.replace("2025-01-02", "2025-13-02"), 1, "time", "2025-13-02", "not a time"),
    ("events.csv", GOOD.replace("2025-01-02", "03/04/2025"), 1, "time", "03/04/2025", "not clear"),
    ("events.csv", GOOD.replace("2025-01-02", "now"), 1, "time", "now", "not a time"),
    ("events.csv", GOOD.replace("2025-01-02", "today"), 1, "time", "today", "not a time"),
    (
        "events.csv",
        GOOD.replace("2025-01-02", "0001-01-02"),
        1,
        "time",
        "0001-01-02",
        "Check the year",
    ),
    ("events.csv", GOOD.replace("flights,", "flights,lots"), 1, "amount", "lots", "Write one"),
    (
        "events.csv",
        GOOD.replace("flights,", "flights,1e308"),
        1,
        "amount",
        "1e308",
        "Check the amount",
    ),
    ("events.csv", GOOD.replace("user,", "person who,"), None, "user", None, "name it"),
    ("events.csv", "user,time,modality,text\n", None, "user", "no rows", "at least one event"),
    ("events.csv", "", None, None, None, "Write one row per event"),
    ("users.csv", "home.rooms\n3\n", None, "user", None, "rename it to 'user'"),
    ("users.csv", "user,home.rooms\na,3\nb,red\n", 1, "home.rooms", "red", "Write one"),
    ("users.csv", "user,home.rooms\na,3\na,4\n", 1, "user", "a", "one row per user"),
    ("labels.csv", "user,travels\na,0\nb,2\n", 1, "travels", "2", "0, 1 or empty"),
    ("labels.csv", "user,travels\na,perhaps\nb,1\n", 0, "travels", "perhaps", "Write one"),
    ("about.json", "{", None, "about", None, "Correct it"),
    ("about.json", "[1]", None, "about", [1], "cutoff"),
    ("about.json", '{"cutoff": "soon"}', None, "cutoff", "soon", "2025-01-31"),
    ("about.json", '{"cutoff": 20250301}', None, "cutoff", 20250301, "in quotes"),
    ("about.json", '{"horizon_days": "x"}', None, "horizon_days", "x", "whole number"),
    ("about.json", '{"horizon_days": 1000000}', None, "horizon_days", 1000000, "smaller number"),
    ("about.json", '{"modalities": "bill"}', None, "modalities", "bill", "list of names"),
    ("about.json", '{"words": {"amount": 3}}', None, "words", None, "object of words"),
]


@pytest.mark.parametrize(("file", "text", "row", "column", "value", "cure"), REFUSED)
def test_bad_input_is_told_with_place_and_cure(folder, file, text, row, column, value, cure):
    (folder / file).write_text(text)
    with pytest.raises(DataError) as caught:
        load_users(folder)
    error = caught.value
    assert (error.file, error.row, error.column) == (file, row, column)
    assert value is None or error.value == value
    assert cure in str(error) and file in str(error)
    assert column is None or repr(column) in str(error)
    assert row is None or f"row {row}" in str(error)
    assert len(str(error)) < 400, "a long value is cut"


LONG = "n" * (MAX_TEXT + 1)
REPORTED = [  # file, its text; kind, row and column of what is reported, and what it says
    ("events.csv", GOOD.replace("a,2025", ",2025"), "dropped", 0, "user", "left out"),
    ("events.csv", GOOD.replace("b,2025", " ,2025"), "dropped", 1, "user", "needs an id"),
    ("events.csv", GOOD.replace("2025-01-02", "2200-01-02"), "dropped", 1, "time", "beyond today"),
    ("events.csv", GOOD.replace("2025-01-02", ""), "dropped", 1, "time", "no time"),
    ("events.csv", GOOD.replace("search", ""), "dropped", 1, "modality", "no modality"),
    ("events.csv", GOOD.replace("noodles", ""), "changed", 0, "text", "called 'event'"),
    ("events.csv", GOOD.replace("noodles", "   "), "changed", 0, "text", "called 'event'"),
    ("events.csv", GOOD.replace("noodles", LONG), "changed", 0, "text", "over 2,000 characters"),
    ("events.csv", GOOD.replace("noodles", "te\0a\u200b"), "changed", 0, "text", "invisible"),
    ("events.csv", GOOD.replace("flights,", "flights,inf"), "changed", 1, "amount", "not finite"),
    ("users.csv", "user,home.rooms\na,3\nb,inf\n", "changed", 1, "home.rooms", "not finite"),
    ("users.csv", "user,home.rooms\na,3\n,4\n", "dropped", 1, "user", "left out"),
    ("labels.csv", "user,travels\na,yes\n", "changed", 0, "travels", "yes is 1"),
    ("labels.csv", "user,travels\na,1\nc,1\n", "note", 1, "user", "this user has no events"),
    ("about.json", '{"cut_off": "2025-01-31"}', "note", None, "cut_off", "not read"),
]


@pytest.mark.filterwarnings("ignore:1 row of 2 were left out")
@pytest.mark.parametrize(("file", "text", "kind", "row", "column", "said"), REPORTED)
def test_what_is_changed_or_left_out_is_reported(folder, file, text, kind, row, column, said):
    (folder / file).write_text(text)
    report = load_users(folder).report
    found = [f for f in report.findings if (f.file, f.column, f.kind) == (file, column, kind)]
    assert [(f.row, said in f.message) for f in found] == [(row, True)]
    assert report.rows == report.kept + report.dropped


def test_an_unknown_modality_is_told(folder):
    (folder / "about.json").write_text('{"modalities": ["bill"]}')
    with pytest.raises(
        DataError, match=r"events\.csv, row 1, column 'modality': 'search': not one of"
    ):
        load_users(folder)


def test_a_null_byte_in_a_text_is_refused():
    with pytest.raises(DataError, match="null byte"):
        Users.from_events(small_events(text="noo\x00dles"))


def test_no_events_file_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no events\.parquet or events\.csv.*user, time, modality, text"
    ):
        load_users(tmp_path)


def test_a_broken_parquet_is_told(tmp_path):
    (tmp_path / "events.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"events\.parquet.*cannot be read"):
        load_users(tmp_path)


def test_numbers_as_time_are_refused_not_guessed():
    with pytest.raises(DataError, match="not a time"):
        Users.from_events(small_events().assign(time=1735689600))


def test_a_plain_folder_loads(folder):
    users = load_users(folder)
    assert (users.ids, users.modalities, users.numbers) == (
        ("a", "b"),
        ("bill", "search"),
        ("amount",),
    )
    assert users.cutoff > users.events["time"].max(), "without about.json everything is history"
    assert users.labels.shape == users.tabular.shape == (2, 0) and users.unit == "user"


def test_number_ids_agree_between_files_and_offsets_become_utc(folder):
    (folder / "events.csv").write_text(
        "user,time,modality,text\n1,2025-01-01,bill,x\n2,2025-01-01T10:00:00+08:00,bill,y\n"
    )
    (folder / "labels.csv").write_text("user,travels\n1,0\n3,1\n")
    users = load_users(folder)
    assert users.ids == ("1", "2", "3"), "a user known only from a label is a user without events"
    assert users.label("travels").fillna(-1).tolist() == [0, -1, 1]
    assert users.events["time"].iloc[1] == pd.Timestamp("2025-01-01 02:00")


def test_ids_are_text_so_007_and_7_are_two_users(folder):
    (folder / "events.csv").write_text(
        "user,time,modality,text\n007,2025-01-01,bill,x\n7,2025-01-02,bill,y\n"
    )
    (folder / "users.csv").write_text("user,home.rooms\n007,3\n7,4\n")
    (folder / "labels.csv").write_text("user,travels\n7,1\n007,0\n")
    users = load_users(folder)
    assert users.ids == ("007", "7") and users.events["user"].tolist() == ["007", "7"]
    assert users.tabular["home.rooms"].tolist() == [3, 4]
    assert users.label("travels").tolist() == [0, 1]
    assert read_labels(folder / "labels.csv", "travels", users).to_dict() == {"007": 0, "7": 1}
    assert load_users(users.save(folder / "again")).ids == users.ids


def test_integer_ids_of_parquet_keep_their_digits(folder):
    events = small_events().assign(user=[7, 12345678901234567])
    (folder / "events.csv").unlink()
    events.to_parquet(folder / "events.parquet")
    assert load_users(folder).ids == ("12345678901234567", "7")


def test_save_and_load_give_the_same(tmp_path):
    users = make_sample_users(60, seed=3)
    frames_equal(load_users(users.save(tmp_path / "u")), users)
    assert not [path.name for path in (tmp_path / "u").iterdir() if path.suffix == ".part"]


def test_saving_over_an_older_folder_leaves_none_of_it(tmp_path):
    make_sample_users(5).save(tmp_path)
    bare = Users.from_events(small_events())
    frames_equal(load_users(bare.save(tmp_path)), bare)


@pytest.mark.parametrize("stem", ["events", "users", "labels"])
def test_nothing_half_written_when_saving_fails(tmp_path, monkeypatch, stem):
    old = make_sample_users(5, seed=1)
    old.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = pd.DataFrame.to_parquet

    def full_disk(self, path, **settings):
        if path.name.startswith(f".{stem}"):
            path.write_bytes(b"half")
            raise OSError("No space left on device")
        return real(self, path, **settings)

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_sample_users(5, seed=1).save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before, (
        "every file is the old or the new one, whole"
    )
    frames_equal(load_users(tmp_path), old)


def test_the_future_never_enters_history():
    users = make_sample_users(40, seed=2)
    past, ahead = users.history(), users.future()
    assert past["time"].max() < users.cutoff <= ahead["time"].min()
    assert len(past) + len(ahead) == len(users.events) and len(ahead)
    edge = Users.from_events(small_events(time="2025-02-01"), "2025-02-01")
    assert len(edge.history()) == 1 and len(edge.future()) == 1, "an event at the cut-off is future"
    early = users.cutoff - pd.Timedelta(days=40)
    assert users.history(early)["time"].max() < early


def test_the_frame_for_views_tells_nothing_of_the_future():
    users = make_sample_users(40, seed=2)
    frame = users.frame()
    assert frame["events"].sum() == len(users.history()) and frame["last"].max() < users.cutoff
    past = set(users.history()["text"].astype(str))
    assert all(text in past for texts in frame["recent"] for text in texts)
    assert not set(frame) & set(users.labels), "labels are asked for by name"


def test_recent_texts_are_a_tuple_newest_first_whatever_they_contain():
    rows = [("a", f"2025-01-0{day}", "bill", f"tea · cake {day}") for day in range(1, 8)]
    rows.append(("b", "2025-03-01", "bill", "later"))
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text"])
    recent = Users.from_events(events, "2025-02-01").frame()["recent"]
    assert recent.tolist() == [tuple(f"tea · cake {day}" for day in (7, 6, 5, 4, 3)), ()]


def test_events_are_sorted_by_user_and_time_whatever_came_in():
    users = make_sample_users(20, seed=4)
    mixed = users.events.sample(frac=1, random_state=0)
    again = Users.from_events(mixed, users.cutoff, modalities=users.modalities)
    order = again.events[["user", "time"]].assign(user=again.events["user"].astype(str))
    assert (order.sort_values(["user", "time"], kind="stable").index == order.index).all()
    pd.testing.assert_frame_equal(
        again.events.astype({"text": str}), users.events.astype({"text": str})
    )


def test_select_and_sample_keep_everything_else():
    users = make_sample_users(30, seed=5)
    few = users.select([users.ids[7], users.ids[2]])
    assert few.ids == (users.ids[2], users.ids[7]) and set(few.events["user"].astype(str)) == set(
        few.ids
    )
    assert (
        few.labels.loc[few.ids[0]].equals(users.labels.loc[few.ids[0]])
        and few.cutoff == users.cutoff
    )
    assert users.sample(9, seed=1).ids == users.sample(9, seed=1).ids != users.sample(9, seed=2).ids
    assert users.sample(99) is users
    with pytest.raises(KeyError, match="'zz' is not among the 30 of world"):
        users.select(["zz"])


def test_label_names_what_there_is():
    users = make_sample_users(5)
    with pytest.raises(KeyError, match=r"no label 'Sailing'.*Concert"):
        users.label("Sailing")


def test_about_says_what_the_tables_do_not(tmp_path):
    users = make_sample_users(5)
    about = json.loads((users.save(tmp_path) / "about.json").read_text())
    assert (
        about["cutoff"] == "2025-06-01 00:00:00"
        and about["modalities"][0] == "bill"
        and about["horizon_days"] == 30
    )


def test_an_error_comes_back_whole_from_another_process():
    told = DataError("events.csv", 3, "time", "soon", "write it as 2025-01-31")
    again = copy.copy(told)  # by the same way as between processes
    assert str(again) == str(told) and (again.row, again.column) == (3, "time")


def test_a_label_named_like_an_input_is_refused():
    events = small_events()
    labels = pd.DataFrame({"amount": [1.0]}, pd.Index(["a"], name="user"))
    with pytest.raises(
        DataError, match=r"events.*amount.*named like a label, .* Drop the column, or rename one"
    ):
        Users.from_events(events, "2025-04-01", labels=labels)
    rooms = labels.set_axis(["rooms"], axis=1)
    with pytest.raises(DataError, match=r"users.*rooms.*named like a label"):
        Users.from_events(events, "2025-04-01", tabular=rooms, labels=rooms)


def test_users_without_events_are_saved_and_loaded(tmp_path):
    events = pd.DataFrame(
        {"user": ["a"], "time": ["2025-01-01"], "modality": "bill", "text": "tea"}
    )
    users = Users.from_events(
        events, "2025-02-01", tabular=pd.DataFrame(index=pd.Index(["a", "b"], name="user"))
    )
    assert load_users(users.save(tmp_path / "both")).ids == users.ids == ("a", "b")
