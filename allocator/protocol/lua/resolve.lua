-- resolve: the next ready worker of a service, strictly in turn, or all its workers in whatever state.
--
-- Safe because the turn is the service's own order: of the leases in state ready, the one that was handed out the
-- longest time ago is next, and its new score is above all others. So among k workers that stay ready, the counts of
-- any number of calls differ by at most one, whoever calls. A worker that comes back is next, once. What another program
-- put among the members, or where a lease belongs, is passed over.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*     (only its form is used)
-- ARGV  1 plugin  2 org  3 mode (next; all)  4 next: the host to prefer (-: none) · all: from which member on
-- Replies
--       found  now_ms, offset to go on from (-1: that was all), then for each worker: lease, remaining_ms, advertised
--              address or ''
--       no_turn  the turn cannot be written (a caller with read rights only, or a full Redis): the caller counts by itself
--       none   how many leases of the service are starting, degraded, draining (with all: 0, for there is none)
-- Events  none
-- Loops   what has an impossible score, at most 64; the members of the service in pages, at most 1,024 a call

--@include replies
--@include base

-- The first in turn is ready nearly always; the rest is read in pages.
local FIRST_PAGE = 2
local PAGE = 64
local MOST = 1024
-- No turn has such a score before the year 2255; above 2^53 two scores may be equal.
local IMPOSSIBLE = 9000000000000000
local LEASE = '^{"fence":%d+,"state":"(%l+)","worker":"([^"]+)","host":"([^"]+)"'

local function run(read, call, try)
  local base = KEYS[1]
  local now, now_us = server_time(read)
  if #ARGV < 4 or (ARGV[3] == 'all' and not tonumber(ARGV[4])) then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local prefix, all, preferred = ARGV[2] .. '/' .. ARGV[1] .. '#', ARGV[3] == 'all', ARGV[4]
  local service = base .. ':service:' .. ARGV[1] .. ':' .. ARGV[2]
  local fleet = string.find(read('HGET', base, 'rules') or '', ' scope=fleet ', 1, true)
  local counts, found = { starting = 0, degraded = 0, draining = 0 }, {}
  local offset = all and tonumber(ARGV[4]) or 0
  local last, size, next_offset = offset + MOST, FIRST_PAGE, -1

  while offset < last do
    local members = read('ZRANGE', service, offset, offset + size - 1)
    local lease_keys = {}
    for i, member in ipairs(members) do
      local host, port = string.match(member, '^([%w._-]+):(%d+)$')
      lease_keys[i] = host and base .. ':lease:' .. (fleet and '*' or host) .. ':' .. port or base .. ':absent'
    end
    for i, lease in ipairs(#members > 0 and read('MGET', unpack(lease_keys)) or {}) do
      local state, worker, host = string.match(lease or '', LEASE)
      if state then
        if string.sub(worker, 1, #prefix) == prefix then
          if all then
            found[#found + 1] = { members[i], lease, lease_keys[i], host }
          elseif state ~= 'ready' then
            counts[state] = (counts[state] or 0) + 1
          elseif host == preferred or not found[1] then
            found[1] = { members[i], lease, lease_keys[i], host }
          end
        end
      end
      if not all and found[1] and (preferred == '-' or found[1][4] == preferred) then
        break
      end
    end
    if #members < size or (not all and found[1] and (preferred == '-' or found[1][4] == preferred)) then
      break
    end
    offset, size = offset + size, PAGE
    if offset >= last then
      next_offset = offset
    end
  end
  if #found == 0 and next_offset < 0 then
    return { NONE, counts.starting, counts.degraded, counts.draining }
  end

  local reply = { FOUND, string.format(WHOLE, now), next_offset }
  for _, one in ipairs(found) do
    reply[#reply + 1] = one[2]
    reply[#reply + 1] = read('PTTL', one[3])
    local identity = read('HGET', base .. ':host:' .. one[4], 'identity') or ''
    reply[#reply + 1] = string.match(identity, '^%S+ %S+ %S+ !?(%S+)$') or ''
  end
  if all then
    return reply
  end
  local highest, impossible = tonumber(read('ZRANGE', service, -1, -1, 'WITHSCORES')[2]), {}
  if highest >= IMPOSSIBLE then
    impossible = read('ZRANGEBYSCORE', service, string.format(WHOLE, IMPOSSIBLE), FOREVER, 'LIMIT', 0, PAGE)
    highest = 0
  end

  -- writes --
  if type(try('ZADD', service, string.format(WHOLE, math.max(now_us, highest + 1)), found[1][1])) == 'table' then
    return { NO_TURN }
  end
  for _, member in ipairs(impossible) do
    if member ~= found[1][1] then
      call('ZADD', service, string.format(WHOLE, now_us), member)
    end
  end
  return reply
end

return guarded(run)
