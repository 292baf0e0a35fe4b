-- Where a worker is, or last was.
-- It is remembered for a week without a lease, so that the worker gets its port back after a long weekend.
local WORKER_MEMORY_MS = 604800000

-- Its host, port and fence; whether that grant has ended, and how, stands in the tokens.
local function place_of(text, key)
  local host, port, fence = string.match(text, '^{"host":"([^"]+)","port":(%d+),"fence":(%d+)}$')
  if not host then
    bad(key, 'does not hold the place of a worker')
  end
  return host, port, fence
end

local function write_place(key, host, port, fence, ttl_ms)
  call('SET', key, '{"host":"' .. host .. '","port":' .. port .. ',"fence":' .. fence .. '}',
    'PX', WORKER_MEMORY_MS + ttl_ms)
end
