-- forget: removes a host that has no live lease from the pool, and all that is known of it.
--
-- Safe because it waits until the end of every grant on the host was made known (the reaper's cursor), and because a
-- host that claims again is simply known again. Its name is then free for another machine.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host
-- Replies
--       forgotten · unknown (no such host in the pool) · busy (it has a live lease)
--       again (leases have ended that nobody has closed: reap, then call once more)
-- Events  forgotten (the port is 0, worker and fence are '-')
-- Loops   the host's ports in pages of 512; ended grants that were not closed: 512

--@include replies
--@include base

local PAGE = 512

local function run(read, call, try)
  --@include keys
  --@include now
  --@include lease_head
  --@include live_lease
  local host = ARGV[1] or error({ err = WRONG_WORDS }, 0)
  local host_key = base .. ':host:' .. host
  local is_space = space == host
  if not read('HGET', host_key, 'identity') and not read('ZSCORE', hosts_key, host) then
    return { UNKNOWN }
  elseif has_live_lease(host, now) then
    return { BUSY }
  end
  if is_space then
    local cursor = string.match(read('HGET', host_key, 'reaped') or '', '^(%d+) ') or '0'
    local recent = read('ZRANGEBYSCORE', ports_key, cursor, FOREVER, 'LIMIT', 0, PAGE)
    for _, grant in ipairs(#recent > 0 and read('HMGET', tokens_key, unpack(recent)) or {}) do
      if grant and not string.find(grant, '^[-~!]') then
        return { AGAIN }
      end
    end
  end

  --@include written_types

  -- writes --
  --@include events
  call('DEL', host_key)
  if is_space then
    call('UNLINK', ports_key, tokens_key)
  end
  call('ZREM', hosts_key, host)
  record_event('forgotten', host, 0, '-', '-')
  return { FORGOTTEN }
end

--@include run
