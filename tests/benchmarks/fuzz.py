"""Bench `fuzz`: strange files and words by the thousand; each must end in a result or an error of
our own.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import qanchor as qa
from qanchor.data.export import export_group
from qanchor.data.labels import read_labels
from qanchor.data.reading import check_folder as check
from qanchor.data.reading import load_users
from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.models.text_encoder import VectorTable
from qanchor.training.checkpoint import Checkpoint
from qanchor.utils.hashing import sha256_file
from tests.benchmarks.strange import Draw

ROOT = Path(__file__).parents[2]
OUR_FOLDER = ROOT / "qanchor"  # with the views
HANG = 20  # seconds
FITTED = 60  # users that the good run is fitted to
ABOUT = {"name": "a", "cutoff": "2025-02-01", "horizon_days": 30, "modalities": []}


class Place:
    """Hold one good thing of each kind, and a folder in which copies of them are broken."""

    def __init__(self, folder: Path):
        self.good, self.work = folder / "good", folder / "work"
        self.users = make_sample_users(12)
        known = make_sample_users(FITTED)
        model = qa.fit(known, text_encoder="hash", steps=1, progress=False)
        model.save_pretrained(self.good / "run")
        self.engine = qa.Engine(qa.QAnchor.from_pretrained(self.good / "run"))
        self.cache = self.engine.prefill(self.users.select(self.users.ids[:4]))
        self.events = (
            self.users.events.groupby("modality", observed=True).head(2).astype({"user": str})
        )
        self.events = (
            self.events[["user", "time", "modality", "text"]]
            .assign(amount=1.5)
            .reset_index(drop=True)
        )
        self.facts = pd.DataFrame({"user": self.events["user"].unique()}).assign(
            **{"age.years": 30.0}
        )
        self.labels = pd.DataFrame({"user": list(self.users.ids), "label": [0, 1] * 6})
        self.users.save(self.good / "users")
        cache = self.engine.prefill(known)
        prompt, _ = qa.tune_prompt(self.engine, cache, "Why?", known.label("Active"), steps=0)
        prompt.save(self.good / "prompt")
        Checkpoint(self.good / "state" / "state", "key").write(
            {"weight": torch.ones(9), "step": 10}
        )
        VectorTable(self.good / "table").lookup(["tea", "rice"], self.vectors)

    @staticmethod
    def vectors(new: list[str]) -> np.ndarray:
        return np.ones((len(new), 8), np.float16)

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.good / name, self.work / name))


def users_of(draw: Draw, place: Place) -> None:
    table = draw.table(place.events)
    Users.from_events(
        table,
        draw.one([None, "2025-02-01", draw.words()]),
        tabular=draw.table(place.facts.set_index("user")),
    )


def folder_of(draw: Draw, place: Place, checked: bool = False) -> None:
    folder = place.work / draw.one(["data", "d\u00e4ta of mine"])
    folder.mkdir()
    draw.csv(place.events, folder / "events.csv")
    if draw.chance(0.3):
        draw.csv(place.facts, folder / "users.csv")
    if draw.chance(0.3):
        (folder / "about.json").write_text(json.dumps(ABOUT))
        draw.json(folder / "about.json")
    if checked:
        told, words = check(folder, folder.with_name("mended") if draw.chance(0.5) else None)
        assert json.dumps(told) and words
    else:
        load_users(folder)


def check_of(draw: Draw, place: Place) -> None:
    folder_of(draw, place, checked=True)


def parquet_of(draw: Draw, place: Place) -> None:
    path = place.copy("users") / draw.one(["events.parquet", "users.parquet", "labels.parquet"])
    path.write_bytes(draw.damage(path.read_bytes()))
    load_users(path.parent)


def labels_of(draw: Draw, place: Place) -> None:
    draw.csv(place.labels, place.work / "labels.csv")
    read_labels(place.work / "labels.csv", "label", place.users)


def run_of(draw: Draw, place: Place) -> None:
    folder = place.copy("run")
    told = json.loads((folder / "config.json").read_text())
    if draw.chance(0.5):  # damaged with a hash that fits: what the hash cannot tell
        path = folder / "reader.safetensors"
        data = path.read_bytes()
        path.write_bytes(
            draw.damage(data[:4000]) + data[4000:] if draw.chance(0.7) else draw.damage(data)
        )
        told["sha256"]["reader.safetensors"] = sha256_file(path)
        (folder / "config.json").write_text(json.dumps(told))
    else:
        draw.json(folder / "config.json")
        if _names_a_model(folder / "config.json"):
            return
    qa.QAnchor.from_pretrained(folder)


def _names_a_model(path: Path) -> bool:
    """Tell whether it asks for another backbone or encoder: a folder or a hub's, which is not
    fetched here.
    """
    try:
        config = json.loads(path.read_bytes())["config"]
        named = config["backbone"], config["text_encoder"]
    except (ValueError, LookupError, TypeError):
        return False
    return all(isinstance(name, str) for name in named) and named != ("none", "hash")


def prompt_of(draw: Draw, place: Place) -> None:
    folder = place.copy("prompt")
    if draw.chance(0.3):
        path = folder / "prompt.safetensors"
        path.write_bytes(draw.damage(path.read_bytes()))
        told = json.loads((folder / "prompt.json").read_text()) | {"sha256": sha256_file(path)}
        (folder / "prompt.json").write_text(json.dumps(told))
    else:
        draw.json(folder / "prompt.json")
    qa.SoftPrompt.load(folder, place.engine)


def checkpoint_of(draw: Draw, place: Place) -> None:
    path = place.copy("state") / "state"
    path.write_bytes(draw.damage(path.read_bytes()))
    Checkpoint(path, "key").read()


def table_of(draw: Draw, place: Place) -> None:
    path = place.work / "table"
    path.write_bytes(draw.damage((place.good / "table").read_bytes()))
    assert VectorTable(path).lookup(["tea", draw.words()], place.vectors).shape == (2, 8)


def query_of(draw: Draw, place: Place) -> None:
    z = place.engine.embed(place.cache, draw.words())
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-3)


def answer_of(draw: Draw, place: Place) -> None:
    found = place.engine.rank(place.cache, draw.words())
    assert len(found) == 4
    assert found["score"].notna().all() == found.attrs["answerable"]


def export_of(draw: Draw, place: Place) -> None:
    names = [f"{k} {draw.words()}" if draw.chance(0.5) else f"{draw.words()}{k}" for k in range(5)]
    texts = [draw.words() for _ in names]
    rows = zip(names, ["2025-01-01"] * 5, [draw.words() for _ in names], texts, strict=True)
    users = Users.from_events(
        pd.DataFrame(rows, columns=["user", "time", "modality", "text"], dtype=object)
    )
    path = export_group(users, users.ids[:3], place.work / "some.csv", least=2)
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@")], (
        "a cell that a spreadsheet would run"
    )


def session_of(draw: Draw, place: Place) -> None:
    from qanchor.widgets.workbench import read_session

    path = place.work / "session.json"
    path.write_text(
        json.dumps(
            {"format": 1, "queries": ["Why?"], "chosen": ["u1"], "named": {"some": ["u1", "u2"]}}
        )
    )
    draw.json(path)
    read_session(path, ("u1", "u2", "u3"))


def claim_of(draw: Draw, place: Place) -> None:
    from qanchor.widgets import ResultCard

    card = ResultCard(
        f"A claim {draw.words()}",
        draw.words(),
        value=0.5,
        text=draw.words(),
        more={draw.words(): draw.words()},
    )
    path = card.save(place.work / "claim.html")
    if draw.chance(0.5):
        assert ResultCard.load(path) == card, "a card came back as another"
    else:
        before = path.read_bytes()
        path.write_bytes(draw.damage(before))
        assert ResultCard.load(path) == card, "an edited card was believed"


SELDOM, OFTEN = 3, 8  # times as often as what takes longest
EACH = {check_of: 1, answer_of: 1}
EACH |= dict.fromkeys(
    (users_of, folder_of, parquet_of, run_of, query_of, export_of, session_of), SELDOM
)
EACH |= dict.fromkeys((labels_of, prompt_of, checkpoint_of, table_of, claim_of), OFTEN)
TARGETS = {made.__name__.removesuffix("_of"): made for made in EACH}
ROUND = [
    made.__name__.removesuffix("_of")
    for turn in range(OFTEN)
    for made, times in EACH.items()
    if turn < times
]


def fuzz(users=None, run=None, seeds: int = 0, *, cases: int = 100_000, seed: int = 0) -> dict:
    """Break files and draw strange words, `cases` times, and count how each ended.

    targets   of each kind of input: cases, results, and the errors of our own by class (raised in
              our code, so that they name the place), with one message of each.
    faults    all else: an error that a dependency raised and nobody explained, an assertion, a hang
              of 20 s, a half-written file; the first twenty are told, with the case that makes them
              again. users, run and seeds are not looked at.
    """
    targets = {
        name: {"cases": 0, "results": 0, "errors": Counter(), "example": {}} for name in TARGETS
    }
    faults, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        for case in range(cases):
            name = ROUND[case % len(ROUND)]
            told = targets[name]
            shutil.rmtree(place.work, ignore_errors=True)
            place.work.mkdir()
            told["cases"] += 1
            try:
                with _limit():
                    TARGETS[name](Draw([seed, case]), place)
                told["results"] += 1
            except Exception as error:
                kind = type(error).__name__
                if _ours(error):
                    told["errors"][kind] += 1
                    told["example"].setdefault(
                        kind, str(error)[:200].replace(str(place.work), "...")
                    )
                else:
                    faults.append(
                        {"case": case, "target": name, "error": f"{kind}: {str(error)[:200]}"}
                    )
            if halves := [
                path.name
                for path in place.work.rglob(".*")
                if path.name.endswith((".part", ".new"))
            ]:
                faults.append({"case": case, "target": name, "error": f"half-written: {halves[0]}"})
    seconds = round(time.monotonic() - began)
    return {
        "cases": cases,
        "seconds": seconds,
        "faults": len(faults),
        "first_faults": faults[:20],
        "targets": targets,
    }


def _ours(error: Exception) -> bool:
    """Tell whether a line of ours says `raise`, so that the message is ours; an assertion is a
    fault always.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = OUR_FOLDER in Path(last.filename).parents
    raised = ours and (last.line or "").startswith("raise")
    return raised and not isinstance(error, AssertionError | TimeoutError)


@contextmanager
def _limit():
    """Interrupt what takes too long, where that can be done."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def late(*_):
        raise TimeoutError(f"no end after {HANG} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
