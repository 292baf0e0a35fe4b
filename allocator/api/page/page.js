// The status page: what is wrong comes first, then the hosts as rows of ports. It follows the overview of the pool, which
// the server sends as a stream of what changed, and the events only while a panel or their view shows them. Its address
// names what is shown (#/pool/host/port), so that it can be sent to a colleague. Nothing here changes a lease.

import { Problem, follow, read, setToken } from "./client.js";
import { drawCharts } from "./charts.js";
import { HostList } from "./hosts.js";
import { Panel } from "./panel.js";
import { SIGNS, byId, drawDrift, element, eventLine, number, problemRow, refreshAges, setText } from "./view.js";

const PACE_MS = 500; // between two readings beside the streams
const SILENT_MS = 15_000; // the server sends something every 5 s
const SERVICES_MS = 1_000;
const SLOW_MS = 10_000; // samples and drift: the server looks no oftener
const TYPING_MS = 150;
const KEPT_EVENTS = 1_000;
const SHOWN_EVENTS = 300;
const SLEPT_MS = 20_000;
const PAST_MS = 3_600_000;
const PAGE = 50;
const NAMED_WORKERS = 8; // of a service: those that are not ready, then hosts
const CONDITIONS = { cordoned: ["‖", "cordoned"], drained: ["◐", "drained"] };

const state = {
  pools: [], pool: null, fleet: null, found: null, chosen: null, view: "fleet", states: new Set(), conditions: new Set(), words: "",
  problems: PAGE, services: PAGE, away: null, following: null, heardAt: Date.now(), timer: null, readAt: 0, slowAt: 0, servicesAt: 0,
  events: [], eventsOf: null, followingEvents: null, past: false, lastId: null,
};
const hosts = new HostList(byId("hosts"), (host, port) => go("fleet", host, port), (host) => address(host, ""));
const panel = new Panel();

// -- addresses --

const address = (host, port) => `#/${[state.pool, host, port].map((part) => encodeURIComponent(part)).join("/")}`;

function go(view, host, port) {
  location.hash = host ? address(host, port ?? "") : `#/${encodeURIComponent(state.pool)}${view === "fleet" ? "" : `/${view}`}`;
}

