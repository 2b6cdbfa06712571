// Pure functions of the views, and the promise that text never becomes markup.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import * as flow from "../../widgets/static/flow.mjs";
import * as g from "../../widgets/static/geometry.mjs";

const near = (a, b, by = 1e-4) => assert.ok(Math.abs(a - b) < by, `${a} is not ${b}`);

test("a point is inside a polygon or not, also in a bay", () => {
  const square = [[0, 0], [10, 0], [10, 10], [0, 10]];
  assert.ok(g.inPolygon(5, 5, square));
  assert.ok(!g.inPolygon(15, 5, square));
  const horseshoe = [[0, 0], [10, 0], [10, 10], [7, 10], [7, 3], [3, 3], [3, 10], [0, 10]];
  assert.ok(!g.inPolygon(5, 8, horseshoe));
  assert.ok(g.inPolygon(1, 8, horseshoe));
  assert.deepEqual(g.within(Float32Array.of(5, 5, 20, 20, 1, 1, NaN, NaN), square), [0, 2]);
  assert.deepEqual(g.within(Float32Array.of(5, 5), [[0, 0]]), []);
});

test("drawing replaces, adds or takes away", () => {
  assert.deepEqual([...g.combine([1, 2], [3], "replace")], [3]);
  assert.deepEqual([...g.combine([2, 1], [3], "add")], [1, 2, 3]);
  assert.deepEqual([...g.combine([1, 2, 3], [2, 9], "subtract")], [1, 3]);
});

test("easing starts at 0, ends at 1, and never turns back", () => {
  assert.equal(g.ease(0), 0);
  assert.equal(g.ease(1), 1);
  near(g.ease(0.5), 0.5);
  for (let t = 0; t < 1; t += 0.05) assert.ok(g.ease(t + 0.05) >= g.ease(t));
});

const minutes = (day) => Date.parse(`${day}Z`) / 6e4;

test("a time is written as a date, and a time of day unless it is midnight", () => {
  assert.equal(g.stamp(minutes("2025-03-02T00:00")), "2025-03-02");
  assert.equal(g.stamp(minutes("2025-03-02T08:05")), "2025-03-02 08:05");
});

test("round dates lie within the time, at most so many, and name the year", () => {
  const words = (from, to, most) => g.timeTicks(minutes(`${from}T00:00`), minutes(`${to}T00:00`), most).map(([, word]) => word);
  assert.deepEqual(words("2025-03-03", "2025-05-31", 4), ["Apr 2025", "May"]);
  assert.deepEqual(words("2024-11-15", "2025-02-10", 4), ["Dec 2024", "Jan 2025", "Feb"]);
  assert.deepEqual(words("2019-05-01", "2025-02-10", 4), ["2020", "2022", "2024"]);
  assert.deepEqual(words("2025-03-03", "2025-03-06", 4), ["Mar 3", "Mar 4", "Mar 5", "Mar 6"]);
  for (const to of ["2025-03-04", "2025-09-01", "2031-01-01", "2300-01-01"]) {
    const [first, last] = [minutes("2025-03-03T10:30"), minutes(`${to}T00:00`)];
    const ticks = g.timeTicks(first, last, 4);
    assert.ok(ticks.length <= 5 && ticks.every(([t]) => t >= first && t <= last), to);
  }
});

test("blending walks from place to place and keeps what is known", () => {
  const half = g.blend(Float32Array.of(0, 0, 4, 4, NaN, NaN), Float32Array.of(2, 4, NaN, NaN, 7, 7), 0.5);
  assert.deepEqual([...half], [1, 2, 4, 4, 7, 7]);
});

test("a map is fitted into its box, one scale both ways, y upwards", () => {
  const xy = Float32Array.of(-1, -1, 3, 1, NaN, NaN);
  const view = g.fit([xy], 200, 200, 10);
  const pixels = g.project(xy, view);
  near(pixels[0], 10);
  near(pixels[2], 190);
  assert.ok(pixels[1] > pixels[3]);
  near((pixels[1] + pixels[3]) / 2, 100);
  near((pixels[2] - pixels[0]) / 4, (pixels[1] - pixels[3]) / 2);
  for (const odd of [Float32Array.of(), Float32Array.of(NaN, NaN), Float32Array.of(5, 5)]) {
    for (const part of Object.values(g.fit([odd], 100, 50))) assert.ok(Number.isFinite(part));
  }
  assert.deepEqual([...g.project(Float32Array.of(5, 5), g.fit([Float32Array.of(5, 5)], 100, 50))], [50, 25]);
});

