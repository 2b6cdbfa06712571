"""Pairs: true by plain loops, blind to what lies after the cut-off, balanced, and written whole."""

import json
import os
import signal
import sys

import numpy as np
import pandas as pd
import pytest

from qanchor import cli
from qanchor.data.users import Users
from qanchor.training.concept_task import is_held_out, make_concept_task
from qanchor.training.pairs import iter_pairs, make_pairs, write_pairs
from qanchor.useru.concepts import FAMILIES, MEASURES
from tests.oracles.pairs import PairOracle
from tests.tiny import CUTOFF, habits


def shop(n_users: int = 60) -> pd.DataFrame:
    """Return habits with two modalities and a number."""
    rng = np.random.default_rng(1)
    events = habits(n_users)
    price = rng.choice([np.nan, 5.0, 8.0, 20.0], len(events))
    return events.assign(amount=price, modality=rng.choice(["web", "till"], len(events)))


@pytest.fixture(scope="module")
def users() -> Users:
    return Users.from_events(shop(), CUTOFF)


@pytest.fixture(scope="module")
def task(users):
    return make_concept_task(users, "hash")


@pytest.fixture
def made(task, monkeypatch):
    """Let concepts be induced once for all tests."""
    monkeypatch.setattr("qanchor.training.pairs.make_concept_task", lambda *words: task)


@pytest.fixture(scope="module")
def pairs(users) -> pd.DataFrame:
    return make_pairs(users, per_user=6, text_encoder="hash")


def test_every_grade_and_answer_is_what_loops_find(users, pairs, task):
    oracle = PairOracle(users, task.concepts)
    # a share of an amount has a base of its own
    told = pairs[~((pairs["family"] == "number") & (pairs["measure"] == "share"))]
    some = told.groupby(["family", "measure"]).head(40)
    assert set(some["measure"]) == set(MEASURES) and len(some) > 300
    wrong = [pair for pair in some.itertuples() if oracle.grades(pair) != {pair.grade}]
    assert not wrong, wrong[:3]
    assert all(pair.answer.startswith(oracle.answer(pair)) for pair in some.itertuples())


def test_a_false_grade_is_found_by_the_loops(users, pairs, task):
    oracle = PairOracle(users, task.concepts)
    false = (
        pairs[pairs["measure"] == "occurs"].head(20).assign(grade=lambda p: (p["grade"] + 1) % 4)
    )
    assert all(oracle.grades(pair) != {pair.grade} for pair in false.itertuples())


def test_each_pair_has_its_horizon_before_the_users_cutoff(users, pairs):
    ends = pairs["cutoff"] + pd.to_timedelta(pairs["horizon_days"], unit="D")
    assert (ends <= users.cutoff).all() and set(pairs["horizon_days"]) == {7, 30}
    assert (pairs.loc[pairs["query"].str.contains("within a week"), "horizon_days"] == 7).all()
    for other in ("within a day", "two weeks", "two months", "three months"):
        assert not pairs["query"].str.contains(other).any(), other


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_neither_the_future_nor_a_label_changes_a_pair(users, pairs, change):
    events = shop()
    late = events["time"] >= users.cutoff
    future = events[late]
    assert len(future) > 100
    if change == "changed":  # and moved to the very cut-off
        future = future.assign(time=users.cutoff, text="zanzibar", modality="till", amount=1e6)
    else:
        future = future[:0]
    other = Users.from_events(
        pd.concat([events[~late], future]),
        users.cutoff,
        labels=pd.DataFrame({"rich": 1.0}, pd.Index(users.ids, name="user")),
    )
    pd.testing.assert_frame_equal(pairs, make_pairs(other, per_user=6, text_encoder="hash"))


def test_what_is_held_out_is_told(pairs, task):
    wordings = {question.wording.query for question in task.questions if question.wording.held_out}
    concepts = {
        task.questions[place].wording.query
        for place in range(len(task.questions))
        if task.concepts[task.questions[place].concept].split == "held_out"
    }
    for pair in pairs.itertuples():
        if is_held_out(pair.user):
            split = "held_out_user"
        elif pair.query in concepts:
            split = "held_out_concept"
        else:
            split = "held_out_wording" if pair.query in wordings else "train"
        assert pair.split == split, pair
    assert pairs["split"].nunique() == 4


def test_grades_and_families_are_balanced(pairs, task):
    per_cutoff = pairs.groupby("cutoff").size().to_dict()
    assert per_cutoff == {sample.cutoff: 6 * len(sample.rows) for sample in task.samples}
    families = pairs["family"].value_counts(normalize=True)
    assert set(families.index) >= set(FAMILIES) - {"cluster", "topic"}
    assert families["behavior"] > 0.1 and families["number"] > 0.1
    often = pairs[(pairs["measure"] == "occurs") & (pairs["family"] == "text")]
    assert often["grade"].value_counts(normalize=True).loc[[0, 1]].max() < 0.5
    assert not pairs.duplicated(["user", "cutoff", "query", "horizon_days"]).any()


@pytest.mark.usefixtures("made")
def test_the_seed_decides_the_draw(users, pairs):
    pd.testing.assert_frame_equal(pairs, make_pairs(users, per_user=6))
    other = make_pairs(users, per_user=6, seed=1)
    assert (other["query"] != pairs["query"]).mean() > 0.5


def test_too_few_pairs_are_refused(users):
    with pytest.raises(ValueError, match=r"per_user is 0\. Pass 1 or more"):
        next(iter_pairs(users, per_user=0))


@pytest.mark.usefixtures("made")
def test_files_hold_the_pairs_and_are_counted(users, pairs, tmp_path):
    out = tmp_path / "new" / "pairs"
    report = write_pairs(users, out, per_user=6, text_encoder="hash")
    files = sorted(out.glob("*.parquet"))
    parts = [pd.read_parquet(file) for file in files]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), pairs)
    assert all(part["cutoff"].nunique() == 1 for part in parts)
    assert report["cutoffs"] == {
        file.name: str(part["cutoff"][0]) for file, part in zip(files, parts, strict=True)
    }
    assert report["pairs"] == len(pairs) and report == json.loads((out / "pairs.json").read_text())
    assert report["split"] == pairs["split"].value_counts().to_dict()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        write_pairs(users, out, per_user=6, text_encoder="hash")
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.usefixtures("made")
def test_a_killed_writer_leaves_no_folder_and_the_next_one_writes_it(
    users, pairs, tmp_path, monkeypatch
):
    out = tmp_path / "pairs"
    write = pd.DataFrame.to_parquet

    def torn(self, path, **options):
        write(self, path, **options)
        if path.name == "pairs-0001.parquet":
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        monkeypatch.setattr(pd.DataFrame, "to_parquet", torn)
        write_pairs(users, out, per_user=6)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists() and len(list(tmp_path.glob(".pairs.*"))) == 1
    assert write_pairs(users, out, per_user=6)["pairs"] == len(pairs)


@pytest.mark.usefixtures("made")
def test_command_line(users, task, tmp_path, monkeypatch, capsys):
    folder, out = users.save(tmp_path / "users"), tmp_path / "pairs"
    words = ["make-pairs", "--users", folder, "--out", out, "--per-user", 2, "--json"]
    monkeypatch.setattr(sys, "argv", ["qanchor", *map(str, words)])
    assert cli.main() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["out"] == str(out)
    assert report["pairs"] == 2 * sum(len(sample.rows) for sample in task.samples)
    assert cli.main() != 0 and "exists and is not empty" in capsys.readouterr().err
