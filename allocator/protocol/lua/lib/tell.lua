-- Tells the waiter that has `ticket` to look again. Nothing here can stop the script: it looks by itself within a second.
local turn = base .. ':turn:' .. ticket
if redis.pcall('LLEN', turn) == 0 then
  redis.pcall('LPUSH', turn, '1')
  redis.pcall('PEXPIRE', turn, 5000)
end
