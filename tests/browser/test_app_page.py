"""`make app`: the workbench as a page of its own, without code, in the server that keeps its
token.
"""

import json
import urllib.request
from pathlib import Path

import pytest
from words import says

PAGE, RULES = (Path(__file__).parents[2] / "widgets" / name for name in ("app.ipynb", "app.json"))
READY = (
    "(({ready, moving}) => ready === 'true' && moving === "
    "'false')(document.querySelector('.lens')?.dataset ?? {})"
)
TRAVEL = "Will this user travel soon?"


SHIPPED_MODEL = '"../data/runs/sample"'  # as Engine takes it: a folder, or a model


def serve_app(server, folder, users: int, model: str = SHIPPED_MODEL):
    """Start a server of its own with the shipped page and its rules, beside the sample data, with
    so many of the users and another model, if one is given.
    """
    own = type(server)(folder)
    told = own.folder / "config" / "jupyter_server_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | json.loads(RULES.read_text())))
    book = json.loads(PAGE.read_text())
    source = "".join(book["cells"][0]["source"])
    assert source.count('load_users("../data/sample")') == source.count(SHIPPED_MODEL) == 1
    book["cells"][0]["source"] = source.replace(
        '("../data/sample")', f'("../data/sample").sample({users})'
    ).replace(SHIPPED_MODEL, model)
    (own.folder / "work" / "widgets").mkdir()
    (own.folder / "work" / "widgets" / "app.ipynb").write_text(json.dumps(book))
    own.start()
    return own


@pytest.fixture(scope="module")
def app(server, tmp_path_factory):
    """The page for few users: soon read."""
    own = serve_app(server, tmp_path_factory.mktemp("app"), 150)
    yield own
    own.stop()


def test_without_the_token_there_is_no_app(app):
    with urllib.request.urlopen(f"{app.url}/voila/render/widgets/app.ipynb", timeout=60) as given:
        assert "/login" in given.url and b"lens" not in given.read()


def walk(page):
    """Go through the other pages, each of which asks the shipped run."""

    def turn(name: str) -> None:
        page.get_by_role("tab", name=name, exact=True).click()

    def ends(name: str) -> None:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(__file__).parent / "shots" / f"app-{name}.png")

    page.get_by_role("button", name="Close the tour").click()
    map_box = page.locator(".lens-canvas").first.bounding_box()
    page.mouse.move(map_box["x"] + 2, map_box["y"] + 2)
    page.mouse.down()
    for x, y in ((1, 0), (1, 0.5), (0, 0.5), (0, 0)):
        page.mouse.move(
            map_box["x"] + 2 + x * (map_box["width"] - 4),
            map_box["y"] + 2 + y * map_box["height"],
            steps=6,
        )
    page.mouse.up()
    page.wait_for_function("Number(document.querySelector('.lens').dataset.chosen) > 0")
    page.get_by_role("button", name="Save result card").first.click()
    says(page.locator(".lens").first, "Kept")
    turn("Group")
    page.get_by_role("button", name="Which question explains them?").click()
    says(page.locator(".sel-said"), "separates these")
    ends("group")
    turn("Matrix")
    page.get_by_role("button", name="Ask all questions").click()
    page.wait_for_function("document.querySelector('.matrix').dataset.whole === 'true'")
    ends("matrix")
    turn("Attention")
    page.get_by_role("combobox", name="Query A", exact=True).fill(TRAVEL)
    page.get_by_role("button", name="Look", exact=True).click()
    page.wait_for_function(f"document.querySelector('.att').dataset.query === {TRAVEL!r}")
    says(page.locator(".att"), "rank agreement of attention and deletion")
    ends("attention")
    turn("Clusters")
    page.get_by_role("button", name="Compare clusters").click()
    says(page.locator(".clus .lens-sentence"), "became")
    ends("clusters")
    turn("Tune")
    page.locator(".lab-label").select_option("Takeout")
    page.locator(".lab-steps").fill("10")
    page.get_by_role("button", name="Start", exact=True).click()
    says(page.locator(".lab .lens-sentence"), "held-out")
    ends("tune")


def test_the_page_opens_without_code_and_a_question_moves_the_users(app, chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(300_000)
    asked, refused, complaints = set(), set(), []
    page.on("request", lambda request: asked.add(request.url))
    page.on(
        "requestfailed",
        lambda request: refused.add(request.url) if request.failure == "csp" else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{app.url}/voila/render/widgets/app.ipynb?token={app.token}")
    page.wait_for_function(READY)
    before = page.evaluate("Array.from(document.querySelector('.lens').lens.state().pixels)")
    box = page.get_by_role("combobox", name="Query", exact=True)
    box.fill(TRAVEL)
    box.press("Enter")
    page.wait_for_function(
        f"document.querySelector('.lens').dataset.query === '{TRAVEL}' && {READY}"
    )
    assert (
        page.evaluate("Array.from(document.querySelector('.lens').lens.state().pixels)") != before
    )
    assert "load_users" not in page.inner_text("body"), "code is shown"
    page.screenshot(path=Path(__file__).parent / "shots" / "app.png")
    walk(page)
    outside = {url for url in asked if not url.startswith(("data:", "blob:", app.url))}
    assert outside <= refused, (
        "something was asked of another host"
    )  # Voilà's page names two, and the browser may not ask them
    assert complaints == []
    page.close()


def test_a_question_to_a_model_from_fit_is_backtested_unasked(server, chromium, tmp_path_factory):
    fitted = "qa.fit(users, steps=60, progress=False)"
    own = serve_app(server, tmp_path_factory.mktemp("fitted"), 300, fitted)
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(300_000)
    page.goto(f"{own.url}/voila/render/widgets/app.ipynb?token={own.token}")
    page.wait_for_function(READY)
    page.get_by_role("button", name="Close the tour").click()
    box = page.get_by_role("combobox", name="Query", exact=True)
    box.fill("Will this user order takeout next month?")
    box.press("Enter")
    says(page.locator(".lens-past"), "Of the fifth ranked highest")
    assert page.locator(".lens-past").inner_text().startswith("Backtest as of ")
    page.screenshot(path=Path(__file__).parent / "shots" / "app-fitted.png")
    page.close()
    own.stop()
