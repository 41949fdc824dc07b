// One model's answer next to its image: waiting, streaming, complete, stopped or failed.

import { toCoco, toCurl, toJson, toPython } from "./copies.js";
import { DOCUMENT_ROUTES, itemsOfCells, itemsOfFields, itemsOfPage, toCsv, toText } from "./documents.js";
import { byId, element, toast } from "./dom.js";
import { css, isUnsure, Overlay, scoreText, UNSURE } from "./overlay.js";
import { download, save, SAVES } from "./saves.js";
import { speechButton, stopSpeech } from "./speech.js";
import { chartOf, countOf, tableOf } from "./tables.js";

const SCORE_HINT =
  "How likely it is, by the model's own account, that the label and the box are right.";

const WORDS_HINT = "The model’s probability of exactly these words. Held: how much of it the form of the answer took away from other words.";
const EMPTY = { route: "" };

export class AnswerView {
  /**
   * `remedy(view, name)` is called when the person picks what is offered after an error, and
   * `turn(page)` when a place on another page is to be shown; its promise ends once it is.
   */
  constructor(stage, section, remedy, turn) {
    this.stage = stage;
    this.section = section;
    this.remedy = remedy;
    this.turn = turn;
    this.invitation = element(
      "p",
      { class: "invitation" },
      element("img", { src: "page/icon.svg", alt: "", width: 52, height: 52 }),
      element("strong", {}, "Start with an image"),
      element("span", {}),
    );
    this.invite(false);
    this.invitation.addEventListener("click", () => byId("choose").click()); // as the button does
    this.modelName = element("p", { class: "model-name", hidden: true });
    this.stage.append(this.modelName, this.invitation);
    this.overlay = new Overlay(this.stage, (object) => this.light(object ?? this.chosen));
    this.chosen = null;
    this.overlay.pane.hidden = true;
    this.heading = element("h2", {}, "Answer");
    this.state = element("p", { class: "state", role: "status" });
    this.question = element("p", { class: "asked", dir: "auto" });
    this.body = element("div", { class: "answer-body" });
    this.section.append(
      element("div", { class: "answer-head" }, this.heading, this.state),
      this.question,
      this.body,
    );
    this.clear();
  }

  /** Says what may be dropped here. */
  invite(readsVideos) {
    const others = readsVideos ? ", a PDF or a video clip" : ", or a PDF";
    this.invitation.lastChild.textContent = `Drop or paste one here${others}; choose a file, or use a sample.`;
  }

  showImage(image) {
    this.page = image.page?.page ?? 1;
    this.stage.classList.toggle("document", Boolean(image.document));
    this.invitation.hidden = true;
    this.overlay.pane.hidden = false;
    this.overlay.show(image);
    this.clear();
  }

  /** Shows another page of the document. Only the answer about all of its pages stays. */
  turnTo(image) {
    if (this.asked && !this.isDocument()) {
      this.showImage(image);
      return;
    }
    this.overlay.show(image);
    this.page = image.page?.page ?? 1;
    if (this.asked) this.drawItems();
  }

  /** Shows the model's name on image and answer when there are two models. */
  nameModel(model) {
    this.modelName.textContent = model;
    this.modelName.hidden = model === "";
    this.heading.textContent = model ? `Answer of ${model}` : "Answer";
  }

  clear() {
    stopSpeech();
    this.asked = null;
    this.outcome = null;
    this.chosen = null;
    this.question.textContent = "";
    this.overlay.clear();
    this.setState("idle", "");
    const hint = "The answer appears here, word by word or box by box.";
    this.body.replaceChildren(element("p", { class: "hint" }, hint));
  }

  setState(name, words) {
    clearInterval(this.clock);
    this.section.dataset.state = name;
    this.stage.dataset.state = name;
    this.state.textContent = words;
  }

  /** As `setState`, with the seconds since the question, once there are a few. */
  setBusy(name, words) {
    this.setState(name, words);
    const show = () => {
      const seconds = Math.floor((performance.now() - this.started) / 1000);
      if (seconds >= 2) this.state.textContent = `${words} ${seconds} s`;
    };
    show();
    this.clock = setInterval(show, 1000);
  }

