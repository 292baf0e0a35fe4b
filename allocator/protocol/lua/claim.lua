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

local NEVER_USED_STEPS = 256
-- A port that strangers have or that belongs to another plugin seldom stands first: four are read, then pages.
local FIRST_PAGE = 4
local PAGE = 64
local PAGES = 4
local MAX_CONVENTIONAL = 1024
-- Lua unpacks a few thousand values; what is left over is forgotten in the next round.
local FORGOTTEN_AT_ONCE = 512

local function run()
  --@include keys
  --@include places
  --@include fences
  local host, worker, token, ttl_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
  local ttl_ms, explicit, hint = tonumber(ttl_text), tonumber(ARGV[5]), tonumber(ARGV[6])
  local state, extra = ARGV[7], ARGV[8]
  local host_key, space_key = base .. ':host:' .. host, base .. ':host:' .. space
  local plugin = string.match(worker, '/([^#]+)#')
  local pool = read('HMGET', base, 'first', 'last', 'grace_ms', 'ttl_min_ms', 'ttl_max_ms', 'scope', 'fence',
    'version', 'spill', 'dynamic', 'conventional:' .. plugin)
  if not pool[1] then
    return { NO_POOL }
  end
  local first, last = number(pool[1], base, 'first'), number(pool[2], base, 'last')
  local grace_ms = number(pool[3], base, 'grace_ms')
  if ttl_ms < number(pool[4], base, 'ttl_min_ms') or ttl_ms > number(pool[5], base, 'ttl_max_ms')
    or (pool[6] == 'fleet') ~= (space == '*') then
    return { STALE_POOL }
  end
  local last_fence, version, spill, conventional = pool[7], pool[8], pool[9] == '1', pool[11] or ''
  --@include now

  local known = read('HMGET', host_key, 'machine', 'boot', 'netns', 'cordon', 'watermark', 'version')
  if space ~= host then
    local counted = read('HMGET', space_key, 'watermark', 'version')
    known[5], known[6] = counted[1], counted[2]
  end
  local is_known = known[1] == ARGV[9] and known[2] == ARGV[10] and known[3] == ARGV[11]
  if known[1] and not is_known and (known[1] ~= ARGV[9] or known[2] == ARGV[10]) then
    --@include lease_head
    --@include live_lease
    if has_live_lease(host, now) then
      return { HOST_CONFLICT, known[1] }
    end
  end

  -- Where the worker is, or last was. It may come back at once to the port that it released itself.
  local place = read('GET', worker_prefix .. worker)
  local sticky, sticky_grant, own_cooldown, superseded
  if place then
    local place_host, place_port, place_fence = place_of(place, worker_prefix .. worker)
    local place_space = space == '*' and '*' or place_host
    local grant = read('HGET', base .. ':tokens:' .. place_space, place_port)
    local is_released = grant and string.find(grant, '-' .. place_fence .. ' ', 1, true) == 1
    if not is_released then
      --@include lease_head
      --@include grants
      local place_lease = base .. ':lease:' .. place_space .. ':' .. place_port
      local lease = read('GET', place_lease)
      local fence, _, its_worker
      if lease then
        fence, _, its_worker = lease_head(lease, place_lease)
      end
      if its_worker == worker then
        local proof
        if grant then
          _, _, proof = grant_of(grant, place_port)
        end
        local port = tonumber(place_port)
        if proof == token and place_host == host and (explicit == 0 or explicit == port) then
          return { SAME, lease, redis.call('PTTL', place_lease), whole(now) }
        end
        if place_host ~= host or fence ~= ARGV[12] then
          return { HELD, lease, redis.call('PTTL', place_lease), whole(now) }
        end
        superseded = port
      end
    end
    if place_host == host or space == '*' then
      sticky, sticky_grant, own_cooldown = tonumber(place_port), grant, is_released
    end
  end
  if known[4] then
    return { CORDONED }
  end

  --@include ranges
  local strangers = parse_ranges(ARGV[13])
  local function claimable(port)
    if port < first or port > last or within(strangers, port) then
      return false
    end
    local score = tonumber(read('ZSCORE', ports_key, port) or 0)
    return score <= now or (port == sticky and own_cooldown) or port == superseded
  end

  -- The order of choice.
  local port, watermark, skipped, forgotten
  if explicit > 0 then
    if not claimable(explicit) then
      if explicit < first or explicit > last then
        return { TAKEN, 'outside', '', -1, whole(now) }
      elseif within(strangers, explicit) then
        return { TAKEN, 'bound', '', -1, whole(now) }
      end
      local lease = read('GET', lease_prefix .. explicit)
      return { TAKEN, lease and 'leased' or 'cooling', lease or '',
        whole(read('ZSCORE', ports_key, explicit) - now), whole(now) }
    end
    port = explicit
  elseif sticky and claimable(sticky) then
    port = sticky
  elseif hint > 0 and claimable(hint) then
    port = hint
  else
    local dynamic, complete = parse_ranges(pool[10] or bad(base, 'has no field dynamic')), true
    skipped, forgotten = {}, {}

    local function first_claimable(list)
      for candidate in string.gmatch(list, '%d+') do
        if claimable(tonumber(candidate)) then
          return tonumber(candidate)
        end
      end
    end

    local function never_used()
      local steps = 0
      local from = known[6] == version and tonumber(known[5]) or 0
      if from > last then
        return nil
      end
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
    local function free_longest()
      local bound = PAGES * PAGE
      for _, range in ipairs(strangers) do
        bound = bound + range[2] - range[1] + 1
      end
      local offset, size = 0, FIRST_PAGE
      while offset < bound do
        local passed = read('ZRANGEBYSCORE', ports_key, '-inf', now, 'LIMIT', offset, size)
        for _, text in ipairs(passed) do
          local candidate = number(text, ports_key, text)
          if not within(dynamic, candidate) then
            forgotten[#forgotten + 1] = text
          elseif not within(strangers, candidate) then
            return candidate
          end
        end
        if #passed < size then
          return nil
        elseif #forgotten > FORGOTTEN_AT_ONCE then
          break
        end
        offset, size = offset + size, PAGE
      end
      complete = false
    end

    port = first_claimable(conventional) or never_used() or free_longest()
      or (spill and first_claimable(read('HGET', base, 'reserved') or ''))
    if not port and complete then
      --@include next_port
      return { EXHAUSTED, ms_until_next(first, last, dynamic, spill, conventional, now) }
    end
  end

  -- Grants on these ports whose end nobody has seen.
  local unseen = {}
  if forgotten and #forgotten > 0 then
    for i, grant in ipairs(read('HMGET', tokens_key, unpack(forgotten))) do
      if grant and not string.find(grant, '^[-~!]') and tonumber(forgotten[i]) ~= port then
        unseen[#unseen + 1] = { 'expired', forgotten[i], grant }
      end
    end
  end
  local previous = sticky_grant
  if port ~= sticky then
    previous = port and read('HGET', tokens_key, port)
  end
  if previous and not string.find(previous, '^[-~!]') then
    unseen[#unseen + 1] = { port == superseded and 'superseded' or 'expired', port, previous }
  end
  local moved = port and superseded and superseded ~= port
  if moved and sticky_grant and not string.find(sticky_grant, '^[-~!]') then
    unseen[#unseen + 1] = { 'superseded', superseded, sticky_grant }
  end
  if #unseen > 0 then
    --@include grants
    for _, item in ipairs(unseen) do
      item.parts = { grant_of(item[3], item[2]) }
    end
  end

  --@include services
  -- What is written without having been read: a write that fails would leave the rest half done.
  local next_due = read('ZSCORE', hosts_key, space)
  read('XLEN', events_key)
  read('ZCARD', service_key(worker))
  for _, item in ipairs(unseen) do
    read('ZCARD', service_key(item.parts[5]))
  end
  if port then
    read('GET', lease_prefix .. port)
  end

  -- writes --
  if not is_known then
    redis.call('HSET', host_key, 'machine', ARGV[9], 'boot', ARGV[10], 'netns', ARGV[11])
  end
  if watermark then
    redis.call('HSET', space_key, 'watermark', watermark, 'version', version)
  end
  --@include events
  --@include lease_text
  if #unseen > 0 then
    --@include close
    for _, item in ipairs(unseen) do
      close_grant(item[1], item[2], item[3], item.parts[2], item.parts[4], item.parts[5])
    end
  end
  if forgotten then
    for _, candidate in ipairs(skipped) do
      redis.call('ZADD', ports_key, 'NX', 0, candidate)
    end
    for _, text in ipairs(forgotten) do
      redis.call('ZREM', ports_key, text)
    end
  end
  if not port then
    return { AGAIN }
  end
  if moved then
    redis.call('DEL', lease_prefix .. superseded)
    redis.call('ZADD', ports_key, now + grace_ms, superseded)
  end
  local kind, now_text, fence = GRANTED, whole(now), next_fence(last_fence, now_us)
  --@include open
  return { GRANTED, lease, ttl_ms, now_text }
end

--@include run
