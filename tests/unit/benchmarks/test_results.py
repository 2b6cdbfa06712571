"""Result tables of the documents: rebuilt from records, reported when stale, clear about a missing
record.
"""

import json

import pytest

from tests.benchmarks import results
from tests.benchmarks.tables import OURS

SPAN = {"auc": 0.012, "low": 0.004, "high": 0.02}
RECORD = {
    "bench": "tasks",
    "commit": "abc1234",
    "machine": {"processor": "P", "threads": 2, "gpu": None, "matmul_tflops": 1.0},
    "average": {
        "rfm": {"auc": 0.7, "ks": 0.3, "low": 0.69, "high": 0.71},
        "anchor": {"auc": 0.8, "ks": 0.4, "low": 0.79, "high": 0.81},
    },
    "tasks": [
        {"task": str(k), "method": m, "auc": 0.7} for k in range(10) for m in ("rfm", "anchor")
    ],
    "anchor_minus": {"rfm": SPAN},
    "zero_shot": {"average": 0.75, "0": 0.75},
    "zero_shot_intervals": {"average": SPAN | {"auc": 0.75}},
    "zero_shot_others": {"persistence": {"average": SPAN | {"auc": 0.66}}},
    "zero_shot_minus": {"persistence": SPAN},
}
TEXT = "before\n<!-- results:mine -->\nold\n<!-- /results -->\nafter\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "data/runs/mine").mkdir(parents=True)
    (tmp_path / "README.md").write_text("no table here\n")
    (tmp_path / "data/runs/README.md").write_text(TEXT)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path


def test_a_table_is_rebuilt_best_first_and_the_text_around_it_stays(root, capsys):
    page = root / "data/runs/README.md"
    (root / "data/runs/mine/tasks.json").write_text(json.dumps(RECORD))
    assert results.main(check=True) == 1
    assert "Stale tables in data/runs/README.md. Run make results." in capsys.readouterr().out
    assert page.read_text() == TEXT, "a check writes nothing"
    assert results.main() == 0
    assert results.main(check=True) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert (
        "Record: `data/runs/mine/tasks.json`. `python -m tests.benchmarks tasks`, commit abc1234"
        in text
    )
    ours, theirs = (line for line in text.splitlines() if line.startswith(("| **Qanchor", "| RFM")))
    assert (
        ours == "| **Qanchor**, probe on the task's own question | .800 | .790 to .810 | .400 |  |"
    )
    assert theirs == "| RFM | .700 | .690 to .710 | .300 | .012 (.0040 to .020) |"


def test_both_documents_are_renewed(root, capsys):
    (root / "data/runs/mine/tasks.json").write_text(json.dumps(RECORD))
    (root / "README.md").write_text(TEXT.replace("results:mine", "results:summary"))
    average = RECORD["average"] | dict.fromkeys(OURS[1:], RECORD["average"]["rfm"])
    for run in results.SUMMARY:
        (root / "data/runs" / run).mkdir(exist_ok=True)
        record = json.dumps(RECORD | {"average": average, "average_ranked": average})
        (root / "data/runs" / run / "tasks.json").write_text(record)
    assert results.main(check=True) == 1
    assert "README.md, data/runs/README.md" in capsys.readouterr().out
    assert results.main() == 0
    assert results.main(check=True) == 0
    text = (root / "README.md").read_text()
    assert "| **Qanchor**, label-free ranking | none | .750 (.0040 to .020) |" in text
    assert "| cross-validated | .800 (.790 to .810) |" in text
    assert "Records: `data/runs/journey/tasks.json` and" in text
    assert "old" not in text


def test_a_missing_record_is_reported_and_nothing_is_written(root):
    with pytest.raises(
        FileNotFoundError,
        match=r"results:mine: .*tasks\.json does not exist. Run python -m tests.benchmarks tasks",
    ):
        results.main()
    assert (root / "data/runs/README.md").read_text() == TEXT


@pytest.mark.parametrize(
    ("name", "file", "command"),
    [
        ("summary", "journey/tasks.json", "tasks --data DATA --run .*journey --out"),
        ("mine/query", "mine/tasks.json", "tasks --data DATA --run .*mine --out"),
        ("mine/replay", "mine/replay.json", "replay --data DATA --run .*mine --out"),
        ("mine/frozen", "mine/frozen.json", "frozen --out"),
        ("speed", "speed/cache.json", "cache --data DATA"),
    ],
)
def test_each_block_names_its_record_and_the_command_that_writes_it(tmp_path, name, file, command):
    block = TEXT.replace("results:mine", f"results:{name}")
    expected = f"results:{name}: .*{file} does not exist. Run python -m tests.benchmarks {command}"
    with pytest.raises(FileNotFoundError, match=expected):
        results.renewed(block, tmp_path)


def test_a_record_of_another_benchmark_and_an_unknown_block_are_refused(root):
    (root / "data/runs/mine/tasks.json").write_text(json.dumps(RECORD | {"bench": "prompts"}))
    with pytest.raises(
        ValueError, match=r"is a record of 'prompts', not of 'tasks'\. Run python -m"
    ):
        results.main()
    with pytest.raises(
        ValueError,
        match=r"results:mine/ablation: no table is named 'ablation'\. Use one of label_free, ",
    ):
        results.renewed(TEXT.replace("results:mine", "results:mine/ablation"), root)


def test_the_committed_tables_are_up_to_date():
    assert results.main(check=True) == 0, "run make results"
