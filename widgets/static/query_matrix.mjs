// The query matrix: questions against groups of users. All text enters as text nodes.
import { clamp, count, number } from "./geometry.mjs";
import { choice, focused, make } from "./dom.mjs";
import { survivesKernel } from "./kernel.mjs";

const MEASURES = { auc: "told apart", yes_score: "leans to yes", ratio: "shift" };
const BEYOND = { auc: "beyond_chance", yes_score: "yes_score_beyond", ratio: "ratio_beyond" };
const ORDERS = [["alike", "alike together"], ["strongest", "strongest first"], ["dealt", "as dealt"]];
const FULL = { auc: 0.4, yes_score: 0.4, ratio: Math.log(1.5) }; // a distance from the middle of so much has the full colour
const ENDS = { auc: ["", ".5", ".9"], yes_score: [".1", ".5", ".9"], ratio: ["0.67", "1", "1.50"] };

const distance = (cell, measure) => (measure === "ratio" ? Math.log(cell.ratio) : cell[measure] - 0.5);
export const figure = (value, measure) => (value === null || value === undefined ? "" : measure === "ratio" ? value.toFixed(2) : value.toFixed(2).replace(/^0\./, "."));

/** How strongly a cell is coloured, -1 (less than others) to 1 (more); 0 within chance, or where nothing is known. */
export function strength(cell, measure) {
  if (!cell || cell[measure] === null || cell[measure] === undefined || cell[BEYOND[measure]] === false) return 0;
  return clamp(distance(cell, measure) / FULL[measure], measure === "auc" ? 0 : -1, 1);
}

/** In which order rows and columns stand: { rows, columns } of their numbers. */
export function ordered(picture, measure, how) {
  const { cells, groups } = picture;
  if (how === "alike" && picture.orders[measure]) return picture.orders[measure];
  const [rows, columns] = [cells.map((_, i) => i), groups.map((_, j) => j)];
  if (how !== "strongest") return { rows, columns };
  const strongestOf = (line) => Math.max(0, ...line.map((cell) => Math.abs(strength(cell, measure))));
  const best = [rows.map((i) => strongestOf(cells[i])), columns.map((j) => strongestOf(cells.map((row) => row[j])))];
  return { rows: rows.sort((a, b) => best[0][b] - best[0][a]), columns: columns.sort((a, b) => best[1][b] - best[1][a]) };
}

/** Say one cell in words. */
export function words(query, group, cell, unit = "user", units = "users") {
  const who = `“${query}” and ${group.name} (${count(group.n, unit, units)})`;
  if (!cell || cell.auc === null) return `${who}: not asked yet.`;
  const besideChance = (measure, level, levelText) => (cell[BEYOND[measure]] === undefined ? "" : cell[BEYOND[measure]] ? ", beyond chance" : ", within chance") + (level === null || level === undefined ? "" : ` (${levelText})`);
  const reach = cell.auc_low === null || cell.auc_low === undefined ? "" : ` (95 %: ${figure(cell.auc_low)} to ${figure(cell.auc_high)})`;
  const parts = [`${who}: AUC ${figure(cell.auc)}${reach}${besideChance("auc", cell.chance, `chance reaches ${figure(cell.chance)}`)}.`];
  if (cell.yes_score !== null && cell.yes_score !== undefined) {
    const more = cell.yes_score >= 0.5;
    const share = Math.round(100 * (more ? cell.yes_score : 1 - cell.yes_score));
    parts.push(`In ${share} of 100 pairs ${more ? "one of the group" : "the other"} leans more to yes${besideChance("yes_score", null)}.`);
  }
  if (cell.ratio !== null && cell.ratio !== undefined) {
    parts.push(`They shift ${cell.ratio.toFixed(2)} times as far as the others${besideChance("ratio", null)}.`);
  }
  return parts.join(" ");
}

/** The bar of the matrix: a further question, ask, cancel, progress, errors. */
function matrixBar(model) {
  const box = make("input", { type: "text", class: "lens-query", maxlength: 300, spellcheck: "false", autocomplete: "off", "aria-label": "Question for the matrix", placeholder: "Add a question to the matrix, or ask it as it is" });
  const button = make("button", { type: "submit", class: "lens-ask" }, "Ask");
  const form = make("form", { class: "lens-bar" }, box, button);
  const fill = make("div", { class: "lens-fill" });
  const progress = make("div", { class: "lens-progress", role: "progressbar", "aria-label": "Users asked", "aria-valuemin": 0 }, fill);
  const note = make("div", { class: "lens-note", role: "status" });
  const error = make("div", { class: "lens-error", role: "alert", hidden: true });
  function add() {
    const query = box.value.trim();
    model.send(query ? { type: "add_query", query } : { type: "ask" });
    box.value = "";
  }
  box.addEventListener("input", status);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // while busy the form's button cancels, and Enter would press it
    if (box.value.trim() || !model.get("_status").busy) add();
    status();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    model.get("_status").busy ? model.send({ type: "cancel" }) : add();
    status();
  });
  function status() {
    const { busy, done = 0, total = 1, note: word = "", error: wrong = "" } = model.get("_status");
    const added = Boolean(box.value.trim());
    button.textContent = busy ? "Cancel" : added ? "Add and ask" : "Ask all questions";
    button.dataset.role = busy || (model.get("_picture").whole && !added) ? "cancel" : "ask"; // once it is answered, the answer is what counts
    progress.classList.toggle("on", Boolean(busy));
    progress.setAttribute("aria-valuemax", total);
    progress.setAttribute("aria-valuenow", done);
    fill.style.width = `${busy ? Math.max((100 * done) / Math.max(total, 1), 2) : 0}%`;
    note.textContent = busy ? word.replace(/[ .]+$/, "") : word;
    error.textContent = wrong ? `${wrong.replace(/[.!]?$/, ".")} The view goes on working.` : "";
    error.hidden = !wrong;
  }
  return { parts: [form, progress, error], note, status };
}

