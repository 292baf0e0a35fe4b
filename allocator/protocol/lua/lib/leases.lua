-- What the scripts that begin or end leases share: the names of their keys, the texts in them, the events.
local space = string.sub(KEYS[2], #base + 8)
local ports_key, tokens_key = KEYS[2], base .. ':tokens:' .. space
local events_key, hosts_key = base .. ':events', base .. ':hosts'
local lease_prefix = base .. ':lease:' .. space .. ':'

-- Enough for an hour of a busy fleet; a reader that fell further behind compares everything anyway.
local EVENTS_KEPT = 10000
-- How long a worker that has no lease is remembered, so that it gets its port back after a weekend.
local WORKER_MEMORY_MS = 7 * 86400000

local function record_event(kind, host, port, worker, fence, word, value)
  if word then
    redis.call('XADD', events_key, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'host', host, 'port', port,
      'worker', worker, 'fence', fence, word, value)
  else
    redis.call('XADD', events_key, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'host', host, 'port', port,
      'worker', worker, 'fence', fence)
  end
end

local function lease_text(fence, state, worker, host, port, granted_at, ttl_ms, extra)
  return '{"fence":' .. fence .. ',"state":"' .. state .. '","worker":"' .. worker .. '","host":"' .. host ..
    '","port":' .. port .. ',"granted_at":' .. granted_at .. ',"ttl_ms":' .. ttl_ms .. extra .. '}'
end

local function lease_head(text, key)
  local fence, state, worker, host, granted_at = string.match(text,
    '^{"fence":(%d+),"state":"(%l+)","worker":"([^"]+)","host":"([^"]+)","port":%d+,"granted_at":(%d+)')
  if not fence then
    bad(key, 'does not hold a lease')
  end
  return { fence = fence, state = state, worker = worker, host = host, granted_at = granted_at }
end

local function grant_text(fence, token, host, worker)
  return fence .. ' ' .. token .. ' ' .. host .. ' ' .. worker
end

local function grant_of(text, port)
  local ended, fence, token, host, worker = string.match(text, '^([-~]?)(%d+) (%x+) (%S+) (%S+)$')
  if not fence then
    bad(tokens_key, 'has a garbled field ' .. port)
  end
  return { ended = ended ~= '', declined = ended == '~', fence = fence, token = token, host = host, worker = worker }
end

local function worker_key(worker)
  return base .. ':worker:' .. worker
end

local function place_of(text, key)
  local host, port, fence, free_at = string.match(text,
    '^{"host":"([^"]+)","port":(%d+),"fence":(%d+),"free_at":(%d+)}$')
  if not host then
    bad(key, 'does not hold the place of a worker')
  end
  return { host = host, port = port, fence = fence, free_at = tonumber(free_at) }
end

local function write_place(worker, host, port, fence, free_at, ttl_ms)
  redis.call('SET', worker_key(worker), '{"host":"' .. host .. '","port":' .. port .. ',"fence":' .. fence ..
    ',"free_at":' .. free_at .. '}', 'PX', whole(WORKER_MEMORY_MS + ttl_ms))
end

local function service_key(worker)
  local org, plugin = string.match(worker, '^([^/]+)/([^#]+)#')
  return base .. ':service:' .. plugin .. ':' .. org
end

-- The end of a grant in all indexes but its port's score, which says why it ended.
local function close_grant(kind, port, grant, word, value)
  redis.call('HSET', tokens_key, port, (kind == 'declined' and '~' or '-') .. grant_text(grant.fence, grant.token, grant.host, grant.worker))
  redis.call('ZREM', service_key(grant.worker), grant.host .. ':' .. port)
  record_event(kind, grant.host, port, grant.worker, grant.fence, word, value)
end

-- The start of a grant, the same for a claim and for a lease that is re-asserted.
local function open_grant(kind, port, grant, lease, ttl_ms, now, grace_ms)
  redis.call('HSET', base, 'fence', grant.fence)
  redis.call('ZADD', ports_key, whole(now + ttl_ms + grace_ms), port)
  redis.call('SET', lease_prefix .. port, lease, 'PX', whole(ttl_ms))
  redis.call('HSET', tokens_key, port, grant_text(grant.fence, grant.token, grant.host, grant.worker))
  write_place(grant.worker, grant.host, port, grant.fence, 0, ttl_ms)
  redis.call('ZADD', service_key(grant.worker), 'NX', 0, grant.host .. ':' .. port)
  redis.call('ZADD', hosts_key, 'LT', whole(now + ttl_ms), space)
  record_event(kind, grant.host, port, grant.worker, grant.fence)
end

-- A fence grows even when Redis lost the last one: the server's time in microseconds is its floor.
local function next_fence(last, now_us, known)
  return whole(math.max((tonumber(last) or 0) + 1, now_us, (tonumber(known) or 0) + 1))
end
