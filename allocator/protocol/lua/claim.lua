-- claim: picks ports for a worker and leases them, all or none, in one round trip. One port is the case of one.
--
-- Safe because a port is granted only when its score in the ports zset has passed (or it was never in it) and
-- the worker has no live lease anywhere in the pool; all ports are chosen before the first is written, within this one
-- script. Further ports are of the workers `org/plugin+name#instance`, so that what is true of a lease is true of each.
-- The same tokens claiming again get the same leases.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 host  2 ttl_ms  3 state  4 identity: machine, boot, netns and address (after a `!` when it was chosen)
--       5 how many ms the machine of this host has run, or its container  6 how many ports; then for each port its
--       worker, its token, and members for the JSON of its lease, with a comma before each member. The instance of a
--       worker may be `auto` when it is the only one: it becomes the lowest free instance
--       then these; those at the end that are empty may be left out:  1 ports that strangers have bound on this host, as ranges
--       2 hint: the port the environment names (0: none)  3 the only port that will do (0: any)
--       4 fence of a lease whose process is proven dead and may be superseded (0: none)
--       5 ticket of a waiter ('': a newcomer)  6 whether several have to follow each other (1)
--       7 from which port on to look for such a block (0: from the first)
-- Replies
--       granted   now_ms, then for each port: lease, remaining_ms
--       same      now_ms, then for each port: lease, remaining_ms     these tokens hold them already
--       held      lease, remaining_ms, now_ms            one of the workers has a live lease under another token
--       taken     why (leased, cooling, bound, outside, reserved), lease, owner or '', ms until claimable (-1: unknown),
--                 now_ms
--       exhausted ms until enough may be free, at the soonest (-1: unknown)
--       queued    how many wait ahead
--       limited   which limit (org, plugin, instances), how much it allows, how many there are, some of the holders,
--                 how many wait for the next
--       recovering ms that are left (-1: a recovery has to begin first)
--       cordoned · host_conflict machine · no_pool · stale_pool (the client's copy is old)
--       again     the port to look on from: nothing found within the bounds, but progress was made: call once more
-- Events  granted for each; before it superseded or expired, for leases whose end nobody had seen
-- Loops   16 ports, and for each: never-used ports: 256 steps; free ports: 4 pages of 64 beside the avoided ones;
--         conventional ports: 1,024 · a block: 4,096 ports a call, in pages of 256 · the queue: 64, and 2,048 avoided ports · the leases that a limit
--         counts: 4,096 · auto: 1,024 instances · where the host is known as another: its ports in pages of 512

--@include replies
--@include base
--@include events
--@include leases

local MOST_PORTS = 16
local NEVER_USED_STEPS = 256
-- A port that strangers have or that belongs to another plugin seldom stands first: four are read, then pages.
local FIRST_PAGE = 4
local PAGE = 64
local PAGES = 4
local MAX_CONVENTIONAL = 1024
-- Lua unpacks a few thousand values; what is left over is forgotten in the next round.
local FORGOTTEN_AT_ONCE = 512
local MOST_INSTANCES = 1024
local BLOCK_PAGE, LOOKED_AT = 256, 4096
-- The port to look on from has this added in the round that takes ports of other plugins too.
local SECOND_ROUND = 65536

local function run(read, call, try)
  local match, find, format = string.match, string.find, string.format
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local tokens_key, lease_prefix = base .. ':tokens:' .. namespace, base .. ':lease:' .. namespace .. ':'
  local host, ttl_text, identity, needed = ARGV[1], ARGV[2], ARGV[4], ARGV[6] + 0
  local ttl_ms, tail = ttl_text + 0, 3 * needed + 6
  local worker = ARGV[7]
  local avoid, hint, explicit = ARGV[tail + 1] or '', (ARGV[tail + 2] or 0) + 0, (ARGV[tail + 3] or 0) + 0
  local host_key = base .. ':host:' .. host
  local namespace_key = namespace == host and host_key or base .. ':host:' .. namespace
  local org, plugin, instance = match(worker or '', '^([^/]+)/([^#]+)#(%w+)$')
  if not (instance and find(ttl_text, '^%d+$') and needed >= 1 and needed <= MOST_PORTS and ARGV[tail - 1])
      or needed > 1 and (instance == 'auto' or needed % 1 ~= 0) then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local service = base .. ':service:' .. plugin .. ':' .. org
  local pool = read('HMGET', base, 'rules', 'fence', 'waiting')
  local rules, last_fence, waiting = pool[1], pool[2], pool[3]
  if not rules then
    return { NO_POOL }
  end
  -- The rules of the pool as its hash has them (see PoolSpec.rules).
  local first, last, ttl_min_ms, ttl_max_ms, grace_ms, scope = match(rules,
    '^first=(%d+) last=(%d+) ttl_ms=%d+ ttl_min_ms=(%d+) ttl_max_ms=(%d+) grace_ms=(%d+) cooldown_ms=%d+ scope=(%l+) ')
  if not first then
    bad(base, 'has a garbled field rules')
  end
  if ttl_ms < ttl_min_ms + 0 or ttl_ms > ttl_max_ms + 0 or (scope == 'fleet') ~= (namespace == '*') then
    return { STALE_POOL }
  end
  first, last, grace_ms = first + 0, last + 0, grace_ms + 0
  local now, now_us, seconds, microseconds = server_time(read)

  -- Who this host is, whether it is cordoned, and when its namespace is due on the reaper's agenda.
  local about = read('HMGET', host_key, 'identity', 'cordon', 'due')
  local known, next_due = about[1], about[3]
  if namespace ~= host then
    next_due = read('HGET', namespace_key, 'due')
  end
  local is_known, left_behind = known == identity or (known and string.sub(identity, 1, 1) == '-'), nil
  if known and not is_known then
    --@include hosts
    local relation, left = compare_machines(read, base, namespace, host, known, identity, ARGV[5] + 0, now)
    if relation == 'conflict' then
      return { HOST_CONFLICT, match(known, '^%S+') or '-' }
    end
    is_known, left_behind = relation == 'known', left
  end

  if instance == 'auto' then
    -- The lowest instance of this service that has no live lease; the one again that this token has already.
    -- Those that a key has are passed by (see number.lua).
    local taken, mine, lowest = {}, nil, 0
    for _, kept in ipairs(read('HVALS', base .. ':numbers:' .. plugin .. ':' .. org)) do
      taken[tonumber(match(kept, '^%d+') or -1)] = true
    end
    for _, member in ipairs(read('ZRANGE', service, 0, MOST_INSTANCES - 1)) do
      local its_host, port = match(member, '^([%w._-]+):(%d+)$')
      its_host, port = its_host or '-', port or '0'
      local its_namespace = scope == 'fleet' and '*' or its_host
      local lease = read('GET', base .. ':lease:' .. its_namespace .. ':' .. port)
      local number = match(lease or '', '"worker":"[^"#]+#(%d+)"')
      if number then
        taken[tonumber(number)] = true
        local grant = read('HGET', base .. ':tokens:' .. its_namespace, port)
        if grant and find(grant, ' ' .. ARGV[8] .. ' ', 1, true) then
          mine = tonumber(number)
        end
      end
    end
    while taken[lowest] do
      lowest = lowest + 1
    end
    worker = org .. '/' .. plugin .. '#' .. (mine or lowest)
  end

  -- Where each worker is, or last was. It may come back at once to the port that it released itself.
  local sticky, same, superseded, superseded_grant = {}, nil, nil, nil
  for i = 1, needed do
    local its_worker = i == 1 and worker or ARGV[3 * i + 4]
    local address_key = base .. ':worker:' .. its_worker
    local address = read('GET', address_key)
    if address then
      local address_host, address_port, address_fence = address_of(address, address_key)
      local address_namespace = scope == 'fleet' and '*' or address_host
      local address_tokens = address_namespace == namespace and tokens_key or base .. ':tokens:' .. address_namespace
      local grant = read('HGET', address_tokens, address_port)
      local is_released = grant and find(grant, '-' .. address_fence .. ' ', 1, true) == 1
      if not is_released then
        --@include grants
        local address_lease, is_left = base .. ':lease:' .. address_namespace .. ':' .. address_port, false
        local lease = read('GET', address_lease)
        for _, one in ipairs(address_host == host and left_behind or {}) do
          is_left = is_left or one[1] == address_port
        end
        if lease and not is_left then
          local fence, _, leased_to = lease_head(lease, address_lease)
          if leased_to == its_worker then
            local port, proof = tonumber(address_port), nil
            if grant then
              _, _, proof = grant_of(grant, address_tokens, address_port)
            end
            if proof == ARGV[3 * i + 5] and address_host == host and (explicit == 0 or explicit == port or i > 1) then
              same = same or { SAME, format(WHOLE, now) }
              same[2 * i + 1], same[2 * i + 2] = lease, read('PTTL', address_lease)
            elseif address_host ~= host or fence ~= ARGV[tail + 4] then
              return { HELD, lease, read('PTTL', address_lease), format(WHOLE, now) }
            else
              superseded, superseded_grant = port, grant
            end
          end
        end
      end
      if address_host == host or scope == 'fleet' then
        sticky[i] = { port = address_port + 0, text = address_port, grant = grant, is_own = is_released }
      end
    end
  end
  if same then
    for i = 1, needed do
      if not same[2 * i + 1] then
        -- Some of them ran out: they are claimed anew together, once the holder has given back the rest.
        local at = same[3] and 3 or 5
        while not same[at] do
          at = at + 2
        end
        return { HELD, same[at], same[at + 1], same[2] }
      end
    end
    return same
  end
  if about[2] then
    return { CORDONED }
  end
  if scope == 'fleet' then
    --@include recovery
    local left_ms = recovering_ms(read, try, base, now)
    if left_ms then
      return { RECOVERING, format(WHOLE, left_ms) }
    end
  end

  -- Only pools that have waiters or limits pay for them.
  local ticket, ticket_text, notes, gone = ARGV[tail + 5] or '', nil, nil, nil
  local has_limits, waits = find(rules, ' more=1', 1, true), waiting and tonumber(waiting) > now and not superseded
  local is_block = needed > 1 and ARGV[tail + 6] == '1'
  if waits or has_limits then
    --@include limits
    if waits then
      local ahead, wanted, position, tickets, waiters, needs = queue_before(read, base, namespace, ticket, is_block and -1 or explicit)
      gone = gone_of(tickets, waiters, ticket)
      avoid, ticket_text = avoid .. wanted, position and waiters[position]
      if ahead > 0 and not is_room(read, base, ports_key, rules, avoid, now, needs, needed) then
        return { QUEUED, ahead }
      end
    end
    if has_limits then
      local refusal
      refusal, notes = check_limits(read, try, base, { org = org, plugin = plugin, worker = worker, service = service,
        scope = scope, needed = needed, explicit = explicit, replaced = superseded and 1 or 0, waits = waits,
        asker = ticket, now = now, taken = TAKEN, limited = LIMITED })
      if refusal then
        return refusal
      end
      avoid = avoid .. notes.bands
    end
  end

  -- The order of choice. A port needs no score to be claimable, and no stranger on it.
  local chosen, watermark, skipped, forgotten = {}, nil, nil, nil
  local had = sticky[1]
  if needed == 1 and had and explicit == 0 and avoid == '' and had.port >= first and had.port <= last
      and (had.is_own or had.port == superseded or tonumber(read('ZSCORE', ports_key, had.port) or 0) <= now) then
    chosen[1] = had.port
  else
    --@include ranges
    local strangers, taken, freed = parse_ranges(avoid), {}, {}
    for _, one in ipairs(left_behind or {}) do
      freed[tonumber(one[1])] = true
    end
    local function claimable(port, of)
      if port < first or port > last or taken[port] or within(strangers, port) then
        return false
      end
      local score = tonumber(read('ZSCORE', ports_key, port) or 0)
      return score <= now or freed[port] or port == superseded or (of ~= nil and of.is_own and of.port == port)
    end

    pool = read('HMGET', base, 'dynamic', 'version', 'conventional:' .. plugin, 'conventional:' .. short_name(plugin), 'reserved')
    local dynamic, version = parse_ranges(pool[1] or bad(base, 'has no field dynamic')), pool[2]
    local own = pool[3] or pool[4] or ''
    local others = find(rules, ' spill=1', 1, true) and pool[5] or ''
    local complete, is_forgotten = true, {}
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
      local from, counted_for = match(watermark or read('HGET', namespace_key, 'watermark') or '', '^(%d+) (%d+)$')
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
          if not taken[candidate] and not read('ZSCORE', ports_key, candidate) then
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
      local bound, offset, size = PAGES * PAGE + #chosen, 0, FIRST_PAGE
      for _, range in ipairs(strangers) do
        bound = bound + range[2] - range[1] + 1
      end
      while offset < bound do
        local passed = read('ZRANGEBYSCORE', ports_key, '-inf', now, 'LIMIT', offset, size)
        for _, text in ipairs(passed) do
          local candidate = tonumber(text) or bad(ports_key, 'has a garbled field ' .. text)
          if not within(dynamic, candidate) then
            if not is_forgotten[text] and not taken[candidate] then
              forgotten[#forgotten + 1], is_forgotten[text] = text, true
            end
          elseif not taken[candidate] and not within(strangers, candidate) then
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

    -- A port of a lease that was left behind: its time has not passed, and nobody holds it any more.
    local function freed_port()
      for _, one in ipairs(left_behind or {}) do
        local port = tonumber(one[1])
        if within(dynamic, port) and claimable(port) then
          return port
        end
      end
    end

    -- How many ms until as many ports more as are missing may be claimable, as text (-1: unknown).
    local function ms_until(missing)
      for offset = 0, MAX_CONVENTIONAL, PAGE do
        local ahead = read('ZRANGEBYSCORE', ports_key, '(' .. format(WHOLE, now), FOREVER, 'WITHSCORES', 'LIMIT', offset, PAGE)
        for i = 1, #ahead, 2 do
          local port = tonumber(ahead[i])
          if within(strangers, port) or taken[port] then
            port = 0
          end
          if within(dynamic, port) or (port >= first and port <= last
              and (others ~= '' or find(',' .. own .. ',', ',' .. ahead[i] .. ',', 1, true))) then
            missing = missing - 1
            if missing == 0 then
              return format(WHOLE, ahead[i + 1] - now)
            end
          end
        end
        if #ahead < 2 * PAGE then
          break
        end
      end
      return '-1'
    end

    -- Several that follow each other: those that they had, else the lowest block; in a second round with ports of other
    -- plugins. Leaves `chosen`; returns the port to look on from where the bounds are reached.
    local function choose_block(look_from)
      local before = sticky[1] and sticky[1].port
      local is_whole = before ~= nil
      for i = 1, needed do
        is_whole = is_whole and sticky[i] and sticky[i].port == before + i - 1 and claimable(before + i - 1, sticky[i])
      end
      if is_whole then
        for i = 1, needed do
          chosen[i] = before + i - 1
        end
        return nil
      end
      local looked = 0
      for round = look_from > SECOND_ROUND and 2 or 1, others ~= '' and 2 or 1 do
        local in_a_row, shift = 0, (round - 1) * SECOND_ROUND
        for page = math.max(first, look_from - shift), last, BLOCK_PAGE do
          local ports = {}
          for port = page, math.min(last, page + BLOCK_PAGE - 1) do
            ports[#ports + 1] = port
          end
          for at, score in ipairs(read('ZMSCORE', ports_key, unpack(ports))) do
            local port = ports[at]
            local usable = (tonumber(score or 0) <= now or freed[port]) and not within(strangers, port)
            if usable and not within(dynamic, port) then
              local text = ',' .. port .. ','
              usable = find(',' .. own .. ',', text, 1, true) or (round == 2 and find(',' .. others .. ',', text, 1, true))
            end
            in_a_row = usable and in_a_row + 1 or 0
            if in_a_row == needed then
              for i = 1, needed do
                chosen[i] = port - needed + i
              end
              return nil
            end
          end
          looked = looked + #ports
          if looked >= LOOKED_AT and page + BLOCK_PAGE <= last then
            return shift + page + BLOCK_PAGE - needed
          end
        end
        look_from = 0
      end
    end

    if explicit > 0 then
      if explicit < first or explicit > last then
        return { TAKEN, 'outside', '', -1, format(WHOLE, now) }
      elseif not claimable(explicit, sticky[1]) then
        -- Its holder listens on it as a stranger would.
        local lease, score = read('GET', lease_prefix .. explicit), read('ZSCORE', ports_key, explicit)
        if not lease and within(strangers, explicit) then
          return { TAKEN, 'bound', '', -1, format(WHOLE, now) }
        end
        return { TAKEN, lease and 'leased' or 'cooling', lease or '', format(WHOLE, (score or now) - now), format(WHOLE, now) }
      end
    end
    if is_block then
      local look_from = choose_block((ARGV[tail + 7] or 0) + 0)
      if look_from then
        return { AGAIN, look_from }
      elseif not chosen[1] then
        return { EXHAUSTED, ms_until(1) }
      end
    else
      for i = 1, needed do
        local before = sticky[i] and sticky[i].port
        if before and (explicit == 0 or i > 1) and claimable(before, sticky[i]) then
          chosen[i], taken[before] = before, true
        end
      end
      for i = 1, needed do
        local port = chosen[i] or i == 1 and (explicit > 0 and explicit or hint > 0 and claimable(hint) and hint
          or first_claimable(own)) or never_used() or free_longest() or freed_port() or first_claimable(others)
        if not port and complete then
          return { EXHAUSTED, ms_until(needed - i + 1) }
        elseif not port then
          break
        end
        chosen[i], taken[port] = port, true
      end
    end
  end
  local is_whole = chosen[needed] ~= nil

  -- What is written without having been read: a write that fails would leave the rest half done.
  local is_due = not next_due or next_due == FOREVER or next_due + 0 > now + ttl_ms
  if is_due or not is_known then
    read('ZSCORE', base .. ':hosts', namespace)
  end
  -- Grants on these ports whose end nobody has seen.
  local unseen
  for i = 1, is_whole and needed or 0 do
    local of, port = sticky[i], chosen[i]
    local previous = of and of.port == port and of.grant or not (of and of.port == port) and read('HGET', tokens_key, port)
    if previous and not find(previous, '^[-~!=]') then
      unseen = unseen or {}
      unseen[#unseen + 1] = { port == superseded and 'superseded' or 'expired', port, previous }
    end
  end
  if forgotten or superseded or left_behind or needed > 1 or unseen or notes then
    --@include grants
    unseen = unseen or {}
    local known_ports = {}
    for i = 1, #chosen do
      known_ports[chosen[i]] = true
    end
    if forgotten and #forgotten > 0 then
      for i, grant in ipairs(read('HMGET', tokens_key, unpack(forgotten))) do
        if grant and not find(grant, '^[-~!=]') and not known_ports[tonumber(forgotten[i])] then
          unseen[#unseen + 1] = { 'expired', forgotten[i], grant }
        end
      end
    end
    if is_whole and superseded and not known_ports[superseded] and superseded_grant then
      unseen[#unseen + 1] = { 'superseded', superseded, superseded_grant }
    end
    for _, one in ipairs(left_behind or {}) do
      local grant = not known_ports[tonumber(one[1])] and read('HGET', tokens_key, one[1])
      if grant and not find(grant, '^[-~!=]') then
        unseen[#unseen + 1] = { 'expired', one[1], grant }
      end
    end
    read('XLEN', base .. ':events')
    for _, it in ipairs(unseen) do
      local _, its_fence, _, its_host, its_worker = grant_of(it[3], tokens_key, it[2])
      it[4], it[5], it[6] = its_fence, its_host, its_worker
      read('ZCARD', service_key(base, its_worker))
    end
    for i = 1, needed do
      read('ZCARD', i == 1 and service or service_key(base, ARGV[3 * i + 4]))
    end
  end

  -- writes --
  if gone and gone[1] then
    call('ZREM', base .. ':waiters:' .. namespace, unpack(gone))
  end
  if unseen then
    --@include grants
    for _, it in ipairs(unseen) do
      close_grant(call, try, base, tokens_key, it[1], it[2], it[3], it[4], it[5], it[6])
    end
    for _, it in ipairs(notes and notes.closing or {}) do
      if call('HGET', it[1], it[2]) == it[3] then
        local its_fence, its_host, its_worker = match(it[3], '^(%d+) %x+ (%S+) (%S+)$')
        close_grant(call, try, base, it[1], 'expired', it[2], it[3], its_fence, its_host, its_worker)
      end
    end
  end
  for _, one in ipairs(left_behind or {}) do
    call('DEL', lease_prefix .. one[1])
    call('ZADD', ports_key, now, one[1])
  end
  if forgotten then
    for _, candidate in ipairs(skipped) do
      call('ZADD', ports_key, 'NX', 0, candidate)
    end
    for _, text in ipairs(forgotten) do
      call('ZREM', ports_key, text)
    end
    if watermark then
      call('HSET', namespace_key, 'watermark', watermark)
    end
    if not is_whole then
      return { AGAIN, 0 }
    end
  end
  if superseded then
    call('DEL', lease_prefix .. superseded)
    call('ZADD', ports_key, now + grace_ms, superseded)
  end
  -- As text where that decides it: to write a number of 16 digits, or to read one, costs more than all the rest here.
  local fence = seconds .. string.sub('00000' .. microseconds, -6)
  local now_text = string.sub(fence, 1, -4)
  if last_fence and (#last_fence ~= #fence or last_fence >= fence) then
    fence = format(WHOLE, math.max(tonumber(last_fence) or 0, now_us - 1) + 1)
  end
  local reply = { GRANTED, now_text }
  for i = 1, needed do
    local port, its_worker = chosen[i], worker
    if i > 1 then
      its_worker, fence = ARGV[3 * i + 4], format(WHOLE, fence + 1)
      service = service_key(base, its_worker)
    end
    port = sticky[i] and sticky[i].port == port and sticky[i].text or port .. ''
    reply[2 * i + 1] = open_lease(call, try, base, namespace, GRANTED, port, fence, ARGV[3 * i + 5], host, its_worker, service,
      ARGV[3], ARGV[3 * i + 6] or '', ttl_text, grace_ms, now, now_text)
    reply[2 * i + 2] = ttl_ms
    for _, set in ipairs(notes and notes.sets or {}) do
      call('SADD', set, namespace .. ':' .. port)
    end
  end
  -- The reaper trims at each of its visits; this is for pools that only ever claim and release.
  if now % 64 == 0 then
    call('XTRIM', base .. ':events', 'MAXLEN', '~', EVENTS_KEPT)
  end
  if is_due then
    call('ZADD', base .. ':hosts', 'LT', now + ttl_ms, namespace)
    call('HSET', namespace_key, 'due', format(WHOLE, now + ttl_ms))
  end
  if notes or ticket ~= '' then
    --@include queue
    for _, it in ipairs(notes and notes.gone or {}) do
      if find(it[1], ':limited:', 1, true) then
        call('SREM', it[1], it[2])
      end
    end
    for _, other in ipairs(notes and notes.next or {}) do
      wake(try, base, other)
    end
    if ticket ~= '' then
      leave_queues(call, try, base, namespace, ticket, ticket_text, worker)
      wake_first(try, base, namespace, 1)
    end
  end
  if not is_known then
    call('HSET', host_key, 'identity', identity)
    -- Those of a host that was forgotten would end in a week.
    try('PERSIST', tokens_key)
    if scope == 'fleet' then
      -- There the namespace is not a host: the agenda has the host beside it, with nothing to visit.
      call('ZADD', base .. ':hosts', 'NX', FOREVER, host)
    end
  end
  return reply
end

return guarded(run)
