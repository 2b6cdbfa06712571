"""What can go wrong does: a killed writer, a full disk, a folder that may not be written, Ctrl-C,
odd names, an odd clock.
"""

import json
import os
import resource
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_session import FakeSession
from safetensors import SafetensorError

import qanchor as qa
from qanchor import cli
from qanchor.data.export import export_group
from qanchor.errors import DataError, RunError
from qanchor.models.text_encoder import VectorTable
from qanchor.training.checkpoint import Checkpoint
from qanchor.training.pairs import write_pairs
from qanchor.utils.arrays import LRUCache
from qanchor.utils.hashing import sha256_file
from qanchor.widgets import ResultCard, Workbench
from tests.tiny import fit_quickly, make_model, make_task, make_users

USERS = make_users()
QUERY = "Will this user buy tea?"


def vectors(new) -> np.ndarray:
    return np.ones((len(new), 384), np.float16)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    folder = make_model().save_pretrained(tmp_path_factory.mktemp("run") / "run")
    engine = qa.Engine(qa.QAnchor.from_pretrained(folder))
    cache = engine.prefill(USERS)
    return engine, qa.tune_prompt(engine, cache, QUERY, USERS.label("odd"), steps=2)[0]


@pytest.fixture(scope="module")
def writers(prompt) -> dict:
    """Whatever writes a file or a folder: called with a folder, each keeps something in it; and how
    it is read back.
    """
    import torch

    engine, soft = prompt
    model = make_model()
    bench = Workbench(FakeSession())

    def pairs(folder: Path) -> None:
        if not (folder / "pairs").exists():  # it is never written over
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("qanchor.training.pairs.make_concept_task", lambda *_: make_task())
                write_pairs(USERS, folder / "pairs", per_user=1)

    def session(folder: Path) -> None:
        bench._session_path = folder / "session.json"
        bench.save()

    return {
        "users": (lambda f: USERS.save(f / "users"), lambda f: qa.load_users(f / "users")),
        "run": (
            lambda f: model.save_pretrained(f / "run"),
            lambda f: qa.QAnchor.from_pretrained(f / "run"),
        ),
        "prompt": (
            lambda f: soft.save(f / "prompt"),
            lambda f: qa.SoftPrompt.load(f / "prompt", engine),
        ),
        "session": (session, lambda f: Workbench(FakeSession(), session=f / "session.json")),
        "claim": (
            lambda f: ResultCard("It is so.").save(f / "card.html"),
            lambda f: ResultCard.load(f / "card.html"),
        ),
        "export": (
            lambda f: export_group(USERS, USERS.ids[:12], f / "a.csv"),
            lambda f: pd.read_csv(f / "a.csv"),
        ),
        "checkpoint": (
            lambda f: Checkpoint(f / "state", "key").write({"weight": torch.ones(999)}),
            lambda f: Checkpoint(f / "state", "key").read(),
        ),
        "pairs": (pairs, lambda f: parquet(f / "pairs")),
        "texts": (
            lambda f: VectorTable(f / "texts").lookup([f"text {i}" for i in range(99)], vectors),
            lambda f: VectorTable(f / "texts").lookup([f"text {i}" for i in range(99)], vectors),
        ),
    }


def parquet(folder: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(path) for path in folder.glob("*.parquet")]


WRITERS = ["users", "run", "prompt", "session", "claim", "export", "checkpoint", "pairs", "texts"]


def visible(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in found if path.name != "lock"
    }


@contextmanager
def small_disk(size: int):
    """Let no file grow beyond `size` bytes, as a disk that is full: anybody may say so of their own
    process.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_the_old_file(writers, name, tmp_path):
    write, read = writers[name]
    with small_disk(16), pytest.raises(OSError, match=r"File too large|too large|disk"):
        write(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
    write(tmp_path)  # there is room again
    read(tmp_path)
    before = visible(tmp_path)
    if name not in ("pairs", "texts"):  # those write nothing when all is there
        with small_disk(16), pytest.raises(OSError, match=r"too large"):
            write(tmp_path)
    assert visible(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_at_any_moment_leaves_what_was_there(writers, name, tmp_path):
    """A child is killed when it would put its first, second ... file in its place; then all is as
    it was, or new and whole.
    """
    write, read = writers[name]
    for moment in (1, 2, 3):
        if moment == 2 and name != "pairs":
            write(tmp_path)
        if not killed(write, tmp_path, moment):
            break
        if moment > 1 and name != "pairs":
            read(tmp_path)
    write(tmp_path)
    read(tmp_path)


def killed(write, folder: Path, moment: int) -> bool:
    """Run `write` in a child that is killed at its `moment`-th rename or open for appending; was
    it?
    """
    sys.stdout.flush()
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    count = 0
    for change in ("replace", "rename", "open"):
        real = getattr(Path, change)

        def counted(self, *words, real=real, change=change, **named):
            nonlocal count
            count += change != "open" or words[:1] == ("ab",)
            if count >= moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *words, **named)

        setattr(Path, change, counted)
    try:
        write(folder)
    finally:
        os._exit(0)


@contextmanager
def ordinary():
    """Be nobody in particular for a while: no permission binds root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written_is_told(writers, name, tmp_path):
    write, _ = writers[name]
    write(tmp_path)  # all is imported before rights are given up
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        with ordinary(), pytest.raises(OSError, match=r"Permission denied|unable to open"):
            write(folder)
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o755)
        folder.rmdir()


