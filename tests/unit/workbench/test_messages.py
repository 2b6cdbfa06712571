"""Sentences count in English, and no layer below the workbench writes them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qanchor.analysis.query_matrix import MatrixProgress
from qanchor.workbench import messages
from qanchor.workbench.updates import Update

OWNED = ("analysis", "evaluation", "inference", "workbench")
PACKAGE = Path(messages.__file__).parents[1]
VIEWS = sorted((PACKAGE.parent / "widgets").glob("*.py"))


def test_nothing_below_imports_the_sentences():
    below = [
        path for path in PACKAGE.rglob("*.py") if path.parent.name not in ("workbench", "qanchor")
    ]
    assert len(below) > 40
    for path in below:
        assert "qanchor.workbench" not in path.read_text(encoding="utf-8"), path


def test_no_plural_is_an_added_s():
    paths = [path for name in OWNED for path in (PACKAGE / name).glob("*.py")]
    for path in [*paths, PACKAGE / "cli.py", *VIEWS]:
        assert not re.search(r"unit\}s\b|\"s\" \*|'s' \*", path.read_text(encoding="utf-8")), path
    for path in VIEWS:  # a count of one has no plural, and users may have another name
        counted = re.search(r":,\} (held-out )?users\b", path.read_text(encoding="utf-8"))
        assert not counted, path


def test_the_views_leave_the_sentences_of_a_ranking_to_the_messages():
    words = ("Interpreted as a", "rank first of", "This question cannot", "sets them apart most")
    for path in [*VIEWS, *(PACKAGE.parent / "widgets").rglob("*.mjs")]:
        assert not any(some in path.read_text(encoding="utf-8") for some in words), path


def test_every_sentence_has_the_plural_of_the_unit():
    shift = pd.DataFrame(
        {
            "user": ["a", "b"],
            "toward_yes": [0.9, 0.1],
            "elsewhere": 0.3,
            "stands_out": [True, False],
        }
    )
    shift.attrs["others"] = 19
    order = pd.DataFrame({"user": ["a", "b"], "score": [0.1, 0.2]})
    compared = pd.DataFrame(
        {"kind": ["text"], "name": "tea", "group": 0.5, "rest": 0.1, "beyond_chance": True}
    )
    ranking = pd.DataFrame(
        {"query": ["q"], "auc": 0.8, "auc_low": 0.7, "auc_high": 0.9, "chance": 0.6}
    )
    ranking = ranking.assign(beyond_chance=True, behind=False, n_group=20, n_rest=80)
    cell = ranking.assign(group="some", n=20)
    prompt = pd.DataFrame(
        [("auc", 0.7, 0.8, 0.1, 0.05, 0.15)],
        columns=["measure", "before", "after", "gain", "low", "high"],
    )
    prompt.attrs["n"] = 30
    sentences = [
        messages.progress_message("Embedded", 3, 9, "family"),
        messages.opening_message(9, "family"),
        messages.shift_summary(shift, "family"),
        messages.ranking_begins("family"),
        messages.order_sentence(order, "family"),
        messages.order_sentence(order.assign(score=np.nan), "family"),
        messages.group_summary(compared, 3, 9, "family"),
        messages.group_summary(compared.assign(beyond_chance=False), 3, 9, "family"),
        messages.provenance("", 0, shift, "family")["metric"],
        messages.deletion_progress("bill", 9, "family"),
        messages.attention_caption(["a", "b"], 9, "family", 0),
        messages.group_queries_summary(ranking, "family"),
        messages.group_queries_summary(ranking.assign(beyond_chance=False), "family"),
        messages.matrix_progress(MatrixProgress("users", 0, 3, None), 1, 9, "family"),
        messages.matrix_summary(cell, "family"),
        messages.matrix_caption(3, 9, 128, "family"),
        messages.tuning_begins(9, "family"),
        messages.evaluation_begins(9, "family"),
        messages.prompt_summary(prompt, "family"),
    ]
    for sentence in sentences:
        assert "families" in sentence and "familys" not in sentence and "luck" not in sentence, (
            sentence
        )


def test_a_ranking_is_said_in_two_sentences():
    ranking = pd.DataFrame({"user": list("abcd"), "score": [0.1, 0.0, 0.3, 0.2]})
    topics = ["not buy_tea", "bread", "milk", "rice"]
    ranking.attrs |= {"topics": topics, "sign": -1, "measure": "occurs", "threshold": 0.0}
    meaning = "Interpreted as a question about buy tea, bread, milk (none)."
    paid = pd.DataFrame()
    paid.attrs |= {"topics": ["not_paid"], "sign": 1, "measure": "occurs", "threshold": 0.0}
    event = "Interpreted as a question about not paid."
    assert messages.interpretation_sentence(paid) == event, "an event that is called so"
    assert messages.interpretation_sentence(ranking) == meaning
    assert messages.order_sentence(ranking) == "c, d and a rank first of 4 users."
    assert messages.order_sentence(ranking.head(2)) == "a and b rank first of 2 users."
    ranking.attrs["topics"] = []
    assert messages.interpretation_sentence(ranking) == ""


def test_what_sets_a_group_apart_is_short_and_in_its_own_numbers():
    rows = [
        ("number", "amount", 1412.5, 36.0, True),
        ("text", "x" * 99, 0.254, 0.0, True),
        ("label", "Fraud", 0.12, 0.06, False),
    ]
    columns = ["kind", "name", "group", "rest", "beyond_chance"]
    summary = messages.group_summary(pd.DataFrame(rows, columns=columns), 1, 1_000)
    assert summary == (
        "1 of 1,000 users selected. What sets them apart most: “amount” 1,412.5 against 36;"
        f" “{'x' * 40}” 25 % against 0 %."
    )


def test_nothing_significant_is_said_plainly():
    frame = pd.DataFrame({"query": ["a", "b"], "group": "some", "beyond_chance": False})
    words = "No significant cells: none of 2 questions separates any of 1 group better than chance."
    assert messages.matrix_summary(frame) == words


def test_disagreement_has_a_true_minus():
    assert "−0.50" in messages._agreement_sentence(
        -0.5
    ) and "contradict" in messages._agreement_sentence(-0.5)
    assert (
        messages._agreement_sentence(np.nan)
        == "Too few modalities to compare attention with deletion."
    )


def test_an_update_is_frozen_and_shares_nothing():
    first, second = Update(0, 1), Update(0, 1)
    assert (
        first == second
        and first.data == {}
        and (first.message, first.caption, first.warning) == ("", "", "")
    )
    with pytest.raises(AttributeError):
        first.done = 1
    first.data["points"] = 1
    assert second.data == {}


def retention_rows(**sides) -> pd.DataFrame:
    """Return the retention of sides, each given as (users, active) of each period."""
    rows = []
    for side, periods in sides.items():
        for period, (users, active) in enumerate(periods):
            row = {"side": side, "period": period, "users": users, "active": active}
            share = active / users
            rows.append(row | {"share": share, "low": share - 0.1, "high": share + 0.1})
    frame = pd.DataFrame(rows)
    frame.attrs["period_days"] = 14
    return frame


def test_retention_is_said_of_a_period_that_half_lived_through_with_the_numbers_behind_it():
    alone = retention_rows(all=[(100, 100), (60, 30), (11, 0)])
    sentence = "In period 1 (of 14 days) after their first day 50 % (30 of 60) were active."
    assert messages.retention_summary(alone) == sentence
    both = retention_rows(group=[(40, 40), (40, 30)], rest=[(100, 100), (90, 27)])
    assert messages.retention_summary(both).endswith(
        "75 % (30 of 40) of the selected were active, and 30 % (27 of 90) of the rest."
    )
    alike = retention_rows(group=[(40, 40), (40, 30)], rest=[(100, 100), (100, 70)])
    assert messages.retention_summary(alike).endswith("of the rest: within chance.")
    few = retention_rows(rest=[(100, 100), (100, 70)])
    assert messages.retention_summary(few).endswith(
        "70 % (70 of 100) of the rest were active; the selected are too few to say."
    )


def test_a_funnel_names_a_loss_only_if_there_is_one():
    rows = [{"side": "all", "users": 20, "step": step, "active": 20, "share": 1} for step in "ab"]
    assert messages.funnel_summary(pd.DataFrame(rows)) == "100 % (20 of 20) come to “b”."
    nobody = pd.DataFrame(rows).assign(active=0, share=0.0)
    assert messages.funnel_summary(nobody) == "0 % (0 of 20) come to “b”."
