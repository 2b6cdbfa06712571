"""The cluster view in a real JupyterLab: read, clicked, walked by keyboard, fed hostile text."""

import pytest

SHOW = (
    "from fake import make_frame\nfrom fake_clusters import fake_compare\n"
    "from qanchor.widgets import ClusterView\n"
)
SHOW += "view = ClusterView(fake_compare(), make_frame())\nview"
READ = "print(len(view.selection), view.selection.ids[:1])"
SET = "view.selection.ids = ['u0007', 'u0003']"
SHOWN = "from fake_clusters import fake_compare\nview.show(fake_compare(scores=False))"


@pytest.fixture(scope="module")
def book(open_notebook, server):
    notebook = open_notebook(server.write("clusters.ipynb", [SHOW, READ, SET, SHOWN]))
    notebook.run(0)
    notebook.settled()
    yield notebook
    notebook.close()


def chosen(book, number):
    book.wait(f"document.querySelector('.lens').dataset.chosen === '{number}'")


COLOURS = """() => { const canvas = document.querySelector('.lens-canvas'), seen = new Set();
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < data.length; i += 4) {
        const rgb = [...data.slice(i, i + 3)];
        if (data[i + 3] > 190 && Math.max(...rgb) - Math.min(...rgb) > 90)
            seen.add(rgb.map((part) => part >> 6).join());
    }
    return seen.size; }"""


def test_clusters_have_colours_on_the_map(book):
    assert book.page.evaluate(COLOURS) >= 4  # of five clusters; grey alone has none


@pytest.mark.journey
def test_a_band_a_cluster_and_a_kind_choose_their_users(book):
    page = book.page
    page.locator('.clus-band[data-key="band 0 4"]').click()
    chosen(book, 48)
    assert book.run(1).startswith("48 ('u")
    page.locator('.clus-side.after [data-key="after 2"]').click()
    chosen(book, 98)
    assert page.locator('.clus-list [data-key="after 2"]').get_attribute("aria-pressed") == "true"
    page.locator('.clus-kinds [data-key="kind leaver"]').click(modifiers=["Shift"])
    chosen(book, 98 + 40)
    book.shot("clusters-chosen")
    page.locator('.clus-list [data-key="before 0"]').click()
    chosen(book, 165)
    page.locator('.clus-list [data-key="before 0"]').click()
    chosen(book, 0)
    book.run(2)
    chosen(book, 2)
    assert book.state()["chosen"] == [3, 7]
    page.get_by_role("button", name="clear", exact=True).click()
    chosen(book, 0)


def test_the_map_shows_both_sides(book):
    after = book.state()["shown"]
    book.page.get_by_role("button", name="before", exact=True).click()
    book.settled()
    before = book.state()["shown"]
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) > 1
    book.shot("clusters-before")
    book.page.get_by_role("button", name="after", exact=True).click()
    book.settled()
    assert book.state()["shown"] == pytest.approx(after, abs=1e-3)


def test_the_keyboard_does_it_all(book):
    page = book.page
    page.locator('.clus-band[data-key="band -1 3"]').focus()
    assert "41 users, birth" in page.locator(".clus-told").inner_text()
    page.keyboard.press("Enter")
    chosen(book, 41)
    page.keyboard.press("Escape")
    chosen(book, 0)
    page.locator(".lens-canvas").focus()
    for key in ("ArrowRight", "ArrowDown", " "):
        page.keyboard.press(key)
    chosen(book, 1)
    assert "→" in page.locator('.lens-map [aria-live="polite"]').inner_text()
    page.keyboard.press("Escape")
    chosen(book, 0)


def test_hostile_text_is_shown_as_text(book):
    page = book.page
    assert (
        '<img src=x onerror="window.hurt=1">'
        in page.locator('.clus-list [data-key="after 3"]').inner_text()
    )
    assert page.evaluate(
        "window.hurt === undefined && !document.querySelector('.lens img, .lens script, .lens b b')"
    )


def test_another_comparison_takes_its_place(book):
    assert book.page.locator(".clus-score").count() == 4
    book.run(3)
    book.wait("!document.querySelector('.clus-score')")
    book.settled()
    book.run(0)
    book.settled()
    assert book.page.locator(".clus-score").count() == 4


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_to_look_at(open_notebook, server, dark):
    look = "dark" if dark else "light"
    book = open_notebook(server.write(f"clusters-{look}.ipynb", [SHOW]), dark=dark)
    book.run(0)
    book.settled()
    book.page.locator(".clus-band.leaver").first.hover()
    for width, height in ((1280, 900), (1920, 1080), (900, 1500)):
        book.page.set_viewport_size({"width": width, "height": height})
        book.settled()
        assert book.shot(f"clusters-{width}-{look}").stat().st_size > 40_000
        view = book.page.locator(".lens")
        assert view.evaluate("view => view.scrollWidth <= view.clientWidth + 1")
    book.page.close()
