"""Graded answers: computed from the tables, true of what happened, and flipped by a denial."""

import numpy as np
import pandas as pd
import pytest

from qanchor.data.users import Users
from qanchor.models.user_tokens import TokenReader
from qanchor.useru.concept_answers import FACTS, FIRST_TRUE, concept_grades, graded_answers
from qanchor.useru.concepts import MEASURES, Outcomes, induce_concepts
from tests.unit.models.test_user_tokens import CUTOFF, events

DAYS = 15
MEASURED = pd.Timestamp(CUTOFF) - pd.Timedelta(days=DAYS)


@pytest.fixture(scope="module")
def graded():
    """Return users, concepts, what is true of them and their grades."""
    users = Users.from_events(events(), CUTOFF)
    reader = TokenReader(users, "hash", until=MEASURED)
    concepts = induce_concepts(reader.events, reader.vectors, MEASURED, {})
    outcomes = Outcomes.of(reader.events, np.arange(len(users)), MEASURED, DAYS)
    truth = outcomes.truth(reader.events, concepts)
    return users, concepts, truth, concept_grades(outcomes, reader.events, concepts, truth)


def test_a_grade_says_whether_the_concept_is_true(graded):
    _, concepts, truth, grades = graded
    for column, concept in enumerate(concepts):
        known = ~np.isnan(truth[:, column])
        grade = grades[:, column]
        assert (grade[~known] == -1).all()
        assert (grade[known] >= 0).all() and (grade < len(FACTS[concept.measure])).all()
        is_true = grade[known] >= FIRST_TRUE[concept.measure]
        np.testing.assert_array_equal(is_true, truth[known, column] == 1)


def test_how_often_is_what_a_loop_counts(graded):
    users, concepts, _, grades = graded
    ahead = users.events[(users.events["time"] >= MEASURED) & (users.events["time"] < CUTOFF)]
    texts = [(i, c) for i, c in enumerate(concepts) if c.family == "text" and c.measure == "occurs"]
    for column, concept in texts:
        for row, user in enumerate(users.ids):
            mine = ahead.loc[ahead["user"] == user, "text"]
            n = int((mine == concept.things[0].removeprefix("text:")).sum())
            fact = FACTS["occurs"][grades[row, column]]
            assert fact == ("not once", "once", "a few times", "a few times", "often")[min(n, 4)]
    assert texts


@pytest.mark.parametrize("measure", MEASURES)
def test_a_denial_flips_yes_and_no_and_leaves_the_fact(measure):
    for yes, no in zip(graded_answers(measure, 1), graded_answers(measure, -1), strict=True):
        assert {yes.split(", ")[0], no.split(", ")[0]} == {"Yes", "No"}
        assert yes.split(", ")[1] == no.split(", ")[1]
    assert graded_answers(measure, 1)[0].startswith("No")
