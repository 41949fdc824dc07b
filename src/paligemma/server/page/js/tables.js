// Tables and charts as HTML tables, and as CSV.

import { element } from "./dom.js";
import { scoreText, UNSURE } from "./overlay.js";

const MOST_ROWS = 500;

/** The cells by row and column: {cells: [[cell or null]], columns}; a cell is in its first place. */
function gridOf(cells) {
  const rows = [];
  let columns = 0;
  for (const cell of cells) {
    if (cell.row >= MOST_ROWS || cell.column >= MOST_ROWS) continue;
    while (rows.length <= cell.row) rows.push([]);
    rows[cell.row].push(cell);
    columns = Math.max(columns, cell.column + cell.colspan);
  }
  return { rows, columns };
}

/** A table; `onPoint(cell or null)` hears which cell the pointer is on. */
export function tableOf(result, onPoint) {
  const { rows } = gridOf(result.cells);
  const table = element("table", {});
  if (result.title) table.append(element("caption", { dir: "auto" }, result.title));
  const body = element("tbody");
  for (const row of rows) {
    const cells = row.map((cell) => {
      const made = marked(element(cell.is_header ? "th" : "td", { dir: "auto" }, cell.text), cell.score);
      if (cell.rowspan > 1) made.setAttribute("rowspan", cell.rowspan);
      if (cell.colspan > 1) made.setAttribute("colspan", cell.colspan);
      made.addEventListener("pointerenter", () => onPoint(cell));
      made.addEventListener("pointerleave", () => onPoint(null));
      return made;
    });
    body.append(element("tr", {}, ...cells));
  }
  table.append(body);
  return scrolling(table);
}

/** The points of a chart, one per row. */
export function chartOf(result) {
  const hasNames = result.series.some(({ name }) => name);
  const heads = [...(hasNames ? ["Series"] : []), result.x_title || "Label", "Value"];
  const table = element("table", {});
  if (result.title) table.append(element("caption", { dir: "auto" }, result.title));
  table.append(element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))));
  const body = element("tbody");
  for (const { name, points } of result.series) {
    for (const { x, y, raw, score } of points) {
      const value = marked(element("td", {}, raw || (y === null ? "" : String(y))), score);
      body.append(
        element("tr", {}, ...(hasNames ? [element("td", { dir: "auto" }, name)] : []), element("td", { dir: "auto" }, x), value),
      );
    }
  }
  table.append(body);
  return scrolling(table);
}

/** The score of a cell as its hint, and a mark where it is more likely wrong than right. */
function marked(cell, score) {
  if (typeof score !== "number") return cell;
  cell.title = `score ${scoreText(score)}`;
  if (score < UNSURE) {
    cell.classList.add("unsure-cell");
    cell.append(element("span", { class: "unsure-mark" }, "?"));
  }
  return cell;
}

function scrolling(table) {
  return element("div", { class: "table", tabindex: 0, role: "region", "aria-label": "The table" }, table);
}

/** How many cells or points there are, and how many are unsure. */
export function countOf(route, result) {
  const parts = route === "table" ? result.cells : result.series.flatMap(({ points }) => points);
  const unsure = parts.filter(({ score }) => typeof score === "number" && score < UNSURE).length;
  return { all: parts.length, unsure };
}

/** Rows of texts. What a cell covers beyond its first place has its text again. */
export function rowsOf(route, result) {
  if (route === "chart") {
    const points = result.series.flatMap(({ name, points }) => points.map(({ x, y, raw, score }) => [name, x, y, raw, score]));
    return [["series", "x", "y", "raw", "score"], ...points];
  }
  const { rows, columns } = gridOf(result.cells);
  const texts = rows.map(() => Array(columns).fill(""));
  for (const cell of rows.flat()) {
    for (let row = cell.row; row < Math.min(cell.row + cell.rowspan, rows.length); row += 1) {
      for (let column = cell.column; column < cell.column + cell.colspan; column += 1) texts[row][column] = cell.text;
    }
  }
  return texts;
}
