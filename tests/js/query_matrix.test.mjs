// The query matrix: colours only beyond chance, orders of rows and columns, cells in words.
import assert from "node:assert/strict";
import { test } from "node:test";
import { figure, ordered, strength, words } from "../../widgets/static/query_matrix.mjs";

const cell = (auc, beyond, more = {}) => ({ auc, auc_low: auc - 0.05, auc_high: auc + 0.05, chance: 0.6, beyond_chance: beyond, yes_score: 1 - auc, yes_score_beyond: beyond, ratio: 1.2, ratio_beyond: false, shift: 0.6, ...more });

test("a cell within chance has no colour, whatever its number", () => {
  assert.equal(strength(cell(0.7, false), "auc"), 0);
  assert.ok(Math.abs(strength(cell(0.7, true), "auc") - 0.5) < 1e-9);
  assert.ok(strength(cell(0.7, true), "yes_score") < 0);
  assert.equal(strength(cell(0.99, true), "auc"), 1);
  assert.equal(strength(cell(0.3, true), "auc"), 0); // below a coin nothing is told
  assert.equal(strength(cell(0.7, true, { ratio: 100, ratio_beyond: true }), "ratio"), 1);
  assert.equal(strength(cell(0.7, true, { ratio: 0.001, ratio_beyond: true }), "ratio"), -1);
  for (const nothing of [null, undefined, { auc: null }]) assert.equal(strength(nothing, "auc"), 0);
  assert.ok(strength({ auc: 0.7 }, "auc") > 0); // a frame that knows nothing of chance
});

test("rows and columns stand as dealt, strongest first, or alike", () => {
  const cells = [[cell(0.55, false), cell(0.6, false)], [cell(0.7, true), cell(0.9, true)], [cell(0.99, false), null]];
  const picture = { cells, groups: [{ name: "a" }, { name: "b" }], orders: { auc: { rows: [2, 1, 0], columns: [0, 1] } } };
  assert.deepEqual(ordered(picture, "auc", "dealt"), { rows: [0, 1, 2], columns: [0, 1] });
  assert.deepEqual(ordered(picture, "auc", "strongest"), { rows: [1, 0, 2], columns: [1, 0] });
  assert.deepEqual(ordered(picture, "auc", "alike").rows, [2, 1, 0]);
  assert.deepEqual(ordered(picture, "yes_score", "alike").rows, [0, 1, 2]); // none is known
  assert.deepEqual(ordered({ cells: [], groups: [], orders: {} }, "auc", "strongest"), { rows: [], columns: [] });
});

test("a cell says itself in words", () => {
  const group = { name: "Concert", n: 1200 };
  const description = words("Why?", group, cell(0.7, true));
  assert.equal(description, "“Why?” and Concert (1,200 users): AUC .70 (95 %: .65 to .75), beyond chance (chance reaches .60). In 70 of 100 pairs the other leans more to yes, beyond chance. They shift 1.20 times as far as the others, within chance.");
  assert.equal(words("Why?", group, null), "“Why?” and Concert (1,200 users): not asked yet.");
  assert.equal(words("Why?", group, null, "family", "families"), "“Why?” and Concert (1,200 families): not asked yet.");
  assert.equal(words("Why?", { name: "a", n: 1 }, { auc: 1, yes_score: null }), "“Why?” and a (1 user): AUC 1.00.");
});

test("figures are short", () => {
  assert.deepEqual([figure(0.614, "auc"), figure(1, "auc"), figure(0.94, "ratio"), figure(null, "yes_score")], [".61", "1.00", "0.94", ""]);
});
