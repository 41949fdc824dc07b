// Documents: PDF files, TIFF files and images of pages, as the server shows and reads them.

import * as api from "./api.js";
import { element } from "./dom.js";
import { openImage } from "./image.js";
import { scoreText, UNSURE } from "./overlay.js";
import { rowsOf } from "./tables.js";

const SIDE = 1600; // pixels of a page's longer side
const PAGES_AT_ONCE = 4;

/** The tasks about a document rather than an image. */
export const DOCUMENT_ROUTES = new Set(["read", "extract", "table", "chart"]);

/** Types of files that browsers do not show: the server draws their pages. */
export const DOCUMENT_TYPES = new Set(["application/pdf", "image/tiff"]);

/** The first page of a file, as an image with `document` and `page`. Throws as `pageOf`. */
export function openDocument(blob, name, password = "") {
  const file = { blob, name, password, numPages: 1, pages: new Map() };
  return pageOf(file, 1);
}

/** A page as an image; throws AnswerError, and Error for a page that cannot be shown. */
export async function pageOf(file, number) {
  if (!file.pages.has(number)) {
    const last = Math.min(number + PAGES_AT_ONCE - 1, Math.max(file.numPages, number));
    const pages = number === last ? `${number}` : `${number}-${last}`;
    const fields = { pages, max_side: SIDE, ...(file.password && { password: file.password }) };
    const body = await api.pages(file, fields);
    file.numPages = body.num_pages;
    for (const page of body.pages) file.pages.set(page.page, await imageOf(file, page));
  }
  return file.pages.get(number);
}

async function imageOf(file, page) {
  const { page: number, image, problem } = page;
  const about = `page ${number} of ${file.name}`;
  const blob = image ? jpeg(image) : await blank(page.size_wh);
  const opened = await openImage(blob, `${file.name.replace(/\.[^.]*$/, "")}-page-${number}.jpg`, about);
  return Object.assign(opened, { document: file, page, problem: problem ?? null });
}

/** The file in a data URL. `fetch` may not read it: the page's policy allows requests to the server alone. */
function jpeg(url) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/jpeg" });
}

/** In place of a page that cannot be drawn. */
function blank([width, height]) {
  const canvas = element("canvas");
  const scale = 600 / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg"));
}

// What is shown of an answer: items, each with a text and perhaps a place on a page.
// {label, text, score, page, box_normalized_xyxy, isExact, unsure, isBare, isMissing, remarks}

/** Those of the fields, the unsure ones first and the missing ones last. */
export function itemsOfFields(result, image) {
  const unsure = new Set(result.unsure);
  const items = (Array.isArray(result.fields) ? result.fields : [])
    .map((field) => itemOf(field, unsure.has(field.path), image));
  const rank = ({ isMissing, unsure }) => (unsure && !isMissing ? 0 : isMissing ? 2 : 1);
  return items.sort((one, other) => rank(one) - rank(other));
}

function itemOf(field, unsure, image) {
  const problems = field.problems ?? [];
  const isMissing = field.value === null;
  const score = typeof field.score === "number" ? field.score : null;
  const text = isMissing ? "not found" : shown(field.value);
  const remarks = problems.map((problem) => `Check: ${problem}`);
  if (!isMissing && typeof field.raw === "string" && field.raw.trim() !== text) {
    remarks.push(`read as “${field.raw.trim()}”`);
  }
  if (typeof field.unread === "string") remarks.push(`the words were “${field.unread.trim()}”`);
  if (field.matched) remarks.push(`in your list: ${field.matched.text} (${scoreText(field.matched.score)})`);
  const isExact = Array.isArray(field.box_xyxy) && field.box_source !== "tile";
  if (!isMissing && field.box_source === "tile") remarks.push("exact place not found");
  const page = field.page ?? null;
  return {
    label: String(field.path),
    text,
    score: isMissing ? null : score,
    page,
    box_normalized_xyxy: page === null ? null : normalized(field.box_xyxy, sizeOf(page, image)),
    isExact,
    unsure,
    isMissing,
    remarks,
  };
}

function shown(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** The size of a page in its units: of an image, its pixels; null for pages that were not shown yet. */
function sizeOf(number, { document: file, width, height }) {
  return file ? (file.pages.get(number)?.page.size_wh ?? file.pages.get(1)?.page.size_wh) : [width, height];
}

/** The lines of a page; boxes are turned to the page as it is shown. */
export function itemsOfPage(page, image) {
  const size = page.size_wh;
  const shownTurn = image.document?.pages.get(page.page)?.page.turned ?? 0;
  const turn = (shownTurn - page.turned + 360) % 360;
  return (Array.isArray(page.lines) ? page.lines : []).map((line) => ({
    label: "",
    text: String(line.text),
    score: line.score,
    page: page.page,
    box_normalized_xyxy: turned(normalized(line.box_xyxy, size), turn),
    unsure: typeof line.score === "number" && line.score < UNSURE,
    isBare: true,
    isExact: true,
    remarks: [],
  }));
}

function normalized(box, size) {
  if (!Array.isArray(box) || box.length !== 4 || !box.every(Number.isFinite) || !size) return null;
  const [width, height] = size;
  return box.map((edge, index) => Math.min(1, Math.max(0, edge / (index % 2 ? height : width))));
}

/** A box after its page was turned clockwise. */
function turned(box, degrees) {
  if (box === null) return null;
  const [x1, y1, x2, y2] = box;
  if (degrees === 90) return [1 - y2, x1, 1 - y1, x2];
  if (degrees === 180) return [1 - x2, 1 - y2, 1 - x1, 1 - y1];
  if (degrees === 270) return [y1, 1 - x2, y2, 1 - x1];
  return box;
}

/** Those of the cells of a table that the model has placed. */
export function itemsOfCells(result) {
  return result.cells
    .map((cell) => ({
      label: "", text: cell.text, score: cell.score, page: result.page, isBare: true, isExact: true, remarks: [], cell,
      box_normalized_xyxy: normalized(cell.box_xyxy, result.size_wh),
      unsure: typeof cell.score === "number" && cell.score < UNSURE,
    }))
    .filter((item) => item.box_normalized_xyxy);
}

// Copies

/** The text of a document, its pages apart. */
export function toText(result) {
  return result.pages.map((page) => page.lines.map((line) => line.text).join("\n")).join("\n\f\n");
}

const COLUMNS = ["path", "value", "raw", "score", "held", "page", "x1", "y1", "x2", "y2", "box_source", "matched", "question", "problems", "source"];

/** A row per field in the order of the schema, or the rows of a table. */
export function toCsv(route, result) {
  const rows = route === "extract" ? fieldRows(result) : rowsOf(route, result);
  return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function fieldRows(result) {
  const rows = result.fields.map((field) => {
    const box = field.box_xyxy ?? [null, null, null, null];
    const value = field.value === null ? null : shown(field.value);
    const problems = (field.problems ?? []).join(" ; ");
    return [
      field.path, value, field.raw, field.score, field.held, field.page, ...box, field.box_source,
      field.matched?.text, field.question, problems, field.source,
    ];
  });
  return [COLUMNS, ...rows];
}

/** A text that a spreadsheet would take for a formula begins with an apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return '""';
  if (typeof value === "number") return String(value);
  const isFormula = /^[\t\r\n]/.test(value) || /^\s*[=+\-@]/.test(value);
  return `"${`${isFormula ? "'" : ""}${value}`.replaceAll('"', '""')}"`;
}
