// The page: connects image, question, models, answers and history.

import { AnswerView } from "./js/answer.js";
import * as api from "./js/api.js";
import { DOCUMENT_ROUTES, openDocument, pageOf } from "./js/documents.js";
import { byId, element, toast } from "./js/dom.js";
import { History } from "./js/history.js";
import { listen, smaller } from "./js/image.js";
import { SAMPLES } from "./js/samples.js";
import {
  isDoubtful, LANGUAGES, languageName, OWN_SCHEMA, phrasesOf, questionOf, schemaProblem, SCHEMAS, TASKS, taskOf,
} from "./js/tasks.js";
import { Film } from "./js/video.js";
import { explain, sizeProblem } from "./js/words.js";

const POLL_MILLISECONDS = 3000;
const QUIET_SECONDS = 15; // after which the page says that nothing comes
const SILENT_SECONDS = 180; // after which a server that sends nothing is given up
const THEMES = ["auto", "light", "dark"];

let image = null;
let models = [];
let limits = null;
let waitingVideo = null; // a video that was chosen before the limits were known
let afterKey = null; // what to do again once a key was typed in

const views = [0, 1].map((number) => {
  const view = new AnswerView(
    byId(`stage-${number}`), byId(`answer-${number}`), (name) => remedy(view, name), turnPage,
  );
  view.abort = null; // an AbortController while the view waits for its answer
  return view;
});
const history = new History(restore);
const film = new Film(() => byId("model").value || (models[0]?.id ?? "mini"), (then) => askForKey(then));

// What is asked

function route() {
  return document.querySelector("input[name=task]:checked").value;
}

function chooseTask(name) {
  const task = taskOf(name);
  document.querySelector(`input[name=task][value=${name}]`).checked = true;
  for (const field of document.querySelectorAll("[data-for]")) {
    field.hidden = !field.dataset.for.split(" ").includes(name);
  }
  // An old answer under another task's form would look like its answer; the history has it.
  for (const view of views) {
    if (view.outcome && view.form !== name) view.clear();
  }
  byId("own-schema-field").hidden = name !== "extract" || byId("schema").value !== OWN_SCHEMA;
  byId("task-hint").textContent = task.hint;
  byId("run").textContent = task.run;
  showLanguages();
}

/** The model's languages, if it lists them. A caption always has a language. */
function showLanguages() {
  const known = models.find((model) => model.id === byId("model").value)?.languages;
  for (const option of byId("language").options) {
    const fits = option.value
      ? !Array.isArray(known) || known.includes(option.value)
      : route() !== "caption"; // a question may leave it to the model
    option.hidden = option.disabled = !fits;
  }
  if (byId("language").selectedOptions[0]?.disabled !== false) byId("language").value = "en";
}

function formValues() {
  const ids = [
    "question", "phrases", "prompt", "language", "length", "temperature", "seed", "schema", "own-schema",
    "pages", "source", "date-order", "check", "names",
  ];
  return Object.fromEntries(ids.map((id) => [id, byId(id).value]));
}

function buildControls() {
  for (const task of TASKS) {
    const id = `task-${task.route}`;
    const radio = element("input", { type: "radio", name: "task", id, value: task.route });
    radio.addEventListener("change", () => chooseTask(task.route));
    const place = byId(DOCUMENT_ROUTES.has(task.route) ? "document-tasks" : "tasks");
    place.append(element("div", { class: "task" }, radio, element("label", { for: id }, task.name)));
  }
  const languages = LANGUAGES.map((code) => [code, languageName(code)]);
  languages.sort((one, other) => one[1].localeCompare(other[1]));
  byId("language").append(
    element("option", { value: "" }, "not set"),
    ...languages.map(([code, name]) => element("option", { value: code }, name)),
  );
  byId("language").value = "en";
  byId("schema").append(
    ...SCHEMAS.map(([value, name]) => element("option", { value }, name)),
    element("option", { value: OWN_SCHEMA }, "Own JSON schema"),
  );
  byId("schema").addEventListener("change", () => chooseTask("extract"));
  byId("previous-page").addEventListener("click", () => turnPage(image.page.page - 1));
  byId("next-page").addEventListener("click", () => turnPage(image.page.page + 1));
  chooseTask("caption");
}

