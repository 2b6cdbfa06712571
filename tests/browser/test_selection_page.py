"""The selection panel in a real JupyterLab: drawn around on the lens, described, explained, named,
written; and result cards.
"""

from pathlib import Path

import nbformat
import pytest
from fake import fake_describe, fake_provenance
from test_lens import TRAVEL, drag

from qanchor.widgets import SelectionPanel
from qanchor.widgets.base import Selection

FAKES = "from fake import FakeLens, FakeExplain, fake_describe, fake_provenance, make_frame"
LENS = (
    FAKES
    + """
from pathlib import Path
from qanchor.widgets import QueryLens, SelectionPanel
def export(ids, path, least, salt):
    assert len(ids) >= least, "too few"
    path.write_text(f"{len(ids)} {salt}")
    return path
backend = FakeLens(seconds=0.1)
backend.provenance = fake_provenance
lens = QueryLens(make_frame(), backend)
panel = SelectionPanel(lens.selection, fake_describe, FakeExplain(2), export, fake_provenance)
lens"""
)
IDS = "print(len(lens.selection), *(f'{n}:{len(g.ids)}' for n, g in panel.named.items()))"
SET = "lens.selection.ids = lens._ids[:{}]"
CLAIM = (
    "card = panel.result_card('A first look, to be looked at again.')\ncard.save('card.html')\ncard"
)
PANEL = "document.querySelector('.sel')"


@pytest.fixture(scope="module")
def opened(open_notebook, server):
    cells = [
        LENS,
        "panel",
        IDS,
        SET.format(40),
        SET.format(13),
        SET.format(17),
        CLAIM,
        "lens.result_card()",
    ]
    notebook = open_notebook(server.write("selection.ipynb", cells))
    yield notebook
    notebook.page.close()


@pytest.fixture
def book(opened):
    opened.run(0)
    opened.settled()
    opened.run(1)
    opened.wait(f"{PANEL} && {PANEL}.dataset.chosen === '0'")
    yield opened
    opened.check()


def chosen(book, n):
    book.wait(f"{PANEL}.dataset.chosen === '{n}' && {PANEL}.dataset.waiting === 'false'")


def shot(book, name):
    book.page.locator(".sel").scroll_into_view_if_needed()
    book.page.wait_for_timeout(300)
    path = Path(__file__).parent / "shots" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    book.page.locator(".sel").screenshot(path=path)
    return path


