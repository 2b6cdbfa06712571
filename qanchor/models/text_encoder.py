"""Text vectors: each distinct text is encoded once and cached in a table on disk."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.errors import TableError, WeightsError
from qanchor.models.weights import PACKAGES, missing_model_message, resolve_model
from qanchor.utils.hashing import sha256_file
from qanchor.utils.io import cache_dir, replace_surrogates

HASH_DIM = 384  # dimension of "hash" vectors, as for MiniLM
MAX_TEXT_TOKENS = 256  # longer texts are truncated
TEXTS_PER_BATCH = 256  # texts per forward pass
TEXTS_PER_WRITE = 16 * TEXTS_PER_BATCH  # texts per write; a kill loses at most these
VECTORS_VERSION = 3  # increase it when a change to the code changes vectors
CREATE = "create table if not exists vectors (key blob primary key, vector blob) without rowid"


class TextEncoder(nn.Module):
    """Encode each text as two vectors: its content and its phrasing.

    Content is the mean of the last layer, phrasing the mean of the middle layer; both are scaled to
    unit length.

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
        from transformers.utils import cached_file

        folder = resolve_model(name)
        try:
            self.commit = Path(cached_file(folder, "config.json")).parent.name  # on the hub
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            inner = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except OSError as error:
            message = missing_model_message("text encoder", name, error, "minilm")
            raise WeightsError(message) from error
        self.inner = inner.eval()
        self.dim = self.inner.config.hidden_size

    @torch.inference_mode()
    def forward(self, texts: list[str]) -> Float[Tensor, "text 2 dim"]:
        if self.name == "hash":
            content = torch.stack([_hash_vector(text) for text in texts])
            phrasing = torch.stack([_bag(text) for text in texts])
            return torch.stack([content, phrasing], 1)
        texts = [replace_surrogates(text) for text in texts]
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt"
        ).to(self.inner.device)
        out = self.inner(**batch, output_hidden_states=True)
        middle = out.hidden_states[len(out.hidden_states) // 2]
        hidden = torch.stack([out.last_hidden_state, middle], 1)
        mask = batch["attention_mask"][:, None, :, None].to(hidden.dtype)
        mean = (hidden * mask).sum(2) / mask.sum(2)
        return nn.functional.normalize(mean, dim=-1).cpu()


@lru_cache(maxsize=65_536)
def _hash_vector(text: str) -> Tensor:
    """Return a random unit vector, always the same for a text."""
    seed = int.from_bytes(_text_hash(text)[:8], "little") % 2**63
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(HASH_DIM, generator=generator), dim=0)


def text_vectors(
    texts: Sequence[str], encoder: str = "minilm", folder: Path | None = None
) -> np.ndarray:
    """Encode texts as unit vectors, cached in a table on disk.

    Args:
        texts: Strings; duplicates are encoded once.
        encoder: "minilm" (packaged, default), "hash" (no download, no meaning), a Hugging Face id
            or a folder.
        folder: Folder of the tables, one for each encoder and its weights; processes may share it.
            Default: `<cache>/texts`.

    Returns:
        float16 array (text, dim); dim is 384 for MiniLM. A text has the same vector whatever it is
        encoded with.

    Raises:
        TableError: If a vector on disk is corrupt.
        WeightsError: If there is no such encoder.
        OSError: If the disk is full or not writable.

    Example:
        >>> text_vectors(["noodles", "noodles"], "hash").shape
        (2, 384)
    """
    return _read_vectors(texts, encoder, folder)[:, 0]


def wording_vectors(texts: Sequence[str], encoder: str = "minilm") -> np.ndarray:
    """Encode the content and the phrasing of texts, as two concatenated vectors.

    By its phrasing, "will not buy tea" is close to "will not sing"; by its content (the first half,
    see `text_vectors`), it is close to "will buy tea".

    Args:
        texts: As for `text_vectors`, which shares the table on disk.
        encoder: As for `text_vectors`. With "hash", phrasings are close if texts share words.

    Returns:
        float16 array (text, 2 * dim).
    """
    vectors = _read_vectors(texts, encoder)
    return vectors.reshape(len(vectors), -1)


