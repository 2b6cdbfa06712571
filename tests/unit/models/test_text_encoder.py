"""Each text is encoded once, whoever asks and whatever is killed; what is read back is what was
written.
"""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from qanchor.errors import TableError, WeightsError
from qanchor.models import text_encoder as text_encoder_module
from qanchor.models.text_encoder import (
    TextEncoder,
    VectorTable,
    encoder_digest,
    text_vectors,
    wording_vectors,
)


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
    monkeypatch.setattr(text_encoder_module, "encoder_digest", str)
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


def test_phrasings_are_near_where_words_are_shared():
    asked = ["Will this user buy tea?", "Will this user sing?", "Send nothing at all"]
    vector, phrasing = np.split(wording_vectors(asked, "hash").astype(float), 2, axis=1)
    assert np.array_equal(vector, text_vectors(asked, "hash"))
    assert phrasing[0] @ phrasing[1] > 2 > 1 > abs(phrasing[0] @ phrasing[2])


def test_both_vectors_of_a_text_are_means_of_its_tokens(tmp_path):
    with torch.random.fork_rng(devices=[]):
        make_encoder(tmp_path / "encoder", seed=0)
    encoder = TextEncoder(str(tmp_path / "encoder"))
    tokens = encoder.tokenizer(["tea rice"], return_tensors="pt")
    with torch.no_grad():
        layers = encoder.inner(**tokens, output_hidden_states=True).hidden_states
    for vector, layer in zip(encoder(["tea rice", "tea"])[0], (layers[2], layers[1]), strict=True):
        mean = layer[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


def test_the_table_is_read_back(tmp_path, encoded):
    first = text_vectors(["a", "b", "a"], "model", tmp_path)
    again = text_vectors(["b", "c", "a"], "model", tmp_path)
    assert encoded == ["a", "b", "c"]
    assert np.array_equal(first[[1, 0]], again[[0, 2]]) and np.array_equal(first[0], first[2])
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
    next(tmp_path.iterdir()).unlink()  # as its errors say to
    assert np.array_equal(text_vectors(["b", "a"], "model", tmp_path), first[::-1])
    assert sorted(encoded) == ["a", "a", "b", "b"]


def make_encoder(folder, seed: int):
    """Save a text encoder of random weights as a new process would find it."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = BertConfig(vocab_size=5, intermediate_size=8, **sizes)
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ntea\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    for cached in (encoder_digest, text_encoder_module._load_text_encoder):
        cached.cache_clear()


def test_weights_that_were_replaced_do_not_answer_with_the_old_vectors(tmp_path, monkeypatch):
    folder, tables = tmp_path / "encoder", tmp_path / "tables"
    with torch.random.fork_rng(devices=[]):
        make_encoder(folder, seed=0)
        first = text_vectors(["tea"], str(folder), tables)
        make_encoder(folder, seed=1)
        second = text_vectors(["tea"], str(folder), tables)
        make_encoder(folder, seed=0)
    assert np.abs(first.astype(float) - second).max() > 0.01
    monkeypatch.setattr(text_encoder_module, "TextEncoder", None)  # what is known is read
    assert np.array_equal(text_vectors(["tea"], str(folder), tables), first)
    monkeypatch.setattr(text_encoder_module, "VECTORS_VERSION", 99)
    with pytest.raises(TypeError):
        text_vectors(["tea"], str(folder), tables)


def test_an_encoder_that_does_not_exist_is_named():
    with pytest.raises(WeightsError, match=r"text encoder 'minilmm' .*or 'minilm'"):
        text_vectors(["tea"], "minilmm")


def test_damage_is_noticed(tmp_path, encoded):
    whole = text_vectors(["a", "b"], "model", tmp_path)
    path = next(tmp_path.iterdir())
    good = path.read_bytes()
    place = good.index(whole[1].tobytes()) + 40
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with pytest.raises(TableError, match=r"checksum of a vector .*\. Delete the file"):
        text_vectors(["a", "b"], "model", tmp_path)
    assert np.array_equal(text_vectors(["a"], "model", tmp_path), whole[:1])
    for torn in (good[: len(good) // 2], b"no table at all" * 100):
        path.write_bytes(torn)
        with pytest.raises(TableError, match="Delete the file; texts are then encoded again"):
            text_vectors(["b"], "model", tmp_path)


def _fill(path, start: int, many: int) -> None:
    random = np.random.default_rng(start)
    table = VectorTable(path)
    for i in range(start, start + many, 50):
        told = [f"text {n}" for n in range(i, i + 50)]
        table.lookup(told, lambda new: random.normal(size=(len(new), 384)).astype(np.float16))


@pytest.mark.slow
def test_processes_share_a_table_and_one_may_be_killed(tmp_path):
    """Two write overlapping texts at once, one of them is killed: every vector that stands is whole
    and stays.
    """
    spawn = multiprocessing.get_context("spawn")
    path = tmp_path / "table"
    first, second = (spawn.Process(target=_fill, args=(path, start, 4_000)) for start in (0, 1_000))
    first.start(), second.start()
    while not path.exists() or path.stat().st_size < 100_000:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join()
    assert first.exitcode == -signal.SIGKILL and second.exitcode == 0
    told = [f"text {n}" for n in range(5_000)]
    made = []

    def encode(new):
        made.extend(new)
        return np.ones((len(new), 384), np.float16)

    vectors = VectorTable(path).lookup(told, encode)
    assert vectors.shape == (5_000, 384) and len(made) == len(set(made)) < 2_000
    again = VectorTable(path).lookup(told, encode)
    assert np.array_equal(again, vectors) and len(made) == len(set(made))
