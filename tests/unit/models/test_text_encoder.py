"""Each text is encoded once, whoever asks and whatever is killed; what is read back is what was
written.
"""

import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest

from qanchor.errors import TableError
from qanchor.models import text_encoder as text_encoder_module
from qanchor.models.text_encoder import TextEncoder, text_vectors


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Let a stand-in encode, and say of which texts."""
    told = []

    class Counting(TextEncoder):
        def __init__(self, name):
            super().__init__("hash")

        def forward(self, some):
            told.extend(some)
            return super().forward(some)

    monkeypatch.setattr(text_encoder_module, "TextEncoder", Counting)
    text_encoder_module._load_text_encoder.cache_clear()
    yield told
    text_encoder_module._load_text_encoder.cache_clear()


def test_hashed_texts_need_nothing_and_repeat_themselves():
    vectors = text_vectors(["tea", "rice", "tea", "tea "], "hash")
    assert (
        vectors.shape == (4, 384)
        and vectors.dtype == np.float16
        and np.array_equal(vectors[0], vectors[2])
    )
    assert abs(vectors[0].astype(float) @ vectors[1]) < 0.3 and not np.array_equal(
        vectors[0], vectors[3]
    )
    assert text_vectors([], "hash").shape == (0, 384)
    assert np.array_equal(text_vectors(["rice"], "hash")[0], vectors[1])


def test_the_table_is_read_back(tmp_path, encoded):
    seen = []
    first = text_vectors(["a", "b", "a"], "model", tmp_path, lambda *told: seen.append(told))
    again = text_vectors(["b", "c", "a"], "model", tmp_path)
    assert encoded == ["a", "b", "c"] and seen == [(2, 2)]
    assert np.array_equal(first[[1, 0]], again[[0, 2]]) and np.array_equal(first[0], first[2])
    text_encoder_module._open_table.cache_clear()  # another process would open it anew
    assert np.array_equal(
        text_vectors(["c", "b"], "model", tmp_path), again[[1, 0]]
    ) and encoded == ["a", "b", "c"]
    assert np.array_equal(text_vectors(["b"], "other", tmp_path)[0], again[0]) and encoded == [
        "a",
        "b",
        "c",
        "b",
    ]
    odd = ["\ud800 half a pair", "nul \0", "x" * 100_000, ""]
    assert np.array_equal(
        text_vectors(odd, "model", tmp_path), text_vectors(odd[::-1], "model", tmp_path)[::-1]
    )


def test_a_table_that_was_removed_is_made_anew(tmp_path, encoded):
    first = text_vectors(["a", "b"], "model", tmp_path)
    shutil.rmtree(next(tmp_path.iterdir()))  # as its errors say to, while this process has it open
    assert np.array_equal(text_vectors(["b", "a"], "model", tmp_path), first[::-1])
    assert sorted(encoded) == ["a", "a", "b", "b"]


def test_a_torn_end_is_cut_off(tmp_path, encoded):
    whole = text_vectors(["a", "b"], "model", tmp_path)
    table = text_encoder_module._open_table(next(tmp_path.iterdir()))
    for name, torn in (
        ("vectors-384", b"x" * 1000),
        ("keys", b"y" * 7),
    ):  # as a kill amid a write leaves them
        with (table.folder / name).open("ab") as file:
            file.write(torn)
    assert np.array_equal(text_vectors(["c", "a", "b"], "model", tmp_path)[1:], whole)
    assert (table.folder / "keys").stat().st_size == 3 * text_encoder_module.ROW_DTYPE.itemsize
    assert (table.folder / "vectors-384").stat().st_size == 3 * 768 and encoded == ["a", "b", "c"]


def test_damage_is_noticed(tmp_path, encoded):
    text_vectors(["a", "b"], "model", tmp_path)
    folder = next(tmp_path.iterdir())
    path = folder / "vectors-384"
    good = path.read_bytes()
    path.write_bytes(good[:800] + bytes([good[800] ^ 1]) + good[801:])
    with pytest.raises(
        TableError, match=r"vectors-384, row 1: not what was written: remove .*encoded again"
    ):
        text_vectors(["a", "b"], "model", tmp_path)
    assert text_vectors(["a"], "model", tmp_path).shape == (1, 384)
    path.write_bytes(good[:768])
    with pytest.raises(TableError, match=r"vectors-384 has 1 rows, keys has 2: remove"):
        text_vectors(["b"], "model", tmp_path)
    path.unlink()
    with pytest.raises(TableError, match="has 0 rows, keys has 2"):
        text_vectors(["b"], "model", tmp_path)


def _fill(folder, start: int, many: int) -> None:
    random = np.random.default_rng(start)
    table = text_encoder_module.VectorTable(folder)
    for i in range(start, start + many, 50):
        told = [f"text {n}" for n in range(i, i + 50)]
        table.lookup(
            told, lambda new, report: random.normal(size=(len(new), 384)).astype(np.float16)
        )


def test_processes_share_a_table_and_one_may_be_killed(tmp_path):
    """Two write overlapping texts at once, one of them is killed: every row that stands is whole
    and stands once.
    """
    spawn = multiprocessing.get_context("spawn")
    folder = tmp_path / "table"
    first, second = (
        spawn.Process(target=_fill, args=(folder, start, 20_000)) for start in (0, 5_000)
    )
    first.start(), second.start()
    while (
        not (folder / "keys").exists()
        or (folder / "keys").stat().st_size < 100 * text_encoder_module.ROW_DTYPE.itemsize
    ):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join()
    assert first.exitcode == -signal.SIGKILL and second.exitcode == 0
    table = text_encoder_module.VectorTable(folder)
    told = [f"text {n}" for n in range(25_000)]
    made = []
    vectors = table.lookup(
        told, lambda new, report: (made.extend(new), np.ones((len(new), 384), np.float16))[1]
    )
    assert (
        vectors.shape == (25_000, 384)
        and len(made) == len(set(made)) < 10_000
        and len(table.rows) == 25_000
    )
    assert len(np.unique(table.rows[["high", "low"]])) == 25_000