  /** `asked`: {route, fields, title, model, base, image, address, withKey}. */
  begin(asked) {
    stopSpeech();
    this.asked = asked;
    this.outcome = null;
    this.started = performance.now();
    this.question.textContent = asked.title;
    this.overlay.clear();
    this.setBusy("waiting", this.isDocument() ? "Reading the document …" : "Reading the image …");
    this.text = "";
    this.objects = [];
    this.items = [];
    this.chosen = null;
    this.readPages = 0;
    this.hiddenLabels = new Set();
    this.hiddenObjects = new Set();
    this.least = 0;
    this.rows = new Map();
    this.none = element("p", { class: "hint", hidden: true });
    // Not a live region: a screen reader reads the whole answer at the end, not every part of it.
    this.stream = element("p", { class: "stream", dir: "auto" });
    this.list = element("ul", { class: "objects" });
    if (this.isDocument()) {
      this.list.classList.add("items");
      this.list.addEventListener("keydown", (event) => this.moveInList(event));
    }
    this.body.replaceChildren(this.hasObjects() || this.isDocument() ? this.list : this.stream);
    this.stage.classList.toggle("sticks", this.hasObjects() || this.isDocument());
  }

  /** On a narrow page the answer is below the image; boxes are shown next to their image. */
  comeIntoView() {
    if (!matchMedia("(max-width: 899px)").matches) return;
    const room = this.stage.classList.contains("sticks") ? this.stage.offsetHeight + 24 : 16;
    this.section.style.scrollMarginTop = `${room}px`;
    this.section.scrollIntoView({ block: "start" });
  }

  /** Whether the answer is a list of objects: that was asked for, or the model answered with places. */
  hasObjects() {
    return ["detect", "segment"].includes(this.asked.route) || this.objects.length > 0;
  }

  /** Whether the answer is about the pages of a document. */
  isDocument() {
    return DOCUMENT_ROUTES.has((this.asked ?? EMPTY).route);
  }

  addToken(text) {
    this.text += text;
    if (!this.hasObjects()) {
      this.stream.textContent = this.text;
      this.stream.classList.toggle("raw", this.text.includes("<loc"));
    }
    this.setBusy("streaming", "Answering …");
  }

  addObject(object) {
    if (!isObject(object)) return;
    this.objects.push(object);
    this.list.append(this.row(object));
    this.overlay.set(this.seen(), this.colors());
    const count = this.objects.length;
    this.setBusy("streaming", count === 1 ? "1 found so far …" : `${count} found so far …`);
  }

  /** A page that has been read. */
  addPage(page) {
    this.readPages += 1;
    this.addItems(itemsOfPage(page, this.asked.image), this.pageHead(page));
    this.setBusy("streaming", this.readPages === 1 ? "1 page read …" : `${this.readPages} pages read …`);
  }

  addProgress(answers) {
    this.setBusy("streaming", answers === 1 ? "1 answer …" : `${answers} answers …`);
  }

  pageHead(page) {
    const remarks = [...(page.problems ?? []), ...(page.error ? [page.error] : [])];
    const words = [`Page ${page.page}`, ...remarks].join(": ");
    return element("li", { class: "item-page" }, words);
  }

  addItems(items, head = null) {
    this.items.push(...items);
    if (head) this.list.append(head);
    this.list.append(...items.map((item) => this.itemRow(item)));
    this.drawItems();
  }

  /** Boxes on the page that is shown; those around more than the text only while they are pointed at. */
  drawItems(lit = this.chosen) {
    const { colors } = this.asked.image;
    colors.add([...new Set(this.items.map(({ label }) => label))]);
    const isShown = (item) => item.page === this.page && item.box_normalized_xyxy && (item.isExact || item === lit);
    this.overlay.set(this.items.filter(isShown), colors);
    this.overlay.light(lit && isShown(lit) ? lit : null);
  }

