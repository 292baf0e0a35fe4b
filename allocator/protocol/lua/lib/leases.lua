-- leases: a lease's key, its worker's last address, and the start of a grant.

--@include base
--@include events

-- A worker's last address is remembered for a week without a lease, so that it gets its port back after a long weekend.
local WORKER_MEMORY_MS = 604800000
local NO_ADDRESS = 'does not hold the address of a worker'

-- The parts of a lease that its worker cannot change: fence, state, worker, host, granted_at.
local function lease_head(text, key)
  local fence, state, worker, host, granted_at = string.match(text,
    '^{"fence":(%d+),"state":"(%l+)","worker":"([^"]+)","host":"([^"]+)","port":%d+,"granted_at":(%d+)')
  if not fence then
    bad(key, 'does not hold a lease')
  end
  return fence, state, worker, host, granted_at
end

-- Host, port and fence of a worker's last address; the tokens have whether that grant has ended, and how.
local function address_of(text, key)
  local host, port, fence = string.match(text, '^{"host":"([^"]+)","port":(%d+),"fence":(%d+)}$')
  if not host then
    bad(key, NO_ADDRESS)
  end
  return host, port, fence
end

local function write_address(call, key, host, port, fence, ttl_ms)
  call('SET', key, '{"host":"' .. host .. '","port":' .. port .. ',"fence":' .. fence .. '}', 'PX', WORKER_MEMORY_MS + ttl_ms)
end

local function lease_text(fence, state, worker, host, port, granted_at, ttl_text, extra)
  return '{"fence":' .. fence .. ',"state":"' .. state .. '","worker":"' .. worker .. '","host":"' .. host
    .. '","port":' .. port .. ',"granted_at":' .. granted_at .. ',"ttl_ms":' .. ttl_text .. extra .. '}'
end

-- The start of a grant, the same for a claim and for a lease that is re-asserted; returns the lease's text.
-- The event, the index of the service and the score are their own checks where nothing was written before them: what was
-- written is taken back when the next cannot be.
local function open_lease(call, try, base, namespace, kind, port, fence, token, host, worker, service, state, extra, ttl_text,
    grace_ms, now, now_text)
  local member, ports_key, ttl_ms = host .. ':' .. port, base .. ':ports:' .. namespace, ttl_text + 0
  local event = record_event(try, base, kind, host, port, worker, fence)
  local failed, failed_at = event, base .. ':events'
  if type(event) ~= 'table' then
    local added = try('ZADD', service, 'NX', 0, member)
    failed, failed_at = added, service
    if type(added) ~= 'table' then
      failed, failed_at = try('ZADD', ports_key, now + ttl_ms + grace_ms, port), ports_key
    end
    if type(failed) == 'table' then
      call('XDEL', base .. ':events', event)
      if added == 1 then
        call('ZREM', service, member)
      end
    end
  end
  if type(failed) == 'table' then
    refuse(failed, failed_at)
  end
  local lease = lease_text(fence, state, worker, host, port, now_text, ttl_text, extra)
  call('HSET', base, 'fence', fence)
  call('SET', base .. ':lease:' .. namespace .. ':' .. port, lease, 'PX', ttl_text)
  call('HSET', base .. ':tokens:' .. namespace, port, fence .. ' ' .. token .. ' ' .. host .. ' ' .. worker)
  write_address(call, base .. ':worker:' .. worker, host, port, fence, ttl_ms)
  return lease
end
