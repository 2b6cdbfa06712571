"""Lesson 05 in a real JupyterLab, with the shipped run; in a file of its own, for it takes as long
as many others together.
"""

import json

import pytest

TRAVEL = "Will this user travel soon?"
UNSEEN = "Would this user enjoy a sourdough baking class?"  # in no training data


@pytest.mark.journey
def test_the_lesson_answers_an_unseen_query(open_notebook, server):
    """Every cell runs, and a query that nobody trained on moves the map."""
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
            book.asked(TRAVEL, timeout=120)
            parts = [
                book.page.locator(name).inner_text() for name in (".lens-reading", ".lens-lead")
            ]
            assert told.strip("'") == " ".join(parts), "the view says what Python was told"
    book.settled(timeout=120)
    before = book.state()
    book.ask(UNSEEN)
    assert "stand out: this question moves" in book.asked(UNSEEN, timeout=180)
    assert (
        max(abs(a - b) for a, b in zip(before["shown"], book.state()["shown"], strict=True)) > 1e-3
    )
    book.shot("lesson-05")
    book.close()
