"""A messy folder: what can be read is, and said; what cannot is told with place and cure; what is
written loads.
"""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanchor.data.cells import tidy
from qanchor.data.columns import kind_of, plain_name
from qanchor.data.dates import read_times
from qanchor.data.reading import check_folder, load_users, read_events
from qanchor.data.things import ThingEvents
from qanchor.data.validation import MAX_TEXT, Finding, Report, shown
from qanchor.errors import DataError, QanchorError

LINES = [
    ("a", "2025-01-02 10:00", "bill", "noodles", 3.0),
    ("a", "2025-02-01 11:00", "search", "flights", np.nan),
    ("b", "2025-01-05 09:30", "bill", "tea", 2.5),
    ("b", "2025-02-07 20:00", "app", "opened the map", np.nan),
    ("c", "2025-01-09 08:00", "bill", "rice", 4.0),
    ("c", "2025-03-05 08:00", "bill", "a ticket", 40.0),
]
pytestmark = pytest.mark.filterwarnings("ignore:.* left out:UserWarning")


def good() -> dict[str, pd.DataFrame]:
    events = pd.DataFrame(LINES, columns=["user", "time", "modality", "text", "amount"])
    users = pd.DataFrame({"user": ["a", "b", "c"], "home.rooms": [2.0, 3.0, np.nan]})
    return {
        "events": events,
        "users": users,
        "labels": pd.DataFrame({"user": ["a", "b", "c"], "travels": [1.0, 0.0, np.nan]}),
    }


def put(folder: Path, frames: dict, kind: str = "csv", **about) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, frame in frames.items():
        if kind == "csv":
            frame.to_csv(folder / f"{stem}.csv", index=False)
        else:
            frame.to_parquet(folder / f"{stem}.parquet", index=False)
    told = {"cutoff": "2025-03-01", "modalities": ["bill", "search", "app"]} | about
    told = {key: value for key, value in told.items() if value is not None}
    (folder / "about.json").write_text(json.dumps(told))
    return folder


def with_cell(frame: pd.DataFrame, row: int, column: str, value) -> pd.DataFrame:
    values = frame[column].astype(object)
    values[row] = value
    if isinstance(value, str):
        values = values.astype(str).where(values.notna())
    return frame.assign(**{column: values})


def problems(folder: Path) -> list[dict]:
    return check_folder(folder)[0]["problems"]


CELLS = {  # file, row, column, value; part of the message, kind
    "no time": ("events", 1, "time", "soon", "not a time", "error"),
    "whose month": ("events", 1, "time", "03/04/2025", "not clear which number", "error"),
    "this moment": ("events", 1, "time", "now", "not a time", "error"),
    "a number": ("events", 1, "time", "1735689600", "not a time", "error"),
    "year 1": ("events", 1, "time", "0001-01-01 10:00", "Check the year", "error"),
    "year 99999": ("events", 5, "time", "99999-01-01 10:00", "not a time", "error"),
    "empty time": ("events", 1, "time", None, "no time", "dropped"),
    "beyond today": ("events", 5, "time", "2099-01-01 10:00", "beyond today", "dropped"),
    "empty user": ("events", 3, "user", None, "needs an id", "dropped"),
    "blank user": ("events", 3, "user", "  ", "needs an id", "dropped"),
    "empty modality": ("events", 3, "modality", None, "no modality", "dropped"),
    "empty text": ("events", 3, "text", None, "called 'event'", "changed"),
    "unseen text": ("events", 3, "text", "\u200b\u2060", "called 'event'", "changed"),
    "unknown modality": ("events", 3, "modality", "ap", "is it 'app'?", "error"),
    "spaced modality": ("events", 3, "modality", "app ", "spaces around", "changed"),
    "long text": ("events", 2, "text", "x" * (MAX_TEXT + 1), "Shorten it", "changed"),
    "10 MB text": ("events", 2, "text", "tea " * 2_500_000, "Shorten it", "changed"),
    "null byte": ("events", 2, "text", "te\x00a", "invisible", "changed"),
    "zero width": ("events", 2, "text", "te\u200ba", "invisible", "changed"),
    "turned text": ("events", 2, "text", "\u202etea", "invisible", "changed"),
    "in pieces": ("events", 2, "text", "cafe\u0301", "letters in pieces", "changed"),
    "word for number": ("events", 2, "amount", "lots", "not a number", "error"),
    "amount past all sums": ("events", 2, "amount", 1e308, "beyond 1e+15", "error"),
    "infinite amount": ("events", 2, "amount", np.inf, "not finite", "changed"),
    "word for fact": ("users", 1, "home.rooms", "red", "not a number", "error"),
    "infinite fact": ("users", 1, "home.rooms", -np.inf, "not finite", "changed"),
    "no user of facts": ("users", 1, "user", None, "left out", "dropped"),
    "label of 2": ("labels", 1, "travels", 2.0, "0, 1 or empty", "error"),
    "odd label": ("labels", 1, "travels", "maybe", "not a number", "error"),
    "label in words": ("labels", 0, "travels", "Yes", "yes is 1", "changed"),
    "ids that meet unseen": ("labels", 1, "user", "b\u200d", "invisible", "changed"),
    "ids that meet": ("events", 1, "user", "a ", "spaces around", "changed"),
    "another case": ("events", 1, "user", "A", "differs from 'a' only in case", "note"),
    "a stranger": ("labels", 1, "user", "zoe", "this user has no events", "note"),
}


