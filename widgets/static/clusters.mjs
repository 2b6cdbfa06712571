// The cluster view: the map of both sides, the flow between their clusters, what names them, and the scores.
import { clamp, count, floats, ints, percent, SHAPES } from "./geometry.mjs";
import { choice, make, modeOf, svg } from "./dom.mjs";
import { flowView, marker } from "./flow.mjs";
import { survivesKernel } from "./kernel.mjs";
import { userMap } from "./map.mjs";

const NONE = "in no cluster";
const short = (x) => (x === null ? "–" : x.toFixed(2).replace(/^(-?)0\./, "$1."));

/** One side's clusters: name, size, stability, what its users have and others have not. */
function clusterList(side, nodes, summary, units, select) {
  const rows = nodes.filter((node) => node.cluster >= 0).map((node) => {
    const key = `${side} ${node.cluster}`;
    const isMember = (from, to) => (side === "before" ? from : to) === node.cluster;
    const more = [node.modality && `more ${node.modality} than others`, ...node.texts].filter(Boolean);
    return make("li", {}, make("button", { type: "button", "data-key": key, "aria-pressed": "false",
      onclick: (event) => select(isMember, modeOf(event), key) },
      marker(node.slot),
      make("span", { class: "lens-id" }, node.name),
      make("span", { class: "lens-figure" }, node.users.toLocaleString("en")),
      make("span", { class: `lens-figure${node.unstable ? " clus-doubt" : " quiet"}` }, node.unstable ? `unstable ${short(node.stability)}` : short(node.stability)),
      make("span", { class: "clus-texts" }, more.join(" · ") || (node.named ? "no single event sets them apart beyond chance" : "")),
    ));
  });
  const head = make("div", { class: "lens-listhead clus-listhead" }, make("span", {}, side === "before" ? "Clusters before" : "Clusters after"), make("span", {}, units), make("span", { title: "mean overlap with the best match when half of the users are clustered anew; below .6 not to be believed" }, "stability"));
  return make("div", { class: "clus-list" }, head, summary || !rows.length ? make("p", { class: "clus-said" }, summary || "No clusters beyond one continuum.") : null, rows.length ? make("ol", { class: "lens-rows", "aria-label": `Clusters ${side}` }, ...rows) : null);
}

/** AUC, KS and silhouette of the labels on users held out, before and after. */
function scoreLine(scores, { unit, units }) {
  if (!scores.length) return [];
  const [a, b] = scores;
  const figure = (name, key, note = "") => make("div", { class: "clus-score" }, make("span", { class: "quiet" }, name),
    make("span", {}, short(a[key]), make("span", { class: "quiet" }, " → "), make("b", {}, short(b[key]))), make("span", { class: "quiet" }, note));
  const reach = (s) => (s.auc_low === null ? "" : `${short(s.auc_low)} to ${short(s.auc_high)}`);
  return [make("div", { class: "clus-score first" }, make("span", { class: "quiet" }, "The label, on"), make("span", {}, count(b.n, `held-out ${unit}`, `held-out ${units}`)), make("span", { class: "quiet" }, `${b.positives.toLocaleString("en")} positive`)),
    figure("AUC", "auc", reach(a) && `95 %: ${reach(a)} → ${reach(b)}`), figure("KS", "ks"), figure("silhouette", "silhouette")];
}

