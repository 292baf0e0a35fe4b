-- Enough for an hour of a busy fleet; a reader that fell further behind compares everything anyway.
local EVENTS_KEPT = 10000

local function record_event(kind, host, port, worker, fence, ...)
  read('XADD', events_key, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'host', host, 'port', port,
    'worker', worker, 'fence', fence, ...)
end
