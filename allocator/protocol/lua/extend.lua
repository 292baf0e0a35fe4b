-- extend: extends leases of one host that are alive, and names those that `renew` has to decide about.
--
-- Safe because a lease is extended only while the port's last grant begins with its proof, which nobody but its holder
-- can make up, and has not ended; and PEXPIRE, first of the writes, extends no lease that is gone. What is not extended
-- here is not changed either. This is nearly all that a fleet asks of Redis, so it is sent, answers and makes as few
-- fields as can be: a field costs more than what is done with it.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 host  2 ttl_ms  3 the proofs of all the leases in one field, each of 50 characters: fence and token, a blank
-- after
--       each; then the ports
-- Replies
--       now_ms, whether the host is to be emptied (1: its holders stop their workers and release), whether the reaper
--       is to visit the pool (1), then the number in the batch, from 1, of each lease that was not extended
--       no_pool, alone, when the pool is not defined
-- Events  none
-- Loops   the batch, which the client keeps to 256 leases

--@include replies
--@include base

-- A fence of 16 digits and a token of 32, with their blanks. What has other lengths is left to `renew`.
local WHOLE_PROOF = 50
local PLACE_PERIOD_MS = 3600000
-- Arguments of one ZADD, two for each port. A table that has its size from the start is not moved while it fills.
local SCORES = 64

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local args, find, sub = ARGV, string.find, string.sub
  local lease_prefix, hosts_key = base .. ':lease:' .. namespace .. ':', base .. ':hosts'
  local pool = read('HMGET', base, 'rules', 'reap_at')
  if not pool[1] then
    return { NO_POOL }
  end
  local grace_ms = rule_of(pool[1], ' grace_ms=', base)
  local now = server_time(read)
  local ttl_text, proofs, count, ttl_ms = args[2], args[3], #args - 3, tonumber(args[2])
  if #proofs ~= count * WHOLE_PROOF then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local grants = read('HMGET', base .. ':tokens:' .. namespace, unpack(args, 4))
  local host_key = base .. ':host:' .. args[1]
  local about_host = read('HMGET', host_key, 'drain', 'due')
  read('ZCARD', ports_key)
  local reply = { string.format(WHOLE, now), about_host[1] and 1 or 0, (tonumber(pool[2]) or 0) <= now and 1 or 0 }
  local score, filled = string.format(WHOLE, now + ttl_ms + grace_ms), 0
  local scores = { unpack(args, 1, SCORES) }

  -- writes --
  -- From the last to the first: so a small sorted set, which is a list that is searched from its front, has a shorter way.
  for i = count, 1, -1 do
    local port, grant = args[i + 3], grants[i]
    if grant and find(grant, sub(proofs, (i - 1) * WHOLE_PROOF + 1, i * WHOLE_PROOF), 1, true) == 1
      and call('PEXPIRE', lease_prefix .. port, ttl_text) == 1 then
      scores[filled + 1], scores[filled + 2] = score, port
      filled = filled + 2
      if filled == SCORES then
        call('ZADD', ports_key, unpack(scores, 1, SCORES))
        filled = 0
      end
    else
      reply[#reply + 1] = i
    end
  end
  if filled > 0 then
    call('ZADD', ports_key, unpack(scores, 1, filled))
  end
  -- Where these are all the leases of the host, and none has run out that the reaper has still to tell, none will before
  -- they do: the reaper need not come and find that they were renewed.
  local due, next_due = namespace == args[1] and tonumber(about_host[2]), now + ttl_ms
  local comes_in_vain = due and now < due and due < next_due
    and call('ZCOUNT', ports_key, '(' .. string.format(WHOLE, now), FOREVER) == count + 3 - #reply
  if comes_in_vain or due and due > next_due then
    local next_text = string.format(WHOLE, next_due)
    if type(try('ZADD', hosts_key, next_text, namespace)) == 'number' then
      call('HSET', host_key, 'due', next_text)
    end
  end
  if now % PLACE_PERIOD_MS < ttl_ms then
    --@include leases
    local next_left = 4
    for i = count, 1, -1 do
      if reply[next_left] == i then
        next_left = next_left + 1
      else
        local port, grant = args[i + 3], grants[i]
        -- A worker's last address is written again, so that it never expires while the lease lives. What another
        -- program put there is left alone, and stops no heartbeat.
        local fence, its_host, worker = string.match(grant, '^(%d+) %x+ (%S+) (%S+)$')
        local address_key = base .. ':worker:' .. (worker or '')
        if worker and type(try('GET', address_key)) ~= 'table' then
          write_address(call, address_key, its_host, port, fence, ttl_ms)
        end
      end
    end
  end
  if namespace == '*' then
    -- A host that tells of its leases; only a recovery asks for it.
    try('SREM', base .. ':unreported', args[1])
  end
  return reply
end

return guarded(run)
