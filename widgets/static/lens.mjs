// The query lens: a query box, the map, who stands out and why to believe it. All text enters as text nodes.
import { count, flags, floats, ints, number, percent, ranks, strongest } from "./geometry.mjs";
import { choice, focused, glyph, make, modeOf, SELECTS, unbroken } from "./dom.mjs";
import { survivesKernel } from "./kernel.mjs";
import { userMap } from "./map.mjs";
import { userCard } from "./card.mjs";
import { columnColours, findBox } from "./columns.mjs";
import { facetMaps, pressFacet } from "./facets.mjs";
import { scoreHistogram } from "./histogram.mjs";
import { mapPicture } from "./picture.mjs";

const OPENING = "no query";
const WAITS = "Waiting for another cell to finish";
const PATIENCE = 1000; // ms in which a kernel that is free has begun
/** What the words of the view mean, of users that are called `unit`, in the plural `units`. */
const meanings = ({ unit, units }) => ({
  residual: `how far the question moved a ${unit}, in the space of 128 numbers itself, less what it moved all alike; the map only shows it`,
  "stands out": `the question moves a ${unit} further toward yes than any of up to 19 other questions does, each in units of its own spread; with 19 others chance alone makes 1 in 20 stand out`,
  "changed sides": `the difference between the places of a ${unit} in the rankings of this question and of the one before`,
  kept: "how many of the 15 nearest neighbours are the same after the question",
  evidence: `the events of a ${unit} that the question is about, which the answer counts`,
  answer: `how strongly the events that the question is about speak for a yes of a ${unit}: an order, not a probability`,
  Backtest: `the same question as of an earlier day: of 100 pairs of ${units}, how many were in the order that they showed since; 50 is chance, and a run that was trained on the same ${units} scores too high`,
  trustworthiness: "how far neighbours on the map are neighbours in the space itself, 1 at best; faint dots are misplaced",
});

const DIAMOND = "M8 1.5 12.5 6 8 10.5 3.5 6Z";
const CIRCLE = "M4.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0";
const ARROW = "M0 6H11M10 2.5 16 6 10 9.5Z";

/** A change of place in a ranking, in hundredths of all users. */
const signed = (change) => `${change > 0 ? "+" : "−"}${Math.abs(100 * change).toFixed(0)}`;

/** The recent events of a user in one line. */
const recentLine = ([, , recent]) => recent.join(" · ") || "no recent events";

