"""Partitions by user: every user is in one shard, once, with or without facts."""

import pandas as pd
import pytest

from qanchor.data.partition import load_shard, open_events, open_facts, partition_users
from qanchor.data.sample import make_sample_users
from qanchor.utils.io import read_json


@pytest.mark.parametrize("with_facts", [True, False])
def test_every_user_is_in_one_shard_once(tmp_path, with_facts):
    users = make_sample_users(30)
    folder = users.save(tmp_path / "users")
    if not with_facts:
        (folder / "users.parquet").unlink()
        (folder / "labels.parquet").unlink()
    facts, _ = open_facts(folder)
    work = tmp_path / "work"
    partition_users(open_events(folder), facts, work, 4, users.numbers, 100)
    scan = read_json(work / "scan.json")
    parts = [load_shard(work, number, scan) for number in scan["shards"]]
    assert sorted(user for part in parts for user in part.ids) == list(users.ids)
    assert scan["users"] == len(users)
    events = pd.concat([part.events for part in parts])
    assert len(events) == len(users.history())
