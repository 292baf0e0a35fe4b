// A worker process around a held lease: what an orchestrator otherwise writes by hand. The worker runs in a process group
// of its own, so that it outlives an orchestrator that is killed; `attach()` with its credentials holds its lease on.
"use strict";

const { spawn } = require("node:child_process");
const { EventEmitter, once } = require("node:events");
const { setTimeout: pause } = require("node:timers/promises");

const { PortleaseError, aborted } = require("./errors.cjs");
const { DISPOSE } = require("./lease.cjs");
const { canBind, listens, portVariable, pluginVariables } = require("./ports.cjs");

const LOOK_MS = 25; // how often a starting worker's port is tried
const PLACEHOLDER = /\{(port(?:\.[\w.-]+)?|host|org|plugin|instance)\}/g;

/**
 * A process that listens on a leased port, or on several. Emits `exit` (code, signal; the port is given back by then), `draining` and
 * `lost` (as HeldLease does; `lost` stops the process).
 */
class SpawnedWorker extends EventEmitter {
  #options;

  constructor(leases, child, options) {
    super();
    /** The lease of each port, in the order of `ports`; `lease` is the first. */
    this.leases = leases;
    [this.lease] = leases;
    this.child = child;
    this.#options = options;
    this.lease.on("draining", () => this.emit("draining"));
    for (const lease of leases) lease.on("lost", (error) => { signalGroup(child, "SIGTERM"); this.emit("lost", error); });
    /** Resolves to `{ code, signal }` when the process has ended and its port is given back. */
    this.exited = this.#watch();
  }

  get port() { return this.lease.port; }
  get pid() { return this.child.pid; }
  get credentials() { return this.lease.credentials; }

  /** Stops the worker: `draining` for `drainMs`, SIGTERM, SIGKILL after `timeoutMs`; then gives the port back. */
  async stop({ drainMs = this.#options.drainMs, timeoutMs = this.#options.stopTimeoutMs } = {}) {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      if (drainMs > 0 && this.lease.state === "ready") {
        await all(this.leases, (lease) => lease.setState("draining").catch(() => {}));
        await Promise.race([pause(drainMs, undefined, { ref: true }), this.exited]);
      }
      signalGroup(this.child, "SIGTERM");
      const timer = setTimeout(() => signalGroup(this.child, "SIGKILL"), timeoutMs);
      await this.exited;
      clearTimeout(timer);
    }
    return this.exited;
  }

  async [DISPOSE]() { await this.stop(); }

  async #watch() {
    const { code, signal } = await ended(this.child);
    await released(this.leases); // an unreachable API: the lease ends by its TTL
    this.emit("exit", code, signal);
    return { code, signal };
  }
}

async function spawnWorker(client, command, args = [], options = {}) {
  const { plugin, org, ports, maxDeclines = 5, readyTimeoutMs = 60_000, stopTimeoutMs = 5_000, drainMs = 2_000, env, cwd, stdio, signal, ...claim } = options;
  if (!plugin || !org) throw new PortleaseError("invalid-argument", "options: plugin and org are needed; they say who the port is for");
  for (let declines = 0; ; declines += 1) {
    const leases = await held(client, plugin, ports, { ...claim, org, signal, pid: undefined });
    let child, refused;
    try {
      child = await start(leases, ports ?? [], command, args, { env, cwd, stdio });
      const outcome = await ready(leases, child, readyTimeoutMs, signal);
      if (outcome === "ready") return new SpawnedWorker(leases, child, { stopTimeoutMs, drainMs });
      if (!outcome.inUse) throw outcome;
      await all(leases, (lease) => (outcome.inUse.includes(lease) ? lease.decline() : lease.release()));
      refused = outcome.inUse[0];
    } catch (error) {
      if (child) {
        signalGroup(child, "SIGKILL");
        await ended(child);
      }
      await released(leases);
      throw error;
    }
    client.logger?.warn?.(`the worker of ${org}/${plugin} found port ${refused.port} in use; another one is claimed`);
    if (claim.port != null || declines >= maxDeclines) {
      throw new PortleaseError("port-refused", `port ${refused.port} on ${refused.host} is in use by another process; it was declined: name no port, or end that process`);
    }
  }
}

async function held(client, plugin, names, options) {
  if (names === undefined) return [await client.hold(plugin, options)];
  const leases = await client.holdPorts(plugin, names, options);
  return names.map((name) => leases[name]);
}

function all(leases, act) {
  return Promise.all(leases.map(act));
}

