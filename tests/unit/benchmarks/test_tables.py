"""Tables of benchmark records: every value of a record is in its row, and older or smaller records
still have a table.
"""

import json
from pathlib import Path

import pytest

from tests.benchmarks import tables

SPAN = {"auc": 0.012, "low": 0.004, "high": 0.02}
SIDE = {"auc": 0.7, "ks": 0.3, "low": 0.69, "high": 0.71}
SPEED = Path(__file__).parents[3] / "data/runs/speed"


def made_on(bench, commit="abc1234", gpu=None, rate=1.0):
    return {
        "bench": bench,
        "commit": commit,
        "machine": {"processor": "P", "threads": 2, "gpu": gpu, "matmul_tflops": rate},
    }


def rows_of(table):
    """Give a table's rows as {first cell: other cells}, and its head under ''."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    assert len({len(line) for line in lines}) == 1, "all rows have as many cells"
    return {"": lines[0][1:]} | {line[0]: line[1:] for line in lines[2:]}


def test_who_made_it_is_said_once_for_records_of_one_commit_and_machine():
    three = (
        made_on("cache", rate=0.9),
        made_on("ask", rate=1.1),
        made_on("texts", "def5678", gpu="G"),
    )
    three[2]["machine"]["products"] = "float32"
    alike = made_on("cache"), made_on("ask")
    alike[1]["machine"]["products"] = "float32"
    assert ["bf16" in line for line in tables.told(*alike).splitlines()] == [True, False]
    assert tables.told(*three).splitlines() == [
        "`python -m tests.benchmarks cache`, `ask`, commit abc1234, P, 2 threads, 0.9 to 1.1 "
        "TFLOP/s (bf16 matrix products).",
        "`python -m tests.benchmarks texts`, commit def5678, G, 1.0 TFLOP/s "
        "(fp32 matrix products).",
    ]


def test_the_methods_of_a_record_are_told_best_first():
    average = {"rfm": SIDE, "anchor": SIDE | {"auc": 0.8}}
    tasks = [{"task": str(number), "method": "rfm", "auc": 0.7} for number in range(10)]
    record = {"average": average, "tasks": tasks, "anchor_minus": {"rfm": SPAN}}
    rows = rows_of(tables.tasks_table(record))
    assert rows[""] == ["AUC", "95 % CI", "KS", "Qanchor minus this (95 % CI)"]
    assert list(rows)[1:] == [tables.NAMES["anchor"], "RFM"]
    assert rows["RFM"] == [".700", ".690 to .710", ".300", ".012 (.0040 to .020)"]
    table = tables.tasks_table(record | {"recovered": {"rfm": 0.5, "anchor": 0.6}})
    head = (
        "| average of ten tasks | AUC | 95 % CI | KS | recovered | Qanchor minus this (95 % CI) |"
    )
    assert table.startswith(head)
    assert rows_of(table)["RFM"][-2:] == [".500", ".012 (.0040 to .020)"]


def judged(auc):
    return {"auc": auc, "low": auc - 0.01, "high": auc + 0.01}


LABEL_FREE = {
    "zero_shot": {"average": 0.65, "lapse": 0.65},
    "zero_shot_intervals": {"average": judged(0.65), "lapse": judged(0.65)},
    "zero_shot_others": {
        "persistence": {"average": judged(0.6)},
        "earlier_lightgbm": {"average": judged(0.67)},
    },
    "zero_shot_minus": {"persistence": SPAN, "earlier_lightgbm": SPAN | {"auc": -0.02}},
}


def test_rankings_without_labels_stand_beside_what_needs_none_either():
    rows = rows_of(tables.label_free_table(LABEL_FREE))
    assert rows[tables.NAMES["zero_shot"]] == [".650 (.640 to .660)", ""]
    assert rows[tables.NAMES["earlier_lightgbm"]] == [
        ".670 (.660 to .680)",
        "-.020 (.0040 to .020)",
    ]


def test_the_summary_has_label_free_rows_and_the_strongest_baselines():
    scores = {"anchor": 0.7, "rfm": 0.6, "counts": 0.55, "minilm": 0.5, "rfm_svd": 0.4}
    average = {name: SIDE | {"auc": value} for name, value in scores.items()}
    average |= {name: SIDE for name in ("anchor_no_query", "anchor_untrained")}
    of_all = {name: side | {"auc": 0.9} for name, side in average.items()}
    shop = LABEL_FREE | {"average": of_all, "average_ranked": average}
    games = LABEL_FREE | {"average_ranked": {name: SIDE for name in average if name != "rfm"}}
    rows = rows_of(tables.summary_table({"games": games, "shop": shop}))
    assert rows[""] == ["labels", "games, one task", "shop, one task"]
    assert rows[tables.NAMES["persistence"]] == ["none", *[".600 (.590 to .610)"] * 2]
    assert rows[tables.NAMES["earlier_lightgbm"]][0] == "of earlier dates"
    probes = rows[tables.NAMES["anchor"]]
    assert probes == ["cross-validated", ".700 (.690 to .710)", ".700 (.690 to .710)"]
    assert rows["RFM"] == ["cross-validated", "", ".600 (.690 to .710)"]


ASKED = {"right": 0.8, "none": 0.78, "generic": 0.75, "wrong": 0.74, "paraphrases": [0.801, 0.799]}


def test_questions_have_their_intervals_where_the_record_has_them():
    spans = dict.fromkeys(ASKED, SIDE)
    minus = {
        "none": SPAN,
        "generic": SPAN,
        "wrong": SPAN,
        "paraphrases": [SPAN, SPAN | {"auc": 0.001}],
    }
    rows = rows_of(
        tables.query_table({"query": ASKED, "query_intervals": spans, "query_minus": minus})
    )
    assert rows[""] == ["AUC", "95 % CI", "own question minus this (95 % CI)"]
    assert len(rows) == 6
    assert rows["another task's question"] == [".740", ".690 to .710", ".012 (.0040 to .020)"]
    assert rows["two paraphrases of it"][-1] == "at most .0010 (.0040 to .020)", (
        "the one that is farthest below"
    )


def test_a_replay_shows_everybody_and_the_best_fifth_by_each_score():
    row = {
        "users": 20,
        "rate": 0.3,
        "lift": 3.0,
        "low": 2.5,
        "high": 3.5,
        "minus": 0.1,
        "minus_low": -0.2,
        "minus_high": 0.4,
    }
    rows = [row | {"arm": arm, "top": top} for arm in ("rfm", "zero_shot") for top in (0.1, 0.2)]
    told = rows_of(tables.replay_table({"users": 100, "task": "redeem", "rate": 0.1, "rows": rows}))
    assert told[""] == ["users", "`redeem`", "lift (95 % CI)", "minus RFM (95 % CI)"]
    assert len(told) == 4
    assert told["all users"] == ["100", "10.0 %", "1.00", ""]
    assert told["RFM, trained on the label"] == ["20", "30.0 %", "3.00 (2.50 to 3.50)", ""]
    assert told["**Qanchor**, label-free"][-1] == "+0.10 (-0.20 to 0.40)"


def test_prompts_and_fairness_have_tables_of_their_own():
    side = {"auc": 0.6, "ks": 0.2, "silhouette": 0.01}
    told = tables.prompts_table(
        {"average": {"vague": {"before": side, "after": side | {"auc": 0.7}, "gain": SPAN}}}
    )
    assert (
        "| a vague question | .600 | .700 | +.012 (.0040 to .020) | .200 to .200 | .010 to .010 |"
        in told
    )
    row = {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8}
    rows = [
        {"source": s, "attribute": a} | row
        for s in ("nothing", "Promo", "rfm")
        for a in ("age", "average")
    ]
    groups = [
        {
            "task": "Promo",
            "arm": "anchor",
            "attribute": "age",
            "gap": {"selected": [-0.1, -0.2, 0.0]},
        },
        {"task": "Promo", "arm": "rfm", "attribute": "age", "gap": {"selected": None}},
    ]
    told = tables.fairness_table({"rows": rows, "groups": groups, "asked": {"Promo": "?"}})
    assert "| the question about Promo | .700 | .700 | .600 to .800 |" in told
    assert "| Promo | Qanchor | -.100 (-.200 to .000) |" in told
    assert "| Promo | RFM | too few users |" in told


def test_every_bench_of_speed_has_its_row_and_a_fault_is_not_hidden():
    records = {name: json.loads((SPEED / f"{name}.json").read_text()) for name in tables.SPEED}
    lines = [line.split(" | ") for line in tables.speed_table(records).splitlines()[2:]]
    names = [line[0].strip("| `") for line in lines]
    assert list(dict.fromkeys(names)) == list(tables.SPEED)
    assert all(len(line) == 4 for line in lines)
    measured = lines[names.index("scale")][2]
    assert "identical bytes" in measured
    assert "0 users lost, 0 duplicated" in measured
    records["scale"]["rows"][1]["identical"] = False
    records["scale"]["restart"] |= {"lost": 2, "doubled": 12}
    assert (
        "**different** bytes; after a kill and a restart 2 users lost, 12 duplicated"
        in tables.speed_table(records)
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.8049, ".805"), (-0.0041, "-.0041"), (0.00001, ".000"), (0.99996, "1.000"), (1.25, "1.250")],
)
def test_shares_are_written_as_the_readme_does(value, written):
    assert tables.short(value) == written


def test_attention_is_told_before_and_after_tuning():
    def named(first, part):
        return {
            name: {"as_it_is": {"first": first}, "against": {"first": 0.4}, "carriers": part}
            for name in tables.LOOKS
        }

    agreement = {"agreement": {"weight": 0.36}}
    record = {
        "chance": 0.4,
        "named": named(0.6, 0.5),
        "tuned": {"named": named(0.7, 0.55)} | agreement,
        "held_out": {
            "questions": 60,
            "saliency": {"agreement": 0.87, "same_first": 0.95},
            "raw_attention": {"agreement": 0.7, "same_first": 0.8},
        },
    }
    text = tables.attention_table(record | agreement)
    assert "within a user: .360 under the question" in text
    assert "60 questions about concepts that were never taught" in text
    assert "first in 95 %; with raw attention weights .700 and 80 %." in text
    told = rows_of(text)
    assert told["saliency"] == ["60 %, 70 %", "40 %, 40 %", "50 %, 55 %"]
    assert told["random choice"] == ["40 %"] * 3


def test_what_fit_reaches_stands_beside_what_needs_no_model():
    row = {
        "query": "Q?",
        "label_free": 0.7,
        "without_aliases": 0.68,
        "without_associations": 0.69,
        "associations": 0.66,
        "prior": 0.65,
        "persistence": 0.62,
        "frequency": 0.6,
        "recency": 0.5,
        "probe": 0.8,
        "grade": 0.4,
        "chance_error": 0.05,
    }
    average = {name: value for name, value in row.items() if name != "query"}
    refused = dict.fromkeys(("unanswerable", "of_unanswerable", "answerable", "of_answerable"), 4)
    record = {
        "users": 60,
        "events": 900,
        "concepts": 7,
        "seconds": 12.3,
        "rows": [row | {"label_free": None, "prior": None}],
        "average": average,
        "refused": refused,
    }
    told = rows_of(tables.fitted_table(record))
    of_labels = [".620", ".600", ".500", ".800", ".400", ".050"]
    assert told["Q?"] == ["none", ".680", ".690", ".660", "none", *of_labels]
    assert told["**average of those answered**"] == [
        ".700",
        ".680",
        ".690",
        ".660",
        ".650",
        *of_labels,
    ]


def test_concepts_are_told_by_what_was_held_out():
    row = {"split": "concept", "auc": 0.71, "persistence": 0.7, "polarity": 0.95}
    told = rows_of(tables.concepts_table({"splits": [row]}))
    assert told["concept never taught"] == [".710", ".700", ".950"]


def test_reading_is_told_beside_its_controls():
    row = {
        "label_free": 0.71,
        "prior": 0.7,
        "alone": 0.65,
        "shuffled": 0.5,
        "tokens_shuffled": 0.6,
        "tokens_only": 0.62,
        "probe": 0.75,
        "seconds": 12.0,
        "concepts": {"taught": {"auc": 0.8, "prior": 0.78, "persistence": 0.7}},
    }
    span = {"auc": 0.01, "low": -0.002, "high": 0.022}
    minus = {"pointing": {"label_free": span, "alone": span}}
    part = {"written": 0.3, "score": 0.35, "persistence": 0.4, "questions": 30}
    writing = row | {"written": {"train": part}}
    rows = {"pointing": row, "language_model": writing}
    told = tables.reading_table({"rows": rows, "minus": minus})
    ranked, concepts, written = told.split("\n\n")
    body = "A: pointing, no language model"
    assert rows_of(ranked)[body][:7] == [".710", ".700", ".650", ".620", ".600", ".500", ".750"]
    assert rows_of(ranked)[body][7:] == [*[".010 (-.0020 to .022)"] * 2, "12"]
    assert rows_of(concepts)[body] == [".800 (.780)", "none", "none"]
    body = "B: language model (SmolLM2), contrastive weight 1"
    assert rows_of(written)[body] == [".300 (.350, .400)", "none"]
    assert len(rows_of(written)) == 2


def test_a_frozen_configuration_stands_beside_its_seeds_and_controls():
    row = {"cutoff": "2017-08-01", "group": "unseen", "users": 2270, "tasks": 8}
    row |= {"anchor": 0.79, "low": 0.78, "high": 0.8, "lowest": 0.785, "highest": 0.795}
    earlier = {"earlier_logistic": 0.78, "earlier_lightgbm": 0.8}
    record = {"seeds": 3, "rows": [row | {"prior": 0.75, "persistence": 0.7, **earlier}]}
    head, _, line = tables.frozen_table(record).splitlines()
    assert "| three training seeds |" in head
    assert "| 2,270, in no training step | 8 | .790 (.780 to .800) | .785 to .795 | .750 |" in line