/** Groups: the selected get a name and a column. */
function naming(model, about) {
  const box = make("input", { type: "text", class: "matrix-input", "aria-label": "Name of the new group", placeholder: "name", maxlength: 60, autocomplete: "off", spellcheck: "false" });
  const save = make("button", { type: "submit", class: "matrix-button" }, "Add as a group");
  const who = make("span", { class: "quiet" });
  const form = make("form", { class: "matrix-name" }, who, box, save);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) model.send({ type: "add_group", name: box.value.trim() });
    box.value = "";
  });
  function show() {
    const { n = 0, group = "" } = model.get("_selected");
    const few = Math.min(n, about.total - n) < about.min_users;
    const problem = few ? `; a group needs at least ${about.min_users}, and as many outside` : "";
    who.textContent = !n ? "" : `${count(n, about.unit, about.units)} selected${group ? `: ${group}` : problem}`;
    for (const part of [box, save]) part.hidden = !n || few || Boolean(group);
  }
  return { form, show };
}

function render({ model, el }) {
  const about = model.get("_about");
  const [bar, names] = [matrixBar(model), naming(model, about)];
  let [measure, how, at] = ["auc", "alike", [0, 0]];
  const measures = make("div", {});
  const orders = choice("Order of rows and columns", ORDERS, how, (value) => ((how = value), orders.press(value), draw()));
  const tools = make("div", { class: "matrix-tools" }, measures, make("span", { class: "matrix-order" }, orders));
  const size = make("span", {});
  const grid = make("table", { class: "matrix-grid", role: "grid", "aria-label": "Questions by groups" });
  const legend = make("div", { class: "matrix-legend" });
  const description = make("p", { class: "matrix-description", "aria-hidden": "true" });
  const [sentence, reads, caption] = [make("p", { class: "lens-sentence", role: "status", "aria-live": "polite" }), make("p", { class: "lens-caption" }), make("p", { class: "lens-caption" })];
  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title), bar.note, size);
  const root = make("div", { class: "lens matrix", "data-lm-suppress-shortcuts": "true" });
  root.append(make("div", { class: "lens-in" }, head, ...bar.parts, tools, make("div", { class: "matrix-scroll" }, grid), make("div", { class: "matrix-under" }, legend, names.form), description, sentence, reads, caption));

  const pickCell = (query, name) => model.send({ type: "cell", query, name });
  const removeButton = (type, rest, label) => make("button", { type: "button", class: "matrix-out", "aria-label": label, title: label, onclick: () => model.send({ type, ...rest }) }, "×");
  function column(group, selectedName) {
    const button = make("button", { type: "button", class: "matrix-head", title: `Select the ${count(group.n, about.unit, about.units)} of ${group.name}`, "aria-pressed": String(group.name === selectedName), onclick: () => pickCell("", group.name) }, make("span", {}, group.name), make("small", {}, number(group.n)));
    return make("th", { scope: "col" }, button, removeButton("remove_group", { name: group.name }, `Take ${group.name} out`));
  }
  function question(query) {
    const button = make("button", { type: "button", class: "matrix-query", title: about.picks ? `Ask “${query}” in the lens` : query, disabled: !about.picks, onclick: () => pickCell(query, "") }, query);
    return make("th", { scope: "row" }, make("div", {}, button, removeButton("remove_query", { query }, `Take “${query}” out`)));
  }
  function square(query, group, cell, place) {
    const s = strength(cell, measure);
    const text = cell ? figure(cell[measure], measure) : "";
    const kind = [cell ? "" : "blank", s ? "beyond" : "", s < 0 ? "less" : ""].join(" ");
    const node = make("td", { class: `matrix-cell ${kind}`, role: "gridcell", tabindex: String(place) === String(at) ? 0 : -1, "aria-label": words(query, group, cell, about.unit, about.units), "data-at": place.join(), style: `--s:${Math.abs(s).toFixed(3)}`, onclick: () => pickCell(query, group.name) }, text || (cell ? "–" : "·"));
    node.addEventListener("focus", () => ((at = place), describe(node)));
    node.addEventListener("pointerenter", () => describe(node));
    node.addEventListener("pointerleave", () => describe(focused(grid)?.closest(".matrix-cell")));
    return node;
  }
  const describe = (node) => {
    const hint = model.get("_picture").measures.length ? "Point at a cell, or walk with the arrow keys: it says itself here. A click selects its group; users that are selected, in any view, can be named and becomes a column." : "";
    description.textContent = node && grid.contains(node) ? node.getAttribute("aria-label") : hint;
    description.classList.toggle("quiet", !(node && grid.contains(node)));
  };
  function draw() {
    const p = model.get("_picture");
    const [selectedName, hasFocus] = [model.get("_selected").group, grid.contains(focused(grid)) && focused(grid).matches(".matrix-cell")];
    const { rows, columns } = ordered(p, measure, p.whole && !model.get("_status").busy ? how : "dealt");
    at = [clamp(at[0], 0, Math.max(rows.length - 1, 0)), clamp(at[1], 0, Math.max(columns.length - 1, 0))];
    const top = make("tr", {}, make("td", { class: "matrix-corner" }), ...columns.map((j) => column(p.groups[j], selectedName)));
    const body = rows.map((i, y) => make("tr", {}, question(p.queries[i]), ...columns.map((j, x) => square(p.queries[i], p.groups[j], p.cells[i][j], [y, x]))));
    grid.style.setProperty("--columns", columns.length);
    grid.replaceChildren(make("thead", {}, top), make("tbody", {}, ...body));
    if (hasFocus) cellAt(at)?.focus({ preventScroll: true });
    describe(hasFocus ? cellAt(at) : null);
    const [low, middle, high] = ENDS[measure];
    const ramp = make("i", { class: `matrix-ramp ${measure === "auc" ? "one" : ""}`, "aria-hidden": "true" });
    const ends = [measure === "auc" ? middle : low, measure === "auc" ? "" : "less", ramp, measure === "auc" ? "" : "more", high];
    legend.replaceChildren(...ends.filter(Boolean).map((part) => (part === ramp ? ramp : make("span", {}, part))), make("span", { class: "quiet" }, "no colour: within chance"));
    legend.hidden = !p.measures.length;
    reads.textContent = p.measures.length ? (p.reads[measure] ?? "") : "";
  }
  const cellAt = ([y, x]) => grid.querySelector(`[data-at="${y},${x}"]`);
  function picture() {
    const p = model.get("_picture");
    if (!p.measures.includes(measure)) measure = "auc";
    const group = choice("What a cell shows", p.measures.map((name) => [name, MEASURES[name]]), measure, (value) => ((measure = value), group.press(value), draw()));
    measures.replaceChildren(...(p.measures.length > 1 ? [group] : []));
    tools.hidden = !p.measures.length;
    size.textContent = `${count(p.queries.length, "question", "questions")}, ${count(p.groups.length, "group", "groups")}, ${count(about.total, about.unit, about.units)}`;
    sentence.textContent = p.sentence || (p.measures.length ? "" : about.hint);
    sentence.classList.toggle("matrix-hint", !p.sentence);
    caption.textContent = p.caption;
    const cells = p.cells.flat();
    Object.assign(root.dataset, { ready: "true", cells: cells.filter(Boolean).length, of: cells.length, whole: String(p.whole) });
    draw();
    bar.status();
  }
  function status() {
    const { busy, error = "" } = model.get("_status");
    const turned = root.dataset.busy !== String(Boolean(busy));
    Object.assign(root.dataset, { busy: String(Boolean(busy)), error });
    bar.status();
    if (turned) draw();
  }
  function selected() {
    const { n = 0, group = "" } = model.get("_selected");
    root.dataset.chosen = n;
    names.show();
    for (const button of grid.querySelectorAll(".matrix-head")) button.setAttribute("aria-pressed", String(button.firstChild.textContent === group && Boolean(group)));
  }
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -99], End: [0, 99] };
  grid.addEventListener("keydown", (event) => {
    const cell = event.target.closest(".matrix-cell");
    if (!cell) return;
    const [p, step] = [model.get("_picture"), steps[event.key]];
    if (step) {
      const next = [clamp(at[0] + step[0], 0, p.queries.length - 1), clamp(at[1] + step[1], 0, p.groups.length - 1)];
      cell.tabIndex = -1;
      at = next;
      const node = cellAt(next);
      node.tabIndex = 0;
      node.focus();
    } else if (event.key === "Enter" || event.key === " ") cell.click();
    else return;
    event.preventDefault();
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && model.get("_status").busy) (model.send({ type: "cancel" }), event.preventDefault());
    event.stopPropagation(); // the notebook has keys of its own
  });
  const handlers = { _picture: picture, _status: status, _selected: selected };
  for (const [name, act] of Object.entries(handlers)) model.on(`change:${name}`, act);
  el.append(root);
  [picture, status, selected].forEach((act) => act());
  return () => Object.entries(handlers).forEach(([name, act]) => model.off(`change:${name}`, act));
}

export default { render: survivesKernel(render) };
