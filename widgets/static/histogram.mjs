// A histogram of the scores, on which a range of users is chosen.
import { clamp, count } from "./geometry.mjs";
import { make, modeOf, svg } from "./dom.mjs";

const BINS = 40;
const WIDTH = 300; // of the drawing, in its own units
const HEIGHT = 44;
const BEST = 0.1; // share of the users that the button selects

/** The histogram; `select(rows, mode)` is called with the rows of the users in the range that was drawn. */
export function scoreHistogram(about, select) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 2}`, preserveAspectRatio: "none", class: "lens-bins", "aria-hidden": "true" });
  const caption = make("span", {}, "score, no to yes: draw over it to select");
  const best = make("button", { type: "button", class: "lens-link", title: "Shift adds them, Alt takes them away" });
  const node = make("div", { class: "lens-histogram", hidden: true }, picture, make("div", { class: "lens-histogramfoot" }, caption, best));
  let scores = null;
  let [low, high] = [0, 1];
  let scale = 0; // height of one user
  let begin = null; // where the pointer went down, as a share of the width

  const shareOf = (score) => (score - low) / (high - low || 1);
  const binOf = (score) => clamp(Math.floor(BINS * shareOf(score)), 0, BINS - 1);
  const known = () => [...scores.keys()].filter((row) => Number.isFinite(scores[row]));

  function show(values) {
    scores = values;
    node.hidden = !values;
    if (!values) return;
    const rows = known();
    low = rows.reduce((least, row) => Math.min(least, scores[row]), Infinity);
    high = rows.reduce((most, row) => Math.max(most, scores[row]), -Infinity);
    const counts = new Array(BINS).fill(0);
    for (const row of rows) counts[binOf(scores[row])] += 1;
    const top = Math.max(...counts, 1);
    const wide = WIDTH / BINS;
    scale = HEIGHT / top;
    const bar = (bin, n, kind) => svg("rect", { x: bin * wide + 0.5, y: HEIGHT - n * scale, width: wide - 1, height: n * scale, "data-bin": bin, class: kind });
    const bars = counts.map((n, bin) => bar(bin, n, "all"));
    const selected = counts.map((_, bin) => bar(bin, 0, "chosen"));
    picture.replaceChildren(...bars, ...selected, svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5 }));
    const n = Math.ceil(BEST * rows.length);
    best.textContent = `select the best ${count(n, about.unit, about.units)}`;
    best.onclick = (event) => {
      const order = known().sort((a, b) => scores[b] - scores[a] || a - b);
      select(order.slice(0, n), modeOf(event));
    };
  }

  /** Colour as much of each bar as is selected. */
  function follow(selected) {
    if (!scores) return;
    const counts = new Array(BINS).fill(0);
    for (const row of selected) if (Number.isFinite(scores[row])) counts[binOf(scores[row])] += 1;
    for (const bar of picture.querySelectorAll(".chosen")) {
      const tall = counts[bar.dataset.bin] * scale;
      bar.setAttribute("y", HEIGHT - tall);
      bar.setAttribute("height", tall);
    }
  }

  const place = (event) => {
    const box = picture.getBoundingClientRect();
    return clamp((event.clientX - box.left) / box.width, 0, 1);
  };
  const between = (one, two) => {
    const [from, to] = [Math.min(one, two), Math.max(one, two)];
    const first = Math.floor(from * BINS);
    const last = Math.min(Math.floor(to * BINS), BINS - 1);
    return [first, last];
  };
  picture.addEventListener("pointerdown", (event) => {
    begin = place(event);
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", (event) => {
    if (begin === null) return;
    const [first, last] = between(begin, place(event));
    for (const bar of picture.querySelectorAll(".all")) bar.classList.toggle("drawn", bar.dataset.bin >= first && bar.dataset.bin <= last);
  });
  picture.addEventListener("pointerup", (event) => {
    if (begin === null) return;
    const [first, last] = between(begin, place(event));
    begin = null;
    for (const bar of picture.querySelectorAll("rect")) bar.classList.remove("drawn");
    const rows = known().filter((row) => binOf(scores[row]) >= first && binOf(scores[row]) <= last);
    select(rows, modeOf(event));
  });
  picture.addEventListener("pointercancel", () => (begin = null));
  return { node, show, follow };
}