/** The bar of queries: back, forward, box, button, suggestions, progress, errors. */
function queryBar(model, about) {
  const send = (type, rest = {}) => model.send({ type, ...rest });
  const go = (step) => send("go", { at: model.get("_history").at + step });
  const back = make("button", { type: "button", class: "lens-step", title: "Back to the query before", "aria-label": "Back", onclick: () => go(-1) }, "‹");
  const on = make("button", { type: "button", class: "lens-step", title: "Forward to the next query", "aria-label": "Forward", onclick: () => go(1) }, "›");
  const list = make("datalist", { id: `lens-${Math.random().toString(36).slice(2)}` }, ...about.queries.map((q) => make("option", { value: q })));
  const box = make("input", { type: "text", class: "lens-query", list: list.id, spellcheck: "false", autocomplete: "off", "aria-label": "Query", placeholder: `Ask something about every ${about.unit}` });
  const button = make("button", { type: "submit", class: "lens-ask" }, "Ask");
  const form = make("form", { class: "lens-bar", role: "search" }, back, on, box, list, button);
  const chips = make("div", { class: "lens-chips", role: "group", "aria-label": "Suggested queries", onfocusout: ({ currentTarget }) => (currentTarget.scrollTop = 0) }, about.queries.length ? make("span", {}, "Try") : null);
  const fill = make("div", { class: "lens-fill" });
  const bar = make("div", { class: "lens-progress", role: "progressbar", "aria-label": "Users asked", "aria-valuemin": 0 }, fill);
  const note = make("div", { class: "lens-note", role: "status" });
  const error = make("div", { class: "lens-error", role: "alert", hidden: true });
  let shown = -1;
  let [timer, unheard, nth] = [0, false, 0]; // a kernel that runs another cell hears nothing, though its workers may go on reporting
  const ask = (query) => {
    if (!query.trim()) return;
    stopWaiting();
    nth = Math.random(); // another view of this lens may ask, too
    send("ask", { query: query.trim(), nth });
    timer = setTimeout(() => {
      [unheard, note.textContent] = [true, WAITS];
      timer = setInterval(() => send("ping"), 5 * PATIENCE); // a message that fails is the only sign of a kernel that was shut down
    }, PATIENCE);
  };
  const stopWaiting = () => clearTimeout(timer);
  const acknowledged = (message) => {
    if (message.type !== "received" || message.nth !== nth) return;
    stopWaiting();
    if (unheard) (unheard = false), status();
  };
  for (const query of about.queries.slice(0, 6)) {
    chips.append(make("button", { type: "button", onclick: () => ((box.value = query), ask(query)) }, query));
  }
  box.addEventListener("keydown", (event) => {
    // while busy the form's button cancels, and Enter would press it: a question typed meanwhile takes the running one's place
    if (event.key === "Enter" && model.get("_status").busy) (event.preventDefault(), ask(box.value));
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (model.get("_status").busy && button.dataset.role === "cancel" && event.submitter === button) send("cancel");
    else ask(box.value);
  });
  function status() {
    const { busy, done = 0, total = 1, query = "", note: word = "", error: wrong = "", cancelling, waiting } = model.get("_status");
    button.textContent = busy ? "Cancel" : "Ask";
    button.dataset.role = busy ? "cancel" : "ask";
    bar.classList.toggle("on", Boolean(busy));
    bar.setAttribute("aria-valuemax", total);
    bar.setAttribute("aria-valuenow", done);
    fill.style.width = `${busy ? Math.max((100 * done) / Math.max(total, 1), 2) : 0}%`;
    const working = done >= total ? "Drawing the map" : `${number(done)} of ${count(total, about.unit, about.units)} asked`;
    note.textContent = busy ? (cancelling ? "Cancelling" : waiting ? WAITS : working) : word;
    if (unheard) note.textContent = WAITS;
    error.textContent = wrong ? `${wrong.replace(/[.!]?$/, ".")} The view goes on working; the log has the whole error.` : "";
    error.hidden = !wrong;
    if (busy && focused(box) !== box && query) box.value = query;
  }
  function history() {
    const { queries = [], at = -1 } = model.get("_history");
    back.disabled = at <= 0;
    on.disabled = at < 0 || at >= queries.length - 1;
    if (queries[at] && at !== shown) box.value = queries[at]; // a query that failed stays in the box, to be corrected
    shown = at;
  }
  return { parts: [form, make("div", { class: "lens-under" }, chips, note), bar, error], status, history, acknowledged, stopWaiting };
}

