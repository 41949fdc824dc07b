// Gets images by drop, paste, file, camera, address or sample.

import { imageAt } from "./api.js";
import { DOCUMENT_TYPES, openDocument } from "./documents.js";
import { byId, element } from "./dom.js";
import { Colors } from "./overlay.js";
import { SAMPLES } from "./samples.js";
import { fileProblem, isVideo } from "./words.js";

const SMALLER_SIDE = 1600;

/** {blob, name, url, width, height, about, colors} of a file; throws an Error with a message for people. */
export async function openImage(blob, name, about = name) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(`“${name}” is broken, or is not an image of the type that its name says.`);
  }
  const { naturalWidth: width, naturalHeight: height } = image;
  return { blob, name, url, about, width, height, colors: new Colors() };
}

/** The file's name in an address. */
function nameIn(address) {
  const last = new URL(address).pathname.split("/").pop();
  return last || "image";
}

/** A smaller copy: JPEG, no side longer than 1600 pixels. */
export async function smaller(image) {
  const original = new Image();
  original.src = image.url;
  await original.decode();
  const scale = Math.min(1, SMALLER_SIDE / Math.max(image.width, image.height));
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency; the server uses white as well
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(original, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
  if (!blob) throw new Error("The browser could not scale the image down.");
  const name = `${image.name.replace(/\.[^.]*$/, "")}-small.jpg`;
  return openImage(blob, name, image.about);
}

/**
 * Connects all ways to choose an image.
 *
 * `onImage(image, sample | null)` gets each image, or the first page of a document;
 * `onProblem(text, error, file)` each error, with the file if it is a document; `onVideo(file)` each
 * video. Returns `opened()`: waits until what was chosen last is open, and says whether it could be.
 */
export function listen(onImage, onProblem, onVideo) {
  let latest = 0;
  let opening = null; // what was chosen last, until it is open
  const open = async (load, sample, file) => {
    const turn = (latest += 1);
    try {
      const image = await load();
      if (turn === latest) onImage(image, sample);
      return turn === latest;
    } catch (error) {
      if (turn === latest) onProblem(error.message || "The server cannot be reached.", error, file);
      return false;
    }
  };
  const take = (load, sample = null, file = null) => {
    const mine = open(load, sample, file).finally(() => {
      if (opening === mine) opening = null;
    });
    opening = mine;
  };
  const opened = async () => {
    let could = true;
    while (opening) could = await opening;
    return could;
  };
  const takeFile = (file) => {
    if (isVideo(file)) {
      latest += 1;
      onVideo(file);
      return;
    }
    const problem = fileProblem(file);
    if (problem) {
      latest += 1;
      onProblem(problem);
    } else if (DOCUMENT_TYPES.has(file.type)) {
      onProblem("The server reads the document …");
      take(() => openDocument(file, file.name || "pasted.pdf"), null, file);
    } else take(() => openImage(file, file.name || "pasted.png"));
  };

  for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
    const takeChosen = () => {
      const [file] = byId(input).files;
      byId(input).value = ""; // the same file again is a choice again
      if (file) takeFile(file);
    };
    byId(input).addEventListener("change", takeChosen);
    takeChosen(); // what was chosen before this code was loaded
  }

  byId("address-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const address = byId("address").value.trim();
    if (address) take(async () => openImage(await imageAt(address), nameIn(address)));
  });

  document.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return; // text, for the field that has the focus
    event.preventDefault();
    takeFile(file);
  });

  let inside = 0;
  const mark = () => document.body.classList.toggle("dropping", inside > 0);
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!holdsFile(event)) return;
    inside += 1;
    mark();
  });
  addEventListener("dragleave", (event) => {
    if (!holdsFile(event)) return;
    inside = Math.max(0, inside - 1);
    mark();
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault(); // else the browser leaves the page and opens the file
    inside = 0;
    mark();
    const file = event.dataTransfer?.files[0];
    if (file) takeFile(file);
    else onProblem("This is not a file. Save the image first, then drop the file here.");
  });

  for (const sample of SAMPLES) {
    const address = `page/samples/${sample.file}`;
    const pick = () =>
      take(async () => {
        const response = await fetch(address).catch(() => null);
        if (!response?.ok) throw new Error("The server cannot be reached to load the sample.");
        return openImage(await response.blob(), sample.file, sample.about);
      }, sample);
    const image = element("img", { src: address, alt: sample.about, width: 72, height: 72 });
    byId("samples").append(element("li", {}, element("button", { type: "button", onclick: pick }, image)));
  }
  return opened;
}
