-- Who waits in this space ahead of `ticket` ('': a newcomer, behind all) and could use what it asks for (`explicit`: its
-- only port, 0 for any, -1 for a block of adjacent ones). Leaves `tickets` and `waiters` (what each says of itself, false
-- when it is gone), `seat` (its place among them, nil when it has none), `ahead` (how many it may not overtake), `wanted`
-- (ports that those ahead wait for, as ranges with a comma before each), and the ticket in `more.asker`. Who waits for a
-- block keeps nobody but the next who waits for one; who is held back by something else than ports keeps nobody.
local tickets, waiters, seat, ahead, wanted = read('ZRANGE', base .. ':waiters:' .. space, 0, QUEUE_SEEN - 1), {}, nil, 0, ''
if #tickets > 0 then
  local waiter_keys = {}
  for i = 1, #tickets do
    waiter_keys[i] = base .. ':waiter:' .. tickets[i]
  end
  waiters = read('MGET', unpack(waiter_keys))
end
for i = 1, #tickets do
  if tickets[i] == ticket then
    seat = i
    break
  end
  local its_port, condition = string.match(waiters[i] or '', '^(%-?%d+) (%l+) ')
  if condition == 'any' or (condition and tonumber(its_port) == explicit and (condition == 'one' or condition == 'block')) then
    ahead = ahead + 1
  elseif condition == 'one' and explicit <= 0 then
    wanted = wanted .. ',' .. its_port
  end
end
more.asker = ticket
