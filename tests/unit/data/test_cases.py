"""Tables as people hand them over: every row and every sum is kept or reported, and what cannot be
read without a guess is refused in one message.
"""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from qanchor.data.labels import read_labels
from qanchor.data.reading import check_folder, load_users, read_events
from qanchor.errors import DataError
from qanchor.training.concept_task import training_cutoffs

HEADER = "user,time,modality,text"


def days(
    n: int, users: int = 6, form: str = "%Y-%m-%d %H:%M:%S"
) -> list[tuple[str, str, str, str]]:
    """Return `n` rows of user, time, modality and text, the times written in one format."""
    times = pd.date_range("2025-01-01 10:00", periods=n, freq="1D")
    return [
        (f"u{i % users}", time.strftime(form), "visit", f"page {i % 5}")
        for i, time in enumerate(times)
    ]


def csv(rows, header: str = HEADER, mark: str = ",", end: str = "\n") -> str:
    return end.join([header, *(mark.join(map(str, row)) for row in rows)]) + end


def put(folder: Path, events: str | bytes, name: str = "events.csv", **others: str) -> Path:
    raw = events.encode() if isinstance(events, str) else events
    (folder / name).write_bytes(raw)
    for stem, text in others.items():
        (folder / f"{stem}.csv").write_text(text)
    return folder


def read(folder: Path):
    """Read a folder and check that rows and sums add up."""
    users = load_users(folder)
    report = users.report
    assert report.kept == len(users.events)
    assert report.rows == report.kept + report.dropped
    assert report.dropped == sum(found.rows for found in report.findings if found.kind == "dropped")
    for name, sums in report.sums.iterrows():
        assert sums["source"] == pytest.approx(sums["kept"] + sums["dropped"])
        assert users.events[name].sum() == pytest.approx(sums["kept"])
    assert json.dumps(report.to_dict(), allow_nan=False)
    data, words = check_folder(folder)
    assert data["in_order"] and data["events"] == report.kept and str(report) in words
    return users


def refused(folder: Path, *words: str) -> str:
    """Return the one message of a folder that is refused."""
    with pytest.raises(DataError) as caught:
        load_users(folder)
    for word in words:
        assert word in str(caught.value)
    data, said = check_folder(folder)
    assert not data["in_order"] and str(caught.value) in said
    assert [found["kind"] for found in data["problems"]].count("error") == 1
    return str(caught.value)


def noted(users) -> str:
    return "\n".join(map(str, users.report.findings))


# Data lost or changed in silence


def test_01_a_stray_quote_swallows_no_rows(tmp_path):
    rows = [(*row, i % 5 + 1) for i, row in enumerate(days(60))]
    lines = csv(rows, f"{HEADER},pages").splitlines()
    lines[11] = lines[11].replace("page 0", '"cheap flights')
    lines[35] = lines[35].replace("page 4", 'lamp 24 inch"')
    users = read(put(tmp_path, "\n".join(lines)))
    assert len(users.events) == 60 and users.events["pages"].sum() == 180
    assert "line 12: a quote opens there" in noted(users)


def test_01_a_stray_quote_among_needed_quotes_is_refused_with_its_line(tmp_path):
    lines = csv(days(60)).splitlines()
    lines[5] = lines[5].replace("page 4", '"lantern, red"')
    lines[11] = lines[11].replace("page 0", '"cheap flights')
    lines[35] = lines[35].replace("page 4", 'lamp 24 inch"')
    refused(put(tmp_path, "\n".join(lines)), "line 12: a quote opens there")


def test_06_dots_for_thousands_where_commas_are_decimal_marks(tmp_path):
    amounts = ["950", "1.250", "12.500", "780"]
    rows = [(*row, amounts[i % 4], "9,90") for i, row in enumerate(days(60))]
    users = read(put(tmp_path, csv(rows, f"{HEADER},punkte,preis".replace(",", ";"), ";")))
    assert users.events["punkte"].sum() == 15 * (950 + 1250 + 12500 + 780)
    assert users.events["preis"].sum() == pytest.approx(60 * 9.9)
    assert "row 1, column 'punkte': '1.250': numbers with decimal commas. 1.250 is" in noted(users)
    assert "1.250 is read as 1250. (30 rows)" in noted(users), "950 and 780 are as they were"


