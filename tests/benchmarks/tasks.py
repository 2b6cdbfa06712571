"""Bench `tasks`: what frozen embeddings know of the labels, beside every baseline, and what other
questions would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qanchor.analysis.embedding_cache import PARAPHRASES
from qanchor.data.sample import sample_ground_truth
from qanchor.data.users import Users
from qanchor.evaluation.metrics import roc_auc
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.models.collate import group_by_length
from qanchor.models.model import QAnchor
from qanchor.models.prefix_encoder import TOKEN_KINDS
from qanchor.models.text_encoder import text_vectors
from qanchor.useru.pairs import SUMMARY_QUERY
from tests.benchmarks.baselines import baseline_features, svd_components
from tests.benchmarks.task_scores import (
    QUERIES,
    average_auc,
    cross_validate_tasks,
    reference_answers,
    task_frame,
)

KINDS = ("right", "none", "generic", "wrong", *(f"paraphrase {i}" for i in range(len(PARAPHRASES))))
LADDER = {
    "tables": "rfm_svd",
    "vectors": "minilm",
    "slots": "slots",
    "untrained": "anchor_untrained",
    "trained": "anchor",
}


def tasks(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 5,
    *,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Score the users' labels by every baseline and, with a run, by its anchors under each task's
    own query.

    With a run also: the same model untrained, the rungs of the information ladder, what other
    queries than the right one give (fewer seeds, the same folds for all of them), and `zero_shot`,
    the AUC of being nearer to yes answers than to no. Beside these two, their 95 % intervals,
    `query_intervals` and `zero_shot_intervals`, and by how much the right query is
    above each other one, paired: `query_minus`.
    progress   called with (stage, done, total).
    """
    people, model = users(), QAnchor.from_pretrained(run) if run else None
    names = askable(people)
    texts, encoder = (
        list(people.events["text"].cat.categories),
        model.config.text_encoder if model else "minilm",
    )
    features: dict = baseline_features(people, text_vectors(texts, encoder))
    if model:
        features |= _own_features(model, people)
        untrained = Engine(QAnchor(model.config, model.preprocessor, device=str(model.device)))
        features["backbone_text"] = read_aloud(untrained.model, people)
        features["anchor_untrained"] = embeddings_by_question(
            untrained, people, names, ("right",), progress
        )[0]["right"]
        ours, features["slots"] = embeddings_by_question(
            engine := Engine(model), people, names, KINDS, progress
        )
        features["anchor_no_query"], features["anchor"] = ours["none"], ours["right"]
    held = cross_validate_tasks(
        people, features, names, seeds=seeds, progress=partial(progress, "probes")
    )
    frame = task_frame(people, held)
    average = _averages(frame)
    result = {"data": people.name, "users": len(people), "average": average}
    result["tasks"] = frame[frame["task"] != "average"].to_dict("records")
    result |= {"recovered": _recovered(people, frame)} if people.name == "world" else {}
    result["ladder"] = [
        {"rung": r, "method": m, "auc": average[m]["auc"]}
        for r, m in LADDER.items()
        if m in average
    ]
    if not model:
        return result
    others = [m for m in average if m not in ("anchor", "anchor_no_query", "slots")]
    result["anchor_minus"] = {m: _span(people, held, "anchor", minus=m) for m in others}
    asked = cross_validate_tasks(
        people, ours, names, seeds=min(seeds, 2), progress=partial(progress, "other questions")
    )
    means = _averages(task_frame(people, asked))
    result["query"] = _by_kind({kind: row["auc"] for kind, row in means.items()})
    result["query_intervals"] = _by_kind(
        {kind: {n: row[n] for n in ("auc", "low", "high")} for kind, row in means.items()}
    )
    result["query_minus"] = _by_kind(
        {kind: _span(people, asked, "right", minus=kind) for kind in KINDS[1:]}
    )
    return result | _zero_shot(engine, people, names, ours["right"])


def _own_features(model: QAnchor, people: Users) -> dict:
    """Return what the model is given of each user as numbers, for a logistic regression and for
    boosted trees: the strongest baselines that read what the model reads.
    """
    coarse = model.preprocessor.transform(people).coarse.astype(float)
    own = {"features": coarse}
    if find_spec("lightgbm"):
        own["features_lightgbm"] = coarse
    return own


def _by_kind(found: dict) -> dict:
    """Put the rewordings of the right query in one list."""
    return {kind: value for kind, value in found.items() if kind in KINDS[:4]} | {
        "paraphrases": [found[k] for k in KINDS[4:]]
    }


def _span(people: Users, held: dict, method: str, minus: str | None = None) -> dict[str, float]:
    return dict(
        zip(("auc", "low", "high"), average_auc(people, held, method, minus=minus), strict=True)
    )


def askable(people: Users) -> list[str]:
    """Name the labels that folds can be made of."""
    names = [
        t
        for t in people.labels
        if min((people.label(t) == 1).sum(), (people.label(t) == 0).sum()) >= 5
    ]
    if not names:
        raise ValueError(
            f"{people.name} has no label with 5 users of each class: give labels.parquet, or "
            "--data journey"
        )
    return names


