// An orchestrator that kept its ports in memory, on leases. Before:
//
//   allocate() { const port = this.free.pop(); this.used.add(port); return port; }
//   release(port) { this.used.delete(port); this.free.push(port); }
//
// Now a port is unique on its host whichever orchestrator asks, and a restarted orchestrator finds its workers again.
import fs from "node:fs/promises";
import path from "node:path";

import { Portlease } from "portlease";

export class Orchestrator {
  /**
   * @param {{ directory: string, pool?: string, url?: string, socketPath?: string }} options `directory` keeps the
   *   credentials of running workers, readable by this user only.
   */
  constructor({ directory, ...options }) {
    this.directory = directory;
    this.ports = new Portlease({ ...options, logger: console });
    this.leases = new Map();
  }

  /** Finds the workers that an earlier orchestrator started and that still run; resolves to their leases. */
  async recover() {
    await fs.mkdir(this.directory, { recursive: true, mode: 0o700 });
    for (const name of await fs.readdir(this.directory)) {
      if (!name.endsWith(".json")) continue;
      const credentials = JSON.parse(await fs.readFile(path.join(this.directory, name), "utf8"));
      try {
        await this.#hold(await this.ports.attach(credentials));
      } catch (error) {
        if (error.type !== "lease-lost") throw error; // an API that is away: try again later, the worker keeps its port
        await fs.rm(path.join(this.directory, name));
      }
    }
    return [...this.leases.values()];
  }

  /** Leases a port for a worker that the caller starts; `release(port)` gives it back. */
  async allocate(plugin, org, options = {}) {
    const lease = await this.ports.hold(plugin, { org, pid: undefined, ...options });
    await this.#hold(lease);
    return lease.port;
  }

  async release(port) {
    const lease = this.leases.get(port);
    if (!lease) return;
    this.leases.delete(port);
    await lease.release();
    await fs.rm(this.#file(port), { force: true });
  }

  /** Starts a worker on a port of its own; the port is given back when the worker ends. */
  async start(command, args, { plugin, org, ...options }) {
    const worker = await this.ports.spawnWorker(command, args, { plugin, org, ...options });
    await this.#hold(worker.lease);
    worker.on("exit", () => this.release(worker.port));
    return worker;
  }

  async #hold(lease) {
    this.leases.set(lease.port, lease);
    let written = "";
    const keep = async () => {
      const credentials = JSON.stringify(lease.credentials);
      if (credentials === written) return;
      written = credentials;
      await fs.writeFile(`${this.#file(lease.port)}.new`, credentials, { mode: 0o600 });
      await fs.rename(`${this.#file(lease.port)}.new`, this.#file(lease.port));
    };
    await keep();
    lease.on("renewed", () => keep().catch((error) => console.error(error.message)));
    lease.on("lost", (error) => { console.error(error.message); this.leases.delete(lease.port); });
  }

  #file(port) {
    return path.join(this.directory, `${port}.json`);
  }
}
