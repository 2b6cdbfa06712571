"""A messy folder: every fault is found with its place and cure, what can be mended is, and what is
written loads.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qanchor.data.faults import OFFSET, Problem, decode, shown, tidy
from qanchor.data.folder import PERHAPS

from qanchor.data.reading import check_folder as check
from qanchor.data.reading import clean_table, table, validate_table
from qanchor.data.users import load_users
from qanchor.data.validation import MAX_TEXT
from qanchor.errors import CleaningError

TODAY = pd.Timestamp("2025-06-01")
LINES = [
    ("a", "2025-01-02 10:00", "bill", "noodles", 3.0),
    ("a", "2025-02-01 11:00", "search", "flights", np.nan),
    ("b", "2025-01-05 09:30", "bill", "tea", 2.5),
    ("b", "2025-02-07 20:00", "app", "opened the map", np.nan),
    ("c", "2025-01-09 08:00", "bill", "rice", 4.0),
    ("c", "2025-03-05 08:00", "bill", "a ticket", 40.0),
]


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
    (folder / "about.json").write_text(
        json.dumps({key: value for key, value in told.items() if value is not None})
    )
    return folder


def with_cell(frame: pd.DataFrame, row: int, column: str, value) -> pd.DataFrame:
    values = frame[column].astype(object)
    values[row] = value
    if isinstance(value, str):
        values = values.astype(str).where(values.notna())
    return frame.assign(**{column: values})


CELLS = {  # file, row, column, value; part of the cure, what is done, whether it is blocking
    "no time": ("events", 1, "time", "soon", "not a time", "", True),
    "whose month": ("events", 1, "time", "03/04/2025", "not a time", "", True),
    "this moment": ("events", 1, "time", "now", "not a time", "", True),
    "a number": ("events", 1, "time", "1735689600", "seconds since 1970", "", True),
    "milliseconds": (
        "events",
        1,
        "time",
        "1735689600123",
        "look like milliseconds since 1970",
        "",
        True,
    ),
    "year 1": ("events", 1, "time", "0001-01-01 10:00", "is the year right?", "", True),
    "empty time": ("events", 1, "time", None, "empty", "row dropped", True),
    "beyond today": ("events", 5, "time", "2099-01-01 10:00", "beyond today", "row dropped", True),
    "year 99999": ("events", 5, "time", "99999-01-01 10:00", "not a time", "", True),
    "beyond the horizon": (
        "events",
        5,
        "time",
        "2025-04-01 10:00",
        "beyond the horizon",
        "row dropped",
        False,
    ),
    "time zone": (
        "events",
        0,
        "time",
        "2025-01-02T10:00:00+08:00",
        "time zones +08:00",
        "written in UTC",
        False,
    ),
    "empty user": ("events", 3, "user", None, "empty", "row dropped", True),
    "blank user": ("events", 3, "user", "  ", "empty", "row dropped", True),
    "empty text": ("events", 3, "text", None, "empty", "row dropped", True),
    "unseen text": ("events", 3, "text", "\u200b\u2060", "empty", "row dropped", True),
    "empty modality": ("events", 3, "modality", None, "empty", "row dropped", True),
    "unknown modality": ("events", 3, "modality", "ap", "is it 'app'?", "", True),
    "spaced modality": ("events", 3, "modality", "app ", "spaces around", "trimmed", False),
    "long text": (
        "events",
        2,
        "text",
        "x" * (MAX_TEXT + 1),
        "shorten it",
        "cut to 2,000 characters",
        True,
    ),
    "10 MB text": (
        "events",
        2,
        "text",
        "tea " * 2_500_000,
        "shorten it",
        "cut to 2,000 characters",
        True,
    ),
    "null byte": ("events", 2, "text", "te\x00a", "null byte", "removed", True),
    "zero width": ("events", 2, "text", "te\u200ba", "invisible", "removed", False),
    "turned text": ("events", 2, "text", "\u202etea", "invisible", "removed", False),
    "in pieces": ("events", 2, "text", "cafe\u0301", "NFC", "normalised", False),
    "word for number": ("events", 2, "amount", "lots", "not a number", "", True),
    "amount past all sums": ("events", 2, "amount", 1e308, "beyond 1e+15", "", True),
    "infinite amount": ("events", 2, "amount", np.inf, "not finite", "emptied", True),
    "word for fact": ("users", 1, "home.rooms", "red", "not a number", "", True),
    "infinite fact": ("users", 1, "home.rooms", -np.inf, "not finite", "emptied", True),
    "no user of facts": ("users", 1, "user", None, "empty", "row dropped", True),
    "label of 2": ("labels", 1, "travels", 2.0, "0, 1 or empty", "", True),
    "odd label": ("labels", 1, "travels", "maybe", "not a number", "", True),
    "label in words": (
        "labels",
        1,
        "travels",
        "Yes",
        "write it as a number",
        "read as a number",
        True,
    ),
    "ids that meet": (
        "events",
        1,
        "user",
        "a ",
        "equal but for spaces",
        "taken for one user",
        True,
    ),
    "ids that meet unseen": ("labels", 1, "user", "b\u200d", "become equal", "", True),
    "another alphabet": ("events", 1, "user", "\u0430nna", "two alphabets", "", False),
    "another case": ("events", 1, "user", "A", "like 'a' but for case", "", False),
    "a stranger": ("labels", 1, "user", "zoe", "no event of this user", "", False),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("case", CELLS)
def test_each_fault_of_a_cell_is_found_and_mended(tmp_path, case, kind):
    stem, row, column, value, cure, done, blocking = CELLS[case]
    frames = good()
    frames[stem] = with_cell(frames[stem], row, column, value)
    folder, out = put(tmp_path / "mine", frames, kind), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    problems = validate_table(folder, TODAY)
    found = [p for p in problems if cure in p.hint and p.column == column]
    assert len(found) == 1 and found[0].file == f"{stem}.{kind}", problems
    assert (found[0].row, found[0].action, found[0].blocking) == (
        None if "equal" in cure else row,
        done,
        blocking,
    )
    assert (
        len(str(found[0])) < 400
        and json.dumps(found[0].plain(), allow_nan=False)
        and found[0].hint in table(problems)
    )
    if done or not blocking:
        report = clean_table(folder, out, TODAY)
        assert not done or done in set(report["action"])
        assert load_users(out) and not [
            p for p in validate_table(out, TODAY) if p.fixable or p.blocking
        ]
    else:
        with pytest.raises(CleaningError, match="only you can fix") as caught:
            clean_table(folder, out, TODAY)
        assert found[0] in caught.value.problems and str(found[0]) in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["mine"], "nothing is written"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_good_folder_has_no_problem_and_mending_changes_nothing(tmp_path):
    for kind in ("csv", "parquet"):
        folder = put(tmp_path / kind, good(), kind, name="mine", unit="person")
        assert validate_table(folder, TODAY) == [] and not len(
            clean_table(folder, tmp_path / f"{kind}-out", TODAY)
        )
        first, second = load_users(folder), load_users(tmp_path / f"{kind}-out")
        pd.testing.assert_frame_equal(
            first.events.astype({"text": str}), second.events.astype({"text": str})
        )
        pd.testing.assert_frame_equal(first.tabular, second.tabular)
        pd.testing.assert_frame_equal(first.labels, second.labels)
        assert (first.cutoff, first.unit, first.modalities) == (
            second.cutoff,
            second.unit,
            second.modalities,
        )


def test_all_problems_are_told_at_once_and_each_is_mended(tmp_path):
    frames = good()
    events = with_cell(
        with_cell(frames["events"], 0, "amount", np.inf), 2, "text", "x\u200b" * 1500
    )
    frames["events"] = pd.concat([events.iloc[::-1], events.iloc[:1]]).assign(
        user=lambda f: f["user"] + " "
    )
    frames["users"] = pd.concat([frames["users"]] * 2).assign(user=lambda f: f["user"] + " ")
    frames["labels"] = frames["labels"].assign(user=lambda f: f["user"] + " ")
    report = clean_table(put(tmp_path / "mine", frames), tmp_path / "out", TODAY)
    told = {(r.file, r.column, r.action): (r.row, r.rows) for r in report.itertuples()}
    assert told[("events.csv", "user", "trimmed")] == (0, 7) and told[
        ("events.csv", "amount", "emptied")
    ] == (5, 2)
    assert told[("events.csv", "text", "row dropped")] == (6, 1) and told[
        ("events.csv", "time", "sorted")
    ] == (1, 3)
    assert told[("users.csv", "user", "row dropped")] == (3, 3)
    users = load_users(tmp_path / "out")
    assert (
        users.ids == ("a", "b", "c")
        and len(users.events) == 6
        and users.events["amount"].isna().sum() == 3
    )
    assert "x" * 1500 in set(users.events["text"])


def test_contradicting_rows_of_one_user_are_left_to_you(tmp_path):
    frames = good()
    frames["labels"] = pd.DataFrame({"user": ["a", "a", "b"], "travels": [1, 0, 1]})
    folder = put(tmp_path / "mine", frames)
    assert ["contradict" in p.hint and p.row for p in validate_table(folder, TODAY)] == [1]
    with pytest.raises(CleaningError, match="contradict"):
        clean_table(folder, tmp_path / "out", TODAY)


@pytest.mark.parametrize(
    ("change", "said", "blocking"),
    [
        (lambda raw: b"\xef\xbb\xbf" + raw, "utf-8-sig", False),
        (lambda raw: raw.decode().encode("utf-16"), "utf-16", True),
        (lambda raw: raw.replace(b"noodles", b"caf\xe9 cr\xe8me"), "cp1252", True),
        (lambda raw: raw.replace(b",", b";").replace(b"2.5", b"2,5"), ";", True),
        (lambda raw: raw.replace(b",", b"\t"), "\t", True),
        (lambda raw: raw.replace(b"user,time", b"User, Time "), "User", True),
        (lambda raw: raw.replace(b"\n", b"\r\n"), None, False),
    ],
    ids=["BOM", "utf-16", "cp1252", "semicolons", "tabs", "other names", "CRLF"],
)
def test_csv_of_other_houses_is_read_and_named(tmp_path, change, said, blocking):
    folder = put(tmp_path / "mine", good())
    path = folder / "events.csv"
    path.write_bytes(change(path.read_bytes()))
    problems = validate_table(folder, TODAY)
    assert said in [p.value for p in problems] if said else not problems
    assert any(p.blocking for p in problems) == blocking and all(p.fixable for p in problems)
    clean_table(folder, tmp_path / "out", TODAY)
    events = load_users(tmp_path / "out").events
    assert (
        len(events) == 6
        and events["amount"].sum() == 49.5
        and set(events["text"]) & {"noodles", "café crème"}
    )


GYM = {  # as a spreadsheet in Germany or France exports it
    "events": "Member ID;Date/Time;Source;Description;Amount (EUR)\n007;31/01/2024 "
    "18:05;shop;caf\xe9;8,06\n;;;;\n"
    "007;05/02/2024 07:00;gate;entry north;\n012;01/02/2024;gate;entry south;\n",
    "users": "Member ID;Plan;Age\n007;annual;31\n012;student;19\n013;annual;\n014;;50\n",
    "labels": "Member ID;Cancelled\n007;yes\n012;no\n",
}


def test_what_a_spreadsheet_exports_is_mended_without_a_hand(tmp_path):
    folder, out = tmp_path / "gym", tmp_path / "out"
    folder.mkdir()
    for stem, text in GYM.items():
        (folder / f"{stem}.csv").write_bytes(text.encode("cp1252"))
    done = set(clean_table(folder, out, TODAY)["action"])
    assert {
        "renamed",
        "read as cp1252",
        "read with the day first",
        "written as 2 columns of 0 and 1",
    } <= done
    users = load_users(out)
    assert users.events["time"].dt.strftime("%d %b %H:%M").tolist() == [
        "31 Jan 18:05",
        "05 Feb 07:00",
        "01 Feb 00:00",
    ]
    assert users.events["Amount (EUR)"].iloc[0] == 8.06 and "café" in set(users.events["text"])
    assert users.ids == ("007", "012", "013", "014") and users.label("Cancelled").tolist()[:2] == [
        1,
        0,
    ]
    assert users.tabular["Plan.student"].fillna(-1).tolist() == [0, 1, 0, -1]


def fill(folder: Path, about: dict | None = None, **texts: str) -> Path:
    folder.mkdir()
    for stem, text in texts.items():
        (folder / f"{stem}.csv").write_text(text)
    if about:
        (folder / "about.json").write_text(json.dumps(about))
    return folder


DIARY = (
    "Member ID;When;Where;What;Euro\n007;31/01/2024 18:05;bar;coffee;8,06\n012;05/02/2024 "
    "07:00;pool;swim;\n"
)


def test_dropped_events_are_counted_in_a_sentence(tmp_path):
    late = DIARY + "012;05/06/2024 07:00;pool;swim;\n012;06/06/2024 07:00;pool;swim;\n"
    folder = fill(tmp_path / "gym", events=late, about={"cutoff": "2024-03-01"})
    said = check(folder, tmp_path / "out")[1]
    assert "cutoff: 2024-03-01" in said and "after the last event" not in said
    assert (
        "2 rows of the events were dropped on the way" in said
        and len(load_users(tmp_path / "out").events) == 2
    )
    whole = check(fill(tmp_path / "whole", events=DIARY), tmp_path / "out2")[1]
    assert (
        "dropped on the way" not in whole
        and " (after the last event: about.json names none)" in whole
    )
    # a line of its own below each says what is wrong
    first = [line.split()[0] for line in said.splitlines()[1:10:2]]
    # what --fix mends is no error left
    assert "error" not in first and set(first) <= {"mends", "note"}


def test_columns_of_telling_names_are_taken_and_shown(tmp_path):
    folder, out = fill(tmp_path / "gym", events=DIARY), tmp_path / "out"
    told, said = check(folder, out)
    taken = {
        p["column"]: (p["value"], p["action"], p["blocking"])
        for p in told["problems"]
        if "taken for" in p["hint"]
    }
    assert taken == {
        new: (old, "renamed", True)
        for old, new in (("When", "time"), ("Where", "modality"), ("What", "text"))
    }
    lines = [line.split() for line in said.splitlines()]
    for old, (new, *_) in taken.items():
        assert any(
            line[:5] == ["mends", "events.csv", old, repr(new), "renamed"] for line in lines
        ), said
    users = load_users(out)
    assert (
        users.ids == ("007", "012")
        and users.modalities == ("bar", "pool")
        and users.numbers == ("Euro",)
    )
    assert users.events["text"].tolist() == ["coffee", "swim"]
    fill(tmp_path / "other", events=DIARY.replace("Member ID", "Who"))
    clean_table(tmp_path / "other", tmp_path / "out2", TODAY)
    assert load_users(tmp_path / "out2").ids == ("007", "012"), (
        "ids are kept as words, whatever their column is called"
    )


MEANT = {
    "user": "the id of who did it",
    "time": "when it happened",
    "modality": "the kind of source",
    "text": "what happened",
}
LEFT = {  # header, two rows; the column that is missing, the hint
    "nobody knows whose id": (
        "id,time,modality,text,n\n1,2025-01-02,bill,tea,1\n2,2025-01-03,bill,tea,1",
        "user",
        "'id'",
    ),
    "product or person": (
        "user,time,modality,Name\na,2025-01-02,bill,tea\nb,2025-01-03,bill,rice",
        "text",
        "'Name'",
    ),
    "two of one meaning": (
        "user,time,Area,Kind,text\na,2025-01-02,hall,bar,tea",
        "modality",
        "'Area' or 'Kind'",
    ),
    "a count": (
        "user,time,modality,items\na,2025-01-02,bill,3\nb,2025-01-03,bill,4",
        "text",
        "'items'",
    ),
    "mostly empty": (
        "user,time,modality,Note\na,2025-01-02,bill,\nb,2025-01-03,bill,tea",
        "text",
        "'Note'",
    ),
    "no time in it": (
        "user,When,modality,text\na,Monday,bill,tea\nb,Monday,bill,tea",
        "time",
        "'When'",
    ),
    "the last of words": (
        "user,time,modality,Kurs,n\na,2025-01-02,bill,tea,1\nb,2025-01-03,bill,rice,2",
        "text",
        "'Kurs'",
    ),
    "the last of times": (
        "user,Datum,modality,text,n\na,31.01.2025,bill,tea,1\nb,30.01.2025,bill,tea,2",
        "time",
        "'Datum'",
    ),
    "one kind or its name": (
        "user,time,Ort,text\na,2025-01-02,x,tea\nb,2025-01-03,y,tea",
        "modality",
        "'Ort'",
    ),
    "too many kinds": (
        "user,time,Where,text" + "".join(f"\na,2025-01-02,street {i},tea" for i in range(21)),
        "modality",
        "'Where'",
    ),
    "nothing to go by": (
        "user,time,modality,n\na,2025-01-02,bill,1\nb,2025-01-03,bill,2",
        "text",
        "",
    ),
    "small": ("user,modality,wann\na,bill,then\nb,bill,soon", "text", ""),
}


@pytest.mark.parametrize("case", LEFT)
def test_where_a_name_or_a_cell_leaves_doubt_you_are_asked(tmp_path, case):
    text, column, hint = LEFT[case]
    folder = fill(tmp_path / "gym", events=text)
    problems = [
        p for p in validate_table(folder, TODAY) if p.column == column and "missing" in p.hint
    ]
    assert [(p.blocking, p.fixable) for p in problems] == [(True, False)]
    cure = problems[0].hint
    assert (f"(is it {hint}?)" in cure) if hint else "is it" not in cure
    assert (
        MEANT[column] in cure
        and f"rename the column that holds it to {column!r}; more may show" in cure
    )
    with pytest.raises(CleaningError, match="missing"):
        clean_table(folder, tmp_path / "out", TODAY)


def test_a_column_that_could_be_two_is_taken_for_neither(tmp_path, monkeypatch):
    monkeypatch.setitem(PERHAPS, "modality", "what")
    folder = fill(tmp_path / "gym", events="user,time,What\na,2025-01-02,tea\nb,2025-01-03,tea\n")
    told = {p.column: (p.action, "is it 'What'?" in p.hint) for p in validate_table(folder, TODAY)}
    assert told == {"modality": ("", True), "text": ("", True)}


def test_rows_of_one_source_need_no_column_of_it(tmp_path):
    visits = "user,time,What,n\na,2025-01-02,swim,1\nb,2025-01-03,sauna,2\n"
    folder = fill(tmp_path / "gym", events=visits)
    assert "'event' in all rows" in set(clean_table(folder, tmp_path / "out", TODAY)["action"])
    assert load_users(tmp_path / "out").modalities == ("event",)
    (problem,) = [p for p in validate_table(folder, TODAY) if p.column == "modality"]
    assert (
        problem.blocking
        and "such as payment, search or visit" in problem.hint
        and ("more may show") not in problem.hint
    )
    folder = fill(tmp_path / "named", {"modalities": ["visit"]}, events=visits)
    clean_table(folder, tmp_path / "out2", TODAY)
    assert load_users(tmp_path / "out2").modalities == ("visit",)
    folder = fill(tmp_path / "two", {"modalities": ["visit", "bill"]}, events=visits)
    assert [p.action for p in validate_table(folder, TODAY) if p.column == "modality"] == [""], (
        "which of the two, only you know"
    )
    folder = fill(
        tmp_path / "words",
        events=visits.replace(",n", ",Kurs,Halle,n").replace(",swim", ",a,b,swim"),
    )
    assert [p.action for p in validate_table(folder, TODAY) if p.column == "modality"] == [""], (
        "one of the words could be it"
    )


def test_columns_are_listed_whole_those_unknown_first(tmp_path):
    names = ["user", "time", *(f"Spalte Nummer {i}" for i in range(20)), "Kurs"]
    row = ["a", "2025-01-02", *"12345678901234567890", "yoga"]
    told, said = check(fill(tmp_path / "gym", events=f"{','.join(names)}\n{','.join(row)}\n"))
    (problem,) = [p for p in told["problems"] if p["column"] == "text"]
    assert problem["value"] == [*names[2:], "user", "time"] and "23 names: see below" in said
    below = said[said.index("events.csv has") :].partition("Rows are counted")[0]
    assert " ".join(below.split()) == f"events.csv has {', '.join(map(repr, problem['value']))}"
    assert said.count("events.csv has") == 1 and max(map(len, below.splitlines())) <= 120
    told, said = check(fill(tmp_path / "taken", events=DIARY.replace("What", "Kurs")))
    assert "events.csv has 'Kurs', 'Euro', 'user', 'time', 'modality'\n" in said
    many = [
        Problem("events.csv", None, 0, "text", shown([f"c{i}" for i in range(10**4)]), "missing")
    ]
    assert len(many[0].value) == 101 and len(table(many)) < 1_000


def test_a_missing_column_hides_no_other_fault(tmp_path):
    events = (
        "user;when;Kurs;Raum;Euro\na "
        ";2025-01-02;yoga;2;3,5\na;soon;swim;3;inf\nb;2025-03-09;swim;;2\nb;2025-03-08;swim;;2\n"
    )
    users, labels = "user;Age\na;31\nb;old\nzoe;3\n", "user;left\na;perhaps\nb;1\n"
    folder = fill(
        tmp_path / "gym", {"cutoff": "2025-02-01"}, events=events, users=users, labels=labels
    )
    told = {
        (p.file, p.column, p.hint.partition(":")[0].partition(" (")[0])
        for p in validate_table(folder, TODAY)
    }
    assert told >= {
        ("events.csv", "modality", "missing"),
        ("events.csv", "text", "missing"),
        ("events.csv", "time", "not a time"),
        ("events.csv", "time", "beyond the horizon"),
        ("events.csv", "user", "ids that are equal but for spaces around them, 1 such"),
        ("events.csv", "Euro", "a decimal comma"),
        ("events.csv", "Euro", "not finite"),
        ("users.csv", "Age", "not a number"),
        ("users.csv", "user", "no event of this user"),
        ("labels.csv", "left", "not a number"),
    }
    assert not {column for _, column, _ in told} & {"Kurs", "Raum"}, (
        "a column that may be the missing one is not blamed"
    )


def test_a_table_without_users_is_read_as_far_as_it_goes(tmp_path):
    folder = fill(
        tmp_path / "gym",
        events="Kunde,time,modality,text,amount\n7,soon,bill,tea,inf\n8,2025-01-02,bill,tea,1\n",
        users="Kunde,Age\n7,inf\n8,3\n",
        labels="Kunde,left\n7,1\n8,perhaps\n",
    )
    told = [(p.file, p.column, p.hint.partition(":")[0]) for p in validate_table(folder, TODAY)]
    assert sorted(told) == [
        ("events.csv", "amount", "not finite"),
        ("events.csv", "time", "not a time"),
        ("events.csv", "user", "missing"),
        ("labels.csv", "user", "missing"),
        ("users.csv", "Age", "not finite"),
        ("users.csv", "user", "missing"),
    ]


def test_what_cannot_be_told_yet_is_said_to_come(tmp_path):
    good_rows = "user,time,modality,text\na,2025-01-02,bill,tea\n"
    folder = fill(
        tmp_path / "torn", events=good_rows + 'a,2025-01-02,bill,"tea\n', labels="user,left\na,2\n"
    )
    told = {
        p.file: "more may show once this is mended" in p.hint for p in validate_table(folder, TODAY)
    }
    assert told == {"events.csv": True, "labels.csv": False}
    for about in ({"cutoff": 20250301}, {"cutoff": "2205-03-01"}, {"cutoff": "soon"}):
        folder = fill(tmp_path / str(about["cutoff"]), about, events=good_rows)
        assert [
            "more may show once this is mended" in p.hint for p in validate_table(folder, TODAY)
        ] == [True]


def test_the_horizon_is_explained(tmp_path):
    folder = put(tmp_path / "mine", good(), cutoff="2025-02-20", horizon_days=7)
    (problem,) = [p for p in validate_table(folder, TODAY) if "horizon" in p.hint]
    assert (
        "(2025-02-27 00:00:00)" in problem.hint
        and ("the 7 days after the cut-off in which answers lie") in problem.hint
    )


HEADS = [
    "user",
    "time",
    "modality",
    "text",
    "id",
    "Who",
    "When",
    "Where",
    "What",
    "items",
    "name",
    "Kurs",
    "n",
    "User",
]
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
def test_under_any_header_a_table_is_told_or_mended(columns, mark, also):
    lines = [
        [head for head, _ in columns],
        *([f'"{pool[row]}"' for _, pool in columns] for row in (0, 1)),
    ]
    text = "\n".join(mark.join(line) for line in lines)
    with tempfile.TemporaryDirectory() as home:
        folder = fill(Path(home) / "gym", events=text, **dict.fromkeys(also, text))
        stuck = [p for p in validate_table(folder, TODAY) if p.blocking and not p.fixable]
        try:
            clean_table(folder, Path(home) / "out", TODAY)
            assert not stuck and loads(Path(home) / "out")
        except CleaningError as error:
            assert error.problems == stuck != []


@pytest.mark.parametrize(
    ("columns", "becomes"),
    [
        ({"plan": ["a", "b", "a", None]}, ["plan.a", "plan.b"]),
        ({"plan": pd.Categorical(["a", "b", "a", "b"])}, ["plan.a", "plan.b"]),
        ({"plan": ["a", "b", "a", "b"], "plan.a": [1.0, 2, 3, 4]}, None),
        ({"plan": ["b.c", "d", "d", "d"], "plan.b": ["c", "e", "e", "e"]}, None),
        ({"plan": [["a"], ["b"], ["a"], ["b"]]}, None),
        ({"plan": ["a", "b", "c", "d"]}, None),
        ({"plan": ["a", "7", "a", "7"]}, None),
    ],
    ids=[
        "words",
        "categories",
        "a name taken",
        "names that meet",
        "lists",
        "as many as rows",
        "numbers among them",
    ],
)
def test_words_of_a_few_kinds_become_columns(tmp_path, columns, becomes):
    events = pd.DataFrame(
        [(user, "2025-01-02", "bill", "tea") for user in "abcd"],
        columns=["user", "time", "modality", "text"],
    )
    frames = {"events": events, "users": pd.DataFrame({"user": list("abcd"), **columns})}
    folder = put(tmp_path / "mine", frames, "parquet", modalities=["bill"])
    problems = [problem for problem in validate_table(folder, TODAY) if problem.blocking]
    assert problems and all(problem.fixable for problem in problems) == bool(becomes)
    if becomes:
        clean_table(folder, tmp_path / "out", TODAY)
        assert list(load_users(tmp_path / "out").tabular) == becomes


@pytest.mark.parametrize(
    ("times", "read"),
    [
        (("03/04/2025", "13/04/2025"), "2025-04-03"),
        (("03/04/2025", "04/13/2025"), "2025-03-04"),
        (("03.04.2025 8:30", "2025-01-31"), "2025-04-03 08:30"),
        (("03/04/2025", "05/06/2024"), None),
        (("03/14/2025", "14/03/2025"), None),
        (("31/04/2025", "30/04/2025"), None),
    ],
)
def test_a_day_is_read_where_the_column_leaves_no_doubt(tmp_path, times, read):
    rows, folder = "".join(f"a,{time},bill,tea\n" for time in times), tmp_path / "mine"
    folder.mkdir()
    (folder / "events.csv").write_text("user,time,modality,text\n" + rows)
    if read:
        clean_table(folder, tmp_path / "out", TODAY)
        assert pd.Timestamp(read) in set(load_users(tmp_path / "out").events["time"])
    else:
        assert any(
            "no such day, or not clear" in problem.hint for problem in validate_table(folder, TODAY)
        )


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"user,time,modality,text\na,2025-01-01,bill,tea,milk\n", "more fields than the header"),
        (
            b"user,time,modality,text\na,2025-01-01,bill,tea\na,2025-01-01,bill,tea,milk\n",
            "line 3 5 fields under a header of 4",
        ),
        ("user,time,modality,text\na,2025-01-01,bill,茶和米饭\n".encode("gbk"), "save it as UTF-8"),
        ("user,time,modality,text\na,2025-01-01,bill,é".encode() + b"\xe9\n", "save it as UTF-8"),
        (
            b'user,time,modality,text\na,2025-01-01,bill,"tea\n',
            "row 1 a quote opens there and never closes",
        ),
        (b"", "No columns to parse"),
        (b"user,time,modality\na,2025-01-01,bill\n", "missing: what happened, in words"),
        (b"id,time,modality,text\na,2025-01-01,bill,tea\n", "missing (is it 'id'?)"),
        (
            b"member,uid,time,modality,text\na,b,2025-01-01,bill,tea\n",
            "missing (is it 'member' or 'uid'?)",
        ),
        (b"user,time,modality,text,text\na,2025-01-01,bill,tea,milk\n", "two columns of one name"),
        (b"user,time,modality,text\n", "at least one event"),
        (b"user,time,modality,text\n,2025-01-01,bill,tea\n", "no event is left"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, raw, said):
    (tmp_path / "events.csv").write_bytes(raw)
    problems = validate_table(tmp_path, TODAY)
    assert any(said in f"{p.value} {p.hint}" and p.blocking and not p.fixable for p in problems), (
        problems
    )
    with pytest.raises(CleaningError):
        clean_table(tmp_path, tmp_path.with_name("out"), TODAY)


def test_an_endless_cell_is_read_once():
    """Looked at anew from each of its letters, it would take hours."""
    cells = pd.Series(
        ["T" * 10**6, "2025-01-31T18:00:00+02:00", "2025-01-31 18:00:00Z", "2025-01-31"]
    )
    assert cells.str.extract(OFFSET, expand=False).fillna("").tolist() == ["", "+02:00", "Z", ""]


def test_a_broken_parquet_is_told(tmp_path):
    folder = put(tmp_path, good(), "parquet")
    whole = (folder / "labels.parquet").read_bytes()
    (folder / "labels.parquet").write_bytes(whole[: len(whole) // 2])
    (problem,) = validate_table(folder, TODAY)
    assert (problem.file, problem.blocking, problem.fixable) == ("labels.parquet", True, False)


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
    problems = validate_table(put(tmp_path / "mine", frames, "parquet"), TODAY)
    assert [(p.column, p.action) for p in problems] == [
        ("user", "written as whole numbers"),
        ("time", "written in UTC"),
        ("text", "read as UTF-8"),
        ("seen", ""),
    ]
    frames["events"] = frames["events"].drop(columns="seen")
    frames["labels"].set_index("user").to_parquet(
        put(tmp_path / "mine", frames, "parquet") / "labels.parquet"
    )
    assert ("index", "made a column") in {
        (p.value, p.action) for p in validate_table(tmp_path / "mine", TODAY)
    }
    clean_table(tmp_path / "mine", tmp_path / "out", TODAY)
    users = load_users(tmp_path / "out")
    assert users.ids == ("1", "2", "3") and users.label("travels").notna().sum() == 2
    assert users.events["time"].iloc[0] == pd.Timestamp("2025-01-02 02:00") and "noodles" in set(
        users.events["text"]
    )


@pytest.mark.parametrize(("column", "said"), [("time", "not a time"), ("amount", "not a number")])
def test_bytes_that_are_no_words_are_told(tmp_path, column, said):
    frames = good()
    frames["events"][column] = (
        frames["events"][column]
        .astype(str)
        .str.encode("utf-8")
        .mask(lambda cells: cells.index == 1, b"\xff")
    )
    problems = validate_table(put(tmp_path / "mine", frames, "parquet"), TODAY)
    assert (1, column) in {(p.row, p.column) for p in problems if said in p.hint}


def test_ids_that_look_like_numbers_are_kept_apart(tmp_path):
    frames = good()
    frames["events"] = frames["events"].assign(user=["7", "7", "007", "007", "8", "8"])
    folder = put(tmp_path / "mine", {"events": frames["events"]})
    assert load_users(folder).ids == ("007", "7", "8")
    assert validate_table(folder, TODAY) == []
    clean_table(folder, tmp_path / "out", TODAY)
    assert load_users(tmp_path / "out").ids == ("007", "7", "8")


@pytest.mark.parametrize(
    ("about", "said", "action", "blocking"),
    [
        ({"cutoff": "2025-03-01T00:00:00+08:00"}, "has a time zone", "written in UTC", True),
        ({"cutoff": 20250301}, "in quotes", "", True),
        ({"cutoff": "today"}, "in quotes", "", True),
        ({"cutoff": "2205-03-01"}, "is the year right", "", True),
        ({"cutoff": "soon"}, "not a time", "", True),
        (
            {"modalities": ["bill", "bill ", "search", "app"]},
            "a name twice",
            "each written once, plainly",
            True,
        ),
        ({"horizon_days": 10**9}, "is that meant", "", True),
        ({"cut_off": "2025-03-01"}, "not read: only", "", False),
        ({"cutoff": "2025-01-08"}, "no event before the cut-off", "", False),
    ],
)
def test_about_is_checked_too(tmp_path, about, said, action, blocking):
    folder = put(tmp_path / "mine", good(), **about)
    problems = [p for p in validate_table(folder, TODAY) if said in p.hint]
    assert [(p.action, p.blocking) for p in problems] == [(action, blocking)]
    if action:
        clean_table(folder, tmp_path / "out", TODAY)
        assert len(load_users(tmp_path / "out").history()) > 2 and not validate_table(
            tmp_path / "out", TODAY
        )


def test_a_label_among_the_inputs_and_two_files_of_one_kind_are_mentioned(tmp_path):
    frames = good()
    frames["users"] = frames["users"].assign(travels=0.0)
    folder = put(tmp_path, frames)
    frames["labels"].to_parquet(folder / "labels.parquet")
    told = {(p.file, p.blocking): p.hint for p in validate_table(folder, TODAY)}
    assert (
        "a label must never be an input" in told["users.csv", True]
        and "not read" in told["labels.csv", False]
    )


def test_out_is_never_the_folder_and_never_half_written(tmp_path, monkeypatch):
    folder = put(tmp_path / "mine", good())
    for out in (folder, folder / "mended", tmp_path / "x" / ".." / "mine"):
        with pytest.raises(ValueError, match="never mended in place"):
            clean_table(folder, out, TODAY)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something already"):
        clean_table(folder, tmp_path / "full", TODAY)
    (tmp_path / "empty").mkdir()
    real = pd.DataFrame.to_parquet

    def full_disk(self, path, **settings):
        if path.name == "labels.parquet":
            raise OSError("No space left on device")
        return real(self, path, **settings)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(pd.DataFrame, "to_parquet", full_disk)
        clean_table(folder, tmp_path / "empty", TODAY)
    assert not list((tmp_path / "empty").iterdir()) and not list(tmp_path.glob(".*"))
    clean_table(folder, tmp_path / "empty", TODAY)
    assert len(load_users(tmp_path / "empty").events) == 6


def test_check_says_what_is_there_and_what_is_wrong(tmp_path):
    frames = good()
    told, said = check(put(tmp_path / "mine", frames))
    assert (
        told["in_order"]
        and told["events"] == 6
        and said.startswith(f"{tmp_path / 'mine'} is in order.\nusers: 3")
    )
    assert "unknown" in told and all(name in said for name in told["unknown"])
    frames["events"] = with_cell(
        frames["events"].iloc[::-1].reset_index(drop=True), 0, "text", None
    )
    told, said = check(put(tmp_path / "mine", frames))
    assert (
        not told["in_order"]
        and "events" not in told
        and ("2 problem(s), 2 of them can be mended with --fix OUT") in said
    )
    told, said = check(tmp_path / "mine", tmp_path / "out")
    assert (
        told["in_order"]
        and told["events"] == 5
        and [row["action"] for row in told["action"]] == ["row dropped", "sorted"]
    )
    assert (
        json.dumps(told, allow_nan=False)
        and (f"{tmp_path / 'mine'} is mended in {tmp_path / 'out'}") in said
    )


def test_check_counts_whose_facts_are_unknown(tmp_path):
    frames = good()
    plans = {"plan.basic": [1.0, None, 0.0], "plan.gold": [0.0, None, 1.0]}
    frames["users"] = pd.DataFrame({"user": ["a", "b", "c"], **plans, "age": [30.0, None, None]})
    told, said = check(put(tmp_path / "mine", frames))
    assert told["unknown"] == {"plan": 1, "age": 2} and "unknown: plan 1, age 2" in said
    assert check(put(tmp_path / "whole", {"events": good()["events"]}))[0]["unknown"] == {}


def test_joiners_that_a_script_needs_are_kept():
    for text in ("👩‍👩‍👧", "می‌خواهم", "क्‍ष", "line\nbreak", "tab\there"):
        assert tidy(text) == text
    assert tidy("pay\u200dment\ufeff\x07") == "payment" and tidy(" a\u00a0", trim=True) == "a"
    assert decode("naïve café".encode("cp1252")) == ("naïve café", "cp1252")


@given(
    st.text(
        st.sampled_from("ae\u0301\u200b\u200c\u200dK\u212a é\x00\u202e\u1100\u1161"), max_size=12
    ),
    st.booleans(),
)
def test_tidying_twice_is_tidying_once(text, trim):
    once = tidy(text, trim)
    assert tidy(once, trim) == once


NASTY = [
    "",
    " ",
    "a",
    " a",
    "b\u200b",
    "é",
    "e\u0301",
    "\x00",
    "x" * 2001,
    "inf",
    "-3",
    "1,5",
    "yes",
    "True",
    "2",
    "7",
    "007",
]
NASTY += [
    "2025-01-02",
    "2025-01-02T10:00+08:00",
    "3025-01-01",
    "soon",
    "now",
    "bill",
    "Bill ",
    "NA",
    '"',
    ";",
    ",",
    "\n",
    None,
]
cell = st.tuples(
    st.sampled_from(["events", "users", "labels"]), st.integers(0, 5), st.integers(0, 4)
)
edits = st.lists(st.tuples(cell, st.sampled_from(NASTY) | st.text(max_size=8)), max_size=5)
bytes_in = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=2)), max_size=2)


def spoil(folder: Path, changes, raw, kind: str, order: int, about: bool) -> None:
    frames = good()
    for (stem, row, column), value in changes:
        frame = frames[stem]
        frames[stem] = with_cell(
            frame, row % len(frame), frame.columns[column % frame.shape[1]], value
        )
    frames["events"] = (
        frames["events"].sample(6, replace=order > 1, random_state=order).iloc[order % 4 :]
    )
    put(folder, frames, kind, **({} if about else {"cutoff": None, "modalities": None}))
    path = folder / f"events.{kind}"
    whole = path.read_bytes()
    for at, new in raw:
        whole = whole[: at % len(whole)] + new + whole[at % len(whole) :]
    path.write_bytes(whole)


def loads(folder: Path) -> bool:
    try:
        users = load_users(folder)
        return len(users.history()) + len(users.future()) >= 0
    except Exception:  # whatever it is: it did not load
        return False


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    edits, bytes_in, st.sampled_from(["csv", "csv", "parquet"]), st.integers(0, 3), st.booleans()
)
def test_whatever_is_spoilt_is_named_and_whatever_is_mended_loads(changes, raw, kind, order, about):
    with tempfile.TemporaryDirectory() as home:
        folder, out = Path(home) / "mine", Path(home) / "out"
        try:
            spoil(folder, changes, raw, kind, order, about)
        except UnicodeEncodeError:  # a lone surrogate: no file can hold it
            return
        problems = validate_table(folder, TODAY)
        assert table(problems) and json.dumps([p.plain() for p in problems], allow_nan=False)
        assert loads(folder) or any(p.blocking for p in problems), (
            "load_users refuses it, validate_table saw nothing blocking"
        )
        if any(p.blocking and not p.fixable for p in problems):
            with pytest.raises(CleaningError):
                clean_table(folder, out, TODAY)
            assert not out.exists()
        else:
            clean_table(folder, out, TODAY)
            assert loads(out) and not [
                p for p in validate_table(out, TODAY) if p.fixable or p.blocking
            ]
