// The panel of what was chosen: a port with its worker, process and past, or a host with its condition. What is read is
// read once; afterwards the pool's events say when to read again, so that an open panel costs the server little.

import { Problem, read } from "./client.js";
import { SIGNS, age, bytes, byId, command, drawFacts, element, eventLine, number, setText } from "./view.js";

const EVERY_MS = 30_000;
const KEPT = 200;
const LETTERS = { c: "cooling", q: "quarantined", x: "stranger" };
const HEALTH = { starting: "has not answered yet", ready: "passes", degraded: "fails", draining: "is sent no new requests" };

function withoutRight(error) {
  if (error instanceof Problem && [403, 404].includes(error.status)) return null;
  throw error;
}

const quoted = (word) => (/^[\w.@%+=:,/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

export class Panel {
  constructor() {
    this.chosen = null;
    this.pool = null;
  }

  // Opens the panel for {host, port}; port is null for a host. Null closes it.
  choose(pool, chosen) {
    const isNew = Boolean(chosen) && (pool !== this.pool || chosen.host !== this.chosen?.host || chosen.port !== this.chosen?.port);
    this.pool = pool;
    this.chosen = chosen;
    byId("detail").hidden = !chosen;
    document.body.classList.toggle("with-detail", Boolean(chosen));
    if (!isNew) return false;
    Object.assign(this, { lease: null, events: [], since: null, readAt: 0, isDirty: true });
    setText(byId("detail-title"), chosen.port ? `Port ${chosen.port} on ${chosen.host}` : `Host ${chosen.host}`);
    setText(byId("history-title"), chosen.port ? "What happened to the port" : "What happens on the host");
    for (const id of ["facts", "commands", "history"]) byId(id).replaceChildren();
    drawFacts([["Status", "reading …"]]);
    byId("detail-title").focus();
    return true;
  }

  concerns(event) {
    return this.chosen?.host === event.host && (!this.chosen.port || this.chosen.port === Number(event.port));
  }

  take(event) {
    if (!this.concerns(event)) return;
    this.events.push(event);
    this.events.splice(0, this.events.length - KEPT);
    this.isDirty = true;
  }

  // Reads what is to be read, and draws; `fleet` says what the pool looks like.
  async refresh(fleet, where) {
    const { chosen, pool } = this;
    if (!chosen) return;
    const now = Date.now();
    if (chosen.port && (this.isDirty || now - this.readAt > EVERY_MS)) {
      const path = `v1/leases/${encodeURIComponent(chosen.host)}/${chosen.port}`;
      const isFirst = !this.readAt;
      this.readAt = now;
      this.isDirty = false;
      let since = null;
      const isLeased = "srdn".includes(this.letter(fleet) ?? "r");
      const [lease, past] = await Promise.all([isLeased ? read(path, { pool }).catch(withoutRight) : null,
        isFirst ? read(`${path}/events`, { pool }, (headers) => { since = headers.get("Events-Since"); }).catch(withoutRight) : null]);
      if (chosen !== this.chosen) return;
      this.lease = lease;
      if (past) Object.assign(this, { since, events: [...past, ...this.events.filter((one) => !past.some((other) => other.id === one.id))] });
    }
    this.draw(fleet, where);
  }

  letter(fleet) {
    return fleet.hosts.find((one) => one.name === this.chosen.host)?.ports?.[this.chosen.port - fleet.first];
  }

  draw(fleet, where) {
    const { host, port } = this.chosen;
    drawFacts(port ? this.portFacts(fleet) : this.hostFacts(fleet));
    const at = `--host ${quoted(host)}${where}`;
    const commands = port
      ? [`allocator show ${port} ${at}`, `allocator events --follow${where}`, ...this.processCommands()]
      : [`allocator ls ${at}`, `allocator host show ${quoted(host)}${where}`, `allocator host drain ${quoted(host)}${where}`, `allocator host uncordon ${quoted(host)}${where}`];
    if (byId("commands").dataset.shown !== commands.join("\n")) {
      byId("commands").dataset.shown = commands.join("\n");
      byId("commands").replaceChildren(...commands.map((text) => element("li", {}, command(text))));
    }
    byId("history").replaceChildren(...[...this.events].reverse().map((event) => eventLine(event, { port: !port, host: false })));
    if (!this.events.length) byId("history").append(element("li", {}, "Nothing is known of it."));
    byId("history-since").replaceChildren(...(this.since ? ["All since ", age(this.since), "; older events are not shown."] : []));
  }

  processCommands() {
    const { lease, chosen } = this;
    return lease?.pid && !lease.process ? [`ssh ${quoted(chosen.host)} ps -o pid,lstart,rss,args -p ${lease.pid}`] : [];
  }

  portFacts(fleet) {
    const { lease } = this;
    const status = lease?.state ?? LETTERS[this.letter(fleet)] ?? "free";
    const [sign, word] = SIGNS[status];
    const swatch = element("span", { class: "swatch", "data-status": status }, `${sign} ${word}`);
    const last = this.events.at(-1);
    if (!lease) return [["Status", swatch], ["Last event", last ? age(last.at) : "–"]];
    return [
      ["Worker", `${lease.org}/${lease.plugin}#${lease.instance}`], ["Status", swatch], ["In this state since", this.stateSince()],
      ["Health", HEALTH[lease.state]], ["Last error", lease.last_error ?? "–"], ["Restarts", lease.restarts],
      ...this.processFacts(), ["Granted", age(lease.granted_at)], ["Ends without a heartbeat", age(lease.expires_at)],
      ...Object.entries(lease.labels).map(([name, value]) => [`Label ${name}`, value]), ["Fence", lease.fence],
    ];
  }

  processFacts() {
    const { lease } = this;
    const seen = lease.process;
    if (!lease.pid) return [["Process", "not known"]];
    const started = seen?.started_at ?? lease.started_at;
    return [["Process", seen ? `${seen.command}, pid ${seen.pid}` : `pid ${lease.pid}`], ...(started ? [["Started", age(started)]] : []),
      ...(seen ? [["Memory", bytes(seen.resident_bytes)]] : [])];
  }

  stateSince() {
    const begins = ["granted", "reasserted", "restored"];
    const cause = [...this.events].reverse().find((one) => one.state === this.lease.state || begins.includes(one.type));
    return cause ? age(cause.at) : "–";
  }

  hostFacts(fleet) {
    const host = fleet.hosts.find((one) => one.name === this.chosen.host);
    if (!host) return [["Status", "not known in this pool"]];
    const condition = host.draining ? "draining: gives out no new ports, its workers are stopped"
      : host.cordoned ? "cordoned: gives out no new ports" : "gives out ports";
    const counts = Object.entries(host.counts).filter(([, count]) => count)
      .map(([status, count]) => [SIGNS[status][1].replace(/^./, (first) => first.toUpperCase()), number(count)]);
    return [["Status", condition], ["Last heartbeat", host.heard_at ? age(host.heard_at) : "not known"], ["Problems", host.problems], ...counts];
  }
}
