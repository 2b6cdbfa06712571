"""Lesson 05 in a real JupyterLab, with the shipped run; in a file of its own, for it takes as long
as many others together.
"""

import json

import pytest

TRAVEL = "Will this user travel soon?"
UNSEEN = "Would this user enjoy a sourdough baking class?"  # nothing in the data is about it


@pytest.mark.journey
def test_the_lesson_runs_and_declines_what_the_data_is_not_about(open_notebook, server):
    """Every cell runs, and a query that nothing in the data is about moves the map and is
    declined.
    """
    lesson = server.folder / "work" / "notebooks" / "05_query_lens.ipynb"
    cells = json.loads(lesson.read_text())["cells"]
    asks = next(
        number
        for number, cell in enumerate(cells)
        if "".join(cell["source"]).startswith("lens.ask(")
    )
    book = open_notebook("notebooks/05_query_lens.ipynb")
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            told = book.run(number, timeout=300)
        if number == asks:
            said = book.asked(TRAVEL, timeout=120)
            assert told.strip("'") == said, "the view says what Python was told"
    book.settled(timeout=120)
    before = book.state()
    book.ask(UNSEEN)
    assert book.asked(UNSEEN, timeout=180) == ""  # nobody is said to stand out
    assert (
        book.page.locator(".lens-doubt").inner_text().startswith("Nothing in these events speaks")
    )
    # nor that nobody does: who moved is all that is known
    assert "stand" not in book.page.locator(".lens-legend").inner_text()
    assert "residual" in book.page.locator(".lens-listhead").inner_text()
    assert (
        max(abs(a - b) for a, b in zip(before["shown"], book.state()["shown"], strict=True)) > 1e-3
    )
    book.shot("lesson-05")
    book.close()
