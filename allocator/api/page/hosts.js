// The hosts as rows of port cells, drawn only where they are seen: a thousand hosts are a few dozen elements. A row is
// kept while it is seen, so that focus survives a redraw. The keyboard moves one focus through all cells.

import { SIGNS, element, setText } from "./view.js";

const LETTERS = { ".": "free", s: "starting", r: "ready", d: "degraded", n: "draining", q: "quarantined", c: "cooling", x: "stranger" };
const MORE = 6; // rows drawn beyond what is seen

export class HostList {
  constructor(box, onOpen, addressOf) {
    this.box = box;
    this.inner = element("div", { class: "inner", role: "presentation" });
    box.append(this.inner);
    this.hosts = [];
    this.rows = new Map();
    this.focus = { host: null, port: null };
    this.chosen = null;
    this.onOpen = onOpen;
    this.addressOf = addressOf;
    box.addEventListener("scroll", () => this.draw());
    addEventListener("resize", () => this.draw());
    box.addEventListener("click", (event) => this.open(event.target.closest(".port")));
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("focusin", (event) => {
      const cell = event.target.closest(".port");
      if (cell) this.focus = { host: cell.dataset.host, port: Number(cell.dataset.port) };
    });
  }

  show(fleet, hosts, states, chosen) {
    this.fleet = fleet;
    this.hosts = hosts;
    this.states = states;
    this.chosen = chosen;
    this.box.setAttribute("aria-rowcount", String(hosts.length));
    if (!hosts.some((host) => host.name === this.focus.host)) this.focus = { host: hosts[0]?.name ?? null, port: fleet.first };
    this.draw();
  }

  get rowHeight() {
    return matchMedia("(max-width: 760px)").matches ? 64 : 30;
  }

  draw() {
    const height = this.rowHeight;
    this.inner.style.height = `${this.hosts.length * height}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / height) - MORE);
    const last = Math.min(this.hosts.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / height) + MORE);
    const seen = new Set(this.hosts.slice(first, last).map((host) => host.name));
    if (this.box.contains(document.activeElement)) seen.add(this.focus.host);
    for (const [name, row] of this.rows) {
      if (!seen.has(name)) { row.remove(); this.rows.delete(name); }
    }
    this.hosts.forEach((host, at) => { if (seen.has(host.name)) this.drawRow(host, at, at * height); });
  }

  drawRow(host, at, top) {
    let row = this.rows.get(host.name);
    if (!row) {
      row = element("div", { class: "host", role: "row", "data-host": host.name }, element("div", { class: "name", role: "rowheader" },
        element("a", { href: this.addressOf(host.name), tabindex: "-1" })),
        element("div", { class: "cells", role: "presentation" }));
      this.rows.set(host.name, row);
      this.inner.append(row);
    }
    row.style.transform = `translateY(${top}px)`;
    row.setAttribute("aria-rowindex", String(at + 1));
    const drawnFor = [...this.states, this.chosen, this.focus.host === host.name && this.focus.port].join(" ");
    if (row.drawn === host && row.drawnFor === drawnFor) return; // a host that did not change is the same object
    Object.assign(row, { drawn: host, drawnFor });
    row.dataset.severity = host.severity;
    const condition = host.draining ? " (drained)" : host.cordoned ? " (cordoned)" : "";
    const bad = host.severity > 1 ? `${host.severity > 2 ? "✕" : "!"} ` : "";
    setText(row.children[0].firstChild, `${bad}${host.name}${condition}`);
    row.children[0].title = `${host.name}${condition}: ${host.counts.ready} ready, ${host.counts.free} free, ${host.problems} problems`;
    row.children[0].firstChild.tabIndex = host.ports === null ? 0 : -1;
    if (host.ports === null) this.drawShares(row.children[1], host);
    else this.drawCells(row.children[1], host);
  }

  drawCells(cells, host) {
    const { first } = this.fleet;
    if (cells.children.length !== host.ports.length) {
      cells.replaceChildren(...[...host.ports].map((_, at) => element("span",
        { class: "port", role: "gridcell", "data-port": first + at, "data-host": host.name, tabindex: "-1" })));
    }
    [...host.ports].forEach((letter, at) => {
      const cell = cells.children[at];
      const status = LETTERS[letter] ?? "free";
      const port = first + at;
      if (cell.dataset.status !== status) {
        cell.dataset.status = status;
        setText(cell, SIGNS[status][0]);
        cell.setAttribute("aria-label", `${host.name} port ${port}, ${SIGNS[status][1]}`);
        cell.title = `${port} ${SIGNS[status][1]}`;
      }
      cell.classList.toggle("dim", this.states.size > 0 && !this.states.has(status));
      cell.setAttribute("aria-selected", String(this.chosen === `${host.name}:${port}`));
      cell.tabIndex = this.focus.host === host.name && this.focus.port === port ? 0 : -1;
    });
  }

  drawShares(cells, host) {
    const counts = Object.entries(host.counts).filter(([, count]) => count);
    cells.replaceChildren(element("span", { class: "shares", role: "gridcell" }, ...counts.map(([status, count]) => {
      const share = element("span", { class: "share", "data-status": status }, `${SIGNS[status][0]} ${count} ${SIGNS[status][1]}`);
      share.style.flexGrow = count;
      return share;
    })));
  }

  open(cell) {
    if (!cell) return;
    this.move(cell.dataset.host, Number(cell.dataset.port));
    this.onOpen(cell.dataset.host, Number(cell.dataset.port));
  }

  key(event) {
    const cell = event.target.closest(".port");
    if (!cell) {
      if (event.key === "ArrowRight" && this.focus.host) this.move(this.focus.host, this.fleet.first);
      return;
    }
    if (event.key === "ArrowLeft" && this.focus.port === this.fleet.first) {
      this.rows.get(this.focus.host)?.querySelector(".name a").focus(); // the host itself
    } else if (event.key === "Enter" || event.key === " ") this.open(cell);
    else {
      const at = this.hosts.findIndex((host) => host.name === this.focus.host);
      const page = Math.max(1, Math.floor(this.box.clientHeight / this.rowHeight) - 1);
      const [down, across] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], PageDown: [page, 0],
        PageUp: [-page, 0], Home: [0, -1e6], End: [0, 1e6] }[event.key] ?? [null, 0];
      if (down === null) return;
      const host = this.hosts[Math.min(this.hosts.length - 1, Math.max(0, at + down))];
      const size = host.ports?.length ?? 1;
      this.move(host.name, this.fleet.first + Math.min(size - 1, Math.max(0, this.focus.port - this.fleet.first + across)));
    }
    event.preventDefault();
  }

  move(host, port) {
    this.focus = { host, port };
    const top = this.hosts.findIndex((one) => one.name === host) * this.rowHeight;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + this.rowHeight > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.rowHeight - this.box.clientHeight;
    this.draw();
    this.rows.get(host)?.querySelector(`.port[data-port="${port}"]`)?.focus({ preventScroll: true });
  }
}
