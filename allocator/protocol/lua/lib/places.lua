-- Where a worker is, or last was.
-- It is remembered for a week without a lease, so that the worker gets its port back after a long weekend.
local WORKER_MEMORY_MS = 604800000

-- Its host, port, fence, and when the port was or will be claimable (0: it may be live, or was declined).
local function place_of(text, key)
  local host, port, fence, free_at = string.match(text,
    '^{"host":"([^"]+)","port":(%d+),"fence":(%d+),"free_at":(%d+)}$')
  if not host then
    bad(key, 'does not hold the place of a worker')
  end
  return host, port, fence, tonumber(free_at)
end

local function write_place(worker, host, port, fence, free_at, ttl_ms)
  redis.call('SET', worker_prefix .. worker, '{"host":"' .. host .. '","port":' .. port .. ',"fence":' .. fence ..
    ',"free_at":' .. free_at .. '}', 'PX', WORKER_MEMORY_MS + ttl_ms)
end
