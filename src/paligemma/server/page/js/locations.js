// Objects in plain text: what a model writes for a prompt that the server does not parse.

const OBJECT = /((?:<loc\d{4}>){4})\s*(?:<seg\d{3}>\s*)*([^<;]*)/g;
const LAST_BIN = 1023;

/** The boxes in a text, [{label, score: null, box_xyxy, box_normalized_xyxy}]. */
export function objectsIn(text, [width, height]) {
  return [...text.matchAll(OBJECT)].flatMap(([, places, label]) => {
    const [y1, x1, y2, x2] = places.match(/\d{4}/g).map((bin) => Number(bin) / LAST_BIN);
    if (!(x1 < x2 && y1 < y2 && x2 <= 1 && y2 <= 1)) return [];
    return {
      label: label.trim(),
      score: null,
      box_normalized_xyxy: [x1, y1, x2, y2],
      box_xyxy: [x1 * width, y1 * height, x2 * width, y2 * height],
    };
  });
}