def test_06b_dots_for_thousands_and_a_decimal_comma(tmp_path):
    amounts = ["950,00", "1.250,50", "12.500,00"]
    rows = [(*row, amounts[i % 3]) for i, row in enumerate(days(60))]
    users = read(put(tmp_path, csv(rows, f"{HEADER},betrag".replace(",", ";"), ";")))
    assert users.events["betrag"].sum() == pytest.approx(20 * (950 + 1250.5 + 12500))
    assert "1.250,50 is read as 1250.5. (60 rows)" in noted(users)


def test_dots_stay_decimal_points_elsewhere(tmp_path):
    rows = [(*row, "1.250") for row in days(20)]
    users = read(put(tmp_path, csv(rows, f"{HEADER},weight")))
    assert users.events["weight"].sum() == 25
    rows = [(*row, '"1,250.50"', "$3.00") for row in days(20)]
    users = read(put(tmp_path, csv(rows, f"{HEADER},paid,fee")))
    assert users.events["paid"].sum() == 20 * 1250.5 and users.events["fee"].sum() == 60


def test_02_equal_events_of_a_day_are_kept_unless_asked(tmp_path):
    row = ("c0", "2025-02-01", "till", "flat white", "3.20")
    folder = put(tmp_path, csv([row] * 3 + [("c1", *row[1:])], f"{HEADER},amount"))
    users = read(folder)
    assert len(users.events) == 4 and "2 rows" in noted(users)
    about = re.search(r"{.*}", noted(users))[0]
    with pytest.warns(UserWarning, match="2 rows of 4 were left out"):
        users = read_events(folder, duplicates="drop")
    assert len(users.events) == 2 and users.report.sums.loc["amount"].tolist() == [12.8, 6.4, 6.4]
    assert "sum of amount: 6.40 of 12.80 is kept" in str(users.report)
    with pytest.raises(ValueError, match="neither 'keep' nor 'drop'"):
        read_events(folder, duplicates="some")
    (folder / "about.json").write_text(about)
    with pytest.warns(UserWarning, match="2 rows of 4 were left out"):
        assert len(load_users(folder).events) == 2


def test_17_the_events_of_a_bot_are_kept(tmp_path):
    bots = pd.DataFrame(
        {"user": "bot", "time": pd.Timestamp("2025-01-01"), "modality": "visit"}, range(20_000)
    )
    frame = bots.assign(text=[f"page {i % 7}" for i in range(20_000)], n=1.0)
    frame.to_parquet(tmp_path / "events.parquet")
    assert read(tmp_path).events["n"].sum() == 20_000


def test_03_ids_written_as_decimals_meet_their_labels(tmp_path):
    events = csv([(f"{1000 + i % 12}.0", *row[1:]) for i, row in enumerate(days(48))])
    labels = "user,Churn\n" + "".join(f"{1000 + i},{i % 2}\n" for i in range(12))
    users = read(put(tmp_path, events, labels=labels, users=labels.replace("Churn", "age")))
    assert len(users) == 12 and users.label("Churn").notna().sum() == 12
    assert "decimal part is removed" in noted(users)


def test_03_labels_of_nobody_are_refused(tmp_path):
    refused(put(tmp_path, csv(days(12)), labels="user,Churn\nx,1\ny,0\n"), "none of these users")


def test_04_ids_cut_by_a_spreadsheet_are_refused(tmp_path):
    rows = [("4.91234E+11", *row[1:]) for row in days(12)]
    refused(put(tmp_path, csv(rows)), "row 0, column 'user': '4.91234E+11'", "Export ids as text")


def test_05_and_40_row_numbers_and_empty_columns_are_left_out(tmp_path):
    rows = [(i, *row, i * 1.5, "") for i, row in enumerate(days(24))]
    users = read(put(tmp_path, csv(rows, f",{HEADER},seconds,")))
    assert users.numbers == ("seconds",)
    left = " ".join(users.report.columns["left out"])
    assert "row numbers" in left and "empty" in left
    users = read(put(tmp_path, csv([(*row, "") for row in days(24)])))
    assert len(users.events) == 24 and users.numbers == ()


def test_16_a_saved_folder_is_read_as_it_was(tmp_path):
    rows = [(*row, 7) for row in days(60, users=12)]
    users = read_events(put(tmp_path, csv(rows, f"{HEADER},amount")), numbers=["amount"])
    again = load_users(users.save(tmp_path / "saved"))
    words = dict.fromkeys(("user", "modality", "text"), str)
    pd.testing.assert_frame_equal(again.events.astype(words), users.events.astype(words))
    assert again.numbers == ("amount",)


