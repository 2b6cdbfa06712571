"""The workbench in a real JupyterLab: ask, choose, walk through the pages, compare, and open it as
it was left.
"""

import pytest
from words import says

SETUP = "from fake_session import FakeSession\nfrom qanchor.widgets import Workbench\n"
SHOW = SETUP + "bench = Workbench(FakeSession(0.3), session='bench.json')\nbench"
READ = "print(len(bench.selection), bench.lens.queries_asked)"
TITLES = ("Group", "Attention", "Matrix", "Clusters", "Tune", "Users")
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
        says(book.page.get_by_role("tabpanel", name=name, exact=True), mark)
        book.shot(f"workbench-{name.lower()}")
    page(book, "Matrix")
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


def boxes(book, name: str) -> tuple[dict, dict]:
    """Turn to a page; return where the map and the page are."""
    page(book, name)
    panel = book.page.get_by_role("tabpanel", name=name, exact=True)
    return book.page.locator(".lens-canvas").first.bounding_box(), panel.bounding_box()


@pytest.mark.journey
def test_every_page_leaves_the_map_in_sight(open_notebook, server):
    book = open_notebook(server.write("screen.ipynb", [SHOW.replace("bench.json", "screen.json")]))
    book.run(0)
    book.settled()
    book.page.get_by_role("button", name="Close the tour").click()
    for name in TITLES:
        canvas, panel = boxes(book, name)
        assert canvas["height"] >= 300
        assert panel["y"] > canvas["y"] + canvas["height"], f"{name} stands under the map"
    book.page.set_viewport_size({"width": 1720, "height": 800})
    book.page.wait_for_timeout(800)
    for name in TITLES:
        canvas, panel = boxes(book, name)
        assert canvas["height"] >= 300
        assert panel["x"] > canvas["x"] + canvas["width"], f"{name} stands beside the map"
        assert panel["y"] < canvas["y"] + 60 and panel["height"] < 800
    narrow = panel["width"]
    book.page.get_by_role("button", name="wider").click()
    assert boxes(book, "Matrix")[1]["width"] > 1.3 * narrow
    book.page.get_by_role("button", name="narrower").click()
    assert boxes(book, "Matrix")[1]["width"] == narrow
    book.close()
