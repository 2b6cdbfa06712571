"""README's result tables: made from records, told when they are stale, and clear about a record that lacks."""

import json

import pytest

from qanchor import results

SPAN = {"auc": 0.012, "low": 0.004, "high": 0.02}
RECORD = {
    "bench": "tasks",
    "commit": "abc1234",
    "machine": {"processor": "P", "threads": 2, "gpu": None, "matmul_tflops": 1.0},
    "average": {
        "rfm": {"auc": 0.7, "ks": 0.3, "low": 0.69, "high": 0.71},
        "anchor": {"auc": 0.8, "ks": 0.4, "low": 0.79, "high": 0.81},
    },
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


def test_prompts_and_fairness_have_tables_of_their_own():
    side = {"auc": 0.6, "ks": 0.2, "silhouette": 0.01}
    told = results.prompts_table({"average": {"vague": {"before": side, "after": side | {"auc": 0.7}, "gain": SPAN}}})
    assert "| a vague question | .600 | .700 | +.012 (.0040 to .020) | .200 to .200 | .010 to .010 |" in told
    row = {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8}
    rows = [{"source": s, "attribute": a} | row for s in ("nothing", "Promo", "rfm") for a in ("age", "average")]
    groups = [
        {"task": "Promo", "arm": "anchor", "attribute": "age", "gap": {"selected": [-0.1, -0.2, 0.0]}},
        {"task": "Promo", "arm": "rfm", "attribute": "age", "gap": {"selected": None}},
    ]
    told = results.fairness_table({"rows": rows, "groups": groups, "asked": {"Promo": "?"}})
    assert "| the question about Promo | .700 | .700 | .600 to .800 |" in told
    assert "| Promo | ours | -.100 (-.200 to .000) |" in told and "| Promo | RFM | too few |" in told
