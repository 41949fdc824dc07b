// Files to download: the image with boxes and masks drawn on it, the masks, and the cut-outs.

import { element } from "./dom.js";
import { decode } from "./masks.js";
import { css, inkOn, isUnsure, placeTag, tagText } from "./overlay.js";

/** Each as {name, file, draw}: `draw(image, objects)` gives a canvas of the image's size. */
export const SAVES = [
  { name: "Drawing", file: "drawn", draw: drawing, needsMasks: false },
  { name: "Masks", file: "masks", draw: masks, needsMasks: true },
  { name: "Cut-outs", file: "cut-outs", draw: cutOuts, needsMasks: true },
];

/** Offers the canvas as a PNG file. */
export async function save(canvas, name) {
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (!blob) throw new Error("The browser could not make the file.");
  download(blob, name);
}

export function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copyOf(image) {
  const original = new Image();
  original.src = image.url;
  await original.decode();
  const canvas = blank(image);
  canvas.getContext("2d").drawImage(original, 0, 0);
  return canvas;
}

function blank({ width, height }) {
  const canvas = element("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** A canvas with the mask's pixels in one color, the others transparent. */
function stencil({ mask }, image, [r, g, b], opacity) {
  const canvas = blank(image);
  const { width, height, pixels } = decode(mask, Math.max(image.width, image.height));
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  pixels.forEach((covered, place) => {
    if (covered) data.data.set([r, g, b, opacity], 4 * place);
  });
  context.putImageData(data, 0, 0);
  return canvas;
}

async function drawing(image, objects) {
  const canvas = await copyOf(image);
  const context = canvas.getContext("2d");
  const line = Math.max(2, Math.round(Math.min(image.width, image.height) / 180));
  const size = Math.max(12, Math.round(Math.min(image.width, image.height) / 32));
  const color = ({ label }) => image.colors.of(label);
  for (const object of objects.filter(({ mask }) => mask)) {
    context.drawImage(stencil(object, image, color(object), 120), 0, 0);
  }
  const boxes = objects.map(({ box_xyxy: [x1, y1, x2, y2] }) => ({ x: x1, y: y1, wide: x2 - x1, high: y2 - y1 }));
  objects.forEach((object, index) => {
    const { x, y, wide, high } = boxes[index];
    context.lineWidth = line;
    context.setLineDash(isUnsure(object) ? [3 * line, 2 * line] : []);
    context.strokeStyle = css(color(object));
    context.strokeRect(x, y, wide, high);
  });
  context.font = `600 ${size}px system-ui, sans-serif`;
  const taken = [];
  objects.forEach((object, index) => {
    const words = tagText(object);
    const room = [context.measureText(words).width + size, 1.5 * size];
    const place = placeTag(boxes[index], room, [image.width, image.height], taken, boxes);
    taken.push(place);
    context.fillStyle = css(color(object));
    context.fillRect(place.x, place.y, place.wide, place.high);
    context.fillStyle = inkOn(color(object));
    context.fillText(words, place.x + size / 2, place.y + 1.1 * size);
  });
  return canvas;
}

/** White where any of the objects is, black elsewhere. */
async function masks(image, objects) {
  const canvas = blank(image);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, image.width, image.height);
  for (const object of objects) context.drawImage(stencil(object, image, [255, 255, 255], 255), 0, 0);
  return canvas;
}

/** The image, transparent where none of the objects is. */
async function cutOuts(image, objects) {
  const canvas = blank(image);
  const context = canvas.getContext("2d");
  for (const object of objects) context.drawImage(stencil(object, image, [0, 0, 0], 255), 0, 0);
  context.globalCompositeOperation = "source-in";
  context.drawImage(await copyOf(image), 0, 0);
  return canvas;
}
