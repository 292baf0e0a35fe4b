-- restore: gives workers a provisional claim on the ports that they had, from what a database remembers.
--
-- Safe because nothing is written over what Redis knows: a port that was ever granted here and a worker that has a
-- place are left as they are. What is written is a lease that its own worker gave back a moment ago: for ttl_ms the
-- port goes to that worker and to nobody else. Its fence is one below the remembered one, so that a holder which lives
-- on re-asserts its lease as after any loss of data.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 ttl_ms, then for each claim: host, port, worker, remembered fence
-- Replies
--       for each claim restored or already · no_pool, alone
-- Events  restored
-- Loops   the batch, which the client keeps to 256 claims

--@include replies
--@include base
--@include events
--@include leases

local WORDS = 4
local TTL_DIGITS = 12
local NO_TOKEN = '00000000000000000000000000000000'

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local tokens_key, now = base .. ':tokens:' .. namespace, server_time(read)
  read('ZCARD', base .. ':hosts')
  read('XLEN', base .. ':events')
  local ttl_ms = tonumber(ARGV[1])
  if not string.find(ARGV[1] or '', '^%d+$') or #ARGV[1] > TTL_DIGITS or (#ARGV - 1) % WORDS ~= 0 then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local pool = read('HMGET', base, 'rules', 'fence')
  if not pool[1] then
    return { NO_POOL }
  end
  local reply, seen = {}, {}
  local newest = tonumber(pool[2]) or 0
  read('ZCARD', ports_key)
  read('HLEN', tokens_key)
  for at = 2, #ARGV, WORDS do
    local port, worker = ARGV[at + 1], ARGV[at + 2]
    if not string.find(ARGV[at + 3], '^%d+$') then
      error({ err = WRONG_ARGUMENTS }, 0)
    end
    local known = seen[port] or seen[worker] or read('HEXISTS', tokens_key, port) == 1
      or read('GET', base .. ':worker:' .. worker) or read('GET', base .. ':lease:' .. namespace .. ':' .. port)
    reply[#reply + 1] = known and ALREADY or RESTORED
    if not known then
      seen[port], seen[worker] = true, true
      newest = math.max(newest, tonumber(ARGV[at + 3]))
    end
  end

  -- writes --
  call('HSET', base, 'fence', string.format(WHOLE, newest))
  for i, code in ipairs(reply) do
    if code == RESTORED then
      local at = 2 + (i - 1) * WORDS
      local host, port, worker = ARGV[at], ARGV[at + 1], ARGV[at + 2]
      local fence = string.format(WHOLE, ARGV[at + 3] - 1)
      call('ZADD', ports_key, now + ttl_ms, port)
      try('PERSIST', tokens_key)
      call('HSET', tokens_key, port, '-' .. fence .. ' ' .. NO_TOKEN .. ' ' .. host .. ' ' .. worker)
      write_address(call, base .. ':worker:' .. worker, host, port, fence, ttl_ms)
      record_event(try, base, RESTORED, host, port, worker, fence)
    end
  end
  return reply
end

return guarded(run)
