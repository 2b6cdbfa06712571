"""A group of users is written to a file with its recent texts, whatever they contain."""

import pandas as pd
import pytest

from qanchor.data.export import export_group
from qanchor.data.users import Users


@pytest.fixture
def users() -> Users:
    rows = []
    for number in range(12):
        rows.append((f"u{number:02d}", "2025-01-01", "bill", "tea · cake"))
        rows.append((f"u{number:02d}", "2025-01-02", "bill", "=SUM(A1)"))
    rows.append(("silent", "2025-03-01", "bill", "later"))
    events = pd.DataFrame(rows, columns=["user", "time", "modality", "text"])
    return Users.from_events(events, "2025-02-01")


def test_parquet_holds_recent_texts_as_a_list(users, tmp_path):
    path = export_group(users, users.ids[:11], tmp_path / "group.parquet")
    recent = pd.read_parquet(path)["recent"].map(list)
    assert recent[0] == []
    assert recent[1:].tolist() == [["=SUM(A1)", "tea · cake"]] * 10


def test_csv_joins_recent_texts_and_escapes_the_cell(users, tmp_path):
    frame = pd.read_csv(export_group(users, users.ids[:11], tmp_path / "group.csv"))
    assert pd.isna(frame["recent"][0])
    assert frame["recent"][1] == "'=SUM(A1) · tea · cake"