SOON_AS_PARQUET = {"10 MB text", "null byte", "infinite amount", "ids that meet", "label in words"}


def as_parquet(case: str):
    marks = () if case in SOON_AS_PARQUET else pytest.mark.slow
    return pytest.param(case, "parquet", marks=marks)


@pytest.mark.parametrize(
    ("case", "kind"), [*((case, "csv") for case in CELLS), *map(as_parquet, CELLS)]
)
def test_each_fault_of_a_cell_is_told_once_and_the_rest_is_kept(tmp_path, case, kind):
    stem, row, column, value, said, severity = CELLS[case]
    frames = good()
    frames[stem] = with_cell(frames[stem], row, column, value)
    folder = put(tmp_path / "mine", frames, kind)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    data, words = check_folder(folder, tmp_path / "out")
    assert json.dumps(data, allow_nan=False)
    found = [p for p in data["problems"] if said in p["message"] and p["column"] == column]
    assert [(p["file"], p["row"], p["kind"]) for p in found] == [(f"{stem}.{kind}", row, severity)]
    assert said in words and max(map(len, words.splitlines())) < 400
    assert data["in_order"] == (severity != "error") == (tmp_path / "out").exists()
    if severity != "error":
        lost = severity == "dropped" and stem == "events"
        assert len(load_users(tmp_path / "out").events) == 6 - lost
        again = [p["kind"] for p in problems(tmp_path / "out")]
        assert not {"changed", "dropped", "error"} & set(again)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_good_folder_has_no_problem(tmp_path):
    for kind in ("csv", "parquet"):
        folder = put(tmp_path / kind, good(), kind, name="mine", unit="person")
        out = tmp_path / f"{kind}-out"
        assert check_folder(folder, out)[0]["problems"] == []
        first, second = load_users(folder), load_users(out)
        words = {"text": str}
        pd.testing.assert_frame_equal(first.events.astype(words), second.events.astype(words))
        pd.testing.assert_frame_equal(first.tabular, second.tabular)
        pd.testing.assert_frame_equal(first.labels, second.labels)
        for name in ("cutoff", "unit", "modalities", "horizon_days"):
            assert getattr(first, name) == getattr(second, name)


def test_all_problems_are_told_at_once(tmp_path):
    frames = good()
    frames["events"] = with_cell(with_cell(frames["events"], 0, "time", "soon"), 2, "amount", "x")
    frames["users"] = with_cell(frames["users"], 1, "home.rooms", "red")
    frames["labels"] = pd.DataFrame({"user": ["a", "a", "b"], "travels": [1, 0, 1]})
    folder = put(tmp_path / "mine", frames)
    data, words = check_folder(folder, tmp_path / "out")
    errors = [(p["file"], p["row"], p["column"]) for p in data["problems"] if p["kind"] == "error"]
    assert sorted(errors) == [
        ("events.csv", 0, "time"),
        ("events.csv", 2, "amount"),
        ("labels.csv", 1, "user"),
        ("users.csv", 1, "home.rooms"),
    ]
    assert "4 errors" in words and not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="3 more errors: `qanchor check` lists all"):
        load_users(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: b"\xef\xbb\xbf" + raw, None),
        (lambda raw: raw.decode().encode("utf-16"), "utf-16"),
        (lambda raw: raw.replace(b"noodles", b"caf\xe9 cr\xe8me"), "caf\xe9"),
        (lambda raw: raw.replace(b",", b";").replace(b".", b","), "3,0"),
        (lambda raw: raw.replace(b",", b"\t"), None),
        (lambda raw: raw.replace(b"user,time", b"User, Time "), None),
        (lambda raw: raw.replace(b"\n", b"\r\n"), None),
        (lambda raw: b"\n\n" + raw, None),
    ],
    ids=["BOM", "utf-16", "cp1252", "semicolons", "tabs", "other names", "CRLF", "blank lines"],
)
def test_csv_of_other_houses_is_read(tmp_path, change, said):
    folder = put(tmp_path / "mine", good())
    path = folder / "events.csv"
    path.write_bytes(change(path.read_bytes()))
    users = load_users(folder)
    values = [found.value for found in users.report.findings if found.kind == "changed"]
    assert values == ([said] if said else [])
    assert len(users.events) == 6 and users.events["amount"].sum() == 49.5
    assert set(users.events["text"]) & {"noodles", "caf\xe9 cr\xe8me"}


