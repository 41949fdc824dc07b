// Decodes masks from COCO's compressed run-length encoding.
// The format is that of pycocotools (maskApi.h): alternating runs of zeros and ones down the
// columns. Each count is in groups of five bits, from the third one on as the difference from the
// count before the last.

/** The run lengths as numbers. */
export function runLengths(counts) {
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(place) - 48;
      value |= (code & 0x1f) << shift;
      shift += 5;
      place += 1;
    } while (code & 0x20 && place < counts.length);
    if (code & 0x10 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** How many pixels a mask {size, counts} covers. */
export function area(mask) {
  return runLengths(mask.counts).reduce((sum, run, index) => sum + (index % 2 ? run : 0), 0);
}

/**
 * The mask made smaller, {width, height, pixels: Uint8Array of 0 and 1, row by row}.
 *
 * Every `step`-th pixel of both directions, such that no side is longer than `longest`.
 */
export function decode(mask, longest = 1024) {
  const [height, width] = mask.size;
  const step = Math.max(1, Math.ceil(Math.max(width, height) / longest));
  const small = { width: Math.ceil(width / step), height: Math.ceil(height / step) };
  const pixels = new Uint8Array(small.width * small.height);
  let start = 0;
  runLengths(mask.counts).forEach((run, index) => {
    const end = Math.min(start + run, width * height);
    if (index % 2) {
      for (let x = Math.floor(start / height); x * height < end; x += 1) {
        if (x % step) continue;
        const top = Math.max(start - x * height, 0);
        const bottom = Math.min(end - x * height, height);
        for (let y = Math.ceil(top / step) * step; y < bottom; y += step) {
          pixels[(y / step) * small.width + x / step] = 1;
        }
      }
    }
    start = end;
  });
  return { ...small, pixels };
}
