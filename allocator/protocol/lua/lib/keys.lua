-- The names of the keys that all scripts share; `space` is where a port number is unique.
local base, ports_key = KEYS[1], KEYS[2]
local space = string.sub(ports_key, #base + 8)
local tokens_key, events_key, hosts_key = base .. ':tokens:' .. space, base .. ':events', base .. ':hosts'
local lease_prefix, worker_prefix = base .. ':lease:' .. space .. ':', base .. ':worker:'
