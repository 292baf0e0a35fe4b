import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test } from "node:test";

import { client, freshOrg, leasesOf, PATIENCE_MS, skip, WORKER } from "./support.mjs";

const quiet = { stdio: "ignore", drainMs: 0, stopTimeoutMs: PATIENCE_MS };

test("a spawned worker listens on its port, has run's variables, and its port is given back when it stops", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const worker = await ports.spawnWorker(process.execPath, WORKER, { plugin: "email", org, ...quiet });
  const environment = await (await fetch(`http://localhost:${worker.port}/`)).json();
  const port = String(worker.port);
  assert.deepEqual(
    [environment.PORT, environment.EMAIL_PLUGIN_PORT, environment.HAY_WORKER_PORT, environment.ALLOCATOR_FENCE],
    [port, port, port, String(worker.lease.fence)],
  );
  const [shown] = await leasesOf(ports, org);
  assert.deepEqual([shown.state, shown.pid], ["ready", worker.pid]);
  assert.equal((await worker.stop()).code, 0);
  assert.deepEqual(await leasesOf(ports, org), []);
});

test("a worker of several ports has them all, in its arguments and its environment", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const source = `
    process.on("SIGTERM", () => process.exit(0));
    const ports = process.argv.slice(1).map(Number);
    for (const port of ports) require("node:http").createServer((_, answer) => answer.end(JSON.stringify(process.env))).listen(port);
  `;
  const worker = await ports.spawnWorker(process.execPath, ["-e", source, "{port}", "{port.debug}"], {
    plugin: "@hay/plugin-email", org, ports: ["http", "debug"], contiguous: true, ...quiet,
  });
  const [http, debug] = worker.leases;
  assert.deepEqual([http.port, debug.port, debug.plugin], [worker.port, worker.port + 1, "@hay/plugin-email+debug"]);
  const environment = await (await fetch(`http://localhost:${debug.port}/`)).json();
  const names = ["PORT", "PORT_HTTP", "EMAIL_PLUGIN_PORT", "HAY_PLUGIN_EMAIL_PLUGIN_PORT", "HAY_WORKER_PORT", "PORT_DEBUG"];
  assert.deepEqual(names.map((name) => environment[name]), [...Array(5).fill(String(http.port)), String(debug.port)]);
  const shown = await leasesOf(ports, org);
  assert.deepEqual(shown.map(({ state, pid }) => [state, pid]), [["ready", worker.pid], ["ready", worker.pid]]);
  await worker.stop();
  assert.deepEqual(await leasesOf(ports, org), []);
});

test("a worker that ends by itself gives its port back", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  const worker = await ports.spawnWorker(process.execPath, WORKER, { plugin: "email", org, ...quiet });
  process.kill(worker.pid, "SIGKILL");
  const [code, signal] = await once(worker, "exit");
  assert.deepEqual([code, signal], [null, "SIGKILL"]);
  assert.deepEqual(await leasesOf(ports, org), []);
});

test("a port that another process takes before the worker is declined, and another one claimed", { skip }, async () => {
  const ports = client();
  const org = freshOrg();
  let stranger;
  const hold = ports.hold.bind(ports);
  ports.hold = async (...args) => {
    const lease = await hold(...args);
    if (!stranger) {
      stranger = net.createServer().listen(lease.port);
      await once(stranger, "listening");
    }
    return lease;
  };
  const worker = await ports.spawnWorker(process.execPath, WORKER, { plugin: "email", org, ...quiet });
  assert.notEqual(worker.port, stranger.address().port);
  const [shown] = await leasesOf(ports, org);
  assert.equal(shown.port, worker.port);
  await worker.stop();
  stranger.close();
});

test("a program that does not exist, ends early or never listens is an error, and no lease is left", { skip }, async () => {
  const ports = client();
  for (const [command, args, words, readyTimeoutMs] of [
    ["/nonexistent/worker", [], /cannot be started/],
    [process.execPath, ["-e", "process.exit(3)"], /ended \(code 3\)/],
    [process.execPath, ["-e", "setInterval(() => {}, 1000)"], /did not listen/, 300],
  ]) {
    const org = freshOrg();
    const options = { plugin: "email", org, readyTimeoutMs, ...quiet };
    await assert.rejects(ports.spawnWorker(command, args, options), { type: "spawn-failed", message: words });
    assert.deepEqual(await leasesOf(ports, org), []);
  }
});

test("options without plugin or org are refused", { skip }, async () => {
  await assert.rejects(client().spawnWorker("true", [], {}), { type: "invalid-argument" });
});
