// portlease for Node.js, in one file without dependencies: claim a port over the HTTP API, keep it by heartbeats, give
// it back. Node 18.14 or newer. Types are in portlease.d.mts beside this file.
//
//   import { Portlease } from "./portlease.mjs";
//   const ports = new Portlease({ url: "http://127.0.0.1:8577" });
//   const lease = await ports.hold("email", { org: "org-123" });
//   server.listen(lease.port);
//   lease.on("lost", (error) => server.close());
//   lease.on("draining", () => stop()); // the host is to be emptied: stop the worker, then release
//   await lease.setState("ready");
//   ...
//   await lease.release();
//
// Heartbeats do not keep a process alive that has nothing else to do: it ends, and its lease by the TTL.
//
// What it must never do: put a token into an address, a message or a log; give up a lease because the API was away for
// a moment; tell that a lease is lost before the server said so.

import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import net from "node:net";

const RETRY_FIRST_MS = 50;
const RETRY_LONGEST_MS = 2_000;
const T1 = 0.45;
const T1_SPREAD = 0.1; // holders renew at 0.45 to 0.55 of the TTL, not all at once; the scripts count on no later
const MAX_DECLINES = 5;

function setting(name) {
  return process.env[`ALLOCATOR_${name}`] || undefined;
}

/** Where a server with these settings listens, as its own machine reaches it. */
function configuredUrl() {
  const listen = setting("LISTEN") ?? "127.0.0.1:8577";
  const [, address, port] = /^(.*):(\d+)$/.exec(listen) ?? [];
  if (port === undefined) throw new TypeError(`ALLOCATOR_LISTEN=${listen} is not an address; write it like 127.0.0.1:8577`);
  const reached = { "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]" }[address] ?? address;
  return `http${setting("TLS_CERT") ? "s" : ""}://${reached}:${port}`;
}

/** An error of the API: `type` is stable, `message` says what happened and what to do. */
export class PortleaseError extends Error {
  constructor(problem, status) {
    super(problem.detail ?? `the server answered ${status}`);
    this.name = "PortleaseError";
    this.status = status;
    this.type = String(problem.type ?? "").replace("urn:portlease:problem:", "");
    this.retryAfterMs = problem.retry_after_s == null ? null : problem.retry_after_s * 1000;
    this.holder = problem.holder ?? null;
  }
}

export class Portlease {
  #token;

  /**
   * @param options `url` of the API, or `socketPath` of an agent; `token`, a bearer token; `pool`, `host`, `timeoutMs`.
   * Defaults are the settings of the command line: `ALLOCATOR_LISTEN` (and `ALLOCATOR_TLS_CERT`), `ALLOCATOR_POOL`,
   * `ALLOCATOR_HOST`; what none of them says is a setting of the server, which reads `allocator.toml`.
   */
  constructor({ url = configuredUrl(), socketPath, token, pool, host, timeoutMs = 10_000 } = {}) {
    this.url = new URL(url);
    this.socketPath = socketPath;
    this.pool = pool ?? setting("POOL");
    this.host = host ?? setting("HOST");
    this.seesKernel = host == null; // the host of the settings is this one
    this.timeoutMs = timeoutMs;
    this.#token = token;
  }

  /** Leases a port once; nothing keeps it alive. Claiming twice with one `token` gives the same lease. */
  async claim(plugin, { org, instance = 0, port, hint, ttlMs, waitMs = 0, pid, labels, host = this.host, token } = {}) {
    const own = token ?? randomBytes(16).toString("hex"); // made here, so that a repeated request gets the same lease
    const body = { plugin, org, instance, port, hint, host, pool: this.pool, pid, labels };
    if (ttlMs != null) body.ttl_s = ttlMs / 1000;
    if (waitMs) body.wait_s = waitMs / 1000;
    const sentAt = performance.now();
    const lease = await this.#ask("POST", "/v1/leases", { body, token: own, waitMs });
    return { ...lease, token: own, sentAt };
  }

