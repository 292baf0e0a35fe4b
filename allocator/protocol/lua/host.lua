-- host: makes a host known, keeps it from giving out ports, empties it, or forgets it.
--
-- Safe because none of these ends a live lease: a drained host's holders see at their next renewal that they are to stop;
-- a host is forgotten only once it has no live lease and the end of every grant on it was made known (the reaper's cursor),
-- and one that claims again is simply known again. To make it known is what a claim does on its own, and takes the name
-- over from nobody whose leases are live, nor from a machine that is.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 what (register, cordon, uncordon, drain, forget)  2 host, then
--       register: identity (machine, boot, netns and address, after a `!` when it was chosen), for how many ms it has run
--       drain, uncordon: the ports whose leases may be of this host
--       forget: who forces it and why, both empty when nobody does
-- Replies
--       register: created · changed · unchanged · host_conflict machine · no_pool
--       cordon, uncordon: changed · unchanged · unknown (no such host in the pool)
--       drain: draining, how many leases became draining by this call · unknown
--       forget: forgotten · unknown · busy (it has a live lease)
--               again (leases have ended that nobody has closed: reap, then call once more)
-- Events  registered, cordoned, uncordoned, draining, forgotten (if forced with the fields `by` and `reason`), where anything
--         changed: the port is 0, worker and fence are '-'; drain, uncordon: changed for each lease
-- Loops   the ports of a drain or its undoing, which the client keeps to 256; the host's ports in pages of 512; ended grants that were not
--         closed: 512

--@include replies
--@include base
--@include events
--@include hosts

local PAGE = 512
-- How long it is known of a forgotten host which leases an operator ended: a holder that lives after all must not
-- re-assert one.
local ENDINGS_KEPT_MS = 604800000

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local tokens_key, hosts_key = base .. ':tokens:' .. namespace, base .. ':hosts'
  local what, host = ARGV[1], ARGV[2] or error({ err = WRONG_ARGUMENTS }, 0)
  local host_key = base .. ':host:' .. host
  local now = server_time(read)
  local about = read('HMGET', host_key, 'identity', 'cordon', 'drain')
  local known, set, dropped, changing, why, event, reply = about[1], {}, {}, {}, {}, nil, nil

  if what == 'register' then
    local identity, alive_ms = ARGV[3], tonumber(ARGV[4])
    if not (identity and alive_ms) then
      error({ err = WRONG_ARGUMENTS }, 0)
    elseif not read('HGET', base, 'rules') then
      return { NO_POOL }
    end
    if known then
      local relation = known == identity and 'known' or compare_machines(read, base, namespace, host, known, identity, alive_ms, now)
      if relation == 'conflict' then
        return { HOST_CONFLICT, string.match(known, '^%S+') or '-' }
      elseif relation == 'known' or relation == 'heir' then
        -- What is left behind is ended by the first claim, which is the one that needs it.
        return { UNCHANGED }
      end
    end
    set, event, reply = { 'identity', identity }, 'registered', { known and CHANGED or CREATED }
  elseif what == 'cordon' or what == 'uncordon' then
    if not known then
      return { UNKNOWN }
    end
    if (what == 'cordon') == (about[2] == '1') then
      reply = { UNCHANGED }
    else
      event, reply = what .. 'ed', { CHANGED }
      set = what == 'cordon' and { 'cordon', '1' } or {}
      dropped = what == 'uncordon' and { 'cordon', 'drain' } or {}
    end
    for i = 3, #ARGV do
      -- What was ready before the drain is ready again, unless its holder has renewed it since, and so has seen the drain.
      local key = base .. ':lease:' .. namespace .. ':' .. ARGV[i]
      local lease = read('GET', key)
      local was = lease and string.match(lease, ',"was":"(%l+)"}$')
      if was then
        local fence, state, worker, its_host = lease_head(lease, key)
        if its_host == host and state == 'draining' then
          local text = string.gsub(string.gsub(lease, ',"was":"%l+"}$', '}'), '"state":"%l+"', '"state":"' .. was .. '"', 1)
          changing[#changing + 1] = { key = key, port = ARGV[i], text = text, state = was, fence = fence, worker = worker }
        end
      end
    end
  elseif what == 'drain' then
    if not known then
      return { UNKNOWN }
    end
    for i = 3, #ARGV do
      local key = base .. ':lease:' .. namespace .. ':' .. ARGV[i]
      local lease = read('GET', key)
      if lease then
        local fence, state, worker, its_host = lease_head(lease, key)
        if its_host == host and state ~= 'draining' then
          local text = string.gsub(string.gsub(lease, '}$', ',"was":"' .. state .. '"}'), '"state":"%l+"', '"state":"draining"', 1)
          changing[#changing + 1] = { key = key, port = ARGV[i], text = text, state = 'draining', fence = fence, worker = worker }
        end
      end
    end
    set, event, reply = { 'cordon', '1', 'drain', '1' }, not about[3] and 'draining', { DRAINING, #changing }
  elseif what == 'forget' then
    if not known and not read('ZSCORE', hosts_key, host) then
      return { UNKNOWN }
    elseif #leases_of(read, base, namespace, host, now) > 0 then
      return { BUSY }
    end
    local cursor = namespace == host and (string.match(read('HGET', host_key, 'reaped') or '', '^(%d+) ') or '0')
    local recent = cursor and read('ZRANGEBYSCORE', ports_key, cursor, FOREVER, 'LIMIT', 0, PAGE) or {}
    for _, grant in ipairs(#recent > 0 and read('HMGET', tokens_key, unpack(recent)) or {}) do
      if grant and not string.find(grant, '^[-~!=]') then
        return { AGAIN }
      end
    end
    event, reply = 'forgotten', { FORGOTTEN }
    why = (ARGV[4] or '') ~= '' and { 'by', ARGV[3], 'reason', ARGV[4] } or why
  else
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  read('ZCARD', hosts_key)
  read('XLEN', base .. ':events')

  -- writes --
  if what == 'forget' then
    call('DEL', host_key)
    if namespace == host then
      call('UNLINK', ports_key)
      call('PEXPIRE', tokens_key, ENDINGS_KEPT_MS)
    end
    call('ZREM', hosts_key, host)
  end
  if set[1] then
    call('HSET', host_key, unpack(set))
    -- In fleet scope the namespace is not a host: the agenda then has the host beside it, with nothing to visit.
    call('ZADD', hosts_key, 'NX', FOREVER, host)
    if what == 'register' then
      try('PERSIST', tokens_key)
      call('ZADD', hosts_key, 'NX', FOREVER, namespace)
    end
  end
  if dropped[1] then
    call('HDEL', host_key, unpack(dropped))
  end
  if event then
    record_event(try, base, event, host, 0, '-', '-', unpack(why))
  end
  for _, it in ipairs(changing) do
    call('SET', it.key, it.text, 'KEEPTTL')
    record_event(try, base, 'changed', host, it.port, it.worker, it.fence, 'state', it.state)
  end
  return reply
end

return guarded(run)
