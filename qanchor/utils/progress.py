"""Progress bars on stderr, so that stdout stays clean."""

from __future__ import annotations

import sys

from tqdm import tqdm

# no rate: the first report covers many items at once, so its rate is wrong
BAR_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {bar}"


class ProgressBars:
    """Show one progress bar for each stage."""

    def __init__(self):
        self.bar = None
        self.stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Update the bar of a stage; a new stage closes the previous bar.

        Args:
            stage: Name of the stage.
            done: Items finished.
            total: Items in the stage.
        """
        is_new = stage != self.stage
        if is_new:
            self.close()
            self.bar = tqdm(
                total=total,
                file=sys.stderr,
                dynamic_ncols=True,
                desc=stage,
                bar_format=BAR_FORMAT,
            )
            self.stage = stage
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        if is_new:  # the second report may take a while
            self.bar.refresh()

    def close(self) -> None:
        """Close the current bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
