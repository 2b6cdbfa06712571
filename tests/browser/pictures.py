"""`make pictures`: README's pictures taken anew of the shipped page and run, the moving one
included.

It takes minutes and is no part of `make test`.
"""

import io
from pathlib import Path

import pytest
from PIL import Image
from test_app_page import READY, serve_app

DATA = Path(__file__).parents[2] / "data"
PREVIOUS, QUERY = "Is this user price-conscious?", "Will this user travel soon?"
SHOWN = "(({query}) => query)(document.querySelector('.lens').dataset)"
TICK = 70  # milliseconds a picture
WIDE = 880


@pytest.fixture
def page(server, chromium, tmp_path_factory):
    """The page of `make app`, as it is shipped but with 600 users, in a window of twice the
    pixels.
    """
    own = serve_app(server, tmp_path_factory.mktemp("app"), 600)
    page = chromium.new_page(viewport={"width": 1240, "height": 900}, device_scale_factor=1.5)
    page.set_default_timeout(300_000)
    page.goto(f"{own.url}/voila/render/widgets/app.ipynb?token={own.token}")
    page.wait_for_function(READY)
    yield page
    page.close()
    own.stop()


class Film:
    """Pictures of the page's upper part, at a clock that stands still between them."""

    def __init__(self, page):
        self.page, self.frames, self.times = page, [], []

    def take(self, hold: int = TICK) -> None:
        """Take one picture, to be shown for `hold` milliseconds."""
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(
            shot.resize((WIDE, round(shot.height * WIDE / shot.width)), Image.LANCZOS)
        )
        self.times.append(hold)

    def step(self, many: int = 1) -> None:
        """Let the page's clock go on a picture's time, and take it, so many times."""
        for _ in range(many):
            self.page.clock.run_for(TICK)
            self.take()

    def save(self, path: Path) -> None:
        """Write the film, endless, each picture for its time."""
        first, *others = self.frames
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=self.times,
            loop=0,
            quality=60,
            method=6,
        )


def ask(page, query: str) -> None:
    box = page.get_by_role("combobox", name="Query", exact=True)
    box.fill(query)
    box.press("Enter")
    page.wait_for_function(f"{SHOWN} === {query!r} && {READY}")


def test_pictures(page):
    page.get_by_role("button", name="Close the tour").click()
    ask(page, QUERY)
    page.get_by_text("rank first of").first.wait_for()
    Image.open(io.BytesIO(page.screenshot())).quantize(256).save(
        DATA / "workbench.png", optimize=True
    )
    ask(page, PREVIOUS)
    film, box = Film(page), page.get_by_role("combobox", name="Query", exact=True)
    film.take(900)
    box.fill("")
    for letter in range(2, len(QUERY), 2):
        box.fill(QUERY[:letter])
        film.take(60)
    box.fill(QUERY)
    film.take(500)
    page.clock.install()
    page.clock.pause_at(page.evaluate("Date.now()") + 1000)
    box.press("Enter")
    while (
        page.evaluate(SHOWN) != QUERY
    ):  # the answer is on its way: a few pictures of how far it is
        page.clock.run_for(TICK)
        if len(film.frames) < 40:
            film.take()
        page.wait_for_timeout(150)
    while not page.evaluate(READY):
        film.step()
    film.take(1500)
    film.save(DATA / "lens.webp")
    print(f"\n{len(film.frames)} pictures, {(DATA / 'lens.webp').stat().st_size / 1e3:.0f} kB")
