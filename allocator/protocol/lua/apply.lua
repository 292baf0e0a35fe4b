-- apply: defines a pool, or changes its rules. No live lease is touched: a port that left the range is retired
-- when it comes back.
--
-- Safe because all rules change in one script, and what the scripts keep (fence, version) stays.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*     (only its form is used)
-- ARGV  1 mode (create: only where there is no such pool; restore: the same, after Redis lost it; apply: in any case)  2 who does it, then field and value pairs
-- Replies
--       created version · changed version · unchanged version · scope_fixed scope (hosts know the pool by its scope)
--       removed (restore only: nobody lost this pool, an operator removed it)
-- History each version in full, the last 100
-- Events  pool (host, worker and fence are '-', the port is 0)
-- Loops   the pool's fields: at most 1,036 (see MAX_CONVENTIONAL_PORTS)

--@include replies
--@include base
--@include events

local VERSIONS_KEPT = 100

local function run(read, call, try)
  local base, hosts_key = KEYS[1], KEYS[1] .. ':hosts'
  local before = {}
  local pairs_before = read('HGETALL', base)
  for i = 1, #pairs_before, 2 do
    before[pairs_before[i]] = pairs_before[i + 1]
  end
  local kept = { fence = true, version = true, waiting = true, counting = true, recovery = true, reap_at = true }
  local version = tonumber(before['version']) or 0
  local changed, after, stale = false, {}, {}
  for i = 3, #ARGV, 2 do
    after[ARGV[i]] = ARGV[i + 1]
    changed = changed or before[ARGV[i]] ~= ARGV[i + 1]
  end
  if not after['rules'] or #ARGV % 2 == 1 then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  for field in pairs(before) do
    if not after[field] and not kept[field] then
      stale[#stale + 1] = field
      changed = true
    end
  end
  if not changed or (before['rules'] and ARGV[1] ~= 'apply') then
    return { UNCHANGED, version }
  end
  if ARGV[1] == 'restore' and read('GET', base .. ':removed') then
    return { REMOVED }
  end
  local scope = string.match(before['rules'] or '', ' scope=(%l+) ')
  if scope and scope ~= string.match(after['rules'] or '', ' scope=(%l+) ') and read('ZCARD', hosts_key) > 0 then
    return { SCOPE_FIXED, scope }
  end

  read('XLEN', base .. ':events')
  read('XLEN', base .. ':history')

  -- writes --
  for _, field in ipairs(stale) do
    call('HDEL', base, field)
  end
  for field, value in pairs(after) do
    call('HSET', base, field, value)
  end
  if not before['rules'] then
    call('DEL', base .. ':removed')
    try('PERSIST', base .. ':events')
    try('PERSIST', base .. ':history')
    try('PERSIST', base .. ':tokens:*')
  end
  call('HSET', base, 'version', version + 1)
  if ARGV[1] == 'restore' then
    call('HSET', base, 'recovery', '0 0 0')
  end
  call('XADD', base .. ':history', 'MAXLEN', VERSIONS_KEPT, '*', 'version', version + 1, 'by', ARGV[2], unpack(ARGV, 3))
  record_event(try, base, 'pool', '-', 0, '-', '-', 'version', version + 1)
  return { before['rules'] and CHANGED or CREATED, version + 1 }
end

return guarded(run)
