"""The query lens in a real JupyterLab: typed into, drawn on, cancelled, fed hostile text."""

import pytest
from PIL import Image

from tests.waiting import until

TRAVEL = "Will this user travel soon?"
SETUP = "from fake import FakeLens, make_frame\nfrom qanchor.widgets import QueryLens\n"
SHOW = SETUP + "lens = QueryLens(make_frame(), FakeLens(seconds={seconds}))\nlens"
READ = "print(lens.selection.ids)"
COUNT = "print(lens.queries_asked, len(lens.shift), int(lens.shift.stands_out.sum()))"


def drag(book, fractions, *keys):
    """Draw a loop on the map through points given as shares of its width and height."""
    page = book.page
    for key in keys:
        page.keyboard.down(key)
    for _ in range(
        5
    ):  # a notebook that scrolls just now puts the pointer beside the map: then press once more
        book.settled()
        box = page.locator(".lens-canvas").bounding_box()
        path = [
            (box["x"] + 2 + fx * (box["width"] - 4), box["y"] + 2 + fy * (box["height"] - 4))
            for fx, fy in fractions
        ]
        page.mouse.move(*path[0])
        page.mouse.down()
        if page.evaluate("!!document.querySelector('.lens').lens.state().lasso"):
            break
        page.mouse.up()
    for point in [*path[1:], path[0]]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()
    for key in keys:
        page.keyboard.up(key)


