"""The rules for a view in any host (VS Code, Colab, marimo): a bare page that is no Jupyter shows
it, in shadow roots.
"""

import base64
import re
from pathlib import Path

import pytest
from fake import QUERIES
from fake_session import FakeSession

from qanchor.widgets import (
    AttentionView,
    ClusterView,
    PromptTuningView,
    QueryLens,
    QueryMatrixView,
    SelectionPanel,
)

TRAVEL = QUERIES[0]
HOST = """
// what a view holds of the page around it
window.held = { Mutation: 0, Resize: 0, clocks: new Set() };
for (const kind of ["Mutation", "Resize"]) {
  const Old = window[`${kind}Observer`];
  window[`${kind}Observer`] = class extends Old {
    observe(target, how) {
      if (!this.on && target !== document) held[kind] += (this.on = 1);
      super.observe(target, how);
    }
    disconnect() { if (this.on) held[kind] -= 1; this.on = 0; super.disconnect(); }
  };
}
const [start, stop] = [setInterval, clearInterval];
window.setInterval = (...how) => {
  const clock = start(...how);
  held.clocks.add(clock);
  return clock;
};
window.clearInterval = (clock) => (held.clocks.delete(clock), stop(clock));

class Model {  // what anywidget promises a view, and no more
  #state; #heard = []; sent = [];
  constructor(state) { this.#state = state; }
  get(name) { return this.#state[name]; }
  set(name, value) {
    this.#state[name] = value;
    for (const [event, act] of [...this.#heard]) if (event === `change:${name}`) act();
  }
  save_changes() {}
  send(content, _callbacks, buffers) { this.sent.push(content.type); }
  on(event, act) { this.#heard.push([event, act]); }
  off(event, act) {
    this.#heard = this.#heard.filter(([name, other]) => name !== event || other !== act);
  }
  get listeners() { return this.#heard.length; }
}
const unpacked = (code) => new DataView(Uint8Array.from(atob(code), (c) => c.charCodeAt(0)).buffer);
const revived = (value) => value?.bytes !== undefined ? unpacked(value.bytes)
  : Array.isArray(value) ? value.map(revived)
  : value && typeof value === "object"
    ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, revived(v)]))
    : value;
window.begin = async ({ esm, css, state }) => {
  const code = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  window.view = (await import(code)).default;
  Object.assign(window, { css, model: new Model(revived(state)) });
};
window.show = (kind = "") => {
  const host = document.body.appendChild(document.createElement("div"));
  const shadow = host.attachShadow({ mode: "open" });
  const el = Object.assign(document.createElement("div"), { className: kind });
  shadow.append(Object.assign(document.createElement("style"), { textContent: css }), el);
  return { el, shadow, leave: view.render({ model, el }) };
};
"""


def made() -> dict:
    """Make each view, with a result."""
    session = FakeSession(0)
    lens = QueryLens(session.frame, session.lens)
    panel = SelectionPanel(lens.selection, describe=session.describe, explain=session.explain)
    attention, tuning = (
        AttentionView(session.attention, session.frame),
        PromptTuningView(session.tuning),
    )
    matrix = QueryMatrixView(session.matrix, selection=lens.selection)
    clusters = ClusterView(session.compare("", TRAVEL), session.frame)
    lens.ask(TRAVEL)
    lens.selection.ids = lens._ids[:40]
    panel.explain()
    attention.look(TRAVEL)
    matrix.ask()
    tuning.tune("Takeout", "Will they order?", steps=20)
    return {
        type(view).__name__: view for view in (lens, panel, matrix, attention, clusters, tuning)
    }


@pytest.fixture(scope="module")
def views():
    return made()


VIEWS = (
    "QueryLens",
    "SelectionPanel",
    "QueryMatrixView",
    "AttentionView",
    "ClusterView",
    "PromptTuningView",
)


def packed(value):
    """Write bytes so that JSON holds them."""
    if isinstance(value, bytes | memoryview):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: packed(one) for name, one in value.items()}
    return [packed(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def host(chromium, views):
    """Show a view in a page of its own: `host("QueryLens")`."""
    pages = []

    def shown(name: str):
        page = chromium.new_page(viewport={"width": 1100, "height": 1500})
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                page.faults.append(request.url) if request.url.startswith("http") else None
            ),
        )
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(content=HOST)
        view = views[name]
        state = {
            key: packed(value)
            for key, value in view.get_state().items()
            if key not in ("_esm", "_css", "layout")
        }
        page.evaluate("told => begin(told)", {"esm": view._esm, "css": view._css, "state": state})
        pages.append(page)
        return page

    yield shown
    for page in pages:
        assert page.faults == []
        page.close()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_brings_all_it_needs_and_looks_at_nothing_else(views, name):
    script, style = views[name]._esm, views[name]._css
    urls = set(re.findall(r"\w+://[^\s\"'`)]+", script + style))
    assert urls <= {"http://www.w3.org/2000/svg"}, "a name of SVG is all that looks like an address"
    assert not re.search(
        r"^\s*import\b|\bimport\(|\brequire\b|\bfetch\(|XMLHttpRequest|WebSocket|\beval\(",
        script,
        re.M,
    )
    assert not re.search(r"@import|url\((?!#)", style)
    for known in (
        "theme.observe(document.body,",
        "document.hasFocus()",
        "[document.body, null, last]",
    ):
        script = script.replace(known, "")
    outside = re.findall(
        r"document\.(?!createElement|createElementNS)\w+|window\.(?!matchMedia|devicePixelRatio)\w+|/lab\b|localStorage",
        script,
    )
    assert outside == [], (
        "a view reads its own element, the theme of the body and whether the keyboard is lost, "
        "nothing else"
    )
    assert re.findall(r"^export .*", script, re.M)[-1].startswith("export default { render")