def test_18_and_29_zeros_before_ids_are_asked_about(tmp_path):
    events = csv([(f"{i % 6:05}", *row[1:]) for i, row in enumerate(days(24))])
    labels = "user,Churn\n" + "".join(f"{i},{i % 2}\n" for i in range(6))
    refused(put(tmp_path, events, labels=labels), "6 of 6 ids have no event (is it '00000'?)")
    (tmp_path / "labels.csv").unlink()
    users = load_users(tmp_path)
    path = tmp_path / "elsewhere.csv"
    path.write_text("user,label\n00001,1\n00002,0\n3,1\n")
    with pytest.raises(DataError, match=r"row 2, column 'user': '3': 1 of 3 .*is it '00003'"):
        read_labels(path, "label", users)
    path.write_text("user,label\n00001,1\n00002,no\nx,1\n")
    assert read_labels(path, None, users).to_dict() == {"00001": 1, "00002": 0}


def test_18_order_ids_are_left_out(tmp_path):
    rows = [(*row, 9007199254740993000 + i, i / 2) for i, row in enumerate(days(24))]
    users = read(put(tmp_path, csv(rows, f"{HEADER},order_id,amount")))
    assert users.numbers == ("amount",) and users.report.columns["left out"] == ["order_id (ids)"]


def test_49_a_dot_in_a_text_is_one_event(tmp_path):
    rows = [(*row[:3], "Coffee \u00b7 large") for row in days(12)]
    assert set(read(put(tmp_path, csv(rows))).events["text"]) == {"Coffee \u00b7 large"}


# Times

TIMES = {
    "07 UTC in words": ("%Y-%m-%d %H:%M:%S UTC", ""),
    "09 AM and PM, month first": ("%m/%d/%Y %I:%M %p", "month comes first"),
    "25 offsets": ("%Y-%m-%dT%H:%M:%S+00:00", ""),
    "38c slashes": ("%Y/%m/%d %H:%M", ""),
    "38d month words": ('"%b %d, %Y %I:%M:%S %p"', ""),
    "38e apache": ("%d/%b/%Y:%H:%M:%S +0000", ""),
    "38g basic": ("%Y%m%dT%H%M%SZ", ""),
    "38k day first": ("%d/%m/%Y %H:%M:%S.000", "day comes first"),
    "19 process log": ("%d-%m-%Y:%H.%M", "day comes first"),
}


@pytest.mark.parametrize("case", TIMES)
def test_times_of_one_format_are_read(tmp_path, case):
    form, said = TIMES[case]
    users = read(put(tmp_path, csv(days(40, form=form))))
    assert sorted(users.events["time"]) == list(pd.date_range("2025-01-01 10:00", periods=40))
    assert said in noted(users)


