"""Some thousand broken files and strange words: each ends in a result, or in an error of ours that
says what to do.
"""

import json

import pytest

from tests.benchmarks import fuzz
from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.strange import Draw

CASES = 34 * len(fuzz.ROUND)


@pytest.mark.slow
def test_strange_input_ends_in_a_result_or_in_our_own_error():
    found = BENCHMARKS["fuzz"](cases=CASES, seed=1)
    assert found["first_faults"] == [] and found["faults"] == 0
    told = found["targets"]
    assert sum(each["cases"] for each in told.values()) == CASES == found[
        "cases"
    ] > 2000 and json.dumps(found)
    for name, each in told.items():
        assert each["results"] + sum(each["errors"].values()) == each["cases"] > 0, name
        assert each["errors"].keys() == each["example"].keys()
    assert sum(each["results"] > 0 for each in told.values()) > 10  # not all is refused
    assert {kind for each in told.values() for kind in each["errors"]} >= {
        "DataError",
        "RunError",
        "ResultCardError",
        "TableError",
    }


@pytest.mark.slow
def test_a_fault_is_noticed(monkeypatch):
    """An error nobody explained, a wrong result, a hang and a half-written file are faults, each
    with its case.
    """

    def unexplained(draw, place):
        int("no number")

    def wrong(draw, place):
        assert draw.words() is None, "not that"

    def hanging(draw, place):
        while True:
            pass

    def half(draw, place):
        (place.work / ".a.1.part").write_text("half")

    def explained(draw, place):
        raise ValueError("not of ours: raised in a test")

    made = {made.__name__: made for made in (unexplained, wrong, hanging, half, explained)}
    monkeypatch.setattr(fuzz, "TARGETS", made)
    monkeypatch.setattr(fuzz, "ROUND", list(made))
    monkeypatch.setattr(fuzz, "HANG", 0.2)
    found = fuzz.fuzz(cases=5)
    told = [(fault["case"], fault["error"].split(":")[0]) for fault in found["first_faults"]]
    assert told == [
        (0, "ValueError"),
        (1, "AssertionError"),
        (2, "TimeoutError"),
        (3, "half-written"),
        (4, "ValueError"),
    ]


def test_the_same_seed_draws_the_same():
    draws = [[Draw([seed, 3]).words(), Draw([seed, 3]).damage(b"some bytes")] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert any(len(Draw([0, k]).words()) >= 100_000 for k in range(2000)) and Draw([0, 0]).change(
        {"a": [1]}
    ) != {"a": [1]}
