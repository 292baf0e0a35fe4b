// Charts of the last hour from /v1/samples: bands that are stacked, or lines; gaps stay gaps, the text says the figures.

import { SIGNS, byId, duration, element, number, setText } from "./view.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const GAP_MS = 35_000;
const STATES = ["ready", "starting", "degraded", "draining"];

function make(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Draws series of numbers over the samples' times; each series is {status, values}, `isStacked` puts one on the other.
function draw(id, samples, series, top, isStacked) {
  const svg = make("svg", { viewBox: "0 0 360 100", preserveAspectRatio: "none", role: "img", "aria-labelledby": `${id}-text` });
  svg.append(make("line", { class: "base", x1: 0, x2: 360, y1: 99, y2: 99 }));
  const times = samples.map((sample) => Date.parse(sample.at));
  const x = (at) => (360 - (times.at(-1) - times[at]) / 10_000).toFixed(1);
  const y = (value) => (99 - 96 * Math.min(1, top ? value / top : 0)).toFixed(1);
  let below = samples.map(() => 0);
  for (const { status, values } of series) {
    const above = isStacked ? values.map((value, at) => value + below[at]) : values;
    for (const [from, to] of pieces(times)) {
      const forth = [];
      const back = [];
      for (let at = from; at < to; at += 1) {
        forth.push(`${x(at)} ${y(above[at])}`);
        back.unshift(`${x(at)} ${y(below[at])}`);
      }
      if (to - from === 1) { forth.push(`${Number(x(from)) - 1} ${y(above[from])}`); back.unshift(`${Number(x(from)) - 1} ${y(below[from])}`); }
      svg.append(make("path", isStacked ? { class: "band", "data-band": status, d: `M${[...forth, ...back].join("L")}Z` }
        : { class: "line", "data-band": status, d: `M${forth.join("L")}` }));
    }
    if (isStacked) below = above;
  }
  byId(id).replaceChildren(svg);
}

function pieces(times) {
  const found = [];
  let from = 0;
  times.forEach((time, at) => {
    if (at && time - times[at - 1] > GAP_MS) { found.push([from, at]); from = at; }
  });
  return times.length ? [...found, [from, times.length]] : [];
}

function legend(id, entries) {
  byId(`${id}-legend`).replaceChildren(...entries.map(([status, text]) => element("span", {},
    element("span", { class: "key", "data-band": status, "aria-hidden": "true" }), text)));
}

export function drawCharts(samples) {
  const of = (name) => samples.map((sample) => sample[name]);
  const rates = (name) => samples.map((sample, at) => {
    const seconds = at ? (Date.parse(sample.at) - Date.parse(samples[at - 1].at)) / 1_000 : 10;
    return sample[name] / Math.max(1, seconds);
  });
  const latest = samples.at(-1);
  draw("chart-leases", samples, STATES.map((status) => ({ status, values: of(status) })), Math.max(0, ...of("size")), true);
  legend("chart-leases", STATES.map((status) => [status, `${SIGNS[status][1]} ${number(latest?.[status] ?? 0)}`]));
  setText(byId("chart-leases-text"), latest?.size
    ? `${number(latest.leased)} of ${number(latest.size)} ports leased (${Math.round((100 * latest.leased) / latest.size)} %), most ${number(Math.max(...of("leased")))}.`
    : "No sample yet.");
  const [claims, refused] = [rates("claims"), rates("refused")];
  const most = Math.max(0, ...claims, ...refused);
  draw("chart-claims", samples, [{ status: "ready", values: claims }, { status: "quarantined", values: refused }], most, false);
  legend("chart-claims", [["ready", `claims ${rate(claims.at(-1))}`], ["quarantined", `refusals ${rate(refused.at(-1))}`]]);
  setText(byId("chart-claims-text"), `Most ${rate(most)}. Claims are those of the whole pool, refusals those of this server.`);
  const waits = of("longest_wait_s");
  draw("chart-wait", samples, [{ status: "starting", values: waits }], Math.max(0, ...waits), false);
  setText(byId("chart-wait-text"), `The longest claim through this server took ${duration(Math.max(0, ...waits))}.`);
  const restarts = of("restarts");
  draw("chart-restarts", samples, [{ status: "degraded", values: restarts }], Math.max(0, ...restarts), false);
  setText(byId("chart-restarts-text"), `Live workers were started again ${number(latest?.restarts ?? 0)} times, at most ${number(Math.max(0, ...restarts))} in this hour.`);
}

const rate = (value) => `${(value ?? 0).toFixed(value && value < 10 ? 1 : 0)} a second`;