  itemRow(item) {
    const { asked } = this;
    const button = element("button", { type: "button", class: "item", title: WORDS_HINT });
    if (item.label) {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      asked.image.colors.add([item.label]);
      swatch.style.backgroundColor = css(asked.image.colors.of(item.label));
      swatch.classList.toggle("placeless", !item.isExact);
      button.append(element("span", { class: "item-path" }, swatch, item.label));
    }
    const mark = item.unsure ? "?" : "";
    button.append(
      element("span", { class: item.isMissing ? "item-value missing" : "item-value", dir: "auto" }, item.text),
      element("span", { class: "object-score" }, `${item.score === null ? "" : scoreText(item.score)}${mark}`),
    );
    const place = item.label && item.page !== null && asked.image.document?.numPages > 1 ? [`page ${item.page}`] : [];
    const remarks = [...place, ...item.remarks];
    if (remarks.length) button.append(element("span", { class: "item-remarks", dir: "auto" }, remarks.join(" · ")));
    button.addEventListener("click", () => this.choose(item));
    button.addEventListener("pointerenter", () => this.light(item));
    button.addEventListener("pointerleave", () => this.light(this.chosen));
    const row = element("li", { class: "row" }, button);
    this.rows.set(item, row);
    return row;
  }

  /** Shows an item's place, on whichever page it is, until another is chosen. */
  async choose(item) {
    this.chosen = item;
    for (const [other, row] of this.rows) row.classList.toggle("picked", other === item);
    if (item.page !== null && item.page !== this.page) await this.turn(item.page);
    this.light(item);
  }

  /** The arrow keys go from row to row, and show each one's place. */
  moveInList(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...this.list.querySelectorAll(".item")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.click();
  }

  /** What was asked for, in order, then what else the model named. */
  labels() {
    return [...new Set([...(this.asked.fields.phrases ?? []), ...this.objects.map((o) => o.label)])];
  }

  /** Those of the image, with a color for each label. */
  colors() {
    const { colors } = this.asked.image;
    colors.add(this.labels());
    return colors;
  }

  /** `outcome`: {result, usage, model, seconds} as `api.answer` returns it. */
  finish(outcome) {
    this.outcome = outcome;
    const { result } = outcome;
    this.text = String(result.text ?? "");
    this.objects = (result.objects ?? []).filter(isObject);
    if (this.isDocument()) this.finishDocument(result);
    else if (this.hasObjects()) this.finishObjects(result);
    else this.finishText(result);
    this.body.append(this.measures(outcome), this.copyButtons());
    if (this.objects.length) this.body.append(this.saveButtons());
    if (this.isDocument()) this.body.append(this.fileButtons());
    this.setState("done", this.summary());
  }

  finishDocument(result) {
    const { image, route } = this.asked;
    this.rows.clear();
    this.items = [];
    this.list.replaceChildren();
    this.body.replaceChildren(this.list);
    if (route === "table" || route === "chart") this.finishTable(result);
    else if (route === "extract") this.addItems(itemsOfFields(result, image));
    else for (const page of result.pages ?? []) this.addItems(itemsOfPage(page, image), this.pageHead(page));
    const add = (words) => this.body.append(element("p", { class: "hint" }, words));
    if (this.items.some(({ unsure }) => unsure) || this.body.querySelector(".unsure-cell")) {
      add(`Unsure, with a question mark: a score below ${UNSURE}, or something to check.`);
    }
    if (route === "table" || route === "chart") {
      for (const { kind, detail } of result.problems ?? []) add(kind === "cut" ? `It is cut: ${detail}` : `Ignored: ${detail}`);
    }
    if (route === "extract") {
      const own = new Set((result.fields ?? []).flatMap(({ path, problems }) => problems.map((p) => `${path}: ${p}`)));
      for (const problem of (result.problems ?? []).filter((each) => !own.has(each))) add(`Check: ${problem}`);
      if (result.value === null) add("The fields make no valid object of the schema.");
    }
    this.body.append(...notes(result));
  }

  finishText(result) {
    const nothing = this.asked.route === "ocr" ? "(no text)" : "(no answer: the model wrote nothing)";
    const shown = this.text || nothing;
    const kind = this.text ? "stream" : "stream nothing";
    const attributes = { class: kind, dir: "auto" };
    const language = this.asked.fields.language ?? "";
    if (language) attributes.lang = language;
    this.body.replaceChildren(element("p", attributes, shown), ...notes(result));
    if (this.text) this.body.append(speechButton(this.text, language));
  }