function route() {
  const [pool, first, second] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const view = second === undefined && ["services", "events"].includes(first) ? first : "fleet";
  const chosen = second === undefined || !first ? null : { host: first, port: Number(second) || null };
  if (pool && pool !== state.pool) choosePool(pool);
  Object.assign(state, { view, chosen });
  for (const name of ["fleet", "services", "events"]) {
    const link = byId(`to-${name}`);
    link.href = `#/${encodeURIComponent(state.pool ?? "")}${name === "fleet" ? "" : `/${name}`}`;
    if (name === view) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  byId("fleet").hidden = view !== "fleet";
  byId("services").hidden = view !== "services";
  byId("events-view").hidden = view !== "events";
  const isNew = panel.choose(state.pool, chosen);
  followEvents();
  draw();
  if (view === "services") state.servicesAt = 0;
  if (isNew || view === "services") refresh();
}

function choosePool(pool) {
  stopEvents();
  Object.assign(state, { pool, fleet: null, found: null, chosen: null, events: [], past: false, lastId: null,
    problems: PAGE, services: PAGE, slowAt: 0, servicesAt: 0 });
  byId("events").replaceChildren();
  followFleet();
}

// -- the streams --

function followFleet() {
  state.following?.abort();
  state.following = new AbortController();
  state.heardAt = Date.now();
  const of = state.pool ? { pool: state.pool } : {};
  follow("v1/fleet/changes", of, null, onChange, onState, state.following.signal).catch(async (error) => {
    if (error.status !== 403 || state.pool || !await choosesAnother()) fail(error);
  });
}

function onChange(type, data) {
  state.heardAt = Date.now();
  if (type === "problems" && state.problems === PAGE) state.found = data;
  if (type === "fleet") {
    const isFirst = !state.fleet;
    state.fleet = merged(data.whole ? [] : state.fleet.hosts, data);
    if (!state.pool) { state.pool = data.pool; route(); }
    showConnection(data.live ? "live" : "away");
    setAway(data.live ? null : "Redis does not answer");
    setText(byId("read-at"), new Date().toLocaleTimeString());
    if (isFirst) followEvents();
    draw();
    soon();
  }
  drawProblems();
}

// The hosts that were known with those that changed, worst first.
function merged(known, changes) {
  const found = new Map(known.map((host) => [host.name, host]));
  for (const name of changes.gone) found.delete(name);
  for (const host of changes.hosts) found.set(host.name, host);
  return { ...changes, hosts: [...found.values()].sort((one, other) => other.severity - one.severity || (one.name < other.name ? -1 : 1)) };
}

function onState(word, wrong) {
  if (word === "connecting") showConnection(word);
  if (wrong) fail(wrong);
}

function showConnection(word) {
  byId("connection").dataset.state = word;
  setText(byId("connection"), { live: "live", away: "Redis is away", connecting: "reconnecting" }[word]);
}

// Events are followed while something shows them: the panel those from now on, their view those of the last hour too.
function followEvents() {
  const wanted = state.view === "events" ? "past" : state.chosen ? "new" : null;
  if (!wanted) { stopEvents(); return; }
  if (!state.fleet || wanted === state.eventsOf || state.eventsOf === "past") return;
  stopEvents();
  if (wanted === "past" && !state.past) Object.assign(state, { past: true, events: [], lastId: `${Date.parse(state.fleet.at) - PAST_MS}-0` });
  const after = state.lastId ?? `${Date.parse(state.fleet.at)}-0`;
  state.eventsOf = wanted;
  state.followingEvents = new AbortController();
  follow("v1/events", { pool: state.pool }, after, onEvent, () => {}, state.followingEvents.signal).catch(fail);
}

function stopEvents() {
  state.followingEvents?.abort();
  state.eventsOf = null;
  if (!state.past) state.lastId = null;
}

function followAll() {
  stopEvents();
  followFleet();
  followEvents();
}

function stopAll() {
  stopEvents();
  state.following?.abort();
}

// -- reading beside them --

let reading = null;
let again = false;

function soon() {
  state.timer ??= setTimeout(() => { state.timer = null; refresh(); }, Math.max(0, state.readAt + PACE_MS - Date.now()));
}

async function refresh() {
  if (document.hidden || !state.fleet) return;
  if (reading) { again = true; return; }
  reading = readAll();
  await reading;
  reading = null;
  if (again) { again = false; soon(); }
}

async function readAll() {
  state.readAt = Date.now();
  try {
    if (!state.pools.length) await readPools();
    await Promise.all([panel.refresh(state.fleet, where()), readProblems(), readServices(), readSlow()]);
  } catch (error) {
    fail(error);
  }
}

// The stream has the first problems; more of them are read when somebody wants them.
async function readProblems() {
  if (state.problems === PAGE) return;
  const { pool, problems } = state;
  const found = await read("v1/problems", { pool, limit: problems });
  if (pool !== state.pool) return;
  state.found = found;
  drawProblems();
}

// A token may be for other pools than the server's own: the first of them is shown.
async function choosesAnother() {
  if (!state.pools.length) await readPools().catch(() => {});
  if (!state.pools.length) return false;
  choosePool(state.pools[0].name);
  route();
  return true;
}

async function readPools() {
  state.pools = await read("v1/pools");
  const names = state.pools.map((pool) => pool.name);
  byId("pool").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
}

// What a command needs to mean this pool.
const where = () => (state.pools.find((pool) => pool.name === state.pool)?.served ?? true ? "" : ` --pool ${state.pool}`);

async function readSlow() {
  if (Date.now() - state.slowAt < SLOW_MS || state.view !== "fleet") return;
  state.slowAt = Date.now();
  drawCharts(await read("v1/samples", { pool: state.pool }).catch(withoutRight) ?? []);
  try {
    drawDrift(await read("v1/drift"));
  } catch (error) { // the database may be away while Redis is not
    if (!(error instanceof Problem) || error.status === 401) throw error;
    drawDrift({ problem: error.message, differences: [] });
  }
}

function withoutRight(error) {
  if (error instanceof Problem && [403, 404].includes(error.status)) return null;
  throw error;
}

function fail(error) {
  if (error instanceof Problem && error.status === 401) {
    if (!byId("sign-in").open) byId("sign-in").showModal();
    return;
  }
  setAway(error instanceof Problem ? error.message : "the server does not answer");
}

// Says since when what is shown is not live, and greys it.
function setAway(why) {
  state.away = why ? { why, since: state.away?.since ?? new Date(state.heardAt) } : null;
  const notice = byId("problem");
  notice.hidden = !why;
  if (why) setText(notice, `Not live since ${state.away.since.toLocaleTimeString()}: ${why}. What is shown is older.`);
  byId("main").classList.toggle("stale", Boolean(why));
}

// -- drawing --

function drawProblems() {
  const { fleet, found } = state;
  if (!fleet || !found) return;
  const rest = fleet.problems > found.problems.length;
  byId("problems-none").hidden = found.problems.length > 0;
  setText(byId("problems-title"), found.problems.length ? `Problems (${number(fleet.problems)})` : "Problems");
  const critical = found.problems.filter((one) => one.severity === 3).length;
  document.title = `${critical ? `✕ ${critical}${rest ? "+" : ""} · ` : ""}portlease ${state.pool}`;
  const list = byId("problems-list");
  const before = list.dataset.shown;
  list.dataset.shown = JSON.stringify(found.problems);
  if (before !== list.dataset.shown) list.replaceChildren(...found.problems.map((one) => problemRow(one, address)));
  byId("problems-more").hidden = !rest;
}

function draw() {
  const { fleet } = state;
  if (state.pool) byId("pool").value = state.pool;
  if (!fleet) return;
  drawCounters(fleet);
  const { states, conditions, chosen } = state;
  const shown = fleet.hosts.filter((host) => (!states.size || [...states].some((status) => host.counts[status] > 0))
    && (!conditions.size || [...conditions].some((name) => isIn(host, name))));
  setText(byId("hosts-text"), `${number(shown.length)} of ${number(fleet.total)} hosts, ${number(fleet.size)} ports; worst first.`);
  hosts.show(fleet, shown, states, chosen ? `${chosen.host}:${chosen.port}` : null);
}

const isIn = (host, condition) => (condition === "drained" ? host.draining : host.cordoned && !host.draining);

function drawCounters(fleet) {
  drawFilters(byId("counters"), SIGNS, state.states, (status) => fleet.counts[status]);
  drawFilters(byId("conditions"), CONDITIONS, state.conditions, (name) => fleet.hosts.filter((host) => isIn(host, name)).length);
}

function drawFilters(box, signs, pressed, countOf) {
  if (!box.children.length) {
    box.append(...Object.entries(signs).map(([status, [sign, word]]) => {
      const button = element("button", { type: "button", "data-status": status, "aria-pressed": "false" },
        element("span", { "aria-hidden": "true" }, sign), " ", element("b", { "data-count": status }, "0"), ` ${word}`);
      button.addEventListener("click", () => {
        if (!pressed.delete(status)) pressed.add(status);
        draw();
      });
      return button;
    }));
  }
  for (const button of box.children) {
    const count = countOf(button.dataset.status);
    setText(button.querySelector("b"), number(count));
    button.classList.toggle("none", !count);
    button.setAttribute("aria-pressed", String(pressed.has(button.dataset.status)));
  }
}

async function readServices() {
  if (state.view !== "services" || Date.now() - state.servicesAt < SERVICES_MS) return;
  state.servicesAt = Date.now();
  const found = await read("v1/services", { pool: state.pool, limit: state.services });
  byId("services-more").hidden = found.next === null;
  byId("services-table").tBodies[0].replaceChildren(...found.services.map((one) => element("tr", { "data-service": `${one.org}/${one.plugin}` },
    element("th", { scope: "row" }, one.org), element("td", {}, one.plugin),
    element("td", {}, `${one.ready < one.wanted ? "▲ " : ""}${one.ready}`), element("td", {}, String(one.wanted)),
    element("td", { class: "long" }, ...whereOf(one.workers)))));
}

// Where a service's workers are: each that is not ready, then the hosts with how many are ready there.
function whereOf(workers) {
  const named = workers.filter((worker) => worker.state !== "ready").slice(0, NAMED_WORKERS);
  const ready = Map.groupBy(workers.filter((worker) => worker.state === "ready"), (worker) => worker.host);
  const few = [...ready].slice(0, NAMED_WORKERS);
  const rest = workers.length - named.length - few.reduce((sum, [, there]) => sum + there.length, 0);
  const links = [
    ...named.map((worker) => [address(worker.host, worker.port), `${SIGNS[worker.state][0]} ${worker.host}:${worker.port} ${SIGNS[worker.state][1]}`]),
    ...few.map(([host, there]) => there.length === 1 ? [address(host, there[0].port), `${SIGNS.ready[0]} ${host}:${there[0].port}`]
      : [address(host, ""), `${SIGNS.ready[0]} ${host} (${there.length})`]),
  ];
  return [...links.flatMap(([href, text]) => [element("a", { href, class: "whole" }, text), "  "]), rest ? `and ${number(rest)} more` : ""];
}

// -- search --

let typing = null;

function search() {
  clearTimeout(typing);
  state.words = byId("search").value.trim();
  byId("found").hidden = !state.words;
  typing = state.words ? setTimeout(() => runSearch().catch(fail), TYPING_MS) : null;
}

async function runSearch() {
  const words = state.words;
  const found = await read("v1/search", { q: words, pool: state.pool });
  if (words !== state.words) return;
  setText(byId("found-text"), `${number(found.total)} ${found.total === 1 ? "worker" : "workers"} and ${found.hosts.length} ${found.hosts.length === 1 ? "host" : "hosts"}${found.total > found.leases.length ? `; the first ${found.leases.length} are shown` : ""}.`);
  byId("found-list").replaceChildren(
    ...found.hosts.slice(0, 10).map((host) => element("li", { "data-host": host },
      element("a", { href: address(host, "") }, host), " host")),
    ...found.leases.map((lease) => element("li", { "data-lease": `${lease.host}:${lease.port}` },
      element("a", { href: address(lease.host, lease.port) }, `${lease.host}:${lease.port}`),
      ` ${lease.org}/${lease.plugin}#${lease.instance} ${SIGNS[lease.state][0]} ${SIGNS[lease.state][1]}${lease.last_error ? `: ${lease.last_error}` : ""}`)));
}

// -- events --

function onEvent(type, data, id) {
  if (!data.at) return;
  state.lastId = id;
  state.events.unshift(data);
  state.events.length = Math.min(state.events.length, KEPT_EVENTS);
  addType(data.type);
  panel.take(data);
  if (state.view === "events") drawEventsSoon();
  if (state.chosen) soon();
}

let drawing = null;

function drawEventsSoon() {
  drawing ??= setTimeout(() => { drawing = null; drawEvents(); }, 100);
}

function addType(type) {
  const select = byId("events-type");
  if (![...select.options].some((option) => option.value === type)) select.append(element("option", { value: type }, type));
}

function drawEvents() {
  const type = byId("events-type").value;
  const words = byId("events-words").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const shown = state.events.filter((event) => {
    const text = `${event.host}:${event.port} ${event.worker} ${event.type} ${event.state ?? ""} ${event.error ?? ""}`.toLowerCase();
    return (!type || event.type === type) && words.every((word) => text.includes(word));
  });
  byId("events").replaceChildren(...shown.slice(0, SHOWN_EVENTS).map(eventLine));
  byId("events-none").hidden = shown.length > 0;
}

// -- the page as a whole --

function listen() {
  addEventListener("hashchange", route);
  byId("search").addEventListener("input", search);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    byId("found-list").querySelector("a")?.focus();
    event.preventDefault();
  });
  byId("pool").addEventListener("change", (event) => { location.hash = `#/${encodeURIComponent(event.target.value)}`; });
  byId("detail-close").addEventListener("click", () => go("fleet"));
  byId("problems-more").addEventListener("click", () => { state.problems = Math.min(500, state.problems + 100); soon(); });
  byId("services-more").addEventListener("click", () => { state.services = Math.min(500, state.services + 100); state.servicesAt = 0; soon(); });
  byId("events-type").addEventListener("change", drawEvents);
  byId("events-words").addEventListener("input", drawEvents);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.chosen && !byId("sign-in").open) go("fleet");
    else if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) {
      byId("search").focus();
      event.preventDefault();
    }
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) stopAll(); else followAll(); });
  byId("sign-in-form").addEventListener("submit", () => {
    setToken(byId("token").value);
    byId("token").value = "";
    followAll();
  });
}

// A clock that jumped means a machine that slept: its connections may be dead without a word.
let ticked = Date.now();

function tick() {
  const now = Date.now();
  const isSilent = now - state.heardAt > SILENT_MS;
  if (!document.hidden && (isSilent || now - ticked > SLEPT_MS + 5_000)) {
    if (isSilent) setAway("the server does not answer");
    followAll();
  }
  ticked = now;
  refreshAges();
}

listen();
route();
if (!state.following) followFleet();
setInterval(tick, 5_000);
