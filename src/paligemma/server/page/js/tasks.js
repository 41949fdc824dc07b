// The tasks: route, fields of the request, and their texts on the page.

/** The phrases of "cat ; dog". */
export function phrasesOf(text) {
  return text.split(";").map((phrase) => phrase.trim()).filter(Boolean);
}

export const TASKS = [
  {
    route: "caption",
    name: "Caption",
    hint: "A short description in the language you choose.",
    run: "Describe it",
    fields: (form) => ({ language: form.language || "en" }),
    title: (fields) => `Caption, ${fields.language}`,
  },
  {
    route: "ask",
    name: "Ask",
    hint: "An answer to a question about the image.",
    run: "Ask",
    needs: ["question", "Write a question first."],
    fields: (form) => ({
      question: form.question.trim(),
      ...(form.language && { language: form.language }),
    }),
    title: (fields) => fields.question,
  },
  {
    route: "ocr",
    name: "Read",
    hint: "The text in the image.",
    run: "Read it",
    fields: () => ({}),
    title: () => "Read",
  },
  {
    route: "detect",
    name: "Detect",
    hint: "A box around each object you name.",
    run: "Find them",
    needs: ["phrases", "Name at least one object first."],
    fields: (form) => ({ phrases: phrasesOf(form.phrases) }),
    title: (fields) => `Detect ${fields.phrases.join(" ; ")}`,
  },
  {
    route: "segment",
    name: "Segment",
    hint: "A box and a mask for each object you name.",
    run: "Cut them out",
    needs: ["phrases", "Name at least one object first."],
    fields: (form) => ({ phrases: phrasesOf(form.phrases) }),
    title: (fields) => `Segment ${fields.phrases.join(" ; ")}`,
  },
  {
    route: "generate",
    name: "Prompt",
    hint: "Any prompt, sent to the model verbatim.",
    run: "Send",
    needs: ["prompt", "Write a prompt first."],
    fields: (form) => ({ prompt: form.prompt }),
    title: (fields) => fields.prompt,
  },
];

export function taskOf(route) {
  return TASKS.find((task) => task.route === route);
}

// The 35 languages of COCO-35L, which PaliGemma was trained to caption in.
export const LANGUAGES = (
  "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te " +
  "th tr uk vi zh"
).split(" ");