// The image

function setVideo(file) {
  waitingVideo = limits ? null : file;
  if (waitingVideo) {
    sayProblem(`“${file.name}” is opened as soon as the server answers.`);
    return;
  }
  if (!limits.reads_videos) {
    sayProblem(`“${file.name}”: this server reads no videos. It does with: paligemma serve --allow-video.`);
    return;
  }
  forget(...views);
  sayProblem(null);
  film.open(file, limits);
}

function setImage(chosen, sample = null) {
  waitingVideo = null;
  film.close();
  forget(...views);
  image = chosen;
  for (const view of views) view.showImage(chosen);
  showName();
  byId("image-name").classList.remove("empty");
  byId("choose").textContent = "Another file";
  sayProblem(null);
  if (sample) {
    byId("phrases").value = sample.phrases;
    byId("question").value = sample.question;
  }
  suggest(sample);
  const problem = sizeProblem(chosen, limits);
  if (problem) sayProblem(problem, true);
  if (!chosen.document) return;
  if (chosen.problem) sayProblem(chosen.problem);
  if (!DOCUMENT_ROUTES.has(route())) chooseTask("read");
}

/** The name of the file, and of a document the page. */
function showName() {
  const { document: file, page, name, width, height } = image;
  byId("image-name").textContent = file ? file.name : `${name}, ${width} × ${height}`;
  byId("pager").hidden = !(file?.numPages > 1);
  if (!file) return;
  byId("page-number").textContent = `Page ${page.page} of ${file.numPages}`;
  // Not `disabled`: that would throw the keyboard's focus away.
  byId("previous-page").setAttribute("aria-disabled", String(page.page === 1));
  byId("next-page").setAttribute("aria-disabled", String(page.page === file.numPages));
}

/** Shows another page of the document. */
async function turnPage(number) {
  const file = image?.document;
  if (!file || number < 1 || number > file.numPages) return;
  let page;
  try {
    page = await pageOf(file, number);
  } catch (error) {
    sayProblem(error.message || "The server cannot be reached.");
    return;
  }
  if (image?.document !== file) return; // another file was chosen since
  image = page;
  sayProblem(page.problem);
  showName();
  forget(...views.filter((view) => view.abort && !view.isDocument()));
  for (const view of views) view.turnTo(page);
}

/** Why a file cannot be shown; for a document that is encrypted, with a field for its password. */
function sayFileProblem(text, error, file) {
  sayProblem(text);
  if (error?.status === 401) askForKey(null);
  if (!file || !/password/i.test(text)) return;
  const password = element("input", { type: "password", "aria-label": "Password of the document", autocomplete: "off" });
  const open = element("form", { class: "address" }, password, element("button", { type: "submit" }, "Open"));
  open.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      setImage(await openDocument(file, file.name || "pasted.pdf", password.value));
    } catch (problem) {
      sayFileProblem(problem.message || "The server cannot be reached.", problem, file);
    }
  });
  byId("image-problem").append(open);
  password.focus();
}

/** Questions that fit a sample, each asked by one click. */
function suggest(sample) {
  const place = byId("suggestions");
  place.hidden = sample === null;
  if (!sample) return;
  const questions = [
    ["caption", "Caption"],
    ["ask", sample.question],
    ["detect", `Detect ${sample.phrases}`],
    ["segment", `Segment ${sample.phrases}`],
  ];
  const act = (name) => {
    byId("phrases").value = sample.phrases;
    byId("question").value = sample.question;
    chooseTask(name);
    run();
  };
  place.replaceChildren(
    ...questions.map(([name, words]) =>
      element("button", { type: "button", class: "quiet", onclick: () => act(name) }, words),
    ),
  );
}

function sayProblem(text, canShrink = false) {
  const place = byId("image-problem");
  place.hidden = text === null;
  place.replaceChildren(element("p", {}, text ?? ""));
  if (canShrink) {
    const shrink = () => useSmaller();
    place.append(element("button", { type: "button", onclick: shrink }, "Use a smaller copy"));
  }
}

