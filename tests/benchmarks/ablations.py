"""Bench `ablations`: a preset trained again and again, each time but for one part, and judged on
the same users and folds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from qanchor.config import SMALL, Config
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.models.model import QAnchor
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.training.trainer import train
from qanchor.useru.pairs import make_pairs
from qanchor.useru.schedule import default_cutoffs
from qanchor.utils.io import atomic_write
from tests.benchmarks.task_scores import average_auc, cross_validate_tasks
from tests.benchmarks.tasks import askable, embeddings_by_question

WHOLE = "as it is"
BOTH = ("right", "wrong")  # the task's own question, and another's
VARIANTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "no contrastive loss": {
        "contrastive_weight": 0.0,
        "head_warmup_steps": 0,
        "head_refit_steps": 0,
    },
    "no autoregressive loss": {"autoregressive_weight": 0.0},
    "no user and modality slots": {"use_summary_tokens": False},
    "with the mask of false negatives": {"false_negative_margin": 0.1},
    "no skip": {"gated_skip": False},
    "no jitter": {"anchor_noise": 0.0},
    "no portrait": {"profile_dim": 0},
    "appendable layout": {"token_order": "append_only"},
    "half the cut-offs": {"num_cutoffs": 3},
    "half the pairs": {"pairs_per_sample": 48},
    "a quarter of the pairs": {"pairs_per_sample": 24},
}
# what the paper's base model loses or gains by the same (average AUC of its ten tasks, .8104 as it
# is; its mask is on)
PAPER = {
    "no contrastive loss": -0.0437,
    "no autoregressive loss": -0.0043,
    "no user and modality slots": -0.0039,
    "with the mask of false negatives": 0.0057,
}


def ablations(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 2,
    *,
    config: Config = SMALL,
    variants: Mapping[str, dict] = VARIANTS,
    progress: Callable[[str, int, int, float], None] | None = None,
) -> dict:
    """Train each variant of `config` on the same users and seed; give average AUCs, and paired
    differences to the whole.

    run   a folder for the variants: what stands there is neither trained nor asked again, so a run
          of hours can be taken up.
          Default: none is kept. A variant is (changed fields of the config); the first is what the
          others are compared with.
    """
    people, held = users(), {}
    names, first = askable(people), next(iter(variants))
    rows = []
    with TemporaryDirectory() as scratch:
        for name, changes in variants.items():
            began = time.perf_counter()
            folder = Path(run or scratch) / re.sub(r"\W+", "-", name)
            right, wrong = _asked(people, names, config.replace(**changes), folder, progress)
            both = {name: right.__getitem__, f"{name}, wrong": wrong.__getitem__}
            held |= cross_validate_tasks(people, both, names, seeds=seeds)
            row = {"variant": name, "changes": changes}
            for key, method in (("auc", name), ("wrong", f"{name}, wrong")):
                row[key] = average_auc(people, held, method)[0]
            row["minus"] = dict(
                zip(
                    ("auc", "low", "high"),
                    average_auc(people, held, name, minus=first),
                    strict=True,
                )
            )
            rows.append(row | {"paper": PAPER.get(name), "seconds": time.perf_counter() - began})
    return {"data": people.name, "users": len(people), "rows": rows}


def _asked(
    people: Users, names: list[str], wanted: Config, folder: Path, progress
) -> list[dict[str, np.ndarray]]:
    """Train a variant and ask it each task's own question, and another's, unless its folder has
    both: {task: anchors} each.
    """
    if not (folder / "config.json").exists():
        _train(people, wanted, folder, progress)
    model, file = QAnchor.from_pretrained(folder), folder / "asked.safetensors"
    if model.config != wanted:
        other = {k: v for k, v in model.config.to_dict().items() if v != getattr(wanted, k)}
        raise ValueError(
            f"{folder} was trained with {other}: remove it, or name another folder with --run"
        )
    if not file.exists():
        engine = Engine(model)
        told = embeddings_by_question(engine, engine.prefill(people), people, names, BOTH)
        asked = {kind: np.stack([told[kind](name) for name in names]) for kind in BOTH}
        atomic_write(file, lambda aside: save_file(asked, aside))
    return [
        dict(zip(names, anchors, strict=True))
        for anchors in (load_file(file)[kind] for kind in BOTH)
    ]


def _train(people: Users, config: Config, folder: Path, progress) -> None:
    pairs = make_pairs(
        people,
        per_sample=config.pairs_per_sample,
        cutoffs=default_cutoffs(people, config.num_cutoffs),
    )
    model = QAnchor(
        config, UserPreprocessor.fit(people, pairs[["user", "cutoff"]].drop_duplicates(), config)
    )
    model.save_pretrained(folder, train(model, people, pairs, progress=progress))
