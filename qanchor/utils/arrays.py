"""Small helpers for arrays and tables."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pandas as pd
from jaxtyping import Float


def l2_normalize(rows: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row dim"]:
    """Give every row length 1 (a row of zeros stays as it is)."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def arrow_table(frame: pd.DataFrame):
    """Hand a frame to DuckDB as arrow: read from pandas by two threads, a text was lost now and
    then.
    """
    import pyarrow

    return pyarrow.Table.from_pandas(frame, preserve_index=False)


class LRUCache(OrderedDict):
    """Keep the newest `limit` entries: the one that was neither put in nor read for longest goes
    first.

    Example:
        >>> kept = LRUCache(2)
        >>> kept["a"], kept["b"] = 1, 2
        >>> kept["a"], kept.update(c=3), list(kept)
        (1, None, ['a', 'c'])
    """

    def __init__(self, limit: int):
        self.limit = limit

    def __getitem__(self, key):
        self.move_to_end(key)
        return OrderedDict.__getitem__(self, key)

    def __setitem__(self, key, value) -> None:
        OrderedDict.__setitem__(self, key, value)
        self.move_to_end(key)
        while len(self) > self.limit:
            del self[next(iter(self))]
