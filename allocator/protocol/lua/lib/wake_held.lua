-- Tells those whom leases that ended had held back (`freed`: the workers of these leases) to look again, one for each, on
-- whatever host they wait.
--@include held_back
local lines = {}
for _, worker in ipairs(freed) do
  for key, kind in pairs(held_lines(nil, worker)) do
    local line = lines[key] or { kind = kind, turns = 0 }
    line.turns = line.turns + 1
    lines[key] = line
  end
end
for key, line in pairs(lines) do
  for at, ticket in ipairs((held_before(key, line.kind, ''))) do
    if at > line.turns then
      break
    end
    --@include tell
  end
end
