-- inspect: pool, hosts and leases as data. Reads only.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 what: pool, hosts, host, members, ports, port or newest; then
--       hosts: offset, count · members: a sorted set of the pool (its key after the pool's), offset, count
--       ports: from which score (ms), count · port: the port
-- Replies
--       pool    its fields and values
--       hosts   namespace, score (when its next lease may expire), and so on
--       host    the fields and values of the namespace's hash
--       members member, score, and so on, whatever another program put there
--       ports   now_ms, then port, score, lease or '', its remaining ms, of the ports that are not claimable now, lowest score first;
--               count and the ports of equal score beside them, so that asking again from the last score goes on
--       port    now_ms, then the same four fields of this port (score '' when it was never used)
--       newest  id of the last event
-- Events  none
-- Loops   what is asked for: at most 512 rows beside those of equal score

--@include replies
--@include base

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local hosts_key, lease_prefix = base .. ':hosts', base .. ':lease:' .. namespace .. ':'
  local what = ARGV[1]
  if (what == 'hosts' or what == 'ports') and not (tonumber(ARGV[2]) and tonumber(ARGV[3])) then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  if what == 'pool' then
    return read('HGETALL', base)
  elseif what == 'hosts' then
    return read('ZRANGE', hosts_key, ARGV[2], tonumber(ARGV[2]) + tonumber(ARGV[3]) - 1, 'WITHSCORES')
  elseif what == 'host' then
    return read('HGETALL', base .. ':host:' .. namespace)
  elseif what == 'members' then
    if not (ARGV[2] and tonumber(ARGV[3]) and tonumber(ARGV[4])) then
      error({ err = WRONG_ARGUMENTS }, 0)
    end
    local from, count = tonumber(ARGV[3]), math.min(tonumber(ARGV[4]), 512)
    return read('ZRANGE', base .. ARGV[2], from, from + count - 1, 'WITHSCORES')
  end
  if what == 'newest' then
    local newest = read('XREVRANGE', base .. ':events', '+', '-', 'COUNT', 1)
    return { newest[1] and newest[1][1] or '0-0' }
  end
  local now = server_time(read)
  if what == 'port' then
    local key = lease_prefix .. ARGV[2]
    return { string.format(WHOLE, now), ARGV[2], read('ZSCORE', ports_key, ARGV[2]) or '', read('GET', key) or '',
      read('PTTL', key) }
  end
  local from = math.max(tonumber(ARGV[2]), now)
  local ties = read('ZCOUNT', ports_key, string.format(WHOLE, from), string.format(WHOLE, from))
  local rows = read('ZRANGEBYSCORE', ports_key, string.format(WHOLE, from), FOREVER, 'WITHSCORES', 'LIMIT', 0,
    ties + math.min(tonumber(ARGV[3]), 512))
  local keys = {}
  for i = 1, #rows, 2 do
    keys[#keys + 1] = lease_prefix .. rows[i]
  end
  local leases = #keys > 0 and read('MGET', unpack(keys)) or {}
  local reply = { string.format(WHOLE, now) }
  for i = 1, #keys do
    local at = 4 * i - 2
    reply[at], reply[at + 1] = rows[2 * i - 1], rows[2 * i]
    reply[at + 2], reply[at + 3] = leases[i] or '', leases[i] and read('PTTL', keys[i]) or 0
  end
  return reply
end

return guarded(run)