async function useSmaller() {
  try {
    setImage(await smaller(image));
    return true;
  } catch (error) {
    sayProblem(error.message);
    return false;
  }
}

// Asking

async function run() {
  if (!(await chosenOpened())) return; // what was chosen a moment ago, not the image before it
  if (isBusy()) return; // a double click asks once
  const task = taskOf(route());
  if (!image) {
    sayProblem("Choose an image first: your own or a sample.");
    byId("choose").focus();
    return;
  }
  const needed = task.needs && formValues()[task.needs[0]];
  if (task.needs && !(task.needs[0] === "phrases" ? phrasesOf(needed).length : needed.trim())) {
    toast(task.needs[1]);
    byId(task.needs[0]).focus();
    return;
  }
  const problem = sizeProblem(image, limits);
  if (problem) {
    sayProblem(problem, true);
    byId("image-problem").scrollIntoView({ block: "nearest" });
    return;
  }
  if (task.route === "extract" && byId("schema").value === OWN_SCHEMA) {
    const wrong = schemaProblem(byId("own-schema").value);
    if (wrong) {
      toast(wrong);
      byId("own-schema").focus();
      return;
    }
  }
  if (!byId("pages").reportValidity()) return;
  if (![...document.querySelectorAll(".options input")].every((input) => input.reportValidity())) return;
  const { route: asked, fields } = questionOf(task, { ...formValues(), page: image.page?.page ?? 1 });
  const title = taskOf(asked).title(fields);
  const base = models[0]?.id ?? "mini";
  const names = [byId("model").value || base, ...(isBeside() ? [byId("beside").value] : [])];
  const address = new URL(".", document.baseURI).href;
  const withKey = api.hasKey();
  ask(
    names.map((model, number) => [
      views[number],
      { route: asked, fields, title, model, base, image, address, withKey },
    ]),
  );
}

/** Asks each [view, asked] at the same time, and remembers what was answered. */
async function ask(questions) {
  const answers = Promise.all(questions.map(([view, asked]) => askOne(view, asked)));
  showBusy();
  questions[0][0].comeIntoView();
  await answers;
  showBusy();
  const done = questions.filter(([view, asked]) => view.outcome && view.asked === asked);
  if (done.length) remember(done);
}

async function askOne(view, asked) {
  const abort = new AbortController();
  view.abort = abort;
  view.form = route();
  view.begin(asked);
  const started = performance.now();
  const silence = new Silence(abort);
  const current = (act) => (value) => {
    if (view.abort === abort) act(value);
  };
  const on = {
    sign: () => silence.begin(),
    token: current((text) => view.addToken(text)),
    object: current((object) => view.addObject(object)),
    page: current((page) => view.addPage(page)),
    progress: current((answers) => view.addProgress(answers)),
  };
  const isDocument = DOCUMENT_ROUTES.has(asked.route);
  const file = isDocument ? (asked.image.document ?? asked.image) : asked.image;
  const fields = { ...asked.fields, model: asked.model };
  try {
    let outcome = await api.answer(asked.route, file, fields, on, abort.signal);
    if (view.abort !== abort) return;
    if (fields.phrases && isDoubtful(fields.phrases, outcome.result.objects ?? [])) {
      view.setBusy("streaming", "Asking again, one by one …");
      outcome = await secondLook(outcome, asked, fields, abort.signal);
      if (view.abort !== abort) return;
    }
    view.finish({ ...outcome, seconds: (performance.now() - started) / 1000 });
  } catch (error) {
    if (!(error instanceof api.AnswerError)) console.error(error);
    if (view.abort !== abort) return;
    const failure = silence.isOver ? new api.AnswerError("late", String(SILENT_SECONDS)) : error;
    view.fail(explain(failure, file, limits), error.id);
    if (error.status === 401) askForKey(() => remedy(view, "retry"));
    if (silence.isOver || error.kind === "unreachable" || error.status === 503) connect();
  } finally {
    silence.end();
    if (view.abort === abort) view.abort = null;
  }
}

