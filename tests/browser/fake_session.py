"""A stand-in for `qanchor.WorkbenchSession`: what all views of a workbench ask, by plain rules; no
model is needed.
"""

from types import SimpleNamespace

import pandas as pd
from fake import FakeExplain, FakeLens, fake_describe, fake_provenance, make_frame
from fake_attention import FakeAttention
from fake_clusters import fake_compare
from fake_matrix import FakeMatrix
from fake_tuning import FakeTuning


def fake_retention(ids) -> SimpleNamespace:
    """Three weeks, of which the selected users stay longer."""
    rows = []
    sides = {"all": 0.6} if ids is None else {"group": 0.8, "rest": 0.5}
    for side, kept in sides.items():
        for period in range(3):
            share = kept**period
            rows.append(
                {"side": side, "period": period, "users": 100, "active": round(100 * share)}
            )
            rows[-1] |= {"share": share, "low": share - 0.1 * period, "high": min(share + 0.1, 1)}
    frame = pd.DataFrame(rows)
    frame.attrs["period_days"] = 7
    return SimpleNamespace(message="In week 2 some were active.", data={"frame": frame})


def fake_funnel(ids, steps) -> SimpleNamespace:
    """Half of the users are lost at each step."""
    rows = []
    for side in ["all"] if ids is None else ["group", "rest"]:
        for place, step in enumerate(steps):
            share = 0.5**place
            rows.append({"side": side, "step": step, "users": 100, "active": round(100 * share)})
            rows[-1] |= {"share": share, "low": 0.9 * share, "high": min(1.1 * share, 1)}
    return SimpleNamespace(message=f"Some come to {steps[-1]}.", data={"frame": pd.DataFrame(rows)})


class FakeSession:
    """600 users; `compared` keeps what was compared."""

    def __init__(self, seconds: float = 0.1):
        self.frame, self.lens, self.compared = make_frame(), FakeLens(seconds=seconds), []
        self.describe, self.explain = fake_describe, FakeExplain(seconds)
        self.lens.provenance = self.provenance = fake_provenance
        self.export = None
        self.retention, self.funnel, self.steps = fake_retention, fake_funnel, ("bill", "search")
        self.attention, self.tuning = FakeAttention(600, seconds), FakeTuning(seconds)
        self.matrix = FakeMatrix(600, seconds)

    def compare(self, before: str, after: str) -> dict:
        if after == "Is this user about to change phone?":
            raise ValueError("the checkpoint has no such layer")
        self.compared.append((before, after))
        return fake_compare()
