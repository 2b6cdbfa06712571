"""Benches of speed: `cache`, `ask`, `refresh`, `versus`, `train`, each as ratios of one run with
its bound beside it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qanchor.config import SMALL, Config
from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import UserBatch
from qanchor.models.collate import USER_EMB, collate_queries, pack_queries
from qanchor.models.heads import QueryEncoding
from qanchor.models.model import QAnchor
from qanchor.models.prefix_encoder import Prefix
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.training.losses import autoregressive_loss, contrastive_loss
from tests.benchmarks.machine import best_time, measured_machine, timed

SIZES = ((256, 16), (900, 24))  # slots of the prefix, tokens of a query with its <USER_EMB>
MANY = (1, 4, 10, 32)  # queries


def flops(model, start: int, end: int) -> float:
    """Count the dense operations of tokens `start` to `end`: two a weight, four a head number a
    layer and key looked at.
    """
    shape = model.backbone.config
    layers = sum(p.numel() for p in model.backbone.model.layers.parameters())
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    keys = (end * (end + 1) - start * (start + 1)) / 2
    return (
        2.0 * layers * (end - start)
        + 4.0 * shape.num_hidden_layers * shape.num_attention_heads * head * keys
    )


def bound(model, prefix: int, query: int, queries: int) -> float:
    """Say how many times faster `queries` queries of `query` tokens can be for the prefix being
    read only once.
    """
    once, anew = flops(model, 0, prefix), flops(model, 0, prefix + query)
    return queries * anew / (once + queries * flops(model, prefix, prefix + query))


def cache(
    users=None,
    run=None,
    seeds=0,
    *,
    config: Config = SMALL,
    sizes=SIZES,
    queries=MANY,
    rows: int = 2,
    rounds: int = 5,
) -> dict:
    """Compare K queries asked of cached prefixes, the reading included, with K full readings; the
    answers must agree.

    Slots are random and of the size of real ones; users, run and seeds are not looked at. sizes:
    (slots, tokens of a query);
    rows: users in a batch; rounds: every part is timed so often, in turn, and the median counts.
    """
    config = config.replace(
        text_encoder="hash", lora_num_layers=0
    )  # as it is served: LoRA folded in
    model, exact = (
        Engine(fresh(c, make_sample_users(20))).model
        for c in (config, config.replace(dtype="float32"))
    )
    found, kind = [], str(model.backbone.dtype).removeprefix("torch.")
    for slots, tokens in sizes:
        for many in queries:
            prefix = _random_prefix(model, rows, slots)
            ask = (
                np.random.default_rng(many).integers(0, 250, (many, tokens - 1)).tolist()
            )  # any word costs the same
            speed, limit = _speedup(model, prefix, ask, rounds), bound(model, slots, tokens, many)
            row = {
                "prefix": slots,
                "query": tokens,
                "queries": many,
                "users": rows,
                "dtype": kind,
                "speedup": speed,
            }
            found.append(
                row
                | {
                    "bound": limit,
                    "of_bound": speed / limit,
                    "max_abs_diff": _difference(exact, prefix, ask),
                }
            )
    return {"rows": found}


def fresh(config: Config, people: Users) -> QAnchor:
    """Build an untrained model for these users: it costs what a trained one does."""
    return QAnchor(config, UserPreprocessor.fit(people, None, config))


def _random_prefix(model: QAnchor, rows: int, slots: int) -> Prefix:
    draw, kinds = torch.Generator().manual_seed(0), torch.zeros(rows, slots, dtype=torch.long)
    coarse = torch.randn(rows, model.preprocessor.sizes()["coarse"], generator=draw)
    vectors = model.encoder.scale.item() * torch.randn(
        rows, slots, len(model.user_emb), generator=draw
    )
    return Prefix(vectors, torch.ones(rows, slots, dtype=torch.bool), kinds, kinds - 1, coarse).to(
        model.device
    )


def _asked_of_all(model: QAnchor, queries: list[list[int]]) -> QueryEncoding:
    """Give what depends on the queries alone, and is not counted."""
    return QueryEncoding(
        model.encode_query_tokens(queries),
        model.query_text_embeddings([str(ids) for ids in queries]),
    )


def _packs(model: QAnchor, queries: list[list[int]], alone: QueryEncoding, users: int) -> list:
    cuts = pack_queries([len(ids) + 1 for ids in queries], users)
    return [(collate_queries([queries[some]]).to(model.device), alone.at(some)) for some in cuts]


@torch.inference_mode()
def _anew(model: QAnchor, prefix: Prefix, query: list[int], alone: QueryEncoding) -> torch.Tensor:
    """Read prefix and one query in one causal pass with no mask: the fastest way without a cache,
    and the plain twin.
    """
    words = model.embed_tokens(
        torch.tensor([[*query, USER_EMB]] * len(prefix.tokens), device=model.device)
    )
    vectors = torch.cat([prefix.tokens.to(words.dtype), words], 1)
    hidden = model.backbone.model(inputs_embeds=vectors, use_cache=False).last_hidden_state[:, -1:]
    return model.project_anchor(hidden, prefix.coarse, alone.expand_to(len(hidden)))[:, 0]


def _speedup(model: QAnchor, prefix: Prefix, queries: list[list[int]], rounds: int) -> float:
    engine, alone = Engine(model), _asked_of_all(model, queries)
    packs = _packs(model, queries, alone, len(prefix.tokens))
    group = UserBatch(np.arange(len(prefix.tokens)), prefix, None)
    read = torch.inference_mode()(lambda: setattr(group, "kv", model.prefill(prefix)))
    steps = (
        read,
        lambda: engine._embed_batch(group, packs),
        lambda: _anew(model, prefix, queries[0], alone.at([0])),
    )
    # in turn, so that what else the machine does falls on all alike; the first round only warms up
    times = np.array([[timed(step, model.device) for step in steps] for _ in range(rounds + 1)])[1:]
    once, ask, anew = np.median(times, 0)
    return float(len(queries) * anew / (once + ask))


@torch.inference_mode()
def _difference(model: QAnchor, prefix: Prefix, queries: list[list[int]]) -> float:
    """Give the greatest difference between cached and full reading over the first and last queries,
    in the model's dtype.
    """
    group = UserBatch(np.arange(len(prefix.tokens)), prefix, model.prefill(prefix))
    alone = _asked_of_all(model, queries)
    cached = Engine(model)._embed_batch(group, _packs(model, queries, alone, len(prefix.tokens)))
    some = {0, len(queries) // 2, len(queries) - 1}  # first, middle, last
    return max(
        float(
            np.abs(
                cached[:, k] - _anew(model, prefix, queries[k], alone.at([k])).cpu().numpy()
            ).max()
        )
        for k in some
    )


def ask(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    config: Config = SMALL,
    most: int = 2000,
) -> dict:
    """Time one typed query to up to 2,000 users whose prefixes are cached: to the first 200, to
    all, and against the ceiling.

    curve: users asked and the seconds until then, of the fastest of three queries, which all other
    times are of, too.
    of_ceiling: time to all / (query tokens / tokens a second of the bare language model, measured
    in the same run). shares: of
    the time that a profile of one more query saw: products of matrices by dtype, attention, and all
    else.
    """
    people = users().sample(most)
    engine = Engine(QAnchor.from_pretrained(run) if run else fresh(config, people))
    held = engine.prefill(people)
    queries = [
        f"Will this {people.unit} {does} soon?" for does in ("travel", "move", "marry")
    ]  # each is new when it is asked
    ids = [*engine.model.tokenize_query(queries[0]), USER_EMB]
    curves, rate = [], []
    for query in queries:
        rate.append(_forward_rate(engine.model, len(ids)))
        began, curve = time.perf_counter(), [(0, 0.0)]
        for rows, _ in engine.iter_embed(held, [query]):
            curve.append((curve[-1][0] + len(rows), time.perf_counter() - began))
        curves.append(curve)
    curve = min(curves, key=lambda curve: curve[-1][1])
    whole, first = curve[-1][1], next(at for done, at in curve if done >= min(200, len(held)))
    told = {
        "users": len(held),
        "query_tokens": len(ids),
        "first_200_s": first,
        "all_s": whole,
        "curve": curve,
    }
    told |= {"tokens_per_s": max(rate), "of_ceiling": whole * max(rate) / len(ids) / len(held)}
    return told | {
        "shares": _shares(lambda: engine.embed(held, f"Will this {people.unit} retire soon?"))
    }


def _shares(step: Callable) -> dict[str, float]:
    """Profile a step: the shares of its operations' time, products of matrices by the dtype of what
    is multiplied.
    """
    from torch.profiler import profile

    with profile(record_shapes=True) as seen, tempfile.TemporaryDirectory() as folder:
        step()
        seen.stop()
        seen.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    events = sorted(
        (e for e in events if e.get("cat") == "cpu_op"), key=lambda e: (e["ts"], -e["dur"])
    )
    spent, end = {"bf16_matmul": 0.0, "fp32_matmul": 0.0, "attention": 0.0, "other": 0.0}, 0.0
    for event in events:
        if event["ts"] + event["dur"] <= end:  # part of an operation counted already
            continue
        end, kind = (
            event["ts"] + event["dur"],
            "attention" if "attention" in event["name"] else "other",
        )
        if event["name"] in (
            "aten::mm",
            "aten::addmm",
            "aten::bmm",
            "aten::linear",
            "aten::matmul",
        ):
            kind = (
                "bf16_matmul" if "c10::BFloat16" in event["args"]["Input type"] else "fp32_matmul"
            )
            kind = (
                "attention" if len(event["args"]["Input Dims"][0]) == 4 else kind
            )  # its products have a head's axis, too
        spent[kind] += event["dur"]
    return {kind: round(part / sum(spent.values()), 4) for kind, part in spent.items()}


@torch.inference_mode()
def _forward_rate(model: QAnchor, tokens: int, rows: int = 64) -> float:
    """Give the tokens a second of the bare language model on rows of `tokens` tokens."""
    ids = torch.ones(rows, tokens, dtype=torch.long, device=model.device)
    return (
        rows
        * tokens
        / best_time(lambda: model.backbone.model(input_ids=ids, use_cache=False), model.device, 0.3)
    )


def refresh(
    users: Callable[[], Users],
    run=None,
    seeds=0,
    *,
    config: Config = SMALL,
    slots: int = 720,
    most: int = 16,
    days: int = 7,
) -> dict:
    """Compare taking up one day's events after another (`append`, appendable layout) with reading
    the same users anew each day.

    The `most` users with the longest histories; `slots` newest events each at least, their reading
    from tables included. Windows that move on within those days cost what they cost. ran: the share
    of all slots that went through the model.
    """
    people, config = (
        users(),
        config.replace(
            token_order="append_only",
            max_recent_events=slots,
            text_encoder="hash",
            lora_num_layers=0,
        ),
    )
    start = people.cutoff - pd.Timedelta(days=days)
    often = people.history(start)["user"].value_counts()
    many = often.index[often >= 1.25 * slots][:most]
    if len(many) < 2:
        raise ValueError(
            f"{len(many)} users of {people.name} have {1.25 * slots:.0f} events, 2 are needed: "
            "give --data journey"
        )
    people = people.select(many)
    model, exact = (fresh(c, people) for c in (config, config.replace(dtype="float32")))
    engine, ran, times = Engine(model), [], []
    count = lambda _, given, named: ran.append(named["inputs_embeds"].shape[:2].numel())  # noqa: E731
    held = engine.prefill(replace(people, cutoff=start))
    with model.backbone.model.register_forward_pre_hook(count, with_kwargs=True):
        for day in range(1, days + 1):
            later = replace(people, cutoff=start + pd.Timedelta(days=day))
            times.append(timed(lambda later=later: engine.prefill(later), model.device))
            ran.append(-1)
            began, held = time.perf_counter(), engine.update(held, later)
            times.append(time.perf_counter() - began)
            ran.append(-1)
    parts = np.split(np.array(ran), np.flatnonzero(np.array(ran) < 0) + 1)
    tokens = np.array([part[part > 0].sum() for part in parts[:-1]])
    few, two = people.select(people.ids[:2]), Engine(exact)
    gone = two.update(two.prefill(replace(few, cutoff=start)), few)
    gap = np.abs(two.embed(gone, "Why?") - two.embed(two.prefill(few), "Why?")).max()
    told = {
        "users": len(people),
        "slots": float(torch.cat([g.prefix.length() for g in held.groups]).float().mean()),
    }
    told |= {
        "days": days,
        "ratio": sum(times[1::2]) / sum(times[::2]),
        "ran": float(tokens[1::2].sum() / tokens[::2].sum()),
    }
    return told | {"max_abs_diff": float(gap)}


def versus(
    users: Callable[[], Users],
    run: Path | None = None,
    seeds: int = 0,
    *,
    config: Config = SMALL,
    most: int = 200,
    queries: int = 20,
    window: int = 2048,
    read: int = 8,
) -> dict:
    """Compare our cost of a (user, query) with what people do today: events as text, the query
    behind, read each time.

    The same backbone reads both; mean-pooled or at its last token costs the same.
    ratio: one more query of users that were read / that. with_reading: the reading of users shared
    by `queries` of them. The texts of `read` users are read, newest events first, cut at `window`
    tokens; spelling them out is not counted.
    """
    people = users().sample(most)
    engine = Engine(QAnchor.from_pretrained(run) if run else fresh(config, people))
    model = engine.model
    asked = [
        f"Will this {people.unit} buy something of kind {i} next month?" for i in range(queries)
    ]
    began = time.perf_counter()
    held = engine.prefill(people)
    once = time.perf_counter() - began
    more = min(timed(lambda: engine.embed(held, asked), model.device) for _ in range(2))
    past = people.history().iloc[::-1]
    lines = (
        past["modality"].astype(str)
        + ": "
        + past["text"].astype(str)
        + " on "
        + past["time"].dt.strftime("%d %B %H:%M")
    )
    told = lines.groupby(past["user"], observed=True).agg("; ".join).iloc[:read]
    query = model.tokenize_query(asked[0])
    rows = [[*model.tokenizer(text[: 8 * window])[: window - len(query)], *query] for text in told]
    read_all = torch.inference_mode()(lambda: [model.encode_text([row]) for row in rows])
    theirs = min(timed(read_all, model.device) for _ in range(2)) / len(rows)
    ours, shared = more / queries / len(people), (once + more) / queries / len(people)
    found = {
        "users": len(people),
        "queries": queries,
        "their_tokens": float(np.mean([len(row) for row in rows])),
    }
    found |= {
        "our_slots": float(np.mean([len(g.prefix.mask[0]) for g in held.groups])),
        "our_tokens": len(query) + 1,
    }
    return found | {"ratio": ours / theirs, "with_reading": shared / theirs}


def train(
    users=None,
    run=None,
    seeds=0,
    *,
    config: Config = SMALL,
    slots: int = 256,
    many: int = 8,
    rows: int = 4,
    rounds: int = 3,
) -> dict:
    """Compare training `many` queries of a user behind one prefix with one row a pair: forward,
    both losses, backward.

    Queries and answers are as long as ours are on average. bound: the dense operations of the one,
    of the other; those of the answers' own tower and of the words' scores are the same for both.
    Each counts forward and back,
    once: frozen weights take
    no gradient (LoRA and heads are left out). of_matmul: the operations done a second, by the
    machine's matrix products a second; on a GPU that is the MFU. grad_diff: the greatest difference
    of a gradient, of its size, in fp32.
    """
    config = config.replace(
        text_encoder="hash", gated_skip_dropout=0.0, lora_dropout=0.0
    )  # both ways must draw alike
    model, exact = (
        fresh(c, make_sample_users(20)) for c in (config, config.replace(dtype="float32"))
    )
    draw = np.random.default_rng(0)
    queries, answers = (
        [draw.integers(0, 250, n).tolist() for _ in range(many)] for n in (12, 21)
    )  # as long as ours are
    steps = [
        lambda each=each: _train_step(model, slots, rows, queries, answers, each)
        for each in (many, 1)
    ]
    times = np.array([[timed(step, model.device) for step in steps] for _ in range(rounds + 1)])[1:]
    together, single = np.median(times, 0)
    tokens = len(queries[0]) + len(answers[0])
    both = many * (
        flops(model, 0, len(answers[0]))
        + rows * len(answers[0]) * 2.0 * model.backbone.lm_head.weight.numel()
    )
    behind = rows * (flops(model, 0, slots) + many * flops(model, slots, slots + tokens)) + both
    apart = rows * many * flops(model, 0, slots + tokens) + both
    grads = [_train_step(exact, slots, 1, queries, answers, each) for each in (many, 1)]
    gap = max(
        (a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in zip(*grads, strict=True)
    )
    found = {
        "prefix": slots,
        "tokens": tokens,
        "queries": many,
        "users": rows,
        "pairs_per_s": rows * many / together,
    }
    found |= {"speedup": single / together, "bound": apart / behind, "grad_diff": float(gap)}
    return found | {"of_matmul": 2 * behind / together / 1e12 / measured_machine()["matmul_tflops"]}


def _train_step(
    model: QAnchor, slots: int, rows: int, queries: list, answers: list, each: int
) -> list[torch.Tensor]:
    """Take the losses of all pairs and their gradients, `each` branches behind a prefix; the same
    sums for any `each`.
    """
    parts, prefix = len(queries) // each, _random_prefix(model, rows, slots)
    model.train()
    weights = [
        *(p for p in model.parameters() if p.requires_grad),
        prefix.tokens.requires_grad_(),
    ]  # the encoder learns, too
    prefix = Prefix(
        **{name: value.repeat_interleave(parts, 0) for name, value in vars(prefix).items()}
    )
    split = lambda many: [many[i : i + each] for i in range(0, len(many), each)] * rows  # noqa: E731
    laid = collate_queries(split(queries), split(answers)).to(model.device)
    alone = _asked_of_all(model, queries)
    place = torch.arange(len(queries)).view(parts, each).repeat(rows, 1)
    anchors, hidden = model.anchors(prefix, laid, alone.at(place))
    targets = model.project_target(model.encode_text(answers))
    contrast = contrastive_loss(anchors.flatten(0, 1), targets.repeat(rows, 1), 0.1, 2.0)
    words = autoregressive_loss(model.logits(hidden[laid.writes]), laid.next_ids[laid.writes])
    return [
        g
        for g in torch.autograd.grad(contrast + words, weights, allow_unused=True)
        if g is not None
    ]
