// Requests to the API: one connection attempt at a time, tried again until the call's deadline.
// It must never put a token into an address, a message or a log, and never send a request twice that may not be: every
// request of this package is safe to repeat, because a claim carries the token that makes it the same claim.
"use strict";

const http = require("node:http");
const https = require("node:https");
const { setTimeout: pause } = require("node:timers/promises");

const { PortleaseError, aborted } = require("./errors.cjs");

const RETRY_FIRST_MS = 50;
const RETRY_LONGEST_MS = 2_000;
const LONGEST_ANSWER = 64 * 1024 * 1024;

/** The pause before attempt number `attempt` (0 is the first retry): full jitter, doubling. */
function backoffMs(attempt, longest = RETRY_LONGEST_MS) {
  return Math.random() * Math.min(longest, RETRY_FIRST_MS * 2 ** attempt);
}

class Transport {
  #credential;

  constructor({ url, socketPath, token, timeoutMs }) {
    try {
      this.url = new URL(url);
    } catch (cause) {
      throw new PortleaseError("invalid-argument", `url: ${JSON.stringify(url)} is not a URL; give http://HOST:PORT`, { cause });
    }
    if (!["http:", "https:"].includes(this.url.protocol)) {
      throw new PortleaseError("invalid-argument", `url: ${this.url.protocol}// is not supported; give http:// or https://`);
    }
    this.socketPath = socketPath;
    this.timeoutMs = timeoutMs;
    this.#credential = token;
  }

  /** The address that errors name: without a user, a password or a query. */
  get address() {
    return this.socketPath ? `the API at socket ${this.socketPath}` : `the API at ${this.url.protocol}//${this.url.host}`;
  }

  /** Sends a request until it is answered; resolves to the answer's JSON. Rejects with a PortleaseError. */
  async ask(method, path, options) { return (await this.exchange(method, path, options)).answer; }

  /** The same; resolves to the answer's JSON as `answer` and its `headers`. */
  async exchange(method, path, { body, token, query, waitMs = 0, signal } = {}) {
    const deadline = performance.now() + this.timeoutMs + waitMs;
    let known; // the last attempt may have no time left: what an earlier one met is the reason
    for (let attempt = 0; ; attempt += 1) {
      let due = backoffMs(attempt);
      try {
        return await this.#once(method, path, { body, token, query, signal, timeout: Math.max(1, deadline - performance.now()) });
      } catch (error) {
        if (error.type === "timeout" && known) throw known;
        known = error;
        const passing = ["unreachable", "timeout"].includes(error.type) || error.status === 503 || error.status === 429;
        if (error.retryAfterMs != null) due = Math.max(due, error.retryAfterMs);
        if (!passing || performance.now() + due >= deadline) throw error;
      }
      await pause(due, undefined, { signal }).catch(() => { throw aborted(signal); });
    }
  }

  /** Opens a stream (`text/event-stream`); resolves to the response, whose body is still to come. */
  stream(path, { query, headers, signal }) {
    return this.#open("GET", path, { query, signal, timeout: this.timeoutMs, accept: "text/event-stream", headers });
  }

  async #once(method, path, options) {
    const response = await this.#open(method, path, { ...options, accept: "application/json" });
    return { answer: parsed(await this.#text(response), this.address), headers: response.headers };
  }

  async #text(response) {
    const parts = [];
    let length = 0;
    try {
      for await (const part of response) {
        parts.push(part);
        length += part.length;
        if (length > LONGEST_ANSWER) throw new PortleaseError("bad-answer", `${this.address} sent an answer without end`);
      }
    } catch (error) {
      if (error instanceof PortleaseError) throw error;
      throw new PortleaseError("unreachable", `${this.address} broke off its answer (${error.code ?? error.message})`, { cause: error });
    }
    return Buffer.concat(parts).toString("utf8");
  }

  #open(method, path, { body, token, query = {}, signal, timeout, accept, headers = {} }) {
    if (signal?.aborted) return Promise.reject(aborted(signal));
    const target = new URL(this.url.pathname.replace(/\/$/, "") + path, this.url);
    for (const [name, value] of Object.entries(query)) if (value != null) target.searchParams.set(name, value);
    const content = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    const sent = { accept, ...headers };
    if (method !== "GET") sent["content-type"] = "application/json"; // a page of another program cannot send that
    if (content) sent["content-length"] = content.length;
    if (token) sent["allocator-token"] = token;
    if (this.#credential) sent.authorization = `Bearer ${this.#credential}`;
    const send = target.protocol === "https:" ? https.request : http.request;
    return new Promise((resolve, reject) => {
      const request = send(target, { method, headers: sent, socketPath: this.socketPath });
      let late = false;
      const timer = setTimeout(() => { late = true; request.destroy(); }, timeout);
      const abort = () => request.destroy();
      signal?.addEventListener("abort", abort, { once: true });
      const settled = () => { clearTimeout(timer); signal?.removeEventListener("abort", abort); };
      request.on("error", (error) => {
        settled();
        if (signal?.aborted) reject(aborted(signal));
        else if (late) reject(new PortleaseError("timeout", `${this.address} did not answer within ${Math.round(timeout)} ms; is it overloaded, or stopped?`));
        else reject(new PortleaseError("unreachable", `${this.address} cannot be reached (${error.code ?? error.message}); is it running?`, { cause: error }));
      });
      request.on("response", (response) => {
        response.on("close", settled);
        if (response.statusCode < 300) {
          if (accept === "text/event-stream") clearTimeout(timer); // a stream has no end to wait for
          resolve(response);
          return;
        }
        this.#text(response).then(
          (text) => reject(PortleaseError.fromAnswer(response.statusCode, parsed(text, this.address, true), this.address)),
          reject,
        );
      });
      request.end(content);
    });
  }
}

/** Parses an answer; where it is a failure's body, anything that is not JSON is left out. */
function parsed(text, address, isFailure = false) {
  try {
    return JSON.parse(text);
  } catch (cause) {
    if (isFailure) return null;
    throw new PortleaseError("bad-answer", `${address} sent an answer that is not JSON; is this the address of the portlease API?`, { cause });
  }
}

module.exports = { Transport, backoffMs };
