"""Bench `coles`: a peer, CoLES of pytorch-lifestream, beside ours on the same labels and folds."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.users import Users
from qanchor.models.text_encoder import text_vectors
from qanchor.utils.types import StageProgress
from tests.benchmarks.baselines import baseline_features
from tests.benchmarks.engines import open_engine, with_label_horizon
from tests.benchmarks.task_scores import cross_validate_tasks, task_frame
from tests.benchmarks.tasks import askable, averages, embeddings_by_question, interval

WORKER = Path(__file__).with_name("coles_worker.py")
BESIDE = ("rfm", "rfm_svd", "minilm_rfm")  # the plain features that stand beside it


def coles(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 5,
    *,
    peer: str = "",
    epochs: int = 15,
    progress: StageProgress = lambda stage, done, total: None,
) -> dict:
    """Score the labels by probes on the embeddings of CoLES, alone and beside RFM, on ours and on
    plain features.

    `average` has each method's AUC with an interval, `anchor_minus` by how much ours (under each
    task's own question) is above, paired, `seconds` the time that CoLES took to train and embed.

    Args:
        users: Returns the users.
        run: Folder of a run. Default: fit a model to the users.
        seeds: Repetitions of the cross-validation (default 5).
        peer: Python of an environment with `pip install torch pytorch-lifestream
            "dask[distributed]" onnxruntime pyarrow`.
        epochs: Of the training of CoLES (default 15).
        progress: Called with (stage, done, total).
    """
    if not peer:
        raise ValueError(
            "coles needs --peer: the Python of an environment with pytorch-lifestream."
        )
    people = with_label_horizon(users())
    names = askable(people)
    begin = time.monotonic()
    theirs = embed_by_peer(people, peer, epochs)
    seconds = time.monotonic() - begin
    engine = open_engine(run, people, progress)
    cache = engine.prefill(people)
    texts = list(people.events["text"].cat.categories)
    plain = baseline_features(people, text_vectors(texts, engine.model.config.text_encoder))
    features: dict = {"coles": theirs, "coles_rfm": np.hstack([theirs, plain["rfm"]])}
    features |= {name: plain[name] for name in BESIDE}
    features["anchor"] = embeddings_by_question(engine, cache, people, names, ("right",), progress)[
        "right"
    ]
    held = cross_validate_tasks(
        people, features, names, seeds=seeds, progress=partial(progress, "probes")
    )
    frame = task_frame(people, held)
    others = [name for name in features if name != "anchor"]
    return {
        "data": people.name,
        "users": len(people),
        "seeds": seeds,
        "epochs": epochs,
        "seconds": round(seconds),
        "average": averages(frame),
        "anchor_minus": {name: interval(people, held, "anchor", minus=name) for name in others},
        "tasks": frame[frame["task"] != "average"].to_dict("records"),
    }


def embed_by_peer(people: Users, peer: str, epochs: int) -> np.ndarray:
    """Train the peer in its own environment, and return its embeddings in the order of the users.

    Args:
        people: The users; events at or after the cut-off are not handed over.
        peer: Python of its environment.
        epochs: Of its training.

    Raises:
        RuntimeError: It fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "events.parquet"), Path(folder, "users.npy")
        peer_events(people).to_parquet(given, index=False)
        command = [peer, str(WORKER), str(given), str(made), str(epochs)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"{peer} failed:\n{done.stderr[-2000:]}")
        rows = np.load(made)
    if len(rows) != len(people):
        raise RuntimeError(f"{peer} gave {len(rows)} rows for {len(people)} users.")
    return rows


def peer_events(people: Users) -> pd.DataFrame:
    """Return the events before the cut-off as codes, which are what CoLES reads: 0 is its padding.

    A user without events gets one that says nothing.
    """
    past = people.history().sort_values("time", kind="stable")
    times = past["time"]
    frame = pd.DataFrame({"user": past["user"].cat.codes.to_numpy()})
    frame["event_time"] = (times.astype("int64") / times.astype("int64").max()).to_numpy()
    for name in ("text", "modality"):
        frame[name] = past[name].cat.codes.to_numpy().astype(int) + 1
    frame["weekday"] = times.dt.day_of_week.to_numpy() + 1
    frame["hour"] = times.dt.hour.to_numpy() + 1
    for place, name in enumerate(people.numbers):
        frame[f"number_{place}"] = past[name].fillna(0.0).to_numpy(np.float32)
    silent = np.setdiff1d(np.arange(len(people)), frame["user"])
    empty = pd.DataFrame(0, index=silent, columns=frame.columns).assign(user=silent)
    return pd.concat([frame, empty], ignore_index=True).sort_values("user", kind="stable")
