"""The attention view in a real JupyterLab: asked, compared, cancelled, one user's events edited."""

import json

import pytest

TRAVEL = "Will this user travel soon?"
PRICE = "Is this user price-conscious?"
SETUP = "from fake_attention import FakeAttention\nfrom qanchor.widgets import AttentionView\n"
SHOW = SETUP + "backend = FakeAttention(seconds={seconds})\nview = AttentionView(backend)\nview"
CALLS = "print(backend.calls[-1])"
LINKED = "view = AttentionView(backend, selection=chosen)\nview"
CHOSEN = (
    "from qanchor.widgets.base import Selection\nchosen = Selection(backend.ids, lambda rows: "
    "None)\nchosen.ids = ['u0003', 'u0009']"
)
REAL = """import qanchor as qa
from qanchor.widgets import AttentionView
users = qa.load_users("../data/sample").sample(40)
engine = qa.Engine(qa.QAnchor.from_pretrained("../data/runs/sample"))
backend = qa.AttentionBackend(engine, users, most=4)
AttentionView(backend, users.frame())"""


@pytest.fixture(scope="module")
def opened(open_notebook, server):
    cells = [SHOW.format(seconds=0.3), CALLS, CHOSEN, LINKED]
    notebook = open_notebook(server.write("attention.ipynb", cells), height=1000)
    yield notebook
    notebook.page.close()


@pytest.fixture
def book(opened):
    opened.run(0)
    opened.wait("document.querySelector('.att')?.dataset.busy === 'false'")
    yield opened
    opened.check()


def root(book, name):
    return book.page.evaluate(f"document.querySelector('.att').dataset.{name}")


def look(book, query, versus=""):
    book.page.get_by_label("Query B, to compare with").first.fill(versus)
    book.page.get_by_label("Query A").first.fill(query)
    book.page.get_by_label("Query A").first.press("Enter")


def seen(book, query):
    book.wait(f"document.querySelector('.att').dataset.query === {json.dumps(query)}")
    book.wait("document.querySelector('.att').dataset.busy === 'false'")


def row(book, name):
    return book.page.locator(f'.att-table tr[data-name="{name}"]').first.inner_text()


@pytest.mark.journey
def test_a_query_fills_the_table(book):
    assert (
        "Nothing was asked yet. Type a question"
        in book.page.locator(".lens-empty").first.inner_text()
    )
    look(book, "slow")  # attention is there first, effects come later
    book.wait("document.querySelector('.att-table tr[data-name=bill]')?.innerText.includes('…')")
    look(book, TRAVEL)
    seen(book, TRAVEL)
    assert book.run(1) == f"('{TRAVEL}', None, None)"
    names = book.page.locator(".att-table tbody tr").evaluate_all(
        "rows => rows.map(r => r.dataset.name)"
    )
    assert set(names[:6]) == {"bill", "mini", "spm", "app", "search", "tabular"}
    assert names[-1] == "time of day"
    assert "…" not in row(book, "bill")
    assert "disagree" in row(book, "bill")
    widths = book.page.locator(".att-table tbody tr:not(.other) i.look").evaluate_all(
        "bars => bars.map(b => parseFloat(b.style.width))"
    )
    assert max(widths) == 100
    assert min(widths) < 90
    assert "-0.37" in book.page.locator(".lens-sentence").first.inner_text()
    before = row(book, "bill")
    book.page.get_by_role("button", name="per token", exact=True).click()
    assert row(book, "bill") != before
    assert root(book, "measure") == "per_token"


def test_two_queries_are_shown_as_their_difference(book):
    look(book, TRAVEL, PRICE)
    seen(book, TRAVEL)
    assert root(book, "side") == "difference"
    assert book.page.locator(".att-track.two i.less").count() > 0
    assert "A − B" in book.page.locator(".att-table thead").inner_text()
    numbers = book.page.locator('tr[data-name="bill"] .att-number').all_inner_texts()
    a, b, apart = (float(text.replace("−", "-").rstrip(" %")) for text in numbers[1:4])
    assert apart == pytest.approx(a - b, abs=0.11)
    book.page.get_by_role("button", name="B", exact=True).click()
    assert root(book, "side") == "1"
    assert book.page.locator(".att-place").count() > 0


def test_cancel_keeps_the_last_table_and_errors_are_said(book):
    look(book, TRAVEL)
    seen(book, TRAVEL)
    kept = row(book, "bill")
    look(book, "slow")
    book.wait("document.querySelector('.att').dataset.query === 'slow'")
    book.page.keyboard.press("Escape")
    seen(book, TRAVEL)
    assert (
        "Cancelled. The table is as it was." in book.page.locator(".lens-note").first.inner_text()
    )
    assert row(book, "bill") == kept
    look(book, "fail")
    book.page.wait_for_selector(".lens-error:not([hidden])")
    assert "no such layer" in book.page.locator(".lens-error").first.inner_text()
    assert row(book, "bill") == kept
    look(book, PRICE)
    seen(book, PRICE)
    assert book.page.locator(".lens-error").first.is_hidden()


