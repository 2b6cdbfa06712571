"""What survives in a real browser: a killed kernel, a kernel that was shut down."""

import json
import os
import signal
import urllib.request

import pytest

TRAVEL, MUSIC = "Will this user travel soon?", "Does this user follow live music?"
SETUP = "import os\nfrom fake import FakeAsker, make_frame\nfrom fake_desk import FakeDesk\nfrom widgets import QueryLens, Workbench\n"
LENS = SETUP + "lens = QueryLens(make_frame(), FakeAsker(seconds=2))\nlens"
BENCH = "bench = Workbench(FakeDesk(2), query='slow')\nbench"
GONE = ".lens-gone:not([hidden])"
SLOW = "[...document.querySelectorAll('.lens')].filter((lens) => lens.dataset.busy === 'true').length"


def pid(book, cell):
    return int(book.run(cell))


def dismiss(book):
    """Close what JupyterLab says of a kernel that died."""
    book.page.locator(".jp-Dialog").wait_for()
    assert "restart" in book.page.locator(".jp-Dialog").inner_text().lower()
    book.page.locator(".jp-Dialog .jp-mod-accept").click()
    book.page.locator(".jp-Dialog").wait_for(state="detached")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_views_say_that_their_kernel_was_killed_and_work_again_after_the_cell(open_notebook, server, dark):
    look = "dark" if dark else "light"
    book = open_notebook(server.write(f"killed-{look}.ipynb", [LENS, BENCH, "print(os.getpid())"]), dark=dark)
    book.run(0)
    book.ask(TRAVEL)
    sentence, before = book.asked(TRAVEL), book.state()
    book.run(1)
    book.ask("slow")
    book.wait(f"{SLOW} === 2")
    os.kill(pid(book, 2), signal.SIGKILL)
    book.wait(f"document.querySelectorAll('{GONE}').length >= 2")
    dismiss(book)
    print([(e.inner_text()) for e in book.page.locator(GONE).all()])
    assert "run the cell again" in book.page.locator(GONE).first.inner_text().lower()
    assert book.page.evaluate(SLOW) == 0 and book.page.get_by_role("button", name="Cancel").count() == 0
    book.settled()
    assert book.state()["pixels"] == before["pixels"] and book.page.locator(".lens-sentence").first.inner_text() == sentence
    book.shot(f"killed-lens-{look}")
    book.page.locator(".widget-tab").first.scroll_into_view_if_needed()
    book.page.screenshot(path=book.shot(f"killed-bench-{look}"))
