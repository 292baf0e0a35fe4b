-- cordon: a host gives out no new ports, or gives them out again. Its leases stay as they are.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 on or off
-- Replies
--       changed · unchanged · unknown (no such host in the pool)
-- Events  cordoned or uncordoned (the port is 0, worker and fence are '-')
-- Loops   none

--@include replies
--@include base

local function run(read, call, try)
  --@include keys
  if #ARGV < 2 then
    error({ err = WRONG_WORDS }, 0)
  end
  local host_key = base .. ':host:' .. ARGV[1]
  local known = read('HMGET', host_key, 'identity', 'cordon')
  local on = ARGV[2] == 'on'
  if not known[1] then
    return { UNKNOWN }
  elseif on == (known[2] == '1') then
    return { UNCHANGED }
  end

  --@include written_types

  -- writes --
  --@include events
  if on then
    call('HSET', host_key, 'cordon', '1')
  else
    call('HDEL', host_key, 'cordon', 'drain')
  end
  record_event(on and 'cordoned' or 'uncordoned', ARGV[1], 0, '-', '-')
  return { CHANGED }
end

--@include run
