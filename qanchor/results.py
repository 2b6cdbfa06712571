"""The tables of README's results, made anew from the records in data/runs: `python -m qanchor.results [--check]`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from .files import write_whole

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- results:([\w/]+) -->\n).*?(<!-- /results -->)", re.S)
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
    return _table([head, ["---"] * len(head), *rows])


ASKED = {"itself": "the question about it", "nothing": "nothing asked", "generic": "a generic question"}
WAYS = {"right": "the task's own question", "vague": "a vague question", "vague_seek": "the vague one, with `seek`"}


def fairness_table(record: dict) -> str:
    """Set out what a probe reads of people who were never asked about it, and whom the best fifth of a score passes over."""
    rows = {(row["source"], row["attribute"]): row for row in record["rows"]}
    traits = [name for name in dict.fromkeys(row["attribute"] for row in record["rows"]) if name != "average"]
    lines = [["AUC of a probe for", *traits, "average", "95 %"], ["---"] * (len(traits) + 3)]
    for source in dict.fromkeys(row["source"] for row in record["rows"]):
        mean = rows[source, "average"]
        asked = ASKED.get(source) or (f"the question about {source}" if source in record["asked"] else NAMES[source])
        cells = [_short(rows[source, trait]["auc"]) for trait in traits]
        lines.append([asked, *cells, _short(mean["auc"]), f"{_short(mean['auc_low'])} to {_short(mean['auc_high'])}"])
    gaps = [["chosen: best fifth by", "score", *traits], ["---"] * (len(traits) + 2)]
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in record["groups"]):
        mine = {row["attribute"]: row for row in record["groups"] if (row["task"], row["arm"]) == (task, arm)}
        gaps.append([task, {"anchor": "ours", "zero_shot": "ours, no label"}.get(arm, NAMES.get(arm, arm))])
        gaps[-1] += [_gap(mine[trait]["gap"]["selected"]) for trait in traits]
    return f"{_table(lines)}\n\n{_table(gaps)}"


def prompts_table(record: dict) -> str:
    """Set soft prompts beside a probe on the same labels, by what was typed; the last row is the paper's."""
    lines = [["typed", "AUC before", "after", "gain (95 %)", "KS", "silhouette"], ["---"] * 6]
    for way, row in record["average"].items():
        cells = [f"{_short(row['before'][name])} to {_short(row['after'][name])}" for name in ("ks", "silhouette")]
        gain = _gap([row["gain"][name] for name in ("auc", "low", "high")])
        lines.append([WAYS[way], _short(row["before"]["auc"]), _short(row["after"]["auc"]), gain, *cells])
    return _table([*lines, ["the paper, its own tasks", ".8104", ".8225", "+.012", "+.022", ""]])


def told(record: dict) -> str:
    """Say on which commit and machine a record was made."""
    machine = record["machine"]
    on = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread(s)"
    return f"`bench {record['bench']}`, commit {record['commit']}, {on}, {machine['matmul_tflops']} TFLOP/s in bf16 products."


def renewed(text: str, runs: Path) -> str:
    """Give README's text with every block between `<!-- results:RUN/BENCH -->` and `<!-- /results -->` made from that record.

    RUN alone is RUN/bench.json, the record of `bench tasks`.
    """
    tables = {"bench": tasks_table, "fairness": fairness_table, "prompts": prompts_table}

    def made(block: re.Match) -> str:
        run, _, name = block[2].partition("/")
        path = runs / run / f"{name or 'bench'}.json"
        if not path.exists():
            command = f"python -m qanchor bench {name or 'tasks'} --run {runs / run} --out {path}"
            raise FileNotFoundError(f"README asks for results:{block[2]}, and there is no {path}: say {command}")
        record = json.loads(path.read_text())
        return f"{block[1]}{told(record)}\n\n{tables[name or 'bench'](record)}\n{block[3]}"

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


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _gap(span: list[float] | None) -> str:
    return f"{'+' * (span[0] >= 0.00005)}{_short(span[0])} ({_short(span[1])} to {_short(span[2])})" if span else "too few"


def _short(value: float) -> str:
    if abs(value) < 0.00005:
        return ".000"
    text = f"{value:.4f}" if abs(value) < 0.0095 else f"{value:.3f}"
    return text.replace("0.", ".", 1)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
