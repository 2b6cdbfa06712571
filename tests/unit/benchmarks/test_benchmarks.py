"""The benches print what they promise, count operations right, and their table is the one that the
parts give.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qanchor.config import SMALL, TINY
from qanchor.data.sample import make_sample_users
from qanchor.evaluation.metrics import roc_auc
from qanchor.evaluation.probe import linear_probe
from qanchor.inference.engine import Engine
from qanchor.models.collate import collate_users
from qanchor.models.model import QAnchor
from qanchor.utils import device
from tests.benchmarks import ablations, fairness, speed
from tests.benchmarks import attention as attention_module
from tests.benchmarks import tasks as tasks_module
from tests.benchmarks.__main__ import run_benchmark
from tests.benchmarks.ablations import PAPER, VARIANTS
from tests.benchmarks.curves import fine_tuned
from tests.benchmarks.machine import measured_machine
from tests.benchmarks.reading import reading
from tests.benchmarks.tables import CONTROLS
from tests.benchmarks.task_scores import (
    DOMAINS,
    QUERIES,
    average_auc,
    cross_validate_tasks,
    reference_answers,
)
from tests.tiny import make_model

SAID = {"bench", "machine", "commit", "seed"}


@pytest.fixture(scope="module")
def users():
    world = make_sample_users(60)
    return replace(world, labels=world.labels[["Active", "Promo", "Takeout"]])


@pytest.fixture(scope="module")
def run(users, tmp_path_factory):
    return make_model(users, awake=False).save_pretrained(tmp_path_factory.mktemp("bench") / "run")


def test_the_machine_is_measured_once_and_quickly():
    first = measured_machine()
    assert (
        set(first) == {"processor", "threads", "gpu", "products", "matmul_tflops", "gb_per_s"}
        and measured_machine() is first
    )
    assert (
        first["matmul_tflops"] > 0
        and first["gb_per_s"] > 0
        and first["threads"] == torch.get_num_threads()
    )
    assert first["processor"] and (first["gpu"] is not None) == torch.cuda.is_available()


def test_products_in_bfloat16_are_made_only_where_torch_has_a_kernel_for_them(monkeypatch):
    assert isinstance(
        device.has_fast_bf16(), bool
    )  # it asks torch by a name that another release may lack
    for fast, wished, place, works in (
        (True, "bfloat16", "cpu", "bfloat16"),
        (False, "bfloat16", "cpu", "float32"),
        (False, "bfloat16", "cuda:1", "bfloat16"),
        (False, "float32", "cpu", "float32"),
    ):
        monkeypatch.setattr(device, "has_fast_bf16", lambda fast=fast: fast)
        assert device.compute_dtype(wished, place) == works


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(device, "_available_processors", lambda: 2)
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(device.os, "getloadavg", lambda: (0.2, 0, 0))
    assert device.busy_reason() is None
    monkeypatch.setattr(device.os, "getloadavg", lambda: (3.1, 0, 0))
    monkeypatch.setattr(device, "_others_running", lambda: False)
    assert device.busy_reason() is None, "a minute of our own, now over"
    monkeypatch.setattr(device, "_others_running", lambda: True)
    assert device.busy_reason().startswith("3.1 programs ran on 2 processors in the last minute: ")
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: 16)
    assert (
        device.busy_reason()
        == "torch uses 16 threads, but 2 processors are available: set OMP_NUM_THREADS=2"
    )


def test_the_commit_is_named():
    assert device.current_commit() == "unknown" or (
        len(device.current_commit()) >= 7 and int(device.current_commit(), 16) >= 0
    )


class Shape(QAnchor):
    """Stand for a model of which only the shape is looked at."""

    def __init__(self, **shape):
        torch.nn.Module.__init__(self)
        with torch.device("meta"):
            self.backbone = LlamaForCausalLM(LlamaConfig(**shape))


SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}


def test_operations_are_counted_as_loops_would():
    model = Shape(**SMOLLM2)
    weights = sum(p.numel() for p in model.backbone.model.layers.parameters())
    assert weights == pytest.approx(106.2e6, rel=1e-3)
    by_hand = sum(
        2 * weights + 69_120 * (place + 1) for place in range(100, 130)
    )  # 4 x 30 layers x 9 heads x 64
    assert speed.flops(model, 100, 130) == pytest.approx(by_hand, rel=1e-9)
    assert speed.flops(model, 0, 130) == pytest.approx(
        speed.flops(model, 0, 100) + speed.flops(model, 100, 130)
    )


@pytest.mark.parametrize(
    ("prefix", "query", "queries", "expected"),
    [
        (512, 24, 4, 3.49),
        (512, 24, 10, 6.97),
        (512, 24, 32, 12.8),
        (900, 24, 4, 3.68),
        (900, 24, 10, 7.91),
        (900, 24, 32, 16.8),
    ],
)
def test_the_bound_is_the_known_one(prefix, query, queries, expected):
    assert speed.bound(Shape(**SMOLLM2), prefix, query, queries) == pytest.approx(
        expected, rel=0.01
    )


def test_one_query_cannot_gain():
    assert speed.bound(Shape(**SMOLLM2), 300, 20, 1) == pytest.approx(1.0)


def test_cache_measures_what_agrees():
    found = run_benchmark("cache", config=TINY, sizes=((40, 6), (64, 8)), queries=(1, 5), rounds=1)
    assert (
        found.keys() == SAID | {"rows"}
        and json.loads(json.dumps(found))
        and len(found["rows"]) == 4
    )
    assert [(r["prefix"], r["queries"]) for r in found["rows"]] == [
        (40, 1),
        (40, 5),
        (64, 1),
        (64, 5),
    ]
    for row in found["rows"]:
        names = {
            "prefix",
            "query",
            "queries",
            "users",
            "dtype",
            "speedup",
            "bound",
            "of_bound",
            "max_abs_diff",
        }
        assert set(row) == names and row["max_abs_diff"] < 1e-4 and row["speedup"] > 0
        assert row["of_bound"] == pytest.approx(row["speedup"] / row["bound"])


def test_ask_times_everybody(users, run):
    found = run_benchmark("ask", users=lambda: users, run=run)
    told = {
        "users",
        "query_tokens",
        "first_200_s",
        "all_s",
        "curve",
        "tokens_per_s",
        "of_ceiling",
        "shares",
    }
    assert found.keys() == SAID | told
    assert (
        sum(found["shares"].values()) == pytest.approx(1, abs=1e-3)
        and found["shares"]["fp32_matmul"] > 0
    )
    assert found["users"] == 60 and found["query_tokens"] == len(b"Will this user travel soon?") + 1
    assert (
        0 < found["first_200_s"] <= found["all_s"] and found["of_ceiling"] > 0 and json.dumps(found)
    )
    done, at = zip(*found["curve"], strict=True)
    assert done[0] == 0 and done[-1] == 60 and sorted(at) == list(at) and at[-1] == found["all_s"]
    assert found["shares"]["attention"] > 0
    assert (
        run_benchmark("ask", users=lambda: users, config=TINY)["users"] == 60
    )  # without a run too


def test_refresh_versus_and_train_compare_what_agrees(users, run):
    long = TINY.replace(lora_num_layers=2)
    found = run_benchmark("refresh", users=lambda: users, config=long, slots=24, most=4, days=3)
    assert found.keys() == SAID | {
        "users",
        "slots",
        "days",
        "ratio",
        "ran",
        "max_abs_diff",
    } and json.dumps(found)
    assert (
        found["users"] == 4
        and found["slots"] > 30
        and 0 < found["ran"] < 1
        and found["max_abs_diff"] < 1e-4
    )
    found = run_benchmark("versus", users=lambda: users, run=run, queries=3, window=64, read=2)
    sizes = {"users", "queries", "their_tokens", "our_slots", "our_tokens"}
    assert found.keys() == SAID | sizes | {"ratio", "with_reading"} and found["their_tokens"] == 64
    assert 0 < found["ratio"] < found["with_reading"]
    found = run_benchmark("train", config=TINY, slots=20, many=3, rows=2, rounds=1)
    said = {
        "prefix",
        "tokens",
        "queries",
        "users",
        "pairs_per_s",
        "speedup",
        "bound",
        "grad_diff",
        "of_matmul",
    }
    assert found.keys() == SAID | said and found["grad_diff"] < 1e-4 and found["bound"] > 1


@pytest.mark.slow
def test_texts_are_counted_and_found():
    found = run_benchmark("texts", many=3000, read=20, encoder="hash")
    said = {"texts", "fill_s", "fill_peak_gb", "read_s", "find_one_ms", "peak_gb", "encode_per_s"}
    assert found.keys() == SAID | said and found["texts"] == 3000 and 0 < found["peak_gb"] < 5


@pytest.mark.slow
def test_attention_is_held_against_what_was_planted(users, run):
    found = run_benchmark(
        "attention", users=lambda: make_sample_users(60), run=run, most=12, tuned_on=48, steps=10
    )
    assert found.keys() == SAID | {
        "users",
        "chance",
        "named",
        "agreement",
        "rows",
        "tuned",
    } and json.dumps(found, default=float)
    assert found["tuned"]["users"] == 48 and found["tuned"]["rows"] != found["rows"], (
        "a prompt is not the question it began at"
    )
    for told in (found, found["tuned"]):
        assert (
            set(told["named"]) == {"weight", "per_token", "deletion_effect", "gradient"}
            and len(told["rows"]) == 60
        )
        shown = [
            part[kind][one]
            for part in told["named"].values()
            for kind in ("as_it_is", "against")
            for one in ("auc", "first")
        ]
        assert all(
            0 <= value <= 1
            for value in [*shown, *(part["carriers"] for part in told["named"].values())]
        )
        assert set(told["agreement"]) == {"weight", "per_token"} and all(
            -1 <= r <= 1 for r in told["agreement"].values()
        )
    with pytest.raises(ValueError, match="the truth is known of --data world alone"):
        run_benchmark("attention", users=lambda: replace(users, name="mine"), run=run)
    told = attention_module._named(
        pd.DataFrame({"task": list("aabb")}), pd.Series([1.0, 2, 9, 3]), [False, True, True, False]
    )
    assert told == {"auc": 1.0, "first": 1.0}


@pytest.mark.slow
def test_tasks_say_what_separate_probes_say(users, run):
    found = run_benchmark("tasks", users=lambda: users, run=run, seeds=1)
    assert json.loads(json.dumps(found, default=float))
    names = {
        "data",
        "users",
        "average",
        "tasks",
        "ladder",
        "query",
        "zero_shot",
        "recovered",
        "anchor_minus",
    }
    names |= {"query_intervals", "query_minus", "dtype"}
    names |= {"zero_shot_intervals", "zero_shot_others", "zero_shot_minus"}
    assert found.keys() == SAID | names
    baselines = {"rfm", "counts", "rfm_svd", "lightgbm", "minilm", "minilm_rfm", "rfm_svd_minilm"}
    assert set(found["average"]) == baselines | {
        *CONTROLS,
        "features",
        "features_lightgbm",
        "anchor",
        "anchor_untrained",
        "anchor_no_query",
        "slots",
        "backbone_text",
    }
    assert all(set(row) == {"auc", "ks", "low", "high"} for row in found["average"].values())
    rows = {(row["task"], row["method"]): row for row in found["tasks"]}
    engine = Engine(QAnchor.from_pretrained(run))
    z = engine.embed(engine.prefill(users), QUERIES["Promo"].format(user="user"))
    assert rows["Promo", "anchor"]["auc"] == pytest.approx(
        linear_probe(z, users.label("Promo"), seeds=1).auc, abs=1e-6
    )
    mean = np.mean([rows[task, "anchor"]["auc"] for task in ("Active", "Promo", "Takeout")])
    assert (
        found["average"]["anchor"]["auc"]
        == pytest.approx(mean)
        == pytest.approx(found["query"]["right"], abs=1e-9)
    )
    assert (
        set(found["query"]) == {"right", "none", "generic", "wrong", "paraphrases"}
        and len(found["query"]["paraphrases"]) == 5
    )
    assert set(found["zero_shot"]) == {"average", "Active", "Promo", "Takeout"}
    assert [row["method"] for row in found["ladder"]] == [
        "rfm_svd",
        "minilm",
        "slots",
        "anchor_untrained",
        "anchor",
    ]
    span = found["anchor_minus"]["lightgbm"]
    assert span["low"] <= span["auc"] <= span["high"]
    kinds = ("right", "wrong", "paraphrase 4")
    cache = engine.prefill(users)
    names = list(users.labels)
    anchors = tasks_module.embeddings_by_question(engine, cache, users, names, kinds)
    held = cross_validate_tasks(users, anchors, seeds=1)
    for kind, minus in zip(
        kinds[1:],
        (found["query_minus"]["wrong"], found["query_minus"]["paraphrases"][4]),
        strict=True,
    ):
        assert tuple(minus.values()) == pytest.approx(
            average_auc(users, held, "right", minus=kind), abs=1e-9
        )
        assert minus["low"] <= minus["auc"] <= minus["high"]
    assert found["query_intervals"]["paraphrases"][4]["auc"] == found["query"]["paraphrases"][4]
    assert set(found["query_minus"]) == {"none", "generic", "wrong", "paraphrases"}
    zero = found["zero_shot_intervals"]
    assert {name: span["auc"] for name, span in zero.items()} == found["zero_shot"]
    yes, no = reference_answers("user")["Promo"]
    likely = np.subtract(
        *(engine.model.embed_answer(side).mean(0).cpu().numpy() for side in (yes, no))
    )
    assert found["zero_shot"]["Promo"] == pytest.approx(
        roc_auc(z @ likely, users.label("Promo")), abs=1e-9
    )
    assert all(span["low"] < span["auc"] < span["high"] for span in zero.values())
    assert set(found["zero_shot_others"]) == set(found["zero_shot_minus"]) == set(CONTROLS)
    for control, others in found["zero_shot_others"].items():
        minus = found["zero_shot_minus"][control]
        assert minus["low"] <= minus["auc"] <= minus["high"]
        assert minus["auc"] == pytest.approx(zero["average"]["auc"] - others["average"]["auc"])
        assert set(others) == set(zero) and control in found["anchor_minus"]


def test_controls_say_what_tasks_say_of_the_same_methods(users, run):
    found = run_benchmark("controls", users=lambda: users, run=run, seeds=1)
    assert json.loads(json.dumps(found, default=float)) and found["dtype"] == "float32"
    own = {"features", "features_lightgbm"}
    assert set(found["average"]) == {"anchor", *own, *CONTROLS}
    assert set(found["anchor_minus"]) == own | set(CONTROLS)
    assert set(found["zero_shot_others"]) == set(found["zero_shot_minus"]) == set(CONTROLS)
    engine = Engine(QAnchor.from_pretrained(run))
    z = engine.embed(engine.prefill(users), QUERIES["Promo"].format(user="user"))
    rows = {(row["task"], row["method"]): row["auc"] for row in found["tasks"]}
    probed = linear_probe(z, users.label("Promo"), seeds=1).auc
    assert rows["Promo", "anchor"] == pytest.approx(probed, abs=1e-6)
    yes, no = reference_answers("user")["Promo"]
    likely = np.subtract(
        *(engine.model.embed_answer(side).mean(0).cpu().numpy() for side in (yes, no))
    )
    ranked = roc_auc(z @ likely, users.label("Promo"))
    assert found["zero_shot"]["Promo"] == pytest.approx(ranked, abs=1e-9)
    with pytest.raises(ValueError, match="name its folder with --run"):
        run_benchmark("controls", users=lambda: users)


@pytest.mark.slow
def test_a_label_of_too_few_is_asked_by_no_part_of_the_table(users, run):
    rare = users.labels.assign(Promo=np.where(np.arange(len(users)) < 4, 1.0, 0.0))
    found = tasks_module.tasks(lambda: replace(users, labels=rare), run, 1)
    assert "Promo" not in found["zero_shot"] and "Promo" not in {
        row["task"] for row in found["tasks"]
    }


def test_read_aloud_reads_what_each_did_most(users, run):
    model = QAnchor.from_pretrained(run)
    past = users.history()
    z, short = tasks_module.read_aloud(model, users), tasks_module.read_aloud(model, users, limit=5)
    assert (
        z.shape == (60, len(model.user_emb)) and np.isfinite(z).all() and not np.allclose(z, short)
    )
    mine = past[past["user"] == users.ids[3]]
    counts = mine.groupby(["modality", "text"], observed=True).size().reset_index(name="n")
    counts = counts.sort_values(["n", "modality", "text"], ascending=[False, True, True])
    told = "; ".join(f"{row.modality}: {row.text} x{row.n}" for row in counts.itertuples())
    alone = model.encode_text([model.tokenizer(told)[:256]])[0].detach().numpy()
    np.testing.assert_allclose(z[3], alone, atol=1e-4)


@pytest.mark.slow
def test_ablations_compare_with_the_first_and_take_up_what_is_there(users, tmp_path):
    """A variant that differs in nothing gives nothing; a second run trains none of those that stand
    there.
    """
    variants = {
        "whole": {},
        "the same": {},
        "no user and modality slots": {"use_summary_tokens": False},
    }
    config, stages = TINY.replace(pairs_per_sample=4, steps=2, head_warmup_steps=2), []
    how = {
        "config": config,
        "variants": variants,
        "progress": lambda stage, *_: stages.append(stage),
    }
    found = ablations.ablations(lambda: users, tmp_path, 1, **how)
    assert json.loads(json.dumps(found)) and [row["variant"] for row in found["rows"]] == list(
        variants
    )
    whole, same, less = found["rows"]
    assert whole["auc"] == same["auc"] and same["minus"] == {"auc": 0.0, "low": 0.0, "high": 0.0}
    assert less["auc"] != whole["auc"] and less["minus"]["auc"] == pytest.approx(
        less["auc"] - whole["auc"]
    )
    assert (
        less["minus"]["low"] <= less["minus"]["auc"] <= less["minus"]["high"]
        and less["paper"] == -0.0039
    )
    assert "training" in stages and {p.name for p in tmp_path.iterdir()} == {
        "whole",
        "the-same",
        "no-user-and-modality-slots",
    }
    stages.clear()
    asked = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/asked.safetensors"))]
    again = ablations.ablations(lambda: users, tmp_path, 1, **how)
    assert len(asked) == 3 and asked == [
        path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/asked.safetensors"))
    ]
    assert not stages and [row["auc"] for row in again["rows"]] == [
        row["auc"] for row in found["rows"]
    ]
    with pytest.raises(
        ValueError,
        match=r"whole was trained with .*'steps': 2.*: remove it, or name another folder with --run",
    ):
        ablations.ablations(lambda: users, tmp_path, 1, **how | {"config": config.replace(steps=3)})
    assert set(PAPER) < set(VARIANTS) and all(
        SMALL.replace(**changes) for changes in VARIANTS.values()
    )


def test_tasks_need_labels(users):
    with pytest.raises(ValueError, match="world has no label with 5 users of each class"):
        tasks_module.tasks(lambda: replace(users, labels=users.labels[[]]))


def test_every_task_has_a_question_and_two_kinds_of_answer():
    assert QUERIES.keys() == DOMAINS.keys() and all(
        q.format(user="household").endswith("?") for q in QUERIES.values()
    )
    found = reference_answers("household")
    assert set(found) == {task for task, domain in DOMAINS.items() if domain != "profile"}
    for task, (yes, no) in found.items():
        assert len(yes) > 1 and len(no) > 1 and not set(yes) & set(no), task
        assert all(text.startswith(("Very likely", "Almost certain", "Bound")) for text in yes), yes
        assert all(text.startswith(("Very unlikely", "Not expected")) for text in no), no


def test_replay_compares_arms_and_refuses_a_label_that_is_not_there(users, run):
    found = run_benchmark("replay", users=lambda: users, run=run, seeds=1, task="Takeout")
    rows = pd.DataFrame(found["rows"])
    assert (
        {"rfm", "anchor", "zero_shot"} <= set(rows["arm"])
        and rows["arm"].iloc[0] == "rfm"
        and json.dumps(found)
    )
    assert found["rate"] == pytest.approx(users.label("Takeout").mean()) and "campaign" not in found
    with pytest.raises(ValueError, match=r"world has no label 'redeem' \(it has Active"):
        run_benchmark("replay", users=lambda: users)


@pytest.mark.slow
def test_prompts_are_judged_on_users_never_tuned_on(users, run):
    found = run_benchmark("prompts", users=lambda: users, run=run, steps=5)
    rows = pd.DataFrame(found["rows"])
    assert list(rows["way"].unique()) == ["right", "vague", "vague_seek"] and set(rows["task"]) == {
        "Active",
        "Promo",
        "Takeout",
    }
    assert (rows["n"] == 30).all() and json.dumps(found)
    for way, some in rows.groupby("way"):
        mean = np.mean([row["gain"]["gain"] for _, row in some.iterrows()])
        assert found["average"][way]["gain"]["auc"] == pytest.approx(mean)
        assert found["average"][way]["before"]["auc"] == pytest.approx(
            np.mean([b["auc"] for b in some["before"]])
        )


@pytest.mark.slow
def test_curves_judge_every_way_on_the_same_users(users, run):
    found = run_benchmark(
        "curves", users=lambda: users, run=run, tasks=2, vectors=(0, 3), each=4, steps=8
    )
    rows = pd.DataFrame(found["rows"])
    assert len(found["tasks"]) == 2 and json.dumps(found)
    ways = {
        ("vectors", 0),
        ("vectors", 3),
        ("steps", 4),
        ("steps", 8),
        ("untrained", 4),
        ("lora", 4),
    }
    assert set(zip(rows["curve"], rows["x"], strict=True)) == ways and len(rows) == 2 * len(ways)
    mine = rows[rows["curve"] != "untrained"].groupby("task")["before"]
    assert (
        mine.max() - mine.min() < 1e-9
    ).all()  # one judge, one model, one question: the same before
    for row in found["average"]:
        some = rows[(rows["curve"] == row["curve"]) & (rows["x"] == row["x"])]
        assert row["gain"]["auc"] == pytest.approx((some["after"] - some["before"]).mean())


def test_fine_tuning_moves_lora_alone_and_tells_the_classes_it_was_shown(users, run):
    events = (
        users.history().groupby("user", observed=True).size().reindex(list(users.ids)).fillna(0)
    )
    truth = np.where(np.arange(len(users)) % 4 == 3, -1, (events > events.median()).to_numpy(int))
    model = QAnchor.from_pretrained(run)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    z = fine_tuned(model, users, "Why?", truth, 40)
    moved = {
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    }
    assert moved and all("lora" in name for name in moved)
    still = QAnchor.from_pretrained(run)
    untouched = fine_tuned(still, users, "Why?", truth, 0)
    plain = (
        still.embed(collate_users(still.preprocessor.transform(users), range(len(users))), "Why?")
        .detach()
        .numpy()
    )
    assert np.allclose(untouched, plain, atol=1e-4) and np.abs(z - untouched).max() > 1e-3
    shown = truth >= 0
    apart = [
        np.linalg.norm(e[shown & (truth == 1)].mean(0) - e[shown & (truth == 0)].mean(0))
        for e in (untouched, z)
    ]
    assert apart[1] > apart[0]


@pytest.mark.slow
def test_fairness_tells_sizes_and_finds_a_group_that_is_passed_over(users, run):
    found = run_benchmark("fairness", users=lambda: users, run=run, seeds=1)
    rows = pd.DataFrame(found["rows"])
    assert {"itself", "nothing", "generic", "Promo", "rfm", "minilm"} <= set(rows["source"])
    assert set(rows["attribute"]) == {"average", "wealth", "family", "health"} and json.dumps(
        found, allow_nan=False
    )
    assert all(sum(row["n"]) == 60 for row in found["groups"]) and {
        row["task"] for row in found["groups"]
    } == {"Promo"}
    with pytest.raises(ValueError, match="bench fairness: data 'world', run None: give --run"):
        run_benchmark("fairness", users=lambda: users)


@pytest.mark.slow
def test_gaps_between_groups_are_what_loops_count():
    rng = np.random.default_rng(0)
    group, label = pd.Series(np.arange(400) % 2.0), pd.Series(rng.random(400) < 0.4).astype(float)
    score = 2 * label.to_numpy() - 1.5 * group.to_numpy() + rng.normal(size=400)
    told = fairness.compare(score, label, group)
    best = set(sorted(range(400), key=lambda user: -score[user])[:80])
    for side in (0, 1):
        inside = [user for user in range(400) if group[user] == side]
        assert told["selected"][side] == pytest.approx(len(best & set(inside)) / len(inside))
        positive = [user for user in inside if label[user]]
        assert told["found"][side] == pytest.approx(len(best & set(positive)) / len(positive))
    assert told["gap"]["selected"][2] < 0 and told["gap"]["auc"][1] < 0 < told["gap"]["auc"][2]
    few = fairness.compare(score, label, (group * (np.arange(400) < 12)).astype(float))
    assert few["n"] == [394, 6] and np.isnan(few["selected"][1]) and few["gap"]["selected"] is None


@pytest.mark.slow
def test_a_soak_counts_what_it_did_and_watches_the_memory(users):
    found = run_benchmark("soak", users=lambda: users, minutes=0.3, most=40)
    told = {"run", "users", "minutes", "actions", "rss_mb", "first_mb", "last_mb", "growth", "flat"}
    assert found.keys() == SAID | told and json.loads(json.dumps(found)) and found["users"] == 40
    assert sum(found["actions"].values()) >= 3 and found["rss_mb"][-1][0] > 0
    assert found["growth"] == pytest.approx(found["last_mb"] / found["first_mb"] - 1)
    assert found["flat"] == (found["growth"] <= 0.05)


@pytest.mark.slow
def test_reading_is_near_chance_for_the_tokens_of_other_users():
    """The body alone ranks users by what it is given of them; with another user it cannot."""
    found = reading(
        lambda: make_sample_users(240),
        bodies=("pointing", "language_model"),
        backbone="tiny",
        encoder="hash",
        steps=60,
    )
    row = found["rows"]["language_model"]
    assert row["alone"] > row["shuffled"] + 0.03
    assert 0.42 < row["shuffled"] < 0.58
    assert found["minus"]["pointing"]["label_free"]["low"] < 0.05
