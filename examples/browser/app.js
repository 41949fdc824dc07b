// The page: an image, a prompt, the answer, and its boxes and masks drawn on the image.

import { pixelValues } from "./image.js";
import { Model, readObjects } from "./model.js";

const SUGGESTIONS = [
  "segment frog",
  "detect frog ; mushroom",
  "caption en",
  "caption fr",
  "answer en how many frogs are there?",
  "ocr",
];
const COLORS = ["#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080"];

const find = (id) => document.getElementById(id);
const view = find("view");
const context = view.getContext("2d", { willReadFrequently: true });
let model;
let bitmap;
let features; // of the image, once encoded

function say(text) {
  find("status").textContent = text;
}

async function show(source) {
  bitmap = await createImageBitmap(source);
  features = null;
  find("answer").textContent = "";
  find("objects").replaceChildren();
  draw([]);
}

function draw(objects) {
  view.width = bitmap.width;
  view.height = bitmap.height;
  context.drawImage(bitmap, 0, 0);
  const line = Math.max(2, Math.round(Math.min(view.width, view.height) / 150));
  objects.forEach((object, i) => {
    const color = COLORS[i % COLORS.length];
    const [x0, y0, x1, y1] = object.box.map((edge, axis) => edge * [view.width, view.height][axis % 2]);
    if (object.mask) drawMask(object.mask, color, x0, y0, x1, y1);
    context.strokeStyle = color;
    context.lineWidth = line;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    drawLabel(object.label, color, x0, y0, 6 * line);
  });
}

function drawLabel(label, color, x, y, size) {
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  const width = context.measureText(label).width + size / 2;
  const top = Math.max(0, y - 1.3 * size);
  context.fillStyle = color;
  context.fillRect(Math.min(x, view.width - width), top, width, 1.3 * size);
  context.fillStyle = "white";
  context.fillText(label, Math.min(x, view.width - width) + size / 4, top + 0.2 * size);
}

/** Stretch 64 x 64 values over the box, smoothly, and color what is above 0. */
function drawMask(mask, color, x0, y0, x1, y1) {
  const [left, top] = [Math.floor(x0), Math.floor(y0)];
  const [width, height] = [Math.floor(x1) - left, Math.floor(y1) - top];
  if (width < 1 || height < 1) return;
  const area = context.getImageData(left, top, width, height);
  const rgb = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const weights = (i, size) => {
    const at = Math.min(63, Math.max(0, ((i + 0.5) * 64) / size - 0.5));
    return [Math.floor(at), Math.min(63, Math.floor(at) + 1), at % 1];
  };
  for (let y = 0; y < height; y++) {
    const [up, down, v] = weights(y, height);
    for (let x = 0; x < width; x++) {
      const [west, east, u] = weights(x, width);
      const mix = (row) => mask[64 * row + west] * (1 - u) + mask[64 * row + east] * u;
      if (mix(up) * (1 - v) + mix(down) * v <= 0) continue;
      const at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) area.data[at + c] = (area.data[at + c] + rgb[c]) / 2;
    }
  }
  context.putImageData(area, left, top);
}

function list(objects) {
  const items = objects.map((object, i) => {
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.style.background = COLORS[i % COLORS.length];
    const size = object.box.map((edge) => edge.toFixed(2)).join(" ");
    item.append(swatch, `${object.label} (${size})${object.mask ? ", with mask" : ""}`);
    return item;
  });
  find("objects").replaceChildren(...items);
}

async function ask(prompt) {
  const started = performance.now();
  find("ask").disabled = true;
  find("objects").replaceChildren();
  draw([]);
  try {
    if (!features) {
      say("Looking at the image …");
      features = await model.encodeImage(pixelValues(bitmap, model.side));
    }
    say("Answering …");
    const onText = (text) => {
      find("answer").textContent = text.replaceAll(/<(loc|seg)\d+>/g, "·");
    };
    const ids = await model.generate(features, prompt, { onText, maxNewTokens: 120 });
    const text = model.text(ids);
    const objects = readObjects(text);
    const masked = objects.filter((object) => object.codes);
    if (masked.length) {
      const masks = await model.decodeMasks(masked.map((object) => object.codes));
      masked.forEach((object, i) => (object.mask = masks[i]));
    }
    find("answer").textContent = objects.length ? "" : text || "(nothing)";
    document.body.dataset.answer = text;
    draw(objects);
    list(objects);
    say(`${ids.length} tokens in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    say(`That failed: ${error.message}`);
  } finally {
    find("ask").disabled = false;
  }
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!find("ask").disabled) ask(find("prompt").value);
});
find("file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    await show(file);
  } catch {
    say(`${file.name} is no image that this browser reads. Choose a PNG, JPEG or WebP file.`);
  }
});
for (const text of SUGGESTIONS) {
  const button = document.createElement("button");
  button.textContent = text;
  button.addEventListener("click", () => (find("prompt").value = text)); // and the form is sent
  find("suggestions").append(button);
}

try {
  await show(await (await fetch("scene.png")).blob());
  model = await Model.load("model", "_quantized", (name) => say(`Loading ${name} …`));
  find("ask").disabled = false;
  say("Ready.");
} catch (error) {
  say(`The model could not be loaded: ${error.message}`);
}
