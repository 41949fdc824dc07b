// Reads answers aloud with the voices of this machine. Voices that send the text elsewhere are
// never used, and nothing is spoken unless a person presses the button.

import { element } from "./dom.js";

/** A voice of this machine for a language, such as "de"; any of them for "". Null without one. */
export function localVoice(language, synthesis = window.speechSynthesis) {
  const local = synthesis?.getVoices().filter((voice) => voice.localService) ?? [];
  const code = (tag) => tag.replace("_", "-").split("-")[0].toLowerCase();
  const fitting = language ? local.filter((voice) => code(voice.lang) === code(language)) : local;
  return fitting.find((voice) => voice.default) ?? fitting[0] ?? null;
}

/** A button that reads a text and stops; hidden as long as there is no voice for it. */
export function speechButton(text, language) {
  const button = element("button", { type: "button", class: "quiet speak", hidden: true }, "Read aloud");
  const synthesis = window.speechSynthesis;
  if (!synthesis) return button;
  const showIfPossible = () => { button.hidden = localVoice(language) === null; };
  showIfPossible();
  // Browsers find their voices some time after the page has loaded.
  if (button.hidden) synthesis.addEventListener("voiceschanged", showIfPossible, { once: true });
  let spoken = null;
  const end = (utterance) => {
    if (spoken !== utterance) return;
    spoken = null;
    button.textContent = "Read aloud";
  };
  button.addEventListener("click", () => {
    const was = spoken;
    stopSpeech();
    if (was) return end(was);
    const voice = localVoice(language);
    if (!voice) return;
    const utterance = new SpeechSynthesisUtterance(text);
    utterance.voice = voice;
    utterance.lang = voice.lang;
    utterance.addEventListener("end", () => end(utterance));
    utterance.addEventListener("error", () => end(utterance));
    spoken = utterance;
    button.textContent = "Stop reading";
    synthesis.speak(utterance);
  });
  return button;
}

export function stopSpeech() {
  window.speechSynthesis?.cancel();
}
