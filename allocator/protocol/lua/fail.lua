-- fail: records that the worker of a live lease failed, so that the reason outlives the lease. Changes nothing else.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 port  2 token  3 why, in one line
-- Replies
--       changed · not_yours (the token does not hold the port)
-- Events  failed, with the field `error`
-- Loops   none

--@include replies
--@include base

local function run(read, call, try)
  --@include keys
  --@include grants
  if #ARGV < 3 then
    error({ err = WRONG_WORDS }, 0)
  end
  local grant = read('HGET', tokens_key, ARGV[1])
  local ended, fence, token, host, worker
  if grant then
    ended, fence, token, host, worker = grant_of(grant, ARGV[1])
  end
  if ended ~= '' or token ~= ARGV[2] then
    return { NOT_YOURS }
  end
  read('XLEN', events_key)

  -- writes --
  --@include events
  record_event('failed', host, ARGV[1], worker, fence, 'error', ARGV[3])
  return { CHANGED }
end

--@include run
