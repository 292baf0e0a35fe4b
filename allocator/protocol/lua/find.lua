-- find: where workers are, or how their last lease ended. Reads only.
--
-- What it answers is the whole truth of one moment, so that whoever heard of a change (late, twice, in the wrong order)
-- asks here instead of believing what was heard.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>     (only whether the namespace is * matters)
-- ARGV  workers
-- Replies
--       now_ms, then for each worker
--       host, port, fence of its last lease ('' three times when nothing is known), then one of
--       live (with the lease and its remaining ms) · released · declined · expired · replaced (the port was given to
--       another since) · unknown; lease or ''; remaining ms
-- Events  none
-- Loops   the batch, which the client keeps to 256 workers

--@include replies
--@include base
--@include events
--@include grants
--@include leases

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local is_fleet, now = string.sub(ports_key, #base + 8) == '*', server_time(read)
  local reply = { string.format(WHOLE, now) }
  local hows = { ['-'] = RELEASED, ['~'] = DECLINED, ['!'] = EXPIRED, ['='] = RELEASED }
  for at, worker in ipairs(ARGV) do
    local address_key = base .. ':worker:' .. worker
    local address = read('GET', address_key)
    local host, port, fence, how, lease, left = '', '', '', UNKNOWN, '', 0
    if address then
      host, port, fence = address_of(address, address_key)
      local address_namespace = is_fleet and '*' or host
      local tokens_key = base .. ':tokens:' .. address_namespace
      local grant = read('HGET', tokens_key, port)
      local ended, its_fence
      if grant then
        ended, its_fence = grant_of(grant, tokens_key, port)
      end
      if its_fence == fence then
        how = hows[ended] or EXPIRED
        local key = base .. ':lease:' .. address_namespace .. ':' .. port
        local text = ended == '' and read('GET', key)
        if text and lease_head(text, key) == fence then
          how, lease, left = LIVE, text, read('PTTL', key)
        end
      elseif its_fence then
        how = REPLACED
      end
    end
    local base_at = 6 * at - 4
    reply[base_at], reply[base_at + 1], reply[base_at + 2] = host, port, fence
    reply[base_at + 3], reply[base_at + 4], reply[base_at + 5] = how, lease, left
  end
  return reply
end

return guarded(run)
