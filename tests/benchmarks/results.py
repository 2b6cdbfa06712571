"""The tables of README's results, made anew from the records in data/runs: `python -m qanchor.results [--check]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from qanchor.utils.io import atomic_write
from tests.benchmarks.tables import (
    SPEED,
    ablations_table,
    attention_table,
    curves_table,
    fairness_table,
    prompts_table,
    query_table,
    replay_table,
    speed_table,
    tasks_table,
    told,
    useru_table,
)

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- results:([\w/-]+) -->\n).*?(<!-- /results -->)", re.S)
# the last word of a block's name: (the bench whose record it shows, its table); any other word is a run, shown by bench tasks
MADE: dict[str, tuple[str, Callable[[dict], str]]] = {
    "query": ("tasks", query_table),
    "fairness": ("fairness", fairness_table),
    "prompts": ("prompts", prompts_table),
    "curves": ("curves", curves_table),
    "attention": ("attention", attention_table),
    "replay": ("replay", replay_table),
    "ablations": ("ablations", ablations_table),
    "useru": ("useru", useru_table),
}
SPEEDS = {"speed": tuple(SPEED), "speed/amx": ("cache", "ask", "versus", "refresh", "tune", "train")}


def renewed(text: str, runs: Path) -> str:
    """Give README's text with every block from `<!-- results:NAME -->` to `<!-- /results -->` made from the records in `runs`.

    RUN shows RUN/bench.json, the record of `bench tasks`, and so does RUN/query; RUN/fairness, RUN/prompts, RUN/curves,
    RUN/attention, RUN/replay, speed/useru and ablations show the file of that name; speed and speed/amx those in their folders.
    """
    return BLOCK.sub(lambda block: f"{block[1]}{_shown(block[2], runs)}\n{block[3]}", text)


def _shown(name: str, runs: Path) -> str:
    folder, _, last = name.rpartition("/")
    if name in SPEEDS:
        records = {bench: _record(name, runs / name / f"{bench}.json", bench) for bench in SPEEDS[name]}
        return f"{told(*records.values())}\n\n{speed_table(records)}"
    if folder and last not in MADE:
        raise ValueError(f"README asks for results:{name}, and no table is named {last!r}: there are {', '.join(MADE)}")
    bench, made = MADE.get(last, ("tasks", tasks_table))
    path = runs / folder / f"{last}.json" if bench == last else runs / (folder or last) / "bench.json"
    record = _record(name, path, bench)
    return f"{told(record)}\n\n{made(record)}"


def _record(name: str, path: Path, bench: str) -> dict:
    run = "" if bench in ("ablations", "useru", *SPEED) else f" --data DATA --run {path.parent}"
    cure = f"say python -m qanchor bench {bench}{run} --out {path}"
    if not path.exists():
        raise FileNotFoundError(f"README asks for results:{name}, and there is no {path}: {cure}")
    record = json.loads(path.read_text())
    if record.get("bench") != bench:
        raise ValueError(f"{path} holds a record of bench {record.get('bench')!r}, results:{name} shows {bench!r}: {cure}")
    return record


def main(check: bool = False) -> int:
    """Write README's tables anew; with `check`, only say whether they are what the records say."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = renewed(text, ROOT / "data/runs")
    if check:
        print("README's tables are what the records say" if new == text else "README's tables are stale: say make results")
        return int(new != text)
    atomic_write(readme, lambda aside: aside.write_text(new, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