def moved(before, after):
    return max(abs(a - b) for a, b in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def opened(open_notebook, server):
    notebook = open_notebook(
        server.write(
            "lens.ipynb",
            [SHOW.format(seconds=0.6), READ, COUNT, "lens.selection.ids = lens._ids[:7]"],
        )
    )
    yield notebook
    notebook.page.close()


@pytest.fixture
def book(opened):
    """The notebook with a new lens, whose first map is there."""
    opened.run(0)
    opened.settled()
    yield opened
    opened.check()


@pytest.mark.journey
def test_ask_and_see_who_moves(book):
    first = book.state()
    assert "before any question" in book.page.locator(".lens-sentence").inner_text()
    book.ask(TRAVEL)
    sentence = book.asked(TRAVEL)
    second = book.state()
    assert "of 600 users stand out: this question moves them" in sentence
    assert moved(first["pixels"], second["pixels"]) > 30
    assert (
        len(second["arrows"]) == 60
        and "60 farthest of" in book.page.locator(".lens-legend").inner_text()
    )
    assert book.run(2).startswith(f"('{TRAVEL}',) 600")
    book.page.get_by_role("button", name="before", exact=True).click()
    book.settled()
    assert moved(book.state()["shown"], first["shown"]) < 1e-3
    book.page.get_by_role("button", name="Is this user price-conscious?").click()
    book.asked("Is this user price-conscious?")
    book.page.get_by_role("button", name="Back", exact=True).click()
    assert book.asked(TRAVEL) == sentence
    book.shot("fake-asked")


@pytest.mark.journey
def test_a_lasso_gives_the_ids_to_python_and_takes_them_back(book):
    drag(book, [(0, 0), (0.5, 0), (0.5, 1), (0, 1)])
    book.wait("document.querySelector('.lens').lens.state().selected.size > 0")
    state = book.state()
    width = book.page.locator(".lens-canvas").bounding_box()["width"]
    inside = [row for row in range(600) if state["pixels"][2 * row] < width / 2]
    assert 50 < len(inside) < 550 and state["chosen"] == inside
    assert book.run(1) == str(tuple(f"u{row:04}" for row in inside))
    book.shot("fake-lasso")
    drag(book, [(0, 0), (1, 0), (1, 0.5), (0, 0.5)], "Alt")
    fewer = book.state()["chosen"]
    assert set(fewer) < set(inside)
    drag(book, [(0, 0), (1, 0), (1, 1), (0, 1)], "Shift")
    assert len(book.state()["chosen"]) == 600
    book.run(3)
    book.wait("document.querySelector('.lens').dataset.chosen === '7'")
    assert book.state()["chosen"] == list(range(7))
    book.page.locator(".lens-canvas").focus()
    book.page.keyboard.press("Escape")
    book.wait("document.querySelector('.lens').dataset.chosen === '0'")


def test_escape_cancels_and_errors_are_said(book):
    book.ask(TRAVEL)
    sentence = book.asked(TRAVEL)
    before = book.state()
    book.ask("slow")
    book.wait("Number(document.querySelector('.lens-progress').getAttribute('aria-valuenow')) > 0")
    assert "asked" in book.page.locator(".lens-note").inner_text()
    book.shot("fake-busy")
    book.page.keyboard.press("Escape")
    book.wait("document.querySelector('.lens').dataset.busy === 'false'")
    assert "Cancelled" in book.page.locator(".lens-note").inner_text()
    book.settled()
    assert (
        book.page.locator(".lens-sentence").inner_text() == sentence
        and moved(before["shown"], book.state()["shown"]) < 1e-3
    )
    book.ask("fail")
    book.page.wait_for_selector(".lens-error:not([hidden])")
    assert "the checkpoint has no such layer" in book.page.locator(".lens-error").inner_text()
    book.shot("fake-error")
    book.ask("What will this user do next month?")
    assert "stand out" in book.asked("What will this user do next month?")
    assert book.page.locator(".lens-error").is_hidden()


def test_a_question_typed_meanwhile_takes_the_place_of_the_running_one(book):
    book.ask("slow")
    book.wait("Number(document.querySelector('.lens-progress').getAttribute('aria-valuenow')) > 0")
    book.ask(TRAVEL)  # Enter, though the button says Cancel now
    assert "stand out" in book.asked(TRAVEL)
    assert "Cancelled" not in book.page.locator(".lens-note").inner_text()


def test_event_text_is_shown_as_text(book):
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    book.page.locator(".lens-rows button").first.click()
    book.page.get_by_role("button", name="All events").click()
    assert '<img src=x onerror="window.hurt=1">' in book.page.locator(".lens-events").inner_text()
    book.wait("document.querySelector('.lens-answer').textContent.includes('<i>this</i>')")
    state = book.state()
    box = book.page.locator(".lens-canvas").bounding_box()
    book.page.mouse.move(box["x"] + state["pixels"][0], box["y"] + state["pixels"][1])
    assert "<script>" in book.page.locator(".lens-map .lens-tip").inner_text()
    assert book.page.evaluate(
        "window.hurt === undefined && !document.querySelector('.lens img, .lens script')"
    )
    book.shot("fake-hostile")


def test_the_keyboard_does_the_main_task(book):
    box = book.page.locator(".lens-query")
    box.focus()
    book.page.keyboard.type("Does this user follow live music?")
    book.page.keyboard.press("Enter")
    book.asked("Does this user follow live music?")
    book.page.locator(".lens-canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter", " "):
        book.page.keyboard.press(key)
    state = book.state()
    assert state["picked"] >= 0 and state["chosen"] == [state["picked"]]
    assert state["data"]["picked"] in book.page.locator(".lens-card").inner_text()
    book.wait("document.querySelector('.lens').dataset.chosen === '1'")
    book.page.keyboard.press("Control+z")
    book.wait("document.querySelector('.lens').dataset.chosen === '0'")
    book.page.keyboard.press("Control+Shift+z")
    book.wait("document.querySelector('.lens').dataset.chosen === '1'")
    assert book.run(1) == f"('{state['data']['picked']}',)"


def test_the_saved_picture_has_the_question_and_the_legend(book):
    canvas = book.page.locator(".lens-canvas").bounding_box()
    with book.page.expect_download() as download:
        book.page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "map.png"
    picture = Image.open(download.value.path()).convert("L")
    assert picture.width >= canvas["width"] and picture.height >= canvas["height"] + 50
    for part in ((0, 0, 300, 32), (0, picture.height - 30, 300, picture.height)):
        darkest, lightest = picture.crop(part).getextrema()
        assert lightest - darkest > 100, f"nothing is written at {part}"


LINES = ".lens-events [data-event]"
MARKED = ".lens-tick.evidence:not([d=''])"


def test_a_user_who_is_opened_has_a_timeline_of_evidence(book):
    page = book.page
    page.locator(".lens-canvas").focus()
    for key in ("ArrowRight", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(".lens-lanes")
    total = int(page.locator(".lens-log").get_by_role("button").last.inner_text().split()[-1])
    assert total >= 30 and not page.locator(MARKED).count()
    assert page.locator(".lens-percentile").is_hidden()  # nothing is asked
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    page.wait_for_selector(MARKED)
    evidence = page.get_by_role("button", name="Evidence")
    assert evidence.get_attribute("aria-pressed") == "true"
    texts = page.locator(LINES).all_inner_texts()
    assert 0 < len(texts) < total and f"Evidence {len(texts)}" == evidence.inner_text()
    assert all("flight" in text or "airline" in text or "train" in text for text in texts)
    days = [text.split()[0] for text in texts]
    assert days == sorted(days, reverse=True) and days[0].startswith("2025-")
    counts = page.locator(".lens-lanes text[text-anchor=end]").all_text_contents()
    assert sum(map(int, counts)) == total
    picked = int(book.state()["data"]["picked"][1:])
    book.wait("!document.querySelector('.lens-percentile').hidden")
    above = f"ranks above {min(int(100 * picked / 599), 99)} % of users"
    assert page.locator(".lens-percentile").inner_text() == above
    assert page.locator(".lens-answer").inner_text().startswith(book.state()["data"]["picked"])

    evidence.focus()  # the keyboard reads the list, and the timeline says where an event is
    for key in ("Tab", "Tab", "ArrowDown"):
        page.keyboard.press(key)
    assert (
        page.evaluate("document.activeElement.innerText") == page.locator(LINES).nth(1).inner_text()
    )
    assert page.locator(".lens-pointer").get_attribute("d").startswith("M")

    page.get_by_role("button", name="All events").click()
    assert page.locator(LINES).count() == total
    box = page.locator(MARKED).first.bounding_box()
    x, y = box["x"] + 1.5, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    assert "evidence" in page.locator(".lens-timeline .lens-tip").inner_text()
    assert page.locator(".lens-events .on.evidence").count() == 1
    page.mouse.click(x, y)
    assert page.evaluate("document.activeElement.className").split() == ["evidence", "on"]
    book.shot("fake-timeline")


def test_a_long_log_is_drawn_once_a_pixel_and_listed_by_pages(open_notebook, server):
    long = SETUP + "QueryLens(make_frame(60), FakeLens(60, seconds=0.1, events=30_000))"
    book = open_notebook(server.write("long.ipynb", [long]))
    page = book.page
    book.run(0)
    book.settled()
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    page.locator(".lens-rows button").nth(2).click()
    page.wait_for_selector(".lens-lanes")
    page.get_by_role("button", name="All events 30,000").click()
    assert page.locator(LINES).count() == 100
    assert page.locator(".lens-log .lens-more span").inner_text() == "the newest 100 of 30,000"
    told = page.locator(".lens-dated > .lens-more").inner_text()
    assert told == "drawn and listed: the newest 10,000 of 30,000 events"
    page.get_by_role("button", name="show 100 more").click()
    assert page.locator(LINES).count() == 200
    marks = page.locator(".lens-tick").evaluate_all(
        "all => all.map((one) => one.getAttribute('d'))"
    )
    assert max(map(len, marks)) < 8_000
    assert page.locator(".lens *").count() < 3_000
    book.shot("fake-long")
    book.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pictures_to_look_at(open_notebook, server, dark):
    look = "dark" if dark else "light"
    book = open_notebook(server.write(f"{look}.ipynb", [SHOW.format(seconds=0.1)]), dark=dark)
    book.run(0)
    book.settled()
    book.shot(f"fake-open-1280-{look}")
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    book.page.locator(".lens-rows button").nth(3).click()
    book.wait("document.querySelector('.lens-answer').textContent.includes('likely')")
    book.page.wait_for_selector(".lens-lanes")
    for width, height in ((1280, 900), (1920, 1080), (900, 1300)):
        book.page.set_viewport_size({"width": width, "height": height})
        book.page.wait_for_timeout(400)
        assert book.shot(f"fake-user-{width}-{look}").stat().st_size > 40_000
        assert book.page.evaluate(
            "(() => { const e = document.querySelector('.lens'); return e.scrollWidth <= "
            "e.clientWidth + 1; })()"
        )
    book.page.get_by_role("button", name="residual", exact=True).click()
    book.page.wait_for_timeout(200)
    book.shot(f"fake-residual-{look}")
    book.page.close()


def test_who_is_nearest_to_yes_is_listed_and_coloured(book):
    page = book.page
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    book.wait(
        "document.querySelector('.lens-reading').textContent.startsWith('Interpreted as a question"
        " about travel, not commute.')"
    )
    assert (
        page.locator(".lens-reading")
        .inner_text()
        .endswith("u0599, u0598 and u0597 rank first of 600 users.")
    )
    page.get_by_role("button", name="Yes first").click()
    assert page.locator(".lens-rows .lens-id").all_inner_texts()[:3] == ["u0599", "u0598", "u0597"]
    page.get_by_role("button", name="answer", exact=True).click()
    assert "farthest from yes to nearest" in page.locator(".lens-legend").inner_text()
    book.shot("fake-nearest")
    shades = page.evaluate("Array.from(document.querySelector('.lens').lens.state().rank)")
    assert shades[0] == 0 and shades[-1] == 1 and shades == sorted(shades)
    page.get_by_role("button", name="Backtest this ranking").click()
    book.wait(
        "document.querySelector('.lens-past').textContent.startsWith('Backtest as of 2025-05-02: "
        "72 of 100 pairs')"
    )
    page.locator(".lens-rows button").nth(3).focus()
    page.keyboard.press("Space")
    book.wait("document.querySelector('.lens').dataset.chosen === '1'")
    assert (
        "1 user selected, ranked above 99 % on average" in page.locator(".lens-chosen").inner_text()
    )
    book.shot("fake-backtest")
    page.get_by_role(
        "button", name="Back", exact=True
    ).click()  # before any question there is no yes
    book.wait("document.querySelector('.lens').dataset.query === ''")
    assert (
        page.locator(".lens-reading").inner_text() == "" and page.locator(".lens-past").is_hidden()
    )
    assert "1 user selected" in page.locator(".lens-chosen").inner_text()
    assert page.get_by_role("button", name="Yes first").is_disabled()


def test_without_other_questions_the_ranking_comes_first(book):
    query, page = "Will this question stay alone?", book.page
    book.ask(query)
    book.asked(query)
    book.wait(
        "document.querySelector('.lens-lead').textContent === 'u0599, u0598 and u0597 rank first of"
        " 600 users.'"
    )
    assert (
        page.locator(".lens-reading").inner_text()
        == "Interpreted as a question about travel, not commute."
    )
    assert page.locator(".lens-sentence").is_hidden()
    assert "farthest from yes to nearest" in page.locator(".lens-legend").inner_text()
    assert page.locator(".lens-rows .lens-figure").first.inner_text() == "0.60"
    assert page.locator(".lens-listhead [aria-pressed=true]").inner_text() == "Yes first"
    assert "answer" in page.locator(".lens-listhead span").first.inner_text()
    book.shot("fake-most")
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    assert page.locator(".lens-lead").is_hidden()
    assert page.locator(".lens-listhead [aria-pressed=true]").inner_text() == "Most shifted"
    page.get_by_role("button", name="Most shifted").click()
    book.ask(query)
    book.asked(query)
    book.wait("document.querySelector('.lens-lead').textContent.includes('rank first of')")
    assert page.locator(".lens-listhead [aria-pressed=true]").inner_text() == "Most shifted", (
        "what was pressed stays"
    )


def test_the_list_says_who_changed_sides_between_two_questions(book):
    page = book.page
    changed = page.get_by_role("button", name="Changed sides")
    book.ask(TRAVEL)
    book.asked(TRAVEL)
    book.wait("document.querySelector('.lens-reading').textContent.includes('rank first of')")
    assert changed.is_disabled(), "there is no ranking before"
    book.ask("Who turns around?")
    book.asked("Who turns around?")
    book.wait("document.querySelector('.lens-reading').textContent.includes('u0000, u0001')")
    changed.click()
    figures = page.locator(".lens-rows .lens-figure:not(.quiet)")
    assert [figures.nth(row).inner_text() for row in range(2)] == ["+100", "−100"]
    ids = page.locator(".lens-rows .lens-id")
    assert [ids.nth(row).inner_text() for row in range(2)] == ["u0000", "u0599"]
    book.shot("fake-changed")


def test_a_question_asked_while_a_cell_runs_is_told_to_wait(open_notebook, server):
    folder = server.folder / "work" / "notebooks"
    go, begun = folder / "go", folder / "begun"
    # no clock to lose against
    runs = (
        "import pathlib, time\npathlib.Path('begun').touch()\n"
        "while not pathlib.Path('go').exists():\n    time.sleep(0.05)"
    )
    book = open_notebook(server.write("waits.ipynb", [SHOW.format(seconds=0.5), runs]))
    book.run(0)
    book.settled()
    book.ask("slow")
    book.wait("document.querySelector('.lens').dataset.busy === 'true'")
    book.cell(1).locator(".cm-content").click()
    book.page.keyboard.press("Control+Enter")
    # the star beside a cell is drawn before the kernel has heard of it
    until(begun.exists, seconds=60)
    book.ask(TRAVEL)
    waits = "document.querySelector('.lens-note').textContent.startsWith('Waiting')"
    book.wait(waits)
    book.asked(
        "slow"
        # the answer to the question before may still come: that does not mean that this one was
        # heard
    )
    assert book.page.evaluate(waits)
    go.touch()
    assert "stand out" in book.asked(TRAVEL)
    assert "Waiting" not in book.page.locator(".lens-note").inner_text()
    book.ask(TRAVEL)  # what is shown already is no reason to wait
    book.page.wait_for_timeout(1500)
    assert "Waiting" not in book.page.locator(".lens-note").inner_text()
    book.close()
