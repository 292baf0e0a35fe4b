-- release and decline: a batch of (port, token) pairs in ARGV; each grant that this token holds is ended.
-- Needs `kind` and `free_at(port, now)`, the time from which the port is claimable; leaves `reply`.
--@include now
--@include grants
local ports = {}
for i = 1, #ARGV, 2 do
  ports[#ports + 1] = ARGV[i]
end
local grants = read('HMGET', tokens_key, unpack(ports))
local reply, ending, scores, seen = {}, {}, {}, {}
for i = 1, #ports do
  local port, grant, code, detail = ports[i], grants[i], ALREADY, ''
  local ended, fence, token, host, worker
  if grant then
    ended, fence, token, host, worker = grant_of(grant, port)
  end
  if token ~= ARGV[2 * i] then
    local lease = read('GET', lease_prefix .. port)
    if lease then
      code, detail = NOT_YOURS, lease
    end
  elseif ended == '' and not seen[port] then
    code, detail, seen[port] = kind, fence, true
    scores[#scores + 1], scores[#scores + 2] = free_at(port, now), port
    ending[#ending + 1] = { port = port, grant = grant, fence = fence, host = host, worker = worker }
  end
  reply[2 * i - 1], reply[2 * i] = code, detail
end

--@include service_key
if #ending > 0 then
  read('XLEN', events_key)
  for i = 1, #ending do
    read('ZCARD', service_key(ending[i].worker))
  end
end

-- writes --
if #ending > 0 then
  --@include events
  --@include close
  -- The first write is its own check: it writes nothing when the key is of the wrong type.
  read('ZADD', ports_key, unpack(scores))
  for i = 1, #ending do
    local it = ending[i]
    redis.call('DEL', lease_prefix .. it.port)
    close_grant(kind, it.port, it.grant, it.fence, it.host, it.worker)
  end
end
