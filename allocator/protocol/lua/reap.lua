-- reap: visits the namespaces whose next lease may have expired, and closes what has.
--
-- Nothing depends on it being run: a port is claimable by its score alone. It reports expired leases (events, service
-- index) that no other script has found. A cursor per namespace (`reaped`, a score) is the score up to which every grant was
-- seen; it is safe because a live lease's score is its expiry plus grace, which is always ahead of the cursor.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*     (only its form is used: the agenda names the namespaces)
-- ARGV  1 how many leases to close at most (64 or fewer)
-- Replies
--       reaped, how many were closed, ms until the next namespace is due (-1: none is), how many namespaces the pool has
-- Events  expired
-- Holders call it when a renewal reports it (`reap_at` of the pool, see keep): so a fleet calls it as often as it has
-- something to do, whatever its size.
-- Loops   at most 16 namespaces and 64 closed leases a call, four queues of 64 waiters for each; a page is 64 ports beside those of equal score

--@include replies
--@include base
--@include events
--@include grants

local SPACES = 16
local PAGE = 64
-- Spaces that are due are visited together, not each in a call of its own; and an end is reported within that time.
local GATHERED_MS, LATEST_MS = 250, 1000

local function run(read, call, try)
  local base, now = KEYS[1], server_time(read)
  local hosts_key = base .. ':hosts'
  local pool = read('HMGET', base, 'rules', 'version', 'waiting')
  local grace_ms = tonumber(string.match(pool[1] or '', ' grace_ms=(%d+) ')) or 0
  local version = pool[2] or '0'
  local most = math.min(tonumber(ARGV[1]) or error({ err = WRONG_ARGUMENTS }, 0), PAGE)
  local closing, agenda = {}, {}

  for _, due in ipairs(read('ZRANGEBYSCORE', hosts_key, '-inf', string.format(WHOLE, now), 'LIMIT', 0, SPACES)) do
    if #closing >= most then
      break
    end
    local its_ports, its_tokens = base .. ':ports:' .. due, base .. ':tokens:' .. due
    local its_leases = base .. ':lease:' .. due .. ':'
    local cursor, seen_version = string.match(read('HGET', base .. ':host:' .. due, 'reaped') or '', '^(%d+) (%d+)$')
    local horizon = now + grace_ms
    cursor = seen_version == version and tonumber(cursor) or 0
    if cursor > horizon then
      cursor = 0
    end
    local ties = read('ZCOUNT', its_ports, string.format(WHOLE, cursor), string.format(WHOLE, cursor))
    local rows = read('ZRANGEBYSCORE', its_ports, string.format(WHOLE, cursor), string.format(WHOLE, horizon), 'WITHSCORES', 'LIMIT', 0, ties + PAGE)
    local ports, scores, keys = {}, {}, {}
    for i = 1, #rows, 2 do
      ports[#ports + 1], scores[#scores + 1] = rows[i], tonumber(rows[i + 1])
      keys[#keys + 1] = its_leases .. rows[i]
    end
    local reached, next_at = horizon, nil
    if #ports > 0 then
      local grants, leases = read('HMGET', its_tokens, unpack(ports)), read('MGET', unpack(keys))
      for i, port in ipairs(ports) do
        local ended, fence, host, worker, _
        if grants[i] then
          ended, fence, _, host, worker = grant_of(grants[i], its_tokens, port)
        end
        if ended == '' then
          if leases[i] or #closing >= most then
            reached, next_at = scores[i], leases[i] and math.max(scores[i] - grace_ms, now + 1) or now
            break
          end
          closing[#closing + 1] = { namespace = due, port = port, grant = grants[i], fence = fence, host = host, worker = worker }
        end
      end
      if not next_at and #ports == ties + PAGE then
        reached, next_at = scores[#scores], now
      end
    end
    if not next_at then
      local ahead = read('ZRANGEBYSCORE', its_ports, '(' .. string.format(WHOLE, horizon), FOREVER, 'WITHSCORES', 'LIMIT', 0, 1)
      next_at = ahead[2] and tonumber(ahead[2]) - grace_ms
    end
    agenda[#agenda + 1] = { namespace = due, reached = reached, next_at = next_at }
  end

  read('XLEN', base .. ':events')
  for _, item in ipairs(closing) do
    read('ZCARD', service_key(base, item.worker))
  end

  -- writes --
  for _, item in ipairs(closing) do
    local its_tokens = base .. ':tokens:' .. item.namespace
    close_grant(call, try, base, its_tokens, 'expired', item.port, item.grant, item.fence, item.host, item.worker)
  end
  for _, item in ipairs(agenda) do
    local due = item.next_at and string.format(WHOLE, item.next_at) or FOREVER
    call('HSET', base .. ':host:' .. item.namespace, 'reaped', string.format(WHOLE, item.reached) .. ' ' .. version, 'due', due)
    call('ZADD', hosts_key, due, item.namespace)
  end
  if tonumber(pool[3] or 0) > now then
    local freed = {}
    for i, item in ipairs(closing) do
      freed[i] = item.worker
    end
    --@include queue
    wake_held(try, base, freed)
  end
  call('XTRIM', base .. ':events', 'MAXLEN', '~', EVENTS_KEPT)
  local next_due = call('ZRANGE', hosts_key, 0, 0, 'WITHSCORES')[2]
  local wait = -1
  if next_due and next_due ~= FOREVER then
    wait = math.max(0, tonumber(next_due) - now)
  end
  if pool[1] then
    call('HSET', base, 'reap_at', string.format(WHOLE, math.min(now + LATEST_MS, (tonumber(next_due) or now) + GATHERED_MS)))
  end
  return { REAPED, #closing, string.format(WHOLE, wait), call('ZCARD', hosts_key) }
end

return guarded(run)
