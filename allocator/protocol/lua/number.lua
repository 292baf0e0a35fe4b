-- number: the instance that a service has for a key, the same again whenever it is asked for.
--
-- Safe because a number that a key has is given to no other key, and a claim for `auto` passes it by; whether the instance
-- has a lease already is for the claim to decide.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 organisation  2 plugin  3 key
-- Replies
--       found number · no_pool
-- Events  none
-- Loops   the keys of the service and its leases: 1,024 each

--@include replies
--@include base

local MOST_INSTANCES = 1024
-- A key that nobody used for so long is forgotten when another one comes.
local KEPT_MS = 2592000000

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace, org, plugin, key = string.sub(ports_key, #base + 8), ARGV[1], ARGV[2], ARGV[3]
  if not key or ARGV[4] then
    error({ err = WRONG_ARGUMENTS }, 0)
  elseif not read('HGET', base, 'rules') then
    return { NO_POOL }
  end
  local service = plugin .. ':' .. org
  local numbers_key, now = base .. ':numbers:' .. service, server_time(read)
  local number, taken, stale = nil, {}, {}
  local entries = read('HGETALL', numbers_key)
  for i = 1, #entries, 2 do
    local its_number, used_at = string.match(entries[i + 1], '^(%d+) (%d+)$')
    if not its_number then
      bad(numbers_key, 'has a garbled field ' .. entries[i])
    elseif entries[i] == key then
      number = tonumber(its_number)
    elseif now - used_at > KEPT_MS then
      stale[#stale + 1] = entries[i]
    else
      taken[tonumber(its_number)] = true
    end
  end
  if not number then
    for _, member in ipairs(read('ZRANGE', base .. ':service:' .. service, 0, MOST_INSTANCES - 1)) do
      local its_host, port = string.match(member, '^([%w._-]+):(%d+)$')
      local lease = its_host and read('GET', base .. ':lease:' .. (namespace == '*' and '*' or its_host) .. ':' .. port)
      local its_number = string.match(lease or '', '"worker":"[^"#]+#(%d+)"')
      if its_number then
        taken[tonumber(its_number)] = true
      end
    end
    number = 0
    while taken[number] do
      number = number + 1
    end
  end

  -- writes --
  for _, name in ipairs(stale) do
    call('HDEL', numbers_key, name)
  end
  call('HSET', numbers_key, key, number .. ' ' .. string.format(WHOLE, now))
  call('PEXPIRE', numbers_key, KEPT_MS)
  return { FOUND, number }
end

return guarded(run)