  finishObjects(result) {
    this.rows.clear();
    this.list.replaceChildren(...this.objects.map((object) => this.row(object)));
    this.body.replaceChildren(this.filters(), this.list, this.none);
    const add = (words) => this.body.append(element("p", { class: "hint" }, words));
    if (this.objects.some(isUnsure)) {
      add("Unsure, with a question mark: more likely wrong than right.");
    }
    for (const [title, phrases] of [
      ["Not found", this.objects.length ? result.missing : []],
      ["Not reached", result.not_reached],
      ["Below the minimum score", result.filtered],
    ]) {
      if (phrases?.length) add(`${title}: ${phrases.join(", ")}`);
    }
    for (const { kind, detail } of result.problems ?? []) {
      add(kind === "cut" ? `The list is cut: ${detail}` : `Ignored, ${kind}: ${detail}`);
    }
    this.body.append(...notes(result));
    const raw = element("pre", { tabindex: 0, "aria-label": "Generated text" }, this.text);
    this.body.append(
      element("details", {}, element("summary", {}, "Generated text"), raw),
    );
    this.filter();
  }

  row(object) {
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.backgroundColor = css(this.colors().of(object.label));
    const box = object.box_xyxy.map(Math.round);
    const place = `${box[0]}, ${box[1]} to ${box[2]}, ${box[3]}`;
    const button = element(
      "button",
      { type: "button", class: "object", title: SCORE_HINT },
      swatch,
      element("span", { class: "object-label", dir: "auto" }, `${object.label || "(no name)"}${isUnsure(object) ? "?" : ""}`),
      element("span", { class: "object-place" }, place),
      element("span", { class: "object-score" }, scoreText(object.score)),
    );
    const light = () => this.light(object);
    const dim = () => this.light(null);
    button.addEventListener("pointerenter", light);
    button.addEventListener("pointerleave", dim);
    button.addEventListener("focus", light);
    button.addEventListener("blur", dim);
    const row = element("li", { class: "row" }, button, this.eye(object, place));
    row.classList.toggle("off", this.hiddenObjects.has(object));
    this.rows.set(object, row);
    return row;
  }

  /** Shows or hides a single object. */
  eye(object, place) {
    const eye = element(
      "button",
      {
        type: "button", class: "eye", "aria-pressed": "true", title: "Show or hide",
        "aria-label": `Show ${object.label || "no name"}, ${place}`,
      },
      element("span", { class: "pupil", "aria-hidden": "true" }),
    );
    eye.addEventListener("click", () => {
      const isHidden = this.hiddenObjects.delete(object);
      if (!isHidden) this.hiddenObjects.add(object);
      eye.setAttribute("aria-pressed", String(isHidden));
      this.rows.get(object).classList.toggle("off", !isHidden);
      this.filter();
    });
    return eye;
  }

  light(object) {
    for (const [other, row] of this.rows) row.classList.toggle("lit", other === object);
    if (this.isDocument()) this.drawItems(object);
    else this.overlay.light(object);
  }

  filters() {
    const place = element("div", { class: "filters" });
    if (!this.objects.length) return place;
    const id = `threshold-${this.section.id}`;
    const value = element("output", { for: id }, "0.00");
    const slider = element("input", { id, type: "range", min: 0, max: 1, step: 0.01, value: 0 });
    slider.addEventListener("input", () => {
      this.least = Number(slider.value);
      value.textContent = this.least.toFixed(2);
      this.filter();
    });
    place.append(
      element("div", { class: "threshold" }, element("label", { for: id }, "Minimum score"), slider, value),
      element("p", { class: "hint" }, "A score is how likely the label and the box are right, by the model's own account."),
    );
    const group = element("div", { class: "toggles", role: "group", "aria-label": "Labels shown" });
    const labels = this.labels().filter((label) => this.objects.some((o) => o.label === label));
    for (const label of labels) {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.backgroundColor = css(this.colors().of(label));
      const count = this.objects.filter((object) => object.label === label).length;
      const toggle = element(
        "button",
        { type: "button", class: "toggle", "aria-pressed": "true" },
        swatch,
        element("span", { dir: "auto" }, label || "(no name)"),
        element("span", { class: "count" }, String(count)),
      );
      toggle.addEventListener("click", () => {
        const isHidden = this.hiddenLabels.delete(label);
        if (!isHidden) this.hiddenLabels.add(label);
        toggle.setAttribute("aria-pressed", String(isHidden));
        this.filter();
      });
      group.append(toggle);
    }
    place.append(group);
    return place;
  }

