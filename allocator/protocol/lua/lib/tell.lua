-- Tells the waiter that has `ticket` to look again. Nothing here can stop the script: it looks by itself within a second.
local turn = base .. ':turn:' .. ticket
if try('LLEN', turn) == 0 then
  try('LPUSH', turn, '1')
  try('PEXPIRE', turn, 5000)
end
