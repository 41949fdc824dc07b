// Requests to the server: its models, its limits, the pages of a document, and one streamed answer.

import { events } from "./sse.js";

/** Why there is no complete answer: an HTTP status, or kind "unreachable", "cut", "late" or "stopped". */
export class AnswerError extends Error {
  constructor(kind, message = "", { status = 0, retryAfter = null, id = "" } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.retryAfter = retryAfter; // seconds that the server asks to wait, or null
    this.id = id; // by which the server's log names the request
  }
}

let key = "";

/** The key that goes with every further request; "" for none. Kept here and nowhere else. */
export function useKey(text) {
  key = text;
}

export function hasKey() {
  return key !== "";
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw new AnswerError("stopped");
    throw new AnswerError("unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = "";
  try {
    const body = await response.json();
    message = typeof body?.error?.message === "string" ? body.error.message : "";
  } catch {
    // A proxy's page or nothing at all: the status says enough.
  }
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new AnswerError("refused", message, {
    status: response.status,
    retryAfter: Number.isFinite(seconds) ? Math.max(0, seconds) : null,
    id: response.headers.get("x-request-id") ?? "",
  });
}

/** The models as the server lists them: [{id, ...}], the base model first. */
export async function models() {
  const body = await (await request("v1/models")).json();
  const data = Array.isArray(body?.data) ? body.data : [];
  return data.filter((model) => typeof model?.id === "string");
}

export async function limits() {
  return (await request("v1/limits")).json();
}

/** The file at an address, as a blob. The server fetches it, from the domains that it allows. */
export async function imageAt(address) {
  const headers = { "Content-Type": "application/json" };
  const response = await request("v1/image", { method: "POST", headers, body: JSON.stringify({ url: address }) });
  return response.blob();
}

/**
 * One answer, streamed.
 *
 * `route` is "caption", "ask", ...; `image` a {blob, name}, for a document its file with a password
 * where it has one; `fields` the rest of the request. `on.token(text)`, `on.object(object)`,
 * `on.page(page)`, `on.segment(segment)` and `on.progress(answers)` are called as they arrive,
 * `on.sign()` at any sign of life.
 * Returns {result, usage, model}; throws AnswerError.
 */
export async function answer(route, image, fields, on, signal) {
  const response = await post(route, image, { ...fields, stream: true }, signal);
  on.sign();
  const id = response.headers.get("x-request-id") ?? "";
  let whole = null;
  try {
    for await (const { event, data } of events(response.body, on.sign)) {
      if (data === "[DONE]") {
        if (whole) return whole;
        break;
      }
      const body = JSON.parse(data);
      if (event === "token") on.token(String(body.text ?? ""));
      else if (event === "object") on.object(body);
      else if (event === "page") on.page(body);
      else if (event === "segment") on.segment(body);
      else if (event === "progress") on.progress(body.answers);
      else if (event === "result") whole = readWhole(body);
      else if (event === "error") {
        const { message = "", code = "" } = body.error ?? {};
        throw new AnswerError("failed", String(message), { id, status: statusOf(code) });
      }
    }
  } catch (error) {
    if (error instanceof AnswerError) throw error;
    if (signal.aborted) throw new AnswerError("stopped");
    throw new AnswerError("cut", "", { id });
  }
  throw new AnswerError(signal.aborted ? "stopped" : "cut", "", { id });
}

/** The same answer at once, for which the server may ask the model several times. */
export async function wholeAnswer(route, image, fields, signal) {
  const response = await post(route, image, fields, signal);
  try {
    return readWhole(await response.json());
  } catch {
    throw new AnswerError(signal.aborted ? "stopped" : "cut");
  }
}

/** {num_pages, pages} of a document {blob, name}, its pages as data URLs. */
export async function pages(file, fields) {
  return (await post("pages", file, fields, null)).json();
}

const WITH_IMAGE = new Set(["caption", "ask", "ocr", "detect", "segment", "generate"]);

function post(route, file, fields, signal) {
  const form = new FormData();
  const name = WITH_IMAGE.has(route) ? "image" : route === "video" ? "video" : "document";
  const secret = file.password ? { password: file.password } : {};
  form.append("request", JSON.stringify({ ...fields, ...secret }));
  form.append(name, file.blob, file.name);
  return request(`v1/${route}`, { method: "POST", body: form, signal });
}

function readWhole(body) {
  const { result = null, usage = null, model = null, ...rest } = body;
  return { result: result ?? rest, usage, model };
}

/** Codes in the middle of a stream may be numbers of HTTP. */
function statusOf(code) {
  const status = Number(code);
  return Number.isInteger(status) ? status : 0;
}