  /** Whether threshold and labels leave the object in the list. */
  isListed({ score, label }) {
    return (score ?? 1) >= this.least && !this.hiddenLabels.has(label);
  }

  /** The objects that are neither filtered nor hidden by themselves. */
  seen() {
    return this.objects.filter((object) => this.isListed(object) && !this.hiddenObjects.has(object));
  }

  filter() {
    for (const [object, row] of this.rows) row.hidden = !this.isListed(object);
    this.none.hidden = this.objects.some((object) => this.isListed(object));
    this.none.textContent = this.objects.length
      ? "No object has this score, or its label is hidden."
      : "The model found no such object.";
    this.overlay.set(this.seen(), this.colors());
    if (this.outcome) this.state.textContent = this.summary();
  }

  summary() {
    if (this.isDocument()) return this.documentSummary();
    if (!this.hasObjects()) return "Done.";
    const found = this.objects.length;
    if (!found) return "Nothing found.";
    const seen = this.seen().length;
    const unsure = this.objects.filter(isUnsure).length;
    const count = found === 1 ? "1 found" : `${found} found`;
    const words = unsure ? `${count}, ${unsure === found ? "all" : unsure} unsure` : count;
    return seen === found ? `${words}.` : `${words}, ${seen} shown.`;
  }

  finishTable(result) {
    const isTable = this.asked.route === "table";
    const isEmpty = countOf(this.asked.route, result).all === 0;
    if (isTable) {
      this.items = itemsOfCells(result);
      const itemOf = (cell) => this.items.find((item) => item.cell === cell) ?? null;
      this.body.append(tableOf(result, (cell) => this.light(itemOf(cell))));
      this.drawItems();
    } else this.body.append(chartOf(result));
    if (isEmpty) this.body.replaceChildren(element("p", { class: "stream nothing" }, isTable ? "(no table)" : "(no chart)"));
  }

  documentSummary() {
    const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;
    if (["table", "chart"].includes(this.asked.route)) {
      const { all, unsure } = countOf(this.asked.route, this.outcome.result);
      const words = count(all, this.asked.route === "table" ? "cell" : "value");
      return unsure ? `${words}, ${unsure} unsure.` : `${words}.`;
    }
    if (this.asked.route === "read") {
      const pages = (this.outcome?.result.pages ?? []).length;
      return `${count(this.items.length, "line")} on ${count(pages, "page")}.`;
    }
    const missing = this.items.filter(({ isMissing }) => isMissing).length;
    const unsure = this.items.filter(({ isMissing, unsure }) => unsure && !isMissing).length;
    const words = [count(this.items.length - missing, "field")];
    if (unsure) words.push(`${unsure} unsure`);
    if (missing) words.push(`${missing} not found`);
    return `${words.join(", ")}.`;
  }

  /** Files of a document's answer. */
  fileButtons() {
    const { result } = this.outcome;
    const { image, route } = this.asked;
    const base = (image.document ?? image).name.replace(/\.[^.]*$/, "");
    const forms = [["JSON", "json", "application/json", () => toJson(result, null)]];
    if (route === "read") forms.push(["Text", "txt", "text/plain", () => toText(result)]);
    else forms.push(["CSV", "csv", "text/csv", () => toCsv(route, result)]);
    const buttons = forms.map(([name, ending, type, text]) =>
      element(
        "button",
        {
          type: "button", class: "quiet", "aria-label": `Save as ${name}`,
          onclick: () => download(new Blob([text()], { type }), `${base}.${ending}`),
        },
        name,
      ),
    );
    return element("div", { class: "copies" }, element("span", { class: "hint" }, "Save as"), ...buttons);
  }

