// What pointer, wheel and keyboard do on the map of users.
import { clamp, nearestTo, neighbour, within } from "./geometry.mjs";
import { modeOf } from "./dom.mjs";

const REACH = 12; // pixels: how near a pointer must come to a point
const ZOOM = { "+": 1.6, "=": 1.6, "-": 1 / 1.6, 0: 0 };

/** Follow what is done on a canvas: `s` is the state of the map, `on` is called (see `userMap`), then what the map can do. */
export function gestures(canvas, s, on, { hover, zoom, drag, request, say }) {
  const place = (event) => {
    const edge = canvas.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  };

  /** End what the pointer does; after a drag all dots are drawn again. */
  const letGo = () => {
    const dragged = s.grip;
    s.lasso = s.grip = null;
    if (dragged) drag(0, 0);
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    if (event.ctrlKey || event.metaKey) s.grip = place(event);
    else s.lasso = { path: [place(event)], drawn: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (s.grip) {
      drag(x - s.grip[0], y - s.grip[1]);
      s.grip = [x, y];
      return;
    }
    if (!s.lasso) return hover(nearestTo(s.pixels, x, y, REACH));
    const [x0, y0] = s.lasso.path.at(-1);
    if (Math.hypot(x - x0, y - y0) < 4) return;
    s.lasso.path.push([x, y]);
    s.lasso.drawn = true;
    hover(-1);
  });
  canvas.addEventListener("pointerup", (event) => {
    const lasso = s.lasso;
    letGo();
    if (!lasso) return;
    if (lasso.drawn) on.select(within(s.pixels, lasso.path), modeOf(event));
    else {
      const row = nearestTo(s.pixels, ...lasso.path[0], REACH);
      if (row >= 0) s.cursor = row;
      on.pick(row);
    }
    request();
  });
  canvas.addEventListener("pointercancel", () => (letGo(), request()));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls; a pinch comes as Ctrl and the wheel
    event.preventDefault();
    zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 250), ...place(event));
  }, { passive: false });
  canvas.addEventListener("pointerleave", () => s.lasso || hover(-1));
  canvas.addEventListener("focus", request);
  canvas.addEventListener("blur", () => hover(-1));
  canvas.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow") && s.pixels.length) {
      const start = s.cursor < 0 ? nearestTo(s.pixels, s.width / 2, s.height / 2, Infinity) : null;
      s.cursor = start ?? neighbour(s.pixels, s.cursor, event.key);
      const [x, y] = [s.pixels[2 * s.cursor], s.pixels[2 * s.cursor + 1]];
      if (x < 0 || y < 0 || x > s.width || y > s.height) drag(s.width / 2 - x, s.height / 2 - y);
      hover(s.cursor);
      say(on.describe(s.cursor).slice(0, 2).map(([, text]) => text).join(", "));
    } else if (event.key === "Enter" && s.cursor >= 0) on.pick(s.cursor);
    else if (event.key === " " && s.cursor >= 0) on.select([s.cursor], s.selected.has(s.cursor) ? "subtract" : "add");
    else if (event.key in ZOOM) zoom(ZOOM[event.key]);
    else return;
    event.preventDefault();
  });
}
