-- ranges: sets of ports as clients send them and pools have them: `5556,5570-5580`, nothing for none.

local function parse_ranges(text)
  local ranges = {}
  for first, last in string.gmatch(text, '(%d+)%-?(%d*)') do
    ranges[#ranges + 1] = { tonumber(first), tonumber(last) or tonumber(first) }
  end
  return ranges
end

local function within(ranges, port)
  for _, range in ipairs(ranges) do
    if port >= range[1] and port <= range[2] then
      return true
    end
  end
  return false
end

-- A plugin's short name: without its scope, and without a leading `plugin-` or else a trailing `-plugin` (see names.py).
local function short_name(plugin)
  local name = string.match(plugin, '^@[^/]*/(.*)$') or plugin
  return string.match(name, '^plugin%-(.+)$') or string.match(name, '^(.+)%-plugin$') or name
end
