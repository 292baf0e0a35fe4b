// Talks to the API: JSON by GET, and the pool's events as a stream that is resumed by id. Keeps the bearer token in
// this tab's session storage and puts it into one header; it never stands in an address.

const KEY = "portlease-token";
const MOST_PAUSE_MS = 5_000;

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token);
}

function headers(more = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function refusal(answer) {
  let detail = `${answer.status} ${answer.statusText}`;
  try {
    detail = (await answer.json()).detail || detail;
  } catch { /* no JSON: the status has to do */ }
  return new Problem(answer.status, detail);
}

// `onHeaders` is called with the answer's headers.
export async function read(path, parameters = {}, onHeaders = () => {}) {
  const query = new URLSearchParams(parameters);
  const answer = await fetch(`${path}${query.size ? `?${query}` : ""}`, { headers: headers(), cache: "no-store" });
  if (!answer.ok) throw await refusal(answer);
  onHeaders(answer.headers);
  return answer.json();
}

// Follows a stream, and comes back to it when it ends: calls onEvent(type, data, id) for each event, and
// onState("live") when it begins, onState("connecting", error) when it ended or an attempt failed, until the signal
// aborts. `after` is the id of an event to begin behind, or null for what happens from now on.
export async function follow(path, parameters, after, onEvent, onState, signal) {
  let last = after;
  let pause = 500;
  while (!signal.aborted) {
    let wrong = null;
    try {
      const more = last ? { "Last-Event-ID": last } : {};
      const query = new URLSearchParams(parameters);
      const answer = await fetch(`${path}?${query}`, { headers: headers(more), cache: "no-store", signal });
      if (!answer.ok) throw await refusal(answer);
      onState("live");
      pause = 500;
      for await (const event of frames(answer.body)) {
        if (signal.aborted) return;
        if (event.id) last = event.id;
        try {
          onEvent(event.type, event.data, event.id);
        } catch (error) { // a mistake in the page is not the server's
          reportError(error);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && [401, 403].includes(error.status)) throw error;
      wrong = error;
    }
    if (signal.aborted) return;
    onState("connecting", wrong);
    await new Promise((resume) => setTimeout(resume, pause));
    pause = Math.min(pause * 2, MOST_PAUSE_MS);
  }
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = { type: "message", data: {}, id: null };
      for (const line of part.split("\n")) {
        const at = line.indexOf(": ");
        const name = line.slice(0, at);
        const text = line.slice(at + 2);
        if (name === "id") event.id = text;
        else if (name === "event") event.type = text;
        else if (name === "data") event.data = JSON.parse(text);
      }
      if (part.includes("event: ")) yield event;
    }
  }
}