@pytest.mark.journey
def test_a_lasso_is_described_named_and_found_in_python(book):
    page = book.page
    assert "No users selected" in page.locator(".sel-sentence").inner_text()
    page.locator(".lens-canvas").scroll_into_view_if_needed()
    drag(book, [(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    book.wait("document.querySelector('.lens').lens.state().selected.size > 0")
    n = len(book.state()["chosen"])
    chosen(book, n)
    assert f"{n} of 600 users selected" in page.locator(".sel-sentence").inner_text()
    assert "“Concert” 83\u00a0% against 14\u00a0%" in page.locator(".sel-sentence").inner_text()
    page.get_by_label("Name of the group").fill("travellers")
    page.keyboard.press("Enter")
    page.wait_for_selector(".sel-chip")
    book.run(3)
    chosen(book, 40)
    page.get_by_label("Name of the group").fill("first forty")
    page.get_by_role("button", name="Save", exact=True).click()
    page.wait_for_selector(".sel-chip >> nth=1")
    assert book.run(2) == f"40 travellers:{n} first forty:40"
    page.get_by_label("Second group").select_option("first forty")
    page.get_by_label("How to combine them").select_option("subtract")
    page.get_by_role("button", name="Select", exact=True).click()
    book.wait(
        f"!['0', '40'].includes({PANEL}.dataset.chosen) && {PANEL}.dataset.waiting === 'false'"
    )
    left = int(page.locator(".sel").get_attribute("data-chosen"))
    assert n - 40 <= left < n and book.run(2).startswith(f"{left} ")
    assert len(book.state()["chosen"]) == left, "the lens follows the panel"
    page.locator(".sel-recall").first.click()
    chosen(book, n)
    page.get_by_role("button", name="Forget travellers").click()
    book.wait("document.querySelectorAll('.sel-chip').length === 1")


def test_which_question_tells_them_with_progress_cancel_and_errors(book):
    page = book.page
    book.run(3)
    chosen(book, 40)
    page.get_by_role("button", name="Which question explains them?").click()
    book.wait(f"Number({PANEL}.querySelector('.lens-progress').getAttribute('aria-valuenow')) > 0")
    assert "of 600 users 72 questions" in page.locator(".sel .lens-note").first.inner_text()
    book.wait(f"{PANEL}.dataset.ranked === '24'")
    assert (
        page.locator(".sel-said").inner_text().startswith(f"“{TRAVEL}” tells these 40 users best")
    )
    assert page.locator(".sel-ticks em").inner_text() == "chance 0.64"
    book.run(4)
    chosen(book, 13)
    assert page.locator(".sel-said").inner_text().startswith("Of the 40 users selected before")
    page.get_by_role("button", name="Which question explains them?").click()
    book.wait(f"{PANEL}.dataset.busy === 'true'")
    page.locator(".sel").get_by_role("button", name="Cancel").press("Escape")
    book.wait(f"{PANEL}.dataset.busy === 'false'")
    assert "Cancelled" in page.locator(".sel-foot .lens-note").inner_text()
    book.run(5)
    chosen(book, 17)
    page.get_by_role("button", name="Which question explains them?").click()
    page.wait_for_selector(".sel .lens-error:not([hidden])")
    assert "the checkpoint has no such layer" in page.locator(".sel .lens-error").inner_text()
    book.run(3)
    chosen(book, 40)
    book.wait(
        f"{PANEL}.querySelector('.sel-said').textContent.startsWith('“')"
    )  # what was found of them before is there again
    assert page.locator(".sel .sel-stale").count() == 0


def test_hostile_names_and_texts_are_text_and_files_are_written(book, server):
    page = book.page
    book.run(3)
    chosen(book, 40)
    page.get_by_role("button", name="Which question explains them?").click()
    book.wait(f"{PANEL}.dataset.ranked === '24'")
    bad = "<img src=x onerror=window.hurt=1>"
    page.get_by_label("Name of the group").fill(bad)
    page.keyboard.press("Enter")
    page.wait_for_selector(".sel-chip")
    page.get_by_label("Salt").fill("pepper")
    page.get_by_role("button", name="Write CSV").click()
    book.wait(f"{PANEL}.querySelector('.sel-foot .lens-note').textContent.includes('Written')")
    folder = server.folder / "work" / "notebooks"
    assert [path.read_text() for path in folder.glob("img-src*.csv")] == ["40 pepper"]
    page.get_by_role("button", name="Write Parquet").click()
    book.wait(f"{PANEL}.querySelector('.sel-foot .lens-note').textContent.includes('parquet')")
    texts = page.locator(".sel").inner_text()
    assert '<img src=x onerror="window.hurt=1">' in texts and bad in texts
    assert page.evaluate(
        "window.hurt === undefined && !document.querySelector('.sel img, .sel script')"
    )


def test_a_result_is_kept_and_opens_alone(book, server, chromium):
    book.run(3)
    chosen(book, 40)
    said = book.run(6)
    book.page.wait_for_selector(".result-card h3")
    assert "Concert" in book.page.locator(".result-card h3").first.inner_text() and said == ""
    book.page.get_by_role("button", name="Result card", exact=True).click()
    book.wait(
        f"{PANEL}.querySelector('.sel-foot "
        ".lens-note').textContent.includes('result-group-of-40.html')"
    )
    book.page.get_by_role("button", name="Save result card").click()
    book.wait("document.querySelector('.lens-keeping').textContent.includes('Kept: result')")
    path = server.folder / "work" / "notebooks" / "card.html"
    for dark in (False, True):
        page = chromium.new_page(
            viewport={"width": 1000, "height": 900}, color_scheme="dark" if dark else "light"
        )
        asked, complaints = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
        page.goto(path.as_uri())
        assert page.locator("h1").inner_text().startswith("40 of 600 users selected")
        assert "A first look" in page.locator("blockquote").inner_text()
        assert page.evaluate("document.querySelector('.result-card img').naturalWidth") > 100, (
            "the policy lets the picture through"
        )
        assert [url for url in asked if not url.startswith("data:")] == [
            path.as_uri()
        ] and complaints == []
        page.screenshot(
            path=Path(__file__).parent / "shots" / f"result-{'dark' if dark else 'light'}.png",
            full_page=True,
        )
        page.close()


def test_what_was_kept_is_readable_when_the_notebook_is_not_trusted(open_notebook, server):
    """A notebook that somebody sent: its outputs were not made here, no kernel knows its views, and
    scripts may not run.
    """
    chosen = Selection(tuple(f"u{i:04}" for i in range(600)), lambda rows: None)
    panel = SelectionPanel(chosen, describe=fake_describe, provenance=fake_provenance)
    chosen.ids = chosen.all_ids[:40]
    bundles = [
        panel._repr_mimebundle_()[0],
        panel.result_card("<b>A first look.</b>")._repr_mimebundle_(),
    ]
    book = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    for bundle in bundles:
        output = nbformat.v4.new_output("display_data", data=bundle)
        book.cells.append(nbformat.v4.new_code_cell("shown", outputs=[output], execution_count=1))
    path = server.folder / "work" / "notebooks" / "sent.ipynb"
    nbformat.write(book, path)
    sent = open_notebook("notebooks/sent.ipynb")
    for number, words in enumerate(("40 of 600 users selected", "<b>A first look.</b>")):
        output = sent.cell(number).locator(".jp-OutputArea-output").first
        output.wait_for()
        assert (
            words in output.inner_text()
            and output.locator("img").evaluate("img => img.naturalWidth") > 100
        )
    sent.page.screenshot(path=Path(__file__).parent / "shots" / "sent.png")
    sent.page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_to_look_at(open_notebook, server, dark):
    look = "dark" if dark else "light"
    cells = [
        LENS,
        "panel",
        SET.format(43),
        "panel.save('travellers'); panel.save('night owls')",
        "panel.result_card('A first look.')",
    ]
    book = open_notebook(server.write(f"selection-{look}.ipynb", cells), dark=dark)
    for cell in (0, 1):
        book.run(cell)
    book.wait(f"{PANEL} && {PANEL}.dataset.chosen === '0'")
    shot(book, f"selection-empty-{look}")
    book.run(2)
    chosen(book, 43)
    shot(book, f"selection-described-{look}")
    book.run(3)
    book.page.get_by_role("button", name="Which question explains them?").click()
    book.wait(f"{PANEL}.dataset.ranked === '24'")
    for width, height in ((1280, 900), (1920, 1080), (900, 1300)):
        book.page.set_viewport_size({"width": width, "height": height})
        book.page.wait_for_timeout(300)
        assert shot(book, f"selection-{width}-{look}").stat().st_size > 20_000
        assert book.page.evaluate(f"{PANEL}.scrollWidth <= {PANEL}.clientWidth + 1")
    book.run(4)
    book.page.wait_for_selector(".result-card h3")
    book.page.locator(".result-card").scroll_into_view_if_needed()
    book.page.locator(".result-card").screenshot(
        path=Path(__file__).parent / "shots" / f"result-notebook-{look}.png"
    )
    book.close()
