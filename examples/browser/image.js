// Pixels as the model was trained on them: Pillow's bicubic filter, which averages all pixels that
// become one. A canvas and transformers.js resize otherwise, and answers would differ. Pillow 13
// resizes some tall images first down and then across, which differs by a few of 255 levels.

const PRECISION = 2 ** 22; // Pillow computes with whole numbers

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** For each new pixel: the first old one, and the weights of those it is made of. */
function weightsOf(oldSize, newSize) {
  const scale = oldSize / newSize;
  const width = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * width + 0.5));
    const end = Math.min(oldSize, Math.trunc(center + 2 * width + 0.5));
    const weights = Array.from({ length: end - first }, (_, j) =>
      bicubic((j + first - center + 0.5) / width),
    );
    const sum = weights.reduce((a, b) => a + b, 0);
    const whole = (w) => Math.trunc((w / sum) * PRECISION + (w / sum < 0 ? -0.5 : 0.5));
    return { first, weights: weights.map(whole) };
  });
}

/** Resize along one axis. `step` and `stride` are distances in the RGB array. */
function resizeAxis(source, target, lines, axis) {
  for (let line = 0; line < lines.count; line++) {
    axis.weights.forEach(({ first, weights }, i) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = PRECISION / 2;
        let at = line * lines.oldStep + first * axis.oldStep + channel;
        for (const weight of weights) {
          sum += source[at] * weight;
          at += axis.oldStep;
        }
        const value = Math.min(255, Math.max(0, Math.floor(sum / PRECISION)));
        target[line * lines.newStep + i * axis.newStep + channel] = value;
      }
    });
  }
  return target;
}

/** RGB bytes of any size -> RGB bytes of side x side. */
export function resize(rgb, width, height, side) {
  const wide = resizeAxis(
    rgb,
    new Uint8Array(side * height * 3),
    { count: height, oldStep: width * 3, newStep: side * 3 },
    { weights: weightsOf(width, side), oldStep: 3, newStep: 3 },
  );
  return resizeAxis(
    wide,
    new Uint8Array(side * side * 3),
    { count: side, oldStep: 3, newStep: 3 },
    { weights: weightsOf(height, side), oldStep: side * 3, newStep: side * 3 },
  );
}

/** An ImageBitmap -> float32 [3, side, side] in [-1, 1]. Transparency becomes white. */
export function pixelValues(bitmap, side) {
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) rgb.set(data.subarray(4 * i, 4 * i + 3), 3 * i);
  const small = resize(rgb, width, height, side);
  const values = new Float32Array(3 * side * side);
  for (let i = 0; i < side * side; i++) {
    for (let channel = 0; channel < 3; channel++) {
      values[channel * side * side + i] = small[3 * i + channel] / 127.5 - 1;
    }
  }
  return values;
}
