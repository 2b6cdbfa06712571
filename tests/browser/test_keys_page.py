"""The workbench by keyboard alone, in a real JupyterLab: the whole main path, the focus never lost
and always seen.
"""

import json

import pytest

SETUP = "from fake_session import FakeSession\nfrom qanchor.widgets import Workbench\n"
SHOW = SETUP + "bench = Workbench(FakeSession(0.3), session='keys.json')\nbench"
TRAVEL, MUSIC = "Will this user travel soon?", "Does this user follow live music?"
HERE = """() => {
    const node = document.activeElement, box = node.getBoundingClientRect();
    const style = getComputedStyle(node);
    const x = box.x + Math.min(box.width, innerWidth) / 2;
    const y = box.y + Math.min(box.height, innerHeight) / 2;
    const top = document.elementFromPoint(x, y);
    const drawing = node.ownerSVGElement; // of bands one may lie on another
    const tab = document.querySelector('.bench [role="tab"][aria-selected="true"]');
    return {
        name: (node.getAttribute('aria-label') ?? node.labels?.[0]?.innerText
            ?? node.textContent).trim(),
        kind: node.getAttribute('role') ?? node.tagName.toLowerCase(), lost: node === document.body,
        inside: Boolean(node.closest('.bench')), page: tab?.innerText,
        beforeTabs: Boolean(tab && tab.compareDocumentPosition(node) & 2),
        seen: Boolean(top && (node.contains(top) || top.contains(node) || drawing?.contains(top))),
        ringed: (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1.5)
            || parseFloat(style.strokeWidth) >= 2,
        marks: [...node.classList]};
}"""


class Hands:
    """Ten fingers and no mouse: every press is followed by a look at where the keyboard is."""

    def __init__(self, book):
        self.book, self.keys, self.page = book, book.page.keyboard, book.page

    @property
    def here(self) -> dict:
        return self.page.evaluate(HERE)

    def press(self, *keys: str) -> dict:
        """Press keys; inside the workbench the one that has the focus must be seen, and it must not
        fall to the page.
        """
        for key in keys:
            self.keys.press(key)
            at = self.look(f"after {key}")
        return at

    def look(self, when: str) -> dict:
        self.page.wait_for_timeout(30)
        at = self.here
        for _ in range(20):  # what is drawn anew is given its focus back a moment later
            if not at["lost"]:
                break
            self.page.wait_for_timeout(50)
            at = self.here
        assert not at["lost"], f"the focus is lost {when}"
        if at["inside"]:
            assert at["seen"] and at["ringed"], (
                f"the focus cannot be seen {when}: {at} {self.book.shot('keys-unseen')}"
            )
        return at

    def walk(self, there, key: str = "Tab", most: int = 50) -> dict:
        """Press a key until the keyboard is there."""
        passed = []
        for _ in range(most):
            passed.append(at := self.press(key))
            if there(at):
                return at
        raise AssertionError(
            f"not reached by {most} times {key}, only {[at['name'][:40] for at in passed]}"
        )

    def reach(self, name: str, key: str = "Tab") -> dict:
        """Walk by Tab, or another key, to the control of that name; a name may end in three
        dots.
        """
        start = name.removesuffix("…")
        return self.walk(
            lambda at: at["name"] == name or (start != name and at["name"].startswith(start)), key
        )

    def turn(self, name: str) -> None:
        """Turn to a page: to the tabs, which follow the map and precede the page, along them by
        arrow keys, Enter.
        """
        if self.here["kind"] != "tab":
            key = "Tab" if self.here["beforeTabs"] else "Shift+Tab"
            self.walk(lambda at: at["kind"] == "tab", key)
        self.press("Home")
        if self.here["name"] != name:
            self.reach(name, "ArrowRight")
        assert self.press("Enter")["page"] == name
        self.page.get_by_role("tabpanel", name=name, exact=True).wait_for()

    def type(self, text: str) -> None:
        self.keys.press("Control+a")
        self.keys.type(text)

    def until(self, condition: str) -> None:
        self.book.wait(condition)
        self.look(f"once {condition}")