/** The list of the most shifted, with their recent events: one stop of the Tab key, arrows walk, Enter opens, Space selects. */
function userList(users, about, textsOf, pick, select) {
  const rows = make("ol", { class: "lens-rows", "aria-label": `Most shifted ${about.units}` });
  const again = () => last && show(...last);
  const order = choice("List first", [["moved", "Most shifted"], ...(about.ranks ? [["answer", "Yes first"], ["changed", "Changed sides"]] : [])], "moved", (by) => ((pressed = by), again()));
  const only = make("button", { type: "button", class: "lens-link lens-only", "aria-pressed": "false", hidden: true, onclick: () => showOnly(!onlySelected) }, "selected only");
  let onlySelected = false;
  let chosenRows = new Set();
  function showOnly(whether) {
    onlySelected = whether;
    only.setAttribute("aria-pressed", String(whether));
    again();
  }
  const head = make("div", { class: "lens-listhead" }, order, make("span", {}, "toward yes"), make("span", {}, "kept"));
  const tooltips = meanings(about);
  head.lastChild.title = tooltips.kept;
  let [last, pressed] = [null, ""]; // what was pressed by hand stays
  function show(p, limit, preset) {
    last = [p, limit, preset];
    const known = { moved: true, answer: Boolean(p.rank), changed: Boolean(p.change) };
    for (const button of order.children) button.disabled = !known[button.dataset.value];
    const chosen = pressed || preset;
    const by = known[chosen] ? chosen : "moved";
    order.press(by);
    const moved = p.compared === false ? ["residual", tooltips.residual] : ["toward yes", `${tooltips["stands out"]}; the tick is the largest under the others`];
    const [heading, meaning] = { moved, answer: ["answer", tooltips.answer], changed: ["change", tooltips["changed sides"]] }[by];
    Object.assign(head.children[1], { textContent: heading, title: meaning });
    const wanted = onlySelected && chosenRows.size ? Array.from(p.residual, (_, row) => chosenRows.has(row)) : null;
    const values = { moved: p.margin, answer: p.rank, changed: p.change?.map(Math.abs) }[by];
    const top = strongest(values, p.shifted || wanted ? limit : 0, wanted);
    const scale = [...p.toward, ...p.elsewhere].reduce((most, one) => Math.max(most, one), 0) || 1;
    rows.setAttribute("aria-label", { moved: `Most shifted ${about.units}`, answer: `${about.units} nearest to yes`, changed: `${about.units} that changed sides` }[by]);
    rows.replaceChildren(...top.map((row, place) => item(p, row, by, scale, place)));
    rows.scrollTop = 0;
    markSelected();
    if (!top.length) rows.append(make("li", { class: "lens-empty" }, "Nobody yet: ask something, and whoever stands out is listed here first."));
  }
  function item(p, row, by, scale, place) {
    const place100 = (value) => `${Math.min(Math.max((100 * value) / scale, 0), 100)}%`;
    const [length, shade, figure] = {
      moved: () => [place100(p.toward[row]), p.beyond[row] ? "moved" : "", p.toward[row].toFixed(2)],
      answer: () => [`${100 * p.rank[row]}%`, "yes", p.score[row].toFixed(2)],
      changed: () => [`${100 * Math.abs(p.change[row])}%`, p.change[row] > 0 ? "yes" : "", signed(p.change[row])],
    }[by]();
    const fill = make("i", { class: shade, style: `width:${length}` });
    const bar = make("span", { class: "lens-bar-cell" }, fill, by === "moved" && p.compared ? make("b", { style: `left:${place100(p.elsewhere[row])}` }) : null);
    const button = make(
      "button",
      { type: "button", "data-row": row, "data-key": users.ids[row], tabindex: place ? -1 : 0, "aria-pressed": "false", onclick: () => pick(row) },
      make("span", { class: "lens-id" }, users.ids[row]),
      bar,
      make("span", { class: "lens-figure" }, figure),
      make("span", { class: "lens-figure quiet" }, percent(p.neighborsKept[row])),
      make("span", { class: "lens-recent", "data-recent": row, title: "events, newest first; a click shows them all" }, recentLine(textsOf(row))),
    );
    return make("li", {}, button);
  }
  function mark(row) {
    for (const button of rows.querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.row) === row));
    const item = rows.querySelector('[aria-pressed="true"]')?.parentElement;
    if (!item) return;
    const above = item.offsetTop - rows.offsetTop; // scroll the list only, never the page
    if (above < rows.scrollTop) rows.scrollTop = above;
    else rows.scrollTop = Math.max(rows.scrollTop, above + item.offsetHeight - rows.clientHeight);
  }
  function follow(selected) {
    chosenRows = selected;
    only.hidden = !selected.size;
    if (onlySelected) again();
    markSelected();
  }
  function markSelected() {
    for (const button of rows.querySelectorAll("button")) {
      const isSelected = chosenRows.has(Number(button.dataset.row));
      button.classList.toggle("chosen", isSelected);
      isSelected ? button.setAttribute("aria-description", "selected") : button.removeAttribute("aria-description");
    }
  }
  rows.addEventListener("focusin", ({ target }) => rows.querySelectorAll("button").forEach((button) => (button.tabIndex = button === target ? 0 : -1)));
  rows.addEventListener("keydown", (event) => {
    const all = [...rows.querySelectorAll("button")];
    const at = all.indexOf(event.target);
    const next = all[{ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key]];
    if (next) {
      next.focus();
      if (event.shiftKey) select([event.target, next].map((button) => Number(button.dataset.row)), "add");
    } else if (event.key === " ") select([Number(event.target.dataset.row)], event.target.classList.contains("chosen") ? "subtract" : "add");
    else return;
    event.preventDefault();
  });
  return { node: make("div", { class: "lens-list" }, head, rows), show, mark, follow, only, showOnly };
}