/** What the server answers where it may ask phrase by phrase. Without an answer the first stands. */
async function secondLook(first, asked, fields, signal) {
  try {
    return await api.wholeAnswer(asked.route, asked.image, fields, signal);
  } catch (error) {
    const note = `It was not asked again phrase by phrase. ${explain(error, asked.image, limits).title}`;
    return { ...first, result: { ...first.result, notes: [...(first.result.notes ?? []), note] } };
  }
}

/** The time without a sign of the server: after a while the page says so, and gives up in the end. */
class Silence {
  constructor(abort) {
    this.abort = abort;
    this.isOver = false;
    this.begin();
  }

  begin() {
    this.end();
    this.timers = [
      setTimeout(() => setStatus("quiet", "no sign of the server"), 1000 * QUIET_SECONDS),
      setTimeout(() => {
        this.isOver = true;
        this.abort.abort();
      }, 1000 * SILENT_SECONDS),
    ];
  }

  end() {
    this.timers?.forEach(clearTimeout);
    if (!this.isOver && byId("status").dataset.state === "quiet") setStatus("ready", "ready");
  }
}

function isBusy() {
  return views.some((view) => view.abort !== null);
}

function showBusy() {
  const busy = isBusy();
  // Not `disabled`: that would throw the keyboard's focus away.
  byId("run").setAttribute("aria-disabled", String(busy));
  byId("stop").hidden = !busy;
}

/** Ends what runs; its view says so, and keeps what had come. */
function stop() {
  for (const view of views) view.abort?.abort();
}

/** Ends what runs in these views, which have no more use for it. */
function forget(...those) {
  for (const view of those) {
    view.abort?.abort();
    view.abort = null;
  }
  showBusy();
}

async function remedy(view, name) {
  const { asked } = view;
  if (isBusy() && view.abort) return;
  if (name === "key") askForKey(() => remedy(view, "retry"));
  else if (name === "retry") ask([[view, { ...asked, withKey: api.hasKey() }]]);
  else if (await useSmaller()) run();
}

// History

function remember(done) {
  const [view, { title, image: shown }] = done[0];
  const answers = done.map(([view, asked]) => ({ asked, outcome: view.outcome }));
  const summary = done
    .map(([each]) => (each.hasObjects() || each.isDocument() ? each.summary() : each.text || "(nothing)"))
    .join(" | ");
  history.add({ image: shown, title, summary, answers, form: { ...formValues(), route: view.form } });
}

function restore(entry) {
  setImage(entry.image, SAMPLES.find(({ about }) => about === entry.image.about) ?? null);
  const { route: name, ...values } = entry.form;
  for (const [id, value] of Object.entries(values)) byId(id).value = value;
  chooseTask(name);
  const [first, second] = entry.answers;
  byId("model").value = first.asked.model;
  byId("beside").value = second?.asked.model ?? "";
  showBeside();
  entry.answers.forEach(({ asked, outcome }, number) => {
    views[number].form = name;
    views[number].begin(asked);
    views[number].finish(outcome);
  });
  byId("main").scrollIntoView({ block: "start" });
}

// Models, key, theme

async function connect() {
  clearTimeout(connect.next);
  const again = () => {
    clearTimeout(connect.next);
    connect.next = setTimeout(connect, POLL_MILLISECONDS);
  };
  try {
    const found = await api.models();
    if (!limits) limits = await api.limits().catch(() => null);
    byId("address-form").hidden = !limits?.fetches_images;
    for (const view of views) view.invite(Boolean(limits?.reads_videos));
    showModels(found);
    setStatus("ready", "ready");
    if (limits && waitingVideo) setVideo(waitingVideo);
    return true;
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      setStatus("key", "requires a key");
      askForKey(null);
    } else if (error.status === 503) {
      setStatus("loading", "loading the model");
      again();
    } else {
      setStatus("unreachable", "cannot be reached");
      again();
    }
    return false;
  }
}

function setStatus(state, words) {
  if (byId("status").dataset.state === state) return;
  byId("status").dataset.state = state;
  byId("status").textContent = words;
}

