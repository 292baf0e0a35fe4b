-- Answers the event's id, or an error as a table.
local function record_event(kind, host, port, worker, fence, ...)
  return redis.pcall('XADD', events_key, '*', 'type', kind, 'host', host, 'port', port, 'worker', worker, 'fence', fence, ...)
end
