-- A waiter (`more.ticket`) has what it waited for, and leaves the lines that it stood in: the last one was that of those
-- whom something else than ports holds back when it said so of itself (`more.said`).
--@include held_back
local its_condition, its_worker = string.match(more.said or '', '^%-?%d+ (%l+) (%S+)$')
local held_line = its_condition and held_key(its_condition, its_worker)
if held_line then
  try('ZREM', held_line, more.ticket)
end
call('ZREM', base .. ':waiters:' .. space, more.ticket)
call('DEL', base .. ':waiter:' .. more.ticket, base .. ':turn:' .. more.ticket)
