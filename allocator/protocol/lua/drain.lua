-- drain: a host gives out no new ports, and its leases become draining: nobody is sent to their workers any more.
--
-- Safe because it ends no lease: the holders see at their next renewal that they are to stop, and end them themselves.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host, then the ports whose leases may be of this host
-- Replies
--       draining, how many leases became draining by this call · unknown (no such host in the pool)
-- Events  draining (the port is 0, worker and fence are '-') when the host was not; changed for each lease
-- Loops   the ports, which the client keeps to 256

--@include replies
--@include base

local function run(read, call, try)
  --@include keys
  --@include lease_head
  local host = ARGV[1] or error({ err = WRONG_WORDS }, 0)
  local host_key = base .. ':host:' .. host
  local known = read('HMGET', host_key, 'identity', 'drain')
  if not known[1] then
    return { UNKNOWN }
  end
  local changing = {}
  for i = 2, #ARGV do
    local key = lease_prefix .. ARGV[i]
    local lease = read('GET', key)
    if lease then
      local fence, state, worker, its_host = lease_head(lease, key)
      if its_host == host and state ~= 'draining' then
        changing[#changing + 1] = { key = key, port = ARGV[i], lease = lease, fence = fence, worker = worker }
      end
    end
  end

  --@include written_types

  -- writes --
  --@include events
  call('HSET', host_key, 'cordon', '1', 'drain', '1')
  call('ZADD', hosts_key, 'NX', FOREVER, host)
  if not known[2] then
    record_event('draining', host, 0, '-', '-')
  end
  for _, it in ipairs(changing) do
    local text = string.gsub(it.lease, '"state":"%l+"', '"state":"draining"', 1)
    call('SET', it.key, text, 'KEEPTTL')
    record_event('changed', host, it.port, it.worker, it.fence, 'state', 'draining')
  end
  return { DRAINING, #changing }
end

--@include run
