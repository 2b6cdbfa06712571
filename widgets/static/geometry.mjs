// Pure functions of the views: numbers in, numbers or words out. Nothing here touches the page.

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** Start and stop gently: 0 to 0, 1 to 1. */
export const ease = (t) => (t < 0.5 ? 4 * t ** 3 : 1 - (2 - 2 * t) ** 3 / 2);

/** Between two lists of places; a place that is not known on one side stays where it is known. */
export function blend(from, to, t, out = new Float32Array(to.length)) {
  for (let i = 0; i < to.length; i++) {
    out[i] = Number.isNaN(to[i]) ? from[i] : Number.isNaN(from[i]) ? to[i] : from[i] + (to[i] - from[i]) * t;
  }
  return out;
}

/** The scale and offset that bring all places into a box, the same scale both ways, y upwards. */
export function fit(lists, width, height, pad = 24) {
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const xy of lists) {
    for (let i = 0; i < xy.length; i += 2) {
      if (Number.isNaN(xy[i])) continue;
      left = Math.min(left, xy[i]);
      right = Math.max(right, xy[i]);
      low = Math.min(low, xy[i + 1]);
      high = Math.max(high, xy[i + 1]);
    }
  }
  if (left > right) return { k: 1, x: width / 2, y: height / 2 };
  const k = Math.min((width - 2 * pad) / (right - left || 1e-9), (height - 2 * pad) / (high - low || 1e-9), 1e9);
  const flat = right - left + high - low === 0; // one place only: put it in the middle at scale 1
  const scale = flat ? 1 : k;
  return { k: scale, x: width / 2 - (scale * (left + right)) / 2, y: height / 2 + (scale * (low + high)) / 2 };
}

/** Places to pixels. */
export function project(xy, view, out = new Float32Array(xy.length)) {
  for (let i = 0; i < xy.length; i += 2) {
    out[i] = xy[i] * view.k + view.x;
    out[i + 1] = view.y - xy[i + 1] * view.k;
  }
  return out;
}

