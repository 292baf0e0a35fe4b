-- release and decline: a batch of (port, token) pairs in ARGV; each grant that this token holds is ended.
-- `free_at(port, now)` gives the time from which the port is claimable, `keeps_place` whether the worker may
-- come back to it at once.
local function end_grants(kind, keeps_place, free_at)
  local now = server_time()
  local ports, lease_keys = {}, {}
  for i = 1, #ARGV / 2 do
    ports[i] = ARGV[2 * i - 1]
    lease_keys[i] = lease_prefix .. ports[i]
  end
  local grants = read('HMGET', tokens_key, unpack(ports))
  local leases = read('MGET', unpack(lease_keys))
  read('ZCARD', ports_key)
  local reply, ending, seen = {}, {}, {}
  for i, port in ipairs(ports) do
    local grant = grants[i] and grant_of(grants[i], port)
    local code, detail = ALREADY, ''
    if grant and grant.token == ARGV[2 * i] then
      if not grant.ended and not seen[port] then
        code, detail, seen[port] = kind, grant.fence, true
        local place = read('GET', worker_key(grant.worker))
        ending[i] = {
          grant = grant,
          is_place = leases[i] or (place and place_of(place, worker_key(grant.worker)).fence == grant.fence),
          free_at = free_at(port, now),
        }
      end
    elseif leases[i] then
      code, detail = NOT_YOURS, leases[i]
    end
    reply[2 * i - 1], reply[2 * i] = code, detail
  end

  -- writes --
  for i, port in ipairs(ports) do
    local item = ending[i]
    if item then
      redis.call('DEL', lease_keys[i])
      redis.call('ZADD', ports_key, whole(item.free_at), port)
      if item.is_place then
        write_place(item.grant.worker, item.grant.host, port, item.grant.fence,
          keeps_place and whole(item.free_at) or 0, 0)
      end
      close_grant(kind, port, item.grant)
    end
  end
  return reply
end
