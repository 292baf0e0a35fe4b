-- lead: takes, keeps or gives up the leadership of a pool's reconcilers.
--
-- Safe because the leader is whoever's token stands in the one key, decided and written within this script; its fence
-- is higher than every one before it, so that a leader which was stopped and goes on is distinguished by what it
-- writes.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:*     (only its form is used)
-- ARGV  1 take or release  2 token  3 ttl_ms  4 holder: who it is, as text without quotes
--       5 highest fence of a leader that the client knows of
-- Replies
--       granted fence · renewed fence      this token leads, for ttl_ms from now
--       held holder remaining_ms           another one does
--       released · already                 this token does not lead any more
-- Events  none
-- Loops   none

--@include replies
--@include base

local TTL_DIGITS = 12

local function run(read, call, try)
  local base = KEYS[1]
  local _, now_us = server_time(read)
  local leader_key, proof_key = base .. ':leader', base .. ':tokens:!leader'
  local token, ttl_text = ARGV[2], ARGV[3]
  if #ARGV < 5 or #ttl_text > TTL_DIGITS or not string.find(ttl_text, '^%d+$') or string.find(ARGV[4], '"', 1, true) then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local leader, proof = read('GET', leader_key), read('GET', proof_key)
  local fence, holder
  if leader then
    fence, holder = string.match(leader, '^{"fence":(%d+),"holder":"([^"]*)"}$')
    if not fence then
      bad(leader_key, 'does not hold a leader')
    end
  end
  local is_mine = leader and proof == token
  if ARGV[1] == 'release' then
    if not is_mine then
      return { ALREADY }
    end
  elseif tonumber(ttl_text) == 0 then
    error({ err = WRONG_ARGUMENTS }, 0)
  elseif leader and not is_mine then
    return { HELD, holder, read('PTTL', leader_key) }
  end

  -- writes --
  if ARGV[1] == 'release' then
    call('DEL', leader_key)
    call('DEL', proof_key)
    return { RELEASED }
  end
  local code = is_mine and RENEWED or GRANTED
  fence = fence or string.format(WHOLE, math.max(now_us, (tonumber(ARGV[5]) or 0) + 1))
  call('SET', leader_key, '{"fence":' .. fence .. ',"holder":"' .. ARGV[4] .. '"}', 'PX', ttl_text)
  call('SET', proof_key, token, 'PX', ttl_text)
  return { code, fence }
end

return guarded(run)
