-- register: makes a host known before its first claim, or changes the address that it advertises.
--
-- Safe because a claim does the same on its own: this only does it earlier. It takes no name over from another machine
-- that has live leases under it.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 machine  3 boot  4 netns  5 advertised address
-- Replies
--       created · changed · unchanged · host_conflict machine · no_pool
-- Events  registered (the port is 0, worker and fence are '-'), when anything changed
-- Loops   on another machine's call only: the host's ports in pages of 512

--@include replies
--@include base

local function run()
  --@include keys
  --@include now
  if not read('HGET', base, 'first') then
    return { NO_POOL }
  end
  local host = ARGV[1]
  local host_key = base .. ':host:' .. host
  local known = read('HMGET', host_key, 'machine', 'boot', 'netns', 'address')
  if known[1] and (known[1] ~= ARGV[2] or known[2] ~= ARGV[3]) then
    --@include lease_head
    --@include live_lease
    if has_live_lease(host, now) then
      return { HOST_CONFLICT, known[1] }
    end
  end
  if known[1] == ARGV[2] and known[2] == ARGV[3] and known[3] == ARGV[4] and known[4] == ARGV[5] then
    return { UNCHANGED }
  end

  --@include written_types

  -- writes --
  --@include events
  redis.call('HSET', host_key, 'machine', ARGV[2], 'boot', ARGV[3], 'netns', ARGV[4], 'address', ARGV[5])
  -- In fleet scope the space is no host: the agenda then has the host beside it, with nothing to visit.
  redis.call('ZADD', hosts_key, 'NX', FOREVER, space, FOREVER, host)
  record_event('registered', host, 0, '-', '-')
  return { known[1] and CHANGED or CREATED }
end

--@include run
