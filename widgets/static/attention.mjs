// The attention view: modalities as rows, attention beside the effect of deletion. All text enters as text nodes.
import { count, floats, number } from "./geometry.mjs";
import { choice, focused, glyph, make } from "./dom.mjs";
import { eventList } from "./events.mjs";
import { survivesKernel } from "./kernel.mjs";

const DIAMOND = "M8 1.5 12.5 6 8 10.5 3.5 6Z";
const TRIES = 4;

const minus = (text) => text.replace("-", "−");
const signed = (text) => (Number(text) > 0 ? `+${text}` : Number(text) < 0 ? minus(text) : text.replace("-", ""));
/** A share in percent, a difference of shares in points. */
export function share(value, digits = 1, difference = false) {
  if (!Number.isFinite(value)) return "";
  const text = (100 * value).toFixed(digits);
  return difference ? signed(text) : `${text} %`;
}
/** So many digits behind the point that the largest of a column has two or three that count. */
export const digitsFor = (most) => (most >= 0.02 ? 1 : most >= 0.002 ? 2 : 3);
export function effect(value, difference = false) {
  if (!Number.isFinite(value)) return "";
  return difference ? signed(value.toFixed(4)) : value.toFixed(3);
}
/** 1st, 2nd, 3rd, 4th ... */
export const nth = (n) => `${n}${(n % 100 > 10 && n % 100 < 14 ? "" : ["", "st", "nd", "rd"][n % 10]) || "th"}`;

/** The place of each value among those that are `ranked`: the largest is first; 0 for the others. */
export function places(values, ranked) {
  const rows = values.map((_, i) => i).filter((i) => ranked[i]).sort((i, j) => values[j] - values[i]);
  const out = values.map(() => 0);
  rows.forEach((row, place) => (out[row] = place + 1));
  return out;
}

/** A packed table: its numbers, and its rows in the order they are shown. */
function read(raw) {
  const sides = raw.sides.map((side) => {
    const out = { query: side.query };
    for (const name of Object.keys(side)) if (name !== "query") out[name] = Array.from(floats(side[name]));
    return out;
  });
  const modal = raw.kinds.map((kind) => kind === "modality");
  const first = sides[0].weight;
  const order = raw.names.map((_, i) => i).sort((i, j) => modal[j] - modal[i] || (first[j] || 0) - (first[i] || 0));
  return { ...raw, sides, modal, order };
}

/** A bar beside its number. One that would leave its scale fades out at the end; the number says the rest. */
function bar(value, most, kind, text, difference) {
  const wide = Math.min(Math.abs(value) / most, 1) || 0;
  const track = make("span", { class: `att-track${difference && Number.isFinite(value) ? " two" : ""}`, "aria-hidden": "true" });
  if (Number.isFinite(value) && most > 0) {
    const over = Math.abs(value) > most * 1.0001 ? " over" : "";
    const width = difference ? 50 * wide : 100 * wide;
    const style = difference ? `width:${width}%;${value < 0 ? "right" : "left"}:50%` : `width:${width}%`;
    track.append(make("i", { class: `${kind}${over}${difference && value < 0 ? " less" : ""}`, style }));
  }
  return [make("td", { class: "att-bar" }, track), make("td", { class: "att-number" }, text)];
}

