// The retention view: curves of who stays period by period, and bars of how far users go.
import { count, number, percent } from "./geometry.mjs";
import { make, svg } from "./dom.mjs";
import { survivesKernel } from "./kernel.mjs";

const WIDTH = 460; // of the drawing, in its own units
const HEIGHT = 190;
const LEFT = 46;
const RIGHT = 118;
const TOP = 10;
const BOTTOM = 26;

const PERIODS = { 1: "day", 7: "week", 30: "month (30 days)", 90: "quarter (90 days)" };

/** The name of a period of some days. */
const periodName = (days) => PERIODS[days] ?? `period of ${days} days`;

/** The rows of each side, in order. */
function bySide(rows, sides) {
  return Object.keys(sides)
    .map((side) => [side, rows.filter((row) => row.side === side)])
    .filter(([, own]) => own.length);
}

/** The curves: one line for each side, and its 95 % interval as a band. */
function curves(about, { rows, days, sentence }) {
  const last = Math.max(...rows.map((row) => row.period), 1);
  const x = (period) => LEFT + (period / last) * (WIDTH - LEFT - RIGHT);
  const y = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": sentence, class: "ret-curves" });
  for (const share of [0, 0.5, 1]) {
    picture.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share), class: "ret-grid" }));
    picture.append(svg("text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
  }
  const step = Math.ceil(last / 6);
  for (let period = 0; period <= last; period += step) {
    picture.append(svg("text", { x: x(period), y: HEIGHT - 8, "text-anchor": "middle" }, String(period)));
  }
  const ends = [];
  for (const [side, own] of bySide(rows, about.sides)) {
    const upper = own.map((row) => `${x(row.period)},${y(row.high)}`);
    const lower = own.map((row) => `${x(row.period)},${y(row.low)}`).reverse();
    picture.append(svg("polygon", { points: [...upper, ...lower].join(" "), class: `ret-band ${side}` }));
    const line = own.map((row) => `${x(row.period)},${y(row.share)}`).join(" ");
    picture.append(svg("polyline", { points: line, class: `ret-line ${side}` }));
    for (const row of own) {
      const dot = svg("circle", { cx: x(row.period), cy: y(row.share), r: 2.5, class: `ret-dot ${side}` });
      dot.append(svg("title", {}, `${periodName(days)} ${row.period}: ${number(row.active)} of ${count(row.users, "user", about.units)}, ${percent(row.share)} (95 %: ${percent(row.low)} to ${percent(row.high)})`));
      picture.append(dot);
    }
    const end = own.at(-1);
    ends.push({ side, x: x(end.period) + 7, y: y(end.share) + 4, text: `${about.sides[side]} ${percent(end.share)}` });
  }
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, place) => {
    if (place && end.y - ends[place - 1].y < 13) end.y = ends[place - 1].y + 13; // names must not lie on each other
    picture.append(svg("text", { x: end.x, y: end.y, class: `ret-name ${end.side}` }, end.text));
  });
  return picture;
}

/** The bars of a funnel: each step with a bar for each side. */
function bars(about, rows) {
  const steps = [...new Set(rows.map((row) => row.step))];
  const at = (share) => `${(100 * share).toFixed(2)}%`;
  const items = steps.map((step) => {
    const lines = rows.filter((row) => row.step === step).map((row) => {
      const track = make("span", { class: "sel-track" }, make("i", { class: row.side === "rest" ? "rest" : "group", style: `width:${at(row.share)}` }), make("b", { style: `left:${at(row.low)};width:${at(row.high - row.low)}` }));
      const title = `${about.sides[row.side]}: ${number(row.active)} of ${number(row.users)}, 95 %: ${percent(row.low)} to ${percent(row.high)}`;
      return make("span", { class: "sel-line", title }, track, make("span", { class: "lens-figure" }, percent(row.share)));
    });
    return make("li", {}, make("span", { class: "sel-name", title: step }, step), make("span", { class: "sel-pair" }, ...lines));
  });
  return make("ol", { class: "sel-rows ret-steps", tabindex: 0, "aria-label": "Steps of the funnel" }, ...items);
}

function render({ model, el }) {
  const about = model.get("_about");
  const key = (side) => make("span", {}, make("i", { class: `sel-key ${side}`, "aria-hidden": "true" }), about.sides[side]);
  const legend = make("span", { class: "sel-legend" }, key("group"), key("rest"));
  const drawing = make("div", { class: "ret-drawing" });
  const words = make("p", { class: "ret-said", "aria-live": "polite" });
  const caption = make("p", { class: "lens-caption" });
  const kept = make("section", { class: "sel-part" }, make("div", { class: "sel-parthead" }, make("h3", {}, "Still active after the first day"), legend), drawing, words, caption);

  const example = about.steps.slice(0, 3).join(", ") || "view, cart, purchase";
  const box = make("input", { type: "text", class: "sel-input ret-box", "aria-label": "Steps of a funnel, with commas between", placeholder: example, autocomplete: "off", spellcheck: "false" });
  const ask = (event) => {
    event.preventDefault();
    model.send({ type: "funnel", text: box.value || example });
  };
  const form = make("form", { class: "sel-form", onsubmit: ask }, box, make("button", { type: "submit", class: "sel-button" }, "Show funnel"));
  const list = make("div", {});
  const said = make("p", { class: "ret-said", "aria-live": "polite" });
  const hint = make("p", { class: "sel-hint" }, "Steps in order, with commas (or ->) between: kinds of events, or words that stand in an event. Each step counts who did it after the step before.");
  const far = make("section", { class: "sel-part" }, make("div", { class: "sel-parthead" }, make("h3", {}, "How far they go")), form, list, said, hint);

  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title));
  const body = make("div", { class: "sel-body ret-body" }, kept, far);
  const root = make("div", { class: "lens sel ret", "data-lm-suppress-shortcuts": "true" }, make("div", { class: "lens-in" }, head, body));

  function curve() {
    const latest = model.get("_curve");
    words.textContent = latest.error ?? latest.sentence ?? "";
    const rows = latest.rows ?? [];
    drawing.replaceChildren(...(rows.length ? [curves(about, latest)] : []));
    legend.hidden = new Set(rows.map((row) => row.side)).size < 2;
    caption.textContent = rows.length ? `Share of ${about.units} with an event in each ${periodName(latest.days)} after their own first day, of those for whom it is over. Bands: 95 % intervals.` : "";
    root.dataset.periods = rows.length;
  }
  function funnel() {
    const latest = model.get("_steps");
    said.textContent = latest.error ?? latest.sentence ?? "";
    const rows = latest.rows ?? [];
    list.replaceChildren(...(rows.length ? [bars(about, rows)] : []));
    hint.hidden = rows.length > 0;
    if (latest.text && !box.value) box.value = latest.text;
    root.dataset.steps = rows.length;
  }
  root.addEventListener("keydown", (event) => event.stopPropagation()); // the notebook has keys of its own
  const handlers = { _curve: curve, _steps: funnel };
  for (const [name, act] of Object.entries(handlers)) model.on(`change:${name}`, act);
  el.append(root);
  curve();
  funnel();
  return () => Object.entries(handlers).forEach(([name, act]) => model.off(`change:${name}`, act));
}

export default { render: survivesKernel(render, ["_status"]) };
