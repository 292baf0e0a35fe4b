-- Tells the first waiters of this space to look again: `turns` of those that any port will do for, and all that wait for
-- one port or for a block.
for _, ticket in ipairs(try('ZRANGE', base .. ':waiters:' .. space, 0, QUEUE_WOKEN - 1)) do
  local waiter = try('GET', base .. ':waiter:' .. ticket)
  local condition = type(waiter) == 'string' and string.match(waiter, '^%-?%d+ (%l+) ')
  if (condition == 'any' and turns > 0) or condition == 'one' or condition == 'block' then
    turns = condition == 'any' and turns - 1 or turns
    --@include tell
  end
end