/** The table. `see`: side (0, 1 or "difference"), measure, busy. */
function attentionTable(p, see) {
  const compared = see.side === "difference";
  const [a, b] = compared ? [0, 1] : [see.side, see.side];
  const values = (side) => p.sides[side][see.measure];
  const zeroIfMissing = (v) => (see.measure === "weight" && !Number.isFinite(v) ? 0 : v); // on what a query has not, it does not look
  const minusB = (mine, other) => mine.map((v, i) => v - other[i]);
  const attention = compared ? minusB(values(0).map(zeroIfMissing), values(1).map(zeroIfMissing)) : values(a);
  const effects = compared ? minusB(p.sides[0].deletion_effect, p.sides[1].deletion_effect) : p.sides[a].deletion_effect;
  const marks = p.sides[a][see.measure === "weight" ? "disagrees" : "disagrees_per_token"];
  const ranked = p.modal.map((modal, i) => modal && Number.isFinite(p.sides[a].deletion_effect[i]));
  const [byAttention, byEffect] = [places(values(a), ranked), places(p.sides[a].deletion_effect, ranked)];
  const most = (list) => list.reduce((top, v, i) => (p.modal[i] && Number.isFinite(v) ? Math.max(top, Math.abs(v)) : top), 0);
  const scale = [most(attention), most(effects)];
  const digits = digitsFor(most(values(a)));
  const written = (value) => share(value, digits);
  const tokens = (i) => { const n = p.sides[a].tokens[i]; return Number.isFinite(n) ? (n < 10 && n % 1 ? n.toFixed(1) : number(Math.round(n))) : ""; };
  const name = see.measure === "weight" ? "Attention" : "Attention per token";
  const th = (text, span, props = {}) => make("th", { scope: "col", colspan: span, ...props }, text);
  const ends = compared ? [th("A", 1, { class: "att-number att-ab att-first" }), th("B", 1, { class: "att-number att-ab" })] : [];
  const head = make("tr", {},
    th("Modality", 1), th("tokens", 1, { class: "att-number quiet", title: `tokens of a ${see.unit}, on average` }),
    ...ends, th(compared ? `${name}, A − B (points)` : name, 2, { class: "att-head" }),
    ...ends.map((node) => node.cloneNode(true)), th(compared ? "Deletion effect, A − B" : "Deletion effect", 2, { class: "att-head", title: "how far users move when the modality is deleted: 1 − cosine, 0 is not at all" }),
    ...(compared ? [] : [th("Place", 1, { class: "att-place", title: "by attention, then by deletion effect; a diamond where they are two or more apart" })]),
  );
  const pending = see.busy ? "…" : "–";
  const row = (i, place) => {
    const known = Number.isFinite(p.sides[a].deletion_effect[i]);
    const blank = p.modal[i] ? pending : "";
    const two = (list, write) => (compared ? [make("td", { class: "att-number att-ab att-first quiet" }, write(list(0))), make("td", { class: "att-number att-ab quiet" }, write(list(1)))] : []);
    const cells = [
      ...two((side) => values(side)[i], written), ...bar(attention[i], scale[0], "look", share(attention[i], compared ? digits + 1 : digits, compared), compared),
      ...two((side) => p.sides[side].deletion_effect[i], effect), ...bar(effects[i], scale[1], "drop", Number.isFinite(effects[i]) ? effect(effects[i], compared) : blank, compared),
    ];
    if (!compared) {
      const comparison = `${nth(byAttention[i])} by attention, ${nth(byEffect[i])} by deletion effect${marks[i] ? ": they disagree" : ""}`;
      const both = [make("span", { "aria-hidden": "true" }, `${byAttention[i]} → ${byEffect[i]}`), marks[i] ? glyph(DIAMOND, "moved") : null, make("span", { class: "lens-hidden" }, comparison)];
      cells.push(make("td", { class: `att-place${marks[i] ? " apart" : ""}`, title: known ? comparison : "" }, ...(known ? both : [])));
    }
    const starts = place && p.modal[p.order[place - 1]] && !p.modal[i];
    return make("tr", { class: `${p.modal[i] ? "" : "other"}${starts ? " rule" : ""}`, "data-name": p.names[i] }, make("th", { scope: "row" }, p.names[i]), make("td", { class: "att-number quiet" }, tokens(i)), ...cells);
  };
  const rows = p.order.filter((i) => Number.isFinite(values(a)[i]) || (compared && Number.isFinite(values(1)[i])));
  const body = make("tbody", {}, ...rows.map(row));
  return make("table", { class: `att-table${compared ? " compared" : ""}` }, make("caption", { class: "lens-hidden" }, `${name} and deletion effect by modality`), make("thead", {}, head), body);
}

