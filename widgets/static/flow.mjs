// The flow of users from the clusters of before to those of after: where bars and bands lie, and their drawing.
import { corners, count, pathOf, SHAPES } from "./geometry.mjs";
import { make, modeOf, svg } from "./dom.mjs";

export const KINDS = {
  stays: "from a cluster to its only heir, or in none on both sides",
  split: "from a cluster to one of its several heirs",
  merge: "from one of several clusters to the heir they share",
  birth: "into a cluster that is no heir",
  death: "out of a cluster without an heir",
  leaver: "out of a cluster that lived on, to none or to another's heir",
  joiner: "from none to an heir",
};
const MIN_HEIGHT = 36; // pixels that a cluster has at least, so that its name can be read
const GAP = 6;
const BAR = 9;

/** Order the right side so that few bands cross: by where its users come from; those in none stay last. */
export function ordered(left, right, bands) {
  const row = new Map(left.map((node, i) => [node.cluster, i]));
  const middle = (node) => {
    const own = bands.filter((band) => band.to === node.cluster && band.from >= 0);
    const users = own.reduce((sum, band) => sum + band.users, 0);
    return users ? own.reduce((sum, band) => sum + band.users * row.get(band.from), 0) / users : left.length;
  };
  const places = new Map(right.map((node) => [node, node.cluster < 0 ? Infinity : middle(node)]));
  return [...right].sort((a, b) => (places.get(a) === places.get(b) ? 0 : places.get(a) - places.get(b)));
}

/** Pixels a user: as many as fit when every cluster has at least the height of its name. */
function scale(sides, height) {
  const tall = (k) => Math.max(...sides.map((nodes) => nodes.reduce((sum, node) => sum + Math.max(MIN_HEIGHT, k * node.users) + GAP, -GAP)));
  let [low, high] = [0, height];
  for (let i = 0; i < 50; i++) tall((low + high) / 2) <= height ? (low = (low + high) / 2) : (high = (low + high) / 2);
  return low;
}

/** Lay out bars and bands: { height, left, right: [{ ...node, y, h }], bands: [{ ...band, y0, y1, h }] }. */
export function layout(left, right, bands, wantedHeight) {
  const sides = [left, ordered(left, right, bands)];
  const height = Math.max(wantedHeight, ...sides.map((nodes) => nodes.length * (MIN_HEIGHT + GAP) - GAP + 0.35 * wantedHeight)); // room for users, too
  const k = scale(sides, height);
  const [placed, next] = [[], []];
  sides.forEach((nodes, side) => {
    let y = 0;
    placed.push(nodes.map((node) => {
      const one = { ...node, y, h: k * node.users };
      y += Math.max(MIN_HEIGHT, one.h) + GAP;
      return one;
    }));
    next.push(new Map(placed[side].map((node) => [node.cluster, node.y])));
  });
  const rank = placed.map((nodes) => new Map(nodes.map((node, i) => [node.cluster, i])));
  const take = (side, cluster, h) => (next[side].set(cluster, next[side].get(cluster) + h), next[side].get(cluster) - h);
  const out = bands.map((band) => ({ ...band, h: k * band.users }));
  const by = (a, b, i, one, j, two) => rank[i].get(a[one]) - rank[i].get(b[one]) || rank[j].get(a[two]) - rank[j].get(b[two]);
  for (const band of [...out].sort((a, b) => by(a, b, 0, "from", 1, "to"))) band.y0 = take(0, band.from, band.h);
  for (const band of [...out].sort((a, b) => by(a, b, 1, "to", 0, "from"))) band.y1 = take(1, band.to, band.h);
  return { height, left: placed[0], right: placed[1], bands: out };
}

/** The marker of a cluster, as it is on the map. */
export function marker(slot, size = 5) {
  const shape = svg("path", { d: pathOf(corners(slot < 0 ? "circle" : slot === "star" ? "star" : SHAPES[slot], 8, 8, slot === "star" ? 3 : size)) });
  return svg("svg", { class: `clus-mark slot${slot}`, viewBox: "0 0 16 16", "aria-hidden": "true" }, shape);
}

