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
from tests.benchmarks.earlier import earlier_labels, earlier_scores
from tests.benchmarks.parts import control_embeddings, read_states
from tests.benchmarks.task_scores import (
    HeldOutScores,
    average_auc,
    cross_validate_tasks,
    reference_answers,
    task_frame,
    task_query,
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
    dtype: str | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict:
    """Score the users' labels by every baseline and, with a run, by its anchors under each task's
    own query.

    With a run also: the same model untrained, the controls of `control_embeddings`, the rungs of
    the information ladder, what other queries than the right one give (fewer seeds, the same folds
    for all of them), and `zero_shot`, the AUC of being nearer to yes answers than to no. Beside
    these two, their 95 % intervals, `query_intervals` and `zero_shot_intervals`, and by how much
    the right query is above each other one, paired: `query_minus`. `zero_shot_others` has the
    controls without labels, too, and models fitted at earlier cut-offs where labels can be computed
    there; `zero_shot_minus` is by how much `zero_shot` is above each of them, paired.
    dtype      that of the language model, "bfloat16" or "float32" (default: as the run is loaded).
    progress   called with (stage, done, total).
    """
    people, model = users(), QAnchor.from_pretrained(run, dtype=dtype) if run else None
    names = askable(people)
    texts, encoder = (
        list(people.events["text"].cat.categories),
        model.config.text_encoder if model else "minilm",
    )
    features: dict = baseline_features(people, text_vectors(texts, encoder))
    if model:
        features |= own_features(model, people)
        device = str(model.device)
        untrained = Engine(QAnchor(model.config, model.preprocessor, device=device, dtype=dtype))
        features["backbone_text"] = read_aloud(untrained.model, people)
        reading = partial(progress, "reading users")
        cache = untrained.prefill(people, progress=reading)
        features["anchor_untrained"] = embeddings_by_question(
            untrained, cache, people, names, ("right",), progress
        )["right"]
        engine = Engine(model)
        cache = engine.prefill(people, progress=reading)
        features["slots"] = pooled_slots(cache)
        ours = embeddings_by_question(engine, cache, people, names, KINDS, progress)
        features["anchor_no_query"] = ours["none"]
        controls = embeddings_by_control(engine, cache, people, names) | {"anchor": ours["right"]}
        features |= controls
    held = cross_validate_tasks(
        people, features, names, seeds=seeds, progress=partial(progress, "probes")
    )
    frame = task_frame(people, held)
    average = averages(frame)
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
    result["dtype"] = str(model.backbone.dtype).removeprefix("torch.")
    others = [m for m in average if m not in ("anchor", "anchor_no_query", "slots")]
    result["anchor_minus"] = {m: interval(people, held, "anchor", minus=m) for m in others}
    asked = cross_validate_tasks(
        people, ours, names, seeds=min(seeds, 2), progress=partial(progress, "other questions")
    )
    means = averages(task_frame(people, asked))
    result["query"] = _by_kind({kind: row["auc"] for kind, row in means.items()})
    result["query_intervals"] = _by_kind(
        {kind: {n: row[n] for n in ("auc", "low", "high")} for kind, row in means.items()}
    )
    result["query_minus"] = _by_kind(
        {kind: interval(people, asked, "right", minus=kind) for kind in KINDS[1:]}
    )
    by_answer = answer_scores(engine, people, names, controls)
    by_answer |= earlier_scores(model.preprocessor, people, earlier_labels(people), names)
    return result | judge_zero_shot(people, by_answer)


def own_features(model: QAnchor, people: Users) -> dict:
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


def interval(people: Users, held: dict, method: str, minus: str | None = None) -> dict[str, float]:
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


def right_queries(people: Users, names: list[str]) -> dict[str, str]:
    """Return each task's own query."""
    return {name: task_query(name, people.unit) for name in names}


def embeddings_by_question(
    engine: Engine,
    cache: PrefixCache,
    people: Users,
    names: list[str],
    kinds: Sequence[str],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Callable]:
    """Ask all that the table needs in one visit of the users: {kind of query: task -> embeddings}."""
    right = right_queries(people, names)
    texts = {}
    for i, (name, query) in enumerate(right.items()):
        # wrong: the next task's query but two, since neighbours in the list ask for like things (of
        # three that is its own)
        wrong = right[names[(i + (3 if len(names) > 3 else 1)) % len(names)]]
        asked = (query, "", SUMMARY_QUERY, wrong, *(p.format(query) for p in PARAPHRASES))
        texts |= {(name, kind): text for kind, text in zip(KINDS, asked, strict=True)}
    wanted = list(dict.fromkeys(text for (_, kind), text in texts.items() if kind in kinds))
    anchors = engine.embed(cache, wanted, partial(progress, f"asking {len(wanted)}"))
    place = {text: k for k, text in enumerate(wanted)}
    return {kind: (lambda task, kind=kind: anchors[:, place[texts[task, kind]]]) for kind in kinds}


def embeddings_by_control(
    engine: Engine, cache: PrefixCache, people: Users, names: list[str]
) -> dict[str, Callable]:
    """Embed the users under each task's own query, whole ("anchor") and with parts of the model left
    out or shuffled: {control: task -> embeddings}.
    """
    states = read_states(engine, cache, list(right_queries(people, names).values()))
    found = control_embeddings(engine.model, states)
    return {
        control: (lambda task, z=embeddings: z[:, names.index(task)])
        for control, embeddings in found.items()
    }


def pooled_slots(cache: PrefixCache) -> np.ndarray:
    """Average each user's slots by kind, 128 components of it: what stands in front of the language
    model.
    """
    rows = np.argsort(np.concatenate([group.rows for group in cache.groups]))
    means = []
    for prefix in (group.prefix for group in cache.groups):
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


def averages(frame: pd.DataFrame) -> dict:
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


def answer_scores(
    engine: Engine, people: Users, names: list[str], embeddings: dict[str, Callable]
) -> HeldOutScores:
    """Score each task by similarity to its yes answers minus its no answers, for each method; no
    label is looked at.
    """
    scores = {}
    for task, (yes, no) in reference_answers(people.unit).items():
        if task not in names:
            continue
        high, low = (engine.model.embed_answer(side).mean(0).cpu().numpy() for side in (yes, no))
        for method, embed in embeddings.items():
            score = (embed(task) @ (high - low))[None]
            # nothing was fitted: all are of one fold
            scores[task, method] = score, np.zeros(score.shape, int)
    return scores


def judge_zero_shot(people: Users, scores: HeldOutScores) -> dict[str, dict]:
    """Judge scores that no label of the judged window was used for: those of the method "anchor",
    and all others beside them.
    """
    methods = list(dict.fromkeys(method for _, method in scores))
    spans: dict[str, dict] = {method: {} for method in ("anchor", *methods)}
    for method in methods:
        spans[method]["average"] = interval(people, scores, method)
    for (task, method), score in scores.items():
        spans[method][task] = interval(people, {(task, method): score}, method)
    ours = spans.pop("anchor")
    return {
        "zero_shot": {name: span["auc"] for name, span in ours.items()},
        "zero_shot_intervals": ours,
        "zero_shot_others": spans,
        "zero_shot_minus": {m: interval(people, scores, "anchor", minus=m) for m in spans},
    }
