"""The main path of the workbench by keyboard alone, in a real JupyterLab: no mouse, no click; focus is never lost and always seen."""

import json

import pytest

SETUP = "from fake_desk import FakeDesk\nfrom widgets import Workbench\n"
SHOW = SETUP + "bench = Workbench(FakeDesk(0.3), session='keys.json')\nbench"
READ = "print(len(bench.selection), bench.lens.queries_asked, list(bench.panel.named), bench.titles)"
TRAVEL, MUSIC = "Will this user travel soon?", "Does this user follow live music?"
HERE = """() => {
    const node = document.activeElement, box = node.getBoundingClientRect(), style = getComputedStyle(node);
    const [x, y] = [box.x + Math.min(box.width, innerWidth) / 2, box.y + Math.min(box.height, innerHeight) / 2];
    const top = document.elementFromPoint(x, y);
    const tab = document.querySelector('.bench [role="tab"][aria-selected="true"]');
    return {
        name: (node.getAttribute('aria-label') ?? node.labels?.[0]?.innerText ?? node.textContent).trim(),
        kind: node.getAttribute('role') ?? node.tagName.toLowerCase(), lost: node === document.body,
        inside: Boolean(node.closest('.bench')), page: tab?.innerText,
        seen: Boolean(top && (node.contains(top) || top.contains(node) || (node.ownerSVGElement && node.ownerSVGElement.contains(top)))),
        ringed: (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1.5) || parseFloat(style.strokeWidth) >= 2,
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
        """Press keys; inside the workbench the one that has the focus must be seen, and it must not fall to the page."""
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
            assert at["seen"] and at["ringed"], f"the focus cannot be seen {when}: {at} {self.book.shot('keys-unseen')}"
        return at

    def reach(self, name: str, key: str = "Tab", most: int = 40) -> dict:
        """Walk by Tab, or another key, to the control of that name."""
        passed = []
        for _ in range(most):
            at = self.press(key)
            passed.append(at["name"][:40])
            if at["name"] == name or (name.endswith("…") and at["name"].startswith(name[:-1])):
                return at
        raise AssertionError(f"{name!r} was not reached by {most} times {key}: {passed}")

    def turn(self, name: str) -> None:
        """Turn to a page: back to the tabs, along them by arrow keys, Enter."""
        for _ in range(60):
            if self.here["kind"] == "tab":
                break
            self.press("Shift+Tab")
        assert self.here["kind"] == "tab" and self.press("Home")["name"] == "Ask"
        while self.here["name"] != name:
            self.press("ArrowRight")
        assert self.press("Enter")["page"] == name
        self.page.wait_for_timeout(300)

    def type(self, text: str) -> None:
        self.keys.press("Control+a")
        self.keys.type(text)

    def until(self, condition: str) -> None:
        self.book.wait(condition)
        self.look(f"once {condition}")


def lens(name: str, value: str) -> str:
    return f"document.querySelector('.bench .lens').dataset.{name} === {json.dumps(value)}"


@pytest.fixture(scope="module")
def book(open_notebook, server):
    notebook = open_notebook(server.write("keys.ipynb", [SHOW, READ]), height=1000)
    yield notebook
    notebook.close()


def test_the_main_path_needs_no_mouse(book):
    hands = Hands(book)
    hands.keys.press("Control+Enter")
    book.settled()

    # the tour opened by itself, and did not take the keyboard: a step, and away with it
    hands.reach("Next")
    hands.press("Enter", "ArrowRight", "ArrowLeft")
    assert "See who moves" in hands.page.locator(".tour-card").inner_text()
    assert hands.press("Escape")["name"] == "Tour" and not hands.page.locator(".tour-card").is_visible()

    # ask; cancel one that runs; back and forward
    hands.reach("Query")
    hands.type(TRAVEL)
    hands.press("Enter")
    hands.until(lens("query", TRAVEL))
    book.settled()
    hands.type("slow")
    hands.press("Enter")
    hands.until(lens("busy", "true"))
    hands.press("Escape")
    hands.until(lens("busy", "false"))
    assert "Cancelled" in hands.page.locator(".bench .lens-note").first.inner_text()
    hands.type(MUSIC)
    hands.press("Enter")
    hands.until(lens("query", MUSIC))
    book.settled()
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
    book.settled()
    book.shot("keys-ask")

    # choose: on the map, in the list of the most shifted, all that moved
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
    book.shot("keys-list")
    moved = [w for w in hands.page.locator(".bench .lens-sentence").first.inner_text().split() if w.isdigit()][0]
    hands.reach(f"{moved} beyond the noise floor", "Shift+Tab")
    hands.press("Enter")
    hands.until(lens("chosen", moved))
    hands.reach("Keep as a claim card")
    hands.press("Enter")
    hands.until("/^Kept: /.test(document.querySelector('.bench .lens-note').textContent)")

    # the group: who explains it, a name, a claim card
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
    hands.reach("Claim card")
    hands.press("Enter")
    hands.until("document.querySelector('.sel').innerText.includes('Kept: claim-movers')")
    book.shot("keys-group")

    # the deck: ask it, walk through its cells, choose a cell's group
    hands.turn("Deck")
    hands.reach("Question for the deck")
    hands.press("Enter")
    hands.until("document.querySelector('.deck').dataset.whole === 'true'")
    hands.reach("strongest first")
    hands.press("Enter")
    hands.reach(f"Take “{TRAVEL}” out")
    while hands.here["kind"] != "gridcell":
        hands.press("Tab")
    hands.press("ArrowDown", "ArrowRight", "End", "Home")
    book.shot("keys-deck")
    name = hands.here["name"]
    hands.press("Enter")
    hands.until("document.querySelector('.deck').dataset.chosen > 30")
    assert hands.here["name"] == name

    # attention: one question, the chosen, another measure
    hands.turn("Attention")
    hands.reach("Query A")
    hands.type(TRAVEL)
    hands.press("Enter")
    hands.until("(({ready, busy}) => ready === 'true' && busy === 'false')(document.querySelector('.att').dataset)")
    hands.reach("per slot")
    hands.press("Enter")
    hands.until("document.querySelector('.att').dataset.measure === 'per_token'")
    book.shot("keys-attention")

    # clusters: compare, choose a band
    hands.turn("Clusters")
    hands.reach("Compare clusters")
    hands.press("Enter")
    hands.until("document.querySelectorAll('.clus-band').length > 0")
    while "clus-band" not in hands.here["marks"]:
        hands.press("Tab")
    hands.press("Enter")
    hands.until("document.querySelector('.clus').dataset.chosen > 0")
    book.shot("keys-clusters")

    # tune: start, stop and keep
    hands.turn("Tune")
    hands.reach("Label to learn from")
    hands.keys.type("slow")  # the browser's own choice by letters
    hands.reach("Start")
    hands.press("Enter")
    hands.until("(({busy, step}) => busy === 'true' && step > 3)(document.querySelector('.lab').dataset)")
    hands.reach("Stop and keep", "Shift+Tab")
    hands.press("Enter")
    hands.until("document.querySelector('.lab').dataset.busy === 'false'")
    assert hands.here["name"] == "Start" and hands.page.locator(".lab-table").is_visible()
    book.shot("keys-tune")

    # and out again
    for _ in range(40):
        if not hands.press("Tab")["inside"]:
            break
    assert not hands.here["inside"], "the keyboard is trapped"
    while not hands.press("Shift+Tab")["inside"]:
        pass
