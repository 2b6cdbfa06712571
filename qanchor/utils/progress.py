"""Progress bars on stderr, so that stdout stays clean."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

# no rate: the first report covers many items at once, so its rate is wrong
BAR_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}] {bar}"


class ProgressBars:
    """Show one progress bar for each stage.

    Args:
        titles: Titles of the planned stages, in order; their bars are numbered. Default: a bar
            shows the name of its stage.
    """

    def __init__(self, titles: Mapping[str, str] | None = None):
        self.bar = None
        self.stage = ""
        self.titles = titles or {}

    def __call__(self, stage: str, done: int, total: int, loss: float = float("nan")) -> None:
        """Update the bar of a stage; a new stage closes the previous bar.

        Args:
            stage: Name of the stage.
            done: Items finished.
            total: Items of the stage.
            loss: Shown unless it is NaN.
        """
        is_new = stage != self.stage
        if is_new:
            self.close()
            self.bar = tqdm(
                total=total,
                file=sys.stderr,
                dynamic_ncols=True,
                desc=self._title(stage),
                bar_format=BAR_FORMAT,
            )
            self.stage = stage
        self.bar.total = total
        if loss == loss:
            self.bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
        self.bar.update(done - self.bar.n)
        if is_new:  # the second report may take a while
            self.bar.refresh()

    def _title(self, stage: str) -> str:
        if stage not in self.titles:
            return stage
        number = list(self.titles).index(stage) + 1
        return f"{number} of {len(self.titles)}: {self.titles[stage]}"

    def close(self) -> None:
        """Close the current bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
