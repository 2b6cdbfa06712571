// The card of one user: the answer, the events over time with a lane for each modality, and the events as a list.
import { count, flags, floats, ints, NEIGHBORS, number, stamp, timeTicks } from "./geometry.mjs";
import { choice, make, svg } from "./dom.mjs";

const LANE = 17; // px
const LABEL = 58; // px for the names of the modalities
const FIGURE = 30; // px for their numbers of events
const EVENT_REACH = 8; // px between the pointer and an event that it points at
const PAGE = 100; // events that are listed at once

/** The events of one user as they are sent, oldest first. */
function unpack(raw) {
  return {
    ...raw,
    time: ints(raw.time),
    modality: ints(raw.modality),
    text: ints(raw.text),
    evidence: flags(raw.evidence),
    weight: floats(raw.weight),
  };
}

/** Events over time; `on.point(event)` and `on.open(event)` report what the pointer does, -1 for none. */
function timeline(about, on) {
  const drawing = svg("svg", { class: "lens-lanes", role: "img" });
  const tip = make("div", { class: "lens-tip", hidden: true });
  const node = make("div", { class: "lens-timeline" }, drawing, tip);
  const pointer = svg("path", { class: "lens-pointer" });
  let t = null;
  let width = 0;
  let place = null;
  const middle = (event) => LANE * (t.modality[event] + 0.5);
  function draw() {
    if (!t || !node.clientWidth) return;
    width = node.clientWidth;
    const days = about.span.map((day) => Date.parse(day) / 6e4).filter((minutes) => minutes >= 0);
    const first = Math.min(...days, t.time[0]);
    const last = Math.max(...days.map((day) => day + 1440), t.time.at(-1) + 1);
    const room = width - LABEL - FIGURE - 16;
    place = (minutes) => LABEL + 8 + (room * (minutes - first)) / (last - first);
    const floor = LANE * t.modalities.length;
    const ticks = timeTicks(first, last, Math.max(Math.floor(room / 45), 2)).filter(([minutes]) => place(minutes) < width - FIGURE - 20);
    const grid = ticks.map(([minutes, words]) => [
      svg("path", { class: "lens-grid", d: `M${place(minutes).toFixed(1)} 0V${floor + 3}` }),
      svg("text", { x: place(minutes), y: floor + 14, "text-anchor": "middle" }, words),
    ]);
    drawing.setAttribute("viewBox", `0 0 ${width} ${floor + 18}`);
    drawing.setAttribute("height", floor + 18);
    drawing.setAttribute("aria-label", `Events over time, a lane for each modality: ${t.modalities.join(", ")}. The list below has them as text.`);
    drawing.replaceChildren(...grid.flat(), ...t.modalities.flatMap(lane), pointer);
    point(-1);
  }
  /** One lane: its name, a tick for each event, a taller one for evidence, and how many there are; what falls on one pixel is drawn once. */
  function lane(name, at) {
    const seen = [new Set(), new Set()];
    const marks = ["", ""];
    let total = 0;
    for (let event = 0; event < t.time.length; event++) {
      if (t.modality[event] !== at) continue;
      total += 1;
      const kind = t.evidence[event];
      const x = Math.round(place(t.time[event]));
      if (!seen[kind].has(x)) marks[kind] += `M${x} ${LANE * at + (kind ? 2.5 : 5)}v${kind ? LANE - 5 : LANE - 10}`;
      seen[kind].add(x);
    }
    const y = LANE * (at + 0.5) + 4;
    const words = name.length > 9 ? `${name.slice(0, 8)}…` : name;
    return [
      svg("path", { class: "lens-lane", d: `M${LABEL} ${y - 4}H${width - FIGURE}` }),
      svg("text", { x: 0, y }, words, svg("title", {}, name)),
      svg("text", { x: width, y, "text-anchor": "end" }, number(total)),
      svg("path", { class: "lens-tick", d: marks[0] }),
      svg("path", { class: "lens-tick evidence", d: marks[1] }),
    ];
  }
  /** The event under the pointer; evidence goes first. */
  function under({ offsetX, offsetY }) {
    const at = Math.floor(offsetY / LANE);
    let best = -1;
    let least = EVENT_REACH;
    for (let event = 0; event < (t?.time.length ?? 0); event++) {
      const far = Math.abs(place(t.time[event]) - offsetX) - (t.evidence[event] ? 3 : 0);
      if (t.modality[event] !== at || far > least) continue;
      best = event;
      least = far;
    }
    return best;
  }
  function point(event) {
    pointer.setAttribute("d", event < 0 ? "" : `M${place(t.time[event]).toFixed(1)} 0V${LANE * t.modalities.length}m-4 0`);
    tip.hidden = true;
  }
  function hover(pointed) {
    const event = under(pointed);
    point(event);
    on.point(event);
    tip.hidden = event < 0;
    drawing.style.cursor = event < 0 ? "" : "pointer";
    if (event < 0) return;
    const head = make("div", { class: "lens-tipid" }, `${stamp(t.time[event])} · ${t.modalities[t.modality[event]]}`);
    const text = make("div", { class: "lens-tiptext" }, t.texts[t.text[event]]);
    const evidence = t.evidence[event] ? make("div", { class: "quiet" }, "evidence: the question is about it") : "";
    tip.replaceChildren(head, text, evidence);
    tip.style.left = `${Math.max(Math.min(place(t.time[event]) - tip.offsetWidth / 2, width - tip.offsetWidth), 0)}px`;
    tip.style.top = `${middle(event) + LANE / 2 + 4}px`;
  }
  drawing.addEventListener("pointermove", hover);
  drawing.addEventListener("pointerleave", () => {
    point(-1);
    on.point(-1);
  });
  drawing.addEventListener("click", (pointed) => on.open(under(pointed)));
  const watch = new ResizeObserver(() => node.clientWidth !== width && draw());
  watch.observe(node);
  function show(next) {
    t = next;
    draw();
  }
  return { node, point, show, destroy: () => watch.disconnect() };
}

