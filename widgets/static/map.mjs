// The map of users on a canvas: points, arrows, hover, lasso, keyboard. It draws what it is given and reports what was done.
import { arrowHead, blend, clamp, combine, corners, ease, fit, mix, NEIGHBORS, project, strongest } from "./geometry.mjs";
import { make } from "./dom.mjs";
import { dotSheet } from "./dots.mjs";
import { gestures } from "./gestures.mjs";

const CLOSEST = 200; // times as near as the whole map
const MANY = 20_000; // users beyond whom dots are as sharp as the page's pixels, not the screen's, and no more are drawn while they move
const RAMP = 64; // shades from no residual to the largest

/** on: { describe(row) -> [[class, text]], pick(row), select(rows, mode), moving(whether), look?(row, side) -> { ink, shape, faint } }. */
export function userMap(box, on) {
  const help = "Map of the users. Arrow keys walk from user to user, Enter opens one, Space selects one, drag to draw around some, plus and minus zoom, 0 shows all.";
  const canvas = make("canvas", { class: "lens-canvas", tabindex: 0, role: "application", "aria-label": help });
  const tip = make("div", { class: "lens-tip", hidden: true });
  const spoken = make("div", { class: "lens-hidden", "aria-live": "polite" });
  const nearer = (text, name, by) => make("button", { type: "button", title: name, "aria-label": name, onclick: () => zoom(by) }, text);
  const buttons = make("div", { class: "lens-zoom" }, nearer("+", "Zoom in", 1.6), nearer("−", "Zoom out", 1 / 1.6), nearer("⤢", "Show all", 0));
  box.append(canvas, tip, spoken, buttons);
  const brush = canvas.getContext("2d");
  const sheet = dotSheet();
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const s = {
    before: new Float32Array(0), after: new Float32Array(0), shown: new Float32Array(0), pixels: new Float32Array(0),
    trust: [], residual: [], rank: null, beyond: [], gained: [], lost: [], arrows: [], stages: [], marks: [], selected: new Set(),
    view: { k: 1, x: 0, y: 0 }, arrowInk: 0, top: 1, side: "after", colour: "moved",
    picked: -1, hovered: -1, cursor: -1, lasso: null, grip: null, width: 0, height: 0, ink: {}, ramp: [], yes: [], inks: [], stale: true,
  };
  let waiting = 0;
  const request = () => (waiting ||= requestAnimationFrame(frame));
  const renew = () => ((s.stale = true), request()); // where a request alone draws the dots of the frame before

  function play(stages) {
    s.stages = stages.map((stage) => ({ ...stage, started: null }));
    on.moving(true);
    request();
  }

  function frame(now) {
    waiting = 0;
    const stage = s.stages[0];
    if (stage) {
      s.stale = true;
      if (stage.started === null) Object.assign(stage, { started: now, from: s.shown.slice(), was: { ...s.view }, ink: s.arrowInk });
      const t = calm.matches || !stage.ms ? 1 : clamp((now - stage.started) / stage.ms, 0, 1);
      const e = ease(t);
      blend(stage.from, stage.to, e, s.shown);
      for (const part of ["k", "x", "y"]) s.view[part] = stage.was[part] + (stage.view[part] - stage.was[part]) * e;
      s.arrowInk = stage.ink + (stage.arrows - stage.ink) * e;
      if (t === 1) s.stages.shift();
    }
    draw();
    if (s.stages.length) request();
    else on.moving(false);
  }

  const goal = () => (s.side === "before" ? s.before : s.after);
  const home = () => fit([s.before, s.after, s.marks.flatMap((m) => m.slice(0, 2))], s.width, s.height, 28);

  function setPicture(picture, refines = false) {
    const first = s.shown.length !== picture.after.length;
    Object.assign(s, picture, { side: "after", hovered: -1 });
    s.arrows = strongest(s.residual, picture.maxArrows, s.beyond);
    s.top = s.residual.reduce((most, one) => Math.max(most, one), 1e-9);
    tip.hidden = true;
    if (first) {
      Object.assign(s, { shown: s.before.slice(), view: home(), arrowInk: 0 });
    }
    const view = home();
    const start = { to: s.before, view, ms: first ? 0 : 350, arrows: 0 };
    play([...(refines ? [] : [start]), { to: s.after, view, ms: 900, arrows: 0 }, { to: s.after, view, ms: 250, arrows: 1 }]);
  }

  function setSide(side) {
    s.side = side;
    play([{ to: goal(), view: home(), ms: 700, arrows: 1 }]);
  }

  function resize() {
    const [width, height] = [box.clientWidth, box.clientHeight];
    if (!width || !height) return;
    const sized = s.width > 0; // what began on no ground begins anew
    const sharp = window.devicePixelRatio || 1;
    Object.assign(s, { width, height });
    Object.assign(canvas, { width: Math.round(width * sharp), height: Math.round(height * sharp) });
    brush.setTransform(sharp, 0, 0, sharp, 0, 0);
    if (s.stages.length && sized) for (const stage of s.stages) stage.view = home();
    else look(home());
    dress();
  }

  /** Read the colours of the page's theme. */
  function dress() {
    const style = getComputedStyle(canvas);
    for (const name of ["still", "moved", "half", "full", "yes", "chosen", "ink", "paper", "quiet"]) s.ink[name] = style.getPropertyValue(`--lens-${name}`).trim();
    s.ink.font = style.fontFamily;
    const { still, half, full, yes } = s.ink;
    s.yes = Array.from({ length: RAMP + 1 }, (_, i) => mix(still, yes, i / RAMP));
    s.ramp = Array.from({ length: RAMP + 1 }, (_, i) => (2 * i < RAMP ? mix(still, half, (2 * i) / RAMP) : mix(half, full, (2 * i) / RAMP - 1)));
    renew();
  }

  function inkOf(row) {
    if (s.colour === "column") return s.inks[row] ?? s.ink.still; // the others fade, so a chosen one keeps its colour
    if (s.selected.has(row)) return s.ink.chosen;
    if (s.colour === "residual") return s.ramp[Math.round((RAMP * s.residual[row]) / s.top)];
    if (s.colour === "answer" && s.rank) return s.yes[Math.round(RAMP * s.rank[row])];
    return s.beyond[row] ? s.ink.moved : s.ink.still;
  }

  function point(row, large = false) {
    const [x, y] = [s.pixels[2 * row], s.pixels[2 * row + 1]];
    if (Number.isNaN(x)) return;
    const faint = 0.2 + 0.8 * clamp((s.trust[row] - 0.5) / 0.5, 0, 1); // under .5 a place says next to nothing
    const look = on.look?.(row, s.side) ?? { ink: inkOf(row), shape: s.beyond[row] ? "diamond" : "circle", faint: 1 };
    sheet.stamp(x, y, look, faint * look.faint * (s.selected.size && !s.selected.has(row) ? 0.3 : 0.85), large);
  }

  /** Stamp all dots anew: those that stand still, above them those that moved, above all the selected. */
  function points() {
    s.stale = false;
    s.pixels = project(s.shown, s.view);
    [s.starts, s.ends] = [project(s.before, s.view), project(s.after, s.view)];
    const users = s.shown.length / 2;
    const size = clamp((88 / Math.sqrt(users)) * Math.sqrt(s.view.k / home().k), 1.4, 3.8);
    const sharp = users > MANY ? 1 : window.devicePixelRatio || 1;
    sheet.clear(s.width, s.height, sharp, Math.round(5 * size) / 5, s.ink.paper);
    const every = s.stages.length || s.grip ? Math.ceil(users / MANY) : 1; // a part while they move, all at rest
    for (let row = 0; row < users; row += every) if (!s.beyond[row] && !s.selected.has(row)) point(row);
    for (let row = 0; row < users; row += every) if (s.beyond[row] && !s.selected.has(row)) point(row);
    for (const row of s.selected) point(row, true);
  }

  function outline(points) {
    brush.beginPath();
    points.forEach(([x, y], i) => (i ? brush.lineTo(x, y) : brush.moveTo(x, y)));
    brush.closePath();
  }

  /** What stands on the map and is no user: a star with its name. */
  function mark([x, y, name]) {
    const [px, py] = [x * s.view.k + s.view.x, s.view.y - y * s.view.k];
    outline(corners("star", px, py, 4.5));
    brush.globalAlpha = 1;
    [brush.lineWidth, brush.lineJoin, brush.strokeStyle, brush.fillStyle] = [3, "round", s.ink.paper, s.ink.ink];
    brush.stroke();
    brush.fill();
    label(name, px, py, 14);
  }

  /** A name beside a place, on the side where there is room. */
  function label(name, x, y, apart) {
    brush.font = `600 12px ${s.ink.font}`;
    [brush.lineWidth, brush.lineJoin, brush.strokeStyle, brush.fillStyle] = [4, "round", s.ink.paper, s.ink.ink];
    const wide = brush.measureText(name).width;
    const left = x + apart + wide > s.width ? x - apart - wide : x + apart;
    brush.strokeText(name, left, y + 4);
    brush.fillText(name, left, y + 4);
  }

  function arrow(row, strength) {
    const [x0, y0] = [s.starts[2 * row], s.starts[2 * row + 1]];
    const [x1, y1] = [s.ends[2 * row], s.ends[2 * row + 1]];
    const head = arrowHead(x0, y0, x1, y1, 6);
    if (!head) return;
    const ink = s.selected.has(row) ? s.ink.chosen : s.ink.moved;
    const fade = brush.createLinearGradient(x0, y0, x1, y1); // the tail fades: the eye runs to where they went
    fade.addColorStop(0, mix(ink, ink, 0).replace("rgb", "rgba").replace(")", ",.08)"));
    fade.addColorStop(1, ink);
    brush.globalAlpha = strength;
    [brush.strokeStyle, brush.fillStyle, brush.lineWidth] = [fade, ink, 1.1];
    brush.beginPath();
    brush.moveTo(x0, y0);
    brush.lineTo(x1, y1);
    brush.stroke();
    outline(head);
    brush.fill();
  }

  /** One user close up: its ring and name, and lines to the neighbours it gained and lost. */
  function closeUp(row) {
    const [x, y] = [s.pixels[2 * row], s.pixels[2 * row + 1]];
    if (Number.isNaN(x)) return;
    brush.globalAlpha = 0.6;
    for (const [rows, ink, dash] of [[s.lost, s.ink.quiet, [3, 3]], [s.gained, s.ink.chosen, []]]) {
      [brush.strokeStyle, brush.lineWidth] = [ink, 1];
      brush.setLineDash(dash);
      for (const other of Array.from(rows.slice(row * NEIGHBORS, (row + 1) * NEIGHBORS)).filter((r) => r >= 0)) {
        brush.beginPath();
        brush.moveTo(x, y);
        brush.lineTo(s.pixels[2 * other], s.pixels[2 * other + 1]);
        brush.stroke();
      }
    }
    brush.setLineDash([]);
    if (s.beyond[row]) arrow(row, 1);
    ring(row, 8, s.ink.ink, 2);
    label(on.describe(row)[0][1], x, y, 12);
  }

  function ring(row, radius, ink, width) {
    [brush.globalAlpha, brush.strokeStyle, brush.lineWidth] = [1, ink, width];
    brush.beginPath();
    brush.arc(s.pixels[2 * row], s.pixels[2 * row + 1], radius, 0, 2 * Math.PI);
    brush.stroke();
  }

  function draw() {
    brush.clearRect(0, 0, s.width, s.height);
    const users = s.shown.length / 2;
    if (!users || !s.width) return;
    if (s.stale) points();
    brush.globalAlpha = 1;
    sheet.lay(brush);
    if (s.arrowInk > 0) for (const row of s.arrows) arrow(row, s.arrowInk * (s.selected.size && !s.selected.has(row) ? 0.12 : 0.5));
    if (s.side === "after") s.marks.forEach(mark);
    if (s.picked >= 0) closeUp(s.picked);
    for (const row of [s.hovered, canvas.matches(":focus-visible") ? s.cursor : -1]) {
      if (row >= 0 && row !== s.picked) ring(row, 7, s.ink.ink, 1.5);
    }
    brush.globalAlpha = 1;
    if (s.lasso?.drawn) loop(s.lasso.path);
  }

  function loop(path) {
    outline(path);
    [brush.strokeStyle, brush.fillStyle, brush.lineWidth] = [s.ink.chosen, s.ink.chosen, 1.25];
    brush.globalAlpha = 0.08;
    brush.fill();
    brush.globalAlpha = 1;
    brush.setLineDash([4, 3]);
    brush.stroke();
    brush.setLineDash([]);
  }

  function hover(row) {
    s.hovered = row;
    tip.hidden = row < 0;
    if (row >= 0) {
      const lines = on.describe(row);
      tip.replaceChildren(...lines.map(([kind, text]) => make("div", { class: kind }, text)));
      const [x, y] = [s.pixels[2 * row], s.pixels[2 * row + 1]];
      tip.style.left = `${x + 16 + tip.offsetWidth > s.width ? Math.max(x - 16 - tip.offsetWidth, 4) : x + 16}px`;
      tip.style.top = `${clamp(y - 12, 4, Math.max(s.height - tip.offsetHeight - 4, 4))}px`;
    }
    request();
  }

  /** Come nearer to a point of the box, its middle unless said, by a factor; 0 shows all. */
  function zoom(by, x = s.width / 2, y = s.height / 2) {
    const [whole, { k }] = [home(), s.view];
    const near = clamp(k * by, whole.k, whole.k * CLOSEST);
    look(near === whole.k ? whole : { k: near, x: x + ((s.view.x - x) * near) / k, y: y + ((s.view.y - y) * near) / k });
  }
  function look(view) {
    s.view = view;
    for (const stage of s.stages) Object.assign(stage, { view, was: view });
    s.pixels = project(s.shown, view);
    renew();
  }
  const drag = (x, y) => look({ ...s.view, x: s.view.x + x, y: s.view.y + y });

  gestures(canvas, s, on, { hover, zoom, drag, request, say: (words) => (spoken.textContent = words) });
  const watch = new ResizeObserver(resize);
  watch.observe(box);
  return {
    setPicture, setSide, dress,
    setColour: (colour) => ((s.colour = colour), renew()),
    /** The colour of each user, or null where it is not known. */
    setInks: (inks) => {
      s.inks = inks;
      renew();
    },
    ramp: () => s.ramp,
    setRank: (rank) => ((s.rank = rank), renew()), // by user, from 0 to 1
    setSelected: (rows) => ((s.selected = new Set(rows)), renew()),
    setPicked: (row) => ((s.picked = row), request()),
    hoverAgain: () => s.hovered >= 0 && hover(s.hovered), // more is known of the user
    combine: (rows, how) => combine(s.selected, rows, how),
    state: () => ({ ...s, moving: s.stages.length > 0 }),
    destroy: () => (watch.disconnect(), cancelAnimationFrame(waiting)),
  };
}
