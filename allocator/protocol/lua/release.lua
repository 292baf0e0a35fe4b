-- release: ends leases; their ports become claimable after the pool's cooldown, for their own workers at once.
--
-- Safe because only the token of the port's last grant ends it, and an ended grant is marked, so that a renewal
-- that was under way cannot bring it back.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  for each lease: port, token
-- Replies
--       for each lease a code and its detail: released <fence> · already '' · not_yours <the holder's lease>
-- Events  released
-- Loops   the batch, which the client keeps to 256 leases; 16 waiters; four lines for each lease, 64 waiters each

--@include replies
--@include base

local QUEUE_WOKEN = 16

local function run(read, call, try)
  --@include keys
  local find, match, kind = string.find, string.match, RELEASED
  local pool = read('HMGET', base, 'rules', 'waiting')
  local waiting = tonumber(pool[2] or 0)
  -- In two steps: a pattern that has to look for its place costs many times as much.
  local _, before = find(pool[1] or '', ' cooldown_ms=', 1, true)
  local cooldown_ms = tonumber(before and match(pool[1], '^%d+', before + 1)) or 0
  --@define free_at(port, now) now + cooldown_ms
  --@include endings
  if waiting > now and #ended > 0 then
    local turns = #ended
    --@include wake
  end
  return reply
end

--@include run
