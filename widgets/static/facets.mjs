// Facets: one small map for each category of a column, with its users among all.
import { fit, number, project } from "./geometry.mjs";
import { make, SELECTS } from "./dom.mjs";

const [FACET_WIDTH, FACET_HEIGHT] = [168, 108];
const FAINT = 0.22; // opacity of users of other categories

/** Make a button for each of the `kinds` ({ name, ink, n, rows }) that draws it and calls `choose(rows, event)`. */
export function facetMaps(kinds, places, still, choose) {
  const pixels = project(places, fit([places], FACET_WIDTH, FACET_HEIGHT, 8));
  const size = pixels.length > 10_000 ? 1 : 2;
  return kinds.map(({ name, ink, n, rows }) => {
    const canvas = make("canvas", { "aria-hidden": "true", style: `width:${FACET_WIDTH}px;height:${FACET_HEIGHT}px` });
    const sharp = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: FACET_WIDTH * sharp, height: FACET_HEIGHT * sharp });
    const brush = canvas.getContext("2d");
    brush.scale(sharp, sharp);
    const dot = (row) => brush.fillRect(pixels[2 * row] - size / 2, pixels[2 * row + 1] - size / 2, size, size);
    [brush.fillStyle, brush.globalAlpha] = [still, FAINT];
    for (let row = 0; row < pixels.length / 2; row++) dot(row);
    [brush.fillStyle, brush.globalAlpha] = [ink, 1];
    rows.forEach(dot);
    const button = make("button", { type: "button", title: SELECTS, onclick: (event) => choose(rows, event) }, canvas, `${name} (${number(n)})`);
    return Object.assign(button, { rows });
  });
}

/** Press the button of the category that is selected, if just one is. */
export function pressFacet(buttons, selected) {
  const chosen = new Set(selected);
  for (const button of buttons) {
    const pressed = button.rows.length === chosen.size && button.rows.every((row) => chosen.has(row));
    button.setAttribute("aria-pressed", String(pressed));
  }
}
