-- wait: takes a position in the queue for a port, keeps it, or gives it up.
--
-- Safe because the queue is one zset whose scores only this script gives: by priority, then by arrival. A waiter is in
-- the queue while its own key lives, which it sets again every second. One whose key has expired is skipped, and removed
-- by the next caller. One that comes back in time gets its old position. Where ports are free for all who are ahead as
-- well, a waiter need not wait for them.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 ticket  2 mode (join: also keeps the position; leave)  3 host  4 worker  and to join: 5 priority (0 to 9, the highest
--       first)  6 the position that it had ('': none)  7 the port that it waits for (0: any, -1: a block of
--       contiguous ones, -n: any n)
--       8 condition: what it waits for (any, one, block), or what else holds it back (org, plugin, instances, worker)
-- Replies
--       queued  position, how many are ahead that it may not overtake, ms until one of them may be found gone (-1: none),
--               how many are ahead among those whom the same thing holds back, on whatever host
--       left · no_pool
-- Events  queued, with the ticket's priority, when it joins (the port is 0, the fence '-')
-- Loops   the first 64 of the queue, its ports, and the first 64 of the queue of those whom the same thing holds back

--@include replies
--@include base
--@include events
--@include queue

local ALIVE_MS = 1800
local PRIORITIES, PLACES = 9, 100000000000000
-- For how long the pool is marked as having waiters; the first waiters mark it again.
local WAITING_MS = 10000
local QUEUE_MEMORY_MS = 3600000

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local now = server_time(read)
  local ticket, host, worker, explicit = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[7] or 0)
  if #ARGV < 4 or (ARGV[2] ~= 'leave' and not (#ARGV > 7 and explicit and string.find(ARGV[5], '^%d$')
      and (ARGV[6] == '' or string.find(ARGV[6], '^%d+$')))) then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local queue_key, waiter, namespace_key = base .. ':waiters:' .. namespace, base .. ':waiter:' .. ticket, base .. ':host:' .. namespace
  local pool = read('HMGET', base, 'rules', 'waiting')
  if not pool[1] then
    return { NO_POOL }
  end
  local ahead, wanted, position, tickets, waiters, needs = queue_before(read, base, namespace, ticket, explicit)
  local leaves = ARGV[2] == 'leave'
  -- What listens on the host is not known here: a claim that finds less learns how many are ahead.
  if not leaves and ahead > 0
      and is_room(read, base, ports_key, pool[1], wanted, now, needs, math.max(1, -explicit)) then
    ahead = 0
  end
  local score, look_ms = read('ZSCORE', queue_key, ticket), -1
  local joins = not score
  for i = 1, math.min(position or #tickets, 4) do
    if tickets[i] ~= ticket and waiters[i] then
      local left = read('PTTL', base .. ':waiter:' .. tickets[i])
      look_ms = look_ms < 0 and left or math.min(look_ms, left)
    end
  end
  local last_number = tonumber(read('HGET', namespace_key, 'seq') or 0) or bad(namespace_key, 'has a garbled field seq')
  read('XLEN', base .. ':events')
  -- The queues in which it may have waited for something other than ports, and the one in which it waits now.
  local former_queues = held_queues(base, read('GET', waiter), worker)
  local held = not leaves and held_key(base, ARGV[8], worker)
  local held_ahead = 0
  if held then
    read('ZCARD', held)
  end

  -- writes --
  local gone = gone_of(tickets, waiters, ticket)
  if gone[1] then
    call('ZREM', queue_key, unpack(gone))
  end
  if leaves then
    call('ZREM', queue_key, ticket)
    call('DEL', waiter, base .. ':turn:' .. ticket)
    wake_first(try, base, namespace, 1)
  end
  for key, kind in pairs(former_queues) do
    if key ~= held and try('ZREM', key, ticket) == 1 then
      local next_in_queue = held_before(try, base, key, kind, '')[1]
      if next_in_queue then
        wake(try, base, next_in_queue)
      end
    end
  end
  if leaves then
    return { LEFT }
  end
  if joins then
    score = ARGV[6]
    if score == '' then
      score = string.format(WHOLE, (PRIORITIES - tonumber(ARGV[5])) * PLACES + call('HINCRBY', namespace_key, 'seq', 1))
      record_event(try, base, 'queued', host, 0, worker, '-', 'priority', ARGV[5])
    elseif tonumber(score) % PLACES > last_number then
      -- The server has lost its data since: without this, all who come from now on would be before this one.
      call('HSET', namespace_key, 'seq', string.format(WHOLE, tonumber(score) % PLACES))
    end
    call('ZADD', queue_key, score, ticket)
  end
  call('SET', waiter, ARGV[7] .. ' ' .. ARGV[8] .. ' ' .. worker, 'PX', ALIVE_MS)
  call('PEXPIRE', queue_key, QUEUE_MEMORY_MS)
  if held then
    call('ZADD', held, 'NX', string.format(WHOLE, (PRIORITIES - tonumber(ARGV[5])) * PLACES + now), ticket)
    call('PEXPIRE', held, QUEUE_MEMORY_MS)
    local others, gone = held_before(try, base, held, ARGV[8], ticket)
    held_ahead = #others
    for i = 1, #gone do
      call('ZREM', held, gone[i])
    end
  end
  if (tonumber(pool[2]) or 0) < now + WAITING_MS / 2 then
    call('HSET', base, 'waiting', string.format(WHOLE, now + WAITING_MS))
  end
  if joins then
    -- One that joined behind none must not miss a port that was given back just before.
    return { QUEUED, score, call('ZRANK', queue_key, ticket) == 0 and 0 or ahead, look_ms, held_ahead }
  end
  return { QUEUED, score, ahead, look_ms, held_ahead }
end

return guarded(run)
