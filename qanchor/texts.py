"""Event texts to vectors: each distinct text is encoded once, ever, and kept in a table on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from .backbone import TextEncoder, cache_folder
from .files import write_whole

CHUNK = 256  # texts a forward pass; sorted by length, so little is padding


def text_vectors(
    texts: Sequence[str],
    encoder: str = "minilm",
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Give one unit vector for each text, encoding only those never seen before.

    texts     any number of strings; repeats cost nothing.
    encoder   "minilm" (packaged), "hash" (no download, no meaning), a hub id or a folder.
    folder    where the table is kept (default: `<cache>/texts`).
    progress  called with (done, total) after each chunk.
    Returns float16 (text, 384 for MiniLM). Equal texts give equal rows, whatever stands beside them.

    Example:
        >>> text_vectors(["noodles", "noodles"], "hash").shape
        (2, 384)
    """
    names = pd.Series(list(texts), dtype=object)
    keys = names.map(_key)
    if encoder == "hash":  # cheaper than its own table
        new = names[~keys.duplicated()]
        known = dict(zip(keys[new.index], _encode(list(new), encoder, progress), strict=True))
    else:
        path = (folder or cache_folder() / "texts") / f"{_key(encoder)}.parquet"
        known = _load(path)
        new = names[~keys.isin(known.keys()) & ~keys.duplicated()]
        if len(new):
            known |= dict(zip(keys[new.index], _encode(list(new), encoder, progress), strict=True))
            _save(path, known)
    return np.stack([known[key] for key in keys]) if len(keys) else np.zeros((0, 384), np.float16)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


@lru_cache(maxsize=1)
def _encoder(name: str) -> TextEncoder:
    return TextEncoder(name)  # a fifth of a second to open, and a typed query needs it each time


def _encode(texts: list[str], encoder: str, progress) -> list[np.ndarray]:
    model = _encoder(encoder)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out: list[np.ndarray] = [None] * len(texts)
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        for row, vector in zip(rows, model([texts[i] for i in rows]).numpy().astype(np.float16), strict=True):
            out[row] = vector
        if progress:
            progress(min(start + CHUNK, len(texts)), len(texts))
    return out


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    table = pd.read_parquet(path)
    return dict(zip(table["key"], np.stack([np.frombuffer(v, np.float16) for v in table["vector"]]), strict=True))


def _save(path: Path, known: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"key": list(known), "vector": [v.tobytes() for v in known.values()]})
    write_whole(path, partial(table.to_parquet, index=False))