@pytest.mark.parametrize("name", VIEWS)
def test_two_at_once_in_shadow_roots_and_nothing_is_left_of_them(host, name):
    page = host(name)
    assert page.evaluate("Object.keys(view).join()") == "render"
    page.evaluate("window.two = [show(), show()]")
    page.wait_for_timeout(700)
    first, second = (
        page.evaluate(f"two[{i}].shadow.querySelector('.lens').innerText") for i in (0, 1)
    )
    assert first == second and len(first) > 100, "one model, two views: the same"
    assert page.evaluate("two[0].el.firstElementChild.getBoundingClientRect().height") > 200
    for canvas in page.locator("canvas").all():
        assert canvas.evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((ink) => "
            "ink > 0)"
        )
    held = "[model.listeners, held.Mutation, held.Resize, held.clocks.size]"
    both = page.evaluate(held)
    page.screenshot(path=Path(__file__).parent / "shots" / f"host-{name}.png")
    page.evaluate("two[0].leave(), two[0].el.replaceChildren()")
    assert page.evaluate(held) == [count / 2 for count in both] and both[0] > 0
    page.evaluate("two[1].leave()")
    assert page.evaluate(held) == [0, 0, 0, 0]
    page.evaluate("for (let i = 0; i < 5; i++) show().leave()")
    assert page.evaluate(held) == [0, 0, 0, 0]


def test_what_is_typed_stays_while_a_question_runs(host):
    page = host("QueryLens")
    page.evaluate("window.one = show()")
    box = page.get_by_role("combobox", name="Query", exact=True)
    box.fill(QUERIES[1])
    box.press("Enter")
    assert page.evaluate("model.sent.at(-1)") == "ask"
    box.fill("and what abou")
    page.evaluate(
        "told => model.set('_status', told)",
        {"busy": True, "query": QUERIES[1], "done": 100, "total": 600},
    )
    assert (
        box.input_value() == "and what abou"
        and "100 of 600" in page.locator(".lens-note").inner_text()
    )
    box.blur()
    page.evaluate(
        "told => model.set('_status', told)",
        {"busy": True, "query": QUERIES[1], "done": 200, "total": 600},
    )
    assert box.input_value() == QUERIES[1]


def test_the_browser_does_not_ask_for_the_ranking_and_can_cancel_it(host):
    page = host("QueryLens")
    page.evaluate("window.one = show()")
    assert page.evaluate("model.sent") == ["open"], "the kernel sends the ranking unasked"
    assert (
        page.locator(".lens-reading")
        .inner_text()
        .endswith("u0599, u0598 and u0597 rank first of 600 users.")
    )
    page.evaluate(
        "told => model.set('_ranking', told)",
        {"query": TRAVEL, "busy": True, "order": "Ranking ..."},
    )
    assert page.locator(".lens-reading").inner_text() == "Ranking ..."
    page.locator(".lens-query").press("Escape")
    assert page.evaluate("model.sent") == ["open", "cancel"]
    page.evaluate("told => model.set('_ranking', told)", {"query": TRAVEL})
    assert (
        page.locator(".lens-reading").inner_text() == ""
        and page.locator(".lens-past").inner_text() == ""
    )
    page.locator(".lens-query").press("Escape")
    assert page.evaluate("model.sent") == ["open", "cancel", "select"], (
        "nothing runs: the selection is cleared"
    )


def test_words_for_users_are_those_of_the_kernel(host):
    page = host("QueryLens")
    page.evaluate(
        "model.set('_about', { ...model.get('_about'), unit: 'family', units: 'families' })"
    )
    page.evaluate("window.one = show()")
    assert (
        "600 families" in page.locator(".lens-head").inner_text()
        and "40 families selected" in page.locator(".lens-chosen").inner_text()
    )
    assert (
        "familys" not in page.locator(".lens").inner_text()
        and page.locator('[aria-label="Most shifted families"]').count() == 1
    )


def test_a_host_that_closes_the_way_to_the_kernel_is_noticed(host):
    page = host("QueryLens")
    page.evaluate("window.one = show(); model.set('_answer', { user: 3, busy: true })")
    page.evaluate(
        "told => model.set('_status', told)",
        {"busy": True, "query": TRAVEL, "done": 100, "total": 600},
    )
    assert page.locator(".lens-gone").is_hidden()
    page.evaluate("() => { model.send = () => { throw new Error('Cannot send'); }; }")
    page.get_by_role("button", name="Cancel").click()
    assert "run the cell again" in page.locator(".lens-gone").inner_text()
    assert (
        page.locator(".lens").get_attribute("data-busy") == "false"
        and page.get_by_role("button", name="Ask").is_visible()
    )
    assert not page.evaluate("model.get('_answer').busy")


def test_a_view_made_without_a_kernel_says_so_at_once(host):
    page = host("QueryLens")
    page.evaluate("window.one = show('jupyter-widgets-disconnected')")
    assert "is gone" in page.locator(".lens-gone").inner_text()
