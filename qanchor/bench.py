"""Measure, as ratios in one run on one machine, with the machine's own ceiling beside them; each bench gives plain data."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .batch import USER_EMB, branches
from .bench_ablations import ablations
from .bench_card import card
from .bench_scale import scale
from .bench_tasks import tasks
from .bench_useru import useru
from .config import SMALL, Config
from .encoder import Prefix
from .engine import Engine, Group
from .heads import Query
from .machine import best, commit, machine, seconds
from .model import QAnchor, build
from .reader import Reader
from .runs import load
from .schema import Users
from .world import make_world

SIZES = ((256, 16), (900, 24))  # slots of the prefix, tokens of a query with its <USER_EMB>
MANY = (1, 4, 10, 32)  # queries


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


BENCHES = {
    made.__name__: lambda made=made, **how: _about(made.__name__) | made(**how)
    for made in (useru, card, tasks, ablations, scale)
}
BENCHES |= {"cache": cache, "ask": ask}
