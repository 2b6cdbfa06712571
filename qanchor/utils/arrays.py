"""Small helpers for arrays and tables."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pandas as pd

from qanchor.utils.types import EmbeddingRows


def l2_normalize(rows: EmbeddingRows) -> EmbeddingRows:
    """Scale each row to length 1; rows of zeros are left unchanged.

    Args:
        rows: Vectors.

    Returns:
        The scaled vectors.

    Example:
        >>> l2_normalize(np.array([[3.0, 4.0]])).tolist()
        [[0.6, 0.8]]
    """
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def arrow_table(frame: pd.DataFrame):
    """Convert a data frame to an Arrow table for DuckDB.

    Do not pass the data frame itself: with two threads, DuckDB occasionally lost a string.

    Args:
        frame: Any data frame; its index is ignored.

    Returns:
        A `pyarrow.Table`.
    """
    import pyarrow

    return pyarrow.Table.from_pandas(frame, preserve_index=False)


class LRUCache(OrderedDict):
    """A dict that drops the least recently used entry when it is full.

    Args:
        limit: Maximum number of entries (default 0, which copying needs; a copy keeps the limit).

    Example:
        >>> cache = LRUCache(2)
        >>> cache.update(a=1, b=2)
        >>> cache["a"], cache.update(c=3), list(cache)
        (1, None, ['a', 'c'])
    """

    def __init__(self, limit: int = 0):
        self.limit = limit

    def __getitem__(self, key):
        self.move_to_end(key)
        return OrderedDict.__getitem__(self, key)

    def __setitem__(self, key, value) -> None:
        OrderedDict.__setitem__(self, key, value)
        self.move_to_end(key)
        if len(self) > self.limit:
            del self[next(iter(self))]
