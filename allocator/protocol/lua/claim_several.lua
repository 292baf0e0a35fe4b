-- claim_several: leases one port for each of several names of a worker, all or none, in one script.
--
-- Each named port is a lease of its own, of the worker `org/plugin+name#instance` (the first name's is the worker
-- itself), so that everything that is true of a lease is true of it. Safe for the same reasons as claim; all ports are
-- chosen before the first is written. The same tokens claiming again get the same leases.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<space>
-- ARGV  1 host  2 ttl_ms  3 state  4 identity  5 ports that strangers have bound on this host, as ranges
--       6 whether they have to be adjacent (0, 1)  7 from which port on to look (0: from the first)
--       8 ticket of a waiter ('': a newcomer), then for each port worker, token, extra JSON members; the worker itself first
-- Replies
--       granted   now_ms, then for each port: lease, remaining_ms
--       same      now_ms, then for each port: lease, remaining_ms     these tokens hold them already
--       held      lease, remaining_ms, now_ms            one of the workers has a live lease under another token
--       exhausted ms until enough may be free, at the soonest (-1: unknown) · again the port to look on from · queued · limited · recovering · cordoned · host_conflict
--       machine · no_pool · stale_pool                   as in claim
-- Events  granted for each; before them expired, for leases whose end nobody had seen
-- Loops   16 ports; the ports of the pool in pages of 256, about 4,096 a call, and those of other plugins; the line of waiters and limits as in claim

--@include replies
--@include base

local HEAD, WORDS = 8, 3
local PAGE, LOOKED_AT = 256, 4096
-- The port to look on from is told with so many more in the round that takes ports of other plugins too.
local MOST_PORTS = 65536
local QUEUE_SEEN = 64
local QUEUE_WOKEN = 16
local LIMIT_PAGE, HOLDERS_NAMED = 512, 5

