// The pure parts of the prompt tuning view, and the promise that text never becomes markup.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { apart, spell, ticks } from "../../widgets/static/prompt_tuning.mjs";

test("ticks are round, few, and within the range", () => {
  assert.deepEqual(ticks(0, 60, 6), [0, 10, 20, 30, 40, 50, 60]);
  assert.deepEqual(ticks(0.41, 0.69), [0.5, 0.6]);
  assert.deepEqual(ticks(0, 500, 6), [0, 100, 200, 300, 400, 500]);
  for (const [low, high] of [[0.311, 0.352], [-3, 1200], [5, 5]]) {
    const values = ticks(low, high);
    assert.ok(values.length <= 7 && values.every((v) => v >= low - 1e-9 && v <= high + 1e-9));
  }
});

test("seconds are said as one would", () => {
  assert.deepEqual([0.2, 7.4, 38, 61, 150, 3000].map(spell), ["1 s", "7 s", "40 s", "60 s", "3 min", "50 min"]);
  assert.equal(spell(undefined), "");
});

test("two names never lie on each other", () => {
  assert.deepEqual(apart(10, 50, 16), [10, 50]);
  assert.deepEqual(apart(20, 24, 16), [14, 30]);
  assert.deepEqual(apart(24, 20, 16), [30, 14]);
});

test("no text enters as markup", () => {
  const source = readFileSync(new URL("../../widgets/static/prompt_tuning.mjs", import.meta.url), "utf8");
  assert.ok(!/innerHTML|outerHTML|insertAdjacentHTML|document\.write/.test(source));
});