def lens(name: str, value: str) -> str:
    return f"document.querySelector('.bench .lens').dataset.{name} === {json.dumps(value)}"


def tour(hands: Hands) -> None:
    """The tour opened by itself, and did not take the keyboard: a step, and away with it."""
    hands.reach("Next")
    hands.press("Enter", "ArrowRight", "ArrowLeft")
    assert "See who moves" in hands.page.locator(".tour-card").inner_text()
    assert (
        hands.press("Escape")["name"] == "Tour"
        and not hands.page.locator(".tour-card").is_visible()
    )


def ask(hands: Hands) -> None:
    """Ask; cancel one that runs; back and forward."""
    hands.reach("Query")
    hands.type(TRAVEL)
    hands.press("Enter")
    hands.until(lens("query", TRAVEL))
    hands.book.settled()
    hands.type("slow")
    hands.press("Enter")
    hands.until(lens("busy", "true"))
    hands.press("Escape")
    hands.until(lens("busy", "false"))
    assert "Cancelled" in hands.page.locator(".bench .lens-note").first.inner_text()
    hands.type(MUSIC)
    hands.press("Enter")
    hands.until(lens("query", MUSIC))
    hands.book.settled()
    hands.reach("Back", "Shift+Tab")
    hands.press("Enter")
    hands.until(lens("query", TRAVEL))
    hands.press("Enter")
    hands.until(lens("query", ""))  # now there is no way back: the neighbour has the keyboard
    assert hands.here["name"] == "Forward"
    hands.press("Enter")
    hands.until(lens("query", TRAVEL))
    hands.press("Enter")
    hands.until(lens("query", MUSIC))
    assert hands.here["name"] == "Back"
    hands.book.settled()
    hands.book.shot("keys-ask")


def choose(hands: Hands) -> None:
    """Choose: on the map, in the list of the most shifted, all that moved."""
    hands.reach("Map of the users…")
    hands.press("ArrowRight", "ArrowDown", " ")
    hands.until(lens("chosen", "1"))
    hands.reach("clear")
    hands.press("Enter")
    hands.until(lens("chosen", "0"))
    first = hands.reach("u0000…")
    assert first["kind"] == "button"
    hands.press("ArrowDown", "ArrowUp", " ", "Shift+ArrowDown", "Shift+ArrowDown", "Enter")
    hands.until(lens("chosen", "3"))
    hands.book.shot("keys-list")
    moved = hands.page.locator(".bench .lens-sentence").first.inner_text().split()[0]
    hands.reach(f"{moved} stand out", "Shift+Tab")
    hands.press("Enter")
    hands.until(lens("chosen", moved))
    hands.reach("Save result card")
    hands.press("Enter")
    hands.until("/^Kept: /.test(document.querySelector('.bench .lens-keeping span').textContent)")


def group(hands: Hands) -> None:
    """The group: who explains it, a name, a result card."""
    hands.turn("Group")
    hands.reach("Which question explains them?")
    hands.press("Enter")
    hands.until("document.querySelector('.sel').dataset.ranked > 0")
    hands.reach("Name of the group")
    hands.type("movers")
    hands.press("Enter")
    hands.until("document.querySelector('.sel-chip')?.innerText.includes('movers')")
    hands.type("the same")
    hands.press("Enter")
    hands.until("document.querySelectorAll('.sel-chip').length === 2")
    hands.reach("Forget the same")
    hands.press("Enter")
    hands.until("document.querySelectorAll('.sel-chip').length === 1")
    assert hands.here["name"] == "Forget movers"  # the neighbour
    hands.reach("Result card")
    hands.press("Enter")
    hands.until("document.querySelector('.sel').innerText.includes('Kept: result-movers')")
    hands.book.shot("keys-group")


