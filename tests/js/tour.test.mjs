// What the tour stands beside, and where: plain functions of boxes.
import assert from "node:assert/strict";
import { test } from "node:test";
import { beside, extent } from "../../widgets/static/tour.mjs";

const box = (left, top, right, bottom) => ({ left, top, right, bottom, width: right - left, height: bottom - top });
const home = { ...box(100, 50, 1100, 850) };
const card = { width: 340, height: 100 };

test("all that a step is about is enclosed, from the corner of the workbench; what is hidden counts for nothing", () => {
  assert.deepEqual(extent(home, [box(200, 60, 300, 80), box(0, 0, 0, 0), box(400, 55, 500, 90)]), { left: 100, top: 5, right: 400, bottom: 40 });
  assert.equal(extent(home, [box(0, 0, 0, 0)]), null);
  assert.equal(extent(home, []), null);
});

test("the words stand under a control, above one at the lower end, in a tall one, and never beyond the sides", () => {
  assert.deepEqual(beside({ left: 20, top: 10, right: 300, bottom: 50 }, card, home), { side: "under", top: 62, left: 20 });
  assert.deepEqual(beside({ left: 20, top: 760, right: 90, bottom: 780 }, card, home), { side: "above", top: 648, left: 20 });
  assert.deepEqual(beside({ left: 20, top: 100, right: 700, bottom: 600 }, card, home), { side: "in", top: 112, left: 32 });
  assert.equal(beside({ left: 900, top: 10, right: 990, bottom: 50 }, card, home).left, 660);
  assert.equal(beside({ left: 40, top: 10, right: 90, bottom: 50 }, card, { width: 300, height: 800 }).left, 0);
});
