"""The benches print what they promise, and their table is the one that the parts give."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.data.sample import make_sample_users
from qanchor.evaluation.metrics import roc_auc
from qanchor.evaluation.probe import linear_probe
from tests.benchmarks import attention as attention_module
from tests.benchmarks import coles as coles_module
from tests.benchmarks import fairness, machine, tables
from tests.benchmarks import frozen as frozen_module
from tests.benchmarks import tasks as tasks_module
from tests.benchmarks.__main__ import run_benchmark
from tests.benchmarks.datasets import make_german_users
from tests.benchmarks.engines import rank_scores
from tests.benchmarks.machine import measured_machine
from tests.benchmarks.movement import described, judged
from tests.benchmarks.reading import reading
from tests.benchmarks.senses import sense_cases, senses
from tests.benchmarks.speed import first_answer
from tests.benchmarks.task_scores import (
    DOMAINS,
    QUERIES,
    average_auc,
    cross_validate_tasks,
)
from tests.tiny import make_task, make_users

pytestmark = pytest.mark.weights
SAID = {"bench", "machine", "commit", "seed"}


@pytest.fixture(scope="module")
def users():
    world = make_sample_users(60)
    return replace(world, labels=world.labels[["Active", "Promo", "Takeout"]])


@pytest.fixture(scope="module")
def run():
    """The shipped run: questions find what they mean, and nothing is fitted."""
    return Path(__file__).parents[3] / "data/runs/sample"


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
    # it asks torch by a name that another release may lack
    assert isinstance(machine.has_fast_bf16(torch.device("cpu")), bool)
    for fast, wished, place, works in (
        (True, "bfloat16", "cpu", "bfloat16"),
        (False, "bfloat16", "cpu", "float32"),
        (False, "float32", "cpu", "float32"),
    ):
        monkeypatch.setattr(machine, "has_fast_bf16", lambda _, fast=fast: fast)
        assert machine.compute_dtype(wished, place) == works


def test_the_commit_is_named():
    assert machine.current_commit() == "unknown" or (
        len(machine.current_commit()) >= 7 and int(machine.current_commit(), 16) >= 0
    )


def test_cached_users_answer_as_users_read_anew(users, run):
    found = run_benchmark("cache", users=lambda: users, run=run, queries=(1, 3), most=20, rounds=1)
    assert found.keys() == SAID | {"data", "rows"} and json.dumps(found)
    assert [row["queries"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert row["users"] == 20 and row["speedup"] > 0 and row["max_abs_diff"] < 1e-5
        assert row["of_bound"] == pytest.approx(row["speedup"] / row["bound"])


def test_ask_times_everybody(users, run):
    found = run_benchmark("ask", users=lambda: users, run=run)
    told = {"data", "users", "first_200_s", "all_s", "rank_s", "curve"}
    assert found.keys() == SAID | told and json.dumps(found)
    done, at = zip(*found["curve"], strict=True)
    assert done[0] == 0 and done[-1] == found["users"] == 60 and sorted(at) == list(at)
    assert 0 < found["first_200_s"] <= found["all_s"] == at[-1]


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
    told = {"users", "chance", "named", "agreement", "rows", "tuned", "held_out"}
    assert found.keys() == SAID | told and json.dumps(found, default=float)
    assert found["tuned"]["users"] == 48 and found["tuned"]["rows"] != found["rows"], (
        "a prompt is not the question it began at"
    )
    for part in (found, found["tuned"]):
        assert set(part["named"]) == {"weight", "per_token", "deletion_effect"}
        for measure in part["named"].values():
            assert 0 <= measure["carriers"] <= 1
            assert all(0 <= measure[kind]["first"] <= 1 for kind in ("as_it_is", "against"))
        assert all(-1 <= r <= 1 for r in part["agreement"].values())
    assert set(found["held_out"]) == {"questions", "saliency", "raw_attention"}
    with pytest.raises(ValueError, match="the truth is known of --data world alone"):
        run_benchmark("attention", users=lambda: replace(users, name="mine"), run=run)


def test_the_first_of_each_task_is_compared_with_its_carriers():
    told = attention_module._named(
        pd.DataFrame({"task": list("aabb")}), pd.Series([1.0, 2, 9, 3]), [False, True, True, False]
    )
    assert told == {"auc": 1.0, "first": 1.0}


@pytest.mark.slow
def test_tasks_say_what_separate_probes_and_rankings_say(users, run):
    found = run_benchmark("tasks", users=lambda: users, run=run, seeds=1)
    assert json.loads(json.dumps(found, default=float))
    baselines = {"rfm", "counts", "rfm_svd", "lightgbm", "minilm", "minilm_rfm", "rfm_svd_minilm"}
    ours = {"anchor", "anchor_untrained", "anchor_no_query"}
    assert set(found["average"]) == baselines | ours | {"features", "features_lightgbm"}
    rows = {(row["task"], row["method"]): row["auc"] for row in found["tasks"]}
    engine = qa.Engine(qa.QAnchor.from_pretrained(run))
    cache = engine.prefill(users)
    z = engine.embed(cache, QUERIES["Promo"].replace("{user}", "user"))
    probed = linear_probe(z, users.label("Promo"), seeds=1).auc
    assert rows["Promo", "anchor"] == pytest.approx(probed, abs=1e-6)
    mean = np.mean([rows[task, "anchor"] for task in users.labels])
    assert found["average"]["anchor"]["auc"] == pytest.approx(mean)
    assert found["query"]["right"] == pytest.approx(mean, abs=1e-9)
    ranked = [task for task in users.labels if task in found["zero_shot"]]
    mean = np.mean([rows[task, "anchor"] for task in ranked])
    assert found["average_ranked"]["anchor"]["auc"] == pytest.approx(mean)
    assert set(found["query"]) == {"right", "none", "generic", "wrong", "paraphrases"}
    assert [row["method"] for row in found["ladder"]] == list(tasks_module.LADDER.values())
    span = found["anchor_minus"]["lightgbm"]
    assert span["low"] <= span["auc"] <= span["high"]
    embeddings = tasks_module.embeddings_by_question(
        engine, cache, users, list(users.labels), ("right", "wrong")
    )
    held = cross_validate_tasks(users, embeddings, seeds=1)
    minus = average_auc(users, held, "right", minus="wrong")
    assert tuple(found["query_minus"]["wrong"].values()) == pytest.approx(minus, abs=1e-9)
    score = rank_scores(engine, cache, QUERIES["Takeout"].replace("{user}", "user"))
    assert found["zero_shot"]["Takeout"] == pytest.approx(roc_auc(score, users.label("Takeout")))
    others = found["zero_shot_others"]
    parts = {"persistence", "prior", "alone", "shuffled"}
    assert set(others) == set(found["zero_shot_minus"]) == parts
    gap = found["zero_shot"]["average"] - others["prior"]["average"]["auc"]
    assert found["zero_shot_minus"]["prior"]["auc"] == pytest.approx(gap)


def test_without_seeds_only_rankings_without_labels_are_judged(users, run):
    found = run_benchmark("tasks", users=lambda: users, run=run, seeds=0)
    assert "average" not in found and "average" in found["zero_shot"]


def test_a_refused_question_is_not_judged(users, run):
    engine = qa.Engine(qa.QAnchor.from_pretrained(run))
    unknown = replace(users, labels=users.labels.assign(Xylophone=users.labels["Active"]))
    names = ["Takeout", "Xylophone"]
    scores = tasks_module.label_free_scores(engine, engine.prefill(unknown), unknown, names)
    assert {task for task, _ in scores} == {"Takeout"}
    assert tasks_module.judge_label_free(unknown, {}) == {}


def test_an_untrained_model_has_other_embeddings_and_leaves_the_trained_one_as_it_is(users, run):
    engine = qa.Engine(qa.QAnchor.from_pretrained(run))
    cache = engine.prefill(users)
    before = engine.embed(cache, "Will this user travel soon?")
    other = tasks_module.untrained(engine, cache).embed(cache, "Will this user travel soon?")
    assert other.shape == before.shape and np.abs(other - before).max() > 0.01
    np.testing.assert_array_equal(engine.embed(cache, "Will this user travel soon?"), before)


def test_german_sample_users_do_the_same_in_other_words():
    english = qa.make_sample_users(20)
    german = make_german_users(20)
    assert list(german.ids) == list(english.ids)
    assert len(german.events) == len(english.events)
    bought = german.events["text"].str.startswith("gekauft: ")
    assert bought.sum() == english.events["text"].str.startswith("bought ").sum() > 0


@pytest.mark.slow
def test_a_frozen_configuration_is_judged_on_all_and_on_unseen_users(monkeypatch):
    people = qa.make_sample_users(300)
    monkeypatch.setattr(frozen_module, "load_complete_journey", lambda cutoff: people)
    found = run_benchmark("frozen", seeds=2, cutoffs=("2025-06-01",))
    everybody, unseen = found["rows"]
    assert everybody["users"] == 300 and 10 < unseen["users"] < 60
    for row in found["rows"]:
        assert row["lowest"] <= row["anchor"] <= row["highest"] and row["low"] < row["high"]
        assert 0.4 < row["anchor"] < 1 and 0.4 < row["persistence"] < 1


@pytest.mark.slow
def test_the_first_answer_is_timed_from_the_file_on():
    (row,) = first_answer(sizes=((60, 3000),))["rows"]
    assert (row["users"], row["events"]) == (60, 3000)
    assert row["cold_s"] > row["read_s"] + row["fit_s"] + row["answer_s"] > 0


def test_a_label_of_too_few_is_not_asked(users):
    rare = users.labels.assign(Promo=np.where(np.arange(len(users)) < 4, 1.0, 0.0))
    assert tasks_module.askable(replace(users, labels=rare)) == ["Active", "Takeout"]
    with pytest.raises(ValueError, match="world has no label with 5 users of each class"):
        tasks_module.askable(replace(users, labels=users.labels[[]]))


def test_every_task_has_a_question():
    assert QUERIES.keys() == DOMAINS.keys()
    assert all(query.replace("{user}", "household").endswith("?") for query in QUERIES.values())


def test_replay_compares_arms_and_refuses_a_label_that_is_not_there(users, run):
    found = run_benchmark("replay", users=lambda: users, run=run, seeds=1, task="Takeout")
    rows = pd.DataFrame(found["rows"])
    assert {"rfm", "anchor", "zero_shot"} <= set(rows["arm"]) and rows["arm"].iloc[0] == "rfm"
    assert json.dumps(found)
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
def test_fairness_tells_sizes_and_finds_a_group_that_is_passed_over(users, run):
    found = run_benchmark("fairness", users=lambda: users, run=run, seeds=1)
    rows = pd.DataFrame(found["rows"])
    assert {"itself", "nothing", "generic", "Promo", "rfm", "minilm"} <= set(rows["source"])
    assert set(rows["attribute"]) == {"average", "wealth", "family", "health"}
    assert json.dumps(found, allow_nan=False)
    assert all(sum(row["n"]) == 60 for row in found["groups"])
    assert {row["arm"] for row in found["groups"]} == {"anchor", "rfm", "zero_shot"}
    with pytest.raises(ValueError, match="bench fairness: data 'mine': give --data journey"):
        run_benchmark("fairness", users=lambda: replace(users, name="mine"), run=run)


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
def test_a_soak_counts_what_it_did_and_watches_the_memory(users, run):
    found = run_benchmark("soak", users=lambda: users, run=run, minutes=0.3, most=40)
    told = {"run", "users", "minutes", "actions", "rss_mb", "first_mb", "last_mb", "growth", "flat"}
    assert found.keys() == SAID | told and json.loads(json.dumps(found)) and found["users"] == 40
    assert sum(found["actions"].values()) >= 3 and found["rss_mb"][-1][0] > 0
    assert found["growth"] == pytest.approx(found["last_mb"] / found["first_mb"] - 1)
    assert found["flat"] == (found["growth"] <= 0.05)


def test_a_peer_is_given_codes_of_the_history_alone(users):
    given = coles_module.peer_events(users)
    past = users.history()
    assert len(given) == len(past) and not given.isna().any(axis=None)
    assert given["user"].is_monotonic_increasing and given["event_time"].between(0, 1).all()
    of_user = given[given["user"] == 3]
    own = past[past["user"].astype(str) == users.ids[3]].sort_values("time", kind="stable")
    names = users.events["text"].cat.categories
    assert [names[code - 1] for code in of_user["text"]] == own["text"].tolist()
    assert (given[["text", "modality", "weekday", "hour"]] > 0).all(axis=None), "0 is padding"
    silent = replace(users, events=past[past["user"] != users.ids[3]])
    assert (coles_module.peer_events(silent).set_index("user").loc[3] == 0).all()


def test_a_peer_stands_beside_ours_on_the_same_folds(users, run, monkeypatch):
    with pytest.raises(RuntimeError, match="pytorch_lightning"):
        coles_module.embed_by_peer(users, sys.executable, 1)
    rows = np.random.default_rng(0).normal(size=(60, 8))
    monkeypatch.setattr(coles_module, "embed_by_peer", lambda *given: rows)
    found = run_benchmark("coles", users=lambda: users, run=run, seeds=1, peer="python")
    told = {"data", "users", "seeds", "epochs", "seconds", "average", "anchor_minus", "tasks"}
    assert found.keys() == SAID | told and json.dumps(found, default=float)
    assert found["anchor_minus"].keys() == found["average"].keys() - {"anchor"}
    for line in tables.coles_table(found).splitlines()[2:]:
        assert ("CoLES" in line or "Qanchor" in line or "RFM" in line) and " to " in line


def test_movement_finds_a_planted_group_toward_yes_and_nobody_by_a_paraphrase():
    random = np.random.default_rng(0)
    before = random.normal(size=(200, 8)) / 10
    group = random.random(200) < 0.8  # most have evidence: the few others move farther

    def asked(about):
        after = before + random.normal(scale=0.02, size=before.shape)
        after[:, 0] += about
        return after

    others = [asked(random.random(200) < 0.5) for _ in range(19)]
    after = asked(group)
    found = {row[:2]: row[2:] for row in judged(before, after, others, [asked(group)])}
    assert set(found) == set(tables.MOVES)
    auc = {key: described(*moves, group, group)["evidence_auc"] for key, moves in found.items()}
    assert auc["toward_yes", "lens"] > 0.99 and auc["residual", "others"] < 0.5
    same = {row[:2]: row[2:] for row in judged(after, asked(group), others)}
    assert not np.greater(*same["toward_yes", "lens"]).any()


def test_senses_are_judged_on_questions_that_are_in_no_wording():
    found = senses(make_users, seeds=1, encoder="hash")
    taught = {wording.query for wording in make_task().topics}
    cases = sense_cases(make_task())
    assert not taught & set(cases["query"]) and found["questions"] == len(cases)
    assert {row["without"] for row in found["rows"]} == {"", "phrasing", "vector", "model"}
    right = {(row["without"], row["kind"], row["sense"]): row["mean"] for row in found["rows"]}
    assert right["", "topic", 1] + right["", "topic", -1] > 1.1  # of words that it knows
    assert "| about anything: deny |" in tables.senses_table(found)


@pytest.mark.slow
@pytest.mark.weights
def test_reading_is_near_chance_for_the_tokens_of_other_users():
    """The body alone ranks users by what it is given of them; with another user it cannot."""
    found = reading(
        lambda: make_sample_users(240),
        bodies=("pointing", "language_model", "dense_teaching"),
        backbone="tiny",
        encoder="minilm",  # with "hash", which knows no words, questions point at little
        steps=60,
    )
    row = found["rows"]["language_model"]
    for body in ("language_model", "dense_teaching"):
        assert found["rows"][body]["alone"] > found["rows"][body]["shuffled"] + 0.1
    assert 0.42 < row["shuffled"] < 0.58
    assert found["minus"]["pointing"]["label_free"]["low"] < 0.05
    written = row["written"]["train"]
    assert written["questions"] > 5 and written["score"] > 0.1 and written["persistence"] > 0.1
