// Draws what the API said. Text goes into the page as text, never as markup; an element that is there already is kept,
// so that focus, selection and scrolling survive a redraw.

export const SIGNS = {
  free: ["·", "free"], starting: ["◔", "starting"], ready: ["●", "ready"], degraded: ["▲", "degraded"],
  draining: ["◐", "draining"], cooling: ["…", "cooling down"], quarantined: ["✕", "quarantined"],
  stranger: ["!", "stranger"],
};

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

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

export const number = (value) => Number(value).toLocaleString("en");

export function bytes(count) {
  return count < 1 << 30 ? `${Math.round(count / (1 << 20))} MiB` : `${(count / (1 << 30)).toFixed(1)} GiB`;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
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

// How long ago something was, in words, with the time itself on hover; `refreshAges` keeps them true.
export function age(text) {
  const at = element("time", { datetime: text, title: new Date(text).toLocaleString() });
  setText(at, ageText(text));
  return at;
}

function ageText(text) {
  const seconds = (Date.now() - Date.parse(text)) / 1000;
  if (seconds < -1) return `in ${duration(-seconds)}`;
  return seconds < 5 ? "just now" : `${duration(seconds).replace(/\.\d+/, "")} ago`;
}

export function refreshAges() {
  for (const at of document.querySelectorAll("time[datetime]")) setText(at, ageText(at.getAttribute("datetime")));
}

// A command with a button that copies it.
export function command(text) {
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy: ${text}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      setText(button, "Copied");
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
    }
    setTimeout(() => setText(button, "Copy"), 2000);
  });
  return element("span", { class: "command" }, element("code", {}, text), button);
}

const SEVERITIES = { 3: ["✕", "critical"], 2: ["!", "warning"], 1: ["·", "notice"] };

export function problemRow(problem, address) {
  const [sign, word] = SEVERITIES[problem.severity];
  const what = problem.host ? element("a", { href: address(problem.host, problem.port ?? "") }, problem.what) : problem.what;
  return element("li", { "data-check": problem.check, "data-severity": problem.severity },
    element("span", { class: "severity" }, `${sign} ${word}`), element("span", { class: "what" }, what),
    problem.since ? age(problem.since) : "", command(problem.command));
}

// `named` says what of the place is not known from around the line.
export function eventLine(event, named = { host: true, port: true }) {
  const host = named.host && event.host !== "-" ? event.host : "";
  const place = [host, named.port && event.port ? event.port : ""].filter(Boolean).join(":");
  const worker = event.org ? workerOf(event) : "";
  const words = [event.type + (event.state ? ` ${event.state}` : ""), place, worker, event.error].filter(Boolean).join("  ");
  return element("li", { "data-type": event.type }, age(event.at), ` ${words}`);
}

export function drawFacts(facts) {
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", { "data-fact": name }, value instanceof Node ? value : String(value))]));
}
