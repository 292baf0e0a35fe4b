-- claim: picks a port for a worker and leases it, in one round trip.
--
-- Safe because a port is granted only when its score in the ports zset has passed (or it was never in it) and
-- the worker has no live lease anywhere in the pool; both are decided and written within this one script.
-- The same token claiming again gets the same lease.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 worker  3 token  4 ttl_ms  5 port (0: any)  6 hint: the port the environment names (0: none)
--       7 state  8 extra JSON members, each with a comma before it  9 machine  10 boot  11 netns
--       12 fence of a lease whose process is proven dead and may be superseded (0: none)
--       13 ports that strangers have bound on this host, as ranges
-- Replies
--       granted   lease, remaining_ms, now_ms
--       same      lease, remaining_ms, now_ms            this token holds it already
--       held      lease, remaining_ms, now_ms            the worker has a live lease under another token
--       taken     why (leased, cooling, bound, outside), lease or '', ms until claimable (-1: unknown),
--                 now_ms
--       exhausted ms until the next port can free up (-1: unknown)
--       cordoned · host_conflict machine · no_pool · stale_pool (the client's copy is old)
--       again     nothing found within the bounds, but progress was made: call once more
-- Events  granted; before it superseded or expired, for a lease on that port whose end nobody had seen
-- Loops   never-used ports: 256 steps; free ports: 4 pages of 64 beside the avoided ones; conventional ports:
--         1,024; on another machine's claim only: the host's ports in pages of 512

--@include replies
--@include base
--@include ranges
--@include leases

local NEVER_USED_STEPS = 256
-- A port that strangers have or that belongs to another plugin seldom stands first: four are read, then pages.
local FIRST_PAGE = 4
local PAGE = 64
local PAGES = 4
local MAX_CONVENTIONAL = 1024

local host, worker, token = ARGV[1], ARGV[2], ARGV[3]
local ttl_ms, explicit, hint = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local host_key, space_key = base .. ':host:' .. host, base .. ':host:' .. space

local function has_live_lease(now, grace_ms)
  local offset = 0
  while offset < 65536 do
    local ports = read('ZRANGEBYSCORE', ports_key, '(' .. whole(now), FOREVER, 'LIMIT', offset, 512)
    local keys = {}
    for i, port in ipairs(ports) do
      keys[i] = lease_prefix .. port
    end
    if #keys == 0 then
      return false
    end
    for i, lease in ipairs(read('MGET', unpack(keys))) do
      if lease and lease_head(lease, keys[i]).host == host then
        return true
      end
    end
    offset = offset + 512
  end
  return false
end

local function run()
  local org, plugin = string.match(worker, '^([^/]+)/([^#]+)#%d+$')
  local pool = read('HMGET', base, 'first', 'last', 'dynamic', 'grace_ms', 'cooldown_ms', 'ttl_min_ms', 'ttl_max_ms',
    'scope', 'spill', 'fence', 'version', 'conventional:' .. plugin)
  if not pool[1] then
    return { NO_POOL }
  end
  local first, last = number(pool[1], base, 'first'), number(pool[2], base, 'last')
  local grace_ms = number(pool[4], base, 'grace_ms')
  if ttl_ms < number(pool[6], base, 'ttl_min_ms') or ttl_ms > number(pool[7], base, 'ttl_max_ms')
    or (pool[8] == 'fleet') ~= (space == '*') then
    return { STALE_POOL }
  end
  local now, now_us = server_time()

  local known = read('HMGET', host_key, 'machine', 'boot', 'netns', 'cordon', 'watermark', 'version')
  if space ~= host then
    local counted = read('HMGET', space_key, 'watermark', 'version')
    known[5], known[6] = counted[1], counted[2]
  end
  local other_machine = known[1] and (known[1] ~= ARGV[9] or (known[2] == ARGV[10] and known[3] ~= ARGV[11]))
  if other_machine and has_live_lease(now, grace_ms) then
    return { HOST_CONFLICT, known[1] }
  end

  -- Where the worker is, or last was.
  local place_text = read('GET', worker_key(worker))
  local sticky, own_cooldown, superseded
  if place_text then
    local place = place_of(place_text, worker_key(worker))
    local place_space = space == '*' and '*' or place.host
    local place_lease = base .. ':lease:' .. place_space .. ':' .. place.port
    local lease = read('GET', place_lease)
    local head = lease and lease_head(lease, place_lease)
    if head and head.worker == worker then
      local grant_there = read('HGET', base .. ':tokens:' .. place_space, place.port)
      local proof = grant_there and grant_of(grant_there, place.port)
      local port = tonumber(place.port)
      if proof and proof.token == token and place.host == host and (explicit == 0 or explicit == port) then
        return { SAME, lease, redis.call('PTTL', place_lease), whole(now) }
      end
      if place.host ~= host or head.fence ~= ARGV[12] then
        return { HELD, lease, redis.call('PTTL', place_lease), whole(now) }
      end
      superseded = proof and port
    end
    if place.host == host or space == '*' then
      sticky = tonumber(place.port)
      own_cooldown = not lease and place.free_at > 0 and place.free_at
    end
  end
  if known[4] then
    return { CORDONED }
  end

  local strangers = parse_ranges(ARGV[13])
  local function claimable(port)
    if port < first or port > last or within(strangers, port) then
      return false
    end
    local score = read('ZSCORE', ports_key, port)
    return not score or tonumber(score) <= now
      or (port == sticky and tonumber(score) == own_cooldown) or port == superseded
  end

  -- The order of choice.
  local port, watermark
  local dynamic = parse_ranges(pool[3])

  local function conventional_of_plugin()
    for candidate in string.gmatch(pool[12] or '', '%d+') do
      if claimable(tonumber(candidate)) then
        return tonumber(candidate)
      end
    end
  end

  local skipped, complete = {}, true
  local function never_used()
    local steps = 0
    local from = known[6] == pool[11] and tonumber(known[5]) or 0
    for _, range in ipairs(dynamic) do
      for candidate = math.max(range[1], from), range[2] do
        steps = steps + 1
        if steps > NEVER_USED_STEPS then
          watermark, complete = candidate, false
          return nil
        end
        if not read('ZSCORE', ports_key, candidate) then
          if not within(strangers, candidate) then
            watermark = candidate + 1
            return candidate
          end
          skipped[#skipped + 1] = candidate
        end
      end
    end
    watermark = last + 1
  end

  -- Conventional and retired ports whose time has passed are forgotten on the way (absent means claimable),
  -- so that they are read once and not at every claim.
  local forgettable = {}
  local function free_longest()
    local bound = PAGES * PAGE
    for _, range in ipairs(strangers) do
      bound = bound + range[2] - range[1] + 1
    end
    local offset, size = 0, FIRST_PAGE
    while offset < bound do
      local passed = read('ZRANGEBYSCORE', ports_key, '-inf', whole(now), 'LIMIT', offset, size)
      for _, text in ipairs(passed) do
        local candidate = number(text, ports_key, text)
        if not within(dynamic, candidate) then
          forgettable[#forgettable + 1] = text
        elseif not within(strangers, candidate) then
          return candidate
        end
      end
      if #passed < size then
        return nil
      end
      offset, size = offset + size, PAGE
    end
    complete = false
  end

  local function idle_conventional()
    local reserved = read('HGET', base, 'reserved') or ''
    for candidate in string.gmatch(reserved, '%d+') do
      if claimable(tonumber(candidate)) then
        return tonumber(candidate)
      end
    end
  end

  local function eligible(candidate)
    if within(dynamic, candidate) then
      return true
    end
    return candidate >= first and candidate <= last
      and (pool[9] == '1' or string.find(',' .. (pool[12] or '') .. ',', ',' .. candidate .. ',', 1, true))
  end

  local function ms_until_next()
    for offset = 0, MAX_CONVENTIONAL, PAGE do
      local ahead = read('ZRANGEBYSCORE', ports_key, '(' .. whole(now), FOREVER, 'WITHSCORES', 'LIMIT', offset, PAGE)
      for i = 1, #ahead, 2 do
        if eligible(tonumber(ahead[i])) then
          return whole(tonumber(ahead[i + 1]) - now)
        end
      end
      if #ahead < 2 * PAGE then
        return '-1'
      end
    end
    return '-1'
  end

  if explicit > 0 then
    if not claimable(explicit) then
      if explicit < first or explicit > last then
        return { TAKEN, 'outside', '', -1, whole(now) }
      elseif within(strangers, explicit) then
        return { TAKEN, 'bound', '', -1, whole(now) }
      end
      local free_in = whole(tonumber(read('ZSCORE', ports_key, explicit)) - now)
      local lease = read('GET', lease_prefix .. explicit)
      return { TAKEN, lease and 'leased' or 'cooling', lease or '', free_in, whole(now) }
    end
    port = explicit
  elseif sticky and claimable(sticky) then
    port = sticky
  elseif hint > 0 and claimable(hint) then
    port = hint
  else
    port = conventional_of_plugin() or never_used() or free_longest() or (pool[9] == '1' and idle_conventional())
  end
  if not port and complete then
    return { EXHAUSTED, ms_until_next() }
  end

  local forgotten = {}
  if #forgettable > 0 then
    for i, grant in ipairs(read('HMGET', tokens_key, unpack(forgettable))) do
      forgotten[i] = grant and grant_of(grant, forgettable[i])
    end
  end
  local previous = port and read('HGET', tokens_key, port)
  previous = previous and grant_of(previous, port)
  local lease
  local grant = { fence = next_fence(pool[10], now_us), token = token, host = host, worker = worker }
  if port then
    lease = lease_text(grant.fence, ARGV[7], worker, host, port, whole(now), ARGV[4], ARGV[8])
  end

  -- writes --
  if known[1] ~= ARGV[9] or known[2] ~= ARGV[10] or known[3] ~= ARGV[11] then
    redis.call('HSET', host_key, 'machine', ARGV[9], 'boot', ARGV[10], 'netns', ARGV[11])
  end
  if watermark then
    redis.call('HSET', space_key, 'watermark', whole(watermark), 'version', pool[11])
  end
  for _, candidate in ipairs(skipped) do
    redis.call('ZADD', ports_key, 'NX', 0, candidate)
  end
  for i, text in ipairs(forgettable) do
    if forgotten[i] and not forgotten[i].ended then
      close_grant('expired', text, forgotten[i])
    end
    redis.call('ZREM', ports_key, text)
  end
  if not port then
    return { AGAIN }
  end
  if previous and not previous.ended then
    close_grant(port == superseded and 'superseded' or 'expired', port, previous)
  end
  open_grant('granted', port, grant, lease, ttl_ms, now, grace_ms)
  return { GRANTED, lease, ttl_ms, whole(now) }
end

return guarded(run)
