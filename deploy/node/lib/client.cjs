// The client: one method for each thing that the API does with leases.
"use strict";

const { randomBytes } = require("node:crypto");
const { setTimeout: pause } = require("node:timers/promises");
const { inspect: { custom } } = require("node:util");

const { PortleaseError, aborted } = require("./errors.cjs");
const { eventsOf } = require("./events.cjs");
const { HeldLease } = require("./lease.cjs");
const { canBind } = require("./ports.cjs");
const { spawnWorker } = require("./spawn.cjs");
const { Transport, backoffMs } = require("./transport.cjs");

const MAX_DECLINES = 5;
const CREDENTIAL_FIELDS = ["pool", "host", "port", "org", "plugin", "instance", "fence", "token"];

class Portlease {
  #transport;
  #seesKernel;

  /** See `PortleaseOptions` in the types. */
  constructor({ url = configuredUrl(), socketPath, token, pool, host, timeoutMs = 10_000, logger } = {}) {
    this.#transport = new Transport({ url, socketPath, token, timeoutMs });
    this.pool = pool ?? setting("POOL");
    this.host = host ?? setting("HOST");
    this.#seesKernel = host == null; // the host of the settings is this one
    this.logger = logger;
  }

  /** Leases a port once; nothing keeps it alive. Claiming again with one `token` gives the same lease. */
  async claim(plugin, options = {}) {
    return (await this.#claim(plugin, options))[0];
  }

  /** Leases a port for each of several names, all or none; resolves to the leases by name. */
  async claimPorts(plugin, names, options = {}) {
    return byName(names, await this.#claim(plugin, { ...options, names: checkedNames(names) }));
  }

  /**
   * Leases a port, proves that this machine can bind it, and keeps it alive until `release()`.
   * A port that is in use here is declined, and another one claimed.
   */
  async hold(plugin, options = {}) {
    return (await this.#hold(plugin, options))[0];
  }

  /** The same for several ports; resolves to HeldLeases by name. Where one port is in use, all are claimed again. */
  async holdPorts(plugin, names, options = {}) {
    return byName(names, await this.#hold(plugin, { ...options, names: checkedNames(names) }));
  }

  /** Holds on to a lease whose credentials were kept: after the program that held it was killed and started again. */
  async attach(credentials, options = {}) {
    const missing = CREDENTIAL_FIELDS.find((field) => credentials?.[field] === undefined);
    if (missing) throw new PortleaseError("invalid-argument", `credentials: ${missing} is missing; give what lease.credentials returned`);
    const known = { state: "starting", labels: {}, restarts: 0, last_error: null, pid: null, ...credentials, ...changed(options) };
    const renewed = await this.renew(known, options);
    return new HeldLease(this, renewed);
  }

  /**
   * Extends a lease by its TTL. `change` may set `state`, `ttlMs`, `pid`, `labels`, `restarts`, `lastError`. The rest of
   * what the holder knows goes along: it is written where Redis has lost the lease.
   */
  async renew(lease, change = {}) {
    const { signal } = change;
    const holder_copy = pick(lease, ["org", "plugin", "instance", "fence", "state", "pid", "labels", "restarts", "last_error", "ttl_s"]);
    const body = { ...changed(change), holder_copy };
    const sentAt = performance.now();
    const renewed = await this.#transport.ask("PATCH", pathOf(lease), { body, token: lease.token, query: { pool: lease.pool }, signal });
    return owned(renewed, lease.token, sentAt);
  }

  /** Gives a port back; resolves to false when the lease had ended already. */
  async release(lease, { signal } = {}) {
    return (await this.#transport.ask("DELETE", pathOf(lease), { token: lease.token, query: { pool: lease.pool }, signal })).ended;
  }

  /** Reports that this machine refuses the port (`EADDRINUSE`): it goes into quarantine. Claim again. */
  async decline(lease, { signal } = {}) {
    const path = `${pathOf(lease)}/decline`;
    return (await this.#transport.ask("POST", path, { token: lease.token, body: {}, query: { pool: lease.pool }, signal })).ended;
  }

  /** Iterates over the live leases, without tokens. */
  async *leases({ signal, ...filter } = {}) {
    let after;
    do {
      const page = await this.#transport.ask("GET", "/v1/leases", { query: { pool: this.pool, ...filter, after }, signal });
      yield* page.leases;
      after = page.next ?? undefined;
    } while (after);
  }

  /** Resolves to where the next ready worker of a service is: `{ address, port, host, … }`. */
  async resolve(plugin, { org, waitMs = 0, signal } = {}) {
    const query = { pool: this.pool, wait_s: waitMs ? waitMs / 1000 : undefined };
    return this.#transport.ask("GET", `/v1/resolve/${encodeURIComponent(plugin)}/${encodeURIComponent(org)}`, { query, waitMs, signal });
  }

  /** Iterates over the events of the pool, over broken connections as well, until its `signal` is aborted. */
  events(options = {}) {
    return eventsOf(this.#transport, { pool: this.pool, logger: this.logger, ...options });
  }

  /** Claims a port, starts a process on it and holds the lease while it runs; see SpawnedWorker. */
  spawnWorker(command, args, options) {
    return spawnWorker(this, command, args, options);
  }

  async #claim(plugin, options) {
    const { org, instance = 0, key, port, hint, ttlMs, waitMs = 0, pid, labels, host = this.host, token, names, contiguous, signal } = options;
    const own = token ?? randomBytes(16).toString("hex"); // made here, so that a repeated request gets the same lease
    const body = { plugin, org, instance, key, port, hint, host, pool: this.pool, pid, labels, ports: names, contiguous };
    if (ttlMs != null) body.ttl_s = ttlMs / 1000;
    if (waitMs) body.wait_s = waitMs / 1000;
    const sentAt = performance.now();
    const { answer: { further = [], ...first }, headers } = await this.#transport.exchange("POST", "/v1/leases", { body, token: own, waitMs, signal });
    const tokens = further.length ? String(headers["allocator-token"]).split(/, */) : [own];
    const leases = [first, ...further].map((lease, at) => owned(lease, tokens[at], sentAt));
    if (pid == null || !this.#isHere(options)) return leases;
    // The agent watches the process from here on: it takes over only what its caller has seen.
    return Promise.all(leases.map((lease) => this.renew(lease, { signal })));
  }

  /** Whether a claim is for the API's own host, which is this machine. */
  #isHere(options) {
    return this.#seesKernel && options.host == null;
  }

  async #hold(plugin, options) {
    const pid = this.#isHere(options) ? process.pid : undefined;
    for (let declines = 0; ; declines += 1) {
      const leases = await this.#claim(plugin, { pid, ...options });
      const refused = [];
      for (const lease of leases) if (!(await canBind(lease.port))) refused.push(lease);
      if (refused.length === 0) return leases.map((lease) => new HeldLease(this, lease));
      await Promise.all(leases.map((lease) => (refused.includes(lease) ? this.decline(lease) : this.release(lease))));
      const [{ port, host: where }] = refused;
      this.logger?.warn?.(`port ${port} on ${where} is in use by another process; it was declined`);
      if (options.port != null || declines >= MAX_DECLINES) {
        throw new PortleaseError("port-refused", `port ${port} on ${where} is in use by another process; it was declined: claim again, or name no port`);
      }
      await wait(backoffMs(declines), options.signal);
    }
  }
}

/** Returns the names of several ports; the API checks what they may be. */
function checkedNames(names) {
  if (Array.isArray(names) && names.length > 0) return names;
  throw new PortleaseError("invalid-argument", 'names: give an array with a name for each port, for example ["http", "debug"]');
}

function byName(names, leases) {
  return Object.fromEntries(leases.map((lease, at) => [names[at], lease]));
}

function setting(name) {
  return process.env[`ALLOCATOR_${name}`] || undefined;
}

/** Returns where a server with these settings listens, as its own machine reaches it. */
function configuredUrl() {
  const listen = setting("LISTEN") ?? "127.0.0.1:8577";
  const [, address, port] = /^(.*):(\d+)$/.exec(listen) ?? [];
  if (port === undefined) {
    throw new PortleaseError("invalid-argument", `ALLOCATOR_LISTEN=${listen} is not an address; write it like 127.0.0.1:8577`);
  }
  const reached = { "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]" }[address] ?? address;
  return `http${setting("TLS_CERT") ? "s" : ""}://${reached}:${port}`;
}

async function wait(ms, signal) {
  await pause(ms, undefined, { signal }).catch(() => { throw aborted(signal); });
}

function pathOf(lease) {
  return `/v1/leases/${encodeURIComponent(lease.host)}/${lease.port}`;
}

function pick(from, names) {
  return Object.fromEntries(names.filter((name) => from[name] != null).map((name) => [name, from[name]]));
}

/** Returns a change as fields of the API. */
function changed({ state, ttlMs, pid, labels, restarts, lastError }) {
  const body = { state, pid, labels, restarts };
  if (ttlMs != null) body.ttl_s = ttlMs / 1000;
  if (lastError != null) body.last_error = lastError;
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value != null));
}

/** Returns a lease of an answer as its holder's copy; where it is printed (`console.log`), the token is hidden. */
function owned(lease, token, sentAt) {
  const copy = { ...lease, token, sentAt };
  const hidden = (_depth, options, inspect) => inspect({ ...copy, token: "[hidden]", [custom]: undefined }, options);
  return Object.defineProperty(copy, custom, { value: hidden, enumerable: false });
}

module.exports = { Portlease };
