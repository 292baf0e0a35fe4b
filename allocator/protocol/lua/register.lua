-- register: makes a host known before its first claim, or changes the address that it advertises.
--
-- Safe because a claim does the same on its own: this only does it earlier. It takes no name over from another machine
-- that has live leases under it.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 identity: machine, boot, netns and address (after a `!` when it was chosen)
-- Replies
--       created · changed · unchanged · host_conflict machine · no_pool
-- Events  registered (the port is 0, worker and fence are '-'), when anything changed
-- Loops   on another machine's call only: the host's ports in pages of 512

--@include replies
--@include base

local function run(read, call, try)
  --@include keys
  --@include now
  if #ARGV < 2 then
    error({ err = WRONG_WORDS }, 0)
  end
  if not read('HGET', base, 'rules') then
    return { NO_POOL }
  end
  local host = ARGV[1]
  local host_key = base .. ':host:' .. host
  local known = read('HGET', host_key, 'identity')
  --@include other_host
  if known and is_other_host(known, ARGV[2]) then
    --@include lease_head
    --@include live_lease
    if has_live_lease(host, now) then
      return { HOST_CONFLICT, string.match(known, '^%S+') or '-' }
    end
  end
  if known and (known == ARGV[2] or keeps_address(known, ARGV[2])) then
    return { UNCHANGED }
  end

  --@include written_types

  -- writes --
  --@include events
  call('HSET', host_key, 'identity', ARGV[2])
  -- In fleet scope the space is no host: the agenda then has the host beside it, with nothing to visit.
  call('ZADD', hosts_key, 'NX', FOREVER, space, FOREVER, host)
  record_event('registered', host, 0, '-', '-')
  return { known and CHANGED or CREATED }
end

--@include run
