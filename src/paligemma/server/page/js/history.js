// What was asked in this tab, to come back to. It survives a reload and goes with the tab.

import { byId, element } from "./dom.js";
import { openImage } from "./image.js";
import { download } from "./saves.js";

const MOST = 30;
const STORE = "entries";

export class History {
  /** `onPick(entry)` hears which one the person wants to see again. */
  constructor(onPick) {
    this.entries = [];
    this.onPick = onPick;
    byId("clear-history").addEventListener("click", () => {
      this.entries = [];
      this.draw();
      forget();
      byId("choose").focus();
    });
    byId("save-history").addEventListener("click", () => {
      download(new Blob([toJson(this.entries)], { type: "application/json" }), "paligemma-history.json");
    });
  }

  /** `entry`: {image, title, summary, ...} of one question, newest first. */
  add(entry) {
    this.entries = [entry, ...this.entries].slice(0, MOST);
    this.draw();
    keep(this.entries);
  }

  /** Brings back what this tab had asked before a reload. */
  async restore() {
    const kept = [];
    for (const { image, answers, ...entry } of await stored()) {
      try {
        const opened = await openImage(image.blob, image.name, image.about);
        const again = answers.map(({ asked, outcome }) => ({ outcome, asked: { ...asked, image: opened } }));
        kept.push({ ...entry, image: opened, answers: again });
      } catch {
        // An image that the browser has dropped.
      }
    }
    this.entries = [...this.entries, ...kept].slice(0, MOST);
    this.draw();
  }

  draw() {
    byId("history-empty").hidden = this.entries.length > 0;
    byId("clear-history").hidden = byId("save-history").hidden = this.entries.length === 0;
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

/** The questions with their answers, newest first, as text. */
function toJson(entries) {
  const plain = entries.flatMap(({ image: { name, width, height }, answers }) =>
    answers.map(({ asked: { route, fields, model }, outcome: { result, usage, seconds } }) => ({
      image: { name, width, height }, model, task: route, ...fields, result, usage, seconds,
    })),
  );
  return JSON.stringify(plain, null, 2);
}

// The store holds one record per tab. The tab's name is in sessionStorage, which the browser
// empties when the tab is closed; records of other days are removed.

const DAY = 86_400_000;

function tabName() {
  let name = sessionStorage.getItem("tab");
  if (!name) {
    name = crypto.getRandomValues(new Uint32Array(4)).join("-"); // randomUUID needs https
    sessionStorage.setItem("tab", name);
  }
  return name;
}

function withStore(mode, act) {
  return new Promise((done, fail) => {
    const opening = indexedDB.open("paligemma", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "tab" });
    opening.onerror = () => fail(opening.error);
    opening.onsuccess = () => {
      const request = act(opening.result.transaction(STORE, mode).objectStore(STORE));
      request.onerror = () => fail(request.error);
      request.onsuccess = () => {
        opening.result.close();
        done(request.result);
      };
    };
  });
}

/** At once: a reload may come before the database has answered, but not before the name is gone. */
function forget() {
  const name = tabName();
  sessionStorage.removeItem("tab");
  withStore("readwrite", (store) => store.delete(name)).catch(() => {}); // goes within a day, then
}

async function keep(entries) {
  // Documents are not stored: their files are large, and whoever opens one again has it.
  const plain = entries.filter(({ image }) => !image.document).map(({ image, answers, ...entry }) => ({
    ...entry,
    image: { blob: image.blob, name: image.name, about: image.about },
    answers: answers.map(({ asked: { image: _, ...asked }, outcome }) => ({ asked, outcome })),
  }));
  const tab = tabName(); // before the wait, in which the history may be cleared
  try {
    await withStore("readwrite", (store) => store.put({ tab, when: Date.now(), entries: plain }));
  } catch {
    // A browser that keeps nothing shows the history until the page is closed.
  }
}

async function stored() {
  try {
    const records = await withStore("readonly", (store) => store.getAll());
    const old = records.filter(({ when }) => when < Date.now() - DAY);
    for (const { tab } of old) await withStore("readwrite", (store) => store.delete(tab));
    return records.find(({ tab }) => tab === tabName())?.entries ?? [];
  } catch {
    return [];
  }
}