function render({ model, el }) {
  const about = model.get("_about");
  const box = make("div", { class: "lens-map" });
  const legend = make("div", { class: "lens-legend" });
  const picked = make("div", { class: "lens-chosen", hidden: true });
  const description = make("p", { class: "clus-told", "aria-hidden": "true" });
  const sentence = make("p", { class: "lens-sentence", role: "status", "aria-live": "polite" });
  const caption = make("p", { class: "lens-caption" });
  const [scores, lists] = [make("div", { class: "clus-scores" }), make("div", { class: "clus-lists" })];
  let [p, looks, key] = [null, {}, ""];
  const look = (row, side) => looks[side]?.[row] ?? null;
  const map = userMap(box, { describe, pick: (row) => map.setPicked(row), select: (rows, mode) => select(rows, "", mode), moving: (whether) => (root.dataset.moving = String(whether)), look });
  const flow = flowView({ name, select: selectWhere, describe: (text) => (description.textContent = text) });
  const side = choice("Show the map", [["before", "before"], ["after", "after"]], "after", (value) => (side.press(value), map.setSide(value), (root.dataset.side = value)));
  const head = make("div", { class: "lens-head" }, make("h2", {}, about.title), make("span", {}, ""));
  const left = make("div", { class: "lens-left" }, make("div", { class: "lens-maphead" }, make("b", {}, "Map"), picked, side), box, make("div", { class: "lens-foot" }, legend));
  const right = make("div", { class: "clus-right" }, make("div", { class: "lens-maphead" }, make("b", {}, "Before"), make("span", { class: "quiet" }, "who went where"), make("b", {}, "After")), flow.box, flow.legend, description);
  const root = make("div", { class: "lens clus", "data-lm-suppress-shortcuts": "true" });
  root.append(make("div", { class: "lens-in" }, head, make("div", { class: "lens-body" }, left, right), sentence, scores, lists, caption));
  root.lens = { state: map.state };

  const flowHeight = () => clamp(0.4 * root.clientWidth, 360, 600); // of the flow; the map takes the height of all beside it
  function name(cluster, where) {
    return cluster < 0 ? NONE : (where === "before" ? p.left : p.right).find((node) => node.cluster === cluster).name;
  }
  function describe(row) {
    const lines = [["lens-tipid", p.ids[row]], ["", `${name(p.from[row], "before")} → ${name(p.to[row], "after")}`]];
    for (const text of (p.recent[row] ?? []).slice(0, 3)) lines.push(["quiet", text]);
    return lines;
  }
  function select(rows, from = "", mode = "replace") {
    key = from;
    model.send({ type: "select", mode }, undefined, [Int32Array.from(rows).buffer]);
  }
  function selectWhere(isMember, mode, from) {
    const rows = [];
    for (let row = 0; row < p.from.length; row++) if (isMember(p.from[row], p.to[row])) rows.push(row);
    if (mode === "replace" && key === from) select([]); // pressed again: let go
    else select(rows, mode === "replace" ? from : "", mode);
  }
  /** Give every user the ink and shape of its cluster, per side; read anew when it comes onto the page, and when the theme changes. */
  function dress() {
    if (!p) return;
    const style = getComputedStyle(root);
    const ink = (slot) => style.getPropertyValue(slot < 0 ? "--lens-still" : `--clus-${slot}`).trim();
    const kinds = new Map([-1, ...Array(SHAPES.length).keys()].map((slot) => [slot, { ink: ink(slot), shape: slot < 0 ? "circle" : SHAPES[slot], faint: slot < 0 ? 0.5 : 1 }]));
    for (const [where, nodes, own] of [["before", p.left, p.from], ["after", p.right, p.to]]) {
      const slots = new Map(nodes.map((node) => [node.cluster, node.slot]));
      looks[where] = Array.from(own, (cluster) => kinds.get(slots.get(cluster) ?? -1));
    }
    map.dress();
  }
  function legends() {
    const entry = (drawing, text) => make("span", {}, drawing, text);
    const many = Math.max(...[p.left, p.right].map((nodes) => nodes.filter((node) => node.cluster >= 0 && node.slot < 0).length));
    legend.replaceChildren(...[
      entry(marker(-1, 3.5), many ? `${NONE}, or in one of ${count(many, "smaller cluster", "smaller clusters")}` : NONE),
      p.marks.length ? entry(marker("star"), "prototype (after)") : null,
      entry(svg("svg", { class: "clus-mark faint", viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("circle", { cx: 8, cy: 8, r: 3.5 })), "faint: low trust"),
    ].filter(Boolean));
  }
  function picture() {
    const raw = model.get("_picture");
    root.dataset.ready = String(Boolean(raw.after));
    if (!raw.after) return;
    p = { ...raw, from: ints(raw.from), to: ints(raw.to) };
    head.lastChild.textContent = count(p.ids.length, p.unit, p.units);
    dress();
    const [before, after, trust] = [raw.before, raw.after, raw.trust].map(floats);
    const beyond = Uint8Array.from(p.to, (cluster) => cluster >= 0);
    map.setPicture({ before, after, trust, beyond, residual: new Float32Array(trust.length), gained: [], lost: [], maxArrows: 0, marks: p.marks });
    side.press((root.dataset.side = "after"));
    flow.show(p, flowHeight());
    sentence.textContent = p.sentence;
    caption.textContent = p.caption;
    scores.replaceChildren(...scoreLine(p.scores, p));
    lists.replaceChildren(clusterList("before", p.left, p.summaries.before, p.units, selectWhere), clusterList("after", p.right, p.summaries.after, p.units, selectWhere));
    legends();
  }
  function selected() {
    const rows = ints(model.get("_selected"));
    if (!rows.length) key = "";
    map.setSelected(rows);
    flow.press(key);
    for (const button of lists.querySelectorAll("[data-key]")) button.setAttribute("aria-pressed", String(button.dataset.key === key));
    picked.hidden = !rows.length;
    root.dataset.chosen = rows.length;
    picked.replaceChildren(`${count(rows.length, p?.unit ?? "user", p?.units ?? "users")} selected (${percent(rows.length / Math.max(p?.ids.length ?? 1, 1))})`, make("button", { type: "button", class: "lens-link", onclick: () => select([]) }, "clear"));
  }
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") (model.get("_selected").byteLength ? select([]) : map.setPicked(-1), event.preventDefault());
    event.stopPropagation(); // the notebook has keys of its own
  });
  const handlers = { _picture: picture, _selected: selected };
  for (const [trait, act] of Object.entries(handlers)) model.on(`change:${trait}`, act);
  const theme = new MutationObserver(dress);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class"] });
  const watch = new ResizeObserver(() => (dress(), flow.setHeight(flowHeight())));
  watch.observe(flow.box.children[1]);
  el.append(root);
  [picture, selected].forEach((act) => act());
  return () => {
    for (const [trait, act] of Object.entries(handlers)) model.off(`change:${trait}`, act);
    theme.disconnect();
    watch.disconnect();
    map.destroy();
  };
}

export default { render: survivesKernel(render, []) };
