// The prompt tuning view: a form, a curve that grows, and a table of what was gained. All text enters as text nodes.
import { focused, make } from "./dom.mjs";
import { survivesKernel } from "./kernel.mjs";

const SPACE = "http://www.w3.org/2000/svg";
const WIDE = 198; // of a drawn interval
const EDGE = { top: 34, right: 92, bottom: 34, left: 46 };

/** An SVG element with properties; a string child becomes a text node. */
function draw(tag, props = {}, ...children) {
  const node = document.createElementNS(SPACE, tag);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Three to six round numbers that span low to high. */
export function ticks(low, high, about = 4) {
  const rough = Math.max(high - low, 1e-9) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(12)));
  return out;
}

/** Seconds as one would say them. */
export function spell(seconds) {
  if (!(seconds >= 0)) return "";
  if (seconds < 10) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 90) return `${5 * Math.round(seconds / 5)} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** Two heights kept at least `gap` apart. */
export function apart(a, b, gap) {
  if (Math.abs(a - b) >= gap) return [a, b];
  const middle = (a + b) / 2;
  return a <= b ? [middle - gap / 2, middle + gap / 2] : [middle + gap / 2, middle - gap / 2];
}

/** The curve of a tuning, drawn anew when it grows or the room changes. */
function curveOf(box) {
  let curve = {};
  const empty = make("p", { class: "lens-empty" }, "Pick a label, write a question, press Start. The loss is drawn here as it falls: on users that are tuned on, and on validation users, who say which step to keep.");
  const text = (x, y, words, kind, anchor = "start") => draw("text", { x, y, class: kind, "text-anchor": anchor }, words);
  function show(next = curve) {
    curve = next;
    const width = box.clientWidth;
    box.classList.toggle("lab-empty", !curve.step?.length);
    if (!curve.step?.length || !width) return box.replaceChildren(empty);
    box.replaceChildren(picture(width, box.clientHeight));
  }
  function picture(width, height) {
    const { step, loss, valid, best, steps } = curve;
    const known = [...loss, ...valid].filter((v) => v !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const pad = Math.max((high - low) * 0.12, 0.01);
    const x = (s) => EDGE.left + (s / Math.max(steps, 1)) * (width - EDGE.left - EDGE.right);
    const y = (v) => EDGE.top + ((high + pad - v) / (high - low + 2 * pad)) * (height - EDGE.top - EDGE.bottom);
    const lowest = valid[step.indexOf(best)];
    const summary = `Loss by step, to step ${step.at(-1)} of ${steps}. Validation: ${valid[0].toFixed(3)} at step 0, least ${lowest.toFixed(3)} at step ${best}.`;
    const svg = draw("svg", { class: "lab-curve", width, height, role: "img", "aria-label": summary });
    for (const v of ticks(low - pad, high + pad)) {
      svg.append(draw("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(v), y2: y(v) }), text(EDGE.left - 8, y(v) + 4, String(v), "tick", "end"));
    }
    const floor = height - EDGE.bottom;
    const marks = ticks(0, steps, Math.min(6, width / 90)).filter(Number.isInteger);
    for (const s of marks) svg.append(text(x(s), floor + 18, String(s), "tick", "middle"));
    svg.append(text(EDGE.left - 8, EDGE.top - 14, "loss", "name", "end"), text(x(marks.at(-1) ?? 0) + 14, floor + 18, marks.length > 1 ? "steps" : "", "name"));
    svg.append(draw("line", { class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: floor, y2: floor }));
    svg.append(draw("line", { class: "best", x1: x(best), x2: x(best), y1: EDGE.top - 10, y2: floor }));
    line(svg, "tuned", loss, (s, v) => draw("rect", { x: x(s) - 2.5, y: y(v) - 2.5, width: 5, height: 5 }), x, y);
    line(svg, "valid", valid, (s, v) => draw("circle", { cx: x(s), cy: y(v), r: 3 }), x, y);
    svg.append(draw("path", { class: "kept", d: `M${x(best)} ${y(lowest) - 7}l7 7l-7 7l-7-7z` }));
    names(svg, x, y, best);
    return svg;
  }
  function line(svg, kind, values, mark, x, y) {
    const at = values.map((v, i) => [curve.step[i], v]).filter(([, v]) => v !== null);
    if (!at.length) return;
    const group = draw("g", { class: `line ${kind}` }, draw("path", { d: `M${at.map(([s, v]) => `${x(s)} ${y(v)}`).join("L")}` }));
    if (at.length <= 80) group.append(...at.map(([s, v]) => mark(s, v)));
    svg.append(group);
  }
  function names(svg, x, y, best) {
    const { step, loss, valid } = curve;
    const [end, last] = [x(step.at(-1)) + 12, loss.at(-1)];
    const [up, down] = last === null ? [y(valid.at(-1)), 0] : apart(y(valid.at(-1)), y(last), 16);
    svg.append(text(end, up + 4, "validation", "label valid"));
    if (last !== null) svg.append(text(end, down + 4, "tuning", "label tuned"));
    svg.append(text(x(best), EDGE.top - 15, `best: step ${best}`, "label", x(best) < EDGE.left + 40 ? "start" : "middle"));
  }
  const watch = new ResizeObserver(() => show());
  watch.observe(box);
  return { show, destroy: () => watch.disconnect() };
}

/** A gain as a point on its interval, zero marked; all rows share one scale. */
function interval(ends, most, side) {
  const x = (v) => WIDE / 2 + (v / most) * (WIDE / 2 - 6);
  const [low, gain, high] = ends.map(x);
  return draw(
    "svg", { class: `lab-interval ${side ? "beyond" : ""}`, width: WIDE, height: 18, "aria-hidden": "true" },
    draw("line", { class: "zero", x1: WIDE / 2, x2: WIDE / 2, y1: 0, y2: 18 }),
    draw("line", { class: "reach", x1: low, x2: high, y1: 9, y2: 9 }),
    side ? draw("path", { d: `M${gain} 3.5l5.5 5.5l-5.5 5.5l-5.5-5.5z` }) : draw("circle", { cx: gain, cy: 9, r: 4 }),
  );
}

/** The table of what was gained, and where to keep the prompt. */
function resultOf(model) {
  const head = ["", "before", "after", "gain", "95 % interval"];
  const body = make("tbody");
  const title = make("caption");
  const table = make("table", { class: "lab-table" }, title, make("thead", {}, make("tr", {}, ...head.map((word) => make("th", { scope: "col" }, word)))), body);
  const empty = make("p", { class: "lens-empty" }, "What is gained stands here: the same probe before and after, on users that were held out from all tuning.");
  const folder = make("input", { type: "text", class: "lab-folder", spellcheck: "false", "aria-label": "Folder for the prompt" });
  const button = make("button", { type: "submit", class: "lens-write" }, "Save prompt");
  const note = make("span", { class: "lab-saved", role: "status" });
  const form = make("form", { class: "lab-save" }, make("label", {}, "Folder", folder), button, note);
  form.addEventListener("submit", (event) => (event.preventDefault(), model.send({ type: "save", folder: folder.value })));
  const node = make("div", { class: "lab-result", role: "region", "aria-label": "What was gained" }, empty, table, form);
  function show() {
    const { rows = [], label, query, folder: name } = model.get("_result");
    [empty.hidden, table.hidden] = [rows.length > 0, !rows.length];
    form.hidden = !rows.length;
    if (!rows.length) return;
    title.replaceChildren(make("b", {}, label), ` asked as “${query || "nothing"}”`);
    const most = Math.max(...rows.flatMap((row) => row.ends.map(Math.abs)), 1e-9);
    body.replaceChildren(...rows.map((row) => make(
      "tr", {},
      make("th", { scope: "row" }, row.name), make("td", {}, row.before), make("td", { class: "after" }, row.after),
      make("td", { class: row.side ? "beyond" : "" }, row.gain),
      make("td", {}, interval(row.ends, most, row.side), make("small", {}, make("span", {}, row.interval), row.verdict)),
    )));
    folder.value = name;
  }
  function saved() {
    const { note: word = "", error = "" } = model.get("_saved");
    note.textContent = error || word;
    note.classList.toggle("wrong", Boolean(error));
  }
  return { node, show, saved };
}

/** The form: what to teach, and how; while it runs, two ways to end it. */
function formOf(model, about) {
  const number = (name, words) => {
    const [min, max] = [about.minima[name], about.maxima[name]];
    const box = make("input", { type: "number", class: `lab-number lab-${name}`, min, max, step: 1, required: true });
    return { box, node: make("label", {}, words, box) };
  };
  const label = make("select", { class: "lab-label", "aria-label": "Label to learn from" }, ...about.labels.map((name) => make("option", { value: name }, name)));
  const list = make("datalist", { id: `lab-${Math.random().toString(36).slice(2)}` }, ...about.queries.map((q) => make("option", { value: q })));
  const query = make("input", { type: "text", class: "lens-query", list: list.id, spellcheck: "false", autocomplete: "off", "aria-label": "Question", placeholder: "A question, also a vague one; the labels say what is meant" });
  const parts = { vectors: number("vectors", "Vectors"), steps: number("steps", "Steps"), seed: number("seed", "Seed") };
  const start = make("button", { type: "submit", class: "lens-ask" }, "Start");
  const stop = make("button", { type: "button", class: "lens-ask lab-stop", hidden: true, onclick: () => model.send({ type: "stop" }) }, "Stop and keep");
  const cancel = make("button", { type: "button", class: "lens-ask lab-cancel", "data-role": "cancel", hidden: true, onclick: () => model.send({ type: "cancel" }) }, "Cancel");
  const time = make("span", { class: "lab-time" });
  const note = make("span", { class: "lens-note" });
  const spoken = make("div", { class: "lens-hidden", role: "status" });
  const fill = make("div", { class: "lens-fill" });
  const bar = make("div", { class: "lens-progress", role: "progressbar", "aria-label": "Steps tuned", "aria-valuemin": 0 }, fill);
  const error = make("div", { class: "lens-error", role: "alert", hidden: true });
  const form = make(
    "form", { class: "lab-form" },
    make("div", { class: "lens-bar" }, make("label", { class: "lab-teach" }, "Label", label), make("label", { class: "lab-asked" }, "Question", query), list, start, stop, cancel),
    make("div", { class: "lab-how" }, parts.vectors.node, parts.steps.node, parts.seed.node, time, note),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (model.get("_status").busy) return;
    const numbers = Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, part.box.value]));
    model.send({ type: "tune", label: label.value, query: query.value, ...numbers });
  });
  function fields() {
    const form = model.get("_form");
    [label.value, query.value] = [form.label, form.query];
    for (const [name, part] of Object.entries(parts)) part.box.value = form[name];
  }
  function expect() {
    const { seconds_per_step: each, busy } = model.get("_status");
    const { vectors, steps } = about.paper;
    const here = each && spell(each * Number(parts.steps.box.value));
    time.textContent = busy ? "" : [here && `about ${here} here`, `the paper: ${vectors} vectors, ${steps} steps`].filter(Boolean).join("; ");
  }
  parts.steps.box.addEventListener("input", expect);
  function status() {
    const { busy, done: step = 0, total: steps = 1, seconds_left: left, message = "", note: word = "", error: wrong = "", stopping, cancelling } = model.get("_status");
    const pressed = [start, stop, cancel].find((button) => button === focused(form));
    [start.hidden, stop.hidden, cancel.hidden] = [busy, !busy, !busy];
    stop.disabled = Boolean(stopping || cancelling || !step || message);
    if (pressed?.hidden) (busy ? cancel : start).focus(); // the keyboard must not lose its place
    bar.classList.toggle("on", Boolean(busy));
    bar.setAttribute("aria-valuemax", steps);
    bar.setAttribute("aria-valuenow", step);
    fill.style.width = `${busy ? Math.max((100 * step) / Math.max(steps, 1), 2) : 0}%`;
    const working = message || `step ${step} of ${steps}${left > 0 ? `, about ${spell(left)} left here` : ""}`;
    note.textContent = busy ? (cancelling ? "Cancelling" : stopping && !message ? "Stopping after this step" : working) : word;
    bar.setAttribute("aria-valuetext", note.textContent);
    const announcement = busy ? message || "Tuning" : word; // phases are spoken, steps are not
    if (spoken.textContent !== announcement) spoken.textContent = announcement;
    error.textContent = wrong ? `${wrong.replace(/[.!]?$/, ".")} The view goes on working; the log has the whole error.` : "";
    error.hidden = !wrong;
    expect();
  }
  return { parts: [form, bar, error, spoken], fields, status };
}

function render({ model, el }) {
  const about = model.get("_about");
  const form = formOf(model, about);
  const box = make("div", { class: "lab-plot" });
  const curve = curveOf(box);
  const result = resultOf(model);
  const sentence = make("p", { class: "lens-sentence", role: "status", "aria-live": "polite" });
  const caption = make("p", { class: "lens-caption" });
  const labels = about.labels.length;
  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title), make("span", {}, `${labels} ${labels === 1 ? "label" : "labels"}`));
  const root = make("div", { class: "lens lab", "data-lm-suppress-shortcuts": "true", "data-ready": "true", "data-moving": "false" });
  root.append(make("div", { class: "lens-in" }, head, ...form.parts, make("div", { class: "lab-body" }, box, result.node), sentence, caption));

  function gained() {
    const { sentence: words = "", caption: how = "" } = model.get("_result");
    [sentence.textContent, caption.textContent] = [words.replaceAll(" %", "\u00a0%"), how];
    root.dataset.result = words;
    result.show();
  }
  function status() {
    const { busy, done: step, error, note } = model.get("_status");
    Object.assign(root.dataset, { busy: String(Boolean(busy)), step: step ?? "", error: error || "", note: note || "" });
    form.status();
    result.node.classList.toggle("lab-old", Boolean(busy));
  }
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && model.get("_status").busy) (model.send({ type: "cancel" }), event.preventDefault());
    event.stopPropagation(); // the notebook has keys of its own
  });
  const handlers = { _form: form.fields, _status: status, _curve: () => curve.show(model.get("_curve")), _result: gained, _saved: result.saved };
  for (const [name, act] of Object.entries(handlers)) model.on(`change:${name}`, act);
  el.append(root);
  Object.values(handlers).forEach((act) => act());
  return () => {
    for (const [name, act] of Object.entries(handlers)) model.off(`change:${name}`, act);
    curve.destroy();
  };
}

export default { render: survivesKernel(render) };
