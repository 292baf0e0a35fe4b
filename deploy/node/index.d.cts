import { ChildProcess, StdioOptions } from "node:child_process";
import { EventEmitter } from "node:events";

export type LeaseState = "starting" | "ready" | "degraded" | "draining";

export interface Lease {
  pool: string;
  host: string;
  port: number;
  org: string;
  plugin: string;
  instance: number;
  state: LeaseState;
  fence: number;
  ttl_s: number;
  granted_at: string;
  expires_at: string;
  pid: number | null;
  restarts: number;
  last_error: string | null;
  labels: Record<string, string>;
}

export interface ClaimedLease extends Lease {
  /** The proof of holding: keep it out of logs. `console.log` of a lease hides it; `JSON.stringify` does not. */
  readonly token: string;
  readonly sentAt: number;
  /** Whether the API bound the port for a test; false for another host than the API's own. */
  readonly proved?: boolean;
}

/** What `attach()` needs. With the token: keep it where only its owner reads it. */
export interface Credentials {
  pool: string;
  host: string;
  port: number;
  org: string;
  plugin: string;
  instance: number;
  fence: number;
  token: string;
  state?: LeaseState;
  pid?: number | null;
  labels?: Record<string, string>;
  restarts?: number;
  last_error?: string | null;
  ttl_s?: number;
}

export interface CallOptions {
  signal?: AbortSignal;
}

export interface ClaimOptions extends CallOptions {
  org: string;
  /** Which worker of this plugin and organisation; `"auto"`: the lowest that no lease has. @default 0 */
  instance?: number | "auto";
  /** With `"auto"`: a name that gets the same instance again on this host. */
  key?: string;
  /** The only port that will do. */
  port?: number;
  /** The port to prefer where nothing else decides. */
  hint?: number;
  ttlMs?: number;
  waitMs?: number;
  /** The process that the lease is bound to: the agent renews the lease while it lives. */
  pid?: number;
  labels?: Record<string, string>;
  host?: string;
  /** 32 hexadecimal digits; the same token claiming again gets the same lease. */
  token?: string;
}

export interface PortsOptions extends Omit<ClaimOptions, "port" | "hint"> {
  /** Whether the ports have to follow each other. */
  contiguous?: boolean;
}

export interface Change extends CallOptions {
  state?: LeaseState;
  ttlMs?: number;
  pid?: number;
  labels?: Record<string, string>;
  restarts?: number;
  lastError?: string;
}

export interface Endpoint {
  address: string;
  port: number;
  host: string;
  org: string;
  plugin: string;
  instance: number;
  fence: number;
}

export interface PoolEvent {
  id: string | null;
  /** `granted`, `ready`, `released`, …; `gap` when events were missed: read the leases again. */
  type: string;
  data: any;
}

export interface Logger {
  debug?(message: string): void;
  info?(message: string): void;
  warn?(message: string): void;
  error?(message: string): void;
}

export interface PortleaseOptions {
  /** @default what `ALLOCATOR_LISTEN` names, otherwise "http://127.0.0.1:8577" */
  url?: string;
  /** The Unix socket of an agent, in place of a connection to the host of `url`. */
  socketPath?: string;
  /** A bearer token of the API. */
  token?: string;
  /** @default `ALLOCATOR_POOL`, otherwise the server's */
  pool?: string;
  /** The host that leases are for. @default `ALLOCATOR_HOST`, otherwise the API's own */
  host?: string;
  /** How long a call may take, its retries included. @default 10000 */
  timeoutMs?: number;
  logger?: Logger;
}

export interface SpawnOptions extends ClaimOptions {
  plugin: string;
  /** Names of several ports: `{port.debug}` in the arguments, `PORT_DEBUG` in the environment; not with `port` or `hint`. */
  ports?: string[];
  contiguous?: boolean;
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** @default ["ignore", "inherit", "inherit"]. A worker with a pipe to its orchestrator may not outlive it. */
  stdio?: StdioOptions;
  /** How many ports may turn out to be in use, one after the other. @default 5 */
  maxDeclines?: number;
  /** Until when the worker has to listen. @default 60000 */
  readyTimeoutMs?: number;
  /** How long after SIGTERM SIGKILL follows. @default 5000 */
  stopTimeoutMs?: number;
  /** How long the lease is `draining` before SIGTERM, so that proxies let go of the worker. @default 2000 */
  drainMs?: number;
}

