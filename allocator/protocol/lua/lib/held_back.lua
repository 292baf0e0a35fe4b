-- The lines, over all hosts of the pool, of those whom something else than ports holds back: a limit of the organisation
-- (org), of the plugin (plugin) or of both (instances), or a lease that their worker has already (worker). Each is a zset
-- of tickets, by priority and then by who came first; a waiter is in it for as long as it says so of itself.
local HELD_SEEN = 64

-- The line of that kind that a worker stands in, or would; nil where the word is none of these kinds.
local function held_key(kind, worker)
  if kind == 'org' then
    return base .. ':held:org:' .. (string.match(worker, '^[^/]+') or '')
  elseif kind == 'plugin' then
    return base .. ':held:plugin:' .. (string.match(worker, '^[^/]+/([^+#]+)') or '')
  elseif kind == 'instances' then
    return base .. ':held:instances:' .. (string.match(worker, '^[^#]+') or '')
  elseif kind == 'worker' then
    return base .. ':held:worker:' .. worker
  end
end

-- By key, the lines that a waiter may stand in, and of which kind each is: the one of which it said so, or any that its
-- worker may be in where what it said has run out meanwhile.
local function held_lines(said, worker)
  local kind, said_worker = string.match(said or '', '^%-?%d+ (%l+) (%S+)$')
  local lines = {}
  for _, one in ipairs({ 'org', 'plugin', 'instances', 'worker' }) do
    if not kind or kind == one then
      lines[held_key(one, said_worker or worker)] = one
    end
  end
  return lines
end

-- Those of a line who are there, in order, up to `ticket`, which is left out; and those who are not there any more.
local function held_before(key, kind, ticket)
  local found, gone = {}, {}
  for _, other in ipairs(try('ZRANGE', key, 0, HELD_SEEN - 1)) do
    if other == ticket then
      break
    end
    local waiter = try('GET', base .. ':waiter:' .. other)
    local is_there = type(waiter) == 'string' and string.match(waiter, '^%-?%d+ (%l+) ') == kind
    local list = is_there and found or gone
    list[#list + 1] = other
  end
  return found, gone
end
