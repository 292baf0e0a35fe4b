-- A plugin's short name: without its scope, and without a leading `plugin-` or else a trailing `-plugin` (see names.py).
local function short_name(plugin)
  local name = string.match(plugin, '^@[^/]*/(.*)$') or plugin
  return string.match(name, '^plugin%-(.+)$') or string.match(name, '^(.+)%-plugin$') or name
end
