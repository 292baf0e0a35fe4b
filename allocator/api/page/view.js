// Draws what the API said. Text goes into the page as text, never as markup; an element that is there already is kept,
// so that focus, selection and scrolling survive a redraw.

export const SIGNS = {
  free: ["·", "free"], starting: ["◔", "starting"], ready: ["●", "ready"], degraded: ["▲", "degraded"],
  draining: ["◐", "draining"], cooling: ["…", "cooling down"], quarantined: ["✕", "quarantined"],
  stranger: ["!", "stranger"],
};
const MANY = 2000;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

export function statusOf(port) {
  return port.lease ? port.lease.state : port.status === "leased" ? "ready" : port.status;
}

export function workerOf(lease) {
  return `${lease.org}/${lease.plugin}${lease.instance ? `#${lease.instance}` : ""}`;
}

export function duration(seconds) {
  if (seconds < 0) return "ended";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function drawLegend() {
  byId("legend").replaceChildren(...Object.entries(SIGNS).map(([status, [sign, word]]) =>
    element("li", {}, element("span", { class: "swatch", "data-status": status, "aria-hidden": "true" }, sign), word)));
}

export function drawSummary(facts) {
  byId("summary").replaceChildren(...facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", { "data-fact": name }, String(value)))));
}

export function drawGrids(hosts, pool, isShown, chosen) {
  const all = byId("grids");
  const wanted = new Set(hosts.map((host) => host.name));
  for (const section of [...all.children]) if (!wanted.has(section.dataset.host)) section.remove();
  for (const host of hosts) {
    let section = [...all.children].find((one) => one.dataset.host === host.name);
    if (!section) {
      const title = element("h3", {});
      const grid = element("div", { class: "grid", role: "listbox", "aria-label": `Ports of ${host.name}` });
      section = element("div", { class: "host", "data-host": host.name }, title, grid);
      all.append(section);
    }
    const [title, grid] = section.children;
    const more = host.cordoned ? ", gives out no new ports" : "";
    setText(title, `${host.name} (${host.leases} leased, ${host.free} free${more})`);
    drawPorts(grid, host, pool, isShown, chosen);
  }
}

function drawPorts(grid, host, pool, isShown, chosen) {
  const known = new Map(host.ports.map((port) => [port.port, port]));
  const numbers = [];
  if (pool.size <= MANY) for (let port = pool.first; port <= pool.last; port += 1) numbers.push(port);
  else numbers.push(...host.ports.map((port) => port.port));
  for (const extra of known.keys()) if (extra < pool.first || extra > pool.last) numbers.push(extra);
  const there = new Map([...grid.children].map((one) => [Number(one.dataset.port), one]));
  for (const [number, option] of there) if (!numbers.includes(number)) option.remove();
  numbers.forEach((number, at) => {
    let option = there.get(number);
    if (!option) {
      option = element("div", { class: "port", role: "option", "data-port": number, tabindex: "-1" },
        element("span", { class: "sign", "aria-hidden": "true" }), element("span", {}));
    }
    if (grid.children[at] !== option) grid.insertBefore(option, grid.children[at] || null);
    drawPort(option, host, number, known.get(number), isShown, chosen);
  });
  if (grid.children.length && !grid.querySelector('[tabindex="0"]')) grid.children[0].tabIndex = 0;
}

function drawPort(option, host, number, port, isShown, chosen) {
  const status = port ? statusOf(port) : "free";
  const [sign, word] = SIGNS[status] || ["?", status];
  const lease = port && port.lease;
  option.dataset.status = status;
  setText(option.children[0], sign);
  setText(option.children[1], String(number));
  const label = `port ${number}, ${word}${lease ? `, ${workerOf(lease)}` : ""}`;
  if (option.getAttribute("aria-label") !== label) option.setAttribute("aria-label", label);
  option.title = label;
  option.hidden = !isShown(host.name, number, lease);
  option.setAttribute("aria-selected", String(chosen === `${host.name}:${number}`));
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function drawLeases(rows, now) {
  const names = [...document.querySelectorAll("#leases th")].map((head) => head.textContent);
  byId("leases").tBodies[0].replaceChildren(...rows.map((lease) => {
    const [sign, word] = SIGNS[lease.state];
    const state = element("span", { class: "swatch", "data-status": lease.state }, `${sign} ${word}`);
    const left = duration((Date.parse(lease.expires_at) - now) / 1000);
    const cells = [lease.host, lease.port, lease.org, lease.plugin, lease.instance, state, lease.pid ?? "–",
      lease.restarts, left, lease.last_error ?? "–"];
    const row = element("tr", { "data-lease": `${lease.host}:${lease.port}` });
    cells.forEach((cell, at) => row.append(element("td",
      { "data-name": names[at], ...(at === 9 ? { class: "long" } : {}) }, cell instanceof Node ? cell : String(cell))));
    return row;
  }));
}

export function drawHosts(hosts) {
  byId("hosts").tBodies[0].replaceChildren(...hosts.map((host) => element("tr", { "data-host": host.name },
    element("th", { scope: "row" }, host.name), element("td", {}, String(host.leases)),
    element("td", {}, String(host.free)), element("td", {}, host.cordoned ? "no, cordoned" : "yes"))));
}

export function drawDrift(drift) {
  const count = drift.count ?? 0;
  byId("drift-text").textContent = drift.problem ? `Not compared: ${drift.problem}`
    : !drift.compared ? "This server has no database to compare with; see 'serve --database-url'."
      : `${count ? `${count} ${count === 1 ? "difference" : "differences"}` : "None"}, read at ${new Date(drift.at).toLocaleTimeString()}.`;
  byId("drift-scroll").hidden = !drift.differences.length;
  const names = [...document.querySelectorAll("#drift th")].map((head) => head.textContent);
  byId("drift").tBodies[0].replaceChildren(...drift.differences.map((one) => {
    const row = element("tr", { "data-kind": one.kind });
    [one.kind, one.host ?? "–", one.port ?? "–", one.worker ?? "–", one.action, one.detail].forEach((cell, at) =>
      row.append(element("td", { "data-name": names[at], ...(at === 5 ? { class: "long" } : {}) }, String(cell))));
    return row;
  }));
}

export function eventLine(event) {
  const time = new Date(event.at).toLocaleTimeString();
  const place = event.port ? `${event.host}:${event.port}` : event.host === "-" ? "" : event.host;
  const worker = event.org ? workerOf(event) : "";
  return element("li", { "data-type": event.type },
    [time, event.type + (event.state ? ` ${event.state}` : ""), place, worker].filter(Boolean).join("  "));
}

export function drawFacts(facts) {
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", { "data-fact": name }, String(value))]));
}

// A chart of values that are 0 or more; the last hour is the whole width, gaps stay gaps.
export function drawChart(id, samples, valueOf, top) {
  const namespace = "http://www.w3.org/2000/svg";
  const make = (name, attributes) => {
    const made = document.createElementNS(namespace, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const svg = make("svg", { viewBox: "0 0 360 100", preserveAspectRatio: "none", role: "img", "aria-labelledby": `${id}-text` });
  const end = samples.length ? Date.parse(samples.at(-1).at) : 0;
  const points = samples.map((sample) => [
    360 - (end - Date.parse(sample.at)) / 10_000, 98 - 96 * Math.min(1, top ? valueOf(sample) / top : 0)]);
  svg.append(make("line", { class: "base", x1: 0, x2: 360, y1: 98, y2: 98 }));
  if (points.length) {
    const path = points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    svg.append(make("path", { class: "area", d: `${path}L360 98L${points[0][0].toFixed(1)} 98Z` }));
    svg.append(make("path", { class: "line", d: points.length > 1 ? path : `${path}h-1` }));
  }
  byId(id).replaceChildren(svg);
}
