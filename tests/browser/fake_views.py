"""The cells of a notebook that shows the views of one session, each alone, first empty, then with a
result.
"""

SETUP = """from fake_session import FakeSession
from qanchor.widgets import AttentionView, ClusterView, PromptTuningView, QueryLens, SelectionPanel
session = FakeSession(0.1)
lens = QueryLens(session.frame, session.lens)
panel = SelectionPanel(
    lens.selection, session.describe, session.explain, provenance=session.provenance)
attention = AttentionView(session.attention, session.frame, selection=lens.selection)
tuning = PromptTuningView(session.tuning, turn=lens.selection.turn)
clusters = ClusterView(session.compare("", "Will this user travel soon?"), session.frame)"""
FILL = """lens.ask("Will this user travel soon?")
lens.selection.ids = lens._ids[:40]
panel.save("travellers"), panel.save("night owls"), panel.explain()
attention.look("Will this user travel soon?", "Is this user price-conscious?")
tuning.tune("Takeout", "Will they order?", steps=20)
card = panel.result_card("A first look.")"""
VIEWS = {  # the expression that shows it, and the mark by which the page knows it
    "QueryLens": ("lens", ".lens:not(.sel, .att, .clus, .lab)"),
    "SelectionPanel": ("panel", ".sel"),
    "AttentionView": ("attention", ".att"),
    "ClusterView": ("clusters", ".clus"),
    "PromptTuningView": ("tuning", ".lab"),
    "ResultCard": ("card", ".result-card"),
}
BENCH = """from fake_session import FakeSession
from qanchor.widgets import Workbench
bench = Workbench(FakeSession(0.1))
bench.lens.ask("Will this user travel soon?")
bench.selection.ids = bench.selection.all_ids[:40]
bench.panel.save("travellers"), bench.panel.save("night owls"), bench.panel.explain()
bench.matrix.ask()
bench.attention.look("Will this user travel soon?", "Is this user price-conscious?")
bench.compare()
bench.tuning.tune("Takeout", "Will they order?", steps=20)
bench"""
