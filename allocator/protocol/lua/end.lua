-- end: ends leases, because their holders are done with them, because the kernel refused their ports, or because an
-- operator asks for it.
--
-- Safe because only the token of the port's last grant ends it (for an operator its fence), and an ended grant is marked,
-- so that a renewal that was under way cannot bring it back. Released ports become claimable after the pool's cooldown,
-- for their own workers at once. Declined ones go into quarantine: 5 s the first time and four times as long each further
-- time, 10 min at most; an hour without a decline resets it.
--
-- KEYS  1 alloc:{p}   2 alloc:{p}:ports:<namespace>
-- ARGV  1 how (released, declined, forced), then for each lease: port, token (forced: fence), then if forced: who does
--       it, why
-- Replies
--       for each lease a code and its detail: released <fence> · declined <fence> · already '' · not_yours <the holder's
--       lease>
-- Events  released (if forced with the fields `by` and `reason`), declined
-- Loops   the batch, which the client keeps to 256 leases; 16 waiters; four queues for each lease, 64 waiters each

--@include replies
--@include base
--@include events
--@include grants

local FIRST_MS, FACTOR, LONGEST_MS, PEACE_MS = 5000, 4, 600000, 3600000

local function run(read, call, try)
  local base, ports_key = KEYS[1], KEYS[2]
  local namespace = string.sub(ports_key, #base + 8)
  local tokens_key, lease_prefix = base .. ':tokens:' .. namespace, base .. ':lease:' .. namespace .. ':'
  local how, count = ARGV[1], (#ARGV - 1) / 2
  local is_declined, is_forced = how == 'declined', how == 'forced'
  if is_forced then
    count = count - 1
  end
  if count < 1 or count % 1 ~= 0 or not (is_declined or is_forced or how == 'released') then
    error({ err = WRONG_ARGUMENTS }, 0)
  end
  local kind, mark = is_declined and DECLINED or RELEASED, is_declined and '~' or is_forced and '=' or '-'
  local pool = read('HMGET', base, 'rules', 'waiting')
  local cooldown_ms = pool[1] and rule_of(pool[1], ' cooldown_ms=', base) or 0
  local now = server_time(read)
  local ports = {}
  for i = 1, count do
    ports[i] = ARGV[2 * i]
  end
  local grants = read('HMGET', tokens_key, unpack(ports))
  local reply, ended, seen = {}, {}, count > 1 and {}
  for i = 1, count do
    local port, grant, code, detail = ports[i], grants[i], ALREADY, ''
    local its_mark, fence, token, host, worker
    if grant then
      its_mark, fence, token, host, worker = grant_of(grant, tokens_key, port)
    end
    local proof = is_forced and fence or token
    if proof ~= ARGV[2 * i + 1] then
      local lease = read('GET', lease_prefix .. port)
      if lease then
        code, detail = NOT_YOURS, lease
      end
    elseif its_mark == '' and not (seen and seen[port]) then
      code, detail = kind, fence
      if seen then
        seen[port] = true
      end
      local claimable_at, strike = now + cooldown_ms, nil
      if is_declined then
        local strikes, at = string.match(read('HGET', base .. ':host:' .. namespace, 'strikes:' .. port) or '', '^(%d+) (%d+)')
        strikes = strikes and now - at < PEACE_MS and tonumber(strikes) or 0
        claimable_at = now + math.min(FIRST_MS * FACTOR ^ strikes, LONGEST_MS)
        strike = (strikes + 1) .. ' ' .. string.format(WHOLE, now) .. ' ' .. string.format(WHOLE, claimable_at)
      end
      ended[#ended + 1] = { port, grant, fence, host, worker, claimable_at, strike }
    end
    reply[2 * i - 1], reply[2 * i] = code, detail
  end

  -- writes --
  -- Three keys are written without having been read. Each write is its own check, and what was written of a lease is
  -- taken back when a later one cannot be: a lease has ended as a whole or not at all.
  for i = 1, #ended do
    local port, grant, fence, host, worker, claimable_at, strike = unpack(ended[i], 1, 7)
    local service, member = service_key(base, worker), host .. ':' .. port
    local removed = try('ZREM', service, member)
    local failed, failed_at = removed, service
    if type(removed) ~= 'table' then
      local event
      if is_forced then
        event = record_event(try, base, kind, host, port, worker, fence, 'by', ARGV[#ARGV - 1], 'reason', ARGV[#ARGV])
      else
        event = record_event(try, base, kind, host, port, worker, fence)
      end
      failed, failed_at = event, base .. ':events'
      if type(event) ~= 'table' then
        failed, failed_at = try('ZADD', ports_key, claimable_at, port), ports_key
        if type(failed) == 'table' then
          call('XDEL', base .. ':events', event)
        end
      end
      if type(failed) == 'table' and removed == 1 then
        call('ZADD', service, 0, member)
      end
    end
    if type(failed) == 'table' then
      refuse(failed, failed_at)
    end
    call('DEL', lease_prefix .. port)
    call('HSET', tokens_key, port, mark .. grant)
    if strike then
      call('HSET', base .. ':host:' .. namespace, 'strikes:' .. port, strike)
    end
  end
  if pool[2] and tonumber(pool[2]) > now and #ended > 0 then
    --@include queue
    local freed = {}
    for i = 1, #ended do
      freed[i] = ended[i][5]
    end
    wake_held(try, base, freed)
    if not is_declined then
      wake_first(try, base, namespace, #ended)
    end
  end
  return reply
end

return guarded(run)
