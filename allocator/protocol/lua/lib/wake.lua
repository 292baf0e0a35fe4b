-- Tells the first waiters of this space to look again: `turns` of those that any port will do for, and those that wait
-- for one port or for their quota. Nothing here can stop the script: a waiter looks again by itself within a second.
for _, ticket in ipairs(redis.pcall('ZRANGE', base .. ':waiters:' .. space, 0, QUEUE_WOKEN - 1)) do
  local waiter = redis.pcall('GET', base .. ':waiter:' .. ticket)
  local waits_for_any = type(waiter) == 'string' and string.find(waiter, '^0 any ')
  if turns > 0 or not waits_for_any then
    local turn = base .. ':turn:' .. ticket
    if redis.pcall('LLEN', turn) == 0 then
      redis.pcall('LPUSH', turn, '1')
      redis.pcall('PEXPIRE', turn, 5000)
    end
    turns = waits_for_any and turns - 1 or turns
  end
end
