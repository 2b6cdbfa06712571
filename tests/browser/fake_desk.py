"""A stand-in for `qanchor.Desk`: what all views of a workbench ask, by plain rules; no model is needed."""

from fake import FakeAsker, FakeExplain, fake_describe, fake_facts, make_frame
from fake_clusters import fake_compare
from fake_deck import FakeDeck
from fake_looker import FakeLooker
from fake_tuner import FakeTuner


class FakeDesk:
    """600 users; `asked` keeps what was compared."""

    def __init__(self, seconds: float = 0.1):
        self.frame, self.ask, self.asked = make_frame(), FakeAsker(seconds=seconds), []
        self.describe, self.explain, self.facts, self.export = fake_describe, FakeExplain(seconds), fake_facts, None
        self.look, self.tune = FakeLooker(600, seconds), FakeTuner(seconds)
        self.deck = FakeDeck(600, seconds)

    def compare(self, before: str, after: str) -> dict:
        if after == "Is this user about to change phone?":
            raise ValueError("the checkpoint has no such layer")
        self.asked.append((before, after))
        return fake_compare()
