-- wait: takes a place in the line of those who wait for a port, keeps it, or gives it up.
--
-- Safe because the line is one zset whose scores only this script gives: by priority, then by who came first. A waiter
-- is in line while its own key lives, which it sets anew every second; one that is gone is passed by, and taken out by
-- whoever looks next. One that comes back in time after all gets the place again that it had.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 ticket  2 mode (join: also keeps the place; leave)  3 host  4 worker  5 priority (0 to 9, the highest first)
--       6 the place that it had ('': none)  7 the only port that will do (0: any)  8 condition (any; one; limited)
-- Replies
--       queued  place, how many are ahead that it may not overtake, ms until one of them may be found gone (-1: none)
--       left · no_pool
-- Events  queued, with the ticket's priority, when it joins (the port is 0, the fence '-')
-- Loops   the first 64 of the line

--@include replies
--@include base

local QUEUE_SEEN = 64
local QUEUE_WOKEN = 16
local ALIVE_MS = 1800
local PRIORITIES, PLACES = 9, 100000000000000
-- For how long the pool says that somebody may wait; those in front say it again.
local WAITING_MS = 10000
local LINE_MEMORY_MS = 3600000

local function run()
  --@include keys
  --@include now
  local ticket, host, worker, explicit = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[7] or 0)
  local line, waiter, space_key = base .. ':waiters:' .. space, base .. ':waiter:' .. ticket, base .. ':host:' .. space
  local pool = read('HMGET', base, 'rules', 'waiting')
  if not pool[1] then
    return { NO_POOL }
  end
  --@include queue
  local place, look_ms = read('ZSCORE', line, ticket), -1
  local joins, leaves = not place, ARGV[2] == 'leave'
  for i = 1, math.min(seat or #tickets, 4) do
    if tickets[i] ~= ticket and waiters[i] then
      local left = read('PTTL', base .. ':waiter:' .. tickets[i])
      look_ms = look_ms < 0 and left or math.min(look_ms, left)
    end
  end
  read('HGET', space_key, 'seq')
  read('XLEN', events_key)
  read('GET', waiter)

  -- writes --
  --@include events
  for i = 1, #tickets do
    if not waiters[i] and tickets[i] ~= ticket then
      call('ZREM', line, tickets[i])
    end
  end
  if leaves then
    call('ZREM', line, ticket)
    call('DEL', waiter, base .. ':turn:' .. ticket)
    local turns = 1
    --@include wake
    return { LEFT }
  end
  if joins then
    place = ARGV[6]
    if place == '' then
      place = whole((PRIORITIES - tonumber(ARGV[5])) * PLACES + call('HINCRBY', space_key, 'seq', 1))
      record_event('queued', host, 0, worker, '-', 'priority', ARGV[5])
    end
    call('ZADD', line, place, ticket)
  end
  call('SET', waiter, ARGV[7] .. ' ' .. ARGV[8] .. ' ' .. worker, 'PX', ALIVE_MS)
  call('PEXPIRE', line, LINE_MEMORY_MS)
  if (tonumber(pool[2]) or 0) < now + WAITING_MS / 2 then
    call('HSET', base, 'waiting', whole(now + WAITING_MS))
  end
  if joins then
    -- One that joined behind none must not miss a port that was given back just before.
    return { QUEUED, place, call('ZRANK', line, ticket) == 0 and 0 or ahead, look_ms }
  end
  return { QUEUED, place, ahead, look_ms }
end

--@include run