def test_one_user_and_edited_events(book):
    page = book.page
    page.get_by_role("button", name="one user", exact=True).click()
    page.get_by_label("User", exact=True).fill("u0007")
    look(book, TRAVEL)
    seen(book, TRAVEL)
    assert book.run(1) == f"('{TRAVEL}', None, ['u0007'])"
    form = page.locator(".att-user")
    assert "12 events" in form.inner_text()
    assert form.locator("li").count() == 12
    assert form.locator("input[type=text]").first.input_value().startswith("<img src=x onerror")
    form.locator("input[type=checkbox]").nth(1).press(" ")
    form.locator("input[type=text]").nth(2).fill("searched for a night train")
    assert "Rerun with 2 changes" in form.inner_text()
    form.locator("input[type=text]").nth(2).press("Enter")
    seen(book, f"{TRAVEL} (edited)")
    assert book.run(1) == f"('{TRAVEL}', 'u0007', (899,), {{898: 'searched for a night train'}})"
    answers = page.locator(".att-answers").inner_text()
    assert "Likely to travel." in answers
    assert "Unlikely <b>to travel</b>." in answers
    assert "0.013" in answers
    assert form.locator("li.gone").count() == 1  # the edits stay, to go on from
    page.get_by_role("button", name="undo all").click()
    assert form.locator("li.gone, li.changed").count() == 0
    assert page.evaluate(
        "window.hurt === undefined && !document.querySelector('.att img, .att script, .att td b')"
    )
    page.get_by_label("User", exact=True).fill("zoe")
    page.get_by_label("User", exact=True).press("Enter")
    page.wait_for_selector(".lens-error:not([hidden])")
    assert "user 'zoe' is not among the 60" in page.locator(".lens-error").inner_text()


def test_the_chosen_of_another_view(book):
    book.run(2)
    book.run(3)
    book.page.locator(".att").nth(1).get_by_role("button", name="the selected").click()
    book.page.get_by_label("Query A").nth(1).fill(PRICE)
    book.page.get_by_label("Query A").nth(1).press("Enter")
    book.wait(
        "[...document.querySelectorAll('.att')].some((e) => e.dataset.ready === 'true' && "
        "e.dataset.busy === 'false')"
    )
    assert book.run(1) == f"('{PRICE}', None, ['u0003', 'u0009'])"


@pytest.mark.weights
def test_the_shipped_run_is_looked_at_and_one_of_its_events_dropped(open_notebook, server):
    book = open_notebook(server.write("attention-run.ipynb", [REAL]), height=1000)
    book.run(0, timeout=300)
    unseen = "Would this user enjoy a sourdough baking class?"
    look(book, unseen, TRAVEL)
    book.wait(f"document.querySelector('.att').dataset.query === {json.dumps(unseen)}", timeout=180)
    seen(book, unseen)
    assert "rank agreement" in book.page.locator(".lens-sentence").inner_text().lower()
    assert (
        "Mean over 4 users of 40 (drawn by seed 0)"
        in book.page.locator(".lens-caption").inner_text()
    )
    book.shot("attention-run")
    user = book.page.locator("datalist option").last.get_attribute("value")
    book.page.get_by_role("button", name="one user", exact=True).click()
    book.page.get_by_label("User", exact=True).fill(user)
    look(book, TRAVEL)
    seen(book, TRAVEL)
    book.page.locator(".att-user input[type=checkbox]").first.click()
    book.page.locator(".att-user").get_by_role("button", name="Rerun").click()
    book.wait("document.querySelector('.att').dataset.query.endsWith('(edited)')", timeout=300)
    book.wait("document.querySelector('.att').dataset.busy === 'false'", timeout=180)
    assert f"Without 1 event, {user} moves by" in book.page.locator(".lens-sentence").inner_text()
    answers = book.page.locator(".att-answers").inner_text().lower()
    assert answers.count("travel") + answers.count("flight") >= 2  # before and after
    book.shot("attention-run-edited")
    book.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_to_look_at(open_notebook, server, dark):
    name = "dark" if dark else "light"
    path = server.write(f"attention-{name}.ipynb", [SHOW.format(seconds=0.1)])
    book = open_notebook(path, height=1000, dark=dark)
    book.run(0)
    book.wait("document.querySelector('.att')?.dataset.busy === 'false'")
    look(book, TRAVEL, PRICE)
    seen(book, TRAVEL)
    book.shot(f"attention-two-{name}")
    book.page.get_by_role("button", name="one user", exact=True).click()
    book.page.get_by_label("User", exact=True).fill("u0007")
    look(book, TRAVEL)
    seen(book, TRAVEL)
    book.page.locator(".att-user input[type=checkbox]").nth(1).click()
    book.page.locator(".att-user").get_by_role("button", name="Rerun").click()
    seen(book, f"{TRAVEL} (edited)")
    for width in (1280, 900, 640):
        book.page.set_viewport_size({"width": width, "height": 1000})
        book.page.wait_for_timeout(300)
        view = book.page.locator(".att")
        assert view.evaluate("view => view.scrollWidth <= view.clientWidth + 1")
        assert book.shot(f"attention-edited-{width}-{name}").stat().st_size > 40_000
    book.close()
