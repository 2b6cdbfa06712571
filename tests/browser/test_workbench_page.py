"""The workbench in a real JupyterLab: ask, choose, walk through the pages, compare, and open it as
it was left.
"""

import pytest
from words import says

SETUP = "from fake_session import FakeSession\nfrom qanchor.widgets import Workbench\n"
SHOW = SETUP + "bench = Workbench(FakeSession(0.3), session='bench.json')\nbench"
READ = "print(len(bench.selection), bench.lens.queries_asked)"
TRAVEL, MUSIC = "Will this user travel soon?", "Does this user follow live music?"


@pytest.fixture(scope="module")
def book(open_notebook, server):
    notebook = open_notebook(server.write("bench.ipynb", [SHOW, READ, SHOW]), height=1000)
    notebook.run(0)
    notebook.settled()
    yield notebook
    notebook.close()


def page(book, name):
    book.page.get_by_role("tab", name=name, exact=True).click()
    book.page.wait_for_timeout(400)


@pytest.mark.journey
def test_the_pages_share_users_and_the_session_comes_back(book):
    box = book.page.get_by_role("combobox", name="Query", exact=True)
    box.fill(TRAVEL)
    box.press("Enter")
    book.wait(f"document.querySelector('.lens').dataset.query === '{TRAVEL}'")
    book.settled()
    book.shot("workbench-ask")
    page(book, "Clusters")
    book.page.get_by_role("button", name="Compare clusters").click()
    book.page.locator(".clus-band").first.wait_for()
    book.page.locator('.clus-band[data-key="band 0 4"]').click()
    book.page.wait_for_timeout(500)
    book.shot("workbench-clusters")
    assert book.run(1) == f"48 ('{TRAVEL}',)"
    for name, mark in (("Group", "48 of 600"), ("Attention", "attention"), ("Tune", "label")):
        page(book, name)
        says(
            book.page.locator(
                ".jp-OutputArea .widget-tab, .jp-OutputArea .jupyter-widget-tab"
            ).first,
            mark,
        )
        book.shot(f"workbench-{name.lower()}")
    page(book, "Matrix")
    book.page.locator(".tour-card").wait_for(state="hidden")  # its words are about the first page
    book.page.get_by_role("button", name="Ask all questions").click()
    book.wait("document.querySelector('.matrix').dataset.whole === 'true'")
    book.page.locator(f'.matrix-cell[aria-label^="“{MUSIC}” and Concert"]').click()
    book.wait(f"document.querySelector('.lens').dataset.query === '{MUSIC}'")
    book.shot("workbench-matrix")
    assert book.run(1) == f"120 ('{TRAVEL}', '{MUSIC}')"
    book.run(2)  # the session was kept: the last query is asked again, and the choice is there
    book.wait("document.querySelectorAll('.lens:not([data-stale])').length > 0")
    for _ in range(60):
        if (said := book.run(1)) == f"120 ('{MUSIC}',)":
            break
        book.page.wait_for_timeout(500)
    assert said == f"120 ('{MUSIC}',)"
