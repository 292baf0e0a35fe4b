// The status page: reads pools, hosts and ports, follows the events, and reads again what an event touched. What is
// shown is what the API last said; the footer says when. Nothing here changes a lease.

import { Problem, follow, read, setToken } from "./client.js";
import {
  byId, drawChart, drawDrift, drawFacts, drawGrids, drawHosts, drawLeases, drawLegend, drawSummary, duration, element, eventLine,
  SIGNS, statusOf, workerOf,
} from "./view.js";

const MOST_HOSTS = 24; // in full; more are in the table of hosts, and come up by a search for their name
const EVERY_MS = 15_000;
const PACE_MS = 400;
const KEPT_EVENTS = 200;
const DRIFT_MS = 10_000; // the server looks no oftener

const state = { pool: null, pools: [], hosts: [], details: new Map(), chosen: null, search: "", following: null, driftAt: 0 };
let reading = null;
let again = false;

async function refresh() {
  if (reading) { again = true; return reading; }
  reading = readAll().finally(async () => {
    reading = null;
    if (again) { again = false; setTimeout(refresh, PACE_MS); }
  });
  return reading;
}

async function readAll() {
  try {
    state.pools = await read("v1/pools");
    if (!state.pool) state.pool = (state.pools.find((pool) => pool.served) || state.pools[0])?.name ?? null;
    const name = state.pool;
    if (name) {
      const hosts = await read("v1/hosts", { pool: name });
      const words = state.search.toLowerCase();
      const named = words ? hosts.filter((host) => host.name.toLowerCase().includes(words)) : [];
      const full = [...new Set([...named, ...hosts])].slice(0, MOST_HOSTS).sort((a, b) => (a.name < b.name ? -1 : 1));
      const details = await Promise.all(full.map((host) =>
        read(`v1/hosts/${encodeURIComponent(host.name)}`, { pool: name }).catch(ignoreMissing)));
      if (name !== state.pool) return;
      state.hosts = hosts;
      state.details = new Map(details.filter(Boolean).map((detail) => [detail.name, detail]));
    }
    state.samples = await read("v1/samples");
    await readDrift();
    byId("read-at").textContent = new Date().toLocaleTimeString();
    byId("problem").hidden = true;
    draw();
  } catch (error) {
    fail(error);
  }
}

// The database may be away while Redis is not: that is said in its own place, and the rest stays current.
async function readDrift() {
  if (Date.now() - state.driftAt < DRIFT_MS) return;
  state.driftAt = Date.now();
  try {
    drawDrift(await read("v1/drift"));
  } catch (error) {
    if (!(error instanceof Problem) || error.status === 401) throw error;
    drawDrift({ problem: error.message, differences: [] });
  }
}

function ignoreMissing(error) {
  if (error instanceof Problem && error.status === 404) return null;
  throw error;
}

function fail(error) {
  if (error instanceof Problem && error.status === 401) {
    if (!byId("sign-in").open) byId("sign-in").showModal();
    return;
  }
  byId("problem").textContent = `Not up to date: ${error.message}`;
  byId("problem").hidden = false;
}

function draw() {
  const pool = state.pools.find((one) => one.name === state.pool);
  drawPools();
  if (!pool) {
    drawSummary([["Pools", 0]]);
    return;
  }
  const details = [...state.details.values()];
  // Of a host that was read in full its strangers are known, which are not free.
  const hosts = state.hosts.map((host) => ({ ...host, free: (state.details.get(host.name) ?? host).free }));
  const leases = details.flatMap((host) => host.ports.map((port) => port.lease).filter(Boolean));
  const count = (status) => details.reduce((sum, host) => sum + host.ports.filter((port) => statusOf(port) === status).length, 0);
  drawSummary([
    ["Leased", state.hosts.reduce((sum, host) => sum + host.leases, 0)],
    ["Free", hosts.reduce((sum, host) => sum + host.free, 0)],
    ["Degraded", count("degraded")], ["Quarantined", count("quarantined")], ["Strangers", count("stranger")],
    ["Hosts", state.hosts.length],
  ]);
  drawGrids(details, pool, isShown, state.chosen);
  drawLeases(leases.filter((lease) => isShown(lease.host, lease.port, lease)), Date.now());
  drawHosts(hosts);
  drawCharts();
  drawChosen();
}

function drawPools() {
  const select = byId("pool");
  const names = state.pools.map((pool) => pool.name);
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  }
  if (state.pool) select.value = state.pool;
}

function isShown(host, port, lease) {
  const words = state.search.trim().toLowerCase();
  if (!words) return true;
  const text = `${host}:${port} ${lease ? `${workerOf(lease)} ${lease.org} ${lease.plugin} ${lease.state}` : ""}`.toLowerCase();
  return words.split(/\s+/).every((word) => text.includes(word));
}

