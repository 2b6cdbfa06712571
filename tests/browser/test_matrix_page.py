"""The query matrix in a real JupyterLab: asked, cancelled, walked by keyboard, grown, fed hostile
text.
"""

import pytest

SETUP = (
    "from fake_matrix import FakeMatrix\nfrom qanchor.widgets import QueryMatrixView\npicked = "
    "[]\nbackend = FakeMatrix(seconds=0.2)\n"
)
SHOW = SETUP + "view = QueryMatrixView(backend, on_pick=picked.append)\nview"
READ = "print(len(view.selection), picked[-1:], len(view.queries), list(view.groups)[-1])"
SET = "view.selection.ids = backend.ids[:40]"
ROOT = "document.querySelector('.matrix')"


@pytest.fixture(scope="module")
def book(open_notebook, server):
    notebook = open_notebook(server.write("matrix.ipynb", [SHOW, READ, SET]), height=1000)
    notebook.run(0)
    notebook.wait(f"{ROOT}?.dataset.ready === 'true'")
    yield notebook
    notebook.close()


@pytest.fixture(autouse=True)
def filled(request, book):
    """Fill the matrix for tests that run without the journey, which fills it itself."""
    whole = book.page.evaluate(f"{ROOT}.dataset.whole")
    if request.node.get_closest_marker("journey") is None and whole != "true":
        book.page.get_by_role("button", name="Ask all questions").click()
        data(book, whole="true", busy="false", cells="42")


def data(book, **wanted):
    for name, value in wanted.items():
        book.wait(f"{ROOT}.dataset.{name} === '{value}'")


def cell(book, query, group):
    return book.page.locator(f'.matrix-cell[aria-label^="“{query}"][aria-label*="{group} ("]')


@pytest.mark.journey
def test_the_matrix_fills_row_by_row(book):
    data(book, cells="0", of="42")
    book.page.get_by_role("button", name="Ask all questions").click()
    book.wait(f"Number({ROOT}.dataset.cells) >= 7")
    assert book.page.evaluate(f"Number({ROOT}.dataset.cells)") < 42
    data(book, whole="true", busy="false", cells="42")
    assert (
        book.page.locator(".matrix .lens-sentence").inner_text()
        == "8 of 42 cells are told beyond chance."
    )
    assert cell(book, "Will this user travel soon?", "Traveller").inner_text() == ".86"
    assert book.page.locator(".matrix-cell.beyond").count() == 8


def test_a_cell_chooses_its_group_and_asks_its_question(book):
    cell(book, "Will this user travel soon?", "Traveller").click()
    data(book, chosen="133")
    assert book.run(1) == "133 ['Will this user travel soon?'] 6 Traveller"
    assert (
        book.page.locator('.matrix-head[aria-pressed="true"]').inner_text().startswith("Traveller")
    )
    book.page.locator(".matrix-head", has_text="Fraud").click()
    data(book, chosen="41")


def test_the_keyboard_does_it_all(book):
    page = book.page
    page.get_by_role("button", name="as dealt").click()
    page.locator('.matrix-cell[tabindex="0"]').focus()
    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert (
        "Does this user follow live music?” and Concert (120 users): AUC .82"
        in page.locator(".matrix-description").inner_text()
    )
    page.keyboard.press("Enter")
    data(book, chosen="120")


def test_measures_have_their_own_colours(book):
    page = book.page
    page.get_by_role("button", name="leans to yes").click()
    assert (
        page.locator(".matrix-cell.less").count() == 2
        and page.locator(".matrix-cell.beyond").count() == 8 - 0
    )
    assert (
        cell(book, "What will this user do next month?", "Fraud").inner_text() == "–"
    )  # of no topic
    page.get_by_role("button", name="shift", exact=True).click()
    assert page.locator(".matrix-cell.beyond").count() == 1
    page.get_by_role("button", name="told apart").click()


def test_a_question_and_a_group_are_added_and_taken_out(book):
    page = book.page
    page.get_by_role("textbox", name="Question for the matrix").fill("Does <b>this</b> user sing?")
    page.keyboard.press("Enter")
    data(book, of="49", whole="true", busy="false")
    book.run(2)
    data(book, chosen="40")
    page.get_by_role("textbox", name="Name of the new group").fill("first forty")
    page.get_by_role("button", name="Add as a group").click()
    data(book, of="56", whole="true", busy="false")
    assert book.run(1).endswith("7 first forty")
    page.locator(".matrix-query", has_text="user sing").hover()
    page.get_by_role("button", name="Take “Does <b>this</b> user sing?” out").click()
    page.locator(".matrix-head", has_text="first forty").hover()
    page.get_by_role("button", name="Take first forty out").click()
    data(book, of="42", whole="true", busy="false")


def test_cancel_and_errors_leave_the_matrix(book):
    page = book.page
    box = page.get_by_role("textbox", name="Question for the matrix")
    box.fill("slow")
    box.press("Enter")
    data(book, busy="true", of="49")
    box.press("Escape")
    data(book, busy="false", cells="42")
    book.wait("document.querySelector('.matrix .lens-note').innerText.includes('Cancelled')")
    page.get_by_role("button", name="Take “slow” out").click(force=True)
    data(book, of="42", busy="false")
    box.fill("fail")
    box.press("Enter")
    book.wait(f"{ROOT}.dataset.error.includes('no such layer')")
    assert "no such layer" in page.locator(".matrix .lens-error").inner_text()
    page.get_by_role("button", name="Take “fail” out").click(force=True)
    data(book, of="42", cells="42", busy="false", error="")


def test_hostile_text_is_shown_as_text(book):
    assert book.page.evaluate(
        "window.hurt === undefined && "
        "!document.querySelector('.matrix img, .matrix script, .matrix th b')"
    )
    assert "<img src=x" in book.page.locator(".matrix-head", has_text="buys").inner_text()
    assert "<b>not bold</b>" in book.page.locator(".matrix").inner_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_to_look_at(open_notebook, server, dark):
    look = "dark" if dark else "light"
    book = open_notebook(server.write(f"matrix-{look}.ipynb", [SHOW]), dark=dark)
    book.run(0)
    book.wait(f"{ROOT}?.dataset.ready === 'true'")
    book.shot(f"matrix-before-{look}")
    book.page.get_by_role("button", name="Ask all questions").click()
    book.wait(f"Number({ROOT}.dataset.cells) >= 14")
    book.shot(f"matrix-filling-{look}")
    data(book, whole="true", busy="false")
    cell(book, "Will this user travel soon?", "Traveller").click()
    for width, height in ((1280, 900), (1920, 1080), (900, 1100)):
        book.page.set_viewport_size({"width": width, "height": height})
        book.page.wait_for_timeout(600)
        assert book.shot(f"matrix-{width}-{look}").stat().st_size > 30_000
        assert book.page.evaluate(f"{ROOT}.scrollWidth <= {ROOT}.clientWidth + 1")
    book.page.set_viewport_size({"width": 1280, "height": 900})
    book.page.get_by_role("button", name="leans to yes").click()
    book.page.wait_for_timeout(400)
    book.shot(f"matrix-lean-{look}")
    book.page.close()
