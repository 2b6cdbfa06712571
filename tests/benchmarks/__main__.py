"""Run one benchmark and print its result: `python -m tests.benchmarks NAME [--json]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import qanchor as qa
from qanchor.cli import Json, open_users, print_result, run_app
from qanchor.data.complete_journey import load_complete_journey
from qanchor.utils.io import atomic_write
from qanchor.utils.progress import ProgressBars
from tests.benchmarks.machine import current_commit, measured_machine

from .attention import attention
from .card import card
from .coles import coles
from .concepts import concepts
from .datasets import load_movielens, make_german_users, make_pseudo_users
from .fairness import fairness
from .fitted import fitted
from .frozen import frozen
from .fuzz import fuzz
from .movement import movement
from .prompts import prompts
from .reading import reading
from .replay import replay
from .scale import scale
from .senses import senses
from .soak import soak
from .speed import ask, cache, first_answer
from .tasks import tasks
from .texts import texts
from .useru import useru

WITH_PROGRESS = {
    run.__name__: run
    for run in (
        tasks,
        replay,
        fairness,
        prompts,
        attention,
        concepts,
        fitted,
        reading,
        frozen,
        senses,
        movement,
        coles,
    )
}
WITHOUT_PROGRESS = (cache, ask, scale, texts, useru, card, fuzz, soak)
REWORDED = {"pseudo": make_pseudo_users, "german": make_german_users}
BENCHMARKS = WITH_PROGRESS | {run.__name__: run for run in WITHOUT_PROGRESS}
BENCHMARKS["open"] = first_answer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def open_data(name: str) -> qa.Users:
    """Open a data set as the command line does, and besides MovieLens, the sample in pseudo-words
    or German, and the Complete Journey with the publisher's names of categories.
    """
    word, _, number = name.partition(":")
    if word in REWORDED:
        return REWORDED[word](int(number or 600))
    if name == "journey-raw":
        return load_complete_journey(raw_names=True)
    return load_movielens() if name == "movielens" else open_users(name)


def run_benchmark(name: str, **options) -> dict:
    """Run one benchmark and add what identifies the measurement: machine, commit and seed."""
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}. Choose one of {', '.join(BENCHMARKS)}")
    about = {"bench": name, "machine": measured_machine(), "commit": current_commit(), "seed": 0}
    return about | BENCHMARKS[name](**options)


@app.command()
def benchmark(
    name: Annotated[str, typer.Argument(help=", ".join(BENCHMARKS))],
    data: Annotated[
        str,
        typer.Option(
            help="users: a folder, journey, journey-raw, world[:N], pseudo[:N], german[:N],"
            " movielens"
        ),
    ] = "journey",
    run: Annotated[
        Path | None, typer.Option(help="folder of a run; default: fit a model to the users")
    ] = None,
    seeds: Annotated[int, typer.Option(help="seeds of the probes' folds")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="also write the JSON object to this file")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="duration of soak")] = None,
    cases: Annotated[int | None, typer.Option(help="number of cases of fuzz")] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--max-users", help="users of prompts, fairness, attention, movement, cache and ask"
        ),
    ] = None,
    bodies: Annotated[
        str | None, typer.Option(help="bodies of reading, with commas between; default: all")
    ] = None,
    parts: Annotated[
        Path | None, typer.Option(help="folder that reading keeps each body in, to go on from")
    ] = None,
    peer: Annotated[
        str | None, typer.Option(help="Python that coles runs in, see tests/benchmarks/coles.py")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure as ratios within one run, with the machine's own ceiling beside them."""
    bars = ProgressBars()
    options = {"minutes": minutes, "cases": cases, "most": most, "parts": parts, "peer": peer}
    options["bodies"] = bodies and bodies.split(",")
    options = {option: value for option, value in options.items() if value is not None}
    if name in WITH_PROGRESS:
        options["progress"] = bars
    result = run_benchmark(name, users=lambda: open_data(data), run=run, seeds=seeds, **options)
    bars.close()
    if out:
        atomic_write(out, lambda part: part.write_text(json.dumps(result, default=float) + "\n"))
    print_result(result, json.dumps(result, indent=1, default=float), as_json)


if __name__ == "__main__":
    sys.exit(run_app(app))
