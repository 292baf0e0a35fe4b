// The pool's events as an async iterator. A connection that breaks is made again from the last event that was seen;
// what Redis no longer has is an event `gap`, as the API sends it.
"use strict";

const { setTimeout: pause } = require("node:timers/promises");

const { backoffMs } = require("./transport.cjs");

const PASSING = new Set(["unreachable", "timeout", "store-unavailable", "too-many-requests"]);

async function* eventsOf(transport, { pool, lastEventId, signal, logger }) {
  let last = lastEventId;
  for (let failures = 0; ; failures += 1) {
    try {
      const response = await transport.stream("/v1/events", {
        query: { pool },
        headers: last ? { "last-event-id": last } : {},
        signal,
      });
      try {
        for await (const event of messages(response)) {
          failures = 0;
          if (event.id) last = event.id;
          yield event;
        }
      } finally {
        response.destroy();
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (error.type !== undefined && !PASSING.has(error.type)) throw error;
      logger?.warn?.(`the event stream broke (${error.message}); connecting again`);
    }
    if (signal?.aborted) return;
    await pause(backoffMs(failures), undefined, { signal }).catch(() => {});
  }
}

/** Splits a stream into server-sent events. Source: the HTML standard, "Server-sent events", "Parsing an event stream". */
async function* messages(response) {
  response.setEncoding("utf8");
  let rest = "";
  let event = {};
  for await (const part of response) {
    const lines = (rest + part).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data !== undefined) yield { id: event.id ?? null, type: event.event ?? "message", data: json(event.data) };
        event = {};
      } else if (!line.startsWith(":")) {
        const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
        event[name] = name === "data" && event.data !== undefined ? `${event.data}\n${value}` : value;
      }
    }
  }
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

module.exports = { eventsOf };
