-- The start of a grant, the same for a claim and for a lease that is re-asserted. Not a function, for it stands on the
-- path of every claim. Needs kind, port, fence, token, host, worker, state, extra, ttl_ms, ttl_text, now, now_text and
-- grace_ms, and next_due (when the space is due on the reaper's agenda, or false); leaves the lease's text in
-- `lease`.
local lease = lease_text(fence, state, worker, host, port, now_text, ttl_text, extra)
redis.call('HSET', base, 'fence', fence)
redis.call('ZADD', ports_key, now + ttl_ms + grace_ms, port)
redis.call('SET', lease_prefix .. port, lease, 'PX', ttl_text)
redis.call('HSET', tokens_key, port, fence .. ' ' .. token .. ' ' .. host .. ' ' .. worker)
write_place(worker, host, port, fence, ttl_ms)
redis.call('ZADD', service_key(worker), 'NX', 0, host .. ':' .. port)
if not next_due or next_due == FOREVER or tonumber(next_due) > now + ttl_ms then
  redis.call('ZADD', hosts_key, 'LT', now + ttl_ms, space)
end
record_event(kind, host, port, worker, fence)
