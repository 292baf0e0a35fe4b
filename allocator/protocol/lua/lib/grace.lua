-- The pool's grace, from `pool[1]`; leaves `grace_ms`. In two steps: a pattern that has to look for its place costs many
-- times as much.
local _, before_grace = string.find(pool[1], ' grace_ms=', 1, true)
local grace_ms = before_grace and tonumber(string.match(pool[1], '^(%d+) ', before_grace + 1))
if not grace_ms then
  bad(base, 'has a garbled field rules')
end