/** The evidence or all events of a user, newest first, some at a time: one stop of the Tab key, arrows walk. */
function eventList(point) {
  const rows = make("ol", { class: "lens-events" });
  const more = make("button", { type: "button", class: "lens-link", onclick: () => extend() });
  const note = make("div", { class: "lens-more" });
  const node = make("div", { class: "lens-log" });
  let t = null;
  let kind = "all";
  let pressed = "";
  let events = [];
  function show(next) {
    t = next;
    const all = t.time.length;
    kind = pressed || (t.total[1] ? "evidence" : "all");
    const names = [["evidence", `Evidence ${number(t.total[1])}`], ["all", `All events ${number(t.total[0])}`]];
    const which = choice("List the events", names, kind, press);
    which.firstChild.title = "The events that the question is about, each with how much all such events add to the score";
    events = Array.from({ length: all }, (_, i) => all - 1 - i).filter((event) => kind === "all" || t.evidence[event]);
    rows.setAttribute("aria-label", kind === "all" ? "All events, newest first" : "Events that the question is about, newest first");
    rows.replaceChildren();
    node.replaceChildren(which, rows);
    extend();
    rows.scrollTop = 0;
    if (!events.length) rows.append(make("li", { class: "lens-empty" }, kind === "all" ? "No events." : "None of these events is what the question is about."));
  }
  function press(value) {
    pressed = value;
    show(t);
  }
  function extend(least = 0) {
    const from = rows.children.length;
    const next = events.length - from > 1.5 * PAGE ? from + PAGE : events.length; // a last page is not much shorter
    rows.append(...events.slice(from, Math.max(next, least)).map(item));
    const shown = rows.children.length;
    const total = t.total[kind === "all" ? 0 : 1];
    if (!from && rows.firstChild) rows.firstChild.tabIndex = 0;
    more.textContent = `show ${number(Math.min(PAGE, events.length - shown))} more`;
    note.replaceChildren(make("span", {}, `the newest ${number(shown)} of ${number(total)}`), shown < events.length ? more : "");
    if (shown < total) node.append(note);
    else note.remove();
  }
  function item(event) {
    const when = stamp(t.time[event]);
    const modality = t.modalities[t.modality[event]];
    const text = t.texts[t.text[event]];
    const mark = t.evidence[event] && kind === "all" ? make("span", { class: "lens-hidden" }, "evidence") : "";
    const weight = t.weight[event];
    const fall = `Without this and all such events the score would be ${Math.abs(weight).toFixed(2)} ${weight > 0 ? "lower" : "higher"}`;
    const counts = weight ? make("span", { class: "lens-weight", title: fall }, `${weight > 0 ? "+" : "−"}${Math.abs(weight).toFixed(2)}`) : "";
    const properties = {
      class: t.evidence[event] ? "evidence" : "",
      tabindex: -1,
      "data-event": event,
      "data-key": event,
      title: `${when}, ${modality}: ${text}`,
    };
    return make(
      "li",
      properties,
      make("time", {}, when.slice(0, 10)),
      make("span", { class: "lens-what" }, text),
      make("span", { class: "lens-where" }, modality),
      counts,
      mark,
    );
  }
  const rowOf = (event) => rows.querySelector(`[data-event="${event}"]`);
  /** Show one event in the list, with the keyboard on it. */
  function open(event) {
    if (event < 0) return;
    if (!events.includes(event)) press("all");
    if (!rowOf(event)) extend(events.indexOf(event) + 1);
    const row = rowOf(event);
    row.focus({ preventScroll: true }); // a page that scrolls would move the timeline away from the pointer
    rows.scrollTop = row.offsetTop - rows.offsetTop - (rows.clientHeight - row.offsetHeight) / 2;
  }
  function mark(event) {
    rows.querySelector(".on")?.classList.remove("on");
    rowOf(event)?.classList.add("on");
  }
  const eventOf = ({ target }) => Number(target.closest("[data-event]")?.dataset.event ?? -1);
  rows.addEventListener("focusin", ({ target }) => {
    for (const row of rows.querySelectorAll('[tabindex="0"]')) row.tabIndex = -1;
    target.tabIndex = 0;
    point(eventOf({ target }));
  });
  rows.addEventListener("focusout", () => point(-1));
  rows.addEventListener("pointerover", (event) => point(eventOf(event)));
  rows.addEventListener("pointerleave", () => point(-1));
  rows.addEventListener("keydown", (event) => {
    const all = [...rows.querySelectorAll("[data-event]")];
    const at = all.indexOf(event.target);
    const next = all[{ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key]];
    if (!next) return;
    next.focus();
    event.preventDefault();
  });
  return { node, show, open, mark };
}

