"""The tables of README's results, made anew from the records in data/runs: `python -m qanchor.results [--check]`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from .files import write_whole

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.S)
NAMES = {
    "anchor": "**ours**, each task's own question",
    "anchor_no_query": "**ours**, asked nothing",
    "anchor_untrained": "**ours**, untrained",
    "lightgbm": "LightGBM on RFM + counts (trained on each task's labels)",
    "rfm_svd": "RFM + SVD-64 of counts",
    "rfm_svd_minilm": "RFM + SVD-64 + SVD-64 of MiniLM",
    "minilm_rfm": "MiniLM + RFM",
    "rfm": "RFM",
    "counts": "counts of all texts",
    "minilm": "mean MiniLM",
    "backbone_text": "the language model reads a list of what each did",
}


def tasks_table(record: dict) -> str:
    """Set the methods of a record of `bench tasks` in a table, the best first, with what was run, where and when."""
    average, minus, found = record["average"], record["anchor_minus"], record.get("recovered")
    rows = []
    for name in sorted((n for n in NAMES if n in average), key=lambda n: -average[n]["auc"]):
        row, above = average[name], minus.get(name)
        cells = [NAMES[name], _short(row["auc"]), f"{_short(row['low'])} to {_short(row['high'])}", _short(row["ks"])]
        cells += [_short(found[name])] if found else []
        rows.append([*cells, f"{_short(above['auc'])} ({_short(above['low'])} to {_short(above['high'])})" if above else ""])
    head = ["average of ten tasks", "AUC", "95 %", "KS", *(["recovered"] if found else []), "ours is above by"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def told(record: dict) -> str:
    """Say on which commit and machine a record was made."""
    machine = record["machine"]
    on = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread(s)"
    return f"`bench {record['bench']}`, commit {record['commit']}, {on}, {machine['matmul_tflops']} TFLOP/s in bf16 products."


def renewed(text: str, runs: Path) -> str:
    """Give README's text with every block between `<!-- results:RUN -->` and `<!-- /results -->` made from RUN/bench.json."""

    def made(block: re.Match) -> str:
        path = runs / block[2] / "bench.json"
        if not path.exists():
            raise FileNotFoundError(f"README asks for results:{block[2]}, and there is no {path}: run bench tasks --out {path}")
        record = json.loads(path.read_text())
        return f"{block[1]}{told(record)}\n\n{tasks_table(record)}\n{block[3]}"

    return BLOCK.sub(made, text)


def main(check: bool = False) -> int:
    """Write README's tables anew; with `check`, only say whether they are what the records say."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = renewed(text, ROOT / "data/runs")
    if check:
        print("README's tables are what the records say" if new == text else "README's tables are stale: say make results")
        return int(new != text)
    write_whole(readme, lambda aside: aside.write_text(new, encoding="utf-8"))
    return 0


def _short(value: float) -> str:
    text = f"{value:.4f}" if abs(value) < 0.0095 else f"{value:.3f}"
    return text.replace("0.", ".", 1)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
