"""Words that a test reads off a page."""

import re

from playwright.sync_api import expect


def read(locator) -> str:
    """Scroll to what is there and give its words: what comes into view is laid out, and drawn, some
    frames later.
    """
    locator.scroll_into_view_if_needed()
    expect(locator).to_contain_text(re.compile(r"\S"), use_inner_text=True, timeout=300_000)
    return locator.inner_text()


def says(locator, words: str) -> None:
    """Wait until what is there says `words`, in letters of any size."""
    expect(locator).to_contain_text(words, use_inner_text=True, ignore_case=True, timeout=900_000)
