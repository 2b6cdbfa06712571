"""Every command of `qanchor` on a small folder: words, JSON, errors in one line, and a training
that goes on.
"""

import json
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor import cli
from qanchor.training import concept_task
from qanchor.utils import progress
from tests.tiny import QUERIES, fit_quickly, make_model, make_task, make_users

QUERY = QUERIES[0]
N_USERS = len(make_users())
MACHINE = {"processor", "threads", "gpu"}


@pytest.fixture
def qanchor(monkeypatch, capsys):
    """Run the command line in this process: code, stdout, stderr."""

    def run(*words) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["qanchor", *map(str, words)])
        capsys.readouterr()
        code = cli.main()
        told = capsys.readouterr()
        return SimpleNamespace(
            code=code,
            out=told.out,
            err=told.err,
            json=lambda: json.loads(told.out.splitlines()[-1]),
        )

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a folder of users, a run, and files of labels and queries."""
    folder = tmp_path_factory.mktemp("cli")
    users = make_users()
    users.save(folder / "users")
    make_model().save_pretrained(folder / "run")
    labels = users.label("odd").rename("label").reset_index()
    labels.to_csv(folder / "labels.csv", index=False)
    labels.to_parquet(folder / "labels.parquet", index=False)
    (folder / "queries.txt").write_text(f"{QUERY}\n\n  Is this user a driver?  \n")
    return folder


@pytest.fixture
def quick(monkeypatch) -> list[dict]:
    """Let `qa.fit` take the small task of these users; return the options of each call."""
    calls = []

    def fit(users, minutes, **options):
        assert users.ids == make_users().ids
        calls.append({"minutes": minutes, **options})
        return fit_quickly(**options | {"steps": options["steps"] or 3, "progress": True})

    monkeypatch.setattr(qa, "fit", fit)
    return calls


def of(home: Path, *words) -> tuple:
    """Return words of a command with the run and the users of `home`."""
    return (*words, "--run", home / "run", "--users", home / "users")


def test_fit_says_what_it_did_and_keeps_a_run(qanchor, home, quick, tmp_path):
    run = tmp_path / "run"
    words = ("fit", "--users", home / "users", "--out", run, "--steps", 2, "--seed", 3)
    told = qanchor(*words, "--json").json()
    assert (told["out"], told["steps"], told["seed"]) == (str(run), 2, 3)
    assert told["concepts"] > 20 and set(told["machine"]) == MACHINE
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "concepts.json", "reader.safetensors", "history.json", "metrics.json")
    }
    assert len(qa.QAnchor.from_pretrained(run).history) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert quick[0]["backbone"] == "none"
    assert quick[0]["checkpoint"] == tmp_path / ".run.checkpoint"  # and it is gone, above
    done = qanchor(*words)  # in words, over the run that is there
    assert done.code == 0 and done.out.startswith(f"{run}: {told['concepts']} concepts of 42 users")


def test_train_is_another_name_of_fit(qanchor, home, quick, tmp_path):
    """With a preset, which once chose the size of the model and is ignored."""
    words = ("train", "--preset", "small", "--users", home / "users", "--minutes", 0.5, "--json")
    done = qanchor(*words, "--out", tmp_path / "run")
    assert done.code == 0 and done.json()["steps"] == 3
    assert quick[0]["minutes"] == 0.5 and quick[0]["steps"] is None
    assert qa.QAnchor.from_pretrained(tmp_path / "run").concepts
    assert "train" not in qanchor("--help").out.split()


class Killed(BaseException):
    """Stand for a machine that goes away."""


def test_a_killed_training_is_resumed(qanchor, home, quick, tmp_path, monkeypatch):
    words = ("fit", "--users", home / "users", "--out", tmp_path / "run", "--json")
    words += ("--backbone", "tiny", "--crossing-layers", 1, "--steps", 12)
    show = progress.ProgressBars.__call__
    seen = []

    def watched(self, stage, done, total):
        seen.append((stage, done))
        if (stage, done, len(quick)) == ("training the reader", 11, 1):
            raise Killed
        return show(self, stage, done, total)

    monkeypatch.setattr(progress.ProgressBars, "__call__", watched)
    with pytest.raises(Killed):
        qanchor(*words)
    assert [path.name for path in tmp_path.iterdir()] == [".run.checkpoint"]
    seen.clear()
    done = qanchor(*words)
    assert done.code == 0 and done.json()["steps"] == 12
    assert [n for stage, n in seen if stage == "training the reader"] == [11, 12]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert qa.QAnchor.from_pretrained(tmp_path / "run").config.crossing_layers == 1


def test_strict_refuses_what_is_new_to_the_run(qanchor, home, tmp_path):
    users = make_users()
    renamed = users.events["modality"].cat.rename_categories({"app": "radio"})
    others = qa.Users.from_events(users.events.assign(modality=renamed), users.cutoff)
    others.save(tmp_path / "others")
    given = ("--run", home / "run", "--users", tmp_path / "others", "--strict")
    out = ("--queries", home / "queries.txt", "--out", tmp_path / "none")
    for words in (("ask", QUERY), ("embed", *out)):
        done = qanchor(*words, *given)
        assert done.code == 2 and "'radio', a modality that is new to the run" in done.err
        assert done.err.count("error: users has ") == 1 == done.err.count("users has ")
    assert not (tmp_path / "none").exists()


def test_each_warning_is_one_line_and_said_once(qanchor, home, monkeypatch):
    def warn(name: str, *_) -> None:
        for message in ("amount is missing.", "amount is missing.", f"{name} is new."):
            warnings.warn(message, stacklevel=1)
        raise ValueError("stop")

    monkeypatch.setattr(cli, "open_users", warn)
    done = qanchor("concepts", "radio")
    notes = ["note: amount is missing.", "note: radio is new.", "error: stop"]
    assert done.err.splitlines() == notes


def test_check_tells_what_is_there(qanchor, home):
    done = qanchor("check", home / "users", "--json")
    told = done.json()
    assert (
        done.code == 0
        and told["users"] == N_USERS
        and told["modalities"]["shop"] > 0
        and told["labels"]["odd"] == N_USERS
    )
    assert 0 < told["history"] < told["events"]
    done = qanchor("check", home / "users")
    assert done.code == 0 and "are events" in done.out and "modalities: app" in done.out


def test_check_tells_what_is_wrong(qanchor, tmp_path):
    (tmp_path / "events.csv").write_text(
        "user,time,modality,text\na,2025-01-01,bill,tea\na,soon,bill,tea\n"
    )
    done = qanchor("check", tmp_path, "--json")
    (problem,) = done.json()["problems"]
    assert done.code == 1 and done.err == "" and not done.json()["in_order"]
    told = [problem[field] for field in ("row", "column", "value", "kind")]
    assert told == [1, "time", "soon", "error"]
    for words in (("check", tmp_path), ("check", tmp_path, "--fix", tmp_path.with_name("out"))):
        done = qanchor(*words)
        assert done.code == 1 and "has 1 error. Correct the table" in done.out
        assert "not a time. Write it as 2025-01-31 18:00:00" in done.out
    assert not tmp_path.with_name("out").exists()


def test_check_writes_what_was_read_into_a_new_folder(qanchor, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "export.csv").write_text(
        "customer,date,what\na,2025-01-02,tea\n,2025-01-01,milk\n"
    )
    done = qanchor("check", tmp_path / "mine")
    assert done.code == 0 and "1 of 2 rows are events" in done.out
    assert "a user needs an id. The row is left out" in done.out and "user: customer" in done.out
    assert "training: 0 days of history" in done.out
    done = qanchor("check", tmp_path / "mine", "--fix", tmp_path / "out", "--json")
    assert done.code == 0 and done.json()["events"] == 1 == done.json()["report"]["dropped"]
    assert qanchor("check", tmp_path / "out").code == 0
    done = qanchor("check", tmp_path / "mine", "--fix", tmp_path / "out")
    assert done.code == 2 and "is not an empty folder" in done.err


def test_ask_ranks_users(qanchor, home):
    done = qanchor(*of(home, "ask", QUERY, "--top", 3, "--json"))
    told = done.json()
    assert done.code == 0 and (told["query"], told["users"]) == (QUERY, N_USERS)
    assert told["answerable"] and told["warning"] == ""
    assert told["read_as"] == told["topics"] == ["buy tea"]
    assert told["evidence"][0]["text"] == "buy tea"
    assert told["backtest"]["topic"] == "buy tea" and told["backtest"]["n"] > 30
    assert len(told["top"]) == 3 and {"user", "score", "answer"} <= set(told["top"][0])
    scores = [row["score"] for row in told["top"]]
    assert scores == sorted(scores, reverse=True)
    words = qanchor(*of(home, "ask", QUERY, "--top", 2))
    assert words.code == 0 and words.out.startswith(f"{QUERY} ({N_USERS} users; ")
    assert told["top"][0]["user"] in words.out and "Backtest as of" in words.out


def test_ask_says_what_it_cannot_answer(qanchor, home):
    told = qanchor(*of(home, "ask", "Does this user own a yacht?", "--json")).json()
    assert not told["answerable"] and told["top"] == [] and told["backtest"]["right"] is None
    assert told["warning"].startswith("Nothing in these events speaks of")


def test_concepts_lists_what_can_be_asked(qanchor, home, monkeypatch):
    monkeypatch.setattr(concept_task, "make_concept_task", lambda *_: make_task())
    told = qanchor("concepts", home / "users", "--json").json()
    assert len(told["concepts"]) == len(make_task().concepts) > 20
    assert "buy tea" in {concept["label"] for concept in told["concepts"]}
    assert "buy tea" in qanchor("concepts", home / "users").out


def test_embed_writes_parts_and_goes_on(qanchor, home, tmp_path):
    words = of(home, "embed", "--queries", home / "queries.txt", "--out", tmp_path / "out")
    words += ("--workers", 2, "--json", "--shards", 3)
    done = qanchor(*words)
    assert done.code == 0 and done.json()["users"] == N_USERS and done.json()["made"] == 3
    assert done.json()["queries"] == [QUERY, "Is this user a driver?"]
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 3
    frame = pd.read_parquet(tmp_path / "out", filters=[("query", "==", QUERY)]).sort_values("user")
    z = np.stack(frame["embedding"])
    users = make_users()
    engine = qa.Engine(make_model())
    expected = pd.DataFrame(engine.embed(engine.prefill(users), QUERY), users.ids).sort_index()
    assert list(frame["user"]) == list(expected.index) and z.dtype == np.float16
    np.testing.assert_allclose(z, expected, atol=1e-3)
    assert qanchor(*words).json()["made"] == 0
    done = qanchor(*words[:-1], 2)
    assert done.code == 2 and "shards 3, not 2. Choose another folder" in done.err
    assert "one of local, ray" in qanchor(*words, "--backend", "carrier pigeon").err


@pytest.mark.parametrize("file", ["labels.csv", "labels.parquet"])
def test_probe_reads_csv_and_parquet(qanchor, home, file):
    done = qanchor(
        *of(home, "probe", "--query", QUERY, "--labels-file", home / file, "--seed", 3, "--json")
    )
    told = done.json()
    assert done.code == 0 and told["n"] == N_USERS and told["seed"] == 3
    assert set(told["machine"]) == MACHINE
    assert 0 <= told["auc_low"] <= told["auc"] <= told["auc_high"] <= 1
    assert 0 <= told["ks"] <= 1 and told["positives"] > 5


def test_probe_takes_another_column_and_each_label_with_its_user(qanchor, home, tmp_path):
    labels = pd.read_csv(home / "labels.csv")
    stranger = pd.DataFrame({"user": ["stranger"], "label": [1.0]})
    mixed = pd.concat([labels.sample(frac=1, random_state=0), stranger])
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    found = [
        qanchor(*of(home, "probe", "--query", QUERY, "--json", *words)).json()["auc"]
        for words in (
            ("--labels-file", tmp_path / "mixed.csv"),
            ("--label", "odd"),  # the users' own label needs no file
        )
    ]
    assert len(set(found)) == 1


def test_tune_keeps_a_prompt_and_judges_it_on_others(qanchor, home, tmp_path):
    words = of(home, "tune-prompt", "--query", QUERY, "--steps", 5, "--init", "search", "--json")
    words += ("--labels-file", home / "labels.csv", "--out", tmp_path / "soft", "--seed", 1)
    done = qanchor(*words)
    told = done.json()
    assert done.code == 0 and told["n_test"] == told["n_tuning"] == N_USERS / 2
    assert told["seconds"] > 0 and told["seed"] == 1 and told["seek"]
    for part in ("before", "after", "prototype"):
        assert set(told[part]) >= {"auc", "ks"}
    assert "On 21 held-out users, AUC is" in told["sentence"]
    engine = qa.Engine(qa.QAnchor.from_pretrained(home / "run"))
    prompt = qa.SoftPrompt.load(tmp_path / "soft", engine)
    assert prompt.query == QUERY
    assert engine.embed(engine.prefill(make_users()), prompt).shape == (N_USERS, 128)


@pytest.mark.parametrize("command", ["tune-prompt", "train", "fit"])
def test_a_stop_says_what_goes_on(qanchor, home, tmp_path, monkeypatch, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_users", interrupted)
    words = (command, "--users", home / "users", "--out", tmp_path / "out")
    if command == "tune-prompt":
        words += ("--run", home / "run", "--query", QUERY)
    done = qanchor(*words)
    assert done.code == 130 and done.err.splitlines()[-1] == cli.interrupted_message(command)
    assert ("to resume" in done.err) == (command != "tune-prompt")


ERRORS = {
    "no such users": (["check", "nowhere"], "nowhere does not exist. Give the path of a file"),
    "no such data": (
        ["ask", "--run", "RUN", "--users", "mars", "Q"],
        "mars: no such file or folder. Pass an existing one, world",
    ),
    "odd world": (
        ["ask", "--run", "RUN", "--users", "world:many", "Q"],
        "'many' is not a number of users",
    ),
    "no users": (["ask", "--run", "RUN", "--users", "world:0", "Q"], "at least 1 user"),
    "odd cut-off": (["ask", "--run", "RUN", "--users", "journey:soon", "Q"], "soon"),
    "no run": (
        ["ask", "--run", "nowhere", "--users", "USERS", "Q"],
        "nowhere is not a run (no config.json). Train one",
    ),
    "no query file": (
        ["embed", "--run", "RUN", "--users", "USERS", "--queries", "none.txt", "--out", "o"],
        "none.txt",
    ),
    "no label file": (
        ["probe", "--run", "RUN", "--users", "USERS", "--query", "Q", "--labels-file", "none.csv"],
        "none.csv",
    ),
    "no such label": (
        ["probe", "--run", "RUN", "--users", "USERS", "--query", "Q", "--label", "luck"],
        "no label 'luck' in",
    ),
    "odd backbone": (
        ["fit", "--users", "USERS", "--out", "o", "--backbone", "nobody/has-this"],
        "nobody/has-this",
    ),
    "a folder in use": (
        [
            "tune-prompt",
            "--run",
            "RUN",
            "--users",
            "USERS",
            "--query",
            "Q",
            "--labels-file",
            "none.csv",
            "--out",
            "RUN",
        ],
        "but no prompt.json. Choose a new folder",
    ),
    "no command": (["fly"], "No such command 'fly'"),
    "no option": (["ask", "Q"], "Missing option '--run'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_with_code_2(qanchor, home, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    words, expected = ERRORS[case]
    done = qanchor(
        *(
            str(home / {"RUN": "run", "USERS": "users"}[w]) if w in ("RUN", "USERS") else w
            for w in words
        )
    )
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    told = [line for line in done.err.splitlines() if line.startswith("error: ")]
    if case in ("no command", "no option"):
        assert expected in done.err
    else:
        assert len(told) == 1 and expected in told[0], done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            "user,label\nu000,2\n",
            "labels.csv, row 0, column 'label': '2': a label is 0, 1 or empty",
        ),
        (
            "user,label\nu000,1\nu000,0\n",
            "labels.csv, row 1, column 'user': 'u000': two rows of one user that contradict",
        ),
        (
            "user,truth,odd\nu000,1,35\n",
            "column 'label': ['user', 'truth', 'odd']: missing. Add it, or name another",
        ),
        ("user,label\nnobody,1\n", "none of these users has an event"),
        ("user,label\nu000,1\nu001,0\n", "1 positives and 1 negatives; 5 of each are required"),
        ("user,label\nu000,maybe\n", "column 'label'"),
        ("", "labels.csv"),
    ],
    ids=["neither 0 nor 1", "twice", "no label", "strangers", "too few", "a word", "empty"],
)
def test_wrong_labels_are_told(qanchor, home, tmp_path, rows, expected):
    (tmp_path / "labels.csv").write_text(rows)
    done = qanchor(
        *("probe", "--run", home / "run", "--users", home / "users"),
        *("--query", QUERY, "--labels-file", tmp_path / "labels.csv", "--json"),
    )
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert (
        expected in done.err
        and sum(line.startswith("error: ") for line in done.err.splitlines()) == 1
    )


def test_no_queries_is_told(qanchor, home, tmp_path):
    (tmp_path / "queries.txt").write_text("\n \n")
    words = ("--queries", tmp_path / "queries.txt", "--out", tmp_path / "out")
    done = qanchor("embed", "--run", home / "run", "--users", home / "users", *words)
    assert (
        done.code == 2
        and "queries.txt has no queries. Write one per line" in done.err
        and not (tmp_path / "out").exists()
    )


def test_a_torn_run_is_told(qanchor, home, tmp_path):
    (tmp_path / "config.json").write_text("{")
    done = qanchor("ask", "--run", tmp_path, "--users", home / "users", "Why?")
    assert done.code == 2 and "config.json is damaged" in done.err


def test_data_sets_have_names():
    assert len(cli.open_users("world:5")) == 5 and cli.open_users("world:5").name == "world"
    with pytest.raises(
        FileNotFoundError,
        match=r"mars: no such file or folder. Pass an existing one, world\[:N\] or journey",
    ):
        cli.open_users("mars")


def test_help_lists_every_command(qanchor):
    done = qanchor("--help")
    assert done.code == 0 and all(
        c in done.out
        for c in (
            "check",
            "concepts",
            "fit",
            "ask",
            "embed",
            "probe",
            "tune-prompt",
            "make-pairs",
            "download-weights",
        )
    )


def test_the_version_is_that_of_the_package(qanchor):
    done = qanchor("--version")
    assert done.code == 0 and done.out.strip() == version("qanchor")


def test_a_folder_of_that_name_does_not_hide_the_package(tmp_path):
    (tmp_path / "qanchor").mkdir()  # a clone, seen from above
    command = [sys.executable, "-m", "qanchor", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: python -m qanchor" in done.stdout, done.stderr
