"""Progress bars on stderr, one a stage, so that stdout stays clean."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Bars:
    """Show one progress bar a stage, on stderr, so that stdout stays clean."""

    def __init__(self):
        self.bar, self.stage = None, ""

    def __call__(self, stage: str, done: int, total: int, loss: float = float("nan")) -> None:
        if stage != self.stage:
            self.close()
            self.bar, self.stage = tqdm(total=total, desc=stage, file=sys.stderr, dynamic_ncols=True), stage
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        if loss == loss:
            self.bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
