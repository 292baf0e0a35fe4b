-- renew: extends a batch of leases, sets what changed, and re-asserts a lease that Redis lost. A heartbeat that has
-- nothing to set asks `extend` first, and this script about the leases that are left.
--
-- Safe because a lease is extended only while the port's last grant has this token. It is re-asserted, with a new
-- fence, only if its holder or an operator did not end it, no newer lease has the port or the worker, and the last grant of
-- the port that Redis knows of is this one or an older one: a newer grant, even one that has ended, means that this holder
-- is stale; but a newer grant that was declined does not, for it is this holder's process that the kernel had refused the
-- port for (unless the last events show that this holder had ended its lease itself). An older lease in the way came back
-- with older data (a failover): its end is known from this newer fence.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 host  2 identity: machine, boot and netns (-: not known), then for each lease
--       port, token, fence, ttl_ms, worker, mode (keep: only extend; set: also write what follows), state (with
--       set a live one: an ended one in a live lease would break who reads it), extra JSON members, why its worker failed
--       ('': it did not)
-- Replies
--       now_ms, then for each lease a code and its detail:
--       renewed '' (or the fence, when it is not the one that was sent)  ·  reasserted <new fence>  ·  lost <the lease in
--       the way, or a code: released, replaced, forced (an operator ended it)>
--       last, draining where the host is to be emptied: its holders stop their workers and release
--       no_pool, alone, when the pool is not defined
-- Events  reasserted, before it superseded or expired for the older lease; changed (when the state is another); failed,
--         with the field `error`
-- Loops   the batch, which the client keeps to 256 leases; the last 1,000 events, once, over a declined grant only

--@include replies
--@include base
--@include events
--@include grants
--@include leases

local HEAD, WORDS = 2, 9
local TTL_DIGITS = 12
local PLACE_PERIOD_MS = 3600000
local EVENTS_SEEN = 1000

