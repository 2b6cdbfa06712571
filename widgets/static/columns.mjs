// Columns of the users: the box that finds users by them, and the colours that they give to the map.
import { floats, ints } from "./geometry.mjs";
import { make } from "./dom.mjs";

const KINDS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#8f7ee7", "#b5a642"]; // of categories, for either theme

/** The box that finds users: by a condition on a column, by id, or by what they did; beside what it found is a button. */
export function findBox(model, about, button) {
  const example = about.columns.length ? `, ${about.columns[0]} = …` : "";
  const box = make("input", {
    type: "search",
    class: "lens-find",
    spellcheck: "false",
    autocomplete: "off",
    "aria-label": `Find ${about.units}`,
    placeholder: `Find ${about.units}: id, event${example}`,
    title: `Columns: ${about.columns.join(", ") || "none"}. Conditions may be joined by "and".`,
  });
  const note = make("span", { class: "lens-found", role: "status" });
  const find = (event) => {
    event.preventDefault();
    model.send({ type: "find", text: box.value });
  };
  const form = make("form", { class: "lens-finder", role: "search", "aria-label": `Find ${about.units}`, onsubmit: find }, box, make("div", { class: "lens-foundline" }, note, button));
  function show() {
    note.textContent = model.get("_found").sentence ?? "";
    note.title = note.textContent;
  }
  /** Say nothing of what was found once other users are selected. */
  const follow = (n) => (note.hidden = model.get("_found").n > 0 && n !== model.get("_found").n);
  return { node: form, show, follow };
}

/** The colours that a column gives to the users, and what they mean. */
export function columnColours(column, ramp) {
  if (column.values) {
    const shades = ramp();
    const inks = Array.from(floats(column.values), (value) => (Number.isNaN(value) ? null : shades[Math.round(value * (shades.length - 1))]));
    return { inks, span: `${column.name}, ${column.low} to ${column.high}` };
  }
  const codes = ints(column.codes);
  const inks = Array.from(codes, (code) => KINDS[code] ?? null);
  const isLabel = column.names.every((name) => name === "0" || name === "1");
  const named = (name) => (!isLabel ? name : name === "1" ? column.name : `not ${column.name}`);
  const kinds = column.names.map((name, code) => ({ name: named(name), ink: KINDS[code], n: column.counts[code], rows: [...codes.keys()].filter((row) => codes[row] === code) }));
  return { inks, kinds };
}