local function run(read, call, try)
  --@include keys
  --@include places
  --@include grants
  --@include lease_head
  --@include ranges
  local match, find = string.match, string.find
  local host, ttl_text, adjacent, look_from = ARGV[1], ARGV[2], ARGV[6] == '1', tonumber(ARGV[7])
  local ttl_ms, explicit, superseded = tonumber(ttl_text), adjacent and -1 or 0, nil
  local host_key, needed = base .. ':host:' .. host, (#ARGV - HEAD) / WORDS
  local worker = ARGV[HEAD + 1]
  local org, plugin = match(worker or '', '^([^/]+)/([^#]+)#')
  if not (plugin and find(ttl_text, '^%d+$') and look_from and needed % 1 == 0) then
    error({ err = WRONG_WORDS }, 0)
  end
  local service = base .. ':service:' .. plugin .. ':' .. org
  --@include short_name
  local pool = read('HMGET', base, 'rules', 'fence', 'waiting', 'dynamic', 'conventional:' .. plugin, 'reserved',
    'conventional:' .. short_name(plugin))
  if not pool[1] then
    return { NO_POOL }
  end
  local last_fence, conventional = tonumber(pool[2]) or 0, pool[5] or pool[7] or ''
  --@include rules
  if ttl_ms < tonumber(ttl_min_ms) or ttl_ms > tonumber(ttl_max_ms) or (scope == 'fleet') ~= (space == '*') then
    return { STALE_POOL }
  end
  first, last, grace_ms = tonumber(first), tonumber(last), tonumber(grace_ms)
  --@include now
  local known = read('HMGET', host_key, 'identity', 'cordon')
  local identity = ARGV[4]
  --@include known_host

  -- Where each of them is, or last was.
  local wanted_ports, mine, same = {}, {}, { SAME, whole(now) }
  for i = 1, needed do
    local its_worker, token = ARGV[HEAD + WORDS * i - 2], ARGV[HEAD + WORDS * i - 1]
    local place = read('GET', worker_prefix .. its_worker)
    if place then
      local its_host, port = place_of(place)
      if not its_host then
        bad(worker_prefix .. its_worker, NO_PLACE)
      end
      local its_space = scope == 'fleet' and '*' or its_host
      local key = base .. ':lease:' .. its_space .. ':' .. port
      local lease, grant = read('GET', key), read('HGET', base .. ':tokens:' .. its_space, port)
      if lease and select(3, lease_head(lease, key)) == its_worker then
        local _, _, proof = grant_of(grant or '', port)
        if proof ~= token or its_host ~= host then
          return { HELD, lease, read('PTTL', key), whole(now) }
        end
        same[2 * i + 1], same[2 * i + 2], mine[i] = lease, read('PTTL', key), true
      elseif its_host == host or scope == 'fleet' then
        wanted_ports[i] = { tonumber(port), grant and find(grant, '-', 1, true) == 1 }
      end
    end
  end
  local held = 0
  for i = 1, needed do
    held = held + (mine[i] and 1 or 0)
  end
  if held == needed then
    return same
  elseif held > 0 then
    -- Some of them ran out: they are claimed anew together, once the holder has given back the rest.
    for i = 1, needed do
      if mine[i] then
        return { HELD, same[2 * i + 1], same[2 * i + 2], whole(now) }
      end
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
  local avoid, ticket = ARGV[5], ARGV[8]
  local more = { ticket = ticket ~= '' and ticket }
  if tonumber(pool[3] or 0) > now then
    --@include queue
    if ahead > 0 then
      return { QUEUED, ahead }
    end
    avoid = avoid .. wanted
    more.said = seat and waiters[seat]
  end
  if find(pool[1], ' more=1', 1, true) then
    local all = needed
    --@include limits
    if refusal then
      return refusal
    end
    needed = all
  end

  -- The choice: the ports that they had, the plugin's own for the first, then the lowest that are free.
  local strangers, chosen, taken = parse_ranges(avoid), {}, {}
  local function take(i, port, is_own)
    if port < first or port > last or taken[port] or within(strangers, port) then
      return false
    elseif not is_own and tonumber(read('ZSCORE', ports_key, port) or 0) > now then
      return false
    end
    chosen[i], taken[port] = port, true
    return true
  end
  for i = 1, needed do
    if wanted_ports[i] then
      take(i, wanted_ports[i][1], wanted_ports[i][2])
    end
  end
  if adjacent then
    for i = 1, needed do
      if not chosen[i] or (i > 1 and chosen[i] ~= chosen[1] + i - 1) then
        chosen, taken = {}, {}
        break
      end
    end
  elseif not chosen[1] then
    for port in string.gmatch(conventional, '%d+') do
      if take(1, tonumber(port)) then
        break
      end
    end
  end
  local missing = needed
  for i = 1, needed do
    missing = missing - (chosen[i] and 1 or 0)
  end
  -- Then the dynamic ports; and where that may be, and nothing else is left, those of other plugins (spill).
  local dynamic, looked = parse_ranges(pool[4] or bad(base, 'has no field dynamic')), 0
  local own = ',' .. conventional .. ','
  local others = find(pool[1], ' spill=1', 1, true) and ',' .. (pool[6] or '') .. ',' or ','
  for round = look_from > MOST_PORTS and 2 or 1, adjacent and others ~= ',,' and others ~= ',' and 2 or 1 do
    local in_a_row = 0
    for page = math.max(first, look_from - (round - 1) * MOST_PORTS), missing > 0 and last or -1, PAGE do
      local ports = {}
      for port = page, math.min(last, page + PAGE - 1) do
        ports[#ports + 1] = port
      end
      for at, score in ipairs(read('ZMSCORE', ports_key, unpack(ports))) do
        local port = ports[at]
        local usable = tonumber(score or 0) <= now and not taken[port] and not within(strangers, port)
        if usable and not within(dynamic, port) then
          local text = ',' .. port .. ','
          usable = find(own, text, 1, true) or (round == 2 and find(others, text, 1, true))
        end
        in_a_row = usable and in_a_row + 1 or 0
        if adjacent and in_a_row == needed then
          for i = 1, needed do
            chosen[i] = port - needed + i
          end
          missing = 0
        elseif usable and not adjacent then
          for i = 1, needed do
            if not chosen[i] then
              chosen[i], taken[port], missing = port, true, missing - 1
              break
            end
          end
        end
        if missing == 0 then
          break
        end
      end
      looked = looked + #ports
      if missing == 0 then
        break
      elseif looked >= LOOKED_AT and page + PAGE <= last then
        return { AGAIN, (round - 1) * MOST_PORTS + page + PAGE - needed }
      end
    end
    look_from = 0
  end
  if missing > 0 and not adjacent then
    for port in string.gmatch(others, '%d+') do
      for i = 1, missing > 0 and needed or 0 do
        if not chosen[i] then
          missing = missing - (take(i, tonumber(port)) and 1 or 0)
          break
        end
      end
    end
  end
  if missing > 0 then
    local usable = adjacent and 1 or missing
    local coming = read('ZRANGEBYSCORE', ports_key, '(' .. whole(now), FOREVER, 'WITHSCORES', 'LIMIT', usable - 1, 1)
    return { EXHAUSTED, coming[2] and whole(coming[2] - now) or '-1' }
  end

  -- Grants on these ports whose end nobody has seen, and the types of what is only written.
  --@include service_key
  --@include written_types
  read('ZCARD', ports_key)
  read('HLEN', base .. ':host:' .. space)
  local unseen = {}
  for i, grant in ipairs(read('HMGET', tokens_key, unpack(chosen))) do
    if grant and not find(grant, '^[-~!]') then
      local _, its_fence, _, its_host, its_worker = grant_of(grant, chosen[i])
      unseen[#unseen + 1] = { chosen[i], grant, its_fence, its_host, its_worker }
      read('ZCARD', service_key(its_worker))
    end
  end
  for i = 1, needed do
    read('ZCARD', service_key(ARGV[HEAD + WORDS * i - 2]))
  end

  -- writes --
  --@include events
  --@include lease_text
  --@include close
  for _, it in ipairs(unseen) do
    close_grant('expired', it[1], it[2], it[3], it[4], it[5])
  end
  if more.sets then
    --@include limits_closed
  end
  local reply, now_text, is_due = { GRANTED, whole(now) }, whole(now), true
  local kind, state = GRANTED, ARGV[3]
  for i = 1, needed do
    local its_worker, token, extra, port = ARGV[HEAD + WORDS * i - 2], ARGV[HEAD + WORDS * i - 1], ARGV[HEAD + WORDS * i], chosen[i]
    local worker, service, place_key = its_worker, service_key(its_worker), worker_prefix .. its_worker
    last_fence = math.max(last_fence + 1, now_us)
    local fence = whole(last_fence)
    --@include open
    if more.sets then
      --@include limits_kept
    end
    reply[2 * i + 1], reply[2 * i + 2] = lease, ttl_ms
  end
  if more.ticket then
    --@include leave_lines
    local turns = 1
    --@include wake
  end
  --@include name_host
  return reply
end

--@include run
