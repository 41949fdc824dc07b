// Zoom and pan of an image: buttons, Ctrl and the wheel, two fingers, and dragging.

import { element } from "./dom.js";

const MOST = 16;
const STEP = 1.5;

export class Zoom {
  /** Moves `pane` inside `stage`, which cuts off what lies outside; tells `onScale` when it grows. */
  constructor(stage, pane, onScale) {
    this.onScale = onScale;
    this.stage = stage;
    this.pane = pane;
    this.pointers = new Map();
    const button = (label, sign, act) =>
      element("button", { type: "button", class: "zoom-button", "aria-label": label, title: label, onclick: act }, sign);
    this.whole = button("Show the whole image", "⤢", () => this.reset());
    this.buttons = element(
      "div",
      { class: "zoom", role: "group", "aria-label": "Zoom" },
      button("Zoom in", "+", () => this.at(STEP)),
      button("Zoom out", "−", () => this.at(1 / STEP)),
      this.whole,
    );
    stage.append(this.buttons);
    // Without Ctrl the wheel scrolls the page, as everywhere.
    pane.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.at(2 ** (-event.deltaY / 200), event.clientX, event.clientY);
    }, { passive: false });
    pane.addEventListener("pointerdown", (event) => this.grab(event));
    pane.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      pane.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    pane.addEventListener("dragstart", (event) => {
      if (this.scale > 1) event.preventDefault(); // moves the image instead of taking it out
    });
    this.buttons.hidden = true;
    this.scale = this.shownScale = 1;
    this.left = this.top = 0;
    this.whole.hidden = true;
  }

  /** Shows the whole image, and the buttons. */
  reset() {
    this.buttons.hidden = false;
    this.scale = 1;
    this.left = this.top = 0;
    this.show();
  }

  /** Zooms by a factor around a point of the window; by default the middle. */
  at(factor, clientX, clientY) {
    const frame = this.stage.getBoundingClientRect();
    const x = (clientX ?? frame.x + frame.width / 2) - frame.x;
    const y = (clientY ?? frame.y + frame.height / 2) - frame.y;
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.show();
  }

  grab(event) {
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.scale > 1) this.pane.setPointerCapture(event.pointerId);
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    if (other) {
      const factor = distance(now, other) / Math.max(1, distance(before, other));
      this.at(factor, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (this.scale > 1) {
      this.left += now[0] - before[0];
      this.top += now[1] - before[1];
      this.show();
    }
    this.pointers.set(event.pointerId, now);
  }

  show() {
    const { clientWidth: width, clientHeight: height } = this.pane;
    this.left = Math.min(0, Math.max(this.left, width * (1 - this.scale)));
    this.top = Math.min(0, Math.max(this.top, height * (1 - this.scale)));
    this.pane.style.transform =
      this.scale === 1 ? "" : `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    this.pane.classList.toggle("zoomed", this.scale > 1);
    if (this.scale === this.shownScale) return;
    this.shownScale = this.scale;
    this.pane.style.setProperty("--zoom", this.scale); // lines and names keep their size
    this.whole.hidden = this.scale === 1;
    this.onScale();
  }
}

function distance([x1, y1], [x2, y2]) {
  return Math.hypot(x1 - x2, y1 - y2);
}
