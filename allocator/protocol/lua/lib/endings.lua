-- release and decline: a batch of (port, token) pairs in ARGV; each grant that this token holds is ended.
-- Needs `kind`, `free_at(port, now)` (the time from which the port is claimable) and `waiting` (until when somebody may
-- wait); leaves `reply`.
--@include now
--@include grant_parts
local ports = {}
for i = 1, #ARGV, 2 do
  ports[#ports + 1] = ARGV[i]
end
local count = #ports
if count == 0 or #ARGV % 2 == 1 then
  error({ err = WRONG_WORDS }, 0)
end
local grants = read('HMGET', tokens_key, unpack(ports))
local reply, ended, seen = {}, {}, count > 1 and {}
for i = 1, count do
  local port, grant, code, detail = ports[i], grants[i], ALREADY, ''
  local mark, fence, token, host, worker
  if grant then
    mark, fence, token, host, worker = grant_parts(grant)
    if not fence then
      bad(tokens_key, 'has a garbled field ' .. port)
    end
  end
  if token ~= ARGV[2 * i] then
    local lease = read('GET', lease_prefix .. port)
    if lease then
      code, detail = NOT_YOURS, lease
    end
  elseif mark == '' and not (seen and seen[port]) then
    code, detail = kind, fence
    if seen then
      seen[port] = true
    end
    ended[#ended + 1] = { port, grant, fence, host, worker, free_at(port, now) }
  end
  reply[2 * i - 1], reply[2 * i] = code, detail
end

--@include service_key

-- writes --
-- Three keys are written without having been read. Each write is its own check, and what was written of a lease is
-- taken back when a later one cannot be: a lease has ended as a whole or not at all.
--@include events
for i = 1, #ended do
  local port, grant, fence, host, worker, claimable_at = unpack(ended[i])
  local service, member = service_key(worker), host .. ':' .. port
  local removed = try('ZREM', service, member)
  local failed, failed_at = removed, service
  if type(removed) ~= 'table' then
    local event = record_event(kind, host, port, worker, fence)
    failed, failed_at = event, events_key
    if type(event) ~= 'table' then
      failed, failed_at = try('ZADD', ports_key, claimable_at, port), ports_key
      if type(failed) == 'table' then
        call('XDEL', events_key, event)
      end
    end
    if type(failed) == 'table' and removed == 1 then
      call('ZADD', service, 0, member)
    end
  end
  if type(failed) == 'table' then
    refused(failed, failed_at)
  end
  call('DEL', lease_prefix .. port)
  call('HSET', tokens_key, port, (kind == DECLINED and '~' or '-') .. grant)
end
if waiting > now then
  local freed = {}
  for i = 1, #ended do
    freed[i] = ended[i][5]
  end
  --@include wake_held
end
