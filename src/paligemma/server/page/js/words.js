// What went wrong, in words a person can act on. Knows errors and limits; shows nothing itself.

const READABLE = "JPEG, PNG, WebP, GIF or BMP";
const TYPES = new Set(["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"]);

/** "2.4 MB" */
export function bytes(count) {
  if (count < 1000) return `${count} bytes`;
  if (count < 1e6) return `${Math.round(count / 1000)} kB`;
  return `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
}

/**
 * {title, detail, remedy}: `remedy` is "retry", "key", "shrink" or null.
 *
 * `picture` is the one that was sent, `limits` what the server said it takes, or null.
 */
export function explain(error, picture, limits) {
  const said = error.message ? [error.message] : [];
  const detail = (...sentences) => [...sentences, ...said].join(" ");
  const size = picture ? bytes(picture.blob.size) : "";
  if (error.kind === "stopped") {
    return { title: "Stopped.", detail: "What had come so far is kept.", remedy: "retry" };
  }
  if (error.kind === "unreachable") {
    const large = picture && picture.blob.size > 8e6;
    return {
      title: "The server cannot be reached.",
      detail: large
        ? `It may have stopped, or hung up because the picture (${size}) is too large for it.`
        : "It may have been stopped, or the connection is down. Is it still running?",
      remedy: large ? "shrink" : "retry",
    };
  }
  if (error.kind === "cut") {
    return {
      title: "The server went away in the middle of the answer.",
      detail: "What is here is not the whole answer.",
      remedy: "retry",
    };
  }
  switch (error.status) {
    case 400:
    case 422:
      return { title: "The server cannot use this request.", detail: detail(), remedy: null };
    case 401:
    case 403:
      return { title: "The server asks for a key.", detail: detail(), remedy: "key" };
    case 404:
      return { title: "The server does not know this model or task.", detail: detail(), remedy: "retry" };
    case 413: {
      const most = limits?.max_image_bytes ?? limits?.max_body_bytes;
      const takes = most ? ` The server takes ${bytes(most)}.` : "";
      return {
        title: "The picture is too large for this server.",
        detail: detail(`It has ${size}.${takes}`),
        remedy: "shrink",
      };
    }
    case 429:
      return { title: "The server is busy.", detail: detail(wait(error)), remedy: "retry" };
    case 503:
      return { title: "The server is not ready.", detail: detail(wait(error)), remedy: "retry" };
    case 504:
      return { title: "This took too long.", detail: detail(), remedy: "retry" };
    default:
      return {
        title: error.status ? `The server failed (${error.status}).` : "The answer broke off.",
        detail: detail(),
        remedy: "retry",
      };
  }
}

function wait(error) {
  if (error.retryAfter === null) return "Try again in a moment.";
  return `It asks to wait ${error.retryAfter === 1 ? "a second" : `${error.retryAfter} seconds`}.`;
}

/** Why a file cannot be used as a picture, in words, or null. */
export function fileProblem(file) {
  if (TYPES.has(file.type)) return null;
  const kind = file.type.startsWith("image/") ? "this kind of picture" : "this file";
  return `“${file.name}”: ${kind} cannot be read. Use ${READABLE}.`;
}

/** Why a picture is more than the server takes, in words, or null. */
export function sizeProblem(picture, limits) {
  const { max_image_bytes: most, max_pixels: pixels, max_side: side } = limits ?? {};
  const { width, height, blob } = picture;
  if (most && blob.size > most) {
    return `The picture has ${bytes(blob.size)}; this server takes ${bytes(most)}.`;
  }
  if ((pixels && width * height > pixels) || (side && Math.max(width, height) > side)) {
    return `The picture has ${width} × ${height} pixels, more than this server takes.`;
  }
  return null;
}
