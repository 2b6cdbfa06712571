"""The prompt tuning view in a real JupyterLab: started, watched, stopped, cancelled, saved, fed
hostile names.
"""

import pytest

VAGUE = "Is this user interesting for us?"
SETUP = "from fake_tuning import FakeTuning\nfrom qanchor.widgets import PromptTuningView\n"
SHOW = SETUP + "lab = PromptTuningView(FakeTuning(seconds={seconds}))\nlab"
READ = "print(lab.prompt, len(lab.history), lab.sentence)"
ROOT = "document.querySelector('.lab')"
IDLE = f"{ROOT}.dataset.busy === 'false'"


@pytest.fixture(scope="module")
def opened(open_notebook, server):
    notebook = open_notebook(server.write("lab.ipynb", [SHOW.format(seconds=1.2), READ]))
    yield notebook
    notebook.page.close()


@pytest.fixture
def book(opened):
    """The notebook with a new lab."""
    opened.run(0)
    opened.wait(f"{ROOT}?.dataset.ready === 'true'")
    yield opened
    opened.check()


def start(book, label="Takeout", query=VAGUE, **numbers):
    book.page.locator(".lab-label").select_option(label)
    book.page.locator(".lab .lens-query").fill(query)
    for name, value in numbers.items():
        book.page.locator(f".lab-{name}").fill(str(value))
    book.page.locator(".lab .lens-query").press("Enter")


def done(book, words):
    book.wait(f"{IDLE} && {ROOT}.dataset.result.includes('{words}')")


@pytest.mark.journey
def test_a_label_is_picked_and_the_gain_is_read(book):
    page = book.page
    assert "the paper: 6 vectors, 500 steps" in page.locator(".lab-time").inner_text()
    assert page.locator(".lab-steps").input_value() == "60"
    start(book, steps=40)
    book.wait(f"Number({ROOT}.dataset.step) > 12")
    assert "of 40, about" in page.locator(".lens-note").inner_text()
    assert "left here" in page.locator(".lens-note").inner_text()
    assert page.locator(".lab-curve .valid circle").count() >= 2
    book.shot("lab-busy")
    done(book, "a gain of .057")
    assert page.locator(".lab-curve .valid circle").count() == 5
    assert page.locator(".lab-curve .kept").count() == 1
    assert "best: step" in page.locator(".lab-curve").text_content()
    assert "least" in page.locator(".lab-curve").get_attribute("aria-label")
    rows = page.locator(".lab-table tbody tr").all_inner_texts()
    assert len(rows) == 3
    assert rows[0].startswith("AUC")
    assert "beyond chance" in rows[0]
    assert "about" in page.locator(".lab-time").inner_text()
    assert book.run(1).startswith("prompt of step ")
    assert "a gain of .057" in book.run(1)


def test_stop_and_keep_cancel_and_errors(book):
    page = book.page
    start(book, "slow")
    book.wait(f"Number({ROOT}.dataset.step) > 10")
    page.get_by_role("button", name="Stop and keep").click()
    done(book, "a gain of .057")
    assert "ended after step" in page.locator(".lens-caption").inner_text()
    sentence = page.locator(".lens-sentence").inner_text()
    dots = page.locator(".lab-curve .valid circle").count()
    start(book, "slow")
    book.wait(f"Number({ROOT}.dataset.step) > 2")
    page.keyboard.press("Escape")
    book.wait(IDLE)
    assert "Cancelled, nothing was kept" in page.locator(".lens-note").inner_text()
    assert page.locator(".lens-sentence").inner_text() == sentence
    assert page.locator(".lab-curve .valid circle").count() == dots
    start(book, "fail")
    page.wait_for_selector(".lens-error:not([hidden])")
    assert "out of memory: 300 users need 2.1 GB" in page.locator(".lens-error").inner_text()
    assert page.locator(".lab-table tbody tr").count() == 3
    book.shot("lab-error")
    start(book, "Luck")
    done(book, "no gain beyond chance")
    assert page.locator(".lens-error").is_hidden()
    assert "within chance" in page.locator(".lab-table").inner_text()


def test_a_hostile_label_is_shown_as_text_and_a_prompt_is_saved(book):
    page = book.page
    hostile = page.locator(".lab-label option").nth(3).text_content()
    assert hostile.startswith("<img src=x")
    start(book, hostile, f"{hostile}?")
    done(book, "a gain of .057")
    assert hostile in page.locator(".lab-table caption").inner_text()
    assert page.evaluate(
        "window.hurt === undefined && !document.querySelector('.lab img, .lab script')"
    )
    page.locator(".lab-folder").fill("out/soft")
    page.locator(".lab-folder").press("Enter")
    book.wait("document.querySelector('.lab-saved').textContent === 'Saved in out/soft'")
    page.get_by_role("button", name="Save prompt").click()
    book.wait(
        "document.querySelector('.lab-saved').textContent.includes('holds a soft prompt already')"
    )
    book.shot("lab-hostile")


def test_the_keyboard_does_it_all(book):
    page = book.page
    page.locator(".lab-label").focus()
    page.keyboard.type("Con")  # the browser's own choice by letters
    for text in (VAGUE, "4", "30", "1"):
        page.keyboard.press("Tab")
        if text == "4":
            page.keyboard.press("Tab")  # past Start
        page.keyboard.press("Control+a")
        page.keyboard.type(text)
    page.keyboard.press("Enter")
    done(book, "worse, beyond chance")
    assert "asked as “" + VAGUE in page.locator(".lab-table caption").inner_text()
    assert "4 vectors, 30 steps" in page.locator(".lens-caption").inner_text()
    assert "seed 1" in page.locator(".lens-caption").inner_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_to_look_at(open_notebook, server, dark):
    name = "dark" if dark else "light"
    path = server.write(f"lab-{name}.ipynb", [SHOW.format(seconds=0.5)])
    book = open_notebook(path, dark=dark)
    book.run(0)
    book.wait(f"{ROOT}?.dataset.ready === 'true'")
    start(book)
    done(book, "a gain of .057")
    for width, height in ((1280, 900), (900, 1100)):
        book.page.set_viewport_size({"width": width, "height": height})
        book.page.wait_for_timeout(300)
        assert book.shot(f"lab-{width}-{name}").stat().st_size > 30_000
        assert book.page.evaluate(f"{ROOT}.scrollWidth <= {ROOT}.clientWidth + 1")
    book.page.close()
