// Dots on a canvas, by the hundred thousand: each is stamped pixel by pixel, which costs far less than a path of its own.
import { corners } from "./geometry.mjs";

const STEPS = 4; // a dot may stand at every quarter of a pixel
const EDGE = 10; // pixels around the page's, so that no dot on it is cut and no pixel need be checked

/** A sheet to stamp dots on: clear it, stamp them, lay it on the page. */
export function dotSheet() {
  const [canvas, small] = [document.createElement("canvas"), document.createElement("canvas")];
  const [brush, pen] = [canvas.getContext("2d"), small.getContext("2d", { willReadFrequently: true })];
  const [inks, masks] = [new Map(), new Map()];
  let [wide, high, sharp, size, image, data, paper] = [0, 0, 1, 0, null, null, null];

  /** Begin with blank paper of a width and height, `pixels` to one of the page, for dots of a radius. */
  function clear(width, height, pixels, radius, ground) {
    const [across, down] = [width, height].map((side) => Math.round((side + 2 * EDGE) * pixels));
    if (across !== canvas.width || down !== canvas.height || pixels !== sharp || radius !== size) masks.clear();
    [sharp, size, paper] = [pixels, radius, rgb(ground)];
    if (across !== wide || down !== high) {
      [wide, high] = [across, down];
      Object.assign(canvas, { width: wide, height: high });
      image = brush.createImageData(wide, high);
      data = image.data;
    }
    const blank = new Uint8Array([...paper, 255]);
    new Uint32Array(data.buffer).fill(new Uint32Array(blank.buffer)[0]);
  }

  /** Red, green and blue of any colour a style sheet may name. */
  function rgb(ink) {
    if (!inks.has(ink)) {
      Object.assign(small, { width: 1, height: 1 });
      pen.fillStyle = ink;
      pen.fillRect(0, 0, 1, 1);
      inks.set(ink, Array.from(pen.getImageData(0, 0, 1, 1).data.slice(0, 3)));
    }
    return inks.get(ink);
  }

  /** The pixels that a marker covers, for each place within a pixel: those of its fill, those of its hairline. */
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
    const shares = Array.from({ length: width ** 2 }, (_, i) => data[4 * i + 3] / 255);
    const rows = [...shares.keys()].filter((i) => shares[i] > 0);
    const steps = rows.map((i) => 4 * ((Math.floor(i / width) - half) * wide + (i % width) - half));
    return { steps: Int32Array.from(steps), shares: Float64Array.from(rows, (i) => shares[i]) };
  }

  function stamp(x, y, look, alpha, large = false) {
    const left = Math.floor((x + EDGE) * sharp);
    const top = Math.floor((y + EDGE) * sharp);
    const rim = (EDGE * sharp) / 2;
    if (!(left > rim && top > rim && left < wide - rim && top < high - rim)) return;
    const place = Math.floor(((x + EDGE) * sharp - left) * STEPS) + STEPS * Math.floor(((y + EDGE) * sharp - top) * STEPS);
    const pixels = masksOf(look.shape, large)[place];
    press(pixels[0], 4 * (top * wide + left), rgb(look.ink), alpha);
    if (pixels.length > 1) press(pixels[1], 4 * (top * wide + left), paper, alpha); // a hairline keeps neighbours apart
  }

  function press({ steps, shares }, start, ink, alpha) {
    for (let i = 0; i < steps.length; i++) {
      const at = start + steps[i];
      const share = alpha * shares[i];
      data[at] += (ink[0] - data[at]) * share;
      data[at + 1] += (ink[1] - data[at + 1]) * share;
      data[at + 2] += (ink[2] - data[at + 2]) * share;
    }
  }

  /** Lay the sheet on a page of the width and height that it was begun for. */
  function lay(page) {
    brush.putImageData(image, 0, 0);
    page.drawImage(canvas, -EDGE, -EDGE, wide / sharp, high / sharp);
  }

  return { clear, stamp, lay };
}
