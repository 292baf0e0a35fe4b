"use strict";

const { Portlease } = require("./lib/client.cjs");
const { PortleaseError } = require("./lib/errors.cjs");
const { HeldLease } = require("./lib/lease.cjs");
const { canBind, pluginVariable } = require("./lib/ports.cjs");
const { SpawnedWorker } = require("./lib/spawn.cjs");

module.exports = { Portlease, HeldLease, PortleaseError, SpawnedWorker, canBind, pluginVariable };
