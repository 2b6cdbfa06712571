"""Types shared by many modules."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import numpy as np
from jaxtyping import Bool, Float, Int

Progress = Callable[[int, int], object]  # called with (done, total)
StageProgress = Callable[[str, int, int], object]  # called with (stage, done, total)
TimeLike = str | date | np.datetime64  # `pd.Timestamp` is a subclass of `date`
EmbeddingRows = Float[np.ndarray, "user dim"]
UserMask = Bool[np.ndarray, " user"]
UserFloats = Float[np.ndarray, " user"]
UserInts = Int[np.ndarray, " user"]