function showModels(found) {
  const same = found.map((model) => model.id).join("\0") === models.map((model) => model.id).join("\0");
  models = found;
  if (!same) {
    const options = () => found.map(({ id }) => element("option", { value: id }, id));
    byId("model").replaceChildren(...options());
    byId("beside").replaceChildren(element("option", { value: "" }, "no other"), ...options());
  }
  for (const part of document.querySelectorAll(".beside-part")) part.hidden = found.length < 2;
  showFacts();
  showLanguages();
}

function isBeside() {
  return byId("beside").value !== "";
}

function showBeside() {
  const beside = isBeside();
  document.body.classList.toggle("beside", beside);
  byId("stage-1").hidden = byId("answer-1").hidden = !beside;
  views[0].nameModel(beside ? byId("model").value : "");
  views[1].nameModel(beside ? byId("beside").value : "");
  if (!beside) forget(views[1]);
  showFacts();
  showLanguages();
}

/** Name, size and license of each model that answers. */
function showFacts() {
  const place = byId("facts");
  place.replaceChildren();
  for (const id of new Set([byId("model").value, byId("beside").value])) {
    const model = models.find((other) => other.id === id);
    if (!model) continue;
    const license = typeof model.license === "string" ? model.license : "not stated";
    const words = [model.parent ? `${model.id}, an adapter of ${model.parent}` : model.id];
    if (model.parameters) words.push(`${(model.parameters / 1e6).toFixed(1)} M parameters`);
    if (model.resolution) words.push(`sees ${model.resolution} × ${model.resolution} pixels`);
    place.append(element("span", { class: "fact" }, `${words.join(" · ")} · license: `, link(license, model.license_url)));
    if (typeof model.note === "string") place.append(element("span", { class: "fact" }, model.note));
  }
}

/** A link, if the address is one of the web; else the words alone. */
function link(words, address) {
  if (typeof address !== "string" || !address.startsWith("https://")) return words;
  return element("a", { href: address, rel: "noreferrer noopener", target: "_blank" }, words);
}

function askForKey(then) {
  afterKey = then;
  byId("key-button").hidden = false;
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

async function takeKey(event) {
  event.preventDefault();
  api.useKey(byId("key").value.trim());
  const then = afterKey;
  let accepted = false;
  try {
    await api.models();
    accepted = true;
  } catch (error) {
    accepted = error.status !== 401 && error.status !== 403;
  }
  if (!accepted) {
    byId("key-problem").textContent = "The server does not accept this key.";
    byId("key").select();
    return;
  }
  byId("key-problem").textContent = "";
  byId("key").value = "";
  byId("key-dialog").close();
  connect();
  then?.();
}

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme-name").textContent = name;
}

function nextTheme() {
  const name = THEMES[(THEMES.indexOf(byId("theme-name").textContent) + 1) % THEMES.length];
  setTheme(name);
  try {
    localStorage.setItem("theme", name);
  } catch {
    // A browser that keeps nothing shows the theme until the page is closed.
  }
}

function storedTheme() {
  try {
    const name = localStorage.getItem("theme");
    return THEMES.includes(name) ? name : "auto";
  } catch {
    return "auto";
  }
}

buildControls();
setTheme(storedTheme());
const chosenOpened = listen(setImage, sayFileProblem, setVideo);
byId("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("controls").addEventListener("focusin", () => {
  for (const view of views) view.stage.classList.remove("sticks"); // it would cover the fields
});
byId("stop").addEventListener("click", () => {
  stop();
  byId("run").focus();
});
byId("model").addEventListener("change", showBeside);
byId("beside").addEventListener("change", showBeside);
byId("theme").addEventListener("click", nextTheme);
byId("key-button").addEventListener("click", () => askForKey(null));
byId("key-form").addEventListener("submit", takeKey);
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) film.isShown ? film.run() : run();
  if (event.key === "Escape" && !byId("key-dialog").open) stop();
});
history.restore();
addEventListener("pagehide", stop); // whoever leaves wants no more of the answer
connect();
