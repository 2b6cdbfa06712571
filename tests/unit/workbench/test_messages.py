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


def test_nothing_below_imports_the_sentences():
    below = [
        path for path in PACKAGE.rglob("*.py") if path.parent.name not in ("workbench", "qanchor")
    ]
    assert len(below) > 40
    for path in below:
        assert "qanchor.workbench" not in path.read_text(encoding="utf-8"), path


def test_no_plural_is_an_added_s():
    paths = [path for name in OWNED for path in (PACKAGE / name).glob("*.py")]
    for path in [*paths, PACKAGE / "cli.py"]:
        assert not re.search(r"unit\}s\b|\"s\" \*|'s' \*", path.read_text(encoding="utf-8")), path


def test_every_sentence_has_the_plural_of_the_unit():
    shift = pd.DataFrame(
        {
            "user": ["a", "b"],
            "residual": [0.9, 0.1],
            "beyond_noise": [True, False],
            "noise_floor": 0.3,
        }
    )
    order = pd.DataFrame({"user": ["a", "b"], "score": [0.1, 0.2]})
    order.attrs["topics"] = ["tea"]
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
        messages.ranking_summary(order, "family"),
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
    with pytest.raises(TypeError):
        first.data["points"] = 1
