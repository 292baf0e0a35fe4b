import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import { inspect } from "node:util";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { HeldLease, PortleaseError } from "../index.mjs";
import { client, event, freshOrg, leasesOf, skip } from "./support.mjs";

test("a worker holds a port, becomes ready, is found, and gives the port back", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const lease = await ports.hold("email", { org, labels: { team: "mail" } });
  const server = http.createServer((_, answer) => answer.end("ok")).listen(lease.port);
  await once(server, "listening");
  await lease.setState("ready");
  assert.equal((await ports.resolve("email", { org })).port, lease.port);
  const [shown] = await leasesOf(ports, org);
  assert.deepEqual([shown.state, shown.pid, shown.labels], ["ready", process.pid, { team: "mail" }]);
  assert.deepEqual([lease.org, lease.plugin, lease.instance, lease.labels.team], [org, "email", 0, "mail"]);
  assert.ok(lease.expiresAt > new Date());
  server.close();
  await lease.release();
  assert.deepEqual(await leasesOf(ports, org), []);
});

test("heartbeats keep a lease beyond its TTL", { skip }, async () => {
  const lease = await client().hold("email", { org: freshOrg(), ttlMs: 8_000 });
  const { fence } = lease;
  for (let beat = 0; beat < 3; beat += 1) await event(lease, "renewed");
  assert.deepEqual([lease.fence, lease.doubtful], [fence, false]);
  await lease.release();
});

test("an ended lease is reported as lost once, with its type", { skip }, async () => {
  const ports = client();
  const claimed = await ports.claim("email", { org: freshOrg(), ttlMs: 5_000 });
  const held = new HeldLease(ports, claimed);
  const lost = event(held, "lost");
  await ports.release(claimed);
  assert.equal((await lost).type, "lease-lost");
  assert.equal(held.ended, true);
  await assert.rejects(held.setState("ready"), { name: "PortleaseError", type: "lease-lost" });
});

test("instances that are not named are numbered, and a worker's own again for its token", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const [first, second] = [await ports.hold("email", { org, instance: "auto" }), await ports.hold("email", { org, instance: "auto" })];
  assert.deepEqual([first.instance, second.instance], [0, 1]);
  const again = await ports.claim("email", { org, instance: "auto", token: second.token });
  assert.deepEqual([again.instance, again.port], [1, second.port]);
  await first.release();
  await second.release();
});

test("a key gets the same instance again, after its lease has ended too", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const instances = [];
  for (const key of ["a", "b", "b", "a"]) {
    const lease = await ports.hold("email", { org, instance: "auto", key });
    instances.push(lease.instance);
    await lease.release();
  }
  assert.deepEqual(instances, [0, 1, 1, 0]);
});

test("several ports are claimed, all or none, and held by their names", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const { http, debug } = await ports.holdPorts("email", ["http", "debug"], { org, labels: { team: "mail" } });
  assert.deepEqual([http.plugin, debug.plugin, debug.labels.team], ["email", "email+debug", "mail"]);
  assert.equal(new Set([http.port, debug.port]).size, 2);
  await debug.setState("ready");
  const kept = debug.detach();
  const attached = await client().attach(JSON.parse(JSON.stringify(kept)));
  assert.deepEqual([attached.port, attached.state], [debug.port, "ready"]);
  await Promise.all([http.release(), attached.release()]);
  assert.deepEqual(await leasesOf(ports, org), []);
  const claimed = await ports.claimPorts("email", ["1", "0"], { org, contiguous: true });
  assert.deepEqual([claimed[1].plugin, claimed[0].plugin, claimed[0].port], ["email", "email+0", claimed[1].port + 1]);
  for (const lease of Object.values(claimed)) await ports.release(lease);
});

test("names of ports that are none are refused before anything is claimed", { skip }, async () => {
  for (const names of [[], undefined, "http"]) {
    await assert.rejects(client().holdPorts("email", names, { org: freshOrg() }), { type: "invalid-argument", message: /^names: / });
  }
  await assert.rejects(client().holdPorts("email", ["a", "a"], { org: freshOrg() }), { type: "invalid-input", message: /different names/ });
});

test("await using gives the port back", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const lease = await ports.hold("email", { org });
  await lease[Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]();
  assert.deepEqual(await leasesOf(ports, org), []);
});

test("credentials hold a lease on after its holder is gone", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const first = await ports.hold("email", { org, labels: { team: "mail" } });
  await first.setState("ready");
  const kept = JSON.parse(JSON.stringify(first.detach()));
  for (const field of ["pool", "host", "port", "org", "plugin", "instance", "fence", "token"]) assert.ok(kept[field] !== undefined, field);
  const second = await client().attach(kept);
  assert.deepEqual([second.port, second.fence, second.state, second.labels.team], [first.port, first.fence, "ready", "mail"]);
  await second.release();
  assert.deepEqual(await leasesOf(ports, org), []);
});

test("credentials without a field are refused by its name", { skip }, async () => {
  await assert.rejects(client().attach({ pool: "p", host: "h" }), { type: "invalid-argument", message: /port is missing/ });
});

test("printing a lease or a client shows no token", { skip }, async () => {
  const ports = client({ token: "secret-bearer" });
  const claimed = await client().claim("email", { org: freshOrg() });
  const held = new HeldLease(client(), claimed);
  const shown = inspect(ports, { depth: 9 }) + inspect(claimed) + inspect(held, { depth: 9 });
  assert.ok(!shown.includes("secret-bearer") && !shown.includes(claimed.token));
  await held.release();
});

test("a claim that cannot be right is an error that names the field", { skip }, async () => {
  const error = await client().claim("email", { org: freshOrg(), port: 1 }).catch((reason) => reason);
  assert.ok(error instanceof PortleaseError);
  assert.deepEqual([error.type, error.status], ["invalid-input", 422]);
  assert.ok(!error.message.includes("--"), error.message);
});

test("events are iterated until the signal is aborted", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const stop = new AbortController();
  const seen = [];
  // The stream has no message that says when it begins: leases are claimed until one is seen in it.
  const claims = (async () => {
    while (!stop.signal.aborted) {
      await ports.release(await ports.claim("email", { org }));
      await pause(50);
    }
  })();
  for await (const found of ports.events({ signal: stop.signal })) {
    if (found.data?.worker?.startsWith?.(`${org}/`) || JSON.stringify(found.data).includes(org)) seen.push(found);
    if (seen.length >= 2) stop.abort();
  }
  await claims;
  assert.ok(seen.every((found) => found.id && found.type));
});
