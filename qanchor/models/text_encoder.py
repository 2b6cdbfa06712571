"""Event texts to vectors: each distinct text is encoded once and kept in a table on disk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import RLock

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.config import Config
from qanchor.errors import TableError, WeightsError
from qanchor.models.backbone import add_lora
from qanchor.models.collate import PaddedBatch
from qanchor.models.weights import missing_model_message, resolve_model
from qanchor.utils.io import cache_dir, replace_surrogates


class TextEncoder(nn.Module):
    """Turn texts into unit vectors: MiniLM (mean pooling), or hashed random vectors that need no download."""

    def __init__(self, name: str, device: str | None = None):
        super().__init__()
        self.name = name
        self.dim = 384
        if name == "hash":
            return
        from transformers import AutoModel, AutoTokenizer

        folder = resolve_model(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.inner = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except OSError as error:
            raise WeightsError(missing_model_message("text encoder", name, error, "minilm")) from error
        self.inner = self.inner.to(device or "cpu").eval()
        self.dim = self.inner.config.hidden_size

    @torch.inference_mode()
    def forward(self, texts: list[str]) -> Float[Tensor, "text dim"]:
        if self.name == "hash":
            return torch.stack([self._hashed(text) for text in texts])
        return self.encode(texts).cpu()

    def encode(self, texts: list[str]) -> Float[Tensor, "text dim"]:
        """Encode with gradients, on the encoder's device."""
        texts = [replace_surrogates(text) for text in texts]
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt").to(self.inner.device)
        hidden = self.inner(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def _hashed(self, text: str) -> Float[Tensor, " dim"]:
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") % 2**63
        return nn.functional.normalize(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)), dim=0)


TEXTS_PER_BATCH = 256  # texts a forward pass; sorted by length, so little is padding
TEXTS_PER_WRITE = 16 * TEXTS_PER_BATCH  # so many are encoded between two writes: what a kill loses
ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("crc", "<u4")])  # of `keys`: a text's hash, and its vector's checksum


