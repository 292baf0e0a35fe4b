-- queue: who waits for a port, in each namespace of ports and, over all hosts, behind a limit or a worker's own lease.
-- A waiter states of itself, in a key that lives 1.8 s: the port that it waits for (0: any, -1: a block of contiguous
-- ones, -n: any n), its condition, its worker.

--@include base
--@include ranges

-- How many of a queue are looked at; what is behind them waits.
local QUEUE_SEEN = 64
local QUEUE_WOKEN = 16
local MOST_AVOIDED = 2048

-- Who waits in this namespace ahead of `ticket` ('': a newcomer, behind all) and could use what it asks for (`explicit`:
-- its port, as a waiter states it). Returns how many they are, the ports that those ahead wait for (as ranges with a comma
-- before each), its position (nil when it has none), the first tickets with the fields that each sent (false when it is
-- gone), and how many free ports would be enough for all who are ahead (nil when no number is). A waiter for a block is ahead
-- only of other waiters for a block; one that is held back by something other than ports is ahead of nobody.
local function queue_before(read, base, namespace, ticket, explicit)
  local tickets, waiters, position, ahead, wanted = read('ZRANGE', base .. ':waiters:' .. namespace, 0, QUEUE_SEEN - 1), {}, nil, 0, ''
  local needs = explicit ~= -1 and 0 or nil
  if #tickets > 0 then
    local waiter_keys = {}
    for i = 1, #tickets do
      waiter_keys[i] = base .. ':waiter:' .. tickets[i]
    end
    waiters = read('MGET', unpack(waiter_keys))
  end
  for i = 1, #tickets do
    if tickets[i] == ticket then
      position = i
      break
    end
    local its_port, condition = string.match(waiters[i] or '', '^(%-?%d+) (%l+) ')
    if condition == 'any' then
      ahead, needs = ahead + 1, needs and needs + math.max(1, -tonumber(its_port))
    elseif condition and tonumber(its_port) == explicit and (condition == 'one' or condition == 'block') then
      ahead, needs = ahead + 1, nil
    elseif condition == 'one' and explicit <= 0 then
      wanted = wanted .. ',' .. its_port
    end
  end
  if not position and #tickets == QUEUE_SEEN then
    needs = nil
  end
  return ahead, wanted, position, tickets, waiters, needs
end

-- The tickets of those who are gone, but for the asker's own.
local function gone_of(tickets, waiters, ticket)
  local gone = {}
  for i = 1, #tickets do
    if not waiters[i] and tickets[i] ~= ticket then
      gone[#gone + 1] = tickets[i]
    end
  end
  return gone
end

-- How many ports of a namespace are free, at least: those in `avoid` (ranges) are not, nor are those of other plugins where
-- the pool keeps them apart. Where that is enough for all who are ahead, one behind them need not wait until the
-- first has looked: it may have died, and a queue in which some have died would stand still with ports free.
local function count_free(read, base, ports_key, rules, avoid, now)
  local known = read('HMGET', base, 'dynamic', 'reserved')
  local free = -read('ZCOUNT', ports_key, '(' .. string.format(WHOLE, now), FOREVER)
  for _, range in ipairs(parse_ranges(known[1] or '')) do
    free = free + range[2] - range[1] + 1
  end
  -- Most of what is avoided is leased, and counted already: its holder listens.
  local avoided = {}
  for _, range in ipairs(parse_ranges(avoid)) do
    for port = range[1], math.min(range[2], range[1] + MOST_AVOIDED) do
      avoided[#avoided + 1] = port
    end
    if #avoided > MOST_AVOIDED then
      return 0
    end
  end
  for _, score in ipairs(#avoided > 0 and read('ZMSCORE', ports_key, unpack(avoided)) or {}) do
    free = free - ((tonumber(score or 0) <= now) and 1 or 0)
  end
  if string.find(rules, ' spill=1', 1, true) then
    free = free + select(2, string.gsub(known[2] or '', '%d+', ''))
  end
  return free
end

-- Whether ports are free for all who are ahead (`needs`, see queue_before) and for one who asks for `needed` besides.
local function is_room(read, base, ports_key, rules, avoid, now, needs, needed)
  return needs ~= nil and count_free(read, base, ports_key, rules, avoid, now) >= needs + needed
end

-- The queue of those whom a limit of the organisation (org), of the plugin (plugin) or of both (instances), or a lease
-- that their worker has already (worker), holds back; nil where the kind is none of these. Each is a zset of tickets, by
-- priority and then by who came first.
local function held_key(base, kind, worker)
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

-- The queues in which a waiter may be, by key, with the kind of each: the one that it sent; or, when that has
-- expired, every one in which its worker may be.
local function held_queues(base, ticket_text, worker)
  local kind, ticket_worker = string.match(ticket_text or '', '^%-?%d+ (%l+) (%S+)$')
  local queues = {}
  for _, one in ipairs({ 'org', 'plugin', 'instances', 'worker' }) do
    if not kind or kind == one then
      queues[held_key(base, one, ticket_worker or worker)] = one
    end
  end
  return queues
end

-- Those of such a queue who are there, in order, up to `ticket`, which is left out; and those who are not there any more.
local function held_before(try, base, key, kind, ticket)
  local found, gone = {}, {}
  for _, other in ipairs(try('ZRANGE', key, 0, QUEUE_SEEN - 1)) do
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

-- Wakes a waiter, so that it looks again; returns whether it had not been woken before without having looked yet. Nothing
-- here can stop the script: a waiter looks by itself within a second.
local function wake(try, base, ticket)
  local turn = base .. ':turn:' .. ticket
  if try('LLEN', turn) ~= 0 then
    return false
  end
  try('LPUSH', turn, '1')
  try('PEXPIRE', turn, 5000)
  return true
end

-- Wakes the first waiters of a namespace: `turns` of those that any port will do for, and all that wait for one port or a
-- block. One that was woken before and has not looked may have died: the next is woken as well.
local function wake_first(try, base, namespace, turns)
  for _, ticket in ipairs(try('ZRANGE', base .. ':waiters:' .. namespace, 0, QUEUE_WOKEN - 1)) do
    local waiter = try('GET', base .. ':waiter:' .. ticket)
    local condition = type(waiter) == 'string' and string.match(waiter, '^%-?%d+ (%l+) ')
    if (condition == 'any' and turns > 0) or condition == 'one' or condition == 'block' then
      local is_new = wake(try, base, ticket)
      turns = condition == 'any' and is_new and turns - 1 or turns
    end
  end
end

-- Tells those whom leases that ended had held back (`freed`: the workers of these leases), one for each, on whatever host
-- they wait.
local function wake_held(try, base, freed)
  local queues = {}
  for _, worker in ipairs(freed) do
    for key, kind in pairs(held_queues(base, nil, worker)) do
      local queue = queues[key] or { kind = kind, turns = 0 }
      queue.turns = queue.turns + 1
      queues[key] = queue
    end
  end
  for key, queue in pairs(queues) do
    for at, ticket in ipairs((held_before(try, base, key, queue.kind, ''))) do
      if at > queue.turns then
        break
      end
      wake(try, base, ticket)
    end
  end
end

-- Takes a waiter that has what it waited for out of its queues: that of its namespace, and those in which it may be by its
-- report, or by its worker.
local function leave_queues(call, try, base, namespace, ticket, ticket_text, worker)
  for key in pairs(held_queues(base, ticket_text, worker)) do
    try('ZREM', key, ticket)
  end
  try('ZREM', base .. ':waiters:' .. namespace, ticket)
  call('DEL', base .. ':waiter:' .. ticket, base .. ':turn:' .. ticket)
end
