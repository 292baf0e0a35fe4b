-- The end of a grant (`text` as it stood) in all indexes but its port's score, which says why it ended.
local function close_grant(kind, port, text, fence, host, worker)
  local mark = kind == 'declined' and '~' or kind == 'expired' and '!' or '-'
  call('HSET', tokens_key, port, mark .. text)
  call('ZREM', service_key(worker), host .. ':' .. port)
  record_event(kind, host, port, worker, fence)
end
