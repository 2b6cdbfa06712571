"""`make waits`: how long one waits for the workbench over the shipped run and 600 users of the
sample, from the cell to the first map, and from Enter to the first move and to the last map.

It is no part of `make test`: times belong to the machine.
"""

import time

SHOW = """import qanchor as qa
from qanchor.widgets import Workbench
users = qa.load_users("../data/sample").sample(600)
engine = qa.Engine("../data/runs/sample")
Workbench(qa.WorkbenchSession(engine, users))"""
QUERIES = (
    "Will this user travel soon?",
    "Is this user price-conscious?",
    "Will this user order takeout at least 3 times?",
    "Will this user come back?",
)
LENS = "document.querySelector('.lens')"


def test_waits(server, open_notebook):
    book = open_notebook(server.write("waits.ipynb", [SHOW]), height=800)
    seconds = stopwatch()
    book.run(0)
    book.wait(f"{LENS}?.dataset.ready === 'true'")
    print(f"\nthe first map {seconds():.1f} s after the cell was run")
    for query in QUERIES:
        box = book.page.get_by_role("combobox", name="Query", exact=True)
        box.fill(query)
        box.press("Enter")
        seconds = stopwatch()
        asked = f"{LENS}.dataset.query === {query!r}"
        book.wait(f"{asked} && {LENS}.dataset.moving === 'true'")
        moved = seconds()
        book.wait(f"{asked} && {LENS}.lens.state().rank")
        ranked = seconds()
        book.wait(f"{LENS}.dataset.busy === 'false'")
        told = f"moved {moved:.1f}, ranked {ranked:.1f}, all done {seconds():.1f} s after Enter"
        print(f"{query} {told}")
    book.close()


def stopwatch():
    """Return a function that says how many seconds have passed."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
