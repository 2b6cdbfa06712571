"""Bench `controls`: does the language model read the user? The embeddings under each task's own
question beside the same without a part, and beside the baselines that read what the model reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.models.model import QAnchor
from tests.benchmarks.earlier import earlier_labels, earlier_scores
from tests.benchmarks.task_scores import cross_validate_tasks, task_frame
from tests.benchmarks.tasks import (
    answer_scores,
    askable,
    averages,
    embeddings_by_control,
    interval,
    judge_zero_shot,
    own_features,
)


def controls(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 5,
    *,
    dtype: str | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Score the users' labels as `tasks` does, by what shows whether the language model reads the
    user and by nothing else, in a fraction of its time.

    The keys are those of `tasks`. Methods: anchor, the controls of `control_embeddings`, models on
    the model's own features, and label-free those fitted at earlier cut-offs.
    dtype      that of the language model, "bfloat16" or "float32" (default: as the run is loaded).
    progress   called with (stage, done, total).
    """
    if run is None:
        raise ValueError("controls are parts of a trained model: name its folder with --run")
    people, model = users(), QAnchor.from_pretrained(run, dtype=dtype)
    names = askable(people)
    features: dict = own_features(model, people)
    engine = Engine(model)
    cache = engine.prefill(people, progress=partial(progress, "reading users"))
    embeddings = embeddings_by_control(engine, cache, people, names)
    del cache  # gigabytes of keys and values
    features |= embeddings
    held = cross_validate_tasks(
        people, features, names, seeds=seeds, progress=partial(progress, "probes")
    )
    frame = task_frame(people, held)
    by_answer = answer_scores(engine, people, names, embeddings)
    by_answer |= earlier_scores(model.preprocessor, people, earlier_labels(people), names)
    others = [method for method in features if method != "anchor"]
    return {
        "data": people.name,
        "users": len(people),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "average": averages(frame),
        "tasks": frame[frame["task"] != "average"].to_dict("records"),
        "anchor_minus": {m: interval(people, held, "anchor", minus=m) for m in others},
    } | judge_zero_shot(people, by_answer)
