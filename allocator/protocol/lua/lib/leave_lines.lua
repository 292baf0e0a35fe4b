-- A waiter (`more.ticket`) has what it waited for, and leaves the lines that it stood in: that of the space, and that of those
-- whom something else than ports holds back, by what it said of itself (`more.said`) or by its worker.
--@include held_back
for key in pairs(held_lines(more.said, worker)) do
  try('ZREM', key, more.ticket)
end
try('ZREM', base .. ':waiters:' .. space, more.ticket)
call('DEL', base .. ':waiter:' .. more.ticket, base .. ':turn:' .. more.ticket)
