// An image with boxes and masks drawn over it.
//
// Image, masks and boxes lie in one grid cell, each fitted into it as `object-fit: contain`
// does, so that they cover each other at any size of the window.

import { element } from "./dom.js";
import { decode } from "./masks.js";
import { Zoom } from "./zoom.js";

const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito, "Color Universal Design"; the order is that of paligemma's draw().
const PALETTE = [
  [230, 159, 0], [86, 180, 233], [213, 94, 0], [0, 158, 115], [204, 121, 167], [240, 228, 66],
  [0, 114, 178],
];
const TAG_HEIGHT = 20;

/** The label's color, [r, g, b], by its place among the labels. */
export function colorOf(label, labels) {
  return PALETTE[Math.max(0, labels.indexOf(label)) % PALETTE.length];
}

export function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

/** Two digits, and no false zero. */
export function scoreText(score) {
  if (score === null) return "";
  return score > 0 && score < 0.005 ? "<0.01" : score.toFixed(2);
}

/** Whether the object is more likely wrong than right, or the model has drawn it without a name. */
export function isUnsure({ label, label_score, unsure }) {
  return unsure || (label !== "" && label_score === 1);
}

/** The words on an object's tag. */
export function tagText(object) {
  const { label, score } = object;
  const name = label.length > 28 ? `${label.slice(0, 27)}…` : label;
  return `${name}${isUnsure(object) ? "?" : ""} ${scoreText(score)}`.trim();
}

/** Black or white, whichever reads better on the color (relative luminance of WCAG 2). */
export function inkOn(color) {
  const [r, g, b] = color.map((level) => {
    const part = level / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}

function svg(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export class Overlay {
  /** Fills `place`; `onPoint(object | null)` hears which box the pointer is on. */
  constructor(place, onPoint) {
    this.image = element("img", { class: "image", alt: "" });
    this.canvas = element("canvas", { class: "masks", "aria-hidden": "true" });
    this.boxes = svg("svg", { class: "boxes", "aria-hidden": "true" });
    this.pane = element("div", { class: "pane" }, this.image, this.canvas, this.boxes);
    this.zoom = new Zoom(place, this.pane);
    place.append(this.pane);
    this.onPoint = onPoint;
    this.clear();
    this.image.addEventListener("load", () => this.draw());
    new ResizeObserver(() => this.drawBoxes()).observe(this.pane);
  }

  show(image) {
    this.image.src = image.url;
    this.image.alt = `The image: ${image.about}`;
    this.pane.style.aspectRatio = `${image.width} / ${image.height}`;
    this.size = [image.width, image.height];
    this.zoom.reset();
    this.clear();
  }

  clear() {
    this.objects = [];
    this.labels = [];
    this.lit = null;
    this.tinted = new Map();
    if (this.image.src) this.draw();
  }

  /** `objects` are those to be seen, `labels` all there are, in the order of their colors. */
  set(objects, labels) {
    if (labels.join("\0") !== this.labels.join("\0")) this.tinted.clear();
    this.objects = objects;
    this.labels = labels;
    this.draw();
  }

  /** Lifts one object out of the others; null for none. */
  light(object) {
    if (object === this.lit) return;
    this.lit = object;
    this.draw();
  }

  draw() {
    this.drawMasks();
    this.drawBoxes();
  }

  drawMasks() {
    const masked = this.objects.filter((object) => object.mask);
    const context = this.canvas.getContext("2d");
    if (!masked.length) {
      this.canvas.width = this.canvas.height = 1;
      return;
    }
    const tints = masked.map((object) => this.tint(object));
    this.canvas.width = tints[0].width;
    this.canvas.height = tints[0].height;
    masked.forEach((object, index) => {
      context.globalAlpha = this.lit === null ? 1 : this.lit === object ? 1 : 0.25;
      context.drawImage(tints[index], 0, 0);
    });
  }

  /** The mask in its color, half transparent with a solid edge; kept for the next drawing. */
  tint(object) {
    const known = this.tinted.get(object);
    if (known) return known;
    const { width, height, pixels } = decode(object.mask);
    const made = element("canvas");
    made.width = width;
    made.height = height;
    const context = made.getContext("2d");
    const data = context.createImageData(width, height);
    const color = colorOf(object.label, this.labels);
    const edge = Math.max(1, Math.round(Math.max(width, height) / 400));
    const covered = (x, y) =>
      x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        if (!pixels[y * width + x]) continue;
        const inside =
          covered(x - edge, y) && covered(x + edge, y) &&
          covered(x, y - edge) && covered(x, y + edge);
        data.data.set([...color, inside ? 120 : 255], 4 * (y * width + x));
      }
    }
    context.putImageData(data, 0, 0);
    this.tinted.set(object, made);
    return made;
  }

  drawBoxes() {
    this.boxes.replaceChildren();
    const { clientWidth: width, clientHeight: height } = this.pane;
    if (!this.objects.length || !width || !height) return;
    const [w, h] = this.size;
    const scale = Math.min(width / w, height / h);
    const left = (width - w * scale) / 2;
    const top = (height - h * scale) / 2;
    this.boxes.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const inOrder = this.objects.filter((object) => object !== this.lit);
    if (this.objects.includes(this.lit)) inOrder.push(this.lit); // on top of the others
    const taken = [];
    const tags = []; // above all boxes, so that no line crosses a name
    for (const object of inOrder) {
      const [x1, y1, x2, y2] = object.box_normalized_xyxy.map((edge, index) =>
        index % 2 ? top + edge * h * scale : left + edge * w * scale,
      );
      const faint = this.lit !== null && this.lit !== object;
      const color = colorOf(object.label, this.labels);
      const group = svg("g", { class: faint ? "box faint" : "box" });
      const shape = { x: x1, y: y1, width: Math.max(1, x2 - x1), height: Math.max(1, y2 - y1), rx: 3 };
      group.append(svg("rect", { ...shape, class: "halo" }));
      const outline = isUnsure(object) ? "outline unsure" : "outline";
      group.append(svg("rect", { ...shape, class: outline, stroke: css(color) }));
      group.addEventListener("pointerenter", () => this.onPoint(object));
      group.addEventListener("pointerleave", () => this.onPoint(null));
      this.boxes.append(group);
      tags.push(() => {
        const tag = svg("g", { class: faint ? "label faint" : "label" });
        this.boxes.append(tag);
        this.drawTag(tag, object, color, [x1, y1, x2, y2], [width, height], taken);
      });
    }
    for (const draw of tags) draw();
  }

  drawTag(group, object, color, [x1, y1, , y2], [width, height], taken) {
    const text = svg("text", { class: "tag", fill: inkOn(color) });
    text.textContent = tagText(object);
    group.append(text);
    const wide = text.getComputedTextLength() + 12;
    const x = Math.max(0, Math.min(x1 - 1, width - wide));
    // Above the box, inside its top, below it: the first that covers no other name.
    const places = [y1 - TAG_HEIGHT, y1, y2, y1 + TAG_HEIGHT].map((y) =>
      Math.max(0, Math.min(y, height - TAG_HEIGHT)),
    );
    const free = (y) =>
      taken.every(
        (other) =>
          x + wide <= other.x || other.x + other.wide <= x ||
          y + TAG_HEIGHT <= other.y || other.y + TAG_HEIGHT <= y,
      );
    const y = places.find(free) ?? places[0];
    taken.push({ x, y, wide });
    text.setAttribute("x", x + 6);
    text.setAttribute("y", y + 14.5);
    const back = { x, y, width: wide, height: TAG_HEIGHT, rx: 4, fill: css(color) };
    group.insertBefore(svg("rect", back), text);
  }
}
