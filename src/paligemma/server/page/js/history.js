// What was asked in this session, to come back to. Kept in memory: gone when the page is closed.

import { byId, element } from "./dom.js";

const MOST = 30;

export class History {
  /** `onPick(entry)` hears which one the person wants to see again. */
  constructor(onPick) {
    this.entries = [];
    this.onPick = onPick;
    byId("clear-history").addEventListener("click", () => {
      this.entries = [];
      this.draw();
      byId("choose").focus();
    });
  }

  /** `entry`: {image, title, summary, ...} of one question, newest first. */
  add(entry) {
    this.entries = [entry, ...this.entries].slice(0, MOST);
    this.draw();
  }

  draw() {
    byId("history-empty").hidden = this.entries.length > 0;
    byId("clear-history").hidden = this.entries.length === 0;
    byId("history").replaceChildren(
      ...this.entries.map((entry) =>
        element(
          "li",
          {},
          element(
            "button",
            { type: "button", class: "past", onclick: () => this.onPick(entry) },
            element("img", { src: entry.image.url, alt: "" }),
            element("span", { class: "past-title", dir: "auto" }, entry.title),
            element("span", { class: "past-answer", dir: "auto" }, entry.summary),
          ),
        ),
      ),
    );
  }
}
