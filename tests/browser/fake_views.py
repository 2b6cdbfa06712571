"""The cells of a notebook that shows the views of one desk, each alone, first empty, then with a result."""

SETUP = """from fake_desk import FakeDesk
from widgets import AttentionLedger, ClusterLedger, PromptLab, QueryLens, SelectionPanel
desk = FakeDesk(0.1)
lens = QueryLens(desk.frame, desk.ask, facts=desk.facts)
panel = SelectionPanel(lens.selection, describe=desk.describe, explain=desk.explain, facts=desk.facts)
attention = AttentionLedger(desk.look, desk.frame, selection=lens.selection)
lab = PromptLab(desk.tune, turn=lens.selection.turn)
clusters = ClusterLedger(desk.compare("", "Will this user travel soon?"), desk.frame)"""
FILL = """lens.ask("Will this user travel soon?")
lens.selection.ids = lens._ids[:40]
panel.save("travellers"), panel.save("night owls"), panel.explain()
attention.look("Will this user travel soon?", "tuned")
lab.tune("Takeout", "Will they order?", steps=20)
card = panel.claim("A first look.")"""
VIEWS = {  # the expression that shows it, and the mark by which the page knows it
    "QueryLens": ("lens", ".lens:not(.sel, .att, .clus, .lab)"),
    "SelectionPanel": ("panel", ".sel"),
    "AttentionLedger": ("attention", ".att"),
    "ClusterLedger": ("clusters", ".clus"),
    "PromptLab": ("lab", ".lab"),
    "ClaimCard": ("card", ".claim"),
}
BENCH = """from fake_desk import FakeDesk
from widgets import Workbench
bench = Workbench(FakeDesk(0.1))
bench.lens.ask("Will this user travel soon?")
bench.selection.ids = bench.selection.everyone[:40]
bench.panel.save("travellers"), bench.panel.save("night owls"), bench.panel.explain()
bench.deck.ask()
bench.attention.look("Will this user travel soon?", "tuned")
bench.compare()
bench.lab.tune("Takeout", "Will they order?", steps=20)
bench"""
