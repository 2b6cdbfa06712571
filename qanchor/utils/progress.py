"""Progress bars with an estimate of the time left, on stderr so that stdout stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from math import ceil

from tqdm import tqdm

MIN_TIMED_STEPS = 4  # steps after the first report before the time of a step is known
MIN_REFIT_SHARE = 0.1  # share of the last fit that always runs, whatever `minutes` says
# no rate: the first report covers many items at once, so its rate is wrong
BAR_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}] {bar}"
# the bar comes last: narrow windows cut the end off
NUMBERED_BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} [{elapsed}{postfix}] {bar}"


class StageEta:
    """Estimate the time left over all stages of a training.

    Args:
        plan: Stages in order, as `training_stages` returns them. Each value is (title, an earlier
            stage whose steps take as long or "", number of steps or 0 if unknown).
        minutes: Time budget of the training. The first stage of the plan is not part of it.
            Default: no budget.

    Example:
        >>> StageEta({"reading": ("users", "", 0), "training": ("joint steps", "", 0)}).opening()
        '2 phases; how long all takes can be told from phase 2 on, the joint steps'
    """

    def __init__(self, plan: Mapping[str, tuple[str, str, int]], minutes: float | None = None):
        self.plan = plan
        self.stages = list(plan)
        # every stage after this one costs as much as an earlier one
        self.known_from = [stage for stage in plan if not plan[stage][1]][-1]
        # a resumed training cannot time its last fit, which therefore exceeds the budget
        self.minutes = minutes if self.known_from == "training" else None
        self.now = time.monotonic()
        self.end = self.now + 60 * (minutes or 0)
        # stage -> start; time and count of its first report; time, count and total of its last
        self.reports: dict[str, tuple] = {}

    def opening(self) -> str:
        """Return how many phases there are, and from which one the total time is known."""
        phases = f"{len(self.stages)} phases"
        if self.minutes is not None:
            return f"{phases}; about {self.minutes:g} min after the first"
        number = self.stages.index(self.known_from) + 1
        title = self.plan[self.known_from][0]
        return f"{phases}; how long all takes can be told from phase {number} on, the {title}"

    def title(self, stage: str) -> str:
        """Return the title of a stage with its number, or the stage itself if it is not planned.

        Args:
            stage: Key of the plan.
        """
        if stage not in self.plan:
            return stage
        return f"{self.stages.index(stage) + 1} of {len(self.stages)}: {self.plan[stage][0]}"

    def __call__(self, stage: str, done: int, total: int) -> str:
        """Record a report and return the time left over all stages, or "" while it is unknown.

        Args:
            stage: Key of the plan; others are ignored.
            done: Items finished in this stage.
            total: Items of this stage.
        """
        before, self.now = self.now, time.monotonic()
        first_report = self.reports.get(stage, (before, self.now, done))[:3]
        self.reports[stage] = (*first_report, self.now, done, total)
        if stage not in self.plan:
            return ""
        stages_left = self.stages[self.stages.index(stage) :]
        seconds = self._seconds_left(stages_left)
        if self.minutes is not None:
            if stage == self.stages[0]:
                self.end = self.now + 60 * self.minutes + (self._seconds_left([stage]) or 0)
            budget = self.end - self.now
            if seconds is None and budget <= 0:
                return f"beyond the {self.minutes:g} min, as short as can be"
            if seconds is None:
                seconds = budget
            else:
                shortest = self._seconds_left(stages_left, MIN_REFIT_SHARE)
                seconds = min(seconds, max(budget, shortest))
        return f"about {rounded_duration(seconds)} in all left" if seconds else ""

    def _seconds_left(self, stages: list[str], share: float = 1.0) -> float | None:
        """Return the seconds these stages still take, or None if one is unknown.

        `share` is the part of a planned last fit that counts.
        """
        seconds = 0.0
        for stage in stages:
            _, similar, steps = self.plan[stage]
            step_seconds = self._step_seconds(stage) or self._step_seconds(similar)
            if step_seconds is None:
                return None
            done, total = self.reports.get(stage, (0, 0))[-2:]
            total = total or ceil(share * steps) or self.reports[similar][-1]
            seconds += step_seconds * (total - done)
        return seconds

    def _step_seconds(self, stage: str) -> float | None:
        """Return the seconds of one step of a stage, or None if unknown."""
        if stage not in self.reports:
            return None
        start, first_time, first_done, last_time, done, total = self.reports[stage]
        if done - first_done >= MIN_TIMED_STEPS:
            return (last_time - first_time) / (done - first_done)
        return (last_time - start) / total if done == total else None


def rounded_duration(seconds: float) -> str:
    """Return a duration as text, rounded to the precision of an estimate.

    Args:
        seconds: Duration in seconds.

    Example:
        >>> [rounded_duration(seconds) for seconds in (8, 84, 500, 9000)]
        ['10 s', '80 s', '8 min', '2.5 h']
    """
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class ProgressBars:
    """Show one progress bar for each stage, on stderr.

    Args:
        eta: Adds the number of the phase and the time left over all phases to each bar.
            Default: plain bars.
    """

    def __init__(self, eta: StageEta | None = None):
        self.bar = None
        self.stage = ""
        self.eta = eta
        if eta:
            print(eta.opening(), file=sys.stderr)

    def __call__(self, stage: str, done: int, total: int, loss: float = float("nan")) -> None:
        """Update the bar of a stage; a new stage closes the previous bar.

        Args:
            stage: Name of the stage.
            done: Items finished.
            total: Items of the stage.
            loss: Shown unless it is NaN.
        """
        notes = []
        if self.eta:
            notes.append(self.eta(stage, done, total))
        if loss == loss:
            notes.append(f"loss {loss:.2f}")
        is_new = stage != self.stage
        if is_new:
            self.close()
            title = self.eta.title(stage) if self.eta else stage
            bar_format = NUMBERED_BAR_FORMAT if self.eta else BAR_FORMAT
            self.bar = tqdm(
                total=total, file=sys.stderr, dynamic_ncols=True, desc=title, bar_format=bar_format
            )
            self.stage = stage
        self.bar.total = total
        self.bar.set_postfix_str(", ".join(filter(None, notes)), refresh=False)
        self.bar.update(done - self.bar.n)
        if is_new:  # the second report may take a while
            self.bar.refresh()

    def close(self) -> None:
        """Close the current bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
