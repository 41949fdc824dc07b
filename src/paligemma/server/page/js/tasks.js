// The tasks: route, fields of the request, and their texts on the page.

/** The phrases of "cat, dog". With a semicolon anywhere, commas belong to the phrases. */
export function phrasesOf(text) {
  const named = text.replace(/^\s*(detect|segment)\s+(?=\S)/i, "");
  const separators = named.includes(";") ? /[;\n]/ : /[,،、，；؛\n]/;
  return named.split(separators).map((phrase) => phrase.trim()).filter(Boolean);
}

/** The phrases as a person would type them. */
function listOf(phrases) {
  return phrases.join(phrases.some((phrase) => phrase.includes(",")) ? " ; " : ", ");
}

/**
 * Whether an answer leaves out phrases or gives objects other names, so that the server should ask
 * again one by one: as the package does (`tasks/second_look.py`), but which a stream does not.
 */
export function isDoubtful(phrases, objects) {
  const plain = (text) => text.trim().toLowerCase();
  const [only] = phrases;
  if (phrases.length === 1 && !/^(a|an|the)\s|[s.!?]$/.test(only) && only === plain(only)) {
    return false; // there is no plainer word to try
  }
  const isNamed = ({ label_score: score }) => typeof score !== "number" || (score >= 0.1 && score < 1);
  const labels = new Set(objects.map(({ label }) => plain(label)));
  return !objects.every(isNamed) || phrases.some((phrase) => !labels.has(plain(phrase)));
}

/**
 * {route, fields} of what the form asks.
 *
 * A prompt for objects is one in every field, since its answer is boxes.
 */
export function questionOf(task, form) {
  const typed = { ask: form.question, generate: form.prompt }[task.route] ?? "";
  const [, word] = typed.match(/^\s*(detect|segment)\s+\S/i) ?? [];
  const phrases = word ? phrasesOf(typed) : [];
  const asked = phrases.length
    ? { route: word.toLowerCase(), fields: { phrases } }
    : { route: task.route, fields: task.fields(form) };
  const options = OPTIONS[asked.route] ?? ["length"];
  for (const option of options) {
    if (form[option] !== "") asked.fields[OPTION_FIELDS[option]] = Number(form[option]);
  }
  return asked;
}

const OPTIONS = { generate: ["length", "temperature", "seed"], extract: [] };
const OPTION_FIELDS = { length: "max_new_tokens", temperature: "temperature", seed: "seed" };

export const TASKS = [
  {
    route: "caption",
    name: "Caption",
    hint: "A short description in the language you choose.",
    run: "Caption it",
    fields: (form) => ({ language: form.language || "en" }),
    title: (fields) => `Caption in ${languageName(fields.language)}`,
  },
  {
    route: "ask",
    name: "Ask",
    hint: "An answer to a question about the image.",
    run: "Ask",
    needs: ["question", "Write a question first."],
    fields: (form) => ({ question: form.question.trim(), language: form.language }),
    title: (fields) => fields.question,
  },
  {
    route: "ocr",
    name: "Read text",
    hint: "The text in the image.",
    run: "Read the text",
    fields: () => ({}),
    title: () => "Read text",
  },
  {
    route: "detect",
    name: "Detect",
    hint: "A box around each object you name.",
    run: "Find them",
    needs: ["phrases", "Name at least one object first."],
    fields: (form) => ({ phrases: phrasesOf(form.phrases) }),
    title: (fields) => `Detect ${listOf(fields.phrases)}`,
  },
  {
    route: "segment",
    name: "Segment",
    hint: "A box and a mask for each object you name.",
    run: "Segment them",
    needs: ["phrases", "Name at least one object first."],
    fields: (form) => ({ phrases: phrasesOf(form.phrases) }),
    title: (fields) => `Segment ${listOf(fields.phrases)}`,
  },
  {
    route: "generate",
    name: "Prompt",
    hint: "Any prompt, as the model was trained to read it. “detect cat” draws boxes.",
    run: "Send",
    needs: ["prompt", "Write a prompt first."],
    fields: (form) => ({ prompt: form.prompt }),
    title: (fields) => fields.prompt,
  },
  {
    route: "read",
    name: "Pages",
    hint: "The text of a document in reading order, line by line.",
    run: "Read it",
    fields: (form) => ({
      ...(form.pages.trim() && { pages: form.pages.trim() }),
      ...(form.source !== "model" && { source: form.source }),
    }),
    title: (fields) => `Read ${pagesNamed(fields)}`,
  },
  {
    route: "extract",
    name: "Fields",
    hint: "The values of a schema, each with a score and its place.",
    run: "Extract",
    needs: ["schema", "Write a JSON schema first."],
    fields: (form) => ({
      schema: form.schema === OWN_SCHEMA ? JSON.parse(form["own-schema"]) : form.schema,
      language: form.language,
      ...(form.pages.trim() && { pages: form.pages.trim() }),
      ...(form["date-order"] !== "auto" && { date_order: form["date-order"] }),
      ...(form.check !== "once" && { check: form.check }),
      ...(namesOf(form.names).length && { names: namesOf(form.names) }),
    }),
    title: ({ schema, ...fields }) =>
      `Extract ${typeof schema === "string" ? schema : schemaName(schema)} from ${pagesNamed(fields)}`,
  },
  {
    route: "table",
    name: "Table",
    hint: "The table in the image or on the page shown.",
    run: "Read the table",
    fields: (form) => (form.page > 1 ? { page: form.page } : {}),
    title: ({ page }) => (page ? `Table on page ${page}` : "Table"),
  },
  {
    route: "chart",
    name: "Chart",
    hint: "The values in the chart of the image or of the page shown.",
    run: "Read the chart",
    fields: (form) => (form.page > 1 ? { page: form.page } : {}),
    title: ({ page }) => (page ? `Chart on page ${page}` : "Chart"),
  },
];

/** The choice of a schema that is typed in. */
export const OWN_SCHEMA = "own";

/** The schemas that every server has, with their names for people. */
export const SCHEMAS = [
  ["invoice", "Invoice"],
  ["receipt", "Receipt"],
  ["prescription", "Prescription"],
  ["id-card", "ID card"],
  ["form", "Form"],
];

function schemaName(schema) {
  return typeof schema.title === "string" && schema.title ? schema.title : "own fields";
}

function pagesNamed({ pages }) {
  return pages ? `pages ${pages}` : "all pages";
}

/** One name per line. */
function namesOf(text) {
  return text.split("\n").map((name) => name.trim()).filter(Boolean);
}

/** Why a text is no JSON schema, or null. */
export function schemaProblem(text) {
  try {
    const schema = JSON.parse(text);
    if (schema !== null && typeof schema === "object" && !Array.isArray(schema)) return null;
    return "A JSON schema is an object: {…}.";
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
}

export function taskOf(route) {
  return TASKS.find((task) => task.route === route);
}

// The 35 languages of COCO-35L, which PaliGemma was trained to caption in.
export const LANGUAGES = (
  "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te " +
  "th tr uk vi zh"
).split(" ");

const NAMES = new Intl.DisplayNames(["en"], { type: "language" });

export function languageName(code) {
  return NAMES.of(code);
}