  /**
   * Leases a port, proves that this machine can bind it, and keeps it alive until `release()`.
   * A port that is taken here all the same is declined and another one claimed.
   */
  async hold(plugin, options = {}) {
    for (let declines = 0; ; declines += 1) {
      const own = this.seesKernel && !options.host;
      const lease = await this.claim(plugin, { pid: own ? process.pid : undefined, ...options });
      if (await canBind(lease.port)) return new HeldLease(this, lease);
      await this.decline(lease);
      if (options.port != null || declines >= MAX_DECLINES) {
        throw new PortleaseError({ type: "port-refused", detail: `port ${lease.port} on ${lease.host} is in use by another process; it was declined` }, 409);
      }
    }
  }

  /** Extends a lease by its TTL; `change` may set `state`, `ttlMs`, `pid`, `labels`, `restarts`, `lastError`. */
  async renew(lease, change = {}) {
    const { org, plugin, instance, fence } = lease;
    const body = { org, plugin, instance, fence, state: change.state, pid: change.pid, labels: change.labels };
    if (change.ttlMs != null) body.ttl_s = change.ttlMs / 1000;
    if (change.restarts != null) body.restarts = change.restarts;
    if (change.lastError != null) body.last_error = change.lastError;
    const sentAt = performance.now();
    const renewed = await this.#ask("PATCH", pathOf(lease), { body, token: lease.token, query: { pool: lease.pool } });
    return { ...renewed, token: lease.token, sentAt };
  }

  /** Gives a port back; false when the lease had ended already. */
  async release(lease) {
    return (await this.#ask("DELETE", pathOf(lease), { token: lease.token, query: { pool: lease.pool } })).ended;
  }

  /** Says that this machine refuses the port (`EADDRINUSE`): it goes into quarantine. Claim again. */
  async decline(lease) {
    return (await this.#ask("POST", `${pathOf(lease)}/decline`, { token: lease.token, query: { pool: lease.pool } })).ended;
  }

  /** The live leases, without tokens; `filter` may have `org`, `plugin`, `host`, `state`. */
  async *leases(filter = {}) {
    let after;
    do {
      const page = await this.#ask("GET", "/v1/leases", { query: { ...filter, after, pool: this.pool } });
      yield* page.leases;
      after = page.next ?? undefined;
    } while (after);
  }

  /** Where the next ready worker of a service is: `{ address, port, host, … }`. */
  async resolve(plugin, { org, waitMs = 0 }) {
    const query = { pool: this.pool, wait_s: waitMs ? waitMs / 1000 : undefined };
    return this.#ask("GET", `/v1/resolve/${encodeURIComponent(plugin)}/${encodeURIComponent(org)}`, { query, waitMs });
  }

  async #ask(method, path, { body, token, query = {}, waitMs = 0 } = {}) {
    const deadline = performance.now() + this.timeoutMs + waitMs;
    for (let attempt = 0; ; attempt += 1) {
      let pause = Math.random() * Math.min(RETRY_LONGEST_MS, RETRY_FIRST_MS * 2 ** attempt);
      try {
        return await this.#once(method, path, body, token, query, Math.max(1, deadline - performance.now()));
      } catch (error) {
        const passing = !(error instanceof PortleaseError) || error.status === 503 || error.status === 429;
        if (error.retryAfterMs != null) pause = Math.max(pause, error.retryAfterMs);
        if (!passing || performance.now() + pause >= deadline) throw error;
      }
      await new Promise((resume) => setTimeout(resume, pause));
    }
  }

  #once(method, path, body, token, query, timeout) {
    const target = new URL(this.url.pathname.replace(/\/$/, "") + path, this.url);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) target.searchParams.set(name, value);
    const content = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
    const headers = { accept: "application/json" };
    if (method !== "GET") headers["content-type"] = "application/json";
    if (content) headers["content-length"] = content.length;
    if (token) headers["allocator-token"] = token;
    if (this.#token) headers.authorization = `Bearer ${this.#token}`;
    const send = target.protocol === "https:" ? httpsRequest : httpRequest;
    return new Promise((resolve, reject) => {
      const request = send(target, { method, headers, socketPath: this.socketPath, timeout }, (answer) => {
        const parts = [];
        answer.on("data", (part) => parts.push(part));
        answer.on("error", reject);
        answer.on("end", () => {
          let value = {};
          try {
            value = JSON.parse(Buffer.concat(parts).toString("utf8"));
          } catch { /* an answer that is no JSON comes from something in between: its status has to do */ }
          if (answer.statusCode < 300) resolve(value);
          else reject(new PortleaseError(value, answer.statusCode));
        });
      });
      request.on("timeout", () => request.destroy(new Error(`${this.url.host} did not answer in time`)));
      request.on("error", reject);
      request.end(content);
    });
  }
}

