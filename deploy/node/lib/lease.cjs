// A lease that is kept alive by heartbeats. What it must never do: report a lease as lost before the server did; give one
// up because the API was away for a moment; keep a process alive that has nothing else to do.
"use strict";

const { EventEmitter } = require("node:events");

const { PortleaseError } = require("./errors.cjs");
const { backoffMs } = require("./transport.cjs");

const T1 = 0.45;
const T1_SPREAD = 0.1; // holders renew at 0.45 to 0.55 of the TTL, not all at once; the scripts count on no later
const DISPOSE = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");

/**
 * Emits `renewed` (fence), `doubtful` (error: its time passed unconfirmed), `lost` (error: another one has it, or an
 * operator ended it), and once `draining`: the host is being emptied, so stop the worker and `release()`.
 */
class HeldLease extends EventEmitter {
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

  get pool() { return this.#lease.pool; }
  get host() { return this.#lease.host; }
  get port() { return this.#lease.port; }
  get org() { return this.#lease.org; }
  get plugin() { return this.#lease.plugin; }
  get instance() { return this.#lease.instance; }
  get labels() { return { ...this.#lease.labels }; }
  get pid() { return this.#lease.pid; }
  get fence() { return this.#lease.fence; }
  get state() { return this.#lease.state; }
  get token() { return this.#lease.token; }
  get expiresAt() { return new Date(this.#lease.expires_at); }
  /** Whether this object no longer renews the lease: it was released, declined or lost. */
  get ended() { return this.#ended; }
  /** Whether the lease's time has passed without the server confirming it; the port may be used on. */
  get doubtful() { return performance.now() > this.#lease.sentAt + this.#lease.ttl_s * 1000; }

  /**
   * What `attach()` needs to hold this lease on after a restart: JSON, with the token. Keep it where only its owner reads
   * it (mode 0600), and write it again when it has changed after `renewed`.
   */
  get credentials() {
    const { pool, host, port, org, plugin, instance, fence, token, state, pid, labels, restarts, last_error, ttl_s } = this.#lease;
    return { pool, host, port, org, plugin, instance, fence, token, state, pid, labels: { ...labels }, restarts, last_error, ttl_s };
  }

  /** Sets the worker's state: `starting`, `ready`, `degraded` or `draining`; `more` as in `renew`. */
  async setState(state, more = {}) { await this.#renew({ ...more, state }); }

  /** Changes what the lease shows of its worker: `pid`, `labels`, `restarts`, `lastError`, `ttlMs`. */
  async update(change) { await this.#renew(change); }

  /** Ends the heartbeats and gives the port back. */
  async release(options) {
    if (this.#end()) await this.#client.release(this.#lease, options);
  }

  /** Ends the heartbeats because the port cannot be bound. */
  async decline(options) {
    if (this.#end()) await this.#client.decline(this.#lease, options);
  }

  /** Ends the heartbeats without giving the port back: whoever has the credentials may hold it on. */
  detach() {
    this.#end();
    return this.credentials;
  }

  async [DISPOSE]() { await this.release(); }

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
    const passed = performance.now() - this.#lease.sentAt;
    const due = this.#failures
      ? backoffMs(this.#failures, ttlMs * 0.05)
      : Math.max(0, ttlMs * (T1 + Math.random() * T1_SPREAD) - passed);
    this.#timer = setTimeout(() => this.#renew({}).catch(() => {}), due);
    this.#timer.unref?.();
  }

  async #renew(change) {
    if (this.#ended) throw new PortleaseError("lease-lost", `the lease of port ${this.port} on ${this.host} has ended; claim again`);
    const { signal, ...lasting } = change;
    this.#change = { ...this.#change, ...lasting };
    const sent = this.#change;
    try {
      const renewed = await this.#client.renew(this.#lease, { ...sent, signal });
      const restored = renewed.fence !== this.#lease.fence;
      this.#lease = renewed;
      this.#failures = 0;
      if (this.#change === sent) this.#change = {};
      if (restored) this.#client.logger?.warn?.(`Redis had lost the lease of port ${this.port} on ${this.host}; it is back with fence ${this.fence}`);
      this.emit("renewed", renewed.fence);
      this.#reportDrain(sent);
    } catch (error) {
      this.#failed(error, sent);
      throw error;
    } finally {
      this.#plan();
    }
  }

  #failed(error, sent) {
    if (error.type === "lease-lost") {
      if (!this.#end()) return;
      this.#client.logger?.error?.(error.message);
      this.emit("lost", error);
      return;
    }
    if (isRefusal(error) && this.#change === sent) this.#change = {}; // sent again it would end the heartbeats
    this.#failures += 1;
    this.#client.logger?.warn?.(`the lease of port ${this.port} on ${this.host} was not renewed: ${error.message}`);
    if (this.doubtful) this.emit("doubtful", error);
  }

  #reportDrain(sent) {
    if (this.#drains || this.state !== "draining") return;
    this.#drains = true;
    if (sent.state !== "draining") this.emit("draining"); // a worker that set it itself knows
  }
}

/** Whether the server understood a request and refused it, so that it will refuse it again. */
function isRefusal(error) {
  return error.status != null && error.status < 500 && error.status !== 429;
}

module.exports = { HeldLease, DISPOSE };
