// The events of one user, to drop and to reword. All text enters as text nodes.
import { count, number } from "./geometry.mjs";
import { make } from "./dom.mjs";

/** Events of one user: unchecked ones are dropped, changed texts are read anew. */
export function eventList(model, ask) {
  const rows = make("ol", { class: "att-events" });
  const head = make("div", { class: "att-eventhead" });
  const button = make("button", { type: "submit", class: "lens-write" }, "Rerun");
  const undo = make("button", { type: "button", class: "lens-link", onclick: () => fill() }, "undo all");
  const told = make("span", { class: "quiet", role: "status" });
  const node = make("form", { class: "att-user", "aria-label": "Events of one user", hidden: true }, head, rows, make("div", { class: "att-rerun" }, button, undo, told));
  const lines = () => Array.from(rows.querySelectorAll("[data-event]"), (item) => ({ event: Number(item.dataset.event), kept: item.querySelector("[type=checkbox]").checked, text: item.querySelector("[type=text]").value.trim(), was: item.dataset.text }));
  function changes() {
    const drop = lines().filter((line) => !line.kept || !line.text).map((line) => line.event);
    const reword = Object.fromEntries(lines().filter((line) => line.kept && line.text && line.text !== line.was).map((line) => [line.event, line.text]));
    return { drop, reword, many: drop.length + Object.keys(reword).length };
  }
  function mark() {
    const { drop, reword, many } = changes();
    for (const item of rows.children) {
      item.classList.toggle("gone", drop.includes(Number(item.dataset.event)));
      item.classList.toggle("changed", item.dataset.event in reword);
    }
    const busy = Boolean(model.get("_status").busy);
    button.disabled = !many || busy;
    undo.hidden = !many;
    button.textContent = many ? `Rerun with ${count(many, "change")}` : "Rerun";
    told.textContent = many ? "" : "Untick an event to drop it, or write another text, then rerun.";
  }
  function fill() {
    const { user, rows: listed = [], total = 0 } = model.get("_events");
    const more = total > listed.length ? `the newest ${listed.length} of ${number(total)} events` : count(total, "event");
    head.replaceChildren(make("strong", {}, user ?? ""), make("span", { class: "quiet" }, more));
    rows.replaceChildren(...listed.map(([event, time, modality, text]) => {
      const label = `${time}, ${modality}: ${text}`;
      const tick = make("input", { type: "checkbox", checked: true, "aria-label": `Keep ${label}`, onchange: mark });
      const words = make("input", { type: "text", value: text, spellcheck: "false", "aria-label": `Text of the event of ${label}`, oninput: mark });
      return make("li", { "data-event": event, "data-text": text.trim() }, tick, make("span", { class: "quiet" }, time), make("span", {}, modality), words);
    }));
    if (!listed.length) rows.append(make("li", { class: "lens-empty" }, "This user has no event before the cut-off."));
    mark();
  }
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    const { drop, reword, many } = changes();
    if (many && !model.get("_status").busy) ask({ type: "rerun", user: model.get("_events").user, drop, reword });
  });
  return { node, fill, mark };
}
