"""What survives: all views in one notebook, a killed kernel, a second tab, a notebook that was
sent, a page made of it.
"""

import os
import re
import signal
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from fake_views import FILL, SETUP
from traitlets.config import Config
from words import read

TRAVEL, MUSIC, PRICE = (
    "Will this user travel soon?",
    "Does this user follow live music?",
    "Is this user price-conscious?",
)
SLOW = (
    "from fake import FakeLens, make_frame\nfrom fake_session import FakeSession\nfrom "
    "qanchor.widgets import QueryLens, Workbench\n"
)
LENS = SLOW + "lens = QueryLens(make_frame(), FakeLens(seconds=1.5))\nlens"
BENCH = "bench = Workbench(FakeSession(1.5), query='slow')\nbench"
BUSY = (
    "[...document.querySelectorAll('.lens')].filter((lens) => lens.dataset.busy === 'true').length"
)
GONE = "document.querySelectorAll('.lens-gone:not([hidden])').length"
ALL = f"""{SETUP}
{FILL}
from qanchor.widgets import QueryMatrixView, Workbench
matrix = QueryMatrixView(session.matrix, selection=lens.selection, on_pick=lens.start)
matrix.ask()
bench = Workbench(FakeSession(0.1))
bench.lens.ask("{TRAVEL}")"""
VIEWS = {  # the mark by which the page knows each, and words that must be readable without a kernel
    "lens": (".lens:not(.sel, .matrix, .att, .clus, .lab)", "users stand out"),
    "panel": (".sel", "40 of 600 users selected"),
    "matrix": (".matrix", "cells are told beyond chance"),
    "attention": (".att", "do not read attention as importance"),
    "clusters": (".clus", "4 clusters became 5"),
    "tuning": (".lab", "validation loss"),
    "card": (".result-card", "A first look."),
    "bench": (".bench", "users stand out"),
}
INK = """(canvas) => {
    const {width, height} = canvas;
    const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
    return data.reduce((sum, value, i) => sum + (i % 4 === 3 && value > 0), 0); }"""


def ask(page, query, nth=0):
    box = page.get_by_role("combobox", name="Query", exact=True).nth(nth)
    box.fill(query)
    box.press("Enter")


def shows(query, nth=0):
    """Say that the lens that stands there as number `nth` shows the answer."""
    return (
        f"[...document.querySelectorAll('{VIEWS['lens'][0]}')][{nth}].dataset.query === {query!r}"
    )