GYM = {  # as a spreadsheet in Germany or France exports it
    "events": "Member ID;Date/Time;Source;Description;Amount (EUR)\n007;31/01/2024 "
    "18:05;shop;caf\xe9;8,06\n;;;;\n"
    "007;05/02/2024 07:00;gate;entry north;\n012;01/02/2024;gate;entry south;\n",
    "users": "Member ID;Plan;Age\n007;annual;31\n012;student;19\n013;annual;\n014;;50\n",
    "labels": "Member ID;Cancelled\n007;yes\n012;no\n",
}


def test_what_a_spreadsheet_exports_is_read_without_a_hand(tmp_path):
    for stem, text in GYM.items():
        (tmp_path / f"{stem}.csv").write_bytes(text.encode("cp1252"))
    users = load_users(tmp_path)
    assert users.events["time"].dt.strftime("%d %b %H:%M").tolist() == [
        "31 Jan 18:05",
        "05 Feb 07:00",
        "01 Feb 00:00",
    ]
    assert users.events["Amount (EUR)"].iloc[0] == 8.06 and "caf\xe9" in set(users.events["text"])
    assert users.ids == ("007", "012", "013", "014")
    assert users.label("Cancelled").tolist()[:2] == [1, 0]
    assert users.tabular["Plan.student"].fillna(-1).tolist() == [0, 1, 0, -1]
    assert "an empty row" in str(users.report)


@pytest.mark.parametrize(
    ("times", "read"),
    [
        (("03/04/2025", "13/04/2025"), "2025-04-03"),
        (("03/04/2025", "04/13/2025"), "2025-03-04"),
        (("03.04.2025 8:30", "2025-01-31"), "2025-04-03 08:30"),
        (("3 April 2025", "Apr 4, 2025"), None),
        (("03/04/2025", "05/06/2024"), None),
        (("03/14/2025", "14/03/2025"), None),
        (("31/04/2025", "30/04/2025"), None),
    ],
)
def test_a_day_is_read_where_the_column_leaves_no_doubt(tmp_path, times, read):
    rows = "".join(f'a,"{time}",bill,tea\n' for time in times)
    (tmp_path / "events.csv").write_text("user,time,modality,text\n" + rows)
    if read:
        assert pd.Timestamp(read) in set(load_users(tmp_path).events["time"])
    else:
        with pytest.raises(DataError, match="column 'time'"):
            load_users(tmp_path)


def test_an_endless_cell_is_read_once():
    """Looked at again from each of its letters, it would take hours."""
    cells = pd.Series(["T" * 10**6, "2025-01-31T18:00:00+02:00", "1" * 10**6, "(" * 10**6])
    assert read_times(cells).time.notna().tolist() == [False, True, False, False]
    assert kind_of(pd.Series(["1" * 10**5, "," * 10**5])) in ("words", "numbers")


