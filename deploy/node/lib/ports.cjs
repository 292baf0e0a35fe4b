// What this package knows of ports and names without asking anybody.
"use strict";

const fs = require("node:fs/promises");
const net = require("node:net");

const LISTEN = "0A"; // the state of a listening socket in /proc/net/tcp

/** Resolves to whether a port can be bound on this machine the way a server that names no address binds it. */
function canBind(port) {
  return new Promise((resolve) => {
    const probe = net.createServer();
    probe.once("error", () => resolve(false));
    probe.listen({ port, exclusive: true }, () => probe.close(() => resolve(true)));
  });
}

/**
 * Resolves to whether a process of a group listens on a port. Where the kernel does not show whose a socket is (not
 * Linux), a connection that is accepted is enough.
 */
async function listens(port, group) {
  const inodes = await listenersOf(port).catch(() => null);
  if (inodes === null) return connects(port);
  if (inodes.size === 0) return false;
  for (const name of await fs.readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = await fs.readFile(`/proc/${name}/stat`, "utf8");
      if (Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[2]) !== group) continue;
      for (const fd of await fs.readdir(`/proc/${name}/fd`)) {
        const target = await fs.readlink(`/proc/${name}/fd/${fd}`).catch(() => "");
        if (inodes.has(target)) return true;
      }
    } catch { /* it ended meanwhile, or is another user's */ }
  }
  return false;
}

async function listenersOf(port) {
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  const found = new Set();
  for (const table of ["/proc/net/tcp", "/proc/net/tcp6"]) {
    const text = await fs.readFile(table, "utf8").catch((error) => { if (table.endsWith("6")) return ""; throw error; });
    for (const line of text.split("\n").slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (fields[3] === LISTEN && fields[1].endsWith(`:${hex}`)) found.add(`socket:[${fields[9]}]`);
    }
  }
  return found;
}

function connects(port) {
  return new Promise((resolve) => {
    const socket = net.connect({ port, host: "localhost", autoSelectFamily: true });
    socket.once("connect", () => { socket.destroy(); resolve(true); });
    socket.once("error", () => resolve(false));
  });
}

/**
 * Returns the name of a plugin's port variable: `email` and `@hay/plugin-email` give `EMAIL_PLUGIN_PORT`.
 * The short name of a plugin is its name without scope, and without a leading `plugin-` or otherwise a trailing `-plugin`.
 */
function pluginVariable(plugin) {
  const bare = plugin.replace(/^@[^/]*\//, "");
  const shorter = bare.replace(/^plugin-/, "");
  const short = shorter === bare ? bare.replace(/-plugin$/, "") : shorter;
  return `${inCapitals(short || bare)}_PLUGIN_PORT`;
}

/** Returns the variables that hold a plugin's port: by its full name, and by its short one. */
function pluginVariables(plugin) {
  return [`${inCapitals(plugin.replace(/^@/, ""))}_PLUGIN_PORT`, pluginVariable(plugin)];
}

/** Returns the variable of one of several ports: `debug` gives `PORT_DEBUG`. */
function portVariable(name) {
  return `PORT_${inCapitals(name)}`;
}

function inCapitals(name) {
  return name.toUpperCase().replace(/[^A-Z0-9]/g, "_");
}

module.exports = { canBind, listens, pluginVariable, pluginVariables, portVariable };
