"""The tabs of a workbench's panel, and its tour: half a minute of words beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from traitlets import Bool, Int, List

from qanchor.widgets.base import View, read_static
from qanchor.widgets.static_html import static_page


@dataclass(frozen=True)
class Step:
    """One step: a title, the CSS selector of what it is about, and the words beside it."""

    title: str
    mark: str
    words: str


FIRST_STEPS = (
    Step(
        "Ask",
        ".lens-bar, .lens-under",
        "Write a question about every user, then press Enter. Esc cancels.",
    ),
    Step(
        "See who moves",
        ".lens-map",
        "Each mark is a user. Those that this question moves more than any other are diamonds.",
    ),
    Step(
        "Select",
        ".lens-map, .lens-foot",
        "Drag around some, or press the count of those that stand out. By keyboard: arrows walk, "
        "Space selects.",
    ),
    Step(
        "Users and groups",
        '[role="tab"]:nth-child(-n + 2)',
        "The ranking, and a card of each user. What sets the selected apart, and which question "
        "separates them.",
    ),
)
LAST_STEP = Step(
    "Keep it",
    ".lens-keep",
    "A result card is one HTML file with the result and how it was measured. It needs no kernel.",
)
FURTHER_PAGES = {
    "Matrix": "many questions against many groups",
    "Attention": "where the model looks, and what it uses",
    "Clusters": "who stands together, and who went where",
    "Tune": "labels teach a vague question",
}


class Tour(View):
    """Turn the pages of the workbench's panel, and show a newcomer what is what.

    Args:
        pages: Titles of the pages in their order: `Users` first, then `Group`, then any of the
            others.
        seen: If false, the tour opens by itself, once, and does not take the keyboard.

    The trait `page` is the page that is shown.

    Example:
        >>> Tour(("Users", "Group", "Tune")), Tour(("Users", "Group")).seen
        (Tour(6 steps), True)
    """

    _esm = read_static("dom.mjs", "pages.mjs", "tour.mjs")
    _css = read_static("pages.css", "tour.css")
    _pages = List().tag(sync=True)  # titles: never changes
    _steps = List().tag(sync=True)  # title, mark, words: never changes
    page = Int(0).tag(sync=True)
    seen = Bool(True).tag(sync=True)

    def __init__(self, pages: Sequence[str], seen: bool = True):
        steps = [asdict(step) for step in tour_steps(pages)]
        super().__init__(_pages=list(pages), _steps=steps, seen=seen)

    def _summary(self) -> str:
        return f"Tour({len(self._steps)} steps)"

    def _html(self) -> str:
        return static_page("Tour", [f"{step['title']}. {step['words']}" for step in self._steps])


def tour_steps(pages: Sequence[str]) -> list[Step]:
    """Return the steps of a tour.

    Args:
        pages: Titles of the workbench's pages; the tour names no others.

    Returns:
        The steps.

    Example:
        >>> [step.title for step in tour_steps(("Users", "Group", "Matrix", "Tune"))]
        ['Ask', 'See who moves', 'Select', 'Users and groups', 'Further pages', 'Keep it']
    """
    steps = list(FIRST_STEPS)
    further = pages[2:]
    if further:
        words = "\n".join(f"{name}: {FURTHER_PAGES[name]}." for name in further)
        steps.append(Step("Further pages", '[role="tab"]:nth-child(n + 3)', words))
    return [*steps, LAST_STEP]
