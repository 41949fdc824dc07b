// Explains errors and limits in words that a person can act on.

const READABLE = "PDF, TIFF, JPEG, PNG, WebP, GIF or BMP";
const TYPES = new Set([
  "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/pdf", "image/tiff",
]);

/** "2.4 MB" */
export function bytes(count) {
  if (count < 1000) return `${count} bytes`;
  if (count < 1e6) return `${Math.round(count / 1000)} kB`;
  return `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
}

/**
 * {title, detail, remedy}: `remedy` is "retry", "key", "shrink" or null.
 *
 * `image` is the image that was sent, `limits` the server's limits or null.
 */
export function explain(error, image, limits) {
  const said = error.message ? [error.message] : [];
  const detail = (...sentences) => [...sentences, ...said].join(" ");
  const size = image ? bytes(image.blob.size) : "";
  if (error.kind === "stopped") {
    return { title: "Stopped.", detail: "The answer so far is kept.", remedy: "retry" };
  }
  if (error.kind === "late") {
    return {
      title: "No answer came.",
      detail: `The server sent nothing for ${error.message} seconds. It may be busy, or hang.`,
      remedy: "retry",
    };
  }
  if (error.kind === "unreachable") {
    const large = image && image.blob.size > 8e6;
    return {
      title: "The server cannot be reached.",
      detail: large
        ? `It may have stopped, or closed the connection because the image (${size}) is too large.`
        : "It may have been stopped, or the connection is down. Is it still running?",
      remedy: large ? "shrink" : "retry",
    };
  }
  if (error.kind === "cut") {
    return {
      title: "The connection was lost during the answer.",
      detail: "The answer is incomplete.",
      remedy: "retry",
    };
  }
  switch (error.status) {
    case 400:
    case 422:
      return { title: "The request is invalid.", detail: detail(), remedy: null };
    case 401:
    case 403:
      return { title: "The server requires a key.", detail: detail(), remedy: "key" };
    case 404:
      return { title: "Unknown model or task.", detail: detail(), remedy: "retry" };
    case 413: {
      const most = limits?.max_image_bytes ?? limits?.max_body_bytes;
      const takes = most ? ` The limit is ${bytes(most)}.` : "";
      return {
        title: "The image is too large for this server.",
        detail: detail(`It has ${size}.${takes}`),
        remedy: "shrink",
      };
    }
    case 429:
      return { title: "The server is busy.", detail: detail(wait(error)), remedy: "retry" };
    case 503:
      return { title: "The server is not ready.", detail: detail(wait(error)), remedy: "retry" };
    case 504:
      return { title: "The request timed out.", detail: detail(), remedy: "retry" };
    default:
      return {
        title: error.status ? `The server failed (${error.status}).` : "The answer was interrupted.",
        detail: detail(),
        remedy: "retry",
      };
  }
}

function wait(error) {
  if (error.retryAfter === null) return "Try again in a moment.";
  return `Wait ${error.retryAfter === 1 ? "a second" : `${error.retryAfter} seconds`}.`;
}

/** Whether a file is a video; browsers know no type for some. */
export function isVideo(file) {
  return file.type.startsWith("video/") || /\.(mkv|avi|m4v)$/i.test(file.name);
}

/** Why a file cannot be used, or null. */
export function fileProblem(file) {
  if (TYPES.has(file.type)) return null;
  const kind = file.type.startsWith("image/") ? "this kind of image" : "this file";
  return `“${file.name}”: ${kind} cannot be read. Use ${READABLE}.`;
}

/** Why an image exceeds the server's limits, or null. */
export function sizeProblem(image, limits) {
  const { max_image_bytes: most, max_pixels: pixels, max_side: side } = limits ?? {};
  const { width, height, blob } = image;
  if (most && blob.size > most) {
    return `The image has ${bytes(blob.size)}; the limit is ${bytes(most)}.`;
  }
  if ((pixels && width * height > pixels) || (side && Math.max(width, height) > side)) {
    return `The image has ${width} × ${height} pixels, more than this server accepts.`;
  }
  return null;
}
