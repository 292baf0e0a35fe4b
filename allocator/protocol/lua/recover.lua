-- recover: begins the grace of a fleet-wide pool on a server that may have lost grants, or finds that none is needed.
--
-- Safe because every holder renews, and so tells of its leases, well within its TTL: after one TTL of the pool (or after
-- 0.6 of it, when every host that has a lease here has renewed) no holder has a port that this server does not know. A
-- pool that never granted anything and was not restored needs no grace.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*
-- ARGV  none
-- Replies
--       recovering, ms that are left (0: none) · no_pool
-- Events  recovering (host and worker are '-', the port is 0), when a grace begins
-- Loops   the leased ports in pages of 512

--@include replies
--@include base
--@include events
--@include leases

local PAGE = 512
local MOST_PORTS = 65535

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local lease_prefix, now = base .. ':lease:' .. namespace .. ':', server_time(read)
  local pool = read('HMGET', base, 'rules', 'fence', 'recovery')
  if not pool[1] then
    return { NO_POOL }
  end
  local ttl_ms = rule_of(pool[1], ' ttl_ms=', base)
  local info = try('INFO', 'server')
  local run_id = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
  local known_run, _, ends = string.match(pool[3] or '', '^(%x+) (%d+) (%d+)$')
  if not run_id or known_run == run_id then
    return { RECOVERING, string.format(WHOLE, math.max(0, (tonumber(ends) or 0) - now)) }
  end
  local needs_grace, hosts = known_run or pool[2], {}
  for offset = 0, needs_grace and MOST_PORTS or -1, PAGE do
    local ports = read('ZRANGEBYSCORE', ports_key, '(' .. string.format(WHOLE, now), FOREVER, 'LIMIT', offset, PAGE)
    local lease_keys = {}
    for i, port in ipairs(ports) do
      lease_keys[i] = lease_prefix .. port
    end
    for i, lease in ipairs(#ports > 0 and read('MGET', unpack(lease_keys)) or {}) do
      if lease then
        local _, _, _, its_host = lease_head(lease, lease_keys[i])
        hosts[its_host] = true
      end
    end
    if #ports < PAGE then
      break
    end
  end
  read('XLEN', base .. ':events')

  -- writes --
  ends = needs_grace and now + ttl_ms or now
  call('HSET', base, 'recovery', run_id .. ' ' .. string.format(WHOLE, now) .. ' ' .. string.format(WHOLE, ends))
  call('DEL', base .. ':unreported')
  for its_host in pairs(hosts) do
    call('SADD', base .. ':unreported', its_host)
  end
  if next(hosts) then
    call('PEXPIRE', base .. ':unreported', ttl_ms)
  elseif needs_grace then
    -- Nobody is known to have a lease, so nobody's silence proves anything: the whole TTL passes.
    call('SADD', base .. ':unreported', '-')
    call('PEXPIRE', base .. ':unreported', ttl_ms)
  end
  if needs_grace then
    record_event(try, base, 'recovering', '-', 0, '-', '-')
  end
  return { RECOVERING, string.format(WHOLE, ends - now) }
end

return guarded(run)
