// The events of one user, to drop and to reword. All text enters as text nodes.
import { count, number } from "./geometry.mjs";
import { make } from "./dom.mjs";

/** Events of one user: unchecked ones are dropped, changed texts are read anew. */
export function eventList(model, ask) {
  const rows = make("ol", { class: "att-events" });
  const head = make("div", { class: "att-eventhead" });
  const button = make("button", { type: "submit", class: "lens-write" }, "Rerun");
  const undo = make("button", { type: "button", class: "lens-link", onclick: () => fill() }, "undo all");
  const hint = make("span", { class: "quiet", role: "status" });
  const node = make("form", { class: "att-user", "aria-label": "Events of one user", hidden: true }, head, rows, make("div", { class: "att-rerun" }, button, undo, hint));
  const lines = () => Array.from(rows.querySelectorAll("[data-event]"), (item) => ({ event: Number(item.dataset.event), ticked: item.querySelector("[type=checkbox]").checked, text: item.querySelector("[type=text]").value.trim(), original: item.dataset.text }));
  function changes() {
    const drop = lines().filter((line) => !line.ticked || !line.text).map((line) => line.event);
    const reword = Object.fromEntries(lines().filter((line) => line.ticked && line.text && line.text !== line.original).map((line) => [line.event, line.text]));
    return { drop, reword, total: drop.length + Object.keys(reword).length };
  }
  function mark() {
    const { drop, reword, total } = changes();
    for (const item of rows.children) {
      item.classList.toggle("gone", drop.includes(Number(item.dataset.event)));
      item.classList.toggle("changed", item.dataset.event in reword);
    }
    const busy = Boolean(model.get("_status").busy);
    button.disabled = !total || busy;
    undo.hidden = !total;
    button.textContent = total ? `Rerun with ${count(total, "change", "changes")}` : "Rerun";
    hint.textContent = total ? "" : "Untick an event to drop it, or write another text, then rerun.";
  }
  function fill() {
    const { user, rows: events = [], total = 0 } = model.get("_events");
    const more = total > events.length ? `the newest ${events.length} of ${number(total)} events` : count(total, "event", "events");
    head.replaceChildren(make("strong", {}, user ?? ""), make("span", { class: "quiet" }, more));
    rows.replaceChildren(...events.map(([event, time, modality, text]) => {
      const label = `${time}, ${modality}: ${text}`;
      const tick = make("input", { type: "checkbox", checked: true, "aria-label": `Keep ${label}`, onchange: mark });
      const words = make("input", { type: "text", value: text, spellcheck: "false", "aria-label": `Text of the event of ${label}`, oninput: mark });
      return make("li", { "data-event": event, "data-text": text.trim() }, tick, make("span", { class: "quiet" }, time), make("span", {}, modality), words);
    }));
    if (!events.length) rows.append(make("li", { class: "lens-empty" }, "This user has no event before the cut-off."));
    mark();
  }
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    const { drop, reword, total } = changes();
    if (total && !model.get("_status").busy) ask({ type: "rerun", user: model.get("_events").user, drop, reword });
  });
  return { node, fill, mark };
}
