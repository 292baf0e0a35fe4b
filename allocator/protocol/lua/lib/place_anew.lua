-- A worker's place is written anew, so that it never runs out under a lease that is kept; PLACE_PERIOD_MS is how often.
-- What another program put there is left alone, and stops no heartbeat. Needs grant, port and ttl_ms.
local fence, its_host, worker = string.match(grant, '^(%d+) %x+ (%S+) (%S+)$')
local place_key = worker and worker_prefix .. worker
if worker and type(try('GET', place_key)) ~= 'table' then
  write_place(place_key, its_host, port, fence, ttl_ms)
end