def test_a_broken_parquet_is_told(tmp_path):
    folder = put(tmp_path, good(), "parquet")
    whole = (folder / "labels.parquet").read_bytes()
    (folder / "labels.parquet").write_bytes(whole[: len(whole) // 2])
    (problem,) = problems(folder)
    assert (problem["file"], problem["kind"]) == ("labels.parquet", "error")
    with pytest.raises(DataError, match=r"labels\.parquet.*cannot be read"):
        load_users(folder)


def test_parquet_types_that_are_not_what_they_seem(tmp_path):
    frames = good()
    events = frames["events"]
    frames["events"] = events.assign(
        text=events["text"].str.encode("utf-8"),
        time=pd.to_datetime(events["time"]).dt.tz_localize("Asia/Shanghai"),
        user=events["user"].map({"a": 1.0, "b": 2.0, "c": 3.0}),
        seen=pd.Timestamp("2025-01-01"),
    )
    frames["labels"] = frames["labels"].assign(user=[1, 2, 3])
    frames["users"] = frames["users"].assign(user=["1", "2", "3"])
    folder = put(tmp_path / "mine", frames, "parquet")
    frames["labels"].set_index("user").to_parquet(folder / "labels.parquet")
    users = load_users(folder)
    assert users.ids == ("1", "2", "3") and users.label("travels").notna().sum() == 2
    assert users.events["time"].iloc[0] == pd.Timestamp("2025-01-02 02:00")
    assert "noodles" in set(users.events["text"])
    assert users.report.columns["left out"] == ["seen (another time)"]
    said = str(users.report)
    for words in ("read as whole numbers", "Asia/Shanghai", "read as UTF-8", "read as a column"):
        assert words in said


@pytest.mark.parametrize(("column", "said"), [("time", "not a time"), ("amount", "not a number")])
def test_bytes_that_are_no_words_are_told(tmp_path, column, said):
    frames = good()
    cells = frames["events"][column].astype(str).str.encode("utf-8")
    frames["events"][column] = cells.mask(cells.index == 1, b"\xff")
    found = problems(put(tmp_path / "mine", frames, "parquet"))
    errors = [(p["row"], p["column"]) for p in found if p["kind"] == "error"]
    assert (1, column) in errors and any(said in p["message"] for p in found)


def test_ids_that_look_like_numbers_are_kept_apart(tmp_path):
    frames = good()
    frames["events"] = frames["events"].assign(user=["7", "7", "007", "007", "8", "8"])
    folder = put(tmp_path / "mine", {"events": frames["events"]})
    assert load_users(folder).ids == ("007", "7", "8")
    check_folder(folder, tmp_path / "out")
    assert load_users(tmp_path / "out").ids == ("007", "7", "8")


def test_a_label_among_the_inputs_is_refused(tmp_path):
    frames = good()
    frames["users"] = frames["users"].assign(travels=0.0)
    (problem,) = problems(put(tmp_path, frames))
    assert problem["file"] == "users.csv" and "must never be an input" in problem["message"]


def test_a_label_that_is_an_attribute_of_the_events_is_refused(tmp_path):
    frames = good()
    frames["events"]["travels"] = frames["events"]["user"].map({"a": 1.0, "b": 0.0, "c": 1.0})
    with pytest.raises(DataError, match="must never be an input"):
        load_users(put(tmp_path, frames))
    frames["events"]["travels"] = frames["events"]["user"].map({"a": "yes", "b": "no", "c": "yes"})
    with pytest.raises(DataError, match=r"events\.csv.*'travels'.*must never be an input"):
        load_users(put(tmp_path, frames))
    frames = good()
    frames["users"]["travels"] = ["often", "never", "often"]
    with pytest.raises(DataError, match=r"users\.csv.*'travels'.*must never be an input"):
        load_users(put(tmp_path, frames))


def test_an_attribute_that_is_there_twice_is_refused(tmp_path):
    frames = good()
    frames["events"]["plan"] = frames["events"]["user"].map({"a": "x", "b": "y", "c": "x"})
    frames["users"]["plan.x"] = 1.0
    with pytest.raises(DataError, match=r"'plan\.x' exists already"):
        load_users(put(tmp_path, frames, cutoff=None))
    frames["users"]["plan"] = ["x", "y", "x"]
    with pytest.raises(DataError, match="exists already"):
        load_users(put(tmp_path, frames, cutoff=None))


def test_rows_of_one_source_take_the_one_modality_of_about(tmp_path):
    frames = {"events": good()["events"].drop(columns="modality")}
    assert load_users(put(tmp_path, frames, modalities=["visit"])).modalities == ("visit",)


def test_words_say_what_people_call_things(tmp_path):
    words = {
        "amount": "private label brand",
        "a ticket": "train ride",
        "home.rooms": "rooms at home",
    }
    folder = put(tmp_path / "in", good(), words=words | {"nothing": "all"})
    users = load_users(folder)
    labels = {thing.name: thing.label for thing in ThingEvents(users, "2025-04-01").things}
    assert labels["number:amount"] == "private label brand"
    assert labels["text:a ticket"] == "train ride"
    assert labels["attribute:home.rooms"] == "rooms at home"
    assert [(p["kind"], p["value"]) for p in problems(folder) if p["column"] == "words"] == [
        ("note", "nothing")
    ]
    assert load_users(users.save(tmp_path / "out")).words == users.words
    assert read_events(good()["events"], words={"amount": "money"}).words == {"amount": "money"}


def test_a_price_that_never_changes_stays_a_number_of_the_event(tmp_path):
    rows = [
        (f"u{i % 12}", f"2025-01-{i // 12 + 1:02}", "pay", "rent", 9.9 + i % 12, 20 + i % 12)
        for i in range(36)
    ]
    columns = ["user", "time", "modality", "text", "price", "age"]
    users = read_events(pd.DataFrame(rows, columns=columns))
    assert users.numbers == ("price",) and list(users.tabular) == ["age"]
    assert users.report.sums.loc["price", "kept"] == users.events["price"].sum()
    assert read_events(pd.DataFrame(rows, columns=columns), attributes=[]).numbers == (
        "price",
        "age",
    )


def test_out_is_never_the_folder_and_never_half_written(tmp_path, monkeypatch):
    folder = put(tmp_path / "mine", good())
    for out in (folder, folder / "fixed", tmp_path / "x" / ".." / "mine"):
        with pytest.raises(ValueError, match="lies in it"):
            check_folder(folder, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        check_folder(folder, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    real = pd.DataFrame.to_parquet

    def full_disk(self, path, **settings):
        if "labels" in path.name:
            raise OSError("No space left on device")
        return real(self, path, **settings)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(pd.DataFrame, "to_parquet", full_disk)
        check_folder(folder, tmp_path / "empty")
    assert not list(tmp_path.glob("empty/*")) and not list(tmp_path.glob(".*"))
    check_folder(folder, tmp_path / "empty")
    assert len(load_users(tmp_path / "empty").events) == 6


def test_check_says_what_is_there(tmp_path):
    frames = good()
    plans = {"plan.basic": [1.0, None, 0.0], "plan.gold": [0.0, None, 1.0]}
    frames["users"] = pd.DataFrame({"user": ["a", "b", "c"], **plans, "age": [30.0, None, None]})
    data, words = check_folder(put(tmp_path / "mine", frames))
    assert data["in_order"] and data["events"] == 6
    assert "users: 3" in words
    data, words = check_folder(tmp_path / "mine" / "events.csv", tmp_path / "out")
    assert data["fixed"] == str(tmp_path / "out") and "are written to" in words


def test_what_is_shown_is_cut():
    names = shown([f"c{i}" for i in range(10**4)])
    assert len(names) == 101 and json.dumps(shown(np.inf)) and shown(pd.NaT) is None
    assert shown(2**70) == 2**70  # no float can say whether it is finite
    finding = Finding("events.csv", 3, 2, "amount", "x" * 80, "not finite: leave the cell empty")
    assert len(str(finding)) < 200 and str(finding).endswith("(2 rows)")
    assert str(Report("a", {}, 2, 1, pd.DataFrame(), [])) == "a: 1 of 2 rows are events."
    assert plain_name("HTTPStatus Code") == "http_status_code"


def test_joiners_that_a_script_needs_are_kept():
    for text in ("👩‍👩‍👧", "می‌خواهم", "क्‍ष", "line\nbreak", "tab\there"):
        assert tidy(text) == text
    assert tidy("pay\u200dment\ufeff\x07") == "payment" and tidy(" a\u00a0") == " a\u00a0"


@given(
    st.text(
        st.sampled_from("ae\u0301\u200b\u200c\u200dK\u212a é\x00\u202e\u1100\u1161"), max_size=12
    )
)
def test_tidying_twice_is_tidying_once(text):
    once = tidy(text)
    assert tidy(once) == once
    assert tidy(once.strip()) == once.strip()


def check_and_load(folder: Path, out: Path) -> None:
    """Whatever is in a folder: it is read and adds up, or it is refused and nothing is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data, words = check_folder(folder, out)
        assert words and json.dumps(data, allow_nan=False)
        if not data["in_order"]:
            assert not out.exists()
            return
        report = data["report"]
        dropped = [p["rows"] for p in data["problems"] if p["kind"] == "dropped"]
        assert report["rows"] == report["kept"] + report["dropped"]
        assert report["dropped"] <= sum(dropped)
        assert len(load_users(out).events) == report["kept"]
        again = {p["kind"] for p in problems(out)}
        assert not {"error", "dropped", "changed"} & again


HEADS = ["user", "time", "modality", "text", "id", "Who", "When", "Where", "What", "items", "name"]
HEADS += ["Kurs", "n", "User", "date", "price"]
POOLS = [
    ["a", "b"],
    ["2025-01-02", "2025-01-03"],
    ["1", "2"],
    ["yes", "no"],
    ["", ""],
    ["x", "3,5"],
    ["31/01/2025", "soon"],
]
some = st.lists(st.tuples(st.sampled_from(HEADS), st.sampled_from(POOLS)), min_size=1, max_size=7)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(some, st.sampled_from(",;"), st.sets(st.sampled_from(["users", "labels"])))
def test_under_any_header_a_table_is_read_or_refused(columns, mark, also):
    lines = [
        [head for head, _ in columns],
        *([f'"{pool[row]}"' for _, pool in columns] for row in (0, 1)),
    ]
    text = "\n".join(mark.join(line) for line in lines)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "gym"
        folder.mkdir()
        for stem in ("events", *also):
            (folder / f"{stem}.csv").write_text(text)
        check_and_load(folder, Path(home) / "out")


NASTY = ["", " ", "a", " a", "b\u200b", "é", "e\u0301", "\x00", "x" * 2001, "inf", "-3", "1,5"]
NASTY += ["yes", "True", "2", "7", "007", "2025-01-02", "2025-01-02T10:00+08:00", "3025-01-01"]
NASTY += ["soon", "now", "bill", "Bill ", "NA", '"', ";", ",", "\n", None]
cell = st.tuples(
    st.sampled_from(["events", "users", "labels"]), st.integers(0, 5), st.integers(0, 4)
)
edits = st.lists(st.tuples(cell, st.sampled_from(NASTY) | st.text(max_size=8)), max_size=5)
bytes_in = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=2)), max_size=2)


def spoil(folder: Path, changes, raw, kind: str, order: int, about: bool) -> None:
    frames = good()
    for (stem, row, column), value in changes:
        frame = frames[stem]
        name = frame.columns[column % frame.shape[1]]
        frames[stem] = with_cell(frame, row % len(frame), name, value)
    events = frames["events"].sample(6, replace=order > 1, random_state=order)
    frames["events"] = events.iloc[order % 4 :]
    put(folder, frames, kind, **({} if about else {"cutoff": None, "modalities": None}))
    path = folder / f"events.{kind}"
    whole = path.read_bytes()
    for at, new in raw:
        whole = whole[: at % len(whole)] + new + whole[at % len(whole) :]
    path.write_bytes(whole)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    edits, bytes_in, st.sampled_from(["csv", "csv", "parquet"]), st.integers(0, 3), st.booleans()
)
def test_whatever_is_spoilt_is_read_or_refused(changes, raw, kind, order, about):
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "mine"
        try:
            spoil(folder, changes, raw, kind, order, about)
        except UnicodeEncodeError:  # a lone surrogate: no file can hold it
            return
        check_and_load(folder, Path(home) / "out")


def test_an_error_of_ours_names_place_and_cure():
    with pytest.raises(QanchorError, match=r"events, column 'user': .*no column is clearly"):
        read_events(pd.DataFrame({"time": ["2025-01-01"], "text": ["tea"]}))


def test_a_state_of_the_user_is_no_part_of_an_event():
    rows = [
        (f"c{i % 4}", f"2025-01-{i + 1:02}", ("view", "buy")[i % 3 % 2], ("new", "loyal")[i // 12])
        for i in range(24)
    ]
    frame = pd.DataFrame(rows, columns=["customer_id", "time", "event", "customer_stage"])
    users = read_events(frame)
    assert set(users.events["text"]) == {"view", "buy"}
    left = users.report.columns["left out"]
    assert left == [
        "customer_stage (describes the customer, not the event; name it in text= to keep it)"
    ]
    both = read_events(frame, text=["event", "customer_stage"])
    assert "view, new" in set(both.events["text"])
