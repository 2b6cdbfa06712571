// The selection panel: who is selected, what sets them apart, which question tells them, names, files.
import { count, number, percent } from "./geometry.mjs";
import { choice, make } from "./dom.mjs";
import { survivesKernel } from "./kernel.mjs";

const KINDS = { all: "all", text: "events", modality: "modalities", label: "labels", fact: "facts", number: "numbers" };
const FLOOR = 0.5; // an AUC below says nothing: the axis of the ranking begins here

const written = (row, value) => {
  if (value === null || value === undefined) return "";
  if (row.kind !== "number") return percent(value);
  return Math.abs(value) >= 100 || Number.isInteger(value) ? number(value) : String(Number(value.toPrecision(3)));
};
const at = (share) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(2)}%`;

/** One bar with its whisker and its figure. */
function bar(row, side, scale) {
  const [value, low, high] = ["", "_low", "_high"].map((end) => row[side + end] ?? null);
  const track = make("span", { class: "sel-track" }, make("i", { class: side, style: `width:${at(value / scale)}` }));
  if (low !== null) track.append(make("b", { style: `left:${at(low / scale)};width:${at((high - low) / scale)}` }));
  return make("span", { class: "sel-line" }, track, make("span", { class: `lens-figure ${side === "rest" ? "quiet" : ""}` }, written(row, value)));
}

/** What sets the selected apart: paired bars, the most telling first. */
function comparison(model) {
  const key = (side, text) => make("span", {}, make("i", { class: `sel-key ${side}`, "aria-hidden": "true" }), text);
  const list = make("ol", { class: "sel-rows", tabindex: 0, "aria-label": "What sets the selected apart from the rest" });
  const note = make("p", { class: "lens-caption" });
  let [kind, kinds] = ["all", null];
  const filter = make("div", {});
  const node = make("section", { class: "sel-part" },
    make("div", { class: "sel-parthead" }, make("h3", {}, "What sets them apart"), make("span", { class: "sel-legend" }, key("group", "selected"), key("rest", "the rest"))),
    filter, list, note);
  function item(row) {
    const scale = row.kind === "number" ? Math.max(row.group_high ?? row.group, row.rest_high ?? row.rest) || 1 : 1;
    const faint = row.beyond_chance === false;
    const what = { number: "median", text: "event" }[row.kind] ?? row.kind;
    return make("li", { class: faint ? "faint" : "", "data-kind": row.kind },
      make("span", { class: "sel-name", title: row.name }, row.name),
      make("span", { class: "sel-kind" }, faint ? `${what} · within chance` : what),
      make("span", { class: "sel-pair" }, bar(row, "group", scale), bar(row, "rest", scale)));
  }
  function fill() {
    const { rows = [], of = 0 } = model.get("_shown");
    const visible = rows.filter((row) => kind === "all" || row.kind === kind).slice(0, kind === "all" ? 14 : 7);
    list.replaceChildren(...visible.map(item));
    list.scrollTop = 0;
    const line = rows.some((row) => "group_low" in row) ? " The line across a bar is its 95\u00a0% interval." : "";
    note.textContent = visible.length ? `${visible.length} of ${number(of)} things compared, the most telling first.${line}` : "";
  }
  function show() {
    const { rows = [], waiting } = model.get("_shown");
    node.classList.toggle("sel-stale", Boolean(waiting));
    if (!rows.length && waiting) return;
    const available = ["all", ...Object.keys(KINDS).filter((name) => rows.some((row) => row.kind === name))];
    if (String(available) !== String(kinds)) {
      kinds = available;
      if (!available.includes(kind)) kind = "all";
      const group = choice("Kind of thing", available.map((name) => [name, KINDS[name]]), kind, (value) => ((kind = value), group.press(value), fill()));
      filter.replaceChildren(group);
    }
    fill();
  }
  return { node, show };
}

/** Which question tells them: dots with intervals on an axis, and the line that chance reaches. */
function questions(model, about) {
  const button = make("button", { type: "button", class: "lens-ask sel-ask", onclick: () => model.send({ type: model.get("_status").busy ? "cancel" : "explain" }) });
  const fill = make("div", { class: "lens-fill" });
  const progress = make("div", { class: "lens-progress", role: "progressbar", "aria-label": "Questions asked", "aria-valuemin": 0 }, fill);
  const note = make("div", { class: "lens-note", role: "status" });
  const body = make("div", { class: "sel-ranking" });
  const words = make("p", { class: "sel-said", "aria-live": "polite" });
  const caption = make("p", { class: "lens-caption" });
  const node = make("section", { class: "sel-part", hidden: !about.explains },
    make("div", { class: "sel-parthead" }, make("h3", {}, "Questions that tell them"), note), make("div", { class: "sel-go" }, button), progress, words, body, caption);
  function status() {
    const { busy, done = 0, total = 1, note: word = "" } = model.get("_status");
    button.textContent = busy ? "Cancel" : "Which question explains them?";
    button.dataset.role = busy || model.get("_ranked").current ? "cancel" : "ask"; // once it is answered, the answer is what counts
    button.disabled = !busy && !model.get("_shown").n;
    progress.classList.toggle("on", Boolean(busy));
    progress.setAttribute("aria-valuemax", total);
    progress.setAttribute("aria-valuenow", done);
    fill.style.width = `${busy ? Math.max((100 * done) / Math.max(total, 1), 2) : 0}%`;
    note.textContent = busy ? word.replace(/[ .]+$/, "") : "";
  }
  function show() {
    const { rows = [], sentence = "", caption: how = "", n, current } = model.get("_ranked");
    node.classList.toggle("sel-stale", Boolean(rows.length && !current));
    words.textContent = rows.length && !current ? `Of the ${count(n, about.unit, about.units)} selected before: ${sentence}` : sentence;
    caption.textContent = how;
    const chance = rows.length ? rows[0].chance : null;
    const place = (auc) => at((auc - FLOOR) / (1 - FLOOR));
    const items = rows.map((row) => {
      const track = make("span", { class: "sel-axis" },
        make("b", { style: `left:${place(row.auc_low)};width:calc(${place(row.auc_high)} - ${place(row.auc_low)})` }), make("i", { style: `left:${place(row.auc)}` }));
      const range = `AUC ${row.auc.toFixed(3)}, 95 %: ${row.auc_low.toFixed(2)} to ${row.auc_high.toFixed(2)}`;
      const style = row.beyond_chance === false ? "faint" : "";
      return make("li", { class: style, title: range }, make("span", { class: "sel-query", title: row.query }, row.query), track, make("span", { class: "lens-figure" }, row.auc.toFixed(2)));
    });
    const line = chance === null ? null : make("span", { class: "sel-chance", style: `left:${place(chance)}`, title: "the best of all questions stays below this in 95 % of random groups of the same size" });
    const reached = chance === null ? "" : make("em", { style: `left:${place(chance)}` }, `chance ${chance.toFixed(2)}`);
    const ends = [chance === null || chance > 0.66 ? make("small", {}, "0.5") : "", chance === null || chance < 0.84 ? make("small", {}, "1") : ""];
    const ticks = make("span", { class: "sel-ticks" }, ends[0], reached, ends[1]);
    const head = make("div", { class: "sel-axishead", "aria-hidden": "true" }, make("span", {}, "question"), ticks, make("span", {}, "AUC"));
    const list = make("ol", { class: "sel-rows", tabindex: 0, "aria-label": "Questions, best first" }, ...items);
    body.replaceChildren(...(rows.length ? [head, make("div", { class: "sel-lined" }, list, make("div", { class: "sel-over" }, line))] : [make("p", { class: "sel-hint" }, `Asks all ${about.units} each question of a list, and ranks the questions by how well their embeddings separate the selected from the rest, beside what chance alone would reach.`)]));
    status();
  }
  return { node, show, status };
}

/** Names: save, recall, forget, and what two of them make. */
function names(model) {
  const box = make("input", { type: "text", class: "sel-input", "aria-label": "Name of the group", placeholder: "Name this group", maxlength: 80, autocomplete: "off", spellcheck: "false" });
  const save = make("button", { type: "submit", class: "sel-button" }, "Save");
  const form = make("form", { class: "sel-form" }, box, save);
  const chips = make("div", { class: "sel-chips", role: "group", "aria-label": "Named groups" });
  const [first, second] = ["First group", "Second group"].map((label) => make("select", { class: "sel-input", "aria-label": label }));
  const ways = [["intersect", "and"], ["unite", "or"], ["subtract", "but not"]];
  const how = make("select", { class: "sel-input", "aria-label": "How to combine them" }, ...ways.map(([value, text]) => make("option", { value }, text)));
  const go = make("button", { type: "submit", class: "sel-button" }, "Select");
  const combine = make("form", { class: "sel-form", hidden: true }, first, how, second, go);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) model.send({ type: "save", name: box.value });
    box.value = "";
  });
  combine.addEventListener("submit", (event) => {
    event.preventDefault();
    model.send({ type: "combine", first: first.value, how: how.value, second: second.value });
  });
  function chip({ name, n }) {
    const recall = make("button", { type: "button", class: "sel-recall", title: "Select these users", onclick: () => model.send({ type: "recall", name }) }, make("span", {}, name), make("small", {}, number(n)));
    const forget = make("button", { type: "button", class: "sel-forget", "aria-label": `Forget ${name}`, title: "Forget this name", onclick: () => model.send({ type: "forget", name }) }, "×");
    return make("span", { class: "sel-chip" }, recall, forget);
  }
  function show() {
    const groups = model.get("_names");
    chips.replaceChildren(...groups.map(chip));
    const earlier = [first.value, second.value === first.value ? "" : second.value];
    [first, second].forEach((select, i) => {
      select.replaceChildren(...groups.map(({ name }) => make("option", { value: name }, name)));
      const wanted = groups.some(({ name }) => name === earlier[i]) ? earlier[i] : groups.find(({ name }) => !i || name !== first.value)?.name;
      if (wanted !== undefined) select.value = wanted;
    });
    combine.hidden = groups.length < 2;
    form.hidden = !model.get("_shown").n;
  }
  return { parts: [make("div", { class: "sel-names" }, form, chips), combine], show };
}

/** Files: CSV or Parquet, ids hashed if a salt is given. */
function files(model, about) {
  const salt = make("input", { type: "password", class: "sel-input", "aria-label": "Salt: a secret that hashes the ids", placeholder: "salt, to hash ids", autocomplete: "new-password", title: "With a secret of yours here, ids are hashed in the file. It is kept nowhere." });
  const buttons = [["csv", "CSV"], ["parquet", "Parquet"]].map(([ending, text]) =>
    make("button", { type: "button", class: "sel-button", "aria-label": `Write ${text}`, onclick: () => model.send({ type: "export", ending, salt: salt.value }) }, text));
  const keep = make("button", { type: "button", class: "sel-button", title: "Save the result as one HTML file beside this notebook", onclick: () => model.send({ type: "save_card" }) }, "Result card");
  const few = make("span", { class: "quiet" });
  function show() {
    const { n = 0 } = model.get("_shown");
    for (const button of [keep, ...buttons]) button.disabled = n < about.min_users;
    few.textContent = `under ${about.min_users} ${about.units}: not written`;
    few.hidden = n >= about.min_users;
    for (const part of [...buttons, salt]) part.hidden = !about.exports;
    node.hidden = !n;
  }
  const node = make("div", { class: "sel-files" }, make("span", { class: "quiet" }, "Write"), keep, ...buttons, salt, few);
  return { node, show };
}

function render({ model, el }) {
  const about = model.get("_about");
  const [parts, asked, groups, written] = [comparison(model), questions(model, about), names(model), files(model, about)];
  const who = make("span", { class: "sel-who" });
  const sentence = make("p", { class: "lens-sentence sel-sentence", role: "status", "aria-live": "polite" });
  const note = make("span", { class: "lens-note", role: "status" });
  const error = make("div", { class: "lens-error", role: "alert", hidden: true });
  const body = make("div", { class: "sel-body" }, parts.node, asked.node);
  const foot = make("div", { class: "sel-foot" }, ...groups.parts, written.node, note);
  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title), who);
  const root = make("div", { class: "lens sel", "data-lm-suppress-shortcuts": "true" }, make("div", { class: "lens-in" }, head, sentence, error, body, foot));
  function shown() {
    const { n = 0, sentence: summary = "", waiting } = model.get("_shown");
    const clear = n ? make("button", { type: "button", class: "lens-link", onclick: () => model.send({ type: "clear" }) }, "clear") : null;
    who.replaceChildren(`${number(n)} of ${count(about.total, about.unit, about.units)} selected`, ...(clear ? [" ", clear] : []));
    const named = model.get("_names").length ? ", or a name below" : "";
    const words = summary || (waiting ? "Comparing …" : "");
    sentence.textContent = n ? words.replaceAll(" %", "\u00a0%") : `No ${about.units} selected. Drag around some on the map, or press the count of those who stand out${named}, to see here what sets them apart.`;
    foot.hidden = !n && !named && !note.textContent;
    body.hidden = !n;
    body.classList.toggle("one", !about.explains || !about.describes);
    parts.node.hidden = !about.describes;
    Object.assign(root.dataset, { chosen: n, waiting: String(Boolean(waiting)) });
    [parts.show, groups.show, written.show, asked.status].forEach((act) => act());
  }
  function status() {
    const { busy, note: word = "", error: wrong = "" } = model.get("_status");
    note.textContent = busy ? "" : word;
    error.textContent = wrong ? wrong.replace(/[.!]?$/, ".") : "";
    error.hidden = !wrong;
    Object.assign(root.dataset, { busy: String(Boolean(busy)), error: wrong });
    asked.status();
  }
  function ranked() {
    root.dataset.ranked = (model.get("_ranked").rows ?? []).length;
    asked.show();
  }
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && model.get("_status").busy) (model.send({ type: "cancel" }), event.preventDefault());
    event.stopPropagation(); // the notebook has keys of its own
  });
  const handlers = { _shown: shown, _ranked: ranked, _status: status, _names: () => (groups.show(), shown()) };
  for (const [name, act] of Object.entries(handlers)) model.on(`change:${name}`, act);
  el.append(root);
  [shown, ranked, status].forEach((act) => act());
  return () => Object.entries(handlers).forEach(([name, act]) => model.off(`change:${name}`, act));
}

export default { render: survivesKernel(render, ["_status", "_shown"]) };
