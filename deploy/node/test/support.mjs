// What the tests share. They run against a real `allocator serve` (or an agent) whose address they are given.
import { spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { after } from "node:test";

import { Portlease } from "../index.mjs";

export const url = process.env.PORTLEASE_TEST_URL;
export const socketPath = process.env.PORTLEASE_TEST_SOCKET;
export const skip = url || socketPath ? false : "PORTLEASE_TEST_URL names no running 'allocator serve'";

export function client(options = {}) {
  return new Portlease({ url: url ?? "http://localhost", socketPath, timeoutMs: PATIENCE_MS, ...options });
}

/** How long a test waits for an answer or for a process to end: a busy machine may take its time. */
export const PATIENCE_MS = 60_000;

let count = 0;
/** An organisation that no other test uses. */
export function freshOrg() {
  count += 1;
  return `org-${process.pid}-${count}`;
}

export async function leasesOf(ports, org) {
  const found = [];
  for await (const lease of ports.leases({ org })) found.push(lease);
  return found;
}

/** Emits resolve once: the value that an emitter gives with an event. */
export async function event(emitter, name) {
  const [value] = await once(emitter, name);
  return value;
}

/** A TCP server that answers each connection by `answer(socket)`. */
export async function rawServer(answer) {
  const server = net.createServer(answer);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, url: `http://127.0.0.1:${server.address().port}` };
}

/** The words of a worker that listens on its port. */
export const WORKER = ["-e", `
  const server = require("node:http").createServer((_, answer) => answer.end(JSON.stringify(process.env)));
  process.on("SIGTERM", () => process.exit(0));
  server.listen(Number(process.argv[1]));
`, "{port}"];

export function sleeper() {
  return spawn("sleep", ["60"], { stdio: "ignore" });
}

// Heartbeats keep no process alive; a test that waits for one has to.
const alive = setInterval(() => {}, 1_000);
after(() => clearInterval(alive));
