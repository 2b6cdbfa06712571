// The pages of a workbench's panel: its tabs stand between the map and the panel, for the eye and for the Tab key.
import { make } from "./dom.mjs";

/** Tabs: one stop of the Tab key, arrows walk, Enter turns; `turn(place)` is called. */
export function pageTabs(titles, turn) {
  const name = `bench-${Math.random().toString(36).slice(2)}`;
  const tabs = titles.map((title, place) => make("button", { type: "button", role: "tab", id: `${name}-tab-${place}`, "data-key": title, onclick: () => turn(place) }, title));
  const list = make("div", { class: "bench-tablist", role: "tablist", "aria-label": "Pages of the workbench" }, ...tabs);
  const wide = make("button", { type: "button", class: "bench-widen", title: "Move the line between the map and the panel", onclick: widen }, "wider");
  const node = make("div", { class: "bench-tabs" }, list, wide);
  function widen() {
    wide.textContent = node.closest(".bench").classList.toggle("bench-wide") ? "narrower" : "wider";
  }
  /** Show a page of a workbench as far as it is drawn yet: the lens, whose list is the first page, and the others come one by one. */
  function show(bench, place) {
    const side = bench.querySelector(".bench-lens .lens-side");
    if (!side) return;
    if (side.previousSibling !== node) side.before(node);
    bench.dataset.page = place;
    [side, ...bench.querySelectorAll(".bench-page")].forEach((page, n) => {
      page.id ||= `${name}-page-${n}`;
      page.setAttribute("role", "tabpanel");
      page.setAttribute("aria-labelledby", tabs[n].id);
      tabs[n].setAttribute("aria-controls", page.id);
    });
    bench.querySelector(".bench-said")?.setAttribute("role", "status");
    tabs.forEach((tab, n) => {
      tab.setAttribute("aria-selected", String(n === place));
      tab.tabIndex = n === place ? 0 : -1;
    });
  }
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(event.target);
    const next = tabs[{ ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key]];
    next?.focus();
    if (next || event.key.startsWith("Arrow")) event.preventDefault(); // else the page scrolls away
  });
  return { node, show };
}