def matrix(hands: Hands) -> None:
    """The matrix: ask it, walk through its cells, choose a cell's group."""
    hands.turn("Matrix")
    hands.reach("Question for the matrix")
    hands.press("Enter")
    hands.until("document.querySelector('.matrix').dataset.whole === 'true'")
    hands.reach("strongest first")
    hands.press("Enter")
    hands.reach(f"Take “{TRAVEL}” out")
    hands.walk(lambda at: at["kind"] == "gridcell")
    hands.press("ArrowDown", "ArrowRight", "End", "Home")
    hands.book.shot("keys-matrix")
    name = hands.here["name"]
    hands.press("Enter")
    hands.until("document.querySelector('.matrix').dataset.chosen > 30")
    assert hands.here["name"] == name


def attention(hands: Hands) -> None:
    """Attention: one question, the chosen, another measure."""
    hands.turn("Attention")
    hands.reach("Query A")
    hands.type(TRAVEL)
    hands.press("Enter")
    hands.until(
        "(({ready, busy}) => ready === 'true' && busy === "
        "'false')(document.querySelector('.att').dataset)"
    )
    hands.reach("per token")
    hands.press("Enter")
    hands.until("document.querySelector('.att').dataset.measure === 'per_token'")
    hands.book.shot("keys-attention")


def clusters(hands: Hands) -> None:
    """Clusters: compare, choose a band."""
    hands.turn("Clusters")
    hands.reach("Compare clusters")
    hands.press("Enter")
    hands.until("document.querySelectorAll('.clus-band').length > 0")
    hands.walk(lambda at: "clus-band" in at["marks"])
    hands.press("Enter")
    hands.until("document.querySelector('.clus').dataset.chosen > 0")
    hands.book.shot("keys-clusters")


def tune(hands: Hands) -> None:
    """Tune: start, stop and keep."""
    hands.turn("Tune")
    hands.reach("Label to learn from")
    hands.keys.type("slow")  # the browser's own choice by letters
    hands.reach("Start")
    hands.press("Enter")
    hands.until(
        "(({busy, step}) => busy === 'true' && step > 3)(document.querySelector('.lab').dataset)"
    )
    hands.reach("Stop and keep", "Shift+Tab")
    hands.press("Enter")
    hands.until("document.querySelector('.lab').dataset.busy === 'false'")
    assert hands.here["name"] == "Start" and hands.page.locator(".lab-table").is_visible()
    hands.book.shot("keys-tune")


def leave(hands: Hands) -> None:
    """The keys of the notebook's own, such as "b" for a new cell, do nothing in here; and the way
    out is open on both sides.
    """
    hands.turn("Clusters")
    hands.press("b", "d", "d", "ArrowDown")
    hands.reach("Compare clusters")
    hands.press("b", "d", "d", "ArrowDown")
    assert (
        hands.page.locator(".jp-Notebook .jp-Cell").count() == 2
        and hands.here["name"] == "Compare clusters"
    )
    hands.walk(lambda at: not at["inside"])
    hands.walk(lambda at: at["inside"], "Shift+Tab")
    hands.walk(lambda at: not at["inside"], "Shift+Tab", 99)


@pytest.mark.parametrize("width", [1280, 1720], ids=["panel under the map", "panel beside it"])
def test_the_main_path_needs_no_mouse(open_notebook, server, width):
    cells = [SHOW.replace("keys.json", f"keys-{width}.json"), "print(1)"]
    book = open_notebook(server.write(f"keys-{width}.ipynb", cells), width=width, height=1000)
    hands = Hands(book)
    hands.keys.press("Control+Enter")
    hands.book.settled()
    for part in (tour, ask, choose, group, matrix, attention, clusters, tune, leave):
        part(hands)
    folder = book.server.folder / "work" / "notebooks"
    told = json.loads((folder / f"keys-{width}.json").read_text())
    assert (
        told["queries"][:2] == [TRAVEL, MUSIC]
        and list(told["named"]) == ["movers"]
        and told["toured"] is True
    )
    assert len(told["named"]["movers"]) > 30
    for name in ("result.html", "result-movers.html"):  # the folder is shared with other tests
        (folder / name).unlink()
    book.close()