def embeddings_by_question(
    engine: Engine,
    people: Users,
    names: list[str],
    kinds: Sequence[str],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[dict[str, Callable], np.ndarray]:
    """Ask all that the table needs in one visit of the users: {kind of query: task -> embeddings},
    and their slots pooled.
    """
    right = {name: QUERIES.get(name, f"{name}?").replace("{user}", people.unit) for name in names}
    texts = {}
    for i, (name, query) in enumerate(right.items()):
        # wrong: the next task's query but two, since neighbours in the list ask for like things (of
        # three that is its own)
        wrong = right[names[(i + (3 if len(names) > 3 else 1)) % len(names)]]
        asked = (query, "", SUMMARY_QUERY, wrong, *(p.format(query) for p in PARAPHRASES))
        texts |= {(name, kind): text for kind, text in zip(KINDS, asked, strict=True)}
    wanted = list(dict.fromkeys(text for (_, kind), text in texts.items() if kind in kinds))
    held = engine.prefill(people, progress=partial(progress, "reading users"))
    anchors = engine.embed(held, wanted, partial(progress, f"asking {len(wanted)}"))
    place = {text: k for k, text in enumerate(wanted)}
    give = {kind: (lambda task, kind=kind: anchors[:, place[texts[task, kind]]]) for kind in kinds}
    return give, _pooled(held)


def _pooled(held: PrefixCache) -> np.ndarray:
    """Average each user's slots by kind, 128 components of it: what stands in front of the language
    model.
    """
    rows = np.argsort(np.concatenate([group.rows for group in held.groups]))
    means = []
    for prefix in (group.prefix for group in held.groups):
        kinds = torch.nn.functional.one_hot(prefix.kind, len(TOKEN_KINDS)) * prefix.mask[..., None]
        total = torch.einsum("usk,usw->ukw", kinds.float(), prefix.tokens)
        means.append((total / kinds.sum(1).clamp(min=1)[..., None]).flatten(1).cpu().numpy())
    return svd_components(np.concatenate(means)[rows], 128)


@torch.inference_mode()
def read_aloud(model: QAnchor, people: Users, limit: int = 256) -> np.ndarray:
    """Embed users as people do without any of this: what each did most, as one text, read by the
    language model (user, width).

    The text is cut after `limit` tokens; the embedding is the state at its end.
    """
    past = people.history()
    counts = (
        past.groupby(["user", "modality", "text"], observed=True).size().rename("n").reset_index()
    )
    counts = counts.sort_values(["n", "modality", "text"], ascending=[False, True, True])
    lines = (
        counts["modality"].astype(str)
        + ": "
        + counts["text"].astype(str)
        + " x"
        + counts["n"].astype(str)
    )
    told = (
        lines.groupby(counts["user"].astype(str))
        .agg("; ".join)
        .reindex(list(people.ids))
        .fillna("nothing")
    )
    rows = [model.tokenizer(text[: 8 * limit])[:limit] for text in told]
    out = np.zeros((len(rows), len(model.user_emb)), np.float32)
    for group in group_by_length([len(row) for row in rows], 8192):
        out[group] = model.encode_text([rows[i] for i in group]).float().cpu().numpy()
    return out


def _averages(frame: pd.DataFrame) -> dict:
    mean = (
        frame[frame["task"] == "average"]
        .set_index("method")
        .rename(columns={"auc_low": "low", "auc_high": "high"})
    )
    return mean[["auc", "ks", "low", "high"]].to_dict("index")


def _recovered(people: Users, frame: pd.DataFrame) -> dict[str, float]:
    """Say which share of what can be known each method finds: (AUC - .5) / (oracle - .5) of the
    averages.
    """
    known = sample_ground_truth(max(int(i.removeprefix("u")) for i in people.ids) + 1).reindex(
        list(people.ids)
    )
    rows = frame[frame["task"] != "average"]
    oracle = np.mean(
        [roc_auc(known[f"p.{task}"], people.label(task)) for task in rows["task"].unique()]
    )
    return {
        method: (mean - 0.5) / (oracle - 0.5)
        for method, mean in rows.groupby("method")["auc"].mean().items()
    }


def _zero_shot(
    engine: Engine, people: Users, names: list[str], anchors: Callable
) -> dict[str, dict]:
    """Score each task by similarity to its yes answers minus its no answers; no label is looked at
    but to judge.
    """
    held = {}
    for task, (yes, no) in reference_answers(people.unit).items():
        if task in names:
            high, low = (
                engine.model.embed_answer(side).mean(0).cpu().numpy() for side in (yes, no)
            )
            score = (anchors(task) @ (high - low))[None]
            held[task, "zero_shot"] = (
                score,
                np.zeros(score.shape, int),
            )  # nothing was fitted: all are of one fold
    spans = {"average": _span(people, held, "zero_shot")} if held else {}
    spans |= {
        task: _span(people, {(task, name): score}, name) for (task, name), score in held.items()
    }
    return {
        "zero_shot": {name: span["auc"] for name, span in spans.items()},
        "zero_shot_intervals": spans,
    }
