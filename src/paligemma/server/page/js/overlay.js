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

/** The colors of the labels on one image. A label keeps its color in every answer. */
export class Colors {
  constructor() {
    this.indices = new Map();
  }

  /** Gives each new label a color that is free; if none is, one that no other of `labels` has. */
  add(labels) {
    const indexOf = (label) => this.indices.get(label.toLowerCase());
    for (const label of labels) {
      if (indexOf(label) !== undefined) continue;
      const isFree = (used) => PALETTE.findIndex((_, index) => !used.includes(index));
      const free = [isFree([...this.indices.values()]), isFree(labels.map(indexOf))];
      const index = free.find((candidate) => candidate >= 0) ?? this.indices.size % PALETTE.length;
      this.indices.set(label.toLowerCase(), index);
    }
  }

  /** [r, g, b] */
  of(label) {
    return PALETTE[this.indices.get(label.toLowerCase()) ?? 0];
  }
}

export function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

/** Below this score, what was read is more likely wrong than right; of fields the server says it. */
export const UNSURE = 0.5;

/** Two digits, and no false zero. */
export function scoreText(score) {
  if (score === null) return "";
  return score > 0 && score < 0.005 ? "<0.01" : score.toFixed(2);
}

/** Whether the object is more likely wrong than right, or the model has drawn it without a name. */
export function isUnsure({ label, label_score, unsure }) {
  return unsure || (label !== "" && label_score === 1);
}

/** The words on an object's tag; the name apart, so that the score follows it in any script. */
export function tagText(object, longest = 28) {
  const { label, score } = object;
  const name = label.length > longest ? `${label.slice(0, longest - 1)}…` : label;
  return `\u2068${name}${isUnsure(object) ? "?" : ""}\u2069 ${scoreText(score)}`.trim();
}

function overlap(one, other) {
  const wide = Math.min(one.x + one.wide, other.x + other.wide) - Math.max(one.x, other.x);
  const high = Math.min(one.y + one.high, other.y + other.high) - Math.max(one.y, other.y);
  return Math.max(0, wide) * Math.max(0, high);
}

/**
 * Where an object's tag goes, {x, y, wide, high, isFree}: where it covers no other tag, and as
 * little of the boxes as possible. `isFree` is false if there is no such place.
 */
export function placeTag(box, [wide, high], [width, height], taken, boxes) {
  const inside = ({ x, y }) => ({
    x: Math.max(0, Math.min(x, width - wide)),
    y: Math.max(0, Math.min(y, height - high)),
    wide,
    high,
  });
  const ys = [box.y - high, box.y, box.y + box.high, box.y + box.high - high];
  const xs = [box.x, box.x + box.wide - wide];
  const places = xs.flatMap((x) => ys.map((y) => inside({ x, y })));
  const free = places.filter((place) => taken.every((tag) => overlap(place, tag) === 0));
  if (!free.length) return { ...places[0], isFree: false };
  const covered = (place) =>
    boxes.reduce((sum, other) => sum + overlap(place, other) * (other === box ? 0.5 : 1), 0);
  const costs = free.map(covered);
  return { ...free[costs.indexOf(Math.min(...costs))], isFree: true };
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
    this.zoom = new Zoom(place, this.pane, () => this.drawBoxes());
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
    this.colors = new Colors();
    this.lit = null;
    this.tinted = new Map();
    if (this.image.src) this.draw();
  }

  /** `objects` are those to be seen. */
  set(objects, colors) {
    this.objects = objects;
    this.colors = colors;
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
    const color = this.colors.of(object.label);
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
    const scaled = (object) => {
      const [x1, y1, x2, y2] = object.box_normalized_xyxy.map((edge, index) =>
        index % 2 ? top + edge * h * scale : left + edge * w * scale,
      );
      return { x: x1, y: y1, wide: Math.max(1, x2 - x1), high: Math.max(1, y2 - y1) };
    };
    const boxes = new Map(this.objects.map((object) => [object, scaled(object)]));
    const score = (object) => (object === this.lit ? Infinity : (object.score ?? 0));
    const bySureness = [...this.objects].sort((one, other) => score(other) - score(one));
    for (const object of this.objects) this.drawBox(object, boxes.get(object));
    if (boxes.has(this.lit)) this.boxes.append(this.boxes.children[this.objects.indexOf(this.lit)]); // on top
    // Above all boxes, so that no line crosses a name. The lit object's tag always has its place.
    const taken = [];
    for (const object of bySureness) this.drawTag(object, boxes, [width, height], taken);
  }

  isFaint(object) {
    return this.lit !== null && this.lit !== object;
  }

  drawBox(object, { x, y, wide, high }) {
    const group = svg("g", { class: this.isFaint(object) ? "box faint" : "box" });
    group.classList.toggle("bare", Boolean(object.isBare));
    group.classList.toggle("lit-box", object === this.lit);
    const shape = { x, y, width: wide, height: high, rx: 3 / this.zoom.scale };
    group.append(svg("rect", { ...shape, class: "halo" }));
    const outline = isUnsure(object) ? "outline unsure" : "outline";
    group.append(svg("rect", { ...shape, class: outline, stroke: css(this.colors.of(object.label)) }));
    group.addEventListener("pointerenter", () => this.onPoint(object));
    group.addEventListener("pointerleave", () => this.onPoint(null));
    this.boxes.append(group);
  }

  /** A tag that would cover others is left out until its box is pointed at. */
  drawTag(object, boxes, [width, height], taken) {
    if (object.isBare) return;
    const { scale } = this.zoom;
    const color = this.colors.of(object.label);
    const group = svg("g", { class: this.isFaint(object) ? "label faint" : "label" });
    const text = svg("text", { class: "tag", fill: inkOn(color) });
    text.textContent = tagText(object, width < 500 ? 16 : 28);
    group.append(text);
    this.boxes.append(group);
    const size = [text.getComputedTextLength() + 12 / scale, TAG_HEIGHT / scale];
    const place = placeTag(boxes.get(object), size, [width, height], taken, [...boxes.values()]);
    if (!place.isFree) {
      group.remove();
      return;
    }
    taken.push(place);
    text.setAttribute("x", place.x + 6 / scale);
    text.setAttribute("y", place.y + 14.5 / scale);
    const back = { x: place.x, y: place.y, width: place.wide, height: place.high, rx: 4 / scale };
    group.insertBefore(svg("rect", { ...back, fill: css(color) }), text);
  }
}
