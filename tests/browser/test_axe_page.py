"""Each view alone and each page of the workbench, light and dark, is walked through by axe: rules
of accessibility.
"""

import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_views import BENCH, FILL, SETUP, VIEWS

RULES = {
    "type": "tag",
    "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}
SHOWN = [expression for expression, _ in VIEWS.values()]


def faults(page, mark: str) -> list[str]:
    """Name what axe finds serious or critical in one view: the rule, the place, and what is wrong
    there.
    """
    page.locator(mark).first.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert page.locator(mark).count() == 1
    found = Axe().run(page, mark, {"runOnly": RULES, "resultTypes": ["violations"]}).response
    assert len(found["passes"]) > 3, "axe saw nothing there"
    grave = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
    return [
        f"{fault['id']}: {node['html'][:160]}: {node['failureSummary'][:300]}"
        for fault in grave
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(open_notebook, server, dark):
    name = f"axe-{'dark' if dark else 'light'}"
    book = open_notebook(
        server.write(f"{name}.ipynb", [SETUP, *SHOWN[:-1], FILL, SHOWN[-1]]), dark=dark
    )
    assert book.page.evaluate("document.body.dataset.jpThemeLight") == str(not dark).lower()
    book.run(0)
    for number, (_, mark) in enumerate(list(VIEWS.values())[:-1], 1):
        book.run(number)
        book.page.locator(mark).wait_for()
    book.settled()
    found = {
        f"{view}, empty": faults(book.page, mark) for view, (_, mark) in list(VIEWS.items())[:-1]
    }
    book.run(len(SHOWN))
    book.run(len(SHOWN) + 1)
    book.page.locator(".result-card").wait_for()
    book.settled()
    book.page.locator(".lens-rows button").first.click()
    book.page.get_by_role("button", name="All events").click()
    found |= {view: faults(book.page, mark) for view, (_, mark) in VIEWS.items()}
    for view, (_, mark) in VIEWS.items():
        book.page.locator(mark).screenshot(path=book.shot(f"{name}-{view}"))
    assert not any(found.values()), "\n".join(
        f"{view}: {fault}" for view, list_ in found.items() for fault in list_
    )
    book.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault_on_any_page_of_the_workbench(open_notebook, server, dark):
    look = "dark" if dark else "light"
    # the panel stands under the map in the light page, beside it in the dark one
    book = open_notebook(
        server.write(f"axe-bench-{look}.ipynb", [BENCH]),
        dark=dark,
        width=1720 if dark else 1280,
        height=1000,
    )
    book.run(0)
    book.settled()
    page, found = book.page, {}
    page.get_by_role("button", name="Tour", exact=True).click()
    found["Tour"] = faults(page, ".bench")
    assert page.locator(".tour-card").is_visible()
    page.keyboard.press("Escape")
    for name in (
        page.get_by_role("tablist", name="Pages of the workbench")
        .get_by_role("tab")
        .all_inner_texts()
    ):
        page.get_by_role("tab", name=name, exact=True).click()
        page.get_by_role("tabpanel", name=name, exact=True).wait_for()
        found[name] = faults(page, ".bench")
        book.shot(f"axe-bench-{look}-{name}")
    assert len(found) == 7
    assert not any(found.values()), "\n".join(
        f"{view}: {fault}" for view, list_ in found.items() for fault in list_
    )
    book.close()
