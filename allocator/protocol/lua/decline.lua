-- decline: ends leases because the kernel refused their ports; each port goes into quarantine.
--
-- The quarantine is 5 s the first time and four times as long each further time, 10 min at most; an hour
-- without a decline resets it. Safe for the same reason as release.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  for each lease: port, token
-- Replies
--       for each lease a code and its detail: declined <fence> · already '' · not_yours <the holder's lease>
-- Events  declined
-- Loops   the batch, which the client keeps to 256 leases; four lines for each lease, 64 waiters each

--@include replies
--@include base

local FIRST_MS, FACTOR, LONGEST_MS, PEACE_MS = 5000, 4, 600000, 3600000

local function run(read, call, try)
  --@include keys
  local kind = DECLINED
  local space_key, strikes = base .. ':host:' .. space, {}
  local waiting = tonumber(read('HGET', base, 'waiting') or 0)
  local function free_at(port, now)
    local count, at = string.match(read('HGET', space_key, 'strikes:' .. port) or '', '^(%d+) (%d+)')
    count = count and now - at < PEACE_MS and tonumber(count) or 0
    local until_ms = now + math.min(FIRST_MS * FACTOR ^ count, LONGEST_MS)
    strikes[#strikes + 1] = { port, (count + 1) .. ' ' .. whole(now) .. ' ' .. whole(until_ms) }
    return until_ms
  end
  --@include endings
  for _, strike in ipairs(strikes) do
    call('HSET', space_key, 'strikes:' .. strike[1], strike[2])
  end
  return reply
end

--@include run