/** Gives ports back; where the API cannot be reached, the leases end by their TTL. */
function released(leases) {
  return all(leases, (lease) => lease.release().catch(() => {}));
}

// What `allocator run` keeps from its workers too (allocator/model/settings.py; a test compares them).
const SECRETS = ["ALLOCATOR_REDIS_PASSWORD", "ALLOCATOR_DATABASE_PASSWORD", "ALLOCATOR_TOKEN", "PGPASSWORD", "REDISCLI_AUTH"];
const URLS = ["ALLOCATOR_REDIS_URL", "ALLOCATOR_DATABASE_URL"];

function withoutPassword(url) {
  const [place, query = ""] = url.replace(/^([^:]+:\/\/)([^:@]*)(?::.*)?@/s, (_, scheme, user) => scheme + (user ? `${user}@` : "")).split("?");
  const kept = query.split("&").filter((part) => part && !/^[^=]*pass/i.test(part));
  return kept.length ? `${place}?${kept.join("&")}` : place;
}

/** Starts the process with the variables that `allocator run` sets, and binds the lease to it. */
async function start(leases, names, command, args, { env = process.env, cwd, stdio = ["ignore", "inherit", "inherit"] }) {
  const [lease] = leases;
  const values = { port: lease.port, host: lease.host, org: lease.org, plugin: lease.plugin, instance: lease.instance };
  names.forEach((name, at) => { values[`port.${name}`] = leases[at].port; });
  const filled = args.map((arg) => String(arg).replace(PLACEHOLDER, (text, name) => values[name] ?? text));
  const port = String(lease.port);
  const environment = {
    ...env, PORT: port, HAY_WORKER_PORT: port, ALLOCATOR_HOST: lease.host, ALLOCATOR_FENCE: String(lease.fence),
  };
  for (const name of pluginVariables(lease.plugin)) environment[name] = port;
  names.forEach((name, at) => { environment[portVariable(name)] = String(leases[at].port); });
  for (const name of SECRETS) delete environment[name];
  for (const name of URLS) if (environment[name]) environment[name] = withoutPassword(environment[name]);
  const child = spawn(command, filled, { cwd, env: environment, detached: true, stdio });
  try {
    await once(child, "spawn"); // rejects at the event "error"
  } catch (cause) {
    throw new PortleaseError("spawn-failed", `${command} cannot be started (${cause.code ?? cause.message}); give a program that exists and may be run`, { cause });
  }
  return child;
}

/** Resolves to "ready", to `{ inUse: leases }`, or to the error with which starting ended. */
async function ready(leases, child, timeoutMs, signal) {
  const [lease] = leases;
  let exit = null;
  const gone = ended(child).then((how) => { exit = how; });
  const deadline = performance.now() + timeoutMs;
  await all(leases, (one) => one.update({ pid: child.pid }).catch((error) => { if (child.exitCode === null) throw error; }));
  while (exit === null) {
    const silent = await those(leases, async (one) => !(await listens(one.port, child.pid)));
    if (silent.length === 0) {
      await all(leases, (one) => one.setState("ready"));
      return "ready";
    }
    if (signal?.aborted) return aborted(signal);
    if (performance.now() > deadline) {
      return new PortleaseError("spawn-failed", `the worker of ${lease.org}/${lease.plugin} did not listen on port ${silent[0].port} within ${timeoutMs} ms; does it take its port from {port} or PORT?`);
    }
    await Promise.race([pause(LOOK_MS), gone]);
  }
  const inUse = await those(leases, async (one) => !(await canBind(one.port)));
  if (inUse.length > 0) return { inUse };
  const how = exit.signal ?? `code ${exit.code}`;
  return new PortleaseError("spawn-failed", `the worker of ${lease.org}/${lease.plugin} ended (${how}) before it listened on port ${lease.port}; its output has the reason`);
}

/** Resolves to those leases of which a question is true. */
async function those(leases, question) {
  const answers = await Promise.all(leases.map(question));
  return leases.filter((_, at) => answers[at]);
}

function ended(child) {
  if (child.exitCode !== null || child.signalCode !== null) {
    return Promise.resolve({ code: child.exitCode, signal: child.signalCode });
  }
  return new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
}

/** Sends a signal to a worker's whole process group; a group that is gone is what was wanted. */
function signalGroup(child, name) {
  try {
    if (child.pid) process.kill(-child.pid, name);
  } catch (error) {
    if (error.code !== "ESRCH") throw error;
  }
}

module.exports = { SpawnedWorker, spawnWorker };
