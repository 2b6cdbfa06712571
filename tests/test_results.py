"""README's result tables: made from records, told when they are stale, and clear about a record that lacks."""

import json

import pytest

from tests.benchmarks import results

SPAN = {"auc": 0.012, "low": 0.004, "high": 0.02}
RECORD = {
    "bench": "tasks",
    "commit": "abc1234",
    "machine": {"processor": "P", "threads": 2, "gpu": None, "matmul_tflops": 1.0},
    "average": {
        "rfm": {"auc": 0.7, "ks": 0.3, "low": 0.69, "high": 0.71},
        "anchor": {"auc": 0.8, "ks": 0.4, "low": 0.79, "high": 0.81},
    },
    "tasks": [{"task": str(k), "method": m, "auc": 0.7} for k in range(10) for m in ("rfm", "anchor")],
    "anchor_minus": {"rfm": SPAN},
}
TEXT = "before\n<!-- results:mine -->\nold\n<!-- /results -->\nafter\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "data/runs/mine").mkdir(parents=True)
    (tmp_path / "README.md").write_text(TEXT)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path


def test_a_table_is_made_the_best_first_and_words_around_it_stay(root, capsys):
    (root / "data/runs/mine/bench.json").write_text(json.dumps(RECORD))
    assert results.main(check=True) == 1 and "stale: say make results" in capsys.readouterr().out
    assert (root / "README.md").read_text() == TEXT, "a check writes nothing"
    assert results.main() == 0 and results.main(check=True) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "abc1234" in text
    ours, theirs = (line for line in text.splitlines() if line.startswith(("| **ours", "| RFM")))
    assert ours == "| **ours**, each task's own question | .800 | .790 to .810 | .400 |  |"
    assert theirs == "| RFM | .700 | .690 to .710 | .300 | .012 (.0040 to .020) |"


def test_a_record_that_lacks_is_told_and_nothing_is_written(root):
    with pytest.raises(FileNotFoundError, match=r"results:mine.*bench\.json: say python -m qanchor bench tasks"):
        results.main()
    assert (root / "README.md").read_text() == TEXT


@pytest.mark.parametrize(
    ("name", "file", "command"),
    [
        ("mine/query", "mine/bench.json", "bench tasks --data DATA --run .*mine --out"),
        ("mine/replay", "mine/replay.json", "bench replay --data DATA --run .*mine --out"),
        ("ablations", "ablations.json", "bench ablations --out"),
        ("speed/useru", "speed/useru.json", "bench useru --out"),
        ("speed", "speed/cache.json", "bench cache --out"),
        ("speed/amx", "speed/amx/cache.json", "bench cache --out"),
    ],
)
def test_each_block_has_its_record_and_says_what_makes_it(tmp_path, name, file, command):
    block = TEXT.replace("results:mine", f"results:{name}")
    with pytest.raises(FileNotFoundError, match=f"results:{name}, and there is no .*{file}: say python -m qanchor {command}"):
        results.renewed(block, tmp_path)


def test_another_benchs_record_and_a_block_that_no_table_is_for_are_refused(root):
    (root / "data/runs/mine/bench.json").write_text(json.dumps(RECORD | {"bench": "prompts"}))
    with pytest.raises(ValueError, match="a record of bench 'prompts', results:mine shows 'tasks': say python -m"):
        results.main()
    with pytest.raises(ValueError, match="results:mine/ablation, and no table is named 'ablation': there are query, "):
        results.renewed(TEXT.replace("results:mine", "results:mine/ablation"), root)


def test_ablations_are_shown_once_they_are_there(root):
    row = {"variant": "as it is", "auc": 0.8, "wrong": 0.7, "minus": dict.fromkeys(SPAN, 0.0), "paper": None}
    (root / "data/runs/ablations.json").write_text(json.dumps(RECORD | {"bench": "ablations", "rows": [row]}))
    text = results.renewed(TEXT.replace("results:mine", "results:ablations"), root / "data/runs")
    assert "`bench ablations`, commit abc1234" in text and "| as it is | .800 | .700 |" in text