function render({ model, el }) {
  const about = model.get("_about");
  const see = { side: 0, measure: "weight", busy: false, unit: about.unit };
  let [p, scope] = [null, "all"];
  const option = (value) => make("option", { value });
  const key = `att-${Math.random().toString(36).slice(2)}`;
  const asked = make("datalist", { id: `${key}-q` }, ...about.queries.map(option));
  const ids = make("datalist", { id: `${key}-u` }, ...about.ids.map(option));
  const field = (label, list, props) => make("input", { type: "text", class: "lens-query", list, spellcheck: "false", autocomplete: "off", "aria-label": label, ...props });
  const query = field("Query A", asked.id, { placeholder: "Ask something, and see where the model looks" });
  const versus = field("Query B, to compare with", asked.id, { placeholder: "Compare with another query (optional)" });
  const user = field("User", ids.id, { placeholder: "id of a user", hidden: true });
  const button = make("button", { type: "submit", class: "lens-ask" }, "Look");
  const can = [["all", about.users ? `all ${count(about.users, about.unit, about.units)}` : `all ${about.units}`], ...(about.has_selection ? [["selection", "the selected"]] : []), ["one", "one user"]];
  const scopes = choice("Whom to look at", can, scope, (value) => {
    scopes.press((scope = value));
    user.hidden = value !== "one";
    if (value === "one") user.focus();
  });
  const letter = (text) => make("span", { class: "att-letter", "aria-hidden": "true" }, text);
  const form = make("form", { class: "att-form", role: "search" },
    letter("A"), query, button, letter("B"), versus, make("div", { class: "att-whom" }, scopes, user), asked, ids);
  const chips = make("div", { class: "lens-chips", role: "group", "aria-label": "Suggested queries", onfocusout: ({ currentTarget }) => (currentTarget.scrollTop = 0) }, make("span", {}, "Try"),
    ...about.queries.slice(0, TRIES).map((text) => make("button", { type: "button", onclick: () => ((query.value = text), look()) }, text)));
  const note = make("div", { class: "lens-note", role: "status" });
  const fill = make("div", { class: "lens-fill" });
  const progress = make("div", { class: "lens-progress", role: "progressbar", "aria-label": "Work done", "aria-valuemin": 0 }, fill);
  const error = make("div", { class: "lens-error", role: "alert", hidden: true });
  const route = make("div", { class: "att-route" });
  const side = choice("Show", [["0", "A"], ["1", "B"], ["difference", "A − B"]], "0", (value) => (side.press(value), (see.side = value === "difference" ? value : Number(value)), table()));
  const measure = choice("Measure", [["weight", "share"], ["per_token", "per token"]], "weight", (value) => (measure.press(value), (see.measure = value), table()));
  const tools = make("div", { class: "att-tools", hidden: true });
  const rank = make("div", { class: "att-rank" });
  const place = make("div", { class: "att-place-of-table", tabindex: "0", role: "region", "aria-label": "Attention over modalities" });
  const empty = make("p", { class: "lens-empty" });
  const sentence = make("p", { class: "lens-sentence", role: "status", "aria-live": "polite" });
  const answers = make("dl", { class: "att-answers", hidden: true });
  const caption = make("p", { class: "lens-caption" });
  const list = eventList(model, (message) => model.send({ ...message, query: query.value }));
  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title), make("span", {}, about.users ? count(about.users, about.unit, about.units) : ""));
  const root = make("div", { class: "lens att", "data-lm-suppress-shortcuts": "true" });
  const asking = [form, make("div", { class: "lens-under" }, chips, note), progress];
  root.append(make("div", { class: "lens-in" }, head, ...asking, error, empty, route, tools, place, rank, sentence, answers, caption, list.node));

  const look = () => query.value.trim() && model.send({ type: "look", query: query.value, versus: versus.value, scope, user: user.value });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (button.dataset.role === "cancel") model.send({ type: "cancel" });
    else look();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target === button || !event.target.matches("input")) return;
    event.preventDefault(); // else a busy view would take it for a press of Cancel
    look();
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && model.get("_status").busy) (model.send({ type: "cancel" }), event.preventDefault());
    event.stopPropagation(); // the notebook has keys of its own
  });
  function table() {
    if (!p) return;
    place.replaceChildren(attentionTable(p, see));
    const part = see.side === "difference" ? 0 : see.side;
    const [agreement] = p.sides[part][see.measure === "weight" ? "agreement" : "agreement_per_token"];
    const marked = place.querySelector(".apart");
    const mark = marked ? make("span", {}, glyph(DIAMOND, "moved"), "the two places are 2 or more apart") : null;
    const agree = Number.isFinite(agreement) && see.side !== "difference" ? make("span", {}, `rank agreement of attention and deletion `, make("b", {}, minus(agreement.toFixed(2))), " (1: same order, 0: none)") : null;
    rank.replaceChildren(...[agree, mark].filter(Boolean));
    Object.assign(root.dataset, { side: see.side, measure: see.measure });
  }
  function picture() {
    const raw = model.get("_picture");
    root.dataset.ready = String(Boolean(raw.names));
    p = raw.names ? read(raw) : null;
    tools.hidden = route.hidden = place.hidden = !p;
    rank.replaceChildren();
    if (!p) return status();
    const two = p.sides.length > 1;
    if (!two) see.side = 0;
    else if (root.dataset.queries !== p.sides.map((s) => s.query).join("\n")) see.side = "difference"; // new: show what sets them apart
    root.dataset.queries = p.sides.map((s) => s.query).join("\n");
    side.press(String(see.side));
    route.replaceChildren(...p.sides.map((s, i) => make("span", {}, two ? letter("AB"[i]) : null, make("b", {}, s.query))));
    if (!root.contains(focused(root))) [query.value, versus.value] = p.edited?.after === undefined ? [p.sides[0].query, p.sides[1]?.query ?? ""] : [p.sides[1].query, ""]; // asked from Python
    if (p.user) route.append(make("span", { class: "quiet" }, `user ${p.user}`));
    const tool = (text, ...parts) => make("div", {}, make("span", {}, text), ...parts);
    tools.replaceChildren(...[two ? tool("show", side) : null, tool("measure", measure)].filter(Boolean));
    sentence.textContent = p.sentence;
    caption.textContent = p.caption;
    const { moved, before, after } = p.edited ?? {};
    answers.hidden = before === undefined;
    if (before !== undefined) answers.replaceChildren(...[["before", before], ["after", after], ["moved", `${moved.toFixed(4)} (1 − cosine)`]].flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
    list.node.hidden = !(p.user && model.get("_events").user === p.user);
    Object.assign(root.dataset, { turn: raw.turn ?? "", query: p.sides[0].query });
    status();
  }
  function status() {
    const { busy, done = 0, total = 0, message = "", note: word = "", error: wrong = "" } = model.get("_status");
    see.busy = Boolean(busy);
    button.textContent = busy ? "Cancel" : "Look";
    button.dataset.role = busy ? "cancel" : "ask";
    progress.classList.toggle("on", see.busy);
    progress.setAttribute("aria-valuemax", total || 1);
    progress.setAttribute("aria-valuenow", done);
    fill.style.width = `${busy ? Math.max((100 * done) / Math.max(total, 1), 2) : 0}%`;
    note.textContent = busy ? message : word;
    error.textContent = wrong ? `${wrong.replace(/[.!]?$/, ".")} The view goes on working; the log has the whole error.` : "";
    error.hidden = !wrong;
    empty.hidden = Boolean(p);
    empty.textContent = busy ? "Reading …" : "Nothing was asked yet. Type a question and press Enter: each modality becomes a row, with the attention on it and what deleting it does.";
    Object.assign(root.dataset, { busy: String(see.busy), error: wrong });
    list.mark();
    table();
  }
  const handlers = { _picture: picture, _status: status, _events: list.fill };
  for (const [name, act] of Object.entries(handlers)) model.on(`change:${name}`, act);
  el.append(root);
  list.fill();
  picture();
  return () => {
    for (const [name, act] of Object.entries(handlers)) model.off(`change:${name}`, act);
  };
}

export default { render: survivesKernel(render) };
