"""The curves of soft prompts: every way is judged on the same users, and LoRA on the same labels is LoRA alone."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_model

from qanchor import bench
from qanchor.batch import batch_users
from qanchor.bench_curves import fine_tuned
from qanchor.runs import load, save
from qanchor.world import make_world


@pytest.fixture(scope="module")
def users():
    world = make_world(60)
    return replace(world, labels=world.labels[["Active", "Promo", "Takeout"]])


@pytest.fixture(scope="module")
def run(users, tmp_path_factory):
    return save(make_model(users, awake=False), tmp_path_factory.mktemp("curves") / "run")


def test_curves_judge_every_way_on_the_same_users(users, run):
    found = bench.BENCHES["curves"](users=lambda: users, run=run, tasks=2, vectors=(0, 3), each=4, steps=8)
    rows = pd.DataFrame(found["rows"])
    assert len(found["tasks"]) == 2 and json.dumps(found)
    ways = {("vectors", 0), ("vectors", 3), ("steps", 4), ("steps", 8), ("untrained", 4), ("lora", 4)}
    assert set(zip(rows["curve"], rows["x"], strict=True)) == ways and len(rows) == 2 * len(ways)
    mine = rows[rows["curve"] != "untrained"].groupby("task")["before"]
    assert (mine.max() - mine.min() < 1e-9).all()  # one judge, one model, one question: the same before
    for row in found["average"]:
        some = rows[(rows["curve"] == row["curve"]) & (rows["x"] == row["x"])]
        assert row["gain"]["auc"] == pytest.approx((some["after"] - some["before"]).mean())


def test_fine_tuning_moves_lora_alone_and_tells_the_classes_it_was_shown(users, run):
    events = users.history().groupby("user", observed=True).size().reindex(list(users.ids)).fillna(0)
    truth = np.where(np.arange(len(users)) % 4 == 3, -1, (events > events.median()).to_numpy(int))
    model = load(run)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    z = fine_tuned(model, users, "Why?", truth, 40)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved and all("lora" in name for name in moved)
    still = load(run)
    untouched = fine_tuned(still, users, "Why?", truth, 0)
    plain = still.embed(batch_users(still.reader.read(users), range(len(users))), "Why?").detach().numpy()
    assert np.allclose(untouched, plain, atol=1e-4) and np.abs(z - untouched).max() > 1e-3
    shown = truth >= 0
    apart = [np.linalg.norm(e[shown & (truth == 1)].mean(0) - e[shown & (truth == 0)].mean(0)) for e in (untouched, z)]
    assert apart[1] > apart[0]
