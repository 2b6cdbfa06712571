"""The views beside the library: its back ends give what the views read."""

import pandas as pd

import qanchor as qa
from qanchor.widgets import ResultCard, Workbench
from qanchor.workbench.messages import provenance
from tests.fitted import fitted_engine, sample_users


def test_the_library_hands_over_its_facts():
    shift = pd.DataFrame({"user": list("abcd"), "stands_out": [True, False, False, False]})
    shift.attrs["others"] = 19
    facts = provenance("ab" * 32, 7, shift)
    card = ResultCard.from_facts(facts, sentence="One of four stands out.")
    assert (card.run, card.seed, card.value, card.n) == (
        "ab" * 32,
        7,
        0.25,
        4,
    ) and card.low < 0.25 < card.high
    assert card.more == {} and card.version.startswith("qanchor")


def test_a_session_gives_what_the_views_ask():
    users = sample_users()
    session = qa.WorkbenchSession(fitted_engine(), users, method="pca")
    session.lens._suggested = ()  # without other questions nobody can be said to stand out
    bench = Workbench(session)
    query, other = "Will this user come back?", "Will this user be less active than before?"
    first = bench.lens.ask(query)
    assert first.startswith("Interpreted as a question about any event. ")
    assert first.endswith(" rank first of 60 users.")
    assert bench.lens._ranking["order"] in first  # as the back end says it
    assert bench.lens.ask(other).startswith("Interpreted as a question about any event")
    assert list(bench.lens.ranking) == ["user", "score", "answer"] and len(bench.lens.ranking) == 60
    bench.selection.ids = users.ids[:12]
    assert bench.panel.sentence.startswith("12 of 60 users selected. ")
    assert bench.compare().table["users"].sum() == 60
    *_, last = session.explain(users.ids[:12])
    assert (
        len(last.data["frame"]) > 50 and len(session.lens.embeddings) > 50
    )  # one store for all views
    *_, last = session.attention(query, None, users.ids[:3])
    assert last.data["table"]["weight"].notna().all()
    *_, last = session.matrix(session.matrix.queries[:2], {"some": users.ids[:12]})
    assert len(last.data["frame"]) == 2 and bench.matrix.queries == tuple(session.matrix.queries)
    *_, last = session.tuning("Why?", "Active", vectors=2, steps=5, seed=0)
    assert last.data["result"]["measure"].tolist() == ["auc", "ks", "silhouette"]
