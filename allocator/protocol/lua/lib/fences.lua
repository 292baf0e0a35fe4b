-- A fence grows even when Redis lost the last one: the server's time in microseconds is its floor.
local function next_fence(last, now_us, known)
  return whole(math.max((tonumber(last) or 0) + 1, now_us, (tonumber(known) or 0) + 1))
end