export class PortleaseError extends Error {
  readonly name: "PortleaseError";
  /** The HTTP status, or null when there was no answer. */
  readonly status: number | null;
  /** Stable: `held`, `exhausted`, `lease-lost`, `unreachable`, `timeout`, `aborted`, … */
  readonly type: string;
  readonly retryAfterMs: number | null;
  readonly holder: Lease | null;
}

export class Portlease {
  constructor(options?: PortleaseOptions);
  claim(plugin: string, options: ClaimOptions): Promise<ClaimedLease>;
  /** One port for each name, all or none; the leases by name. The first name's is the worker's own. */
  claimPorts<N extends string>(plugin: string, names: readonly N[], options: PortsOptions): Promise<Record<N, ClaimedLease>>;
  hold(plugin: string, options: ClaimOptions): Promise<HeldLease>;
  holdPorts<N extends string>(plugin: string, names: readonly N[], options: PortsOptions): Promise<Record<N, HeldLease>>;
  attach(credentials: Credentials, options?: Change): Promise<HeldLease>;
  renew(lease: ClaimedLease, change?: Change): Promise<ClaimedLease>;
  release(lease: ClaimedLease, options?: CallOptions): Promise<boolean>;
  decline(lease: ClaimedLease, options?: CallOptions): Promise<boolean>;
  leases(filter?: { org?: string; plugin?: string; host?: string; state?: LeaseState } & CallOptions): AsyncGenerator<Lease>;
  resolve(plugin: string, options: { org: string; waitMs?: number } & CallOptions): Promise<Endpoint>;
  events(options?: { lastEventId?: string } & CallOptions): AsyncGenerator<PoolEvent>;
  spawnWorker(command: string, args: string[], options: SpawnOptions): Promise<SpawnedWorker>;
}

export class HeldLease extends EventEmitter {
  readonly pool: string;
  readonly host: string;
  readonly port: number;
  readonly org: string;
  readonly plugin: string;
  readonly instance: number;
  readonly labels: Record<string, string>;
  readonly pid: number | null;
  readonly fence: number;
  readonly state: LeaseState;
  readonly token: string;
  readonly expiresAt: Date;
  readonly ended: boolean;
  readonly doubtful: boolean;
  readonly credentials: Credentials;
  setState(state: LeaseState, more?: Change): Promise<void>;
  update(change: Change): Promise<void>;
  release(options?: CallOptions): Promise<void>;
  decline(options?: CallOptions): Promise<void>;
  /** Ends the heartbeats without giving the port back. */
  detach(): Credentials;
  on(event: "renewed", listener: (fence: number) => void): this;
  on(event: "doubtful" | "lost", listener: (error: PortleaseError) => void): this;
  /** Once, when the host is being emptied: stop the worker, then `release()`. */
  on(event: "draining", listener: () => void): this;
  /** `await using`: releases the lease at the end of the block. */
  [Symbol.asyncDispose](): Promise<void>;
}

export class SpawnedWorker extends EventEmitter {
  readonly lease: HeldLease;
  /** The lease of each port, in the order of `ports`; `lease` is the first. */
  readonly leases: HeldLease[];
  readonly child: ChildProcess;
  readonly port: number;
  readonly pid: number;
  readonly credentials: Credentials;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  stop(options?: { drainMs?: number; timeoutMs?: number }): Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  on(event: "exit", listener: (code: number | null, signal: NodeJS.Signals | null) => void): this;
  on(event: "draining", listener: () => void): this;
  on(event: "lost", listener: (error: PortleaseError) => void): this;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Resolves to whether a port can be bound on this machine. */
export function canBind(port: number): Promise<boolean>;

/** Returns the name of a plugin's port variable: `@hay/plugin-email` gives `EMAIL_PLUGIN_PORT`. */
export function pluginVariable(plugin: string): string;
