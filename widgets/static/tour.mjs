// The tabs of a workbench, and its tour: words beside its real controls. All text enters as text nodes.
import { focused, keepFocus, make } from "./dom.mjs";
import { pageTabs } from "./pages.mjs";

const GAP = 12; // pixels between a control and the words about it
const GLIDE = 250; // ms until the words have come to their place
const TALL = 200; // pixels: words about what is taller stand in it, not under it

/** What encloses all that a step is about, in pixels from the corner of the workbench; null while none of it is to be seen. */
export function extent(home, boxes) {
  const visible = boxes.filter((box) => box.width && box.height);
  if (!visible.length) return null;
  const [left, top] = ["left", "top"].map((edge) => Math.min(...visible.map((box) => box[edge])) - home[edge]);
  return { left, top, right: Math.max(...visible.map((box) => box.right)) - home.left, bottom: Math.max(...visible.map((box) => box.bottom)) - home.top };
}

/** Where the words stand: under a control, above one at the lower end, in a tall one; never beyond the sides. */
export function beside(box, card, home) {
  const side = box.bottom - box.top > TALL ? "in" : box.bottom + GAP + card.height > home.height ? "above" : "under";
  const top = { in: box.top + GAP, above: box.top - GAP - card.height, under: box.bottom + GAP }[side];
  return { side, top, left: Math.max(Math.min(box.left + (side === "in" ? GAP : 0), home.width - card.width), 0) };
}

function render({ model, el }) {
  const steps = model.get("_steps");
  let [at, bench] = [-1, null];
  const button = (text, act, rest = {}) => make("button", { type: "button", onclick: act, ...rest }, text);
  const [title, words, count] = [make("strong"), make("p"), make("span", { class: "tour-count" })];
  const back = button("Back", () => go(at - 1));
  const next = button("Next", () => go(at + 1), { class: "tour-next" });
  const close = button("×", () => go(-1), { class: "tour-close", "aria-label": "Close the tour" });
  const card = make("div", { class: "tour-card", role: "group", "aria-label": "Tour", hidden: true },
    make("div", { "aria-live": "polite" }, title, words), make("div", { class: "tour-foot" }, count, back, next), close);
  const ring = make("div", { class: "tour-ring", "aria-hidden": "true", hidden: true });
  const open = button("Tour", () => (at < 0 ? (go(0), next.focus()) : go(-1)), { class: "tour-open", title: "What is what here, in half a minute", "aria-expanded": "false" });
  const root = make("div", { class: "tour" }, open, ring, card);
  const tabs = pageTabs(model.get("_pages"), (page) => {
    model.set("page", page);
    model.save_changes();
  });

  /** Show one step; before the first and after the last there is none, and the tour is over. */
  function go(step) {
    const within = card.contains(focused(card));
    at = step in steps ? step : -1;
    root.dataset.step = at;
    open.setAttribute("aria-expanded", String(at >= 0));
    if (at < 0) {
      place();
      return within && open.focus();
    }
    [title.textContent, words.textContent, count.textContent] = [steps[at].title, steps[at].words, `${at + 1} of ${steps.length}`];
    next.textContent = at === steps.length - 1 ? "Done" : "Next";
    model.set("seen", true);
    model.save_changes();
    place();
    back.hidden = !at;
    if (within) setTimeout(() => card.scrollIntoView({ block: "nearest" }), GLIDE);
  }
  /** Put the words beside their controls. */
  function place() {
    const home = bench?.getBoundingClientRect();
    const box = at < 0 || !home ? null : extent(home, [...bench.querySelectorAll(steps[at].mark)].map((node) => node.getBoundingClientRect()));
    card.hidden = ring.hidden = !box;
    if (!box) return;
    const { side, top, left } = beside(box, card.getBoundingClientRect(), home);
    card.dataset.side = side;
    Object.assign(card.style, { top: `${top}px`, left: `${left}px` });
    card.style.setProperty("--tour-nub", `${Math.min((box.right - box.left) / 2, 60)}px`);
    Object.assign(ring.style, { top: `${box.top - 4}px`, left: `${box.left - 4}px`, width: `${box.right - box.left + 8}px`, height: `${box.bottom - box.top + 8}px` });
  }
  card.addEventListener("keydown", (event) => {
    const step = { Escape: -1, ArrowRight: Math.min(at + 1, steps.length - 1), ArrowLeft: Math.max(at - 1, 0) }[event.key];
    if (step !== undefined) (go(step), event.preventDefault());
  });
  const watch = new ResizeObserver(() => {
    if (!bench?.isConnected) {
      bench = el.closest(".bench");
      bench?.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation()); // "d", "d" on a tab would delete the cell
      if (bench) watch.observe(bench);
    }
    if (!bench) return;
    turned();
    if (at < 0 && !model.get("seen") && bench.querySelector(steps[0].mark)?.getClientRects().length) go(0);
    place();
  });
  const turned = () => bench && tabs.show(bench, model.get("page"));
  model.on("change:page", turned);
  el.append(root);
  const free = keepFocus(root);
  watch.observe(open);
  return () => {
    model.off("change:page", turned);
    watch.disconnect();
    tabs.node.remove();
    free();
  };
}

export default { render };
