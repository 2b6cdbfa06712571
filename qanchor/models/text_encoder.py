"""Text vectors: each distinct text is encoded once and stored in a table on disk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import RLock

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.errors import TableError, WeightsError
from qanchor.models.weights import missing_model_message, resolve_model
from qanchor.utils.io import cache_dir, replace_surrogates
from qanchor.utils.types import Progress

# maps distinct texts and a function that reports how many are done to float16 (text, dim)
EncodeTexts = Callable[[list[str], Callable[[int], object]], np.ndarray]
HASH_DIM = 384  # width of "hash" vectors, that of MiniLM
MAX_TEXT_TOKENS = 256  # longer texts are cut
TEXTS_PER_BATCH = 256  # texts in a forward pass; sorted by length, so there is little padding
TEXTS_PER_WRITE = 16 * TEXTS_PER_BATCH  # texts between two writes, which a kill may lose
# row of `keys`: hash of a text in two halves, and checksum of its vector
ROW_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8"), ("crc", "<u4")])


class TextEncoder(nn.Module):
    """Encode texts as unit vectors.

    Args:
        name: "minilm" (packaged, mean pooling), "hash" (random vectors by hash, offline), a Hugging
            Face id, or a local folder.

    Raises:
        WeightsError: If the model cannot be found or downloaded.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.dim = HASH_DIM
        if name == "hash":
            return
        from transformers import AutoModel, AutoTokenizer

        folder = resolve_model(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            inner = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except OSError as error:
            message = missing_model_message("text encoder", name, error, "minilm")
            raise WeightsError(message) from error
        self.inner = inner.eval()
        self.dim = self.inner.config.hidden_size

    @torch.inference_mode()
    def forward(self, texts: list[str]) -> Float[Tensor, "text dim"]:
        if self.name == "hash":
            return torch.stack([self._hash_vector(text) for text in texts])
        texts = [replace_surrogates(text) for text in texts]
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt"
        ).to(self.inner.device)
        hidden = self.inner(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()

    def _hash_vector(self, text: str) -> Float[Tensor, " dim"]:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        seed = int.from_bytes(digest[:8], "little") % 2**63
        generator = torch.Generator().manual_seed(seed)
        return nn.functional.normalize(torch.randn(self.dim, generator=generator), dim=0)


def text_vectors(
    texts: Sequence[str],
    encoder: str = "minilm",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Encode texts as unit vectors; texts encoded before are read from a table on disk.

    Args:
        texts: Any number of strings; repeats cost nothing.
        encoder: "minilm" (packaged), "hash" (no download, no meaning), a Hugging Face id or a
            folder.
        folder: Folder of the tables, which processes may share. Default: `<cache>/texts`.
        progress: Called with (done, total) distinct texts after each chunk. Default: none.

    Returns:
        float16 (text, dim), 384 for MiniLM. Equal texts have equal rows in any company.

    Raises:
        TableError: If a vector on disk is not the one that was written.

    Example:
        >>> text_vectors(["noodles", "noodles"], "hash").shape
        (2, 384)
    """
    if not len(texts):
        return np.zeros((0, HASH_DIM), np.float16)
    if encoder == "hash":  # cheaper than a table
        codes, distinct = pd.factorize(pd.Series(list(texts), dtype=object))

        def report(done: int) -> None:
            if progress:
                progress(done, len(distinct))

        return _encode_texts(list(distinct), encoder, report)[codes]
    table = (folder or cache_dir() / "texts") / _text_hash(encoder).hex()[:24]

    def encode(new: list[str], report: Callable[[int], object]) -> np.ndarray:
        return _encode_texts(new, encoder, report)

    return cached_vectors(texts, table, encode, progress)


def cached_vectors(
    texts: Sequence[str],
    folder: Path,
    encode: EncodeTexts,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return the vectors of texts from a table, encoding and storing those it lacks.

    Args:
        texts: Any number of strings.
        folder: Folder of the table.
        encode: Maps (distinct texts, function to report how many are done) to float16 (text, dim).
        progress: Called with (done, total) new texts. Default: none.

    Returns:
        float16 (text, dim).

    Raises:
        TableError: If a vector on disk is not the one that was written.
    """
    codes, distinct = pd.factorize(pd.Series(list(texts), dtype=object))
    vectors = _open_table(folder).lookup(list(distinct), encode, progress)
    return vectors if len(codes) == len(vectors) else vectors[codes]


class VectorTable:
    """Store vectors by text in two files that only grow.

    A kill leaves complete rows and at most an incomplete end, which the next write cuts off.
    Vectors are read in pieces through a memory map: a million texts take the memory of the vectors
    requested, and of their hashes.

    Args:
        folder: Folder of the table; created when needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = np.zeros(0, ROW_DTYPE)
        self.index = pd.Index(self.rows["high"])
        self.lock = RLock()  # between the threads of this process

    def lookup(
        self,
        texts: list[str],
        encode: EncodeTexts,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return the vectors of distinct texts; new ones are encoded, shortest first, and stored.

        Args:
            texts: Distinct texts.
            encode: As in `cached_vectors`.
            progress: Called with (done, total) new texts. Default: none.
        """
        with self.lock:
            keys = np.frombuffer(b"".join(_text_hash(text) for text in texts), "<u8").reshape(-1, 2)
            new = np.flatnonzero(self._find(keys) < 0)
            if len(new):
                new = new[np.argsort([len(texts[i]) for i in new], kind="stable")]
            for start in range(0, len(new), TEXTS_PER_WRITE):
                chunk = new[start : start + TEXTS_PER_WRITE]

                def report(done: int, start: int = start) -> None:
                    if progress:
                        progress(start + done, len(new))

                self._append(keys[chunk], encode([texts[i] for i in chunk], report))
            return self._read(self._find(keys))

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Return the row of each key, -1 if it has none; rows of other processes are included."""
        path = self.folder / "keys"
        n_rows = path.stat().st_size // ROW_DTYPE.itemsize if path.exists() else 0
        if n_rows != len(self.rows):
            # no rows: somebody removed the table
            self.rows = np.fromfile(path, ROW_DTYPE, n_rows) if n_rows else np.zeros(0, ROW_DTYPE)
            self.index = pd.Index(self.rows["high"])
            if not self.index.is_unique:
                raise TableError(
                    f"{path} holds one text twice: "
                    f"remove {self.folder}, its texts are encoded again"
                )
        rows = self.index.get_indexer(keys[:, 0])
        if not n_rows:
            return rows
        return np.where((rows >= 0) & (self.rows["low"][rows] == keys[:, 1]), rows, -1)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        path = next(self.folder.glob("vectors-*"), self.folder / f"vectors-{HASH_DIM}")
        width = int(path.name.split("-")[1])
        n_rows = path.stat().st_size // (2 * width) if path.exists() else 0
        if n_rows <= rows.max():
            raise TableError(
                f"{path} has {n_rows:,} rows, keys has {len(self.rows):,}: "
                f"remove {self.folder}, its texts are encoded again"
            )
        out = np.empty((len(rows), width), np.float16)
        for start in range(0, len(rows), TEXTS_PER_WRITE):
            chunk = rows[start : start + TEXTS_PER_WRITE]
            # mapped again for each chunk: pages read before are released
            stored = np.memmap(path, np.float16, "r", shape=(n_rows, width))
            out[start : start + len(chunk)] = stored[chunk]
        for row, vector in zip(rows, out, strict=True):
            if zlib.crc32(vector) != self.rows["crc"][row]:
                raise TableError(
                    f"{path}, row {row}: not what was written: "
                    f"remove {self.folder}, its texts are encoded again"
                )
        return out

    def _append(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Append rows that are not there yet, vectors before keys; one process at a time."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            new = self._find(keys) < 0
            if not new.any():
                return
            rows = np.zeros(int(new.sum()), ROW_DTYPE)
            rows["high"], rows["low"] = keys[new].T
            rows["crc"] = [zlib.crc32(vector) for vector in vectors[new]]
            n_rows = len(self.rows)
            files = ((f"vectors-{vectors.shape[1]}", vectors[new]), ("keys", rows))
            for name, array in files:
                with (self.folder / name).open("ab") as file:
                    file.truncate(n_rows * array[:1].nbytes)  # cut off what a kill left incomplete
                    file.write(array.tobytes())


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@lru_cache(maxsize=8)
def _open_table(folder: Path) -> VectorTable:
    return VectorTable(folder)


@lru_cache(maxsize=1)
def _load_text_encoder(name: str) -> TextEncoder:
    return TextEncoder(name)  # a fifth of a second to open, and every typed query needs it


def _encode_texts(texts: list[str], encoder: str, report: Callable[[int], object]) -> np.ndarray:
    model = _load_text_encoder(encoder)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.empty((len(texts), model.dim), np.float16)
    for start in range(0, len(order), TEXTS_PER_BATCH):
        rows = order[start : start + TEXTS_PER_BATCH]
        out[rows] = model([texts[i] for i in rows]).numpy()
        report(min(start + TEXTS_PER_BATCH, len(texts)))
    return out