  measures({ result, usage, seconds }) {
    const words = [];
    if (typeof result.score === "number") words.push(`score ${scoreText(result.score)}`);
    words.push(seconds < 0.95 ? `${Math.ceil(seconds * 100) * 10} ms` : `${seconds.toFixed(1)} s`);
    if (usage?.completion_tokens !== undefined) words.push(tokens(usage.completion_tokens));
    if (result.stop_reason === "length") words.push("cut at the longest answer allowed");
    return element("p", { class: "measures", title: SCORE_HINT }, words.join(" · "));
  }

  copyButtons() {
    const { route, fields, model, base, image, address, withKey } = this.asked;
    const { result } = this.outcome;
    const forms = [["JSON", () => toJson(result, this.hasObjects() ? this.seen() : null)]];
    if (this.hasObjects()) forms.push(["COCO", () => toCoco(result, this.seen(), image)]);
    if (route === "read") forms.push(["Text", () => toText(result)]);
    else if (this.isDocument()) forms.push(["CSV", () => toCsv(route, result)]);
    const { name } = this.isDocument() ? (image.document ?? image) : image;
    forms.push(["Python", () => toPython(route, fields, name, model, base)]);
    forms.push(["curl", () => toCurl(address, route, { ...fields, model }, name, withKey)]);
    const buttons = forms.map(([name, text]) =>
      element(
        "button",
        { type: "button", class: "quiet", "aria-label": `Copy as ${name}`, onclick: () => copy(text(), name) },
        name,
      ),
    );
    return element("div", { class: "copies" }, element("span", { class: "hint" }, "Copy as"), ...buttons);
  }

  saveButtons() {
    const { image } = this.asked;
    const hasMasks = this.objects.some((object) => object.mask);
    const buttons = SAVES.filter(({ needsMasks }) => hasMasks || !needsMasks).map(({ name, file, draw }) => {
      const act = async () => {
        try {
          const canvas = await draw(image, this.seen());
          await save(canvas, `${image.name.replace(/\.[^.]*$/, "")}-${file}.png`);
        } catch (error) {
          toast(error.message);
        }
      };
      return element("button", { type: "button", class: "quiet", "aria-label": `Save ${name}`, onclick: act }, name);
    });
    return element("div", { class: "copies" }, element("span", { class: "hint" }, "Save as PNG"), ...buttons);
  }

  /** `failure`: {title, detail, remedy}, and what had come stays on screen. */
  fail(failure, id = "") {
    this.setState("failed", "");
    const names = { retry: "Try again", key: "Enter a key", shrink: "Use a smaller copy" };
    const children = [element("h3", {}, failure.title)];
    if (failure.detail) children.push(element("p", {}, failure.detail));
    if (id) children.push(element("p", { class: "request-id" }, `Request ${id}`));
    if (failure.remedy) {
      const act = () => this.remedy(failure.remedy);
      children.push(element("button", { type: "button", onclick: act }, names[failure.remedy]));
    }
    this.body.querySelector(".problem")?.remove();
    this.body.prepend(element("div", { class: "problem", role: "alert" }, ...children));
  }
}

/** What the server says about how it understood the question. */
function notes(result) {
  const options = / \(to ask once: .*?\)/; // of the command line and Python; the page has no such option
  return (result.notes ?? []).map((note) => element("p", { class: "hint" }, note.replace(options, "")));
}

function tokens(count) {
  return count === 1 ? "1 token written" : `${count} tokens written`;
}

/** The objects that the page can draw; all others are left out. */
function isObject(object) {
  const box = object?.box_normalized_xyxy;
  return (
    typeof object?.label === "string" && typeof object.score === "number" &&
    Array.isArray(object.box_xyxy) && Array.isArray(box) && box.length === 4 &&
    [...box, ...object.box_xyxy].every(Number.isFinite)
  );
}

async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that did not come over https or from this machine have no clipboard: the old way.
    const area = element("textarea", { "aria-hidden": "true", class: "offscreen" });
    area.value = text;
    document.body.append(area);
    const focused = document.activeElement;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    if (!copied) return toast("The browser does not allow copying.");
  }
  return toast(`Copied as ${name}.`);
}
