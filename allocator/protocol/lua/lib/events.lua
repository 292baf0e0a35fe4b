-- events: what happened, in the pool's stream; and the end of a grant, which is reported there.

-- Enough for an hour of a busy fleet; a reader that fell further behind compares everything anyway.
local EVENTS_KEPT = 10000

-- Answers the event's id, or an error as a table. With `try`: nothing after the first write stops a script.
local function record_event(try, base, kind, host, port, worker, fence, ...)
  return try('XADD', base .. ':events', '*', 'type', kind, 'host', host, 'port', port, 'worker', worker, 'fence', fence, ...)
end

-- The key of the index of a worker's service.
local function service_key(base, worker)
  local org, rest = string.match(worker, '^([^/]+)/([^#]+)')
  return base .. ':service:' .. rest .. ':' .. org
end