/** Stripes for those who go, dots for those who come: kinds differ without their colours, too. */
function patterns(id) {
  const kinds = { leaver: "M-1 7L7 -1M2 10L10 2", death: "M-2 2L6 10M2 -2L10 6", birth: "M2 2h.01M6 6h.01", joiner: "M4 4h.01" };
  return svg("defs", {}, ...Object.entries(kinds).map(([kind, d]) =>
    svg("pattern", { id: `${id}-${kind}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
      svg("rect", { class: `clus-wash ${kind}`, width: 8, height: 8 }), svg("path", { class: `clus-hatch ${kind}`, d }))));
}
const fill = (id, kind) => (["leaver", "death", "birth", "joiner"].includes(kind) ? `fill:url(#${id}-${kind})` : "");

/** on: { name(cluster, side), select(test, mode, key), describe(text) }; a test is (from, to) -> whether such users are meant. */
export function flowView(on) {
  const id = `clus-${Math.random().toString(36).slice(2)}`;
  const [before, after] = ["before", "after"].map((side) => make("div", { class: `clus-side ${side}` }));
  const drawing = svg("svg", { class: "clus-bands", role: "group", "aria-label": "Users from cluster to cluster" });
  const box = make("div", { class: "clus-flow" }, before, make("div", { class: "clus-middle" }, drawing), after);
  const legend = make("div", { class: "clus-kinds", role: "group", "aria-label": "Kinds of bands" });
  let [picture, nouns, wantedHeight] = [null, ["user", "users"], 400];

  function node(one, side) {
    const isMember = (from, to) => (side === "before" ? from : to) === one.cluster;
    const key = `${side} ${one.cluster}`;
    const names = [make("span", { class: "clus-name" }, on.name(one.cluster, side)), marker(one.slot)];
    return make(
      "button",
      { type: "button", "data-key": key, "aria-pressed": "false", class: one.unstable ? "unstable" : "", style: `top:${one.y}px`,
        title: `${on.name(one.cluster, side)}: ${count(one.users, ...nouns)}${one.unstable ? ", not to be believed" : ""}`,
        onclick: (event) => on.select(isMember, modeOf(event), key) },
      make("span", { class: "clus-top" }, ...(side === "before" ? names : names.reverse())),
      make("span", { class: "quiet" }, count(one.users, ...nouns)),
    );
  }
  function band(one, width) {
    const [x0, x1, bend] = [BAR + 2, width - BAR - 2, width * 0.42];
    const h = Math.max(one.h, 1);
    const d = `M${x0} ${one.y0}C${x0 + bend} ${one.y0} ${x1 - bend} ${one.y1} ${x1} ${one.y1}v${h}C${x1 - bend} ${one.y1 + h} ${x0 + bend} ${one.y0 + h} ${x0} ${one.y0 + h}Z`;
    const words = `${count(one.users, ...nouns)}, ${one.kind}: ${on.name(one.from, "before")} → ${on.name(one.to, "after")}`;
    const key = `band ${one.from} ${one.to}`;
    const path = svg("path", { d, class: `clus-band ${one.kind}${one.from < 0 && one.to < 0 ? " outside" : ""}`, style: fill(id, one.kind), tabindex: 0, role: "button", "aria-pressed": "false", "aria-label": words, "data-key": key });
    const act = (event) => on.select((from, to) => from === one.from && to === one.to, modeOf(event), key);
    path.append(svg("title", {}, words));
    path.addEventListener("click", act);
    path.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (act(event), event.preventDefault()));
    for (const [begin, end] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
      path.addEventListener(begin, () => on.describe(words));
      path.addEventListener(end, () => on.describe(""));
    }
    return path;
  }
  /** Thick bands say what they are; thin ones when they are pointed at. */
  const word = (one) => svg("text", { class: "clus-word", x: BAR + 8, y: one.y0 + one.h / 2 + 4, "aria-hidden": "true" }, `${one.kind} ${one.users.toLocaleString("en")}`);
  const bar = (one, x) => svg("rect", { x, y: one.y, width: BAR, height: Math.max(one.h, 1.5), rx: 1.5,
    class: `clus-bar slot${one.slot}${one.unstable ? " unstable" : ""}`, style: `fill-opacity:${one.stability === null ? 1 : 0.25 + 0.75 * one.stability}` });

  function kinds() {
    const bandsByKind = Object.keys(KINDS).map((kind) => [kind, picture.bands.filter((b) => b.kind === kind && (b.from >= 0 || b.to >= 0))]);
    legend.replaceChildren(...bandsByKind.filter(([, bands]) => bands.length).map(([kind, bands]) => {
      const swatch = svg("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, svg("rect", { width: 22, height: 12, rx: 2, class: `clus-band ${kind}`, style: fill(id, kind) }));
      const isMember = (from, to) => bands.some((b) => b.from === from && b.to === to);
      return make("button", { type: "button", title: KINDS[kind], "data-key": `kind ${kind}`, "aria-pressed": "false", onclick: (event) => on.select(isMember, modeOf(event), `kind ${kind}`) },
        swatch, `${kind} `, make("span", { class: "quiet" }, count(bands.reduce((sum, b) => sum + b.users, 0), ...nouns)));
    }), ...(picture.left.concat(picture.right).some((one) => one.stability !== null) ? [make("span", {}, "paler bars are less stable, dashed ones not to be believed")] : []));
  }
  function draw() {
    const width = box.children[1].clientWidth;
    if (!picture || !width) return;
    const plan = layout(picture.left, picture.right, picture.bands, wantedHeight);
    box.style.height = `${plan.height}px`;
    before.replaceChildren(...plan.left.map((one) => node(one, "before")));
    after.replaceChildren(...plan.right.map((one) => node(one, "after")));
    for (const [name, value] of Object.entries({ width, height: plan.height })) drawing.setAttribute(name, value);
    const thickFirst = [...plan.bands].sort((a, b) => b.users - a.users); // thin bands lie above thick ones, where they can be hit
    drawing.replaceChildren(patterns(id), ...thickFirst.map((one) => band(one, width)), ...thickFirst.filter((one) => one.h >= 15 && (one.from >= 0 || one.to >= 0)).map(word), ...plan.left.map((one) => bar(one, 0)), ...plan.right.map((one) => bar(one, width - BAR)));
    press(box.dataset.key);
  }
  function press(key) {
    box.dataset.key = key ?? "";
    for (const part of [...box.querySelectorAll("[data-key]"), ...legend.querySelectorAll("button")]) part.setAttribute("aria-pressed", String(part.dataset.key === key && Boolean(key)));
  }
  return { box, legend, press, draw, show: (data, height) => (([picture, nouns, wantedHeight] = [data, [data.unit, data.units], height]), kinds(), draw()), setHeight: (height) => ((wantedHeight = height), draw()) };
}
