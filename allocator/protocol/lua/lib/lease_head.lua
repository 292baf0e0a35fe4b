-- The parts of a lease that its worker cannot change: fence, state, worker, host, granted_at.
local function lease_head(text, key)
  local fence, state, worker, host, granted_at = string.match(text,
    '^{"fence":(%d+),"state":"(%l+)","worker":"([^"]+)","host":"([^"]+)","port":%d+,"granted_at":(%d+)')
  if not fence then
    bad(key, 'does not hold a lease')
  end
  return fence, state, worker, host, granted_at
end