function render({ model, el }) {
  const about = model.get("_about");
  const users = model.get("_users");
  const events = floats(users.events);
  const bar = queryBar(model, about);
  const box = make("div", { class: "lens-map" });
  const route = make("div", { class: "lens-route" });
  const legend = make("div", { class: "lens-legend" });
  const picked = make("div", { class: "lens-chosen", hidden: true });
  const lead = make("p", { class: "lens-lead", role: "status", "aria-live": "polite" }); // where it is not known who stands out, the ranking comes first
  const sentence = make("p", { class: "lens-sentence", role: "status", "aria-live": "polite" });
  const doubt = make("p", { class: "lens-doubt", role: "note" });
  const interpretation = make("p", { class: "lens-reading", "aria-live": "polite" });
  const meant = make("div", { class: "lens-meant", role: "group", "aria-label": "What the question was taken to mean" });
  const backtest = make("p", { class: "lens-past", "aria-live": "polite" });
  const backtestButton = make("button", { type: "button", class: "lens-link", title: `Ask it as of an earlier day, and see what the ${about.units} have done since`, onclick: () => model.send({ type: "backtest" }) }, "Backtest this ranking");
  const words = make("details", { class: "lens-words" }, make("summary", {}, "What the words mean"), make("dl", {}, ...Object.entries(meanings(about)).flatMap(([word, meaning]) => [make("dt", {}, word), make("dd", {}, meaning)])));
  const caption = make("p", { class: "lens-caption" });
  const saveButton = make("button", { type: "button", class: "lens-link lens-keep", title: "Save what is shown as one HTML file beside this notebook", onclick: () => model.send({ type: "save_card" }) }, "Save result card");
  function savePicture() {
    const title = `${p?.to || OPENING} · ${count(users.ids.length, about.unit, about.units)}`;
    const entries = [...legend.children, ...(!picked.hidden && picked.querySelector("svg") ? [picked] : [])];
    make("a", { href: mapPicture(box.querySelector("canvas"), entries, title), download: "map.png" }).click();
  }
  const pictureButton = make("button", { type: "button", class: "lens-link lens-keep", title: "Save the map as it is drawn now, with its legend", onclick: savePicture }, "Save picture");
  const savedNote = make("span", { role: "status" }); // beside the button, which may be a screen away from the status line
  let [p, openRow] = [null, -1];
  const [texts, wanted] = [[...users.texts], new Set()];
  const map = userMap(box, { describe, pick, select, moving: (whether) => (root.dataset.moving = String(whether)) });
  const side = choice("Show the map", [["before", "before"], ["after", "after"]], "after", (value) => (side.press(value), map.setSide(value)));
  function setColour(value) {
    colour.press(value);
    if (value !== "column") columnChoice.value = "";
    map.setColour(value);
    legends();
  }
  function chooseColumn() {
    if (columnChoice.value) model.send({ type: "color", name: columnChoice.value });
    else colour.querySelector("button").click();
  }
  const colour = choice("Colour", [["moved", "moved"], ["residual", "residual"], ...(about.ranks ? [["answer", "answer"]] : [])], "moved", (value) => ((pressedColour = value), setColour(value)));
  let pressedColour = ""; // what was pressed by hand stays
  let column = null; // the colours of a column
  const columnChoice = make(
    "select",
    { class: "lens-column", "aria-label": "Colour by a column", hidden: !about.columns.length, onchange: chooseColumn },
    make("option", { value: "" }, "column …"),
    ...about.columns.map((name) => make("option", { value: name }, name)),
  );
  const facetButton = make("button", { type: "button", class: "lens-link", title: "One small map for each category", "aria-pressed": "false", hidden: true, onclick: toggleFacets }, "facets");
  const facets = make("div", { class: "lens-facets", role: "group", "aria-label": "A map for each category", hidden: true });
  const list = userList(users, about, textsOf, pick, select);
  const finder = findBox(model, about, list.only);
  const histogram = scoreHistogram(about, select);
  const card = userCard(model, users, textsOf, events, pick);
  const options = make("div", { class: "lens-options" }, make("span", {}, "colour"), colour, columnChoice, facetButton);
  const foot = make("div", { class: "lens-foot" }, legend, picked, options);
  const left = make("div", { class: "lens-left" }, make("div", { class: "lens-maphead" }, route, side), box, foot, facets, histogram.node, lead, sentence, doubt, interpretation, meant, backtest, caption, make("div", { class: "lens-keeping" }, saveButton, pictureButton, savedNote), words);
  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title), make("span", {}, count(users.ids.length, about.unit, about.units)));
  const root = make("div", { class: "lens", "data-lm-suppress-shortcuts": "true" });
  root.append(make("div", { class: "lens-in" }, make("div", { class: "lens-top" }, head, ...bar.parts), make("div", { class: "lens-body" }, left, make("div", { class: "lens-side" }, finder.node, list.node, card.node))));
  root.lens = { state: map.state }; // for tests and for the curious: where the points are now

  /** First day, last day and recent events of a user; of a large set they are asked for, all of one moment together. */
  function textsOf(row) {
    if (texts[row]) return texts[row];
    if (!wanted.size) queueMicrotask(() => (model.send({ type: "events", rows: [...wanted] }), wanted.clear()));
    wanted.add(row);
    return ["", "", ["…"]];
  }
  function receiveEvents() {
    const { rows = [], texts: received = [] } = model.get("_recent");
    rows.forEach((row, i) => (texts[row] = received[i]));
    for (const node of root.querySelectorAll("[data-recent]")) node.textContent = recentLine(textsOf(Number(node.dataset.recent)));
    if (rows.includes(openRow)) card.show(openRow, p);
    map.hoverAgain();
  }
  function describe(row) {
    const lines = [["lens-tipid", users.ids[row]]];
    const moved = () => (p.compared ? `toward yes ${p.toward[row].toFixed(2)}, under other questions at most ${p.elsewhere[row].toFixed(2)}` : `residual ${p.residual[row].toFixed(2)}`);
    if (p?.shifted) lines.push(["", `${moved()}, ${percent(p.neighborsKept[row])} of neighbours kept`]);
    for (const text of textsOf(row)[2].slice(0, 3)) lines.push(["quiet", text]);
    return lines;
  }
  function pick(row) {
    openRow = row;
    map.setPicked(row);
    card.show(row, p);
    list.mark(row); // after the card: it takes room from the list
    root.dataset.picked = row < 0 ? "" : users.ids[row];
  }
  function select(rows, mode) {
    map.setSelected(map.combine(rows, mode));
    list.follow(map.state().selected);
    histogram.follow(map.state().selected);
    model.send({ type: "select", mode }, undefined, [Int32Array.from(rows).buffer]); // the kernel joins: keys may come faster than it answers
  }
  function legends() {
    const moved = p.beyond.reduce((sum, one) => sum + one, 0);
    const standOut = (n) => `${number(n)} stand${n === 1 ? "s" : ""} out`;
    const arrows = moved > about.max_arrows ? `the ${about.max_arrows} farthest of ${number(moved)}` : "from before to after";
    const entry = (drawing, text) => make("span", {}, drawing, text);
    const movers = [...p.beyond.keys()].filter((row) => p.beyond[row]);
    const all = moved ? make("button", { type: "button", class: "lens-link", title: SELECTS, onclick: (event) => select(movers, modeOf(event)) }, standOut(moved)) : standOut(moved);
    const diamonds = p.compared ? [entry(glyph(DIAMOND, "ink"), all)] : [];
    const shades = make("i", { class: "lens-ramp" });
    showFacets();
    const moves = moved ? [entry(glyph(ARROW, "moved line"), arrows)] : [];
    if (pressedColour === "column") return columnLegend(entry, p.shifted ? moves : []);
    const by = colour.querySelector('[aria-pressed="true"]').dataset.value;
    const kinds = by === "answer"
      ? [entry(make("i", { class: "lens-ramp yes" }), "farthest from yes to nearest, by rank"), ...diamonds]
      : by === "residual"
      ? [entry(shades, `residual, 0 to ${p.residual.reduce((most, r) => Math.max(most, r), 0).toFixed(2)}`), ...diamonds]
      : !p.compared
      ? [entry(glyph(CIRCLE, "still"), `a ${about.unit}`)]
      : [entry(glyph(DIAMOND, "moved"), all), entry(glyph(CIRCLE, "still"), `${number(p.beyond.length - moved)} ${p.beyond.length - moved === 1 ? "does" : "do"} not`)];
    const faint = entry(glyph(CIRCLE, "faint"), "faint: low trust");
    legend.replaceChildren(...(p.shifted ? [...kinds, ...moves, faint] : [entry(glyph(CIRCLE, "still"), `a ${about.unit}`), faint]));
  }
  function toggleFacets() {
    facetButton.setAttribute("aria-pressed", String(facets.hidden));
    showFacets();
  }
  /** Show a small map for each category of the column that colours the map, if that is wanted. */
  function showFacets() {
    const kinds = pressedColour === "column" ? (column.kinds ?? []) : [];
    facetButton.hidden = kinds.length < 2;
    facets.hidden = facetButton.hidden || facetButton.getAttribute("aria-pressed") !== "true";
    const still = getComputedStyle(root).getPropertyValue("--lens-still");
    facets.replaceChildren(...(facets.hidden ? [] : facetMaps(kinds, p.after, still, (rows, event) => select(rows, modeOf(event)))));
    pressFacet(facets.children, ints(model.get("_selected")));
  }
  /** What the colours of a column mean; a category is a button that selects its users. */
  function columnLegend(entry, moves) {
    if (column.span) {
      legend.replaceChildren(entry(make("i", { class: "lens-ramp" }), column.span), ...moves);
      return;
    }
    const kinds = column.kinds.map(({ name, ink, n, rows }) => {
      const pickKind = (event) => select(rows, modeOf(event));
      const dot = make("i", { class: "lens-kind", style: `background:${ink}` });
      return entry(dot, make("button", { type: "button", class: "lens-link", title: SELECTS, onclick: pickKind }, `${name} (${number(n)})`));
    });
    legend.replaceChildren(...kinds, ...moves);
  }
  /** Colour the map by the column that the kernel sent. */
  function showColumn() {
    const latest = model.get("_column");
    if (!latest.name) return;
    column = columnColours(latest, map.ramp);
    columnChoice.value = latest.name;
    pressedColour = "column";
    map.setInks(column.inks);
    if (p) setColour("column");
    selected();
  }
  function showFound() {
    finder.show();
    finder.follow(ints(model.get("_selected")).length);
    if (model.get("_found").text) list.showOnly(model.get("_found").n > 0);
  }
  function picture() {
    const raw = model.get("_picture");
    root.dataset.ready = String(Boolean(raw.after));
    if (!raw.after) return;
    p = { ...raw, beyond: flags(raw.beyond), gained: ints(raw.gained), lost: ints(raw.lost) };
    for (const name of ["before", "after", "trust", "residual", "toward", "elsewhere"]) p[name] = floats(raw[name]);
    if (!p.compared) p.toward = p.residual; // all that is known of who moved
    p.margin = p.toward.map((toward, row) => toward - p.elsewhere[row]);
    p.neighborsKept = floats(raw.neighbors_kept);
    box.classList.remove("waiting"); // a first map stands there while a better one is drawn
    Object.assign(root.dataset, { query: p.to, turn: raw.turn ?? "" });
    const { before, after, trust, residual, beyond, gained, lost } = p;
    map.setPicture({ before, after, trust, residual, beyond, gained, lost, maxArrows: about.max_arrows }, raw.refines);
    side.press("after");
    const name = (query) => make("b", {}, query || OPENING);
    route.replaceChildren(...(p.shifted ? [make("span", {}, p.from || OPENING), make("span", { class: "lens-to", "aria-label": "to" }, "→"), name(p.to)] : [name(p.to)]));
    route.title = p.shifted ? `${p.from || OPENING} → ${p.to}` : "";
    side.hidden = !p.shifted;
    options.hidden = !p.shifted && !about.columns.length;
    colour.hidden = !p.shifted;
    sentence.replaceChildren(...unbroken(p.sentence));
    sentence.hidden = !p.sentence;
    [doubt.textContent, doubt.hidden] = [p.warning, !p.warning];
    caption.textContent = p.caption;
    ranking();
    pick(openRow);
  }
  /** Who is nearest to a yes: the kernel sends it when the map is there. */
  function ranking() {
    if (!p) return;
    const latest = model.get("_ranking");
    const { score, score_before: scoreBefore, interpretation: meaning = "", order = "" } = latest.query === p.to ? latest : {};
    p.score = p.shifted && score ? floats(score) : null;
    p.rank = p.score && ranks(p.score);
    const rankBefore = p.rank && scoreBefore && ranks(floats(scoreBefore));
    p.change = rankBefore ? p.rank.map((rank, row) => rank - rankBefore[row]) : null;
    const ranksFirst = p.shifted && !p.sentence;
    const leads = Boolean(ranksFirst && p.score);
    interpretation.replaceChildren(...unbroken(!p.shifted ? "" : leads ? meaning : `${meaning} ${order}`.trim()));
    lead.replaceChildren(...unbroken(leads ? order : ""));
    sentence.classList.toggle("second", leads);
    showMeant(p.shifted ? latest : {});
    showBacktest();
    map.setRank(p.rank);
    histogram.show(p.score);
    if (about.ranks) colour.lastChild.disabled = !p.rank;
    const preset = ranksFirst ? "answer" : "moved";
    const wanted = pressedColour || preset;
    setColour(wanted === "answer" && !p.rank ? "moved" : wanted);
    list.show(p, about.max_listed, preset);
    card.showRank();
    selected();
  }
  /** The things that the question was taken to mean: each can be left out, and put back. */
  function showMeant({ query, meant: things = [], without = [] }) {
    const current = query === p.to;
    const ask = (left) => model.send({ type: "without", things: left });
    const chips = things.filter(({ text }) => !without.includes(text)).map(({ text, users: n }) => {
      const out = make("button", { type: "button", "aria-label": `Leave out ${text}`, title: "Rank again as if the question did not mean this", onclick: () => ask([...without, text]) }, "×");
      return make("span", { class: "lens-thing" }, `${text} (${number(n)})`, out);
    });
    const left = without.map((text) => {
      const back = make("button", { type: "button", "aria-label": `Put back ${text}`, title: "Rank again with it", onclick: () => ask(without.filter((other) => other !== text)) }, "+");
      return make("span", { class: "lens-thing out" }, make("s", {}, text), back);
    });
    meant.replaceChildren(...(current ? [...chips, ...left] : []));
  }
  /** How often such a ranking was right before: a button until that is known. */
  function showBacktest() {
    const latest = model.get("_backtest");
    const { busy, words: line = "" } = p?.rank && latest.query === p.to ? latest : {};
    backtest.replaceChildren(...(p?.rank && about.backtests ? [line || backtestButton] : []));
    backtest.classList.toggle("busy", Boolean(busy));
  }
  function selected() {
    const rows = ints(model.get("_selected"));
    map.setSelected(rows);
    list.follow(new Set(rows));
    histogram.follow(rows);
    finder.follow(rows.length);
    pressFacet(facets.children, rows);
    const steps = model.get("_steps");
    picked.hidden = !rows.length && !steps.undo && !steps.redo;
    root.dataset.chosen = rows.length;
    const clear = make("button", { type: "button", class: "lens-link", onclick: () => select([], "replace") }, "clear");
    const step = (type, title) => make("button", { type: "button", class: "lens-link", title, onclick: () => model.send({ type }) }, type);
    const undo = step("undo", "Go back to the selection before: Ctrl+Z");
    const redo = step("redo", "Select again what was taken back: Ctrl+Shift+Z");
    const nearer = p?.rank && rows.length ? rows.reduce((sum, row) => sum + p.rank[row], 0) / rows.length : null;
    const comparison = nearer === null ? "" : `, ranked above ${percent(nearer)} on average`;
    const dot = pressedColour === "column" ? null : glyph(CIRCLE, "chosen"); // there the others fade
    picked.replaceChildren(...(dot ? [dot] : []), make("span", {}, `${count(rows.length, about.unit, about.units)} selected${comparison}`), ...(rows.length ? [clear] : []), ...(steps.undo ? [undo] : []), ...(steps.redo ? [redo] : []));
  }
  function status() {
    const { busy, error, saved } = model.get("_status");
    savedNote.textContent = saved ?? "";
    saveButton.disabled = Boolean(busy); // what is drawn just now is not yet what will be kept
    Object.assign(root.dataset, { busy: String(Boolean(busy)), error: error || "" });
    box.classList.toggle("waiting", Boolean(busy && !p));
    bar.status();
  }
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (["_status", "_ranking", "_backtest"].some((name) => model.get(name).busy)) model.send({ type: "cancel" });
      else if (model.get("_selected").byteLength) select([], "replace");
      else pick(-1);
      event.preventDefault();
    }
    if (event.key?.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.target.matches("input")) {
      model.send({ type: event.shiftKey ? "redo" : "undo" });
      event.preventDefault();
    }
    event.stopPropagation(); // the notebook has keys of its own
  });
  const handlers = { _picture: picture, _selected: selected, _status: status, _history: bar.history, _answer: card.showAnswer, _timeline: card.showTimeline, _recent: receiveEvents, _column: showColumn, _found: showFound, _ranking: ranking, _backtest: showBacktest };
  for (const [name, act] of Object.entries(handlers)) model.on(`change:${name}`, act);
  model.on("msg:custom", bar.acknowledged);
  const theme = new MutationObserver(() => (map.dress(), showFacets()));
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class"] });
  el.append(root);
  card.show(-1, null);
  list.show({ residual: [], toward: [], elsewhere: [], margin: [], shifted: false }, 0);
  [picture, selected, status, bar.history, showColumn, showFound].forEach((act) => act());
  model.send({ type: "open" });
  return () => {
    for (const [name, act] of Object.entries(handlers)) model.off(`change:${name}`, act);
    model.off("msg:custom", bar.acknowledged);
    bar.stopWaiting();
    theme.disconnect();
    card.destroy();
    map.destroy();
  };
}

export default { render: survivesKernel(render, ["_status", "_answer", "_ranking", "_backtest"]) };
