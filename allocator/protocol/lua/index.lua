-- index: enters live leases into the indexes that limits are counted by, for a pool that had none before.
--
-- Safe because once the pool is marked as counting, every new lease enters by itself; these are the
-- ones before. Limits hold once `done` was sent.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 mode (start, ports, done), then with ports: the ports whose leases are entered
-- Replies
--       changed, how many leases were entered
-- Events  none
-- Loops   the ports, which the client keeps to 256

--@include replies
--@include base

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local found = {}
  for i = 2, #ARGV do
    local worker = string.match(read('GET', base .. ':lease:' .. namespace .. ':' .. ARGV[i]) or '', '"worker":"([^"]+)"')
    if worker then
      local org, plugin = string.match(worker, '^([^/]+)/([^+#]+)')
      found[#found + 1] = { namespace .. ':' .. ARGV[i], base .. ':limited:org:' .. org, base .. ':limited:plugin:' .. plugin }
      read('SCARD', found[#found][2])
      read('SCARD', found[#found][3])
    end
  end

  -- writes --
  if ARGV[1] == 'start' then
    call('HSET', base, 'counting', '1')
  elseif ARGV[1] == 'done' then
    call('HDEL', base, 'counting')
  end
  for _, it in ipairs(found) do
    call('SADD', it[2], it[1])
    call('SADD', it[3], it[1])
  end
  return { CHANGED, #found }
end

return guarded(run)
