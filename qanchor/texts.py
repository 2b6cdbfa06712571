"""Event texts to vectors: each distinct text is encoded once, ever, and kept in a table on disk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import RLock

import numpy as np
import pandas as pd

from .backbone import TextEncoder
from .files import cache_folder

CHUNK = 256  # texts a forward pass; sorted by length, so little is padding
KEPT_AT_ONCE = 16 * CHUNK  # so many are encoded between two writes: what a kill loses
ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("crc", "<u4")])  # of `keys`: a text's hash, and its vector's checksum


class TableError(RuntimeError):
    """A table of text vectors is damaged: which file and row, and the cure."""


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
        return _encode(list(told), encoder, lambda done: progress and progress(done, len(told)))[place]
    home = (folder or cache_folder() / "texts") / _hash(encoder).hex()[:24]
    return kept_vectors(texts, home, lambda new, report: _encode(new, encoder, report), progress)


def kept_vectors(texts: Sequence[str], home: Path, encode: Callable, progress: Callable | None = None) -> np.ndarray:
    """Give the vector of each text from the table in `home`; what it lacks is encoded and kept there.

    encode   called with (distinct texts, a function to report how many are done); gives float16 (text, any width).
    """
    place, distinct = pd.factorize(pd.Series(list(texts), dtype=object))
    vectors = _table(home).give(list(distinct), encode, progress)
    return vectors if len(place) == len(vectors) else vectors[place]


class Table:
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
        keys = np.frombuffer(b"".join(_hash(text) for text in texts), "<u8").reshape(-1, 2)
        new = np.flatnonzero(self._find(keys) < 0)
        new = new[np.argsort([len(texts[i]) for i in new], kind="stable")] if len(new) else new
        for start in range(0, len(new), KEPT_AT_ONCE):
            some = new[start : start + KEPT_AT_ONCE]
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
        for start in range(0, len(rows), KEPT_AT_ONCE):
            some = rows[start : start + KEPT_AT_ONCE]
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


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@lru_cache(maxsize=8)
def _table(folder: Path) -> Table:
    return Table(folder)


@lru_cache(maxsize=1)
def _encoder(name: str) -> TextEncoder:
    return TextEncoder(name)  # a fifth of a second to open, and a typed query needs it each time


def _encode(texts: list[str], encoder: str, report: Callable[[int], object]) -> np.ndarray:
    model = _encoder(encoder)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.empty((len(texts), model.dim), np.float16)
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        out[rows] = model([texts[i] for i in rows]).numpy()
        report(min(start + CHUNK, len(texts)))
    return out
