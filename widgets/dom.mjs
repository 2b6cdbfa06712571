// Elements that several views share. All text enters as text nodes.

/** An element with properties and children; a string child becomes a text node, never markup. */
export function make(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A small drawing beside a word in the legend. */
export function glyph(path, kind) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const shape = document.createElementNS(space, "path");
  svg.setAttribute("class", `lens-mark ${kind}`);
  svg.setAttribute("viewBox", "0 0 16 12");
  svg.setAttribute("aria-hidden", "true");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

/** Two or three buttons of which one is pressed. */
export function choice(name, options, chosen, change) {
  const buttons = options.map(([value, text]) =>
    make("button", { type: "button", "data-value": value, "aria-pressed": String(value === chosen), onclick: () => change(value) }, text),
  );
  const group = make("div", { class: "lens-choice", role: "group", "aria-label": name }, ...buttons);
  group.press = (value) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.value === value)));
  return group;
}

/** The element that has the keyboard, in the page or in the shadow root that a host shows the view in. */
export const focused = (node) => node.getRootNode().activeElement ?? null;
