"""Users are found and the map is colored by what is known of them, in a real JupyterLab."""

import pytest

SHOW = """import pandas as pd
from fake import FakeLens, make_frame
from qanchor.widgets import QueryLens
backend = FakeLens(seconds=0.2)
cities = ["Oslo", "Rome", None] * 200
backend.columns = pd.DataFrame({"age": range(600), "city": cities}, index=backend.ids)
backend.find = lambda text: backend.ids[5:9] if text == "rice cooker" else ()
lens = QueryLens(make_frame(), backend)
lens"""
READ = "print(len(lens.selection), lens.selection.ids[:2])"

# pixels of a small map that are neither grey nor blank
INKS = """canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const spread = (i) => Math.max(...data.slice(i, i + 3)) - Math.min(...data.slice(i, i + 3));
    return Array.from({length: data.length / 4}, (_, i) => 4 * i)
        .filter((i) => data[i + 3] > 200 && spread(i) > 60).length; }"""

BEST = "print(set(lens.selection.ids) == set(lens.ranking['user'].head(60)))"
LOWEST = """scores = lens.ranking.set_index('user')['score']
middle = (scores.min() + scores.max()) / 2
chosen = scores[list(lens.selection.ids)]
width = (scores.max() - scores.min()) / 40
print(bool(chosen.max() <= middle + width and len(chosen) >= (scores < middle).sum()))"""


@pytest.fixture(scope="module")
def book(open_notebook, server):
    notebook = open_notebook(
        server.write("find.ipynb", [SHOW, READ, "lens.color_by('age')", BEST, LOWEST])
    )
    notebook.run(0)
    notebook.settled()
    yield notebook
    notebook.check()
    notebook.page.close()


def find(book, text: str) -> str:
    """Type into the box that finds users, and return what it says."""
    box = book.page.get_by_label("Find users").locator("input")
    box.fill(text)
    box.press("Enter")
    book.wait("document.querySelector('.lens-found').textContent.length > 0")
    book.page.wait_for_timeout(300)
    return book.page.locator(".lens-found").inner_text()


@pytest.mark.journey
def test_users_are_found_by_a_column_an_id_and_what_they_did(book):
    assert find(book, "age >= 300 and city = rome") == "100 users: age >= 300 and city = rome"
    assert book.run(1).startswith("100 ('u0301', 'u0304')")
    assert book.page.locator(".lens-rows button").count() == 100  # the list shows them alone
    assert find(book, "u0007") == "1 user: u0007"
    assert find(book, "rice cooker") == "4 users: an event with the words rice cooker"
    assert find(book, "zebra") == "Nobody: zebra"
    assert book.run(1) == "4 ('u0005', 'u0006')"  # what finds nobody changes nothing