local function run(read, call, try)
  local args, find, match, format = ARGV, string.find, string.match, string.format
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local tokens_key, lease_prefix = base .. ':tokens:' .. namespace, base .. ':lease:' .. namespace .. ':'
  local pool = read('HMGET', base, 'rules', 'fence')
  if not pool[1] then
    return { NO_POOL }
  end
  local has_limits, last_fence = find(pool[1], ' more=1', 1, true), pool[2]
  local grace_ms = rule_of(pool[1], ' grace_ms=', base)
  local now, now_us = server_time(read)
  local host = args[1]
  local host_key = base .. ':host:' .. host
  local count = (#args - HEAD) / WORDS
  if count < 1 or count % 1 ~= 0 then
    error({ err = WRONG_ARGUMENTS }, 0)
  end

  local ports, lease_keys = {}, {}
  for i = 1, count do
    local at = HEAD + (i - 1) * WORDS
    local state = args[at + 6] == 'set' and args[at + 7] or 'ready'
    if #args[at + 4] > TTL_DIGITS or not find(args[at + 4], '^[1-9]%d*$')
        or (state ~= 'ready' and state ~= 'starting' and state ~= 'degraded' and state ~= 'draining') then
      error({ err = WRONG_ARGUMENTS }, 0)
    end
    ports[i], lease_keys[i] = args[at + 1], lease_prefix .. args[at + 1]
  end
  local grants = read('HMGET', tokens_key, unpack(ports))
  local leases = read('MGET', unpack(lease_keys))
  local its = read('HMGET', host_key, 'identity', 'drain')
  local host_known, is_draining = its[1], its[2]
  read('ZCARD', ports_key)

  -- Which lease of the batch is the newest of its worker, and of its port.
  local newest
  local function is_newest(at)
    if not newest then
      newest = {}
      for other = HEAD, #args - WORDS, WORDS do
        for _, key in ipairs({ args[other + 1], args[other + 5] }) do
          local known = newest[key]
          if not known or tonumber(args[other + 3]) > tonumber(args[known + 3]) then
            newest[key] = other
          end
        end
      end
    end
    return newest[args[at + 1]] == at and newest[args[at + 5]] == at
  end

  -- Whether this holder's lease, or a later one of its worker on this port, was ended by its holder: the port's grant was
  -- declined since, so that only the events still tell.
  local recent
  local function ended_before(port, fence, worker)
    recent = recent or read('XREVRANGE', base .. ':events', '+', '-', 'COUNT', EVENTS_SEEN)
    local found = false
    for _, event in ipairs(recent) do
      local _, kind, _, _, _, its_port, _, its_worker, _, its_fence = unpack(event[2])
      if (kind == RELEASED or kind == DECLINED) and its_worker == worker and its_port == port
          and tonumber(its_fence) >= tonumber(fence) then
        found = true
      end
    end
    return found
  end

  -- What is to be done about a lease that is not simply extended: a code, and its detail. A re-assertion may have
  -- to end older grants first: those that came back with older data, or whose end nobody has seen.
  local older = {}
  local function decision(i, token, fence, worker)
    local grant, lease = grants[i], read('GET', lease_keys[i])
    local ended, known_fence, known_token, known_host, known_worker
    if grant then
      ended, known_fence, known_token, known_host, known_worker = grant_of(grant, tokens_key, ports[i])
    end
    local endings = {}
    if known_token == token then
      if ended == '' and lease then
        return RENEWED, known_fence
      elseif ended == '=' then
        return LOST, FORCED
      elseif ended == '-' or ended == '~' then
        return LOST, RELEASED
      end
    elseif known_fence and tonumber(known_fence) >= tonumber(fence) then
      if ended ~= '~' or lease then
        return LOST, lease or REPLACED
      elseif ended_before(ports[i], fence, worker) then
        return LOST, RELEASED
      end
    elseif lease and ended ~= '' then
      return LOST, lease
    elseif ended == '' then
      endings[1] = { kind = lease and 'superseded' or 'expired', port = ports[i], grant = grant, fence = known_fence,
        host = known_host, worker = known_worker, tokens_key = tokens_key }
    end
    if not is_newest(HEAD + (i - 1) * WORDS) then
      return LOST, REPLACED
    end
    local address_key = base .. ':worker:' .. worker
    local address = read('GET', address_key)
    if address then
      local address_host, address_port = address_of(address, address_key)
      local address_namespace = namespace == '*' and '*' or address_host
      local key = base .. ':lease:' .. address_namespace .. ':' .. address_port
      local there = key ~= lease_keys[i] and read('GET', key)
      if there then
        local its_fence, _, its_worker, its_host = lease_head(there, key)
        if its_worker == worker then
          if tonumber(its_fence) >= tonumber(fence) then
            return LOST, there
          end
          local its_tokens = base .. ':tokens:' .. address_namespace
          endings[#endings + 1] = { kind = 'superseded', port = address_port, grant = read('HGET', its_tokens, address_port),
            fence = its_fence, host = its_host, worker = worker, tokens_key = its_tokens, lease_key = key,
            ports_key = base .. ':ports:' .. address_namespace }
          read('ZCARD', base .. ':ports:' .. address_namespace)
        end
      end
    end
    read('ZCARD', base .. ':hosts')
    read('XLEN', base .. ':events')
    read('HLEN', base .. ':host:' .. namespace)
    read('ZCARD', service_key(base, worker))
    if has_limits then
      local org, plugin = match(worker, '^([^/]+)/([^+#]+)')
      read('SCARD', base .. ':limited:org:' .. org)
      read('SCARD', base .. ':limited:plugin:' .. plugin)
    end
    for _, it in ipairs(endings) do
      read('ZCARD', service_key(base, it.worker))
    end
    older[i] = endings
    return REASSERTED
  end

  local now_text = format(WHOLE, now)
  local reply, first_at, heads = { now_text }, {}, {}
  for i = 1, count do
    local at = HEAD + (i - 1) * WORDS
    local port, token, grant = ports[i], args[at + 2], grants[i]
    local code, detail = RENEWED, ''
    local before = first_at[port]
    if before and args[before + 2] == token then
      code, detail = 'repeated', before
    else
      first_at[port] = before or at
      if not (leases[i] and grant and find(grant, args[at + 3] .. ' ' .. token .. ' ', 1, true) == 1) then
        local fence = args[at + 3]
        code, detail = decision(i, token, fence, args[at + 5])
        if code == REASSERTED then
          -- A fence grows even when Redis lost the last one: the server's time in microseconds is its floor.
          last_fence = format(WHOLE, math.max((tonumber(last_fence) or 0) + 1, now_us, (tonumber(fence) or 0) + 1))
          detail = last_fence
        end
      end
      if code == RENEWED and args[at + 6] == 'set' then
        heads[i] = { lease_head(leases[i], lease_keys[i]) }
      end
      if heads[i] or args[at + 9] ~= '' then
        read('XLEN', base .. ':events')
      end
    end
    reply[2 * i], reply[2 * i + 1] = code, detail
  end

  -- writes --
  local scores, in_period = {}, now % PLACE_PERIOD_MS
  for i = 1, count do
    local at, code, port = HEAD + (i - 1) * WORDS, reply[2 * i], ports[i]
    local ttl_text, state, worker = args[at + 4], args[at + 7], args[at + 5]
    local ttl_ms = tonumber(ttl_text)
    if code == RENEWED then
      -- First, for a Redis that is full refuses a script whose first write takes memory, and none after that.
      call('PEXPIRE', lease_keys[i], ttl_text)
      if heads[i] then
        local fence, known_state, _, its_host, granted_at = unpack(heads[i])
        -- On a host that is to be emptied a lease that is draining stays so, whatever its holder knows of it.
        if is_draining and known_state == 'draining' then
          state = known_state
        end
        call('SET', lease_keys[i],
          lease_text(fence, state, worker, its_host, port, granted_at, ttl_text, args[at + 8]), 'PX', ttl_text)
        if known_state ~= state then
          record_event(try, base, 'changed', its_host, port, worker, fence, 'state', state)
        end
      end
      scores[#scores + 1] = now + ttl_ms + grace_ms
      scores[#scores + 1] = port
      if in_period < ttl_ms then
        -- A worker's last address is written again, so that it never expires while the lease lives. What another
        -- program put there is left alone, and stops no heartbeat.
        local fence, its_host, its_worker = match(grants[i], '^(%d+) %x+ (%S+) (%S+)$')
        local address_key = base .. ':worker:' .. (its_worker or '')
        if its_worker and type(try('GET', address_key)) ~= 'table' then
          write_address(call, address_key, its_host, port, fence, ttl_ms)
        end
      end
    elseif code == REASSERTED then
      for _, it in ipairs(older[i]) do
        if it.lease_key then
          call('DEL', it.lease_key)
          call('ZADD', it.ports_key, now + grace_ms, it.port)
        end
        if it.grant then
          close_grant(call, try, base, it.tokens_key, it.kind, it.port, it.grant, it.fence, it.host, it.worker)
        end
      end
      try('PERSIST', tokens_key)
      open_lease(call, try, base, namespace, REASSERTED, port, reply[2 * i + 1], args[at + 2], host, worker,
        service_key(base, worker), state, args[at + 8], ttl_text, grace_ms, now, now_text)
      call('ZADD', base .. ':hosts', 'LT', now + ttl_ms, namespace)
      call('HSET', base .. ':host:' .. namespace, 'due', format(WHOLE, now + ttl_ms))
      if has_limits then
        local org, plugin = match(worker, '^([^/]+)/([^+#]+)')
        call('SADD', base .. ':limited:org:' .. org, namespace .. ':' .. port)
        call('SADD', base .. ':limited:plugin:' .. plugin, namespace .. ':' .. port)
      end
      -- Who renews lives: where another took its host's name over before that could be seen (see lib/hosts.lua), it has
      -- the name again.
      if args[2] ~= '-' and (not host_known or match(host_known, '^%S+ %S+ %S+') ~= match(args[2], '^%S+ %S+ %S+')) then
        call('HSET', host_key, 'identity', args[2])
        host_known = args[2]
      end
    elseif code == 'repeated' then
      local first = (reply[2 * i + 1] - HEAD) / WORDS + 1
      reply[2 * i], reply[2 * i + 1] = reply[2 * first], reply[2 * first + 1]
    end
    if args[at + 9] ~= '' and (code == RENEWED or code == REASSERTED) then
      local fence = code == REASSERTED and reply[2 * i + 1] or match(grants[i], '^(%d+)')
      record_event(try, base, 'failed', host, port, worker, fence, 'error', args[at + 9])
    end
  end
  if #scores > 0 then
    call('ZADD', ports_key, unpack(scores))
  end
  if namespace == '*' then
    -- A host that renews; only a recovery asks for it.
    try('SREM', base .. ':unreported', host)
  end
  if is_draining then
    reply[2 * count + 2] = DRAINING
  end
  return reply
end

return guarded(run)
