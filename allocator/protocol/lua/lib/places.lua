-- Where a worker is, or last was.
-- It is remembered for a week without a lease, so that the worker gets its port back after a long weekend.
local WORKER_MEMORY_MS = 604800000

-- Its host, port and fence, all nil where the text is garbled (NO_PLACE); whether that grant has ended, and how, stands in
-- the tokens.
local NO_PLACE = 'does not hold the place of a worker'
--@define place_of(text) string.match(text, '^{"host":"([^"]+)","port":(%d+),"fence":(%d+)}$')

--@define write_place(key, host, port, fence, ttl_ms)
--@  call('SET', key, '{"host":"' .. host .. '","port":' .. port .. ',"fence":' .. fence .. '}', 'PX', WORKER_MEMORY_MS + ttl_ms)
