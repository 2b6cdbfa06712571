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

/** Words, none of them broken at its hyphen. */
export const unbroken = (text = "") => text.split(/(\S{1,24}-\S{1,24})/).map((part, place) => (place % 2 ? make("span", { class: "lens-whole" }, part) : part));

/** An SVG element with properties; a string child becomes a text node. */
export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A small drawing beside a word in the legend. */
export const glyph = (path, kind) => svg("svg", { class: `lens-mark ${kind}`, viewBox: "0 0 16 12", "aria-hidden": "true" }, svg("path", { d: path }));

/** Two or three buttons of which one is pressed. */
export function choice(name, options, pressed, change) {
  const buttons = options.map(([value, text]) =>
    make("button", { type: "button", "data-value": value, "aria-pressed": String(value === pressed), onclick: () => change(value) }, text),
  );
  const group = make("div", { class: "lens-choice", role: "group", "aria-label": name }, ...buttons);
  group.press = (value) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.value === value)));
  return group;
}

/** The element that has the keyboard, in the page or in the shadow root that a host shows the view in. */
export const focused = (node) => node.getRootNode().activeElement ?? null;

/** What a button says that selects users: its click is read by `modeOf`. */
export const SELECTS = "Select them: Shift adds them, Alt takes them away";

/** What a click does to the selection: Shift adds to it, Alt takes away from it. */
export const modeOf = (event) => (event.shiftKey ? "add" : event.altKey ? "subtract" : "replace");

const isVisible = (node) => node.isConnected && !node.disabled && node.getClientRects().length > 0;
const nameOf = (node) => node.dataset.key ?? node.getAttribute("aria-label") ?? node.textContent;

/** The controls in a node that can have the keyboard now, in reading order. */
export const controls = (node) => [...node.querySelectorAll("button, input, select, [tabindex]")].filter(isVisible);

/** Keep the keyboard's place: when the control that has it is drawn anew, hidden or disabled, its namesake or a neighbour takes over; returns what ends it. */
export function keepFocus(root) {
  let [last, name, around] = [null, "", []]; // the control that had the keyboard last
  root.addEventListener("focusin", ({ target }) => {
    [last, name, around] = [target, nameOf(target), []];
    for (let node = target.parentElement; root.contains(node); node = node.parentElement) around.push([node, controls(node).indexOf(target)]);
  });
  root.addEventListener("focusout", () => setTimeout(() => {
    if (last && isVisible(last) && document.hasFocus() && !root.contains(focused(root))) last = null; // it was left, not lost
  }));
  function restore() {
    if (!last || ![document.body, null, last].includes(focused(root))) return;
    if (isVisible(last)) return last === focused(root) ? undefined : last.focus();
    for (const [node, place] of around.filter(([ancestor]) => root.contains(ancestor))) {
      const candidates = controls(node);
      const next = candidates.find((control) => nameOf(control) === name) ?? candidates[Math.min(place, candidates.length - 1)];
      if (!next) continue;
      next.focus({ preventScroll: true });
      return next.scrollIntoView({ block: "nearest" });
    }
    last = null;
  }
  // later, for while the keyboard goes from one control to the next it is nowhere: what is drawn just then must not call it back
  const watch = new MutationObserver(() => setTimeout(restore));
  watch.observe(root, { subtree: true, childList: true, attributeFilter: ["hidden", "disabled"] });
  return () => watch.disconnect();
}