/**
 * A lease that is kept alive. Emits `renewed`, `doubtful` (its time passed unconfirmed), `lost` (with the error), and
 * once `draining`: the host is to be emptied, so stop the worker and `release()`.
 */
export class HeldLease extends EventEmitter {
  #client;
  #lease;
  #timer = null;
  #ended = false;
  #failures = 0;
  #change = {};
  #drains = false;

  constructor(client, lease) {
    super();
    this.#client = client;
    this.#lease = lease;
    this.#plan();
  }

  get host() { return this.#lease.host; }
  get port() { return this.#lease.port; }
  get fence() { return this.#lease.fence; }
  get state() { return this.#lease.state; }
  /** Whether the lease's time has passed without the server confirming it; the port may be used on. */
  get doubtful() { return performance.now() > this.#lease.sentAt + this.#lease.ttl_s * 1000; }

  /** Says how the worker fares: `starting`, `ready`, `degraded` or `draining`. */
  async setState(state, more = {}) { await this.#renew({ ...more, state }); }

  /** Ends the heartbeats and gives the port back. */
  async release() {
    if (this.#end()) await this.#client.release(this.#lease);
  }

  /** Ends the heartbeats because the port cannot be bound. */
  async decline() {
    if (this.#end()) await this.#client.decline(this.#lease);
  }

  #end() {
    const first = !this.#ended;
    this.#ended = true;
    clearTimeout(this.#timer);
    return first;
  }

  #plan() {
    if (this.#ended) return;
    clearTimeout(this.#timer);
    const ttlMs = this.#lease.ttl_s * 1000;
    const retry = Math.min(ttlMs * 0.05, RETRY_FIRST_MS * 2 ** this.#failures) * (0.5 + Math.random() / 2);
    const passed = performance.now() - this.#lease.sentAt;
    const due = this.#failures ? retry : Math.max(0, ttlMs * (T1 + Math.random() * T1_SPREAD) - passed);
    this.#timer = setTimeout(() => this.#renew({}).catch(() => {}), due);
    this.#timer.unref?.();
  }

  async #renew(change) {
    if (this.#ended) return;
    this.#change = { ...this.#change, ...change };
    const sent = this.#change;
    try {
      const renewed = await this.#client.renew(this.#lease, sent);
      this.#lease = renewed;
      this.#failures = 0;
      if (this.#change === sent) this.#change = {};
      this.emit("renewed", renewed.fence);
      this.#tellOfDrain(sent);
    } catch (error) {
      if (error.type === "lease-lost") {
        if (this.#end()) this.emit("lost", error);
      } else {
        if (isRefusal(error) && this.#change === sent) this.#change = {}; // sent again it would end the heartbeats
        this.#failures += 1;
        if (this.doubtful) this.emit("doubtful", error);
      }
      throw error;
    } finally {
      this.#plan();
    }
  }

  #tellOfDrain(sent) {
    if (this.#drains || this.state !== "draining") return;
    this.#drains = true;
    if (sent.state !== "draining") this.emit("draining"); // a worker that said so itself knows
  }
}

/** Whether the server understood a request and said no, so that it says no again. */
function isRefusal(error) {
  return error instanceof PortleaseError && error.status < 500 && error.status !== 429;
}

function pathOf(lease) {
  return `/v1/leases/${encodeURIComponent(lease.host)}/${lease.port}`;
}

/** Whether a port can be bound on this machine the way a server that names no address does it. */
export function canBind(port) {
  return new Promise((resolve) => {
    const probe = net.createServer();
    probe.once("error", () => resolve(false));
    probe.listen({ port, exclusive: true }, () => probe.close(() => resolve(true)));
  });
}
