"""Measure, as ratios in one run on one machine, with the machine's own ceiling beside them; each bench gives plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .batch import USER_EMB, branches, length_groups
from .bench_card import card
from .bench_useru import useru
from .config import SMALL, Config
from .encoder import KINDS as SLOT_KINDS
from .encoder import Prefix
from .engine import PARAPHRASES, Cache, Engine, Group
from .heads import Query
from .machine import best, commit, machine, seconds
from .model import QAnchor, build
from .pairs import SUMMARY_QUERY
from .probe import auc
from .reader import Reader
from .runs import load
from .schema import Users
from .tasks import QUERIES, average_auc, baseline_features, components, hold_out, replies, task_frame
from .texts import text_vectors
from .world import make_world, world_truth

SIZES = ((256, 16), (900, 24))  # slots of the prefix, tokens of a query with its <USER_EMB>
MANY = (1, 4, 10, 32)  # queries
KINDS = ("right", "none", "generic", "wrong", *(f"paraphrase {i}" for i in range(len(PARAPHRASES))))
LADDER = {"tables": "rfm_svd", "vectors": "minilm", "slots": "slots", "untrained": "anchor_untrained", "trained": "anchor"}
ASKED_AT_ONCE = 12  # queries in one visit of a group: more would only fill memory with masks


def _about(name: str, seed: int = 0) -> dict:
    return {"bench": name, "machine": machine(), "commit": commit(), "seed": seed}


def flops(model, start: int, end: int) -> float:
    """Count the dense operations of tokens `start` to `end`: two a weight, four a head number a layer and key looked at."""
    shape = model.backbone.config
    layers = sum(p.numel() for p in model.backbone.model.layers.parameters())
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    keys = (end * (end + 1) - start * (start + 1)) / 2
    return 2.0 * layers * (end - start) + 4.0 * shape.num_hidden_layers * shape.num_attention_heads * head * keys


def bound(model, prefix: int, query: int, queries: int) -> float:
    """Say how many times faster `queries` queries of `query` tokens can be for the prefix being read only once."""
    once, anew = flops(model, 0, prefix), flops(model, 0, prefix + query)
    return queries * anew / (once + queries * flops(model, prefix, prefix + query))


def cache(
    users=None, run=None, seeds=0, *, config: Config = SMALL, sizes=SIZES, queries=MANY, rows: int = 2, rounds: int = 5
) -> dict:
    """Compare K queries asked of cached prefixes, the reading included, with K full readings; the answers must agree.

    Slots are random and of the size of real ones; users, run and seeds are not looked at. sizes: (slots, tokens of a query);
    rows: users in a batch; rounds: every part is timed so often, in turn, and the median counts.
    """
    config = config.but(text_encoder="hash", lora_layers=0)  # as it is served: LoRA folded in
    model, exact = (Engine(_fresh(c, make_world(20))).model for c in (config, config.but(dtype="float32")))
    found = []
    for slots, tokens in sizes:
        for many in queries:
            prefix = _random_prefix(model, rows, slots)
            ask = np.random.default_rng(many).integers(0, 250, (many, tokens - 1)).tolist()  # any word costs the same
            speed, limit = _speedup(model, prefix, ask, rounds), bound(model, slots, tokens, many)
            row = {"prefix": slots, "query": tokens, "queries": many, "users": rows, "dtype": config.dtype, "speedup": speed}
            found.append(row | {"bound": limit, "of_bound": speed / limit, "max_abs_diff": _difference(exact, prefix, ask)})
    return _about("cache") | {"rows": found}


def _fresh(config: Config, people: Users) -> QAnchor:
    return build(config, Reader.fit(people, None, config))


def _random_prefix(model: QAnchor, rows: int, slots: int) -> Prefix:
    draw, kinds = torch.Generator().manual_seed(0), torch.zeros(rows, slots, dtype=torch.long)
    coarse = torch.randn(rows, model.reader.sizes()["coarse"], generator=draw)
    vectors = model.encoder.scale.item() * torch.randn(rows, slots, len(model.user_emb), generator=draw)
    return Prefix(vectors, torch.ones(rows, slots, dtype=torch.bool), kinds, kinds - 1, coarse).to(model.device)


def _asked_of_all(model: QAnchor, queries: list[list[int]]) -> Query:
    """Give what depends on the queries alone, and is not counted."""
    return Query(model.query_hidden(queries), model.meaning([str(ids) for ids in queries]))


@torch.inference_mode()
def _anew(model: QAnchor, prefix: Prefix, query: list[int], alone: Query) -> torch.Tensor:
    """Read prefix and one query in one causal pass with no mask: the fastest way without a cache, and the plain twin."""
    words = model.word_vectors(torch.tensor([[*query, USER_EMB]] * len(prefix.slots), device=model.device))
    vectors = torch.cat([prefix.slots.to(words.dtype), words], 1)
    hidden = model.backbone.model(inputs_embeds=vectors, use_cache=False).last_hidden_state[:, -1:]
    return model.anchor(hidden, prefix.coarse, alone.to_each(len(hidden)))[:, 0]


def _speedup(model: QAnchor, prefix: Prefix, queries: list[list[int]], rounds: int) -> float:
    engine, asked, alone = Engine(model), branches([queries]).to(model.device), _asked_of_all(model, queries)
    group = Group(np.arange(len(prefix.slots)), prefix, None)
    read = torch.inference_mode()(lambda: setattr(group, "kv", model.prefill(prefix)))
    steps = (read, lambda: engine._ask(group, asked, alone), lambda: _anew(model, prefix, queries[0], alone.at([0])))
    # in turn, so that what else the machine does falls on all alike; the first round only warms up
    times = np.array([[seconds(step, model.device) for step in steps] for _ in range(rounds + 1)])[1:]
    once, ask, anew = np.median(times, 0)
    return float(len(queries) * anew / (once + ask))


@torch.inference_mode()
def _difference(model: QAnchor, prefix: Prefix, queries: list[list[int]]) -> float:
    """Give the greatest difference between cached and full reading over the first and last queries, in the model's dtype."""
    group = Group(np.arange(len(prefix.slots)), prefix, model.prefill(prefix))
    alone = _asked_of_all(model, queries)
    cached = Engine(model)._ask(group, branches([queries]).to(model.device), alone)
    some = {0, len(queries) // 2, len(queries) - 1}  # first, middle, last
    return max(float(np.abs(cached[:, k] - _anew(model, prefix, queries[k], alone.at([k])).cpu().numpy()).max()) for k in some)


def ask(
    users: Callable[[], Users], run: Path | None = None, seeds: int = 0, *, config: Config = SMALL, most: int = 2000
) -> dict:
    """Time one typed query to up to 2,000 users whose prefixes are cached: to the first 200, to all, and against the ceiling.

    of_ceiling: time to all / (query tokens / tokens a second of the bare language model, measured in the same run).
    """
    people = users().sample(most)
    engine = Engine(load(run) if run else _fresh(config, people))
    held = engine.prefill(people)
    queries = [f"Will this {people.unit} {does} soon?" for does in ("travel", "move", "marry")]  # each is new when it is asked
    ids = [*engine.model.query_ids(queries[0]), USER_EMB]
    first, whole, rate = [], [], []
    for query in queries:
        rate.append(_forward_rate(engine.model, len(ids)))
        began, done = time.perf_counter(), 0
        for rows, _ in engine.stream(held, [query]):
            done += len(rows)
            if done >= min(200, len(held)) > done - len(rows):
                first.append(time.perf_counter() - began)
        whole.append(time.perf_counter() - began)
    told = {"users": len(held), "query_tokens": len(ids), "first_200_s": min(first), "all_s": min(whole)}
    return _about("ask") | told | {"tokens_per_s": max(rate), "of_ceiling": min(whole) * max(rate) / len(ids) / len(held)}


@torch.inference_mode()
def _forward_rate(model: QAnchor, tokens: int, rows: int = 64) -> float:
    """Give the tokens a second of the bare language model on rows of `tokens` tokens."""
    ids = torch.ones(rows, tokens, dtype=torch.long, device=model.device)
    return rows * tokens / best(lambda: model.backbone.model(input_ids=ids, use_cache=False), model.device, 0.3)


def tasks(
    users: Callable[[], Users], run: Path | None = None, seeds: int = 5, *, progress: Callable[[int, int], None] | None = None
) -> dict:
    """Score the users' labels by every baseline and, with a run, by its anchors under each task's own query.

    With a run also: the same model untrained, the rungs of the information ladder, what other queries than the right one
    give (fewer seeds, the same folds for all of them), and `zero_shot`, the AUC of being nearer to yes answers than to no.
    """
    people, model = users(), load(run) if run else None
    names = [t for t in people.labels if min((people.label(t) == 1).sum(), (people.label(t) == 0).sum()) >= 5]
    if not names:
        raise ValueError(f"{people.name} has no label with 5 users of each class: give labels.parquet, or --data journey")
    texts, encoder = list(people.events["text"].cat.categories), model.config.text_encoder if model else "minilm"
    features: dict = baseline_features(people, text_vectors(texts, encoder))
    if model:
        untrained = Engine(build(model.config, model.reader, device=str(model.device)))
        features["backbone_text"] = read_aloud(untrained.model, people)
        features["anchor_untrained"] = _asked(untrained, people, names, ("right",))[0]["right"]
        ours, features["slots"] = _asked(engine := Engine(model), people, names, KINDS)
        features["anchor_no_query"], features["anchor"] = ours["none"], ours["right"]
    held = hold_out(people, features, names, seeds=seeds, progress=progress)
    frame = task_frame(people, held)
    average = _averages(frame)
    result = _about("tasks") | {"data": people.name, "users": len(people), "average": average}
    result["tasks"] = frame[frame["task"] != "average"].to_dict("records")
    result |= {"recovered": _recovered(people, frame)} if people.name == "world" else {}
    result["ladder"] = [{"rung": r, "method": m, "auc": average[m]["auc"]} for r, m in LADDER.items() if m in average]
    if not model:
        return result
    spans = {
        m: average_auc(people, held, "anchor", minus=m) for m in average if m not in ("anchor", "anchor_no_query", "slots")
    }
    result["anchor_minus"] = {m: dict(zip(("auc", "low", "high"), span, strict=True)) for m, span in spans.items()}
    asked = _averages(task_frame(people, hold_out(people, ours, names, seeds=min(seeds, 2))))
    worded = [asked.pop(k)["auc"] for k in KINDS[4:]]
    result["query"] = {kind: row["auc"] for kind, row in asked.items()} | {"paraphrases": worded}
    return result | {"zero_shot": _zero_shot(engine, people, ours["right"])}


def _asked(engine: Engine, people: Users, names: list[str], kinds: Sequence[str]) -> tuple[dict[str, Callable], np.ndarray]:
    """Ask all that the table needs in one visit of the users: {kind of query: task -> embeddings}, and their slots pooled."""
    right = {name: QUERIES.get(name, f"{name}?").replace("{user}", people.unit) for name in names}
    texts = {}
    for i, (name, query) in enumerate(right.items()):
        # wrong: the next task's query but two, since neighbours in the list ask for like things (of three that is its own)
        wrong = right[names[(i + (3 if len(names) > 3 else 1)) % len(names)]]
        asked = (query, "", SUMMARY_QUERY, wrong, *(p.format(query) for p in PARAPHRASES))
        texts |= {(name, kind): text for kind, text in zip(KINDS, asked, strict=True)}
    wanted = list(dict.fromkeys(text for (_, kind), text in texts.items() if kind in kinds))
    held = engine.prefill(people)
    parts = [wanted[i : i + ASKED_AT_ONCE] for i in range(0, len(wanted), ASKED_AT_ONCE)]
    anchors = np.concatenate([engine.embed(held, part) for part in parts], 1)
    place = {text: k for k, text in enumerate(wanted)}
    give = {kind: (lambda task, kind=kind: anchors[:, place[texts[task, kind]]]) for kind in kinds}
    return give, _pooled(held)


def _pooled(held: Cache) -> np.ndarray:
    """Average each user's slots by kind, 128 components of it: what stands in front of the language model."""
    rows = np.argsort(np.concatenate([group.rows for group in held.groups]))
    means = []
    for prefix in (group.prefix for group in held.groups):
        kinds = torch.nn.functional.one_hot(prefix.kind, len(SLOT_KINDS)) * prefix.mask[..., None]
        total = torch.einsum("usk,usw->ukw", kinds.float(), prefix.slots)
        means.append((total / kinds.sum(1).clamp(min=1)[..., None]).flatten(1).cpu().numpy())
    return components(np.concatenate(means)[rows], 128)


@torch.inference_mode()
def read_aloud(model: QAnchor, people: Users, limit: int = 256) -> np.ndarray:
    """Embed users as people do without any of this: what each did most, as one text, read by the language model (user, width).

    The text is cut after `limit` tokens; the embedding is the state at its end.
    """
    past = people.history()
    counts = past.groupby(["user", "modality", "text"], observed=True).size().rename("n").reset_index()
    counts = counts.sort_values(["n", "modality", "text"], ascending=[False, True, True])
    lines = counts["modality"].astype(str) + ": " + counts["text"].astype(str) + " x" + counts["n"].astype(str)
    told = lines.groupby(counts["user"].astype(str)).agg("; ".join).reindex(list(people.ids)).fillna("nothing")
    rows = [model.tokenizer(text[: 8 * limit])[:limit] for text in told]
    out = np.zeros((len(rows), len(model.user_emb)), np.float32)
    for group in length_groups([len(row) for row in rows], 8192):
        out[group] = model._alone([rows[i] for i in group]).float().cpu().numpy()
    return out


def _averages(frame: pd.DataFrame) -> dict:
    mean = frame[frame["task"] == "average"].set_index("method").rename(columns={"auc_low": "low", "auc_high": "high"})
    return mean[["auc", "ks", "low", "high"]].to_dict("index")


def _recovered(people: Users, frame: pd.DataFrame) -> dict[str, float]:
    """Say which share of what can be known each method finds: (AUC - .5) / (oracle - .5) of the averages."""
    known = world_truth(max(int(i.removeprefix("u")) for i in people.ids) + 1).reindex(list(people.ids))
    rows = frame[frame["task"] != "average"]
    oracle = np.mean([auc(known[f"p.{task}"], people.label(task)) for task in rows["task"].unique()])
    return {method: (mean - 0.5) / (oracle - 0.5) for method, mean in rows.groupby("method")["auc"].mean().items()}


def _zero_shot(engine: Engine, people: Users, anchors: Callable) -> dict[str, float]:
    """Score each task by similarity to its yes answers minus its no answers; no label is looked at but to judge."""
    found = {}
    for task, (yes, no) in replies(people.unit).items():
        if task in people.labels:
            high, low = (engine.model.embed_answer(side).mean(0).cpu().numpy() for side in (yes, no))
            label, score = people.label(task).to_numpy(), anchors(task) @ (high - low)
            found[task] = auc(score[~np.isnan(label)], label[~np.isnan(label)])
    return {"average": float(np.mean(list(found.values()))), **found} if found else {}


BENCHES = {made.__name__: lambda made=made, **how: _about(made.__name__) | made(**how) for made in (useru, card)}
BENCHES |= {"cache": cache, "ask": ask, "tasks": tasks}
