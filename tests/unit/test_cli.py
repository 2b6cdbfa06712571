"""Every command of `python -m qanchor` on a small folder: words, JSON, errors in one line, and a
training that goes on.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor import cli
from qanchor.utils import progress

QUERY = "Will this user go to a concert next month?"
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
    """A folder of users, a run trained on them for a moment, label and query files."""
    folder = tmp_path_factory.mktemp("cli")
    users = qa.make_sample_users(60)
    users.save(folder / "users")
    words = ["train", "--preset", "tiny", "--users", str(folder / "users"), "--json"]
    words += ["--out", str(folder / "run"), "--steps", "3"]
    words += ["--set", "head_warmup_steps=5", "--set", "num_cutoffs=3"]
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setattr(sys, "argv", ["qanchor", *words])
        assert cli.main() == 0
    (folder / "trained.json").write_text(told.getvalue().splitlines()[-1])
    labels = users.label("Active").rename("label").reset_index()
    labels.to_csv(folder / "labels.csv", index=False)
    labels.to_parquet(folder / "labels.parquet", index=False)
    (folder / "queries.txt").write_text(f"{QUERY}\n\n  Is this user a driver?  \n")
    return folder


def test_train_says_what_it_did_and_keeps_a_run(home):
    told = json.loads((home / "trained.json").read_text())
    assert (
        told["steps"] == 3
        and told["seed"] == 0
        and told["pairs"] > 100
        and set(told["machine"]) == MACHINE
    )
    assert 2 * 60 < told["samples"] <= 3 * 60
    assert np.isfinite(list(told["last"].values())).all()
    assert {p.name for p in (home / "run").iterdir()} == {
        "config.json",
        "adapter.safetensors",
        "history.json",
        "metrics.json",
    }
    assert (
        qa.QAnchor.from_pretrained(home / "run").config.head_warmup_steps == 5
        and len(qa.load_history(home / "run")) == 3
    )
    assert not list(home.glob(".run*"))  # no checkpoint, nothing half-written


@pytest.mark.weights
def test_fit_keeps_a_run_that_every_command_takes(qanchor, home, tmp_path):
    run = tmp_path / "fitted"
    told = qanchor("fit", "--users", home / "users", "--out", run, "--json").json()
    assert told["concepts"] > 50
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "reader.safetensors",
        "concepts.json",
        "metrics.json",
    }
    given = ("--run", run, "--users", home / "users", "--json")
    asked = qanchor("ask", QUERY, *given, "--top", "60").json()
    assert len(asked["top"]) == 60
    assert asked["answerable"]
    assert asked["evidence"]
    others = qa.make_sample_users(60)
    events = others.events.assign(
        modality=others.events["modality"].cat.rename_categories({"app": "radio"})
    )
    qa.Users.from_events(events, others.cutoff, name="others").save(tmp_path / "others")
    done = qanchor("ask", QUERY, "--run", run, "--users", tmp_path / "others", "--strict")
    assert done.code == 2
    assert "'radio', a modality that is new to the run" in done.err
    files = ("--queries", home / "queries.txt", "--out", tmp_path / "none")
    done = qanchor("embed", "--run", run, "--users", tmp_path / "others", *files, "--strict")
    assert done.code == 2 and "'radio'" in done.err and not (tmp_path / "none").exists()
    probed = qanchor("probe", "--query", QUERY, "--label", "Active", *given).json()
    assert 0 <= probed["auc"] <= 1
    qanchor("embed", *given, "--queries", home / "queries.txt", "--out", tmp_path / "z")
    assert len(list((tmp_path / "z").glob("part-*.parquet"))) >= 1
    prompt = tmp_path / "prompt"
    tuned = ("tune-prompt", "--query", QUERY, "--label", "Active", "--out", prompt, "--steps", "10")
    assert qanchor(*tuned, *given).json()["n_test"] > 0
    assert qa.SoftPrompt.load(prompt, qa.Engine(qa.QAnchor.from_pretrained(run))).query == QUERY


def test_check_tells_what_is_there(qanchor, home):
    done = qanchor("check", home / "users", "--json")
    told = done.json()
    assert (
        done.code == 0
        and told["users"] == 60
        and told["modalities"]["bill"] > 0
        and told["labels"]["Fraud"] == 60
    )
    assert 0 < told["history"] < told["events"]
    done = qanchor("check", home / "users")
    assert done.code == 0 and "are events" in done.out and "modalities: bill" in done.out


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
    assert "training: 1 day of history" in done.out
    done = qanchor("check", tmp_path / "mine", "--fix", tmp_path / "out", "--json")
    assert done.code == 0 and done.json()["events"] == 1 == done.json()["report"]["dropped"]
    assert qanchor("check", tmp_path / "out").code == 0
    done = qanchor("check", tmp_path / "mine", "--fix", tmp_path / "out")
    assert done.code == 2 and "holds something already" in done.err


def test_ask_ranks_users_and_lets_the_model_speak(qanchor, home):
    done = qanchor(
        "ask", "--run", home / "run", "--users", home / "users", QUERY, "--top", 3, "--json"
    )
    told = done.json()
    assert (
        done.code == 0 and told["query"] == QUERY and told["users"] == 60 and len(told["top"]) == 3
    )
    scores = [row["score"] for row in told["top"]]
    assert scores == sorted(scores, reverse=True) and all(
        set(row) == {"user", "score", "answer"} for row in told["top"]
    )
    words = qanchor("ask", "--run", home / "run", "--users", home / "users", QUERY, "--top", 2)
    assert words.code == 0 and words.out.startswith(
        f"{QUERY} (60 users; interpreted as a question about "
    )
    assert told["top"][0]["user"] in words.out and told["topics"][0] in words.out
    # to a tiny model other words are another question
    warning = (
        "Training contained no similar question, so the result mostly shows the general "
        "profile of each user."
    )
    assert told["warning"] == warning and words.out.rstrip().endswith(warning)


def test_embed_writes_parts_and_goes_on(qanchor, home, tmp_path):
    words = (
        "embed",
        "--run",
        home / "run",
        "--users",
        home / "users",
        "--queries",
        home / "queries.txt",
    )
    words += ("--out", tmp_path / "out", "--shards", 3, "--json")
    done = qanchor(*words)
    assert done.code == 0 and done.json()["users"] == 60 and done.json()["made"] == 3
    assert done.json()["queries"] == [QUERY, "Is this user a driver?"]
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 3
    frame = pd.read_parquet(tmp_path / "out", filters=[("query", "==", QUERY)]).sort_values("user")
    z = np.stack(frame["embedding"])
    users = qa.load_users(home / "users")
    engine = qa.Engine(qa.QAnchor.from_pretrained(home / "run"))
    assert tuple(frame["user"]) == users.ids and z.dtype == np.float16
    np.testing.assert_allclose(z, engine.embed(engine.prefill(users), QUERY), atol=1e-3)
    assert qanchor(*words).json()["made"] == 0
    done = qanchor(*words[:-2], 2)
    assert done.code == 2 and "shards 3, wanted is 2: name another folder" in done.err
    assert "there are local, torchrun, ray" in qanchor(*words, "--backend", "carrier pigeon").err


@pytest.mark.parametrize("file", ["labels.csv", "labels.parquet"])
def test_probe_reads_csv_and_parquet(qanchor, home, file):
    done = qanchor(
        *("probe", "--run", home / "run", "--users", home / "users"),
        *("--query", QUERY, "--labels-file", home / file, "--seed", 3, "--json"),
    )
    told = done.json()
    assert (
        done.code == 0 and told["n"] == 60 and told["seed"] == 3 and set(told["machine"]) == MACHINE
    )
    assert (
        0 <= told["auc_low"] <= told["auc"] <= told["auc_high"] <= 1
        and 0 <= told["ks"] <= 1
        and told["positives"] > 5
    )


@pytest.mark.slow
def test_probe_takes_another_column(qanchor, home):
    words = ("probe", "--run", home / "run", "--users", home / "users", "--query", QUERY, "--json")
    other = qanchor(*words, "--labels-file", home / "users" / "labels.parquet", "--label", "Active")
    assert (
        other.code == 0
        and other.json()["auc"]
        == qanchor(*words, "--labels-file", home / "labels.csv").json()["auc"]
    )
    assert other.json()["auc"] == qanchor(*words, "--label", "Active").json()["auc"], (
        "the users' own label needs no file"
    )


def test_probe_keeps_each_label_with_its_user(qanchor, home, tmp_path):
    labels = pd.read_csv(home / "labels.csv")
    mixed = pd.concat(
        [
            labels.sample(frac=1, random_state=0),
            pd.DataFrame({"user": ["stranger"], "label": [1.0]}),
        ]
    )
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    told = [
        qanchor(
            "probe",
            "--run",
            home / "run",
            "--users",
            home / "users",
            "--query",
            QUERY,
            "--labels-file",
            f,
            "--json",
        ).json()
        for f in (home / "labels.csv", tmp_path / "mixed.csv")
    ]
    assert told[0]["auc"] == told[1]["auc"] and told[1]["n"] == 60


@pytest.mark.slow
def test_tune_keeps_a_prompt_and_judges_it_on_others(qanchor, home, tmp_path):
    words = (
        "tune-prompt",
        "--run",
        home / "run",
        "--users",
        home / "users",
        "--query",
        QUERY,
        "--steps",
        10,
    )
    words += ("--init", "search", "--json")
    done = qanchor(
        *words, "--labels-file", home / "labels.csv", "--out", tmp_path / "soft", "--seed", 1
    )
    told = done.json()
    assert (
        done.code == 0
        and told["n_test"] == told["n_tuning"] == 30
        and told["seconds"] > 0
        and told["seed"] == 1
        and told["seek"]
    )
    assert all(
        0 <= low <= told[side]["auc"] + 0.05 and high <= 1
        for side, (low, high) in told["intervals"].items()
    )
    for part in ("before", "after", "prototype"):
        assert set(told[part]) >= {"auc", "ks"} and all(
            -1 <= value <= 1 for value in told[part].values()
        )
    engine = qa.Engine(qa.QAnchor.from_pretrained(home / "run"))
    prompt = qa.SoftPrompt.load(tmp_path / "soft", engine)
    assert prompt.query == QUERY and engine.embed(
        engine.prefill(qa.load_users(home / "users")), prompt
    ).shape == (60, 32)
    plain = qanchor(
        *words[:-1],
        "--labels-file",
        home / "labels.parquet",
        "--out",
        tmp_path / "soft",
        "--no-gate",
    )
    assert plain.code == 0 and "On 30 held-out users, AUC is" in plain.out
    assert not qa.SoftPrompt.load(tmp_path / "soft", engine).offset.any() and [
        p.name for p in tmp_path.iterdir()
    ] == ["soft"]


class Killed(BaseException):
    """Stand for a machine that goes away."""


@pytest.mark.slow
def test_a_killed_training_is_resumed(qanchor, home, tmp_path, monkeypatch):
    words = (
        "train",
        "--preset",
        "tiny",
        "--users",
        home / "users",
        "--out",
        tmp_path / "run",
        "--steps",
        52,
        "--json",
    )
    words += (
        "--set",
        "train_batch_size=2",
        "--set",
        "queries_per_user=2",
        "--set",
        "max_answer_tokens=6",
    )
    show = progress.ProgressBars.__call__

    def killed(self, stage, done, total, loss=float("nan")):
        if stage == "training" and done == 51:
            raise Killed
        return show(self, stage, done, total, loss)

    with monkeypatch.context() as patch:
        patch.setattr(progress.ProgressBars, "__call__", killed)
        with pytest.raises(Killed):
            qanchor(*words)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".run.checkpoint",
        ".run.checkpoint.before",
    ]
    seen = []
    monkeypatch.setattr(
        progress.ProgressBars, "__call__", lambda self, *told: seen.append(told[:2])
    )
    done = qanchor(*words, "--resume")
    assert (
        done.code == 0
        and done.json()["steps"] == 52
        and ("training", 51) in seen
        and ("training", 50) not in seen
    )
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and len(
        qa.load_history(tmp_path / "run")
    ) == 52


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ask", "tune-prompt", "train"])
def test_a_busy_machine_is_warned_of(qanchor, home, tmp_path, monkeypatch, command):
    monkeypatch.setattr(cli, "busy_reason", lambda: "9 programs were at work")
    words = {
        "ask": ("ask", QUERY, "--run", home / "run", "--users", home / "users", "--top", 0),
        "tune-prompt": (
            "tune-prompt",
            "--run",
            home / "run",
            "--users",
            home / "users",
            "--query",
            QUERY,
            "--label",
            "Active",
        ),
        "train": (
            "train",
            "--preset",
            "tiny",
            "--users",
            home / "users",
            "--steps",
            1,
            "--set",
            "num_cutoffs=1",
        ),
    }[command]
    out = () if command == "ask" else ("--out", tmp_path / "out")
    done = qanchor(*words, *out, *(("--steps", 0) if command == "tune-prompt" else ()))
    assert (
        done.code == 0
        and done.err.count("warning: 9 programs were at work") == 1
        and "warning: 9" not in done.out
    )


@pytest.mark.slow
def test_train_numbers_its_phases(qanchor, home, tmp_path):
    words = (
        "train",
        "--preset",
        "tiny",
        "--users",
        home / "users",
        "--out",
        tmp_path / "run",
        "--steps",
        2,
    )
    done = qanchor(
        *words,
        "--set",
        "num_cutoffs=2",
        "--set",
        "head_warmup_steps=3",
        "--set",
        "head_refit_steps=3",
    )
    phases = [
        "fitting the preprocessor",
        *("reading queries and answers", "warm start", "joint steps"),
    ]
    phases += ["reading queries and answers", "last fit"]
    assert done.code == 0
    assert all(f"{number} of 6: {words}: " in done.err for number, words in enumerate(phases, 1)), (
        done.err
    )


@pytest.mark.slow
def test_a_dtype_that_was_asked_for_stands(qanchor, home, tmp_path, monkeypatch):
    monkeypatch.setattr("qanchor.utils.device.has_fast_bf16", lambda: False)
    found, train = [], qa.train

    def watched(model, *told, **how):
        found.append(str(model.backbone.dtype))
        return train(model, *told, **how)

    monkeypatch.setattr(qa, "train", watched)
    words = (
        "train",
        "--preset",
        "tiny",
        "--users",
        home / "users",
        "--out",
        tmp_path / "run",
        "--steps",
        1,
    )
    done = qanchor(*words, "--set", "num_cutoffs=1", "--set", "dtype=bfloat16")
    assert done.code == 0 and found == ["torch.bfloat16"]


def test_ask_shows_what_it_does_after_the_users_are_read(qanchor, home, monkeypatch):
    seen = []
    monkeypatch.setattr(progress.ProgressBars, "__call__", lambda self, *told: seen.append(told))
    assert (
        qanchor("ask", QUERY, "--run", home / "run", "--users", home / "users", "--top", 1).code
        == 0
    )
    assert (
        seen[0][0] == "reading users"
        and seen[-1][0] != "reading users"
        and seen[-1][1] == seen[-1][2]
    )


@pytest.mark.parametrize("command", ["tune-prompt", "train"])
def test_a_stop_says_what_goes_on(qanchor, home, tmp_path, monkeypatch, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_users", interrupted)
    words = (
        ("--run", home / "run", "--query", QUERY)
        if command == "tune-prompt"
        else ("--preset", "tiny")
    )
    done = qanchor(command, "--users", home / "users", "--out", tmp_path / "out", *words)
    assert done.code == 130 and done.err.splitlines()[-1] == cli.interrupted_message(command)
    assert ("--resume" in done.err) == (command == "train") and ("start over" in done.err) == (
        command == "tune-prompt"
    )


ERRORS = {
    "no such users": (["check", "nowhere"], "nowhere does not exist. Give the path of a file"),
    "no such data": (
        ["ask", "--run", "RUN", "--users", "mars", "Q"],
        "mars: no such file or folder. Give one, world",
    ),
    "odd world": (
        ["ask", "--run", "RUN", "--users", "world:many", "Q"],
        "'many' is not a number of users",
    ),
    "no users": (["ask", "--run", "RUN", "--users", "world:0", "Q"], "at least 1 user"),
    "odd cut-off": (["ask", "--run", "RUN", "--users", "journey:soon", "Q"], "soon"),
    "no run": (
        ["ask", "--run", "nowhere", "--users", "USERS", "Q"],
        "nowhere is no run (no config.json): train one",
    ),
    "long query": (
        ["ask", "--run", "RUN", "--users", "USERS", "x" * 600],
        "600 tokens, the model allows 512: ask in fewer",
    ),
    "no query file": (
        ["embed", "--run", "RUN", "--users", "USERS", "--queries", "none.txt", "--out", "o"],
        "none.txt",
    ),
    "no label file": (
        ["probe", "--run", "RUN", "--users", "USERS", "--query", "Q", "--labels-file", "none.csv"],
        "none.csv",
    ),
    "no label said": (
        ["probe", "--run", "RUN", "--users", "USERS", "--query", "Q"],
        "has 10 labels, and no name was given. Choose one",
    ),
    "no such label": (
        ["probe", "--run", "RUN", "--users", "USERS", "--query", "Q", "--label", "luck"],
        "no label 'luck' in",
    ),
    "odd preset": (
        ["train", "--preset", "huge", "--users", "USERS", "--out", "o"],
        "huge: there are tiny, small, medium, full",
    ),
    "odd field": (
        ["train", "--preset", "tiny", "--users", "USERS", "--out", "o", "--set", "wings=2"],
        "no field 'wings'",
    ),
    "no value": (
        ["train", "--preset", "tiny", "--users", "USERS", "--out", "o", "--set", "lr"],
        "name=value, like lora_learning_rate=0.001",
    ),
    "odd value": (
        [
            "train",
            "--preset",
            "tiny",
            "--users",
            "USERS",
            "--out",
            "o",
            "--set",
            "embedding_dim=wide",
        ],
        "embedding_dim",
    ),
    "below one": (
        ["train", "--preset", "tiny", "--users", "USERS", "--out", "o", "--set", "embedding_dim=0"],
        "must be at least 1",
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
        "run holds 'adapter.safetensors' and no prompt.json: name a new folder",
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
            "user,label\nu000000,2\n",
            "labels.csv, row 0, column 'label': '2': a label is 0, 1 or empty",
        ),
        (
            "user,label\nu000000,1\nu000000,0\n",
            "labels.csv, row 1, column 'user': 'u000000': given twice",
        ),
        (
            "user,truth,odd\nu000000,1,0\n",
            "column 'label': ['user', 'truth', 'odd']: missing. Write it, or name another",
        ),
        ("user,label\nnobody,1\n", "none of these users has an event"),
        ("user,label\nu000000,1\nu000001,0\n", "1 positives and 1 negatives do not fill 5 fold(s)"),
        ("user,label\nu000000,maybe\n", "column 'label'"),
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
        and "queries.txt has 0 queries: write one a line" in done.err
        and not (tmp_path / "out").exists()
    )


def test_a_torn_run_is_told(qanchor, home, tmp_path):
    (tmp_path / "config.json").write_text("{")
    done = qanchor("ask", "--run", tmp_path, "--users", home / "users", "Why?")
    assert done.code == 2 and "the file is torn, copy the run again" in done.err


def test_data_sets_have_names():
    assert len(cli.open_users("world:5")) == 5 and cli.open_users("world:5").name == "world"
    with pytest.raises(
        FileNotFoundError,
        match=r"mars: no such file or folder. Give one, world\[:N\] or journey\[:CUTOFF\]",
    ):
        cli.open_users("mars")


def test_help_lists_every_command(qanchor):
    done = qanchor("--help")
    assert done.code == 0 and all(
        c in done.out
        for c in (
            "check",
            "train",
            "ask",
            "embed",
            "probe",
            "tune-prompt",
            "make-pairs",
            "download-weights",
        )
    )


def test_a_folder_of_that_name_does_not_hide_the_package(tmp_path):
    (tmp_path / "qanchor").mkdir()  # a clone, seen from above
    command = [sys.executable, "-m", "qanchor", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: python -m qanchor" in done.stdout, done.stderr
