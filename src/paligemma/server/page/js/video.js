// Videos: a film with its captions along a time line, asked about on the server.

import * as api from "./api.js";
import { byId, element } from "./dom.js";
import { scoreText } from "./overlay.js";
import { download } from "./saves.js";
import { bytes, explain } from "./words.js";

/** A film that was chosen, and what the server says about it. One at a time. */
export class Film {
  /** `model()` names the model to ask, `needsKey(then)` is called when the server wants a key. */
  constructor(model, needsKey) {
    this.model = model;
    this.needsKey = needsKey;
    this.file = null;
    this.abort = null;
    this.segments = [];
    this.player = byId("film-player");
    this.player.addEventListener("timeupdate", () => this.follow());
    this.player.addEventListener("loadedmetadata", () => this.draw());
    this.player.addEventListener("error", () => {
      if (this.file) this.say("The browser cannot play this file. Its captions come with times all the same.");
    });
    byId("film-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    byId("film-question").addEventListener("input", () => this.nameButton());
    byId("film-stop").addEventListener("click", () => this.abort?.abort());
    byId("film-srt").addEventListener("click", () => this.save("srt", subtitles(this.segments)));
    byId("film-json").addEventListener("click", () => this.save("json", JSON.stringify(this.result, null, 1)));
  }

  get isShown() {
    return this.file !== null;
  }

  /** Shows a file in place of image and answer. `limits` are the server's, or null. */
  open(file, limits) {
    this.close();
    this.file = file;
    document.body.classList.add("filming");
    byId("film").hidden = false;
    byId("image-name").textContent = `${file.name}, ${bytes(file.size)}`;
    byId("image-name").classList.remove("empty");
    byId("choose").textContent = "Another file";
    this.url = URL.createObjectURL(file);
    this.player.src = this.url;
    this.show([]);
    const most = limits?.max_video_bytes;
    this.isTooLarge = Boolean(most) && file.size > most;
    this.say(this.isTooLarge ? `The video has ${bytes(file.size)}; the limit is ${bytes(most)}.` : "");
  }

  /** Ends what runs, and gives the page back to images. */
  close() {
    if (!this.isShown) return;
    this.abort?.abort();
    this.abort = null;
    this.file = null;
    this.player.removeAttribute("src");
    this.player.load();
    URL.revokeObjectURL(this.url);
    document.body.classList.remove("filming");
    byId("film").hidden = true;
  }

  nameButton() {
    byId("film-run").textContent = byId("film-question").value.trim() ? "Ask" : "Caption it";
  }

  say(text) {
    byId("film-state").textContent = text;
  }

  async run() {
    if (this.abort || this.isTooLarge || !byId("film-every").reportValidity()) return;
    const file = this.file;
    const question = byId("film-question").value.trim();
    const fields = {
      model: this.model(),
      every: Number(byId("film-every").value),
      ...(question && { question }),
    };
    const abort = new AbortController();
    this.abort = abort;
    this.show([]);
    this.say("Watching the video …");
    this.showBusy();
    const current = (act) => (value) => {
      if (this.abort === abort) act(value);
    };
    const on = {
      sign: () => {},
      progress: current((answers) => this.say(`Watching the video … ${answers} frames`)),
      segment: current((segment) => this.show([...this.segments, segment])),
    };
    try {
      const { result } = await api.answer("video", { blob: file, name: file.name }, fields, on, abort.signal);
      if (this.abort !== abort) return;
      this.result = result;
      this.show(result.segments);
      this.say([`${result.segments.length} parts.`, ...result.problems].join(" "));
    } catch (error) {
      if (!(error instanceof api.AnswerError)) console.error(error);
      if (this.abort !== abort) return;
      const { title, detail } = explain(error, null, null);
      this.say(`${title} ${detail}`);
      if (error.status === 401) this.needsKey(() => this.run());
    } finally {
      if (this.abort === abort) this.abort = null;
      this.showBusy();
    }
  }

  showBusy() {
    byId("film-run").setAttribute("aria-disabled", String(this.abort !== null));
    byId("film-stop").hidden = this.abort === null;
    for (const id of ["film-srt", "film-json"]) byId(id).hidden = this.abort !== null || !this.segments.length;
  }

  show(segments) {
    this.segments = segments;
    const rows = segments.map((segment) => {
      const go = () => this.seek(segment);
      const button = element(
        "button",
        { type: "button", class: "film-row", onclick: go },
        element("span", { class: "film-time" }, clock(segment.start_s)),
        element("span", { class: "film-text", dir: "auto" }, segment.text || "(nothing)"),
        element("span", { class: "film-score" }, scoreText(segment.score)),
      );
      return element("li", {}, button);
    });
    byId("film-list").replaceChildren(...rows);
    this.draw();
    this.showBusy();
  }

  /** The time line: a piece per segment, as wide as it lasts. */
  draw() {
    const last = this.segments.at(-1)?.end_s ?? 0;
    const length = Math.max(last, Number.isFinite(this.player.duration) ? this.player.duration : 0);
    const pieces = this.segments.map((segment, number) => {
      const piece = element("button", {
        type: "button",
        tabindex: "-1", // the list below has the same for the keyboard
        "aria-hidden": "true",
        title: segment.text,
        class: number % 2 ? "film-piece odd" : "film-piece",
        onclick: () => this.seek(segment),
      });
      piece.style.left = `${(100 * segment.start_s) / length}%`;
      piece.style.width = `${(100 * (segment.end_s - segment.start_s)) / length}%`;
      return piece;
    });
    this.cursor = element("span", { class: "film-cursor" });
    byId("film-line").replaceChildren(...pieces, this.cursor);
    byId("film-line").hidden = !this.segments.length;
    this.length = length;
    this.follow();
  }

  seek(segment) {
    this.player.currentTime = segment.start_s;
    this.follow(segment.start_s);
  }

  /** Marks the part that is played, and shows its caption below the film. */
  follow(time = this.player.currentTime) {
    const now = this.segments.findIndex(({ start_s: start, end_s: end }) => start <= time && time < end);
    [...byId("film-list").children].forEach((row, number) => row.classList.toggle("now", number === now));
    byId("film-caption").textContent = now < 0 ? "" : this.segments[now].text;
    if (this.cursor && this.length) this.cursor.style.left = `${Math.min(100, (100 * time) / this.length)}%`;
  }

  save(ending, text) {
    download(new Blob([text]), `${this.file.name.replace(/\.[^.]*$/, "")}.${ending}`);
  }
}

/** 1:05, or 1:00:05. */
function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** SubRip, in which a text can neither end its subtitle nor style it. */
function subtitles(segments) {
  const stamp = (seconds) => {
    const date = new Date(Math.round(seconds * 1000));
    const hours = Math.floor(seconds / 3600);
    return `${String(hours).padStart(2, "0")}:${date.toISOString().slice(14, 23).replace(".", ",")}`;
  };
  const plain = (text) =>
    text.replace(/[\s\u0085\u2028\u2029]+/g, " ").trim().replace(/<(?=[A-Za-z/])|\{(?=\\)|--(?=>)/g, "$&\u200b");
  return segments
    .filter(({ text }) => plain(text))
    .map(({ start_s: start, end_s: end, text }, number) =>
      `${number + 1}\n${stamp(start)} --> ${stamp(Math.max(end, start + 0.001))}\n${plain(text)}\n\n`)
    .join("");
}
