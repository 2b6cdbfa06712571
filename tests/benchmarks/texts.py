"""Bench `texts`: a million distinct event texts in the table on disk, in how little memory, and how
fast one is found again.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from qanchor.models.text_encoder import TextEncoder, VectorTable
from tests.benchmarks.useru import alone, peak_gb

WIDTH = 384


def texts(
    users=None,
    run=None,
    seeds=0,
    *,
    many: int = 1_000_000,
    read: int = 1000,
    encoder: str = "minilm",
) -> dict:
    """Fill a table with `many` distinct texts, read all back, and look one up again; encode `read`
    texts for real.

    The vectors in the table are drawn: encode_per_s says how long MiniLM would take for them.
    peak_gb: the most memory of the process that reads all of them back (a million vectors are 0.77
    GB). users, run and seeds are not looked at.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = alone(_fill, Path(folder), many) | alone(_read_back, Path(folder), many)
    model, told = (
        TextEncoder(encoder),
        [f"bought {i} tins of soup and bread, {i % 90} dollars" for i in range(read)],
    )
    began = time.perf_counter()
    for start in range(0, read, 250):
        model(told[start : start + 250])
    return {"texts": many} | found | {"encode_per_s": read / (time.perf_counter() - began)}


def _text(number: int) -> str:
    return f"bought article {number} of the shop in the old town"


def _fill(folder: Path, many: int) -> dict:
    draw, began = np.random.default_rng(0), time.perf_counter()
    for start in range(0, many, 50_000):
        some = [_text(i) for i in range(start, min(many, start + 50_000))]
        VectorTable(folder / "table").lookup(
            some,
            lambda new: draw.standard_normal((len(new), WIDTH), np.float32).astype(np.float16),
        )
    return {"fill_s": time.perf_counter() - began, "fill_peak_gb": peak_gb()}


def _read_back(folder: Path, many: int) -> dict:
    began, table = time.perf_counter(), VectorTable(folder / "table")
    vectors = table.lookup([_text(i) for i in range(many)], _never)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    one = table.lookup([_text(many // 2)], _never)
    assert np.array_equal(one[0], vectors[many // 2])
    return {
        "read_s": whole,
        "find_one_ms": 1000 * (time.perf_counter() - began),
        "peak_gb": peak_gb(),
    }


def _never(new: list[str]) -> np.ndarray:
    raise AssertionError(f"{len(new):,} texts are not in the table")
