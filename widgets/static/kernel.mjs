// What all views do: keep the keyboard's place, and when the kernel is gone say so and what to do, stop waiting, keep the picture.
import { keepFocus, make } from "./dom.mjs";

const GONE = "The kernel behind this view is gone: it ended, or was restarted. What is shown here stays. To ask again, run the cell again; on a page without cells, load the page anew.";
const LOST = "jupyter-widgets-disconnected"; // a view that is made when the kernel is gone already has this class
const PING_INTERVAL = 5000; // ms: how often a view that waits makes sure that there is still a kernel to wait for

/** Wrap `render` so that its view survives the kernel and its own redrawing; `waits` names the traits that tell of waiting. */
export function survivesKernel(render, waits = ["_status"]) {
  return ({ model, el }) => {
    const node = make("div", { class: "lens-gone", role: "alert", hidden: true });
    const waiting = () => waits.filter((name) => model.get(name).busy || model.get(name).waiting);
    function end() {
      [node.hidden, node.textContent] = [false, GONE]; // and is said again when somebody asks again
      el.querySelector(".lens").dataset.gone = "true";
      for (const name of waiting()) model.set(name, { ...model.get(name), busy: false, waiting: false, note: "" });
    }
    function send(...message) {
      if (!node.hidden) return end();
      try {
        model.send(...message);
      } catch { // when a kernel is shut down this is all that tells of it
        end();
      }
    }
    const guarded = { get: (name) => model.get(name), on: (...how) => model.on(...how), off: (...how) => model.off(...how), send };
    const leave = render({ model: guarded, el });
    el.querySelector(".lens-head").after(node);
    model.on("comm_live_update", end);
    const free = keepFocus(el);
    const clock = setInterval(() => waiting().length && send({ type: "ping" }), PING_INTERVAL);
    if (el.classList.contains(LOST)) end();
    return () => {
      model.off("comm_live_update", end);
      clearInterval(clock);
      free();
      leave();
    };
  };
}
