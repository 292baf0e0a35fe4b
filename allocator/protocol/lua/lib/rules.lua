-- The rules of the pool as they stand in its hash (see PoolSpec.rules), in `pool[1]`.
local first, last, ttl_min_ms, ttl_max_ms, grace_ms, scope = string.match(pool[1],
  '^first=(%d+) last=(%d+) ttl_ms=%d+ ttl_min_ms=(%d+) ttl_max_ms=(%d+) grace_ms=(%d+) cooldown_ms=%d+ scope=(%l+) ')
if not first then
  bad(base, 'has a garbled field rules')
end
