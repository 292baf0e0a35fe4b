import assert from "node:assert/strict";
import http from "node:http";
import { once } from "node:events";
import { test } from "node:test";

import { Portlease, PortleaseError } from "../index.mjs";
import { freshOrg, rawServer } from "./support.mjs";

async function rejection(promise) {
  const error = await promise.then(() => assert.fail("it was not rejected"), (reason) => reason);
  assert.ok(error instanceof PortleaseError, String(error));
  return error;
}

test("an address where nobody listens is unreachable, by name", async () => {
  const { server, url } = await rawServer(() => {});
  server.close();
  await once(server, "close");
  const error = await rejection(new Portlease({ url, timeoutMs: 3_000 }).claim("email", { org: freshOrg() }));
  assert.equal(error.type, "unreachable");
  assert.ok(error.message.includes(url) && error.message.includes("ECONNREFUSED"), error.message);
});

test("a socket that does not exist is unreachable, by its path", async () => {
  const error = await rejection(new Portlease({ socketPath: "/nonexistent/agent.sock", timeoutMs: 3_000 }).resolve("email", { org: "o" }));
  assert.equal(error.type, "unreachable");
  assert.match(error.message, /\/nonexistent\/agent\.sock/);
});

test("a server that never answers is a timeout", async () => {
  const sockets = [];
  const { server, url } = await rawServer((socket) => sockets.push(socket.resume()));
  const error = await rejection(new Portlease({ url, timeoutMs: 150 }).claim("email", { org: freshOrg() }));
  assert.equal(error.type, "timeout");
  for (const socket of sockets) socket.destroy();
  server.close();
});

test("a server that breaks off its answer is tried again with the same token", async () => {
  const tokens = [];
  const lease = { pool: "p", host: "h", port: 5556, org: "o", plugin: "email", instance: 0, fence: 1, ttl_s: 30 };
  const server = http.createServer((request, answer) => {
    tokens.push(request.headers["allocator-token"]);
    if (tokens.length < 3) {
      answer.writeHead(201, { "content-length": 500 });
      answer.write('{"pool":');
      setImmediate(() => answer.destroy());
      return;
    }
    answer.writeHead(201, { "content-type": "application/json" }).end(JSON.stringify(lease));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const claimed = await new Portlease({ url: `http://127.0.0.1:${server.address().port}` }).claim("email", { org: "o" });
  assert.equal(claimed.port, 5556);
  assert.equal(tokens.length, 3);
  assert.equal(new Set(tokens).size, 1);
  assert.match(tokens[0], /^[0-9a-f]{32}$/);
  server.close();
});

for (const [name, status, body] of [
  ["a page of another program", 200, "<html>"],
  ["an error of something in between", 502, "<html>bad gateway"],
  ["a failure without a problem", 418, '{"hello": 1}'],
]) {
  test(`${name} is a bad answer`, async () => {
    const server = http.createServer((_, answer) => { answer.writeHead(status); answer.end(body); }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const url = `http://127.0.0.1:${server.address().port}`;
    const error = await rejection(new Portlease({ url }).claim("email", { org: "o" }));
    assert.equal(error.type, "bad-answer");
    assert.ok(error.message.includes(url));
    server.close();
  });
}

test("every call ends at once when its signal is aborted", async () => {
  const { server, url } = await rawServer((socket) => socket.on("error", () => {}).resume());
  const ports = new Portlease({ url });
  const lease = { host: "h", port: 5556, pool: "p", token: "0".repeat(32) };
  const calls = [
    (signal) => ports.claim("email", { org: "o", signal }),
    (signal) => ports.hold("email", { org: "o", signal }),
    (signal) => ports.renew(lease, { signal }),
    (signal) => ports.release(lease, { signal }),
    (signal) => ports.decline(lease, { signal }),
    (signal) => ports.resolve("email", { org: "o", signal }),
    (signal) => ports.leases({ signal }).next(),
    (signal) => ports.spawnWorker("true", [], { plugin: "email", org: "o", signal }),
  ];
  for (const call of calls) {
    const control = new AbortController();
    const pending = rejection(call(control.signal));
    control.abort(new Error("enough"));
    const error = await pending;
    assert.deepEqual([error.type, error.cause.message], ["aborted", "enough"]);
    assert.equal((await rejection(call(AbortSignal.abort()))).type, "aborted");
  }
  server.close();
});

test("an address that is none is refused when the client is made", () => {
  for (const url of ["nonsense", "ftp://host", ""]) {
    assert.throws(() => new Portlease({ url }), { type: "invalid-argument", message: /^url: / });
  }
});
