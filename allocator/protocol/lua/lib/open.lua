-- The start of a grant, the same for a claim and for a lease that is re-asserted. Not a function, for it stands on the
-- path of every claim. Needs kind, port, fence, token, host, worker, service, state, extra, ttl_ms, ttl_text, now,
-- now_text, grace_ms and is_due (whether the space is due on the reaper's agenda no sooner than this lease ends); leaves
-- the lease's text in `lease`.
record_event(kind, host, port, worker, fence)
local lease = lease_text(fence, state, worker, host, port, now_text, ttl_text, extra)
redis.call('HSET', base, 'fence', fence)
redis.call('ZADD', ports_key, now + ttl_ms + grace_ms, port)
redis.call('SET', lease_prefix .. port, lease, 'PX', ttl_text)
redis.call('HSET', tokens_key, port, fence .. ' ' .. token .. ' ' .. host .. ' ' .. worker)
write_place(worker, host, port, fence, ttl_ms)
redis.call('ZADD', service, 'NX', 0, host .. ':' .. port)
if is_due then
  redis.call('ZADD', hosts_key, 'LT', now + ttl_ms, space)
  redis.call('HSET', base .. ':host:' .. space, 'due', whole(now + ttl_ms))
end
