"""Large sets in the lens: how long a lasso takes to reach Python, and whether what it gives is right."""

import json
import os

import numpy as np
import pytest

USERS = int(os.environ.get("LENS_USERS", "100000"))
TRAVEL = "Will this user travel soon?"
SHOW = """import time
began = time.time()
from fake import FakeAsker, make_frame
from widgets import QueryLens
frame, asker = make_frame({users}), FakeAsker({users}, seconds=0.1)
made = time.time()
lens, heard = QueryLens(frame, asker), []
lens.selection.observe(lambda rows: heard.append((len(lens.selection.ids), time.time())))
print(f"frame {{made - began:.2f}} lens {{time.time() - made:.2f}}")
lens"""
WATCH = """() => {
  window.now = () => (performance.timeOrigin + performance.now()) / 1000;
  window.deltas = []; let last = performance.now();
  const tick = (t) => { window.deltas.push([t - last, document.querySelector('.lens')?.dataset.moving === 'true']); last = t; requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
  window.addEventListener('pointerup', (event) => event.target.matches('.lens-canvas') && (window.released = window.now()), true);
}"""


def frames(page, moving):
    deltas = [d for d, m in page.evaluate("window.deltas.splice(0)") if m or not moving]
    return {"frames": len(deltas), "median_ms": round(float(np.median(deltas or [0])), 1), "worst_ms": round(max(deltas, default=0), 1)}


def test_measure(open_notebook, server):
    record = {"users": USERS}
    path = server.write("large.ipynb", [SHOW.format(users=USERS), "print(heard[-1])", "lens.selection.ids = lens._ids[:7]", "print(len(repr(lens._users)), lens._repr_mimebundle_()[0]['text/html'].__len__())"])
    book = open_notebook(path)
    page = book.page
    sizes = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda data: sizes.append(len(data))))
    page.evaluate(WATCH)
    start = page.evaluate("window.now()")
    print(book.run(0, timeout=300))
    record["run_s"] = page.evaluate("window.now()") - start
    book.wait("document.querySelector('.lens')?.dataset.ready === 'true'", 300)
    record["ready_s"] = page.evaluate("window.now()") - start
    book.settled(300)
    record["settled_s"] = page.evaluate("window.now()") - start
    record["open_frames"] = frames(page, True)
    book.shot(f"large-{USERS}-open")
    start = page.evaluate("window.now()")
    book.ask(TRAVEL)
    book.asked(TRAVEL, 300)
    record["ask_s"] = page.evaluate("window.now()") - start
    record["ask_frames"] = frames(page, True)
    book.shot(f"large-{USERS}-asked")
    box = page.locator(".lens-canvas").bounding_box()
    at = lambda fx, fy: (box["x"] + fx * box["width"], box["y"] + fy * box["height"])
    frames(page, False)
    for k in range(20):
        page.mouse.move(*at(0.2 + 0.03 * k, 0.5))
    page.wait_for_timeout(300)
    record["hover_frames"] = frames(page, False)
    page.keyboard.down("Control")
    page.mouse.move(*at(0.5, 0.5))
    for k in range(10):
        page.mouse.wheel(0, -60)
    page.mouse.down()
    for k in range(20):
        page.mouse.move(*at(0.5 - 0.01 * k, 0.5))
    page.mouse.up()
    page.keyboard.up("Control")
    page.wait_for_timeout(300)
    record["zoom_frames"] = frames(page, False)
    book.shot(f"large-{USERS}-zoom")
    page.get_by_role("button", name="Show all").click()
    record["lasso_s"] = []
    for fraction in (0.5, 0.3, 0.7):
        page.mouse.move(*at(0.02, 0.02))
        page.mouse.down()
        for point in ((fraction, 0.02), (fraction, 0.98), (0.02, 0.98), (0.02, 0.02)):
            page.mouse.move(*at(*point), steps=6)
        page.mouse.up()
        page.wait_for_timeout(3000)
        chosen, when = eval(book.run(1))
        record["lasso_s"].append((chosen, round(when - page.evaluate("window.released"), 3)))
    record["lasso_frames"] = frames(page, False)
    book.shot(f"large-{USERS}-lasso")
    print(book.run(3))
    record["messages"] = sorted(sizes)[-6:]
    print(json.dumps(record))
    book.close()
