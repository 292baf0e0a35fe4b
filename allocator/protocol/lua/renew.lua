-- renew: extends a batch of leases, sets what changed, and re-asserts a lease that Redis lost.
--
-- Safe because a lease is extended only while the port's last grant has this token. It is re-asserted, with a new
-- fence, only if no live lease has the port or the worker and the last grant that Redis knows of is this one or an
-- older one: a newer grant, even one that has ended, means that this holder is stale; but a newer grant that was
-- declined does not, for it is this holder's process that the kernel had refused the port for.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 machine  3 boot  4 netns, then for each lease
--       port, token, fence, ttl_ms, worker, mode (keep: only extend; set: also write what follows), state,
--       extra JSON members
-- Replies
--       now_ms, then for each lease a code and its detail:
--       renewed ''  ·  reasserted <new fence>  ·  lost <the lease in the way, or a word: released, replaced>
--       no_pool, alone, when the pool is not defined
-- Events  reasserted; changed (when the state is another)
-- Loops   the batch, which the client keeps to 256 leases

--@include replies
--@include base
--@include leases

local WORDS = 8
-- A worker's place is written anew once an hour, so that it never runs out under a lease that is kept.
local PLACE_PERIOD_MS = 3600000

local function run()
  local pool = read('HMGET', base, 'grace_ms', 'fence')
  if not pool[1] then
    return { NO_POOL }
  end
  local grace_ms, last_fence = number(pool[1], base, 'grace_ms'), pool[2]
  local now, now_us = server_time()
  local host = ARGV[1]
  local host_key = base .. ':host:' .. host
  local count = (#ARGV - 4) / WORDS

  local ports, lease_keys = {}, {}
  for i = 1, count do
    local port = ARGV[4 + (i - 1) * WORDS + 1]
    ports[i], lease_keys[i] = port, lease_prefix .. port
  end
  local grants = read('HMGET', tokens_key, unpack(ports))
  local leases = read('MGET', unpack(lease_keys))
  local host_known = read('HEXISTS', host_key, 'machine')
  read('ZCARD', ports_key)

  -- Whether a lease that is gone may be written again; else what stands in the way.
  local function obstacle(i, token, fence, worker)
    local grant = grants[i] and grant_of(grants[i], ports[i])
    if grant and grant.token == token then
      if grant.ended then
        return 'released'
      end
    elseif leases[i] then
      return leases[i]
    elseif grant and not grant.declined and tonumber(grant.fence) >= tonumber(fence) then
      return 'replaced'
    end
    local place_text = read('GET', worker_key(worker))
    if place_text then
      local place = place_of(place_text, worker_key(worker))
      local key = base .. ':lease:' .. (space == '*' and '*' or place.host) .. ':' .. place.port
      local lease = key ~= lease_keys[i] and read('GET', key)
      if lease and lease_head(lease, key).worker == worker then
        return lease
      end
    end
  end

  local reply, seen, heads = { whole(now) }, {}, {}
  for i = 1, count do
    local at = 4 + (i - 1) * WORDS
    local token, fence, worker, mode = ARGV[at + 2], ARGV[at + 3], ARGV[at + 5], ARGV[at + 6]
    local grant = grants[i]
    local code, detail = RENEWED, ''
    if seen[ports[i]] then
      code, detail = LOST, 'replaced'
      if ARGV[seen[ports[i]] + 2] == token then
        code, detail = 'repeated', seen[ports[i]]
      end
    elseif not (leases[i] and grant and string.find(grant, ' ' .. token .. ' ', 1, true)
        and not string.find(grant, '^[-~]')) then
      detail = obstacle(i, token, fence, worker)
      if detail then
        code = LOST
      else
        last_fence = next_fence(last_fence, now_us, fence)
        code, detail = REASSERTED, last_fence
      end
    elseif mode == 'set' then
      heads[i] = lease_head(leases[i], lease_keys[i])
    end
    seen[ports[i]] = seen[ports[i]] or at
    reply[2 * i], reply[2 * i + 1] = code, detail
  end

  -- writes --
  local scores = {}
  for i = 1, count do
    local at = 4 + (i - 1) * WORDS
    local port, worker, state, extra = ports[i], ARGV[at + 5], ARGV[at + 7], ARGV[at + 8]
    local ttl_text = ARGV[at + 4]
    local ttl_ms = tonumber(ttl_text)
    local code = reply[2 * i]
    if code == RENEWED then
      if heads[i] then
        local head = heads[i]
        redis.call('SET', lease_keys[i],
          lease_text(head.fence, state, worker, head.host, port, head.granted_at, ttl_text, extra), 'PX', ttl_text)
        if head.state ~= state then
          record_event('changed', head.host, port, worker, head.fence, 'state', state)
        end
      else
        redis.call('PEXPIRE', lease_keys[i], ttl_text)
      end
      scores[#scores + 1] = whole(now + ttl_ms + grace_ms)
      scores[#scores + 1] = port
      if math.floor(now / PLACE_PERIOD_MS) ~= math.floor((now - ttl_ms) / PLACE_PERIOD_MS) then
        write_place(worker, host, port, grant_of(grants[i], port).fence, 0, ttl_ms)
      end
    elseif code == REASSERTED then
      local fence = reply[2 * i + 1]
      local lease = lease_text(fence, state, worker, host, port, whole(now), ttl_text, extra)
      open_grant('reasserted', port, { fence = fence, token = ARGV[at + 2], host = host, worker = worker }, lease,
        ttl_ms, now, grace_ms)
      if host_known == 0 then
        redis.call('HSET', host_key, 'machine', ARGV[2], 'boot', ARGV[3], 'netns', ARGV[4])
        host_known = 1
      end
    elseif code == 'repeated' then
      local first = (reply[2 * i + 1] - 4) / WORDS + 1
      reply[2 * i], reply[2 * i + 1] = reply[2 * first], reply[2 * first + 1]
    end
  end
  if #scores > 0 then
    redis.call('ZADD', ports_key, unpack(scores))
  end
  return reply
end

return guarded(run)