test("the nearest point is found within reach only", () => {
  const pixels = Float32Array.of(0, 0, 10, 0, NaN, NaN);
  assert.equal(g.nearestTo(pixels, 8, 1, 5), 1);
  assert.equal(g.nearestTo(pixels, 50, 50, 5), -1);
});

test("arrow keys walk to the user that lies that way", () => {
  const pixels = Float32Array.of(0, 0, 10, 1, 3, 30, -8, 0);
  assert.equal(g.neighbour(pixels, 0, "ArrowRight"), 1);
  assert.equal(g.neighbour(pixels, 0, "ArrowLeft"), 3);
  assert.equal(g.neighbour(pixels, 0, "ArrowDown"), 2);
  assert.equal(g.neighbour(pixels, 0, "ArrowUp"), 0);
  assert.equal(g.neighbour(pixels, 0, "x"), 0);
});

test("the strongest come first, only those kept, no more than asked", () => {
  const values = Float32Array.of(1, 5, 3, 5);
  assert.deepEqual(g.strongest(values, 3), [1, 3, 2]);
  assert.deepEqual(g.strongest(values, 3, [1, 0, 1, 0]), [2, 0]);
  assert.deepEqual(g.strongest([], 3), []);
});

test("colours mix, arrows have heads when long enough", () => {
  assert.equal(g.mix("#000000", "#ffffff", 0.5), "rgb(128,128,128)");
  assert.equal(g.mix("#000000", "#d55e00", 2), "rgb(213,94,0)");
  assert.equal(g.arrowHead(0, 0, 3, 0), null);
  const [tip, a, b] = g.arrowHead(0, 0, 20, 0, 6);
  assert.deepEqual(tip, [20, 0]);
  assert.deepEqual([a, b], [[14, 3], [14, -3]]);
});

test("numbers are said as people say them", () => {
  assert.equal(g.number(1234567), "1,234,567");
  assert.equal(g.number(12), "12");
  assert.equal(g.count(1, "user", "users"), "1 user");
  assert.equal(g.count(2000, "user", "users"), "2,000 users");
  assert.equal(g.count(2, "family", "families"), "2 families");
  assert.equal(g.count(0, "person", "people"), "0 people");
  assert.equal(g.percent(0.204), "20 %");
  assert.equal(g.percent(NaN), "");
});

test("buffers are read wherever they begin", () => {
  const bytes = new Uint8Array([9, ...new Uint8Array(Float32Array.of(1.5, -2).buffer)]);
  assert.deepEqual([...g.floats(new DataView(bytes.buffer, 1, 8))], [1.5, -2]);
  assert.deepEqual([...g.ints(new DataView(Int32Array.of(7).buffer))], [7]);
  assert.deepEqual([...g.flags(new DataView(Uint8Array.of(1, 0).buffer))], [1, 0]);
  assert.equal(g.floats(undefined).length, 0);
});

test("markers have much of one area and stay around their place", () => {
  const area = (xy) => Math.abs(xy.reduce((sum, [x, y], i) => sum + x * xy[(i + 1) % xy.length][1] - xy[(i + 1) % xy.length][0] * y, 0)) / 2;
  const circle = area(g.corners("circle", 0, 0, 10));
  for (const shape of g.SHAPES) {
    const points = g.corners(shape, 100, 50, 10);
    const share = area(g.corners(shape, 0, 0, 10)) / circle;
    assert.ok(share > 0.7 && share < 1.3, `${shape} has ${share} of the circle's area`);
    near(points.reduce((sum, [x]) => sum + x, 0) / points.length, 100);
    near(points.reduce((sum, [, y]) => sum + y, 0) / points.length, 50);
  }
  assert.match(g.pathOf([[0, 0], [1.25, 2]]), /^M0.0 0.0L1.3 2.0Z$/);
});