@pytest.mark.journey
def test_the_map_is_colored_by_a_column_and_a_category_selects_its_users(book):
    book.ask("Will this user travel soon?")
    book.asked("Will this user travel soon?")
    book.page.get_by_label("Colour by a column").select_option("city")
    legend = book.page.locator(".lens-legend")
    book.wait("document.querySelector('.lens-legend').textContent.includes('Oslo')")
    *kinds, arrows = legend.inner_text().split("\n")
    assert kinds == ["Oslo (200)", "Rome (200)"] and "farthest" in arrows
    book.shot("fake-column")
    legend.get_by_role("button", name="Rome (200)").click()
    book.wait("document.querySelector('.lens').dataset.chosen === '200'")
    assert book.run(1) == "200 ('u0001', 'u0004')"
    book.shot("fake-column-selected")
    facets = book.page.get_by_role("group", name="A map for each category")
    book.page.get_by_role("button", name="facets", exact=True).click()
    assert facets.get_by_role("button").all_inner_texts() == ["Oslo (200)", "Rome (200)"]
    inks = [facets.locator("canvas").nth(place).evaluate(INKS) for place in range(2)]
    assert all(ink > 200 for ink in inks), "the pixels of 200 users, in the colour of the category"
    book.shot("fake-facets")
    oslo = facets.get_by_role("button", name="Oslo (200)")
    oslo.click()
    book.wait(
        "document.querySelector('.lens-facets [aria-pressed=true]')?.innerText === 'Oslo (200)'"
    )
    book.wait("document.querySelector('.lens-chosen').textContent.includes('200 users selected')")
    assert book.run(1) == "200 ('u0000', 'u0003')"
    book.page.get_by_role("button", name="clear", exact=True).click()
    book.wait("document.querySelector('.lens-chosen').textContent.includes('0 users selected')")
    redo = book.page.get_by_role("button", name="redo", exact=True)
    assert not redo.is_visible(), "nothing was taken back"
    book.page.get_by_role("button", name="undo", exact=True).click()
    book.wait("document.querySelector('.lens').dataset.chosen === '200'")
    redo.click()
    book.wait("document.querySelector('.lens').dataset.chosen === '0'")
    book.run(2)  # from Python
    book.wait("document.querySelector('.lens-legend').textContent.includes('age, 12 to 587')")
    assert book.page.get_by_label("Colour by a column").input_value() == "age"
    assert not facets.is_visible(), "a number has no categories"
    book.page.get_by_role("button", name="moved", exact=True).click()
    book.wait("document.querySelector('.lens-legend').textContent.includes('stand out')")


@pytest.mark.journey
def test_a_range_of_scores_is_drawn_on_the_histogram(book):
    book.ask("Is this user price-conscious?")
    book.asked("Is this user price-conscious?")
    book.wait("document.querySelector('.lens-histogram button')?.textContent.includes('best')")
    book.page.get_by_role("button", name="select the best 60 users").click()
    book.wait("document.querySelector('.lens').dataset.chosen === '60'")
    ranking = book.run(3)
    assert ranking == "True"  # they are the first 60 of the ranking
    bins = book.page.locator(".lens-bins")
    bins.scroll_into_view_if_needed()
    book.settled()
    middle = bins.bounding_box()["width"] / 2
    bins.hover(position={"x": 2, "y": 20})
    book.page.mouse.down()
    bins.hover(position={"x": middle, "y": 20})
    book.page.mouse.up()
    book.wait("document.querySelector('.lens').dataset.chosen !== '60'")
    book.shot("fake-histogram")
    lowest = book.run(4)
    assert lowest == "True"  # all below, none above the middle of the scale


REAL = """import qanchor as qa
from qanchor.widgets import QueryLens
users = qa.load_users("../data/sample")
users = users.select(users.ids[:200])
engine = qa.Engine(qa.QAnchor.from_pretrained("../data/runs/sample"))
backend = qa.LensBackend(engine, engine.prefill(users), users, method="pca")
lens = QueryLens(users.frame(), backend)
lens"""


@pytest.mark.journey
@pytest.mark.weights
def test_what_a_question_was_taken_to_mean_is_left_out_and_put_back(open_notebook, server):
    book = open_notebook(server.write("meant.ipynb", [REAL, "print(lens.ranking.head(3).values)"]))
    book.run(0)
    book.settled()
    book.ask("Will this user order takeout?")
    book.asked("Will this user order takeout?")
    things = book.page.locator(".lens-thing")
    book.wait("document.querySelectorAll('.lens-thing').length === 5")
    first = book.run(1)
    name = things.first.inner_text().split(" (")[0]
    book.page.get_by_role("button", name=f"Leave out {name}", exact=True).click()
    book.wait("document.querySelectorAll('.lens-thing.out').length === 1")
    assert things.last.inner_text().startswith(name)
    assert book.run(1) != first
    book.wait("document.querySelector('.lens-past').textContent.includes('Backtest as of')")
    book.shot("meant")
    book.page.get_by_role("button", name=f"Put back {name}", exact=True).click()
    book.wait("document.querySelectorAll('.lens-thing.out').length === 0")
    assert book.run(1) == first
    book.check()
    book.page.close()