NUMBERS = {  # what is written for a time; what is said
    "08 milliseconds": (lambda time: time.value // 10**6, "milliseconds since 1970"),
    "08b seconds": (lambda time: time.value // 10**9, "seconds since 1970"),
    "38a spreadsheet": (
        lambda time: (time.value // 10**9) / 86400 + 25569,
        "spreadsheet day numbers",
    ),
    "38j yyyymmdd": (lambda time: f"{time:%Y%m%d}", ""),
    "38h and 38l yymmdd": (lambda time: f"{time:%y%m%d}", "six digits are yymmdd"),
}


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_times_as_numbers_are_read_by_their_range(tmp_path, case, kind):
    write, said = NUMBERS[case]
    times = pd.date_range("2025-01-01", periods=40, freq="1D")
    frame = pd.DataFrame(days(40), columns=HEADER.split(",")).assign(time=times.map(write))
    if kind == "csv":
        frame.to_csv(tmp_path / "events.csv", index=False)
    else:
        frame.assign(time=pd.to_numeric(frame["time"])).to_parquet(tmp_path / "events.parquet")
    users = read(tmp_path)
    assert sorted(users.events["time"]) == list(times) and said in noted(users)


def test_10_day_and_hour_in_two_columns_are_joined(tmp_path):
    rows = [(row[0], *row[1].split(), *row[2:]) for row in days(30)]
    users = read(put(tmp_path, csv(rows, "user,date,time,modality,text")))
    assert users.report.columns["time"] == ["date", "time"]
    assert (users.events["time"].dt.hour == 10).all()


def test_20_days_since_a_start_are_taken_as_such(tmp_path):
    rows = [(33172 + i % 9, 7 * (i // 9), i % 20, i + 0.5) for i in range(180)]
    users = read(put(tmp_path, csv(rows, "client_id,trans_date,small_group,amount_rur")))
    assert users.numbers == ("amount_rur",) and len(users) == 9
    assert (users.events["time"].max() - users.events["time"].min()).days == 133
    assert "day 0 is read as 1970-01-01" in noted(users)
    assert "small_group 4" in set(users.events["text"])


def test_22_times_without_end_are_left_out_and_counted(tmp_path):
    rows = [(*row[:1], "9999-12-31", *row[2:]) if i == 9 else row for i, row in enumerate(days(30))]
    with pytest.warns(UserWarning, match="1 row of 30 were left out"):
        users = read(put(tmp_path, csv(rows)))
    assert "row 9, column 'time': '9999-12-31': beyond today" in noted(users)


UNCLEAR = {
    "27 day and month": (["01/13/2025", "31/01/2025"], "in some rows the day comes first"),
    "day or month": (["03/04/2025", "05/06/2024"], "not clear which number is the day"),
    "six digits": (["010203", "020304"], "six digits could be"),
    "a zone with several meanings": (["2025-01-01 10:00 IST"], "'IST' has several meanings"),
    "kinds mixed": (["20250101", "1735689600"], "not of one kind"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_times_that_are_not_clear_are_refused_once(tmp_path, case):
    times, said = UNCLEAR[case]
    refused(put(tmp_path, csv([("a", time, "visit", "tea") for time in times])), said)


def test_38i_zones_are_converted_to_utc(tmp_path):
    folder = put(tmp_path, csv(days(12, form="%Y-%m-%d %H:%M:%S CET")))
    assert (read(folder).events["time"].dt.hour == 9).all()
    folder = put(tmp_path, csv(days(12)))
    there = read_events(folder, timezone="America/New_York")
    assert (there.events["time"].dt.hour == 15).all()
    put(tmp_path, csv(days(12, form="%Y-%m-%d %H:%M:%S EST")))
    assert (read_events(folder, timezone="America/New_York").events["time"].dt.hour == 15).all()


def test_32_times_with_a_zone_in_parquet(tmp_path):
    frame = pd.DataFrame(days(12), columns=HEADER.split(","))
    times = pd.to_datetime(frame["time"]).dt.tz_localize("America/New_York")
    frame.assign(time=times).to_parquet(tmp_path / "events.parquet")
    assert (read(tmp_path).events["time"].dt.hour == 15).all()


# Files

LANTERN = [(*row[:3], "caf\u00e9 cr\u00e8me") for row in days(12)]


def test_bytes_among_words_are_decoded_and_told():
    texts = [b"caf\xc3\xa9", "bread", None]
    rows = [[f"u{n % 4}", f"2025-01-{n + 1:02}", texts[n % 3]] for n in range(12)]
    users = read_events(pd.DataFrame(rows, columns=["user", "time", "text"]))
    assert set(users.events["text"]) >= {"café", "bread"}
    assert not users.events["text"].str.contains("b'", regex=False).any()
    assert any("bytes" in finding.message for finding in users.report.findings)


FILES = {  # bytes, name, what is said
    "11d tabs": (csv(days(12), HEADER.replace(",", "\t"), "\t"), "events.tsv", ""),
    "12 sep line": (
        "sep=;\r\n" + csv(days(12), HEADER.replace(",", ";"), ";", "\r\n"),
        "events.csv",
        "",
    ),
    "12c mac": (csv(days(12), end="\r"), "events.csv", ""),
    "12 preamble": ("Export of May\nby Bob\n\n" + csv(days(12)), "events.csv", "above the header"),
    "40 trailing commas": (
        csv([(*row, "") for row in days(12)]),
        "events.csv",
        "rows end with a delimiter. The empty column after it is left out.",
    ),
    "13 BOM": (b"\xef\xbb\xbf" + csv(LANTERN).encode(), "events.csv", ""),
    "13 latin": (
        csv(LANTERN).encode("latin-1"),
        "events.csv",
        "'caf\u00e9': not UTF-8. It is read",
    ),
    "13c utf-16": (csv(LANTERN).encode("utf-16"), "events.csv", "'utf-16': read in this encoding"),
    "another name": (csv(days(12)), "export of mine.txt", ""),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_any_dialect_are_read(tmp_path, case):
    raw, name, said = FILES[case]
    users = read(put(tmp_path, raw, name))
    assert len(users.events) == 12 and len(users) == 6 and said in noted(users)
    texts = set(users.events["text"])
    assert texts in ({"caf\u00e9 cr\u00e8me"}, {f"page {i}" for i in range(5)})


REFUSED = {
    "13b cyrillic": (
        csv(
            [(*row[:3], "\u043a\u043e\u0444\u0435 \u0438 \u0447\u0430\u0439") for row in days(12)]
        ).encode("cp1251"),
        "neither UTF-8 nor a Western encoding",
    ),
    "42 one bad byte": (
        csv(LANTERN).encode().replace("\u00e9".encode(), b"\xe9", 1),
        "line 2 holds the byte 0xe9",
    ),
    "39 no header": (csv(days(12)).partition("\n")[2], "the first line looks like an event"),
    "a comma too many": (csv([*days(3), (*days(1)[0], "milk")]), "line 5 has 5 fields under"),
    "a comma too few": (csv([*days(3), days(1)[0][:3]]), "line 5 has 3 fields under a header of 4"),
    "empty": (b"", "No columns to parse"),
    "only a header": (f"{HEADER}\n", "at least one event"),
    "11b a workbook": (b"PK\x03\x04 and so on", "Save the sheet as CSV UTF-8"),
    "an old workbook": (b"\xd0\xcf\x11\xe0 and so on", "Save it as CSV UTF-8"),
    "two names": ("user,time,text,text\na,2025-01-01,tea,milk\n", "two columns of one name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_read_are_refused_in_one_message(tmp_path, case):
    raw, said = REFUSED[case]
    refused(put(tmp_path, raw), said)


def test_12d_a_row_of_totals_is_left_out(tmp_path):
    with pytest.warns(UserWarning, match="1 row of 13 were left out"):
        users = read(put(tmp_path, csv([*days(12), ("Total", "", "", 40)])))
    assert len(users.events) == 12 and "a row of totals" in noted(users)


def test_11_workbooks_are_read(tmp_path):
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame(days(12), columns=HEADER.split(","))
    frame = frame.assign(time=pd.to_datetime(frame["time"]), user=range(12), amount=1.5)
    frame.to_excel(tmp_path / "events.xlsx", index=False)
    users = read(tmp_path)
    assert users.ids[:3] == ("0", "1", "10") and users.events["amount"].sum() == 18
    (tmp_path / "events.xlsx").rename(tmp_path / "events.csv")  # named as what it is not
    assert len(read(tmp_path).events) == 12


def test_11e_and_33_folders_of_parquet_parts_are_read(tmp_path):
    frame = pd.DataFrame(days(24), columns=HEADER.split(","))
    parts = tmp_path / "events.parquet"
    parts.mkdir()
    for number in (0, 1):
        frame[number::2].to_parquet(parts / f"part-0000{number}.snappy.parquet", index=False)
    (parts / "_SUCCESS").write_text("")
    assert len(read(tmp_path).events) == 24 and len(read_events(parts).events) == 24


def test_14_types_of_parquet_and_nested_columns(tmp_path):
    frame = pd.DataFrame(days(12), columns=HEADER.split(","))
    frame = frame.assign(
        user=range(12),
        modality=frame["modality"].astype("category"),
        text=frame["text"].str.encode("utf-8"),
        member=True,
        nothing=None,
        small=frame.index.astype("uint8"),
        tags=[["a", "b"]] * 12,
        params=[{"key": 1}] * 12,
    )
    frame.to_parquet(tmp_path / "events.parquet")
    users = read(tmp_path)
    assert users.numbers == ("member", "small") and "page 1" in set(users.events["text"])
    left = " ".join(users.report.columns["left out"])
    assert "nothing (empty)" in left and "tags (lists" in left and "params (lists" in left


def test_24_texts_of_several_lines_are_one_event(tmp_path):
    rows = [(*row[:3], '"Hello,\nmy app crashed\r\nplease, help"') for row in days(12)]
    users = read(put(tmp_path, csv(rows, end="\r\n")))
    assert len(users.events) == 12 and users.events["text"].nunique() == 1


def test_frames_and_compressed_files_are_read(tmp_path):
    import gzip

    frame = pd.DataFrame(days(12), columns=["customer", "when", "channel", "what"])
    expected = read_events(frame)
    assert len(expected) == 6 and expected.modalities == ("visit",)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    import pyarrow

    sources = [tmp_path / "a.csv.gz", tmp_path / "a.jsonl", pyarrow.Table.from_pandas(frame)]
    try:
        import polars

        sources.append(polars.from_pandas(frame))
    except ImportError:
        pass
    for source in sources:
        pd.testing.assert_frame_equal(read_events(source).events, expected.events)
    with pytest.raises(TypeError, match="dict is not a table"):
        inspect.unwrap(read_events)({"user": ["a"]})  # without the check of types
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_events(tmp_path / "nothing.csv")


# Columns


def test_07_a_shop_export_needs_no_renaming(tmp_path):
    rows = [
        (
            f"2025-10-{i % 28 + 1:02} 00:00:00 UTC",
            ("view", "cart")[i % 2],
            44600000 + i,
            "electronics.phone",
            ("acme", "")[i % 2],
            i + 0.5,
            5412000 + i % 7,
            f"a00{i}-77b1-4c",
        )
        for i in range(140)
    ]
    header = "event_time,event_type,product_id,category_code,brand,price,user_id,user_session"
    users = read(put(tmp_path, csv(rows, header)))
    assert len(users) == 7 and users.modalities == ("event",) and users.numbers == ("price",)
    assert "view, acme" in set(users.events["text"])
    left = users.report.columns["left out"]
    assert "product_id (ids)" in left and "user_session (ids)" in left


def test_08_a_tracking_export_needs_no_renaming(tmp_path):
    rows = [
        (
            1735689600000 + i * 3600000,
            f"d{i % 8}",
            ("Opened App", "Clicked")[i % 2],
            ("DE", "FR", "NA")[i % 3],
            '"{""n"": 0}"',
        )
        for i in range(120)
    ]
    users = read(put(tmp_path, csv(rows, "timestamp,distinct_id,event,country,properties")))
    assert len(users) == 8 and "Clicked, NA" in set(users.events["text"])
    assert "joined with country: 6 kinds instead of 2." in noted(users)
    (tmp_path / "about.json").write_text(re.search(r"{.*}", noted(users))[0])
    alone = load_users(tmp_path)
    assert set(alone.events["text"]) == {"Opened App", "Clicked"} and "joined" not in noted(alone)
    assert "properties (lists or objects" in " ".join(users.report.columns["left out"])


def test_19_a_process_log_needs_no_renaming(tmp_path):
    rows = [
        (i // 5, 35654423 + i, days(60, form="%d-%m-%Y:%H.%M")[i][1], "register", "Pia", 50)
        for i in range(60)
    ]
    header = "Case ID;Event ID;dd-MM-yyyy:HH.mm;Activity;Resource;Costs"
    users = read(put(tmp_path, csv(rows, header, ";")))
    assert len(users) == 12 and users.numbers == ("Costs",)
    assert users.report.columns["user"] == ["Case ID"]
    assert users.report.columns["text"] == ["Activity"]


def test_23_invoices_keep_returns_and_report_rows_without_a_customer(tmp_path):
    rows = [
        (
            536365 + i // 3,
            f"{85123 + i % 9}A",
            ("WHITE MUG", '"LANTERN, RED"', "\u00a32 TOKEN")[i % 3],
            -1 if i == 0 else 2,
            f"{i % 12 + 1}/{i % 28 + 1}/2011 8:00",
            2.55,
            ("", "17850.0", "17851.0")[i % 3],
            "United Kingdom",
        )
        for i in range(120)
    ]
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
    with pytest.warns(UserWarning, match="40 rows of 120 were left out"):
        users = read(put(tmp_path, csv(rows, header).encode("cp1252")))
    assert users.ids == ("17850", "17851") and users.numbers == ("Quantity", "UnitPrice")
    assert users.report.sums.loc["Quantity"].tolist() == [237, 160, 77]
    assert "LANTERN, RED" in set(users.events["text"])


def test_31_many_kinds_are_what_happened(tmp_path):
    rows = [
        (row[0], row[1], f"action_{i % 90}", f"clicked {i % 5}") for i, row in enumerate(days(360))
    ]
    users = read(put(tmp_path, csv(rows, "user,time,event_type,text")))
    assert users.modalities == ("event",) and "action_0, clicked 0" in set(users.events["text"])
    assert "90 kinds" in noted(users)


def test_35_words_of_a_user_become_attributes(tmp_path):
    rows = [
        (*row, ("DE", "FR", "US")[i % 3], ("ios", "web")[i % 2], i)
        for i, row in enumerate(days(90))
    ]
    users = read(put(tmp_path, csv(rows, f"{HEADER},country,device,seconds")))
    assert list(users.tabular) == [
        "country.DE",
        "country.FR",
        "country.US",
        "device.ios",
        "device.web",
    ]
    assert users.tabular.loc["u0"].tolist() == [1, 0, 0, 1, 0] and users.numbers == ("seconds",)


@pytest.mark.filterwarnings("ignore:1 row of 41 were left out")
@pytest.mark.parametrize("country", [[], ["country"]])
def test_a_user_without_a_row_that_is_kept_is_no_user(tmp_path, country):
    rows = [(*row, ("DE", "FR")[i % 2]) for i, row in enumerate(days(40, users=4))]
    frame = pd.DataFrame(rows, columns=[*HEADER.split(","), "country"])
    frame.loc[40] = ("ghost", None, "visit", "page 1", "DE")
    users = read_events(frame[[*HEADER.split(","), *country]])
    assert users.ids == ("u0", "u1", "u2", "u3") and users.report.dropped == 1
    assert list(users.tabular) == [f"{name}.{kind}" for name in country for kind in ("DE", "FR")]


def test_attributes_are_those_of_the_history(tmp_path):
    """What changes only after the cut-off must not show before it."""
    rows = [
        (*row, "gone" if i >= 40 else ("basic", "gold")[i % 2])
        for i, row in enumerate(days(60, users=4))
    ]
    rows.append(("new", rows[-1][1], "visit", "page 1", "gold"))
    folder = put(tmp_path, csv(rows, f"{HEADER},plan"))
    users = read_events(folder, cutoff="2025-02-05")
    assert list(users.tabular) == ["plan.basic", "plan.gold"]
    assert users.tabular.loc["u0"].tolist() == [1, 0] and users.tabular.loc["new"].isna().all()
    assert "another value in this row" in noted(users)
    assert not read_events(folder).tabular.shape[1], "with all of it as history, it is no attribute"


def test_37_a_label_of_two_words_asks_which_is_one(tmp_path):
    words = "user,status\n" + "".join(f"u{i},{('churned', 'active')[i % 2]}\n" for i in range(6))
    folder = put(tmp_path, csv(days(24)), labels=words)
    refused(folder, "whether 'churned' or 'active' means 1", '"positive": "churned"')
    (folder / "about.json").write_text('{"positive": "churned"}')
    users = read(folder)
    assert users.label("status").tolist() == [1, 0] * 3
    other = read_events(folder, positive="active")
    assert other.label("status").tolist() == [0, 1] * 3
    known = read_labels(folder / "labels.csv", "status", users, positive="active")
    assert known.tolist() == [0, 1] * 3


def test_events_without_words_are_called_by_a_default(tmp_path):
    orders = pd.DataFrame(
        {
            "customer_id": ["00001", "00002"],
            "date": ["19970101", "19970102"],
            "cds": [1, 2],
            "dollars": [11.77, 3.5],
        }
    )
    users = read_events(orders)
    assert users.ids == ("00001", "00002") and set(users.events["text"]) == {"purchase"}
    assert set(read_events(orders, text="order").events["text"]) == {"order"}
    assert set(read_events(orders.drop(columns="dollars")).events["text"]) == {"event"}
    with pytest.raises(DataError, match=r"no column of this name \(is it 'dollars'\?\)"):
        read_events(orders, text="dollar")
    with pytest.raises(DataError, match=r"column 'user': 'customer'"):
        read_events(orders, user="customer")


def test_what_is_told_is_taken(tmp_path):
    frame = pd.DataFrame(days(24), columns=["who", "when", "source", "words"]).assign(
        brand="acme", n=1.0, m=2.0
    )
    users = read_events(
        frame,
        user="who",
        time="when",
        text="words",
        modality="brand",
        numbers=["n"],
        cutoff="2025-01-20",
        horizon_days=7,
        unit="guest",
    )
    assert (users.modalities, users.numbers, users.horizon_days, users.unit) == (
        ("acme",),
        ("n",),
        7,
        "guest",
    )
    assert set(users.events["text"]) == {f"page {i}" for i in range(5)}
    assert read_events(frame, text=["words", "brand"]).events["text"].iloc[0] == "page 0, acme"


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("Kunde A,time,text", "column 'user'"),
        ("member,client,time,text", "is it 'member' or 'client'?"),
        ("user,Monday,text", "column 'time'"),
    ],
)
def test_a_column_that_is_not_clear_is_asked_for(tmp_path, header, asked):
    cells = {"time": "2025-01-02", "text": "tea", "Monday": "soon"}
    rows = [[cells.get(name, f"{name} {i}") for name in header.split(",")] for i in range(3)]
    message = refused(put(tmp_path, csv(rows, header)), asked)
    assert '="COLUMN", name it in about.json' in message


def test_about_names_columns_and_one_message_tells_what_is_wrong_with_it(tmp_path):
    rows = [(i % 3, row[1], row[3], "web") for i, row in enumerate(days(24))]
    folder = put(tmp_path, csv(rows, "Kunde A,am,Kurs,Ort"))
    about = {"columns": {"user": "Kunde A", "time": "am", "text": "Kurs", "modality": "Ort"}}
    about |= {"cutoff": "2025-01-20", "horizon_days": 14, "unit": "customer"}
    (folder / "about.json").write_text(json.dumps(about))
    users = read(folder)
    assert (len(users), users.unit, users.horizon_days) == (3, "customer", 14)
    assert users.modalities == ("web",) and users.cutoff == pd.Timestamp("2025-01-20")
    for columns in ({"customer": "Kunde"}, {"user": "Kunde"}, {"user": 3}, ["user"]):
        (folder / "about.json").write_text(json.dumps(about | {"columns": columns}))
        with pytest.raises(DataError):
            load_users(folder)


# Small tables


@pytest.mark.parametrize("n", [1, 2, 24])
def test_15_few_users_alike_users_and_one_event_each(tmp_path, n):
    rows = [(f"u{i:02}", "2025-01-05", "pay", "tea", 1.0) for i in range(n)]
    users = read(put(tmp_path, csv(rows, f"{HEADER},amount"), labels="user,Churn\nu00,0\n"))
    assert len(users) == n and users.numbers == ("amount",) and not users.tabular.shape[1]
    assert users.label("Churn").dropna().tolist() == [0]


def test_15e_the_horizon_that_check_advises_for_a_short_history_works(tmp_path):
    rows = [(f"u{i}", *row[1:]) for row in days(39) for i in range(30)]
    folder = put(tmp_path, csv(rows))
    data, words = check_folder(folder)
    said = "38 days of history before the cut-off; 45 are needed. Write {"
    assert data["days"] == 38 and "days: 38" in words and f"training: {said}" in words
    assert "next: " not in words
    users = load_users(folder)
    with pytest.raises(ValueError, match=re.escape(said)):
        training_cutoffs(users)
    days_advised = int(re.search(r"horizon_days=(\d+) to read_events", words)[1])
    assert training_cutoffs(read_events(folder, horizon_days=days_advised))
    with pytest.raises(ValueError, match="days of history before"):
        training_cutoffs(replace(users, horizon_days=days_advised + 1))
    (folder / "about.json").write_text(re.search(r"{.*}", data["training"])[0])
    assert "training: there are enough" in check_folder(folder)[1]


def test_15_check_counts_the_users_that_training_needs(tmp_path):
    data, words = check_folder(put(tmp_path, csv(days(120, users=24))))
    assert data["training"] == "24 users; 30 are needed. Collect more." and "next: " not in words
    with pytest.raises(ValueError, match=re.escape(data["training"])):
        training_cutoffs(load_users(tmp_path))
    rows = days(90, users=24) + [(f"new {row[0]}", *row[1:]) for row in days(120, users=30)[90:]]
    data, words = check_folder(put(tmp_path, csv(rows)))
    said = "24 users with an event before 2025-03-31; 30 are needed. Pass a later cutoff"
    assert data["users"] > 30 and data["training"].startswith(said)
    put(tmp_path, csv(days(120, users=30)))
    data, words = check_folder(tmp_path)
    assert "next: qanchor fit" in words and training_cutoffs(load_users(tmp_path))
