// Dots on a canvas, by the hundred thousand: each is stamped pixel by pixel, which costs far less than a path of its own.
import { corners } from "./geometry.mjs";

const STEPS = 4; // a dot may stand at every quarter of a pixel

/** A sheet to stamp dots on: clear it, stamp what there is, finish it, then its canvas can be drawn. */
export function dotSheet() {
  const [canvas, small] = [document.createElement("canvas"), document.createElement("canvas")];
  const [brush, pen] = [canvas.getContext("2d"), small.getContext("2d", { willReadFrequently: true })];
  const inks = new Map();
  let [sharp, size, masks, light, image] = [1, 0, new Map(), new Float32Array(0), null]; // light: premultiplied rgba, 0 to 1

  /** Begin anew with so many pixels, `pixels` of them to a pixel of the page, for dots of a radius in those of the page. */
  function clear(width, height, pixels, radius) {
    if (pixels !== sharp || radius !== size) masks.clear();
    [sharp, size] = [pixels, radius];
    if (canvas.width !== width || canvas.height !== height || !image) {
      Object.assign(canvas, { width, height });
      image = brush.createImageData(width, height);
      light = new Float32Array(4 * width * height);
    } else light.fill(0);
  }

  /** Red, green and blue of any colour a style sheet may name. */
  function rgb(ink) {
    if (!inks.has(ink)) {
      Object.assign(small, { width: 1, height: 1 });
      pen.fillStyle = ink;
      pen.fillRect(0, 0, 1, 1);
      inks.set(ink, Array.from(pen.getImageData(0, 0, 1, 1).data.slice(0, 3), (part) => part / 255));
    }
    return inks.get(ink);
  }

  /** The pixels that a marker covers, for each place within a pixel: [dx, dy, share, ...] of its fill and of its hairline. */
  function masksOf(shape, large) {
    const key = large ? `${shape}+` : shape;
    if (!masks.has(key)) {
      const radius = size * sharp * (large ? 1.1 : 1);
      const places = Array.from({ length: STEPS * STEPS }, (_, i) => [(i % STEPS) + 0.5, Math.floor(i / STEPS) + 0.5]);
      masks.set(key, places.map(([x, y]) => (size > 2.5 ? [false, true] : [false]).map((line) => mask(shape, radius, x / STEPS, y / STEPS, line))));
    }
    return masks.get(key);
  }

  function mask(shape, radius, x, y, line) {
    const half = Math.ceil(2 * radius) + 1;
    Object.assign(small, { width: 2 * half + 1, height: 2 * half + 1 });
    corners(shape, half + x, half + y, radius).forEach(([px, py], i) => (i ? pen.lineTo(px, py) : (pen.beginPath(), pen.moveTo(px, py))));
    pen.closePath();
    pen.lineWidth = 0.75 * sharp;
    line ? pen.stroke() : pen.fill();
    const { data, width } = pen.getImageData(0, 0, small.width, small.height);
    const found = [];
    for (let i = 0; i < data.length / 4; i++) if (data[4 * i + 3]) found.push((i % width) - half, Math.floor(i / width) - half, data[4 * i + 3] / 255);
    return Float32Array.from(found);
  }

  function stamp(x, y, look, paper, alpha, large = false) {
    const [left, top] = [Math.floor(x * sharp), Math.floor(y * sharp)];
    const place = Math.floor((x * sharp - left) * STEPS) + STEPS * Math.floor((y * sharp - top) * STEPS);
    const [fill, line] = masksOf(look.shape, large)[place];
    press(fill, left, top, rgb(look.ink), alpha);
    if (line) press(line, left, top, rgb(paper), alpha); // a hairline keeps neighbours apart
  }

  function press(pixels, left, top, [red, green, blue], alpha) {
    const { width, height } = canvas;
    for (let i = 0; i < pixels.length; i += 3) {
      const [x, y] = [left + pixels[i], top + pixels[i + 1]];
      if (x < 0 || y < 0 || x >= width || y >= height) continue;
      const share = alpha * pixels[i + 2];
      const [at, rest] = [4 * (y * width + x), 1 - share];
      light[at] = light[at] * rest + red * share;
      light[at + 1] = light[at + 1] * rest + green * share;
      light[at + 2] = light[at + 2] * rest + blue * share;
      light[at + 3] = light[at + 3] * rest + share;
    }
  }

  /** When all are stamped. */
  function finish() {
    const data = image.data;
    for (let at = 0; at < light.length; at += 4) {
      const share = light[at + 3];
      for (let part = 0; part < 3; part++) data[at + part] = share ? (255 * light[at + part]) / share : 0;
      data[at + 3] = 255 * share;
    }
    brush.putImageData(image, 0, 0);
  }

  return { clear, stamp, finish, canvas };
}
