// The map as a picture to keep: the question and the number of users above it, its legend below.
const HEAD = 32; // px
const MARGIN = 12;

/** Draw one mark of a legend as the page shows it: a glyph, a scale of colours, or a dot. */
function drawMark(pen, node, { x, y, width, height }) {
  const style = getComputedStyle(node);
  pen.save();
  pen.translate(x, y);
  pen.globalAlpha = style.opacity;
  if (node.matches("svg")) {
    const shape = new Path2D(node.firstElementChild.getAttribute("d"));
    [pen.fillStyle, pen.strokeStyle] = [style.fill, style.stroke];
    if (style.fill !== "none") pen.fill(shape);
    if (style.stroke !== "none") pen.stroke(shape);
  } else {
    const inks = style.backgroundImage.match(/(rgb|color)[^(]*\([^)]*\)/g) ?? [style.backgroundColor];
    const scale = pen.createLinearGradient(0, 0, width, 0);
    inks.forEach((ink, i) => scale.addColorStop(i / Math.max(inks.length - 1, 1), ink));
    pen.fillStyle = scale;
    pen.fillRect(0, 0, width, height);
  }
  pen.restore();
}

/** The picture as a data URL; the entries of the legend stand where they stand on the page. */
export function mapPicture(map, entries, title) {
  const page = map.getBoundingClientRect();
  const style = getComputedStyle(map);
  const low = Math.max(page.bottom, ...entries.map((entry) => entry.getBoundingClientRect().bottom));
  const sharp = map.width / page.width;
  const copy = document.createElement("canvas");
  Object.assign(copy, { width: Math.round(sharp * (page.width + 2 * MARGIN)), height: Math.round(sharp * (HEAD + low - page.top + MARGIN)) });
  const pen = copy.getContext("2d");
  pen.scale(sharp, sharp);
  pen.fillStyle = style.getPropertyValue("--lens-paper");
  pen.fillRect(0, 0, copy.width, copy.height);
  pen.translate(MARGIN, 0);
  pen.fillStyle = style.getPropertyValue("--lens-ink");
  pen.font = `600 14px ${style.fontFamily}`;
  pen.fillText(title, 0, 21, page.width);
  pen.drawImage(map, 0, HEAD, page.width, page.height);
  pen.font = `12px ${style.fontFamily}`;
  for (const entry of entries) {
    const box = entry.firstElementChild.getBoundingClientRect();
    const [x, y] = [box.left - page.left, box.top - page.top + HEAD];
    drawMark(pen, entry.firstElementChild, { x, y, width: box.width, height: box.height });
    const words = entry.querySelector(":scope > span") ?? entry;
    pen.fillText(words.innerText.trim(), x + box.width + 6, y + box.height / 2 + 4);
  }
  return copy.toDataURL("image/png");
}
