"""A stand-in for `qanchor.WorkbenchSession`: what all views of a workbench ask, by plain rules; no
model is needed.
"""

from fake import FakeExplain, FakeLens, fake_describe, fake_provenance, make_frame
from fake_attention import FakeAttention
from fake_clusters import fake_compare
from fake_matrix import FakeMatrix
from fake_tuning import FakeTuning


class FakeSession:
    """600 users; `compared` keeps what was compared."""

    def __init__(self, seconds: float = 0.1):
        self.frame, self.lens, self.compared = make_frame(), FakeLens(seconds=seconds), []
        self.describe, self.explain = fake_describe, FakeExplain(seconds)
        self.lens.provenance = self.provenance = fake_provenance
        self.export = None
        self.attention, self.tuning = FakeAttention(600, seconds), FakeTuning(seconds)
        self.matrix = FakeMatrix(600, seconds)

    def compare(self, before: str, after: str) -> dict:
        if after == "Is this user about to change phone?":
            raise ValueError("the checkpoint has no such layer")
        self.compared.append((before, after))
        return fake_compare()
