-- claim: picks a port for a worker and leases it, in one round trip.
--
-- Safe because a port is granted only when its score in the ports zset has passed (or it was never in it) and
-- the worker has no live lease anywhere in the pool; both are decided and written within this one script.
-- The same token claiming again gets the same lease.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 worker (its instance may be auto: the lowest free one)  3 token  4 ttl_ms  5 state
--       6 identity: machine, boot, netns and address (after a `!` when it was chosen)
--       and, as far as the last that is there:  7 extra JSON members, each with a comma before it
--       8 ports that strangers have bound on this host, as ranges  9 hint: the port the environment names (0: none)
--       10 port (0: any)  11 fence of a lease whose process is proven dead and may be superseded (0: none)
--       12 ticket of a waiter ('': a newcomer)
-- Replies
--       granted   lease, remaining_ms, now_ms
--       same      lease, remaining_ms, now_ms            this token holds it already
--       held      lease, remaining_ms, now_ms            the worker has a live lease under another token
--       taken     why (leased, cooling, bound, outside, reserved), lease, owner or '', ms until claimable (-1: unknown),
--                 now_ms
--       exhausted ms until the next port can free up (-1: unknown)
--       queued    how many wait ahead
--       limited   which limit (org, plugin, instances), how much it allows, how many there are, some of the holders
--       recovering ms that are left (-1: a recovery has to begin first)
--       cordoned · host_conflict machine · no_pool · stale_pool (the client's copy is old)
--       again     nothing found within the bounds, but progress was made: call once more
-- Events  granted; before it superseded or expired, for leases whose end nobody had seen (on that port, or by a limit)
-- Loops   never-used ports: 256 steps; free ports: 4 pages of 64 beside the avoided ones; conventional ports:
--         1,024; the line of waiters: 64; the leases that a limit counts: 4,096; auto: 1,024 instances; on another machine's claim only: the host's ports in pages of 512

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
local QUEUE_SEEN = 64
local QUEUE_WOKEN = 16
local LIMIT_PAGE, HOLDERS_NAMED = 512, 5
local MOST_INSTANCES = 1024

local function run(read, call, try)
  --@include keys
  --@include places
  local match, find = string.match, string.find
  local host, worker, token, ttl_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
  local ttl_ms, hint, explicit = ttl_text + 0, (ARGV[9] or 0) + 0, (ARGV[10] or 0) + 0
  local host_key = base .. ':host:' .. host
  local space_key = space == host and host_key or base .. ':host:' .. space
  local org, plugin, instance = match(worker, '^([^/]+)/([^#]+)#(%w+)')
  if not (instance and find(ttl_text, '^%d+$') and ARGV[6]) then
    error({ err = WRONG_WORDS }, 0)
  end
  local service = base .. ':service:' .. plugin .. ':' .. org
  local pool = read('HMGET', base, 'rules', 'fence', 'waiting')
  if not pool[1] then
    return { NO_POOL }
  end
  local last_fence = pool[2]
  --@include rules
  if ttl_ms < ttl_min_ms + 0 or ttl_ms > ttl_max_ms + 0 or (scope == 'fleet') ~= (space == '*') then
    return { STALE_POOL }
  end
  first, last, grace_ms = first + 0, last + 0, grace_ms + 0
  --@include now

  -- Who this host is, whether it is cordoned, and when its space is due on the reaper's agenda.
  local known = read('HMGET', host_key, 'identity', 'cordon', 'due')
  local next_due = known[3]
  if space ~= host then
    next_due = read('HGET', space_key, 'due')
  end
  local identity = ARGV[6]
  --@include known_host

  if instance == 'auto' then
    --@include auto_instance
  end
  local place_key = worker_prefix .. worker
  -- Where the worker is, or last was. It may come back at once to the port that it released itself.
  local place = read('GET', place_key)
  local sticky, sticky_text, sticky_grant, own_cooldown, superseded
  if place then
    local place_host, place_port, place_fence = place_of(place)
    if not place_host then
      bad(place_key, NO_PLACE)
    end
    local place_space = scope == 'fleet' and '*' or place_host
    local grant = read('HGET', place_space == space and tokens_key or base .. ':tokens:' .. place_space, place_port)
    local is_released = grant and find(grant, '-' .. place_fence .. ' ', 1, true) == 1
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
          return { SAME, lease, read('PTTL', place_lease), whole(now) }
        end
        if place_host ~= host or fence ~= ARGV[11] then
          return { HELD, lease, read('PTTL', place_lease), whole(now) }
        end
        superseded = port
      end
    end
    if place_host == host or scope == 'fleet' then
      sticky, sticky_text, sticky_grant, own_cooldown = place_port + 0, place_port, grant, is_released
    end
  end
  if known[2] then
    return { CORDONED }
  end

  if scope == 'fleet' then
    --@include recovery
    if recovering then
      return recovering
    end
  end

  -- Only pools that have waiters or limits pay for them.
  local avoid, more = ARGV[8] or '', nil
  if pool[3] or find(pool[1], ' more=1', 1, true) then
    local ticket = ARGV[12] or ''
    more = { ticket = ticket ~= '' and ticket }
    if tonumber(pool[3] or 0) > now and not superseded then
      --@include queue
      if ahead > 0 then
        return { QUEUED, ahead }
      end
      avoid = avoid .. wanted
      more.said = seat and waiters[seat]
    end
    if find(pool[1], ' more=1', 1, true) then
      local needed = 1
      --@include limits
      if refusal then
        return refusal
      end
    end
  end

  -- The order of choice. A port needs no score to be claimable, and no stranger on it.
  local port, watermark, skipped, forgotten
  if sticky and explicit == 0 and avoid == '' and sticky >= first and sticky <= last then
    if own_cooldown or sticky == superseded or tonumber(read('ZSCORE', ports_key, sticky) or 0) <= now then
      port = sticky
    end
  end
  if not port then
    --@include ranges
    local strangers = parse_ranges(avoid)
    local function claimable(port)
      if port < first or port > last or within(strangers, port) then
        return false
      end
      local score = tonumber(read('ZSCORE', ports_key, port) or 0)
      return score <= now or (port == sticky and own_cooldown) or port == superseded
    end

    if explicit > 0 then
      if explicit < first or explicit > last then
        return { TAKEN, 'outside', '', -1, whole(now) }
      elseif not claimable(explicit) then
        -- Its holder listens on it as a stranger would.
        local lease, score = read('GET', lease_prefix .. explicit), read('ZSCORE', ports_key, explicit)
        if not lease and within(strangers, explicit) then
          return { TAKEN, 'bound', '', -1, whole(now) }
        end
        return { TAKEN, lease and 'leased' or 'cooling', lease or '', whole((score or now) - now), whole(now) }
      end
      port = explicit
    elseif sticky and claimable(sticky) then
      port = sticky
    elseif hint > 0 and claimable(hint) then
      port = hint
    else
      local spills = find(pool[1], ' spill=1', 1, true)
      --@include short_name
      pool = read('HMGET', base, 'dynamic', 'version', 'conventional:' .. plugin, 'conventional:' .. short_name(plugin))
      local dynamic, version = parse_ranges(pool[1] or bad(base, 'has no field dynamic')), pool[2]
      local conventional = pool[3] or pool[4]
      local complete = true
      skipped, forgotten = {}, {}

      local function first_claimable(list)
        for candidate in string.gmatch(list or '', '%d+') do
          if claimable(tonumber(candidate)) then
            return tonumber(candidate)
          end
        end
      end

      local function never_used()
        local steps = 0
        local from, counted_for = match(read('HGET', space_key, 'watermark') or '', '^(%d+) (%d+)$')
        from = counted_for == version and tonumber(from) or 0
        if from > last then
          return nil
        end
        for _, range in ipairs(dynamic) do
          for candidate = math.max(range[1], from), range[2] do
            steps = steps + 1
            if steps > NEVER_USED_STEPS then
              watermark, complete = candidate .. ' ' .. version, false
              return nil
            end
            if not read('ZSCORE', ports_key, candidate) then
              if not within(strangers, candidate) then
                watermark = (candidate + 1) .. ' ' .. version
                return candidate
              end
              skipped[#skipped + 1] = candidate
            end
          end
        end
        watermark = (last + 1) .. ' ' .. version
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
        or (spills and first_claimable(read('HGET', base, 'reserved')))
      if not port and complete then
        --@include next_port
        return { EXHAUSTED, ms_until_next(first, last, dynamic, spills, conventional or '', now) }
      end
    end
  end

  -- What is written without having been read: a write that fails would leave the rest half done.
  local is_due = not next_due or next_due == FOREVER or next_due + 0 > now + ttl_ms
  if is_due or not is_known then
    read('ZSCORE', hosts_key, space)
  end
  -- Grants on these ports whose end nobody has seen.
  local previous, unseen = sticky_grant, nil
  if port and port ~= sticky then
    previous = read('HGET', tokens_key, port)
  end
  if forgotten or superseded or (more and more.sets) or (previous and not find(previous, '^[-~!]')) then
    --@include grants
    --@include service_key
    unseen = {}
    local function close(kind, ended_port, grant)
      if grant and not find(grant, '^[-~!]') then
        unseen[#unseen + 1] = { kind, ended_port, grant, parts = { grant_of(grant, ended_port) } }
      end
    end
    if forgotten and #forgotten > 0 then
      for i, grant in ipairs(read('HMGET', tokens_key, unpack(forgotten))) do
        if tonumber(forgotten[i]) ~= port then
          close('expired', forgotten[i], grant)
        end
      end
    end
    if port then
      close(port == superseded and 'superseded' or 'expired', port, previous)
      if superseded and superseded ~= port then
        close('superseded', superseded, sticky_grant)
      end
    end
    read('XLEN', events_key)
    read('ZCARD', service)
    for _, item in ipairs(unseen) do
      read('ZCARD', service_key(item.parts[5]))
    end
  end

  -- writes --
  --@include lease_text
  if unseen then
    --@include service_key
    --@include events
    --@include close
    for _, item in ipairs(unseen) do
      close_grant(item[1], item[2], item[3], item.parts[2], item.parts[4], item.parts[5])
    end
  end
  if more and more.sets then
    --@include events
    --@include limits_closed
  end
  if forgotten then
    for _, candidate in ipairs(skipped) do
      call('ZADD', ports_key, 'NX', 0, candidate)
    end
    for _, text in ipairs(forgotten) do
      call('ZREM', ports_key, text)
    end
    if watermark then
      call('HSET', space_key, 'watermark', watermark)
    end
    if not port then
      return { AGAIN }
    end
  end
  if superseded and superseded ~= port then
    call('DEL', lease_prefix .. superseded)
    call('ZADD', ports_key, now + grace_ms, superseded)
  end
  local kind, state, extra, fence = GRANTED, ARGV[5], ARGV[7] or '', clock[1] .. string.sub('00000' .. clock[2], -6)
  local now_text = string.sub(fence, 1, -4)
  -- As text where that decides it: to write a number of 16 digits, or to read one, costs more than all the rest here.
  if last_fence and (#last_fence ~= #fence or last_fence >= fence) then
    fence = whole(math.max(tonumber(last_fence) or 0, now_us - 1) + 1)
  end
  port = port == sticky and sticky_text or port .. ''
  --@include open
  if more then
    if more.sets then
      --@include limits_kept
    end
    if more.ticket then
      --@include leave_lines
      local turns = 1
      --@include wake
    end
  end
  --@include name_host
  return { GRANTED, lease, ttl_ms, now_text }
end

--@include run