@pytest.mark.parametrize("name", WRITERS)
def test_any_name_of_a_folder_will_do_and_a_clock_set_back_changes_nothing(writers, name, tmp_path):
    write, read = writers[name]
    folder = tmp_path / "it's \u00e4 f\u00f6lder; 100 % [of] \u7528\u6237"
    folder.mkdir()
    write(folder)
    for path in folder.rglob("*"):
        os.utime(path, (4e9, 4e9))  # written in the year 2096
    before = visible(folder)
    read(folder)
    if name in ("pairs", "texts"):
        write(folder)
        assert visible(folder) == before  # what is there stands, whatever its time


@pytest.fixture
def listening():
    """What was started in the background hears no Ctrl-C: hear it all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("command", "moment"), [("embed", 1), ("embed", 2), ("fit", 1)])
def test_ctrl_c_leaves_nothing_half_written_and_it_goes_on(
    command, moment, tmp_path, monkeypatch, capsys
):
    users, out = USERS.save(tmp_path / "users"), tmp_path / "out"
    words = ["qanchor", command, "--users", users, "--out", out]
    if command == "embed":
        make_model().save_pretrained(tmp_path / "run")
        (tmp_path / "queries").write_text("Why?\n")
        words += ["--run", tmp_path / "run", "--queries", tmp_path / "queries", "--shards", 2]
    else:
        monkeypatch.setattr(qa, "fit", fit_from_folder)
        words += ["--backbone", "tiny", "--steps", 12]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    replace, count = Path.replace, 0

    def pressed(self, target):
        nonlocal count
        count += 1
        if count == moment:
            signal.raise_signal(signal.SIGINT)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", pressed)
        assert cli.main() == 130 and count == moment
    assert "Run the same command to resume" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))
    assert not (out / "_manifest.json").exists() and not (out / "config.json").exists()
    assert cli.main() == 0
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.glob(".out*"))


def fit_from_folder(users, minutes, **options):
    """Fit the users of this file quickly, as `qanchor fit` asks."""
    assert users.ids == USERS.ids and minutes is None
    return fit_quickly(**options)


def test_a_run_that_only_looks_whole_is_refused(tmp_path):
    path = make_model().save_pretrained(tmp_path / "run") / "reader.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    about["sha256"][path.name] = sha256_file(path)
    (tmp_path / "run" / "config.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"reader.safetensors: .*train the run again") as error:
        qa.QAnchor.from_pretrained(tmp_path / "run")
    assert isinstance(error.value.__cause__, SafetensorError)


def test_half_a_character_is_refused_in_a_table_and_borne_in_a_query():
    events = pd.DataFrame({"user": ["a"], "time": ["2025-01-01"], "modality": ["bill"]}).astype(
        object
    )
    with pytest.raises(
        DataError,
        match=r"row 0, column 'text': .*half a character \(a lone surrogate\)\. Remove it",
    ):
        qa.Users.from_events(events.assign(text=pd.Series(["tea \ud83c"], dtype=object)))
    engine = qa.Engine(make_model("crossing"))
    cache = engine.prefill(USERS)
    assert np.allclose(
        np.linalg.norm(engine.embed(cache, "Is it \udfff tea?"), axis=1), 1, atol=1e-4
    )


def test_caches_keep_to_their_bounds_and_answers_stay_the_same(monkeypatch):
    monkeypatch.setattr("qanchor.analysis.embedding_cache.MAX_CACHED_QUERIES", 3)
    session = qa.WorkbenchSession(qa.Engine(make_model()), USERS, method="pca")
    first = session.compare("", "Will this user travel soon?").data["transitions"]
    lens = session.lens
    assert lens.embeddings is session.embedding_cache.embeddings
    assert (
        session.matrix.embedding_cache is session.explain.embedding_cache is session.embedding_cache
    )
    for k in range(6):
        list(lens(f"Why {k}?"))
    assert len(lens.embeddings) == 3 and isinstance(lens.embeddings, LRUCache)
    pd.testing.assert_frame_equal(
        session.compare("", "Will this user travel soon?").data["transitions"], first
    )
    assert len(lens.embeddings) == 3
    session.explain.questions = ["A?", "B?", "C?", "D?", "E?"]  # more than are cached
    *_, last = session.explain(USERS.ids[:12])
    assert len(last.data["frame"]) == 5 and len(lens.embeddings) == 3
    list(lens("F?", "A?"))
    assert "F?" in lens.embeddings and "A?" in lens.embeddings