const LEFT = [{ cluster: 0, users: 60 }, { cluster: 1, users: 30 }, { cluster: -1, users: 10 }];
const RIGHT = [{ cluster: 0, users: 35 }, { cluster: 1, users: 55 }, { cluster: -1, users: 10 }];
const BANDS = [[0, 1, 55], [0, -1, 5], [1, 0, 28], [1, -1, 2], [-1, 0, 7], [-1, -1, 3]].map(([from, to, users]) => ({ from, to, users }));

test("the flow gives every user the same height, fills its bars, and crosses little", () => {
  const plan = flow.layout(LEFT, RIGHT, BANDS, 400);
  assert.deepEqual(plan.right.map((node) => node.cluster), [1, 0, -1]); // the heir of the first stands first, none last
  for (const [nodes, end, y] of [[plan.left, "from", "y0"], [plan.right, "to", "y1"]]) {
    for (const node of nodes) {
      const own = plan.bands.filter((band) => band[end] === node.cluster).sort((a, b) => a[y] - b[y]);
      near(own.reduce((sum, band) => sum + band.h, 0), node.h);
      near(own[0][y], node.y);
      own.slice(1).forEach((band, i) => near(band[y], own[i][y] + own[i].h));
    }
    nodes.slice(1).forEach((node, i) => assert.ok(node.y >= nodes[i].y + Math.max(36, nodes[i].h)));
    assert.ok(nodes.at(-1).y + nodes.at(-1).h <= plan.height + 0.01);
  }
  for (const band of plan.bands) near(band.h / band.users, plan.left[0].h / 60);
});

test("a flow of many small clusters grows instead of hiding names", () => {
  const many = Array.from({ length: 20 }, (_, cluster) => ({ cluster, users: 10 }));
  const plan = flow.layout(many, many, many.map((node) => ({ from: node.cluster, to: node.cluster, users: 10 })), 300);
  assert.ok(plan.height > 800);
  assert.deepEqual(plan.right.map((node) => node.cluster), many.map((node) => node.cluster));
});

test("no script makes a plural by adding an s to a word that comes from the data", () => {
  const folder = new URL("../../widgets/static/", import.meta.url);
  for (const name of readdirSync(folder).filter((file) => file.endsWith(".mjs"))) {
    const code = readFileSync(new URL(name, folder), "utf8");
    assert.ok(!/\}s\b/.test(code), `${name} adds an s`);
    assert.ok(!/\bcount\([^,()]*, ("\w+"|\w[\w.]*)\)/.test(code), `${name} gives one word to count`);
  }
});

test("no script makes markup from text, calls out, or reads code from elsewhere", () => {
  const folder = new URL("../../widgets/static/", import.meta.url);
  for (const name of readdirSync(folder).filter((file) => file.endsWith(".mjs"))) {
    const code = readFileSync(new URL(name, folder), "utf8");
    for (const word of ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest", "import(", "WebSocket"]) {
      assert.ok(!code.includes(word), `${name} has ${word}`);
    }
    assert.ok(!/https?:\/\/(?!www\.w3\.org\/2000\/svg)/.test(code), `${name} names a host`);
  }
});

test("an id with a hyphen is never broken, and no word is lost", async () => {
  const { unbroken } = await import("../../widgets/static/dom.mjs");
  globalThis.document = { createElement: () => ({ setAttribute(_, value) { this.kind = value; }, append(text) { this.text = text; } }) };
  const parts = unbroken("Nearest to yes: GYM-0042, a-b-c and 17.");
  delete globalThis.document;
  assert.deepEqual(parts.map((part) => part.text ?? part), ["Nearest to yes: ", "GYM-0042,", " ", "a-b-c", " and 17."]);
  assert.deepEqual(parts.map((part) => part.kind), [undefined, "lens-whole", undefined, "lens-whole", undefined]);
  assert.deepEqual([unbroken(""), unbroken(undefined), unbroken("-")], [[""], [""], ["-"]]);
});
