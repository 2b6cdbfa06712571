"""Write the result tables of README.md and data/runs/README.md from the records in data/runs.

`python -m tests.benchmarks.results` renews them; with `--check` it only says whether they are up to
date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from qanchor.utils.io import atomic_write
from tests.benchmarks import tables

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCUMENTS = ("README.md", "data/runs/README.md")
BLOCK = re.compile(r"(<!-- results:([\w/-]+) -->\n).*?(<!-- /results -->)", re.S)
# last word of a block's name: (benchmark, table); any other word is a run, shown by the benchmark
# `tasks`
MADE: dict[str, tuple[str, Callable[[dict], str]]] = {
    "label_free": ("tasks", tables.label_free_table),
    "query": ("tasks", tables.query_table),
    "fairness": ("fairness", tables.fairness_table),
    "prompts": ("prompts", tables.prompts_table),
    "attention": ("attention", tables.attention_table),
    "replay": ("replay", tables.replay_table),
    "fitted": ("fitted", tables.fitted_table),
    "concepts": ("concepts", tables.concepts_table),
    "senses": ("senses", tables.senses_table),
    "reading": ("reading", tables.reading_table),
    "frozen": ("frozen", tables.frozen_table),
    "movement": ("movement", tables.movement_table),
    "coles": ("coles", tables.coles_table),
}
SUMMARY = ("journey", "sample")  # folders of the `tasks` records in the block `summary`
NO_RUN = {"frozen", "open", "scale", "texts"}  # benchmarks that need neither --data nor --run


def renewed(text: str, runs: Path) -> str:
    """Return `text` with every block `<!-- results:NAME -->` ... `<!-- /results -->` rebuilt from
    the records in `runs`.

    Args:
        text: Markdown.
        runs: folder of the records. RUN, RUN/label_free and RUN/query show RUN/tasks.json;
            RUN/fitted and the like show the file of that name; speed shows the files in that
            folder; summary shows the tasks.json of the runs in `SUMMARY`.

    Raises:
        FileNotFoundError: a record is missing.
        ValueError: a record is of another benchmark, or no table has the name of a block.
    """
    return BLOCK.sub(lambda block: f"{block[1]}{_shown(block[2], runs)}\n{block[3]}", text)


def _shown(name: str, runs: Path) -> str:
    if name == "speed":
        records = {
            bench: _record(name, runs / name / f"{bench}.json", bench) for bench in tables.SPEED
        }
        about = f"Records: `data/runs/{name}/`.\n{tables.told(*records.values())}"
        return f"{about}\n\n{tables.speed_table(records)}"
    if name == "summary":
        records = {run: _record(name, runs / run / "tasks.json", "tasks") for run in SUMMARY}
        files = " and ".join(f"`data/runs/{run}/tasks.json`" for run in SUMMARY)
        source = f"Records: {files} (`python -m tests.benchmarks tasks`)."
        return f"{tables.summary_table(records)}\n\n{source}"
    folder, _, last = name.rpartition("/")
    if folder and last not in MADE:
        raise ValueError(
            f"Block results:{name}: no table is named {last!r}. Use one of {', '.join(MADE)}."
        )
    bench, made = MADE.get(last, ("tasks", tables.tasks_table))
    path = runs / (folder or last) / f"{bench}.json"
    record = _record(name, path, bench)
    source = f"Record: `data/runs/{path.relative_to(runs).as_posix()}`."
    return f"{source} {tables.told(record)}\n\n{made(record)}"


def _record(name: str, path: Path, bench: str) -> dict:
    arguments = "" if bench in NO_RUN else f" --data DATA --run {path.parent}"
    hint = f"Run python -m tests.benchmarks {bench}{arguments} --out {path}"
    if not path.exists():
        raise FileNotFoundError(f"Block results:{name}: {path} does not exist. {hint}")
    record = json.loads(path.read_text())
    if record.get("bench") != bench:
        raise ValueError(
            f"Block results:{name}: {path} is a record of {record.get('bench')!r}, not of "
            f"{bench!r}. {hint}"
        )
    return record


def main(check: bool = False) -> int:
    """Rewrite the tables of all documents; with `check`, write nothing and return 1 if a table is
    stale.
    """
    new = {}
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        rebuilt = renewed(text, ROOT / "data/runs")
        if rebuilt != text:
            new[name] = rebuilt
    if check:
        print(
            f"Stale tables in {', '.join(new)}. Run make results."
            if new
            else "All result tables are up to date."
        )
        return int(bool(new))
    for name, text in new.items():
        atomic_write(ROOT / name, lambda aside, text=text: aside.write_text(text, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
