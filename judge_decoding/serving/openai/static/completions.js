// Talks to the OpenAI-compatible endpoint: the model's limits, and one streamed chat completion.

/** An error that the server reported, or that kept it from answering. The message is a sentence. */
export class ServerError extends Error {
  constructor(message, status = 0, param = null) {
    super(/[.!?]$/.test(message) ? message : `${message}.`);
    this.status = status;
    this.param = param;
  }
}

/** The first model of GET /v1/models, with its `judge_decoding` object. */
export async function model(key) {
  const response = await call("v1/models", { headers: headers(key) });
  const listed = await response.json();
  if (!listed.data?.length) throw new ServerError("The server lists no model");
  return listed.data[0];
}

let refused = false; // the server has said that it returns no log-probabilities

/**
 * Streams one completion: yields each chunk's parsed JSON. A server that has no log-probabilities
 * refuses the field by name; the request is then sent once more without it, as all later ones are.
 */
export async function* stream(body, key, signal) {
  const { logprobs, top_logprobs, ...rest } = body;
  let response;
  try {
    response = await post(refused ? rest : body, key, signal);
  } catch (error) {
    if (error.param !== "logprobs" || error.status !== 400) throw error;
    refused = true;
    response = await post(rest, key, signal);
  }
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message ?? "The server failed", 500, chunk.error.param);
    yield chunk;
  }
  throw new ServerError("The server closed the stream before the answer ended");
}

function post(body, key, signal) {
  return call("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer; check that it is still running");
  }
  if (response.ok) return response;
  const text = await response.text();
  let reported;
  try {
    reported = JSON.parse(text).error;
  } catch {
    reported = null; // a proxy's page, for one
  }
  throw new ServerError(
    reported?.message ?? `The server answered with status ${response.status}`,
    response.status,
    reported?.param,
  );
}

/** The data of each server-sent event. Bytes may be cut anywhere, within a character too. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The connection to the server broke while the answer was streaming");
    }
    if (part.done) return;
    const lines = (rest + part.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