/** One user: the answer with its percentile, the dated events, neighbours gained and lost. */
export function userCard(model, users, textsOf, events, pick) {
  const about = model.get("_about");
  const node = make("div", { class: "lens-card", role: "region", "aria-label": `One ${about.unit}` });
  const log = eventList((event) => lanes.point(event));
  const lanes = timeline(users, { point: log.mark, open: log.open });
  const reply = make("p", { class: "lens-answer", "aria-live": "polite" });
  const place = make("div", { class: "lens-percentile" });
  const body = make("div", { class: "lens-dated" });
  let row = -1;
  let picture = null;
  let asked = "";
  let shown = null;
  const others = (label, list) => {
    const rows = Array.from(list.slice(row * NEIGHBORS, (row + 1) * NEIGHBORS)).filter((r) => r >= 0);
    if (!rows.length) return "";
    const links = rows.map((r) => make("button", { type: "button", class: "lens-link", onclick: () => pick(r) }, users.ids[r]));
    return make("p", { class: "lens-others" }, make("span", {}, label), ...links);
  };
  const isCurrent = ({ user, query }) => row >= 0 && user === row && query === picture?.to;
  function showAnswer() {
    const answer = isCurrent(model.get("_answer")) ? model.get("_answer") : {};
    reply.textContent = answer.busy ? "Reading the answer …" : answer.error || answer.text || "";
    reply.classList.toggle("wrong", Boolean(answer.error));
    reply.classList.toggle("busy", Boolean(answer.busy));
  }
  /** Where the user stands in the ranking, on the scale of all of them. */
  function showRank() {
    const rank = picture?.rank?.[row];
    place.hidden = rank === undefined;
    if (place.hidden) return;
    const bar = make("span", { class: "lens-bar-cell" }, make("i", { class: "yes", style: `width:${100 * rank}%` }));
    place.replaceChildren(bar, make("span", {}, `ranks above ${Math.min(Math.floor(100 * rank), 99)} % of ${about.units}`));
  }
  function showTimeline() {
    if (row < 0) return;
    const raw = model.get("_timeline");
    if (isCurrent(raw)) shown = { row, ...(raw.error ? raw : unpack(raw)) };
    else if (shown?.row === row && shown.time) {
      // the same events, while another question is read
      shown = { ...shown, evidence: new Uint8Array(shown.time.length), total: [shown.total[0], 0] };
    } else shown = null;
    if (shown?.error) return body.replaceChildren(make("p", { class: "lens-answer wrong" }, shown.error));
    if (!shown?.time.length) {
      const wait = about.timelines && !shown ? make("p", { class: "lens-answer busy" }, "Reading the dated events …") : "";
      const recent = textsOf(row)[2].map((event) => make("li", { class: "lens-undated" }, event));
      const list = make("ul", { class: "lens-events", "aria-label": "Recent events, newest first" }, ...recent);
      body.classList.toggle("soon", Boolean(wait));
      return body.replaceChildren(wait, list);
    }
    body.classList.remove("soon");
    const drawn = shown.time.length;
    const total = shown.total[0];
    const note = drawn < total ? make("div", { class: "lens-more" }, `drawn and listed: the newest ${number(drawn)} of ${number(total)} events`) : "";
    body.replaceChildren(lanes.node, note, log.node);
    lanes.show(shown);
    log.show(shown);
  }
  function show(next, p) {
    row = next;
    picture = p;
    if (row < 0 || !p) {
      asked = "";
      return node.replaceChildren(make("p", { class: "lens-empty" }, `Click a ${about.unit} to read its events. Drag on the map to draw around some: Shift adds, Alt takes away. Ctrl and the wheel zoom, Ctrl and drag moves it. By keyboard, on the map and in the list: arrows walk, Enter opens, Space selects.`));
    }
    const [first] = textsOf(row);
    const head = make("div", { class: "lens-cardhead" }, make("strong", {}, users.ids[row]), make("span", {}, `${count(events[row], "event", "events")}${first ? ` since ${first}` : ""}`));
    const near = p.shifted ? make("details", { class: "lens-words" }, make("summary", {}, "Nearest neighbours gained and lost"), others("gained", p.gained), others("lost", p.lost)) : "";
    node.replaceChildren(head, reply, place, body, near);
    showAnswer();
    showRank();
    showTimeline();
    const wanted = `${row} ${p.to}`;
    if (wanted !== asked) model.send({ type: "user", user: row });
    asked = wanted;
  }
  return { node, show, showAnswer, showRank, showTimeline, destroy: lanes.destroy };
}
