"""The tour of a workbench: thirty seconds of words beside its real controls."""

from __future__ import annotations

from collections.abc import Sequence

from traitlets import Bool, Int, List

from widgets.base import View, script, still_page

ASK = ("Ask", ".lens-bar, .lens-under", "Write a question about every user in your own words, then Enter. Esc cancels.")
MAP = ("See who moves", ".lens-map", "Each mark is a user. Whoever moves farther than mere rewording explains is a diamond.")
CHOOSE = "Drag around some, or press the count of those who moved, below. By keyboard: arrows walk, Space chooses."
KEEP = ("Keep it", ".lens-keep", "A claim card is one file with the result and all it hangs on. It needs no kernel.")
GROUP = "What sets the chosen apart, and which question tells them. Name them, or write them to a file."
REST = {
    "Deck": "many questions against many groups",
    "Attention": "where the model looks, and what it uses",
    "Clusters": "who stands together, and who went where",
    "Tune": "labels teach a vague question",
}


class Tour(View):
    """Show a newcomer round a workbench: a button, and a few steps that stand beside what they are about.

    pages    titles of the workbench's pages, in their order: `Ask` first, then `Group`, then any of the others.
    seen     false: the tour opens by itself, once, and takes neither the keyboard nor the mouse from the page.
    `page` is the page that is shown; the tour turns to the first one, where its steps are.

    Example:
        >>> Tour(("Ask", "Group", "Tune")), Tour(("Ask", "Group")).seen
        (Tour(6 steps), True)
    """

    _esm = script("dom.mjs", "tour.mjs")
    _css = script("tour.css")
    _steps = List().tag(sync=True)  # title, mark (a CSS selector), words: never changes
    page = Int(0, allow_none=True).tag(sync=True)
    seen = Bool(True).tag(sync=True)

    def __init__(self, pages: Sequence[str], seen: bool = True):
        super().__init__(_steps=[dict(zip(("title", "mark", "words"), step, strict=True)) for step in steps(pages)], seen=seen)

    def _words(self) -> str:
        return f"Tour({len(self._steps)} steps)"

    def _still(self) -> str:
        return still_page("Tour", [f"{step['title']}. {step['words']}" for step in self._steps])


def steps(pages: Sequence[str]) -> list[tuple[str, str, str]]:
    """Give title, place and words of each step; of further pages no more is told than there are.

    Example:
        >>> [title for title, _, _ in steps(("Ask", "Group", "Deck", "Tune"))]
        ['Ask', 'See who moves', 'Choose', 'Group', 'Further pages', 'Keep it']
    """
    told = [ASK, MAP, ("Choose", ".lens-map, .lens-foot", CHOOSE), ("Group", '[role="tab"]:nth-child(2)', GROUP)]
    if rest := list(pages[2:]):
        told.append(("Further pages", '[role="tab"]:nth-child(n + 3)', "\n".join(f"{name}: {REST[name]}." for name in rest)))
    return [*told, KEEP]
