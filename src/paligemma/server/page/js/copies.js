// Copies of an answer as JSON, COCO, Python and curl.

import { DOCUMENT_ROUTES } from "./documents.js";
import { area } from "./masks.js";

/** The result as the server gave it, with the objects that are seen. */
export function toJson(result, objects) {
  return JSON.stringify(objects ? { ...result, objects } : result, null, 2);
}

/** A COCO data set of the image, as paligemma's `to_coco()` writes it. */
export function toCoco(result, objects, { name, width, height }) {
  const names = [...new Set([...(result.phrases ?? []), ...objects.map((object) => object.label)])];
  const annotations = objects.map((object, index) => {
    const [x1, y1, x2, y2] = object.box_xyxy;
    const annotation = {
      id: index + 1,
      image_id: 1,
      category_id: names.indexOf(object.label) + 1,
      bbox: [x1, y1, x2 - x1, y2 - y1],
      area: (x2 - x1) * (y2 - y1),
      iscrowd: 0,
      score: object.score,
    };
    if (object.mask) Object.assign(annotation, { area: area(object.mask), segmentation: object.mask });
    return annotation;
  });
  const images = [{ id: 1, file_name: name, width, height }];
  const categories = names.map((label, index) => ({ id: index + 1, name: label }));
  return JSON.stringify({ images, annotations, categories }, null, 2);
}

/** The same question in Python. `base` is the server's base model, `model` the one that answered. */
export function toPython(route, fields, name, model, base) {
  const text = JSON.stringify; // a JSON string is a Python string
  // Any other name is one that the server's operator gave to a folder.
  const source = /^mini$|^paligemma|\//.test(base) ? base : `FOLDER OF ${base}`;
  const adapter = model === base ? "" : `, adapter=${text(`FOLDER OF ${model}`)}`;
  const image = text(fileName(name));
  const calls = {
    caption: () => [text(fields.language)],
    ask: () => [text(fields.question), fields.language ? text(fields.language) : "None"],
    ocr: () => [],
    detect: () => [phrases(fields)],
    segment: () => [phrases(fields)],
    generate: () => [text(fields.prompt)],
    read: () => (fields.pages ? [`pages=${text(fields.pages)}`] : []),
    table: () => (fields.page ? [`page=${fields.page}`] : []),
    chart: () => (fields.page ? [`page=${fields.page}`] : []),
    extract: () => [schema(fields.schema), ...(fields.pages ? [`pages=${text(fields.pages)}`] : [])],
  };
  const schema = (named) => (typeof named === "string" ? text(named) : `json.loads(${text(JSON.stringify(named))})`);
  const phrases = ({ phrases: list }) => `[${list.map((phrase) => text(phrase)).join(", ")}]`;
  const options = ["max_new_tokens", "temperature", "seed"].filter((option) => option in fields);
  const keywords = options.map((option) => `${option}=${fields[option]}`);
  if (fields.temperature && !("seed" in fields)) keywords.push("seed=None"); // as the server samples
  return [
    ...(typeof fields.schema === "object" ? ["import json", ""] : []),
    "import paligemma",
    "",
    `model = paligemma.load(${text(source)}${adapter})`,
    `result = model.${route}(${[image, ...calls[route](), ...keywords].join(", ")})`,
    "print(result)",
    "",
  ].join("\n");
}

/** The same request with curl. A key is named, never written out. */
export function toCurl(address, route, fields, name, withKey) {
  // Inside the double quotes that curl's -F reads, backslash and quote are escaped.
  const file = fileName(name).replace(/["\\]/g, "\\$&");
  const field = DOCUMENT_ROUTES.has(route) ? "document" : "image";
  return [
    `curl ${shell(`${address}v1/${route}`)}`,
    ...(withKey ? ['-H "Authorization: Bearer $PALIGEMMA_API_KEY"'] : []),
    `-F ${shell(`${field}=@"${file}"`)}`,
    // Taken literally, where -F would give ";" and "@" a meaning.
    `--form-string ${shell(`request=${JSON.stringify(fields)}`)}`,
  ].join(" \\\n  ");
}

/** One word for a POSIX shell, whatever is in it. */
function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The name without what could deceive in a terminal: control characters and changed direction. */
function fileName(name) {
  return name.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, "_");
}
