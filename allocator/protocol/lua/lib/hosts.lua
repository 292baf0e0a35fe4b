-- hosts: who may come under a host's name.
--
-- An identity is `<machine> <boot> <network namespace>`, then perhaps an address (after a `!` when somebody chose it). A
-- machine '-' is not known: who claims on behalf of a host that it cannot see changes nothing about it.

--@include base
--@include leases

-- Whether what is known of a host stays as it is for one that differs in its address at most: an address that somebody
-- chose is not replaced by one that was found.
local function keeps_address(known, identity)
  local name, address = string.match(known, '^(%S+ %S+ %S+) ?(%S*)$')
  local its_name, its_address = string.match(identity, '^(%S+ %S+ %S+) ?(%S*)$')
  return name and name == its_name
    and (its_address == '' or (string.sub(address, 1, 1) == '!' and string.sub(its_address, 1, 1) ~= '!'))
end

-- The live leases of a host in a namespace of ports, each as { port, text, ms that are left }; the ports in pages of 512.
local function leases_of(read, base, namespace, host, now)
  local found, ports_key = {}, base .. ':ports:' .. namespace
  for offset = 0, 65535, 512 do
    local ports = read('ZRANGEBYSCORE', ports_key, '(' .. string.format(WHOLE, now), FOREVER, 'LIMIT', offset, 512)
    if #ports == 0 then
      break
    end
    local keys = {}
    for i, port in ipairs(ports) do
      keys[i] = base .. ':lease:' .. namespace .. ':' .. port
    end
    for i, lease in ipairs(read('MGET', unpack(keys))) do
      if lease then
        local _, _, _, its_host = lease_head(lease, keys[i])
        if its_host == host then
          found[#found + 1] = { ports[i], lease, read('PTTL', keys[i]) }
        end
      end
    end
  end
  return found
end

-- What an identity is to a host that is known by another one:
--   'same'      it is that host, or not known to be another; what is known of it is to be written anew
--   'known'     it is that host, and what is known of it stays as it is
--   'conflict'  another machine with live leases goes by that name, or the same machine (a clone of it, a container beside
--               it) still renews: what its leases were renewed at lies after this one began, `alive_ms` before now
--   'heir'      nothing was renewed since this one began (a reboot, a container that started again): what is left
--               behind, the second result, has no holder any more
local function compare_machines(read, base, namespace, host, known, identity, alive_ms, now)
  local machine, boot, netns = string.match(known, '^(%S+) (%S+) (%S+)')
  local its_machine, its_boot, its_netns = string.match(identity, '^(%S+) (%S+) (%S+)')
  if not machine or not its_machine or machine == '-' or its_machine == '-' or (machine == its_machine and boot == its_boot and netns == its_netns) then
    return keeps_address(known, identity) and 'known' or 'same'
  end
  local left = leases_of(read, base, namespace, host, now)
  if machine ~= its_machine then
    return #left > 0 and 'conflict' or 'same'
  end
  for _, one in ipairs(left) do
    local ttl_ms = tonumber(string.match(one[2], '"ttl_ms":(%d+)')) or 0
    if now + one[3] - ttl_ms > now - alive_ms then
      return 'conflict'
    end
  end
  return 'heir', left
end
