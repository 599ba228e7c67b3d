// The server: its API, the key that it may ask for, and whether it can be reached.

const KEY = "fourfold.key";

/** What the server refuses, in its own words.  status: of HTTP, 0 in the middle of a stream. */
export class Refused extends Error {
  constructor(message, status, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Nobody answers, or the answer broke off. */
export class Unreachable extends Error {}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The response of a path, a POST if there is a body. */
export async function request(path, { body, signal } = {}) {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

/** The chunks of an answer, as they come. */
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", { body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message, 0);
    yield chunk;
  }
  throw new Unreachable("The server broke off in the middle of the answer.");
}

/** Whether it is there; this needs no key. */
export async function reachable() {
  try {
    return (await fetch("/health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** The data of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data: "));
        if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server broke off in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function refusal(response) {
  const document = await response.json().catch(() => ({}));
  const message = document.error?.message ?? `The server answers with status ${response.status}.`;
  return new Refused(message, response.status, Number(response.headers.get("retry-after")));
}
