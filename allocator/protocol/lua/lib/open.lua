-- The start of a grant, the same for a claim and for a lease that is re-asserted. Needs kind, port, fence, token, host,
-- worker, place_key, service, state, extra, ttl_ms, ttl_text, now, now_text, grace_ms and is_due (whether the space is due
-- on the reaper's agenda no sooner than this lease ends); leaves the lease's text in `lease`.
--
-- The event, the service index and the score are their own checks, where nothing was written before them: what was
-- written is taken back when the next cannot be.
--@include events
local member = host .. ':' .. port
local event = record_event(kind, host, port, worker, fence)
local failed, failed_at = event, events_key
if type(event) ~= 'table' then
  local added = try('ZADD', service, 'NX', 0, member)
  failed, failed_at = added, service
  if type(added) ~= 'table' then
    failed, failed_at = try('ZADD', ports_key, now + ttl_ms + grace_ms, port), ports_key
  end
  if type(failed) == 'table' then
    call('XDEL', events_key, event)
    if added == 1 then
      call('ZREM', service, member)
    end
  end
end
if type(failed) == 'table' then
  refused(failed, failed_at)
end
local lease = lease_text(fence, state, worker, host, port, now_text, ttl_text, extra)
call('HSET', base, 'fence', fence)
call('SET', lease_prefix .. port, lease, 'PX', ttl_text)
call('HSET', tokens_key, port, fence .. ' ' .. token .. ' ' .. host .. ' ' .. worker)
write_place(place_key, host, port, fence, ttl_ms)
-- The reaper trims at each of its visits; this is for pools that only ever claim and release.
if now % 64 == 0 then
  --@include trim
end
if is_due then
  call('ZADD', hosts_key, 'LT', now + ttl_ms, space)
  call('HSET', base .. ':host:' .. space, 'due', whole(now + ttl_ms))
end