def end_session(server, path):
    """Shut the kernel of a notebook down, as the list of running kernels does."""

    def rest(method, what):
        told = {"Authorization": f"token {server.token}"}
        request = urllib.request.Request(
            f"{server.url}/api/sessions{what}", method=method, headers=told
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    [session] = re.findall(rf'"id": "([^"]+)", "path": "{re.escape(path)}"', rest("GET", ""))
    rest("DELETE", f"/{session}")


@pytest.mark.journey
def test_a_killed_kernel_is_told_and_the_cell_brings_the_view_back(open_notebook, server):
    path = server.write("killed.ipynb", [LENS, BENCH, "import os; print(os.getpid())"])
    book = open_notebook(path)
    book.run(0)
    ask(book.page, TRAVEL)
    sentence, before = book.asked(TRAVEL), book.state()
    book.run(1)
    ask(book.page, "slow")
    book.wait(f"{BUSY} === 2")
    os.kill(int(book.run(2)), signal.SIGKILL)
    book.wait(f"{GONE} === 7")  # the lens, and the six views of the workbench
    book.page.locator(".jp-Dialog .jp-mod-accept").click()
    assert "run the cell again" in book.page.locator(".lens-gone").first.inner_text()
    assert (
        book.page.evaluate(BUSY) == 0
        and book.page.get_by_role("button", name="Cancel").count() == 0
    )
    book.settled()
    assert (
        book.state()["pixels"] != []
        and book.page.locator(".lens-sentence").first.inner_text() == sentence
    )
    assert book.state()["shown"] == before["shown"], "the last good picture stays"
    ask(book.page, MUSIC)  # is not heard, and does not pretend to be
    book.shot("survival-killed")
    assert (
        book.page.evaluate(BUSY) == 0
        and book.page.locator(".lens-sentence").first.inner_text() == sentence
    )
    book.page.get_by_text("No Kernel").wait_for(state="detached")
    book.run(0)
    assert book.page.evaluate(GONE) == 6
    ask(book.page, MUSIC)
    book.wait(shows(MUSIC))
    ask(book.page, "slow")
    book.wait(f"{BUSY} === 1")
    end_session(server, path)  # of this JupyterLab tells no view
    book.wait(f"{GONE} === 7 && {BUSY} === 0")
    book.close()


@pytest.fixture(scope="module")
def eight(open_notebook, server):
    """All views in one notebook, which is saved."""
    path = server.write("eight.ipynb", [ALL, *VIEWS])
    book = open_notebook(path)
    book.run(0)
    began = time.monotonic()
    for number in range(1, len(VIEWS) + 1):
        book.run(number)
    book.settled()
    print(f"\n{len(VIEWS)} views painted in {time.monotonic() - began:.1f} s", end="")
    book.page.keyboard.press("Control+s")
    book.page.wait_for_selector("#jp-main-dock-panel .lm-TabBar-tab:not(.jp-mod-dirty)")
    file = server.folder / "work" / path
    for _ in range(100):
        if "u0000" in file.read_text():
            break
        book.page.wait_for_timeout(100)
    print(f", {file.stat().st_size / 1e3:.0f} kB saved")
    yield book, path, nbformat.read(file, 4)
    book.close()


def test_eight_views_in_one_notebook_are_painted_and_live(eight):
    book, _, _ = eight
    for name, (mark, _) in VIEWS.items():
        view = book.page.locator(mark).first
        assert len(read(view)) > 100 and view.bounding_box()["height"] > 200, name
        for canvas in view.locator("canvas:visible").all():
            for _ in range(100):
                if (ink := canvas.evaluate(INK)) > 1000:
                    break
                book.page.wait_for_timeout(100)
            assert ink > 1000, f"{name}: an empty map"
    assert book.page.evaluate(GONE) == 0
    first = {name: book.page.locator(mark).first for name, (mark, _) in VIEWS.items()}
    ask(book.page, MUSIC)
    book.wait(shows(MUSIC))
    first["matrix"].locator(".matrix-head").first.click()
    book.wait("document.querySelector('.sel').dataset.chosen === '120'")
    first["attention"].get_by_role("combobox", name="Query A", exact=True).fill(MUSIC)
    first["attention"].get_by_role("button", name="Look", exact=True).click()
    book.wait(f"document.querySelector('.att').dataset.query === {MUSIC!r}")
    first["clusters"].locator(".clus-list button").first.click()
    book.wait("Number(document.querySelector('.clus').dataset.chosen) > 0")
    first["tuning"].locator(".lab-label").select_option("Luck")
    first["tuning"].get_by_role("button", name="Start", exact=True).click()
    book.wait(
        "((lab) => lab.dataset.busy === 'false' && lab.querySelector('caption b').textContent "
        "=== 'Luck')"
        "(document.querySelector('.lab'))"
    )
    ask(book.page, PRICE, nth=1)
    book.wait(f"{shows(PRICE, 1)} && {shows(MUSIC)}")


def test_a_second_tab_shows_the_same_and_closing_it_harms_nobody(eight, chromium, server):
    book, path, _ = eight
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(90_000)
    complaints = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(f"{server.url}/lab/tree/{path}?token={server.token}")
    tab.wait_for_function(
        "document.querySelectorAll('.lens').length >= 11 && "
        "document.querySelector('.lens').dataset.ready === 'true'"
    )
    told = (
        "({className, dataset: {query, chosen, ranked, cells}}) => [className, query, chosen, "
        "ranked, cells].join()"
    )
    told = f"[...document.querySelectorAll('.lens')].map({told})"
    assert tab.evaluate(told) == book.page.evaluate(told)
    ask(tab, TRAVEL)
    book.wait(shows(TRAVEL))
    tab.wait_for_function(shows(TRAVEL))
    book.page.get_by_role("button", name="Takeout 212", exact=True).first.click()
    tab.wait_for_function(
        "['', '.sel'].every((kind) => document.querySelector(`.lens${kind}`).dataset.chosen === "
        "'212')"
    )
    tab.locator(".sel").first.get_by_role("button", name="clear").click()
    book.wait("document.querySelector('.lens').dataset.chosen === '0'")
    tab.close()
    ask(book.page, PRICE)
    book.wait(shows(PRICE))
    assert complaints == []


def readable(page, outputs):
    """Check that each output says its result in words and as a picture, without its view."""
    for output, (name, (_, words)) in zip(outputs, VIEWS.items(), strict=True):
        text = read(output)
        assert words in text + " ".join(
            image.get_attribute("alt") for image in output.locator("img").all()
        ), f"{name}: {text[:300]}"
        assert (
            output.locator("img").first.evaluate("img => img.decode().then(() => img.naturalWidth)")
            > 100
        ), name
        assert "Error displaying widget" not in text and "Loading widget" not in text
    assert page.locator(".lens").count() == 0, "this is the still picture, not the view"


def test_a_notebook_that_was_sent_is_readable_without_trust_and_kernel(eight, chromium, server):
    _, _, saved = eight
    sent = nbformat.from_dict(saved)
    sent.metadata = {
        "kernelspec": {"name": "absent", "display_name": "Absent", "language": "absent"}
    }  # nor is it as it was signed
    nbformat.write(sent, server.folder / "work" / "notebooks" / "sent-all.ipynb")
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(90_000)
    page.goto(f"{server.url}/lab/tree/notebooks/sent-all.ipynb?token={server.token}&reset")
    dialog = page.locator(".jp-Dialog")
    dialog.locator("select").select_option(label="No Kernel")
    dialog.locator(".jp-mod-accept").click()
    dialog.wait_for(state="detached")
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    readable(
        page,
        [
            cells.nth(number).locator(".jp-OutputArea-output").last
            for number in range(1, len(VIEWS) + 1)
        ],
    )
    page.screenshot(path=Path(__file__).parent / "shots" / "survival-sent.png")
    page.close()


@pytest.mark.parametrize("state", [False, True], ids=["as saved", "with the state of its views"])
def test_a_page_made_by_nbconvert_is_readable_and_asks_nobody_for_the_views(
    eight, chromium, tmp_path, state
):
    from nbconvert import HTMLExporter

    _, _, saved = eight
    book, config = nbformat.from_dict(saved), Config()
    kind = "application/vnd.jupyter.widget-view+json"
    if state:  # then nbconvert prefers scripts from a CDN, unless it is told to leave the state out
        views = [
            output["data"][kind]["model_id"]
            for cell in book.cells
            for output in cell.outputs
            if kind in output.get("data", {})
        ]
        kept = {"state": {view: {} for view in views}, "version_major": 2, "version_minor": 0}
        book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": kept}
        config.ClearMetadataPreprocessor.enabled = True
    exporter = HTMLExporter(config=config)
    path = tmp_path / "page.html"
    path.write_text(exporter.from_notebook_node(book)[0], encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    asked = []
    page.route(
        re.compile("^https?:"), lambda route: (asked.append(route.request.url), route.abort())
    )
    page.goto(path.as_uri())
    readable(
        page, page.locator(".jp-CodeCell").locator(".jp-OutputArea-output").all()[-len(VIEWS) :]
    )
    own = {
        exporter.require_js_url,
        exporter.mathjax_url.partition("?")[0],
        exporter.jquery_url,
        exporter.mermaid_js_url,
    }
    print(f"\n{path.stat().st_size / 1e3:.0f} kB; asked outside: {asked}")
    assert {url.partition("?")[0] for url in asked} <= own, (
        "the page of nbconvert asks for its own scripts, and for nothing of ours"
    )
    page.screenshot(path=Path(__file__).parent / "shots" / "survival-page.png")
    page.close()