def text_vectors(
    texts: Sequence[str],
    encoder: str = "minilm",
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Give one unit vector for each text, encoding only those never seen before.

    texts     any number of strings; repeats cost nothing.
    encoder   "minilm" (packaged), "hash" (no download, no meaning), a hub id or a folder.
    folder    where the tables are kept (default: `<cache>/texts`); processes may share it.
    progress  called with (done, total) after each chunk.
    Returns float16 (text, 384 for MiniLM). Equal texts give equal rows, whatever stands beside them.
    Raises TableError when a vector on disk is not the one that was written.

    Example:
        >>> text_vectors(["noodles", "noodles"], "hash").shape
        (2, 384)
    """
    if not len(texts):
        return np.zeros((0, 384), np.float16)
    if encoder == "hash":  # cheaper than its own table
        place, told = pd.factorize(pd.Series(list(texts), dtype=object))
        return _encode_texts(list(told), encoder, lambda done: progress and progress(done, len(told)))[place]
    home = (folder or cache_dir() / "texts") / _text_hash(encoder).hex()[:24]
    return cached_vectors(texts, home, lambda new, report: _encode_texts(new, encoder, report), progress)


def cached_vectors(texts: Sequence[str], home: Path, encode: Callable, progress: Callable | None = None) -> np.ndarray:
    """Give the vector of each text from the table in `home`; what it lacks is encoded and kept there.

    encode   called with (distinct texts, a function to report how many are done); gives float16 (text, any width).
    """
    place, distinct = pd.factorize(pd.Series(list(texts), dtype=object))
    vectors = _open_table(home).give(list(distinct), encode, progress)
    return vectors if len(place) == len(vectors) else vectors[place]


class VectorTable:
    """Keep vectors by text: two files that only grow, row for row, so that a kill leaves whole rows and a torn end.

    Vectors are read in pieces through a memory map: a million texts cost the memory of what is asked, and of their hashes.
    """

    def __init__(self, folder: Path):
        self.folder, self.rows, self.turn = folder, np.zeros(0, ROW), RLock()
        self.index = pd.Index(self.rows["high"])

    def give(self, texts: list[str], encode: Callable, progress=None) -> np.ndarray:
        """Look up distinct texts; those not there yet are encoded, shortest first, and kept on the way."""
        with self.turn:  # of this process's threads
            return self._give(texts, encode, progress)

    def _give(self, texts: list[str], encode: Callable, progress) -> np.ndarray:
        keys = np.frombuffer(b"".join(_text_hash(text) for text in texts), "<u8").reshape(-1, 2)
        new = np.flatnonzero(self._find(keys) < 0)
        new = new[np.argsort([len(texts[i]) for i in new], kind="stable")] if len(new) else new
        for start in range(0, len(new), TEXTS_PER_WRITE):
            some = new[start : start + TEXTS_PER_WRITE]
            report = (lambda done, start=start: progress(start + done, len(new))) if progress else lambda done: None
            self._add(keys[some], encode([texts[i] for i in some], report))
        return self._read(self._find(keys))

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Say in which row each key stands, -1 if in none; rows that another process has added are seen."""
        path = self.folder / "keys"
        there = path.stat().st_size // ROW.itemsize if path.exists() else 0
        if there != len(self.rows):
            self.rows = np.fromfile(path, ROW, there) if there else np.zeros(0, ROW)  # none: somebody removed it
            self.index = pd.Index(self.rows["high"])
            if not self.index.is_unique:
                raise TableError(f"{path} holds one text twice: remove {self.folder}, its texts are encoded again")
        found = self.index.get_indexer(keys[:, 0])
        return np.where((found >= 0) & (self.rows["low"][found] == keys[:, 1]), found, -1) if there else found

    def _read(self, rows: np.ndarray) -> np.ndarray:
        path = next(self.folder.glob("vectors-*"), self.folder / "vectors-384")
        width = int(path.name.split("-")[1])
        there = path.stat().st_size // (2 * width) if path.exists() else 0
        if there <= rows.max():
            told = f"{path} has {there:,} rows, keys has {len(self.rows):,}"
            raise TableError(f"{told}: remove {self.folder}, its texts are encoded again")
        out = np.empty((len(rows), width), np.float16)
        for start in range(0, len(rows), TEXTS_PER_WRITE):
            some = rows[start : start + TEXTS_PER_WRITE]
            held = np.memmap(path, np.float16, "r", shape=(there, width))  # mapped anew: pages read before are given back
            out[start : start + len(some)] = held[some]
        for row, vector in zip(rows, out, strict=True):
            if zlib.crc32(vector) != self.rows["crc"][row]:
                raise TableError(f"{path}, row {row}: not what was written: remove {self.folder}, its texts are encoded again")
        return out

    def _add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Add rows that are not there yet; one process at a time, vectors first, after cutting off what a kill left torn."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            new = self._find(keys) < 0
            if not new.any():
                return
            rows = np.zeros(int(new.sum()), ROW)
            rows["high"], rows["low"] = keys[new].T
            rows["crc"] = [zlib.crc32(vector) for vector in vectors[new]]
            there = len(self.rows)
            for name, held in ((f"vectors-{vectors.shape[1]}", vectors[new]), ("keys", rows)):
                with (self.folder / name).open("ab") as file:
                    file.truncate(there * held[:1].nbytes)
                    file.write(held.tobytes())


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@lru_cache(maxsize=8)
def _open_table(folder: Path) -> VectorTable:
    return VectorTable(folder)


@lru_cache(maxsize=1)
def _load_text_encoder(name: str) -> TextEncoder:
    return TextEncoder(name)  # a fifth of a second to open, and a typed query needs it each time


def _encode_texts(texts: list[str], encoder: str, report: Callable[[int], object]) -> np.ndarray:
    model = _load_text_encoder(encoder)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.empty((len(texts), model.dim), np.float16)
    for start in range(0, len(order), TEXTS_PER_BATCH):
        rows = order[start : start + TEXTS_PER_BATCH]
        out[rows] = model([texts[i] for i in rows]).numpy()
        report(min(start + TEXTS_PER_BATCH, len(texts)))
    return out


TEXTS_PER_PASS = 256  # texts a forward pass, where no gradient is wanted


class TrainableTextEncoder(nn.Module):
    """Encode the events of a batch with a text encoder that learns; what sums up a user stays with the one at rest.

    While gradients are wanted each distinct text of the batch is encoded anew; otherwise once, and kept in memory (`kept`)
    until the next training. Source: paper, section 3.2, whose encoder has LoRA.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> config = qa.TINY.replace(text_encoder="minilm", text_lora_rank=4)
        >>> model = qa.QAnchor(config, qa.UserPreprocessor.fit(users, None, config))
        >>> model.event_texts(["a flight to Rome", "rice"]).shape
        torch.Size([2, 384])
    """

    def __init__(self, config: Config):
        super().__init__()
        if config.text_encoder == "hash":
            told = f"config.text_lora_rank is {config.text_lora_rank}, config.text_encoder is 'hash', which has no weights"
            raise ValueError(f"{told}: choose 'minilm', or a rank of 0")
        self.encoder = TextEncoder(config.text_encoder)
        self.encoder.requires_grad_(False)
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # of LoRA alone: a text says the same to every user of a batch
        self.encoder.inner = add_lora(self.encoder.inner, config.text_lora_rank, config.lora_alpha, config.lora_dropout, None)
        self.kept: dict[str, Tensor] = {}

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        if self.training or torch.is_grad_enabled():
            return self.encoder.encode(list(texts))
        new = sorted((t for t in dict.fromkeys(texts) if t not in self.kept), key=len)
        for start in range(0, len(new), TEXTS_PER_PASS):
            some = new[start : start + TEXTS_PER_PASS]
            self.kept |= dict(zip(some, self.encoder.encode(some), strict=True))
        return torch.stack([self.kept[t] for t in texts])

    def fill(self, batch: PaddedBatch) -> PaddedBatch:
        """Put the vectors of this encoder where the batch has those of the one at rest."""
        return replace(batch, event_text=self(batch.texts)[batch.text]) if batch.texts else batch

    def train(self, mode: bool = True) -> TrainableTextEncoder:
        """Forget what is kept before the weights change."""
        if mode:
            self.kept.clear()
        return super().train(mode)
