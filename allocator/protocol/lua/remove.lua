-- remove: removes a pool that has no hosts any more.
--
-- Safe because a host that is known, and so whatever it leased, is in the way: it has to be forgotten first. For a week it
-- is known that the pool was removed, so that no holder that lives after all defines it again from what it knows; its
-- events, its history and the leases that an operator ended are kept as long.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*
-- ARGV  1 who does it   2 why ('-': it had no lease)
-- Replies
--       removed · unknown (there is no such pool) · busy (it has hosts)
-- Events  removed, with the fields `by` and `reason` (host, worker and fence are '-', the port is 0)
-- Loops   three keys

--@include replies
--@include base
--@include events

local KEPT_MS = 604800000

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local by, reason = ARGV[1], ARGV[2]
  if not reason or ARGV[3] then
    error({ err = WRONG_ARGUMENTS }, 0)
  elseif not read('HGET', base, 'rules') then
    return { UNKNOWN }
  end
  local hosts = read('ZCARD', base .. ':hosts')
  if read('ZSCORE', base .. ':hosts', '*') then
    hosts = hosts - 1
  end
  if hosts > 0 then
    return { BUSY }
  end
  read('XLEN', base .. ':events')

  -- writes --
  call('UNLINK', base, ports_key, base .. ':hosts', base .. ':host:*')
  call('SET', base .. ':removed', by, 'PX', KEPT_MS)
  record_event(try, base, REMOVED, '-', 0, '-', '-', 'by', by, 'reason', reason)
  for _, name in ipairs({ ':events', ':history', ':tokens:*' }) do
    call('PEXPIRE', base .. name, KEPT_MS)
  end
  return { REMOVED }
end

return guarded(run)