/** Is (x, y) inside the polygon [[x, y], ...]? (Even-odd rule.) */
export function inPolygon(x, y, polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i];
    const [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

/** The rows of the pixels that lie inside a polygon. */
export function within(pixels, polygon) {
  const rows = [];
  for (let i = 0; i < pixels.length; i += 2) if (inPolygon(pixels[i], pixels[i + 1], polygon)) rows.push(i / 2);
  return rows;
}

/** What is chosen after drawing: in place of the old choice, added to it, or taken from it. */
export function combine(old, drawn, mode) {
  const chosen = new Set(mode === "replace" ? [] : old);
  for (const row of drawn) mode === "subtract" ? chosen.delete(row) : chosen.add(row);
  return Int32Array.from([...chosen].sort((a, b) => a - b));
}

/** The row nearest to (x, y) within a radius, or -1. */
export function nearestTo(pixels, x, y, radius) {
  let [best, least] = [-1, radius ** 2];
  for (let i = 0; i < pixels.length; i += 2) {
    const d = (pixels[i] - x) ** 2 + (pixels[i + 1] - y) ** 2;
    if (d <= least) [best, least] = [i / 2, d];
  }
  return best;
}

const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The next row in the direction of an arrow key: near, and not far to the side. Stays where nothing is. */
export function neighbour(pixels, row, key) {
  const way = WAYS[key];
  if (!way) return row;
  let [best, least] = [row, Infinity];
  for (let i = 0; i < pixels.length; i += 2) {
    const [dx, dy] = [pixels[i] - pixels[2 * row], pixels[i + 1] - pixels[2 * row + 1]];
    const along = dx * way[0] + dy * way[1];
    const aside = Math.abs(dx * way[1] - dy * way[0]);
    if (along > 0.5 && aside <= along * 1.2 && along + 2 * aside < least) [best, least] = [i / 2, along + 2 * aside];
  }
  return best;
}

/** Rows by falling value, ties by row; only those of `wanted` (when given), at most `limit`. */
export function strongest(values, limit, wanted = null) {
  const rows = [];
  for (let i = 0; i < values.length; i++) if (!wanted || wanted[i]) rows.push(i);
  return rows.sort((a, b) => values[b] - values[a] || a - b).slice(0, limit);
}

/** The place of each value among all, from 0 (the lowest) to 1; equal values share one, what is not known has the lowest. */
export function ranks(values) {
  const order = Array.from(values.keys()).sort((a, b) => (values[a] || 0) - (values[b] || 0));
  const out = new Float32Array(values.length);
  for (let i = 0, first = 0; i < order.length; i++) {
    if (values[order[i]] !== values[order[first]]) first = i;
    out[order[i]] = Number.isNaN(values[order[i]]) ? 0 : first / Math.max(order.length - 1, 1);
  }
  return out;
}

/** A colour between two "#rrggbb". */
export function mix(from, to, t) {
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  const rgb = [0, 1, 2].map((i) => Math.round(part(from, i) + (part(to, i) - part(from, i)) * clamp(t, 0, 1)));
  return `rgb(${rgb.join(",")})`;
}

/** The head of an arrow that ends at (x, y), or null when the arrow is too short to have one. */
export function arrowHead(x0, y0, x, y, size = 5) {
  const length = Math.hypot(x - x0, y - y0);
  if (length < size * 1.6) return null;
  const [ux, uy] = [(x - x0) / length, (y - y0) / length];
  const [bx, by] = [x - ux * size, y - uy * size];
  return [[x, y], [bx - (uy * size) / 2, by + (ux * size) / 2], [bx + (uy * size) / 2, by - (ux * size) / 2]];
}

/** The shapes that tell clusters apart beside their colours; a star is for what is no user. */
export const SHAPES = ["circle", "diamond", "square", "triangle", "down", "plus", "pentagon", "times"];
const ring = (n, turn, r, inner = r) => Array.from({ length: n }, (_, i) => [i % 2 ? inner : r, ((turn + (360 * i) / n) * Math.PI) / 180]);
const CROSS = [[3, 1], [1, 1], [1, 3]].map(([a, b]) => [1.4 * Math.hypot(a, b) / Math.hypot(1, 3), Math.atan2(b, a)]);
const cross = (turn) => [0, 1, 2, 3].flatMap((quarter) => CROSS.map(([r, angle]) => [r, angle + ((quarter - 1) * Math.PI) / 2 + turn]));
const OUTLINES = {
  circle: ring(16, 0, 1.02), diamond: ring(4, -90, 1.35), square: ring(4, 45, 1.28), triangle: ring(3, -90, 1.5), down: ring(3, 90, 1.5),
  plus: cross(0), pentagon: ring(5, -90, 1.2), times: cross(Math.PI / 4), star: ring(10, -90, 2.6, 1.05),
};

/** The corners of a marker around (x, y), much of one area whatever its shape. */
export function corners(shape, x, y, r) {
  return OUTLINES[shape].map(([far, angle]) => [x + r * far * Math.cos(angle), y + r * far * Math.sin(angle)]);
}

/** Such corners as the path of an SVG. */
export const pathOf = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`;

/** The neighbors gained and lost that come with each user. */
export const NEIGHBORS = 5;

/** 1234 -> "1,234". */
export const number = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ",");
/** A number with its noun: the word for one, and the word for any other number. */
export const count = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;
export const percent = (share) => (Number.isNaN(share) ? "" : `${Math.round(share * 100)} %`);

const DAY = 1440; // minutes

/** Minutes since 1970 as a date, and a time unless it is midnight. */
export const stamp = (minutes) => new Date(minutes * 6e4).toISOString().slice(0, 16).replace("T", " ").replace(" 00:00", "");

/** At most about so many round dates between two times, [minutes, words] each; the first names its year. */
export function timeTicks(first, last, most) {
  const words = (minutes, form) => new Date(minutes * 6e4).toLocaleDateString("en", { timeZone: "UTC", ...form });
  const step = [1, 2, 7, 14].map((days) => days * DAY).find((minutes) => (last - first) / minutes <= most);
  const ticks = [];
  if (step) {
    for (let t = Math.ceil(first / step) * step; t <= last; t += step) ticks.push([t, words(t, { day: "numeric", month: "short" })]);
    return ticks;
  }
  const span = (last - first) / (30.4 * DAY); // in months
  const months = [1, 2, 3, 6, 12, 24, 60].find((n) => span / n <= most) ?? 120 * Math.ceil(span / 120 / most);
  const start = new Date(first * 6e4);
  let month = Math.floor((12 * start.getUTCFullYear() + start.getUTCMonth()) / months) * months;
  for (let t = 0; t <= last; month += months) {
    t = Date.UTC(Math.floor(month / 12), month % 12) / 6e4;
    if (t < first || t > last) continue;
    const isNamed = !ticks.length || month % 12 === 0;
    ticks.push([t, words(t, months >= 12 ? { year: "numeric" } : isNamed ? { month: "short", year: "numeric" } : { month: "short" })]);
  }
  return ticks;
}

/** A typed array over bytes that came with the state, whatever their offset. */
export function floats(data) {
  return data ? new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength)) : new Float32Array(0);
}
export function ints(data) {
  return data ? new Int32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength)) : new Int32Array(0);
}
export function flags(data) {
  return data ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : new Uint8Array(0);
}
