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
  /** The proof of holding: keep it out of logs. */
  token: string;
  sentAt: number;
  proved?: boolean;
}

export interface ClaimOptions {
  org: string;
  instance?: number;
  port?: number;
  hint?: number;
  ttlMs?: number;
  waitMs?: number;
  pid?: number;
  labels?: Record<string, string>;
  host?: string;
  token?: string;
}

export interface Change {
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

export class PortleaseError extends Error {
  readonly status: number;
  readonly type: string;
  readonly retryAfterMs: number | null;
  readonly holder: Lease | null;
}

export class Portlease {
  constructor(options?: {
    url?: string;
    socketPath?: string;
    token?: string;
    pool?: string;
    host?: string;
    timeoutMs?: number;
  });
  claim(plugin: string, options: ClaimOptions): Promise<ClaimedLease>;
  hold(plugin: string, options: ClaimOptions): Promise<HeldLease>;
  renew(lease: ClaimedLease, change?: Change): Promise<ClaimedLease>;
  release(lease: ClaimedLease): Promise<boolean>;
  decline(lease: ClaimedLease): Promise<boolean>;
  leases(filter?: { org?: string; plugin?: string; host?: string; state?: LeaseState }): AsyncGenerator<Lease>;
  resolve(plugin: string, options: { org: string; waitMs?: number }): Promise<Endpoint>;
}

export class HeldLease extends EventEmitter {
  readonly host: string;
  readonly port: number;
  readonly fence: number;
  readonly state: LeaseState;
  readonly doubtful: boolean;
  setState(state: LeaseState, more?: Change): Promise<void>;
  release(): Promise<void>;
  decline(): Promise<void>;
  on(event: "renewed", listener: (fence: number) => void): this;
  on(event: "doubtful" | "lost", listener: (error: Error) => void): this;
  /** Once, when the host is to be emptied: stop the worker, then `release()`. */
  on(event: "draining", listener: () => void): this;
}

export function canBind(port: number): Promise<boolean>;
