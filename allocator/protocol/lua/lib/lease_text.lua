local function lease_text(fence, state, worker, host, port, granted_at, ttl_ms, extra)
  return '{"fence":' .. fence .. ',"state":"' .. state .. '","worker":"' .. worker .. '","host":"' .. host ..
    '","port":' .. port .. ',"granted_at":' .. granted_at .. ',"ttl_ms":' .. ttl_ms .. extra .. '}'
end
