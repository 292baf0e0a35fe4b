-- recovery: whether a server may grant ports that are unique over the whole fleet: not before it is sure that no holder
-- has one that it forgot. A server that nobody asked before (another run id: restarted, or a replica that took over) is not.

-- A recovery may end early, but not before every holder's turn to renew has come: that is within 0.55 TTL.
local SOONEST = 0.6

-- For how many ms the pool grants nothing yet (-1: a recovery has to begin first); nil where it grants. Where the server
-- does not tell its run id (ACL, a fake) nothing can be detected.
local function recovering_ms(read, try, base, now)
  local info = try('INFO', 'server')
  local run_id = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
  if not run_id then
    return nil
  end
  local known_run, began, ends = string.match(read('HGET', base, 'recovery') or '', '^(%x+) (%d+) (%d+)$')
  began, ends = tonumber(began), tonumber(ends)
  if known_run ~= run_id then
    return -1
  elseif now < ends and not (now >= began + (ends - began) * SOONEST and read('SCARD', base .. ':unreported') == 0) then
    return ends - now
  end
end