def _read_vectors(texts: Sequence[str], encoder: str, folder: Path | None = None) -> np.ndarray:
    """Return both vectors of each text, float16 (text, 2, dim)."""
    if not len(texts):
        return np.zeros((0, 2, HASH_DIM), np.float16)
    codes, distinct = pd.factorize(pd.Series(list(texts), dtype=object))
    distinct = list(distinct)
    encode = partial(_encode_texts, encoder)
    if encoder == "hash":  # cheaper than a table
        vectors = encode(distinct)
    else:
        digest = _text_hash(f"{encoder} {encoder_digest(encoder)}").hex()[:24]
        name = f"{digest}-{VECTORS_VERSION}.sqlite"
        table = VectorTable((folder or cache_dir() / "texts") / name)
        vectors = table.lookup(distinct, encode)
    return vectors.reshape(len(distinct), 2, -1)[codes]


@lru_cache
def encoder_digest(name: str) -> str:
    """Return a string that identifies the weights of a text encoder.

    Args:
        name: As for `TextEncoder`. The files of a folder are hashed once per process.

    Raises:
        WeightsError: If there is no such encoder.
    """
    if name in PACKAGES:
        return PACKAGES[name].sha256  # verified by the download
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).iterdir() if path.is_file())
        return " ".join(map(sha256_file, files))
    return _load_text_encoder(name).commit


@dataclass(frozen=True)
class VectorTable:
    """Store text vectors in an SQLite file; processes may share it, and a kill does no damage.

    Args:
        path: The file; created when needed.
    """

    path: Path

    def lookup(self, texts: Sequence[str], encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """Return the vectors of distinct texts; new ones are encoded, shortest first, and stored.

        Args:
            texts: Distinct texts.
            encode: Maps texts to float16 (text, dim).

        Raises:
            TableError: If a vector on disk is corrupt.
            OSError: If the disk is full or not writable.
        """
        keys = [_text_hash(text) for text in texts]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as base:
                base.execute(CREATE)
                vectors = self._read(base, keys)
                new = [row for row, key in enumerate(keys) if key not in vectors]
                new.sort(key=lambda row: len(texts[row]))  # to reduce padding
                for rows in _chunks(new):
                    encoded = encode([texts[row] for row in rows])
                    stored = []
                    for row, vector in zip(rows, encoded, strict=True):
                        stored.append((keys[row], _checksum(vector) + vector.tobytes()))
                    with base:
                        base.executemany("insert or ignore into vectors values (?, ?)", stored)
                # another process may have been first to store some of them
                vectors |= self._read(base, [keys[row] for row in new])
                return np.stack([vectors[key] for key in keys])
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{self.path}: {error}. Free disk space or choose another folder."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _read(self, base: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        """Return the stored vectors of keys."""
        vectors = {}
        for chunk in _chunks(keys):
            places = ", ".join("?" * len(chunk))
            query = f"select key, vector from vectors where key in ({places})"
            for key, stored in base.execute(query, chunk):
                if _checksum(stored[4:]) != stored[:4]:
                    raise self._damaged("the checksum of a vector does not match")
                vectors[key] = np.frombuffer(stored, np.float16, offset=4)
        return vectors

    def _damaged(self, what: str) -> TableError:
        return TableError(f"{self.path}: {what}. Delete the file; texts are then encoded again.")


def _checksum(vector) -> bytes:
    return zlib.crc32(vector).to_bytes(4)


def _chunks(items: list, size: int = TEXTS_PER_WRITE) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _bag(text: str) -> Tensor:
    """Return the sum of a text's word vectors, which is close to that of texts that share words."""
    words = re.findall(r"[\w'’]+", text.lower()) or [""]
    return torch.stack(list(map(_hash_vector, words))).sum(0)


def _text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@lru_cache(maxsize=1)
def _load_text_encoder(name: str) -> TextEncoder:
    return TextEncoder(name)  # opening it takes 0.2 s, and every query needs it


def _encode_texts(encoder: str, texts: list[str]) -> np.ndarray:
    model = _load_text_encoder(encoder)
    vectors = [model(batch).flatten(1).numpy() for batch in _chunks(texts, TEXTS_PER_BATCH)]
    return np.concatenate(vectors).astype(np.float16)