function drawCharts() {
  const samples = state.samples || [];
  const latest = samples.at(-1);
  drawChart("fill", samples, (sample) => (sample.size ? sample.leased / sample.size : 0), 1);
  byId("fill-text").textContent = latest?.size
    ? `${latest.leased} of ${latest.size} ports leased (${Math.round((100 * latest.leased) / Math.max(1, latest.size))} %), most ${Math.max(...samples.map((sample) => sample.leased))}.`
    : "No sample yet.";
  const longest = Math.max(0, ...samples.map((sample) => sample.longest_wait_s));
  drawChart("wait", samples, (sample) => sample.longest_wait_s, longest);
  const claims = samples.reduce((sum, sample) => sum + sample.claims, 0);
  const refused = samples.reduce((sum, sample) => sum + sample.refused, 0);
  byId("wait-text").textContent =
    `${claims} claims and ${refused} refusals through this server, the longest took ${duration(longest)}.`;
}

function chosenPort() {
  if (!state.chosen) return [null, null, null];
  const at = state.chosen.lastIndexOf(":");
  const host = state.details.get(state.chosen.slice(0, at));
  const number = Number(state.chosen.slice(at + 1));
  return [host, number, host?.ports.find((port) => port.port === number) ?? null];
}

function drawChosen() {
  const [host, number, port] = chosenPort();
  if (!host) return;
  const status = port ? statusOf(port) : "free";
  byId("detail-title").textContent = `Port ${number} on ${host.name}`;
  byId("detail-hint").hidden = true;
  const facts = [["Status", SIGNS[status]?.[1] ?? status]];
  const lease = port?.lease;
  if (lease) {
    facts.push(["Organisation", lease.org], ["Plugin", lease.plugin], ["Instance", lease.instance], ["Fence", lease.fence],
      ["Pid", lease.pid ?? "–"], ["Restarts", lease.restarts], ["Last error", lease.last_error ?? "–"],
      ["Granted", new Date(lease.granted_at).toLocaleString()], ["Ends", new Date(lease.expires_at).toLocaleTimeString()]);
    for (const [name, value] of Object.entries(lease.labels)) facts.push([`Label ${name}`, value]);
  } else if (port?.claimable_in_s > 0) {
    facts.push(["Claimable in", duration(port.claimable_in_s)]);
  } else if (status === "stranger") {
    facts.push(["Meaning", "a process listens here without a lease; see 'allocator who'"]);
  }
  drawFacts(facts);
}

async function choose(address) {
  state.chosen = address;
  for (const option of document.querySelectorAll(".port")) {
    const here = `${option.closest(".host").dataset.host}:${option.dataset.port}` === address;
    option.setAttribute("aria-selected", String(here));
  }
  drawChosen();
  await readHistory();
}

async function readHistory() {
  const [host, number] = chosenPort();
  if (!host) return;
  try {
    const events = await read(`v1/leases/${encodeURIComponent(host.name)}/${number}/events`, { pool: state.pool });
    if (state.chosen !== `${host.name}:${number}`) return;
    byId("history-title").hidden = false;
    byId("history").replaceChildren(...events.reverse().map(eventLine));
    if (!events.length) byId("history").append(element("li", {}, "Nothing is known of it."));
  } catch (error) {
    fail(error);
  }
}

function onEvent(type, data) {
  if (type === "away") {
    byId("problem").textContent = "Not up to date: Redis does not answer.";
    byId("problem").hidden = false;
    return;
  }
  if (data.at) {
    const list = byId("events");
    list.prepend(eventLine(data));
    while (list.children.length > KEPT_EVENTS) list.lastElementChild.remove();
    byId("events-none").hidden = true;
    if (`${data.host}:${data.port}` === state.chosen) readHistory();
  }
  refresh();
}

function onState(word) {
  const shown = { live: "live", away: "Redis is away", connecting: "reconnecting" }[word];
  byId("connection").dataset.state = word;
  byId("connection").textContent = shown;
  if (word === "live") refresh();
}

function followPool() {
  state.following?.abort();
  state.following = new AbortController();
  if (state.pool) follow(state.pool, onEvent, onState, state.following.signal).catch(fail);
}

function move(option, key) {
  const shown = [...option.parentElement.children].filter((one) => !one.hidden);
  const wide = Math.max(1, shown.filter((one) => one.offsetTop === shown[0].offsetTop).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[key];
  const at = shown.indexOf(option);
  const next = key === "Home" ? shown[0] : key === "End" ? shown.at(-1) : step ? shown[at + step] : null;
  if (!next) return false;
  option.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  return true;
}

function listen() {
  const grids = byId("grids");
  const address = (option) => `${option.closest(".host").dataset.host}:${option.dataset.port}`;
  grids.addEventListener("click", (event) => {
    const option = event.target.closest(".port");
    if (option) choose(address(option));
  });
  grids.addEventListener("keydown", (event) => {
    const option = event.target.closest(".port");
    if (!option) return;
    if (event.key === "Enter" || event.key === " ") choose(address(option));
    else if (!move(option, event.key)) return;
    event.preventDefault();
  });
  byId("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    draw();
    refresh();
  });
  byId("pool").addEventListener("change", (event) => {
    Object.assign(state, { pool: event.target.value, hosts: [], details: new Map(), chosen: null });
    byId("events").replaceChildren();
    followPool();
    refresh();
  });
  byId("sign-in-form").addEventListener("submit", () => {
    setToken(byId("token").value);
    byId("token").value = "";
    start();
  });
}

async function start() {
  await refresh();
  if (state.pool) followPool();
}

drawLegend();
listen();
start();
setInterval(refresh, EVERY_MS);
