// Talks to the API: JSON by GET, and the pool's events as a stream that is resumed by id. Keeps the bearer token in
// this tab's session storage and puts it into one header; it never stands in an address.

const KEY = "portlease-token";

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

export async function read(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  const answer = await fetch(`${path}${query.size ? `?${query}` : ""}`, { headers: headers(), cache: "no-store" });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// Calls onEvent(type, data, id) for each event and onState("live" | "away" | "connecting") until the signal aborts.
// `after` is the id of an event to begin behind, or null for what happens from now on.
export async function follow(pool, after, onEvent, onState, signal) {
  let last = after;
  let pause = 500;
  while (!signal.aborted) {
    try {
      const more = last ? { "Last-Event-ID": last } : {};
      const query = new URLSearchParams({ pool });
      const answer = await fetch(`v1/events?${query}`, { headers: headers(more), cache: "no-store", signal });
      if (!answer.ok) throw await refusal(answer);
      onState("live");
      pause = 500;
      for await (const event of frames(answer.body)) {
        if (event.id) last = event.id;
        if (event.type === "away") onState("away");
        else if (event.type === "back") onState("live");
        onEvent(event.type, event.data, event.id);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status === 401) throw error;
    }
    if (signal.aborted) return;
    onState("connecting");
    await new Promise((resume) => setTimeout(resume, pause));
    pause = Math.min(pause * 2, 15_000);
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
