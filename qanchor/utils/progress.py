"""What is told on stderr, so that stdout stays clean: progress, how long it takes, warnings, and how to go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from math import ceil

from tqdm import tqdm

MIN_FRACTION = 4  # steps, the first left out, that tell how long a step takes
SHORTEST = 0.1  # share of the last fit that `minutes` leave in any case
BRIEF = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}] {bar}"  # no rate: the first report, of many at once, lies
COUNTED = "{desc} {n_fmt}/{total_fmt} [{elapsed}{postfix}] {bar}"  # the bar last: narrow windows cut the end off


class StageEta:
    """Know the phases of a training, and tell about how long all that is left takes, as soon as that can be told.

    plan      as `train.training_stages` gives it: of each stage its words, the earlier stage whose steps cost as much, and its steps.
    minutes   when the training ends; the first stage of the plan comes before them.

    Example:
        >>> StageEta({"reading": ("reading users", "", 0), "training": ("joint steps", "", 0)}).opening()
        '2 phases; how long all takes can be told from phase 2 on, the joint steps'
    """

    def __init__(self, plan: Mapping[str, tuple[str, str, int]], minutes: float | None = None):
        self.plan, self.stages = plan, list(plan)
        self.tells = [stage for stage in plan if not plan[stage][1]][-1]  # of the stages after it, the like were there before
        self.minutes = minutes if self.tells == "training" else None  # otherwise the last fit comes on top
        self.now = time.monotonic()
        self.end = self.now + 60 * (minutes or 0)
        self.seen: dict[str, tuple] = {}  # stage -> began; time, done of its first report; time, done, total of the last

    def opening(self) -> str:
        """Say how many phases there are, and when it can be told how long they take."""
        many, number = f"{len(self.stages)} phases", self.stages.index(self.tells) + 1
        if self.minutes is not None:
            return f"{many}; about {self.minutes:g} min after the first"
        return f"{many}; how long all takes can be told from phase {number} on, the {self.plan[self.tells][0]}"

    def title(self, stage: str) -> str:
        """Say which phase of how many a stage is."""
        return f"{self.stages.index(stage) + 1} of {len(self.stages)}: {self.plan[stage][0]}" if stage in self.plan else stage

    def __call__(self, stage: str, done: int, total: int) -> str:
        """Take a report; give about how long all that is left takes, or nothing while that cannot be told."""
        before, self.now = self.now, time.monotonic()
        self.seen[stage] = (*self.seen.get(stage, (before, self.now, done))[:3], self.now, done, total)
        if stage not in self.plan:
            return ""
        to_come = self.stages[self.stages.index(stage) :]
        left = self._left(to_come)
        if self.minutes is not None:
            if stage == self.stages[0]:
                self.end = self.now + 60 * self.minutes + (self._left([stage]) or 0)
            by_clock = self.end - self.now
            if left is None and by_clock <= 0:
                return f"beyond the {self.minutes:g} min, as short as can be"
            left = by_clock if left is None else min(left, max(by_clock, self._left(to_come, SHORTEST)))
        return f"about {rounded_duration(left)} in all left" if left else ""

    def _left(self, stages: list[str], share: float = 1.0) -> float | None:
        """Add up the seconds of what is left of these stages (of a last fit to come, a share); None if one cannot be told."""
        whole = 0.0
        for stage in stages:
            _, like, steps = self.plan[stage]
            each = self._each(stage) or self._each(like)
            if each is None:
                return None
            done, total = self.seen.get(stage, (0, 0))[-2:]
            whole += each * ((total or ceil(share * steps) or self.seen[like][-1]) - done)
        return whole

    def _each(self, stage: str) -> float | None:
        """Give the seconds of a step of a stage, once they are known."""
        if stage not in self.seen:
            return None
        began, first, some, now, done, total = self.seen[stage]
        if done - some >= MIN_FRACTION:
            return (now - first) / (done - some)
        return (now - began) / total if done == total else None


def rounded_duration(seconds: float) -> str:
    """Write a time as roughly as it is known.

    Example:
        >>> rounded_duration(8), rounded_duration(84), rounded_duration(500), rounded_duration(9000)
        ('10 s', '80 s', '8 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class ProgressBars:
    """Show one progress bar a stage, on stderr; with a `course`, each says which phase it is, and how long all takes."""

    def __init__(self, course: StageEta | None = None):
        self.bar, self.stage, self.course = None, "", course
        if course:
            print(course.opening(), file=sys.stderr)

    def __call__(self, stage: str, done: int, total: int, loss: float = float("nan")) -> None:
        told = [self.course(stage, done, total)] if self.course else []
        if new := stage != self.stage:
            self.close()
            title, shape = (self.course.title(stage), COUNTED) if self.course else (stage, BRIEF)
            how = {"desc": title, "bar_format": shape}
            self.bar, self.stage = tqdm(total=total, file=sys.stderr, dynamic_ncols=True, **how), stage
        self.bar.total = total
        told += [f"loss {loss:.2f}"] if loss == loss else []
        self.bar.set_postfix_str(", ".join(filter(None, told)), refresh=False)
        self.bar.update(done - self.bar.n)
        if new:  # a second report may take a while
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
