// The attention view's pure functions: how numbers are written, and who stands where.
import assert from "node:assert/strict";
import { test } from "node:test";
import { digitsFor, effect, nth, places, share } from "../../widgets/static/attention.mjs";

test("shares are percent, differences are points with a sign", () => {
  assert.equal(share(0.2134), "21.3 %");
  assert.equal(share(0.00213, 2), "0.21 %");
  assert.equal(share(-0.0041, 2, true), "−0.41");
  assert.equal(share(0.0041, 2, true), "+0.41");
  assert.equal(share(-0.000001, 2, true), "0.00");
  assert.equal(share(NaN), "");
  assert.deepEqual([0.3, 0.02, 0.004, 0.0001].map(digitsFor), [1, 1, 2, 3]);
});

test("effects have three digits, their differences four", () => {
  assert.equal(effect(0.0134), "0.013");
  assert.equal(effect(-0.0134, true), "−0.0134");
  assert.equal(effect(undefined), "");
});

test("ordinals", () => {
  assert.deepEqual([1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111].map(nth), ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "101st", "111th"]);
});

test("places are counted among those that are ranked", () => {
  assert.deepEqual(places([0.1, 0.9, 0.4, 0.2], [true, false, true, true]), [3, 0, 1, 2]);
  assert.deepEqual(places([], []), []);
});
