import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

import * as imported from "../index.mjs";

test("import and require give the same classes", () => {
  const required = createRequire(import.meta.url)("../index.cjs");
  assert.deepEqual(Object.keys(imported).sort(), Object.keys(required).sort());
  for (const name of Object.keys(required)) assert.equal(imported[name], required[name]);
});

test("a plugin's variable goes by its short name", () => {
  for (const [plugin, variable] of [
    ["email", "EMAIL_PLUGIN_PORT"],
    ["custom-1", "CUSTOM_1_PLUGIN_PORT"],
    ["@hay/plugin-email", "EMAIL_PLUGIN_PORT"],
    ["@hay/email-plugin", "EMAIL_PLUGIN_PORT"],
    ["plugin-stripe", "STRIPE_PLUGIN_PORT"],
    ["plugin-stripe-plugin", "STRIPE_PLUGIN_PLUGIN_PORT"],
    ["plugin-", "PLUGIN__PLUGIN_PORT"],
  ]) assert.equal(imported.pluginVariable(plugin), variable);
});
