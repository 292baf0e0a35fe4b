-- keep: extends leases of one host that are alive, and names those that `renew` has to decide about.
--
-- Safe because a lease is extended only while the port's last grant begins with its proof, which nobody but its holder
-- can make up, and has not ended; and PEXPIRE, first of the writes, extends no lease that is gone. What is not extended
-- here is not changed either. This is nearly all that a fleet asks of Redis, so it is told, answers and makes as few
-- words as can be: a word costs more than what is done with it.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 ttl_ms, then the ports of all the leases, then for each its proof: fence and token, a blank after each
-- Replies
--       now_ms, whether the host is to be emptied (1: its holders stop their workers and release), whether the reaper
--       is to visit the pool (1), then the place in the batch, from 1, of each lease that was not extended
--       no_pool, alone, when the pool is not defined
-- Events  none
-- Loops   the batch, which the client keeps to 256 leases

--@include replies
--@include base

-- A fence of 16 digits and a token of 32, with their blanks: a shorter proof is none, for a grant begins with its fence.
local WHOLE_PROOF = 50
local PLACE_PERIOD_MS = 3600000

local function run(read, call, try)
  --@include keys
  local args, find = ARGV, string.find
  local pool = read('HMGET', base, 'rules', 'reap_at')
  if not pool[1] then
    return { NO_POOL }
  end
  --@include grace
  --@include now
  local ttl_text, count, ttl_ms = args[2], (#args - 2) / 2, tonumber(args[2])
  local before_proofs = count + 2
  local grants = read('HMGET', tokens_key, unpack(args, 3, before_proofs))
  local is_draining = read('HGET', base .. ':host:' .. args[1], 'drain')
  read('ZCARD', ports_key)
  local reply = { whole(now), is_draining and 1 or 0, (tonumber(pool[2]) or 0) <= now and 1 or 0 }
  local score, scores = whole(now + ttl_ms + grace_ms), {}

  -- writes --
  for i = 1, count do
    local port, grant, proof = args[i + 2], grants[i], args[before_proofs + i]
    if grant and #proof >= WHOLE_PROOF and find(grant, proof, 1, true) == 1
      and call('PEXPIRE', lease_prefix .. port, ttl_text) == 1 then
      scores[#scores + 1] = score
      scores[#scores + 1] = port
    else
      reply[#reply + 1] = i
    end
  end
  if #scores > 0 then
    call('ZADD', ports_key, unpack(scores))
  end
  if now % PLACE_PERIOD_MS < ttl_ms then
    --@include places
    local next_left = 4
    for i = 1, count do
      if reply[next_left] == i then
        next_left = next_left + 1
      else
        local port, grant = args[i + 2], grants[i]
        --@include place_anew
      end
    end
  end
  if space == '*' then
    -- A host that tells of its leases; only a recovery asks for it.
    try('SREM', base .. ':unreported', args[1])
  end
  return reply
end

--@include run
